"""A network on mixtures, trained on estimates that its own rows had no part in: cross-fitting.

A mixture's estimate of a row that it was fitted to is too good: at 512 components and half a
million rows by a tenth of the velocity loss. A network that is trained on such estimates learns to
correct too little. So documents are cut into folds, there is a mixture for each fold, fitted
without it, and each batch is of one fold, whose rows get their estimates from that mixture. Once
trained, the network stands on the average of all mixtures (`mmlib.denoisers.average`): what a
forest's trees are to its out-of-bag estimates (Breiman 2001).
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmlib.denoisers.average import MixtureAverage, one_mixture
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.residual import MixtureResidual, ResidualSize
from mmlib.files import code_digest
from mmlib.training.recipe import Recipe, new_model
from mmlib.training.train import train

# what decides the outcome, besides what decides any training's
CODE = (
    "training/crossfit",
    "denoisers/residual",
    "denoisers/average",
    "denoisers/posterior",
    "denoisers/mixture",
)


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


def bagged(z_nd: Tensor, fold_n: np.ndarray, size: ResidualSize, seed: int) -> MixtureAverage:
    """A mixture for each fold, of all other rows; of one fold, or where the size leaves nothing
    out, of all rows. Member f has start `seed` × folds + f of k-means.
    """
    members, folds = [], int(fold_n.max()) + 1
    for fold in tqdm(range(folds), desc="fitting mixtures", unit="mixture"):
        kept = torch.from_numpy(fold_n != fold) if folds > 1 and size.leaves_out else slice(None)
        members.append(one_mixture(z_nd[kept], size.components, size.prior, seed * folds + fold))
    return MixtureAverage.of(members)


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
    tracker: str | None = None,
    device: str | None = None,
) -> tuple[MetaModel, list[dict]]:
    """Fit the mixtures of a recipe whose size is a `ResidualSize`, and train the network on them.

    Args:
        raw_nd: training rows.
        checked_nd: validation rows, raw.
        group_n: document of each training row, (n,).
        batches: (rows, batch, seed, start) → endless batches of rows, from batch `start` on.
        folder: see `mmlib.training.train.train`.
    Returns:
        The model, whose seconds include those of every mixture; and the log.
    """
    size, settings, began = recipe.size, recipe.training, time.perf_counter()
    fold_n = folds_of(group_n, size.folds, seed)
    told_n = fold_n if size.leaves_out else np.zeros_like(fold_n)
    average = bagged(origin.normaliser(raw_nd), fold_n, size, seed)
    model = new_model(recipe, origin, seed)
    network = model.network.over(average)
    mixture_seconds = time.perf_counter() - began
    digest = hashlib.sha256()
    for member in average.members:
        digest.update(member.mean_kd.numpy().tobytes())
    source = {"size": asdict(size), "mixtures": digest.hexdigest(), "code": code_digest(*CODE)}
    log = train(
        model,
        settings,
        lambda start: by_fold(network, raw_nd, told_n, batches, settings.batch, seed, start),
        origin.normaliser(checked_nd),
        folder,
        seed=seed,
        source=json.dumps(source),
        spent=mixture_seconds,
        tracker=tracker,
        device=device,
    )
    network.fold = None
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
    """Batches from `start` on, each of one fold in turn, which the network is told;
    of one fold alone, it reads the average of all mixtures.
    """
    folds = int(fold_n.max()) + 1
    rows = [raw_nd[torch.from_numpy(np.flatnonzero(fold_n == fold))] for fold in range(folds)]
    # fold f has batches f, f + F, f + 2F, …: those before `start` are passed over
    passed = [len(range(fold, start, folds)) for fold in range(folds)]
    sources = [batches(rows[f], batch, seed * folds + f, passed[f]) for f in range(folds)]
    while True:
        fold = start % folds
        network.fold = fold if folds > 1 else None
        yield next(sources[fold])
        start += 1
