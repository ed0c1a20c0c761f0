"""Noise processes: the two parametrisations, the grids, and reading one network on the other
objective.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from mmlib.denoisers.meta_model import DENSITIES, stratified_levels
from mmlib.denoisers.noise import DDPM, FlowMatching, noise_process


def test_flow_levels_are_the_published_ones():
    sigmas = FlowMatching().training_sigmas
    assert len(sigmas) == 1000 and sigmas[0] == pytest.approx(0.001) and sigmas[-1] == 1
    expected = torch.tensor([1.0, 1000.0])
    assert torch.allclose(FlowMatching().timestep(torch.tensor([0, 999])), expected)


def test_ddpm_coefficients_agree_with_diffusers_add_noise():
    process, index = DDPM(), torch.tensor([0, 7, 500, 999])
    z, noise = torch.randn(4, 5), torch.randn(4, 5)
    a, s = process.coefficients(index)
    expected = process.scheduler.add_noise(z, noise, index)
    assert torch.allclose(a * z + s * noise, expected, atol=1e-6)


def test_linear_betas_by_hand():
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)[995]
    level = DDPM().grid()[-1]
    assert level.weight == pytest.approx(bar / (1 - bar), rel=1e-4)
    expected = np.sqrt(1 - bar) / (np.sqrt(bar) + np.sqrt(1 - bar))
    assert level.sigma == pytest.approx(expected, rel=1e-5)


def test_grids_have_100_rising_levels_inside_the_ends():
    for process in (FlowMatching(), DDPM()):
        sigma = [level.sigma for level in process.grid()]
        assert len(sigma) == 100 and sigma == sorted(sigma) and 0 < sigma[0] and sigma[-1] < 1
    assert FlowMatching().grid()[0].sigma == pytest.approx(0.005)
    assert FlowMatching().grid()[-1].sigma == pytest.approx(0.995)


@pytest.mark.parametrize("process", [FlowMatching(), DDPM()])
def test_a_perfect_network_gives_the_clean_activation(process):
    """A network that knows z and ε predicts the target exactly, so the estimate must be z: at any
    σ, for either objective.
    """
    z, noise = torch.randn(6, 4), torch.randn(6, 4)
    for sigma in (0.03, 0.4, 0.9):
        x = (1 - sigma) * z + sigma * noise
        estimate = process.estimate(lambda x_own, t: process.target(z, noise), x, sigma)
        assert torch.allclose(estimate, z, atol=2e-5)


def test_one_estimate_read_through_either_objective_is_the_same():
    """A velocity network and an ε network that hold the same posterior mean, 0.6 x here, give the
    same clean estimate of the same x.
    """
    x = torch.randn(6, 4)

    def velocity(own_x, time):
        sigma = time / 1000
        return (own_x - 0.6 * own_x) / sigma

    def epsilon(own_x, time):
        a, s = DDPM().at_time(time)
        return (own_x - a * 0.6 * own_x / (a + s)) / s

    for sigma in (0.05, 0.4, 0.9):
        assert torch.allclose(FlowMatching().estimate(velocity, x, sigma), 0.6 * x, atol=1e-5)
        assert torch.allclose(DDPM().estimate(epsilon, x, sigma), 0.6 * x, rtol=2e-3, atol=1e-5)


def test_loss_weights_are_those_of_the_objective():
    """A wrong estimate's error in velocity or ε, computed from the definitions, equals weight × its
    squared error in z.
    """
    z, noise = torch.randn(6, 4, dtype=torch.double), torch.randn(6, 4, dtype=torch.double)
    wrong = z + 0.1
    for level in FlowMatching().grid()[::25]:
        x = (1 - level.sigma) * z + level.sigma * noise
        velocity = (x - wrong) / level.sigma
        expected = level.weight * 0.01
        assert (velocity - (noise - z)).square().mean().item() == pytest.approx(expected, rel=1e-6)
    bars = DDPM().scheduler.alphas_cumprod.double()
    for i, level in list(enumerate(DDPM().grid()))[::25]:
        bar = bars[5 + 10 * i]
        x = bar.sqrt() * z + (1 - bar).sqrt() * noise
        epsilon = (x - bar.sqrt() * wrong) / (1 - bar).sqrt()
        expected = level.weight * 0.01
        assert (epsilon - noise).square().mean().item() == pytest.approx(expected, rel=1e-4)


def told(process, x, sigma):
    """The network's own input and time when a process asks it for an estimate."""
    seen = []

    def network(own_x, time):
        seen.append((own_x, time.item()))
        return torch.zeros_like(own_x)

    process.estimate(network, x, sigma)
    return seen[0]


def test_ddpm_tells_the_network_its_own_time_and_input():
    process, x = DDPM(), torch.ones(1, 3)
    for i, level in list(enumerate(process.grid()))[::33]:
        own_x, time = told(process, x, level.sigma)
        a, s = process.coefficients(torch.tensor([5 + 10 * i]))
        assert time == pytest.approx(5 + 10 * i, abs=0.01)
        assert torch.allclose(own_x, (a + s) * x, rtol=1e-4)


def test_stratified_levels_take_one_from_each_stratum():
    levels = stratified_levels(500, torch.Generator().manual_seed(0))
    assert torch.equal((levels // 2).sort().values, torch.arange(500))


def test_unknown_objective_lists_those_there_are():
    with pytest.raises(ValueError, match="flow_velocity, ddpm_epsilon"):
        noise_process("score")


def test_logit_normal_levels_have_the_density_they_are_named_for():
    levels = stratified_levels(1000, torch.Generator().manual_seed(0), "logit_normal")
    sigmas = (levels.double() + 0.5) / 1000
    distance = stats.kstest(torch.logit(sigmas).numpy(), "norm").statistic
    assert distance < 0.005 and levels.min() >= 0 and levels.max() <= 999
    assert sigmas.mean().item() == pytest.approx(0.5, abs=2e-3)


def test_weights_of_a_density_do_what_drawing_from_it_does():
    """The mean of any function of the level is the same, here of σ and of |σ − ½|, which tells the
    middle from the ends.
    """
    density, middle = DENSITIES["logit_normal"], (torch.arange(1000) + 0.5) / 1000
    assert density.weights.mean().item() == pytest.approx(1, abs=1e-5)
    for of in (lambda s: s, lambda s: (s - 0.5).abs()):
        expected = of(middle[density.quantiles]).mean().item()
        assert (density.weights * of(middle)).mean().item() == pytest.approx(expected, rel=5e-3)
    assert (DENSITIES["uniform"].quantiles == torch.arange(1000)).all()
    assert (DENSITIES["uniform"].weights == 1).all()


def test_a_ddpm_time_between_training_levels_is_the_one_whose_noise_it_has():
    """Log-linear both ways, so a fractional time comes back; halfway, s²/a² is the geometric mean
    of its neighbours'.
    """
    process = DDPM()
    for time in (0.5, 3.25, 40.75, 500.5, 998.5):
        a, s = (value.double() for value in process.at_time(torch.tensor([time])))
        _, found = told(process, torch.ones(1, 3), (s / (a + s)).item())
        assert found == pytest.approx(time, abs=5e-3)
    ratios = [(s / a) ** 2 for a, s in map(process.at_time, torch.tensor([[0.0], [0.5], [1.0]]))]
    assert ratios[1].item() == pytest.approx((ratios[0] * ratios[2]).sqrt().item(), rel=1e-4)
