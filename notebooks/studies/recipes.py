"""The study of recipes (notebook 21): which trainings there are, which of them depend on the outcome of which, and how long they will take.

Everything is chosen and measured on validation documents. A loss is the plain objective's, on the grid of `compare.evaluate`, the same
tokens and noise for all; a time to a loss is read from the log of the training, whose validation losses are on fixed rows, levels and
noise of their own, the same for all networks of the MLP's kind. Seconds are of training alone, reading and averaging included, and of what
was fitted before it; measuring validation losses is in nobody's.

Trials of recipes: which rate to try next, when a loss was reached, what remains of a difference over seeds, how long they will take.

An outcome is what `studies.Study` keeps of a cell with `trials=True`, and `loss`, the plain loss on validation documents.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, wraps

import numpy as np
import torch
from torch._dynamo.exc import BackendCompilerFailed

from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser, Tokens
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import MLPDenoiser, MLPSize, UNetSize, count_parameters, image_shape
from mmlib.evaluation import losses as compare
from mmlib.evaluation.intervals import spread
from mmlib.runs import run as runs
from mmlib.runs.presets import RecipeStudySize
from mmlib.runs.sweep import Cell, Study, watched
from mmlib.training.recipe import Recipe
from mmlib.training.train import Training

VARIANTS = {
    "published": "published architecture",
    "shared": "shared levels",
    "gated": "shared levels, gated skip",
    "linear": "shared levels, linear skip",
}


OURS = "gated"  # fixed before this study: the recipe that notebook 03 had then


MARGIN = 0.05  # published settings that end further above the target than this share have no further seeds


LOGIT_NORMAL = {"density": "logit_normal"}


ABLATIONS = {  # of our recipe: what differs in its training, its network (deeper, wider), or what it adds to
    "16 levels": {"training": {"levels": 16}},
    "shorter averaging": {"training": {"ema": 0.97}},
    "deeper and narrower": {"shape": (2.0, 0.5)},
    "shallower and wider": {"shape": (1 / 3, 3.0)},
    "logit-normal σ": {"training": LOGIT_NORMAL},
    "logit-normal weights": {"training": {"weighting": "logit_normal"}},
    "rate falls linearly": {"training": {"decay": "linear"}},
    "rate falls late": {"training": {"decay": "late"}},
    "slower second moment": {"training": {"beta2": 0.999}},
    "no weight decay": {"training": {"weight_decay": 0.0}},
    "gated and linear skip": {"linear_skip": True},
    "both that held": {"shape": (1 / 3, 3.0), "training": LOGIT_NORMAL},
}


BEST_ABLATIONS = 3  # that are repeated with the other seeds


def stage(method: Callable) -> cached_property:
    """A part of the study: done once, and its cells are counted as its own."""

    @wraps(method)
    def run(self):
        before, self.at = self.at, method.__name__
        try:
            return method(self)
        finally:
            self.at = before

    part = cached_property(run)
    STAGES.append(method.__name__)
    return part


STAGES: list[str] = []


class RecipeStudy:
    """The parts of the study, each an attribute that trains what is missing when it is first asked for. Later ones ask for earlier ones.

    Args:
        planning: train nothing; note in `planned` which cells there would be, taking guesses for outcomes that are not there.
    """

    def __init__(self, run: runs.Run, store: ActivationStore, planning: bool = False):
        self.store, self.size, self.planning, self.at = store, run.preset.recipe_study, planning, ""
        self.cells, self.planned, self.used = {}, {}, {}
        self.seed, self.all_seeds = run.seed, tuple(range(run.seed, run.seed + self.size.seeds))
        self.reference = self.size.unet_channels[len(self.size.unet_channels) // 2]
        rows = store.rows("validation")
        z_nd, documents = Normaliser.of(store)(store.read(rows)), store.column("document", rows)
        self.validation = Tokens(z_nd, documents - documents[0], store.column("position", rows))

        def study(evaluate: Callable[[Cell, MetaModel], dict], evaluation: dict) -> Study:
            return Study(
                run,
                "recipes",
                "21_recipes",
                evaluate,
                evaluation,
                one_pass=False,
                trials=True,
                validation_rows=self.size.validation_rows,
            )

        def measuring(objective: str, tokens: int) -> Study:
            return study(
                lambda cell, model: {"loss": self.measured(model, objective, tokens)},
                {
                    "objective": objective,
                    "documents": "validation",
                    "tokens_per_level": tokens,
                    "seed": run.seed,
                },
            )

        self.mlps, self.unets = (
            measuring("flow_velocity", self.size.tokens),
            measuring("ddpm_epsilon", self.size.tokens_unet),
        )
        self.speeds = study(lambda cell, model: {}, {})

    def measured(self, denoiser, objective: str, tokens: int) -> float:
        """The plain loss of a denoiser on validation documents."""
        losses = compare.evaluate(
            {"it": denoiser}, self.validation, objective, per_level=tokens, seed=self.seed
        )
        return losses.mean("it")

    def outcome(self, study: Study, cell: Cell) -> dict:
        """Of a cell: known, trained now, or when planning guessed.

        Raises:
            ValueError: the name is another cell's, which would have each of the two trained anew whenever it is asked for.
        """
        if self.cells.setdefault(cell.name, cell) != cell:
            raise ValueError(f"two cells are called {cell.name}: expected a name each")
        found = study.known(cell)
        if self.planning:
            self.planned.setdefault(
                cell.name, (self.at, found is None, planned_seconds(cell, study))
            )
            return found or guess(cell, self.size)
        self.used[cell.name] = found or study.outcome(cell)
        return self.used[cell.name]

    # Cells

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
    ) -> Cell:
        """A network of the paper's kind, on a Gaussian if the variant or the argument says so. `length` counts in lengths of the tuning, at the batch's own number of steps for that; `steps` overrules."""
        batch, seed = batch or self.size.batch, self.seed if seed is None else seed
        steps = max(2, round(length * self.steps_for(variant, batch))) if steps is None else steps
        settings = Training(
            "flow_velocity",
            steps=steps,
            batch=batch,
            lr=rate,
            warmup=0.05,
            ema=0.99,
            weight_decay=0.05,
            levels=None if variant == "published" else self.size.levels,
            stop_if_stuck=False,
        )
        settings = watched(replace(settings, **(training or {})))
        recipe = Recipe(
            replace(size or self.size.mlp, gated_skip=variant == "gated"),
            settings,
            linear_skip=variant == "linear" if linear_skip is None else linear_skip,
        )
        name = "-".join(
            filter(
                None,
                (variant, label, f"rate{rate:g}", f"batch{batch}", f"steps{steps}", f"seed{seed}"),
            )
        )
        return Cell(name, recipe, self.store, seed)

    def speed(self, cell: Cell, label: str) -> float:
        """Seconds a step of a cell's recipe, whatever its rate and seed, from a short training of its own."""
        training = watched(
            replace(cell.recipe.training, steps=self.size.speed_steps, lr=self.size.rates[0]), 8
        )
        short = replace(
            cell,
            name=f"speed-{label}",
            recipe=replace(cell.recipe, training=training),
            seed=self.seed,
        )
        return seconds_a_step(self.outcome(self.speeds, short))

    def steps_for(self, variant: str, batch: int) -> int:
        """Steps that last as long as the tuning's of that variant, at another batch."""
        if batch == self.size.batch:
            return self.size.steps
        other, own = (
            self.speed(
                self.mlp(variant, self.size.rates[0], batch=b, steps=2), f"{variant}-batch{b}"
            )
            for b in (batch, self.size.batch)
        )
        return max(2, round(self.size.steps * own / other))

    def unet(
        self,
        rate: float,
        channels: tuple[int, int, int],
        seed: int | None = None,
        *,
        height: int | None = None,
        order: int | None = None,
    ) -> Cell:
        """The article's UNet, for as many seconds as the reference. `order`: number of a random permutation of the dimensions."""
        size, seed, reference = self.size, self.seed if seed is None else seed, self.reference
        layout = UNetSize(channels, layers_per_block=1, height=height)
        label = "-".join(["unet", *map(str, channels)] + [f"height{height}"] * (height is not None))
        settings = Training(
            "ddpm_epsilon",
            steps=size.unet_steps,
            batch=size.unet_batch,
            lr=rate,
            warmup=0.05,
            ema=0.99,
            bf16=False,
            stop_if_stuck=False,
        )
        cell = Cell(f"{label}-rate{rate:g}-seed{seed}", Recipe(layout, settings), self.store, seed)
        if (channels, height) != (reference, None):
            own = self.speed(
                replace(cell, recipe=Recipe(UNetSize(reference, layers_per_block=1), settings)),
                "unet-reference",
            )
            steps = max(2, round(size.unet_steps * own / self.speed(cell, label)))
            cell = replace(
                cell, recipe=replace(cell.recipe, training=replace(settings, steps=steps))
            )
        if order is not None:
            permuted = tuple(
                np.random.default_rng([self.seed, order]).permutation(self.store.d).tolist()
            )
            cell = replace(
                cell,
                name=f"{cell.name}-order{order}",
                recipe=replace(cell.recipe, size=replace(layout, order=permuted)),
            )
        return replace(
            cell, recipe=replace(cell.recipe, training=watched(cell.recipe.training, 10))
        )

    # Parts

    @stage
    def rates(self) -> dict[str, dict[float, dict]]:
        """Outcomes by variant and rate."""
        return tune(
            self.size.rates,
            self.size.more_rates,
            list(VARIANTS),
            lambda variant, rate: self.outcome(self.mlps, self.mlp(variant, rate)),
        )

    @stage
    def batches(self) -> dict[str, dict[int, dict]]:
        """Outcomes of the published architecture and of ours by batch, each for as many seconds, at the best rate."""
        return {
            variant: {
                batch: self.outcome(
                    self.mlps, self.mlp(variant, best_of(self.rates[variant]), batch=batch)
                )
                for batch in (self.size.batch, *self.size.batches)
            }
            for variant in ("published", OURS)
        }

    @stage
    def variants(self) -> dict[str, list[dict]]:
        """Outcomes of each variant at its best rate, seed by seed."""
        return {
            variant: [
                self.outcome(self.mlps, self.mlp(variant, best_of(tried), seed))
                for seed in self.all_seeds
            ]
            for variant, tried in self.rates.items()
        }

    @stage
    def published_long(self) -> dict:
        """The published architecture for six minutes: `trials` by rate at that length, `rate`, the best, and its `outcomes`, seed by seed."""
        best, batch = best_of(self.rates["published"]), best_of(self.batches["published"])

        def train(rate: float, seed: int) -> dict:
            return self.outcome(
                self.mlps,
                self.mlp("published", rate, seed, label="long", length=self.size.long, batch=batch),
            )

        trials = tune(
            [factor * best for factor in self.size.long_factors],
            1,
            ["long"],
            lambda _, rate: train(rate, self.seed),
        )["long"]
        rate = best_of(trials)
        return {
            "trials": trials,
            "rate": rate,
            "batch": batch,
            "outcomes": [train(rate, seed) for seed in self.all_seeds],
        }

    def shortest(self, lengths: tuple[float, ...], targets: list[float]) -> dict:
        """Ours at the shortest of the lengths, at its best rate and batch, at which every seed comes to its target, else at the longest.

        Returns:
            length, outcomes, seed by seed, and tried: outcomes of the first seeds at all lengths that were tried.
        """
        rate, batch, tried = best_of(self.rates[OURS]), best_of(self.batches[OURS]), {}
        for length in lengths:
            tried[length] = []
            for seed, target in zip(self.all_seeds, targets, strict=True):
                tried[length].append(
                    self.outcome(self.mlps, self.mlp(OURS, rate, seed, length=length, batch=batch))
                )
                if time_to(tried[length][-1], target) is None and length < lengths[-1]:
                    break
            else:
                break
        return {
            "length": length,
            "rate": rate,
            "batch": batch,
            "outcomes": tried[length],
            "tried": tried,
        }

    @stage
    def ours_long(self) -> dict:
        """Ours to where the published architecture ends after six minutes, seed by seed."""
        targets = [end_of(outcome) for outcome in self.published_long["outcomes"]]
        return self.shortest(self.size.lengths, targets) | {"targets": targets}

    @stage
    def published_settings(self) -> list[dict]:
        """Outcomes of the published settings; of one seed alone where that ends far above the target: then only its time counts."""
        settings = watched(self.size.published)
        recipe, outcomes = Recipe(self.size.mlp, settings), []
        for seed in self.all_seeds:
            outcomes.append(
                self.outcome(
                    self.mlps,
                    Cell(
                        f"published-settings-steps{settings.steps}-seed{seed}",
                        recipe,
                        self.store,
                        seed,
                    ),
                )
            )
            if end_of(outcomes[-1]) > (1 + MARGIN) * self.size.target:
                break
        return outcomes

    @stage
    def ours_short(self) -> dict:
        """Ours to the lower of the target and where the published settings end."""
        theirs = self.published_settings + self.published_settings[-1:] * (
            len(self.all_seeds) - len(self.published_settings)
        )
        targets = [min(self.size.target, end_of(outcome)) for outcome in theirs]
        return self.shortest(self.size.short_lengths, targets) | {
            "targets": targets,
            "theirs": theirs,
        }

    @stage
    def large(self) -> dict[str, dict[float, dict]]:
        """The published architecture and ours with the published ratios of widths, by rate, one seed."""

        def train(variant: str, rate: float) -> dict:
            return self.outcome(
                self.mlps,
                self.mlp(
                    variant,
                    rate,
                    label="large",
                    length=self.size.large_length,
                    size=self.size.large,
                ),
            )

        return {
            variant: {
                rate: train(variant, rate)
                for rate in (
                    factor * best_of(self.rates[variant]) for factor in self.size.large_factors
                )
            }
            for variant in ("published", OURS)
        }

    def ablation(self, name: str, seed: int) -> dict:
        """Outcome of ours with one thing changed."""
        change, size = dict(ABLATIONS[name]), None
        if "shape" in change:
            deeper, wider = change.pop("shape")
            size = replace(
                self.size.mlp,
                layers=max(1, round(deeper * self.size.mlp.layers)),
                d_mlp=round(wider * self.size.mlp.d_mlp),
            )
        label = "-".join(["ablation", *re.findall(r"[a-z0-9]+", name.replace("σ", "sigma"))])
        return self.outcome(
            self.mlps,
            self.mlp(OURS, best_of(self.rates[OURS]), seed, label=label, size=size, **change),
        )

    @stage
    def ablations(self) -> dict[str, dict]:
        """Outcomes of ours with one thing changed, one seed."""
        return {name: self.ablation(name, self.seed) for name in ABLATIONS}

    @stage
    def ablation_seeds(self) -> dict[str, list[dict]]:
        """The best of these with all seeds."""
        best = sorted(ABLATIONS, key=lambda name: loss_of(self.ablations[name]))[:BEST_ABLATIONS]
        return {name: [self.ablation(name, seed) for seed in self.all_seeds] for name in best}

    @stage
    def unet_rates(self) -> dict[float, dict]:
        """Outcomes of the reference UNet by rate."""
        return tune(
            self.size.unet_rates,
            1,
            ["unet"],
            lambda _, rate: self.outcome(self.unets, self.unet(rate, self.reference)),
        )["unet"]

    @stage
    def unet_widths(self) -> dict[tuple, dict]:
        """Outcomes by (channels, rate): the reference at its rates; narrower UNets also at twice its best rate, wider ones at half."""
        best, channels = best_of(self.unet_rates), self.size.unet_channels
        found = {(self.reference, rate): outcome for rate, outcome in self.unet_rates.items()}
        for other in (one for one in channels if one != self.reference):
            for rate in (best, best * (2 if sum(other) < sum(self.reference) else 0.5)):
                found[other, rate] = self.outcome(self.unets, self.unet(rate, other))
        return found

    @stage
    def unet_heights(self) -> dict[int | None, dict]:
        """Outcomes of the best UNet by height of the image; None: the height that it has by itself."""
        channels, rate = best_of(self.unet_widths)
        return {
            height: self.outcome(self.unets, self.unet(rate, channels, height=height))
            for height in (None, *other_heights(self.store.d, self.size.unet_heights))
        }

    @stage
    def unet_orders(self) -> dict[str, list[dict]]:
        """Outcomes of the best UNet on the best image, with dimensions in their natural order, and permuted: another permutation with each seed."""
        (channels, rate), height = best_of(self.unet_widths), best_of(self.unet_heights)

        def train(seed: int, order: int | None) -> dict:
            return self.outcome(
                self.unets, self.unet(rate, channels, seed, height=height, order=order)
            )

        seeds = range(self.seed, self.seed + self.size.permutations)
        return {
            "natural": [train(seed, None) for seed in seeds],
            "permuted": [train(seed, seed) for seed in seeds],
        }

    @stage
    def compiled(self) -> dict:
        """Seconds a step of ours as it is, and compiled; or `skipped`, why not."""
        cell = self.mlp(OURS, self.size.rates[0], steps=2)
        other = replace(
            cell, recipe=replace(cell.recipe, training=replace(cell.recipe.training, compile=True))
        )
        try:
            return {"compiled": self.speed(other, "compiled"), "eager": self.speed(cell, "eager")}
        except BackendCompilerFailed as reason:  # no compiler, or none that it can use
            return {
                "skipped": f"torch.compile does not work here: {' '.join(str(reason).split())[:200]}"
            }

    def tried(self) -> dict[str, list[dict]]:
        """Every training by whose loss or time a setting of the published architecture or of ours was chosen, once each, with the first seed."""
        long, ours = (
            self.published_long["trials"].values(),
            [outcomes[0] for outcomes in self.ours_long["tried"].values()],
        )
        found = {}
        for variant, last in (("published", long), (OURS, ours)):
            rows = [
                row_of(outcome)
                for outcome in (
                    *self.rates[variant].values(),
                    *self.batches[variant].values(),
                    *last,
                )
            ]
            found[variant] = list(
                {(row["rate"], row["batch"], row["steps"]): row for row in rows}.values()
            )
        return found


