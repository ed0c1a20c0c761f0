"""What budgets that two cores do not have change: networks of the `default` preset's kinds and the
article's UNet at its full size.

    python -m mmlib extract --preset default     first: the store of notebook 01
    python -m mmlib_studies.gpu [NAME …]           on a machine with CUDA: all runs, or those named

All learn and are measured on the `default` preset's documents, on the grid of
`mmlib.evaluation.losses`. Runs called "final" are measured on test documents, and were written down
before any of them was; the others, which look for a better recipe, on validation documents alone. A
small network leaves most of a GPU idle: several of these commands side by side, each with an --out
of its own, are sooner done, and the seconds that they note are then of a shared device.
"""

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmlib.activations.batches import spread_rows
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser, Tokens
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents, standard_normal
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import MLPSize, UNetSize, count_parameters
from mmlib.denoisers.noise import PROCESSES, SMOOTHING, smoothed
from mmlib.evaluation import losses as compare
from mmlib.evaluation.intervals import ratio_interval
from mmlib.files import GPU_PACKAGES, default_device, provenance, read_json, write_json
from mmlib.runs import run as runs
from mmlib.runs.presets import PCA_K, get_preset
from mmlib.runs.results import keyed_results, rows_of
from mmlib.training.recipe import Recipe, Training, new_model
from mmlib.training.train import train

PRESET, SEED, TOKENS = "default", 0, 1000  # tokens at each noise level

DENSITY_TOKENS = 200  # of the UNet's likelihood

TRAIN_ROWS = 20_000  # among which the tokens are for the loss on training documents


@dataclass(frozen=True)
class GPURun:
    """One training. `final`: measured on test documents."""

    name: str
    recipe: Recipe
    final: bool = False


def _flow(size: MLPSize, steps: int, batch: int, lr: float, **options) -> Recipe:
    settings = {"ema": 0.995, "weight_decay": 0.05, "levels": 64, "density": "logit_normal"}
    return Recipe(size, Training("flow_velocity", steps, batch, lr, **settings | options))


def _runs() -> list[GPURun]:
    ours = MLPSize(gated_skip=True)
    one, two = replace(ours, layers=1, d_mlp=7680), replace(ours, layers=2, d_mlp=3840)
    wide, narrow = replace(two, d_model=1600, d_mlp=4800), replace(two, d_model=960, d_mlp=5120)
    paper = Training("flow_velocity", 1100, 512, 2e-3, ema=0.99, weight_decay=0.05)
    article = Training("ddpm_epsilon", 3000, 256, 3e-4, ema=0.999)
    tried = {
        "logit-normal": _flow(ours, 3200, 512, 1e-3),
        "batch-1024": _flow(ours, 1600, 1024, 1e-3),
        "two-blocks": _flow(two, 1600, 1024, 1e-3),
        "one-block": _flow(one, 1600, 1024, 1e-3),
        "two-blocks-rate-0.0014": _flow(two, 1600, 1024, 1.4e-3),
        "two-blocks-late": _flow(two, 1600, 1024, 1e-3, decay="late"),
        "two-blocks-1200": _flow(two, 1200, 1024, 1e-3),
        "two-blocks-batch-2048": _flow(two, 1200, 2048, 1.4e-3),
        "two-blocks-decay-0.3": _flow(two, 1600, 1024, 1e-3, weight_decay=0.3),
        "two-wide-blocks": _flow(wide, 1600, 1024, 1e-3),
        "narrow-stream": _flow(narrow, 1600, 1024, 1e-3),
        "small": _flow(replace(two, d_model=960, d_mlp=2880), 1600, 1024, 1.4e-3),
        "two-blocks-x4-decay-0.3": _flow(two, 6400, 1024, 1e-3, weight_decay=0.3),
    }
    final = {
        # As notebook 03 had them until these runs were done: what the other machine changes.
        "gated_mlp": _flow(ours, 3200, 512, 1e-3, density="uniform"),
        "mlp": Recipe(MLPSize(), paper),
        "two-blocks-late-1200": get_preset(PRESET).studied["gated_mlp"],
        "unet": Recipe(UNetSize(), article),  # the article's own size
        # four times the activations, and sixteen
        "gated_mlp_x4": _flow(ours, 6400, 1024, 1e-3),
        "gated_mlp_x16": _flow(ours, 12_800, 2048, 1e-3, ema=0.998),
    }
    return [
        *(GPURun(name, recipe, final=True) for name, recipe in final.items()),
        *(GPURun(name, recipe) for name, recipe in tried.items()),
    ]


