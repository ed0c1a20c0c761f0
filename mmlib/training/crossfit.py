"""A network on a mixture, trained on estimates that its own rows had no part in: cross-fitting.

A mixture's estimate of a row that it was fitted to is too good: at 512 components and half a
million rows by a tenth of the velocity loss. A network that is trained on such estimates learns to
correct too little. So documents are cut into folds, and each batch is of one fold, whose rows get
their estimates from a mixture that was fitted without that fold. k-means alone sees all rows, so
that components have the same number in every mixture. What a fold's mixture keeps of its own rows
are the borders between clusters. Once trained, the network stands on the mixture of all rows.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import ClusterMoments, GaussianMixtureDenoiser, clusters
from mmlib.denoisers.residual import MixtureResidual
from mmlib.files import code_digest
from mmlib.training.recipe import Recipe, new_model
from mmlib.training.train import train

# what decides the outcome, besides what decides any training's
CODE = ("training/crossfit", "denoisers/residual", "denoisers/posterior", "denoisers/mixture")


def folds_of(group_n: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, (n,): whole groups, of about equally many rows.

    The largest group comes first, each to the fold that has fewest rows; of equal groups the seed
    decides.

    Raises:
        ValueError: there are fewer groups than folds.

    >>> folds_of(np.array([0, 0, 0, 1, 2, 2]), 2, seed=0).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    groups, at_n, counts = np.unique(group_n, return_inverse=True, return_counts=True)
    if len(groups) < folds:
        raise ValueError(f"{len(groups)} groups for {folds} folds: expected at least one each")
    order = np.random.default_rng(seed).permutation(len(groups))
    fold_of_group, rows = np.empty(len(groups), int), np.zeros(folds, int)
    for group in order[np.argsort(-counts[order], kind="stable")]:
        fold = rows.argmin()
        fold_of_group[group] = fold
        rows[fold] += counts[group]
    return fold_of_group[at_n]


def cross_fitted(
    z_nd: Tensor, label_n: Tensor, fold_n: np.ndarray, prior: float
) -> Iterator[GaussianMixtureDenoiser]:
    """The mixture of all rows, then for each fold the mixture of all others; of one fold none.

    Args:
        label_n: the cluster of each row, (n,), from 0.
        prior: strength ν, see `mmlib.denoisers.mixture`.
    """
    k, folds = int(label_n.max()) + 1, range(int(fold_n.max()) + 1)
    rows = [torch.from_numpy(np.flatnonzero(fold_n == fold)) for fold in folds]
    parts = [ClusterMoments.of(z_nd[one], label_n[one], k) for one in rows]
    yield ClusterMoments.merged(parts).mixture(prior)
    for fold in folds if len(parts) > 1 else ():
        yield ClusterMoments.merged(parts[:fold] + parts[fold + 1 :]).mixture(prior)


def train_on_mixture(
    recipe: Recipe,
    raw_nd: Tensor,
    checked_nd: Tensor,
    group_n: np.ndarray,
    origin: Origin,
    batches: Callable[[Tensor, int, int, int], Iterator[Tensor]],
    folder: Path,
    *,
    seed: int,
    device: str | None = None,
) -> tuple[MetaModel, list[dict]]:
    """Fit the mixture of a recipe whose size is a `ResidualSize`, and train the network on it.

    Args:
        raw_nd: training rows.
        checked_nd: validation rows, raw.
        group_n: document of each training row, (n,).
        batches: (rows, batch, seed, start) → endless batches of rows, from batch `start` on.
        folder: see `mmlib.training.train.train`.
    Returns:
        The model, whose seconds include those of k-means and of every mixture; and the log.
    """
    size, settings, began = recipe.size, recipe.training, time.perf_counter()
    z_nd = origin.normaliser(raw_nd)
    label_n = clusters(z_nd, size.components, seed)
    label_n = label_n.unique(return_inverse=True)[1]
    fold_n = folds_of(group_n, size.folds, seed)
    mixtures = cross_fitted(z_nd, label_n, fold_n, size.prior)
    whole = next(mixtures)
    size = replace(size, components=len(whole.components))  # k-means may leave some empty
    model = new_model(replace(recipe, size=size), origin, seed)
    network = model.network.over(whole, mixtures)
    del z_nd
    mixture_seconds = time.perf_counter() - began
    digest = hashlib.sha256(whole.tensors()["mean_d"].numpy().tobytes()).hexdigest()
    log = train(
        model,
        settings,
        lambda start: by_fold(network, raw_nd, fold_n, batches, settings.batch, seed, start),
        origin.normaliser(checked_nd),
        folder,
        seed=seed,
        source=json.dumps({"size": asdict(size), "mixture": digest, "code": code_digest(*CODE)}),
        device=device,
    )
    network.crossed = torch.nn.ModuleList()
    model.costing(mixture_seconds + log[-1]["seconds"], log[-1]["activations"])
    return model, log


def by_fold(
    network: MixtureResidual,
    raw_nd: Tensor,
    fold_n: np.ndarray,
    batches: Callable[[Tensor, int, int, int], Iterator[Tensor]],
    batch: int,
    seed: int,
    start: int,
) -> Iterator[Tensor]:
    """Batches from `start` on, each of one fold in turn; the network is told which."""
    folds = int(fold_n.max()) + 1
    rows = [raw_nd[torch.from_numpy(np.flatnonzero(fold_n == fold))] for fold in range(folds)]
    # fold f has batches f, f + F, f + 2F, …: those before `start` are passed over
    passed = [len(range(fold, start, folds)) for fold in range(folds)]
    sources = [batches(rows[f], batch, seed * folds + f, passed[f]) for f in range(folds)]
    while True:
        network.fold = start % folds
        yield next(sources[network.fold])
        start += 1
