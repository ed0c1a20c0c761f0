"""Writing a store part by part: each under a temporary name, read back, and renamed when it is whole; the manifest comes last.

A kill at any moment leaves whole parts and at most a temporary file, so whoever begins again writes the parts that miss. Several
processes may write other parts, or even the same: each has temporary names of its own, and equal plans give equal bytes.
"""

import io
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import xxhash
from torch import Tensor
from tqdm import tqdm

from mmlib.activations.parts import (
    CHUNK_ROWS,
    COLUMNS,
    DTYPES,
    FORMAT,
    FORMAT_VERSION,
    LIBVER,
    MANIFEST,
    SEAL_BYTES,
    UNREADABLE,
    VIRTUAL,
    check_part,
    chunk_count,
    columns,
    finite_rows,
    layer_name,
    part_content,
    part_name,
    sealed,
    write_whole,
)
from mmlib.activations.store import ActivationStore, read_manifest, refuse_former
from mmlib.activations.tokens import RunningMoments, to_numpy
from mmlib.files import StoreError, naming_full_disk

PART_BYTES, MOST_PARTS = 30_000_000, 2000


@dataclass(frozen=True)
class DocumentRows:
    """A document's place in the store."""

    title: str
    split: str
    rows: int


class Layout:
    """What a store will hold, known before any row: its documents, its parts, and the identity that each part carries.

    Args:
        documents: in the order of their rows; those of a split side by side, "train" first.
        attributes: what the values depend on, in JSON's types, "model" and "corpus" among them. All of it is compared with what is
            there already, but for `created_by`.
        part_bytes: of activations in a part, about; more where there would be over 2,000 parts.
    Raises:
        StoreError: an unknown dtype, an attribute that is missing or of another type, or documents in another order.
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
        check_order(documents)
        self.documents, self.layers, self.d, self.dtype = list(documents), list(layers), d, dtype
        self.document_rows = np.array([x.rows for x in documents], dtype=np.int64)
        self.first_row = np.cumsum(self.document_rows) - self.document_rows
        self.n = int(self.document_rows.sum())
        self.train_rows = sum(x.rows for x in documents if x.split == "train")
        chunk_bytes = CHUNK_ROWS * len(self.layers) * d * DTYPES[dtype].itemsize
        chunks = max(1, part_bytes // chunk_bytes, -(-chunk_count(self.n) // MOST_PARTS))
        self.part_rows, self.parts = chunks * CHUNK_ROWS, -(-chunk_count(self.n) // chunks)
        self.columns = columns(self.layers, d, dtype)
        self.facts = {"format": FORMAT, "format_version": FORMAT_VERSION}
        self.facts |= {
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


def check_order(documents: Sequence[DocumentRows]) -> None:
    """Refuse documents whose splits are not runs with "train" first, or that have no rows at all.

    Raises:
        StoreError: it is so.
    """
    splits, n = list(dict.fromkeys(x.split for x in documents)), sum(x.rows for x in documents)
    runs = 1 + sum(a.split != b.split for a, b in zip(documents, documents[1:]))
    if runs != len(splits) or "train" in splits[1:] or not n:
        raise StoreError(
            f"{len(documents)} documents with {n} rows in {runs} runs of splits, in the order {splits}: expected "
            "at least one row, a split's documents side by side and those of train first"
        )


def examine(folder: Path, layout: Layout, replace: bool = False) -> tuple[list[int], bool]:
    """Which parts of a store are due, and whether it is finished; every byte of what is there is read.

    Damaged parts are removed, with a word, since only this store's own could stand under their names.

    Args:
        replace: remove what is of another identity, with a word, instead of refusing it.
    Raises:
        StoreError: the folder holds a store of another format, or parts or a manifest of another identity.
    """
    refuse_former(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left(folder)
    if others := [path for path in _files(folder) if _other(path, layout)]:
        kind = "a finished" if others[0].name == MANIFEST else "an unfinished"
        what = f"{folder} holds {kind} store of other {_other(others[0], layout)}"
        if not replace:
            raise StoreError(
                f"{what}: go back to those settings, give another folder, or replace it "
                "(replace=True, or --replace on the command line)"
            )
        print(f"replacing what is there: {what}", flush=True)
    for path in others:
        if _other(path, layout):  # still: another process may have replaced it
            path.unlink(missing_ok=True)
    digests = []
    for path in tqdm(_files(folder)[1:], desc="checking what is there", delay=2):
        try:
            digests.append(check_part(path))
        except StoreError as error:
            print(f"replacing what is there: {error}", flush=True)
            path.unlink(missing_ok=True)
        except FileNotFoundError:  # another process replaces it
            pass
    with suppress(StoreError, FileNotFoundError):
        listed = [entry["digest"] for entry in ActivationStore(folder).manifest["parts"]]
        return layout.missing(folder), listed == digests
    return layout.missing(folder), False


def _files(folder: Path) -> list[Path]:
    """Where the manifest is or would be, and the parts that are there."""
    return [folder / MANIFEST, *sorted(folder.glob("part-*.h5"))]


def _other(path: Path, layout: Layout) -> str:
    """How the identity in a manifest or part differs; empty for what is damaged or not there, which is nobody's."""
    with suppress(StoreError, *UNREADABLE):
        if path.name == MANIFEST:
            return differences(read_manifest(path.parent)["identity"], layout.identity)
        with h5py.File(path, "r", locking=False) as part:
            return differences(json.loads(part.attrs["identity"]), layout.identity)
    return ""


