"""THE evaluator: losses of methods on the same tokens and the same noise, by level and document.

Every loss is made in one place, `token_losses`: z is noised to x = (1 − σ) z + σ ε, each method
estimates ẑ from (x, σ), and the squares of ẑ − z are averaged over dimensions and weighed as the
objective weighs the level. What follows is sums of these losses:

    methods, tokens = {"mine": denoiser, "gaussian": gaussian}, store.tokens("test")
    losses = evaluate(methods, tokens, "flow_velocity", per_level=1000, seed=0)
    losses.mean("mine"), loss_interval(losses, "mine")
    reduction_interval(losses, "mine", "gaussian")

Units: a loss is a mean over dimensions of standardised activations z, so 1 is the power of z. Means
are over the drawn tokens and the 100 levels of the evaluation grid (`mmlib.denoisers.noise`):
tokens weigh equally, long documents weigh more. Documents are the independent units of all
intervals (`mmlib.evaluation.intervals`).

Samples, which have no loss, are judged by their `frechet_distance` to real ones.

Letters of shapes: n tokens or draws, d dimensions, l levels, D or d documents (`sums_d`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmlib.activations.batches import spread_rows
from mmlib.activations.tokens import Tokens
from mmlib.denoisers.noise import Denoiser, Level, noise_process
from mmlib.evaluation.claim import CLAIM, verdict
from mmlib.evaluation.intervals import ratio_interval

LEAST_SIGMA, MOST_SIGMA = 0.05, 0.95  # mean losses are also given without the levels beyond
# (number of the level, level) → rows of the tokens drawn (n,) and their noise ε (n, d)
Draw = Callable[[int, Level], tuple[np.ndarray, Tensor]]


class DocumentLosses(NamedTuple):
    """Losses of one method by document: sums over (token, level) pairs, and how many there are,
    (documents,) each.

    Documents without any pair are left out.
    """

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


@dataclass(frozen=True)
class Losses:
    """Summed losses of one objective, by method, level and document.

    Args:
        sigma_l: noise levels, from clean to noisy.
        sums: by method, summed losses (levels, documents).
        counts_ld: tokens drawn, (levels, documents); the same for all methods, so they are paired.
    """

    sigma_l: np.ndarray
    sums: dict[str, np.ndarray]
    counts_ld: np.ndarray

    def __add__(self, other: "Losses") -> "Losses":
        """Of both sets of draws together: the same methods, levels and documents, other tokens."""
        sums = {name: self.sums[name] + other.sums[name] for name in self.sums}
        return Losses(self.sigma_l, sums, self.counts_ld + other.counts_ld)

    def curve(self, method: str) -> np.ndarray:
        """Mean loss at each level, (levels,)."""
        return self.sums[method].sum(1) / self.counts_ld.sum(1)

    def by_document(self, method: str) -> DocumentLosses:
        """Summed loss and number of (token, level) pairs of each document that has any."""
        present = self.counts_ld.sum(0) > 0
        return DocumentLosses(self.sums[method].sum(0)[present], self.counts_ld.sum(0)[present])

    def mean(self, method: str, levels: np.ndarray | slice = slice(None)) -> float:
        """Mean loss over tokens and the chosen levels."""
        return float(self.curve(method)[levels].mean())

    def reduction(
        self, method: str, baseline: str, levels: np.ndarray | slice = slice(None)
    ) -> float:
        """1 − L_method / L_baseline over tokens and the chosen levels."""
        return 1 - self.mean(method, levels) / self.mean(baseline, levels)


@dataclass(frozen=True)
class TokenLosses:
    """Losses of each method on each draw; a draw is one token with its noise at one level.

    Args:
        sigma_l: noise levels.
        rows_ln: which token each draw is of, (levels, draws).
        every: by method, it has seen every so manieth draw of each level, the first included.
        loss: by method, (levels, draws that it has seen).
    """

    sigma_l: np.ndarray
    rows_ln: np.ndarray
    every: dict[str, int]
    loss: dict[str, np.ndarray]

    def by_document(
        self,
        document_n: np.ndarray,
        methods: Iterable[str] | None = None,
        mask: np.ndarray | None = None,
    ) -> Losses:
        """Sums by level and document over the draws that all of the methods have seen.

        Args:
            document_n: number of each token's document; some in between may have no token.
            methods: left out: all.
            mask: which tokens count, (n,) bool; none are drawn in place of the others.
        Raises:
            ValueError: one method saw every 2nd draw, another every 3rd; or it is no such mask.
        """
        methods = list(self.loss if methods is None else methods)
        stride = max((self.every[name] for name in methods), default=1)
        if odd := [name for name in methods if stride % self.every[name]]:
            raise ValueError(
                f"{', '.join(odd)} saw every {self.every[odd[0]]}th draw, another method every "
                f"{stride}th: expected the first to divide the second"
            )
        if mask is not None and (mask.dtype, mask.shape) != (bool, document_n.shape):
            raise ValueError(
                f"mask of type {mask.dtype} and shape {mask.shape}: expected bool, "
                f"{document_n.shape}"
            )
        rows_ln, document_n = self.rows_ln[:, ::stride], document_n - document_n.min()
        n_documents = int(document_n.max()) + 1
        kept = [slice(None) if mask is None else mask[rows] for rows in rows_ln]
        document_ln = [document_n[rows[k]] for rows, k in zip(rows_ln, kept)]

        def sums(name: str) -> np.ndarray:
            seen_ln = self.loss[name][:, :: stride // self.every[name]]
            levels = zip(document_ln, seen_ln, kept)
            return np.stack(
                [np.bincount(document, loss_n[k], n_documents) for document, loss_n, k in levels]
            )

        counts = [np.bincount(document, minlength=n_documents) for document in document_ln]
        sums_ld = {name: sums(name) for name in methods}
        return Losses(self.sigma_l, sums_ld, np.stack(counts).astype(float))


def objective_loss(estimate_nd: Tensor, z_nd: Tensor, level: Level) -> np.ndarray:
    """The objective's loss of each estimate, (n,): weight · ‖ẑ − z‖²/d."""
    return level.weight * (estimate_nd - z_nd).double().square().mean(1).numpy()


