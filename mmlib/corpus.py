"""Documents, and their split into training, validation and test: always by document, never by token."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mmlib.llm import LanguageModel
from mmlib.newsgroups import read_posts
from mmlib.sampled import sample_token_ids

WIKIPEDIA = "wikipedia"
NEWSGROUPS = "newsgroups"
SELF = "self"
WIKIPEDIA_FILE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SPLITS = ("train", "validation", "test")  # the order in which a store keeps them


@dataclass(frozen=True)
class Document:
    """One text with a title that identifies it within its corpus."""

    title: str
    text: str
    label: str | None = None  # what the corpus says the text is about
    token_ids: tuple[int, ...] | None = (
        None  # of a text that a language model wrote: tokenising it again may give others
    )


def load_documents(
    corpus: str,
    *,
    limit: int | None = None,
    cache: Path | None = None,
    lm: LanguageModel | None = None,
    seed: int = 0,
    tokens: int = 255,
) -> list[Document]:
    """Documents of a corpus, in a fixed order, without empty ones.

    Args:
        corpus: `"wikipedia"` (the sample inside gensim's wheel), `"newsgroups"` (the labelled posts of 20 Newsgroups, fetched
            once), `"self"` (samples from `lm`), the path of a folder of `*.txt` files (one document each) or of one text file (a
            document for each paragraph, with an empty line between), or `"hf:NAME@CONFIG:SPLIT"` (a Hugging Face dataset with a
            `text` column, streamed).
        limit: read at most so many documents; needed for endless streams, and for `"self"` the number of samples to draw.
        cache: folder that keeps what is fetched or sampled; `"newsgroups"` and `"self"` need it.
        lm: the language model that `"self"` samples from.
        seed, tokens: of those samples, the seed and the most tokens of each: a window without its opening token.
    Raises:
        ValueError: the corpus is unknown or holds no text, or lacks an argument that it needs.
        OSError: the corpus cannot be fetched.
    """
    if corpus == SELF:
        source = _sampled(*_needed(corpus, lm=lm, limit=limit, cache=cache), seed, tokens)
    else:
        source = islice(_source(corpus, cache), limit)
    documents = [document for document in source if document.token_ids or document.text.strip()]
    if not documents:
        raise ValueError(
            f"corpus {corpus!r} holds no text: expected at least one document that is not empty"
        )
    return documents


def is_stream(corpus: str) -> bool:
    """Whether the corpus may be too long to read whole."""
    return corpus.startswith("hf:")


def stream_documents(corpus: str) -> Iterator[Document]:
    """Documents of a streamed corpus one by one, without empty ones, under the titles that `load_documents` gives them."""
    return (document for document in _source(corpus, None) if document.text.strip())


def corpus_identity(corpus: str, documents: Iterable[Document]) -> str:
    """Name and hash that pin the documents: "wikipedia@9f2c…"."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.title.encode() + b"\0" + document.text.encode() + b"\0")
        if document.label is not None:
            digest.update(b"label\0" + document.label.encode() + b"\0")
        if document.token_ids is not None:
            digest.update(b"ids\0" + np.asarray(document.token_ids, dtype="<i4").tobytes())
    return f"{corpus}@{digest.hexdigest()[:12]}"


def split_documents(
    documents: list[Document], n_validation: int, n_test: int, seed: int
) -> list[str]:
    """The split ("train", "validation" or "test") of each document, stratified by length.

    Documents are sorted by their number of characters and cut into `n_test` runs of near-equal count, each of which gives
    one document, drawn at random, to the test split; the rest gives validation likewise. So every split spans the lengths, and
    the split depends on the texts and the seed only: all language models share it.

    Raises:
        ValueError: there are too few documents to leave any for training.
    """
    if len(documents) <= n_validation + n_test:
        raise ValueError(
            f"{len(documents)} documents cannot give {n_validation} for validation and {n_test} for test and "
            "leave any for training: give more documents or ask for fewer"
        )
    rng = np.random.default_rng(seed)
    splits = np.full(len(documents), "train", dtype=object)
    by_length = np.argsort(
        [-len(document.text) for document in documents], kind="stable"
    )  # longest first
    for split, count in (("test", n_test), ("validation", n_validation)):
        free = by_length[splits[by_length] == "train"]
        splits[[rng.choice(stratum) for stratum in np.array_split(free, count)]] = split
    return splits.tolist()


def effective_clusters(sizes: Iterable[int]) -> float:
    """Kish's effective number of clusters, (Σn)² / Σn²: how many equal documents would carry as much information."""
    n = np.asarray(list(sizes), dtype=np.float64)
    return float(n.sum() ** 2 / (n**2).sum())


def _needed(corpus: str, **arguments) -> list:
    """The values of the arguments, none of which may be None."""
    if missing := [name for name, value in arguments.items() if value is None]:
        raise ValueError(
            f"corpus {corpus!r} was asked for without {', '.join(missing)}: give load_documents {', '.join(arguments)}"
        )
    return list(arguments.values())


def _source(corpus: str, cache: Path | None) -> Iterator[Document]:
    if corpus == WIKIPEDIA:
        return _wikipedia()
    if corpus == NEWSGROUPS:
        return (Document(*post) for post in read_posts(*_needed(corpus, cache=cache)))
    if is_stream(corpus):
        return _hugging_face(corpus.removeprefix("hf:"))
    if Path(corpus).exists():
        return _text_files(Path(corpus))
    raise ValueError(
        f"unknown corpus {corpus!r}: expected {WIKIPEDIA!r}, {NEWSGROUPS!r}, {SELF!r}, "
        "the path of a text file or folder, or 'hf:NAME@CONFIG:SPLIT'"
    )


def _sampled(lm: LanguageModel, n: int, cache: Path, seed: int, tokens: int) -> Iterator[Document]:
    """Samples from a language model, numbered as drawn, those that ended at once included though they give no document."""
    for i, ids in enumerate(sample_token_ids(lm, n, tokens, seed, cache)):
        if ids:
            yield Document(f"{SELF}[{i:05}]", lm.tokenizer.decode(ids), token_ids=tuple(ids))


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
            raise ValueError(
                f"dataset {spec!r} has columns {sorted(row)}: expected one named 'text'"
            )
        yield Document(f"{spec}[{index}]", row["text"])
