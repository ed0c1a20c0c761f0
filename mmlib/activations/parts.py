"""The files of a store: what they hold of a row, how a part is sealed, written whole, and read chunk by chunk.

A part is HDF5 behind a line with the XXH3-128 of the rest, in the user block that HDF5 skips. It is written as a whole and renamed.
Rows are read past HDF5, from a known place into the caller's memory, and each chunk of them is checked.
"""

import io
import json
import os
import platform
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import h5py
import numpy as np
import xxhash

from mmlib.activations.tokens import as_float, moments_of
from mmlib.files import StoreError, replace_durably

FORMAT, FORMAT_VERSION = "mmlib.activations", 4
FORMER = f"{FORMAT} ".encode()  # what a store began with before version 3
MANIFEST, VIRTUAL = "manifest.json", "activations.h5"
CHUNK_ROWS = 1024  # rows under one checksum
SEAL_BYTES = 512  # before the HDF5 of a part
OPEN_PARTS = 512  # files at most, half of what a process may usually open
DTYPES = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
COLUMNS = ("token_ids", "document", "position")
LIBVER = ("v110", "v110")  # readable since HDF5 1.10, which has virtual datasets
GUARDED = {"chunks": True, "fletcher32": True}  # HDF5 checks it where it is read
UNREADABLE = (OSError, KeyError, ValueError, RuntimeError)  # what h5py raises of a damaged file


class Column(NamedTuple):
    """What a store keeps of every row: shape of a row, type, and what a missing part reads as."""

    width: tuple[int, ...]
    dtype: np.dtype
    fill: float


def columns(layers: Sequence[int], d: int, dtype: str) -> dict[str, Column]:
    """All columns of a store, by the names of their datasets."""
    nan = 0x7FC0 if dtype == "bfloat16" else np.nan
    rows = {layer_name(layer): Column((d,), DTYPES[dtype], nan) for layer in layers}
    return rows | {name: Column((), np.dtype("<i4"), -1) for name in COLUMNS}


def layer_name(layer: int, what: str = "activations") -> str:
    """Name of a layer's dataset."""
    return f"{what}/layer_{layer:02d}"


def part_name(index: int) -> str:
    """File name of a part."""
    return f"part-{index:05d}.h5"


