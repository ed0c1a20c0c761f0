"""Residual blocks of the common architectures, and extraction on tiny random-weight models."""

import shutil
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from letters import ARCHITECTURES, tiny
from transformers import GPT2Config

from mmlib.activations import extract as extraction
from mmlib.activations import lm as llm
from mmlib.activations import windows
from mmlib.activations.batches import (
    CHUNK_ROWS,
    live_batches,
    multi_layer_batches,
    streamed_batches,
)
from mmlib.activations.corpora import Document
from mmlib.activations.extract import describe, extract, plan_extraction, write_store
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.windows import block_rows, cut_blocks, cut_windows, read_block
from mmlib.activations.writer import StoreWriter
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import MLPSize
from mmlib.training.recipe import Recipe, Training, new_model
from mmlib.training.train import train


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_found_and_their_output_is_the_next_hidden_state(architecture):
    model, ids = tiny(architecture).model, torch.randint(4, 60, (2, 9))
    assert len(llm.residual_blocks(model)) == 3
    hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    read = llm.read_residual_stream(model, [0, 1], ids)
    assert torch.equal(read[0], hidden[1]) and torch.equal(read[1], hidden[2])


def test_later_blocks_never_run_and_hooks_are_removed_even_after_an_error():
    model, ran = tiny().model, []
    model.model.layers[2].register_forward_hook(lambda *_: ran.append(2))
    llm.read_residual_stream(model, [1], torch.ones(1, 3, dtype=torch.long))
    assert not ran
    with pytest.raises(IndexError):
        llm.read_residual_stream(model, [1], torch.full((1, 3), 10**6))
    assert not any(block._forward_hooks for block in llm.residual_blocks(model)[:2])
    model(torch.ones(1, 3, dtype=torch.long))
    assert ran == [2]


@torch.inference_mode()
def test_a_forward_pass_is_resumed_at_a_block_and_the_model_is_afterwards_as_before():
    model, ids = tiny("gptj").model, torch.randint(4, 60, (2, 9))
    clean, others, ran = model(ids).logits, model(ids.flip(1)).logits, []
    output = llm.read_blocks(model, [1], ids)[1]
    model.transformer.h[0].mlp.register_forward_hook(lambda *_: ran.append(0))
    with llm.resumed_at(model, 1, output):
        assert torch.allclose(model(ids).logits, clean, atol=1e-5) and not ran
    assert torch.equal(model(ids.flip(1)).logits, others) and ran


@pytest.mark.parametrize("layer", [99, 18, -1, 2.0, True])
def test_impossible_layer_lists_what_is_allowed(layer):
    assert llm.resolve_layer(None, 18) == 8 and llm.resolve_layer(0, 18) == 0
    with pytest.raises(ValueError, match="18 blocks, expected an integer from 0 to 17"):
        llm.resolve_layer(layer, 18)


def test_impossible_layers_are_refused_by_the_plan(lm):
    for layers, message in (([1, 1], "expected each once"), (99, "layer 99: this model has 3")):
        with pytest.raises(ValueError, match=message):
            plan_extraction(DOCUMENTS, SPLITS, lm, layers, window=16)


UNKNOWN = "no causal language model '{}'.*gemma3-270m.*local folder.*Hub"


