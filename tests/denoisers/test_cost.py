"""Every fitted denoiser carries what it cost, through saving and loading and into what is derived
from it.
"""

from dataclasses import replace

import pytest
import torch

from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents, activations_id, standard_normal
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser, MixtureSize, fit_mixture
from mmlib.denoisers.noise import Level
from mmlib.denoisers.sae import MixedDenoiser, SAEDenoiser, SAESize, load_sae, save_sae, train_sae


def cost_of(fit):
    return fit.parameters, fit.train_seconds, fit.train_activations


@pytest.fixture
def z_nd(store):
    return Normaliser.of(store)(store.read(store.rows("train")))


def test_principal_components_and_what_comes_of_them(store, z_nd, tmp_path):
    fitted, path = PrincipalComponents.fit(z_nd), tmp_path / "pca.safetensors"
    fitted.save(path, store.documents, activations_id(store))
    read = PrincipalComponents.load(path, store)
    d = store.d
    assert (
        cost_of(read) == cost_of(fitted) == (d + d * (d + 1) // 2, fitted.train_seconds, len(z_nd))
    )
    assert read.train_seconds > 0
    for derived in (read.gaussian(), read.probabilistic(2), read.projection(2, "rescaled")):
        assert cost_of(derived)[1:] == cost_of(read)[1:] and derived.parameters
    assert read.probabilistic(2).parameters < read.gaussian().parameters == read.parameters
    assert cost_of(standard_normal(d)) == (0, 0.0, 0)


def test_a_mixture(store, z_nd, tmp_path):
    size, path = MixtureSize((2,), (32.0,), 1, 100), tmp_path / "mixture.safetensors"
    fitted, _ = fit_mixture(z_nd, z_nd[:100], size, seed=0)
    fitted.save(path, store.documents, activations_id(store))
    first = path.read_bytes()
    replace(fitted, train_seconds=3.5).save(path, store.documents, activations_id(store))
    assert path.read_bytes() == first  # trials are known by a digest of this file
    assert cost_of(GaussianMixtureDenoiser.load(path, store)) == (fitted.parameters, 3.5, len(z_nd))


def test_an_sae_and_its_mix(store, z_nd, tmp_path):
    sae = train_sae(iter([z_nd[:32]] * 4), store.d, SAESize(16, 2, 3, 32), seed=0)
    save_sae(sae, tmp_path / "sae", store.documents, activations_id(store))
    read = SAEDenoiser(load_sae(tmp_path / "sae", store), "rescaled")
    assert cost_of(read) == cost_of(SAEDenoiser(sae, "rescaled")) and read.train_activations == 96
    gaussian = PrincipalComponents.fit(z_nd).gaussian()
    generator = torch.Generator().manual_seed(0)
    mix = MixedDenoiser(read, [Level(0.5, 1.0)], z_nd[:50], generator, also=[gaussian])
    seconds = read.train_seconds + gaussian.train_seconds
    assert cost_of(mix) == (read.parameters + gaussian.parameters, seconds, 96)


def test_a_network_and_its_copies(store, tmp_path):
    from mmlib.activations.batches import shuffled_batches
    from mmlib.denoisers.networks import MLPSize
    from mmlib.training.recipe import Recipe, Training, new_model
    from mmlib.training.train import train

    settings = Training("flow_velocity", steps=4, batch=32, lr=1e-3, keep=(("half", 2),))
    settings = replace(settings, log_every=2, validate_every=2, save_every=2)

    def batches(start):
        return shuffled_batches(store, "train", 32, 0, start=start)

    def trained():
        model = new_model(Recipe(MLPSize(1, 8, 16), settings), Origin.of(store), 0)
        validation = model.normaliser(store.read(store.rows("validation")))
        return model, train(model, settings, batches, validation, tmp_path / "mlp", seed=0)

    model, log = trained()
    assert cost_of(model)[1:] == (log[-1]["seconds"], 128)
    assert cost_of(MetaModel.from_pretrained(tmp_path / "mlp")) == cost_of(model)
    half = MetaModel.from_pretrained(tmp_path / "mlp" / "half")
    assert half.train_activations == 64 and 0 < half.train_seconds <= model.train_seconds
    assert cost_of(trained()[0]) == cost_of(model)  # one that is there already


def test_a_fit_of_other_activations_of_the_same_documents_is_refused(make_store, tmp_path):
    """As one that an extraction by other weights, or in another window, left behind."""
    store = ActivationStore(make_store(dtype="float32", window=64)[0])
    other = ActivationStore(make_store(dtype="float32", window=32, seed=1)[0])
    z_nd, path = store.tokens("train").z, tmp_path / "pca.safetensors"
    PrincipalComponents.fit(z_nd).save(path, store.documents, activations_id(store))
    assert other.documents == store.documents and PrincipalComponents.load(path, store)
    with pytest.raises(StoreError, match="other activations .* run the notebooks again from 02"):
        PrincipalComponents.load(path, other)
