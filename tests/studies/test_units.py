"""What units read and what clamping them writes: against linear algebra, removed weights and
numpy.
"""

import numpy as np
import pytest
import torch
from known import unscaled
from letters import SIZES, tiny, window

from mmlib.activations import lm as llm
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.mixture import GaussianMixtureDenoiser, full_gaussian
from mmlib.denoisers.networks import MLPDenoiser, UNetDenoiser
from mmlib.denoisers.sae import SAESize, save_sae, train_sae
from mmlib_studies.probing import units


def normal(seed, rows=6):
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed))


Z = normal(0)


def noised(seed):
    return 0.9 * Z + 0.1 * normal(seed)


def mlp():
    torch.manual_seed(0)
    return unscaled(MLPDenoiser(16, 24, 40, 2).eval(), 16)


def hidden_of(model, seed):
    found = model.neurons(Z, sigma=0.1, generator=torch.Generator().manual_seed(seed))
    return torch.cat(list(found.values()), 1)


LINEAR = {
    "raw": units.raw_dimensions(16),
    "pca": units.principal_components(PrincipalComponents.fit(normal(1, 200) + 3)),
    "random": units.random_directions(30, 16, seed=0),
}


@pytest.mark.parametrize("dictionary", LINEAR.values(), ids=LINEAR)
def test_a_clamped_linear_unit_reads_as_its_value_and_nothing_moves_across_it(dictionary):
    change = dictionary.write(Z, 5, 2.5)
    assert dictionary.read(Z + change)[:, 5] == pytest.approx(2.5, abs=1e-5)
    assert np.linalg.matrix_rank(change.numpy(), tol=1e-4) == 1
    assert dictionary.write(Z[:1], 5, dictionary.read(Z)[0, 5].item()) == pytest.approx(0, abs=1e-6)


def test_random_features_are_what_a_gated_unit_is_before_training():
    features = units.random_silu(2000, 16, seed=3)
    found, flipped = units.read_units(features, Z), units.read_units(features, -Z)
    assert found.shape == (6, 2000)
    assert np.array_equal(found, units.read_units(units.random_silu(2000, 16, seed=3), Z))
    assert units.random_silu(4, 16, 0).write is None
    # silu(a) b at −z is silu(−a)(−b), another number: the features are not even
    assert np.corrcoef(found.ravel(), flipped.ravel())[0, 1] < 0.5
    w, v = torch.randn(2, 2000, 16, generator=torch.Generator().manual_seed(3)) / 4
    a, b = (Z @ w.T).numpy(), (Z @ v.T).numpy()
    assert found == pytest.approx(a / (1 + np.exp(-a)) * b, abs=1e-5)


def test_a_clamped_latent_writes_its_decoder_direction(tmp_path):
    size = SAESize(latents=32, k=4, steps=4, batch=64)
    sae = train_sae((torch.randn(64, 16) for _ in range(10)), 16, size, seed=0)
    save_sae(sae, tmp_path, "toy")
    dictionary = units.sae_latents(sae)
    with torch.inference_mode():
        latents, change = dictionary.read(Z), dictionary.write(Z, 3, 1.5)
        direction = sae.decode(torch.eye(32)[3:4]) - sae.decode(torch.zeros(1, 32))
    assert change.numpy() == pytest.approx(((1.5 - latents[:, 3:4]) * direction).numpy(), abs=1e-5)
    dense = units.read_units(units.sae_inputs(sae), Z)
    kept = latents.numpy() > 0
    assert kept.sum() and np.corrcoef(dense[kept], latents.numpy()[kept])[0, 1] > 0.99


