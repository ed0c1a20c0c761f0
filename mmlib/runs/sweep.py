"""A sweep: many small trials, a file each. Run again, it computes only the trials whose files are
missing or have another configuration.

A trial is any callable with a configuration, as JSON can hold it. Its outcome is
results/RUN/SWEEP/TRIAL.json, which also holds that configuration. The code is no part of a
configuration: remove the files to have all trials anew.

    sweep = Sweep(run, "widths", "06_scaling")
    trials = [Trial(f"width{w}", {"width": w}, lambda folder, w=w: {"loss": loss_of(w)}) for w in (64, 128)]
    outcomes = sweep.outcomes(trials)  # {"width64": {"loss": …, "configuration": …}, …}

`RecipeTrial` makes such a trial of a recipe that is trained with one seed on one store.
"""

import json
import re
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
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
from mmlib.denoisers.residual import ResidualSize
from mmlib.files import bf16_pays, default_device, processor, read_json
from mmlib.runs import run as runs
from mmlib.runs.artefacts import train_on_store
from mmlib.training.recipe import Recipe, network_of, new_model
from mmlib.training.train import train

STANDARDISED = "standardised"
PROBED_STEPS = 3  # of a training, by which its length is estimated


@dataclass(frozen=True)
class Trial:
    """One computation of a sweep.

    Args:
        name: of its file: letters, digits, dots, hyphens and underscores.
        configuration: everything that decides the outcome, as JSON can hold it.
        compute: gives the outcome, as JSON can hold it; called with a folder of its own, which is
            removed once the outcome is written.
        identities: of the language model and its texts, as a store records them, for the
            provenance.
        kind, cost: trials of one kind take seconds in proportion to their cost.
        probe: seconds that it will take, from a short measurement; asked only where no trial of its
            kind has been timed here.
    Raises:
        ValueError: the name cannot be that of a file.
    """

    name: str
    configuration: Mapping[str, object]
    compute: Callable[[Path], dict]
    identities: Mapping[str, object] = field(default_factory=dict)
    kind: str = ""
    cost: float = 1.0
    probe: Callable[[], float] | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(
                f"trial {self.name!r}: expected letters, digits, dots, hyphens and underscores, "
                "since it names a file"
            )


def this_machine() -> dict:
    """What the seconds of an outcome depend on."""
    threads = torch.get_num_threads()
    return {"device": default_device(), "threads": threads, "processor": processor()}


class Sweep:
    """Where the outcomes of trials are, and which of them are still to be computed.

    Args:
        name: of its folder in results/.
        notebook: that runs it.
    """

    def __init__(self, run: runs.Run, name: str, notebook: str):
        self.run, self.name, self.notebook = run, name, notebook

    def known(self, trial: Trial) -> dict | None:
        """The outcome of a trial, if it is there with the same configuration."""
        path = self.run.found(f"{self.name}/{trial.name}")
        outcome = read_json(path) if path.exists() else None
        return outcome if outcome and outcome["configuration"] == as_json(trial) else None

    def outcome(self, trial: Trial) -> dict:
        """Of one trial: what is known, or else what it gives now."""
        if found := self.known(trial):
            return found
        folder = self.run.data / "studies" / self.name / trial.name
        content = {"configuration": as_json(trial), **trial.compute(folder)}
        content["machine"] = this_machine()
        name, facts = f"{self.name}/{trial.name}", {"target": "studies", **trial.identities}
        path = self.run.write(name, content, self.notebook, **facts)
        shutil.rmtree(folder, ignore_errors=True)  # checkpoints: the seed makes them again
        return read_json(path)

    def outcomes(self, trials: Sequence[Trial]) -> dict[str, dict]:
        """Outcome by name; those that are missing are computed, after a word on how many.

        Raises:
            ValueError: two trials have one name.
        """
        if len(names := {trial.name for trial in trials}) < len(trials):
            raise ValueError(f"{len(trials)} trials have {len(names)} names: expected one each")
        print(self.describe(trials), flush=True)
        shown = tqdm(trials, desc=self.name, unit="trial")
        return {trial.name: self.outcome(trial) for trial in shown}

    def describe(self, trials: Sequence[Trial]) -> str:
        """How many trials are left, and about how many minutes they take on this machine."""
        left = sum(self.known(trial) is None for trial in trials)
        minutes = self.minutes(trials)
        about = "" if minutes is None else f", about {minutes:.0f} minutes on this machine"
        return f"{self.name}: {left} of {len(trials)} trials left{about}"

    def minutes(self, trials: Sequence[Trial]) -> float | None:
        """Minutes that the trials which are left will take, by those that were timed on this
        machine, else by a probe of one of each kind; None if there is neither.
        """
        outcomes = [(trial, self.known(trial)) for trial in trials]
        left = [trial for trial, outcome in outcomes if outcome is None]
        seconds = {}
        for kind in {trial.kind for trial in left}:
            timed = [
                outcome["seconds"] / trial.cost
                for trial, outcome in outcomes
                if trial.kind == kind
                and outcome
                and "seconds" in outcome
                and outcome.get("machine") == this_machine()
            ]
            probed = next((one for one in left if one.kind == kind and one.probe), None)
            if not timed and probed is None:
                return None
            seconds[kind] = statistics.median(timed) if timed else probed.probe() / probed.cost
        return sum(seconds[trial.kind] * trial.cost for trial in left) / 60


