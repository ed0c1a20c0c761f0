"""Stores of other texts than the run's own, for studies and applications: each is extracted once and kept."""

from collections.abc import Sequence

from mmlib import runs
from mmlib.corpus import Document, corpus_identity
from mmlib.extract import describe, extract, plan_extraction
from mmlib.llm import LanguageModel
from mmlib.store import ActivationStore


def text_store(run: runs.Run, name: str, documents: list[Document], lm: LanguageModel, layer: int, *, splits: Sequence[str] | None = None,
               tokens: int | None = None) -> ActivationStore:
    """A store of these texts at one layer; it is extracted unless it is there, and continued where an extraction was interrupted.

    Standardise with the statistics of the store that the models were trained on, not with those of this one: without
    training documents it has none.

    Args:
        name: of the texts; with a hash of them and `tokens` it names the file.
        splits: of each document; None: all are test documents.
        tokens: at most so many of each document.
    """
    size, identity = run.preset, corpus_identity(name, documents)
    plan = plan_extraction(documents, list(splits or ["test"] * len(documents)), lm, layer, size.window, tokens, size.batch_tokens)
    path = run.shared / "texts" / f"{identity}-layer{layer}{f'-{tokens}tokens' if tokens else ''}.h5"
    extract(plan, lm, path, attributes=describe(lm, identity, plan, size, size.split_seed))
    return ActivationStore(path, layer)
