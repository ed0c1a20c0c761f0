"""Studies of recipes: many small trainings ("cells"), each with one small results file; a rerun skips those already there.

    python -m mmlib.studies default        all cells of a preset, in order

Losses are on validation documents, since recipes are chosen by them. Nothing here reads a test document.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage

from mmlib import runs
from mmlib.denoisers import count_parameters
from mmlib.gaussian import PrincipalComponents
from mmlib.meta_model import MetaModel
from mmlib.normaliser import Normaliser
from mmlib.presets import MLPSize, Recipe, Training, UNetSize
from mmlib.recipes import new_model
from mmlib.results import read_json
from mmlib.store import ActivationStore, shuffled_batches
from mmlib.train import train


@dataclass(frozen=True)
class Cell:
    """One recipe with one seed."""

    study: str
    name: str
    recipe: Recipe
    seed: int = 0

    @property
    def file(self) -> str:
        """Name of its results file."""
        return f"{self.study}-{self.name}-seed{self.seed}".replace(" ", "-")


PUBLISHED = Training("flow_velocity", steps=490, batch=4096, lr=5e-5, warmup=0.01, final_lr=0.1, ema=0.0, beta2=0.999, weight_decay=0.01,
                     validate_every=10, save_every=500)
PLAIN = Training("flow_velocity", steps=360, batch=1024, lr=2e-3, ema=0.98, weight_decay=0.05, validate_every=10, save_every=500)
OURS = replace(PLAIN, levels=64)
SEEDS = (0, 1, 2)
LONG = 2500  # steps of 512 for the published architecture, tuned: 1.28 million activations
UNET = Training("ddpm_epsilon", steps=240, batch=32, lr=1e-3, ema=0.98, bf16=False, validate_every=60, save_every=500)


def small(d: int, **changes) -> MLPSize:
    """The MLP of the studies: 11.5 million parameters at d = 640."""
    return MLPSize(layers=3, d_model=d, d_mlp=2 * d, **changes)


def mlp_cells(d: int) -> list[Cell]:
    """Trials of the published architecture and of ours, the ablation, and the times to a loss."""
    plain, gated = small(d), small(d, gated_skip=True)
    grid = [(lr, batch) for batch in (512, 1024) for lr in (1e-3, 2e-3, 4e-3, 8e-3)]
    cells = []
    for label, size, base in (("plain", plain, PLAIN), ("ours", gated, OURS)):
        for lr, batch in grid:
            training = replace(base, lr=lr, batch=batch, steps=base.steps * base.batch // batch)
            cells.append(Cell("trial", f"{label}-lr{lr:g}-batch{batch}", Recipe(size, training)))
    for seed in SEEDS:
        cells += [Cell("ablation", name, recipe, seed) for name, recipe in {
            "ours": Recipe(gated, OURS),
            "one level a row": Recipe(gated, PLAIN),
            "no gated skip": Recipe(plain, OURS),
            "neither": Recipe(plain, PLAIN),
            "linear skip instead of gated": Recipe(plain, OURS, linear_skip=True),
        }.items()]
    best_plain, best_ours = replace(PLAIN, batch=512, lr=8e-3), replace(OURS, batch=512, lr=2e-3)  # of the trials
    for seed in SEEDS:
        cells.append(Cell("time", "published", Recipe(plain, PUBLISHED), seed))
        cells.append(Cell("time", "plain", Recipe(plain, replace(best_plain, steps=LONG, ema=0.99, validate_every=20)), seed))
        cells.append(Cell("time", "ours", Recipe(gated, replace(best_ours, steps=LONG * 2 // 5, ema=0.98, validate_every=20)), seed))
    return cells


def unet_cells(d: int, correlated: list[int]) -> list[Cell]:
    """The UNet at about equal seconds: learning rate, batch, width, and the order of the dimensions.

    Args:
        correlated: dimensions in an order that puts correlated ones together.
    """
    base = UNetSize(channels=(32, 64, 128), layers_per_block=1)
    shuffled = tuple(np.random.default_rng(0).permutation(d).tolist())
    cells = [Cell("unet", f"lr{lr:g}", Recipe(base, replace(UNET, lr=lr))) for lr in (1e-3, 2e-3)]
    cells.append(Cell("unet", "batch8", Recipe(base, replace(UNET, batch=8, steps=4 * UNET.steps, log_every=40, validate_every=240, save_every=480))))
    cells.append(Cell("unet", "wide", Recipe(replace(base, channels=(64, 128, 256)), replace(UNET, steps=UNET.steps // 2))))
    cells += [Cell("unet", "order shuffled", Recipe(replace(base, order=shuffled), UNET)),
              Cell("unet", "order by correlation", Recipe(replace(base, order=tuple(correlated)), UNET))]
    return cells


def correlation_order(store: ActivationStore, rows: int = 20_000) -> list[int]:
    """Dimensions ordered by hierarchical clustering of the correlations between training activations: neighbours go together."""
    z_nd = Normaliser.of(store)(store.read(slice(0, min(rows, len(store.rows("train"))))))
    distance = 1 - np.abs(np.corrcoef(z_nd.numpy().T))
    return leaves_list(linkage(distance[np.triu_indices(store.d, 1)], "average")).tolist()


def cells(run: runs.Run, store: ActivationStore) -> list[Cell]:
    """All cells of a run's studies; at the smoke preset a few, with a few steps each."""
    found = mlp_cells(store.d) + unet_cells(store.d, correlation_order(store))
    if run.preset.name != "smoke":
        return found
    few = [cell for cell in found if cell.study != "trial" or "lr0.002-batch1024" in cell.name]
    return [_tiny(cell) for cell in few if cell.name != "wide"]


