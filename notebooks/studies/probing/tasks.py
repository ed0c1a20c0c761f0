"""Binary tasks for probes, made of texts that install with packages: examples carry marks, and two
marks make a task.

An example is one token at which activations are read: the last token of a post's opening words or
of a sentence of a review, each followed by words that ask what it was about, or of a carrier
sentence that ends with a word of a relation; a word of a text in one of four languages; or a token
in running text. A *group* is what must not be divided between fit and test: a post, a sentence, all
words that relations tie together, texts with one opening, a document.
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
    "a an and are as at be been but by for from had has have he her his in into is it its not of "
    "on or she such that the their them then there "
    "these they this to was were which who will with would".split()
)


@dataclass(frozen=True)
class Example:
    """One token at which activations are read, and what is known of it."""

    source: str  # "posts", "relations", "reviews", "languages" or "tokens"
    group: str
    marks: frozenset[str]
    held_out: bool


@dataclass(frozen=True, eq=False)  # equal to itself alone, so that what follows can be kept by it
class Task:
    """Two classes of examples, equally many on each side; numbers of rows are those of the examples
    it was made from.
    """

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
    """A task's name and the marks of its classes: negative are examples of the source with
    `negative`, but without `positive`.
    """

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
    seen, documents = Counter(), []
    for title, text, label in posts:
        seen[label] += 1
        if seen[label] <= per_label and text.strip():
            opening = " ".join(text.split()[:words])
            documents.append(Document(title, opening + POST_CLOSING, label))
    marked = [(document.title, {document.label, "post"}) for document in documents]
    return documents, _divided("posts", marked, share, seed)


def relation_examples(
    families: Mapping[str, Sequence[tuple[str, str]]], share: float, seed: int
) -> tuple[list[Document], list[Example]]:
    """Each word at the end of each carrier sentence, marked as first or second word of its
    families; tied words are one group.
    """
    marks: dict[str, set[str]] = {}
    for family, pairs in families.items():
        for word, place in (item for pair in pairs for item in zip(pair, ("first", "second"))):
            marks.setdefault(word, set()).update((f"{family} {place}", place))
    group = tied([pair for pairs in families.values() for pair in pairs])
    read = [(word, number) for word in marks for number in range(len(CARRIERS))]
    documents = [
        Document(f"relations[{word}/{number}]", f"{CARRIERS[number]} {word}")
        for word, number in read
    ]
    marked = [(f"words {group[word]}", marks[word]) for word, _ in read]
    return documents, _divided("relations", marked, share, seed)


def tied(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The number of each word's group: words of one pair are in one, and so are pairs that share a
    word.
    """
    words = list(dict.fromkeys(word for pair in pairs for word in pair))
    number = {word: i for i, word in enumerate(words)}
    ends = np.array([[number[a], number[b]] for a, b in pairs]).T
    ties = coo_matrix((np.ones(len(pairs)), ends), shape=(len(words),) * 2)
    _, label = connected_components(ties, directed=False)
    return dict(zip(words, label.tolist()))


def review_examples(
    sentences: Sequence[tuple[str, str]], share: float, seed: int
) -> tuple[list[Document], list[Example]]:
    """Sentences (text, "pos" or "neg") before `REVIEW_CLOSING`; equal ones are one group."""
    documents = [
        Document(f"reviews[{i:03}]", text + REVIEW_CLOSING, label)
        for i, (text, label) in enumerate(sentences)
    ]
    return documents, _divided(
        "reviews", [(text, {label}) for text, label in sentences], share, seed
    )


def token_examples(pieces: Sequence[str], group: str, held_out: bool) -> list[Example]:
    """One for each token of a window, with the marks of `token_marks`."""
    return [Example("tokens", group, marks, held_out) for marks in token_marks(pieces)]


def language_examples(
    texts: Sequence[tuple[Sequence[str], str]], share: float, seed: int
) -> list[Example]:
    """One for each token of texts (pieces, language and opening: "fr 3"); whole words are marked as
    such and with the language.

    Texts that go on from one opening, translated, are one group: what they are about does not tell
    the languages apart.
    """
    marked = [
        (f"opening {opening}", {"word", language} if "word" in marks else ())
        for pieces, label in texts
        for language, opening in [label.split()]
        for marks in token_marks(pieces)
    ]
    return _divided("languages", marked, share, seed)


def _divided(
    source: str, marked: Sequence[tuple[str, Iterable[str]]], share: float, seed: int
) -> list[Example]:
    """Examples of groups with marks; a share of the groups, drawn at random, is held out."""
    groups = sorted({group for group, _ in marked})
    drawn = np.random.default_rng(seed).permutation(groups)[: round(share * len(groups))]
    held_out = set(drawn.tolist())
    return [Example(source, group, frozenset(marks), group in held_out) for group, marks in marked]


