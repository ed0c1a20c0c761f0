"""Concept against fluency: what steered continuations say, what they cost, and the area between two
interventions' fronts.

An intervention is measured at several strengths. Its *front* is the path (c₀, f₀), (c₁, f₁), …, by
strength: c is how much more of the concept its continuations have than unsteered ones of the same
prompts, f how many nats per token less likely they are under the unsteered language model. It
begins with the repair alone, of activations that were not edited: for plain addition that is (0,
0). Between strengths the path is straight. The cost at a level of the concept is read where the
path first reaches it; a path that turns back, since too strong an edit leaves no text to express
anything, is not read beyond. Between two fronts lies the integral of the difference of their costs
from 0 to the highest level that both reach. Prompts are the independent units of all intervals.

A cost at a level is infinite where the level is not reached, since no strength buys it. So its
interval is the percentile interval of resampled prompts, infinite costs included: its upper end is
infinite where more than 2½ % of the resamples do not get there. (An interval of those alone that do
would be one given that the level is reached, and too cheap.) The studentised intervals of
everything else need finite values.
"""

from collections.abc import Sequence

import numpy as np

from mmlib.evaluation.intervals import LEAST_DOCUMENTS, bootstrap_interval, resampled

AREA_LEVELS = 21  # of the concept at which costs are compared, by the trapezoidal rule


def distinct(continuations: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams as a share of all n-grams of all continuations (Li et al. 2016): low where
    they all say the same.

    Raises:
        ValueError: none is n tokens long.
    """
    found = [gram for ids in continuations for gram in zip(*(ids[i:] for i in range(n)))]
    if not found:
        raise ValueError(f"no continuation has {n} tokens")
    return len(set(found)) / len(found)


def repetition(continuations: Sequence[Sequence[int]], n: int) -> np.ndarray:
    """Share of each continuation's n-grams that stood in it before (Welleck et al. 2020,
    seq-rep-n), (b,).
    """
    return np.array([1 - distinct([ids], n) for ids in continuations])


def cost_at(level, concept_s: np.ndarray, cost_s: np.ndarray) -> np.ndarray:
    """Cost (…) where the path first reaches a level (…) of the concept; NaN where it never does.

    Args:
        concept_s, cost_s: the path (…, strengths).
    """
    level, below, above = np.asarray(level), concept_s[..., :-1], concept_s[..., 1:]
    reached = above >= level[..., None]
    first = reached.argmax(-1)[..., None]
    start, end, cost_start, cost_end = (
        np.take_along_axis(values, first, -1)[..., 0]
        for values in (below, above, cost_s[..., :-1], cost_s[..., 1:])
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(end > start, (level - start) / (end - start), 0.0)
    on_the_way = np.where(reached.any(-1), cost_start + share * (cost_end - cost_start), np.nan)
    return np.where(concept_s[..., 0] >= level, cost_s[..., 0], on_the_way)


def area_between(
    ours: tuple[np.ndarray, np.ndarray], theirs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """∫ (our cost − their cost) d concept from 0 to the highest level that both paths reach, (…); 0
    where they have none in common.

    Args:
        ours, theirs: (concept, cost), each (…, strengths).
    """
    top = np.maximum(np.minimum(ours[0].max(-1), theirs[0].max(-1)), 0.0)
    total = np.zeros_like(top)
    for i, share in enumerate(np.linspace(0, 1, AREA_LEVELS)):
        height = cost_at(share * top, *ours) - cost_at(share * top, *theirs)
        total += np.where(top > 0, height, 0.0) * (0.5 if i in (0, AREA_LEVELS - 1) else 1.0)
    return total * top / (AREA_LEVELS - 1)


class Front:
    """One intervention at rising strengths, prompt by prompt, the repair alone first.

    Args:
        concept_sn: change of the concept against no steering, (strengths, prompts).
        cost_sn: loss of log-likelihood against no steering, nats per token.
    Raises:
        ValueError: the shapes differ, or a value is not finite.
    """

    def __init__(self, concept_sn: np.ndarray, cost_sn: np.ndarray):
        odd = [int((~np.isfinite(values)).sum()) for values in (concept_sn, cost_sn)]
        if concept_sn.shape != cost_sn.shape or any(odd):
            raise ValueError(
                f"concept {concept_sn.shape} and cost {cost_sn.shape} with {odd[0]} and {odd[1]} "
                "values that are not finite: expected equal shapes and finite values"
            )
        self.concept_ns, self.cost_ns = concept_sn.T, cost_sn.T

    @property
    def n(self) -> int:
        """Number of prompts."""
        return len(self.concept_ns)

    def path(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(concept, cost), each (…, strengths), averaged over prompts with weights (…, prompts)."""
        weights = np.ones(self.n) if weights is None else weights
        total = weights.sum(-1, keepdims=True)
        return weights @ self.concept_ns / total, weights @ self.cost_ns / total

    @property
    def reach(self) -> float:
        """The highest level of the concept."""
        return float(self.path()[0].max())

    def cost(self, level: float) -> dict:
        """Cost at a level of the concept, None where it is not reached; its 95 % percentile
        interval, an end that is infinite being None; and `reached`, the share of resamples of the
        prompts that get there.

        Raises:
            ValueError: too few prompts for an interval.
        """
        if self.n < LEAST_DOCUMENTS:
            raise ValueError(f"{self.n} prompts: an interval needs at least {LEAST_DOCUMENTS}")
        costs_r = np.nan_to_num(cost_at(level, *self.path(resampled(self.n))), nan=np.inf)
        ends = np.quantile(costs_r[1:], (0.025, 0.975), method="inverted_cdf")
        value, *ends = (float(end) if np.isfinite(end) else None for end in (costs_r[0], *ends))
        return {"cost": value, "ci95": ends, "reached": float(np.isfinite(costs_r[1:]).mean())}

    def area_to(self, other: "Front") -> dict:
        """Area between this front and another (negative: this one is cheaper), up to which level,
        and their mean distance.

        All are None where no level above 0 is reached by both.

        Raises:
            ValueError: the fronts are of unlike numbers of prompts, which are resampled together.
        """
        self._require_same_prompts(other)
        top = min(self.reach, other.reach)
        if top <= 0:
            return dict.fromkeys(("area", "ci95", "up_to", "mean_difference"))
        area = float(area_between(self.path(), other.path()))
        low, high = bootstrap_interval(lambda w: area_between(self.path(w), other.path(w)), self.n)
        return {"area": area, "ci95": [low, high], "up_to": top, "mean_difference": area / top}

    def reach_less(self, other: "Front") -> dict:
        """How much higher a level of the concept this front reaches than another, with its
        interval, paired by prompt.

        Raises:
            ValueError: the fronts are of unlike numbers of prompts.
        """
        self._require_same_prompts(other)
        interval = bootstrap_interval(
            lambda w: self.path(w)[0].max(-1) - other.path(w)[0].max(-1), self.n
        )
        return {"difference": self.reach - other.reach, "ci95": list(interval)}

    def less(self, other: "Front") -> dict:
        """Both comparisons with another front: `area` and `reach`."""
        return {"area": self.area_to(other), "reach": self.reach_less(other)}

    def _require_same_prompts(self, other: "Front") -> None:
        if other.n != self.n:
            raise ValueError(f"fronts of {self.n} and {other.n} prompts: expected the same prompts")
