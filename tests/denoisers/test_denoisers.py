"""The three networks: shapes, gated skip and sparse latents by hand, widths the image must fit."""

import pytest
import torch

from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import (
    ActivationDiffusionModel,
    MLPDenoiser,
    SparseDenoiser,
    SparseSize,
    UNetDenoiser,
    count_parameters,
    image_shape,
)
from mmlib.denoisers.noise import FlowMatching
from mmlib.training.recipe import Recipe, Training, new_model

SHAPES = {5120: (32, 160), 640: (20, 32), 768: (24, 32), 2048: (32, 64), 100: (4, 28), 1: (4, 4)}


@pytest.mark.parametrize("d, shape", SHAPES.items())
def test_image_shape(d, shape):
    assert image_shape(d) == shape


@pytest.mark.parametrize("d", range(1, 3000, 37))
def test_any_width_fits_and_both_halvings_are_whole(d):
    height, width = image_shape(d)
    assert 0 <= height * width - d < 16 and height <= width
    assert height % 4 == width % 4 == 0


@pytest.mark.parametrize("d", [64, 100])
def test_unet_keeps_the_vector_shape_and_uses_time(d):
    torch.manual_seed(0)
    network = UNetDenoiser(d, (32, 32, 32), 1).eval()
    x = torch.randn(2, d)
    with torch.inference_mode():
        early, late = (network(x, torch.tensor([time])) for time in (5.0, 900.0))
    assert early.shape == x.shape and not torch.allclose(early, late)


def test_the_articles_size():
    model = ActivationDiffusionModel()
    assert model.config.activation_dim == 5120 and model.image == (32, 160)
    assert count_parameters(model) == pytest.approx(58.9e6, rel=0.01)


def without(network, name):
    """Weights of a network, as one that has no such part has them."""
    weights = network.state_dict().items()
    return {key: value for key, value in weights if not key.startswith(name)}


def test_the_gated_skip_by_hand():
    torch.manual_seed(0)
    network, plain = MLPDenoiser(6, 12, 24, 1, gated_skip=True), MLPDenoiser(6, 12, 24, 1)
    plain.load_state_dict(without(network, "gate_out"))
    x, t, seen = torch.randn(4, 6), torch.tensor([500.0]), []
    network.ln.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    outcome = network(x, t)
    assert torch.allclose(outcome, plain(x, t) + network.gate_out(seen[0]) * x, atol=1e-6)


def test_the_unet_in_another_order_is_the_same_unet_on_permuted_dimensions():
    torch.manual_seed(0)
    order = torch.randperm(48).tolist()
    plain = UNetDenoiser(48, (32, 32, 32), 1).eval()
    permuted = UNetDenoiser(48, (32, 32, 32), 1, order=order).eval()
    permuted.load_state_dict(plain.state_dict())
    x, t = torch.randn(2, 48), torch.tensor([10.0, 700.0])
    with torch.inference_mode():
        assert torch.allclose(permuted(x, t)[:, order], plain(x[:, order], t), atol=1e-5)


def test_impossible_sizes_are_refused():
    assert image_shape(640, 4) == (4, 160)
    for impossible, message in (
        (lambda: image_shape(640, 12), "height 12 for 640"),
        (lambda: UNetDenoiser(48, (32, 32, 32), 1, order=[0, 0]), "permutation"),
        (lambda: SparseDenoiser(2, 4, 5), "k=5 of 4 latents: expected 1 to 4"),
    ):
        with pytest.raises(ValueError, match=message):
            impossible()


def test_mlp_default_widths_are_the_published_ratios():
    network = MLPDenoiser(d_input=640)
    assert network.in_proj.out_features == 1280 and network.layers[0].up_proj.out_features == 2560
    assert count_parameters(network) == pytest.approx(44.3e6, rel=0.01)


TIME = torch.tensor([500.0])


def by_hand(k):
    """Latents read x₀, x₁, −x₀ and x₀ + x₁ − 10; they write to the dimensions 10, 20, 30 and 40 in
    turn.
    """
    network = SparseDenoiser(2, 4, k).eval()
    with torch.no_grad():
        network.encoder.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 1]]))
        network.encoder.bias.copy_(torch.tensor([0.0, 0, 0, -10]))
        network.decoder.weight.copy_(torch.tensor([[10.0, 0], [20, 0], [30, 0], [40, 1]]))
        network.b_dec.copy_(torch.tensor([1.0, 0]))
    return network


