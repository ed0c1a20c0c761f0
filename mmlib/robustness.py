"""Does the verdict hold elsewhere: at other layers, on other texts, in other coordinates, without outliers, on fresh documents, with other seeds?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mmlib.batches import spread_rows
from mmlib.compare import Losses, evaluate, reduction_interval, verdict
from mmlib.gaussian import PrincipalComponents
from mmlib.noise import Denoiser
from mmlib.store import ActivationStore

OUTLIER_FACTOR = 3.0  # of the median norm of the training activations
OUTLIER_SAMPLE = 20_000  # training rows that give the median


def early_middle_late(n_blocks: int, middle: int) -> list[int]:
    """Block indices a quarter, about half (the run's own layer) and three quarters of the way, each once."""
    return sorted({n_blocks // 4, middle, 3 * n_blocks // 4})


@dataclass(frozen=True)
class Whitening:
    """z → Λ^−½ Uᵀ (z − μ): PCA whitening, after which the fitted Gaussian is N(0, I).

    Raises:
        ValueError: a component has no variance.
    """

    mean_d: Tensor
    matrix_dd: Tensor

    @classmethod
    def of(cls, components: PrincipalComponents) -> "Whitening":
        """From the principal components of the training documents."""
        if not (components.variances_d > 0).all():
            raise ValueError(f"{int((components.variances_d <= 0).sum())} principal components have no variance: nothing makes it 1")
        return cls(components.mean_d, components.axes_dd / components.variances_d.sqrt())

    def __call__(self, z_nd: Tensor) -> Tensor:
        return (z_nd - self.mean_d) @ self.matrix_dd


def training_median(store: ActivationStore) -> float:
    """Median norm of the raw activations of the training documents, from up to 20,000 rows spread over them."""
    rows = store.rows("train")
    chosen = rows.start + spread_rows(len(rows), min(OUTLIER_SAMPLE, len(rows)), np.random.default_rng(0))
    return float(store.take(chosen).float().norm(dim=1).median())


def outliers(activations_nd: Tensor, training_median: float) -> np.ndarray:
    """Which raw activations have a norm above three times the training median, (n,) of bool."""
    return (activations_nd.float().norm(dim=1) > OUTLIER_FACTOR * training_median).numpy()


def redraw_test(lengths: Sequence[int], splits: Sequence[str], n_test: int, seed: int) -> list[str]:
    """Another split of the same documents: test documents are drawn from those of training, which the old ones join.

    For when test documents have been looked at and choices may have followed. Validation documents stay. Stratified by length, as
    `corpus.split_documents` is.

    Args:
        lengths: of the documents, in tokens.
    Raises:
        ValueError: fewer documents are in training than are to be drawn.
    """
    old = np.asarray(splits, dtype=object)
    if (old == "train").sum() < n_test:
        raise ValueError(f"{(old == 'train').sum()} training documents cannot give {n_test} for test")
    rng, new = np.random.default_rng(seed), np.where(old == "test", "train", old)
    by_length = np.argsort(-np.asarray(lengths), kind="stable")  # longest first
    new[[rng.choice(stratum) for stratum in np.array_split(by_length[old[by_length] == "train"], n_test)]] = "test"
    return new.tolist()


def reduction_rows(methods: Mapping[str, Denoiser], baselines: Mapping[str, Denoiser], objectives: Sequence[str], z_nd: Tensor,
                   document_n: np.ndarray, outlier_n: np.ndarray, *, tokens: int, seed: int) -> list[dict]:
    """Reductions of each method over each baseline on all tokens and on those that are no outliers, with intervals by document.

    All see the same tokens and noise. "Without outliers" leaves out draws; it draws no others.

    Args:
        z_nd: activations in the coordinates of the methods.
        document_n: index of each one's document, from 0.
        outlier_n: which are outliers.
        tokens: drawn at each noise level, all of them if there are fewer.
    """
    n_documents, rows, tokens = int(document_n.max()) + 1, [], min(tokens, len(z_nd))
    for objective in objectives:
        both, _ = evaluate({**methods, **baselines}, {}, objective, z_nd, document_n + n_documents * outlier_n, tokens=tokens,
                           common_tokens=tokens, seed=seed)
        plain = _documents(both, slice(0, n_documents))
        rest = _documents(both, slice(n_documents, 2 * n_documents))
        everything = Losses(both.sigma_l, {m: plain.sums[m] + rest.sums[m] for m in both.sums}, plain.counts_ld + rest.counts_ld)
        for which, losses in (("all", everything), ("without outliers", plain)):
            rows += [{"objective": objective, "tokens": which, "method": method, "baseline": baseline, **_reduction(losses, method, baseline)}
                     for method in methods for baseline in baselines]
    return rows


def _documents(losses: Losses, which: slice) -> Losses:
    """The part of some documents, with zeros for those that have no outlier."""
    width, there = which.stop - which.start, losses.counts_ld[:, which].shape[1]

    def padded(values_ld: np.ndarray) -> np.ndarray:
        return np.pad(values_ld[:, which], ((0, 0), (0, width - there)))

    return Losses(losses.sigma_l, {m: padded(sums) for m, sums in losses.sums.items()}, padded(losses.counts_ld))


def _reduction(losses: Losses, method: str, baseline: str) -> dict:
    (ours_d, counts_d), (theirs_d, _) = losses.by_document(method), losses.by_document(baseline)
    interval = list(reduction_interval(losses, method, baseline))
    return {"loss": float(ours_d.sum() / counts_d.sum()), "baseline_loss": float(theirs_d.sum() / counts_d.sum()),
            "reduction": float(1 - ours_d.sum() / theirs_d.sum()), "ci95": interval, "documents": len(counts_d),
            "draws": int(counts_d.sum()), "verdict": verdict(*interval)}


def spread(values: Sequence[float]) -> dict:
    """Values of several seeds, their mean, standard deviation and range.

    Raises:
        ValueError: fewer than two.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} seed: a spread needs at least two")
    return {"values": list(values), "mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)), "range": float(np.ptp(values))}