def _remove_left(folder: Path) -> None:
    """Remove temporary files of processes of this machine that are no more."""
    for path in folder.glob(f"*.{platform.node()}-*.partial"):
        try:
            os.kill(int(path.name.split("-")[-2]), 0)
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            pass  # not of ours, or alive and somebody else's


class StoreWriter:
    """Writes the parts that are due, in the order of their rows. What is not finished is continued by the next writer, part by part.

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

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        *,
        replace: bool = False,
        due: Sequence[int] | None = None,
    ):
        self.folder, self.layout, self.finished = Path(folder), layout, False
        if due is None:
            due, self.finished = examine(self.folder, layout, replace)
        self._due, self.spans = list(due), []
        for rows in map(layout.rows_of, due):
            joins = self.spans and self.spans[-1].stop == rows.start
            start = self.spans.pop().start if joins else rows.start
            self.spans.append(range(start, rows.stop))
        self.next_row = self.spans[0].start if self.spans else layout.n
        room = min(layout.part_rows, layout.n) if due else 0
        self._arrays = {
            name: np.empty((room, *column.width), column.dtype)
            for name, column in layout.columns.items()
        }

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
            StoreError: a value is NaN or infinite (the message names document, position and token), shapes or dtype are not as announced,
                or these are not the rows that come next.
            DiskFull: the disk is full; the parts that are there are safe.
        """
        layout, n = self.layout, len(token_ids)
        shapes = {layer: tuple(values_nd.shape) for layer, values_nd in activations.items()}
        expected = {layer: (n, layout.d) for layer in layout.layers}
        if shapes != expected or len(document) != n or len(position) != n:
            raise StoreError(
                f"{n} tokens, {len(document)} documents, {len(position)} positions and activations {shapes} were given: expected as many "
                f"of each, and ({n}, {layout.d}) of layers {layout.layers}"
            )
        columns = dict(zip(COLUMNS, (token_ids, document, position)))
        values = {
            layer_name(layer): self._checked(layer, values_nd, **columns)
            for layer, values_nd in activations.items()
        } | columns
        self._check_places(document, position)
        done = 0
        while done < n:
            rows = layout.rows_of(self._due[0])
            at, count = self.next_row - rows.start, min(n - done, rows.stop - self.next_row)
            for name, array in self._arrays.items():
                array[at : at + count] = values[name][done : done + count]
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
                f"row {at} is due, document {due[0]} at position {at - first_row[due[0]]}, but rows from document {document[0]}, position "
                f"{position[0]} on were given: begin at `next_row`, and give each row once"
            )

    def _checked(self, layer, values_nd, token_ids, document, position) -> np.ndarray:
        """The bits of a layer's rows, after refusing what may not be stored."""
        dtype = self.layout.dtype
        if str(values_nd.dtype) != f"torch.{dtype}":
            raise StoreError(
                f"activations of {values_nd.dtype} for a store of {dtype}: values are stored as they were computed"
            )
        values = to_numpy(values_nd)
        if not (finite := finite_rows(values)).all():
            bad = int(np.flatnonzero(~finite)[0])
            ends = "; float16 ends at 65,504: load the model in bfloat16 or float32"
            raise StoreError(
                f"NaN or infinity in layer {layer} at document {self.layout.documents[document[bad]].title!r}, position {position[bad]}, "
                f"token {token_ids[bad]}: not stored{ends if dtype == 'float16' else ''}"
            )
        return values

    def _write_part(self) -> None:
        part, rows = self._due[0], self.layout.rows_of(self._due[0])
        filled = {name: array[: len(rows)] for name, array in self._arrays.items()}
        with naming_full_disk(self._if_full()):
            content = part_content(self.layout, part, filled)
            write_whole(self.folder / part_name(part), content)
        self._due.pop(0)
        if self._due:
            self.next_row = self.layout.rows_of(self._due[0]).start

    def _if_full(self) -> str:
        missing = self.layout.missing(self.folder)
        rows = self.layout.n - sum(len(self.layout.rows_of(part)) for part in missing)
        return (
            f"the disk is full: {self.folder} holds {rows:,} of {self.layout.n:,} rows, which are safe; "
            "free some space and run again, it continues there"
        )

    def finish(self) -> None:
        """Write `activations.h5` and the manifest, once all parts are there.

        Raises:
            StoreError: parts are missing or damaged.
            DiskFull: there is no room; the parts are safe.
        """
        if missing := self.layout.missing(self.folder):
            raise StoreError(
                f"{self.next_row} rows were written, {self.layout.n} were announced: {len(missing)} parts are not there, "
                f"from {part_name(missing[0])} on; give all rows that are due, or run the extraction again"
            )
        with naming_full_disk(self._if_full()):
            write_manifest(self.folder, self.layout)
        for path in self.folder.glob("*.partial"):
            path.unlink(missing_ok=True)


