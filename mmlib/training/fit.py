"""From a plain tensor to a model in one call: `mmlib.fit`.

Rows are split by their groups (documents), standardised by the training rows, and handed to the
method. Before the work begins one line says how many rows there are, how much memory and time they
need, and what had to be made smaller for it (`mmlib.training.budget`).
"""

import io
import math
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mmlib.activations.arrays import Values, rows_of
from mmlib.activations.batches import spread_rows
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.average import AverageSize, fit_average
from mmlib.denoisers.checkpoints import Origin, activations_of
from mmlib.denoisers.fitted import Cost, Fitted, normaliser_of
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.kinds import KINDS
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import MixtureSize, fit_mixture
from mmlib.denoisers.residual import ResidualSize
from mmlib.denoisers.sae import SAEDenoiser, SAESize, train_sae
from mmlib.files import default_device, whole_number
from mmlib.training.budget import Budget, Method, PCASize, Size, sized, with_steps
from mmlib.training.crossfit import folds_of, train_on_mixture
from mmlib.training.recipe import Recipe, new_model
from mmlib.training.train import train

NAMES = (
    "gaussian",
    "pca",
    "mixture",
    "mixture_average",
    "sae",
    "mlp",
    "gated_mlp",
    "mixture_mlp",
)
LEAST_ROWS = 20  # for training, and a quarter of it for validation