def as_json(trial: Trial) -> dict:
    """The configuration of a trial, as its file gives it back."""
    return json.loads(json.dumps(trial.configuration))


@dataclass(frozen=True)
class RecipeTrial:
    """A recipe that is trained with one seed on one store.

    Args:
        name: of its file, as a `Trial`'s.
        coordinates: name of the coordinates that the network sees.
        transform: takes standardised activations (n, d) to those coordinates; None where they are
            the same.
        validation_rows: measure validation losses during training on so many rows, spread evenly;
            None: as `train` does. The noise that `train` puts on them depends on the batch, so two
            trainings of unlike batches compare only if it is the smaller batch, or less.
    Raises:
        ValueError: coordinates have a name and no transform, or the other way round.
    """

    name: str
    recipe: Recipe
    store: ActivationStore
    seed: int = 0
    coordinates: str = STANDARDISED
    transform: Callable[[Tensor], Tensor] | None = None
    validation_rows: int | None = None

    def __post_init__(self):
        if (self.coordinates == STANDARDISED) != (self.transform is None):
            needed = "need a" if self.transform is None else "take no"
            raise ValueError(
                f"trial {self.name}: coordinates {self.coordinates!r} {needed} transform"
            )

    @property
    def activations(self) -> int:
        """Seen in training."""
        return self.recipe.training.steps * self.recipe.training.batch

    def configuration(self, evaluation: Mapping[str, object]) -> dict:
        """What decides the outcome.

        Settings that came later than some trials are left out where they have their default: those
        trials had it.

        Args:
            evaluation: everything that decides what is measured of the trained model, besides this
                trial.
        """
        recipe, training = asdict(self.recipe), self.recipe.training
        for one in fields(training):
            if one.metadata.get("later") and getattr(training, one.name) == one.default:
                del recipe["training"][one.name]
        rows = {"validation_rows": self.validation_rows} if self.validation_rows else {}
        return {
            "recipe": recipe,
            "seed": self.seed,
            "coordinates": self.coordinates,
            "documents": self.store.documents,
            **self.store.identities,
            "evaluation": evaluation,
            **rows,
        }

    @property
    def on_mixtures(self) -> bool:
        """Whether it is of a network on mixtures, which are fitted first."""
        return isinstance(self.recipe.size, ResidualSize)

    def seen(self, activations_nd: Tensor) -> Tensor:
        """What the network sees of raw activations, (n, d): standardised by training statistics,
        then transformed.
        """
        z_nd = Normaliser.of(self.store)(activations_nd)
        return self.transform(z_nd) if self.transform else z_nd

    def gaussian(self) -> GaussianDenoiser | None:
        """That a recipe with a linear skip adds to, fitted to the training documents in the trial's
        coordinates; None for others.
        """
        if not self.recipe.linear_skip:
            return None
        train_nd = self.seen(self.store.read(self.store.rows("train")))
        return PrincipalComponents.fit(train_nd).gaussian()

    def train(
        self, folder: Path, gaussian: GaussianDenoiser | None = None
    ) -> tuple[MetaModel, list[dict]]:
        """The trained model, in the trial's coordinates, and the log of its training.

        Args:
            gaussian: what `gaussian` gives, for a recipe with a linear skip.
        Raises:
            ValueError: the recipe adds to a Gaussian and none is given; or it stands on mixtures,
                and activations are transformed.
        """
        training, store = self.recipe.training, self.store
        if self.on_mixtures:
            if self.transform:
                raise ValueError(f"{self.name} stands on mixtures: expected no transform")
            return train_on_store(self.recipe, store, folder, seed=self.seed)
        model = new_model(self.recipe, Origin.of(store), self.seed, gaussian)
        if self.transform:  # the network's input is made here: nothing is left to standardise
            numbers = Normaliser(torch.zeros(1, store.d), torch.ones(1, store.d))
            model.origin = replace(model.origin, normaliser=numbers)

        def batches(start: int) -> Iterator[Tensor]:
            raw = shuffled_batches(store, "train", training.batch, self.seed, start=start)
            return map(self.seen, raw) if self.transform else raw

        validation_nd = self.seen(store.read(store.rows("validation")))
        if rows := self.validation_rows:
            validation_nd = validation_nd[:: max(1, len(validation_nd) // rows)][:rows]
        log = train(
            model, training, batches, validation_nd, folder, seed=self.seed, source=self.coordinates
        )
        return model, log

    def trial(
        self,
        evaluate: Callable[["RecipeTrial", MetaModel], dict],
        evaluation: Mapping[str, object],
        compute: Callable[[Path], dict] | None = None,
    ) -> Trial:
        """The trial of a sweep that trains this and keeps what `evaluate` gives of the trained
        model.

        Args:
            compute: in place of that.
        """
        with torch.device("meta"):
            parameters = count_parameters(network_of(self.recipe.size, self.store.d))
        return Trial(
            self.name,
            self.configuration(evaluation),
            compute or (lambda folder: trained_and_measured(self, evaluate, folder)),
            self.store.identities,
            type(self.recipe.size).__name__,
            self.activations * parameters,
            # of a network on mixtures no step can be timed before there are some
            None
            if self.on_mixtures
            else lambda: seconds_a_step(self.recipe, self.store.d) * self.recipe.training.steps,
        )


def trained_and_measured(
    trial: RecipeTrial,
    evaluate: Callable[[RecipeTrial, MetaModel], dict],
    folder: Path,
    gaussian: GaussianDenoiser | None = None,
) -> dict:
    """The outcome of training a recipe: parameters, activations seen, seconds, the last validation
    loss, and what `evaluate` gives.
    """
    model, log = trial.train(folder, gaussian)
    model.to(default_device())
    return {
        "parameters": count_parameters(model.network),
        "activations": trial.activations,
        "seconds": round(model.train_seconds, 4),
        "validation_loss": log[-1]["validation_loss"],
        **evaluate(trial, model),
    }


def seconds_a_step(recipe: Recipe, d: int) -> float:
    """Seconds of a training step on this machine: the median over a few forward and backward passes
    on noise.
    """
    device, training = default_device(), recipe.training
    origin = Origin(Normaliser(torch.zeros(1, d), torch.ones(1, d)), layers=(0,))
    model = MetaModel(network_of(recipe.size, d), training.objective, origin)
    model.to(device).network.train()
    generator, seconds = torch.Generator().manual_seed(0), []
    z_nd = torch.randn(training.batch, d, generator=generator).to(device)
    for _ in range(1 + PROBED_STEPS):
        began = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=training.bf16 and bf16_pays(device)):
            loss = model.loss(z_nd, generator, levels=training.levels)
        loss.backward()
        loss.item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first pass also sets up


def require_one_pass(trials: Sequence[RecipeTrial]) -> None:
    """Refuse trials that would see an activation twice, which mixes compute with reuse.

    Raises:
        ValueError: one asks for more activations than its store has for training.
    """
    for trial in trials:
        if trial.activations > (there := len(trial.store.rows("train"))):
            raise ValueError(
                f"trial {trial.name} takes {trial.activations:,} activations, {there:,} are there "
                "for training: none may come twice"
            )
