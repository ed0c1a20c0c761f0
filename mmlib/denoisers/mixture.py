"""A mixture of Gaussians, each with a covariance of its own: a density whose posterior mean has a
closed form.

For z ~ Σ_k w_k N(μ_k, Σ_k) and x = a z + σ ε, a = 1 − σ, component k holds x with probability r_k ∝
w_k N(x; a μ_k, a² Σ_k + σ² I), and E[z | x] = Σ_k r_k E_k[z | x], the components' own posterior
means weighed by it. Only components that may count for a token are computed: most are ruled out by
a bound (`_possible`), as negligible beside that of the nearest mean.

It is fitted by scikit-learn's k-means, a Gaussian for each cluster, and a few steps of expectation
maximisation (EM) with two economies. In hundreds of dimensions almost every r_k is 0 or 1, so a
token counts for its most probable component only. And that one is sought among the components whose
means are nearest (truncated EM, Lücke and Forster 2019). scikit-learn's own EM weighs every
component for every token, which at the sizes of the `default` preset takes minutes a step, and has
no prior that keeps small components' covariances apart from singular. Here each is drawn towards
the covariance within components, W: Σ_k = (S_k + ν W)/(n_k + ν) with the scatter S_k of the
component's n_k tokens, as if ν more had been seen (a conjugate prior, as in Fraley and Raftery
2007).
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from tqdm import tqdm

from mmlib.denoisers.gaussian import GaussianDenoiser, SavedFit
from mmlib.denoisers.noise import SMOOTHING, smoothed


@dataclass(frozen=True)
class MixtureSize:
    """A mixture of Gaussians and what is tried for it on validation documents; see
    `mmlib.denoisers.mixture.fit_mixture`.
    """

    # fewer were less likely throughout; notebook 02 says whether the last is the best
    components: tuple[int, ...] = (128, 256)
    priors: tuple[float, ...] = (32.0, 128.0, 512.0)  # strengths ν, in tokens
    em_steps: int = 2  # of the best, after k-means
    validation_tokens: int = 4000


NEGLIGIBLE = 1e-9  # a component of smaller probability changes no digit of a float32 estimate
SEEN = (0.2, 0.4)  # of a component's axes, when rows are first passed over, and when they are next
LEAST_VARIANCE = 1e-4  # of z along an eigenvector; the smoothing at σ₀ adds four times as much
NEAREST = 4  # means among whose components a token's most probable one is sought
KMEANS_BATCH = 4096


@dataclass(frozen=True)
class GaussianMixtureDenoiser(SavedFit):
    """Posterior mean and density under Σ_k w_k N(μ_k, Σ_k); the Σ_k by eigenvectors, in columns,
    and eigenvalues, which ascend.
    """

    names = ("log_weights", "mean_d", "basis_dd", "eigenvalues_d")
    log_weights_k: Tensor
    mean_kd: Tensor
    basis_kdd: Tensor
    eigenvalues_kd: Tensor
    train_seconds: float | None = None  # of the fit and the choice; None: not known
    train_activations: int | None = None  # that the fit saw

    @classmethod
    def of(
        cls, log_weights_k: Tensor, components: Sequence[GaussianDenoiser]
    ) -> "GaussianMixtureDenoiser":
        """Of Gaussians, by their weights."""
        parts = ([getattr(one, name) for one in components] for name in cls.names[1:])
        return cls(log_weights_k, *map(torch.stack, parts))

    @cached_property
    def components(self) -> tuple[GaussianDenoiser, ...]:
        """Its Gaussians, which share its memory."""
        parts = zip(self.mean_kd, self.basis_kdd, self.eigenvalues_kd)
        return tuple(full_gaussian(*part) for part in parts)

    @property
    def parameters(self) -> int:
        """Free numbers: those of each component, and the weights, whose sum is 1."""
        return len(self.components) - 1 + sum(component.parameters for component in self.components)

    def _possible(
        self, k: int, x_nd: Tensor, sigma: float, squares_n: Tensor, least_n: Tensor
    ) -> Tensor | slice:
        """Rows, among them all in which log w_k + log N(x; a μ_k, a² Σ_k + σ² I) reaches `least_n`.

        Seen along the axes of most variance only. Along the rest of them variances are at most v,
        so that what these axes leave of the squared distance from a μ_k, `squares_n`, counts at
        least 1/v.
        """
        component, rows, d = self.components[k], slice(None), x_nd.shape[1]
        variance_d = (1 - sigma) ** 2 * component.eigenvalues_d + sigma**2
        log_volume = (2 * math.pi * variance_d).log().sum(dtype=torch.double)
        highest = self.log_weights_k[k].double() - log_volume / 2
        for share in SEEN:
            first = d - int(share * d)  # eigenvalues ascend
            axes_dp = component.basis_dd[:, first:]
            centre_p = (1 - sigma) * (component.mean_d @ axes_dp)
            squares_mp = (x_nd[rows] @ axes_dp - centre_p).square()
            left_m = (squares_n[rows] - squares_mp.sum(1)).clamp(min=0)
            seen_m = (squares_mp / variance_d[first:]).sum(1, dtype=torch.double)
            distance_m = seen_m + left_m / variance_d[:first].max()
            kept_m = highest - distance_m / 2 >= least_n[rows]
            if _most(kept_m):
                break
            rows = torch.arange(len(x_nd))[rows][kept_m]
        return rows

    def _likely(
        self, x_nd: Tensor, sigma: float
    ) -> Iterator[tuple[int, Tensor | slice, Tensor, Tensor]]:
        """Each component with rows, among them all in which it is not negligible beside that of the
        nearest mean.

        Yields:
            its number k, those rows, their coordinates along its axes (m, d), and log w_k + log
            N(x; a μ_k, a² Σ_k + σ² I) in nats (m,).
        """

        def joint(k: int, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
            component, d = self.components[k], x_nd.shape[1]
            scores_md = component.scores(x_nd[rows], sigma)
            log_density_m = d * component.score_density(scores_md, sigma)
            return scores_md, log_density_m + self.log_weights_k[k].double()

        means_kd = (1 - sigma) * self.mean_kd
        squares_nk = torch.cdist(x_nd.detach().double(), means_kd.double()).square()
        nearest_n, least_n = squares_nk.argmin(1), torch.empty(len(x_nd), dtype=torch.double)
        for k in nearest_n.unique().tolist():
            rows = (nearest_n == k).nonzero()[:, 0]
            least_n[rows] = joint(k, rows)[1].detach() + math.log(NEGLIGIBLE)
        for k in range(len(self.components)):
            rows = self._possible(k, x_nd.detach(), sigma, squares_nk[:, k], least_n)
            scores_md, joint_m = joint(k, rows)
            if not _most(kept_m := joint_m >= least_n[rows]):
                rows = torch.arange(len(x_nd))[rows][kept_m]
                scores_md, joint_m = scores_md[kept_m], joint_m[kept_m]
            yield k, rows, scores_md, joint_m

    def _joint(self, x_nd: Tensor, sigma: float) -> Tensor:
        """log w_k + log N(x; a μ_k, a² Σ_k + σ² I) in nats, (n, k), double; −∞ where it is
        negligible.
        """
        joint_nk = torch.full((len(x_nd), len(self.components)), -math.inf, dtype=torch.double)
        for k, rows, _, joint_m in self._likely(x_nd, sigma):
            joint_nk[rows, k] = joint_m
        return joint_nk

    def log_density(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Natural logarithm of the density of x = (1 − σ) z + σ ε, per dimension, (n,), double."""
        return self._joint(x_nd, sigma).logsumexp(1) / x_nd.shape[1]

    def responsibilities(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Probability of each component given x = (1 − σ) z + σ ε, (n, k), double."""
        return self._joint(x_nd, sigma).softmax(1)

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """E[z | x], (n, d)."""
        # shares are of the largest so far: no exponential overflows
        most_n = torch.full((len(x_nd),), -math.inf, dtype=torch.double)
        total_n, estimate_nd = torch.zeros_like(x_nd[:, 0]), torch.zeros_like(x_nd)
        for k, rows, scores_md, joint_m in self._likely(x_nd, sigma):
            most_m = most_n[rows].maximum(joint_m)
            logs = (most_n[rows], joint_m)
            before_m, share_m = ((log_m - most_m).exp().to(x_nd.dtype) for log_m in logs)
            new_md = share_m[:, None] * self.components[k].estimate(scores_md, sigma)
            estimate_nd[rows] = before_m[:, None] * estimate_nd[rows] + new_md
            most_n[rows], total_n[rows] = most_m, before_m * total_n[rows] + share_m
        return estimate_nd / total_n[:, None]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws from the mixture, (n, d), in random order of components."""
        weights_k = self.log_weights_k.exp()
        component_n = torch.multinomial(weights_k, n, replacement=True, generator=generator)
        z_nd = torch.empty(n, self.mean_kd.shape[1])
        for k, component in enumerate(self.components):
            rows = (component_n == k).nonzero()[:, 0]
            z_nd[rows] = component.sample(len(rows), generator)
        return z_nd

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers, each stacked over components, by name."""
        stacked = (self.log_weights_k, self.mean_kd, self.basis_kdd, self.eigenvalues_kd)
        return dict(zip(self.names, stacked))

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], **cost) -> "GaussianMixtureDenoiser":
        """What `tensors` gave."""
        return cls(*(tensors[name] for name in cls.names), **cost)


def _most(kept_m: Tensor) -> bool:
    """Whether choosing these rows would cost more, by the copy, than the others do."""
    return float(kept_m.float().mean()) > 0.9


def full_gaussian(mean_d: Tensor, basis_dd: Tensor, eigenvalues_d: Tensor) -> GaussianDenoiser:
    """A Gaussian whose mean and covariance are all free."""
    d = len(mean_d)
    return GaussianDenoiser(mean_d, basis_dd, eigenvalues_d, d + d * (d + 1) // 2)


@dataclass(frozen=True)
class ClusterMoments:
    """Counts, means and scatter matrices of clusters."""

    count_k: Tensor
    mean_kd: Tensor
    scatter_kdd: Tensor  # Σ (z − μ_k)(z − μ_k)ᵀ

    @classmethod
    def of(cls, z_nd: Tensor, label_n: Tensor) -> "ClusterMoments":
        """Of activations by their cluster's number."""
        moments = [cls._of_one(z_nd[label_n == label]) for label in label_n.unique()]
        return cls(*(torch.stack(one) for one in zip(*moments)))

    @staticmethod
    def _of_one(z_nd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean_d = z_nd.mean(0)
        centred_nd = z_nd - mean_d
        return torch.tensor(len(z_nd)), mean_d, centred_nd.T @ centred_nd

    def mixture(self, prior: float) -> GaussianMixtureDenoiser:
        """A Gaussian for each, its covariance drawn towards that within clusters as if `prior` (ν)
        tokens more had been seen.
        """
        n, within_dd = self.count_k.sum(), self.scatter_kdd.sum(0) / self.count_k.sum()

        basis_kdd, eigenvalues_kd = torch.empty_like(self.scatter_kdd), self.mean_kd.clone()
        for k, count in enumerate(self.count_k):
            covariance_dd = (self.scatter_kdd[k] + prior * within_dd) / (count + prior)
            eigenvalues_d, basis_kdd[k] = torch.linalg.eigh(covariance_dd)
            eigenvalues_kd[k] = eigenvalues_d.clamp(min=LEAST_VARIANCE)
        log_weights_k = (self.count_k / n).log()
        return GaussianMixtureDenoiser(log_weights_k, self.mean_kd, basis_kdd, eigenvalues_kd)


def fit_mixture(
    z_train_nd: Tensor, z_validation_nd: Tensor, size: MixtureSize, *, seed: int
) -> tuple[GaussianMixtureDenoiser, list[dict]]:
    """Fit to training documents; choose on validation documents, by the mean log-density of
    smoothed activations.

    Every number of components is tried with every strength of the prior after k-means; the best is
    taken on by EM.

    Args:
        z_train_nd: standardised activations.
        z_validation_nd: of validation documents, a few thousand, spread evenly over them.
    Returns:
        (the best of all that were tried, what was tried: dictionaries of components, prior,
        em_steps, nats_per_dimension and least_tokens,
        of the smallest component: where these are fewer than dimensions, its covariance is mostly
            the prior's).
    Raises:
        ValueError: fewer training activations than dimensions or components.
    """
    if len(z_train_nd) <= max(z_train_nd.shape[1], *size.components):
        raise ValueError(
            f"{len(z_train_nd)} activations cannot determine {max(size.components)} components in "
            f"{z_train_nd.shape[1]} dimensions: extract more"
        )
    began, outcomes, best = time.perf_counter(), [], (-math.inf, None, None)
    x_nd = smoothed(z_validation_nd, torch.Generator().manual_seed(seed))

    def tried(moments: ClusterMoments, prior: float, em_steps: int) -> GaussianMixtureDenoiser:
        nonlocal best
        mixture = moments.mixture(prior)
        score = float(mixture.log_density(x_nd, SMOOTHING).mean())
        outcome = {"components": len(mixture.components), "prior": prior, "em_steps": em_steps}
        outcome["nats_per_dimension"] = score
        outcome["least_tokens"] = int(moments.count_k.min())
        outcomes.append(outcome)
        bar.set_postfix_str(
            f"{len(mixture.components)} components, prior {prior:g}: {score:.4f} nats per dimension"
        )
        bar.update()
        if score > best[0]:
            best = (score, mixture, prior)
        return mixture

    trials = len(size.components) * len(size.priors) + size.em_steps
    with tqdm(total=trials, desc="fitting the mixture", unit="trial") as bar:
        for k in size.components:
            moments = ClusterMoments.of(z_train_nd, clusters(z_train_nd, k, seed))
            for prior in size.priors:
                tried(moments, prior, 0)
        _, last, prior = best
        for step in range(size.em_steps):
            moments = ClusterMoments.of(z_train_nd, _assigned(last, z_train_nd))
            last = tried(moments, prior, step + 1)
    seconds = time.perf_counter() - began
    return replace(best[1], train_seconds=seconds, train_activations=len(z_train_nd)), outcomes


def clusters(z_nd: Tensor, k: int, seed: int) -> Tensor:
    """The number of each activation's cluster, (n,)."""
    kmeans = MiniBatchKMeans(
        k, batch_size=KMEANS_BATCH, max_iter=10, n_init=1, reassignment_ratio=0, random_state=seed
    )
    return torch.from_numpy(kmeans.fit(z_nd.numpy()).labels_).long()


def _assigned(mixture: GaussianMixtureDenoiser, z_nd: Tensor) -> Tensor:
    """The most probable component of each activation, (n,), among those whose means are nearest."""
    means_kd = mixture.mean_kd
    nearest = min(NEAREST, len(means_kd))
    parts = z_nd.split(KMEANS_BATCH)
    distances = (torch.cdist(part_nd, means_kd) for part_nd in parts)
    candidates_nc = torch.cat([d_nk.topk(nearest, largest=False).indices for d_nk in distances])
    most_n = torch.full((len(z_nd),), -math.inf, dtype=torch.double)
    label_n = torch.zeros(len(z_nd), dtype=torch.long)
    for k, component in enumerate(mixture.components):
        rows = (candidates_nc == k).any(1).nonzero()[:, 0]
        joint_n = z_nd.shape[1] * component.log_density(z_nd[rows], 0.0) + mixture.log_weights_k[k]
        better = joint_n > most_n[rows]
        most_n[rows[better]], label_n[rows[better]] = joint_n[better], k
    return label_n
