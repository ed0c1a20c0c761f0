"""The bytes of a store: where rows lie in the file, their checksums, and the seal over everything else.

An HDF5 file may begin with a user block that HDF5 ignores. Ours holds the seal, plain text that is written last:

    mmlib.activations 2
    size 907743456
    rows activations/layer_08 17408 898867200          name, first byte, number of bytes; one line for each dataset of rows
    …
    seal 5f3c…                                          XXH3-128 of the lines above and of every byte outside those rows and this block

Rows are checked chunk by chunk as they are read, against checksums that the seal covers; so no bit of the file is unguarded, and
opening a store reads its metadata only.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

FORMAT, FORMAT_VERSION = "mmlib.activations", 2
BLOCK = 16384  # bytes of the user block: room for the seal of about 250 layers
CHUNK_ROWS = 1024  # rows under one checksum
DTYPES = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
COLUMNS = ("token_ids", "document", "position")


class StoreError(ValueError):
    """A store that must not be used: damaged, unfinished, or made from something else than was asked for."""


def layer_name(layer: int) -> str:
    """Name of a layer's datasets."""
    return f"layer_{layer:02d}"


def checksum(values: np.ndarray) -> int:
    """XXH3-64 of the bytes of a C-contiguous array."""
    return xxhash.xxh3_64_intdigest(values.data.cast("B"))


