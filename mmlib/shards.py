"""Several stores of one extraction, one a process, joined to one."""

import os
from pathlib import Path

import h5py
import numpy as np

from mmlib.layout import DTYPES, StoreError, layer_name
from mmlib.store import ActivationStore
from mmlib.writer import HDF5, DocumentRows, RunningMoments, seal, write_documents


def join_shards(path: Path, shards: list[Path]) -> None:
    """Write the index that makes one store of several, in their order, by virtual datasets.

    Raises:
        StoreError: a shard is damaged or unfinished, or they are not shards of one extraction.
    """
    stores = [{layer: ActivationStore(shard, layer) for layer in ActivationStore(shard).attributes["layers"].tolist()} for shard in shards]
    first = [next(iter(layers.values())) for layers in stores]
    facts = [{key: str(value) for key, value in store.attributes.items() if key not in ("train_rows", "shard")} for store in first]
    if differing := sorted({key for fact in facts for key in {**fact, **facts[0]} if fact.get(key) != facts[0].get(key)}):
        raise StoreError(f"{', '.join(shard.name for shard in shards)} differ in {', '.join(differing)}: expected shards of one extraction")
    documents = [DocumentRows(*row) for store in first for row in zip(store.titles, store.splits, store.document_rows.tolist())]
    partial = path.with_name(path.name + ".joining")
    with h5py.File(partial, "w", **HDF5) as file:
        train_rows = [int(store.attributes["train_rows"]) for store in first]
        file.attrs.update({**{key: value for key, value in first[0].attributes.items() if key != "shard"}, "train_rows": sum(train_rows),
                           "shards": [f"{store.path.name} {store.seal.digest}" for store in first]})
        write_documents(file, documents)
        for layer in stores[0]:
            moments = RunningMoments(first[0].d)
            for rows, layers in zip(train_rows, stores):
                moments.merge(rows, layers[layer].mean, layers[layer].variance)
            for statistic in ("mean", "variance"):
                file[f"statistics/{layer_name(layer)}/{statistic}"] = getattr(moments, statistic)
        for name, _, _ in first[0].seal.rows:
            _join_dataset(file, name, first)
    seal(partial, ())
    os.replace(partial, path)
    for layers in stores:
        for store in layers.values():
            store.close()


def _join_dataset(file: h5py.File, name: str, stores: list[ActivationStore]) -> None:
    """A virtual dataset of the rows `name` of all stores. Document indices count anew in each shard, so these are copied."""
    if name == "document":
        offsets = np.cumsum([0] + [len(store.titles) for store in stores])
        file[name] = np.concatenate([store.column(name) + offset for store, offset in zip(stores, offsets)]).astype("<i4")
        return
    width = (stores[0].d,) if name.startswith("activations/") else ()
    dtype = DTYPES[stores[0].dtype] if width else np.dtype("<i4")
    virtual = h5py.VirtualLayout((sum(store.n for store in stores), *width), dtype)
    at = 0
    for store in stores:
        virtual[at : at + store.n] = h5py.VirtualSource(store.path.name, name, (store.n, *width), dtype)
        at += store.n
    dataset = file.create_virtual_dataset(name, virtual)
    if width:
        dataset.attrs["dtype"] = stores[0].dtype
