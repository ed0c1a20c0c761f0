"""What notebooks 01 to 03 made is loaded by name, checked against the store; what is missing names
its notebook; stores of texts.
"""

from dataclasses import replace

import pytest
import torch
from letters import tiny

from mmlib.activations.corpora import Document
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.average import AverageSize, fit_average
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents, activations_id
from mmlib.denoisers.mixture import MixtureSize, fit_mixture
from mmlib.denoisers.networks import MLPSize
from mmlib.denoisers.residual import ResidualSize
from mmlib.denoisers.sae import SAESize, save_sae, train_sae
from mmlib.files import MissingInput
from mmlib.runs import artefacts
from mmlib.runs import run as runs
from mmlib.runs.artefacts import (
    chosen_meta_model,
    load,
    mixture_digest,
    text_store,
    text_stores,
)
from mmlib.runs.presets import OURS, get_preset
from mmlib.training.recipe import Recipe, Training, new_model

TINY = Training("flow_velocity", steps=4, batch=32, lr=1e-3, keep=(("half", 2),))


@pytest.fixture
def run(tmp_path, monkeypatch, make_store):
    """A run of three small networks, ours among them, with a store; `run.store` is what the fixture
    made.
    """
    path = make_store(dtype="float32")[0]
    monkeypatch.setattr(runs, "DATA", tmp_path / "data")
    monkeypatch.setattr(runs.Run, "store", property(lambda run: path))
    began = runs.start(preset="smoke", seed=0)
    recipe = Recipe(MLPSize(1, 8, 16), TINY)
    ours = Recipe(ResidualSize(components=2, folds=2, layers=1, d_model=8, d_mlp=16), TINY)
    recipes = {"mlp": recipe, OURS: ours, "denoising_sae": recipe}
    preset = replace(began.preset, recipes=recipes)
    return replace(began, preset=replace(preset, sae_grid={"small": SAESize(8, 2, 1, 32)}))


@pytest.fixture
def made(run):
    """The same run with all its fits."""
    store = ActivationStore(run.store)
    z_nd = Normaliser.of(store)(store.read(store.rows("train")))
    PrincipalComponents.fit(z_nd).save(
        run.shared / "pca.safetensors", store.documents, activations_id(store)
    )
    mixture, _ = fit_mixture(z_nd, z_nd[:100], MixtureSize((2,), (32.0,), 0, 100), seed=0)
    mixture.save(run.shared / "mixture.safetensors", store.documents, activations_id(store))
    average = fit_average(z_nd, AverageSize(2, 32.0, members=3), seed=0, first=mixture)
    average.save(run.shared / "mixture_average.safetensors", store.documents, activations_id(store))
    sae = train_sae(iter([z_nd[:32]] * 2), store.d, SAESize(8, 2, 1, 32), seed=0)
    for folder in ("sae", "sae_grid/small"):
        save_sae(sae, run.data / folder, store.documents, activations_id(store))
    for seed, (name, recipe) in enumerate(run.preset.recipes.items()):
        for folder in (name, f"{name}/half"):
            model = new_model(recipe, Origin.of(store), seed)
            if name == OURS:
                model.network.over(average)
            model.save_pretrained(run.data / folder)
    return run


def test_everything_is_found_by_name(made):
    found = load(made, *artefacts.KINDS)
    assert found.pca.gaussian().parameters == 8 + 36 and len(found.mixture.components) == 2
    assert torch.equal(found.mixture_average.members[0].mean_kd, found.mixture.mean_kd)
    assert len(found.mixture_average.members) == 3 and found.mixture_average.train_seconds > 0
    assert found.sae.cfg.d_sae == 8 and list(found.sae_grid) == ["small"]
    names = list(made.preset.recipes)
    assert list(found.networks) == [*names, *(f"{name}_half" for name in names)]
    few = load(made, OURS, "mlp")
    assert list(few.networks) == [OURS, "mlp"] and not hasattr(few, "pca")
    below = few.networks[OURS].network.average
    assert torch.equal(below.members[2].mean_kd, found.mixture_average.members[2].mean_kd)
    weights = [next(few.networks[name].network.parameters()) for name in few.networks]
    assert not torch.equal(*weights) and few.store.d == few.networks["mlp"].d