def chunk_count(rows: int) -> int:
    """Number of checksums for so many rows."""
    return -(-rows // CHUNK_ROWS)


@dataclass(frozen=True)
class Seal:
    """What the user block says: the size of the file, its datasets of rows (name, first byte, bytes), the digest of the rest."""

    size: int
    rows: tuple[tuple[str, int, int], ...]
    digest: str

    @classmethod
    def of(cls, path: Path, rows: tuple[tuple[str, int, int], ...]) -> "Seal":
        """The seal of a file whose datasets of rows are `rows`, from its bytes."""
        size = path.stat().st_size
        return cls(
            size,
            rows,
            digest_outside(path, [(first, n) for _, first, n in rows], _header(size, rows)),
        )

    def text(self) -> bytes:
        """The user block.

        Raises:
            StoreError: there are too many layers for it.
        """
        text = _header(self.size, self.rows) + f"seal {self.digest}\n".encode()
        if len(text) > BLOCK:
            raise StoreError(
                f"the seal of {len(self.rows)} datasets needs {len(text)} bytes, {BLOCK} are reserved: store fewer layers a file"
            )
        return text.ljust(BLOCK, b"\0")

    def place(self, path: Path, name: str) -> int:
        """First byte of a dataset of rows.

        Raises:
            StoreError: the file has none of that name.
        """
        for known, first, _ in self.rows:
            if known == name:
                return first
        raise StoreError(
            f"{path} has no rows {name!r}, only {', '.join(known for known, _, _ in self.rows)}"
        )


def _header(size: int, rows: tuple[tuple[str, int, int], ...]) -> bytes:
    lines = [
        f"{FORMAT} {FORMAT_VERSION}",
        f"size {size}",
        *(f"rows {name} {first} {n}" for name, first, n in rows),
    ]
    return ("\n".join(lines) + "\n").encode()


def digest_outside(path: Path, holes: list[tuple[int, int]], before: bytes = b"") -> str:
    """XXH3-128 of `before` and of a file's bytes outside the user block and outside `holes` (first byte, bytes)."""
    state = xxhash.xxh3_128(before)
    with open(path, "rb") as file:
        at, size = BLOCK, os.fstat(file.fileno()).st_size
        for first, length in sorted(holes) + [(size, 0)]:
            file.seek(at)
            while at < first:
                block = file.read(min(2**24, first - at))
                if not block:
                    break
                state.update(block)
                at += len(block)
            at = first + length
    return state.hexdigest()


def read_seal(path: Path) -> Seal:
    """The seal of a finished store, after checking everything that it covers.

    Raises:
        StoreError: the file is truncated, damaged, unfinished, no store, or of another format version.
    """
    with open(path, "rb") as file:
        block, size = file.read(BLOCK), os.fstat(file.fileno()).st_size
    if len(block) < BLOCK:
        raise StoreError(f"{path} is truncated to {size} bytes, or no store: extract it again")
    if not block.strip(b"\0"):
        raise StoreError(
            f"{path} was not finished: run the extraction again, it continues where this one stopped"
        )
    lines = block.rstrip(b"\0").decode("ascii", "replace").splitlines()
    name, _, version = lines[0].partition(" ")
    if name == FORMAT and version != str(FORMAT_VERSION):
        raise StoreError(
            f"{path} is {FORMAT} version {version}: this code reads version {FORMAT_VERSION}, extract it again"
        )
    if name != FORMAT:
        raise StoreError(
            f"{path} does not begin with the seal of {FORMAT} version {FORMAT_VERSION}: it is of version 1, damaged or no store; extract it again"
        )
    try:
        rows = tuple(
            (name, int(first), int(n))
            for _, name, first, n in (line.split(" ") for line in lines[2:-1])
        )
        seal = Seal(int(lines[1].removeprefix("size ")), rows, lines[-1].removeprefix("seal "))
    except (ValueError, IndexError) as error:
        raise StoreError(f"the seal of {path} is damaged: extract it again") from error
    if size != seal.size:
        raise StoreError(
            f"{path} has {size:,} bytes, its seal says {seal.size:,}: it is truncated or was added to; extract it again"
        )
    if seal.text() != block or seal != Seal.of(path, rows):
        raise StoreError(
            f"{path} is damaged or was changed after it was written (its seal is broken): extract it again"
        )
    return seal


@dataclass(frozen=True)
class Part:
    """Rows of one dataset in one file."""

    path: Path
    file: FileIO
    first_byte: int
    rows: int
    checksums: np.ndarray  # (chunks,) uint64


class CheckedRows:
    """Rows of one dataset, in one file or in several one after the other; no row is given out before its chunk was checked."""

    def __init__(self, name: str, parts: list[Part], width: tuple[int, ...], dtype: np.dtype):
        self.name, self.width, self.dtype = name, width, dtype
        self._bytes, self._parts = int(np.prod(width)) * dtype.itemsize, parts
        self._first_row = np.cumsum([0, *(part.rows for part in parts)])
        self._first_chunk = np.cumsum([0, *(chunk_count(part.rows) for part in parts)])
        firsts = [
            np.arange(0, part.rows, CHUNK_ROWS, dtype=np.int64) + row
            for part, row in zip(parts, self._first_row)
        ]
        self.starts = np.concatenate([*firsts, self._first_row[-1:]])  # (chunks + 1,) first rows

    def path(self, chunk: int) -> Path:
        """The file that holds a chunk."""
        return self._parts[int(np.searchsorted(self._first_chunk, chunk, "right")) - 1].path

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """(chunk, first row, end row) of the chunks that overlap rows start to stop, clipped to them."""
        for chunk in range(
            np.searchsorted(self.starts, start, "right") - 1,
            np.searchsorted(self.starts, stop, "left"),
        ):
            yield (
                int(chunk),
                max(start, int(self.starts[chunk])),
                min(stop, int(self.starts[chunk + 1])),
            )

    def read_chunk(self, chunk: int, into: np.ndarray | None = None) -> np.ndarray:
        """One whole chunk, (rows, …), in `into` if that is given.

        Raises:
            StoreError: it fails its checksum, or the file ends before it does.
        """
        which = int(np.searchsorted(self._first_chunk, chunk, "right")) - 1
        part, index = self._parts[which], chunk - int(self._first_chunk[which])
        rows = int(self.starts[chunk + 1] - self.starts[chunk])
        values = np.empty((rows, *self.width), self.dtype) if into is None else into[:rows]
        got = os.preadv(
            part.file.fileno(),
            [values.data.cast("B")],
            part.first_byte + index * CHUNK_ROWS * self._bytes,
        )
        if got != values.nbytes or checksum(values) != int(part.checksums[index]):
            raise StoreError(
                f"{part.path}: {self.name}, rows {self.starts[chunk]} to {self.starts[chunk + 1]} fail their checksum: "
                "the file is damaged, extract it again"
            )
        return values

    def read(self, start: int, stop: int) -> np.ndarray:
        """Consecutive rows, (stop − start, …), which must be there.

        Raises:
            StoreError: a chunk fails its checksum.
        """
        values = np.empty((stop - start, *self.width), self.dtype)
        for chunk, first, end in self.chunks(start, stop):
            if first == self.starts[chunk] and end == self.starts[chunk + 1]:
                self.read_chunk(chunk, values[first - start :])
            else:
                low = int(self.starts[chunk])
                values[first - start : end - start] = self.read_chunk(chunk)[
                    first - low : end - low
                ]
        return values


def to_numpy(values: Tensor) -> np.ndarray:
    """The same bits, bfloat16 as uint16."""
    return (
        values.view(torch.int16).numpy().view(np.uint16)
        if values.dtype == torch.bfloat16
        else values.numpy()
    )


def from_numpy(values: np.ndarray) -> Tensor:
    """The inverse of `to_numpy`."""
    return (
        torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        if values.dtype == np.uint16
        else torch.from_numpy(values)
    )
