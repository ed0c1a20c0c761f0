"""Confidence intervals that treat whole documents as the independent units: a paired cluster bootstrap.

Resampling n clusters with replacement and reading off percentiles covers too rarely with few documents of unequal length. Here n − 1
of the n documents are drawn and weighted n/(n − 1) (Rao and Wu 1988), which makes the bootstrap's variance unbiased for a mean, and its
standard error meets Student's t with Kish's effective number of documents less one as its degrees of freedom. What each kind of
interval covers in simulation is checked in tests/test_intervals.py.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from mmlib.corpus import effective_clusters

RESAMPLES = 2000


def resampled_weights(n_documents: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Weights of the documents in each resample, (resamples, documents), with mean 1.

    Raises:
        ValueError: fewer than two documents, which have no spread.
    """
    if n_documents < 2:
        raise ValueError(f"{n_documents} document: an interval needs at least two")
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_documents - 1, np.full(n_documents, 1 / n_documents), resamples) * n_documents / (n_documents - 1)


def bootstrap_interval(statistic: Callable[[np.ndarray], np.ndarray], sizes_d: Sequence[float], *, positive: bool = False,
                       level: float = 0.95) -> tuple[float, float]:
    """Interval for a statistic of the test documents.

    Paired, if the statistic is of two methods' sums on the same documents: `lambda w: (w @ ours_d) / (w @ theirs_d)`.

    Args:
        statistic: maps weights of the documents (resamples, documents) to values (resamples,).
        sizes_d: tokens of each document, for the degrees of freedom.
        positive: the statistic is positive, such as a loss or a ratio of losses: its logarithm is what is resampled.
    Raises:
        ValueError: fewer than two documents.
    """
    n = len(sizes_d)
    values_r = np.asarray(statistic(np.concatenate([np.ones((1, n)), resampled_weights(n)])), dtype=np.float64)
    if positive:
        values_r = np.log(values_r)
    reach = scipy.stats.t.ppf((1 + level) / 2, effective_clusters(sizes_d) - 1) * values_r[1:].std(ddof=1)
    low, high = values_r[0] - reach, values_r[0] + reach
    return (float(np.exp(low)), float(np.exp(high))) if positive else (float(low), float(high))
