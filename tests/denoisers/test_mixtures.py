"""Mixtures of Gaussians against hand calculation, torch.distributions, Tweedie's formula, sampling
and known clusters.
"""

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.mixture import (
    ClusterMoments,
    GaussianMixtureDenoiser,
    MixtureSize,
    fit_mixture,
    full_gaussian,
)
from mmlib.denoisers.noise import SMOOTHING, smoothed

SIGMAS = (SMOOTHING, 0.3, 0.9)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def mixture():
    """Three components in four dimensions, double precision, not far apart."""
    g = generator()
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.double)
    components = []
    for _ in weights:
        basis = torch.linalg.qr(torch.randn(4, 4, generator=g, dtype=torch.double))[0]
        mean = torch.randn(4, generator=g, dtype=torch.double)
        variances = torch.rand(4, generator=g, dtype=torch.double) + 0.1
        components.append(full_gaussian(mean, basis, variances))
    return GaussianMixtureDenoiser.of(weights.log(), tuple(components))


@pytest.fixture(scope="module")
def single(mixture):
    """The same in single precision."""
    parts = ((c.mean_d, c.basis_dd, c.eigenvalues_d) for c in mixture.components)
    components = (full_gaussian(*(part.float() for part in one)) for one in parts)
    return GaussianMixtureDenoiser.of(mixture.log_weights_k.float(), tuple(components))


@pytest.fixture(scope="module")
def x():
    return torch.randn(50, 4, generator=generator(1), dtype=torch.double)


def reference(mixture, sigma):
    """The density of x by torch.distributions."""
    a, eye = 1 - sigma, torch.eye(4, dtype=torch.double)
    means = torch.stack([a * c.mean_d for c in mixture.components])
    parts = [c.basis_dd @ c.eigenvalues_d.diag() @ c.basis_dd.T for c in mixture.components]
    covariances = a**2 * torch.stack(parts) + sigma**2 * eye
    normals = MultivariateNormal(means, (covariances + covariances.mT) / 2)
    return MixtureSameFamily(Categorical(logits=mixture.log_weights_k), normals)


def clusters(n, g, d=5):
    """Two groups of activations far apart, 3 to 1, the second with a tenth of the spread."""
    second = torch.arange(n)[:, None] % 4 == 0
    return torch.randn(n, d, generator=g) * torch.where(second, 0.1, 1.0) + 6 * second


def test_one_component_is_the_gaussian():
    mixing = torch.randn(6, 6, generator=generator(1))
    data = torch.randn(500, 6, generator=generator()) @ mixing
    gaussian, z = PrincipalComponents.fit(data).gaussian(), torch.randn(20, 6)
    one = GaussianMixtureDenoiser.of(torch.zeros(1), (gaussian,))
    for sigma in SIGMAS:
        assert torch.equal(one(z, sigma), gaussian(z, sigma))
        expected = gaussian.log_density(z, sigma)
        assert torch.allclose(one.log_density(z, sigma), expected, rtol=1e-12)
    assert one.parameters == gaussian.parameters == 6 + 21


def test_two_components_in_one_dimension_by_hand():
    """½ N(−1, 1) + ½ N(1, 1) at σ = ½: x | k ~ N(±½, ½), so r₂/r₁ = exp(2x), E_k[z | x] = ±1 + (x ∓
    ½) = x ± ½, E[z | x] = x + ½ tanh x.
    """
    means, x = (torch.tensor([-1.0]), torch.tensor([1.0])), torch.tensor([[-1.0], [0.0], [0.7]])
    parts = tuple(full_gaussian(mean, torch.eye(1), torch.ones(1)) for mean in means)
    two = GaussianMixtureDenoiser.of(torch.tensor([0.5, 0.5]).log(), parts)
    assert torch.allclose(two(x, 0.5), x + x.tanh() / 2, atol=1e-6)
    density = ((-((x - 0.5) ** 2)).exp() + (-((x + 0.5) ** 2)).exp()) / (2 * math.sqrt(math.pi))
    assert torch.allclose(two.log_density(x, 0.5), density[:, 0].log().double(), atol=1e-6)
    assert two.parameters == 1 + 2 * 2


