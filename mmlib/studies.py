"""Studies of recipes: many small trainings ("cells"), each with one small results file; a rerun skips those already there.

Losses are on validation documents, since recipes are chosen by them. Nothing here reads a test document.
"""

import json
import time
from dataclasses import asdict, dataclass, replace

import torch

from mmlib import runs
from mmlib.denoisers import count_parameters
from mmlib.gaussian import PrincipalComponents
from mmlib.meta_model import MetaModel
from mmlib.normaliser import Normaliser
from mmlib.presets import MLPSize, Recipe, Training
from mmlib.recipes import new_model
from mmlib.results import read_json
from mmlib.store import ActivationStore, shuffled_batches
from mmlib.train import default_device, train

LEARNING_RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
SEEDS = (0, 1, 2)
SWEEP = Training("flow_velocity", steps=500, batch=512, lr=2e-3, ema=0.98, weight_decay=0.05, validate_every=10, save_every=500)
PUBLISHED = Training("flow_velocity", steps=490, batch=4096, lr=5e-5, warmup=0.01, final_lr=0.1, ema=0.0, beta2=0.999, weight_decay=0.01,
                     validate_every=10, save_every=490, stop_if_stuck=False)  # so slow at first that it looks stuck


@dataclass(frozen=True)
class Cell:
    """One recipe with one seed."""

    name: str
    recipe: Recipe
    seed: int = 0

    @property
    def file(self) -> str:
        """Name of its results file."""
        return f"{self.name}-lr{self.recipe.training.lr:g}-seed{self.seed}".replace(" ", "-")


def variants(run: runs.Run, d: int) -> dict[str, Recipe]:
    """What is compared, each of 11.5 million parameters at d = 640; at the smoke preset tiny and for six steps."""
    plain, steps = MLPSize(layers=3, d_model=d, d_mlp=2 * d), SWEEP
    if run.preset.name == "smoke":
        plain, steps = MLPSize(layers=1, d_model=64, d_mlp=128), replace(SWEEP, steps=6, batch=64, log_every=2, validate_every=2)
    gated, shared = replace(plain, gated_skip=True), replace(steps, levels=64 if steps is SWEEP else 16)
    return {"published architecture": Recipe(plain, steps), "shared levels": Recipe(plain, shared),
            "shared levels, gated skip": Recipe(gated, shared), "shared levels, linear skip": Recipe(plain, shared, linear_skip=True)}


def sweep(run: runs.Run, d: int) -> list[Cell]:
    """Each variant at each learning rate, one seed."""
    return [Cell(name, replace(recipe, training=replace(recipe.training, lr=lr))) for name, recipe in variants(run, d).items() for lr in LEARNING_RATES]


def published(run: runs.Run, d: int) -> Cell:
    """The published settings on the published architecture: 2 million activations."""
    recipe = variants(run, d)["published architecture"]
    small = {} if run.preset.name != "smoke" else {"steps": 6, "batch": 64, "log_every": 2, "validate_every": 2}
    return Cell("published settings", replace(recipe, training=replace(PUBLISHED, **small)))


def run_cell(run: runs.Run, store: ActivationStore, cell: Cell) -> dict:
    """The results of a cell, from its file if it is there with the same configuration, else by training.

    Returns:
        parameters; setup_seconds, of what is fitted before training; log, the validated entries of the training's; machine.
    """
    configuration = json.loads(json.dumps({"recipe": asdict(cell.recipe), "seed": cell.seed, "documents": store.documents, **store.identities}))
    path = runs.ROOT / "results" / run.name / "recipes" / f"{cell.file}.json"
    if path.exists() and (known := read_json(path))["configuration"] == configuration:
        return known
    model, log, setup = _train(run, store, cell)
    content = {"configuration": configuration, "parameters": count_parameters(model.network), "setup_seconds": setup,
               "log": [entry for entry in log if "validation_loss" in entry],
               "machine": {"device": default_device(), "threads": torch.get_num_threads()}}
    run.write(f"recipes/{cell.file}", content, "21_recipes", target="studies", **store.identities)
    return read_json(path)


def cell_model(run: runs.Run, store: ActivationStore, cell: Cell) -> MetaModel:
    """The network of a cell; trained again where only its results are there."""
    return _train(run, store, cell)[0]


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