def test_a_model_that_cannot_be_loaded_says_what_is_expected(tmp_path):
    ambiguous = torch.nn.Module()
    ambiguous.config = GPT2Config(n_layer=2)
    for name in "ab":
        setattr(ambiguous, name, torch.nn.ModuleList([torch.nn.Identity()] * 2))
    dtypes = "'float8' is not supported: expected bfloat16, float32, float16"
    for load, message in (
        (lambda: llm.load_language_model("nobody/nothing"), UNKNOWN.format("nobody/nothing")),
        (lambda: llm.count_blocks(str(tmp_path), tmp_path), UNKNOWN.format(tmp_path)),
        (lambda: llm.load_language_model("gpt2", dtype="float8"), dtypes),
        (lambda: llm.residual_blocks(ambiguous), r"one ModuleList of 2 blocks, found \['a', 'b'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            load()


def test_a_tokenizer_that_was_converted_wrongly_is_refused():
    """As transformers 5.17 converts the embedded one: letters in place of words."""
    llm._require_known_tokens(lambda text: {"input_ids": list(llm.KNOWN_IDS)})
    with pytest.raises(
        ValueError,
        match=r"transformers \d.* cuts 'The Eiffel.* into 42 tokens, .* into 10: convert it with the version in requirements.txt",
    ):
        llm._require_known_tokens(lambda text: {"input_ids": [ord(letter) for letter in text]})


@pytest.fixture
def lm():
    return tiny()


DOCUMENTS = [
    Document("a", "a test document of some length" * 3),
    Document("b", "short"),
    Document("c", "and another one, " * 4),
]
SPLITS = ["test", "train", "validation"]


def test_windows_cover_each_document_and_never_cross_it():
    windows = cut_windows([np.arange(10), np.arange(1), np.arange(6)], window=4)
    assert [(w.document, w.start, len(w.token_ids), w.ends_document) for w in windows] == [
        (0, 0, 3, False),
        (0, 3, 3, False),
        (0, 6, 3, False),
        (0, 9, 1, True),
        (1, 0, 1, True),
        (2, 0, 3, False),
        (2, 3, 3, True),
    ]


def test_blocks_depend_on_their_own_documents_alone():
    """Batches of 10 tokens: a block ends with a document from 10 tokens on, or anywhere at 20."""
    lengths = [90, 5, 16, 3, 30]

    def rows(lengths):
        windows = cut_windows([np.arange(n) for n in lengths], window=6)
        return [block_rows(block) for block in cut_blocks(windows, batch_tokens=10)]

    assert rows(lengths) == [20, 20, 20, 20, 10, 5 + 15, 1 + 3 + 20, 10]
    assert rows(lengths[1:]) == [20, 24, 10]


def test_padding_is_little_when_texts_are_short(monkeypatch, lm):
    """Texts of 1 to 60 tokens: positions computed, against those needed."""
    ids, shapes = [np.arange(4, 4 + 1 + 37 * i % 60) % 60 for i in range(200)], []

    def read(model, layers, ids_bt):
        shapes.append(ids_bt.shape)
        return {0: torch.zeros(*ids_bt.shape, 2)}

    monkeypatch.setattr(windows, "read_residual_stream", read)
    for block in cut_blocks(cut_windows(ids, 256), batch_tokens=1024):
        read_block(block, lm, [0], 1024)
    computed, needed = sum(b * t for b, t in shapes), sum(len(i) + 1 for i in ids)
    assert needed <= computed < 1.25 * needed and max(b * t for b, t in shapes) <= 1024


def stored(plan, lm, folder, **options):
    """The store of a plan."""
    return write_store(plan, lm, folder, attributes={"corpus": "c"}, **options)


def test_stored_rows_are_what_the_model_computes_for_each_window_alone(lm, tmp_path):
    plan = plan_extraction(DOCUMENTS, SPLITS, lm, 1, window=16, batch_tokens=80)
    store, first = stored(plan, lm, tmp_path / "a"), 0
    assert [row.split for row in plan.documents] == ["train", "validation", "test"]
    assert store.titles.tolist() == ["b", "c", "a"]
    for window in plan.windows:
        rows = range(first, first + len(window.token_ids))
        ids = torch.tensor([[1, *window.token_ids]])
        alone = lm.model(ids, output_hidden_states=True).hidden_states[2][0, 1:]
        assert torch.allclose(store.read(rows), alone, atol=1e-5)
        positions = range(window.start, window.start + len(rows))
        assert store.column("position", rows).tolist() == list(positions)
        assert store.column("token_ids", rows).tolist() == window.token_ids.tolist()
        first += len(rows)
    assert first == store.n


def test_several_layers_are_stored_by_one_pass_and_trained_on_together(lm, tmp_path):
    """From text to one meta-model of two layers: the rows of each layer are those of an extraction of it alone."""
    both = stored(plan_extraction(DOCUMENTS, SPLITS, lm, [0, 2], window=16), lm, tmp_path / "both")
    alone = stored(plan_extraction(DOCUMENTS, SPLITS, lm, 2, window=16), lm, tmp_path / "one")
    stores = [ActivationStore(both.path, layer) for layer in (0, 2)]
    assert torch.equal(stores[1].read(slice(None)), alone.read(slice(None)))
    every = {"log_every": 2, "validate_every": 2, "save_every": 2}
    training = Training("flow_velocity", steps=4, batch=4, lr=1e-3, bf16=False, **every)
    model = new_model(Recipe(MLPSize(1, 16, 32), training), Origin.of(*stores), seed=0)
    validation = torch.stack([store.read(store.rows("validation")) for store in stores])

    def batches(start):
        return multi_layer_batches(stores, "train", 4, 0, start=start)

    train(model, training, batches, model.normaliser(validation), tmp_path / "model", seed=0)
    MetaModel.from_pretrained(tmp_path / "model").at(2).check_store(alone)


def test_full_disk_is_refused_before_any_work(lm, tmp_path, monkeypatch):
    plan = plan_extraction(DOCUMENTS, SPLITS, lm, 1, window=16)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=plan.bytes - 1))
    with pytest.raises(OSError, match="extraction needs .* GB .* are free"):
        stored(plan, lm, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def test_a_store_says_what_its_values_depend_on(lm, tmp_path):
    plan = plan_extraction(DOCUMENTS, SPLITS, lm, 1, window=16)
    facts = describe(lm, "c@1", plan, created_by="a test", seed=3)
    known = write_store(plan, lm, tmp_path / "a", attributes=facts).attributes
    assert set(known) >= {
        *("format", "format_version", "model", "tokenizer", "corpus", "documents", "split"),
        *("layer_convention", "hook_point", "layers", "d", "dtype", "window", "batch_tokens"),
        *("token_ids", "opening_token", "seed", "device", "packages", "code", "created_by"),
    }
    assert (known["model"], known["seed"], known["window"]) == ("tiny@0", 3, 16)
    assert known["tokenizer"].startswith("Letters@") and "torch" in known["packages"]
    assert known["created_by"] == "a test"


def test_a_document_without_tokens_has_no_rows(lm, tmp_path):
    documents, splits = [Document("empty", ""), *DOCUMENTS], ["train", *SPLITS]
    store = stored(plan_extraction(documents, splits, lm, 1, window=16), lm, tmp_path / "a")
    assert verify(store.path) == []
    assert len(store.rows_of("empty")) == 0 and len(store.rows_of("b")) == 5
    assert store.titles[store.column("document", slice(0, 1))[0]] == "b"


def test_activations_that_are_not_finite_leave_no_store(lm, tmp_path):
    plan = plan_extraction(DOCUMENTS, SPLITS, lm, 1, window=16)
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(StoreError, match="NaN or infinity in layer 1 at document 'b', position 0"):
        stored(plan, lm, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


LONG = [
    Document(str(i), "".join(map(chr, np.random.default_rng(i).integers(60, 120, n))))
    for i, n in enumerate(60 + 211 * i % 600 for i in range(30))
]
LONG_SPLITS = ["train"] * 24 + ["validation"] * 3 + ["test"] * 3


def long_plan(lm, layer=1, **options):
    return plan_extraction(LONG, LONG_SPLITS, lm, layer, window=32, batch_tokens=200, **options)


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_an_extraction_interrupted_by_the_keyboard_is_continued_and_ends_byte_identical(
    lm, tmp_path, monkeypatch, capsys
):
    plan = long_plan(lm)
    assert plan.tokens > 5 * CHUNK_ROWS
    facts = describe(lm, "c@1", plan, created_by="a test")
    write_store(plan, lm, tmp_path / "whole", attributes=facts, part_bytes=1)
    calls = iter(range(10**6))

    def interrupted(*arguments):
        if next(calls) == 12:
            raise KeyboardInterrupt
        return read_block(*arguments)

    monkeypatch.setattr(extraction, "read_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_store(plan, lm, tmp_path / "a", attributes=facts, part_bytes=1)
    assert not (tmp_path / "a" / "manifest.json").exists()
    assert 1 <= len(contents(tmp_path / "a")) < plan.tokens // CHUNK_ROWS
    first = next(calls)
    write_store(plan, lm, tmp_path / "a", attributes=facts, part_bytes=1)
    assert "continuing after" in capsys.readouterr().out and next(calls) - first < len(plan.blocks)
    assert contents(tmp_path / "a") == contents(tmp_path / "whole")


def test_a_part_is_written_while_the_next_block_is_read(lm, tmp_path, monkeypatch):
    plan, events, write, ahead = long_plan(lm), [], StoreWriter.append, threading.Semaphore(0)

    def slow(self, *arguments):
        last = events.count("written") == len(plan.blocks) - 1
        assert last or ahead.acquire(timeout=60), (
            "no block was read while this one waited to be written"
        )
        write(self, *arguments)
        events.append("written")

    def reading(*arguments):
        events.append("read")
        if len(events) > 1:
            ahead.release()
        return read_block(*arguments)

    monkeypatch.setattr(StoreWriter, "append", slow)
    monkeypatch.setattr(extraction, "read_block", reading)
    stored(plan, lm, tmp_path / "a")
    assert events[:4] == ["read", "read", "written", "read"]
    assert events[-2:] == ["written", "written"]


def test_a_finished_extraction_is_not_done_again_unless_damaged_or_to_be_replaced(
    lm, tmp_path, capsys
):
    plan, path = long_plan(lm), tmp_path / "a"

    def write(model="m", **options):
        facts = {"model": model, "corpus": "c"}
        store = write_store(plan, lm, path, attributes=facts, part_bytes=1, **options)
        return store, capsys.readouterr().out

    store, shown = write()
    content, written = contents(path), (path / "manifest.json").stat().st_mtime_ns
    assert "is there already" not in shown and store.n == plan.tokens
    assert "is there already, with the same contents" in write()[1]
    assert (path / "manifest.json").stat().st_mtime_ns == written
    damaged = bytearray(content["part-00002.h5"])
    damaged[-1000] ^= 1
    (path / "part-00002.h5").write_bytes(damaged)
    assert "replacing what is there: " in write()[1] and contents(path) == content
    other = r"a finished store of other model \(m → another\): go back"
    with pytest.raises(StoreError, match=other):
        write("another")
    assert contents(path) == content
    store, shown = write("another", replace=True)
    assert r"store of other model (m → another)" in shown and store.model == "another"


CHANGES = {
    "window": dict(window=16),
    "batch_tokens": dict(batch_tokens=400),
    "token_ids": dict(documents=[Document(d.title, d.text.upper()) for d in LONG]),
    "documents": dict(documents=[Document(d.title + "'", d.text) for d in LONG]),
    "split": dict(splits=LONG_SPLITS[::-1]),
    "layers": dict(layers=[0]),
    "corpus": dict(corpus="others"),
    "seed": dict(seed=1),
}


@pytest.mark.parametrize("what", [*CHANGES, "opening_token", "dtype", "model", "tokenizer"])
@pytest.mark.parametrize("finished", [True, False])
def test_what_decides_the_values_is_compared_and_named(lm, tmp_path, what, finished):
    options = dict(documents=LONG, splits=LONG_SPLITS, window=32, batch_tokens=200, progress=False)
    path, options = tmp_path / "a", {**options, "layers": [1], "corpus": "letters"}
    before = extract(lm, folder=path, **options)
    assert before.corpus.startswith("letters@") and before.layer == 1
    if not finished:
        (path / "manifest.json").unlink()
    content = contents(path)
    if what == "opening_token":
        lm.tokenizer.bos_token_id = 3
    if what == "tokenizer":
        lm.tokenizer.get_vocab = lambda: {"z": 0}
    if what == "model":
        lm = llm.LanguageModel(lm.model, lm.tokenizer, "tiny@1")
    if what == "dtype":
        lm.model.to(torch.bfloat16)
    options |= CHANGES.get(what, {})
    kind = "a finished" if finished else "an unfinished"
    with pytest.raises(StoreError, match=rf"holds {kind} store of other .*\b{what} \(.* → .*\)"):
        extract(lm, folder=path, **options)
    assert contents(path) == content
    after, fresh = (
        extract(lm, folder=folder, **options, replace=True) for folder in (path, tmp_path / "b")
    )
    assert torch.equal(after.read(slice(None)), fresh.read(slice(None)))
    assert contents(path) == contents(tmp_path / "b")


def test_extract_draws_splits_and_refuses_what_cannot_be(lm, tmp_path):
    store = extract(lm, LONG, tmp_path / "a", window=32, progress=False)
    assert Counter(store.splits) == {"train": 24, "validation": 3, "test": 3}
    assert store.layer == 0 and len(store.tokens("test")) == len(store.rows("test"))
    for options, message in (
        (dict(splits=["train"]), "1 splits .* for 30 documents: expected one of train, validation"),
        (dict(splits=["dev"] * 30), r"30 splits \['dev'\] for 30 documents"),
        (dict(validation=20, test=10), "30 documents cannot give 20 for validation and 10"),
        (dict(layers=[7]), "layer 7: this model has 3 blocks"),
    ):
        with pytest.raises(ValueError, match=message):
            extract(lm, LONG, tmp_path / "b", **options)


def test_rows_of_a_span_are_those_of_the_whole_bit_for_bit(lm):
    """A block that crosses the ends of a span is read whole, so every batch has the same shape."""
    plan = long_plan(lm)
    whole = torch.cat([rows.activations[1] for rows in plan.rows(lm)])
    for span in (range(0, 100), range(1024, 2048), range(3000, plan.tokens), range(777, 778)):
        rows = list(plan.rows(lm, span))
        assert torch.equal(torch.cat([one.activations[1] for one in rows]), whole[span])
        assert sum(map(len, rows)) == len(span)


def multiset(values_nd):
    """Rows by their bytes: two windows may begin alike."""
    return Counter(row.contiguous().numpy().tobytes() for row in values_nd)


@pytest.mark.parametrize("layer", [1, [0, 2]])
def test_live_batches_have_the_rows_of_the_store_bit_for_bit(lm, tmp_path, layer):
    plan = long_plan(lm, layer)
    stored(plan, lm, tmp_path / "a")
    stores = [ActivationStore(tmp_path / "a", one) for one in plan.layers]
    rows = stores[0].rows("train")
    known = multiset(torch.stack([store.read(rows) for store in stores], 1))
    live = live_batches(plan, lm, "train", 50, seed=0, buffer_bytes=2000 * 16 * 4 * len(stores))
    epochs = [[next(live) for _ in range(len(rows) // 50)] for _ in range(2)]
    for epoch in epochs:
        batches = torch.cat([batch.reshape(len(stores), 50, 16) for batch in epoch], 1)
        seen = multiset(batches.transpose(0, 1))
        assert seen <= known and seen.total() == len(rows) // 50 * 50
    assert not torch.equal(epochs[0][0], epochs[1][0])


@pytest.mark.parametrize("start", [3, 60, 150])
def test_live_batches_restart_at_any_step(lm, start):
    plan = long_plan(lm)

    def stream(first):
        return live_batches(plan, lm, "train", 50, seed=1, start=first, buffer_bytes=1500 * 64)

    whole = stream(0)
    for _ in range(start):
        next(whole)
    restarted = stream(start)
    assert all(torch.equal(next(whole), next(restarted)) for _ in range(3))


def test_streamed_batches_take_no_more_of_the_stream_than_they_need_and_restart(lm):
    plan, taken = long_plan(lm), []

    def documents():
        for i in range(10**9):
            taken.append(i)
            yield LONG[i % len(LONG)]

    def streamed(documents, **options):
        return streamed_batches(documents, plan, lm, 50, seed=0, buffer_bytes=2000 * 64, **options)

    batches = streamed(documents())
    first = [next(batches) for _ in range(60)]
    assert len(taken) < 300
    known = sum((multiset(rows.activations[1]) for rows in plan.rows(lm)), Counter())
    one_pass = streamed(iter(LONG))
    seen = multiset(torch.cat([next(one_pass) for _ in range(plan.tokens // 50)]))
    assert (seen - known).total() < 0.02 * plan.tokens  # other blocks, other rounding
    with pytest.raises(StoreError, match=f"ended after {plan.tokens // 50} batches of 50"):
        next(one_pass)
    again = streamed(documents(), start=58)
    assert torch.equal(next(again), first[58]) and torch.equal(next(again), first[59])