def token_marks(pieces: Sequence[str]) -> list[frozenset[str]]:
    """What can be read off a text about each of its tokens.

    A *word* here is a token that is one whole word behind a space. Quotation marks and brackets are
    forgotten at the end of a line. The first and the last token, whose neighbours are not known,
    carry no mark.

    Args:
        pieces: the text as tokens, spaces included.
    """
    inside, marks = _enclosed(pieces), [frozenset()] * len(pieces)
    for i in range(1, len(pieces) - 1):
        before, piece, after = pieces[i - 1 : i + 2]
        digit, starts = re.search(r"\d", piece), re.fullmatch(r" [^\W\d_]+", piece)
        goes_on = starts and re.match(r"[^\W\d_]", after)
        found = {
            "token": True,
            "digit": digit,
            "number goes on": digit and re.match(r"\d", after),
            "letter outside ASCII": any(c.isalpha() and not c.isascii() for c in piece),
            "word start": starts,
            "word goes on": goes_on,
        }
        if starts and not goes_on:
            found |= _of_word(before, piece[1:], after)
        marks[i] = frozenset(mark for mark, holds in (found | inside[i]).items() if holds)
    return marks


ENDINGS = {"-ing": r"\w{2,}ing", "-ed": r"\w{2,}ed", "-s": r"\w{2,}[^s\W]s"}


def _of_word(before: str, word: str, after: str) -> dict[str, object]:
    """Marks of a whole word between two tokens, and whether it has them."""
    function_word, lower = word in FUNCTION_WORDS, word.islower()
    capital, begins = word[0].isupper(), re.search(r"([.!?]|\n)\s*$", before)
    return {
        "word": True,
        "sentence ends": after.startswith((".", "!", "?")),
        "comma follows": after.startswith(","),
        "after the": before.strip().lower() == "the",
        "lower-case word": lower,
        "function word": function_word,
        **{
            mark: lower and not function_word and re.fullmatch(ending, word)
            for mark, ending in ENDINGS.items()
        },
        "capitalised": capital,
        "sentence begins": capital and begins,
        "capitalised within": capital and not begins,
    }


def _enclosed(pieces: Sequence[str]) -> list[dict[str, bool]]:
    """Whether each token stands between quotation marks or brackets; tokens that hold such a mark
    do not.
    """
    quoted, depth, inside = False, 0, []
    for piece in pieces:
        within = not re.search(r'["“”()\n]', piece)
        inside.append({"in quotes": within and quoted, "in brackets": within and depth > 0})
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
    """All tasks: posts of one label against the others; second against first words of a relation,
    and against second words of the other relations; praise against blame; `TOKEN_TASKS`; and words
    of one language against those of three others.
    """
    names = list(families)
    return [
        *(Definition(label, "posts", label, "post") for label in sorted(labels)),
        *(
            Definition(f"{name}: {task}", "relations", f"{name} second", negative.format(name))
            for task, negative in (("second word", "{} first"), ("this relation", "second"))
            for name in names
        ),
        Definition("review is positive", "reviews", "pos", "neg"),
        *TOKEN_TASKS,
        *(Definition(f"{name} word", "languages", key, "word") for key, name in LANGUAGES.items()),
    ]


def make_tasks(
    examples: Sequence[Example], wanted: Iterable[Definition], per_class: int, least: int, seed: int
) -> tuple[list[Task], list[str]]:
    """Balanced tasks: on each side equally many of each class, at most `per_class`, drawn at
    random.

    Returns:
        (tasks, names of those with fewer than `least` examples of a class on a side).
    """
    group_of = {group: i for i, group in enumerate(dict.fromkeys(e.group for e in examples))}
    tasks, left_out = [], []
    for number, definition in enumerate(wanted):
        rng, rows, labels = np.random.default_rng([seed, number]), [], []
        for held_out in (False, True):
            side = [
                (i, example.marks)
                for i, example in enumerate(examples)
                if example.source == definition.source and example.held_out == held_out
            ]
            positive = [i for i, marks in side if definition.positive in marks]
            others = [(i, marks) for i, marks in side if definition.positive not in marks]
            negative = [i for i, marks in others if definition.negative in marks]
            n = min(per_class, len(negative), len(positive))
            if n >= least:
                rows += [i for found in (negative, positive) for i in rng.permutation(found)[:n]]
                labels += [False] * n + [True] * n
        held = np.array([examples[i].held_out for i in rows], bool)
        if held.any() and not held.all():
            group_e = np.array([group_of[examples[i].group] for i in rows])
            task = (definition.name, definition.source, np.array(rows), np.array(labels))
            tasks.append(Task(*task, group_e, held))
        else:
            left_out.append(definition.name)
    return tasks, left_out


def compacted(tasks: Sequence[Task]) -> tuple[np.ndarray, list[Task]]:
    """The rows that any task uses, in order, and the tasks with rows numbered among these."""
    used = np.unique(np.concatenate([task.rows_e for task in tasks]))
    return used, [replace(task, rows_e=np.searchsorted(used, task.rows_e)) for task in tasks]
