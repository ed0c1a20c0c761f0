"""From names to meta-models: recipes of the run, folders, and what is refused; and random weights
for a trained architecture.
"""

from dataclasses import replace

import pytest
import torch

from mmlib.activations.store import StoreError
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import standard_normal
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import LinearSkip, MLPDenoiser, SparseSize, UNetDenoiser
from mmlib.files import MissingInput
from mmlib.runs.artefacts import chosen_meta_model
from mmlib.runs.presets import OURS
from mmlib.training import recipe as recipes


def saved(folder, store, seed, **changes):
    torch.manual_seed(seed)
    origin = replace(Origin.of(store), **changes)
    model = MetaModel(MLPDenoiser(8, 16, 24, 1), "flow_velocity", origin)
    model.save_pretrained(folder)
    return model


def test_a_meta_model_is_chosen_by_recipe_folder_or_default(run, store, tmp_path):
    x, mine = torch.randn(3, 8), str(tmp_path / "mine")
    ours = saved(run.data / OURS, store, 0)(x, 0.5)
    mlp, own = (
        saved(folder, store, 1 + i)(x, 0.5) for i, folder in enumerate((run.data / "mlp", mine))
    )
    for asked, expected in ((None, ours), (OURS, ours), ("mlp", mlp), (mine, own)):
        assert torch.equal(chosen_meta_model(run, asked, store)(x, 0.5), expected)
    saved(tmp_path / "published", store, 6, documents="")
    # does not say what it was trained on
    assert chosen_meta_model(run, str(tmp_path / "published"), store).documents == ""


def test_a_meta_model_that_does_not_fit_the_store_is_refused(run, store, tmp_path):
    with pytest.raises(MissingInput, match="03_train_meta_model"):
        chosen_meta_model(run, "unet", store)
    saved(tmp_path / "elsewhere", store, 0, documents="other@1")
    with pytest.raises(StoreError, match="was fitted to documents other@1"):
        chosen_meta_model(run, str(tmp_path / "elsewhere"), store)
    saved(tmp_path / "deeper", store, 0, layers=(7,))
    with pytest.raises(StoreError, match="layer 7 .* these activations are of toy@1 layer 1"):
        chosen_meta_model(run, str(tmp_path / "deeper"), store)


@pytest.mark.parametrize(
    "network",
    [
        MLPDenoiser(8, 16, 24, 2, gated_skip=True),
        UNetDenoiser(8, (32, 32, 32), 1),
        LinearSkip.over(standard_normal(8), MLPDenoiser(8, 16, 24, 1), "flow_velocity"),
    ],
    ids=["mlp", "unet", "skip"],
)
def test_an_untrained_model_has_the_architecture_and_random_weights(network, store):
    model = MetaModel(network, "flow_velocity", Origin.of(store))
    fresh, again = (recipes.untrained(model, 0).network.state_dict() for _ in range(2))
    trained = network.state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {
        name: value.shape for name, value in trained.items()
    }
    assert all(torch.equal(value, again[name]) for name, value in fresh.items())
    assert any(not torch.equal(value, trained[name]) for name, value in fresh.items())
    assert recipes.untrained(model, 0).layers == model.layers


@pytest.mark.parametrize("gain", [True, False])
def test_the_gain_of_a_sparse_denoiser_is_the_recipes(gain):
    network = recipes.network_of(SparseSize(32, 4, level_gain=gain), 8)
    assert network.config.level_gain is gain
