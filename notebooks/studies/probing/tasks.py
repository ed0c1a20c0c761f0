"""Binary tasks for probes, made of texts that install with packages: examples carry marks, and two marks make a task.

An example is one token at which activations are read: the last token of a post's opening words or of a sentence of a review, each followed by
words that ask what it was about, or of a carrier sentence that ends with a word of a relation; a word of a text in one of four languages; or a
token in running text. A *group* is what must not be divided between fit and test: a post, a sentence, all words that relations tie together,
texts with one opening, a document.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from mmlib.activations.corpora import Document

CARRIERS = ("The next word is", "She wrote down the word", "His answer was")


# gather at one token what is spread over a text
POST_CLOSING = ". This message is about"
REVIEW_CLOSING = " This film is"


LANGUAGES = {"en": "English", "fr": "French", "de": "German", "es": "Spanish"}


FUNCTION_WORDS = frozenset(
    "a an and are as at be been but by for from had has have he her his in into is it its not of on or she such that the their them then there "
    "these they this to was were which who will with would".split()
)


@dataclass(frozen=True)
class Example:
    """One token at which activations are read, and what is known of it."""

    source: str  # "posts", "relations", "reviews", "languages" or "tokens"
    group: str
    marks: frozenset[str]
    held_out: bool


@dataclass(
    frozen=True, eq=False
)  # told apart by identity, so that what follows from a task can be kept by it
class Task:
    """Two classes of examples, equally many on each side; numbers of rows are those of the examples it was made from."""

    name: str
    source: str
    rows_e: np.ndarray
    label_e: np.ndarray  # bool
    group_e: np.ndarray  # integers
    held_out_e: np.ndarray  # bool

    def side(self, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
        """(rows, labels) of the examples to fit to, or of those held out."""
        here_e = self.held_out_e == held_out
        return self.rows_e[here_e], self.label_e[here_e]


@dataclass(frozen=True)
class Definition:
    """A task's name and the marks of its classes: negative are examples of the source with `negative`, but without `positive`."""

    name: str
    source: str
    positive: str
    negative: str


def post_examples(
    posts: Iterable[tuple[str, str, str]], per_label: int, words: int, share: float, seed: int
) -> tuple[list[Document], list[Example]]:
    """The first so many posts (title, text, label) of each label; each is its own group.

    Args:
        words: of each post, the first so many, before `POST_CLOSING`.
        share: of the groups, drawn at random, that is held out.
    """
    seen, chosen = Counter(), []
    for title, text, label in posts:
        seen[label] += 1
        if seen[label] <= per_label and text.strip():
            chosen.append(
                (Document(title, " ".join(text.split()[:words]) + POST_CLOSING, label), label)
            )
    held_out = _drawn([document.title for document, _ in chosen], share, seed)
    return (
        [document for document, _ in chosen],
        [
            Example("posts", document.title, frozenset({label, "post"}), document.title in held_out)
            for document, label in chosen
        ],
    )


def relation_examples(
    families: Mapping[str, Sequence[tuple[str, str]]], share: float, seed: int
) -> tuple[list[Document], list[Example]]:
    """Each word at the end of each carrier sentence, marked as first or second word of its families; tied words are one group."""
    marks: dict[str, set[str]] = {}
    for family, pairs in families.items():
        for pair in pairs:
            for word, place in zip(pair, ("first", "second")):
                marks.setdefault(word, set()).update((f"{family} {place}", place))
    group = tied([pair for pairs in families.values() for pair in pairs])
    held_out = _drawn([f"words {group[word]}" for word in marks], share, seed)
    documents, examples = [], []
    for word, known in marks.items():
        for number, carrier in enumerate(CARRIERS):
            documents.append(Document(f"relations[{word}/{number}]", f"{carrier} {word}"))
            examples.append(
                Example(
                    "relations",
                    f"words {group[word]}",
                    frozenset(known),
                    f"words {group[word]}" in held_out,
                )
            )
    return documents, examples


