"""How the loss falls with compute: the grid of trainings, its lower envelope, a power law fitted to
it, and what extrapolating it is worth.

The law is L(C) = E + A (C / 10¹² FLOP)^−α with E, A ≥ 0 and α > 0. C counts 6 operations a
parameter and activation, two of the forward pass and four of the backward one (Kaplan et al. 2020,
section 2.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize_scalar, nnls
from torch import nn

from mmlib.activations.store import ActivationStore
from mmlib.denoisers.networks import MLPSize
from mmlib.evaluation import claim as claimed
from mmlib.runs.sweep import RecipeTrial
from mmlib.training.recipe import Recipe, Training

Budget = tuple[int, int]  # (steps, batch)


@dataclass(frozen=True)
class ScalingSize:
    """The grid of trainings, and how closely each is measured."""

    widths: tuple[int, ...] = (80, 160, 320, 640, 1280)  # d_model: 0.25 to 44 million parameters
    # up to one pass
    budgets: tuple[Budget, ...] = ((127, 256), (254, 256), (254, 512), (507, 512), (1014, 512))
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
    """Peak learning rate of a width, in inverse proportion to it: 0.0025 at 640. Notebook 06 tries
    half and double of it on validation documents.
    """
    return RATE * RATE_WIDTH / d_model


def recipe(d_model: int, steps: int, batch: int, levels: int, factor: float = 1.0) -> Recipe:
    """The paper's MLP of a width, with a whole schedule for so many steps.

    Its validation loss is measured once, at its end, and no state is kept to resume from: trials
    take minutes at most.

    Args:
        levels: noise levels shared by the rows of a batch.
        factor: times the learning rate of the rule.
    """
    rate, never = factor * learning_rate(d_model), 10 * (steps // 10 + 1)
    # A narrow network may stay above the mean's loss, which is what is to be shown.
    settings = {"warmup": 0.05, "ema": 0.99, "weight_decay": 0.05, "stop_if_stuck": False}
    settings |= {"levels": levels, "log_every": 10, "validate_every": never, "save_every": never}
    training = Training("flow_velocity", steps, batch, rate, **settings)
    return Recipe(MLPSize(layers=3, d_model=d_model, d_mlp=2 * d_model), training)


def trials(size: ScalingSize, store: ActivationStore, seed: int) -> list[RecipeTrial]:
    """Every width with every budget."""
    return [
        RecipeTrial(f"width{width}-{n * batch}", recipe(width, n, batch, size.levels), store, seed)
        for width, (n, batch) in product(size.widths, size.budgets)
    ]


def rate_trials(size: ScalingSize, store: ActivationStore, seed: int) -> list[RecipeTrial]:
    """The smallest and the middle width at the smallest and the largest budget, with multiples of
    the rule's learning rate.
    """
    widths = (size.widths[0], size.widths[len(size.widths) // 2])
    budgets = (size.budgets[0], size.budgets[-1])
    return [
        RecipeTrial(
            f"width{width}-{steps * batch}-rate{factor:g}",
            recipe(width, steps, batch, size.levels, factor),
            store,
            seed,
        )
        for width, (steps, batch), factor in product(widths, budgets, FACTORS)
    ]


def parameters_of_time(network: nn.Module) -> int:
    """Parameters that meet the time alone, of a network with one block or more: once a noise level,
    not once a row.
    """
    return sum(
        p.numel()
        for name, p in network.named_parameters()
        if "time_embed" in name or "time_proj" in name
    )


def compute(parameters: float, activations: float) -> float:
    """C = 6 N D, in FLOP."""
    return 6.0 * parameters * activations


def lower_envelope(compute_n: Sequence[float], loss_n: Sequence[float]) -> np.ndarray:
    """Indices of the runs that no run of at most a quarter more compute has a lower loss than, by
    rising compute.

    The quarter is what C is uncertain by: counting the parameters of time or not changes it by as
    much. Without it a run is on the envelope for being cheaper by a hair than one that is far
    better.
    """
    compute_n, loss_n = np.asarray(compute_n, float), np.asarray(loss_n, float)
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
        return self.e + self.a * (np.asarray(compute_n, float) / UNIT) ** -self.alpha

    @property
    def at_the_edge(self) -> bool:
        """Whether E is 0 or α at either end of what `fit` searches: the data do not bend as such a
        law does.
        """
        return self.e == 0 or not ALPHAS[0] * 1.01 < self.alpha < ALPHAS[1] / 1.01

    def compute_at(self, loss: float) -> float:
        """FLOP at which the law comes to that loss; infinite if it never does."""
        if loss <= self.e or self.a == 0:
            return np.inf
        with np.errstate(over="ignore"):
            return float(UNIT * np.exp(np.log(self.a / (loss - self.e)) / self.alpha))


def fit(compute_n: Sequence[float], loss_n: Sequence[float]) -> PowerLaw:
    """The law of least squared relative error.

    For a given α the law is linear in E and A, which non-negative least squares solves exactly
    (variable projection, Golub and Pereyra 1973); over log α it is minimised from several starts,
    since the profile may have more than one valley.

    Raises:
        ValueError: fewer than four different amounts of compute.
    """
    c_n, loss_n = np.asarray(compute_n, float) / UNIT, np.asarray(loss_n, float)
    if (points := len(np.unique(c_n))) < LEAST_POINTS:
        raise ValueError(
            f"{points} different amounts of compute cannot determine three constants: expected at "
            f"least {LEAST_POINTS}"
        )
    middle = np.exp(np.log(c_n).mean())  # the powers are of about 1 there, whatever α

    def linear(alpha: float) -> tuple[np.ndarray, float]:
        terms = np.stack([np.ones_like(c_n), (c_n / middle) ** -alpha], 1) / loss_n[:, None]
        return nnls(terms, np.ones_like(c_n))

    def misfit(log_alpha: float) -> float:
        return linear(np.exp(log_alpha))[1]

    edges, options = np.linspace(*np.log(ALPHAS), STARTS + 1), {"xatol": 1e-6}
    found = [
        minimize_scalar(misfit, bounds=bounds, method="bounded", options=options)
        for bounds in zip(edges, edges[1:])
    ]
    alpha = float(np.exp(min(found, key=lambda result: result.fun).x))
    (e, a), _ = linear(alpha)
    return PowerLaw(float(e), float(a * middle**alpha), alpha)


def fit_envelope(compute_n: np.ndarray, chosen_by_n: np.ndarray, loss_n: np.ndarray) -> PowerLaw:
    """The law through the losses of the runs on the lower envelope of another loss, by which they
    are chosen.
    """
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
    """Laws of so many resamples of the runs, drawn with replacement, and how many more were drawn
    in vain.

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
                f"{in_vain} resamples of {len(compute_n)} runs had fewer than {LEAST_POINTS} on "
                "their envelope: measure more runs"
            )
    return laws, in_vain


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentiles; either end may be infinite."""
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(np.asarray(values, float), ends, method="nearest")
    return float(low), float(high)


def extrapolation(law: PowerLaw, resampled: list[PowerLaw], loss: float, largest: float) -> dict:
    """The compute at which a loss would be reached, and whether that is to be believed.

    Args:
        largest: FLOP of the largest measured run.
    Returns:
        loss, compute and ci95 (None in place of infinity), share_never of the resamples that never
        come there, decades beyond the largest run, believable, and why not.
    """
    reached = [one.compute_at(loss) for one in resampled]
    at, (low, high) = law.compute_at(loss), interval(reached)
    low_e, high_e = interval([one.e for one in resampled])
    beyond, of_e = np.log10(at / largest), f"the interval of E, {low_e:.3f} to {high_e:.3f},"
    open_yet = f"; but {of_e} leaves open whether any compute would do" * (low_e < loss)
    reasons = []
    if np.isinf(at):
        needed = f"{loss:.3f} is needed{open_yet}"
        reasons.append(f"the fitted law never comes below E = {law.e:.3f}, and {needed}")
    elif beyond > TRUSTED_DECADES:
        trusted = f"{TRUSTED_DECADES} is where belief ends here"
        reasons.append(
            f"it is {beyond:.1f} orders of magnitude beyond the largest run, and {trusted}"
        )
    if np.isfinite(at) and np.isinf(high):
        reasons.append(f"{of_e} does not exclude that {loss:.3f} is never reached")
    if law.at_the_edge:
        reasons.append(
            f"the fit ends at its bounds (E = {law.e:.3f}, α = {law.alpha:.3f}): the runs do not "
            "bend towards a floor, and nothing says where they will"
        )
    return {
        "loss": loss,
        "compute": _finite(at),
        "ci95": [_finite(low), _finite(high)],
        "share_never": float(np.mean(~np.isfinite(reached))),
        "decades_beyond": _finite(beyond),
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
        is, floor, reduction, impossible: why not, where the floor is above a loss that was reached,
            with None for the reduction; else None.
    """
    rows, reached = [], min(lowest, baseline)
    for name, floor in zip(("E", "lower end of E", "upper end of E"), (e["value"], *e["ci95"])):
        row = {"is": name, "floor": floor, "reduction": None, "impossible": None}
        if floor < reached:
            row["reduction"] = claimed.over(floor, lowest, baseline)
        else:
            row["impossible"] = f"a loss of {reached:.3f} has been reached"
        rows.append(row)
    return rows


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
