"""Corpora: documents, and their split into training, validation and test documents, never by token.

`load_documents` reads Wikipedia, 20 Newsgroups, texts that the language model samples ("self"),
text files, or a data set of Hugging Face ("hf:…"), which `stream_documents` reads one by one.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mmlib.activations.generate import sample_token_ids
from mmlib.activations.labelled import read_posts
from mmlib.activations.lm import LanguageModel
from mmlib.activations.packaged import read_passages
from mmlib.files import whole_number

WIKIPEDIA = "wikipedia"
NEWSGROUPS = "newsgroups"
PASSAGES = "passages"
SELF = "self"
WIKIPEDIA_FILE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SPLITS = ("train", "validation", "test")  # the order in which a store keeps them
NGRAM = 13  # words
TEXTS = (".txt", ".md")  # endings of what is read as plain text, in whatever case


@dataclass(frozen=True)
class Document:
    """One text with a title that identifies it within its corpus."""

    title: str
    text: str
    label: str | None = None  # what the corpus says the text is about
    # of a text that a language model wrote: tokenising it again may give others
    token_ids: tuple[int, ...] | None = None

    def __post_init__(self):
        for name in ("title", "text"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise ValueError(
                    f"document {self.title!r}: its {name} is of type {type(value).__name__}, "
                    "expected a string"
                )
            if odd := re.search("[\ud800-\udfff]", value):
                raise ValueError(
                    f"document {self.title!r}: its {name} holds {odd[0]!r} at {odd.start()}, half "
                    "a surrogate pair or a byte that was no UTF-8: clean it first"
                )
        if "\0" in self.title:
            raise ValueError(f"document {self.title!r}: its title holds NUL, unknown to HDF5")


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
        corpus: `"wikipedia"` (the sample inside gensim's wheel), `"newsgroups"` (the labelled posts
            of 20 Newsgroups, fetched once), `"passages"` (paragraphs of 9,713 articles of
            Wikipedia, fetched once), `"self"` (samples from `lm`), the path of a folder of
            `*.txt` or `*.md` files (one document each) or of one such file (a document for each
            paragraph, with an empty line between), or `"hf:NAME@CONFIG:SPLIT"` (a Hugging Face
            dataset with a `text` column, streamed).
        limit: at most so many documents; for `"self"` the number of samples to draw.
        cache: folder that keeps what is fetched or sampled; `"newsgroups"` and `"self"` need it.
        lm: the language model that `"self"` samples from.
        seed, tokens: of those samples: the seed, and the most tokens of each.
    Raises:
        ValueError: the corpus is unknown or holds no text, or lacks an argument that it needs.
        OSError: the corpus cannot be fetched.
    """
    if limit is not None and corpus != SELF:
        limit = whole_number("limit", limit, 1)
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
    """Documents of a streamed corpus one by one, under the titles of `load_documents`."""
    return (document for document in _source(corpus, None) if document.text.strip())