def tied(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The number of each word's group: words of one pair are in one, and so are pairs that share a word."""
    words = list(dict.fromkeys(word for pair in pairs for word in pair))
    number = {word: i for i, word in enumerate(words)}
    ends = np.array([[number[a], number[b]] for a, b in pairs]).T
    _, label = connected_components(
        coo_matrix((np.ones(len(pairs)), ends), shape=(len(words),) * 2), directed=False
    )
    return dict(zip(words, label.tolist()))


def review_examples(
    sentences: Sequence[tuple[str, str]], share: float, seed: int
) -> tuple[list[Document], list[Example]]:
    """Sentences (text, "pos" or "neg") before `REVIEW_CLOSING`; equal ones are one group."""
    held_out = _drawn([text for text, _ in sentences], share, seed)
    return (
        [
            Document(f"reviews[{i:03}]", text + REVIEW_CLOSING, label)
            for i, (text, label) in enumerate(sentences)
        ],
        [
            Example("reviews", text, frozenset({label}), text in held_out)
            for text, label in sentences
        ],
    )


def token_examples(pieces: Sequence[str], group: str, held_out: bool) -> list[Example]:
    """One for each token of a window, with the marks of `token_marks`."""
    return [Example("tokens", group, marks, held_out) for marks in token_marks(pieces)]


def language_examples(
    texts: Sequence[tuple[Sequence[str], str]], share: float, seed: int
) -> list[Example]:
    """One for each token of texts (pieces, language and opening: "fr 3"); whole words are marked as such and with the language.

    Texts that go on from one opening, translated, are one group: what they are about does not tell the languages apart.
    """
    held_out = _drawn([label.split()[1] for _, label in texts], share, seed)
    return [
        Example(
            "languages",
            f"opening {opening}",
            frozenset({"word", language}) if "word" in marks else frozenset(),
            opening in held_out,
        )
        for pieces, label in texts
        for language, opening in [label.split()]
        for marks in token_marks(pieces)
    ]


def token_marks(pieces: Sequence[str]) -> list[frozenset[str]]:
    """What can be read off a text about each of its tokens.

    A *word* here is a token that is one whole word behind a space. Quotation marks and brackets are forgotten at the end of a line. The
    first and the last token, whose neighbours are not known, carry no mark.

    Args:
        pieces: the text as tokens, spaces included.
    """
    inside, marks = _enclosed(pieces), [frozenset()] * len(pieces)
    for i in range(1, len(pieces) - 1):
        before, piece, after = pieces[i - 1 : i + 2]
        found = {"token", *inside[i]}
        if re.search(r"\d", piece):
            found |= {"digit"} | ({"number goes on"} if re.match(r"\d", after) else set())
        if any(c.isalpha() and not c.isascii() for c in piece):
            found.add("letter outside ASCII")
        if re.fullmatch(r" [^\W\d_]+", piece):
            found |= {"word start"} | (
                {"word goes on"}
                if re.match(r"[^\W\d_]", after)
                else _of_word(before, piece[1:], after)
            )
        marks[i] = frozenset(found)
    return marks


def _of_word(before: str, word: str, after: str) -> set[str]:
    """Marks of a whole word between two tokens."""
    found = {"word"}
    if after.startswith((".", "!", "?")):
        found.add("sentence ends")
    if after.startswith(","):
        found.add("comma follows")
    if before.strip().lower() == "the":
        found.add("after the")
    if word.islower():
        found.add("lower-case word")
        found |= (
            {"function word"}
            if word in FUNCTION_WORDS
            else {
                mark
                for mark, ending in (
                    ("-ing", r"\w{2,}ing"),
                    ("-ed", r"\w{2,}ed"),
                    ("-s", r"\w{2,}[^s\W]s"),
                )
                if re.fullmatch(ending, word)
            }
        )
    elif word[0].isupper():
        found |= {
            "capitalised",
            "sentence begins" if re.search(r"([.!?]|\n)\s*$", before) else "capitalised within",
        }
    return found


def _enclosed(pieces: Sequence[str]) -> list[set[str]]:
    """Whether each token stands between quotation marks or brackets; tokens that hold such a mark do not."""
    quoted, depth, inside = False, 0, []
    for piece in pieces:
        marks = re.search(r'["“”()\n]', piece)
        inside.append(
            set()
            if marks
            else ({"in quotes"} if quoted else set()) | ({"in brackets"} if depth else set())
        )
        for character in piece:
            if character == "\n":
                quoted, depth = False, 0
            elif character in '"“”':
                quoted = character == "“" or (character == '"' and not quoted)
            elif character in "()":
                depth = max(0, depth + (1 if character == "(" else -1))
    return inside


TOKEN_TASKS = tuple(
    Definition(name, "tokens", positive, negative)
    for name, positive, negative in (
        ("number", "digit", "token"),
        ("number goes on", "number goes on", "digit"),
        ("capitalised", "capitalised", "lower-case word"),
        ("sentence begins", "sentence begins", "capitalised within"),
        ("in quotes", "in quotes", "token"),
        ("in brackets", "in brackets", "token"),
        ("sentence ends here", "sentence ends", "word"),
        ("comma follows", "comma follows", "word"),
        ("word goes on", "word goes on", "word"),
        ("function word", "function word", "lower-case word"),
        ("word in -ing", "-ing", "lower-case word"),
        ("word in -ed", "-ed", "lower-case word"),
        ("word in -s", "-s", "lower-case word"),
        ("after “the”", "after the", "word"),
        ("letter outside ASCII", "letter outside ASCII", "word start"),
    )
)


def definitions(labels: Iterable[str], families: Iterable[str]) -> list[Definition]:
    """All tasks: posts of one label against the others; second against first words of a relation, and against second words of
    the other relations; praise against blame; `TOKEN_TASKS`; and words of one language against those of three others."""
    return [
        *(Definition(label, "posts", label, "post") for label in sorted(labels)),
        *(
            Definition(f"{family}: second word", "relations", f"{family} second", f"{family} first")
            for family in families
        ),
        *(
            Definition(f"{family}: this relation", "relations", f"{family} second", "second")
            for family in families
        ),
        Definition("review is positive", "reviews", "pos", "neg"),
        *TOKEN_TASKS,
        *(
            Definition(f"{name} word", "languages", language, "word")
            for language, name in LANGUAGES.items()
        ),
    ]


def make_tasks(
    examples: Sequence[Example], wanted: Iterable[Definition], per_class: int, least: int, seed: int
) -> tuple[list[Task], list[str]]:
    """Balanced tasks: on each side equally many of each class, at most `per_class`, drawn at random.

    Returns:
        (tasks, names of those with fewer than `least` examples of a class on a side).
    """
    groups = {
        group: i for i, group in enumerate(dict.fromkeys(example.group for example in examples))
    }
    tasks, left_out = [], []
    for number, definition in enumerate(wanted):
        rng, rows, labels = np.random.default_rng([seed, number]), [], []
        for held_out in (False, True):
            side = [
                i
                for i, example in enumerate(examples)
                if example.source == definition.source and example.held_out == held_out
            ]
            classes = [
                [
                    i
                    for i in side
                    if definition.negative in examples[i].marks
                    and definition.positive not in examples[i].marks
                ],
                [i for i in side if definition.positive in examples[i].marks],
            ]
            n = min(per_class, *map(len, classes))
            for label, found in enumerate(classes):
                rows += rng.permutation(found)[:n].astype(int).tolist() if n >= least else []
                labels += [bool(label)] * (n if n >= least else 0)
        held = np.array([examples[i].held_out for i in rows], bool)
        if held.any() and not held.all():
            tasks.append(
                Task(
                    definition.name,
                    definition.source,
                    np.array(rows),
                    np.array(labels),
                    np.array([groups[examples[i].group] for i in rows]),
                    held,
                )
            )
        else:
            left_out.append(definition.name)
    return tasks, left_out


def compacted(tasks: Sequence[Task]) -> tuple[np.ndarray, list[Task]]:
    """The rows that any task uses, in order, and the tasks with rows numbered among these."""
    used = np.unique(np.concatenate([task.rows_e for task in tasks]))
    return used, [replace(task, rows_e=np.searchsorted(used, task.rows_e)) for task in tasks]


def _drawn(groups: Iterable[str], share: float, seed: int) -> set[str]:
    """A share of the different groups, at random."""
    different = sorted(set(groups))
    return set(
        np.random.default_rng(seed).permutation(different)[: round(share * len(different))].tolist()
    )
