"""What notebooks 01 to 03 make for a run: loaded by name, each checked against the run's store, or trained."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import PartialState
from torch import Tensor

from mmlib.activations.batches import (
    live_batches,
    multi_layer_batches,
    shuffled_batches,
    streamed_batches,
)
from mmlib.activations.corpora import corpus_identity, is_stream, stream_documents
from mmlib.activations.extract import describe
from mmlib.activations.lm import load_language_model
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.files import code_digest, default_device, require, sha256
from mmlib.runs.presets import Preset
from mmlib.runs.run import Run
from mmlib.runs.texts import documents_of, extraction_command, prepare
from mmlib.training.recipe import new_model
from mmlib.training.train import train

KINDS = ("store", "pca", "mixture", "sae", "sae_grid", "networks", "copies")


def load(run: Run, *names: str) -> SimpleNamespace:
    """What notebooks 01 to 03 made for a run, by name. Every fit is checked against the run's store, and carries what it cost.

    Args:
        names: "store", "pca" (`PrincipalComponents`), "mixture" (`GaussianMixtureDenoiser`), "sae", "sae_grid" (SAEs by name),
            "networks" (meta-models by the preset's names), "copies" (those kept during training, as "mlp_unet_activations",
            among the networks), or some of the preset's recipes for these networks alone.
    Returns:
        An attribute for each; `store` always, and `networks` for all that are meta-models. Networks are on the default device.
    Raises:
        ValueError: an unknown name.
        MissingInput: a piece is not there; the message names the notebook that makes it.
        StoreError: a fit belongs to other documents, another language model or another layer.

    In a notebook:

        found = load(run, "store", "pca", "networks")
        gaussian, mlp = found.pca.gaussian(), found.networks["mlp"]
    """
    size = run.preset
    if unknown := [name for name in names if name not in KINDS and name not in size.recipes]:
        raise ValueError(
            f"unknown {', '.join(map(repr, unknown))}: expected some of {', '.join(KINDS)}, or of the "
            f"recipes of preset {size.name}: {', '.join(size.recipes)}"
        )
    store = ActivationStore(run.store, size.layer)
    readers = {
        "pca": lambda: PrincipalComponents.load(_made(run.shared / "pca.safetensors"), store),
        "mixture": lambda: GaussianMixtureDenoiser.load(
            _made(run.shared / "mixture.safetensors"), store
        ),
        "sae": lambda: _sae(run.data / "sae", store),
        "sae_grid": lambda: {
            name: _sae(run.data / "sae_grid" / name, store) for name in size.sae_grid
        },
    }
    found = SimpleNamespace(store=store)
    for name in readers.keys() & names:
        setattr(found, name, readers[name]())
    if folders := _network_folders(size, names):
        found.networks = {
            name: _network(run.data / folder, store) for name, folder in folders.items()
        }
    return found


def _made(path: Path) -> Path:
    return require(path, "02_fit_baselines")


def _sae(folder: Path, store: ActivationStore):
    from mmlib.denoisers.sae import load_sae  # SAELens takes seconds to import

    return load_sae(_made(folder), store)


def _network_folders(size: Preset, names: Sequence[str]) -> dict[str, str]:
    """Folders of the networks that are asked for, by name: of all recipes or of some, then of copies kept during training."""
    asked = size.recipes if "networks" in names else [one for one in names if one in size.recipes]
    folders = {name: name for name in asked}
    if "copies" in names:
        for name, recipe in size.recipes.items():
            folders |= {f"{name}_{copy}": f"{name}/{copy}" for copy, _ in recipe.training.keep}
    return folders


def _network(folder: Path, store: ActivationStore) -> MetaModel:
    """A trained network of the run, on the default device."""
    maker = "02_fit_baselines" if folder.name == "denoising_sae" else "03_train_meta_model"
    require(folder / "meta_model.json", maker)
    model = MetaModel.from_pretrained(folder)
    model.check_store(store)
    return model.to(default_device())


def mixture_digest(run: Run) -> str:
    """12 hex digits that change with the run's mixture: trials that measure with it are known by them."""
    return sha256(_made(run.shared / "mixture.safetensors"))[:12]


def chosen_meta_model(run: Run, name: str | None, store: ActivationStore) -> MetaModel:
    """The meta-model of an application: None is the run's own `gated_mlp`, another of its recipes goes by its name, anything else is a folder or
    the id of a Hub repository for `MetaModel.from_pretrained`. Of several layers it is the store's.

    A published checkpoint does not say what it was trained on: only then are the store's documents taken for new ones.

    Raises:
        StoreError: it was made for another language model, layer or width, or trained on other documents than the store's.
        FileNotFoundError: there is none.
    """
    own = name is None or name in run.preset.recipes
    model = MetaModel.from_pretrained(
        require(run.data / (name or "gated_mlp"), "03_train_meta_model")
        if own
        else Path(name)
        if Path(name).is_dir()
        else name
    )
    model = model.at(store.layer) if len(model.layers) > 1 else model
    model.check_store(store, same_documents=own or bool(model.documents))
    return model


