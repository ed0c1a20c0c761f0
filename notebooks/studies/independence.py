"""Do features occur independently of each other? Pairs of columns against a null of shifted
columns, and whitened coordinates against a Gaussian.

The null: each column is shifted along the tokens by a random number of places, around the end. That
keeps how often it is active and for how long in a row, and destroys what it has in common with
other columns, position and topic included. If columns were independent, the data would be one more
draw from the null, so exactly 5 % of the pairs would be expected outside its 95 % band.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from scipy.linalg.blas import ssyrk
from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

LATENTS = 500  # the most frequent of an SAE, whose pairs are tested

# with this many, beyond all of them on one side is a two-sided 5 %: (1 + 0)/(1 + 39) = 2.5 % a side
SHIFTS = 39


@dataclass(frozen=True)
class Pairs:
    """Means of products over tokens of every pair of columns, (pairs,), in the order of
    `numpy.triu_indices`.
    """

    observed_p: np.ndarray
    null_sp: np.ndarray  # the same after each of the shifts

    @property
    def above_p(self) -> np.ndarray:
        """Whether a pair goes together more than in its null's upper 2.5 %."""
        return _beyond((self.null_sp >= self.observed_p).sum(0), len(self.null_sp))

    @property
    def below_p(self) -> np.ndarray:
        """Whether a pair goes together less than in its null's lower 2.5 %."""
        return _beyond((self.null_sp <= self.observed_p).sum(0), len(self.null_sp))


def _beyond(as_extreme: np.ndarray, shifts: int = SHIFTS) -> np.ndarray:
    """Whether a pair lies in the outer 2.5 % of its null, of whose shifts so many are as extreme as
    it is.
    """
    return (1 + as_extreme) / (1 + shifts) <= 0.025


def paired(values_nm: Tensor, seed: int, shifts: int = SHIFTS) -> Pairs:
    """Every pair of columns, with its null.

    Args:
        values_nm: tokens in the order of the text, and at least two columns. Memory: (1 + shifts) ·
            m² / 2 numbers.
    Raises:
        ValueError: fewer than two columns, or fewer shifts than a 95 % band takes.
    """
    n, m = values_nm.shape
    if m < 2 or shifts < SHIFTS:
        raise ValueError(f"{m} columns and {shifts} shifts: expected at least 2 and {SHIFTS}")
    pair, columns_mn = np.triu_indices(m, 1), values_nm.T.contiguous().float()
    null = [_products(shifted_mn, pair) / n for shifted_mn in _shifted(columns_mn, seed, shifts)]
    return Pairs(_products(columns_mn, pair) / n, np.stack(null))


def _shifted(columns_mn: Tensor, seed: int, shifts: int) -> Iterator[Tensor]:
    """Draws from the null, (m, n) each, all in the same memory."""
    rng = np.random.default_rng(seed)
    m, n = columns_mn.shape
    drawn_mn = torch.empty_like(columns_mn)
    for _ in range(shifts):
        for drawn_n, column_n, by in zip(drawn_mn, columns_mn, rng.integers(0, n, m).tolist()):
            drawn_n[by:], drawn_n[:by] = column_n[: n - by], column_n[n - by :]
        yield drawn_mn


def made_independent(values_nm: Tensor, seed: int) -> Tensor:
    """A draw from the null, (n, m): every column as it was, in another place, so with nothing in
    common with the others.
    """
    (drawn_mn,) = _shifted(values_nm.T.contiguous(), seed, 1)
    return drawn_mn.T.contiguous()


