"""The store: bits kept, statistics, splits, shuffled batches, and all that must be refused."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from itertools import islice

import h5py
import numpy as np
import pytest
import torch

from mmlib.activations.batches import multi_layer_batches, shuffled_batches, spread_rows
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.tokens import Normaliser, RunningMoments, as_float, from_numpy
from mmlib.activations.writer import DocumentRows, Layout, StoreWriter
from mmlib.files import sealed

BITS = {"bfloat16": torch.int16, "float16": torch.int16, "float32": torch.int32}
ATTRIBUTES = {"model": "m", "corpus": "c"}


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def flip(path, at, bit=1):
    """One bit of a file; `at`: of which byte, or of the first of some bytes."""
    content = bytearray(path.read_bytes())
    content[at if isinstance(at, int) else content.index(at)] ^= bit
    path.write_bytes(content)


def bits_of(values):
    return values.view(torch.int16).numpy().tobytes()


def layout(rows=4, dtype="float32", d=2, layers=(0,), **options):
    documents = [DocumentRows("article", "train", rows)]
    return Layout(documents, layers, d, dtype, **{"attributes": ATTRIBUTES, **options})


def writer(path, *arguments, **options):
    return StoreWriter(path, layout(*arguments, **options))


def append(w, values, token_ids=None, document=None, position=None):
    """Rows from the first on, unless told otherwise."""
    n = len(values) if torch.is_tensor(values) else 4
    values = values if isinstance(values, dict) else {0: values}
    given = (np.arange(n), np.zeros(n, int), np.arange(n))
    told = (token_ids, document, position)
    w.append(values, *(a if b is None else b for a, b in zip(given, told)))


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("part_bytes", [20_000, 70_000, 10**6])
def test_values_are_kept_bit_for_bit(make_store, dtype, part_bytes):
    path, values = make_store(dtype=dtype, part_bytes=part_bytes)
    store, bits = ActivationStore(path, 1), BITS[dtype]
    assert torch.equal(store.read(range(store.n)).view(bits), values.view(bits))
    assert store.read(range(0, 1)).dtype == getattr(torch, dtype)


def test_every_bfloat16_is_the_float32_of_its_bits():
    bits = np.arange(65536, dtype=np.uint16)
    assert as_float(bits).tobytes() == from_numpy(bits).float().numpy().tobytes()


def test_bare_h5py_reads_the_whole_in_five_lines(make_store):
    """As the docstring of the store says, and after its folder has moved."""
    path, values = make_store()
    path = path.rename(path.with_name("moved"))
    store = ActivationStore(path)
    with h5py.File(path / "activations.h5") as file:
        bits = file["activations/layer_01"][:].astype("uint32") << 16
        activations = bits.view("float32")
        documents = file["document"][:]
        mean = file["statistics/layer_01/mean"][:]
        assert file["activations/layer_01"].attrs["dtype"] == "bfloat16"
        assert file["documents/title"].asstr()[:].tolist() == store.titles.tolist()
        assert file.attrs["model"] == "toy@1" and file["token_ids"].shape == (4200,)
    assert len(list(path.glob("part-*.h5"))) == 5
    assert np.array_equal(activations, values.float().numpy())
    assert np.array_equal(documents, store.column("document")) and np.array_equal(mean, store.mean)
    assert torch.equal(store.read(range(4200)), values)


@pytest.mark.parametrize("dtype", BITS)
def test_a_missing_part_reads_as_nan_in_bare_h5py_and_is_refused_here(make_store, dtype):
    path, values = make_store(dtype=dtype)
    (path / "part-00001.h5").unlink()
    with h5py.File(path / "activations.h5") as file:
        missing = from_numpy(file["activations/layer_01"][:])
        rows = slice(*np.flatnonzero(file["document"][:] == -1)[[0, -1]] + [0, 1])
    assert missing[rows].isnan().all() and rows.start % 1024 == 0
    assert torch.equal(missing[: rows.start], values[: rows.start])
    assert torch.equal(missing[rows.stop :], values[rows.stop :])
    with pytest.raises(StoreError, match="part-00001.h5 is missing"):
        ActivationStore(path)


@pytest.mark.parametrize("part_bytes", [20_000, 10**6])
def test_statistics_are_of_training_rows_only(make_store, part_bytes):
    path, values = make_store(part_bytes=part_bytes)
    store, train, merged = ActivationStore(path), values[:3000].double().numpy(), RunningMoments(8)
    assert np.allclose(store.mean, train.mean(0), rtol=1e-12)
    assert np.allclose(store.variance, train.var(0), rtol=1e-12)
    for first in range(0, 3000, 1024):
        merged.update(train[first : first + 1024])
    assert np.array_equal([store.mean, store.variance], [merged.mean, merged.variance])


def test_moments_are_stable_where_the_naive_formula_is_not():
    """Mean 1e8, variance 1: a difference of two sums of squares would lose most digits."""
    values = 1e8 + np.random.default_rng(0).standard_normal((10_000, 2))
    moments = RunningMoments(2)
    for part in np.array_split(values, 13):
        moments.update(part)
    assert np.allclose(moments.variance, values.var(0), rtol=1e-8)


def test_a_store_without_training_documents_has_no_statistics(make_store):
    path, values = make_store(rows=(500, 3000), splits=("validation", "test"))
    store = ActivationStore(path)
    assert verify(path) == [] and not store.mean.any() and not store.variance.any()
    with pytest.raises(StoreError, match="dimensions .* of layer 1 never vary"):
        store.tokens("test")


def test_any_rows_are_read_and_others_are_refused(make_store):
    path, values = make_store()
    store = ActivationStore(path)
    scattered = np.array([4199, 0, 5, 1023, 1024, 5, 2500])
    mask = np.arange(store.n) % 3 == 0
    for rows in (scattered, mask, slice(None), slice(1000, 3000), slice(0, 10, 2), range(7, 2, -1)):
        kept = np.arange(store.n)[rows]
        assert torch.equal(store.read(rows), values[kept])
        assert np.array_equal(store.column("token_ids", rows), kept)
    assert store.read([]).shape == (0, 8)
    for rows, message in (
        (mask[:-1], r"type bool and shape \(4199,\).*mask of all 4200 rows"),
        (np.array([0.0, 1.0]), "type float64"),
        (np.array([[0, 1]]), r"shape \(1, 2\)"),
        (np.array([4200, 0]), "rows 0 to 4200 were asked for"),
        (np.array([-1, 0]), "rows -1 to 0 were asked for"),
        (slice(4190, 4210), "rows 4190 to 4209 .* has 4200: there are no others"),
        (slice(-3, 5), "rows -3 to 4 .* has 4200: there are no others"),
        (slice(10, 5), "has 4200: there are no others"),
    ):
        with pytest.raises(IndexError, match=message):
            store.read(rows)
    with pytest.raises(KeyError, match="no column 'token': expected one of token_ids"):
        store.column("token")


def test_tokens_are_standardised_and_say_where_they_come_from(make_store):
    path, values = make_store()
    store = ActivationStore(path)
    tokens, z = store.tokens("test"), Normaliser.of(store)(values[3500:])
    assert torch.equal(tokens.z, z) and tokens.z.dtype == torch.float32
    assert tokens.document.tolist() == [4] * 350 + [5] * 350
    assert tokens.position.tolist() == [*range(350), *range(350)]
    assert store.titles[tokens.document[-1]] == "test 1"
    for rows in (np.array([699, 3, 350]), slice(10, 400, 7), np.arange(700) % 5 == 0, range(3)):
        some, kept = store.tokens("test", rows), np.arange(700)[rows]
        assert torch.equal(some.z, z[kept]) and np.array_equal(some.position, tokens.position[kept])
        assert np.array_equal(some.document, tokens[kept].document)
    for rows, message in (
        (np.array([0, 700]), "rows 0 to 700 were asked for, split 'test'"),
        (np.arange(4200) > 0, "mask of all 700 rows of split 'test'"),
    ):
        with pytest.raises(IndexError, match=message):
            store.tokens("test", rows)


def test_rows_are_found_by_split_document_and_position(make_store):
    path, values = make_store(rows=(3001, 500, 700))
    store = ActivationStore(path)
    assert [len(store.rows(s)) for s in ("train", "validation", "test")] == [3001, 500, 700]
    assert set(store.splits[store.column("document", store.rows("test"))]) == {"test"}
    number = store.column("document", slice(3251, 3252))[0]
    assert store.rows_of("validation 1") == store.rows_of(number) == range(3251, 3501)
    assert store.rows_of(3, slice(10, 12)) == range(3261, 3263)
    assert store.column("position", range(3249, 3253)).tolist() == [248, 249, 0, 1]
    with pytest.raises(StoreError, match="no documents 'nothing'"):
        store.rows_of("nothing")


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_workers_of_a_loader_read_what_this_process_reads(make_store, start):
    """However they are started; this process has parts of the store open."""
    path, values = make_store(rows=(600, 50, 50))
    store = ActivationStore(path)
    store.read(range(10))
    batches = [range(at, min(at + 128, 700)) for at in range(0, 700, 128)]
    loader = torch.utils.data.DataLoader(
        StoreRows(store),
        sampler=batches,
        batch_size=None,
        num_workers=1,
        multiprocessing_context=start,
    )
    assert torch.equal(torch.cat(list(loader)), values)


class StoreRows(torch.utils.data.Dataset):
    """As somebody's own data set holds a store."""

    def __init__(self, store):
        self.store = store

    def __getitem__(self, rows):
        return self.store.read(rows)


