"""Steering along several directions, at several strengths and σ: which combinations are generated, and what is read off them.

A *combination* is a concept, a direction, an intervention and a σ, continued at each of its strengths: one trial, one small file. Prompts are
neutral by every concept's measure, so the unsteered continuations and those of the repairs alone are the same for all concepts and
directions, and are generated once. One concept along one direction has every intervention at every strength and σ; elsewhere it is a
fraction of them, see `combinations`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from mmlib.evaluation.intervals import mean_with_interval, paired_difference
from mmlib.runs.presets import PCA_KS
from mmlib.runs.sweep import Trial
from mmlib_studies.steering.fronts import Front
from mmlib_studies.steering.sizes import GridSize

DIRECTIONS = ("mean_difference", "sae_decoder", "probe")


UNSTEERED, ADDITIVE = "unsteered", "additive"


# interventions that have no σ
NOISELESS = (ADDITIVE, "norm_kept", PCA := f"pca_k{PCA_KS[-1]}", "sae_clean")


ONE_STEP = ("gaussian", "mixture", "gated_mlp")  # posterior means


COSTS = {
    UNSTEERED: 1.0,
    ADDITIVE: 1.0,
    "norm_kept": 1.0,
    PCA: 1.0,
    "sae_clean": 1.05,
    "gaussian": 1.0,
    "mixture": 1.3,
    "gated_mlp": 1.1,
    "sdedit": 1.8,
    "sdedit_mixture": 9.0,
}  # over plain generation, about


def slug(name: str, sign: int) -> str:
    """A concept in the name of a file: "sentiment", "sentiment-less"."""
    return name if sign > 0 else f"{name}-less"


@dataclass(frozen=True)
class Combination:
    """One trial of the study.

    Args:
        concept, direction: None for what no concept enters: no steering, or a repair of activations that were not edited.
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
        parts = (
            self.concept or "alone",
            self.direction,
            self.intervention,
            None if self.sigma is None else f"{self.sigma:g}",
        )
        return "_".join(part for part in parts if part)


def combinations(size: GridSize) -> list[Combination]:
    """What is generated: every intervention for the first concept along the difference of means, and a fraction of that elsewhere.

    Other concepts along the difference of means have `fraction_strengths`, and SDEdit at `fraction_sigmas`; one step of the mixture is at the
    last of these. Other directions have plain addition and SDEdit alone: at those σ for the first concept in both senses, at the last for others.
    """
    first_name, _ = size.concepts[0]
    few = size.fraction_strengths
    last = size.fraction_sigmas[-1:]
    found = [
        Combination(slug(*size.concepts[0]), DIRECTIONS[0], name, sigma, size.strengths)
        for name, sigma in interventions(size)
    ]
    for i, (name, sign) in enumerate(size.concepts):
        for direction in DIRECTIONS[i == 0 :]:
            along_means = direction == DIRECTIONS[0]
            wanted = [
                (ADDITIVE, None),
                *(
                    ("sdedit", sigma)
                    for sigma in (
                        size.fraction_sigmas if along_means or name == first_name else last
                    )
                ),
            ]
            wanted += (
                [("sae_clean", None), *(("mixture", sigma) for sigma in last)]
                if along_means
                else []
            )
            found += [Combination(slug(name, sign), direction, *key, few) for key in wanted]
    alone = dict.fromkeys((c.intervention, c.sigma) for c in found if c.intervention != ADDITIVE)
    return [
        Combination(None, None, UNSTEERED, None, (0.0,)),
        *(Combination(None, None, *key, (0.0,)) for key in alone),
        *found,
    ]


def interventions(size: GridSize) -> list[tuple[str, float | None]]:
    """(name, σ) of all: SDEdit by the mixture, the slowest, has σ of its own."""
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

    return Trial(
        combination.name,
        {**asdict(combination), "evaluation": evaluation, **identities},
        compute,
        identities,
        cost=cost,
        probe=seconds_a_run and (lambda: seconds_a_run() * cost),
    )


