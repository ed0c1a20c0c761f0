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
from mmlib_studies.verdict import floor_rows, plain_words


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
    """Losses 1.2 and 1.5: above a floor of 0.6 the reduction is 1 − 0.6/0.9; it is 47 % where (1.2 − E) = 0.53 (1.5 − E)."""
    losses = Losses(
        np.array([0.5]),
        {"m": np.array([[12.0, 24, 12, 12, 6]]), "b": np.array([[15.0, 30, 15, 15, 7.5]])},
        np.array([[10.0, 20, 10, 10, 5]]),
    )
    found = floor_rows(losses, "m", "b", steps=2)
    assert found["lowest_loss_seen"] == pytest.approx(1.2) and [
        row["floor"] for row in found["rows"]
    ] == pytest.approx([0, 0.6])
    assert [row["reduction"] for row in found["rows"]] == pytest.approx([0.2, 1 / 3])
    assert found["floor_for_claim"] == pytest.approx((1.2 - 0.53 * 1.5) / 0.47)
    assert floor_rows(losses, "b", "m")["floor_for_claim"] is None


class Remembered:
    """Knows the clean activations: the perfect estimate."""

    parameters = 7

    def __init__(self, z):
        self.z = z

    def __call__(self, x, sigma):
        return self.z


def test_mix_gives_all_weight_to_a_perfect_further_term(z):
    levels = FlowMatching().grid()[::30]
    mixed = MixedDenoiser(
        Scaled(0.3), levels, z, torch.Generator().manual_seed(1), also=[Remembered(z)]
    )
    assert mixed.parameters == 7
    for level in levels:
        alpha, beta, gamma = mixed.weights[level.sigma]
        assert gamma == pytest.approx(1, abs=1e-6) and 0.3 * alpha + beta == pytest.approx(
            0, abs=1e-6
        )
        assert torch.allclose(mixed(torch.randn(z.shape), level.sigma), z, atol=1e-4)


def test_mix_is_never_worse_than_its_terms_on_the_tokens_it_was_fitted_to(z):
    """Also where two terms differ by rounding alone: their weights must not grow to make use of it."""
    scaled = z * torch.tensor([3.0, 1.0, 1.0, 0.3, 0.1])
    gaussian, levels = PrincipalComponents.fit(scaled).gaussian(), FlowMatching().grid()[::9]
    for inner in (
        Projection(torch.zeros(5), torch.eye(5)[:, :2], "mean_estimate"),
        gaussian,
        standard_normal(5),
    ):
        mixed = MixedDenoiser(
            inner, levels, scaled, torch.Generator().manual_seed(1), also=[gaussian]
        )
        generator = torch.Generator().manual_seed(1)  # the noise of the fit again
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


def words(ours_over_mixture=-0.007, primary=(-0.31, 0.46, 0.2, 0.23), **options):
    def row(method, baseline, objective, reduction):
        return {
            "method": method,
            "baseline": baseline,
            "objective": objective,
            "reduction": reduction,
            "reduction_without_sigma_below_0.05": 0.11,
            "baseline_share_of_one_level": 0.65 if baseline == "pca_k64" else 0.02,
            "above_claim": reduction - CLAIM,
            "ci95": [reduction - 0.02, reduction + 0.02],
            "verdict": verdict(reduction - 0.02, reduction + 0.02),
        }

    keys = (
        ("unet", "pca_k64", "ddpm_epsilon"),
        ("unet", "sae", "ddpm_epsilon"),
        ("mlp", "gaussian", "flow_velocity"),
        ("gated_mlp", "gaussian", "flow_velocity"),
    )
    return plain_words(
        [
            *(row(*key, value) for key, value in zip(keys, primary)),
            row("unet", "mean", "ddpm_epsilon", 0.1),
            row("mlp", "mean", "flow_velocity", 0.1),
            row("gated_mlp", "mean", "flow_velocity", 0.3),
            row("gated_mlp", "mixture", "flow_velocity", ours_over_mixture),
        ],
        [{"floor_for_claim": floor} for floor in (None, None, None, 0.662)],
        **options,
    )


def test_plain_words_quote_the_numbers():
    text = words()
    assert "made after these test documents had been looked at" in text
    assert (
        "the reduction of the loss is −31.0 %" in text
        and "A negative reduction is a higher loss." in text
    )
    assert (
        "23.0 % (95 % interval 21.0 to 25.0 %; 11.0 % without σ < 0.05; the mean alone has −10.0 %): below the claimed 47 %, by 24.0 points."
        in text
    )
    assert (
        text.count("would be 47 % if the best possible loss were 0.66") == 1
        and "consistent with the claimed 47 %." in text
    )
    assert "from −31.0 % to 46.0 %; 1 of them is consistent with 47 %" in text
    assert (
        text.count("65.0 % of the baseline's loss") == 1
        and "decides" not in text
        and "scaling law" not in text
    )