def test_a_sparse_forward_by_hand():
    """x = (4, 2), b_dec = (1, 0): pre-activations 3, 2, −3, −5. k = 1 keeps the 3, k = 2 the 2 too;
    the third largest is below 0."""
    x = torch.tensor([[4.0, 2.0]])
    assert by_hand(1)(x, TIME).tolist() == [[31.0, 0.0]]
    assert by_hand(2)(x, TIME).tolist() == by_hand(3)(x, TIME).tolist() == [[71.0, 0.0]]
    assert by_hand(3).encode(x).tolist() == [[3.0, 2.0, 0.0, 0.0]]


def test_training_computes_the_same_from_the_active_latents_alone():
    """Outputs and every gradient, with the dense product's; in one row no latent is above 0."""
    network, x = SparseDenoiser(16, 64, 5, level_gain=True), torch.randn(12, 16)
    with torch.no_grad():
        network.encoder.bias.fill_(-0.05)
    x[0] = network.b_dec.detach()
    outputs, gradients = {}, {}
    for training in (True, False):
        network.train(training).zero_grad()
        outputs[training] = network(x, TIME)
        outputs[training].square().mean().backward()
        gradients[training] = {
            name: parameter.grad.clone() for name, parameter in network.named_parameters()
        }
    assert not network.encode(x)[0].any()
    torch.testing.assert_close(outputs[True], outputs[False])
    torch.testing.assert_close(gradients[True], gradients[False])


def test_exactly_k_latents_are_active_where_k_are_positive():
    network, x = SparseDenoiser(16, 256, 5), torch.randn(50, 16)
    latents = network.encode(x)
    assert ((latents > 0).sum(1) == 5).all()
    every = torch.relu((x - network.b_dec) @ network.encoder.weight.T + network.encoder.bias)
    assert torch.allclose(latents.max(1).values, every.max(1).values)
    assert torch.equal(latents.bool() & (latents != every), torch.zeros_like(every).bool())


def test_the_gain_depends_on_the_level_alone_and_starts_at_one():
    network, plain = SparseDenoiser(8, 32, 4, level_gain=True), SparseDenoiser(8, 32, 4)
    plain.load_state_dict(without(network, "gain"))
    x = torch.randn(6, 8)
    times = torch.tensor([100.0, 900.0])
    assert torch.equal(network(x, times), plain(x, times))
    torch.nn.init.normal_(network.gain.weight)
    ratio = (network(x, times) / plain(x, times)).unflatten(0, (2, 3)).flatten(1)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3)
    assert not torch.isclose(ratio[0, 0], ratio[1, 0])


def test_an_all_zero_decoder_over_a_gaussian_gives_its_estimate_and_both_are_saved(tmp_path):
    size = SparseSize(32, 4, level_gain=True)
    recipe = Recipe(size, Training("flow_velocity", steps=1, batch=8, lr=1e-3), linear_skip=True)
    gaussian = PrincipalComponents.fit(torch.randn(500, 8)).gaussian()
    origin, x = Origin(Normaliser(torch.zeros(1, 8), torch.ones(1, 8))), torch.randn(20, 8)
    model = new_model(recipe, origin, 0, gaussian)
    model.network.eval()  # as it is read again: sums over active latents alone round otherwise
    assert not torch.allclose(model(x, 0.4), gaussian(x, 0.4), atol=1e-3)
    model.save_pretrained(tmp_path)
    again = MetaModel.from_pretrained(tmp_path)
    assert type(again.network.inner) is SparseDenoiser and again.network.inner.config.k == 4
    assert torch.equal(again(x, 0.4), model(x, 0.4))
    assert again.neurons(x, sigma=0.1, generator=torch.Generator())["latents"].shape == (20, 32)
    torch.nn.init.zeros_(model.network.inner.decoder.weight)
    for level in FlowMatching().grid()[::20]:
        assert torch.allclose(model(x, level.sigma), gaussian(x, level.sigma), atol=1e-5)