class Findings:
    """What the outcomes say, concept by concept; everything is paired by prompt.

    Args:
        outcomes: of all combinations, by name: rows with `said` (concept → value of each prompt) and `log_likelihood`.
    """

    def __init__(self, cells: Sequence[Combination], outcomes: dict[str, dict]):
        self.cells, self.outcomes = [cell for cell in cells if cell.concept], outcomes
        (self.base,) = outcomes["alone_unsteered"]["rows"]

    def changes(self, row: dict, concept: str) -> tuple[np.ndarray, np.ndarray]:
        """(change of the concept, cost) of each prompt, against no steering, (prompts,) each."""
        return (
            np.subtract(row["said"][concept], self.base["said"][concept]),
            np.subtract(self.base["log_likelihood"], row["log_likelihood"]),
        )

    def path(self, cell: Combination) -> list[dict]:
        """The combination's outcomes by strength, that of the repair alone first; for plain addition that is no steering."""
        alone = Combination(
            None,
            None,
            UNSTEERED if cell.intervention == ADDITIVE else cell.intervention,
            cell.sigma,
            (0.0,),
        )
        return [*self.outcomes[alone.name]["rows"], *self.outcomes[cell.name]["rows"]]

    def front(self, cell: Combination) -> Front:
        """Concept against cost along that path."""
        return Front(
            *(
                np.stack(values)
                for values in zip(*(self.changes(row, cell.concept) for row in self.path(cell)))
            )
        )

    def additive(self, cell: Combination) -> Combination:
        """Plain addition along the same direction."""
        (found,) = (
            c
            for c in self.cells
            if (c.concept, c.direction, c.intervention) == (cell.concept, cell.direction, ADDITIVE)
        )
        return found

    def rows(self) -> list[dict]:
        """Change and cost of every combination at every strength, with intervals, and how varied the texts are; strength 0 is the repair alone."""
        found = []
        for cell in self.cells:
            front, path = self.front(cell), self.path(cell)
            for i, strength in enumerate((0.0, *cell.strengths)):
                entry = {
                    **_facts(cell),
                    "strength": strength,
                    "distinct_2": path[i]["distinct_2"],
                    "repetition": path[i]["repetition"],
                }
                for label, values_n in (
                    ("change", front.concept_ns[:, i]),
                    ("cost", front.cost_ns[:, i]),
                ):
                    entry[label], entry[f"{label}_ci95"] = mean_with_interval(values_n)
                found.append(entry)
        return found

    def against_addition(self) -> list[dict]:
        """Of every repair: the area to plain addition's front along the same direction, how much higher a level it reaches, and the cost of
        half of plain addition's reach, beside that of plain addition itself; None where that has no reach."""
        fronts, found = {cell: self.front(cell) for cell in self.cells}, []
        for cell in (cell for cell in self.cells if cell.intervention != ADDITIVE):
            ours, plain = fronts[cell], fronts[self.additive(cell)]
            level = plain.reach / 2
            found.append(
                {
                    **_facts(cell),
                    "area": ours.area_to(plain),
                    "reach": ours.reach_less(plain),
                    "level": level,
                    "cost": ours.cost(level) if level > 0 else None,
                    "cost_of_addition": plain.cost(level) if level > 0 else None,
                }
            )
        return found

    def at_equal_strength(self) -> list[dict]:
        """Of every repair at every strength: change and cost less those of plain addition of as much."""
        found = []
        for cell in self.cells:
            if cell.intervention == ADDITIVE:
                continue
            theirs = {
                row["strength"]: row for row in self.outcomes[self.additive(cell).name]["rows"]
            }
            for row in self.outcomes[cell.name]["rows"]:
                pairs = zip(
                    ("change", "cost"),
                    self.changes(row, cell.concept),
                    self.changes(theirs[row["strength"]], cell.concept),
                )
                found.append(
                    {
                        **_facts(cell),
                        "strength": row["strength"],
                        **{label: paired_difference(ours, other) for label, ours, other in pairs},
                    }
                )
        return found

    def projections(self) -> list[dict]:
        """Of SDEdit by the meta-model less SDEdit by the mixture, at the same σ: the area, the reach, and the rest at equal strength."""
        found = []
        for other in (cell for cell in self.cells if cell.intervention == "sdedit_mixture"):
            (ours,) = (
                c
                for c in self.cells
                if (c.concept, c.direction, c.intervention, c.sigma)
                == (other.concept, other.direction, "sdedit", other.sigma)
            )
            fronts = [self.front(cell) for cell in (ours, other)]
            steps = [
                {
                    "strength": row["strength"],
                    **{
                        label: paired_difference(a, b)
                        for label, a, b in zip(
                            ("change", "cost"),
                            self.changes(row, ours.concept),
                            self.changes(against, ours.concept),
                        )
                    },
                }
                for row, against in zip(
                    self.outcomes[ours.name]["rows"], self.outcomes[other.name]["rows"], strict=True
                )
            ]
            found.append(
                {
                    **_facts(ours),
                    "against": "sdedit_mixture",
                    "area": fronts[0].area_to(fronts[1]),
                    "reach": fronts[0].reach_less(fronts[1]),
                    "at_equal_strength": steps,
                }
            )
        return found


def weights_digest(module: torch.nn.Module) -> str:
    """What tells two trainings of one recipe apart: the first twelve digits of the SHA-256 of all weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        found.update(
            name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        )
    return found.hexdigest()[:12]


def _facts(cell: Combination) -> dict:
    return {
        "concept": cell.concept,
        "direction": cell.direction,
        "intervention": cell.intervention,
        "sigma": cell.sigma,
    }


def verdict(interval: Sequence[float] | None) -> str:
    """ "higher", "lower" or "undecided", by whether an interval leaves out 0; "not compared" where there is none."""
    if interval is None:
        return "not compared"
    return "higher" if interval[0] > 0 else "lower" if interval[1] < 0 else "undecided"