def _tiny(cell: Cell) -> Cell:
    recipe = cell.recipe
    training = replace(recipe.training, steps=6, batch=8 if isinstance(recipe.size, UNetSize) else 64, log_every=2, validate_every=2,
                       levels=recipe.training.levels and 16)
    size = replace(recipe.size, d_model=64, d_mlp=128) if isinstance(recipe.size, MLPSize) else replace(recipe.size, channels=(32, 32, 32))
    return replace(cell, recipe=replace(recipe, training=training, size=size))


def run_cell(run: runs.Run, store: ActivationStore, cell: Cell) -> dict:
    """The results of a cell, from its file if it is there with the same configuration, else by training.

    Returns:
        parameters; setup_seconds, of what is fitted before training; log, the validated entries of the training's.
    """
    configuration = json.loads(json.dumps({"recipe": asdict(cell.recipe), "seed": cell.seed, **store.identities}))
    path = runs.ROOT / "results" / run.name / "recipes" / f"{cell.file}.json"
    if path.exists() and (known := read_json(path))["configuration"] == configuration:
        return known
    model, log, setup = _train(run, store, cell)
    content = {"configuration": configuration, "parameters": count_parameters(model.network), "setup_seconds": setup,
               "log": [entry for entry in log if "validation_loss" in entry]}
    run.write(f"recipes/{cell.file}", content, "21_recipes", target="studies", **store.identities)
    return read_json(path)


def cell_model(run: runs.Run, store: ActivationStore, file: str) -> MetaModel:
    """The network of a cell; trained again where only its results are there."""
    return _train(run, store, next(cell for cell in cells(run, store) if cell.file == file))[0]


def _train(run: runs.Run, store: ActivationStore, cell: Cell) -> tuple[MetaModel, list[dict], float]:
    """(model, log of the training, seconds of set-up before it)."""
    began, training = time.perf_counter(), cell.recipe.training
    gaussian = PrincipalComponents.fit(Normaliser.of(store)(store.read(store.rows("train")))).gaussian() if cell.recipe.linear_skip else None
    setup = time.perf_counter() - began if gaussian else 0.0
    model = new_model(cell.recipe, store, cell.seed, gaussian)
    log = train(model, training, lambda start: shuffled_batches(store, "train", training.batch, cell.seed, start=start),
                model.normaliser(store.read(store.rows("validation"))), run.data / "studies" / cell.file, seed=cell.seed)
    return model, log, setup


def seconds_to(result: dict, loss: float) -> float | None:
    """Seconds of set-up and training after which the validation loss is at most `loss`, or None."""
    return next((result["setup_seconds"] + entry["seconds"] for entry in result["log"] if entry["validation_loss"] <= loss), None)


if __name__ == "__main__":
    chosen = runs.start(preset=sys.argv[1], seed=0)
    with_store = ActivationStore(chosen.store)
    for one in cells(chosen, with_store):
        outcome = run_cell(chosen, with_store, one)
        print(one.file, outcome["log"][-1], flush=True)