def other_heights(d: int, heights: tuple[int, ...]) -> list[int]:
    """Those of the heights, multiples of 4, that an image of d dimensions can have, without its own."""
    own, width = image_shape(d)
    return [height for height in heights if height != own and own * width % (4 * height) == 0]


def neighbours(
    z_nd: torch.Tensor, width: int, seed: int, permutations: int = 1000
) -> dict[str, dict]:
    """Do dimensions correlate that a convolution sees side by side, or one row apart in an image of that width, more than others do?

    Returns:
        By "beside" and "above": mean, of the absolute correlations of such pairs, and band, which 95 % of random orders are in.
    """
    correlation = np.abs(np.corrcoef(z_nd.double().numpy(), rowvar=False))
    rng, d, found = np.random.default_rng(seed), z_nd.shape[1], {}
    orders = [np.arange(d), *(rng.permutation(d) for _ in range(permutations))]
    for name, apart in (("beside", 1), ("above", width)):
        means = [float(correlation[order[:-apart], order[apart:]].mean()) for order in orders]
        found[name] = {"mean": means[0], "band": np.quantile(means[1:], (0.025, 0.975)).tolist()}
    return found


def plan(run: runs.Run, store: ActivationStore) -> list[dict]:
    """Parts of the study with their cells, how many are left, and about how many minutes those take; guesses stand in for outcomes to come."""
    planner = RecipeStudy(run, store, planning=True)
    for part in STAGES:
        getattr(planner, part)
    rows = {
        part: [entry for entry in planner.planned.values() if entry[0] == part] for part in STAGES
    }
    return [
        {
            "part": part.replace("_", " "),
            "cells": len(cells),
            "left": sum(left for _, left, _ in cells),
            "minutes": sum(seconds for _, left, seconds in cells if left) / 60,
        }
        for part, cells in rows.items()
    ]


