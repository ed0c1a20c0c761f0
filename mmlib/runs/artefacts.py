"""What is made for a run: its documents and stores of texts, and what notebooks 01 to 03 fit,
loaded by name or trained.

Every fit that is loaded is checked against the run's store.
"""

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
from mmlib.activations.corpora import (
    SELF,
    Document,
    corpus_identity,
    is_stream,
    load_documents,
    overlap,
    split_documents,
    stream_documents,
    told,
    without_held_out,
)
from mmlib.activations.extract import Plan, describe, plan_extraction, write_store
from mmlib.activations.lm import LanguageModel, load_language_model
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.denoisers.average import MixtureAverage
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.denoisers.residual import ResidualSize
from mmlib.files import MissingInput, code_digest, default_device, require, sha256
from mmlib.runs.presets import OURS, Preset
from mmlib.runs.run import Run
from mmlib.training.crossfit import train_on_mixture
from mmlib.training.fit import row_batches
from mmlib.training.recipe import Recipe, new_model
from mmlib.training.train import train

KINDS = ("store", "pca", "mixture", "mixture_average", "sae", "sae_grid", "networks", "copies")


def documents_of(run: Run, lm: LanguageModel) -> list[Document]:
    """The documents of a run's corpus."""
    size = run.preset
    options = {"cache": run.cache, "lm": lm, "seed": size.split_seed, "tokens": size.window - 1}
    if size.corpus == SELF:
        return load_documents(SELF, limit=size.sampled_documents, **options)
    documents = load_documents(size.corpus, limit=size.documents + 1, **options)
    if len(documents) > size.documents:
        print(
            f"{size.corpus} has more than the {size.documents:,} documents that preset {size.name} "
            "reads: these are the first",
            flush=True,
        )
    return documents[: size.documents]


def extraction_command(size: Preset, layers: Sequence[int]) -> str:
    """The nearest command line that makes a store of this preset with its overrides."""
    return (
        f"python -m mmlib extract --preset {size.name} --model {size.model} "
        f"--corpus {size.corpus} --layers {' '.join(map(str, layers))}"
    )


def prepare(
    size: Preset, lm: LanguageModel, documents: list[Document], layers: Sequence[int] | None = None
) -> Plan:
    """The plan of a preset: its split, window and layer, or `layers` in its stead."""
    splits = split_documents(
        documents, size.validation_documents, size.test_documents, size.split_seed
    )
    print(told(overlap(documents, splits)), flush=True)
    at, tokens = layers or size.layer, size.document_tokens
    return plan_extraction(documents, splits, lm, at, size.window, tokens, size.batch_tokens)


def facts_of(size: Preset, lm: LanguageModel, identity: str, plan: Plan) -> dict:
    """What a store of this plan and preset records beside its rows; `identity` is its corpus's."""
    command = extraction_command(size, plan.layers)
    return describe(lm, identity, plan, created_by=command, seed=size.split_seed)


def text_stores(
    run: Run,
    name: str,
    documents: list[Document],
    lm: LanguageModel,
    layers: Sequence[int],
    *,
    splits: Sequence[str] | None = None,
    tokens: int | None = None,
) -> dict[int, ActivationStore]:
    """Stores of these texts, one a layer, all from one pass of the language model; it is made
    unless it is there, and continued where an extraction was interrupted.

    Standardise with the statistics of the store that the models were trained on, not with those of
    these: without training documents they have none.

    Args:
        name: of the texts; with a hash of them, the layers and `tokens` it names the folder.
        layers: block indices, each once.
        splits: of each document; None: all are test documents.
        tokens: at most so many of each document.
    Raises:
        ValueError: no such layer, or one twice.
    """
    size, identity = run.preset, corpus_identity(name, documents)
    splits = list(splits or ["test"] * len(documents))
    plan = plan_extraction(
        documents, splits, lm, list(layers), size.window, tokens, size.batch_tokens
    )
    which = f"layer{layers[0]}" if len(layers) == 1 else "layers" + "-".join(map(str, layers))
    path = run.shared / "texts" / f"{identity}-{which}{f'-{tokens}tokens' if tokens else ''}"
    attributes = facts_of(size, lm, identity, plan)
    write_store(plan, lm, path, attributes=attributes, replace=True)
    return {layer: ActivationStore(path, layer) for layer in layers}


def text_store(
    run: Run, name: str, documents: list[Document], lm: LanguageModel, layer: int, **options
) -> ActivationStore:
    """`text_stores` of one layer, with its options."""
    return text_stores(run, name, documents, lm, [layer], **options)[layer]


