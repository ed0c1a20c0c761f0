"""One-unit probes: how well a single unit of a dictionary tells two classes, the unit chosen on
other examples than those it is judged on.

As published (arXiv 2602.06964, after Kantamneni et al. 2025): units are ranked by the difference of
class means, a logistic regression is cross-validated on each of the first `KEEP` alone, the unit
with the best mean AUC over the folds is taken, and its AUC on held-out examples is the result.
Three things differ. Units are standardised before they are ranked, so that none is preferred for
its scale. Folds, and what is held out, respect groups. And no regression is run: that of one unit
orders examples as the unit does, or in reverse where the class mean is lower. (At slope 0 and the
best intercept, the derivative of the penalised likelihood is in proportion to the difference of
class means; the likelihood is concave, so the best slope has its sign.) The AUC is the unit's own,
with that sign.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import StratifiedGroupKFold

from mmlib.evaluation.intervals import mean_with_interval
from mmlib_studies.probing.tasks import Task

KEEP = 512  # units of the ranking that are cross-validated, as published


FOLDS = 5  # as published


# mean AUC over 113 tasks, Llama-3.1-8B, arXiv 2602.06964
PUBLISHED = {"meta-neurons": 0.84, "SAE latents": 0.70}


# inverse, of the penalty of a probe on all dimensions; as published
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def auc(high_pu: np.ndarray, low_nu: np.ndarray) -> np.ndarray:
    """Share of pairs (one of each class) in which the first class is higher, ties counting half:
    (u,) from (p, u) and (n, u).
    """
    pairs = mannwhitneyu(high_pu, low_nu, axis=0, method="asymptotic").statistic
    return pairs / (len(high_pu) * len(low_nu))


def mean_difference(units_eu: np.ndarray, label_e: np.ndarray) -> np.ndarray:
    """Difference of class means in standard deviations of all examples, (u,); 0 for a unit that
    never varies.
    """
    spread_u = units_eu.std(0)
    difference_u = units_eu[label_e].mean(0) - units_eu[~label_e].mean(0)
    return np.divide(difference_u, spread_u, out=np.zeros_like(difference_u), where=spread_u > 0)


@dataclass(frozen=True)
class Probe:
    """A unit chosen for a task."""

    unit: int
    # +1 if the unit is higher on the positive class of the examples it was chosen on, else −1
    sign: int
    cv_auc: float  # mean over folds
    auc: float  # on the examples held out


class TaskProbes:
    """One-unit probes of one dictionary on one task.

    Args:
        units_nu: the dictionary's units at every example of the pool, rows as the task numbers
            them.
        seed: of the folds.
    Raises:
        ValueError: no fold has both classes on both sides.
    """

    def __init__(self, units_nu: np.ndarray, task: Task, seed: int, folds: int = FOLDS):
        fit_rows, self.label_e = task.side(False)
        held_rows, self.held_label_e = task.side(True)
        self.fit_eu, self.held_eu = units_nu[fit_rows], units_nu[held_rows]
        self.difference_u = mean_difference(self.fit_eu, self.label_e)
        self.folds = task_folds(task, folds, seed)

    def cv_auc(self, units: np.ndarray) -> np.ndarray:
        """Mean over folds of the AUC of each of these units, signed by the class means of the other
        folds.
        """
        values_eu, scores = self.fit_eu[:, units], []
        for rest, fold in self.folds:
            label = self.label_e[fold]
            here_u = auc(values_eu[fold][label], values_eu[fold][~label])
            sign_u = np.sign(mean_difference(values_eu[rest], self.label_e[rest]))
            scores.append(np.select([sign_u > 0, sign_u < 0], [here_u, 1 - here_u], 0.5))
        return np.mean(scores, 0)

    def best(self, candidates: np.ndarray | None = None, keep: int = KEEP) -> Probe:
        """The best unit by cross-validation among those of the largest class-mean difference, and
        its AUC on held-out examples.

        Args:
            candidates: indices of the units to choose from; None: all.
        """
        among = np.arange(len(self.difference_u)) if candidates is None else np.asarray(candidates)
        ranked = among[np.argsort(-np.abs(self.difference_u[among]), kind="stable")][:keep]
        scores = self.cv_auc(ranked)
        unit = int(ranked[scores.argmax()])
        sign = 1 if self.difference_u[unit] >= 0 else -1
        held_auc = _area(sign * self.held_eu[:, unit], self.held_label_e)
        return Probe(unit, sign, float(scores.max()), held_auc)


def grouped_folds(
    label_e: np.ndarray, group_e: np.ndarray, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(rest, fold) as indices: no group is on both sides, and each side has both classes.

    Raises:
        ValueError: no fold is so.
    """
    groups = len(np.unique(group_e))
    splitter = StratifiedGroupKFold(min(folds, groups), shuffle=True, random_state=seed)
    split = [
        parts
        for parts in splitter.split(label_e, label_e, group_e)
        if all(len(set(label_e[part])) == 2 for part in parts)
    ]
    if not split:
        raise ValueError(f"{len(label_e)} examples in {groups} groups: no fold holds both classes")
    return split


