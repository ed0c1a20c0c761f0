"""The sparse autoencoder as a network: by hand, through a checkpoint, and on top of a Gaussian."""

import pytest
import torch

from mmlib.activations.store import ActivationStore
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import SparseDenoiser, SparseSize
from mmlib.denoisers.noise import FlowMatching
from mmlib.training.recipe import Recipe, Training, new_model

TIME = torch.tensor([500.0])


def by_hand(k, **config):
    """Latents read x₀, x₁, −x₀ and x₀ + x₁ − 10; they write to the dimensions 10, 20, 30 and 40 in turn."""
    network = SparseDenoiser(2, 4, k, **config)
    network.eval()
    with torch.no_grad():
        network.encoder.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [1, 1]]))
        network.encoder.bias.copy_(torch.tensor([0.0, 0, 0, -10]))
        network.decoder.weight.copy_(torch.tensor([[10.0, 0], [20, 0], [30, 0], [40, 1]]))
        network.b_dec.copy_(torch.tensor([1.0, 0]))
    return network


def test_forward_by_hand():
    """x = (4, 2), b_dec = (1, 0): pre-activations 3, 2, −3, −5. k = 1 keeps the 3, k = 2 the 2 too; the third largest is below 0."""
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
    assert torch.allclose(latents.max(1).values, every.max(1).values) and torch.equal(
        latents.bool() & (latents != every), torch.zeros_like(every).bool()
    )


def test_the_gain_depends_on_the_level_alone_and_starts_at_one():
    plain, network, x = (
        SparseDenoiser(8, 32, 4),
        SparseDenoiser(8, 32, 4, level_gain=True),
        torch.randn(6, 8),
    )
    plain.load_state_dict(
        {name: value for name, value in network.state_dict().items() if not name.startswith("gain")}
    )
    times = torch.tensor([100.0, 900.0])
    assert torch.equal(network(x, times), plain(x, times))
    torch.nn.init.normal_(network.gain.weight)
    ratio = (network(x, times) / plain(x, times)).unflatten(0, (2, 3)).flatten(1)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3) and not torch.isclose(
        ratio[0, 0], ratio[1, 0]
    )


def test_more_active_latents_than_latents_are_refused():
    with pytest.raises(ValueError, match="k=5 of 4 latents: expected 1 to 4"):
        SparseDenoiser(2, 4, 5)


@pytest.fixture
def model(make_store):
    """A model of a small store, and the Gaussian below it."""
    path, values = make_store()
    store = ActivationStore(path)
    recipe = Recipe(
        SparseSize(32, 4, level_gain=True),
        Training("flow_velocity", steps=1, batch=8, lr=1e-3),
        linear_skip=True,
    )
    gaussian = PrincipalComponents.fit(
        torch.randn(500, store.d, generator=torch.Generator().manual_seed(0))
    ).gaussian()
    return new_model(recipe, Origin.of(store), 0, gaussian), gaussian


def test_round_trip(model, tmp_path):
    model, _ = model
    model.save_pretrained(tmp_path)
    again, x = MetaModel.from_pretrained(tmp_path), torch.randn(20, model.d)
    assert type(again.network.inner) is SparseDenoiser and again.network.inner.config.k == 4
    assert torch.equal(again(x, 0.4), model(x, 0.4))
    assert again.neurons(x, sigma=0.1, generator=torch.Generator())["latents"].shape == (20, 32)


def test_an_all_zero_decoder_gives_the_gaussians_estimate(model):
    (model, gaussian), x = model, torch.randn(20, 8)
    assert not torch.allclose(model(x, 0.4), gaussian(x, 0.4), atol=1e-3)
    torch.nn.init.zeros_(model.network.inner.decoder.weight)
    for level in FlowMatching().grid()[::20]:
        assert torch.allclose(model(x, level.sigma), gaussian(x, level.sigma), atol=1e-5)