@pytest.mark.parametrize("sigma", SIGMAS)
def test_density_is_that_of_torch_distributions(mixture, x, sigma):
    expected = reference(mixture, sigma).log_prob(x)
    assert torch.allclose(4 * mixture.log_density(x, sigma), expected, rtol=1e-9)
    only = GaussianMixtureDenoiser.of(torch.zeros(1, dtype=torch.double), mixture.components[:1])
    expected = reference(only, sigma).log_prob(x)
    assert torch.allclose(4 * mixture.components[0].log_density(x, sigma), expected, rtol=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_posterior_mean_is_tweedies(mixture, x, sigma):
    """E[z | x] = (x + σ² ∇ log p(x))/(1 − σ), by automatic differentiation of the density."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(4 * mixture.log_density(x, sigma).sum(), x)
    assert torch.allclose(mixture(x, sigma), (x + sigma**2 * gradient) / (1 - sigma), atol=1e-7)


@pytest.fixture(scope="module")
def many():
    """Forty components in thirty dimensions with steep spectra, and draws from them, one of them
    far from all.
    """
    g, components = generator(9), []
    for _ in range(40):
        basis = torch.linalg.qr(torch.randn(30, 30, generator=g, dtype=torch.double))[0]
        mean = 2 * torch.randn(30, generator=g, dtype=torch.double)
        variances = torch.logspace(-3, 1, 30, dtype=torch.double)
        components.append(full_gaussian(mean, basis, variances))

    def draw(c):
        noise = torch.randn(30, generator=g, dtype=torch.double)
        return c.mean_d + c.basis_dd @ (c.eigenvalues_d.sqrt() * noise)

    drawn = torch.stack([draw(c) for c in components * 3])
    drawn[7] *= 1000
    weights = torch.full((40,), 1 / 40, dtype=torch.double)
    return GaussianMixtureDenoiser.of(weights.log(), tuple(components)), drawn


def noised(drawn, sigma, seed):
    noise = torch.randn(drawn.shape, generator=generator(seed), dtype=torch.double)
    return (1 - sigma) * drawn + sigma * noise


def every_joint(mixture, x, sigma):
    """log w_k + log N(x; …) of every component, (n, k), none passed over."""
    parts = [x.shape[1] * c.log_density(x, sigma) for c in mixture.components]
    return torch.stack(parts, 1) + mixture.log_weights_k


@pytest.mark.parametrize("sigma", [SMOOTHING, 0.2, 0.5, 0.8, 0.95])
def test_passing_over_what_is_negligible_changes_nothing(many, sigma):
    """Against every component computed for every row. The row far from all, whose log-densities lie
    thousands apart, overflows nothing.
    """
    mixture, drawn = many
    x = noised(drawn, sigma, seed=10)
    joint = every_joint(mixture, x, sigma)
    estimates = torch.stack([c(x, sigma) for c in mixture.components], 1)
    assert torch.allclose(30 * mixture.log_density(x, sigma), joint.logsumexp(1), rtol=0, atol=1e-7)
    expected = (joint.softmax(1)[..., None] * estimates).sum(1)
    assert ((mixture(x, sigma) - expected).norm(dim=1) < 1e-7 * expected.norm(dim=1)).all()
    assert joint[7].max() - joint[7].median() > 1000


def test_little_noise_leaves_few_rows_to_compute_and_never_one_that_counts(many):
    mixture, drawn = many
    for sigma, share in ((SMOOTHING, 0.1), (0.3, 0.5), (0.95, 1.0)):
        x = noised(drawn, sigma, seed=11)
        means = (1 - sigma) * torch.stack([c.mean_d for c in mixture.components])
        squares, joint = torch.cdist(x, means).square(), every_joint(mixture, x, sigma)
        least = joint.max(1).values + math.log(1e-9)
        computed = torch.zeros_like(joint, dtype=torch.bool)
        for k in range(40):
            computed[mixture._possible(k, x, sigma, squares[:, k], least), k] = True
        assert computed[joint >= least[:, None]].all()
        assert computed.double().mean() <= share


def test_no_denoiser_beats_it_on_its_own_samples(single):
    """Not the component alone, and not the Gaussian of the same mean and covariance, the best
    linear method.
    """
    z = single.sample(20_000, generator(2))
    x = 0.6 * z + 0.4 * torch.randn(z.shape, generator=generator(3))
    methods = (single, PrincipalComponents.fit(z).gaussian(), single.components[0])
    own, linear, one = ((method(x, 0.4) - z).square().mean() for method in methods)
    assert own < 0.99 * linear and own < 0.99 * one


def test_samples_come_from_the_density(mixture, single):
    """Mean and variances by torch.distributions, and the mean log-density of its samples, which is
    minus the entropy.
    """
    z, exact = single.sample(100_000, generator(4)).double(), reference(mixture, 0.0)
    assert torch.allclose(z.mean(0), exact.mean, atol=0.02)
    assert torch.allclose(z.var(0), exact.variance, rtol=0.03)
    torch.manual_seed(5)
    drawn = exact.sample((100_000,))
    expected = mixture.log_density(drawn, 0.0).mean().item()
    assert mixture.log_density(z, 0.0).mean().item() == pytest.approx(expected, abs=0.01)


def test_probabilistic_pca_of_all_components_is_the_gaussian():
    components = PrincipalComponents.fit(torch.randn(300, 5, generator=generator()))
    z = torch.randn(7, 5)
    expected = components.gaussian().log_density(z, 0.2)
    assert torch.equal(components.probabilistic(5).log_density(z, 0.2), expected)
    assert components.probabilistic(2).log_density(z, 0.2).shape == (7,)
    assert components.probabilistic(2).log_density(z, 0.2).dtype == torch.double


def test_moments_and_prior_by_hand():
    """Clusters {0, 2} and {10, 14}: scatters 2 and 8, within (2 + 8)/4 = 2.5; with ν = 2 variances
    7/4 and 13/4. No cluster has number 1.
    """
    z, label = torch.tensor([[0.0], [10.0], [2.0], [14.0]]), torch.tensor([0, 2, 0, 2])
    fitted = ClusterMoments.of(z, label).mixture(prior=2)
    assert [c.mean_d.item() for c in fitted.components] == [1, 12]
    assert fitted.log_weights_k.exp().tolist() == [0.5, 0.5]
    assert [c.eigenvalues_d.item() for c in fitted.components] == pytest.approx([7 / 4, 13 / 4])


def test_a_component_of_one_token_has_the_covariance_within_components():
    """Its own scatter is nothing: ν/(1 + ν) of the covariance within, here (2·1 + 0)/3 on the axis
    of the pair.
    """
    z, label = torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]]), torch.tensor([0, 0, 1])
    fitted = ClusterMoments.of(z, label).mixture(prior=3)
    assert fitted.components[1].eigenvalues_d.max().item() == pytest.approx(3 / 4 * 2 / 3)
    assert fitted.components[1].mean_d.tolist() == [9, 9]


def test_fit_finds_the_clusters_and_beats_the_gaussian():
    z, held_out = clusters(4000, generator(5)), clusters(1000, generator(6))
    size = MixtureSize((1, 2), (1.0, 1000.0), em_steps=1, validation_tokens=0)
    fitted, tried = fit_mixture(z, held_out, size, seed=0)
    assert sorted(fitted.log_weights_k.exp().tolist()) == pytest.approx([0.25, 0.75], abs=0.001)
    assert len(tried) == 5
    assert [row["least_tokens"] for row in tried] == [4000, 4000, 1000, 1000, 1000]
    narrow = min(c.eigenvalues_d.mean().item() for c in fitted.components)
    assert narrow == pytest.approx(0.01, rel=0.2), "a strong prior would blur it"
    x = smoothed(held_out, generator(0))
    ours, theirs = (
        method.log_density(x, SMOOTHING).mean().item()
        for method in (fitted, PrincipalComponents.fit(z).gaussian())
    )
    assert ours == pytest.approx(max(row["nats_per_dimension"] for row in tried))
    assert ours > theirs + 0.5


def test_em_moves_what_kmeans_put_in_the_wrong_cluster():
    """A narrow group inside a wide one's reach: k-means cuts halfway between the means, the more
    probable component reaches further.
    """
    narrow = torch.randn(3000, 4, generator=generator(7)) * 0.1
    wide = torch.randn(3000, 4, generator=generator(8)) * 2 + 2
    z, held_out = torch.cat([narrow[:2500], wide[:2500]]), torch.cat([narrow[2500:], wide[2500:]])
    size = MixtureSize(components=(2,), priors=(1.0,), em_steps=5, validation_tokens=0)
    fitted, tried = fit_mixture(z, held_out, size, seed=0)
    scores = [row["nats_per_dimension"] for row in tried]
    assert scores[-1] > scores[0] + 0.05 and max(fitted.log_weights_k.exp().tolist()) < 0.52


def test_too_few_activations_are_refused():
    message = "5 activations cannot determine 2 components in 8 dimensions"
    with pytest.raises(ValueError, match=message):
        fit_mixture(torch.randn(5, 8), torch.randn(5, 8), MixtureSize(components=(2,)), seed=0)


def test_tokens_are_assigned_by_density_and_not_by_density_per_dimension():
    """Of 4,000 tokens in 20 dimensions 200 lie apart, of which one start of k-means finds too many.
    By the mean over dimensions the large component, 19 times as likely beforehand, would swallow
    them.
    """
    z = torch.randn(4400, 20, generator=generator())
    apart = torch.arange(len(z)) % 20 == 0
    z[apart] += 2.2
    size = MixtureSize(components=(2,), priors=(32.0,), em_steps=4, validation_tokens=400)
    mixture, outcomes = fit_mixture(z[:4000], z[4000:], size, seed=0)
    assert outcomes[-1]["least_tokens"] == pytest.approx(200, abs=5)
    assert mixture.log_weights_k.exp().min().item() == pytest.approx(0.05, abs=0.002)