def load(run: Run, *names: str) -> SimpleNamespace:
    """What notebooks 01 to 03 made for a run, by name. Every fit is checked against the run's
    store, and carries what it cost.

    Args:
        names: "store", "pca" (`PrincipalComponents`), "mixture" (`GaussianMixtureDenoiser`),
            "mixture_average" (`MixtureAverage`), "sae", "sae_grid" (SAEs by name), "networks" (meta-models by the preset's names), "copies"
            (those kept during training, as "mlp_unet_activations", among the networks), or some of
            the preset's recipes, those of studies included, for these networks alone.
    Returns:
        An attribute for each; `store` always, and `networks` for all that are meta-models. Networks
        are on the default device.
    Raises:
        ValueError: an unknown name.
        MissingInput: a piece is not there; the message names the notebook that makes it.
        StoreError: a fit belongs to other documents, another language model or another layer.

    In a notebook:

        found = load(run, "store", "pca", "networks")
        gaussian, mlp = found.pca.gaussian(), found.networks["mlp"]
    """
    size = run.preset
    if unknown := [name for name in names if name not in KINDS and name not in size.trainable]:
        raise ValueError(
            f"unknown {', '.join(map(repr, unknown))}: expected some of {', '.join(KINDS)}, or of "
            f"the recipes of preset {size.name}: {', '.join(size.trainable)}"
        )
    store = ActivationStore(run.store, size.layer)
    found = SimpleNamespace(store=store)
    if "pca" in names:
        found.pca = PrincipalComponents.load(_made(run.shared / "pca.safetensors"), store)
    if "mixture" in names:
        mixture = _made(run.shared / "mixture.safetensors")
        found.mixture = GaussianMixtureDenoiser.load(mixture, store)
    if "mixture_average" in names:
        average = _made(run.shared / "mixture_average.safetensors")
        found.mixture_average = MixtureAverage.load(average, store)
    if "sae" in names:
        found.sae = _sae(run.data / "sae", store)
    if "sae_grid" in names:
        grid = run.data / "sae_grid"
        found.sae_grid = {name: _sae(grid / name, store) for name in size.sae_grid}
    if folders := _network_folders(size, names):
        found.networks = {name: _network(run, at, store) for name, at in folders.items()}
    return found


def _made(path: Path) -> Path:
    return require(path, "02_fit_baselines")


def _sae(folder: Path, store: ActivationStore):
    from mmlib.denoisers.sae import load_sae  # SAELens takes seconds to import

    return load_sae(_made(folder), store)


def _network_folders(size: Preset, names: Sequence[str]) -> dict[str, str]:
    """Folders of the networks that are asked for, by name: of all recipes of the main line or of
    some, then of copies kept during training.
    """
    asked = [*size.recipes] if "networks" in names else []
    asked += [name for name in names if name in size.trainable]
    folders = {name: name for name in asked}
    if "copies" in names:
        for name, recipe in size.recipes.items():
            folders |= {f"{name}_{copy}": f"{name}/{copy}" for copy, _ in recipe.training.keep}
    return folders


def _trained(run: Run, at: str) -> Path:
    """The folder of a recipe that was trained, "mlp", or of a copy, "mlp/unet_activations".

    Raises:
        MissingInput: it was not; the message names the notebook or the command that does it.
    """
    folder, name = run.data / at, at.partition("/")[0]
    if name in run.preset.recipes:
        maker = "02_fit_baselines" if name == "denoising_sae" else "03_train_meta_model"
        require(folder / "meta_model.json", maker)
    elif not (folder / "meta_model.json").exists():
        raise MissingInput(
            f"{folder} is missing: run python -m mmlib train {name} --preset {run.preset.name} "
            "first, with the same parameters"
        )
    return folder


def _network(run: Run, at: str, store: ActivationStore) -> MetaModel:
    """A trained network of the run, on the default device."""
    model = MetaModel.from_pretrained(_trained(run, at))
    model.check_store(store)
    return model.to(default_device())


def mixture_digest(run: Run) -> str:
    """12 hex digits that change with the run's mixture: trials that measure with it are known by
    them.
    """
    return sha256(_made(run.shared / "mixture.safetensors"))[:12]


