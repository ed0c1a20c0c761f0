"""Noise processes over diffusers' schedulers: DDPM ε-prediction and flow-matching velocity, on one footing.

Both mix x = a·z + s·ε with ε ~ N(0, I). Flow matching has a = 1 − σ, s = σ; DDPM has a = √ᾱ, s = √(1 − ᾱ). DDPM's x divided by
a + s is flow matching's x at σ = s / (a + s), so σ from 0 (clean) to 1 (noise) measures both, and any denoiser, which maps
(flow-form x, σ) to an estimate of z, can be read on either objective: with an estimate ẑ the error of the velocity is
(z − ẑ)/σ and the error of ε is a(z − ẑ)/s.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

LEVELS = 100  # of the evaluation grid


class Denoiser(Protocol):
    """Anything that estimates clean activations from noisy ones."""

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """ẑ (n, d) from x = (1 − σ) z + σ ε (n, d), with 0 < σ < 1."""


@dataclass(frozen=True)
class Level:
    """One noise level of an evaluation grid."""

    sigma: float  # as flow matching counts it
    weight: float  # turns the squared error of ẑ into the objective's loss


class FlowMatching:
    """x = (1 − σ) z + σ ε; the network predicts the velocity v = ε − z. Its time runs from 0 to 1000 (Lipman et al. 2023)."""

    objective = "flow_velocity"

    @cached_property
    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """diffusers' scheduler, 1000 steps, no shift."""
        return FlowMatchEulerDiscreteScheduler()

    @cached_property
    def training_sigmas(self) -> Tensor:
        """σ of the 1000 training levels, rising: 0.001, …, 1."""
        return self.scheduler.sigmas[:1000].flip(0).float()

    def coefficients(self, index_n: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), each (n, 1), of training levels 0 … 999."""
        s = self.training_sigmas.to(index_n.device)[index_n][:, None]
        return 1 - s, s

    def timestep(self, index_n: Tensor) -> Tensor:
        """What the network is told of a training level: 1000 σ, (n,)."""
        return 1000 * self.training_sigmas.to(index_n.device)[index_n]

    def target(self, z_nd: Tensor, noise_nd: Tensor) -> Tensor:
        """What the network predicts, (n, d)."""
        return noise_nd - z_nd

    def estimate(self, network, x_nd: Tensor, sigma: float) -> Tensor:
        """ẑ = x − σ v̂ (n, d) from flow-form x."""
        t = torch.full((len(x_nd),), 1000 * sigma, device=x_nd.device)
        return x_nd - sigma * network(x_nd, t).float()

    def grid(self) -> list[Level]:
        """σ = (i + ½)/100. A squared error of ẑ counts 1/σ²."""
        return [Level(sigma, 1 / sigma**2) for sigma in ((i + 0.5) / LEVELS for i in range(LEVELS))]

    def sampling_scheduler(self):
        """Euler steps along the probability-flow ODE."""
        return FlowMatchEulerDiscreteScheduler()


class DDPM:
    """x = √ᾱ z + √(1 − ᾱ) ε over 1000 linear betas; the network predicts ε (Ho, Jain and Abbeel 2020, eq. 14)."""

    objective = "ddpm_epsilon"

    @cached_property
    def scheduler(self) -> DDPMScheduler:
        """diffusers' scheduler. `clip_sample` would cut ẑ to [−1, 1]: right for images, wrong for activations."""
        return DDPMScheduler(num_train_timesteps=1000, clip_sample=False)

    @cached_property
    def _alpha_bar(self) -> np.ndarray:
        return self.scheduler.alphas_cumprod.double().numpy()

    def coefficients(self, index_n: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), each (n, 1), of training levels 0 … 999."""
        alpha_bar = self.scheduler.alphas_cumprod.to(index_n.device)[index_n][:, None]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def timestep(self, index_n: Tensor) -> Tensor:
        """What the network is told of a training level: its index, (n,)."""
        return index_n.float()

    def target(self, z_nd: Tensor, noise_nd: Tensor) -> Tensor:
        """What the network predicts, (n, d)."""
        return noise_nd

    def estimate(self, network, x_nd: Tensor, sigma: float) -> Tensor:
        """ẑ = (x′ − s ε̂)/a (n, d), with x′ = (a + s) x the network's own input.

        Between training levels the network is told a fractional time; beyond the first and last it is told those.
        """
        ratio = sigma / (1 - sigma)
        a = 1 / np.sqrt(1 + ratio**2)
        s = ratio * a
        own_sigma = np.sqrt((1 - self._alpha_bar) / self._alpha_bar)
        t = torch.full((len(x_nd),), float(np.interp(np.log(ratio), np.log(own_sigma), np.arange(1000))), device=x_nd.device)
        own_x = (a + s) * x_nd
        return (own_x - s * network(own_x, t).float()) / a

    def grid(self) -> list[Level]:
        """t = 5, 15, …, 995. A squared error of ẑ counts ᾱ/(1 − ᾱ)."""
        bars = [float(self._alpha_bar[t]) for t in range(5, 1000, 10)]
        return [Level(float(np.sqrt(1 - b) / (np.sqrt(b) + np.sqrt(1 - b))), b / (1 - b)) for b in bars]

    def sampling_scheduler(self):
        """DDIM (Song, Meng and Ermon 2021), which needs few steps."""
        return DDIMScheduler.from_config(self.scheduler.config, timestep_spacing="trailing")


PROCESSES = {process.objective: process for process in (FlowMatching, DDPM)}


def noise_process(objective: str) -> FlowMatching | DDPM:
    """The process of that objective.

    Raises:
        ValueError: unknown objective.
    """
    if objective not in PROCESSES:
        raise ValueError(f"unknown objective {objective!r}: expected one of {', '.join(PROCESSES)}")
    return PROCESSES[objective]()


def stratified_levels(n: int, generator: torch.Generator) -> Tensor:
    """n training levels (n,), uniform over 0 … 999, one from each of n equal strata: the mean loss varies less."""
    strata = torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)
    return (strata / n * 1000).long().clamp_(max=999)
