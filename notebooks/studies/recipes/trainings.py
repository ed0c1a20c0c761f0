"""What the study of recipes trains: networks of the paper's kind and UNets, as trials of one
sweep.
"""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Tokens
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import MLPSize, UNetSize
from mmlib.denoisers.noise import Denoiser
from mmlib.evaluation import losses as compare
from mmlib.runs.run import Run
from mmlib.runs.sweep import RecipeTrial, Sweep, Trial, trained_and_measured
from mmlib.training.recipe import Recipe, Training
from mmlib.training.train import TrainingDiverged
from mmlib_studies.recipes.outcomes import seconds_a_step
from mmlib_studies.recipes.sizes import SIZES, RecipeStudySize

VARIANTS = {
    "published": "published architecture",
    "shared": "shared levels",
    "gated": "shared levels, gated skip",
    "linear": "shared levels, linear skip",
}

# of every training; one that stays above the mean's loss is an outcome too
COMMON = {"warmup": 0.05, "ema": 0.99, "stop_if_stuck": False}

LOGGED = ("step", "seconds", "loss", "validation_loss")  # of a training's log


def watched(training: Training, entries: int = 40) -> Training:
    """The same training with its validation loss measured about so many times, at equal distances,
    and no state to resume from.
    """
    every = max(1, training.steps // entries)
    never = every * (training.steps // every + 1)
    return replace(training, log_every=every, validate_every=every, save_every=never)


class Trainings:
    """Trials by what they are, and their outcomes.

    Args:
        size: None: that of the run's preset.
        ask: gives the outcome of a trial; None: what is known, or what training it now gives.
    """

    def __init__(
        self,
        run: Run,
        store: ActivationStore,
        size: RecipeStudySize | None = None,
        ask: Callable[[Trial], dict] | None = None,
    ):
        self.store, self.size, self.seed = store, size or SIZES[run.preset.name], run.seed
        self.sweep = Sweep(run, "recipes", "21_recipes")
        self.ask = ask or self.sweep.outcome
        self.named: dict[str, RecipeTrial] = {}
        self.outcomes: dict[str, dict] = {}
        self.reference = self.size.unet_channels[len(self.size.unet_channels) // 2]

    def outcome(self, wanted: RecipeTrial, *, measured: bool = True) -> dict:
        """Of a training.

        Args:
            measured: on validation documents, once it is trained; else its log is all that counts.
        Raises:
            ValueError: the name is another trial's, which would have each of the two trained anew
                whenever it is asked for.
        """
        if self.named.setdefault(wanted.name, wanted) != wanted:
            raise ValueError(f"two trials are called {wanted.name}: expected a name each")
        self.outcomes[wanted.name] = self.ask(self.trial(wanted, measured))
        return self.outcomes[wanted.name]

    def trial(self, wanted: RecipeTrial, measured: bool) -> Trial:
        """The trial of a training."""
        objective = wanted.recipe.training.objective
        drawn = {"tokens_per_level": self.tokens(objective), "seed": self.seed}
        evaluation = {"objective": objective, "documents": "validation", **drawn}

        def evaluate(_, model: MetaModel) -> dict:
            return {"loss": self.loss(model, objective)} if measured else {}

        def compute(folder: Path) -> dict:
            return _logged(wanted, evaluate, folder)

        return wanted.trial(evaluate, evaluation if measured else {}, compute)

    @cached_property
    def validation(self) -> Tokens:
        """The tokens of validation documents."""
        return self.store.tokens("validation")

    def tokens(self, objective: str) -> int:
        """Validation tokens at each noise level; the slow UNet sees fewer."""
        return self.size.tokens if objective == "flow_velocity" else self.size.tokens_unet

    def loss(self, denoiser: Denoiser, objective: str) -> float:
        """The plain loss of a denoiser on validation documents: the same tokens and noise for all
        of an objective.
        """
        drawn = {"per_level": self.tokens(objective), "seed": self.seed}
        return compare.evaluate({"it": denoiser}, self.validation, objective, **drawn).mean("it")

    def of(self, name: str, recipe: Recipe, seed: int) -> RecipeTrial:
        """A training on the study's store, its validation losses on the study's rows."""
        rows = self.size.validation_rows
        return RecipeTrial(name, recipe, self.store, seed, validation_rows=rows)

    def mlp(
        self,
        variant: str,
        rate: float,
        seed: int | None = None,
        *,
        label: str = "",
        length: float = 1.0,
        batch: int | None = None,
        steps: int | None = None,
        size: MLPSize | None = None,
        training: dict | None = None,
        linear_skip: bool | None = None,
    ) -> RecipeTrial:
        """A network of the paper's kind, on a Gaussian if the variant or the argument says so.
        `length` counts in lengths of the tuning, at the batch's own number of steps for that;
        `steps` overrules.
        """
        batch, seed = batch or self.size.batch, self.seed if seed is None else seed
        steps = max(2, round(length * self.steps_for(variant, batch))) if steps is None else steps
        levels = None if variant == "published" else self.size.levels
        settings = {"weight_decay": 0.05, "levels": levels, **COMMON, **(training or {})}
        settings = watched(Training("flow_velocity", steps, batch, rate, **settings))
        network = replace(size or self.size.mlp, gated_skip=variant == "gated")
        linear_skip = variant == "linear" if linear_skip is None else linear_skip
        numbers = (f"rate{rate:g}", f"batch{batch}", f"steps{steps}", f"seed{seed}")
        name = "-".join(filter(None, (variant, label, *numbers)))
        return self.of(name, Recipe(network, settings, linear_skip=linear_skip), seed)

    def speed(self, trial: RecipeTrial, label: str) -> float:
        """Seconds a step of a trial's recipe, whatever its rate and seed, from a short training of
        its own.
        """
        steps, rate = self.size.speed_steps, self.size.rates[0]
        training = watched(replace(trial.recipe.training, steps=steps, lr=rate), 8)
        short = self.of(f"speed-{label}", replace(trial.recipe, training=training), self.seed)
        return seconds_a_step(self.outcome(short, measured=False))

    def steps_for(self, variant: str, batch: int) -> int:
        """Steps that last as long as the tuning's of that variant, at another batch."""
        if batch == self.size.batch:
            return self.size.steps
        rate, found = self.size.rates[0], []
        for one in (batch, self.size.batch):
            trial = self.mlp(variant, rate, batch=one, steps=2)
            found.append(self.speed(trial, f"{variant}-batch{one}"))
        other, own = found
        return max(2, round(self.size.steps * own / other))

    def unet(
        self,
        rate: float,
        channels: tuple[int, int, int],
        seed: int | None = None,
        *,
        height: int | None = None,
        order: int | None = None,
    ) -> RecipeTrial:
        """The article's UNet, for as many seconds as the reference. `order`: number of a random
        permutation of the dimensions.
        """
        size, seed = self.size, self.seed if seed is None else seed
        layout = UNetSize(channels, layers_per_block=1, height=height)
        plain = UNetSize(self.reference, layers_per_block=1)
        settings = Training(
            "ddpm_epsilon", size.unet_steps, size.unet_batch, rate, bf16=False, **COMMON
        )
        label = "-".join(["unet", *map(str, channels)] + [f"height{height}"] * (height is not None))
        if layout != plain:
            own, other = (
                self.speed(self.of(name, Recipe(one, settings), seed), name)
                for name, one in (("unet-reference", plain), (label, layout))
            )
            settings = replace(settings, steps=max(2, round(size.unet_steps * own / other)))
        name = f"{label}-rate{rate:g}-seed{seed}"
        if order is not None:
            permuted = np.random.default_rng([self.seed, order]).permutation(self.store.d)
            layout = replace(layout, order=tuple(permuted.tolist()))
            name = f"{name}-order{order}"
        return self.of(name, Recipe(layout, watched(settings, 10)), seed)


def _logged(
    wanted: RecipeTrial, evaluate: Callable[[RecipeTrial, MetaModel], dict], folder: Path
) -> dict:
    """What training gives, and with it the seconds of what was fitted before and the log; a
    training that diverged is an outcome too.
    """
    began = time.perf_counter()
    gaussian = wanted.gaussian()
    setup_seconds = round(time.perf_counter() - began, 4) if gaussian else 0.0
    try:
        content = trained_and_measured(wanted, evaluate, folder, gaussian)
    except TrainingDiverged as reason:
        log = _log(folder)
        seconds = log[-1]["seconds"] if log else 0.0
        content = {"activations": wanted.activations, "diverged": str(reason), "seconds": seconds}
    entries = [entry for entry in _log(folder) if "validation_loss" in entry]
    columns = {key: [round(entry[key], 5) for entry in entries] for key in LOGGED}
    return {**content, "setup_seconds": setup_seconds, "log": columns}


def _log(folder: Path) -> list[dict]:
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
