"""Documents, and their split into training, validation and test: always by document, never by token."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

WIKIPEDIA = "wikipedia"
WIKIPEDIA_FILE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SPLITS = ("train", "validation", "test")  # the order in which a store keeps them


@dataclass(frozen=True)
class Document:
    """One text with a title that identifies it within its corpus."""

    title: str
    text: str


def load_documents(corpus: str, *, limit: int | None = None) -> list[Document]:
    """Documents of a corpus, in a fixed order, without empty ones.

    Args:
        corpus: `"wikipedia"` (the sample inside gensim's wheel), the path of a folder of `*.txt` files (one
            document each) or of one text file (a document for each paragraph, with an empty line between), or `"hf:NAME@CONFIG:SPLIT"` (a Hugging Face dataset with a `text` column, streamed).
        limit: read at most so many documents; needed for endless streams.
    Raises:
        ValueError: the corpus is unknown or holds no text.
    """
    source = _source(corpus)
    documents = [document for document in islice(source, limit) if document.text.strip()]
    if not documents:
        raise ValueError(f"corpus {corpus!r} holds no text: expected at least one document that is not empty")
    return documents


def corpus_identity(corpus: str, documents: Iterable[Document]) -> str:
    """Name and hash that pin the documents: "wikipedia@9f2c…"."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.title.encode() + b"\0" + document.text.encode() + b"\0")
    return f"{corpus}@{digest.hexdigest()[:12]}"


def split_documents(documents: list[Document], n_validation: int, n_test: int, seed: int) -> list[str]:
    """The split ("train", "validation" or "test") of each document, stratified by length.

    Documents are sorted by their number of characters and cut into `n_test` runs of near-equal count, each of which gives
    one document, drawn at random, to the test split; the rest gives validation likewise. So every split spans the lengths, and
    the split depends on the texts and the seed only: all language models share it.

    Raises:
        ValueError: there are too few documents to leave any for training.
    """
    if len(documents) <= n_validation + n_test:
        raise ValueError(f"{len(documents)} documents cannot give {n_validation} for validation and {n_test} for test and "
                         "leave any for training: give more documents or ask for fewer")
    rng = np.random.default_rng(seed)
    splits = np.full(len(documents), "train", dtype=object)
    by_length = np.argsort([-len(document.text) for document in documents], kind="stable")  # longest first
    for split, count in (("test", n_test), ("validation", n_validation)):
        free = by_length[splits[by_length] == "train"]
        splits[[rng.choice(stratum) for stratum in np.array_split(free, count)]] = split
    return splits.tolist()


def effective_clusters(sizes: Iterable[int]) -> float:
    """Kish's effective number of clusters, (Σn)² / Σn²: how many equal documents would carry as much information."""
    n = np.asarray(list(sizes), dtype=np.float64)
    return float(n.sum() ** 2 / (n**2).sum())


def _source(corpus: str) -> Iterator[Document]:
    if corpus == WIKIPEDIA:
        return _wikipedia()
    if corpus.startswith("hf:"):
        return _hugging_face(corpus.removeprefix("hf:"))
    if Path(corpus).exists():
        return _text_files(Path(corpus))
    raise ValueError(f"unknown corpus {corpus!r}: expected {WIKIPEDIA!r}, the path of a text file or folder, or 'hf:NAME@CONFIG:SPLIT'")


def _wikipedia() -> Iterator[Document]:
    """The 106 articles of gensim's test data, cleaned by gensim's own filters; redirect pages are no articles."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    from gensim.test.utils import datapath
    from gensim.utils import open as open_compressed

    with open_compressed(datapath(WIKIPEDIA_FILE), "rb") as file:
        for title, text, _ in extract_pages(file, filter_namespaces=("0",)):
            if not text.lstrip().lower().startswith("#redirect"):
                yield Document(title, filter_wiki(text))


def _text_files(path: Path) -> Iterator[Document]:
    if path.is_dir():
        for file in sorted(path.rglob("*.txt")):
            yield Document(str(file.relative_to(path)), file.read_text(encoding="utf-8"))
    else:
        for index, paragraph in enumerate(re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))):
            yield Document(f"{path.name}[{index}]", paragraph)


def _hugging_face(spec: str) -> Iterator[Document]:
    """`NAME`, `OWNER/NAME`, with optional `@CONFIG` and `:SPLIT`, streamed."""
    from datasets import load_dataset

    name, _, split = spec.partition(":")
    name, _, config = name.partition("@")
    rows = load_dataset(name, config or None, split=split or "train", streaming=True)
    for index, row in enumerate(rows):
        if "text" not in row:
            raise ValueError(f"dataset {spec!r} has columns {sorted(row)}: expected one named 'text'")
        yield Document(f"{spec}[{index}]", row["text"])