def write_manifest(folder: Path, layout: Layout) -> None:
    """The file of virtual datasets, then the manifest that says of all files what they must be; each is written whole.

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
                    for chunk, known in enumerate(part.get(layer_name(layer, "moments"), ())):
                        first = rows.start + chunk * CHUNK_ROWS
                        end = min(first + CHUNK_ROWS, rows.stop, layout.train_rows)
                        running.merge(end - first, *known)
        except (IndexError, *UNREADABLE) as error:
            raise StoreError(f"{path} is damaged ({error}): run the extraction again") from error
        entries.append({"file": path.name, "size": path.stat().st_size, "digest": digest})
    virtual = virtual_file(layout, moments, checksums, places)
    content = {
        **layout.facts,
        "identity": layout.identity,
        "rows": layout.n,
        "documents": {
            key: [getattr(document, key) for document in layout.documents]
            for key in ("title", "split", "rows")
        },
        "parts": entries,
        "virtual": {"file": VIRTUAL, "digest": xxhash.xxh3_128_hexdigest(virtual)},
    }
    write_whole(folder / VIRTUAL, virtual)
    write_whole(folder / MANIFEST, sealed(content))


def virtual_file(layout: Layout, moments: Mapping, checksums: Mapping, places: Mapping) -> bytes:
    """An HDF5 file that shows all parts as one, by relative names; what a missing part held reads as NaN, or −1."""
    made = io.BytesIO()
    with h5py.File(made, "w", libver=LIBVER) as file:
        for name, value in layout.identity.items():
            file.attrs[name] = json.dumps(value) if isinstance(value, dict) else value
        for name, value in layout.facts.items():
            file.attrs[name] = value
        group = file.create_group("documents")
        group["title"] = [document.title for document in layout.documents]
        group["split"] = [document.split for document in layout.documents]
        group["rows"], group["first_row"] = layout.document_rows, layout.first_row
        for layer, running in moments.items():
            group = layer_name(layer, "statistics")
            file.create_dataset(f"{group}/mean", data=running.mean)
            file.create_dataset(f"{group}/variance", data=running.variance)
        for name, column in layout.columns.items():
            file.create_dataset(f"checksums/{name}", data=np.array(checksums[name], "<u8"))
            file.create_dataset(f"places/{name}", data=np.array(places[name], "<i8"))
            virtual = h5py.VirtualLayout((layout.n, *column.width), column.dtype)
            virtual.dcpl.set_obj_track_times(False)  # equal stores have equal bytes
            for index, rows in enumerate(map(layout.rows_of, range(layout.parts))):
                virtual[rows.start : rows.stop] = h5py.VirtualSource(
                    part_name(index), name, (len(rows), *column.width), column.dtype
                )
            dataset = file.create_virtual_dataset(name, virtual, fillvalue=column.fill)
            if name not in COLUMNS:
                dataset.attrs["dtype"] = layout.dtype
    return made.getvalue()
