"""Noise processes over diffusers' schedulers: DDPM ε-prediction and flow-matching velocity, on one
footing.

Both mix x = a·z + s·ε with ε ~ N(0, I). Flow matching has a = 1 − σ, s = σ; DDPM has a = √ᾱ, s =
√(1 − ᾱ). DDPM's x divided by a + s is flow matching's x at σ = s / (a + s), so σ from 0 (clean) to
1 (noise) measures both, and any denoiser, which maps (flow-form x, σ) to an estimate of z, can be
read on either objective: with an estimate ẑ the error of the velocity is (z − ẑ)/σ and the error of
ε is a(z − ẑ)/s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)
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
    """x = (1 − σ) z + σ ε; the network predicts the velocity v = ε − z. Its time runs from 0 to
    1000 (Lipman et al. 2023).
    """

    objective = "flow_velocity"
    last_sigma = 0.999  # of the likelihood's path

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
        t = torch.full((1,), 1000 * sigma, device=x_nd.device)
        return x_nd - sigma * network(x_nd, t).float()

    def grid(self) -> list[Level]:
        """σ = (i + ½)/100. A squared error of ẑ counts 1/σ²."""
        sigmas = [(i + 0.5) / LEVELS for i in range(LEVELS)]
        return [Level(sigma, 1 / sigma**2) for sigma in sigmas]

    def at_time(self, time_n: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), each (n,), of what a network is told."""
        return 1 - time_n / 1000, time_n / 1000

    solvers = {  # along the probability-flow ODE
        "euler": FlowMatchEulerDiscreteScheduler,
        "heun": FlowMatchHeunDiscreteScheduler,
        "dpm++": partial(
            DPMSolverMultistepScheduler, use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
    }

    def schedule(self, solver: str, steps: int, sigma: float = 1.0) -> "Schedule":
        """Steps of a solver from σ down to 0: its own levels, scaled."""
        scheduler = make_solver(self, solver)
        scheduler.set_timesteps(steps)
        scheduler.sigmas = scheduler.sigmas * (sigma / scheduler.sigmas[0].item())
        return Schedule(scheduler, 1000 * scheduler.sigmas)

    def noised(self, schedule: "Schedule", z_nd: Tensor, noise_nd: Tensor) -> Tensor:
        """What a solver starts from, (n, d)."""
        sigma = schedule.scheduler.sigmas[0].item()
        return (1 - sigma) * z_nd + sigma * noise_nd


class DDPM:
    """x = √ᾱ z + √(1 − ᾱ) ε over 1000 linear betas; the network predicts ε (Ho, Jain and Abbeel
    2020, eq. 14).
    """

    objective = "ddpm_epsilon"
    last_sigma = 0.9936  # of the likelihood's path: the noisiest training level

    @cached_property
    def scheduler(self) -> DDPMScheduler:
        """diffusers' scheduler. `clip_sample` would cut ẑ to [−1, 1]: right for images, wrong for
        activations.
        """
        return DDPMScheduler(num_train_timesteps=1000, clip_sample=False)

    @cached_property
    def _alpha_bar(self) -> np.ndarray:
        return self.scheduler.alphas_cumprod.double().numpy()

    @cached_property
    def _log_ratio(self) -> np.ndarray:
        """log(s/a) of the training levels, rising."""
        return np.log(np.sqrt((1 - self._alpha_bar) / self._alpha_bar))

    def _time_of(self, ratio: float) -> float:
        """The time at which s/a is `ratio`, between the training levels or at their ends."""
        return float(np.interp(np.log(ratio), self._log_ratio, np.arange(1000)))

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

        Between training levels the network is told a fractional time; beyond the first and last it
        is told those.
        """
        ratio = sigma / (1 - sigma)
        a = 1 / np.sqrt(1 + ratio**2)
        s = ratio * a
        t = torch.full((1,), self._time_of(ratio), device=x_nd.device)
        own_x = (a + s) * x_nd
        return (own_x - s * network(own_x, t).float()) / a

    def grid(self) -> list[Level]:
        """t = 5, 15, …, 995. A squared error of ẑ counts ᾱ/(1 − ᾱ)."""
        levels = []
        for bar in map(float, self._alpha_bar[5::10]):
            a, s = float(np.sqrt(bar)), float(np.sqrt(1 - bar))
            levels.append(Level(s / (a + s), bar / (1 - bar)))
        return levels

    def at_time(self, time_n: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s), each (n,), of what a network is told; between training levels log((1 − ᾱ)/ᾱ) is
        interpolated, as in `estimate`.
        """
        ratio = (1 - self._alpha_bar) / self._alpha_bar
        log_ratio = torch.from_numpy(np.log(ratio)).float().to(time_n.device)
        below = time_n.long().clamp(0, 998)
        between = torch.lerp(log_ratio[below], log_ratio[below + 1], time_n.clamp(0, 999) - below)
        return torch.sigmoid(-between).sqrt(), torch.sigmoid(between).sqrt()

    solvers = {
        "ddim": partial(DDIMScheduler, clip_sample=False),
        "euler": EulerDiscreteScheduler,
        "heun": HeunDiscreteScheduler,
        "dpm++": DPMSolverMultistepScheduler,
    }

    def schedule(self, solver: str, steps: int, sigma: float = 1.0) -> "Schedule":
        """Steps of a solver from the training level nearest to σ down to 0: no more than there are
        levels below it.

        DDIM steps by whole, equal strides, so the number of its steps is the nearest that allows
        them.
        """
        betas = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
        scheduler = make_solver(self, solver, **betas)
        levels = 1000 if sigma == 1 else 1 + round(self._time_of(sigma / (1 - sigma)))
        if solver == "ddim":
            stride = max(1, round(levels / steps))
            scheduler.set_timesteps(1)
            scheduler.timesteps = torch.arange(levels - 1, -1, -stride)
            # its step goes to t − 1000 // this
            scheduler.num_inference_steps = Fraction(1000, stride)
        else:
            times = {max(0, round(levels * (1 - i / steps)) - 1) for i in range(steps)}
            scheduler.set_timesteps(timesteps=sorted(times, reverse=True))
        return Schedule(scheduler, scheduler.timesteps.float(), from_noise=sigma == 1)

    def noised(self, schedule: "Schedule", z_nd: Tensor, noise_nd: Tensor) -> Tensor:
        """What a solver starts from, (n, d), in the solver's own scale; at σ = 1 the noise alone."""
        if schedule.from_noise:
            return noise_nd * schedule.scheduler.init_noise_sigma
        first_n = schedule.scheduler.timesteps[:1].repeat(len(z_nd))
        return schedule.scheduler.add_noise(z_nd, noise_nd, first_n)


class Schedule:
    """A solver of diffusers that is about to step down from a noise level.

    Args:
        scheduler: with its time steps set.
        times: what the network is told at each of its evaluations; more are left out.
        from_noise: it starts at σ = 1.
    """

    def __init__(self, scheduler, times: Tensor, from_noise: bool = False):
        self.from_noise = from_noise
        self.scheduler, self.times = scheduler, times[: len(scheduler.timesteps)]
        if hasattr(scheduler, "set_begin_index"):  # DDIM needs none: it goes by the time
            scheduler.set_begin_index(0)

    @property
    def evaluations(self) -> int:
        """How often the network is asked."""
        return len(self.times)

    def run(self, network, x_nd: Tensor) -> Iterator[Tensor]:
        """The state (n, d) after each evaluation; the last is the result."""
        for time, t in zip(self.times, self.scheduler.timesteps):
            own_x = x_nd
            if hasattr(self.scheduler, "scale_model_input"):
                own_x = self.scheduler.scale_model_input(x_nd, t)
            prediction_nd = network(own_x, time[None].to(x_nd.device)).float()
            x_nd = self.scheduler.step(prediction_nd, t, x_nd).prev_sample
            yield x_nd


def make_solver(process: "FlowMatching | DDPM", solver: str, **config):
    """A scheduler of diffusers.

    Raises:
        ValueError: the process has no solver of that name.
    """
    if solver not in process.solvers:
        raise ValueError(
            f"unknown solver {solver!r} for {process.objective}: expected one of {', '.join(process.solvers)}"
        )
    return process.solvers[solver](**config)


def checked_sigma(sigma: "float | np.ndarray | Tensor | list[float]", n: int = 1) -> np.ndarray:
    """σ as an array of one number, or of n.

    Raises:
        ValueError: a value is not between 0 and 1, both left out, or there are neither one nor n of
            them.

    >>> checked_sigma(300)
    Traceback (most recent call last):
    ...
    ValueError: σ = 300.0: expected a noise level between 0 and 1, both left out (a time step t of 1000 is σ = t/1000)
    """
    values = np.atleast_1d(np.asarray(sigma.detach().cpu() if torch.is_tensor(sigma) else sigma))
    if values.dtype.kind not in "fiu" or values.shape not in ((1,), (n,)):
        raise ValueError(f"σ = {sigma!r}: expected one noise level{f', or {n}' if n > 1 else ''}")
    values = values.astype(float)
    inside = (values > 0) & (values < 1)
    if not inside.all():
        raise ValueError(
            f"σ = {values[~inside][0]}: expected a noise level between 0 and 1, both left out (a time step t of 1000 is σ = t/1000)"
        )
    return values


def sdedit(denoiser: Denoiser, z_nd: Tensor, noise_nd: Tensor, sigma: float, steps: int) -> Tensor:
    """SDEdit (Meng et al. 2022) by any denoiser, such as a mixture in closed form, (n, d): z is
    noised to σ and comes back to 0 by Euler's steps of flow matching. The velocity is (x − ẑ)/σ for
    the denoiser's estimate ẑ.

    >>> def towards_zero(x_nd, sigma):  # the posterior mean under N(0, 0)
    ...     return 0 * x_nd
    >>> sdedit(towards_zero, torch.ones(1, 2), torch.ones(1, 2), sigma=0.5, steps=4).abs().max() < 1e-6
    tensor(True)
    """
    process = FlowMatching()

    def velocity(x_nd: Tensor, time_1: Tensor) -> Tensor:
        level = time_1.item() / 1000
        return (x_nd - denoiser(x_nd, level)) / level

    schedule = process.schedule("euler", steps, sigma)
    x_nd = process.noised(schedule, z_nd, noise_nd)
    for x_nd in schedule.run(velocity, x_nd):
        pass
    return x_nd


PROCESSES = {process.objective: process for process in (FlowMatching, DDPM)}


def noise_process(objective: str) -> FlowMatching | DDPM:
    """The process of that objective.

    Raises:
        ValueError: unknown objective.
    """
    if objective not in PROCESSES:
        raise ValueError(f"unknown objective {objective!r}: expected one of {', '.join(PROCESSES)}")
    return PROCESSES[objective]()


def stratified_levels(n: int, generator: torch.Generator, density: str = "uniform") -> Tensor:
    """n training levels (n,) of 0 … 999, one from each of n equally likely strata: the mean loss
    varies less.

    Args:
        density: of the levels, one of `DENSITIES`.
    """
    on = {"generator": generator, "device": generator.device}
    strata = torch.randperm(n, **on) + torch.rand(n, **on)
    places = (strata / n * 1000).long().clamp_(max=999)
    return DENSITIES[density].quantiles.to(generator.device)[places]


@dataclass(frozen=True)
class LevelDensity:
    """How likely the 1000 training levels are.

    Args:
        quantiles: a level for each of 1000 equally likely strata, rising, (1000,).
        weights: density of each level over the uniform one's, (1000,), mean 1: as weights of a loss
            at uniform levels they have the same expected gradient.
    """

    quantiles: Tensor
    weights: Tensor


def _logit_normal() -> LevelDensity:
    """Level sigmoid(n), n ~ N(0, 1), on a scale from 0 to 1 (Esser et al. 2024, eq. 19): the middle
    is asked most.
    """
    middle = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    quantiles = (1000 * torch.sigmoid(torch.special.ndtri(middle))).long().clamp_(0, 999)
    weights = torch.exp(-(torch.logit(middle) ** 2) / 2) / (middle * (1 - middle))
    return LevelDensity(quantiles, (weights / weights.mean()).float())


DENSITIES = {
    "uniform": LevelDensity(torch.arange(1000), torch.ones(1000)),
    "logit_normal": _logit_normal(),
}
