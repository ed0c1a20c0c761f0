"""Several stores of one extraction, one a process, joined to one."""

from pathlib import Path

import h5py
import numpy as np

from mmlib.files import naming_full_disk, replace_durably
from mmlib.layout import DTYPES, StoreError, layer_name
from mmlib.moments import RunningMoments
from mmlib.store import ActivationStore, layers_of
from mmlib.writer import HDF5, DocumentRows, check_order, seal, write_documents


def join_shards(path: Path, shards: list[Path]) -> None:
    """Write the index that makes one store of several, in their order, by virtual datasets.

    Raises:
        StoreError: a shard is damaged or unfinished, they are not all the shards of one extraction in their order, or lie elsewhere.
        DiskFull: there is no room for the index; the shards are safe.
    """
    stores = [ActivationStore(shard) for shard in shards]
    facts = [
        {
            key: str(value)
            for key, value in store.attributes.items()
            if key not in ("train_rows", "shard", "first_document")
        }
        for store in stores
    ]
    if differing := sorted(
        {
            key
            for fact in facts
            for key in {**fact, **facts[0]}
            if fact.get(key) != facts[0].get(key)
        }
    ):
        raise StoreError(
            f"{', '.join(shard.name for shard in shards)} differ in {', '.join(differing)}: expected shards of one extraction"
        )
    first_documents = np.cumsum([0] + [len(store.titles) for store in stores])[:-1].tolist()
    found = [
        (store.attributes.get("shard"), int(store.attributes["first_document"])) for store in stores
    ]
    if found != (
        expected := [(f"{i} of {len(stores)}", first) for i, first in enumerate(first_documents)]
    ):
        raise StoreError(
            f"shards (which, first document) {found} were given: expected {expected}, all shards of one extraction in order"
        )
    if elsewhere := [shard for shard in shards if shard.parent.resolve() != path.parent.resolve()]:
        raise StoreError(
            f"{elsewhere[0]} is not in the folder of {path}: keep shards and index together"
        )
    documents = [
        DocumentRows(*row)
        for store in stores
        for row in zip(store.titles, store.splits, store.document_rows.tolist())
    ]
    check_order(documents)
    partial = path.with_name(path.name + ".joining")
    with naming_full_disk(
        f"the disk is full: {path} could not be written, its {len(shards)} shards are safe; free some space and run again"
    ):
        with h5py.File(partial, "w", **HDF5) as file:
            facts = {key: value for key, value in stores[0].attributes.items() if key != "shard"}
            facts["shards"] = [f"{store.path.name} {store.seal.digest}" for store in stores]
            file.attrs.update(
                facts | {"train_rows": sum(int(store.attributes["train_rows"]) for store in stores)}
            )
            write_documents(file, documents)
            for layer in layers_of(shards[0]):
                _join_statistics(file, layer, shards)
            for name, _, _ in stores[0].seal.rows:
                _join_dataset(file, name, stores)
        seal(partial, ())
        replace_durably(partial, path)
    for store in stores:
        store.close()


def _join_statistics(file: h5py.File, layer: int, shards: list[Path]) -> None:
    """Moments of all training rows from those of each shard."""
    moments = None
    for path in shards:
        with h5py.File(path, "r") as shard:
            group = shard[f"statistics/{layer_name(layer)}"]
            moments = moments or RunningMoments(group["mean"].shape[0])
            moments.merge(int(shard.attrs["train_rows"]), group["mean"][:], group["variance"][:])
    for statistic in ("mean", "variance"):
        file[f"statistics/{layer_name(layer)}/{statistic}"] = getattr(moments, statistic)


def _join_dataset(file: h5py.File, name: str, stores: list[ActivationStore]) -> None:
    """A virtual dataset of the rows `name` of all stores."""
    width = (stores[0].d,) if name.startswith("activations/") else ()
    dtype = DTYPES[stores[0].dtype] if width else np.dtype("<i4")
    virtual = h5py.VirtualLayout((sum(store.n for store in stores), *width), dtype)
    at = 0
    for store in stores:
        virtual[at : at + store.n] = h5py.VirtualSource(
            store.path.name, name, (store.n, *width), dtype
        )
        at += store.n
    dataset = file.create_virtual_dataset(name, virtual)
    if width:
        dataset.attrs["dtype"] = stores[0].dtype
