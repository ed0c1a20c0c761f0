"""Labelled texts that install with a package (gensim's test data): sentences of film reviews, and pairs of words in a relation."""

from pathlib import Path

REVIEWS_FILE = "pang_lee_polarity.cor"  # Pang and Lee 2005: 100 sentences of each label, in Latin-1
RELATIONS_FILE = (
    "questions-words.txt"  # Mikolov et al. 2013: analogies "a b c d", of 14 families of relations
)


def review_sentences() -> list[tuple[str, str]]:
    """(sentence, "pos" or "neg") of film reviews, in the order of the file: lower-cased, tokens apart.

    Raises:
        ValueError: a line carries no label.
    """
    sentences = []
    for number, line in enumerate(_lines(REVIEWS_FILE, "latin-1"), 1):
        mark, _, sentence = line.partition(" ")
        label = mark.removeprefix("__label__")
        if label not in ("pos", "neg"):
            raise ValueError(
                f"{REVIEWS_FILE}, line {number}: begins with {mark!r}, expected __label__pos or __label__neg"
            )
        sentences.append((sentence.strip(), label))
    return sentences


def relation_families() -> dict[str, list[tuple[str, str]]]:
    """The different pairs of words of each family, such as ("Athens", "Greece"), in the order in which they come.

    Raises:
        ValueError: a line has not four words, or stands before any family.
    """
    families: dict[str, list[tuple[str, str]]] = {}
    for number, line in enumerate(_lines(RELATIONS_FILE, "utf-8"), 1):
        if line.startswith(":"):
            pairs = families.setdefault(line.removeprefix(":").strip(), [])
            continue
        if len(words := line.split()) != 4:
            raise ValueError(
                f"{RELATIONS_FILE}, line {number}: {line!r} has {len(words)} words, expected four"
            )
        if not families:
            raise ValueError(
                f"{RELATIONS_FILE}, line {number}: {line!r} stands before any family, expected a line that begins with ':'"
            )
        pairs += [(words[0], words[1]), (words[2], words[3])]
    return {family: list(dict.fromkeys(pairs)) for family, pairs in families.items()}


def _lines(name: str, encoding: str) -> list[str]:
    from gensim.test.utils import datapath

    return Path(datapath(name)).read_text(encoding=encoding).splitlines()