def test_mixture_components_have_their_densities_and_probabilities():
    parts = [
        full_gaussian(torch.full((16,), float(mean)), torch.eye(16), torch.full((16,), variance))
        for mean, variance in ((0, 1.0), (0.5, 2.0))
    ]
    mixture = GaussianMixtureDenoiser.of(torch.tensor([0.3, 0.7]).log(), tuple(parts))
    found = units.read_units(units.mixture_components(mixture, 0.1), Z)
    by_hand = (
        np.sum(-((0.9 * Z.numpy() - 0.9 * mean) ** 2) / (2 * v) - np.log(2 * np.pi * v) / 2, 1)
        for mean, v in ((0, 0.81 + 0.01), (0.5, 1.62 + 0.01))
    )
    joint = np.stack(list(by_hand), 1)
    weighed = np.exp(joint) * (0.3, 0.7)
    assert found[:, :2] == pytest.approx(joint, rel=1e-4)
    assert np.exp(found[:, 2:]) == pytest.approx(weighed / weighed.sum(1, keepdims=True), rel=1e-3)


def test_meta_neurons_are_those_of_the_model_and_seeded(monkeypatch):
    model = mlp()
    found = units.read_units(units.meta_neurons(model, 0.1, seed=3), Z)
    assert np.array_equal(found, hidden_of(model, 3).numpy()) and found.shape == (6, 80)
    monkeypatch.setattr(units, "AT_ONCE", 4)  # the parts meet different noise
    twice = units.read_units(units.meta_neurons(model, 0.1, seed=3), Z.repeat(2, 1))
    assert not np.array_equal(twice[:4], twice[6:10])


@pytest.mark.parametrize("unit, block, index", [(7, 0, 7), (39, 0, 39), (40, 1, 0), (79, 1, 39)])
def test_clamping_at_zero_is_removing_the_column_and_at_its_own_value_nothing(unit, block, index):
    model = mlp()
    hidden, x = hidden_of(model, 1), noised(1)
    clean, clamped = model.denoise(x, 0.1), units.clamped_estimate(model, x, 0.1, unit, 0.0)
    # bit for bit
    assert torch.equal(units.clamped_estimate(model, x, 0.1, unit, hidden[:, unit]), clean)
    assert torch.equal(model.denoise(x, 0.1), clean)  # no hook is left behind
    written = units.meta_neurons(model, 0.1, seed=1).write(Z, unit, 0.0)
    assert torch.allclose(written, clamped - clean, atol=1e-6)
    with torch.no_grad():
        model.network.layers[block].down_proj.weight[:, index] = 0
    assert not torch.equal(clamped, clean)
    assert torch.allclose(clamped, model.denoise(x, 0.1), atol=1e-6)
    with pytest.raises(ValueError, match="unit 80: this network has 80"):
        units.clamped_estimate(model, x, 0.1, 80, 0.0)


def test_units_of_a_unet_are_read_and_not_clamped():
    torch.manual_seed(0)
    model = unscaled(UNetDenoiser(16, (32, 32, 32), 1).eval(), 16)
    dictionary = units.meta_neurons(model, 0.1, seed=0)
    assert dictionary.write is None and units.read_units(dictionary, Z).shape == (6, 11 * 32)


@pytest.mark.parametrize("architecture", SIZES)
def test_neurons_in_windows_give_the_blocks_mlp_output(architecture):
    lm, windows = tiny(architecture), [window(9), window(5, 1), window(12, 4)]
    positions = [np.array([0, 8]), np.array([4]), np.array([3, 5, 11])]
    found = units.neurons_in_windows(lm, 1, windows, positions, batch_tokens=24)
    module, seen = units.mlp_output(lm.model, 1), []
    assert found.shape == (6, 32 if architecture == "llama" else 64)
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    expected = []
    for one, places in zip(windows, positions):
        with torch.inference_mode():
            lm.model(torch.tensor([[1, *one.token_ids]]))
        expected.append(seen[-1][0, 1 + places])
    handle.remove()
    with torch.inference_mode():
        assert torch.allclose(module(torch.from_numpy(found)), torch.cat(expected), atol=1e-5)
    assert not module._forward_pre_hooks


def test_a_block_without_a_known_mlp_is_refused(monkeypatch):
    monkeypatch.setattr(units, "DOWN", ("another",))
    message = "expected one matrix named another outside attention, found none"
    with pytest.raises(ValueError, match=message):
        units.mlp_output(tiny().model, 1)