def test_a_store_is_opened_again_in_another_process(make_store):
    path, values = make_store()
    store = ActivationStore(path, 1)
    store.read(range(10))
    assert torch.equal(pickle.loads(pickle.dumps(store)).read(range(4200)), values)
    store.close()
    assert torch.equal(store.read(range(10)), values[:10])


@pytest.mark.parametrize("batch, buffer_bytes", [(64, 2**29), (64, 20_000), (700, 20_000)])
def test_an_epoch_has_every_row_once_and_the_next_another_order(make_store, batch, buffer_bytes):
    path, values = make_store(rows=(3000, 10, 10), dtype="float32")
    store, per_epoch = ActivationStore(path), 3000 // batch
    batches = shuffled_batches(store, "train", batch, seed=0, buffer_bytes=buffer_bytes)
    epochs = [torch.cat([next(batches) for _ in range(per_epoch)]) for _ in range(2)]
    known = {tuple(row.tolist()) for row in values[:3000]}
    for epoch in epochs:
        seen = {tuple(row.tolist()) for row in epoch}
        assert len(seen) == per_epoch * batch and seen <= known
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("buffer_bytes", [2**29, 20_000])
def test_batches_restart_at_any_step(make_store, buffer_bytes):
    store = ActivationStore(make_store()[0])

    def stream(start=0):
        return shuffled_batches(store, "train", 64, seed=3, start=start, buffer_bytes=buffer_bytes)

    whole = list(islice(stream(), 110))
    for start in (1, 20, 46, 47, 100):
        restarted = islice(stream(start), 3)
        assert all(map(torch.equal, restarted, whole[start : start + 3]))


