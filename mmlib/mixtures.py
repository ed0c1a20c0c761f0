"""A mixture of Gaussians, each with a covariance of its own: a density whose posterior mean has a closed form.

For z ~ Σ_k w_k N(μ_k, Σ_k) and x = a z + σ ε, a = 1 − σ, component k holds x with probability r_k ∝ w_k N(x; a μ_k, a² Σ_k + σ² I),
and E[z | x] = Σ_k r_k E_k[z | x], the components' own posterior means weighed by it.

It is fitted by scikit-learn's k-means, a Gaussian for each cluster, and a few steps of expectation maximisation (EM) with two economies. In
hundreds of dimensions almost every r_k is 0 or 1, so a token counts for its most probable component only. And that one is sought among
the components whose means are nearest (truncated EM, Lücke and Forster 2019). scikit-learn's own EM weighs every component for every
token, which at the sizes of the `default` preset takes minutes a step, and has no prior that keeps small components' covariances apart
from singular. Here each is drawn towards the covariance within components, W: Σ_k = (S_k + ν W)/(n_k + ν) with the scatter S_k of the
component's n_k tokens, as if ν more had been seen (a conjugate prior, as in Fraley and Raftery 2007).
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from tqdm import tqdm

from mmlib.files import written_whole
from mmlib.gaussian import GaussianDenoiser
from mmlib.likelihood import SMOOTHING, smoothed
from mmlib.presets import MixtureSize
from mmlib.store import ActivationStore

NEGLIGIBLE = 1e-9  # a component of smaller probability changes no digit of a float32 estimate
LEAST_VARIANCE = 1e-4  # of z along an eigenvector; the smoothing at σ₀ adds four times as much
NEAREST = 4  # means among whose components a token's most probable one is sought
KMEANS_BATCH = 4096


@dataclass(frozen=True)
class GaussianMixtureDenoiser:
    """Posterior mean and density under Σ_k w_k N(μ_k, Σ_k)."""

    log_weights_k: Tensor
    components: tuple[GaussianDenoiser, ...]

    @property
    def parameters(self) -> int:
        """Free numbers: those of each component, and the weights, whose sum is 1."""
        return len(self.components) - 1 + sum(component.parameters for component in self.components)

    def _joint(self, x_nd: Tensor, sigma: float) -> Tensor:
        """log w_k + log N(x; a μ_k, a² Σ_k + σ² I) in nats, not per dimension: (n, k), double."""
        logs = [component.log_density(x_nd, sigma) for component in self.components]
        return x_nd.shape[1] * torch.stack(logs, 1) + self.log_weights_k.double()

    def log_density(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Natural logarithm of the density of x = (1 − σ) z + σ ε, per dimension, (n,), double."""
        return self._joint(x_nd, sigma).logsumexp(1) / x_nd.shape[1]

    def responsibilities(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Probability of each component given x, (n, k), double."""
        return self._joint(x_nd, sigma).softmax(1)

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        probability_nk, estimate_nd = self.responsibilities(x_nd, sigma), torch.zeros_like(x_nd)
        for probability_n, component in zip(probability_nk.to(x_nd.dtype).unbind(1), self.components):
            rows = (probability_n > NEGLIGIBLE).nonzero()[:, 0]  # at low noise each x has one component or two
            if len(rows):
                estimate_nd = estimate_nd.index_add(0, rows, probability_n[rows, None] * component(x_nd[rows], sigma))
        return estimate_nd

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws from the mixture, (n, d), in random order of components."""
        component_n = torch.multinomial(self.log_weights_k.exp(), n, replacement=True, generator=generator)
        z_nd = torch.empty(n, len(self.components[0].mean_d))
        for k, component in enumerate(self.components):
            rows = (component_n == k).nonzero()[:, 0]
            z_nd[rows] = component.sample(len(rows), generator)
        return z_nd

    def save(self, path: Path, documents: str) -> None:
        """Write as safetensors, with the identity of the documents it was fitted to."""
        stacked = {name: torch.stack([getattr(component, name) for component in self.components]) for name in ("mean_d", "basis_dd", "eigenvalues_d")}
        with written_whole(path) as partial:
            save_file({"log_weights": self.log_weights_k, **stacked}, partial, {"documents": documents})

    @classmethod
    def load(cls, path: Path, store: ActivationStore) -> "GaussianMixtureDenoiser":
        """Read what `save` wrote.

        Raises:
            StoreError: it was fitted to another store's documents.
        """
        with safe_open(path, "pt") as file:
            store.check_documents(file.metadata()["documents"], path)
            log_weights_k, *stacked = (file.get_tensor(name) for name in ("log_weights", "mean_d", "basis_dd", "eigenvalues_d"))
        return cls(log_weights_k, tuple(full_gaussian(*parts) for parts in zip(*stacked)))


def full_gaussian(mean_d: Tensor, basis_dd: Tensor, eigenvalues_d: Tensor) -> GaussianDenoiser:
    """A Gaussian whose mean and covariance are all free."""
    d = len(mean_d)
    return GaussianDenoiser(mean_d, basis_dd, eigenvalues_d, d + d * (d + 1) // 2)


@dataclass(frozen=True)
class ClusterMoments:
    """Counts, means and scatter matrices of clusters, none of them empty."""

    count_k: Tensor
    mean_kd: Tensor
    scatter_kdd: Tensor  # Σ (z − μ_k)(z − μ_k)ᵀ

    @classmethod
    def of(cls, z_nd: Tensor, label_n: Tensor) -> "ClusterMoments":
        """Of activations by their cluster's number. Numbers that none has are passed over."""
        counts, means, scatters = [], [], []
        for label in label_n.unique():
            part_nd = z_nd[label_n == label]
            means.append(part_nd.mean(0))
            centred_nd = part_nd - means[-1]
            scatters.append(centred_nd.T @ centred_nd)
            counts.append(len(part_nd))
        return cls(torch.tensor(counts), torch.stack(means), torch.stack(scatters))

    def mixture(self, prior: float) -> GaussianMixtureDenoiser:
        """A Gaussian for each, its covariance drawn towards that within clusters as if `prior` (ν) tokens more had been seen."""
        n, components = self.count_k.sum(), []
        within_dd = self.scatter_kdd.sum(0) / n
        for count, mean_d, scatter_dd in zip(self.count_k, self.mean_kd, self.scatter_kdd):
            eigenvalues_d, basis_dd = torch.linalg.eigh((scatter_dd + prior * within_dd) / (count + prior))
            components.append(full_gaussian(mean_d, basis_dd.contiguous(), eigenvalues_d.clamp(min=LEAST_VARIANCE)))
        return GaussianMixtureDenoiser((self.count_k / n).log(), tuple(components))


def fit_mixture(z_train_nd: Tensor, z_validation_nd: Tensor, size: MixtureSize, *, seed: int) -> tuple[GaussianMixtureDenoiser, list[dict]]:
    """Fit to training documents; choose on validation documents, by the mean log-density of smoothed activations.

    Every number of components is tried with every strength of the prior after k-means; the best is taken on by EM.

    Args:
        z_train_nd: standardised activations.
        z_validation_nd: of validation documents, a few thousand, spread evenly over them.
    Returns:
        (the best of all that were tried, what was tried: dictionaries of components, prior, em_steps, nats_per_dimension and least_tokens,
        of the smallest component: where these are fewer than dimensions, its covariance is mostly the prior's).
    Raises:
        ValueError: fewer training activations than dimensions or components.
    """
    if len(z_train_nd) <= max(z_train_nd.shape[1], *size.components):
        raise ValueError(f"{len(z_train_nd)} activations cannot determine {max(size.components)} components in {z_train_nd.shape[1]} dimensions: "
                         "extract more")
    x_nd, outcomes = smoothed(z_validation_nd, torch.Generator().manual_seed(seed)), []
    best = (-math.inf, None, None, None)

    def tried(mixture: GaussianMixtureDenoiser, label_n: Tensor, prior: float, em_steps: int) -> tuple:
        score = float(mixture.log_density(x_nd, SMOOTHING).mean())
        outcomes.append({"components": len(mixture.components), "prior": prior, "em_steps": em_steps, "nats_per_dimension": score,
                         "least_tokens": int(label_n.unique(return_counts=True)[1].min())})
        bar.set_postfix_str(f"{len(mixture.components)} components, prior {prior:g}: {score:.4f} nats per dimension")
        bar.update()
        return score, mixture, label_n, prior

    with tqdm(total=len(size.components) * len(size.priors) + size.em_steps, desc="fitting the mixture", unit="trial") as bar:
        for k in size.components:
            label_n = _clusters(z_train_nd, k, seed)
            moments = ClusterMoments.of(z_train_nd, label_n)
            best = max([best, *(tried(moments.mixture(prior), label_n, prior, 0) for prior in size.priors)], key=lambda trial: trial[0])
        last = best
        for step in range(size.em_steps):
            label_n = _assigned(last[1], z_train_nd)
            last = tried(ClusterMoments.of(z_train_nd, label_n).mixture(last[3]), label_n, last[3], step + 1)
            best = max(best, last, key=lambda trial: trial[0])
    return best[1], outcomes


def _clusters(z_nd: Tensor, k: int, seed: int) -> Tensor:
    """The number of each activation's cluster, (n,)."""
    kmeans = MiniBatchKMeans(k, batch_size=KMEANS_BATCH, max_iter=30, n_init=3, reassignment_ratio=0, random_state=seed)
    return torch.from_numpy(kmeans.fit(z_nd.numpy()).labels_).long()


def _assigned(mixture: GaussianMixtureDenoiser, z_nd: Tensor) -> Tensor:
    """The most probable component of each activation, (n,), among those whose means are nearest."""
    means_kd = torch.stack([component.mean_d for component in mixture.components])
    nearest = min(NEAREST, len(means_kd))
    candidates_nc = torch.cat([torch.cdist(part_nd, means_kd).topk(nearest, largest=False).indices for part_nd in z_nd.split(KMEANS_BATCH)])
    most_n = torch.full((len(z_nd),), -math.inf, dtype=torch.double)
    label_n = torch.zeros(len(z_nd), dtype=torch.long)
    for k, component in enumerate(mixture.components):
        rows = (candidates_nc == k).any(1).nonzero()[:, 0]
        joint_n = z_nd.shape[1] * component.log_density(z_nd[rows], 0.0) + mixture.log_weights_k[k]
        better = joint_n > most_n[rows]
        most_n[rows[better]], label_n[rows[better]] = joint_n[better], k
    return label_n
