"""Methods side by side on one's own activations: `mmlib.evaluate`, a table with a row for each."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmlib.activations.arrays import Rows, Values, rows_of
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin, activations_of, refuse_mistaken
from mmlib.denoisers.fitted import Fitted, normaliser_of
from mmlib.denoisers.noise import LEVELS, Denoiser, noise_process
from mmlib.evaluation.intervals import LEAST_DOCUMENTS
from mmlib.evaluation.losses import (
    Losses,
    loss_interval,
    reduction_interval,
    spread_draws,
    token_losses,
)
from mmlib.files import whole_number

OBJECTIVES = {"velocity": "flow_velocity", "epsilon": "ddpm_epsilon"}
# of groups, or of rows, that are resampled: the interval's arithmetic grows with their square
BLOCKS = 100
DRAWS = 500  # rows at each noise level, where there are as many


def evaluate(
    methods: Mapping[str, Denoiser],
    h: Values,
    *,
    groups: Values | None = None,
    levels: int = LEVELS,
    seed: int = 0,
    standardise: Fitted | Normaliser | ActivationStore | None = None,
    baseline: str | None = "gaussian",
    rows: int = DRAWS,
    progress: bool = True,
) -> pd.DataFrame:
    """Denoising losses of methods on held-out activations, with 95 % intervals, on the same rows
    and the same noise.

    A *velocity loss* is the mean over dimensions of ((z − ẑ)/σ)², over σ = (i + ½)/100; an *ε loss*
    that of (√ᾱ (z − ẑ)/√(1 − ᾱ))², over 100 of DDPM's 1000 levels (see `mmlib.denoisers.noise`). A
    *reduction* is 1 − loss/loss of the baseline.

    Args:
        methods: by name, fitted objects or any callables (x (n, d), σ) → ẑ (n, d), of standardised
            activations, x = (1 − σ) z + σ ε. A callable gets a tensor of its own and may give an
            array.
        h: raw activations (n, d) that no method was fitted to, as `mmlib.fit` takes them; of a
            store its test documents.
        groups: an id for each row, the unit of the intervals; without them it is the row, and
            column `interval_by` says so.
        levels: of noise, a number that divides 100; fewer are evenly spread over the same grids.
        seed: of the rows drawn at each level and their noise.
        standardise: the mean and standard deviation of all rows of the table; None: those of the
            first fitted object.
        baseline: the method that reductions are over. "gaussian", unless it is among the methods,
            is the Gaussian of the training rows of the first fitted object, which joins the table.
            None: no reductions.
        rows: drawn at each level, at most so many as there are.
    Returns:
        A row for each method: velocity_loss, velocity_low, velocity_high, velocity_reduction,
            velocity_reduction_low, velocity_reduction_high, likewise epsilon_…, parameters and
            interval_by. `attrs` has what holds for all rows. With fewer than 5 groups intervals are
            NaN.
    Raises:
        ValueError: methods were fitted in different standardisations, a method gives another shape
            or values that are not finite, or an argument cannot be used.

    >>> h = 3 + 2 * torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    >>> unit = Normaliser(torch.full((1, 4), 3.0), torch.full((1, 4), 2.0))
    >>> best = lambda x, sigma: x * (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)  # for N(0, 1)
    >>> table = evaluate({"best": best, "zero": lambda x, sigma: 0 * x}, h, standardise=unit, baseline="zero", rows=50, progress=False)
    >>> bool(table.loc["best", "velocity_loss"] < table.loc["zero", "velocity_loss"])
    True
    >>> set(table["interval_by"])
    {'row'}
    """
    if isinstance(levels, bool) or levels not in range(1, LEVELS + 1) or LEVELS % levels:
        raise ValueError(f"levels = {levels!r}: expected a number that divides {LEVELS}")
    rows, seed = whole_number("rows", rows, 1), whole_number("seed", seed)
    given = rows_of(h, groups, splits=("test",))
    methods, statistics, stated = _comparable(methods, standardise, baseline)
    z_nd = _standardised(given, activations_of(h), methods, statistics)
    per_level = min(rows, len(z_nd))
    group_n, unit = _units(given.group_n, len(z_nd), seed)
    table = pd.DataFrame(index=pd.Index(list(methods), name="method"))
    asked = {name: _checked(name, method, z_nd.shape[1]) for name, method in methods.items()}
    for prefix, objective in OBJECTIVES.items():
        grid = noise_process(objective).grid()[LEVELS // levels // 2 :: LEVELS // levels]
        draw = spread_draws(z_nd, objective, per_level, seed)
        said = f"losses on {objective}" if progress else None
        losses = token_losses(asked, z_nd, grid, draw, progress=said).by_document(group_n)
        for name in methods:
            for column, value in _figures(losses, name, baseline).items():
                table.loc[name, f"{prefix}_{column}"] = value
    table["parameters"] = [getattr(method, "parameters", None) for method in methods.values()]
    table["interval_by"] = unit.partition(":")[0]
    table.attrs = {
        "standardisation": stated,
        "interval": f"95 %, by {unit}",
        "rows": len(z_nd),
        "rows_per_level": per_level,
        "levels": levels,
        "baseline": baseline,
        "seed": seed,
    }
    return table


def _comparable(
    methods: Mapping[str, Denoiser],
    standardise: Fitted | Normaliser | ActivationStore | None,
    baseline: str | None,
) -> tuple[dict[str, Denoiser], Normaliser, str]:
    """The methods with their baseline, their one standardisation, and what is said of it.

    Raises:
        ValueError: there is no standardisation, there are two, or no baseline.
    """
    if not methods:
        raise ValueError("no methods: expected at least one, by name")
    fits = {name: method for name, method in methods.items() if _origin(method)}
    if standardise is not None:
        statistics, stated = normaliser_of(standardise), "as given"
    elif fits:
        first = next(iter(fits))
        statistics, stated = fits[first].origin.normaliser, f"training statistics of {first!r}"
    else:
        raise ValueError(
            "no fitted object among the methods, so nothing says how to standardise h: pass "
            "standardise=, a fitted object or a store"
        )
    for name, fit in fits.items():
        if not _same(fit.origin.normaliser, statistics):
            raise ValueError(
                f"{name!r} was fitted in another standardisation than {stated}: its x is another. "
                "Fit it with standardise=, the other object"
            )
    everyone = dict(methods)
    if baseline == "gaussian" and baseline not in methods:
        known = [fit for fit in fits.values() if getattr(fit, "components", None) is not None]
        if not known:
            raise ValueError(
                "no fitted object among the methods knows its Gaussian: add one, mmlib.fit(h, "
                "'gaussian'), or pass baseline=None"
            )
        everyone[baseline] = known[0].components.gaussian()
    elif baseline is not None and baseline not in methods:
        raise ValueError(f"baseline {baseline!r}: expected one of {', '.join(methods)}")
    return everyone, statistics, stated


def _origin(method: Denoiser) -> Origin | None:
    """What a fitted object or a meta-model was fitted to; None of any other function."""
    origin = getattr(method, "origin", None)
    return origin if isinstance(origin, Origin) else None


def _same(one: Normaliser, other: Normaliser) -> bool:
    """Whether they differ by rounding alone."""
    if one.d != other.d:
        return False
    shift_ld = (one.mean_ld - other.mean_ld) / other.std_ld
    scale_ld = one.std_ld / other.std_ld - 1
    return bool(torch.stack([shift_ld, scale_ld]).abs().max() < 1e-4)


def _standardised(
    given: Rows,
    activations: tuple[str, ...],
    methods: Mapping[str, Denoiser],
    statistics: Normaliser,
) -> Tensor:
    """z of the rows, which must be of what the methods were fitted to, and raw."""
    if given.h_nd.shape[1] != statistics.d:
        raise ValueError(f"h is {given.h_nd.shape[1]} wide: expected {statistics.d}")
    known = {"language_model": given.language_model or None, "documents": given.documents or None}
    for name, method in methods.items():
        if origin := _origin(method):
            origin.check(repr(name), layer=given.layer, **known, activations=activations)
    refuse_mistaken(given.h_nd, Origin(statistics), None)
    return statistics(given.h_nd)


def _units(group_n: np.ndarray | None, n: int, seed: int) -> tuple[np.ndarray, str]:
    """The block of each row, from 0, and what blocks are made of: whole groups, or rows drawn at
    random.
    """
    rng = np.random.default_rng(seed)
    if group_n is None:
        count = min(n, BLOCKS)
        what = f"row: {n:,} rows, no groups were given"
        return rng.permutation(n) % count, what + f", in {count} random blocks" * (n > count)
    count = int(group_n.max()) + 1
    what = f"group: {count:,} groups"
    if count <= BLOCKS:
        return group_n, what
    return (rng.permutation(count) % BLOCKS)[group_n], f"{what} in {BLOCKS} random blocks"


def _checked(name: str, method: Denoiser, d: int) -> Callable[[Tensor, float], Tensor]:
    """The method on a copy of x, outside inference mode; what it gives is checked.

    Raises:
        ValueError: it gives another shape, or values that are not finite.
    """

    def estimate(x_nd: Tensor, sigma: float) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():
            try:
                found = method(x_nd.clone(), sigma)
            except Exception as error:
                error.add_note(f"in method {name!r} at σ = {sigma:.4f}, x {tuple(x_nd.shape)}")
                raise
        z_nd = torch.as_tensor(found).detach().cpu()
        if z_nd.shape != x_nd.shape or not z_nd.is_floating_point():
            raise ValueError(
                f"{name!r} gives {z_nd.dtype} of shape {tuple(z_nd.shape)} at σ = {sigma:.4f}: "
                f"expected an estimate of z, {tuple(x_nd.shape)}"
            )
        if not z_nd.isfinite().all():
            raise ValueError(f"{name!r} gives NaN or infinity at σ = {sigma:.4f}")
        return z_nd.float()

    return estimate


def _figures(losses: Losses, name: str, baseline: str | None) -> dict[str, float]:
    """Loss and reduction of a method with their intervals."""
    few = len(losses.by_document(name)[1]) < LEAST_DOCUMENTS
    ends = (np.nan, np.nan) if few else loss_interval(losses, name)
    found = dict(zip(("loss", "low", "high"), (losses.mean(name), *ends)))
    if baseline is not None:
        ends = (np.nan, np.nan) if few else reduction_interval(losses, name, baseline)
        found["reduction"] = losses.reduction(name, baseline)
        found["reduction_low"], found["reduction_high"] = ends
    return found
