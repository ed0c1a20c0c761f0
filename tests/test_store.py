"""The HDF5 store: bits kept, statistics, splits, shuffled batches, and every file that must be refused."""

import h5py
import numpy as np
import pytest
import torch

from mmlib.store import ActivationStore, DocumentRows, RunningMoments, StoreError, StoreWriter, shuffled_batches, spread_rows


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_values_are_kept_bit_for_bit(make_store, dtype):
    path, values = make_store(dtype=dtype)
    store = ActivationStore(path, 1)
    assert torch.equal(store.read(range(0, store.n)), values) and store.read(range(0, 1)).dtype == getattr(torch, dtype)


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
    batches = shuffled_batches(ActivationStore(path), "train", batch, seed=0, buffer_bytes=buffer_bytes)
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
    return StoreWriter(path, [DocumentRows("article", "train", 4)], [0], 2, "float32", {"model": "m", "corpus": "c"})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_activations_are_refused_with_their_place(tmp_path, bad):
    values = torch.ones(4, 2)
    values[2, 1] = bad
    with writer(tmp_path / "a.h5") as w, pytest.raises(StoreError, match="'article', position 2, token 12"):
        w.append({0: values}, np.arange(10, 14), np.zeros(4, int), np.arange(4))


def test_unfinished_store_is_refused(tmp_path):
    with writer(tmp_path / "a.h5") as w:
        w.append({0: torch.ones(2, 2)}, np.arange(2), np.zeros(2, int), np.arange(2))
        with pytest.raises(StoreError, match="2 rows were written, 4 were announced"):
            w.finish()
    with pytest.raises(StoreError, match="not finished"):
        ActivationStore(tmp_path / "a.h5")


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
    with h5py.File(path, "a") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(StoreError, match="version 99"):
        ActivationStore(path)


def test_too_few_rows_for_a_batch(make_store):
    with pytest.raises(StoreError, match="500 rows, fewer than one batch of 501"):
        next(shuffled_batches(ActivationStore(make_store()[0]), "validation", 501, 0))
