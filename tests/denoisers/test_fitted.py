"""The protocol of fitted objects: which values it takes and gives, what a method lacks, folders,
identity, and hooks.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from letters import tiny
from toy_fits import D, activations, fitted

import mmlib
from mmlib.activations.lm import edited_block
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import CheckpointError, Origin
from mmlib.denoisers.fitted import Cost, Fitted, Unsupported
from mmlib.denoisers.gaussian import PrincipalComponents, activations_id
from mmlib.denoisers.kinds import FittedNetwork
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import MLPDenoiser
from mmlib.denoisers.noise import SMOOTHING, checked_sigma
from mmlib.denoisers.sae import SAESize, save_sae
from mmlib.files import sealed

KINDS = ("gaussian", "pca", "mixture", "average", "sae", "network", "residual")
HELD_OUT = activations(200, seed=1)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_denoises_standardised_x(kind):
    model, x = fitted(kind), fitted(kind).noised(HELD_OUT, 0.3, seed=2)
    z, noise = model.standardise(HELD_OUT), (x - 0.7 * model.standardise(HELD_OUT)) / 0.3
    assert x.shape == z.shape
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    estimate = model.denoise(x, sigma=0.3)
    assert torch.allclose(estimate, model.denoiser(x, 0.3), atol=1e-5)
    assert torch.equal(estimate, model.denoise(x.double().numpy(), 0.3))
    sigmas = np.repeat([0.3, 0.6], 100)
    both = torch.cat([model.denoise(x[:100], 0.3), model.denoise(x[100:], 0.6)])
    assert torch.allclose(model.denoise(x, sigmas), both, atol=1e-5)
    assert torch.allclose(model.raw(z), HELD_OUT, rtol=1e-4)


def test_estimates_are_better_than_what_came_in():
    for kind in ("gaussian", "mixture"):
        model = fitted(kind)
        z, x = model.standardise(HELD_OUT), model.noised(HELD_OUT, 0.5)
        assert (model.denoise(x, 0.5) - z).square().mean() < 0.8 * (x - z).square().mean()


@pytest.mark.parametrize("sigma", [0.0, 1.0, -0.1, 300, float("nan"), True, "0.3", [0.3, 0.4]])
def test_a_noise_level_out_of_range_is_refused(sigma):
    model = fitted("gaussian")
    calls = (
        (model.denoise, torch.zeros(3, D)),
        (model.noised, HELD_OUT),
        (model.project, HELD_OUT),
    )
    for call, values in calls:
        with pytest.raises(ValueError, match="σ = "):
            call(values, sigma)


def test_noise_levels_are_one_or_one_for_each_row():
    assert checked_sigma(torch.tensor(0.3)) == pytest.approx(0.3)
    assert checked_sigma([0.3, 0.4], 2).tolist() == [0.3, 0.4]


def test_raw_and_standardised_values_are_not_mistaken_for_each_other():
    model = fitted("mixture")
    z, x = model.standardise(HELD_OUT), model.noised(HELD_OUT, 0.3)
    for wrong in (HELD_OUT, 0.7 * HELD_OUT + 0.3 * torch.randn(HELD_OUT.shape)):
        with pytest.raises(ValueError, match="x has the scale of raw activations"):
            model.denoise(wrong, 0.3)
    for call in (model.log_likelihood, model.project, model.features):
        for wrong in (z, x):
            with pytest.raises(ValueError, match=r"standardised activations .*model\.raw\(z\)"):
                call(wrong)
    for unusual in (torch.zeros(2, D), 3 * x, x[:1]):  # odd, but no raw activation
        model.denoise(unusual, 0.3)
    model.log_likelihood(HELD_OUT + 40)


def test_likelihoods_are_those_of_the_raw_activation():
    """Scaling one raw dimension by 10 makes every density ten times less, log 10 / d per
    dimension.
    """
    h, documents = activations()
    scale = torch.ones(D)
    scale[3] = 10
    one, other = (
        mmlib.fit(h * s, "gaussian", groups=documents, progress=False) for s in (1, scale)
    )
    gap = one.log_likelihood(HELD_OUT) - other.log_likelihood(HELD_OUT * scale)
    assert torch.allclose(gap, torch.full_like(gap, np.log(10) / D), atol=1e-4)
    exact = torch.distributions.MultivariateNormal(h.double().mean(0), h.double().T.cov())
    shrunk = D * (one.log_likelihood(HELD_OUT).mean()) - exact.log_prob(HELD_OUT.double()).mean()
    assert abs(float(shrunk)) < 0.6  # of the smoothing at σ₀, and of a tenth of the rows held out
    assert SMOOTHING == 0.02


def test_the_mixture_is_likelier_than_the_gaussian_on_clusters():
    kinds = ("gaussian", "mixture", "network")
    gaussian, mixture, network = (fitted(kind).log_likelihood(HELD_OUT[:50]) for kind in kinds)
    assert mixture.mean() > gaussian.mean() + 0.05
    assert network.shape == (50,) and network.isfinite().all()


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "average", "network", "residual"])
def test_densities_give_raw_samples_and_projections(kind):
    model = fitted(kind)
    drawn = model.sample(300)
    assert drawn.shape == (300, D) and torch.equal(drawn, model.sample(300, seed=0))
    near, far = (model.project(HELD_OUT, sigma=sigma, seed=3) for sigma in (0.05, 0.9))
    assert near.shape == HELD_OUT.shape
    assert (near - HELD_OUT).norm() < 0.5 * (far - HELD_OUT).norm()
    if kind != "network":  # thirty steps teach it little
        assert (drawn.mean(0) - activations()[0].mean(0)).abs().max() < 5
        mean = activations()[0].mean(0)
        nearer = model.project(HELD_OUT + 60, sigma=0.9) - mean
        assert nearer.norm() < 0.7 * (HELD_OUT + 60 - mean).norm()


@pytest.mark.parametrize("kind", ["pca", "sae"])
def test_what_a_method_for_clean_activations_lacks_is_said(kind):
    model = fitted(kind)
    for call, said in (
        (lambda: model.log_likelihood(HELD_OUT), "has no density"),
        (lambda: model.sample(3), "has no samples"),
        (lambda: model.project(HELD_OUT), r"use reconstruct\(h\)"),
        (lambda: model.hook(0.5), "takes sigma=None"),
    ):
        with pytest.raises(Unsupported, match=said):
            call()
    z = model.standardise(HELD_OUT)
    assert torch.allclose(model.reconstruct(HELD_OUT), model.raw(model.denoiser(z, 0.0)), rtol=1e-3)
    with pytest.raises(Unsupported, match="reconstructs nothing"):
        fitted("gaussian").reconstruct(HELD_OUT)


def test_features_are_each_methods_own_units():
    z = fitted("pca").standardise(HELD_OUT)
    expected = fitted("pca").components.scores(z, 4)
    assert torch.allclose(fitted("pca").features(HELD_OUT), expected, atol=1e-5)
    shares = fitted("mixture").features(HELD_OUT)
    assert shares.shape[1] in (2, 4) and torch.allclose(shares.sum(1), torch.ones(200))
    latents = fitted("sae").features(HELD_OUT)
    assert latents.shape == (200, 32) and int((latents > 0).sum(1).max()) <= 4
    assert fitted("network").features(HELD_OUT).shape == (200, 32)
    assert fitted("gaussian").features(HELD_OUT).shape == (200, D)
    with pytest.raises(Unsupported, match="has no features"):
        bare().features(HELD_OUT)


def bare():
    return Fitted(lambda x, sigma: x, fitted("gaussian").origin, Cost(0))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded(kind, tmp_path):
    model = fitted(kind)
    again = mmlib.load(model.save(tmp_path / "a folder"))
    assert type(again) is type(model) and again.cost == model.cost and again.kind == model.kind
    assert again.train_seconds == model.cost.seconds > 0
    assert again.facts["rows"] == model.facts["rows"]
    x = model.noised(HELD_OUT, 0.3)
    assert torch.allclose(again.denoise(x, 0.3), model.denoise(x, 0.3), atol=1e-5)
    assert torch.allclose(again.features(HELD_OUT), model.features(HELD_OUT), atol=1e-4)
    assert torch.equal(again.components.axes_dd, model.components.axes_dd)
    again.save(tmp_path / "a folder")  # takes its own place


@pytest.mark.parametrize("kind", ["mixture", "average", "network", "residual", "sae"])
def test_a_damaged_folder_is_refused_by_the_files_name(kind, tmp_path):
    folder = fitted(kind).save(tmp_path / "model")
    name = max(json.loads((folder / "model.json").read_text())["files"])
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        mmlib.load(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        mmlib.load(folder)
    (folder / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match="model.json is damaged"):
        mmlib.load(folder)


def test_a_save_that_was_interrupted_leaves_nothing_that_loads(tmp_path, monkeypatch):
    folder = fitted("mixture").save(tmp_path / "model")
    monkeypatch.setattr("mmlib.files.sha256", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted("gaussian").save(folder)
    with pytest.raises(FileNotFoundError, match="holds no model.json"):
        mmlib.load(folder)


def test_a_fit_of_former_code_does_not_say_its_activations_and_is_loaded(store, tmp_path):
    folder = mmlib.fit(store, "gaussian", progress=False).save(tmp_path / "model")
    content = json.loads((folder / "model.json").read_text())
    del content["identity"]["activations"], content["digest"]
    (folder / "model.json").write_bytes(sealed(content))
    assert mmlib.load(folder).check(store).origin.activations == ()


def test_a_source_that_is_nothing_says_what_is_expected():
    with pytest.raises(FileNotFoundError, match="^nosuch is no folder .* what model.save, save_p"):
        mmlib.load("nosuch")


def test_a_folder_of_other_things_is_not_written_to(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other things"):
        fitted("gaussian").save(tmp_path)


def test_what_notebooks_wrote_is_loaded_with_a_standardisation(store, tmp_path):
    z = Normaliser.of(store)(store.read(store.rows("train")))
    components = PrincipalComponents.fit(z)
    components.save(tmp_path / "pca.safetensors", store.documents, activations_id(store))
    with pytest.raises(CheckpointError, match="pass standardise="):
        mmlib.load(tmp_path / "pca.safetensors")
    gaussian = mmlib.load(tmp_path / "pca.safetensors", standardise=store)
    assert torch.equal(gaussian(z[:3], 0.5), components.gaussian()(z[:3], 0.5))
    gaussian.check(store)
    mixture = fitted("mixture").denoiser
    mixture.save(tmp_path / "mixture.safetensors", "texts@1")
    loaded = mmlib.load(tmp_path / "mixture.safetensors", standardise=fitted("mixture"))
    assert loaded.origin.documents == "texts@1" and loaded.cost.parameters == mixture.parameters
    save_sae(fitted("sae").sae, tmp_path / "sae", "texts@1")
    assert mmlib.load(tmp_path / "sae", standardise=fitted("sae")).kind == "sae"


def test_a_meta_model_of_one_or_of_several_layers_is_loaded(store, tmp_path):
    torch.manual_seed(0)
    model = MetaModel(MLPDenoiser(8, 16, 24, 1), "ddpm_epsilon", Origin.of(store))
    model.save_pretrained(tmp_path / "one")
    loaded = mmlib.load(tmp_path / "one").check(store)
    x = torch.randn(5, 8)
    assert torch.equal(loaded(x, 0.4), model(x, 0.4)) and loaded.cost.parameters > 0
    normaliser = Normaliser(torch.zeros(2, 8), torch.ones(2, 8))
    two = MLPDenoiser(8, 16, 24, 1, multi_layer_n_layers=4)
    MetaModel(two, "flow_velocity", Origin(normaliser, "toy@1", (1, 3))).save_pretrained(
        tmp_path / "two"
    )
    with pytest.raises(ValueError, match=r"layers \[1, 3\]: name one"):
        mmlib.load(tmp_path / "two")
    assert mmlib.load(tmp_path / "two", layer=3).origin.layers == (3,)
    with pytest.raises(FileNotFoundError, match="holds no model.json"):
        mmlib.load(tmp_path)


def test_activations_of_another_origin_are_refused(store, make_store):
    network = MetaModel(MLPDenoiser(8, 16, 24, 1), "flow_velocity", Origin.of(store))
    model = FittedNetwork.of(network)
    assert model.check(store) is model and model.check(language_model="toy@1", layer=1) is model
    others = {"language_model": "toy@2", "layer": 2, "d": 9, "documents": "elsewhere@1"}
    for name, value in others.items():
        with pytest.raises(StoreError, match="was trained on|was fitted to"):
            model.check(**{name: value})
    with pytest.raises(StoreError, match="was fitted to documents"):
        model.check(ActivationStore(make_store(corpus="other")[0]))
    with pytest.raises(StoreError, match="toy@1 layer 1 .* these activations are of toy@2 layer"):
        model.check(language_model="toy@2")
    fitted("gaussian").check(language_model="any@1", layer=7)  # of a plain tensor nothing is known


@pytest.mark.parametrize("other", [{"window": 128}, {"dtype": "bfloat16"}], ids=str)
def test_activations_of_the_same_documents_with_another_window_or_type_are_refused(
    make_store, tmp_path, other
):
    """By fits of a store, meta-models and files of notebooks, saved and loaded or not; a fit of
    former code, which does not know its activations, takes them.
    """
    store = ActivationStore(make_store(dtype="float32")[0])
    network = MetaModel(MLPDenoiser(8, 16, 24, 1), "flow_velocity", Origin.of(store))
    network.save_pretrained(tmp_path / "network")
    sae = mmlib.fit(store, SAESize(16, 2, steps=2, batch=64), progress=False)
    save_sae(sae.sae, tmp_path / "sae", store.documents, activations_id(store))
    saved = sae.save(tmp_path / "fit")
    checks = (
        network.check_store,
        MetaModel.from_pretrained(tmp_path / "network").check_store,
        sae.check,
        mmlib.load(saved).check,
        mmlib.load(tmp_path / "network").check,
        lambda one: mmlib.load(tmp_path / "sae", standardise=one),
        lambda one: mmlib.evaluate({"sae": sae}, one, rows=5, baseline=None, progress=False),
    )
    for check in checks:
        check(store)
    former = MetaModel.from_pretrained(tmp_path / "network")
    former.origin = replace(former.origin, activations=())
    remade = ActivationStore(make_store(**{"dtype": "float32", **other})[0])
    former.check_store(remade)
    for check in checks:
        with pytest.raises(
            StoreError, match="activations of these documents: of another layer, window"
        ):
            check(remade)


def hooked(kind="mixture", sigma=0.3, steps=2, **options):
    return fitted(kind).hook(sigma, steps=steps, **options)


H_BTD = HELD_OUT[:12].view(2, 6, D).clone()
H_BTD[1, 0] = H_BTD[0, 0]  # of the token that opens both


def test_a_hook_replaces_activations_by_their_projections():
    edit = hooked(seed=5)
    edited = edit(H_BTD.bfloat16())
    assert edited.shape == H_BTD.shape and edited.dtype == torch.bfloat16
    assert torch.equal(edited[:, 0], H_BTD[:, 0].bfloat16()), "the opening token is left as it is"
    assert not torch.equal(edited[:, 1:], H_BTD[:, 1:].bfloat16())
    every = hooked(seed=5, keep_opening=False)(H_BTD)
    wanted = fitted("mixture").project(H_BTD.flatten(0, 1), sigma=0.3, seed=5, steps=2)
    assert torch.allclose(every, wanted.view(2, 6, D), atol=1e-4)
    assert edit(H_BTD[:, :1]).ne(H_BTD[:, :1]).any(), "one newest token is edited"


@pytest.mark.parametrize(
    "padding, keep_opening, kept",
    [([0, 2], True, [1, 3]), ([0, 2], False, [0, 2]), (0, True, [1, 1]), (None, False, [0, 0])],
)
def test_a_hook_knows_the_opening_token_behind_padding(padding, keep_opening, kept):
    """Row 1 begins with two positions of padding; or the texts begin without an opening token."""
    h_btd = HELD_OUT[:12].view(2, 6, D)
    edited = hooked(padding=padding, keep_opening=keep_opening)(h_btd)
    assert edited.eq(h_btd).all(-1).sum(1).tolist() == kept


def test_a_hook_refuses_rows_whose_opening_token_it_does_not_know():
    from mmlib.activations.generate import generate

    with pytest.raises(ValueError, match="begin with different activations.* give padding="):
        hooked()(HELD_OUT[:12].view(2, 6, D))
    with pytest.raises(ValueError, match="padding of 3 rows: the batch has 2"):
        hooked(padding=[0, 2, 1])(H_BTD)
    lm, prompts = tiny(hidden_size=D, head_dim=6), [[5, 6, 7], [8]]
    generate(lm, prompts, 2, 0)
    with edited_block(lm.model, 1, hooked()), pytest.raises(ValueError, match="give padding="):
        generate(lm, prompts, 2, 0)
    with edited_block(lm.model, 1, hooked(padding=[0, 2])):
        generate(lm, prompts, 2, 0)


def test_a_hook_may_edit_first_and_reconstruct():
    edit = hooked("pca", None, before=lambda h_nd: h_nd + 1, keep_opening=False)
    wanted = fitted("pca").reconstruct(H_BTD.flatten(0, 1) + 1)
    assert torch.allclose(edit(H_BTD).flatten(0, 1), wanted, atol=1e-3)


class Tupled(torch.nn.Module):
    """A block that gives a tuple, as older blocks of transformers do."""

    def forward(self, h_btd):
        return h_btd, "cache"


def test_a_hook_works_in_torchs_forward_hooks():
    block = Tupled()
    handle = block.register_forward_hook(hooked().forward_hook)
    edited, cache = block(H_BTD)
    assert torch.equal(edited, hooked()(H_BTD)) and cache == "cache"
    handle.remove()
    assert torch.equal(block(H_BTD)[0], H_BTD)


def test_a_hook_works_in_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": D, "n_layer": 2, "n_head": 2, "vocab_size": 20, "n_positions": 16}
    lm, ids = GPT2LMHeadModel(GPT2Config(**sizes)).eval(), torch.arange(8).view(1, 8)
    with torch.no_grad():
        clean = lm(ids).logits
        with edited_block(lm, 0, hooked()):
            wing = lm(ids).logits
        handle = lm.transformer.h[0].register_forward_hook(hooked().forward_hook)
        plain = lm(ids).logits
        handle.remove()
    assert torch.equal(wing, plain) and not torch.allclose(wing, clean)
    assert torch.allclose(wing[:, 0], clean[:, 0], atol=1e-5)


def test_a_hook_works_in_transformer_lens():
    lens = pytest.importorskip("transformer_lens")
    config = lens.HookedTransformerConfig(
        n_layers=2, d_model=D, n_ctx=16, d_head=6, n_heads=2, d_vocab=20, act_fn="relu", seed=0
    )
    lm, ids = lens.HookedTransformer(config), torch.arange(8).view(1, 8)
    place = "blocks.0.hook_resid_post"
    with torch.no_grad():
        edited = lm.run_with_hooks(ids, fwd_hooks=[(place, hooked())])
        clean, cache = lm.run_with_cache(ids)
        wanted = lm.unembed(lm.ln_final(lm.blocks[1](hooked()(cache[place]))))
    assert torch.allclose(edited, wanted, atol=1e-5) and not torch.allclose(edited, clean)


def test_a_hook_works_in_nnsight():
    nnsight = pytest.importorskip("nnsight")
    blocks = nnsight.NNsight(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity()))
    edit = hooked()
    with blocks.trace(H_BTD):
        blocks[0].output = edit(blocks[0].output)
        found = blocks[1].output.save()
    assert torch.allclose(found, hooked()(H_BTD))
