"""The labelled texts are the ones described, and damaged ones are refused."""

import pytest

from mmlib.activations import corpora as labelled


def test_reviews_are_balanced_sentences():
    sentences = labelled.review_sentences()
    labels = [label for _, label in sentences]
    assert labels.count("pos") == labels.count("neg") == 100 and sentences[0] == (
        "simplistic , silly and tedious .",
        "neg",
    )
    assert not any("__label__" in text or not text for text, _ in sentences)


def test_relations_have_fourteen_families_of_different_pairs():
    families = labelled.relation_families()
    assert len(families) == 14 and families["capital-common-countries"][:2] == [
        ("Athens", "Greece"),
        ("Baghdad", "Iraq"),
    ]
    assert (
        all(len(pairs) == len(set(pairs)) >= 20 for pairs in families.values())
        and ("king", "queen") in families["family"]
    )


@pytest.mark.parametrize(
    "read, line, message",
    [
        (labelled.review_sentences, "good film", "line 1: begins with 'good'"),
        (labelled.relation_families, "a b c", "has 3 words, expected four"),
        (labelled.relation_families, "a b c d", "stands before any family"),
    ],
)
def test_damaged_lines_are_named(monkeypatch, read, line, message):
    monkeypatch.setattr(labelled, "_lines", lambda name, encoding: [line])
    with pytest.raises(ValueError, match=message):
        read()