NEVER = math.inf


_SECONDS = {  # on two cores of an AMD EPYC with AVX-512 bf16
    "shared": 11e-12,
    "own": 13e-12,  # of an MLP by parameter and activation, with shared levels and with a level a row
    "unet": 7.3e-3,
    "unet_measured": 2.4e-3,  # of the reference UNet by activation, trained and measured
    "gaussian": 6.0,  # of a fit
}


def further_rate(losses: dict[float, float]) -> float:
    """The next rate to try: twice beyond the edge where the best is there, else halfway (in ratio) to its better neighbour."""
    rates, best = sorted(losses), min(losses, key=losses.get)
    i = rates.index(best)
    if at_edge(losses):
        return best / 2 if i == 0 else best * 2
    neighbour = min((rates[i - 1], rates[i + 1]), key=losses.get)
    return float(f"{math.sqrt(best * neighbour):.3g}")


def at_edge(losses: dict[float, float]) -> bool:
    """Whether the rate of the lowest loss is the lowest or the highest tried."""
    return min(losses, key=losses.get) in (min(losses), max(losses))


def tune(
    rates: Sequence[float], most: int, names: Sequence[str], train: Callable[[str, float], dict]
) -> dict[str, dict[float, dict]]:
    """Outcomes of several networks by rate. While any has its best at the edge, every one gets another trial: all have as many.

    Args:
        most: further trials of each.
        train: outcome of a network at a rate.
    """
    found = {name: {rate: train(name, rate) for rate in rates} for name in names}
    for _ in range(most):
        losses = {
            name: {rate: loss_of(outcome) for rate, outcome in tried.items()}
            for name, tried in found.items()
        }
        if not any(at_edge(tried) for tried in losses.values()):
            break
        for name in names:
            rate = further_rate(losses[name])
            found[name][rate] = train(name, rate)
    return found


