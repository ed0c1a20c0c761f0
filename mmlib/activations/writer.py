"""Writing a store: each part under a temporary name, read back, and renamed; the manifest last.

A kill at any moment leaves whole parts and at most a temporary file, so whoever begins again writes
the parts that miss. Several processes may write other parts, or even the same: each has temporary
names of its own, and equal plans give equal bytes.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import h5py
import numpy as np
import torch
import xxhash
from torch import Tensor
from tqdm import tqdm

from mmlib.activations.store import (
    CHUNK_ROWS,
    COLUMNS,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    SEAL_BYTES,
    VIRTUAL,
    ActivationStore,
    check_part,
    layer_name,
    part_seal,
    read_manifest,
    refuse_former,
    sealed,
)
from mmlib.activations.tokens import RunningMoments, as_float, moments_of, to_numpy
from mmlib.files import StoreError, naming_full_disk, write_whole

DTYPES = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
PART_BYTES, MOST_PARTS = 30_000_000, 2000
LIBVER = ("v110", "v110")  # readable since HDF5 1.10, which has virtual datasets
GUARDED = {"chunks": True, "fletcher32": True}  # HDF5 checks it where it is read
UNREADABLE = (OSError, KeyError, ValueError, RuntimeError)  # what h5py raises of a damaged file


@dataclass(frozen=True)
class DocumentRows:
    """A document's place in the store."""

    title: str
    split: str
    rows: int


