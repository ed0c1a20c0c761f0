"""Stores beside the run's own, for studies and applications: of other texts, each extracted once, or of the same under another split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmlib import runs
from mmlib.corpus import SPLITS, Document, corpus_identity
from mmlib.extract import describe, extract, plan_extraction
from mmlib.layout import StoreError
from mmlib.llm import LanguageModel
from mmlib.store import ActivationStore
from mmlib.writer import DocumentRows, StoreWriter

LAID_OUT = (
    "first_document",
    "format",
    "format_version",
    "layers",
    "d",
    "dtype",
    "train_rows",
    "chunk_rows",
)  # attributes that a writer sets itself


def text_stores(
    run: runs.Run,
    name: str,
    documents: list[Document],
    lm: LanguageModel,
    layers: Sequence[int],
    *,
    splits: Sequence[str] | None = None,
    tokens: int | None = None,
) -> dict[int, ActivationStore]:
    """Stores of these texts, one a layer, all from one pass of the language model; it is made unless its file is there, and continued where an
    extraction was interrupted.

    Standardise with the statistics of the store that the models were trained on, not with those of these: without
    training documents they have none.

    Args:
        name: of the texts; with a hash of them, the layers and `tokens` it names the file.
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
    path = run.shared / "texts" / f"{identity}-{which}{f'-{tokens}tokens' if tokens else ''}.h5"
    extract(plan, lm, path, attributes=describe(lm, identity, plan, size, size.split_seed))
    return {layer: ActivationStore(path, layer) for layer in layers}


def text_store(
    run: runs.Run,
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


def resplit_store(store: ActivationStore, splits: Sequence[str], path: Path) -> ActivationStore:
    """The activations of a store with its documents in other splits, copied bit for bit unless they are there; statistics are those of the new split.

    Args:
        splits: of each document, in the store's order.
    Raises:
        StoreError: the store is an index of shards, or has another number of documents, or a split is unknown.
    """
    if "shards" in store.attributes or len(splits) != len(store.titles):
        raise StoreError(
            f"{store.path} holds {len(store.titles)} documents{' in shards' if 'shards' in store.attributes else ''}, {len(splits)} splits are given: "
            "expected one file, and one split a document"
        )
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise StoreError(
            f"splits {', '.join(unknown)}: expected {', '.join(SPLITS)}, one a document"
        )
    order = sorted(range(len(splits)), key=lambda i: SPLITS.index(splits[i]))
    documents = [
        DocumentRows(str(store.titles[i]), splits[i], int(store.document_rows[i])) for i in order
    ]
    attributes = {key: value for key, value in store.attributes.items() if key not in LAID_OUT} | {
        "created_by": f"another split of {store.path.name}"
    }
    if path.exists():
        there = ActivationStore(path)
        rows = [
            (title, split, int(n))
            for title, split, n in zip(there.titles, there.splits, there.document_rows)
        ]
        same = (there.layer, there.dtype, rows) == (
            store.layer,
            store.dtype,
            [(d.title, d.split, d.rows) for d in documents],
        )
        if same and all(there.attributes.get(key) == value for key, value in attributes.items()):
            return there
        there.close()
    with StoreWriter(path, documents, [store.layer], store.d, store.dtype, attributes) as writer:
        start, done = writer.next_row, 0
        for new, (old, document) in enumerate(zip(order, documents)):
            if start < done + document.rows:
                rows = store.rows_of(old, slice(max(0, start - done), None))
                writer.append(
                    {store.layer: store.read(rows)},
                    store.column("token_ids", rows),
                    np.full(len(rows), new),
                    store.column("position", rows),
                )
            done += document.rows
        writer.finish()
    return ActivationStore(path)