@pytest.mark.parametrize(
    "name",
    ["pca", "mixture", "mixture_average", "sae", "sae_grid", "denoising_sae", "mlp", "networks"],
)
def test_what_is_missing_names_the_notebook_that_makes_it(run, name):
    notebook = "03_train_meta_model" if name in ("mlp", "networks") else "02_fit_baselines"
    with pytest.raises(MissingInput, match=f"run notebooks/{notebook}.ipynb first"):
        load(run, name)


def test_what_a_study_trained_is_found_by_name_and_named_by_its_command_where_it_is_not(made):
    studied = {"gated_mlp": made.preset.recipes["mlp"]}
    run = replace(made, preset=replace(made.preset, studied=studied))
    with pytest.raises(MissingInput, match="run python -m mmlib train gated_mlp --preset smoke"):
        load(run, "gated_mlp")
    store = ActivationStore(run.store)
    model = new_model(studied["gated_mlp"], Origin.of(store), 5)
    model.save_pretrained(run.data / "gated_mlp")
    found, x_nd = load(run, "networks", "gated_mlp").networks, torch.randn(3, store.d)
    assert list(found) == [*made.preset.recipes, "gated_mlp"]
    for one in (found["gated_mlp"], chosen_meta_model(run, "gated_mlp", store)):
        assert torch.equal(one(x_nd, 0.5), model(x_nd, 0.5))


def test_an_unknown_name_is_refused_with_those_there_are(run):
    with pytest.raises(
        ValueError, match="unknown 'pcs': expected some of store, pca, .*mixture_mlp"
    ):
        load(run, "store", "pcs")


@pytest.mark.parametrize(
    "name", ["pca", "mixture", "mixture_average", "sae", "sae_grid", "mlp", OURS]
)
def test_fits_of_other_documents_are_refused(made, name, make_store, monkeypatch):
    other = make_store(dtype="float32", corpus="other@1")[0]
    monkeypatch.setattr(runs.Run, "store", property(lambda run: other))
    with pytest.raises(StoreError):
        load(made, name)


def test_the_digest_of_a_mixture_changes_with_its_weights_alone(made):
    first = mixture_digest(made)
    mixture, documents = load(made, "mixture").mixture, load(made).store.documents
    path = made.shared / "mixture.safetensors"
    replace(mixture, train_seconds=9.0).save(path, documents)
    assert mixture_digest(made) == first and len(first) == 12
    replace(mixture, log_weights_k=mixture.log_weights_k.flip(0) - 1e-3).save(path, documents)
    assert mixture_digest(made) != first


def test_texts_at_several_layers_come_from_one_pass_and_each_is_as_if_alone(run):
    lm = tiny("gpt2", initializer_range=0.02)
    documents = [Document(f"d{i}", "abcdefgh" * (i + 1)) for i in range(3)]
    several = text_stores(run, "toy", documents, lm, [0, 2], tokens=12)
    assert list(several) == [0, 2]
    assert {store.path for store in several.values()} == {several[0].path}
    assert several[0].path.name.endswith("-layers0-2-12tokens")
    assert set(several[0].splits) == {"test"}
    assert several[0].n == 8 + 12 + 12
    alone = text_store(run, "toy", documents, lm, 2, tokens=12)
    assert alone.path.name.endswith("-layer2-12tokens") and several[2].documents == alone.documents
    expected = several[2].read(several[2].rows("test"))
    assert torch.allclose(alone.read(alone.rows("test")), expected, atol=1e-5)
    assert not torch.allclose(several[0].read(several[0].rows("test")), expected, atol=1e-2)


def test_a_preset_has_as_many_validation_and_test_documents_as_it_says(monkeypatch):
    monkeypatch.setattr(artefacts, "plan_extraction", lambda documents, splits, *_: splits)
    documents = [Document(f"{i}", f"text {i} " * i) for i in range(1, 61)]
    size = replace(get_preset("smoke"), validation_documents=3, test_documents=7)
    splits = artefacts.prepare(size, None, documents)
    assert (splits.count("validation"), splits.count("test")) == (3, 7)
