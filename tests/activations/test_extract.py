"""Extraction by a tiny random-weight model: windows, blocks, stores, and batches without one."""

import re
import shutil
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from letters import tiny
from test_store import contents, flip

from mmlib.activations import extract as extraction
from mmlib.activations import windows
from mmlib.activations.batches import live_batches, multi_layer_batches, streamed_batches
from mmlib.activations.corpora import Document
from mmlib.activations.extract import describe, extract, plan_extraction, write_store
from mmlib.activations.lm import LanguageModel
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.windows import block_rows, cut_blocks, cut_windows, read_block
from mmlib.activations.writer import StoreWriter

FACTS = {"model": "tiny@0", "corpus": "c"}
DOCUMENTS = [
    Document("a", "a test document of some length" * 3),
    Document("b", "short"),
    Document("c", "and another one, " * 4),
]
SPLITS = ["test", "train", "validation"]
LONG = [
    Document(
        f"{i}", "".join(map(chr, np.random.default_rng(i).integers(60, 120, 60 + 211 * i % 600)))
    )
    for i in range(30)
]
LONG_SPLITS = ["train"] * 24 + ["validation"] * 3 + ["test"] * 3


@pytest.fixture
def lm():
    return tiny()


def short_plan(lm, layer=1, **options):
    return plan_extraction(DOCUMENTS, SPLITS, lm, layer, window=16, **options)


def long_plan(lm, layer=1):
    return plan_extraction(LONG, LONG_SPLITS, lm, layer, window=32, batch_tokens=200)


def written(plan, lm, path, **options):
    return write_store(plan, lm, path, **{"attributes": FACTS, "progress": False, **options})


def blocks_of(lengths, window, batch_tokens):
    return list(cut_blocks(cut_windows([np.arange(n) for n in lengths], window), batch_tokens))


def test_windows_cover_each_document_and_never_cross_it():
    found = cut_windows([np.arange(10), np.arange(1), np.arange(6)], window=4)
    assert [(w.document, w.start, len(w.token_ids), w.ends_document) for w in found] == [
        *((0, 0, 3, False), (0, 3, 3, False), (0, 6, 3, False), (0, 9, 1, True)),
        *((1, 0, 1, True), (2, 0, 3, False), (2, 3, 3, True)),
    ]


def test_blocks_depend_on_their_own_documents_alone():
    """Batches of 10 tokens: a block ends with a document from 10 tokens on, or anywhere at 20."""
    lengths = [90, 5, 16, 3, 30]
    found = [block_rows(block) for block in blocks_of(lengths, 6, 10)]
    assert found == [20, 20, 20, 20, 10, 5 + 15, 1 + 3 + 20, 10]
    assert [block_rows(block) for block in blocks_of(lengths[1:], 6, 10)] == [20, 24, 10]


def test_padding_is_little_when_texts_are_short(monkeypatch, lm):
    """Texts of 1 to 60 tokens: positions computed, against those needed."""
    lengths, shapes = [1 + 37 * i % 60 for i in range(200)], []

    def read(model, layers, ids_bt):
        shapes.append(ids_bt.shape)
        return {0: torch.zeros(*ids_bt.shape, 2)}

    monkeypatch.setattr(windows, "read_residual_stream", read)
    for block in blocks_of(lengths, 256, 1024):
        read_block(block, lm, [0], 1024)
    computed, needed = sum(b * t for b, t in shapes), sum(n + 1 for n in lengths)
    assert needed <= computed < 1.25 * needed and max(b * t for b, t in shapes) <= 1024


def test_stored_rows_are_what_the_model_computes_for_each_window_alone(lm, tmp_path):
    plan = short_plan(lm, batch_tokens=80)
    store = written(plan, lm, tmp_path / "a")
    assert [row.split for row in plan.documents] == ["train", "validation", "test"]
    assert store.titles.tolist() == ["b", "c", "a"]
    row = 0
    for window in plan.windows:
        rows = range(row, row + len(window.token_ids))
        ids = torch.tensor([[1, *window.token_ids]])
        alone = lm.model(ids, output_hidden_states=True).hidden_states[2][0, 1:]
        assert torch.allclose(store.read(rows), alone, atol=1e-5)
        positions = window.start + np.arange(len(rows))
        assert np.array_equal(store.column("position", rows), positions)
        assert np.array_equal(store.column("token_ids", rows), window.token_ids)
        row = rows.stop
    assert row == store.n