def chunk_count(rows: int) -> int:
    """Number of checksums for so many rows."""
    return -(-rows // CHUNK_ROWS)


def sealed(content: dict) -> bytes:
    """JSON whose last entry, `digest`, is the XXH3-128 of the other entries."""
    text = json.dumps(content).encode()
    return json.dumps({**content, "digest": xxhash.xxh3_128_hexdigest(text)}, indent=1).encode()


def part_seal(digest: str) -> bytes:
    """What a part begins with."""
    return f"{FORMAT}-part {digest}\n".encode().ljust(SEAL_BYTES, b"\0")


def digest_of(file: BinaryIO) -> str:
    """XXH3-128 of the rest of a file."""
    state = xxhash.xxh3_128()
    while block := file.read(2**24):
        state.update(block)
    return state.hexdigest()


def check_part(path: Path) -> str:
    """Digest of a part, after reading every byte of it.

    Raises:
        StoreError: it is damaged or none.
    """
    with open(path, "rb") as file:
        seal, digest = file.read(SEAL_BYTES), digest_of(file)
    if seal != part_seal(digest):
        raise StoreError(f"{path} is damaged, truncated or no part of a store: extract it again")
    return digest


class PartFile(io.FileIO):
    """Closed where nobody holds it any more: a store never waits for Python to warn of it."""

    def __del__(self):
        self.close()


class CheckedRows:
    """Rows of one column through all parts. No row is given out before its chunk was checked.

    Args:
        checksums: of each chunk.
        places: where the column begins in each part's file.
        part: opens a part by its index.
    """

    def __init__(self, name, column: Column, n, part_rows, checksums, places, part: Callable):
        self.name, self.width, self.dtype, self.n = name, column.width, column.dtype, n
        self._part_chunks, self._part = part_rows // CHUNK_ROWS, part
        self._checksums, self._places = checksums.tolist(), places.tolist()
        self._row_bytes = column.dtype.itemsize * int(np.prod(column.width, dtype=int))

    def bounds(self, chunk: int) -> tuple[int, int]:
        """First and end row of a chunk."""
        return chunk * CHUNK_ROWS, min(self.n, (chunk + 1) * CHUNK_ROWS)

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(chunk, first row, end row) of the chunks that overlap rows start to stop, clipped to them."""
        for chunk in range(start // CHUNK_ROWS, chunk_count(stop)):
            first, end = self.bounds(chunk)
            yield chunk, max(start, first), min(stop, end)

    def read_chunk(self, chunk: int, into: np.ndarray | None = None) -> np.ndarray:
        """One whole chunk, (rows, …), in `into` if that is given.

        Raises:
            StoreError: it fails its checksum, or its part is missing or another.
        """
        first, end = self.bounds(chunk)
        into = np.empty((end - first, *self.width), self.dtype) if into is None else into
        into, (index, within) = into[: end - first], divmod(chunk, self._part_chunks)
        file, data = self._part(index), into.data.cast("B")
        at = self._places[index] + within * CHUNK_ROWS * self._row_bytes
        got = os.preadv(file.fileno(), [data], at)  # it and the checksum run outside Python's lock
        if got != into.nbytes or xxhash.xxh3_64_intdigest(data) != self._checksums[chunk]:
            low = within * CHUNK_ROWS
            raise StoreError(
                f"{file.name}: {self.name}, rows {low} to {low + len(into)} of this part fail their checksum: "
                "extract it again; parts that are whole are kept"
            )
        return into

    def read(self, start: int, stop: int) -> np.ndarray:
        """Consecutive rows, (stop − start, …), which must be there.

        Raises:
            StoreError: as `read_chunk`.
        """
        values = np.empty((stop - start, *self.width), self.dtype)
        for chunk, first, end in self.chunks(start, stop):
            into, low = values[first - start : end - start], chunk * CHUNK_ROWS
            if (first, end) == self.bounds(chunk):
                self.read_chunk(chunk, into)
            else:
                into[:] = self.read_chunk(chunk)[first - low : end - low]
        return values


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write to a temporary name that no other process uses, read it back, and rename it.

    Raises:
        StoreError: it reads back otherwise than it was written.
    """
    name = f"{path.name}.{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"
    partial = path.with_name(name)
    try:
        with open(partial, "w+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            if digest_of(file) != xxhash.xxh3_128_hexdigest(content):
                raise StoreError(f"{path} reads back otherwise than it was written: check the disk")
        replace_durably(partial, path)
    except FileNotFoundError:  # another process has finished the same store, and removed it
        if not path.exists():
            raise
    finally:
        partial.unlink(missing_ok=True)


def part_content(layout, part: int, rows: Mapping[str, np.ndarray]) -> memoryview:
    """The bytes of a part: a function of its rows and the layout alone.

    `/moments/layer_LL` (chunks, 2, d) are mean and variance of the training rows of each chunk, from which a store's statistics are
    merged in the order of its rows.

    Args:
        layout: see `mmlib.activations.writer.Layout`.
        rows: {name: (rows, …)} of each of the layout's columns.
    """
    made, run = io.BytesIO(), layout.rows_of(part)
    training = max(0, layout.train_rows - run.start)
    with h5py.File(made, "w", libver=LIBVER, userblock_size=SEAL_BYTES) as file:
        file.attrs["identity"], file.attrs["first_row"] = json.dumps(layout.identity), run.start
        for name, values in rows.items():
            chunks = [values[i : i + CHUNK_ROWS] for i in range(0, len(run), CHUNK_ROWS)]
            sums = [xxhash.xxh3_64_intdigest(chunk.data.cast("B")) for chunk in chunks]
            dataset = file.create_dataset(name, data=values)
            file.create_dataset(f"checksums/{name}", data=np.array(sums, "<u8"), **GUARDED)
            if name in COLUMNS:
                continue
            dataset.attrs["dtype"] = layout.dtype
            seen = [
                values[i : min(i + CHUNK_ROWS, training)]
                for i in range(0, min(training, len(run)), CHUNK_ROWS)
            ]
            if seen:
                moments = np.array([moments_of(as_float(x)) for x in seen], "<f8")
                file.create_dataset(name.replace("activations", "moments"), data=moments, **GUARDED)
    content = made.getbuffer()
    content[:SEAL_BYTES] = part_seal(xxhash.xxh3_128_hexdigest(content[SEAL_BYTES:]))
    return content


def row_numbers(rows, n: int, where: object) -> np.ndarray:
    """Rows 0 to n − 1, given as numbers in any order, as a slice or range, or as a mask: (rows,) int64.

    Raises:
        IndexError: there are no such rows, a mask has another length, or these are no row numbers.
    """
    if isinstance(rows, slice):
        return np.arange(n)[rows]
    given = np.asarray(rows)
    if given.dtype == bool and given.shape == (n,):
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise IndexError(
            f"rows of type {given.dtype} and shape {given.shape} were asked for: expected row numbers, (rows,), "
            f"or a mask of all {n} rows of {where}"
        )
    if given.size and not 0 <= given.min() <= given.max() < n:
        raise IndexError(
            f"rows {given.min()} to {given.max()} were asked for, {where} has {n}: there are no others"
        )
    return given.astype(np.int64)


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Which stored rows have finite values only, (n,). In numpy: torch would start threads beside those of the language model."""
    exponent = np.uint16(0x7F80)
    return (
        ((values & exponent) != exponent).all(1)
        if values.dtype == np.uint16
        else np.isfinite(values).all(1)
    )