def loss_of(outcome: dict) -> float:
    """The plain loss on validation documents; infinite where training diverged."""
    return NEVER if "diverged" in outcome else outcome["loss"]


def best_of(outcomes: dict) -> object:
    """The key of the outcome of the lowest loss.

    Raises:
        ValueError: all diverged.
    """
    best = min(outcomes, key=lambda key: loss_of(outcomes[key]))
    if "diverged" in outcomes[best]:
        raise ValueError(
            f"every trial diverged, the last so: {outcomes[best]['diverged']}; lower the rates"
        )
    return best


def end_of(outcome: dict) -> float:
    """The last validation loss of the training's log; infinite where training diverged."""
    return NEVER if "diverged" in outcome else outcome["log"]["validation_loss"][-1]


def whole_time(outcome: dict) -> float:
    """Seconds of set-up and training."""
    return outcome["setup_seconds"] + outcome["seconds"]


def time_to(outcome: dict, target: float) -> float | None:
    """Seconds of set-up and training to the first entry of the log at the target or below it; None if there is none."""
    reached = (
        second
        for second, loss in zip(outcome["log"]["seconds"], outcome["log"]["validation_loss"])
        if loss <= target
    )
    first = next(reached, None)
    return None if first is None else outcome["setup_seconds"] + first


