"""Steering along several directions, at several strengths and σ: which combinations are generated,
and what is read off them.

A *combination* is a concept, a direction, an intervention and a σ, continued at each of its
strengths: one trial, one small file. Prompts are neutral by every concept's measure, so the
unsteered continuations and those of the repairs alone are the same for all concepts and directions,
and are generated once. One concept along one direction has every intervention at every strength and
σ; elsewhere it is a fraction of them, see `combinations`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mmlib.evaluation.intervals import mean_with_interval, paired_difference
from mmlib.runs.presets import OURS, PCA_KS
from mmlib.runs.sweep import Trial
from mmlib_studies.steering.fronts import Front
from mmlib_studies.steering.sizes import GridSize

DIRECTIONS = ("mean_difference", "sae_decoder", "probe")

UNSTEERED, ADDITIVE = "unsteered", "additive"

# interventions that have no σ
NOISELESS = (ADDITIVE, "norm_kept", PCA := f"pca_k{PCA_KS[-1]}", "sae_clean")

ONE_STEP = ("gaussian", "mixture", OURS)  # posterior means

# over plain generation, about
COSTS = {
    **dict.fromkeys((UNSTEERED, ADDITIVE, "norm_kept", PCA, "gaussian"), 1.0),
    **{"sae_clean": 1.05, "mixture": 1.2, OURS: 1.5, "sdedit": 10.0, "sdedit_mixture": 3.3},
}


def slug(name: str, sign: int) -> str:
    """A concept in the name of a file: "sentiment", "sentiment-less"."""
    return name if sign > 0 else f"{name}-less"


@dataclass(frozen=True)
class Combination:
    """One trial of the study.

    Args:
        concept, direction: None for what no concept enters: no steering, or a repair of activations
            that were not edited.
        strengths: in differences of class means; 0 where there is no direction.
    """

    concept: str | None
    direction: str | None
    intervention: str
    sigma: float | None
    strengths: tuple[float, ...]

    @property
    def name(self) -> str:
        """Of its file."""
        sigma = None if self.sigma is None else f"{self.sigma:g}"
        parts = (self.concept or "alone", self.direction, self.intervention, sigma)
        return "_".join(part for part in parts if part)

    @property
    def facts(self) -> dict:
        """What names it in a table: all but its strengths."""
        return {key: value for key, value in asdict(self).items() if key != "strengths"}

    def by(self, intervention: str, sigma: float | None = None) -> "Combination":
        """Another intervention on the same concept along the same direction."""
        return replace(self, intervention=intervention, sigma=sigma)


def combinations(size: GridSize) -> list[Combination]:
    """What is generated: every intervention for the first concept along the difference of means,
    and a fraction of that elsewhere.

    Other concepts along the difference of means have `fraction_strengths`, and SDEdit at
    `fraction_sigmas`; one step of the mixture is at the last of these. Other directions have plain
    addition and SDEdit alone: at those σ for the first concept in both senses, at the last for
    others.
    """
    (first, _), last = size.concepts[0], size.fraction_sigmas[-1:]
    found = [
        Combination(slug(*size.concepts[0]), DIRECTIONS[0], *key, size.strengths)
        for key in interventions(size)
    ]
    for i, (name, sign) in enumerate(size.concepts):
        for direction in DIRECTIONS[i == 0 :]:
            along_means = direction == DIRECTIONS[0]
            sigmas = size.fraction_sigmas if along_means or name == first else last
            wanted = [(ADDITIVE, None), *(("sdedit", sigma) for sigma in sigmas)]
            if along_means:
                wanted += [("sae_clean", None), *(("mixture", sigma) for sigma in last)]
            few = size.fraction_strengths
            found += [Combination(slug(name, sign), direction, *key, few) for key in wanted]
    alone = dict.fromkeys((c.intervention, c.sigma) for c in found if c.intervention != ADDITIVE)
    without_concept = [(UNSTEERED, None), *alone]
    return [*(Combination(None, None, *key, (0.0,)) for key in without_concept), *found]


def interventions(size: GridSize) -> list[tuple[str, float | None]]:
    """(name, σ) of all: SDEdit by the mixture has σ of its own."""
    return [
        *((name, None) for name in NOISELESS),
        *((name, sigma) for name in (*ONE_STEP, "sdedit") for sigma in size.sigmas),
        *(("sdedit_mixture", sigma) for sigma in size.mixture_sdedit_sigmas),
    ]


def trial(
    combination: Combination,
    generate: Callable[[Combination, float], dict],
    evaluation: Mapping[str, object],
    identities: Mapping[str, object],
    seconds_a_run: Callable[[], float] | None = None,
) -> Trial:
    """The trial of a sweep that generates a combination at each of its strengths.

    Args:
        generate: (combination, strength) → what is kept of the continuations, as JSON can hold it.
        evaluation: everything that decides this besides the combination.
        identities: of the language model and its texts, as the store records them.
        seconds_a_run: of plain generation, measured when it is asked for.
    """
    cost = COSTS[combination.intervention] * len(combination.strengths)

    def compute(folder: Path) -> dict:
        strengths = combination.strengths
        return {"rows": [{"strength": s, **generate(combination, s)} for s in strengths]}

    configuration = {**asdict(combination), "evaluation": evaluation, **identities}
    probe = seconds_a_run and (lambda: seconds_a_run() * cost)
    return Trial(combination.name, configuration, compute, identities, cost=cost, probe=probe)


class Findings:
    """What the outcomes say, concept by concept; everything is paired by prompt.

    Args:
        outcomes: of all combinations, by name: rows with `said` (concept → value of each prompt)
            and `log_likelihood`.
    """

    def __init__(self, cells: Sequence[Combination], outcomes: dict[str, dict]):
        self.cells, self.outcomes = [cell for cell in cells if cell.concept], outcomes
        (self.base,) = outcomes["alone_unsteered"]["rows"]

    @property
    def repairs(self) -> list[Combination]:
        """All but plain addition."""
        return [cell for cell in self.cells if cell.intervention != ADDITIVE]

    def changes(self, row: dict, concept: str) -> tuple[np.ndarray, np.ndarray]:
        """(change of the concept, cost) of each prompt, against no steering, (prompts,) each."""
        return (
            np.subtract(row["said"][concept], self.base["said"][concept]),
            np.subtract(self.base["log_likelihood"], row["log_likelihood"]),
        )

    def path(self, cell: Combination) -> list[dict]:
        """The combination's outcomes by strength, after the repair alone; for plain addition that
        is no steering.
        """
        alone = replace(cell, concept=None, direction=None)
        if cell.intervention == ADDITIVE:
            alone = alone.by(UNSTEERED)
        return [*self.outcomes[alone.name]["rows"], *self.outcomes[cell.name]["rows"]]

    def front(self, cell: Combination) -> Front:
        """Concept against cost along that path."""
        changes = (self.changes(row, cell.concept) for row in self.path(cell))
        return Front(*(np.stack(values) for values in zip(*changes)))

    def rows(self) -> list[dict]:
        """Change and cost of every combination at every strength, with intervals, and how varied
        the texts are.

        Strength 0 is the repair alone.
        """
        found = []
        for cell in self.cells:
            for strength, row in zip((0.0, *cell.strengths), self.path(cell)):
                entry = {key: row[key] for key in ("distinct_2", "repetition")}
                for label, values_n in zip(("change", "cost"), self.changes(row, cell.concept)):
                    entry[label], entry[f"{label}_ci95"] = mean_with_interval(values_n)
                found.append({**cell.facts, "strength": strength, **entry})
        return found

    def against_addition(self) -> list[dict]:
        """Of every repair: the area to plain addition's front along the same direction, how much
        higher a level it reaches, and the cost of half of plain addition's reach, beside that of
        plain addition itself; None where that has no reach.
        """
        found = []
        for cell in self.repairs:
            ours, plain = self.front(cell), self.front(cell.by(ADDITIVE))
            level = plain.reach / 2
            costs = [front.cost(level) if level > 0 else None for front in (ours, plain)]
            entry = {"level": level, "cost": costs[0], "cost_of_addition": costs[1]}
            found.append({**cell.facts, **ours.less(plain), **entry})
        return found

    def steps(self, cell: Combination, other: Combination) -> list[dict]:
        """Change and cost of a combination less those of another, at each of its strengths.

        Raises:
            KeyError: the other has not all of its strengths.
        """
        theirs, found = {row["strength"]: row for row in self.outcomes[other.name]["rows"]}, []
        for row in self.outcomes[cell.name]["rows"]:
            both = (self.changes(one, cell.concept) for one in (row, theirs[row["strength"]]))
            change, cost = (paired_difference(*pair) for pair in zip(*both))
            found.append({"strength": row["strength"], "change": change, "cost": cost})
        return found

    def at_equal_strength(self) -> list[dict]:
        """Of every repair at every strength: change and cost less those of plain addition of as
        much.
        """
        return [
            {**cell.facts, **step}
            for cell in self.repairs
            for step in self.steps(cell, cell.by(ADDITIVE))
        ]

    def projections(self) -> list[dict]:
        """Of SDEdit by the meta-model less SDEdit by the mixture, at the same σ: the area, the
        reach, and the rest at equal strength.
        """
        found = []
        for other in (cell for cell in self.cells if cell.intervention == "sdedit_mixture"):
            ours = other.by("sdedit", other.sigma)
            compared = self.front(ours).less(self.front(other))
            steps = {"at_equal_strength": self.steps(ours, other)}
            found.append({**ours.facts, "against": other.intervention, **compared, **steps})
        return found


def weights_digest(module: torch.nn.Module) -> str:
    """What tells two trainings of one recipe apart: the first twelve digits of the SHA-256 of all
    weights.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        weights = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
        found.update(name.encode() + weights.tobytes())
    return found.hexdigest()[:12]


def verdict(interval: Sequence[float] | None) -> str:
    """ "higher", "lower" or "undecided", by whether an interval leaves out 0; "not compared" where
    there is none.
    """
    if interval is None:
        return "not compared"
    return "higher" if interval[0] > 0 else "lower" if interval[1] < 0 else "undecided"
