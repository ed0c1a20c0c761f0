"""SAEs trained by SAELens, on activations that really are sparse combinations."""

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

import mmlib
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.gaussian import PrincipalComponents, activations_id, clean_input
from mmlib.denoisers.sae import (
    SAEDenoiser,
    SAESize,
    load_sae,
    save_sae,
    train_sae,
)
from mmlib.files import CheckpointError, StoreError
from mmlib_studies.saes import drawn_batches, frequent_firing, sae_quality


def sparse_batches():
    """64 directions in 16 dimensions, 3 active at a time: what an SAE assumes of activations."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(64, 16, generator=generator), dim=1)

    def batch(n=256):
        active = torch.rand(n, 64, generator=generator).argsort(1) < 3
        return (active * torch.rand(n, 64, generator=generator)) @ directions

    return batch


def train(batch, kind="topk"):
    size = SAESize(latents=64, k=3, steps=300, batch=256, lr=3e-3, kind=kind)
    return train_sae(iter(batch, None), 16, size, seed=0)


@pytest.fixture(scope="module")
def trained():
    batch = sparse_batches()
    return train(batch), batch(2000)


def test_sae_learns_sparse_data(trained):
    quality = sae_quality(*trained)
    assert quality["l0"] <= 3 and quality["fvu"] < 0.45 and len(quality["frequency"]) == 64


@pytest.mark.parametrize("kind, most", [("topk", 3), ("batchtopk", 4), ("jumprelu", 12)])
def test_every_kind_is_trained_saved_and_as_sparse_as_asked(kind, most, tmp_path, store):
    """On the data above, standardised; a JumpReLU only aims at its sparsity."""
    raw = sparse_batches()
    mean, std = raw(10_000).mean(0), raw(10_000).std(0)

    def batch(n=256):
        return (raw(n) - mean) / std

    trained, z = train(batch, kind), batch(2000)
    save_sae(trained, tmp_path / kind, store.documents, activations_id(store))
    loaded = load_sae(tmp_path / kind, store)
    quality = sae_quality(loaded, z)
    assert 1 < quality["l0"] <= most and quality["fvu"] < 0.6
    assert torch.allclose(trained(z), loaded(z), atol=1e-5), "as before it was saved"
    assert loaded.cfg.metadata.train_activations == trained.cfg.metadata.train_activations


def test_draws_of_the_control_have_the_fitted_mean_and_covariance_and_nothing_else():
    """Data of heavy tails: draws share their first two moments, whose errors are √(2/n) of a
    variance, and have a Gaussian's kurtosis.
    """
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(5000, 4, generator=generator).pow(3)
    z = mixed @ torch.randn(4, 4, generator=generator) + 1
    gaussian = PrincipalComponents.fit(z).gaussian()
    batches = drawn_batches(gaussian, 10_000, seed=3)
    parts = [next(batches) for _ in range(5)]
    drawn = torch.cat(parts)
    assert not torch.equal(parts[0], parts[1]), "no batch is drawn twice"
    scale = z.std(0)
    assert torch.allclose(drawn.mean(0) / scale, z.mean(0) / scale, atol=0.03)
    expected = z.T.cov() / scale / scale[:, None]
    assert torch.allclose(drawn.T.cov() / scale / scale[:, None], expected, atol=0.05)
    kurtosis_d = ((drawn - drawn.mean(0)) / drawn.std(0)).pow(4).mean(0)
    assert kurtosis_d == pytest.approx([3] * 4, abs=0.2)
    assert torch.equal(next(drawn_batches(gaussian, 10_000, seed=3)), parts[0]), "seeded"


def test_the_most_frequent_latents_come_first_and_none_that_is_always_or_never_on(trained):
    sae, z = trained
    firing, frequency = frequent_firing(sae, z, 10), torch.tensor(sae_quality(sae, z)["frequency"])
    assert firing.shape == (len(z), 10)
    assert torch.allclose(firing.float().mean(0), frequency.sort(descending=True).values[:10])
    one = frequent_firing(sae, z[:1], 10)
    assert one.shape == (1, 0), "on a single token every latent fires always or never"


def test_the_seed_of_an_sae_decides_its_weights():
    batch = sparse_batches()()
    first, same, other = (
        train_sae(iter([batch] * 2), 16, SAESize(64, 3, 1, 256), seed=seed).W_enc
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, same) and not torch.allclose(first, other)


def test_unknown_kind_is_refused():
    message = "unknown kind of SAE 'lasso': expected one of topk, batchtopk, jumprelu"
    with pytest.raises(ValueError, match=message):
        train_sae(iter([]), 16, SAESize(latents=64, k=3, steps=1, kind="lasso"), seed=0)


def test_denoiser_is_the_reconstruction_of_what_it_is_fed(trained):
    sae, z = trained
    for fed in ("rescaled", "mean_estimate"):
        assert torch.allclose(SAEDenoiser(sae, fed)(z, 0.3), sae(clean_input(z, 0.3, fed)))
    with pytest.raises(ValueError, match="expected 'mean_estimate' or 'rescaled'"):
        SAEDenoiser(sae, "as it is")(z, 0.3)


def test_an_sae_with_an_identity_decoder_is_the_naive_estimate():
    """Latents ReLU(x) and ReLU(−x), decoded to x: nothing is left out, so what remains is what it
    was fed.
    """
    sae, eye = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8)), torch.eye(4)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([eye, -eye], 1))
        sae.W_dec.copy_(torch.cat([eye, -eye]))
    x = torch.randn(5, 4)
    assert torch.allclose(SAEDenoiser(sae, "rescaled")(x, 0.3), x / 0.7, atol=1e-6)


@pytest.fixture
def foreign(tmp_path):
    """An SAE of someone else, of width 4, with these words in its cfg.json."""

    def write(metadata, **settings):
        sae = StandardSAE(StandardSAEConfig(d_in=4, d_sae=8, **settings))
        sae.cfg.metadata = type(sae.cfg.metadata)(**metadata)
        sae.save_model(tmp_path / "theirs")
        return tmp_path / "theirs", sae

    return write


@pytest.mark.parametrize(
    "settings", [{}, {"dtype": "bfloat16"}, {"normalize_activations": "layer_norm"}], ids=str
)
@pytest.mark.parametrize("hook", ["blocks.3.hook_resid_post", "model.layers.3"])
def test_an_sae_of_someone_else_reads_raw_activations_of_the_block_it_names(
    foreign, hook, settings
):
    folder, sae = foreign({"hook_name": hook, "model_name": "gpt2"}, **settings)
    model, h = mmlib.load(folder), 5 + 3 * torch.randn(6, 4)
    sae.dtype = torch.float32
    assert torch.allclose(model.reconstruct(h), sae.float()(h), atol=1e-5)
    assert model.check(layer=3) is model and model.sae.W_dec.dtype == torch.float32
    with pytest.raises(StoreError, match="layer 3"):
        model.check(layer=2)
    with pytest.raises(CheckpointError, match="leave standardise= out"):
        mmlib.load(folder, standardise=Normaliser(torch.ones(1, 4), torch.ones(1, 4)))
    for name in ("gpt2@9f2c", "openai-community/GPT2@9f2c"):
        model.check(language_model=name)
    with pytest.raises(StoreError, match="trained on gpt2 layer 3 .* are of gpt2-medium@9f2c"):
        model.check(language_model="gpt2-medium@9f2c")
    again = mmlib.load(model.save(folder.parent / "mine"))
    assert torch.equal(again.reconstruct(h), model.reconstruct(h)) and again.origin.layers == (3,)


@pytest.mark.parametrize(
    "metadata, settings, message",
    [
        ({"hook_name": "blocks.3.hook_resid_pre"}, {}, "expected one of blocks.N.hook_resid_post"),
        ({"hook_name": "blocks.3.attn.hook_z"}, {}, "SAE of blocks.3.attn.hook_z"),
        ({"hook_name": "blocks.3.hook_mlp_out"}, {}, "the output of a whole block"),
        (
            {"hook_name": "blocks.3.hook_resid_post"},
            {"normalize_activations": "expected_average_only_in"},
            "'expected_average_only_in', which is not folded into its weights",
        ),
        ({}, {}, "pass standardise="),
        ({"documents": "texts@1"}, {}, "former version, which kept no digests"),
    ],
)
def test_an_sae_of_other_activations_is_refused_with_the_words(
    foreign, metadata, settings, message
):
    folder, _ = foreign(metadata, **settings)
    with pytest.raises(CheckpointError, match=message):
        mmlib.load(folder)


@pytest.mark.parametrize(
    "name, same, other",
    [
        ("gpt2-small", "gpt2", "gpt2-medium"),
        ("google/gemma-2-2b", "gemma-2-2b", "mine/gemma-2-2b"),
        ("gemma-3-270m", "gemma3-270m", "gemma3-1b"),
    ],
)
def test_an_sae_of_someone_else_is_compared_by_its_language_models_name(foreign, name, same, other):
    """Where it names no block too."""
    h = 5 + 3 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    folder, _ = foreign({"model_name": name})
    ours, theirs = (
        mmlib.fit(h, "gaussian", language_model=f"{one}@9f2c", progress=False)
        for one in (same, other)
    )
    assert mmlib.load(folder, standardise=ours).origin.language_model == f"{same}@9f2c"
    with pytest.raises(StoreError, match=f"was trained on {name} .* are of {other}@9f2c"):
        mmlib.load(folder, standardise=theirs)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_truncated_sae_of_someone_else_is_refused_by_name(foreign, name):
    folder, _ = foreign({"hook_name": "blocks.3.hook_resid_post"})
    (folder / name).write_bytes((folder / name).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="theirs holds no SAE that SAELens reads"):
        mmlib.load(folder)