def seconds_a_step(outcome: dict) -> float:
    """The median over intervals of the log, which start-up, compilation and a busy moment leave alone."""
    return float(np.median(np.diff(outcome["log"]["seconds"]) / np.diff(outcome["log"]["step"])))


def row_of(outcome: dict) -> dict:
    """What a table says of an outcome; its loss is None where training diverged."""
    training = outcome["configuration"]["recipe"]["training"]
    return {
        "rate": training["lr"],
        "batch": training["batch"],
        "steps": training["steps"],
        "activations": outcome["activations"],
        "loss": outcome.get("loss"),
        "seconds": whole_time(outcome),
    }


def curve_of(outcome: dict) -> dict[str, list[float]]:
    """Seconds of set-up and training, and the validation losses there."""
    return {
        "seconds": [outcome["setup_seconds"] + second for second in outcome["log"]["seconds"]],
        "loss": outcome["log"]["validation_loss"],
    }


def losses_of(outcomes: Sequence[dict]) -> dict:
    """The spread of the losses of what did not diverge, and the number that did."""
    losses = [outcome["loss"] for outcome in outcomes if "diverged" not in outcome]
    return spread(losses) | {"diverged": len(outcomes) - len(losses)}


def paired(outcomes: Sequence[dict], references: Sequence[dict]) -> dict:
    """The spread of the differences in loss, seed by seed; and whether none diverged and all are negative: lower with every seed.

    Seeds with which the reference or the other diverged are left out of the spread, and counted.
    """
    differences = [
        loss_of(ours) - loss_of(theirs) for ours, theirs in zip(outcomes, references, strict=True)
    ]
    finite = [difference for difference in differences if math.isfinite(difference)]
    return spread(finite) | {
        "every_seed": len(finite) == len(differences) and max(finite) < 0,
        "diverged": len(differences) - len(finite),
    }


