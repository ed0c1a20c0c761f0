"""The two networks: shapes, the gated skip by hand, widths the image must fit."""

import pytest
import torch

from mmlib.denoisers.networks import (
    ActivationDiffusionModel,
    MLPDenoiser,
    UNetDenoiser,
    count_parameters,
    image_shape,
)
from mmlib.runs.presets import get_preset


@pytest.mark.parametrize(
    "d, shape",
    [
        (5120, (32, 160)),
        (640, (20, 32)),
        (768, (24, 32)),
        (2048, (32, 64)),
        (100, (4, 28)),
        (1, (4, 4)),
    ],
)
def test_image_shape(d, shape):
    assert image_shape(d) == shape


@pytest.mark.parametrize("d", range(1, 3000, 37))
def test_any_width_fits_and_both_halvings_are_whole(d):
    height, width = image_shape(d)
    assert height * width >= d
    assert height % 4 == 0
    assert width % 4 == 0
    assert height * width - d < 16
    assert height <= width


@pytest.mark.parametrize("d", [64, 100])
def test_unet_keeps_the_vector_shape_and_uses_time(d):
    torch.manual_seed(0)
    network = UNetDenoiser(d, (32, 32, 32), 1).eval()
    x = torch.randn(2, d)
    with torch.inference_mode():
        early, late = network(x, torch.tensor([5.0, 5.0])), network(x, torch.tensor([900.0, 900.0]))
    assert early.shape == x.shape and not torch.allclose(early, late)


def test_the_articles_size():
    model = ActivationDiffusionModel()
    assert model.config.activation_dim == 5120 and model.image == (32, 160)
    assert count_parameters(model) == pytest.approx(58.9e6, rel=0.01)


def test_matched_mlps_have_the_numbers_of_parameters_that_they_match():
    """At d = 640: the default UNet's, and those of the default SAE (encoder, decoder and two biases)."""
    preset = get_preset("default")
    unet, sae = preset.recipes["unet"].size, preset.sae.latents * (2 * 640 + 1) + 640
    for name, target in (
        ("mlp_2m", count_parameters(UNetDenoiser(640, unet.channels, unet.layers_per_block))),
        ("mlp_5m", sae),
    ):
        size = preset.recipes[name].size
        assert count_parameters(
            MLPDenoiser(640, size.d_model, size.d_mlp, size.layers)
        ) == pytest.approx(target, rel=0.05)
        assert size.d_mlp == 2 * size.d_model, "the paper's ratio"


def test_the_gated_skip_by_hand():
    torch.manual_seed(0)
    network = MLPDenoiser(6, 12, 24, 1, gated_skip=True)
    plain = MLPDenoiser(6, 12, 24, 1)
    x = torch.randn(4, 6)
    t = torch.tensor([500.0])
    plain.load_state_dict(
        {
            key: value
            for key, value in network.state_dict().items()
            if not key.startswith("gate_out")
        }
    )
    h = {}
    network.ln.register_forward_hook(
        lambda module, inputs, output: h.update(out=output.flatten(0, 1))
    )
    outcome = network(x, t)
    assert torch.allclose(outcome, plain(x, t) + network.gate_out(h["out"]) * x, atol=1e-6)


def test_the_unet_in_another_order_is_the_same_unet_on_permuted_dimensions():
    torch.manual_seed(0)
    order = torch.randperm(48).tolist()
    plain = UNetDenoiser(48, (32, 32, 32), 1).eval()
    permuted = UNetDenoiser(48, (32, 32, 32), 1, order=order).eval()
    permuted.load_state_dict(plain.state_dict())
    x, t = torch.randn(2, 48), torch.tensor([10.0, 700.0])
    with torch.inference_mode():
        assert torch.allclose(permuted(x, t)[:, order], plain(x[:, order], t), atol=1e-5)
    with pytest.raises(ValueError, match="permutation"):
        UNetDenoiser(48, (32, 32, 32), 1, order=[0, 0])


def test_an_impossible_image_is_refused():
    assert image_shape(640, 4) == (4, 160)
    with pytest.raises(ValueError, match="height 12 for 640"):
        image_shape(640, 12)


def test_mlp_default_widths_are_the_published_ratios():
    network = MLPDenoiser(d_input=640)
    assert network.in_proj.out_features == 1280 and network.layers[0].up_proj.out_features == 2560
    assert count_parameters(network) == pytest.approx(44.3e6, rel=0.01)