def test_plain_words_say_what_the_mean_alone_does():
    """97 % over PCA where 10 % is over the mean: the mean has 1 − 0.03/0.9 over PCA."""
    text = words(primary=(0.97, 0.46, 0.2, 0.23))
    assert (
        "the mean alone has 96.7 %): above the claimed 47 %, by 50.0 points. There the mean alone, which knows nothing"
        in text
        and "decides" in text
    )


@pytest.mark.parametrize(
    "reduction, who",
    [
        (-0.1, "the mixture has the lower loss"),
        (0.1, "the network has the lower loss"),
        (0.01, "neither can be said to have the lower loss"),
    ],
)
def test_plain_words_read_right_whichever_of_mixture_and_network_is_lower(reduction, who):
    text = words(ours_over_mixture=reduction)
    assert text.count(who) == 1 and text.count("lower loss") == 1
    assert f"our recipe's reduction is {100 * reduction:.1f} %".replace("-", "−") in text


def estimate(mlp=1.2, gated=1.1, mixture=1.05, gaussian=1.5, e=(1.0, 0.0, 5.0)):
    losses = {"mlp": mlp, "gated_mlp": gated, "mixture": mixture, "gaussian": gaussian}
    rows = [
        {"method": method, "objective": "flow_velocity", "loss": loss}
        for method, loss in losses.items()
    ]
    primary = [
        {"definition": name, "method": name, "baseline": "gaussian", "objective": "flow_velocity"}
        for name in ("mlp", "gated_mlp")
    ]
    primary.append(
        {"definition": "unet", "method": "unet", "baseline": "sae", "objective": "ddpm_epsilon"}
    )  # the law is of the velocity loss
    return claimed.over_the_estimate(
        {"rows": rows, "primary": primary},
        {"extrapolated": "x", "laws": {"x": {"e": {"value": e[0], "ci95": list(e[1:])}}}},
    )


def test_reduction_over_the_estimated_floor_by_hand():
    """Above 1 the losses are 0.2, 0.1, 0.05 of 0.5; the interval of E is cut at 1.05, the lowest loss."""
    found = estimate()
    assert (found["lowest_loss"], found["cut_ci95"], found["possible"]) == (1.05, [0.0, 1.05], True)
    assert [row["method"] for row in found["rows"]] == ["mlp", "gated_mlp", "mixture"]
    assert [row["reduction"] for row in found["rows"]] == pytest.approx([0.6, 0.8, 0.9])
    assert [row["ci95"] for row in found["rows"]] == [
        pytest.approx(ci)
        for ci in ([0.2, 1 - 0.15 / 0.45], [1 - 1.1 / 1.5, 1 - 0.05 / 0.45], [0.3, 1])
    ]
    assert {row["verdict"] for row in found["rows"]} == {"consistent with"}
    worse = estimate(mlp=1.8)["rows"][0]  # a reduction below 0 falls with the floor
    assert worse["reduction"] == pytest.approx(-0.6) and worse["ci95"] == pytest.approx(
        [1 - 0.75 / 0.45, -0.2]
    )


def test_an_impossible_floor_is_none():
    above = estimate(e=(1.2, 0.0, 5.0))
    assert (
        not above["possible"]
        and {row["verdict"] for row in above["rows"]} == {"undetermined"}
        and above["rows"][0]["reduction"] is None
    )
    assert claimed.in_words(above).endswith(
        "which is above a loss already measured (1.05) and so no floor."
    )
    lowest = estimate(gaussian=1.02)
    assert lowest["rows"][0][
        "reduction"
    ] is None and "the baseline's own loss is the lowest" in claimed.in_words(lowest)
    with pytest.raises(ValueError, match="a floor of 2.0000 under a baseline's loss of 1.5000"):
        claimed.over(2.0, 1.1, 1.5)


def test_the_words_on_a_floor_say_where_the_number_appears():
    text = words(over_the_estimate=estimate())
    assert (
        "at 1.00 (95 % interval 0.00 to 5.00), cut here at 1.05, a loss already reached. Of what lies above that floor"
        in text
    )
    assert (
        "our recipe 80.0 % (26.7 to 88.9 % over that interval)" in text
        and "does appear" not in text
    )
    assert (
        "47 % is within the interval of 3 of these 3: whether it appears is a choice of the floor"
        in text
    )
    assert "the article's number does appear, for the paper's MLP." in claimed.in_words(
        estimate(mlp=1.265)
    )
    assert claimed.in_words(estimate(e=(1.0, 0.99, 1.01))).endswith(
        "47 % is within no interval of these."
    )
