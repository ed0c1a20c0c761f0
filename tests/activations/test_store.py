"""The HDF5 store: bits kept, statistics, splits, shuffled batches, and every file that must be refused."""

import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest
import torch

from mmlib.activations.batches import multi_layer_batches, shuffled_batches, spread_rows
from mmlib.activations.store import BLOCK, ActivationStore, StoreError, from_numpy, verify
from mmlib.activations.writer import (
    DocumentRows,
    RunningMoments,
    StoreWriter,
    finite_rows,
    join_shards,
)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_values_are_kept_bit_for_bit(make_store, dtype):
    path, values = make_store(dtype=dtype)
    store = ActivationStore(path, 1)
    bits = torch.int16 if dtype == "bfloat16" else torch.int32
    assert torch.equal(store.read(range(0, store.n)).view(bits), values.view(bits)) and store.read(
        range(0, 1)
    ).dtype == getattr(torch, dtype)


def test_bare_h5py_reads_bfloat16_as_documented(make_store):
    path, values = make_store()
    with h5py.File(path) as file:
        bits = file["activations/layer_01"][:100].astype("uint32") << 16
    assert np.array_equal(bits.view("float32"), values[:100].float().numpy())


def test_splits_are_runs_of_whole_documents(make_store):
    store = ActivationStore(make_store(rows=(3001, 500, 700))[0])
    assert [len(store.rows(s)) for s in ("train", "validation", "test")] == [3001, 500, 700]
    assert set(store.splits[store.column("document", store.rows("test"))]) == {"test"}


def test_statistics_are_of_training_rows_only(make_store):
    path, values = make_store()
    store, train = ActivationStore(path), values[:3000].double()
    assert np.allclose(store.mean, train.mean(0).numpy(), rtol=1e-12)
    assert np.allclose(store.variance, train.var(0, unbiased=False).numpy(), rtol=1e-12)


def test_moments_are_stable_where_the_naive_formula_is_not():
    """Mean 1e8, variance 1: the difference of two sums of squares would lose every digit in float32 and most in float64."""
    values = 1e8 + np.random.default_rng(0).standard_normal((10_000, 2))
    moments = RunningMoments(2)
    for part in np.array_split(values, 13):
        moments.update(part)
    assert np.allclose(moments.variance, values.var(0), rtol=1e-8)


def test_take_reads_scattered_rows(make_store):
    path, values = make_store()
    rows = np.array([0, 5, 1023, 1024, 2500, 4199])
    assert torch.equal(ActivationStore(path).take(rows), values[rows])


@pytest.mark.parametrize("batch, buffer_bytes", [(64, 2**29), (64, 20_000), (700, 20_000)])
def test_an_epoch_has_every_row_once_and_the_next_another_order(make_store, batch, buffer_bytes):
    path, values = make_store(rows=(3000, 10, 10), dtype="float32")
    per_epoch = 3000 // batch
    batches = shuffled_batches(
        ActivationStore(path), "train", batch, seed=0, buffer_bytes=buffer_bytes
    )
    epochs = [torch.cat([next(batches) for _ in range(per_epoch)]) for _ in range(2)]
    known = {tuple(row.tolist()) for row in values[:3000]}
    for epoch in epochs:
        seen = {tuple(row.tolist()) for row in epoch}
        assert len(seen) == per_epoch * batch and seen <= known
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("start", [1, 20, 46, 47, 100])
@pytest.mark.parametrize("buffer_bytes", [2**29, 20_000])
def test_batches_restart_at_any_step(make_store, start, buffer_bytes):
    store = ActivationStore(make_store()[0])

    def stream(first):
        return shuffled_batches(store, "train", 64, seed=3, start=first, buffer_bytes=buffer_bytes)

    whole = stream(0)
    for _ in range(start):
        next(whole)
    restarted = stream(start)
    assert all(torch.equal(next(whole), next(restarted)) for _ in range(3))


