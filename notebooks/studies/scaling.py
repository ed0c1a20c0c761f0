"""How the loss falls with compute: the grid of trainings, its lower envelope, a power law fitted to it, and what extrapolating it is worth.

The law is L(C) = E + A (C / 10¹² FLOP)^−α with E, A ≥ 0 and α > 0. C counts 6 operations a parameter and activation, two of the forward
pass and four of the backward one (Kaplan et al. 2020, section 2.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.optimize
from torch import nn

from mmlib.activations.store import ActivationStore
from mmlib.denoisers.networks import MLPSize
from mmlib.evaluation import claim as claimed
from mmlib.runs.sweep import RecipeTrial
from mmlib.training.recipe import Recipe, Training


@dataclass(frozen=True)
class ScalingSize:
    """The grid of trainings, and how closely each is measured."""

    widths: tuple[int, ...] = (80, 160, 320, 640, 1280)  # d_model: 0.25 to 44 million parameters
    budgets: tuple[tuple[int, int], ...] = (
        (127, 256),
        (254, 256),
        (254, 512),
        (507, 512),
        (1014, 512),
    )  # (steps, batch), up to one pass
    levels: int = 64  # noise levels shared by the rows of a batch
    tokens: int = 300  # test tokens at each noise level


SIZES = {
    "smoke": ScalingSize(
        widths=(8, 16, 32, 64, 128),
        budgets=((4, 128), (8, 128), (12, 256), (24, 256)),
        levels=32,
        tokens=50,
    ),
    "default": ScalingSize(),
    "gpu": ScalingSize(),
}

UNIT = 1e12  # FLOP


SLACK = 1.25  # compute counts as equal up to this factor


LEAST_POINTS = 4  # one more than the law has constants


ALPHAS = (0.01, 3.0)


STARTS = 6  # brackets of α that are searched, each to its own minimum


RESAMPLES = 2000


TRUSTED_DECADES = 2  # of compute beyond the largest measured


PUBLISHED = {"E": 0.52, "alpha": 0.169, "source": "arXiv 2602.06964, Llama 3.2 1B on FineWeb"}


RATE, RATE_WIDTH = 2.5e-3, 640


FACTORS = (0.5, 1.0, 2.0)  # of the rule's rate, in the trials


def learning_rate(d_model: int) -> float:
    """Peak learning rate of a width, in inverse proportion to it: 0.0025 at 640. Notebook 06 tries half and double of it on validation documents."""
    return RATE * RATE_WIDTH / d_model


def measured_at_the_end(training: Training) -> Training:
    """The same training with its validation loss measured once, at its end, and no state to resume from: trials take minutes at most."""
    never = training.log_every * (training.steps // training.log_every + 1)
    return replace(training, validate_every=never, save_every=never)


def recipe(d_model: int, steps: int, batch: int, levels: int, factor: float = 1.0) -> Recipe:
    """The paper's MLP of a width, with a whole schedule for so many steps.

    Args:
        levels: noise levels shared by the rows of a batch.
        factor: times the learning rate of the rule.
    """
    training = Training(
        "flow_velocity",
        steps=steps,
        batch=batch,
        lr=factor * learning_rate(d_model),
        warmup=0.05,
        ema=0.99,
        weight_decay=0.05,
        levels=levels,
        stop_if_stuck=False,
    )  # a narrow network may stay above the mean's loss, which is what is to be shown
    return Recipe(
        MLPSize(layers=3, d_model=d_model, d_mlp=2 * d_model), measured_at_the_end(training)
    )


def trials(size: ScalingSize, store: ActivationStore, seed: int) -> list[RecipeTrial]:
    """Every width with every budget."""
    return [
        _trial(size, store, seed, width, budget) for width in size.widths for budget in size.budgets
    ]


def rate_trials(size: ScalingSize, store: ActivationStore, seed: int) -> list[RecipeTrial]:
    """The smallest and the middle width at the smallest and the largest budget, with multiples of the rule's learning rate."""
    return [
        _trial(size, store, seed, width, budget, factor)
        for width in (size.widths[0], size.widths[len(size.widths) // 2])
        for budget in (size.budgets[0], size.budgets[-1])
        for factor in FACTORS
    ]


def _trial(
    size: ScalingSize,
    store: ActivationStore,
    seed: int,
    width: int,
    budget: tuple[int, int],
    factor: float | None = None,
) -> RecipeTrial:
    steps, batch = budget
    name = f"width{width}-{steps * batch}" + ("" if factor is None else f"-rate{factor:g}")
    chosen = recipe(width, steps, batch, size.levels, factor or 1.0)
    return RecipeTrial(name, chosen, store, seed)


def parameters_of_time(network: nn.Module) -> int:
    """Parameters that meet the time alone, of a network with one block or more: once a noise level, not once a row."""
    return sum(
        p.numel()
        for name, p in network.named_parameters()
        if "time_embed" in name or "time_proj" in name
    )


def compute(parameters: float, activations: float) -> float:
    """C = 6 N D, in FLOP."""
    return 6.0 * parameters * activations


def lower_envelope(compute_n: Sequence[float], loss_n: Sequence[float]) -> np.ndarray:
    """Indices of the runs that no run of at most a quarter more compute has a lower loss than, by rising compute.

    The quarter is what C is uncertain by: counting the parameters of time or not changes it by as much. Without it a run is on the
    envelope for being cheaper by a hair than one that is far better.
    """
    compute_n, loss_n = (
        np.asarray(compute_n, dtype=np.float64),
        np.asarray(loss_n, dtype=np.float64),
    )
    order = np.lexsort((loss_n, compute_n))
    compute_n, loss_n = compute_n[order], loss_n[order]
    best_so_far = np.minimum.accumulate(loss_n)
    best_before = np.concatenate([[np.inf], best_so_far[:-1]])
    best_within = best_so_far[np.searchsorted(compute_n, SLACK * compute_n, "right") - 1]
    return order[(loss_n < best_before) & (loss_n <= best_within)]


@dataclass(frozen=True)
class PowerLaw:
    """L(C) = E + A (C / 10¹² FLOP)^−α."""

    e: float
    a: float
    alpha: float

    def __call__(self, compute_n: np.ndarray) -> np.ndarray:
        """Loss at so many FLOP."""
        return self.e + self.a * (np.asarray(compute_n, dtype=np.float64) / UNIT) ** -self.alpha

    @property
    def at_the_edge(self) -> bool:
        """Whether E is 0 or α at either end of what `fit` searches: the data do not bend as such a law does."""
        return self.e == 0 or not ALPHAS[0] * 1.01 < self.alpha < ALPHAS[1] / 1.01

    def compute_at(self, loss: float) -> float:
        """FLOP at which the law comes to that loss; infinite if it never does."""
        if loss <= self.e or self.a == 0:
            return np.inf
        with np.errstate(over="ignore"):
            return float(UNIT * np.exp(np.log(self.a / (loss - self.e)) / self.alpha))


def fit(compute_n: Sequence[float], loss_n: Sequence[float]) -> PowerLaw:
    """The law of least squared relative error.

    For a given α the law is linear in E and A, which non-negative least squares solves exactly (variable projection, Golub and Pereyra
    1973); over log α it is minimised from several starts, since the profile may have more than one valley.

    Raises:
        ValueError: fewer than four different amounts of compute.
    """
    c_n, loss_n = (
        np.asarray(compute_n, dtype=np.float64) / UNIT,
        np.asarray(loss_n, dtype=np.float64),
    )
    if len(np.unique(c_n)) < LEAST_POINTS:
        raise ValueError(
            f"{len(np.unique(c_n))} different amounts of compute cannot determine three constants: expected at least {LEAST_POINTS}"
        )
    middle = np.exp(np.log(c_n).mean())  # the powers are of about 1 there, whatever α

    def linear(alpha: float) -> tuple[np.ndarray, float]:
        terms = np.stack([np.ones_like(c_n), (c_n / middle) ** -alpha], 1) / loss_n[:, None]
        return scipy.optimize.nnls(terms, np.ones_like(c_n))

    edges = np.linspace(*np.log(ALPHAS), STARTS + 1)
    found = [
        scipy.optimize.minimize_scalar(
            lambda log_alpha: linear(np.exp(log_alpha))[1],
            bounds=bounds,
            method="bounded",
            options={"xatol": 1e-6},
        )
        for bounds in zip(edges, edges[1:])
    ]
    alpha = float(np.exp(min(found, key=lambda result: result.fun).x))
    (e, a), _ = linear(alpha)
    return PowerLaw(float(e), float(a * middle**alpha), alpha)


def fit_envelope(compute_n: np.ndarray, chosen_by_n: np.ndarray, loss_n: np.ndarray) -> PowerLaw:
    """The law through the losses of the runs on the lower envelope of another loss, by which they are chosen."""
    best = lower_envelope(compute_n, chosen_by_n)
    return fit(compute_n[best], loss_n[best])


def bootstrap(
    compute_n: np.ndarray,
    chosen_by_n: np.ndarray,
    loss_n: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[list[PowerLaw], int]:
    """Laws of so many resamples of the runs, drawn with replacement, and how many more were drawn in vain.

    A resample whose envelope has too few points for a fit is drawn again.

    Raises:
        ValueError: most resamples have too few points.
    """
    rng, laws, in_vain = np.random.default_rng(seed), [], 0
    while len(laws) < resamples:
        drawn = rng.integers(0, len(compute_n), len(compute_n))
        best = drawn[lower_envelope(compute_n[drawn], chosen_by_n[drawn])]
        if len(best) >= LEAST_POINTS:
            laws.append(fit(compute_n[best], loss_n[best]))
        elif (in_vain := in_vain + 1) > max(resamples, 20):
            raise ValueError(
                f"{in_vain} resamples of {len(compute_n)} runs had fewer than {LEAST_POINTS} on their envelope: measure more runs"
            )
    return laws, in_vain


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentiles; either end may be infinite."""
    low, high = np.quantile(
        np.asarray(values, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2], method="nearest"
    )
    return float(low), float(high)


def extrapolation(law: PowerLaw, resampled: list[PowerLaw], loss: float, largest: float) -> dict:
    """The compute at which a loss would be reached, and whether that is to be believed.

    Args:
        largest: FLOP of the largest measured run.
    Returns:
        loss, compute and ci95 (None in place of infinity), share_never of the resamples that never come there, decades beyond the
        largest run, believable, and why not.
    """
    reached = [one.compute_at(loss) for one in resampled]
    at, (low, high) = law.compute_at(loss), interval(reached)
    reasons, (low_e, high_e) = [], interval([one.e for one in resampled])
    if not np.isfinite(at):
        reasons.append(
            f"the fitted law never comes below E = {law.e:.3f}, and {loss:.3f} is needed"
            + f"; but the interval of E, {low_e:.3f} to {high_e:.3f}, leaves open whether any compute would do"
            * (low_e < loss)
        )
    elif np.log10(at / largest) > TRUSTED_DECADES:
        reasons.append(
            f"it is {np.log10(at / largest):.1f} orders of magnitude beyond the largest run, and {TRUSTED_DECADES} is where belief "
            "ends here"
        )
    if np.isfinite(at) and not np.isfinite(high):
        reasons.append(
            f"the interval of E, {low_e:.3f} to {high_e:.3f}, does not exclude that {loss:.3f} is never reached"
        )
    if law.at_the_edge:
        reasons.append(
            f"the fit ends at its bounds (E = {law.e:.3f}, α = {law.alpha:.3f}): the runs do not bend towards a floor, and nothing "
            "says where they will"
        )
    return {
        "loss": loss,
        "compute": _finite(at),
        "ci95": [_finite(low), _finite(high)],
        "share_never": float(np.mean(~np.isfinite(reached))),
        "decades_beyond": _finite(np.log10(at / largest)),
        "largest_measured": largest,
        "believable": not reasons,
        "reasons": reasons,
    }


def over_floor(e: dict, lowest: float, baseline: float) -> list[dict]:
    """The reduction of what lies above E, and above each end of its interval.

    Args:
        e: value and ci95.
        lowest: the lowest loss of a run; baseline: the loss that it is compared with.
    Returns:
        is, floor, reduction, impossible: why not, where the floor is above a loss that was reached, with None for the reduction; else None.
    """
    rows, reached = [], min(lowest, baseline)
    for name, floor in zip(("E", "lower end of E", "upper end of E"), (e["value"], *e["ci95"])):
        possible = floor < reached
        rows.append(
            {
                "is": name,
                "floor": floor,
                "reduction": claimed.over(floor, lowest, baseline) if possible else None,
                "impossible": None if possible else f"a loss of {reached:.3f} has been reached",
            }
        )
    return rows


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