def test_density_and_selectivity_by_hand():
    values = np.array([[0.0, 1, 2, 0], [0, 1, -2, 0], [10, 1, 0.1, 0], [0.5, 1, 0, 0]], np.float32)
    assert units.density(values) == pytest.approx([0.25, 1, 0.5, 0])
    one_token = units.selectivity(np.eye(1, 50, 3).T)
    assert one_token[0] == pytest.approx(1)
    assert units.selectivity(values)[[1, 3]] == pytest.approx([0, 0])
    half_normal = units.selectivity(np.random.default_rng(0).standard_normal((100_000, 1)))
    assert half_normal[0] == pytest.approx(1 - 2 / np.pi, abs=0.01)


def test_the_nearest_unit_is_the_one_numpy_finds(monkeypatch):
    monkeypatch.setattr(units, "AT_ONCE", 2)
    rng = np.random.default_rng(0)
    first = rng.standard_normal((40, 5)).astype(np.float32)
    second = rng.standard_normal((40, 7)).astype(np.float32)
    second[:, 4] = -3 * first[:, 1] + 2
    index, value = units.nearest(first, second)
    table = np.corrcoef(first.T, second.T)[:5, 5:]
    assert np.array_equal(index, np.abs(table).argmax(1)) and value[1] == pytest.approx(-1)
    assert value == pytest.approx(table[range(5), index], abs=1e-5)


def test_paired_correlation_is_numpys_and_0_where_nothing_varies():
    first, second = np.random.default_rng(0).standard_normal((2, 30, 4))
    second[:, 2] = 1.0
    expected = [np.corrcoef(first[:, i], second[:, i])[0, 1] if i != 2 else 0 for i in range(4)]
    assert units.paired_correlation(first, second) == pytest.approx(expected)


def test_matched_units_have_the_matched_density():
    density_u = np.random.default_rng(0).uniform(0, 1, 2000)
    found = units.matched(density_u, 10, 4, seed=0, exclude=[11])
    assert len(set(found) - {10, 11}) == 4
    assert np.abs(density_u[found] - density_u[10]).max() < 0.02
    assert np.array_equal(found, units.matched(density_u, 10, 4, seed=0, exclude=[11]))
    with pytest.raises(ValueError, match="2 other units: expected at least 4"):
        units.matched(density_u[:3], 0, 4, seed=0)


def test_top_contexts_are_cut_around_the_largest_place_of_each_window():
    # the median is 1
    windows = [window(4), window(3, 1)]
    values = np.array([1.0, 2, 6, 0, -3, 11, -4])
    found = units.top_contexts(values, windows, [list("abcd"), list("xyz")], count=2, reach=2)
    assert [one["pieces"][one["at"]] for one in found] == ["y", "c"]
    assert found[0]["values"] == [0, 1, 0]
    assert found[1]["pieces"] == list("abcd")
    assert found[1]["values"] == [0, 0.1, 0.5, 0]
    with pytest.raises(ValueError, match="6 values for 7 tokens"):
        units.top_contexts(values[1:], windows, [], 1, 1)


def test_shown_text_is_escaped():
    context = {"pieces": ["<script>", "\n"], "values": [1.0, 0.0], "at": 0}
    shown = units.as_html("a < b", [context])
    assert "<script>" not in shown
    expected = ("&lt;script&gt;", "a &lt; b", "rgba(213,94,0,0.75)")
    assert all(text in shown for text in expected)


class Marked:
    """A tokenizer that strips the space before a text, as some do."""

    words = {1: "▁he", 2: "▁sings", 3: "ly", 4: "\n"}

    def batch_decode(self, lists):
        return ["".join(self.words[i] for i in ids).replace("▁", " ").lstrip(" ") for ids in lists]


def test_pieces_keep_the_spaces_that_a_tokenizer_strips():
    lm = llm.LanguageModel(None, Marked(), "tiny@0")
    assert units.pieces_of(lm, [1, 2, 3, 4, 1]) == ["he", " sings", "ly", "\n", " he"]