def test_spread_rows_cover_evenly():
    rows = spread_rows(100, 10, np.random.default_rng(0))
    assert len(rows) == 10 and set(np.diff(rows)) <= {10} and rows.max() < 100
    assert spread_rows(10, 10, np.random.default_rng(1)).tolist() == list(range(10))
    with pytest.raises(ValueError, match="11 different rows were asked for, there are 10"):
        spread_rows(10, 11, np.random.default_rng(0))


def writer(path):
    return StoreWriter(
        path,
        [DocumentRows("article", "train", 4)],
        [0],
        2,
        "float32",
        {"model": "m", "corpus": "c"},
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_are_refused_with_their_place(tmp_path, bad):
    values = torch.ones(4, 2)
    values[2, 1] = bad
    with (
        writer(tmp_path / "a.h5") as w,
        pytest.raises(StoreError, match="'article', position 2, token 12"),
    ):
        w.append({0: values}, np.arange(10, 14), np.zeros(4, int), np.arange(4))


def test_every_bfloat16_that_is_not_finite_is_known_by_its_bits():
    bits = np.arange(65536, dtype=np.uint16)[:, None]
    assert np.array_equal(finite_rows(bits), from_numpy(bits).isfinite()[:, 0].numpy())


def test_unfinished_store_is_refused(tmp_path):
    with writer(tmp_path / "a.h5") as w:
        w.append({0: torch.ones(2, 2)}, np.arange(2), np.zeros(2, int), np.arange(2))
        with pytest.raises(StoreError, match="2 rows were written, 4 were announced"):
            w.finish()
    assert not (tmp_path / "a.h5").exists()
    with pytest.raises(StoreError, match="not finished"):
        ActivationStore(tmp_path / "a.h5.partial")


def test_what_is_left_is_continued_and_ends_byte_identical(make_store, tmp_path):
    """A writer that was dropped at any point; chunks are of 1024 rows."""
    path, values = make_store(rows=(3000, 10, 10))
    whole = path.read_bytes()
    for stopped in (0, 100, 1024, 2500, 3019):
        path.unlink()
        with pytest.raises(KeyboardInterrupt):
            make_store(rows=(3000, 10, 10), stop_after=stopped)
        assert not path.exists()
        make_store(rows=(3000, 10, 10), next_row=stopped // 1024 * 1024)
        assert path.read_bytes() == whole


def test_an_unfinished_store_of_another_extraction_is_neither_continued_nor_lost(make_store):
    with pytest.raises(KeyboardInterrupt):
        make_store(stop_after=2048, window=256)
    with pytest.raises(
        StoreError,
        match=r"another configuration \(window\): go back to that one to continue it, or delete it",
    ):
        make_store(window=128)
    make_store(next_row=2048, window=256)  # nothing is lost


def test_a_damaged_chunk_of_an_unfinished_store_is_written_again(make_store, tmp_path):
    path, values = make_store()
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        make_store(stop_after=4096)
    partial = path.with_name(path.name + ".partial")
    content = bytearray(partial.read_bytes())
    content[content.find(values[1500:1502].view(torch.int16).numpy().tobytes())] ^= 1
    partial.write_bytes(content)
    make_store(next_row=1024)
    assert path.read_bytes() == whole


def test_every_byte_of_the_seal_counts(make_store):
    path, _ = make_store()
    content = bytearray(path.read_bytes())
    for byte in range(content.index(b"\0") + 3):
        content[byte] ^= 1
        path.write_bytes(content)
        with pytest.raises(StoreError):
            ActivationStore(path)
        content[byte] ^= 1


def test_two_writers_of_one_store_are_refused(tmp_path):
    with writer(tmp_path / "a.h5"), pytest.raises(StoreError, match="another process is writing"):
        writer(tmp_path / "a.h5")
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5.partial"]


def test_float16_is_refused_where_it_overflows_and_kept_where_not(tmp_path, make_store):
    path, values = make_store(dtype="float16", layer=2)
    assert torch.equal(ActivationStore(path).read(range(50)), values[:50]) and not verify(path)
    with StoreWriter(
        tmp_path / "b.h5",
        [DocumentRows("article", "train", 4)],
        [0],
        2,
        "float16",
        {"model": "m", "corpus": "c"},
    ) as w:
        with pytest.raises(
            StoreError, match="'article', position 0, token 7.*float16 ends at 65,504"
        ):
            w.append(
                {0: torch.full((4, 2), 1e5).half()}, np.full(4, 7), np.zeros(4, int), np.arange(4)
            )
        with pytest.raises(StoreError, match="torch.float32 for a store of float16"):
            w.append({0: torch.ones(4, 2)}, np.full(4, 7), np.zeros(4, int), np.arange(4))


def test_truncated_file_is_refused(make_store):
    path, _ = make_store()
    content = path.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(StoreError, match="truncated"):
            ActivationStore(path)


def test_flipped_bit_in_activations_is_reported(make_store):
    path, values = make_store()
    content = bytearray(path.read_bytes())
    where = content.find(values[1500:1502].view(torch.int16).numpy().tobytes())
    content[where + 9] ^= 4
    path.write_bytes(content)
    with pytest.raises(StoreError, match="checksum"):
        ActivationStore(path).read(range(1400, 1600))


def test_other_version_layer_and_split_are_refused(make_store):
    path, _ = make_store()
    with pytest.raises(StoreError, match=r"holds layers \[1\], not layer 5"):
        ActivationStore(path, 5)
    with pytest.raises(StoreError, match="expected one of"):
        ActivationStore(path).rows("dev")
    with pytest.raises(StoreError, match="of toy@1, not of gpt2"):
        ActivationStore(path).check_source(model="gpt2")
    with pytest.raises(StoreError, match="width 8, not 16"):
        ActivationStore(path).check_source(model="toy", d=16)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"mmlib.activations 2", b"mmlib.activations 3", 1))
    with pytest.raises(StoreError, match="version 3: this code reads version 2"):
        ActivationStore(path)
    path.write_bytes(content[BLOCK:])  # a bare HDF5 file, as version 1 was
    with pytest.raises(StoreError, match="version 1, damaged or no store"):
        ActivationStore(path)
    path.write_bytes(content)
    with h5py.File(path, "a") as file:
        file.attrs["remark"] = "added later"
    with pytest.raises(StoreError, match="was added to"):
        ActivationStore(path)


