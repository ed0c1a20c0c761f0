"""Closed-form denoisers against hand calculation, Monte Carlo, scikit-learn and each other."""

import numpy as np
import pytest
import torch
from known import tokens_of
from sklearn.decomposition import PCA

from mmlib.denoisers.gaussian import (
    GaussianDenoiser,
    PrincipalComponents,
    clean_input,
    standard_normal,
)
from mmlib.denoisers.noise import PROCESSES
from mmlib.evaluation.losses import evaluate


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator)
    return torch.randn(20_000, 6, generator=generator) @ mixing + 0.5


def test_one_dimension_by_hand():
    """λ = 4, σ = ½: x = z/2 + ε/2, E[z | x] = Cov(z, x)/Var(x) x = 2/(1 + ¼) x = 1.6 x; error λ −
    2·1.6 = 0.8.
    """
    model = GaussianDenoiser(torch.zeros(1), torch.eye(1), torch.tensor([4.0]), 2)
    assert model(torch.tensor([[1.0]]), 0.5).item() == pytest.approx(1.6)
    assert model.expected_mse(0.5, torch.tensor([4.0], dtype=torch.double)) == pytest.approx(0.8)


def test_mean_model_is_the_posterior_mean_of_the_standard_normal():
    x = torch.randn(5, 3)
    assert torch.allclose(standard_normal(3)(x, 0.3), x * 0.7 / (0.49 + 0.09))
    assert torch.allclose(standard_normal(3)(x, 0.3), clean_input(x, 0.3, "mean_estimate"))


def test_posterior_mean_against_linear_algebra(data):
    components = PrincipalComponents.fit(data)
    sigma, x = 0.4, torch.randn(7, 6)
    covariance, mean = torch.cov(data.T), data.mean(0)
    expected = mean + (x - 0.6 * mean) @ torch.linalg.solve(
        0.36 * covariance + 0.16 * torch.eye(6), 0.6 * covariance
    )
    assert torch.allclose(components.gaussian()(x, sigma), expected, atol=1e-3)


def test_sampled_loss_meets_the_closed_form_on_both_objectives(data):
    components = PrincipalComponents.fit(data)
    for objective in PROCESSES:
        tokens = tokens_of(data, np.zeros(len(data), int))
        losses = evaluate(
            {"gaussian": components.gaussian()}, tokens, objective, per_level=4000, seed=0
        )
        expected = components.gaussian().expected_loss(objective, data)
        assert losses.mean("gaussian") == pytest.approx(expected, rel=0.01)


def test_no_linear_denoiser_beats_it_on_its_own_data(data):
    model = PrincipalComponents.fit(data).gaussian()
    best = model.expected_mse(0.5, model.eigenvalues_d.double())
    for factor in (0.5, 0.9, 1.1, 2.0):
        other = GaussianDenoiser(model.mean_d, model.basis_dd, factor * model.eigenvalues_d, 0)
        assert other.expected_mse(0.5, model.eigenvalues_d.double()) > best


def test_probabilistic_pca_is_scikit_learns(data):
    model = PrincipalComponents.fit(data).probabilistic(2)
    covariance = model.basis_dd @ torch.diag(model.eigenvalues_d) @ model.basis_dd.T
    expected = torch.from_numpy(PCA(2).fit(data.double().numpy()).get_covariance())
    assert torch.allclose(covariance.double(), expected, atol=1e-2)


def test_projection_on_all_components_returns_its_input(data):
    x = torch.randn(4, 6)
    assert torch.allclose(
        PrincipalComponents.fit(data).projection(6, "rescaled")(x, 0.25), x / 0.75, atol=1e-4
    )


def test_parameters_by_hand():
    """d = 3: a mean and six covariances; with k = 1 a mean, one axis with its variance, and one
    variance for the rest.
    """
    components = PrincipalComponents(torch.zeros(3), torch.eye(3), torch.tensor([3.0, 2.0, 1.0]))
    assert components.gaussian().parameters == 9 and components.probabilistic(1).parameters == 7


def test_too_few_rows_are_refused(data):
    with pytest.raises(ValueError, match="6 activations cannot determine 6"):
        PrincipalComponents.fit(data[:6])


def test_samples_have_the_covariance(data):
    model = PrincipalComponents.fit(data).gaussian()
    drawn = model.sample(50_000, torch.Generator().manual_seed(1))
    assert torch.allclose(torch.cov(drawn.T), torch.cov(data.T), atol=0.35)
