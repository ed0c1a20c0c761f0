"""Documents and their split."""

import json

import pytest

from mmlib.corpus import Document, corpus_identity, effective_clusters, load_documents, split_documents


@pytest.fixture(scope="module")
def wikipedia():
    return load_documents("wikipedia")


def test_wikipedia_sample_is_real_text_without_redirects(wikipedia):
    assert len(wikipedia) == 106 and wikipedia[0].title == "Anarchism"
    assert not any(d.text.lstrip().lower().startswith("#redirect") for d in wikipedia)
    assert "[[" not in wikipedia[0].text and "political philosophy" in wikipedia[0].text


def test_default_split_meets_the_promised_sizes(wikipedia):
    splits = split_documents(wikipedia, 8, 20, seed=0)
    share = sum(len(d.text) for d, s in zip(wikipedia, splits) if s == "train") / sum(len(d.text) for d in wikipedia)
    assert splits.count("validation") == 8 and splits.count("test") == 20 and share > 0.72


def test_split_is_seeded_stratified_and_by_document(wikipedia):
    splits = split_documents(wikipedia, 8, 20, seed=0)
    assert splits == split_documents(wikipedia, 8, 20, seed=0) != split_documents(wikipedia, 8, 20, seed=1)
    longest = sorted(range(106), key=lambda i: -len(wikipedia[i].text))
    for first in range(0, 100, 12):  # every stretch of lengths gives to the test split
        assert "test" in [splits[i] for i in longest[first : first + 12]]


def test_too_few_documents():
    with pytest.raises(ValueError, match="3 documents cannot give 1 for validation and 2 for test"):
        split_documents([Document(str(i), "x") for i in range(3)], 1, 2, seed=0)


def test_text_files(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "empty.txt").write_text("  \n")
    assert [(d.title, d.text) for d in load_documents(str(tmp_path))] == [("a.txt", "first"), ("b.txt", "second")]
    (tmp_path / "one.txt").write_text("a paragraph\nof two lines\n\n  \nand another\n")
    assert [d.text.strip() for d in load_documents(str(tmp_path / "one.txt"))] == ["a paragraph\nof two lines", "and another"]


def test_empty_and_unknown_corpora_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no text"):
        load_documents(str(tmp_path))
    with pytest.raises(ValueError, match="unknown corpus 'enwiki': expected 'wikipedia', the path"):
        load_documents("enwiki")


def test_hugging_face_dataset_is_streamed(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(5)))
    documents = load_documents(f"hf:{tmp_path}", limit=3)
    assert [d.text for d in documents] == ["document 0", "document 1", "document 2"]


def test_identity_follows_the_text():
    one, other = Document("t", "a"), Document("t", "b")
    assert corpus_identity("c", [one]) == corpus_identity("c", [one]) != corpus_identity("c", [other])


def test_effective_clusters_by_hand():
    assert effective_clusters([5, 5, 5, 5]) == 4 and effective_clusters([3, 1]) == pytest.approx(1.6)