def live_source(
    run: Run, stores: list[ActivationStore], batch: int
) -> tuple[Callable[[int], Iterator[Tensor]], str]:
    """Batches of a run's own text for `train`, from the language model instead of the store, and an identity of that source.

    A corpus of known size is read epoch after epoch, its training documents only; a streamed one (`hf:…`) once, without the documents
    that the store holds out. Each of several processes reads every batch whole, so more of them train no faster on what is read.

    Raises:
        StoreError: the store is of another language model, of other documents than the corpus has now, or of other windows.
    """
    size, state = run.preset, PartialState(cpu=default_device() == "cpu")
    with state.main_process_first():
        lm = load_language_model(
            size.model, dtype=size.dtype, device=str(state.device), cache=run.cache
        )
        documents = documents_of(run, lm)
    store = stores[0]
    store.check_source(model=lm.identity, d=lm.width)
    plan = prepare(size, lm, documents, [one.layer for one in stores])
    facts = describe(
        lm,
        corpus_identity(size.corpus, documents),
        plan,
        created_by=extraction_command(size, plan.layers),
        seed=size.split_seed,
    )
    facts["dtype"] = plan.dtype
    for key in ("dtype", "corpus", "tokenizer", "window", "batch_tokens", "device"):
        if facts[key] != store.attributes.get(key):
            raise StoreError(
                f"live batches would be of {key} {facts[key]}, {store.path} is of {store.attributes.get(key)}: "
                "run 01_extract_activations again, on this machine"
            )
    identity = json.dumps(
        [facts, code_digest("activations/batches", "runs/artefacts", "runs/texts")]
    )
    if not is_stream(size.corpus):
        return lambda start: live_batches(plan, lm, "train", batch, run.seed, start=start), identity
    held_out = set(store.titles[store.splits != "train"])

    def stream(start: int) -> Iterator[Tensor]:
        wanted = (
            document for document in stream_documents(size.corpus) if document.title not in held_out
        )
        return streamed_batches(
            wanted, plan, lm, batch, run.seed, start=start, document_tokens=size.document_tokens
        )

    return stream, identity


def folder_name(name: str, stores: list[ActivationStore], live: bool) -> str:
    """What a trained recipe is called: "mlp", "mlp-live", "mlp-layers-4-8-13"."""
    return (
        name
        + (f"-layers-{'-'.join(str(store.layer) for store in stores)}" if len(stores) > 1 else "")
        + "-live" * live
    )


def train_recipe(
    run: Run,
    name: str,
    stores: ActivationStore | list[ActivationStore],
    *,
    tracker: str | None = None,
    live: bool = False,
) -> tuple[MetaModel, list[dict]]:
    """Train what the run's preset calls `name`; notebook 03 and the command line share it.

    Args:
        stores: one, or several of one layer each, which give one network conditioned on the layer.
        live: batches come from the language model itself, see `live_source`.
    Raises:
        ValueError: the preset has no such recipe (the message lists those there are), or it cannot have several layers.
    """
    if name not in run.preset.trainable:
        raise ValueError(
            f"unknown recipe {name!r}: preset {run.preset.name} has {', '.join(run.preset.trainable)}"
        )
    stores = stores if isinstance(stores, list) else [stores]
    recipe, several = run.preset.trainable[name], len(stores) > 1
    skip = recipe.linear_skip and not several
    components = (
        PrincipalComponents.load(_made(run.shared / "pca.safetensors"), stores[0]) if skip else None
    )
    model = new_model(recipe, Origin.of(*stores), run.seed, components and components.gaussian())
    validation = [store.read(store.rows("validation")) for store in stores]
    batches, source = (
        live_source(run, stores, recipe.training.batch)
        if live
        else (stored_source(run, stores, recipe.training.batch), "")
    )
    log = train(
        model,
        recipe.training,
        batches,
        model.normaliser(torch.stack(validation) if several else validation[0]),
        run.data / folder_name(name, stores, live),
        seed=run.seed,
        source=source,
        tracker=tracker,
    )
    return model, log


def stored_source(
    run: Run, stores: list[ActivationStore], batch: int
) -> Callable[[int], Iterator[Tensor]]:
    """Batches of a run's store, of one layer or several, for `train`."""
    if len(stores) > 1:
        return lambda start: multi_layer_batches(stores, "train", batch, run.seed, start=start)
    return lambda start: shuffled_batches(stores[0], "train", batch, run.seed, start=start)
