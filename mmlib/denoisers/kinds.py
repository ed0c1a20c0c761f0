"""The kinds of fitted objects: Gaussians, mixtures, PCAs, SAEs and networks, each with what it can
do of the protocol in `mmlib.denoisers.fitted`.
"""

import torch
from torch import Tensor

from mmlib.activations.arrays import Values
from mmlib.denoisers.average import MixtureAverage
from mmlib.denoisers.fitted import AT_ONCE, Cost, Fitted, Unsupported, seeded
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.denoisers.noise import SMOOTHING, smoothed
from mmlib.denoisers.sae import SAEDenoiser

SAMPLE_STEPS = 50
FEATURE_SIGMA = 0.1  # at which a network's hidden units are read, the paper's


class FittedGaussian(Fitted):
    """A full-covariance Gaussian: no linear method denoises better."""

    kind, title = "gaussian", "a Gaussian"

    def _log_density(self, z_nd: Tensor, generator: torch.Generator) -> Tensor:
        parts = smoothed(z_nd, generator).split(AT_ONCE)
        return torch.cat([self.denoiser.log_density(part, SMOOTHING) for part in parts])

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.denoiser.sample(n, generator)

    def _features(self, z_nd: Tensor) -> Tensor:
        return self.components.scores(z_nd, self.d)


class FittedMixture(FittedGaussian):
    """A mixture of Gaussians with full covariances."""

    kind, title = "mixture", "a mixture of Gaussians"
    denoiser: GaussianMixtureDenoiser

    def _features(self, z_nd: Tensor) -> Tensor:
        return self.denoiser.responsibilities(z_nd, SMOOTHING).float()


class FittedAverage(FittedMixture):
    """An average of mixtures; density and samples are of their union."""

    kind, title = "mixture_average", "an average of mixtures"
    denoiser: MixtureAverage

    def _features(self, z_nd: Tensor) -> Tensor:
        members = self.denoiser.members
        return torch.cat([one.responsibilities(z_nd, SMOOTHING).float() for one in members], 1)


class FittedPCA(Fitted):
    """The projection on the first principal components."""

    kind, title, of_clean = "pca", "a PCA", True

    def _project(
        self, z_nd: Tensor, sigma: float, generator: torch.Generator, steps: int
    ) -> Tensor:
        raise Unsupported(
            f"{self.title} was made for clean activations, so it has no projection from noise: use "
            "reconstruct(h)"
        )

    def reconstruct(self, h: Values) -> Tensor:
        """Raw activations (n, d) as the method rebuilds them, (n, d)."""
        with torch.no_grad():
            parts = self._z(h).split(AT_ONCE)
            return self.raw(torch.cat([self.denoiser(part, 0.0) for part in parts]))

    def _features(self, z_nd: Tensor) -> Tensor:
        return self.components.scores(z_nd, self.denoiser.components_dk.shape[1])


class FittedSAE(FittedPCA):
    """A sparse autoencoder, trained on clean activations."""

    kind, title = "sae", "an SAE"
    denoiser: SAEDenoiser

    @property
    def sae(self):
        """The `SAE` of SAELens."""
        return self.denoiser.sae

    def _features(self, z_nd: Tensor) -> Tensor:
        return self.sae.encode(z_nd)


class FittedNetwork(Fitted):
    """A denoising network: a meta-model."""

    kind, title = "network", "a network"
    denoiser: MetaModel

    @classmethod
    def of(cls, model: MetaModel) -> "FittedNetwork":
        """A meta-model of one layer under the common protocol."""
        if len(model.layers) > 1:
            raise ValueError(f"a meta-model of layers {list(model.layers)}: name one, layer=…")
        return cls(model, model.origin, Cost.of(model))

    def to(self, device: str) -> "FittedNetwork":
        """Move the network."""
        self.denoiser.to(device)
        return self

    def _log_density(self, z_nd: Tensor, generator: torch.Generator) -> Tensor:
        found = self.denoiser.log_likelihood(z_nd, generator=generator).nats_per_dimension_n
        return found + self._log_scale()  # it gives nats of the raw activation

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.denoiser.sample(n, steps=SAMPLE_STEPS, generator=generator).clone()

    def _project(
        self, z_nd: Tensor, sigma: float, generator: torch.Generator, steps: int
    ) -> Tensor:
        options = {"sigma": sigma, "generator": generator, "steps": steps, "progress": False}
        return self.denoiser.project(z_nd, **options).clone()

    def _features(self, z_nd: Tensor) -> Tensor:
        units = self.denoiser.neurons(z_nd, sigma=FEATURE_SIGMA, generator=seeded(0))
        return torch.cat(list(units.values()), 1).clone()


_KINDS = (FittedGaussian, FittedPCA, FittedMixture, FittedAverage, FittedSAE, FittedNetwork)
KINDS = {kind.kind: kind for kind in _KINDS}
