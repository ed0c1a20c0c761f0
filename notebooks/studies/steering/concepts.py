"""What steering aims at: labelled texts that give the direction, and a measure of the concept that
never saw them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from mmlib.activations.corpora import NEWSGROUPS, Document, load_documents
from mmlib.activations.labelled import review_sentences

SENTIMENT = "sentiment"

Measure = Callable[[Sequence[str]], np.ndarray]  # texts → how much of the concept each has, (n,)


@dataclass(frozen=True)
class Concept:
    """One concept, in one sense of its sign.

    Args:
        documents: texts for the direction.
        positive_n: which of them have the concept (or, for sign −1, lack it).
        measure: how much of it a text has, by other means; for sign −1 negative.
        neutral: whether a prompt has none of it.
        judged: texts that neither the measure nor, for topics, the direction was made from.
        judged_positive_n: which of them have the concept.
    """

    name: str
    documents: list[Document]
    positive_n: np.ndarray
    measure: Measure
    neutral: Callable[[str], bool]
    judged: list[Document]
    judged_positive_n: np.ndarray


def concept(name: str, sign: int, *, posts: int, cache: Path) -> Concept:
    """ "sentiment" (film reviews, measured by VADER), or the name of a newsgroup (its posts against
    others', measured by a probe on words).

    Args:
        posts: of the newsgroup, and as many of all others, for the direction; as many again, other
            ones, for the probe; and what is left of as many again to judge the probe on.
    Raises:
        ValueError: the sign is neither 1 nor −1, or there is no such newsgroup, or it has too few
            posts.
    """
    if sign not in (1, -1):
        raise ValueError(f"sign {sign}: expected 1 or -1")
    label = "pos" if name == SENTIMENT else name
    if name == SENTIMENT:
        reviews = enumerate(review_sentences())
        documents = judged = [
            Document(f"review[{i:03}]", text, mark) for i, (text, mark) in reviews
        ]
        measure = vader_compound
    else:
        documents, fresh, judged = _posts_of(name, posts, cache)
        measure = text_probe([d.text for d in fresh], [d.label == name for d in fresh])

    def neutral(text: str) -> bool:
        value = measure([text])[0]
        return value == 0 if name == SENTIMENT else value < 0.5

    positive_n, judged_n = (np.array([d.label == label for d in ds]) for ds in (documents, judged))
    found = Concept(name, documents, positive_n, measure, neutral, judged, judged_n)
    if sign == 1:
        return found
    opposite = {"positive_n": ~positive_n, "judged_positive_n": ~judged_n}
    return replace(found, measure=lambda texts: -measure(texts), **opposite)


def measure_auc(wanted: Concept, shortened: Callable[[str], str]) -> dict:
    """How well a concept's measure tells texts that it was not made from, as they are and shortened
    to what a continuation holds: AUC of each.

    Raises:
        ValueError: the texts to judge it on are all of one class.
    """
    if len(set(wanted.judged_positive_n)) < 2:
        raise ValueError(
            f"{int(wanted.judged_positive_n.sum())} of {len(wanted.judged)} texts have the concept "
            f"{wanted.name!r}: expected both classes; lower the number of posts, so that some are "
            "left to judge the measure on"
        )
    texts = [document.text for document in wanted.judged]
    whole, short = (
        float(roc_auc_score(wanted.judged_positive_n, wanted.measure(read)))
        for read in (texts, [shortened(text) for text in texts])
    )
    return {"texts": len(texts), "whole": whole, "shortened": short}


def vader_compound(texts: Sequence[str]) -> np.ndarray:
    """Sentiment from −1 to 1 by VADER's lexicon and rules (Hutto and Gilbert 2014), which never saw
    the direction or its sentences.
    """
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return np.array([analyser.polarity_scores(text)["compound"] for text in texts])


def text_probe(texts: Sequence[str], positive_n: Sequence[bool]) -> Measure:
    """Probability of a topic by logistic regression on words' TF-IDF, fitted to texts that the
    direction was not made from.
    """
    probe = make_pipeline(
        TfidfVectorizer(token_pattern=r"[a-z]{2,}", sublinear_tf=True, min_df=2),
        LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000),
    ).fit(texts, np.asarray(positive_n, dtype=bool))
    return lambda new: probe.predict_proba(list(new))[:, 1]


def _posts_of(
    newsgroup: str, posts: int, cache: Path
) -> tuple[list[Document], list[Document], list[Document]]:
    """Three sets of posts that share none: in each, so many of the newsgroup and as many of the
    others; the third may hold fewer.
    """
    everything = load_documents(NEWSGROUPS, cache=cache)  # in an order drawn at random
    parts = [
        [d for d in everything if (d.label == newsgroup) == inside] for inside in (True, False)
    ]
    known = ", ".join(sorted({d.label for d in everything}))
    if not parts[0]:
        raise ValueError(
            f"unknown concept {newsgroup!r}: expected {SENTIMENT!r} or a newsgroup, one of {known}"
        )
    if len(parts[0]) < 2 * posts:
        raise ValueError(
            f"newsgroup {newsgroup!r} has {len(parts[0])} posts, {2 * posts} were asked for; there "
            f"are {known}: lower `posts` of the size"
        )
    return tuple([d for part in parts for d in part[i * posts : (i + 1) * posts]] for i in range(3))