def test_random_access_by_document_and_position(make_store):
    path, values = make_store()
    store = ActivationStore(path)
    assert store.rows_of("validation 1") == range(3250, 3500) == store.rows_of(3) and store.rows_of(
        3, slice(10, 12)
    ) == range(3260, 3262)
    assert store.column("position", range(3248, 3252)).tolist() == [248, 249, 0, 1]
    with pytest.raises(StoreError, match="no documents 'nothing'"):
        store.rows_of("nothing")
    with pytest.raises(IndexError, match="rows 0 to 4200 were asked for"):
        store.take(np.array([4200, 0]))
    with pytest.raises(IndexError, match="expected consecutive rows"):
        store.read(store.rows_of(3, slice(0, 10, 2)))
    for rows in (slice(4190, 4210), slice(-3, 5)):
        with pytest.raises(IndexError, match="has 4200: there are no others"):
            store.read(rows)
    assert (
        store.rows_of(store.column("document", slice(3250, 3251))[0]) == range(3250, 3500)
        and len(store.read(slice(None))) == 4200
    )


def test_a_sound_store_verifies_and_the_command_says_so(make_store):
    path, _ = make_store()
    assert verify(path) == []
    done = subprocess.run(
        [sys.executable, "-m", "mmlib", "verify", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "verified" in done.stdout and "4,200 × 8" in done.stdout
    path.write_bytes(path.read_bytes()[:-5])
    done = subprocess.run(
        [sys.executable, "-m", "mmlib", "verify", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "truncated" in done.stderr


def test_rows_must_come_in_their_order(tmp_path):
    with writer(tmp_path / "a.h5") as w:
        w.append({0: torch.ones(2, 2)}, np.arange(2), np.zeros(2, int), np.arange(2))
        for document, position in (
            (np.zeros(2, int), np.arange(2)),
            (np.ones(2, int), np.arange(2, 4)),
            (np.zeros(2, int), np.array([3, 2])),
        ):
            with pytest.raises(
                StoreError, match="row 2 is due, document 0 at position 2, but rows from document"
            ):
                w.append({0: torch.ones(2, 2)}, np.arange(2), document, position)


def test_contents_that_contradict_each_other_are_found(tmp_path, monkeypatch):
    """Every checksum right, the positions wrong."""
    monkeypatch.setattr(StoreWriter, "_check_places", lambda *arguments: None)
    with writer(tmp_path / "a.h5") as w:
        w.append({0: torch.ones(4, 2)}, np.arange(4), np.zeros(4, int), np.array([0, 1, 3, 2]))
        w.finish()
    assert verify(tmp_path / "a.h5") == [
        f"{tmp_path / 'a.h5'}: position, rows 0 to 4 do not fit the table of documents"
    ]


def make_shards(make_store, tmp_path):
    """Two stores of other documents joined, and all their values."""
    parts = [
        make_store(rows=(3000, 10, 10), seed=0, splits=("train",), shard="0 of 2"),
        make_store(rows=(500, 600, 700), seed=1, shard="1 of 2", first_document=2),
    ]
    join_shards(tmp_path / "all.h5", [path for path, _ in parts])
    return (
        tmp_path / "all.h5",
        torch.cat([values for _, values in parts]),
        [path for path, _ in parts],
    )


def test_shards_open_as_one_store(make_store, tmp_path):
    path, values, _ = make_shards(make_store, tmp_path)
    store = ActivationStore(path)
    assert torch.equal(store.read(range(store.n)), values) and verify(path) == []
    rows = np.array([4000, 0, 2999, 3000, 1023, 3001])
    assert torch.equal(store.take(rows), values[rows])
    train = values[:3500].double()
    assert (
        store.rows("train") == range(3500)
        and np.allclose(store.mean, train.mean(0), rtol=1e-12)
        and np.allclose(store.variance, train.var(0, correction=0), rtol=1e-12)
    )
    assert (
        set(store.splits[store.column("document", store.rows("test"))]) == {"test"}
        and store.column("position")[-1] == 349
    )
    with h5py.File(path) as file:  # a reader that knows nothing of us
        bits = file["activations/layer_01"][2990:3010].astype("uint32") << 16
        assert np.array_equal(bits.view("float32"), values[2990:3010].float().numpy())
        assert np.array_equal(file["document"][:], store.column("document")) and file[
            "token_ids"
        ].shape == (4800,)


def test_shards_that_miss_differ_or_do_not_belong_are_refused(make_store, tmp_path):
    path, _, (first, second) = make_shards(make_store, tmp_path)
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(StoreError, match="of which store-1-1.h5 is missing"):
        ActivationStore(path)
    second.write_bytes(first.read_bytes())
    with pytest.raises(StoreError, match="is not the file that all.h5 joins"):
        ActivationStore(path)
    second.write_bytes(kept)
    other, _ = make_store(seed=2, window=9)
    with pytest.raises(StoreError, match="differ in window: expected shards of one extraction"):
        join_shards(tmp_path / "bad.h5", [first, other])
    for given in ([second, first], [first], [first, first]):
        with pytest.raises(StoreError, match="all shards of one extraction in order"):
            join_shards(tmp_path / "bad.h5", given)
    mixed = [
        make_store(seed=3 + i, shard=f"{i} of 2", first_document=6 * i)[0] for i in range(2)
    ]  # train, validation, test; train, …
    with pytest.raises(StoreError, match="a split's documents side by side"):
        join_shards(tmp_path / "bad.h5", mixed)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(StoreError, match="keep shards and index together"):
        join_shards(tmp_path / "elsewhere" / "all.h5", [first, second])
    assert not (tmp_path / "bad.h5").exists()


def test_a_shard_without_training_documents_takes_no_part_in_the_statistics(make_store, tmp_path):
    first, values = make_store(rows=(3000,), splits=("train",), shard="0 of 2")
    second, _ = make_store(
        rows=(500, 500), splits=("validation", "test"), seed=1, shard="1 of 2", first_document=2
    )
    join_shards(tmp_path / "all.h5", [first, second])
    assert (
        np.allclose(ActivationStore(tmp_path / "all.h5").mean, values.double().mean(0), rtol=1e-12)
        and verify(tmp_path / "all.h5") == []
    )


def test_layers_that_were_not_extracted_together_are_not_paired(make_store, tmp_path):
    first, other = (
        ActivationStore(make_store(layer=1)[0], 1),
        ActivationStore(make_store(layer=2, rows=(3002, 500, 700))[0], 2),
    )
    with pytest.raises(StoreError, match="extract the layers together"):
        next(multi_layer_batches([first, other], "train", 10, 0))
    pair = next(
        multi_layer_batches([first, ActivationStore(make_store(layer=2)[0], 2)], "train", 10, 0)
    )
    assert pair.shape == (2, 10, 8) and torch.equal(
        pair[0], pair[1]
    )  # the fixture gives every layer the same values


def test_what_is_appended_must_be_as_announced(tmp_path):
    with writer(tmp_path / "a.h5") as w:
        for values in ({0: torch.ones(4, 1)}, {1: torch.ones(4, 2)}, {}, {0: torch.ones(3, 2)}):
            with pytest.raises(
                StoreError, match=r"expected as many of each, and \(4, 2\) of layers \[0\]"
            ):
                w.append(values, np.arange(4), np.zeros(4, int), np.arange(4))
        with pytest.raises(StoreError, match="5 rows were given, 4 were announced"):
            w.append({0: torch.ones(5, 2)}, np.arange(5), np.zeros(5, int), np.arange(5))
    with pytest.raises(StoreError, match="attributes model, corpus are missing"):
        StoreWriter(tmp_path / "b.h5", [DocumentRows("article", "train", 4)], [0], 2, "float32", {})
    with pytest.raises(StoreError, match="dtype 'int8'"):
        StoreWriter(
            tmp_path / "b.h5",
            [DocumentRows("article", "train", 4)],
            [0],
            2,
            "int8",
            {"model": "m", "corpus": "c"},
        )
    with pytest.raises(StoreError, match="store fewer layers a file"):
        StoreWriter(
            tmp_path / "b.h5",
            [DocumentRows("article", "train", 4)],
            list(range(400)),
            2,
            "float32",
            {"model": "m", "corpus": "c"},
        )


def test_an_interruption_while_recovering_does_not_leave_the_store_locked(make_store, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        make_store(stop_after=2048)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with (
        monkeypatch.context() as patched,
        pytest.raises(KeyboardInterrupt) as kept,
    ):  # kept: as a notebook keeps the last traceback
        patched.setattr(StoreWriter, "_read_chunk", interrupted)
        make_store()
    make_store(next_row=2048)
    assert kept


def test_reading_keeps_to_its_memory_whatever_the_size(make_store):
    """Peak of what Python and numpy allocate while two epochs are read, against a buffer of a tenth of the store."""
    path, values = make_store(rows=(60_000, 10, 10), d=64)
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


def test_the_identity_of_documents_changes_with_their_split_alone(make_store):
    """What was trained here must not be tested where a boundary between the splits lies elsewhere."""
    store = ActivationStore(make_store()[0])
    before, titles = store.documents, list(store.titles)
    store.splits = np.where(store.splits == "validation", "test", store.splits)
    assert store.documents != before and list(store.titles) == titles
    with pytest.raises(StoreError, match="was fitted to documents"):
        store.check_documents(before, "a fit")
