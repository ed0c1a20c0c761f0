"""The average of several mixtures of Gaussians that were fitted to the same activations from other
starts of k-means.

A mixture's estimate jumps where its clusters meet, and k-means puts these borders elsewhere at each
start. So the errors of several mixtures are partly independent, and the mean of their posterior
means has a lower squared error than each has: model averaging, as in bagging (Breiman 1996). That
mean is the posterior mean under none of them, nor under their union. Notebooks 02 and 26 measure
what it gains.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from tqdm import tqdm

from mmlib.denoisers.gaussian import SavedFit
from mmlib.denoisers.mixture import ClusterMoments, GaussianMixtureDenoiser, clusters
from mmlib.denoisers.posterior import FastMixture


@dataclass(frozen=True)
class AverageSize:
    """Mixtures of equally many components, and how many of them."""

    components: int = 512
    prior: float = 128.0  # strength ν of the components' covariances, in tokens
    members: int = 4


@dataclass(frozen=True)
class MixtureAverage(SavedFit):
    """The mean of several mixtures' posterior means, each by the fast posterior.

    Its density and its samples are those of the union, in which each mixture has the same weight.

    >>> from mmlib.denoisers.mixture import full_gaussian
    >>> parts = [full_gaussian(torch.full((2,), m), torch.eye(2), torch.ones(2)) for m in (-1.0, 1.0)]
    >>> members = [GaussianMixtureDenoiser.of(torch.zeros(1), [part]) for part in parts]
    >>> x = torch.tensor([[0.3, 0.1]])
    >>> mean = sum(one(x, 0.5) for one in parts) / 2
    >>> bool(torch.allclose(MixtureAverage(tuple(members))(x, 0.5), mean))
    True
    """

    members: tuple[GaussianMixtureDenoiser, ...]
    train_seconds: float | None = None
    train_activations: int | None = None

    def __post_init__(self):
        """Refuse none at all, and members that cannot be averaged."""
        if not self.members:
            raise ValueError("no mixtures: expected at least one")
        widths = {member.mean_kd.shape[1] for member in self.members}
        if len(widths) > 1:
            raise ValueError(
                f"mixtures of widths {', '.join(map(str, sorted(widths)))}: expected one width"
            )

    @property
    def parameters(self) -> int:
        """Free numbers of all members."""
        return sum(member.parameters for member in self.members)

    @cached_property
    def _fast(self) -> tuple[FastMixture, ...]:
        return tuple(map(FastMixture, self.members))

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Estimate of z, (n, d)."""
        return sum(one(x_nd, sigma) for one in self._fast) / len(self.members)

    def log_density(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Natural logarithm of the density of x under the union, per dimension, (n,), double."""
        d = x_nd.shape[1]
        logs_mn = torch.stack([d * member.log_density(x_nd, sigma) for member in self.members])
        return (logs_mn.logsumexp(0) - math.log(len(self.members))) / d

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws from the union, (n, d), in random order."""
        member_n = torch.randint(len(self.members), (n,), generator=generator)
        z_nd = torch.empty(n, self.members[0].mean_kd.shape[1])
        for i in member_n.unique().tolist():
            rows = (member_n == i).nonzero()[:, 0]
            z_nd[rows] = self.members[i].sample(len(rows), generator)
        return z_nd

    def tensors(self) -> dict[str, Tensor]:
        """Those of its members, by name and number, such as "mean_d.0"."""
        return {
            f"{name}.{i}": tensor
            for i, member in enumerate(self.members)
            for name, tensor in member.tensors().items()
        }

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], **cost) -> "MixtureAverage":
        """What `tensors` gave."""
        names, members = (
            GaussianMixtureDenoiser.names,
            range(len(tensors) // len(GaussianMixtureDenoiser.names)),
        )
        parts = ([tensors[f"{name}.{i}"] for name in names] for i in members)
        return cls(tuple(GaussianMixtureDenoiser(*part) for part in parts), **cost)

    @classmethod
    def of(cls, members: Sequence[GaussianMixtureDenoiser]) -> "MixtureAverage":
        """Of fitted mixtures; its seconds are theirs together, where all are known."""
        seconds = [member.train_seconds for member in members]
        total = None if None in seconds else sum(seconds)
        return cls(tuple(members), total, members[0].train_activations)


def one_mixture(z_nd: Tensor, components: int, prior: float, seed: int) -> GaussianMixtureDenoiser:
    """k-means and a Gaussian for each cluster, with what they cost.

    Raises:
        ValueError: fewer activations than components.
    """
    if len(z_nd) < components:
        raise ValueError(f"{len(z_nd)} activations for {components} components: extract more")
    began = time.perf_counter()
    mixture = ClusterMoments.of(z_nd, clusters(z_nd, components, seed)).mixture(prior)
    seconds = time.perf_counter() - began
    return replace(mixture, train_seconds=seconds, train_activations=len(z_nd))


def fit_average(
    z_nd: Tensor, size: AverageSize, *, seed: int, first: GaussianMixtureDenoiser | None = None
) -> MixtureAverage:
    """Fit to standardised activations (n, d): member i from start `seed` × members + i of k-means.

    Args:
        first: taken as member 0, where it is fitted already.
    """
    members, start = [] if first is None else [first], seed * size.members
    for i in tqdm(range(len(members), size.members), desc="fitting mixtures", unit="mixture"):
        members.append(one_mixture(z_nd, size.components, size.prior, start + i))
    return MixtureAverage.of(members)