def _products(rows_mn: Tensor, pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Sums of products over tokens of pairs of rows, the first above the second, (pairs,): half of
    a matrix product, at half its cost.
    """
    return ssyrk(1.0, rows_mn.contiguous().numpy().T, trans=1)[pair]


def mutual_information(
    joint_p: np.ndarray, first_p: np.ndarray, second_p: np.ndarray
) -> np.ndarray:
    """Of pairs of events, in nats, (pairs,), from the shares of tokens at which both, the first,
    and the second happen.
    """
    total_p = np.zeros(np.shape(joint_p))
    for cell_p, a_p, b_p in (
        (joint_p, first_p, second_p),
        (first_p - joint_p, first_p, 1 - second_p),
        (second_p - joint_p, 1 - first_p, second_p),
        (1 - first_p - second_p + joint_p, 1 - first_p, 1 - second_p),
    ):
        cell_p = np.maximum(cell_p, 0)  # a difference of rounded shares
        happens = cell_p > 0
        total_p[happens] += cell_p[happens] * np.log(cell_p[happens] / (a_p * b_p)[happens])
    return total_p


def coactivation(firing_nm: Tensor, document_n: np.ndarray, seed: int, bins: np.ndarray) -> dict:
    """Do latents fire independently?

    The shares without a long document are lower for its tokens alone, since fewer show less:
    intervals are, if anything, too wide.

    Args:
        firing_nm: whether latent m fires at token n, in the order of the text; each fires at least
            once and not always.
        document_n: of each token, in any numbers; a document's tokens stand together.
        bins: edges for the histograms of log₂ joint rate / product of marginal rates; what lies
            beyond is put into the last bins.
    Returns:
        outside, above, below: shares of pairs outside the null's 95 % band; by_document: of the
            first two, dictionaries of `value`, `without` (each document) and `ci95`, the
            jackknife's interval by Student's t; ratio_quantiles: 5, 25, 50, 75 and 95 % of
            joint/product; never_together: share of pairs; mutual_information and its null's, mean
            over pairs, nats; entropy: mean over latents, nats; histogram: shares of pairs a bin, of
            the data and of the null (pairs that never fire together are in the first).
    Raises:
        ValueError: a latent that never or always fires, or fewer than two documents.
    """
    rate_m, n = firing_nm.double().mean(0).numpy(), len(firing_nm)
    if not ((rate_m > 0) & (rate_m < 1)).all():
        raise ValueError("a latent fires nowhere or everywhere: expected those that do neither")
    observed_p, null_sp, above_dp, below_dp = _together(firing_nm, document_n, seed)
    first, second = np.triu_indices(len(rate_m), 1)
    product_p = rate_m[first] * rate_m[second]
    information = [
        mutual_information(counts_p / n, rate_m[first], rate_m[second]).mean()
        for counts_p in (observed_p, *null_sp)
    ]

    def histogram(counts: np.ndarray) -> list[float]:
        with np.errstate(divide="ignore"):  # pairs that never fire together: into the first bin
            logs = np.log2(counts / n / product_p)
        return (np.histogram(np.clip(logs, bins[0], bins[-1]), bins)[0] / logs.size).tolist()

    ratio, outside_dp = observed_p / n / product_p, above_dp | below_dp
    histograms = {"data": histogram(observed_p), "null": histogram(null_sp)}
    shares = {"outside": outside_dp, "above": above_dp, "below": below_dp}
    return {
        "latents": len(rate_m),
        "tokens": n,
        "pairs": len(ratio),
        "shifts": len(null_sp),
        **{key: float(share_dp[0].mean()) for key, share_dp in shares.items()},
        "by_document": {key: _jackknife(shares[key].mean(1)) for key in ("outside", "above")},
        "never_together": float((ratio == 0).mean()),
        "ratio_quantiles": np.quantile(ratio, QUANTILES).tolist(),
        "mutual_information": float(information[0]),
        "mutual_information_null": float(np.mean(information[1:])),
        "entropy": float(stats.entropy([rate_m, 1 - rate_m]).mean()),
        "rates": [float(rate_m.min()), float(rate_m.max())],
        "histogram": {"edges": np.asarray(bins).tolist(), **histograms},
    }


def _together(
    firing_nm: Tensor, document_n: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Joint firings of all pairs, (pairs,), those of the null, (shifts, pairs), and which pairs are
    above and below the null's band.

    The last two are (1 + documents, pairs): of all tokens, then without each document.
    """
    ends = np.flatnonzero(np.diff(document_n)) + 1
    if not len(ends):
        raise ValueError("one document: an interval by document needs at least two")
    pair, columns_mn = np.triu_indices(firing_nm.shape[1], 1), firing_nm.T.contiguous().float()

    def counts(rows_mn: Tensor) -> np.ndarray:
        parts = rows_mn.tensor_split(ends.tolist(), dim=1)
        counts_dp = np.stack([_products(part_mn, pair) for part_mn in parts]).astype(float)
        return np.concatenate([counts_dp.sum(0, keepdims=True), counts_dp.sum(0) - counts_dp])

    observed, null = counts(columns_mn), []
    more, less = np.zeros_like(observed), np.zeros_like(observed)
    for shifted_mn in _shifted(columns_mn, seed, SHIFTS):
        shifted = counts(shifted_mn)
        more += shifted >= observed
        less += shifted <= observed
        null.append(shifted[0])
    return observed[0], np.stack(null), _beyond(more), _beyond(less)


def _jackknife(share: np.ndarray) -> dict:
    """Interval of a share, from that of all documents and those without each."""
    (value, *without), n = share.tolist(), len(share) - 1
    reach = stats.t.ppf(0.975, n - 1) * np.sqrt((n - 1) ** 2 / n * np.var(without, ddof=1))
    ends = np.clip([value - reach, value + reach], 0, 1).tolist()
    return {"value": value, "without": without, "ci95": ends}


def _distance(values_n: np.ndarray) -> float:
    """Kolmogorov and Smirnov's from N(0, 1); exact p-values, unused, would be slow."""
    return float(stats.kstest(values_n, "norm", method="asymp").statistic)


def gaussianity(whitened_nd: Tensor, seed: int) -> dict:
    """How far are whitened coordinates from independent Gaussians?

    Args:
        whitened_nd: tokens in the order of the text; coordinates of any mean and scale.
    Returns:
        kurtosis: excess kurtosis of each coordinate, a Gaussian's is 0; distance: Kolmogorov and
            Smirnov's, of each coordinate with its mean and standard deviation taken out, from N(0,
            1); squares: of the correlations between squared coordinates, which are 0 between
            independent ones, the mean, its null's, and the share outside the null's 95 % band;
            norm_kurtosis: the excess kurtosis that each coordinate has left when every token is
            divided by its norm and so has the same one.
    """
    values_nd = stats.zscore(whitened_nd.double().numpy(), axis=0)
    squares_nd = stats.zscore(values_nd**2, axis=0)
    pairs = paired(torch.from_numpy(squares_nd), seed)
    directions_nd = values_nd / np.linalg.norm(values_nd, axis=1, keepdims=True)
    return {
        "kurtosis": stats.kurtosis(values_nd, axis=0).tolist(),
        "norm_kurtosis": stats.kurtosis(directions_nd, axis=0).tolist(),
        "distance": [_distance(column_n) for column_n in values_nd.T],
        "squares": {
            "correlation": float(pairs.observed_p.mean()),
            "correlation_null": float(pairs.null_sp.mean()),
            "outside": float((pairs.above_p | pairs.below_p).mean()),
            "above": float(pairs.above_p.mean()),
            "quantiles": np.quantile(pairs.observed_p, QUANTILES).tolist(),
        },
    }
