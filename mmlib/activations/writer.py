"""Writing a store so that a kill at any moment costs no chunk that was written.

All of the file's HDF5 structure is laid out before the first row, in `NAME.partial`; from then on rows and their checksums go to
fixed places in it. The statistics and the seal (`layout.py`) come last, and only then does the file take its name. Whoever begins
again lays out the same structure, compares it with the one found, and continues after the last chunk that is whole.

Mean and variance of more rows than fit in memory.

Several stores of one extraction, one a process, joined to one.
"""

import fcntl
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor
from tqdm import tqdm

from mmlib.activations.store import (
    BLOCK,
    CHUNK_ROWS,
    COLUMNS,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    ActivationStore,
    RunningMoments,
    Seal,
    StoreError,
    as_float,
    checksum,
    chunk_count,
    digest_outside,
    layer_name,
    layers_of,
    to_numpy,
)
from mmlib.files import naming_full_disk, replace_durably

REQUIRED = (
    "model",
    "corpus",
)  # attributes without which no store is opened; `extract.describe` gives many more


HDF5 = {
    "userblock_size": BLOCK,
    "libver": ("v110", "v110"),
}  # readable since HDF5 1.10, which has virtual datasets


@dataclass(frozen=True)
class DocumentRows:
    """A document's place in the store."""

    title: str
    split: str
    rows: int


