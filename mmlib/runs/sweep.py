"""Studies made of cells: small trainings, each with one small file of results. Run again, a study does only the cells that are missing.

A cell is one recipe with one seed on one store. Its outcome is results/RUN/STUDY/CELL.json, which holds the configuration that it came
from; a cell whose file has another configuration is trained again. The code is not part of it: remove the files to have all cells anew.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mmlib.activations.batches import shuffled_batches
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import GaussianDenoiser, PrincipalComponents
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import count_parameters
from mmlib.denoisers.noise import Denoiser
from mmlib.files import default_device, processor, read_json
from mmlib.runs import run as runs
from mmlib.training.recipe import Recipe, new_model
from mmlib.training.train import Training, TrainingDiverged, train

STANDARDISED = "standardised"


@dataclass(frozen=True)
class Cell:
    """One recipe with one seed on one store.

    Args:
        name: of its file: letters, digits, dots, hyphens and underscores.
        coordinates: name of the coordinates that the network sees.
        transform: takes standardised activations (n, d) to those coordinates; None where they are the same.
    Raises:
        ValueError: the name cannot be that of a file, or coordinates have a name and no transform, or the other way round.
    """

    name: str
    recipe: Recipe
    store: ActivationStore
    seed: int = 0
    coordinates: str = STANDARDISED
    transform: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self):
        _require_file_name(self.name)
        if (self.coordinates == STANDARDISED) != (self.transform is None):
            raise ValueError(
                f"cell {self.name}: coordinates {self.coordinates!r} {'need a' if self.transform is None else 'take no'} transform"
            )

    @property
    def steps(self) -> int:
        """Of the training."""
        return self.recipe.training.steps

    @property
    def activations(self) -> int:
        """Seen in training."""
        return self.recipe.training.steps * self.recipe.training.batch

    @property
    def configuration(self) -> dict:
        """What decides its outcome besides the store and the evaluation.

        Settings that came later than some cells are left out where they have their default: those cells had it.
        """
        recipe, training = asdict(self.recipe), self.recipe.training
        for field in fields(training):
            if field.metadata.get("later") and getattr(training, field.name) == field.default:
                del recipe["training"][field.name]
        return {"recipe": recipe, "seed": self.seed, "coordinates": self.coordinates}

    def seen(self, activations_nd: Tensor) -> Tensor:
        """What the network sees of raw activations, (n, d): standardised by training statistics, then transformed."""
        z_nd = Normaliser.of(self.store)(activations_nd)
        return self.transform(z_nd) if self.transform else z_nd


@dataclass(frozen=True)
class FittedCell:
    """A denoiser that no loop of ours trains, with one seed on one store: fitted in closed form, or by another library.

    Args:
        name: of its file, as a `Cell`'s.
        settings: all that decides the fit besides the store and the seed, as JSON can hold it.
        fit: gives the denoiser, of standardised activations, with the number of its `parameters`.
        activations: seen by the fit.
    Raises:
        ValueError: the name cannot be that of a file.
    """

    name: str
    store: ActivationStore
    seed: int
    settings: dict
    fit: Callable[[], Denoiser]
    activations: int
    steps = 0  # of a training loop

    def __post_init__(self):
        _require_file_name(self.name)

    @property
    def configuration(self) -> dict:
        """What decides its outcome besides the store and the evaluation."""
        return {"settings": self.settings, "seed": self.seed}


def _require_file_name(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(
            f"cell {name!r}: expected letters, digits, dots, hyphens and underscores, since it names a file"
        )


class Study:
    """The cells of one study, and where their outcomes are.

    Args:
        name: of its folder in results/.
        notebook: that runs it.
        evaluate: called with a cell and its trained model (of a `FittedCell`, its denoiser), gives what is to be kept of it, as JSON can hold it.
        evaluation: everything that decides what `evaluate` gives besides the cell: a part of the configuration.
        one_pass: refuse cells that would see an activation twice, which mixes compute with reuse.
        trials: cells are trials of recipes. An outcome then also has `setup_seconds`, of what was fitted before training; `log`, the
            entries of the training's log that have a validation loss, as columns; and a training that diverged is an outcome as well,
            with `diverged` in place of losses.
        validation_rows: measure validation losses during training on so many rows, spread evenly; None: as `train` does. The noise
            that `train` puts on them depends on the batch, so two trainings of unlike batches compare only if it is the smaller
            batch, or less.
    """

    def __init__(
        self,
        run: runs.Run,
        name: str,
        notebook: str,
        evaluate: Callable[[Cell | FittedCell, Denoiser], dict],
        evaluation: dict,
        *,
        one_pass: bool = True,
        trials: bool = False,
        validation_rows: int | None = None,
    ):
        self.run, self.name, self.notebook, self.evaluate, self.evaluation, self.one_pass = (
            run,
            name,
            notebook,
            evaluate,
            evaluation,
            one_pass,
        )
        self.trials, self.validation_rows = trials, validation_rows

    def path(self, cell: Cell | FittedCell) -> Path:
        """Where the outcome of a cell is written."""
        return self.run.results / self.name / f"{cell.name}.json"

    def configuration(self, cell: Cell | FittedCell) -> dict:
        """What decides the outcome of a cell, as JSON gives it back."""
        further = {"validation_rows": self.validation_rows} if self.validation_rows else {}
        return json.loads(
            json.dumps(
                {
                    **cell.configuration,
                    "documents": cell.store.documents,
                    **cell.store.identities,
                    "evaluation": self.evaluation,
                    **further,
                }
            )
        )

    def known(self, cell: Cell | FittedCell) -> dict | None:
        """The outcome of a cell, if it is there with the same configuration."""
        path = self.run.found(f"{self.name}/{cell.name}")
        outcome = read_json(path) if path.exists() else None
        return outcome if outcome and outcome["configuration"] == self.configuration(cell) else None

    def describe(self, cells: list[Cell | FittedCell]) -> str:
        """What is left to do."""
        left = [cell for cell in cells if self.known(cell) is None]
        return (
            f"{self.name}: {len(left)} of {len(cells)} cells left to train, {sum(cell.steps for cell in left):,} steps, "
            f"{sum(cell.activations for cell in left):,} activations"
        )

    def outcomes(self, cells: list[Cell | FittedCell]) -> dict[str, dict]:
        """Outcome by cell; those that are missing are trained and evaluated, after a word on how many.

        Raises:
            ValueError: two cells have one name, or one asks for more activations than its store has for training.
        """
        if len({cell.name for cell in cells}) < len(cells):
            raise ValueError(
                f"{len(cells)} cells have {len({cell.name for cell in cells})} names: expected one each"
            )
        for cell in cells:
            if self.one_pass and cell.activations > (there := len(cell.store.rows("train"))):
                raise ValueError(
                    f"cell {cell.name} takes {cell.activations:,} activations, {there:,} are there for training: none may come twice"
                )
        print(self.describe(cells), flush=True)
        return {cell.name: self.outcome(cell) for cell in tqdm(cells, desc=self.name, unit="cell")}

    def outcome(self, cell: Cell | FittedCell) -> dict:
        """Of one cell: what is known, or else what training and evaluating it now gives."""
        return self.known(cell) or (
            self._fitted(cell) if isinstance(cell, FittedCell) else self._trained(cell)
        )

    def _fitted(self, cell: FittedCell) -> dict:
        began = time.perf_counter()
        denoiser = cell.fit()
        return self._written(
            cell,
            {
                "parameters": denoiser.parameters,
                "activations": cell.activations,
                "seconds": round(time.perf_counter() - began, 4),
                **self.evaluate(cell, denoiser),
            },
        )

    def _written(self, cell: Cell | FittedCell, found: dict) -> dict:
        """The outcome of a cell, from its file."""
        machine = {
            "device": default_device(),
            "threads": torch.get_num_threads(),
            "processor": processor(),
        }
        content = {"configuration": self.configuration(cell), **found, "machine": machine}
        self.run.write(
            f"{self.name}/{cell.name}",
            content,
            self.notebook,
            target="studies",
            **cell.store.identities,
        )
        return read_json(self.path(cell))

    def _trained(self, cell: Cell) -> dict:
        folder = self.run.data / "studies" / self.name / cell.name
        gaussian, setup_seconds = fitted_gaussian(cell)
        try:
            model, log = train_cell(cell, folder, gaussian, self.validation_rows)
        except TrainingDiverged as reason:
            if not self.trials:
                raise
            path = folder / "log.jsonl"
            log = (
                [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                if path.exists()
                else []
            )
            content = {
                "activations": cell.activations,
                "diverged": str(reason),
                "seconds": log[-1]["seconds"] if log else 0.0,
            }
        else:
            model.to(default_device())
            content = {
                "parameters": count_parameters(model.network),
                "activations": cell.activations,
                "seconds": log[-1]["seconds"],
                "validation_loss": log[-1]["validation_loss"],
                **self.evaluate(cell, model),
            }
        if self.trials:
            content |= {"setup_seconds": setup_seconds, "log": validated(log)}
        outcome = self._written(cell, content)
        shutil.rmtree(folder)  # hundreds of megabytes, and the seed makes it again
        return outcome


def validated(log: list[dict]) -> dict[str, list]:
    """Steps, seconds and losses of the entries that have a validation loss, a list each."""
    entries = [entry for entry in log if "validation_loss" in entry]
    return {
        key: [round(entry[key], 5) for entry in entries]
        for key in ("step", "seconds", "loss", "validation_loss")
    }


def fitted_gaussian(cell: Cell) -> tuple[GaussianDenoiser | None, float]:
    """The Gaussian that a cell with a linear skip adds to, fitted to its training documents, and the seconds that took; else (None, 0)."""
    if not cell.recipe.linear_skip:
        return None, 0.0
    began = time.perf_counter()
    gaussian = PrincipalComponents.fit(
        cell.seen(cell.store.read(cell.store.rows("train")))
    ).gaussian()
    return gaussian, round(time.perf_counter() - began, 4)


def train_cell(
    cell: Cell,
    folder: Path,
    gaussian: GaussianDenoiser | None = None,
    validation_rows: int | None = None,
) -> tuple[MetaModel, list[dict]]:
    """The trained model of a cell, in the cell's coordinates, and the log of its training.

    Args:
        gaussian: that a recipe with a linear skip adds to, in the cell's coordinates.
        validation_rows: see `Study`.
    Raises:
        ValueError: the recipe adds to a Gaussian and none is given.
    """
    training, store = cell.recipe.training, cell.store
    model = new_model(cell.recipe, Origin.of(store), cell.seed, gaussian)
    if (
        cell.transform
    ):  # what the network sees is made here, so there is nothing left for the model to standardise
        model.normaliser = Normaliser(torch.zeros(1, store.d), torch.ones(1, store.d))

    def batches(start: int) -> Iterator[Tensor]:
        raw = shuffled_batches(store, "train", training.batch, cell.seed, start=start)
        return map(cell.seen, raw) if cell.transform else raw

    validation_nd = cell.seen(store.read(store.rows("validation")))
    if validation_rows:
        validation_nd = validation_nd[:: max(1, len(validation_nd) // validation_rows)][
            :validation_rows
        ]
    log = train(
        model, training, batches, validation_nd, folder, seed=cell.seed, source=cell.coordinates
    )
    return model, log


def measured_at_the_end(training: Training) -> Training:
    """The same training with its validation loss measured once, at its end, and no state to resume from: cells take minutes at most."""
    never = training.log_every * (training.steps // training.log_every + 1)
    return replace(training, validate_every=never, save_every=never)


def watched(training: Training, entries: int = 40) -> Training:
    """The same training with its validation loss measured about so many times, at equal distances, and no state to resume from."""
    every = max(1, training.steps // entries)
    never = every * (training.steps // every + 1)
    return replace(training, log_every=every, validate_every=every, save_every=never)