class Layout:
    """What a store will hold, known before any row: its documents, its parts and its identity.

    Args:
        documents: in the order of their rows; those of a split side by side, "train" first.
        attributes: what the values depend on, in JSON's types, "model" and "corpus" among them. All
            but `created_by` is the identity, which each part carries: a store that is there already
            must have the same.
        part_bytes: of activations in a part, about; more where there would be over 2,000 parts.
    Raises:
        StoreError: an unknown dtype, an attribute that is missing or of another type, or documents
            in another order or without any row.
    """

    def __init__(
        self,
        documents: Sequence[DocumentRows],
        layers: Sequence[int],
        d: int,
        dtype: str,
        attributes: Mapping,
        part_bytes: int = PART_BYTES,
    ):
        if dtype not in DTYPES:
            raise StoreError(f"dtype {dtype!r}: a store keeps {', '.join(DTYPES)}")
        if missing := [name for name in ("model", "corpus") if name not in attributes]:
            raise StoreError(
                f"attributes {', '.join(missing)} are missing: what is this a store of?"
            )
        self.layers, self.d, self.dtype = list(layers), d, dtype
        keys = ("title", "split", "rows")
        self.table = {key: [getattr(document, key) for document in documents] for key in keys}
        document_rows = np.array(self.table["rows"], dtype=np.int64)
        self.first_row, self.n = np.cumsum(document_rows) - document_rows, int(document_rows.sum())
        self.train_rows = sum(x.rows for x in documents if x.split == "train")
        runs = [split for split, _ in groupby(self.table["split"])]
        if len(set(runs)) < len(runs) or "train" in runs[1:] or not self.n:
            raise StoreError(
                f"{len(documents)} documents with {self.n} rows in {len(runs)} runs of splits, in "
                f"the order {runs}: expected at least one row, a split's documents side by side "
                "and those of train first"
            )
        chunks = -(-self.n // CHUNK_ROWS)
        chunk_bytes = CHUNK_ROWS * len(self.layers) * d * DTYPES[dtype].itemsize
        part_chunks = max(1, part_bytes // chunk_bytes, -(-chunks // MOST_PARTS))
        self.part_rows, self.parts = part_chunks * CHUNK_ROWS, -(-chunks // part_chunks)
        activations = np.dtype((DTYPES[dtype], (d,)))
        self.columns = {layer_name(layer): activations for layer in self.layers}
        self.columns |= dict.fromkeys(COLUMNS, np.dtype("<i4"))
        self.facts = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "created_by": attributes.get("created_by", ""),
            "train_rows": self.train_rows,
        }
        self.identity = {
            **{name: plain(name, x) for name, x in attributes.items() if name != "created_by"},
            "layers": self.layers,
            "d": d,
            "dtype": dtype,
            "documents": digest(sorted((x.title, x.rows) for x in documents)),
            "split": digest([(x.title, x.split) for x in documents]),
            "chunk_rows": CHUNK_ROWS,
            "part_rows": self.part_rows,
        }

    def rows_of(self, part: int) -> range:
        """The rows of a part."""
        return range(part * self.part_rows, min(self.n, (part + 1) * self.part_rows))

    def missing(self, folder: Path) -> list[int]:
        """Parts that are not there."""
        return [part for part in range(self.parts) if not (folder / part_name(part)).exists()]


def part_name(index: int) -> str:
    """File name of a part."""
    return f"part-{index:05d}.h5"


def differences(there: Mapping, here: Mapping) -> str:
    """What is other there than here, by name: "window (256 → 128)"; empty if nothing is."""
    return ", ".join(
        f"{name} ({str(there.get(name))[:60]} → {str(here.get(name))[:60]})"
        for name in {**here, **there}
        if there.get(name) != here.get(name)
    )


def plain(name: str, value):
    """An attribute as JSON keeps it.

    Raises:
        StoreError: JSON does not, or it is None.
    """
    with suppress(TypeError, ValueError, AttributeError):
        if value is not None:
            return json.loads(json.dumps(value, allow_nan=False, default=lambda x: x.tolist()))
    raise StoreError(
        f"attribute {name!r} is {value!r}: expected text, a number, or a list or dict of these"
    )


def digest(content) -> str:
    """XXH3-128 of something that JSON keeps."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content).encode())


def examine(folder: Path, layout: Layout, replace: bool = False) -> tuple[list[int], bool]:
    """Which parts of a store are due, and whether it is finished; reads every byte that is there.

    Damaged parts are removed, with a word: only this store's own could stand under their names.

    Args:
        replace: remove what is of another identity, with a word, instead of refusing it.
    Raises:
        StoreError: the folder holds a store of another format, or files of another identity.
    """
    refuse_former(folder)
    folder.mkdir(parents=True, exist_ok=True)
    replaced = False
    for path in (folder / MANIFEST, *sorted(folder.glob("part-*.h5"))):
        if not (other := _other(path, layout)):
            continue
        kind = "a finished" if path.name == MANIFEST else "an unfinished"
        what = f"{folder} holds {kind} store of other {other}"
        if not replace:
            raise StoreError(
                f"{what}: go back to those settings, give another folder, or replace it "
                "(replace=True, or --replace on the command line)"
            )
        if not replaced:
            print(f"replacing what is there: {what}", flush=True)
        path.unlink(missing_ok=True)
        replaced = True
    digests = []
    for path in tqdm(sorted(folder.glob("part-*.h5")), "checking what is there", delay=2):
        try:
            digests.append(check_part(path))
        except StoreError as error:
            print(f"replacing what is there: {error}", flush=True)
            path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process replaces it
            pass
    finished = False
    with suppress(StoreError, FileNotFoundError):
        listed = [entry["digest"] for entry in ActivationStore(folder).manifest["parts"]]
        finished = listed == digests
    if finished:
        remove_left(folder)
    return layout.missing(folder), finished


def _other(path: Path, layout: Layout) -> str:
    """How the identity in a manifest or part differs; empty if it is damaged or not there."""
    with suppress(StoreError, *UNREADABLE):
        if path.name == MANIFEST:
            return differences(read_manifest(path.parent)["identity"], layout.identity)
        with h5py.File(path, "r", locking=False) as part:
            return differences(json.loads(part.attrs["identity"]), layout.identity)
    return ""


class StoreWriter:
    """Writes the parts that are due, in the order of their rows; the next writer continues it.

    Args:
        folder: of the store.
        replace: as for `examine`.
        due: parts to write; None: all that miss.
    Raises:
        StoreError: the folder holds a store of another identity or of the former format.

    Attributes:
        finished: whether the store was there already, with the same contents.
        spans: the rows to give, as runs of parts.
        next_row: the one to give next.
    """

    def __init__(self, folder: Path, layout: Layout, *, replace=False, due: list | None = None):
        self.folder, self.layout, self.finished = Path(folder), layout, False
        if due is None:
            due, self.finished = examine(self.folder, layout, replace)
        self._due, self.spans = list(due), []
        for rows in map(layout.rows_of, due):
            joins = self.spans and self.spans[-1].stop == rows.start
            start = self.spans.pop().start if joins else rows.start
            self.spans.append(range(start, rows.stop))
        self.next_row = self.spans[0].start if self.spans else layout.n
        room = min(layout.part_rows, layout.n)
        self._arrays = {name: np.empty(room, row) for name, row in layout.columns.items()}

    def append(
        self,
        activations: Mapping[int, Tensor],
        token_ids: np.ndarray,
        document: np.ndarray,
        position: np.ndarray,
    ) -> None:
        """Append n rows, from `next_row` on. With its last row, a part is written.

        Args:
            activations: {layer: (n, d)} in the store's dtype.
            token_ids, document, position: (n,) integers.
        Raises:
            StoreError: a value is NaN or infinite (the message names document, position and token),
                shapes or dtype are not as announced, or these are not the rows that come next.
            DiskFull: the disk is full; the parts that are there are safe.
        """
        layout, n = self.layout, len(token_ids)
        shapes = {layer: (*values.shape, values.dtype) for layer, values in activations.items()}
        expected = dict.fromkeys(layout.layers, (n, layout.d, getattr(torch, layout.dtype)))
        if shapes != expected or len(document) != n or len(position) != n:
            raise StoreError(
                f"{n} tokens, {len(document)} documents, {len(position)} positions and activations "
                f"{shapes} were given: expected as many of each, and ({n}, {layout.d}) of layers "
                f"{layout.layers} in {layout.dtype}, as they were computed"
            )
        self._check_places(document, position)
        given = dict(zip(COLUMNS, (token_ids, document, position)))
        for layer, values_nd in activations.items():
            given[layer_name(layer)] = values = to_numpy(values_nd)
            if not (finite := np.isfinite(as_float(values)).all(1)).all():
                bad = int(np.argmin(finite))
                ends = "; float16 ends at 65,504: load the model in bfloat16 or float32"
                raise StoreError(
                    f"NaN or infinity in layer {layer} at document "
                    f"{layout.table['title'][document[bad]]!r}, position {position[bad]}, token "
                    f"{token_ids[bad]}: not stored{ends if layout.dtype == 'float16' else ''}"
                )
        done = 0
        while done < n:
            rows = layout.rows_of(self._due[0])
            at, count = self.next_row - rows.start, min(n - done, rows.stop - self.next_row)
            for name, array in self._arrays.items():
                array[at : at + count] = given[name][done : done + count]
            self.next_row, done = self.next_row + count, done + count
            if self.next_row == rows.stop:
                self._write_part()

    def _check_places(self, document: np.ndarray, position: np.ndarray) -> None:
        at, first_row = self.next_row, self.layout.first_row
        stop = next((span.stop for span in self.spans if at in span), at)
        if at + len(document) > stop:
            raise StoreError(
                f"{len(document)} rows were given from row {at} on, {stop - at} are due there"
            )
        rows = np.arange(at, at + len(document))
        due = np.searchsorted(first_row, rows, "right") - 1
        if not (np.array_equal(document, due) and np.array_equal(position, rows - first_row[due])):
            raise StoreError(
                f"row {at} is due, document {due[0]} at position {at - first_row[due[0]]}, but "
                f"rows from document {document[0]}, position {position[0]} on were given: begin at "
                "`next_row`, and give each row once"
            )

    def _write_part(self) -> None:
        part, rows = self._due[0], self.layout.rows_of(self._due[0])
        filled = {name: array[: len(rows)] for name, array in self._arrays.items()}
        with naming_full_disk(self._if_full()):
            write_whole(self.folder / part_name(part), part_content(self.layout, part, filled))
        self._due.pop(0)
        if self._due:
            self.next_row = self.layout.rows_of(self._due[0]).start

    def _if_full(self) -> str:
        missing = self.layout.missing(self.folder)
        rows = self.layout.n - sum(len(self.layout.rows_of(part)) for part in missing)
        return (
            f"the disk is full: {self.folder} holds {rows:,} of {self.layout.n:,} rows, which are "
            "safe; free some space and run again, it continues there"
        )

    def finish(self) -> None:
        """Write `activations.h5` and the manifest, once all parts are there.

        Raises:
            StoreError: parts are missing or damaged.
            DiskFull: there is no room; the parts are safe.
        """
        if missing := self.layout.missing(self.folder):
            raise StoreError(
                f"{self.next_row} rows were written, {self.layout.n} were announced: "
                f"{len(missing)} parts are not there, from {part_name(missing[0])} on; give all "
                "rows that are due, or run the extraction again"
            )
        with naming_full_disk(self._if_full()):
            write_manifest(self.folder, self.layout)
        remove_left(self.folder)


def remove_left(folder: Path) -> None:
    """Remove temporary files, of a finished store: of processes that were killed, or too late."""
    for path in folder.glob("*.partial"):
        path.unlink(missing_ok=True)


def part_content(layout: Layout, part: int, rows: Mapping[str, np.ndarray]) -> memoryview:
    """The bytes of a part: a function of its rows and the layout alone.

    `/moments/layer_LL` (chunks, 2, d) are mean and variance of the training rows of each chunk: a
    store's statistics are merged from them, in the order of its rows.

    Args:
        rows: {name: (rows, …)} of each of the layout's columns.
    """
    made, run = io.BytesIO(), layout.rows_of(part)
    training = layout.train_rows - run.start
    with h5py.File(made, "w", libver=LIBVER, userblock_size=SEAL_BYTES) as file:
        file.attrs["identity"], file.attrs["first_row"] = json.dumps(layout.identity), run.start
        for name, values in rows.items():
            chunks = {i: values[i : i + CHUNK_ROWS] for i in range(0, len(run), CHUNK_ROWS)}
            sums = [xxhash.xxh3_64_intdigest(chunk.data.cast("B")) for chunk in chunks.values()]
            dataset = file.create_dataset(name, data=values)
            file.create_dataset(f"checksums/{name}", data=np.array(sums, "<u8"), **GUARDED)
            if name in COLUMNS:
                continue
            dataset.attrs["dtype"] = layout.dtype
            if seen := [x[: training - i] for i, x in chunks.items() if i < training]:
                moments = np.array([moments_of(as_float(x)) for x in seen], "<f8")
                file.create_dataset(name.replace("activations", "moments"), data=moments, **GUARDED)
    content = made.getbuffer()
    content[:SEAL_BYTES] = part_seal(xxhash.xxh3_128_hexdigest(content[SEAL_BYTES:]))
    return content


def write_manifest(folder: Path, layout: Layout) -> None:
    """The file of virtual datasets, then the manifest that says what all files must be.

    Raises:
        StoreError: a part is missing, damaged or of another store.
    """
    entries, checksums, places = [], {}, {}
    moments = {layer: RunningMoments(layout.d) for layer in layout.layers}
    for index in range(layout.parts):
        path, rows = folder / part_name(index), layout.rows_of(index)
        try:
            with open(path, "rb") as file:
                digest = file.read(SEAL_BYTES).split()[1].decode()
            with h5py.File(path, "r", locking=False) as part:
                same = json.loads(part.attrs["identity"]) == layout.identity
                if not same or part.attrs["first_row"] != rows.start:
                    raise ValueError("it is of another store")
                for name in layout.columns:
                    checksums.setdefault(name, []).extend(part[f"checksums/{name}"][:])
                    places.setdefault(name, []).append(part[name].id.get_offset())
                for layer, running in moments.items():
                    firsts = range(rows.start, layout.train_rows, CHUNK_ROWS)
                    for first, known in zip(firsts, part.get(layer_name(layer, "moments"), ())):
                        running.merge(min(CHUNK_ROWS, layout.train_rows - first), *known)
        except (IndexError, *UNREADABLE) as error:
            raise StoreError(f"{path} is damaged ({error}): run the extraction again") from error
        entries.append({"file": path.name, "size": path.stat().st_size, "digest": digest})
    virtual = virtual_file(layout, moments, checksums, places)
    content = {
        **layout.facts,
        "identity": layout.identity,
        "rows": layout.n,
        "documents": layout.table,
        "parts": entries,
        "virtual": {"file": VIRTUAL, "digest": xxhash.xxh3_128_hexdigest(virtual)},
    }
    write_whole(folder / VIRTUAL, virtual)
    write_whole(folder / MANIFEST, sealed(content))


def virtual_file(layout: Layout, moments: Mapping, checksums: Mapping, places: Mapping) -> bytes:
    """An HDF5 file that shows all parts as one, by relative names; missing ones as NaN, or −1."""
    made = io.BytesIO()
    with h5py.File(made, "w", libver=LIBVER) as file:
        for name, value in {**layout.identity, **layout.facts}.items():
            file.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
        documents = file.create_group("documents")
        for key, values in {**layout.table, "first_row": layout.first_row}.items():
            documents[key] = values
        for layer, running in moments.items():
            group = layer_name(layer, "statistics")
            file.create_dataset(f"{group}/mean", data=running.mean)
            file.create_dataset(f"{group}/variance", data=running.variance)
        for name, row in layout.columns.items():
            file.create_dataset(f"checksums/{name}", data=np.array(checksums[name], "<u8"))
            file.create_dataset(f"places/{name}", data=np.array(places[name], "<i8"))
            virtual = h5py.VirtualLayout((layout.n, *row.shape), row.base)
            virtual.dcpl.set_obj_track_times(False)  # equal stores have equal bytes
            for index, rows in enumerate(map(layout.rows_of, range(layout.parts))):
                virtual[rows.start : rows.stop] = h5py.VirtualSource(
                    part_name(index), name, (len(rows), *row.shape), row.base
                )
            fill = -1 if name in COLUMNS else 0x7FC0 if layout.dtype == "bfloat16" else np.nan
            dataset = file.create_virtual_dataset(name, virtual, fillvalue=fill)
            if name not in COLUMNS:
                dataset.attrs["dtype"] = layout.dtype
    return made.getvalue()