def test_several_layers_are_stored_by_one_pass_and_read_together(lm, tmp_path):
    """The rows of a layer are those of an extraction of it alone."""
    written(short_plan(lm, [0, 2]), lm, tmp_path / "both")
    alone = written(short_plan(lm, 2), lm, tmp_path / "one")
    assert torch.equal(
        ActivationStore(tmp_path / "both", 2).read(slice(None)), alone.read(slice(None))
    )
    stores = [ActivationStore(tmp_path / "both", layer) for layer in (0, 2)]
    batch = next(multi_layer_batches(stores, "train", 4, 0))
    assert batch.shape == (2, 4, 16) and not torch.equal(*batch)


def test_full_disk_is_refused_before_any_work(lm, tmp_path, monkeypatch):
    plan = short_plan(lm)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=plan.bytes - 1))
    with pytest.raises(OSError, match="extraction needs .* MB .* are free"):
        written(plan, lm, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def test_a_store_says_what_its_values_depend_on(lm, tmp_path):
    plan = short_plan(lm)
    facts = describe(lm, "c@1", plan, created_by="a test", seed=3)
    known = written(plan, lm, tmp_path / "a", attributes=facts).attributes
    names = (
        "format format_version corpus layer_convention hook_point dtype batch_tokens device code"
    )
    assert {*names.split(), "layers", "d", "token_ids", "opening_token", "documents"} <= set(known)
    told = {"model": "tiny@0", "seed": 3, "window": 16, "created_by": "a test"}
    assert {key: known[key] for key in told} == told
    assert known["tokenizer"].startswith("Letters@") and "torch" in known["packages"]


def test_the_digest_of_its_code_is_of_all_rooms_that_decide_a_stores_values():
    """All that `extract` imports in its wing, but those whose outcome has a digest of its own."""
    folder, rooms, todo = Path(extraction.__file__).parent, set(), ["extract"]
    while todo:
        rooms.add(room := todo.pop())
        found = re.findall(
            r"^from mmlib.activations.(\w+)", (folder / f"{room}.py").read_text(), re.M
        )
        todo += {*found} - rooms
    assert rooms - {"corpora", "labelled", "packaged", "generate"} == set(extraction.CODE)


def test_a_document_without_tokens_has_no_rows(lm, tmp_path):
    documents, splits = [Document("empty", ""), *DOCUMENTS], ["train", *SPLITS]
    plan = plan_extraction(documents, splits, lm, 1, window=16)
    store = written(plan, lm, tmp_path / "a")
    assert verify(store.path) == []
    assert len(store.rows_of("empty")) == 0 and len(store.rows_of("b")) == 5
    assert store.titles[store.column("document", slice(0, 1))[0]] == "b"


def test_activations_that_are_not_finite_leave_no_store(lm, tmp_path):
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(StoreError, match="NaN or infinity in layer 1 at document 'b', position 0"):
        written(short_plan(lm), lm, tmp_path / "a")
    assert not list((tmp_path / "a").iterdir())


def test_a_block_is_written_while_the_next_is_read_into_other_memory(lm, tmp_path, monkeypatch):
    """Each write waits until the next block is read: what is stored must be what came first."""
    plan, append, ahead = long_plan(lm), StoreWriter.append, threading.Semaphore(0)
    whole = torch.cat([rows.activations[1] for rows in plan.rows(lm)])
    read, last = iter(range(10**6)), len(plan.blocks) - 1
    write = iter(range(10**6))

    def reading(*arguments):
        rows = read_block(*arguments)
        if next(read) > 0:
            ahead.release()
        return rows

    def slow(self, *arguments):
        assert next(write) == last or ahead.acquire(timeout=60), "nothing was read meanwhile"
        append(self, *arguments)

    monkeypatch.setattr(StoreWriter, "append", slow)
    monkeypatch.setattr(extraction, "read_block", reading)
    assert torch.equal(written(plan, lm, tmp_path / "a").read(slice(None)), whole)


def test_a_finished_extraction_is_not_done_again_unless_damaged_or_to_be_replaced(
    lm, tmp_path, capsys
):
    plan, path = long_plan(lm), tmp_path / "a"

    def write(model="m", **options):
        facts = {"model": model, "corpus": "c"}
        store = written(plan, lm, path, attributes=facts, part_bytes=1, **options)
        return store, capsys.readouterr().out

    store, shown = write()
    content, before = contents(path), (path / "manifest.json").stat().st_mtime_ns
    assert "is there already" not in shown and store.n == plan.tokens
    assert "is there already, with the same contents" in write()[1]
    assert (path / "manifest.json").stat().st_mtime_ns == before
    flip(path / "part-00002.h5", -1000)
    assert "replacing what is there: " in write()[1] and contents(path) == content
    with pytest.raises(StoreError, match=r"a finished store of other model \(m → another\): go"):
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
        ids = lm.tokenizer.get_vocab()
        other = dict(zip(ids, reversed(ids.values())))  # the same ids, of other tokens
        lm.tokenizer.get_vocab = lambda: other
    if what == "model":
        lm = LanguageModel(lm.model, lm.tokenizer, "tiny@1")
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
    none = extract(lm, LONG, tmp_path / "none", window=32, validation=0, test=5, progress=False)
    assert Counter(none.splits) == {"train": 25, "test": 5}
    for options, message in (
        (dict(splits=["train"]), "1 splits .* for 30 documents: expected one of train, validation"),
        (dict(splits=["dev"] * 30), r"30 splits \['dev'\] for 30 documents"),
        (dict(validation=20, test=10), "30 documents cannot give 20 for validation and 10"),
        (dict(layers=[7]), "layer 7: expected an integer from 0 to 2"),
        (dict(layers=[1, 1]), "and each once"),
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


def multiset(values_lnd):
    """Rows by their bytes, each of all layers: two windows may begin alike."""
    return Counter(row.contiguous().numpy().tobytes() for row in values_lnd.transpose(0, 1))


@pytest.mark.parametrize("layer", [1, [0, 2]])
def test_live_batches_have_the_rows_of_the_store_bit_for_bit_and_restart_at_any_step(
    lm, tmp_path, layer
):
    plan = long_plan(lm, layer)
    written(plan, lm, tmp_path / "a")
    stores = [ActivationStore(tmp_path / "a", one) for one in plan.layers]
    rows, layers = stores[0].rows("train"), len(stores)
    stored = multiset(torch.stack([store.read(rows) for store in stores]))
    per_epoch = len(rows) // 50

    def stream(start=0):
        buffer_bytes = 1500 * 16 * 4 * layers  # a few groups of blocks
        return live_batches(plan, lm, "train", 50, seed=0, start=start, buffer_bytes=buffer_bytes)

    live = stream()
    epochs = [[next(live) for _ in range(per_epoch)] for _ in range(2)]
    for epoch in epochs:
        seen = multiset(torch.cat([batch.reshape(layers, 50, 16) for batch in epoch], dim=1))
        assert seen <= stored and seen.total() == per_epoch * 50
    assert not torch.equal(epochs[0][0], epochs[1][0])
    for start in (3, 60, per_epoch + 50):
        restarted = stream(start)
        for batch in sum(epochs, [])[start : start + 3]:
            assert torch.equal(next(restarted), batch)


def test_streamed_batches_take_no_more_of_the_stream_than_they_need_and_restart(lm):
    plan, taken = long_plan(lm), []

    def documents():
        for i in range(10**9):
            taken.append(i)
            yield LONG[i % len(LONG)]

    def stream(texts, **options):
        return streamed_batches(texts, plan, lm, 50, seed=0, buffer_bytes=2000 * 64, **options)

    batches = stream(documents())
    first = [next(batches) for _ in range(60)]
    assert len(taken) < 300
    again = stream(documents(), start=58)
    assert torch.equal(next(again), first[58]) and torch.equal(next(again), first[59])
    known = multiset(torch.cat([rows.activations[1] for rows in plan.rows(lm)])[None])
    one_pass = stream(iter(LONG))
    seen = multiset(torch.cat([next(one_pass) for _ in range(plan.tokens // 50)])[None])
    assert (seen - known).total() < 0.02 * plan.tokens  # other blocks, other rounding
    with pytest.raises(StoreError, match=f"ended after {plan.tokens // 50} batches of 50"):
        next(one_pass)
