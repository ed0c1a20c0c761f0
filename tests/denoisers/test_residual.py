"""The fast posterior of a mixture against the exact one, and a network on an average of mixtures: at
its start, in training, on a saved folder, in its likelihood.
"""

import pytest
import torch

from mmlib.activations.tokens import Normaliser
from mmlib.denoisers import posterior as fast
from mmlib.denoisers.average import MixtureAverage
from mmlib.denoisers.checkpoints import CheckpointError, Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser, full_gaussian
from mmlib.denoisers.posterior import FastMixture, FastPosterior
from mmlib.denoisers.residual import MixtureResidual
from mmlib.training.recipe import untrained

D, K = 40, 24  # more dimensions than the axes along which all components are weighed
LEVELS = torch.tensor([0.005, 0.1, 0.35, 0.59, 0.61, 0.8, 0.95, 0.995])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture_of(k=K, d=D, seed=0, spread=1.5):
    """Components whose axes, variances and weights differ."""
    g = generator(seed)
    weights_k = torch.rand(k, generator=g) + 0.1
    components = []
    for _ in range(k):
        basis_dd = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
        variances_d = torch.logspace(-2, 0.5, d) * (0.5 + torch.rand(1, generator=g))
        components.append(
            full_gaussian(spread * torch.randn(d, generator=g), basis_dd, variances_d)
        )
    return GaussianMixtureDenoiser.of((weights_k / weights_k.sum()).log(), tuple(components))


@pytest.fixture(scope="module")
def mixture():
    return mixture_of()


def noisy(mixture, run, levels=LEVELS):
    """x of draws from the mixture, in runs of rows that share a level."""
    z_nd = mixture.sample(run * len(levels), generator(1))
    sigma_n1 = levels.repeat_interleave(run)[:, None]
    return (1 - sigma_n1) * z_nd + sigma_n1 * torch.randn(z_nd.shape, generator=generator(2))


@pytest.mark.parametrize("run", [1, 50])
def test_the_fast_posterior_is_the_exact_one_at_every_level(mixture, run):
    x_nd = noisy(mixture, run)
    estimate_nd, probability_nk = FastPosterior(mixture)(x_nd, LEVELS)
    parts = list(zip(x_nd.split(run), LEVELS.tolist()))
    exact_nd = torch.cat([mixture(part, sigma) for part, sigma in parts])
    exact_nk = torch.cat([mixture.responsibilities(part, sigma) for part, sigma in parts])
    velocity_off = (estimate_nd - exact_nd) / LEVELS.repeat_interleave(run)[:, None]
    assert velocity_off.square().mean(1).max() < 2e-3
    assert (probability_nk - exact_nk).abs().max() < 0.05
    assert torch.allclose(probability_nk.sum(1), torch.ones(len(x_nd)), atol=1e-5)


@pytest.mark.parametrize("chunk", [3, 64])
def test_rows_do_not_depend_on_how_they_are_cut(mixture, chunk, monkeypatch):
    x_nd = noisy(mixture, 10)
    whole = FastPosterior(mixture)(x_nd, LEVELS)
    monkeypatch.setattr(fast, "CHUNK", chunk)
    for one, other in zip(whole, FastPosterior(mixture)(x_nd, LEVELS)):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_no_rows_have_no_estimate(mixture):
    estimate_nd, probability_nk = FastPosterior(mixture)(torch.zeros(0, D), torch.tensor([0.3]))
    assert estimate_nd.shape == (0, D) and probability_nk.shape == (0, K)


def test_the_fast_posterior_holds_no_second_copy_of_the_mixture(mixture):
    """At 512 components in 640 dimensions a copy of the axes is 0.8 GB."""
    posterior = FastPosterior(mixture)
    for name in ("mean_kd", "basis_kdd", "eigenvalues_kd"):
        assert getattr(posterior, name).data_ptr() == getattr(mixture, name).data_ptr()
    shared = mixture.components[3].basis_dd
    assert shared.data_ptr() == mixture.basis_kdd[3].data_ptr()
    assert not posterior.state_dict(), "a mixture has its own file"


def test_the_jacobian_is_the_posterior_covariance_over_the_noise():
    """Second-order Tweedie: ∂E[z | x]/∂x = a Cov[z | x]/σ², here against draws weighed by x."""
    few, sigma = mixture_of(3, 2, spread=1.0), 0.6
    x_nd = torch.tensor([[0.3, -0.5]], requires_grad=True)
    estimate_nd = FastMixture(few)(x_nd, sigma)
    rows = [torch.autograd.grad(estimate_nd[0, i], x_nd, retain_graph=True)[0][0] for i in range(2)]
    z_nd = few.sample(400_000, generator(4)).double()
    log_n = -((x_nd.detach() - (1 - sigma) * z_nd) ** 2).sum(1) / (2 * sigma**2)
    weight_n1 = log_n.softmax(0)[:, None]
    mean_d = (weight_n1 * z_nd).sum(0)
    covariance_dd = ((z_nd - mean_d) * weight_n1).T @ (z_nd - mean_d)
    expected_dd = (1 - sigma) * covariance_dd / sigma**2
    torch.testing.assert_close(torch.stack(rows).double(), expected_dd, atol=0.02, rtol=0.02)


@pytest.fixture(scope="module")
def average(mixture):
    """Of two mixtures of unlike sizes."""
    return MixtureAverage((mixture, mixture_of(5, D, seed=7)))