class StoreWriter:
    """Writes rows in order, from `next_row` on. Unless `finish` is called, `path` does not exist and the next writer continues.

    Args:
        path: of the finished store; `path.partial` until then.
        documents: in the order of their rows; those of a split side by side, "train" first.
        attributes: recorded in the file; an unfinished file is continued only if they, and all else that is laid out, are the same.
    Raises:
        StoreError: an unknown dtype, a missing attribute, documents in another order, or another process writes this very store.
    """

    def __init__(
        self,
        path: Path,
        documents: Sequence[DocumentRows],
        layers: Sequence[int],
        d: int,
        dtype: str,
        attributes: Mapping,
    ):
        if dtype not in DTYPES:
            raise StoreError(f"dtype {dtype!r}: a store keeps {', '.join(DTYPES)}")
        self.path, self.partial = Path(path), Path(path).with_name(Path(path).name + ".partial")
        self._documents, self.dtype, self._layers, self._d = list(documents), dtype, list(layers), d
        check_order(documents)
        if missing := [name for name in REQUIRED if name not in attributes]:
            raise StoreError(
                f"attributes {', '.join(missing)} are missing: a store says what its activations are of"
            )
        self.n, self._train_rows = (
            sum(x.rows for x in documents),
            sum(x.rows for x in documents if x.split == "train"),
        )
        Seal(
            0, tuple((name, 10**15, 10**15) for name in self._datasets()), "0" * 32
        ).text()  # refuses what it has no room for
        self.next_row, self._filled = 0, 0
        self._moments = {layer: RunningMoments(d) for layer in layers}
        self._first_document = int(attributes.get("first_document", 0))
        self._first_row = first_rows(documents)[1]
        self._opened = self._begin(attributes)
        self._arrays = {
            name: np.empty((min(CHUNK_ROWS, self.n), *width), dtype)
            for name, (width, dtype) in self._datasets().items()
        }
        try:
            self._recover()
        except BaseException:  # Ctrl-C too: it must not stay locked
            self.close()
            raise

    def _datasets(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and type of a row of each dataset of rows."""
        rows = {
            f"activations/{layer_name(layer)}": ((self._d,), DTYPES[self.dtype])
            for layer in self._layers
        }
        return rows | {name: ((), np.dtype("<i4")) for name in COLUMNS}

    def _begin(self, attributes: Mapping) -> FileIO:
        """Lay out a new file; take the unfinished one in its stead if that has the same layout. Returns it open and locked."""
        found = _locked(self.partial) if self.partial.exists() else None
        fresh = self.partial.with_suffix(".creating")
        try:
            with (
                naming_full_disk(f"the disk is full: {self.path} could not be begun"),
                h5py.File(fresh, "w", **HDF5) as file,
            ):
                file.attrs.update(
                    {
                        "first_document": 0,
                        **attributes,
                        "format": FORMAT,
                        "format_version": FORMAT_VERSION,
                        "layers": self._layers,
                        "d": self._d,
                        "dtype": self.dtype,
                        "train_rows": self._train_rows,
                        "chunk_rows": CHUNK_ROWS,
                    }
                )
                write_documents(file, self._documents)
                self._places = self._lay_out(file)
            if found and self._structure(fresh) == self._structure(self.partial):
                return found
            if found:
                raise StoreError(
                    f"{self.partial} was begun with another configuration{_difference(self.partial, fresh)}: go back to that one to continue "
                    "it, or delete it to begin anew"
                )
            os.replace(fresh, self.partial)
            return _locked(self.partial)
        except BaseException:
            if found:
                found.close()
            raise
        finally:
            fresh.unlink(missing_ok=True)

    def _lay_out(self, file: h5py.File) -> dict[str, tuple[int, int]]:
        """Allocate all that is filled later, without writing it. {name: (first byte, bytes)}"""
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        places = {}

        def allocate(name: str, shape: tuple[int, ...], dtype) -> h5py.Dataset:
            dataset = file.create_dataset(name, shape, dtype, dcpl=early)
            places[name] = dataset.id.get_offset(), dataset.id.get_storage_size()
            return dataset

        for layer in self._layers:
            for statistic in ("mean", "variance"):
                allocate(f"statistics/{layer_name(layer)}/{statistic}", (self._d,), "<f8")
        for name, (width, dtype) in self._datasets().items():
            allocate(f"checksums/{name}", (chunk_count(self.n),), "<u8")
            dataset = allocate(name, (self.n, *width), dtype)
            if width:
                dataset.attrs["dtype"] = self.dtype
        return places

    def _structure(self, path: Path) -> str:
        return f"{path.stat().st_size} {digest_outside(path, list(self._places.values()))}"

    def _recover(self) -> None:
        """Count the whole chunks that are there, and their moments."""
        chunks = chunk_count(self.n)
        if not os.pread(
            self._opened.fileno(), 8, self._places[f"checksums/{COLUMNS[-1]}"][0]
        ).strip(b"\0"):
            return
        for chunk in tqdm(range(chunks), desc="checking what is there", unit=" chunks", delay=2):
            rows = min(CHUNK_ROWS, self.n - self.next_row)
            if not all(self._read_chunk(name, chunk, rows) for name in self._arrays):
                break
            self._count(rows)

    def _read_chunk(self, name: str, chunk: int, rows: int) -> bool:
        values = self._arrays[name][:rows]
        row_bytes = values.nbytes // rows
        os.preadv(
            self._opened.fileno(),
            [values.data.cast("B")],
            self._places[name][0] + chunk * CHUNK_ROWS * row_bytes,
        )
        known = os.pread(self._opened.fileno(), 8, self._places[f"checksums/{name}"][0] + 8 * chunk)
        return checksum(values) == int.from_bytes(known, "little")

    def _count(self, rows: int) -> None:
        """Take the rows in the arrays as written."""
        if training := min(rows, max(0, self._train_rows - self.next_row)):
            for layer, moments in self._moments.items():
                moments.update(
                    as_float(self._arrays[f"activations/{layer_name(layer)}"][:training])
                )
        self.next_row, self._filled = self.next_row + rows, 0

    def append(
        self,
        activations: Mapping[int, Tensor],
        token_ids: np.ndarray,
        document: np.ndarray,
        position: np.ndarray,
    ) -> None:
        """Append n rows; whole chunks go to the file, what is left over waits for the next call.

        Args:
            activations: {layer: (n, d)} in the store's dtype.
            token_ids, document, position: (n,) integers; documents count from 0 in each shard.
        Raises:
            StoreError: a value is NaN or infinite (the message names document, position and token), shapes or dtype are not as announced,
                or these are not the rows that come next.
            DiskFull: the disk is full; all chunks written so far are safe.
        """
        shapes = {layer: tuple(values_nd.shape) for layer, values_nd in activations.items()}
        n = len(token_ids)
        if (
            shapes != {layer: (n, self._d) for layer in self._layers}
            or len(document) != n
            or len(position) != n
        ):
            raise StoreError(
                f"{n} tokens, {len(document)} documents, {len(position)} positions and activations {shapes} were given: expected as many "
                f"of each, and ({n}, {self._d}) of layers {self._layers}"
            )
        values = {}
        for layer, values_nd in activations.items():
            values[f"activations/{layer_name(layer)}"] = self._checked(
                layer, values_nd, token_ids, document, position
            )
        self._check_places(document, position)
        values |= dict(zip(COLUMNS, (token_ids, document + self._first_document, position)))
        done = 0
        while done < n:
            rows = min(n - done, CHUNK_ROWS - self._filled)
            for name, array in self._arrays.items():
                array[self._filled : self._filled + rows] = values[name][done : done + rows]
            self._filled, done = self._filled + rows, done + rows
            if self._filled == CHUNK_ROWS or self.next_row + self._filled == self.n:
                self._write_chunk()

    def _check_places(self, document: np.ndarray, position: np.ndarray) -> None:
        at = self.next_row + self._filled
        if at + len(document) > self.n:
            raise StoreError(f"{at + len(document)} rows were given, {self.n} were announced")
        rows = np.arange(at, at + len(document))
        due = np.searchsorted(self._first_row, rows, "right") - 1
        if not (
            np.array_equal(document, due) and np.array_equal(position, rows - self._first_row[due])
        ):
            raise StoreError(
                f"row {at} is due, document {due[0]} at position {at - self._first_row[due[0]]}, but rows from document {document[0]}, position "
                f"{position[0]} on were given: begin at `next_row`, and give each row once"
            )

    def _checked(
        self,
        layer: int,
        values_nd: Tensor,
        token_ids: np.ndarray,
        document: np.ndarray,
        position: np.ndarray,
    ) -> np.ndarray:
        """The bits of a layer's rows, after refusing what may not be stored."""
        if str(values_nd.dtype) != f"torch.{self.dtype}":
            raise StoreError(
                f"activations of {values_nd.dtype} for a store of {self.dtype}: values are stored as they were computed"
            )
        values = to_numpy(values_nd)
        if not (finite := finite_rows(values)).all():
            bad = int(np.flatnonzero(~finite)[0])
            advice = (
                "; float16 ends at 65,504: load the model in bfloat16 or float32"
                if self.dtype == "float16"
                else ""
            )
            raise StoreError(
                f"NaN or infinity in layer {layer} at document {self._documents[document[bad]].title!r}, position {position[bad]}, "
                f"token {token_ids[bad]}: not stored{advice}"
            )
        return values

    def _write_chunk(self) -> None:
        rows, chunk = self._filled, self.next_row // CHUNK_ROWS
        for name, array in self._arrays.items():
            self._write(name, self.next_row * (array[:1].nbytes), array[:rows])
        for (
            name,
            array,
        ) in self._arrays.items():  # after the rows: a checksum vouches for what is there
            self._write(f"checksums/{name}", 8 * chunk, np.array([checksum(array[:rows])], "<u8"))
        self._count(rows)

    def _write(self, name: str, offset: int, values: np.ndarray) -> None:
        data, at = values.data.cast("B"), self._places[name][0] + offset
        with naming_full_disk(self._if_full()):
            while data:
                wrote = os.pwrite(self._opened.fileno(), data, at)
                data, at = data[wrote:], at + wrote

    def _if_full(self) -> str:
        return (
            f"the disk is full: {self.partial} holds {self.next_row:,} of {self.n:,} rows, which are safe; "
            "free some space and run again, it continues there"
        )

    def finish(self) -> None:
        """Write the statistics and the seal, and give the file its name.

        Raises:
            StoreError: fewer rows were appended than the documents have.
        """
        if self.next_row != self.n:
            raise StoreError(
                f"{self.next_row + self._filled} rows were written, {self.n} were announced"
            )
        for layer, moments in self._moments.items():
            for statistic in ("mean", "variance"):
                self._write(
                    f"statistics/{layer_name(layer)}/{statistic}",
                    0,
                    getattr(moments, statistic).astype("<f8"),
                )
        with naming_full_disk(self._if_full()):
            os.fsync(self._opened.fileno())
            seal(self.partial, tuple((name, *self._places[name]) for name in self._datasets()))
        self.close()  # and its lock, before others may open the store
        replace_durably(self.partial, self.path)

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what is written of it is continued by the next writer."""
        self._opened.close()


def check_order(documents: Sequence[DocumentRows]) -> None:
    """Refuse documents whose splits are not runs with "train" first, or that have no rows at all.

    Raises:
        StoreError: it is so.
    """
    splits = list(dict.fromkeys(x.split for x in documents))
    runs = 1 + sum(a.split != b.split for a, b in zip(documents, documents[1:]))
    if runs != len(splits) or "train" in splits[1:] or not sum(x.rows for x in documents):
        raise StoreError(
            f"{len(documents)} documents with {sum(x.rows for x in documents)} rows in {runs} runs of splits, in the order {splits}: expected "
            "at least one row, a split's documents side by side and those of train first"
        )


def _difference(partial: Path, fresh: Path) -> str:
    """Which attributes differ, as far as they can be read."""
    try:
        with h5py.File(partial, "r", locking=False) as a, h5py.File(fresh, "r") as b:
            keys = sorted(
                key
                for key in {*a.attrs, *b.attrs}
                if str(a.attrs.get(key)) != str(b.attrs.get(key))
            )
    except OSError:
        return ""
    return f" ({', '.join(keys) or 'other documents'})"


def _locked(path: Path) -> FileIO:
    """The file, open to be written and locked against other writers."""
    file = open(path, "r+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise StoreError(f"another process is writing {path}: wait for it, or stop it") from error
    return file


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Which stored rows have finite values only, (n,). In numpy: torch would start threads beside those of the language model."""
    exponent = np.uint16(0x7F80)
    return (
        ((values & exponent) != exponent).all(1)
        if values.dtype == np.uint16
        else np.isfinite(values).all(1)
    )


def first_rows(documents: Sequence[DocumentRows]) -> tuple[np.ndarray, np.ndarray]:
    """Number of rows and first row of each document, (D,) int64."""
    rows = np.array([document.rows for document in documents], dtype=np.int64)
    return rows, np.cumsum(rows) - rows


def write_documents(file: h5py.File, documents: Sequence[DocumentRows]) -> None:
    """The table of documents."""
    group = file.create_group("documents")
    group["title"] = [document.title for document in documents]
    group["split"] = [document.split for document in documents]
    group["rows"], group["first_row"] = first_rows(documents)


def seal(path: Path, rows: tuple[tuple[str, int, int], ...]) -> None:
    """Write the seal of a file whose datasets of rows are `rows`, durably."""
    text = Seal.of(path, rows).text()
    file = os.open(path, os.O_RDWR)
    try:
        os.pwrite(file, text, 0)
        os.fsync(file)
    finally:
        os.close(file)


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
