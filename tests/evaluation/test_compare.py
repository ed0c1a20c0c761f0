"""The claim: mixes, floors, verdicts and the words for them."""

import numpy as np
import pytest
import torch
from known import Scaled

from mmlib.denoisers.gaussian import PrincipalComponents, Projection, standard_normal
from mmlib.denoisers.noise import FlowMatching
from mmlib.denoisers.sae import MixedDenoiser
from mmlib.evaluation import claim as claimed
from mmlib.evaluation.claim import CLAIM, verdict
from mmlib.evaluation.losses import Losses
from mmlib_studies.verdict import floor_rows


@pytest.fixture(scope="module")
def z():
    return torch.randn(3000, 5, generator=torch.Generator().manual_seed(0))


def test_identity_projection_equals_the_naive_estimate(z):
    identity = Projection(torch.zeros(5), torch.eye(5), "rescaled")
    x = torch.randn(4, 5)
    assert torch.allclose(identity(x, 0.2), x / 0.8)


def test_mix_finds_the_linear_optimum(z):
    """Mixing x with a useless ẑ must find the mean model's own gain (1 − σ)/((1 − σ)² + σ²)."""
    levels = FlowMatching().grid()[::30]
    mixed = MixedDenoiser(Scaled(0.0), levels, z, torch.Generator().manual_seed(0))
    for level in levels:
        s = level.sigma
        assert mixed.weights[s][1] == pytest.approx((1 - s) / ((1 - s) ** 2 + s**2), abs=0.03)
    with pytest.raises(ValueError, match="no mix was fitted at σ = 0.123"):
        mixed(z, 0.123)


def test_floors_by_hand():
    """Losses 1.2 and 1.5: above a floor of 0.6 the reduction is 1 − 0.6/0.9; it is 47 % where (1.2
    − E) = 0.53 (1.5 − E).
    """
    counts = np.array([[10.0, 20, 10, 10, 5]])
    losses = Losses(np.array([0.5]), {"m": 1.2 * counts, "b": 1.5 * counts}, counts)
    found = floor_rows(losses, "m", "b", steps=2)
    assert found["lowest_loss_seen"] == pytest.approx(1.2)
    assert [row["floor"] for row in found["rows"]] == pytest.approx([0, 0.6])
    assert [row["reduction"] for row in found["rows"]] == pytest.approx([0.2, 1 / 3])
    assert found["floor_for_claim"] == pytest.approx((1.2 - 0.53 * 1.5) / 0.47)
    assert floor_rows(losses, "b", "m")["floor_for_claim"] is None


class Remembered:
    """Knows the clean activations: the perfect estimate."""

    parameters = 7
    train_seconds = train_activations = 0

    def __init__(self, z):
        self.z = z

    def __call__(self, x, sigma):
        return self.z


def test_mix_gives_all_weight_to_a_perfect_further_term(z):
    levels, generator = FlowMatching().grid()[::30], torch.Generator().manual_seed(1)
    mixed = MixedDenoiser(Scaled(0.3), levels, z, generator, also=[Remembered(z)])
    assert mixed.parameters == 7
    for level in levels:
        alpha, beta, gamma = mixed.weights[level.sigma]
        assert gamma == pytest.approx(1, abs=1e-6)
        assert 0.3 * alpha + beta == pytest.approx(0, abs=1e-6)
        assert torch.allclose(mixed(torch.randn(z.shape), level.sigma), z, atol=1e-4)


def test_mix_is_never_worse_than_its_terms_on_the_tokens_it_was_fitted_to(z):
    """Also where two terms differ by rounding alone: their weights must not grow to make use of
    it.
    """
    scaled = z * torch.tensor([3.0, 1.0, 1.0, 0.3, 0.1])
    gaussian, levels = PrincipalComponents.fit(scaled).gaussian(), FlowMatching().grid()[::9]
    projection = Projection(torch.zeros(5), torch.eye(5)[:, :2], "mean_estimate")
    for inner in (projection, gaussian, standard_normal(5)):
        generator = torch.Generator().manual_seed(1)
        mixed = MixedDenoiser(inner, levels, scaled, generator, also=[gaussian])
        generator.manual_seed(1)  # the noise of the fit again
        for s in (level.sigma for level in levels):
            x = (1 - s) * scaled + s * torch.randn(z.shape, generator=generator)
            mixed_error, *errors = (
                (method(x, s) - scaled).double().square().mean().item()
                for method in (mixed, inner, gaussian, Scaled(1.0))
            )
            assert mixed_error <= min(errors) * (1 + 1e-5) and max(map(abs, mixed.weights[s])) < 300


@pytest.mark.parametrize(
    "interval, expected",
    [((0.1, 0.3), "below"), ((0.4, 0.5), "consistent with"), ((0.5, 0.9), "above")],
)
def test_verdict(interval, expected):
    assert verdict(*interval) == expected and CLAIM == 0.47


def estimate(mlp=1.2, ours=1.1, mixture=1.05, gaussian=1.5, e=(1.0, 0.0, 5.0)):
    losses = {"mlp": mlp, "mixture_mlp": ours, "mixture": mixture, "gaussian": gaussian}
    primaries = {
        name: {"definition": name, "method": name, "baseline": "gaussian", "objective": objective}
        for name, objective in (
            ("mlp", "flow_velocity"),
            ("mixture_mlp", "flow_velocity"),
            ("unet", "ddpm_epsilon"),  # the law is of the velocity loss
        )
    }
    rows = {method: {"value": loss} for method, loss in losses.items()}
    return claimed.over_the_estimate(
        {"losses": {"flow_velocity": rows}, "primaries": primaries},
        {"extrapolated": "x", "laws": {"x": {"e": {"value": e[0], "ci95": list(e[1:])}}}},
    )


def test_reduction_over_the_estimated_floor_by_hand():
    """Above 1 the losses are 0.2, 0.1, 0.05 of 0.5; the interval of E is cut at 1.05, the lowest
    loss.
    """
    found = estimate()
    assert (found["lowest_loss"], found["cut_ci95"], found["possible"]) == (1.05, [0.0, 1.05], True)
    assert [row["method"] for row in found["rows"]] == ["mlp", "mixture_mlp", "mixture"]
    assert [row["reduction"] for row in found["rows"]] == pytest.approx([0.6, 0.8, 0.9])
    expected = ([0.2, 1 - 0.15 / 0.45], [1 - 1.1 / 1.5, 1 - 0.05 / 0.45], [0.3, 1])
    assert [row["ci95"] for row in found["rows"]] == [pytest.approx(ci) for ci in expected]
    assert {row["verdict"] for row in found["rows"]} == {"consistent with"}
    worse = estimate(mlp=1.8)["rows"][0]  # a reduction below 0 falls with the floor
    assert worse["reduction"] == pytest.approx(-0.6)
    assert worse["ci95"] == pytest.approx([1 - 0.75 / 0.45, -0.2])


def test_an_impossible_floor_is_none():
    above = estimate(e=(1.2, 0.0, 5.0))
    assert not above["possible"]
    assert {row["verdict"] for row in above["rows"]} == {"undetermined"}
    assert above["rows"][0]["reduction"] is None
    assert estimate(gaussian=1.02)["rows"][0]["reduction"] is None
    with pytest.raises(ValueError, match="a floor of 2.0000 under a baseline's loss of 1.5000"):
        claimed.over(2.0, 1.1, 1.5)
