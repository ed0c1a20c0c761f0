"""A store with another split: the same activations, copied once, with statistics of their own."""

import numpy as np
import pytest
import torch

from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib_studies.robustness import resplit_store

SPLITS = ["train", "test", "validation", "validation", "train", "train"]


def test_another_split_has_the_same_activations_and_its_own_statistics(make_store, tmp_path):
    path, values = make_store()
    store = ActivationStore(path)
    other = resplit_store(store, SPLITS, tmp_path / "other")
    assert verify(other.path) == []
    assert sorted(zip(other.titles, other.splits)) == sorted(zip(store.titles, SPLITS))
    for title in store.titles:
        theirs, ours = store.rows_of(title), other.rows_of(title)
        assert torch.equal(store.read(theirs), other.read(ours))
        assert np.array_equal(store.column("token_ids", theirs), other.column("token_ids", ours))
    of_training = [t for t, split in zip(store.titles, SPLITS) if split == "train"]
    training = torch.cat([store.read(store.rows_of(str(t))) for t in of_training]).double()
    assert np.allclose(other.mean, training.mean(0).numpy())
    assert np.allclose(other.variance, training.var(0, correction=0).numpy())
    assert not np.allclose(other.mean, store.mean, atol=1e-3) and other.documents != store.documents


def test_it_is_copied_once_for_a_split(make_store, tmp_path):
    path, _ = make_store()
    store, place = ActivationStore(path), tmp_path / "other"
    resplit_store(store, SPLITS, place)
    written = (place / "manifest.json").stat().st_mtime_ns
    resplit_store(store, SPLITS, place)
    assert (place / "manifest.json").stat().st_mtime_ns == written
    again = resplit_store(store, SPLITS[::-1], place)
    assert dict(zip(again.titles, again.splits)) == dict(zip(store.titles, SPLITS[::-1]))
    assert (place / "manifest.json").stat().st_mtime_ns != written
    with pytest.raises(StoreError, match="holds 6 documents, 2 splits are given"):
        resplit_store(store, ["train", "test"], place)
    with pytest.raises(StoreError, match="splits tset: expected train, validation, test"):
        resplit_store(store, ["train", "tset", *SPLITS[2:]], place)


@pytest.mark.parametrize(
    "change", [{"dtype": "float32"}, {"window": 7}, {"rows": (3002, 500, 700)}]
)
def test_a_copy_of_other_numbers_is_not_taken_for_one_of_these(make_store, tmp_path, change):
    """Same model, corpus, layer, titles and splits, as when a store is extracted again with other
    settings.
    """
    place = tmp_path / "other"
    resplit_store(ActivationStore(make_store()[0]), SPLITS, place).close()
    again = ActivationStore(make_store(**change)[0])
    found = resplit_store(again, SPLITS, place)
    assert (found.n, found.dtype) == (again.n, again.dtype)
    assert found.attributes.get("window") == again.attributes.get("window")