def resident_batches(rows_nd: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """Batches of rows that all lie in the device's memory: every row once an epoch, in a new order;
    a last part that fills no batch is left out.
    """
    for epoch in count():
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(rows_nd)))
        for part in order.to(rows_nd.device).split(batch)[: len(rows_nd) // batch]:
            yield rows_nd[part]


def losses_on(tokens: Tokens, methods: dict, objective: str) -> compare.Losses:
    """On the evaluation grid; the tokens and the noise of notebook 04."""
    return compare.evaluate(methods, tokens, objective, per_level=TOKENS, seed=SEED)


def density_of(model: MetaModel, components: PrincipalComponents, tokens: Tokens) -> dict:
    """Log-likelihood of test tokens along the probability-flow ODE beside the Gaussian's, in nats
    per dimension of the raw activation; see notebook 07.
    """
    some = tokens[spread_rows(len(tokens), DENSITY_TOKENS, np.random.default_rng(SEED))]
    to_raw = -float(model.normaliser.std_ld.double().log().mean())
    found = model.log_likelihood(some.z, generator=_generator(), steps=32, probes=4)
    smoothed_nd = smoothed(some.z, _generator())
    exact_n = components.gaussian().log_density(smoothed_nd, SMOOTHING) + to_raw
    gain_n = (found.nats_per_dimension_n - exact_n).numpy()
    document_n = np.unique(some.document, return_inverse=True)[1]
    sums, counts = np.bincount(document_n, gain_n), np.bincount(document_n)
    return {
        "tokens": DENSITY_TOKENS,
        "smoothing": SMOOTHING,
        "mean": float(found.nats_per_dimension_n.mean()),
        "gaussian": float(exact_n.mean()),
        "over_gaussian": float(gain_n.mean()),
        "over_gaussian_median": float(np.median(gain_n)),
        "ci95": list(ratio_interval(sums, counts)),
        "trace_error_of_mean": float(found.standard_error_n.square().sum().sqrt() / DENSITY_TOKENS),
    }


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


class GPUStudy:
    """What all runs share: activations on the device, documents, and the methods in closed form."""

    def __init__(self, store: ActivationStore):
        self.store = store
        train, rng = store.rows("train"), np.random.default_rng(SEED)
        some = spread_rows(len(train), min(TRAIN_ROWS, len(train)), rng)
        self.splits = {"train": store.tokens("train", some)}
        self.splits |= {split: store.tokens(split) for split in ("validation", "test")}
        self.rows_nd = store.read(train).to(default_device())
        self.components = PrincipalComponents.fit(Normaliser.of(store)(self.rows_nd).cpu())
        self.closed = {
            "mean": standard_normal(store.d),
            f"pca_k{PCA_K}": self.components.projection(PCA_K, "mean_estimate"),
            "gaussian": self.components.gaussian(),
        }

    def rows(self, run: GPURun) -> Iterator[dict]:
        """Train one and measure it: its row as it grows, so that what is there can be written
        before a machine goes.
        """
        torch.cuda.empty_cache()
        settings, every = run.recipe.training, run.recipe.training.log_every
        never, often = every * settings.steps, 10 * every
        settings = replace(settings, save_every=never, validate_every=often, keep=())
        model = new_model(replace(run.recipe, training=settings), Origin.of(self.store), SEED)

        def batches(step: int) -> Iterator[Tensor]:
            return resident_batches(self.rows_nd, settings.batch, SEED)

        validation_nd = self.splits["validation"].z
        with tempfile.TemporaryDirectory() as folder:  # nothing of it is kept
            log = train(model, settings, batches, validation_nd, Path(folder), seed=SEED)
        model.to(default_device())
        own, steps = settings.objective, [entry for entry in log if "validation_loss" in entry]
        row = {
            "name": run.name,
            "final": run.final,
            "recipe": asdict(run.recipe),
            "parameters": count_parameters(model.network),
            "activations": log[-1]["activations"],
            "seconds": log[-1]["seconds"],
            "objective": own,
            "log": [
                {key: entry[key] for key in ("step", "seconds", "loss", "validation_loss")}
                for entry in steps[:: -max(1, len(steps) // 20)][::-1]
            ],
        }
        yield row
        for objective in sorted(PROCESSES, key=lambda name: name != own) if run.final else ():
            row.setdefault("test", {})[objective] = self.on_test(run.name, model, objective)
            yield row
        for split in ("validation", "train"):
            row[split] = losses_on(self.splits[split], {"it": model}, own).mean("it")
            yield row
        if isinstance(run.recipe.size, UNetSize):
            row["density"] = density_of(model, self.components, self.splits["test"])
            yield row

    def on_test(self, name: str, model: MetaModel, objective: str) -> dict:
        """Losses with intervals, and reductions over the methods in closed form, paired by
        document.
        """
        losses = losses_on(self.splits["test"], {name: model, **self.closed}, objective)
        return {
            "losses": {
                one: {"loss": losses.mean(one), "ci95": list(compare.loss_interval(losses, one))}
                for one in losses.sums
            },
            "by_level": losses.curve(name).tolist(),
            "reductions": compare.reduction_rows(losses, objective, [name], list(self.closed)),
        }


def main() -> None:
    """Train and measure networks at the budgets of a GPU."""
    everything = {run.name: run for run in _runs()}
    known = ", ".join(everything)
    parser = argparse.ArgumentParser(prog="python -m mmlib_studies.gpu", description=main.__doc__)
    parser.add_argument("names", nargs="*", help=f"of the runs, all of them left out: {known}")
    parser.add_argument("--store", type=Path, help="left out: that of the default preset")
    parser.add_argument("--out", type=Path, default=runs.ROOT / "results" / "gpu" / "budgets.json")
    parser.add_argument("--commit", help="of this code, where it was copied without its git folder")
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(everything)):
        parser.error(f"unknown run {', '.join(unknown)}: expected some of {known}")
    if not torch.cuda.is_available():
        parser.error(
            f"no CUDA device (torch {torch.__version__} sees none): run it where there is one; its "
            "budgets are not for two cores"
        )
    store = ActivationStore(given.store or runs.start(preset=PRESET, seed=SEED).store)
    chosen = [everything[name] for name in given.names or everything]
    measure(GPUStudy(store), chosen, given.out, given.commit)


def measure(study: GPUStudy, chosen: Iterable[GPURun], out: Path, commit: str | None) -> dict:
    """One row after the other, each written as it grows. Rows that `out` holds already, of the same
    code and documents, stay and are not measured again.
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = {"preset": PRESET, "seed": SEED, "device": device}
    facts |= {"command": "python -m mmlib_studies.gpu", **study.store.identities}
    origin = provenance(runs.ROOT, packages=GPU_PACKAGES, commit=commit, **facts)
    content = {"provenance": origin, "tokens_per_level": TOKENS, "rows": []}
    if out.exists() and _facts(before := read_json(out)) == _facts(content):
        content["rows"] = rows_of(before["trials"], "name")
    for run in chosen:
        (there,) = [row for row in content["rows"] if row["name"] == run.name] or [{}]
        if "train" in there:  # what every run has measured in the end
            print(f"{run.name}: is in {out.name} already", flush=True)
            continue
        done = [row for row in content["rows"] if row["name"] != run.name]
        for row in study.rows(run):
            content["rows"] = [*done, row]
            write_json(out, keyed_results("gpu/budgets", content))
        losses = {"train": row["train"], "validation": row["validation"]}
        if run.final:
            losses["test"] = row["test"][row["objective"]]["losses"][run.name]["loss"]
        print(
            f"{run.name}: {row['parameters'] / 1e6:.1f} M, {row['activations']:,} activations in "
            f"{row['seconds']:.0f} s: "
            + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()),
            flush=True,
        )
    return content


def _facts(content: dict) -> dict:
    """What rows depend on."""
    origin = {key: value for key, value in content["provenance"].items() if key != "written"}
    return {"tokens_per_level": content["tokens_per_level"], **origin}


if __name__ == "__main__":
    main()
