"""The store: bits kept, statistics, splits, shuffled batches, and everything that must be refused."""

import pickle
import platform
import shutil
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest
import torch

from mmlib.activations.batches import multi_layer_batches, shuffled_batches, spread_rows
from mmlib.activations.parts import finite_rows
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.tokens import Normaliser, RunningMoments, from_numpy
from mmlib.activations.writer import DocumentRows, Layout, StoreWriter

BITS = {"bfloat16": torch.int16, "float16": torch.int16, "float32": torch.int32}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("part_bytes", [20_000, 70_000, 10**6])
def test_values_are_kept_bit_for_bit(make_store, dtype, part_bytes):
    path, values = make_store(dtype=dtype, part_bytes=part_bytes)
    store, bits = ActivationStore(path, 1), BITS[dtype]
    assert torch.equal(store.read(range(store.n)).view(bits), values.view(bits))
    assert store.read(range(0, 1)).dtype == getattr(torch, dtype)


def test_bare_h5py_reads_the_whole_in_five_lines(make_store):
    """As the docstring of the store says, and after its folder has moved."""
    path, values = make_store()
    store = ActivationStore(path)
    path = path.rename(path.with_name("moved"))
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
    assert torch.equal(ActivationStore(path).read(range(4200)), values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
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


def test_splits_are_runs_of_whole_documents(make_store):
    store = ActivationStore(make_store(rows=(3001, 500, 700))[0])
    assert [len(store.rows(s)) for s in ("train", "validation", "test")] == [3001, 500, 700]
    assert set(store.splits[store.column("document", store.rows("test"))]) == {"test"}


@pytest.mark.parametrize("part_bytes", [20_000, 10**6])
def test_statistics_are_of_training_rows_only(make_store, part_bytes):
    path, values = make_store(part_bytes=part_bytes)
    store, train = ActivationStore(path), values[:3000].double()
    assert np.allclose(store.mean, train.mean(0).numpy(), rtol=1e-12)
    assert np.allclose(store.variance, train.var(0, unbiased=False).numpy(), rtol=1e-12)
    merged = RunningMoments(8)
    for rows in (values[:3000].float().numpy()[:, None].reshape(3000, 8)[:].reshape(-1, 8),):
        for first in range(0, 3000, 1024):
            merged.update(rows[first : first + 1024])
    assert np.array_equal(store.mean, merged.mean) and np.array_equal(
        store.variance, merged.variance
    )


def test_moments_are_stable_where_the_naive_formula_is_not():
    """Mean 1e8, variance 1: the difference of two sums of squares would lose every digit in float32 and most in float64."""
    values = 1e8 + np.random.default_rng(0).standard_normal((10_000, 2))
    moments = RunningMoments(2)
    for part in np.array_split(values, 13):
        moments.update(part)
    assert np.allclose(moments.variance, values.var(0), rtol=1e-8)


def test_take_reads_scattered_rows(make_store):
    path, values = make_store()
    rows = np.array([4199, 0, 5, 1023, 1024, 5, 2500])
    assert torch.equal(ActivationStore(path).take(rows), values[rows])
    assert ActivationStore(path).take([]).shape == (0, 8)


def test_a_mask_is_a_mask_and_other_rows_are_refused(make_store):
    path, values = make_store()
    store = ActivationStore(path)
    mask = np.arange(store.n) % 3 == 0
    assert torch.equal(store.take(mask), values[mask])
    for rows, message in (
        (mask[:-1], r"type bool and shape \(4199,\).*mask of all 4200 rows"),
        (np.array([0.0, 1.0]), "type float64"),
        (np.array([[0, 1]]), r"shape \(1, 2\)"),
        (np.array([4200, 0]), "rows 0 to 4200 were asked for"),
        (np.array([-1, 0]), "rows -1 to 0 were asked for"),
    ):
        with pytest.raises(IndexError, match=message):
            store.take(rows)
    with pytest.raises(IndexError, match="mask of all 700 rows of split 'test'"):
        store.tokens("test", mask)
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
    with pytest.raises(IndexError, match="rows 0 to 700 were asked for, split 'test'"):
        store.tokens("test", np.array([0, 700]))


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


def layout(rows=4, dtype="float32", **attributes):
    return Layout(
        [DocumentRows("article", "train", rows)],
        [0],
        2,
        dtype,
        {"model": "m", "corpus": "c", **attributes},
    )


def writer(path, rows=4, dtype="float32", **options):
    return StoreWriter(path, layout(rows, dtype), **options)


def test_batches_do_not_depend_on_the_parts(make_store):
    """A function of (seed, step) alone: the chunks are those of the whole store."""
    streams = []
    for part_bytes in (20_000, 70_000, 10**6):
        path, _ = make_store(part_bytes=part_bytes)
        store = ActivationStore(path)
        streams.append(shuffled_batches(store, "train", 64, seed=3, buffer_bytes=40_000))
        streams[-1] = [next(streams[-1]) for _ in range(60)]
    assert all(torch.equal(a, b) for other in streams[1:] for a, b in zip(streams[0], other))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_are_refused_with_their_place(tmp_path, bad):
    values = torch.ones(4, 2)
    values[2, 1] = bad
    w = writer(tmp_path / "a")
    with pytest.raises(StoreError, match="'article', position 2, token 12"):
        w.append({0: values}, np.arange(10, 14), np.zeros(4, int), np.arange(4))


def test_every_bfloat16_that_is_not_finite_is_known_by_its_bits():
    bits = np.arange(65536, dtype=np.uint16)[:, None]
    assert np.array_equal(finite_rows(bits), from_numpy(bits).isfinite()[:, 0].numpy())


def test_unfinished_store_is_refused(tmp_path):
    w = writer(tmp_path / "a", 3000)
    w.append({0: torch.ones(2000, 2)}, np.arange(2000), np.zeros(2000, int), np.arange(2000))
    with pytest.raises(StoreError, match="2000 rows were written, 3000 were announced"):
        w.finish()
    assert not list((tmp_path / "a").iterdir())
    with pytest.raises(StoreError, match="a holds no store: expected a folder with manifest.json"):
        ActivationStore(tmp_path / "a")
    with pytest.raises(StoreError, match="nowhere holds no store"):
        ActivationStore(tmp_path / "nowhere")


def contents(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_what_is_left_is_continued_and_ends_byte_identical(make_store):
    """A writer that was dropped at any point; parts are of 1024 rows."""
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


@pytest.mark.parametrize("finished", [True, False])
def test_a_store_of_another_identity_is_neither_mixed_nor_lost(tmp_path, finished, capsys):
    """What differs is named; nothing changes unless it is to be replaced."""
    path = tmp_path / "a"

    def write(rows=3000, to=None, replace=False, documents=None, **attributes):
        documents = documents or [DocumentRows("article", "train", rows)]
        attributes = {"model": "m", "corpus": "c", "window": 256, **attributes}
        w = StoreWriter(
            path, Layout(documents, [0], 2, "float32", attributes, 8192), replace=replace
        )
        for start in range(w.next_row, rows if to is None else to, 500):
            at = np.arange(start, min(start + 500, rows))
            w.append({0: torch.ones(len(at), 2)}, at, np.zeros(len(at), int), at)
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
    assert "replacing what is there: " in capsys.readouterr().out and verify(path) == []
    assert ActivationStore(path).attributes["window"] == 128
    write(1000, window=128, replace=True)  # fewer parts than before: none of the old is left
    assert sorted(contents(path)) == ["activations.h5", "manifest.json", "part-00000.h5"]


def test_attributes_that_cannot_be_compared_are_refused_by_name(tmp_path):
    for bad in (None, tmp_path, {1, 2}, float("nan"), {"at": tmp_path}):
        with pytest.raises(StoreError, match="attribute 'source' is .*: expected text, a number"):
            layout(source=bad)
    for good in (["a", "b"], np.int64(3), np.arange(2), (1, 2), {"torch": "2.13"}, 0.1, True):
        for _ in range(2):
            w = StoreWriter(tmp_path / "a", layout(tags=good), replace=True)
            for span in w.spans:
                w.append({0: torch.ones(4, 2)}, np.arange(4), np.zeros(4, int), np.arange(4))
                w.finish()
        assert w.finished and verify(tmp_path / "a") == []


def test_a_damaged_part_of_an_unfinished_store_is_written_again(make_store, capsys):
    path, values = make_store()
    whole = contents(path)
    shutil.rmtree(path)
    with pytest.raises(KeyboardInterrupt):
        make_store(stop_after=4096)
    content = bytearray(whole["part-00003.h5"])
    content[content.find(values[3500:3502].view(torch.int16).numpy().tobytes())] ^= 1
    (path / "part-00003.h5").write_bytes(content)
    make_store(next_row=3072)
    assert "part-00003.h5 is damaged" in capsys.readouterr().out
    assert contents(path) == whole


def test_temporary_files_of_processes_that_are_no_more_are_removed(make_store):
    path, _ = make_store()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    node = platform.node()
    left = path / f"part-00003.h5.{node}-{gone.pid}-0123abcd.partial"
    alive = path / f"part-00003.h5.{node}-1-0123abcd.partial"
    elsewhere = path / "part-00003.h5.another-machine-1-0123abcd.partial"
    for file in (left, alive, elsewhere):
        file.write_bytes(b"half")
    with pytest.raises(KeyboardInterrupt):
        make_store(next_row=4200, stop_after=4200)
    assert not left.exists() and alive.exists() and elsewhere.exists()


def test_every_byte_of_the_manifest_counts(make_store):
    path, _ = make_store()
    content = bytearray((path / "manifest.json").read_bytes())
    for byte in range(0, len(content), 5):
        content[byte] ^= 1
        (path / "manifest.json").write_bytes(content)
        with pytest.raises(StoreError, match="manifest.json is damaged|version|of another store"):
            ActivationStore(path)
        content[byte] ^= 1
    for text in (b"", b"{}", b"[1]", content + b" ", content[:-2]):
        (path / "manifest.json").write_bytes(text)
        with pytest.raises(StoreError, match="manifest.json is damaged"):
            ActivationStore(path)


def test_float16_is_refused_where_it_overflows_and_kept_where_not(tmp_path, make_store):
    path, values = make_store(dtype="float16", layer=2)
    assert torch.equal(ActivationStore(path).read(range(50)), values[:50]) and not verify(path)
    w = writer(tmp_path / "b", dtype="float16")
    with pytest.raises(StoreError, match="'article', position 0, token 7.*float16 ends at 65,504"):
        w.append({0: torch.full((4, 2), 1e5).half()}, np.full(4, 7), np.zeros(4, int), np.arange(4))
    with pytest.raises(StoreError, match="torch.float32 for a store of float16"):
        w.append({0: torch.ones(4, 2)}, np.full(4, 7), np.zeros(4, int), np.arange(4))


@pytest.mark.parametrize("name", ["part-00001.h5", "activations.h5", "manifest.json"])
def test_truncated_files_are_refused(make_store, name):
    path, _ = make_store()
    content = (path / name).read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        (path / name).write_bytes(content[:length])
        with pytest.raises(StoreError, match=name):
            ActivationStore(path)


def test_flipped_bit_in_activations_is_reported(make_store):
    path, values = make_store()
    content = bytearray((path / "part-00001.h5").read_bytes())
    where = content.find(values[1500:1502].view(torch.int16).numpy().tobytes())
    content[where + 9] ^= 4
    (path / "part-00001.h5").write_bytes(content)
    store = ActivationStore(path)
    assert torch.equal(store.read(range(1000)), values[:1000])
    with pytest.raises(StoreError, match="part-00001.h5: activations/layer_01, .* checksum"):
        store.read(range(1400, 1600))
    with pytest.raises(StoreError, match="part-00001.h5: activations/layer_01, .* checksum"):
        for _ in range(60):
            next(shuffled_batches(store, "train", 2900, 0))
    assert len(verify(path)) == 1


def test_parts_of_another_store_are_refused(make_store):
    path, _ = make_store()
    other, _ = make_store(seed=1)
    shutil.copy(other / "part-00002.h5", path)
    with pytest.raises(StoreError, match="part-00002.h5 is not the part that manifest.json lists"):
        ActivationStore(path).read(range(4200))
    shutil.copy(path / "part-00000.h5", path / "part-00001.h5")
    with pytest.raises(StoreError, match="part-00001.h5 is not the part"):
        ActivationStore(path).read(range(4200))
    shutil.copy(other / "activations.h5", path)
    with pytest.raises(StoreError, match="activations.h5 is damaged, missing or of another store"):
        ActivationStore(path)


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
    with pytest.raises(StoreError, match="is a file: expected the folder of a store"):
        ActivationStore(path / "part-00000.h5")
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 4', '"format_version": 5'))
    with pytest.raises(StoreError, match="version 5: this code reads version 4"):
        ActivationStore(path)


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
    for use in (ActivationStore, lambda path: StoreWriter(path, layout())):
        with pytest.raises(StoreError, match=f"the former format, .* 2, .*: {command}"):
            use(given)
    assert "former format" in verify(given)[0] and file.read_bytes() == before


def test_random_access_by_document_and_position(make_store):
    path, values = make_store()
    store = ActivationStore(path)
    assert store.rows_of("validation 1") == range(3250, 3500) == store.rows_of(3) and store.rows_of(
        3, slice(10, 12)
    ) == range(3260, 3262)
    assert store.column("position", range(3248, 3252)).tolist() == [248, 249, 0, 1]
    with pytest.raises(StoreError, match="no documents 'nothing'"):
        store.rows_of("nothing")
    with pytest.raises(IndexError, match="expected consecutive rows"):
        store.read(np.array([1, 2]))
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
    part = path / "part-00002.h5"
    part.write_bytes(part.read_bytes()[:-5])
    done = subprocess.run(
        [sys.executable, "-m", "mmlib", "verify", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 1 and "part-00002.h5 has " in done.stderr


def test_rows_must_come_in_their_order(tmp_path):
    w = writer(tmp_path / "a")
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
    """Every checksum right, the positions or the statistics wrong."""
    monkeypatch.setattr(StoreWriter, "_check_places", lambda *arguments: None)
    w = writer(tmp_path / "a")
    w.append({0: torch.rand(4, 2)}, np.arange(4), np.zeros(4, int), np.array([0, 1, 3, 2]))
    monkeypatch.setattr(RunningMoments, "merge", lambda *arguments: None)
    w.finish()
    monkeypatch.undo()
    assert verify(tmp_path / "a") == [
        f"{tmp_path / 'a'}: position, rows 0 to 4 do not fit the table of documents",
        f"{tmp_path / 'a'}: the statistics of layer 0 are not those of its training rows",
    ]


def test_a_part_that_reads_back_otherwise_is_not_kept(tmp_path, monkeypatch):
    w = writer(tmp_path / "a")
    monkeypatch.setattr("mmlib.activations.parts.digest_of", lambda file: "other")
    with pytest.raises(StoreError, match="part-00000.h5 reads back otherwise than it was written"):
        w.append({0: torch.ones(4, 2)}, np.arange(4), np.zeros(4, int), np.arange(4))
    assert not list((tmp_path / "a").iterdir())


def test_parts_grow_with_the_store_and_end_at_its_chunks():
    def parts(rows, d=4096):
        found = Layout(
            [DocumentRows("a", "train", rows)],
            [0],
            d,
            "bfloat16",
            {"model": "m", "corpus": "c"},
        )
        sizes = [len(found.rows_of(part)) for part in range(found.parts)]
        assert sum(sizes) == rows and all(size % 1024 == 0 for size in sizes[:-1])
        return found.parts, sizes[0] * d * 2 / 1e6

    assert parts(1000) == (1, pytest.approx(8.2, abs=0.1))
    assert parts(1_000_000) == (326, pytest.approx(25.2, abs=0.1))
    assert parts(100_000_000) == (1993, pytest.approx(411, abs=1))
    assert parts(50_000, 640)[1] == pytest.approx(28.8, abs=0.1)


def test_a_store_without_training_documents_has_no_statistics(make_store):
    path, values = make_store(rows=(500, 3000), splits=("validation", "test"))
    store = ActivationStore(path)
    assert verify(path) == [] and not store.mean.any() and not store.variance.any()
    with pytest.raises(StoreError, match="dimensions .* of layer 1 never vary"):
        store.tokens("test")


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
    w = writer(tmp_path / "a")
    for values in ({0: torch.ones(4, 1)}, {1: torch.ones(4, 2)}, {}, {0: torch.ones(3, 2)}):
        with pytest.raises(
            StoreError, match=r"expected as many of each, and \(4, 2\) of layers \[0\]"
        ):
            w.append(values, np.arange(4), np.zeros(4, int), np.arange(4))
    with pytest.raises(StoreError, match="5 rows were given from row 0 on, 4 are due there"):
        w.append({0: torch.ones(5, 2)}, np.arange(5), np.zeros(5, int), np.arange(5))
    documents = [DocumentRows("article", "train", 4)]
    with pytest.raises(StoreError, match="attributes model, corpus are missing"):
        Layout(documents, [0], 2, "float32", {})
    with pytest.raises(StoreError, match="dtype 'int8'"):
        Layout(documents, [0], 2, "int8", {"model": "m", "corpus": "c"})
    for splits in (["test", "train"], ["train", "test", "train"], []):
        documents = [DocumentRows(str(i), split, 4) for i, split in enumerate(splits)]
        with pytest.raises(StoreError, match="at least one row, a split's documents side by side"):
            Layout(documents, [0], 2, "float32", {"model": "m", "corpus": "c"})


def test_a_hundred_layers_fit_a_part(tmp_path):
    layers = list(range(100))
    w = StoreWriter(
        tmp_path / "a",
        Layout(
            [DocumentRows("a", "train", 5)], layers, 2, "float32", {"model": "m", "corpus": "c"}
        ),
    )
    values = {layer: torch.full((5, 2), float(layer)) for layer in layers}
    w.append(values, np.arange(5), np.zeros(5, int), np.arange(5))
    w.finish()
    assert ActivationStore(tmp_path / "a", 99).read(range(5)).eq(99).all()
    assert verify(tmp_path / "a") == []


def test_reading_keeps_to_its_memory_whatever_the_size(make_store):
    """Peak of what Python and numpy allocate while two epochs are read, against a buffer of a tenth of the store."""
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


def test_the_identity_of_documents_changes_with_their_split_alone(make_store):
    """What was trained here must not be tested where a boundary between the splits lies elsewhere."""
    store = ActivationStore(make_store()[0])
    before, titles = store.documents, list(store.titles)
    store.splits = np.where(store.splits == "validation", "test", store.splits)
    assert store.documents != before and list(store.titles) == titles
    with pytest.raises(StoreError, match="was fitted to documents"):
        store.check_documents(before, "a fit")