@lru_cache(maxsize=256)  # every dictionary asks for the same
def task_folds(task: Task, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """`grouped_folds` of the examples that are not held out."""
    return grouped_folds(task.side(False)[1], task.group_e[~task.held_out_e], folds, seed)


def random_candidates(units: int, count: int, draws: int, seed: int) -> list[np.ndarray]:
    """So many draws of `count` different units out of `units`; one draw of all where there are no
    more.
    """
    if units <= count:
        return [np.arange(units)]
    generators = (np.random.default_rng([seed, draw]) for draw in range(draws))
    return [np.sort(rng.choice(units, count, replace=False)) for rng in generators]


def _area(score_e: np.ndarray, label_e: np.ndarray) -> float:
    """`auc` of one score at examples of both classes."""
    return float(auc(score_e[label_e, None], score_e[~label_e, None])[0])


def mean_difference_auc(z_nd: np.ndarray, task: Task) -> float:
    """Held-out AUC of one direction that is fitted, not chosen: the difference of the class means,
    each dimension divided by its standard deviation over the examples that were not held out.
    """
    (rows, label), (held, held_label) = task.side(False), task.side(True)
    return _area(z_nd[held] @ mean_difference(z_nd[rows], label), held_label)


def dense_auc(z_nd: np.ndarray, task: Task, seed: int, folds: int = FOLDS) -> float:
    """Held-out AUC of a logistic regression on all dimensions, its penalty chosen by
    cross-validation: a ceiling for linear probes.
    """
    (rows, label), (held, held_label) = task.side(False), task.side(True)
    mean_d, std_d = z_nd[rows].mean(0), z_nd[rows].std(0) + 1e-6

    def area(model: LogisticRegression, x_ed: np.ndarray, label_e: np.ndarray) -> float:
        return _area(model.decision_function(x_ed), label_e)

    splits = {"cv": task_folds(task, folds, seed), "scoring": area}
    fitted = {"max_iter": 300, "l1_ratios": (0,), "use_legacy_attributes": False}
    model = LogisticRegressionCV(Cs=STRENGTHS, **splits, **fitted)
    model.fit((z_nd[rows] - mean_d) / std_d, label)
    return area(model, (z_nd[held] - mean_d) / std_d, held_label)


def mean_over_tasks(value_t: Sequence[float], minus_t: Sequence[float] | None = None) -> dict:
    """Mean over tasks of a value, or of its paired difference to another, with a 95 % interval that
    resamples tasks.
    """
    value = np.asarray(value_t, float) - (0 if minus_t is None else np.asarray(minus_t, float))
    mean, interval = mean_with_interval(value)
    return {"mean": mean, "ci95": interval, "tasks": len(value)}
