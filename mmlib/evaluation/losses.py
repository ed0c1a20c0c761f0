"""The loss comparison: every method on one denoising objective, on the same tokens and the same noise, with intervals.

Losses are means over a sample of the test tokens and the 100 levels of the evaluation grid, so tokens weigh equally and long
documents weigh more. Documents are the independent units; intervals are those of `mmlib.evaluation.intervals`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmlib.activations.batches import spread_rows
from mmlib.denoisers.gaussian import GaussianDenoiser
from mmlib.denoisers.noise import Denoiser, noise_process
from mmlib.evaluation.claim import CLAIM, verdict
from mmlib.evaluation.intervals import bootstrap_interval

LEAST_SIGMA, MOST_SIGMA = 0.05, 0.95  # mean losses are also given without the levels beyond


@dataclass(frozen=True)
class Losses:
    """Summed losses of one objective, by method, level and test document."""

    sigma_l: np.ndarray
    sums: dict[str, np.ndarray]  # (levels, documents)
    counts_ld: np.ndarray  # tokens

    def curve(self, method: str) -> np.ndarray:
        """Mean loss at each level, (levels,)."""
        return self.sums[method].sum(1) / self.counts_ld.sum(1)

    def by_document(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """(summed loss, number of (token, level) pairs) of each document that has any, two (documents,)."""
        present = self.counts_ld.sum(0) > 0
        return self.sums[method].sum(0)[present], self.counts_ld.sum(0)[present]

    def mean(self, method: str, levels: np.ndarray | slice = slice(None)) -> float:
        """Mean loss over tokens and the chosen levels."""
        return float(self.curve(method)[levels].mean())


@torch.inference_mode()
def evaluate(
    methods: Mapping[str, Denoiser],
    slow_methods: Mapping[str, Denoiser],
    objective: str,
    z_nd: Tensor,
    document_n: np.ndarray,
    *,
    tokens: int,
    common_tokens: int,
    seed: int,
) -> tuple[Losses, Losses]:
    """Losses of all methods on the evaluation grid of one objective.

    Each level draws its own `tokens` test tokens, evenly spread, and noise for them; all methods see the same. Slow methods see
    only every (tokens / common_tokens)-th of them.

    Args:
        z_nd: standardised activations of the test documents.
        document_n: index of each one's document, from 0.
    Returns:
        (losses of `methods` on every token drawn, losses of both kinds on the common subset).
    Raises:
        ValueError: `common_tokens` does not divide `tokens`, or there are fewer test tokens.
    """
    if tokens % common_tokens or tokens > len(z_nd):
        raise ValueError(
            f"{tokens} tokens a level, {common_tokens} in common, {len(z_nd)} in the test documents: expected the "
            "second to divide the first and the first not to exceed the third"
        )
    grid, n_documents, stride = (
        noise_process(objective).grid(),
        int(document_n.max()) + 1,
        tokens // common_tokens,
    )
    everyone = {**methods, **slow_methods}
    full = Losses(
        np.array([level.sigma for level in grid]),
        {m: np.zeros((len(grid), n_documents)) for m in methods},
        np.zeros((len(grid), n_documents)),
    )
    common = Losses(
        full.sigma_l,
        {m: np.zeros((len(grid), n_documents)) for m in everyone},
        np.zeros_like(full.counts_ld),
    )
    for i, level in enumerate(
        tqdm(grid, desc=f"comparing on {objective}", unit="level", mininterval=2)
    ):
        rng = np.random.default_rng([seed, i, len(objective)])
        rows = spread_rows(len(z_nd), tokens, rng)
        clean_nd, documents = z_nd[rows], document_n[rows]
        noise_nd = torch.from_numpy(rng.standard_normal(clean_nd.shape, dtype=np.float32))
        x_nd = (1 - level.sigma) * clean_nd + level.sigma * noise_nd
        full.counts_ld[i] = np.bincount(documents, minlength=n_documents)
        common.counts_ld[i] = np.bincount(documents[::stride], minlength=n_documents)
        for name, method in everyone.items():
            seen = slice(None, None, stride if name in slow_methods else 1)
            loss_n = (
                level.weight
                * (method(x_nd[seen], level.sigma) - clean_nd[seen])
                .double()
                .square()
                .mean(1)
                .numpy()
            )
            if name in methods:
                full.sums[name][i] = np.bincount(documents, loss_n, n_documents)
                loss_n = loss_n[::stride]
            common.sums[name][i] = np.bincount(documents[::stride], loss_n, n_documents)
    return full, common


def loss_interval(losses: Losses, method: str) -> tuple[float, float]:
    """Of the mean loss."""
    sums_d, counts_d = losses.by_document(method)
    return bootstrap_interval(lambda w: (w @ sums_d) / (w @ counts_d), len(counts_d), positive=True)


def reduction_interval(
    losses: Losses, method: str, baseline: str, floor: float = 0.0
) -> tuple[float, float]:
    """Of 1 − (L_method − floor) / (L_baseline − floor), paired. The floor lies below both losses."""
    (sums_d, counts_d), (baseline_d, _) = losses.by_document(method), losses.by_document(baseline)
    ours_d, theirs_d = sums_d - floor * counts_d, baseline_d - floor * counts_d
    low, high = bootstrap_interval(
        lambda w: (w @ ours_d) / (w @ theirs_d), len(counts_d), positive=floor == 0
    )  # resamples may pass a floor
    return 1 - high, 1 - low


def loss_rows(losses: Losses, objective: str, budgets: Mapping[str, dict]) -> list[dict]:
    """One row a method: loss with interval, the loss without extreme levels, the mean over documents, and the budget."""
    inner_low, inner_high = losses.sigma_l >= LEAST_SIGMA, losses.sigma_l <= MOST_SIGMA
    rows = []
    for method in losses.sums:
        sums_d, counts_d = losses.by_document(method)
        rows.append(
            {
                "objective": objective,
                "method": method,
                "loss": losses.mean(method),
                "ci95": list(loss_interval(losses, method)),
                "loss_without_sigma_below_0.05": losses.mean(method, inner_low),
                "loss_without_sigma_above_0.95": losses.mean(method, inner_high),
                "loss_documents_equal": float((sums_d / counts_d).mean()),
                **budgets[method],
            }
        )
    return rows


def reduction_rows(
    losses: Losses, objective: str, methods: list[str], baselines: list[str]
) -> list[dict]:
    """1 − L_method / L_baseline with its paired interval, the same without the lowest noise, and the verdict on the claim."""
    rows = []
    without = {
        "below_0.05": losses.sigma_l >= LEAST_SIGMA,
        "above_0.95": losses.sigma_l <= MOST_SIGMA,
    }
    for method in methods:
        for baseline in baselines:
            interval, reduction = (
                list(reduction_interval(losses, method, baseline)),
                1 - losses.mean(method) / losses.mean(baseline),
            )
            rows.append(
                {
                    "objective": objective,
                    "method": method,
                    "baseline": baseline,
                    "reduction": reduction,
                    "ci95": interval,
                    "claim": CLAIM,
                    "above_claim": reduction - CLAIM,
                    **{
                        f"reduction_without_sigma_{key}": 1
                        - losses.mean(method, kept) / losses.mean(baseline, kept)
                        for key, kept in without.items()
                    },
                    "baseline_share_of_one_level": float(
                        losses.curve(baseline).max() / losses.curve(baseline).sum()
                    ),
                    "verdict": verdict(*interval),
                }
            )
    return rows


def closed_form_check(
    losses: Losses, gaussian: GaussianDenoiser, objective: str, z_nd: Tensor, document_n: np.ndarray
) -> dict:
    """The Gaussian's sampled loss (method "gaussian") beside its closed form on all test tokens, exact over the noise.

    The Monte-Carlo error comes of the noise and of which tokens are drawn, not of which documents there are, so it is taken from how far each
    document's sampled loss departs from that document's own closed form. Clusters are the tokens of one document at one level, for each level
    draws anew; their departures have mean 0, and are not centred. Whole documents as clusters would not do: with few and unequal ones z is
    bounded by the root of their effective number, or, with departures centred, too often large.

    Args:
        z_nd, document_n: all activations of the test documents, as given to `evaluate`.
    Returns:
        sampled, closed_form, relative_difference, standard_error of the difference, z: the difference in standard errors.
    """
    grid, tokens_d = (
        noise_process(objective).grid(),
        np.bincount(document_n, minlength=losses.counts_ld.shape[1]),
    )
    exact_ld = np.zeros(losses.counts_ld.shape)
    for document in np.flatnonzero(tokens_d):
        power_d = (
            ((z_nd[document_n == document] - gaussian.mean_d) @ gaussian.basis_dd)
            .double()
            .square()
            .mean(0)
        )
        exact_ld[:, document] = [
            level.weight * gaussian.expected_mse(level.sigma, power_d) for level in grid
        ]
    sampled, exact = (
        losses.mean("gaussian"),
        float((exact_ld.mean(0) * tokens_d).sum() / tokens_d.sum()),
    )
    departure_ld = losses.sums["gaussian"] - losses.counts_ld * exact_ld
    error = float(np.sqrt((departure_ld**2).sum()) / losses.counts_ld.sum())
    return {
        "sampled": sampled,
        "closed_form": exact,
        "relative_difference": sampled / exact - 1,
        "standard_error": error,
        "z": (sampled - exact) / error,
    }


@dataclass(frozen=True)
class DocumentLosses:
    """Losses of one denoiser, summed over (token, level) pairs, and the number of these: (documents,) each, none without any."""

    sums_d: np.ndarray
    counts_d: np.ndarray

    @property
    def mean(self) -> float:
        """Mean loss over tokens and levels."""
        return float(self.sums_d.sum() / self.counts_d.sum())

    def as_json(self) -> dict[str, list[float]]:
        """For results; `DocumentLosses.of_json` reads it."""
        return {"sums": self.sums_d.tolist(), "counts": self.counts_d.tolist()}

    @classmethod
    def of_json(cls, stored: Mapping[str, list[float]]) -> "DocumentLosses":
        """What `as_json` gave."""
        return cls(np.array(stored["sums"]), np.array(stored["counts"]))


@torch.inference_mode()
def losses_by_document(
    denoisers: Mapping[str, Denoiser],
    objective: str,
    z_nd: Tensor,
    document_n: np.ndarray,
    *,
    tokens: int,
    seed: int,
) -> dict[str, DocumentLosses]:
    """Losses on the evaluation grid, of the tokens and the noise that `compare.evaluate` would draw; all denoisers see the same.

    Args:
        z_nd: standardised activations.
        document_n: index of each one's document, from 0.
        tokens: at each level, evenly spread.
    Raises:
        ValueError: there are fewer activations.
    """
    grid, n_documents = noise_process(objective).grid(), int(document_n.max()) + 1
    counts_d, sums = np.zeros(n_documents), {name: np.zeros(n_documents) for name in denoisers}
    for i, level in enumerate(
        tqdm(grid, desc=f"losses on {objective}", unit="level", mininterval=2)
    ):
        rng = np.random.default_rng([seed, i, len(objective)])
        rows = spread_rows(len(z_nd), tokens, rng)
        noise_nd = torch.from_numpy(rng.standard_normal((tokens, z_nd.shape[1]), dtype=np.float32))
        x_nd = (1 - level.sigma) * z_nd[rows] + level.sigma * noise_nd
        counts_d += np.bincount(document_n[rows], minlength=n_documents)
        for name, denoiser in denoisers.items():
            loss_n = (
                level.weight
                * (denoiser(x_nd, level.sigma) - z_nd[rows]).double().square().mean(1).numpy()
            )
            sums[name] += np.bincount(document_n[rows], loss_n, n_documents)
    present = counts_d > 0
    return {
        name: DocumentLosses(sums_d[present], counts_d[present]) for name, sums_d in sums.items()
    }
