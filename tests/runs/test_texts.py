"""Stores beside the run's own."""

import numpy as np
import pytest
import torch
from letters import tiny

from mmlib.activations.corpora import Document
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.runs.texts import text_store, text_stores
from mmlib_studies.robustness import resplit_store


def test_another_split_has_the_same_activations_and_its_own_statistics(make_store, tmp_path):
    path, values = make_store()
    store = ActivationStore(path)
    splits = ["train", "test", "validation", "validation", "train", "train"]
    other = resplit_store(store, splits, tmp_path / "other")
    assert verify(other.path) == []
    assert sorted(zip(other.titles, other.splits)) == sorted(zip(store.titles, splits))
    for title in store.titles:
        theirs, ours = store.rows_of(title), other.rows_of(title)
        assert torch.equal(store.read(theirs), other.read(ours))
        assert np.array_equal(store.column("token_ids", theirs), other.column("token_ids", ours))
    training = torch.cat(
        [
            store.read(store.rows_of(str(title)))
            for title, split in zip(store.titles, splits)
            if split == "train"
        ]
    ).double()
    assert np.allclose(other.mean, training.mean(0).numpy())
    assert np.allclose(other.variance, training.var(0, correction=0).numpy())
    assert not np.allclose(other.mean, store.mean, atol=1e-3) and other.documents != store.documents


def test_it_is_copied_once_for_a_split(make_store, tmp_path):
    path, _ = make_store()
    store, place = ActivationStore(path), tmp_path / "other"
    splits = ["train", "test", "validation", "validation", "train", "train"]
    resplit_store(store, splits, place)
    written = (place / "manifest.json").stat().st_mtime_ns
    resplit_store(store, splits, place)
    assert (place / "manifest.json").stat().st_mtime_ns == written
    again = resplit_store(store, splits[::-1], place)
    assert dict(zip(again.titles, again.splits)) == dict(zip(store.titles, splits[::-1]))
    assert (place / "manifest.json").stat().st_mtime_ns != written
    with pytest.raises(StoreError, match="holds 6 documents, 2 splits are given"):
        resplit_store(store, ["train", "test"], place)
    with pytest.raises(StoreError, match="splits tset: expected train, validation, test"):
        resplit_store(store, ["train", "tset", *splits[2:]], place)


@pytest.mark.parametrize(
    "change", [{"dtype": "float32"}, {"window": 7}, {"rows": (3002, 500, 700)}]
)
def test_a_copy_of_other_numbers_is_not_taken_for_one_of_these(make_store, tmp_path, change):
    """Same model, corpus, layer, titles and splits, as when a store is extracted again with other settings."""
    place = tmp_path / "other"
    splits = ["train", "test", "validation", "validation", "train", "train"]
    resplit_store(ActivationStore(make_store()[0]), splits, place).close()
    again = ActivationStore(make_store(**change)[0])
    found = resplit_store(again, splits, place)
    assert (found.n, found.dtype, found.attributes.get("window")) == (
        again.n,
        again.dtype,
        again.attributes.get("window"),
    )


def test_texts_at_several_layers_come_from_one_pass_and_each_is_as_if_alone(run):
    lm = tiny("gpt2", initializer_range=0.02)
    documents = [Document(f"d{i}", "abcdefgh" * (i + 1)) for i in range(3)]
    several = text_stores(run, "toy", documents, lm, [0, 2], tokens=12)
    assert list(several) == [0, 2]
    assert {store.path for store in several.values()} == {several[0].path}
    assert several[0].path.name.endswith("-layers0-2-12tokens")
    assert set(several[0].splits) == {"test"}
    assert several[0].n == 8 + 12 + 12
    alone = text_store(run, "toy", documents, lm, 2, tokens=12)
    assert alone.path.name.endswith("-layer2-12tokens") and several[2].documents == alone.documents
    expected = several[2].read(several[2].rows("test"))
    assert torch.allclose(alone.read(alone.rows("test")), expected, atol=1e-5)
    expected = several[2].read(several[2].rows("test"))
    assert not torch.allclose(several[0].read(several[0].rows("test")), expected, atol=1e-2)
