"""The texts of a run: its documents, how they are read, and stores of further texts, each extracted once."""

from collections.abc import Sequence

from mmlib.activations.corpora import (
    SELF,
    Document,
    corpus_identity,
    load_documents,
    split_documents,
)
from mmlib.activations.extract import Plan, describe, plan_extraction, write_store
from mmlib.activations.lm import LanguageModel
from mmlib.activations.store import ActivationStore
from mmlib.runs.presets import Preset
from mmlib.runs.run import Run


def documents_of(run: Run, lm: LanguageModel) -> list[Document]:
    """The documents of a run's corpus."""
    size = run.preset
    options = {"cache": run.cache, "lm": lm, "seed": size.split_seed, "tokens": size.window - 1}
    if size.corpus == SELF:
        return load_documents(SELF, limit=size.sampled_documents, **options)
    documents = load_documents(size.corpus, limit=size.documents + 1, **options)
    if len(documents) > size.documents:
        print(
            f"{size.corpus} has more than the {size.documents:,} documents that preset {size.name} reads: these are the first",
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
    return plan_extraction(
        documents,
        splits,
        lm,
        layers or size.layer,
        size.window,
        size.document_tokens,
        size.batch_tokens,
    )


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
    """Stores of these texts, one a layer, all from one pass of the language model; it is made unless it is there, and continued where an
    extraction was interrupted.

    Standardise with the statistics of the store that the models were trained on, not with those of these: without
    training documents they have none.

    Args:
        name: of the texts; with a hash of them, the layers and `tokens` it names the folder.
        layers: block indices, each once.
        splits: of each document; None: all are test documents.
        tokens: at most so many of each document.
    Raises:
        ValueError: no such layer, or one twice.
    """
    size, identity = run.preset, corpus_identity(name, documents)
    plan = plan_extraction(
        documents,
        list(splits or ["test"] * len(documents)),
        lm,
        list(layers),
        size.window,
        tokens,
        size.batch_tokens,
    )
    which = f"layer{layers[0]}" if len(layers) == 1 else "layers" + "-".join(map(str, layers))
    path = run.shared / "texts" / f"{identity}-{which}{f'-{tokens}tokens' if tokens else ''}"
    write_store(
        plan,
        lm,
        path,
        attributes=describe(
            lm,
            identity,
            plan,
            created_by=extraction_command(size, plan.layers),
            seed=size.split_seed,
        ),
        replace=True,
    )
    return {layer: ActivationStore(path, layer) for layer in layers}


def text_store(
    run: Run,
    name: str,
    documents: list[Document],
    lm: LanguageModel,
    layer: int,
    *,
    splits: Sequence[str] | None = None,
    tokens: int | None = None,
) -> ActivationStore:
    """`text_stores` of one layer."""
    return text_stores(run, name, documents, lm, [layer], splits=splits, tokens=tokens)[layer]