def chosen_meta_model(run: Run, name: str | None, store: ActivationStore) -> MetaModel:
    """The meta-model of an application: None is the run's own `OURS`, another recipe of its preset
    goes by its name, anything else is a folder or the id of a Hub repository for
    `MetaModel.from_pretrained`. Of several layers it is the store's.

    A published checkpoint does not say what it was trained on: only then are the store's documents
    taken for new ones.

    Raises:
        StoreError: it was made for another language model, layer or width, or trained on other
            documents than the store's.
        FileNotFoundError: there is none.
    """
    own = name is None or name in run.preset.trainable
    if own:
        source = _trained(run, name or OURS)
    else:
        source = Path(name) if Path(name).is_dir() else name
    model = MetaModel.from_pretrained(source)
    model = model.at(store.layer) if len(model.layers) > 1 else model
    model.check_store(store, same_documents=own or bool(model.documents))
    return model


def live_source(
    run: Run, stores: list[ActivationStore], batch: int
) -> tuple[Callable[[int], Iterator[Tensor]], str]:
    """Batches of a run's own text for `train`, from the language model instead of the store, and an
    identity of that source.

    A corpus of known size is read epoch after epoch, its training documents only; a streamed one
    (`hf:…`) once, without the documents that the store holds out and without copies of them. Each
    of several processes reads every batch whole, so more of them train no faster on what is read.

    Raises:
        StoreError: the store is of another language model, of other documents than the corpus has
            now, or of other windows.
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
    facts = facts_of(size, lm, corpus_identity(size.corpus, documents), plan)
    facts["dtype"] = plan.dtype
    for key in ("dtype", "corpus", "tokenizer", "window", "batch_tokens", "device"):
        if facts[key] != store.attributes.get(key):
            raise StoreError(
                f"live batches would be of {key} {facts[key]}, {store.path} is of "
                f"{store.attributes.get(key)}: run 01_extract_activations again, on this machine"
            )
    identity = json.dumps([facts, code_digest("activations/batches", "runs/artefacts")])
    if not is_stream(size.corpus):
        return lambda start: live_batches(plan, lm, "train", batch, run.seed, start=start), identity
    titles = set(store.titles[store.splits != "train"])
    held_out = [document for document in documents if document.title in titles]

    def stream(start: int) -> Iterator[Tensor]:
        wanted = without_held_out(stream_documents(size.corpus), held_out)
        return streamed_batches(
            wanted, plan, lm, batch, run.seed, start=start, document_tokens=size.document_tokens
        )

    return stream, identity


def folder_name(name: str, stores: list[ActivationStore], live: bool) -> str:
    """What a trained recipe is called: "mlp", "mlp-live", "mlp-layers-4-8-13"."""
    layers = f"-layers-{'-'.join(str(store.layer) for store in stores)}"
    return name + (layers if len(stores) > 1 else "") + ("-live" if live else "")


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
        ValueError: the preset has no such recipe (the message lists those there are), or it cannot
            have several layers.
    """
    if name not in run.preset.trainable:
        raise ValueError(
            f"unknown recipe {name!r}: preset {run.preset.name} has "
            f"{', '.join(run.preset.trainable)}"
        )
    stores = stores if isinstance(stores, list) else [stores]
    recipe, several = run.preset.trainable[name], len(stores) > 1
    if isinstance(recipe.size, ResidualSize):
        if live or several:
            raise ValueError(f"{name} stands on mixtures of one store: leave live and layers out")
        return train_on_store(recipe, stores[0], run.data / name, seed=run.seed, tracker=tracker)
    gaussian = None
    if recipe.linear_skip and not several:
        path = _made(run.shared / "pca.safetensors")
        gaussian = PrincipalComponents.load(path, stores[0]).gaussian()
    model = new_model(recipe, Origin.of(*stores), run.seed, gaussian)
    validation = [store.read(store.rows("validation")) for store in stores]
    batch, source = recipe.training.batch, ""

    def batches(start: int) -> Iterator[Tensor]:
        if several:
            return multi_layer_batches(stores, "train", batch, run.seed, start=start)
        return shuffled_batches(stores[0], "train", batch, run.seed, start=start)

    if live:
        batches, source = live_source(run, stores, batch)
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


def train_on_store(
    recipe: Recipe, store: ActivationStore, folder: Path, *, seed: int, tracker: str | None = None
) -> tuple[MetaModel, list[dict]]:
    """Fit mixtures to the training documents of a store, and train the network of a recipe whose
    size is a `ResidualSize` on them; see `mmlib.training.crossfit.train_on_mixture`.
    """
    rows = store.rows("train")
    raw_nd, checked_nd = store.read(rows), store.read(store.rows("validation"))
    given = (raw_nd, checked_nd, store.column("document", rows), Origin.of(store), row_batches)
    return train_on_mixture(recipe, *given, folder, seed=seed, tracker=tracker)