def test_batches_do_not_depend_on_the_parts(make_store):
    """A function of (seed, step) alone: the chunks are those of the whole store."""
    streams = []
    for part_bytes in (20_000, 70_000, 10**6):
        store = ActivationStore(make_store(part_bytes=part_bytes)[0])
        batches = shuffled_batches(store, "train", 64, seed=3, buffer_bytes=40_000)
        streams.append(torch.stack([next(batches) for _ in range(60)]))
    assert torch.equal(streams[0], streams[1]) and torch.equal(streams[0], streams[2])


def test_reading_keeps_to_its_memory_whatever_the_size(make_store):
    """Peak while two epochs are read, against a buffer of a tenth of the store."""
    path, values = make_store(rows=(60_000, 10, 10), d=64, part_bytes=10**6)
    buffer = values.nbytes // 10
    batches = shuffled_batches(ActivationStore(path), "train", 100, seed=0, buffer_bytes=buffer)
    next(batches)
    tracemalloc.start()
    for _ in range(1200):
        next(batches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * buffer


def test_too_few_rows_for_a_batch(make_store):
    with pytest.raises(StoreError, match="500 rows, fewer than one batch of 501"):
        next(shuffled_batches(ActivationStore(make_store()[0]), "validation", 501, 0))


def test_layers_that_were_not_extracted_together_are_not_paired(make_store):
    """The fixture gives every layer the same values."""
    first, other = ActivationStore(make_store()[0]), make_store(layer=2, rows=(3002, 500, 700))[0]
    with pytest.raises(StoreError, match="extract the layers together"):
        next(multi_layer_batches([first, ActivationStore(other)], "train", 10, 0))
    second = ActivationStore(make_store(layer=2)[0])
    pair = next(multi_layer_batches([first, second], "train", 10, 0))
    assert pair.shape == (2, 10, 8) and torch.equal(pair[0], pair[1])


def test_spread_rows_cover_evenly_from_a_random_start():
    drawn = [spread_rows(100, 10, np.random.default_rng(seed)) for seed in range(20)]
    assert all(len(rows) == 10 and set(np.diff(rows)) <= {10} for rows in drawn)
    starts = {int(rows[0]) for rows in drawn}
    assert starts <= set(range(10)) and len(starts) >= 5
    assert spread_rows(10, 10, np.random.default_rng(1)).tolist() == list(range(10))
    with pytest.raises(ValueError, match="11 different rows were asked for, there are 10"):
        spread_rows(10, 11, np.random.default_rng(0))


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_with_its_place(tmp_path, dtype, bad):
    """One in a row of finite ones is enough."""
    values = torch.ones(4, 2, dtype=getattr(torch, dtype))
    values[2, 1] = bad
    where = "NaN or infinity in layer 0 at document 'article', position 2, token 12"
    ends = ".*float16 ends at 65,504" if dtype == "float16" else ": not stored$"
    with pytest.raises(StoreError, match=where + ends):
        append(writer(tmp_path / "a", dtype=dtype), values, token_ids=np.arange(10, 14))


AS_ANNOUNCED = r"expected as many of each, and \(4, 2\) of layers \[0\] in float32, as they were"
ONES = torch.ones(4, 2)
MISUSES = {
    "width": ({0: torch.ones(4, 1)}, {}, AS_ANNOUNCED),
    "layer": ({1: ONES}, {}, AS_ANNOUNCED),
    "no layer": ({}, {}, AS_ANNOUNCED),
    "rows": ({0: ONES[:3]}, {}, AS_ANNOUNCED),
    "type": ({0: ONES.half()}, {}, "torch.float16.*" + AS_ANNOUNCED),
    "too many": (torch.ones(5, 2), {}, "5 rows were given from row 0 on, 4 are due there"),
    "document": (
        ONES,
        {"document": np.ones(4, int)},
        "row 0 is due, document 0 at position 0, but",
    ),
    "order": (ONES, {"position": np.array([0, 1, 3, 2])}, "row 0 is due.*give each row once"),
    "start": (ONES[2:], {"position": np.arange(2, 4)}, "from document 0, position 2 on were given"),
}


@pytest.mark.parametrize("what", MISUSES)
def test_what_is_appended_must_be_as_announced_and_in_order(tmp_path, what):
    values, columns, message = MISUSES[what]
    with pytest.raises(StoreError, match=message):
        append(writer(tmp_path / "a"), values, **columns)


def test_a_layout_says_what_it_needs(tmp_path):
    for bad in (None, tmp_path, {1, 2}, float("nan"), {"at": tmp_path}):
        with pytest.raises(StoreError, match="attribute 'source' is .*: expected text, a number"):
            layout(attributes={**ATTRIBUTES, "source": bad})
    with pytest.raises(StoreError, match="attributes model, corpus are missing"):
        layout(attributes={})
    with pytest.raises(StoreError, match="dtype 'int8'"):
        layout(dtype="int8")
    for splits in (["test", "train"], ["train", "test", "train"], []):
        documents = [DocumentRows(str(i), split, 4) for i, split in enumerate(splits)]
        with pytest.raises(StoreError, match="at least one row, a split's documents side by side"):
            Layout(documents, [0], 2, "float32", ATTRIBUTES)


def test_attributes_of_any_type_of_json_are_the_same_when_they_are_read_again(tmp_path):
    for good in (["a", "b"], np.int64(3), np.arange(2), (1, 2), {"torch": "2.13"}, 0.1, True):
        for _ in range(2):
            attributes = {**ATTRIBUTES, "tags": good}
            w = StoreWriter(tmp_path / "a", layout(attributes=attributes), replace=True)
            if not w.finished:
                append(w, ONES)
                w.finish()
        assert w.finished and verify(tmp_path / "a") == []


def test_parts_grow_with_the_store_and_end_at_its_chunks():
    def parts(rows, d=4096):
        found = layout(rows, "bfloat16", d)
        sizes = [len(found.rows_of(part)) for part in range(found.parts)]
        assert sum(sizes) == rows and all(size % 1024 == 0 for size in sizes[:-1])
        return found.parts, sizes[0] * d * 2 / 1e6

    assert parts(1000) == (1, pytest.approx(8.2, abs=0.1))
    assert parts(1_000_000) == (326, pytest.approx(25.2, abs=0.1))
    assert parts(100_000_000) == (1993, pytest.approx(411, abs=1))
    assert parts(50_000, 640)[1] == pytest.approx(28.8, abs=0.1)


def test_a_hundred_layers_fit_a_part(tmp_path):
    w = writer(tmp_path / "a", layers=range(100))
    append(w, {layer: torch.full((4, 2), float(layer)) for layer in range(100)})
    w.finish()
    assert ActivationStore(tmp_path / "a", 99).read(range(4)).eq(99).all()
    assert verify(tmp_path / "a") == []


def test_unfinished_store_is_refused(tmp_path):
    w = writer(tmp_path / "a", 3000)
    append(w, torch.ones(2000, 2))
    with pytest.raises(StoreError, match="2000 rows were written, 3000 were announced"):
        w.finish()
    assert not list((tmp_path / "a").iterdir())
    for name in ("a", "nowhere"):
        with pytest.raises(StoreError, match=f"{name} holds no store: expected a folder with mani"):
            ActivationStore(tmp_path / name)


def test_what_is_left_is_continued_and_ends_byte_identical(make_store, capsys):
    """A writer that was dropped at any point; parts are of 1024 rows. Then a part is damaged."""
    path, values = make_store(rows=(3000, 10, 10))
    whole = contents(path)
    for stopped in (0, 100, 1024, 2500, 3019):
        shutil.rmtree(path)
        with pytest.raises(KeyboardInterrupt):
            make_store(rows=(3000, 10, 10), stop_after=stopped)
        assert set(contents(path).items()) <= set(whole.items())
        if stopped >= 1024:
            with pytest.raises(StoreError, match="was not finished: run the extraction again"):
                ActivationStore(path)
        make_store(rows=(3000, 10, 10), next_row=stopped // 1024 * 1024)
        assert contents(path) == whole
    (path / "manifest.json").unlink()
    flip(path / "part-00001.h5", bits_of(values[1500:1502]))
    (path / "part-00002.h5").unlink()
    make_store(rows=(3000, 10, 10), next_row=1024)
    assert "part-00001.h5 is damaged" in capsys.readouterr().out and contents(path) == whole


@pytest.mark.parametrize("finished", [True, False])
def test_a_store_of_another_identity_is_neither_mixed_nor_lost(tmp_path, finished, capsys):
    """What differs is named; nothing changes unless it is to be replaced."""
    path = tmp_path / "a"

    def write(rows=3000, to=None, replace=False, documents=None, **attributes):
        documents = documents or [DocumentRows("article", "train", rows)]
        attributes = {**ATTRIBUTES, "window": 256, **attributes}
        w = StoreWriter(
            path, Layout(documents, [0], 2, "float32", attributes, 8192), replace=replace
        )
        for start in range(w.next_row, rows if to is None else to, 500):
            at = np.arange(start, min(start + 500, rows))
            append(w, torch.ones(len(at), 2), at, position=at)
        if to is None and not w.finished:
            w.finish()

    write(to=None if finished else 2048)
    before = contents(path)
    kind = "a finished" if finished else "an unfinished"
    others = {
        r"window \(256 → 128\)": {"window": 128},
        r"model \(m → m@2\), opening \(None → 2\)": {"model": "m@2", "opening": 2},
        "split": {"documents": [DocumentRows("article", "test", 3000)]},
        "documents": {"documents": [DocumentRows("Article", "train", 3000)]},
    }
    for what, change in others.items():
        with pytest.raises(StoreError, match=f"holds {kind} store of other {what}.*replace=True"):
            write(**change)
        assert contents(path) == before
    write(created_by="another command")  # not of what decides the values
    assert capsys.readouterr().out == "" and len(contents(path)) == 5
    write(window=128, replace=True)
    assert capsys.readouterr().out.count("replacing what is there: ") == 1 and verify(path) == []
    assert ActivationStore(path).attributes["window"] == 128
    write(1000, window=128, replace=True)  # fewer parts than before: none of the old is left
    assert sorted(contents(path)) == ["activations.h5", "manifest.json", "part-00000.h5"]


def test_temporary_files_that_a_kill_left_are_removed_from_a_finished_store(make_store):
    path, _ = make_store()
    whole, left = contents(path), path / "part-00003.h5.0123abcd.partial"
    left.write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt):  # before its end: the store is finished already
        make_store(next_row=4200, stop_after=4200)
    assert contents(path) == whole
    (path / "manifest.json").unlink()
    left.write_bytes(b"half")
    make_store(next_row=4200)
    assert contents(path) == whole


def test_every_byte_of_the_manifest_counts(make_store):
    path, _ = make_store()
    manifest = path / "manifest.json"
    content = manifest.read_bytes()
    for byte in range(0, len(content), 5):
        flip(manifest, byte)
        with pytest.raises(StoreError, match="manifest.json is damaged|version|of another store"):
            ActivationStore(path)
        manifest.write_bytes(content)
    for text in (b"", b"{}", b"[1]", content + b" ", content[:-2]):
        manifest.write_bytes(text)
        with pytest.raises(StoreError, match="manifest.json is damaged"):
            ActivationStore(path)


def test_flipped_bit_in_activations_is_reported(make_store):
    path, values = make_store()
    flip(path / "part-00001.h5", bits_of(values[1500:1502]))
    store = ActivationStore(path)
    assert torch.equal(store.read(range(1000)), values[:1000])
    batches = shuffled_batches(store, "train", 2900, 0)
    for read in (lambda: store.read(range(1400, 1600)), lambda: [next(batches) for _ in range(3)]):
        with pytest.raises(StoreError, match="part-00001.h5: activations/layer_01, .* checksum"):
            read()
    assert len(verify(path)) == 1


def test_parts_of_another_store_are_refused(make_store):
    path, _ = make_store()
    other, _ = make_store(seed=1)
    for source, target in (
        (other / "part-00002.h5",) * 2,
        (path / "part-00000.h5", "part-00001.h5"),
    ):
        shutil.copy(source, path / getattr(target, "name", target))
        with pytest.raises(StoreError, match="is not the part that manifest.json lists"):
            ActivationStore(path).read(range(4200))
        assert "is not the part that manifest.json lists" in verify(path)[0]
    shutil.copy(other / "activations.h5", path)
    with pytest.raises(StoreError, match="activations.h5 is damaged, missing or of another store"):
        ActivationStore(path)


def test_other_version_layer_model_and_split_are_refused(make_store):
    path, _ = make_store()
    store, manifest = ActivationStore(path), path / "manifest.json"
    text = manifest.read_text().replace('"format_version": 4', '"format_version": 5')
    content = json.loads(text)
    del content["digest"]
    later = sealed(content).decode()
    for use, message in (
        (lambda: ActivationStore(path, 5), r"holds layers \[1\], not layer 5"),
        (lambda: store.rows("dev"), "expected one of"),
        (lambda: store.check_source(model="gpt2", d=8), "of toy@1, 8 wide, not of gpt2, 8 wide"),
        (lambda: store.check_source(model="toy@1", d=16), "8 wide, not of toy@1, 16 wide"),
        (lambda: ActivationStore(path / "part-00000.h5"), "is a file: expected the folder of a st"),
        (
            lambda: manifest.write_text(later) and ActivationStore(path),
            "version 5: this code reads",
        ),
        (lambda: manifest.write_text(text) and ActivationStore(path), "is damaged or was changed"),
    ):
        with pytest.raises(StoreError, match=message):
            use()


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_store_of_the_former_format_is_refused_with_the_command_that_makes_a_new_one(
    tmp_path, where
):
    file = tmp_path / "activations.h5"
    command = "python -m mmlib extract --preset smoke --layers 8"
    with h5py.File(file, "w", userblock_size=16384, libver=("v110", "v110")) as former:
        former.attrs["created_by"] = command
    with open(file, "r+b") as opened:
        opened.write(b"mmlib.activations 2\nsize 123\n")
    before = file.read_bytes()
    given = file if where == "file" else tmp_path
    for use in (ActivationStore, writer):
        with pytest.raises(StoreError, match=f"the former format, .* 2, .*: {command}"):
            use(given)
    assert "former format" in verify(given)[0] and file.read_bytes() == before


def test_a_sound_store_verifies_and_the_command_says_so(make_store):
    path, _ = make_store()
    command = [sys.executable, "-m", "mmlib", "verify", str(path)]
    assert verify(path) == []
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "verified" in done.stdout and "4,200 × 8" in done.stdout
    os.truncate(path / "part-00002.h5", 100)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "part-00002.h5 has " in done.stderr


def test_contents_that_contradict_each_other_are_found(tmp_path, monkeypatch):
    """Every checksum right; the positions, a value or the statistics wrong."""
    monkeypatch.setattr(StoreWriter, "_check_places", lambda *arguments: None)
    monkeypatch.setattr("mmlib.activations.writer.as_float", lambda values: np.ones_like(values))
    values = torch.tensor([[0.0, 1], [1, 2], [torch.nan, 3], [4, 5]])
    w = writer(tmp_path / "a", layers=[0, 3])
    append(w, {0: values, 3: 2 * ONES}, position=np.array([0, 1, 3, 2]))
    w.finish()
    assert verify(tmp_path / "a") == [
        f"{tmp_path / 'a'}: position, rows 0 to 4 do not fit the table of documents",
        f"{tmp_path / 'a'}: activations/layer_00, rows 0 to 4 have values that are not finite",
        f"{tmp_path / 'a'}: layer 0 has other statistics than its training rows",
        f"{tmp_path / 'a'}: layer 3 has other statistics than its training rows",
    ]


def test_a_part_that_reads_back_otherwise_is_not_kept(tmp_path, monkeypatch):
    w = writer(tmp_path / "a")
    monkeypatch.setattr(os, "fsync", lambda file: os.pwrite(file, b"x", 700))
    with pytest.raises(StoreError, match="part-00000.h5 reads back otherwise than written"):
        append(w, ONES)
    assert not list((tmp_path / "a").iterdir())


def test_the_identity_of_documents_changes_with_their_split_alone(make_store):
    """What was trained here must not be tested where a boundary between splits lies elsewhere."""
    store = ActivationStore(make_store()[0])
    before = store.documents
    store.splits = np.where(store.splits == "validation", "test", store.splits)
    assert store.documents != before
    with pytest.raises(StoreError, match="was fitted to documents"):
        store.check_documents(before, "a fit")