def velocity_loss(estimate_nd: Tensor, z_nd: Tensor, level: Level) -> np.ndarray:
    """‖(z − ẑ)/σ‖²/d, (n,): flow matching's `objective_loss`, rounded before it is squared."""
    return ((z_nd - estimate_nd) / level.sigma).double().square().mean(1).numpy()


@torch.inference_mode()
def token_losses(
    methods: Mapping[str, Denoiser],
    z_nd: Tensor,
    levels: Sequence[Level],
    draw: Draw,
    *,
    every: Mapping[str, int] | None = None,
    batch: int | None = None,
    loss: Callable[[Tensor, Tensor, Level], np.ndarray] = objective_loss,
    progress: str | None = None,
) -> TokenLosses:
    """Noise, denoise, square: the loss of each method on each draw, all on the same tokens and the
    same noise.

    Args:
        methods: any callables (x (n, d), σ) → ẑ (n, d).
        z_nd: standardised activations.
        levels: noise levels in the order in which they are drawn.
        draw: gives the tokens of a level and their noise; as many at each level.
        every: methods that are slow see every so manieth draw.
        batch: at most so many rows are given to a method at once; None: all of a level.
        loss: `objective_loss` or `velocity_loss`.
        progress: what a progress bar says; None: there is none.
    """
    strides = {name: (every or {}).get(name, 1) for name in methods}
    rows, losses = [], {name: [] for name in methods}
    bar = tqdm(levels, desc=progress, unit="level", mininterval=2, disable=progress is None)
    for i, level in enumerate(bar):
        rows_n, noise_nd = draw(i, level)
        clean_nd = z_nd[rows_n]
        x_nd = (1 - level.sigma) * clean_nd + level.sigma * noise_nd
        rows.append(rows_n)
        for name, method in methods.items():
            seen_nd = x_nd[:: strides[name]]
            parts = seen_nd.split(batch or len(x_nd))
            estimate_nd = torch.cat([method(part_nd, level.sigma) for part_nd in parts])
            losses[name].append(loss(estimate_nd, clean_nd[:: strides[name]], level))
    sigma_l = np.array([level.sigma for level in levels])
    loss_ln = {name: np.stack(found) for name, found in losses.items()}
    return TokenLosses(sigma_l, np.stack(rows), strides, loss_ln)


def spread_draws(z_nd: Tensor, objective: str, per_level: int, seed: int) -> Draw:
    """Tokens spread evenly over all, and noise for them.

    A function of (seed, objective, number of the level), and of how many tokens there are and are
    drawn.
    """

    def draw(i: int, level: Level) -> tuple[np.ndarray, Tensor]:
        rng = np.random.default_rng([seed, i, len(objective)])
        rows_n = spread_rows(len(z_nd), per_level, rng)
        noise = rng.standard_normal((per_level, z_nd.shape[1]), dtype=np.float32)
        return rows_n, torch.from_numpy(noise)

    return draw


def grid_losses(
    methods: Mapping[str, Denoiser],
    z_nd: Tensor,
    objective: str,
    *,
    per_level: int,
    seed: int,
    every: Mapping[str, int] | None = None,
) -> TokenLosses:
    """Losses on the evaluation grid of one objective.

    Each level draws tokens and noise of its own, see `spread_draws`.

    Args:
        z_nd: standardised activations.
        per_level: tokens drawn at each of the 100 levels.
        every: slow methods see every so manieth of the drawn tokens.
    Raises:
        ValueError: there are fewer tokens than are drawn, or a stride does not divide `per_level`.
    """
    if odd := [name for name, stride in (every or {}).items() if stride < 1 or per_level % stride]:
        raise ValueError(
            f"{per_level} tokens a level, every {every[odd[0]]}th for {', '.join(odd)}: "
            "expected the second to divide the first"
        )
    return token_losses(
        methods,
        z_nd,
        noise_process(objective).grid(),
        spread_draws(z_nd, objective, per_level, seed),
        every=every,
        progress=f"losses on {objective}",
    )