def ratios(ours: Sequence[dict], theirs: Sequence[dict], targets: Sequence[float]) -> dict:
    """Times of ours to the targets over times of theirs, seed by seed; `ratio` only where every one of ours comes there.

    One of theirs that never comes there counts with its whole time, so that the ratio is an upper bound.
    """
    times, others = (
        [time_to(outcome, target) for outcome, target in zip(outcomes, targets, strict=True)]
        for outcomes in (ours, theirs)
    )
    whole = [whole_time(outcome) if time is None else time for outcome, time in zip(theirs, others)]
    found = {
        "targets": list(targets),
        "ours_seconds": times,
        "theirs_seconds": whole,
        "theirs_reached": [time is not None for time in others],
    }
    if None not in times:
        found["ratio"] = spread([mine / other for mine, other in zip(times, whole)])
    return found


def planned_seconds(cell: Cell, study: Study) -> float:
    """About how long a cell takes, measuring included."""
    size, rows = cell.recipe.size, 100 * study.evaluation.get("tokens_per_level", 0)
    if isinstance(size, UNetSize):
        return cell.activations * _SECONDS["unet"] + rows * _SECONDS["unet_measured"]
    with torch.device("meta"):
        parameters = count_parameters(
            MLPDenoiser(
                cell.store.d, size.d_model, size.d_mlp, size.layers, gated_skip=size.gated_skip
            )
        )
    kind, setup = (
        "own" if cell.recipe.training.levels is None else "shared",
        _SECONDS["gaussian"] * cell.recipe.linear_skip,
    )
    return parameters * (cell.activations * _SECONDS[kind] + rows * _SECONDS["shared"] / 3) + setup


def guess(cell: Cell, size: RecipeStudySize) -> dict:
    """An outcome to plan with: a loss that falls with the activations, is best at the middle rate, and lower for ours. Nothing else rests on it."""
    training = cell.recipe.training
    rates = size.unet_rates if isinstance(cell.recipe.size, UNetSize) else size.rates
    octaves = abs(np.log2(training.lr / rates[len(rates) // 2]))
    own = getattr(cell.recipe.size, "gated_skip", True)
    loss = float(
        1
        + (0.3 if own else 0.45) * (size.steps * size.batch / cell.activations) ** 0.5
        + 0.05 * octaves
    )
    return {
        "loss": loss,
        "seconds": 2.0 * training.batch,
        "setup_seconds": 0.0,
        "log": {
            "step": [1, 2],
            "seconds": [1.0 * training.batch, 2.0 * training.batch],
            "loss": [2.0, loss],
            "validation_loss": [2.0, loss],
        },
    }
