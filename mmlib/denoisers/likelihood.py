"""Log-densities of activations under a denoiser, by the change of variables along its
probability-flow ODE.

Stored activations are rounded numbers, which have no density. What is measured, for every method
alike, is the density of the activation smoothed a little, x = (1 − σ₀) z + σ₀ ε at σ₀ = 0.02: a
Gaussian's own becomes N((1 − σ₀) μ, (1 − σ₀)² Σ + σ₀² I).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from mmlib.denoisers.noise import Denoiser

SMOOTHING = 0.02  # σ₀


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