def without_held_out(
    documents: Iterable[Document], held_out: Sequence[Document]
) -> Iterator[Document]:
    """A stream to train on: without documents that are held out, and without copies of their texts,
    also with other white space or case. At 1, 10, 100, … copies it says how many there were.
    """
    titles = {document.title for document in held_out}
    texts, copies, said_at = {folded(document.text) for document in held_out}, 0, 1
    for document in documents:
        if document.title in titles:
            continue
        if folded(document.text) not in texts:
            yield document
            continue
        copies += 1
        if copies == said_at:
            said_at *= 10
            print(
                f"left out of training so far: {copies:,} copies of held-out texts, at last "
                f"{document.title}",
                flush=True,
            )


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

    Documents are sorted by their number of characters and cut into `n_test` runs of near-equal
    count, each of which gives one document, drawn at random, to the test split; the rest gives
    validation likewise. So every split spans the lengths, and the split depends on the texts and
    the seed only: all language models share it. Copies of a text, also with other white space or
    case, follow the first of them.

    Raises:
        ValueError: there are too few different documents to leave any for training.
    """
    n_validation = whole_number("documents for validation:", n_validation)
    n_test = whole_number("documents for test:", n_test)
    seed = whole_number("seed", seed)
    place = {}
    first = [place.setdefault(folded(document.text), len(place)) for document in documents]
    if len(place) <= n_validation + n_test:
        copies = len(documents) - len(place)
        raise ValueError(
            f"{len(documents)} documents{f', {copies} of them copies,' if copies else ''} cannot "
            f"give {n_validation} for validation and {n_test} for test and leave any for training: "
            "give more documents or ask for fewer"
        )
    rng = np.random.default_rng(seed)
    splits = np.full(len(place), "train", dtype=object)
    lengths = dict(zip(reversed(first), [len(document.text) for document in reversed(documents)]))
    by_length = np.argsort([-lengths[i] for i in range(len(place))], kind="stable")  # longest first
    for split, count in (("test", n_test), ("validation", n_validation)):
        free = by_length[splits[by_length] == "train"]
        if count:
            splits[[rng.choice(stratum) for stratum in np.array_split(free, count)]] = split
    return splits[first].tolist()


def folded(text: str) -> str:
    """A text without what two copies of it may differ in: case and white space."""
    return " ".join(text.casefold().split())


def overlap(documents: Sequence[Document], splits: Sequence[str]) -> dict:
    """How much of the held-out texts is among the training texts.

    Returns:
        `copies`: documents whose text another one has, too (all in one split, if `split_documents`
            made it); for "validation" and "test", the share of the runs of 13 words that also occur
            in a training document, None where there is none. 13 words in common are seldom chance
            (Brown et al. 2020).
    """
    texts = [folded(document.text) for document in documents]
    held_out = {split: set() for split in SPLITS[1:]}
    for text, split in zip(texts, splits):
        held_out.get(split, set()).update(ngrams(text))
    sought, seen = set().union(*held_out.values()), set()
    for text, split in zip(texts, splits):
        if split == "train":
            seen |= sought.intersection(ngrams(text))
    shares = {x: len(found & seen) / len(found) if found else None for x, found in held_out.items()}
    return {"copies": len(texts) - len(set(texts)), **shares}


def told(found: dict) -> str:
    """A line about `overlap`."""
    given = [split for split in SPLITS[1:] if found[split] is not None]
    shares = [f"{100 * found[split]:.2g} % of {split}" for split in given]
    return (
        f"{found['copies']} documents are copies of another and lie in its split; of the runs of "
        f"{NGRAM} words, {' and '.join(shares) or 'nothing held out'} also occur in training "
        "documents"
    )


def ngrams(text: str) -> Iterator[int]:
    """Hashes of the runs of 13 words; within one process alone."""
    words = text.split()
    return (hash(tuple(words[i : i + NGRAM])) for i in range(len(words) - NGRAM + 1))


def _needed(corpus: str, **arguments) -> list:
    """The values of the arguments, none of which may be None."""
    if missing := [name for name, value in arguments.items() if value is None]:
        raise ValueError(
            f"corpus {corpus!r} was asked for without {', '.join(missing)}: give load_documents "
            f"{', '.join(arguments)}"
        )
    return list(arguments.values())


def _source(corpus: str, cache: Path | None) -> Iterator[Document]:
    if corpus == WIKIPEDIA:
        return _wikipedia()
    if corpus == NEWSGROUPS:
        return (Document(*post) for post in read_posts(*_needed(corpus, cache=cache)))
    if corpus == PASSAGES:
        return (Document(*article) for article in read_passages(*_needed(corpus, cache=cache)))
    if is_stream(corpus):
        return _hugging_face(corpus.removeprefix("hf:"))
    if Path(corpus).exists():
        return _text_files(Path(corpus))
    raise ValueError(
        f"unknown corpus {corpus!r}: expected {WIKIPEDIA!r}, {NEWSGROUPS!r}, {PASSAGES!r}, "
        f"{SELF!r}, the path of a text file or folder, or 'hf:NAME@CONFIG:SPLIT'"
    )


def _sampled(lm: LanguageModel, n: int, cache: Path, seed: int, tokens: int) -> Iterator[Document]:
    """Samples numbered as drawn; those that ended at once count and give no document."""
    for i, ids in enumerate(sample_token_ids(lm, n, tokens, seed, cache)):
        if ids:
            yield Document(f"{SELF}[{i:05}]", lm.tokenizer.decode(ids), token_ids=tuple(ids))


def _wikipedia() -> Iterator[Document]:
    """The 106 articles of gensim's test data, cleaned by gensim's own filters."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    from gensim.test.utils import datapath
    from gensim.utils import open as open_compressed

    with open_compressed(datapath(WIKIPEDIA_FILE), "rb") as file:
        for title, text, _ in extract_pages(file, filter_namespaces=("0",)):
            if not text.lstrip().lower().startswith("#redirect"):
                yield Document(title, filter_wiki(text))


def _text_files(path: Path) -> Iterator[Document]:
    expected = f"expected UTF-8 text, a folder of {' or '.join(TEXTS)} files or one such file"
    if path.is_dir():
        hidden = [file for file in path.rglob("*") if "/." in f"/{file.relative_to(path)}"]
        inside = sorted(file for file in {*path.rglob("*")} - {*hidden} if file.is_file())
        texts = [file for file in inside if file.suffix.lower() in TEXTS]
        if others := [file.name for file in inside if file not in set(texts)]:
            told = f"{len(others)} other files ({', '.join(others[:3])}{' …' if len(others) > 3 else ''})"
            if not texts:
                raise ValueError(f"{path} holds {told}: {expected}. Tables go in as 'hf:{path}'")
            print(f"{path.name}: reading {len(texts)} texts, leaving out {told}", flush=True)
        for file in texts:
            name = os.fsencode(file.relative_to(path)).decode("utf-8", "backslashreplace")
            yield Document(name, _text_of(file))
    elif path.suffix.lower() not in (*TEXTS, ""):
        raise ValueError(
            f"{path.name} is a {path.suffix} file: {expected}. A table goes in as 'hf:FOLDER'"
        )
    else:
        for index, paragraph in enumerate(re.split(r"\n\s*\n", _text_of(path))):
            yield Document(f"{path.name}[{index}]", paragraph)


def _text_of(file: Path) -> str:
    """A file's text, without a byte-order mark.

    Raises:
        ValueError: it is not UTF-8, or holds NUL, as binary files and UTF-16 do.
    """
    content = file.read_bytes()
    try:
        text, at = content.decode("utf-8-sig"), content.find(b"\0")
    except UnicodeDecodeError as error:
        at = error.start
    if at >= 0:
        raise ValueError(
            f"{file} is no UTF-8 text: byte {content[at]:#04x} at {at}. Convert it first"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


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
        if not isinstance(row["text"], str | None):
            raise ValueError(
                f"dataset {spec!r}, row {index}: its text is of type {type(row['text']).__name__}, "
                "expected a string"
            )
        yield Document(f"{spec}[{index}]", row["text"] or "")