def fit(
    h: Values,
    method: Method = "mixture",
    *,
    groups: Values | None = None,
    seed: int = 0,
    minutes: float | None = None,
    steps: int | None = None,
    validation: float = 0.1,
    standardise: Fitted | Normaliser | None = None,
    language_model: str = "",
    layer: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Fitted:
    """Fit a denoiser to activations.

    Args:
        h: raw activations (n, d): a tensor, numpy array, dataset of HDF5, nested lists, the path of
            a .pt, .npy or .safetensors file, or a store, whose training and validation documents
            are taken.
        method: "gaussian" (full covariance), "pca", "mixture" (of full Gaussians), "mixture_average" (of
            several mixtures), "sae" (TopK, by SAELens), "mlp" (the paper's denoiser), "gated_mlp"
            (the same with a gated skip), "mixture_mlp" (a network on an average of mixtures: ours);
            or the size of one: `PCASize`, `MixtureSize`, `AverageSize`, `SAESize`, or any
            `Recipe`.
        groups: an id for each row, (n,), such as its document; none is in both splits.
        seed: of the split, of k-means and weights, of batches and noise.
        minutes: about so long; steps, or components of a mixture, are cut to it.
        steps: of a network or an SAE, in place of what the number of rows suggests.
        validation: share of the rows.
        standardise: statistics of another fit, so that both can stand in one table; None: mean and
            standard deviation of the training rows.
        language_model, layer: what the activations are of, for `check`.
        device: None: "cuda" where there is one, else "cpu".
        progress: say what is done, with bars.
    Returns:
        A `Fitted`: denoise, log_likelihood, sample, project, features, save.
    Raises:
        TypeError, ValueError: h, groups or an option cannot be used; the message says why.
        MemoryError: the method needs more memory than there is.

    >>> h = 3 + 2 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    >>> model = fit(h, "gaussian", groups=[i // 20 for i in range(400)], progress=False)
    >>> model.sample(5).shape
    torch.Size([5, 8])
    >>> bool(model.log_likelihood(h).mean() > model.log_likelihood(h + 9).mean())
    True
    """
    _check_options(method, minutes, steps, validation, seed)
    rows = rows_of(h, groups)
    parts = split_rows(len(rows.h_nd), rows.group_n, validation, seed)
    raw_nd, checked_nd = (rows.h_nd[torch.from_numpy(part)] for part in parts)
    (n, d), n_validation = raw_nd.shape, len(checked_nd)
    _require_rows(method, n, n_validation, d)
    layer = layer if rows.layer is None else rows.layer
    origin = Origin(
        _normaliser(raw_nd, standardise),
        rows.language_model or language_model,
        () if layer is None else (layer,),
        rows.documents,
        activations_of(h),
    )
    budget = Budget(n, d, device or default_device())
    size, remarks = budget.within(with_steps(sized(method, n, d), steps), minutes)
    name = method if isinstance(method, str) else type(method).__name__
    split = "row" if rows.group_n is None else "group"
    how = {"row": "at random by row: no groups were given", "group": "by group"}[split]
    facts = {
        "method": name,
        "seed": seed,
        "rows": {"train": n, "validation": n_validation},
        "split": split,
    }
    with ExitStack() as apart:
        apart.enter_context(torch.random.fork_rng())  # weights are drawn from torch's own generator
        if not progress:
            apart.enter_context(redirect_stdout(io.StringIO()))
            apart.enter_context(redirect_stderr(io.StringIO()))
        print(
            f"{name}: {n:,} rows of {d:,} dimensions for training, {n_validation:,} for "
            f"validation, split {how}; {budget.describe(size)}",
            *remarks,
            sep="\n",
        )
        group_n = np.arange(n) if rows.group_n is None else rows.group_n[parts[0]]
        return _fitted(size, raw_nd, checked_nd, group_n, origin, facts, budget.device)


def _check_options(
    method: Method, minutes: float | None, steps: int | None, validation: float, seed: int
) -> None:
    if (
        not isinstance(method, (PCASize, MixtureSize, AverageSize, SAESize, Recipe))
        and method not in NAMES
    ):
        raise ValueError(f"method {method!r}: expected {', '.join(NAMES)}, or the size of one")
    if not 0 < validation < 1:
        raise ValueError(f"validation = {validation}: expected a share between 0 and 1")
    whole_number("seed", seed)
    if steps is not None:
        whole_number("steps", steps, 1)
    if minutes is not None and not minutes > 0:
        raise ValueError(f"minutes = {minutes}: expected more than 0")


def split_rows(
    n: int, group_n: np.ndarray | None, validation: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training and for validation, each rising; whole groups, or where there are
    none each row for itself.

    Args:
        validation: about this share of the rows: groups are drawn at random until it is reached,
            and one that would double it is passed over.
    Raises:
        ValueError: all rows are of one group.

    >>> train, held_out = split_rows(6, np.array([0, 0, 1, 1, 2, 2]), 0.3, seed=0)
    >>> len(train), len(held_out)
    (4, 2)
    """
    rng, wanted = np.random.default_rng(seed), max(1, round(validation * n))
    group_n = np.arange(n) if group_n is None else group_n
    counts = np.bincount(group_n)
    if len(counts) == 1 < n:
        raise ValueError(
            "all rows are of one group: none is left to validate on; leave groups out to split by "
            "row"
        )
    chosen, total, order = [], 0, rng.permutation(len(counts))
    for group in order:
        if total >= wanted:
            break
        if total + counts[group] <= 2 * wanted:
            chosen.append(group)
            total += counts[group]
    held_out = np.isin(group_n, chosen or [order[counts[order].argmin()]])
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _require_rows(method: Method, n: int, n_validation: int, d: int) -> None:
    """Refuse what is too little, before any work."""
    least = LEAST_ROWS // 4
    if n < LEAST_ROWS or n_validation < least:
        raise ValueError(
            f"{n} rows for training and {n_validation} for validation: expected at least "
            f"{LEAST_ROWS} and {least}"
        )
    if d < 2 and (method == "sae" or isinstance(method, SAESize)):
        raise ValueError(f"h is {d} wide: an SAE needs at least 2 dimensions")
    closed = method in ("gaussian", "pca", "mixture", "mixture_average", "mixture_mlp")
    size = getattr(method, "size", method)
    closed |= isinstance(size, (PCASize, MixtureSize, AverageSize, ResidualSize))
    if n <= d and (closed or getattr(method, "linear_skip", False)):
        raise ValueError(
            f"{n} rows for training, of {d} dimensions: a covariance needs more rows than "
            "dimensions; give more rows, or use 'sae' or 'mlp'"
        )


def _normaliser(h_nd: Tensor, given: Fitted | Normaliser | None) -> Normaliser:
    """Mean and standard deviation in double precision, of the training rows or as given.

    Raises:
        ValueError: a dimension never varies, or what is given is of another width.
    """
    if given is not None:
        normaliser = normaliser_of(given)
        if normaliser.d != h_nd.shape[1]:
            raise ValueError(f"standardise is {normaliser.d} wide, h is {h_nd.shape[1]}")
        return normaliser
    if constant := (h_nd.amax(0) == h_nd.amin(0)).nonzero()[:, 0].tolist():
        raise ValueError(
            f"dimensions {', '.join(map(str, constant[:5]))}{', …' if len(constant) > 5 else ''} "
            "of h never vary in the training rows: leave them out"
        )
    scaler = StandardScaler()
    for part_nd in h_nd.split(2**16):
        scaler.partial_fit(part_nd.double().numpy())
    mean, variance = (torch.from_numpy(values)[None] for values in (scaler.mean_, scaler.var_))
    return Normaliser(mean.float(), variance.sqrt().float())


def _fitted(
    size: Size,
    raw_nd: Tensor,
    checked_nd: Tensor,
    group_n: np.ndarray,
    origin: Origin,
    facts: dict,
    device: str,
) -> Fitted:
    """The fit of a size to raw activations; its facts gain what came of it."""
    z_nd, seed = origin.normaliser(raw_nd), facts["seed"]
    components = PrincipalComponents.fit(z_nd) if len(z_nd) > origin.d else None
    if size is not None:
        facts["size"] = asdict(size)
    if isinstance(size, Recipe) and isinstance(size.size, ResidualSize):
        del z_nd
        size, kind = _foldable(size, group_n, seed), "network"
        with tempfile.TemporaryDirectory() as folder:
            given = (size, raw_nd, checked_nd, group_n, origin, row_batches, Path(folder))
            denoiser, log = train_on_mixture(*given, seed=seed, device=device)
        denoiser.to(device)
        facts["size"], facts["validation_loss"] = asdict(size), log[-1]["validation_loss"]
    elif isinstance(size, Recipe):
        del z_nd
        gaussian = components.gaussian() if size.linear_skip else None
        kind, denoiser = "network", new_model(size, origin, seed, gaussian)
        facts["validation_loss"] = _train(denoiser, size, raw_nd, checked_nd, seed, device)
    elif isinstance(size, MixtureSize):
        n, kind = min(size.validation_tokens, len(checked_nd)), "mixture"
        rows = spread_rows(len(checked_nd), n, np.random.default_rng(seed))
        z_checked_nd = origin.normaliser(checked_nd)[rows]
        denoiser, facts["tried"] = fit_mixture(z_nd, z_checked_nd, size, seed=seed)
    elif isinstance(size, AverageSize):
        kind, denoiser = "mixture_average", fit_average(z_nd, size, seed=seed)
    elif isinstance(size, SAESize):
        batches, kind = row_batches(z_nd, size.batch, seed), "sae"
        sae = train_sae(batches, origin.d, size, seed=seed, device=device)
        denoiser = SAEDenoiser(sae, "mean_estimate")
    elif isinstance(size, PCASize):
        k, kind = min(size.components, origin.d), "pca"
        denoiser = components.projection(k, "mean_estimate")
    else:
        kind, denoiser = "gaussian", components.gaussian()
    return KINDS[kind](denoiser, origin, Cost.of(denoiser), components, facts)


def _foldable(recipe: Recipe, group_n: np.ndarray, seed: int) -> Recipe:
    """With no more folds than groups, and a batch that fills from each."""
    folds = min(recipe.size.folds, len(np.unique(group_n)))
    least = int(np.bincount(folds_of(group_n, folds, seed)).min())
    training = replace(recipe.training, keep=())
    if training.batch > least:
        batch = 2 ** int(math.log2(least))
        print(f"the smallest fold has {least:,} rows: batches of {batch} are trained on")
        levels = training.levels and min(training.levels, batch)
        training = replace(training, batch=batch, levels=levels)
    return replace(recipe, size=replace(recipe.size, folds=folds), training=training)


def _train(
    model: MetaModel, recipe: Recipe, raw_nd: Tensor, checked_nd: Tensor, seed: int, device: str
) -> float:
    """Train a network, which stays on the device; its last validation loss."""
    settings = replace(recipe.training, keep=())
    with tempfile.TemporaryDirectory() as folder:
        log = train(
            model,
            settings,
            lambda start: row_batches(raw_nd, settings.batch, seed, start),
            model.normaliser(checked_nd),
            Path(folder),
            seed=seed,
            device=device,
        )
    model.to(device)
    return log[-1]["validation_loss"]


def row_batches(h_nd: Tensor, batch: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Endless shuffled batches of rows, (batch, d), from a step on: a function of (seed, step).
    Each pass leaves out what fills no batch.

    >>> from itertools import islice
    >>> [one.flatten().tolist() for one in islice(row_batches(torch.arange(4.0)[:, None], 2, seed=0), 2)]
    [[2.0, 0.0], [1.0, 3.0]]
    """
    a_pass = len(h_nd) // batch
    if not a_pass:
        raise ValueError(f"{len(h_nd)} rows for batches of {batch}: expected at least one batch")
    while True:
        order = np.random.default_rng([seed, start // a_pass]).permutation(len(h_nd))
        for i in range(start % a_pass, a_pass):
            yield h_nd[torch.from_numpy(order[i * batch : (i + 1) * batch])]
            start += 1