def evaluate(
    methods: Mapping[str, Denoiser],
    tokens: Tokens,
    objective: str,
    *,
    per_level: int,
    seed: int,
    every: int = 1,
    mask: np.ndarray | None = None,
) -> Losses:
    """Losses of methods on the evaluation grid of one objective, summed by level and document.

    At each of the 100 levels `per_level` tokens are drawn, evenly spread over all, with noise of
    their own. All methods see the same tokens and noise. So a document's share of the draws is its
    share of the tokens, and a token may be drawn at several levels. The grid is σ = (i + ½)/100 for
    "flow_velocity" and t = 5, 15, …, 995 of 1000 for "ddpm_epsilon". Levels weigh equally in every
    mean.

    Args:
        methods: any callables (x (n, d), σ) → ẑ (n, d); x = (1 − σ) z + σ ε in any case.
        tokens: standardised activations (n, d) and the number of each one's document.
        objective: "flow_velocity" or "ddpm_epsilon".
        per_level: tokens drawn at each level.
        every: methods see only every so manieth of the tokens drawn, for methods that are slow.
        mask: which tokens count, (n,) bool; the others are drawn too, so draws stay what they are.
    Returns:
        `Losses`: sums and counts, (levels, documents).
    Raises:
        ValueError: there are fewer tokens than are drawn, or `every` does not divide `per_level`.

    The estimate 0 has the error z, so its velocity loss at σ is mean(z²)/σ²:

    >>> tokens = Tokens(torch.ones(600, 4), np.arange(600) // 100, np.arange(600) % 100)
    >>> zero = {"zero": lambda x_nd, sigma: 0 * x_nd}
    >>> losses = evaluate(zero, tokens, "flow_velocity", per_level=60, seed=0)
    >>> losses.sums["zero"].shape, round(float(losses.curve("zero")[50] * 0.505**2), 6)
    ((100, 6), 1.0)
    """
    strides = {name: every for name in methods}
    found = grid_losses(methods, tokens.z, objective, per_level=per_level, seed=seed, every=strides)
    return found.by_document(tokens.document, mask=mask)


def loss_interval(losses: Losses, method: str) -> tuple[float, float]:
    """Of the mean loss, 95 %."""
    return ratio_interval(*losses.by_document(method), positive=True)


def reduction_interval(
    losses: Losses, method: str, baseline: str, floor: float = 0.0
) -> tuple[float, float]:
    """Of 1 − (L_method − floor) / (L_baseline − floor), paired; the floor is below both."""
    (sums_d, counts_d), (baseline_d, _) = losses.by_document(method), losses.by_document(baseline)
    ours_d, theirs_d = sums_d - floor * counts_d, baseline_d - floor * counts_d
    low, high = ratio_interval(ours_d, theirs_d, positive=floor == 0)  # resamples may pass a floor
    return 1 - high, 1 - low


def without_extremes(losses: Losses) -> dict[str, np.ndarray]:
    """Which levels remain without the cleanest and without the noisiest, (levels,) each."""
    return {
        "without_sigma_below_0.05": losses.sigma_l >= LEAST_SIGMA,
        "without_sigma_above_0.95": losses.sigma_l <= MOST_SIGMA,
    }


def reduction_rows(
    losses: Losses, objective: str, methods: list[str], baselines: list[str]
) -> list[dict]:
    """1 − L_method / L_baseline with its paired interval, and the verdict on the claim."""
    inner = without_extremes(losses)
    rows = []
    for method, baseline in product(methods, baselines):
        interval = list(reduction_interval(losses, method, baseline))
        reduction, curve_l = losses.reduction(method, baseline), losses.curve(baseline)
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
                    f"reduction_{key}": losses.reduction(method, baseline, kept)
                    for key, kept in inner.items()
                },
                "baseline_share_of_one_level": float(curve_l.max() / curve_l.sum()),
                "verdict": verdict(*interval),
            }
        )
    return rows


def frechet_distance(a_nd: Tensor, b_nd: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½) (Dowson and Landau 1982), squared units
    of the inputs.

    Raises:
        ValueError: a set has no more rows than dimensions, so its covariance is not determined.
    """
    d = a_nd.shape[1]
    if min(len(a_nd), len(b_nd)) <= d:
        raise ValueError(
            f"sets of {len(a_nd)} and {len(b_nd)} rows in {d} dimensions: expected more rows than "
            "dimensions"
        )
    a_nd, b_nd = a_nd.double(), b_nd.double()
    cov_a, cov_b = torch.cov(a_nd.T).reshape(d, d), torch.cov(b_nd.T).reshape(d, d)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    return float(
        (a_nd.mean(0) - b_nd.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    )
