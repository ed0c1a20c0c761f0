"""A denoiser that adds to a closed-form one: what the best linear-Gaussian method predicts is given, the network learns the rest."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mmlib.denoisers import DENOISERS, by_run
from mmlib.gaussian import GaussianDenoiser
from mmlib.noise import noise_process


class LinearSkip(ModelMixin, ConfigMixin):
    """Prediction of N(μ, Σ)'s posterior mean, plus a network's. Same posterior as `mmlib.gaussian`, for a whole batch of noise levels.

    Args:
        objective: what is predicted.
        network: name of the inner denoiser's class.
        config: its arguments.
        d: width of the activations.
    """

    @register_to_config
    def __init__(self, objective: str, network: str, config: dict, d: int):
        super().__init__()
        self.process = noise_process(objective)
        self.inner = DENOISERS[network](**config)
        self.register_buffer("mean_d", torch.zeros(d))
        self.register_buffer("basis_dd", torch.eye(d))
        self.register_buffer("eigenvalues_d", torch.ones(d))

    @classmethod
    def over(cls, gaussian: GaussianDenoiser, inner: nn.Module, objective: str) -> "LinearSkip":
        """With that Gaussian below a network."""
        config = {key: value for key, value in inner.config.items() if not key.startswith("_")}
        skip = cls(objective, type(inner).__name__, config, len(gaussian.mean_d))
        skip.inner = inner
        skip.mean_d, skip.basis_dd, skip.eigenvalues_d = (
            gaussian.mean_d,
            gaussian.basis_dd,
            gaussian.eigenvalues_d,
        )
        return skip

    @property
    def units(self) -> dict[str, nn.Module]:
        """Hidden units of the inner network."""
        return self.inner.units

    @property
    def fitted_numbers(self) -> int:
        """Free numbers of the Gaussian."""
        d = len(self.mean_d)
        return d + d * (d + 1) // 2

    def forward(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """Prediction (n, d) from noisy activations (n, d) and times (u,) in [0, 1000] of u runs of rows."""
        return self.linear(x_nd, time_u) + self.inner(x_nd, time_u)

    def linear(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """The Gaussian's prediction, (n, d), in float32."""
        with torch.autocast(x_nd.device.type, enabled=False):
            a, s = (value[:, None, None] for value in self.process.at_time(time_u))
            power = a**2 * self.eigenvalues_d + s**2
            gain = self.process.target(
                a * self.eigenvalues_d / power, s / power
            )  # of ẑ and of ε̂, along each eigenvector
            centred_urd = by_run(x_nd.float(), len(time_u)) - a * self.mean_d
            linear_urd = (centred_urd @ self.basis_dd * gain) @ self.basis_dd.T
            return (
                linear_urd + self.process.target(self.mean_d, torch.zeros_like(self.mean_d))
            ).flatten(0, 1)
