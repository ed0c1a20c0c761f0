"""How typical is an activation: scores of tokens, and how well a score tells two sets of tokens
apart.

A score is the larger the less typical it takes a token to be. That direction is fixed before any
data are seen: where a shifted set is *more* typical by a score than the reference is, its AUROC
lies below one half and is reported so. Noise is a function of (seed, σ, draw, token), so every
method meets the same, in whatever company a token is scored.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from mmlib.activations.tokens import Tokens
from mmlib.denoisers.gaussian import GaussianDenoiser
from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.denoisers.noise import SMOOTHING, Denoiser, Level
from mmlib.evaluation.intervals import bootstrap_interval, p_value
from mmlib.evaluation.losses import token_losses, velocity_loss

NEIGHBOUR = 10  # the distance to this one


AT_ONCE = 2000  # tokens scored together


SHADE = 0.6  # of the colour map, for a token above all: black type stays legible


def token_noise(tokens: Tokens, sigma: float, draw: int, seed: int) -> Tensor:
    """Standard normal noise (n, d): that of a token is a function of (seed, σ, draw, document,
    position).
    """
    rows = []
    for document, position in zip(tokens.document, tokens.position):
        rng = np.random.default_rng([seed, round(sigma * 1e9), draw, int(document), int(position)])
        rows.append(rng.standard_normal(tokens.z.shape[1], dtype=np.float32))
    return torch.from_numpy(np.stack(rows))


def denoising_losses(
    denoisers: Mapping[str, Denoiser],
    tokens: Tokens,
    sigmas: Sequence[float],
    draws: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """‖(z − ẑ)/σ‖²/d, the velocity loss of each token at each σ, mean over the draws: (n, sigmas)
    of each denoiser, on the same noise.
    """
    levels, all_n = [Level(sigma, 1 / sigma**2) for sigma in sigmas], np.arange(len(tokens))
    totals = {name: np.zeros((len(tokens), len(sigmas))) for name in denoisers}
    for number in range(draws):

        def noised(i: int, level: Level) -> tuple[np.ndarray, Tensor]:
            return all_n, token_noise(tokens, level.sigma, number, seed)

        measure = {"batch": AT_ONCE, "loss": velocity_loss}
        found = token_losses(denoisers, tokens.z, levels, noised, **measure)
        for name, loss_ln in found.loss.items():
            totals[name] += loss_ln.T / draws
    return {name: checked(name, total) for name, total in totals.items()}


def mahalanobis(gaussian: GaussianDenoiser, z_nd: Tensor) -> np.ndarray:
    """(z − μ)ᵀ Σ⁻¹ (z − μ)/d, (n,): on the Gaussian's own draws a χ² of d degrees of freedom over
    d. Its order is that of −log density.
    """
    scores_nd = (z_nd - gaussian.mean_d) @ gaussian.basis_dd
    return (scores_nd.square() / gaussian.eigenvalues_d).mean(1, dtype=torch.double).numpy()


@torch.inference_mode()
def residual(reconstruct: Denoiser, z_nd: Tensor) -> np.ndarray:
    """‖z − ẑ‖²/d of what a method makes of clean z, (n,)."""
    estimate_nd = torch.cat([reconstruct(part_nd, 0.0) for part_nd in z_nd.split(AT_ONCE)])
    return (z_nd - estimate_nd).double().square().mean(1).numpy()


def surprise(
    density: GaussianDenoiser | GaussianMixtureDenoiser, tokens: Tokens, seed: int
) -> np.ndarray:
    """−log p(x) of activations smoothed at σ₀ (see `mmlib.denoisers.noise`), nats per dimension,
    (n,).
    """
    x_nd = (1 - SMOOTHING) * tokens.z + SMOOTHING * token_noise(tokens, SMOOTHING, 0, seed)
    parts = [density.log_density(part_nd, SMOOTHING) for part_nd in x_nd.split(AT_ONCE)]
    return -torch.cat(parts).numpy()


class NeighbourDistance:
    """Distance of z to the tenth nearest of some training activations (Sun et al. 2022, without
    their scaling to unit length).
    """

    def __init__(self, z_train_nd: Tensor):
        neighbours = NearestNeighbors(n_neighbors=NEIGHBOUR, algorithm="brute")
        self._found = neighbours.fit(z_train_nd.numpy())

    def __call__(self, z_nd: Tensor) -> np.ndarray:
        """(n,)."""
        return self._found.kneighbors(z_nd.numpy())[0][:, -1].astype(np.float64)


def checked(name: str, scores: np.ndarray) -> np.ndarray:
    """The scores as they are.

    Raises:
        ValueError: some are not finite, so that they have no order.
    """
    if wrong := int((~np.isfinite(scores)).reshape(len(scores), -1).any(1).sum()):
        found = f"score {name!r} is not finite on {wrong} of {len(scores)} tokens"
        raise ValueError(f"{found}: they cannot be ranked")
    return scores


def ranks_among(scores_n: np.ndarray, known_m: np.ndarray) -> np.ndarray:
    """Share of the known scores that a score is above, ties counted half, (n,): 0.95 where 5 % of
    them are larger.
    """
    known_m = np.sort(known_m)
    below_n, up_to_n = (np.searchsorted(known_m, scores_n, side) for side in ("left", "right"))
    return (below_n + up_to_n) / 2 / len(known_m)


@dataclass(frozen=True)
class Separation:
    """The area under the ROC curve of a score, from the pairs that each pair of documents gives.

    AUROC = P(shifted > reference) + ½ P(equal) over pairs of a shifted and a reference token.
    """

    wins_ab: np.ndarray  # such pairs of a tokens of one document and b of another
    sizes_a: np.ndarray  # tokens of each reference document
    sizes_b: np.ndarray  # and of each shifted one
    same_documents: bool  # sets of the same documents, in the same order: resampled together

    @classmethod
    def of(
        cls,
        reference_n: np.ndarray,
        reference_document_n: np.ndarray,
        shifted_m: np.ndarray,
        shifted_document_m: np.ndarray,
        same_documents: bool = False,
    ) -> "Separation":
        """From scores and documents of tokens."""
        theirs_n, ours_m = checked("reference", reference_n)[:, None], checked("shifted", shifted_m)
        above_nm = (ours_m > theirs_n) + 0.5 * (ours_m == theirs_n)
        both = (reference_document_n, shifted_document_m)
        names = [np.union1d(*both)] * 2 if same_documents else [np.unique(one) for one in both]
        of_an, of_bm = (
            (documents == names_a[:, None]).astype(np.float64)
            for documents, names_a in zip(both, names)
        )
        return cls(of_an @ above_nm @ of_bm.T, of_an.sum(1), of_bm.sum(1), same_documents)

    @property
    def groups(self) -> tuple[int, ...]:
        """Documents that are resampled, for themselves or together."""
        sizes = (len(self.sizes_a), len(self.sizes_b))
        return sizes[:1] if self.same_documents else sizes

    def auroc(self, weights_rd: np.ndarray) -> np.ndarray:
        """AUROC with documents weighed, (…,)."""
        a = len(self.sizes_a)
        w, v = weights_rd[..., :a], weights_rd if self.same_documents else weights_rd[..., a:]
        return ((w @ self.wins_ab) * v).sum(-1) / ((w @ self.sizes_a) * (v @ self.sizes_b))

    def value(self) -> float:
        """AUROC of the documents as they are."""
        return float(self.auroc(np.ones(sum(self.groups))))

    def row(self) -> dict:
        """`auroc` and its 95 % interval by document, cut to [0, 1]; it has no width where every
        pair of documents is told apart wholly.
        """
        low, high = bootstrap_interval(self.auroc, self.groups)
        return {"auroc": self.value(), "ci95": [max(0.0, low), min(1.0, high)]}


def difference(ours: Separation, theirs: Separation) -> dict:
    """AUROC of one score less that of another on the same tokens, its interval, and the p-value of
    no difference.

    The p-value is that of the same test that the interval inverts, see
    `mmlib.evaluation.intervals`.
    """

    def statistic(weights_rd: np.ndarray) -> np.ndarray:
        return ours.auroc(weights_rd) - theirs.auroc(weights_rd)

    return {
        "difference": ours.value() - theirs.value(),
        "ci95": list(bootstrap_interval(statistic, ours.groups)),
        "p": p_value(statistic, ours.groups),
    }


def by_document(scores_n: np.ndarray, document_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean score of each document, the documents)."""
    names, of_n = np.unique(document_n, return_inverse=True)
    return np.bincount(of_n, scores_n) / np.bincount(of_n), names


def coloured_text(strings: Sequence[str], share_n: np.ndarray, title: Callable[[int], str]) -> str:
    """HTML of a text whose tokens are the darker the less typical they are; nothing in the tokens
    is taken for HTML.

    Args:
        share_n: from 0 to 1.
        title: what is shown when the pointer rests on a token.
    """
    spans = []
    for i, (string, share) in enumerate(zip(strings, share_n, strict=True)):
        colour = to_hex(colormaps["Oranges"](SHADE * float(share)))
        spans.append(
            f'<span style="background:{colour};color:#000" title="{html.escape(title(i), quote=True)}">{html.escape(string)}</span>'
        )
    return f'<div style="white-space:pre-wrap;font-family:monospace;line-height:1.5">{"".join(spans)}</div>'
