"""Noise processes over diffusers' schedulers: DDPM ε-prediction and flow-matching velocity, on one
footing.

Both mix x = a·z + s·ε with ε ~ N(0, I). Flow matching has a = 1 − σ, s = σ; DDPM has a = √ᾱ, s =
√(1 − ᾱ). DDPM's x divided by a + s is flow matching's x at σ = s / (a + s), so σ from 0 (clean) to
1 (noise) measures both, and any denoiser, which maps (flow-form x, σ) to an estimate of z, can be
read on either objective: with an estimate ẑ the error of the velocity is (z − ẑ)/σ and the error of
ε is a(z − ẑ)/s.

Stored activations are rounded numbers, which have no density. What `log_likelihood` measures, for
every method alike, is the density of the activation smoothed a little, x = (1 − σ₀) z + σ₀ ε at
σ₀ = 0.02: a Gaussian's own becomes N((1 − σ₀) μ, (1 − σ₀)² Σ + σ₀² I).
"""

import math
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
from tqdm import tqdm

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
        """What a solver starts from, (n, d), in the solver's own scale; at σ = 1 the noise
        alone.
        """
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
            f"unknown solver {solver!r} for {process.objective}: expected one of "
            f"{', '.join(process.solvers)}"
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
            f"σ = {values[~inside][0]}: expected a noise level between 0 and 1, both left out (a "
            "time step t of 1000 is σ = t/1000)"
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


SMOOTHING = 0.02  # σ₀, of activations whose density is measured
EXACT_UP_TO = 32  # dimensions at which the trace is taken exactly unless asked otherwise


@dataclass(frozen=True)
class LogLikelihood:
    """Natural logarithm of the density per dimension, (n,), and the standard error of its trace
    estimate, (n,).
    """

    nats_per_dimension_n: Tensor
    standard_error_n: Tensor  # 0 where the trace is exact; of one probe unknown (NaN)


def smoothed(z_nd: Tensor, generator: torch.Generator) -> Tensor:
    """x at σ₀ (n, d): whose density is measured."""
    noise_nd = torch.randn(z_nd.shape, generator=generator).to(z_nd.device)
    return (1 - SMOOTHING) * z_nd + SMOOTHING * noise_nd


def log_likelihood(
    denoiser: Denoiser,
    x_nd: Tensor,
    *,
    last_sigma: float,
    steps: int,
    generator: torch.Generator,
    probes: int = 4,
    exact: bool | None = None,
) -> LogLikelihood:
    """log p(x) of smoothed activations x, in nats per dimension of z.

    Along dx/dσ = v(x, σ) = (x − ẑ)/σ the log-density falls by div v (Song et al. 2021, eq. 39); at
    the last σ it is the noise's. Heun's method on levels evenly spaced in log(σ/(1 − σ)).

    Args:
        denoiser: differentiable.
        last_sigma: below 1, where the noise is all but alone.
        probes: Rademacher vectors of Hutchinson's estimate of the trace, the same along the path.
        exact: take the trace exactly, by d backward passes a step; None: up to 32 dimensions.
    Raises:
        ValueError: fewer than one step or probe.
    """
    if steps < 1 or probes < 1:
        raise ValueError(f"{steps} steps and {probes} probes: expected at least one of each")
    n, d = x_nd.shape
    exact = d <= EXACT_UP_TO if exact is None else exact
    if exact:
        probes_knd = torch.eye(d)[:, None].expand(d, n, d)
    else:
        probes_knd = torch.randint(0, 2, (probes, n, d), generator=generator).float() * 2 - 1
    ends = (math.log(sigma / (1 - sigma)) for sigma in (SMOOTHING, last_sigma))
    sigmas = torch.linspace(*ends, steps + 1, dtype=torch.double).sigmoid().tolist()
    trace_kn = torch.zeros(len(probes_knd), n, dtype=torch.double, device=x_nd.device)
    slope_nd, div_kn = _velocity(denoiser, x_nd, sigmas[0], probes_knd)
    for here, there in zip(tqdm(sigmas[:-1], desc="log-likelihood", mininterval=2), sigmas[1:]):
        step = there - here
        with torch.no_grad():
            ahead_nd = x_nd + step * slope_nd
            x_nd = x_nd + step / 2 * (slope_nd + (ahead_nd - denoiser(ahead_nd, there)) / there)
        slope_nd, next_kn = _velocity(denoiser, x_nd, there, probes_knd)
        trace_kn += step / 2 * (div_kn + next_kn).double()
        div_kn = next_kn
    return _total(x_nd, trace_kn, last_sigma, exact)


def _total(x_nd: Tensor, trace_kn: Tensor, last_sigma: float, exact: bool) -> LogLikelihood:
    """Density of the noise at the end, plus the divergence along the way."""
    d = x_nd.shape[1]
    variance = (1 - last_sigma) ** 2 + last_sigma**2  # of x where z has variance 1
    prior_n = -(x_nd.double().square().mean(1) / variance + math.log(2 * math.pi * variance)) / 2
    if exact:
        return LogLikelihood(prior_n + trace_kn.sum(0) / d, torch.zeros_like(prior_n))
    error_n = torch.full_like(prior_n, math.nan)
    if len(trace_kn) > 1:
        error_n = trace_kn.std(0) / len(trace_kn) ** 0.5 / d
    return LogLikelihood(prior_n + trace_kn.mean(0) / d, error_n)


def _velocity(
    denoiser: Denoiser, x_nd: Tensor, sigma: float, probes_knd: Tensor
) -> tuple[Tensor, Tensor]:
    """v (n, d) and its contractions pᵀ ∂v/∂x p, (k, n): unbiased for the trace, or with unit
    vectors its terms.
    """
    with torch.enable_grad():
        x_nd = x_nd.detach().requires_grad_()
        v_nd = (x_nd - denoiser(x_nd, sigma)) / sigma
        contractions = []
        for probe_nd in probes_knd:
            probe_nd = probe_nd.to(x_nd.device)
            (product_nd,) = torch.autograd.grad(v_nd, x_nd, probe_nd, retain_graph=True)
            contractions.append((product_nd * probe_nd).sum(1))
    return v_nd.detach(), torch.stack(contractions)