def model_on(average, **size):
    """An untrained meta-model on an average of mixtures."""
    d = average.members[0].mean_kd.shape[1]
    torch.manual_seed(0)
    network = MixtureResidual(d, 16, 32, 1, **size).over(average).eval()
    return MetaModel(
        network, "flow_velocity", Origin(Normaliser(torch.zeros(1, d), torch.ones(1, d)))
    )


@pytest.mark.parametrize("size", [{}, {"gated": False}, {"reads_mixture": False}])
def test_an_untrained_network_is_its_average(average, mixture, size):
    x_nd = noisy(mixture, 5, torch.tensor([0.4]))
    estimate_nd = model_on(average, **size).denoise(x_nd, 0.4)
    torch.testing.assert_close(estimate_nd, average(x_nd, 0.4), atol=1e-5, rtol=1e-5)


def test_in_training_a_batch_reads_the_mixture_that_has_not_seen_it(average, mixture):
    """Outside training, and where no fold is told, it reads the average of all."""
    network, time_u = model_on(average).network, torch.tensor([400.0])
    x_nd = noisy(mixture, 5, torch.tensor([0.4]))

    def estimate():
        with torch.no_grad():
            return x_nd - 0.4 * network(x_nd, time_u)

    for fold, member in enumerate(average.members):
        network.fold = fold
        network.train()
        torch.testing.assert_close(estimate(), FastMixture(member)(x_nd, 0.4), atol=1e-5, rtol=1e-5)
        network.eval()
        torch.testing.assert_close(estimate(), average(x_nd, 0.4), atol=1e-5, rtol=1e-5)
    network.fold = None
    network.train()
    torch.testing.assert_close(estimate(), average(x_nd, 0.4), atol=1e-5, rtol=1e-5)


def test_the_likelihood_of_an_untrained_network_on_one_mixture_is_the_mixtures():
    """An average of several has an estimate that is the posterior mean under no density."""
    few = mixture_of(2, 3, spread=1.0)
    z_nd, model = few.sample(40, generator(5)), model_on(MixtureAverage((few,)))
    found = model.log_likelihood(z_nd, generator=generator(6), steps=60, exact=True)
    x_nd = (1 - 0.02) * z_nd + 0.02 * torch.randn(z_nd.shape, generator=generator(6))
    expected_n = few.log_density(x_nd, 0.02)
    assert (found.nats_per_dimension_n - expected_n).abs().median() < 0.02


def test_a_correction_moves_the_estimate_and_vanishes_where_noise_is_all(average, mixture):
    corrected, plain = model_on(average), model_on(average)
    torch.nn.init.ones_(corrected.network.out_proj.bias)
    x_nd = noisy(mixture, 5, torch.tensor([0.5]))
    halfway, at_end = torch.tensor([500.0]), torch.tensor([1000.0])
    off_nd = corrected.predict(x_nd, halfway) - plain.predict(x_nd, halfway)
    # 2 √(¼) = 1 times W h (1 + x + ẑ₀), with W h = 1
    expected_nd = 1 + x_nd + average(x_nd, 0.5)
    torch.testing.assert_close(off_nd, expected_nd, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(corrected.predict(x_nd, at_end), plain.predict(x_nd, at_end))


def test_a_saved_model_has_its_mixtures_and_reads_back_equal(average, mixture, tmp_path):
    model = model_on(average)
    torch.nn.init.normal_(model.network.out_proj.weight, std=0.1)
    model.save_pretrained(tmp_path / "model")
    again = MetaModel.from_pretrained(tmp_path / "model")
    x_nd = noisy(mixture, 5, torch.tensor([0.4]))
    assert torch.equal(model.denoise(x_nd, 0.4), again.denoise(x_nd, 0.4))
    assert again.parameters == model.parameters > average.parameters
    assert [len(one.mean_kd) for one in again.network.average.members] == [K, 5]
    path = tmp_path / "model" / "network" / "mixture.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="mixture.safetensors"):
        MetaModel.from_pretrained(tmp_path / "model")


def test_an_untrained_copy_keeps_the_mixtures_and_draws_its_weights_anew(average, mixture):
    model = model_on(average)
    torch.nn.init.normal_(model.network.out_proj.weight, std=0.1)
    fresh, x_nd = untrained(model, 3), noisy(mixture, 5, torch.tensor([0.4]))
    torch.testing.assert_close(fresh.denoise(x_nd, 0.4), average(x_nd, 0.4), atol=1e-5, rtol=1e-5)
    assert not torch.equal(fresh.network.in_proj.weight, model.network.in_proj.weight)
    assert fresh.network.average is model.network.average and fresh.documents == ""
    assert untrained(fresh, 3).parameters == model.parameters


def test_mixtures_of_another_width_and_a_network_without_any_are_refused(average, tmp_path):
    with pytest.raises(ValueError, match="mixtures of width 40: expected 39"):
        MixtureResidual(D - 1, 16, 32, 1).over(average)
    bare, said = MixtureResidual(D, 16, 32, 1), "no mixtures below it: call .over"
    with pytest.raises(ValueError, match=said):
        bare(torch.zeros(1, D), torch.tensor([500.0]))
    with pytest.raises(ValueError, match=said):
        bare.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_rows_that_no_number_of_levels_divides_are_refused(mixture):
    with pytest.raises(ValueError, match="5 rows and 2 times"):
        FastPosterior(mixture)(torch.zeros(5, D), torch.tensor([0.3, 0.6]))
