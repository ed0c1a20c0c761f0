"""One part of a store: an HDF5 file whose every byte is guarded, and the bits of the rows in it.

An HDF5 file may begin with a user block that HDF5 ignores. In a part it holds one line of JSON: the identity of the store, the places
of the datasets in the file, and a digest (XXH3-128) of the line itself and of every byte outside the rows. Among those bytes are the
checksums of the rows: `/checksums/NAME`, the XXH3-64 of every 1,024 rows. So no bit is unguarded, and a part can be opened without
reading its rows: they are checked as they are read. `/moments/layer_LL` (chunks, 2, d) holds mean and variance of the training rows
of each 1,024, from which a store's statistics are merged in the order of its rows.
"""

import io
import json
import os
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np
import torch
import xxhash
from torch import Tensor

from mmlib.files import StoreError, replace_durably

FORMAT, FORMAT_VERSION = "mmlib.activations", 3

MANIFEST, VIRTUAL = "manifest.json", "activations.h5"

CHUNK_ROWS = 1024  # rows under one checksum

DTYPES = {"bfloat16": np.dtype("<u2"), "float32": np.dtype("<f4"), "float16": np.dtype("<f2")}

COLUMNS = ("token_ids", "document", "position")

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError)


LIBVER = ("v110", "v110")  # readable since HDF5 1.10, which has virtual datasets


def part_name(index: int) -> str:
    """File name of a part."""
    return f"part-{index:05d}.h5"


def layer_name(layer: int) -> str:
    """Name of a layer's datasets."""
    return f"layer_{layer:02d}"


def chunk_count(rows: int) -> int:
    """Number of checksums for so many rows."""
    return -(-rows // CHUNK_ROWS)


def seal(content: dict, body: Iterable[bytes] = (), indent: int | None = None) -> bytes:
    """JSON whose last entry, `digest`, is the XXH3-128 of the other entries and of `body`."""

    def text(entries: dict) -> bytes:
        return (json.dumps(entries, ensure_ascii=False, indent=indent) + "\n").encode()

    state = xxhash.xxh3_128(text(content))
    for block in body:
        state.update(block)
    return text({**content, "digest": state.hexdigest()})


def outside(file, start: int, holes: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes of a file, or of its content in memory, from `start` on, but for the holes (first byte, bytes)."""
    in_memory = isinstance(file, memoryview)
    at, size = start, len(file) if in_memory else os.fstat(file.fileno()).st_size
    for first, length in sorted(map(tuple, holes)) + [(size, 0)]:
        while at < min(first, size):
            end = min(first, size, at + 2**24)
            yield file[at:end] if in_memory else os.pread(file.fileno(), end - at, at)
            at = end
        at = first + length


def is_rows(name: str) -> bool:
    """Whether a dataset of a part has checksums of its own."""
    return name.startswith("activations/") or name in COLUMNS


class Part:
    """One part, open to be read. Its header and all bytes outside its rows are checked; rows are checked as they are read.

    Raises:
        StoreError: the file is missing, damaged, truncated or no part; the message names it.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        try:
            self.file = open(path, "rb", buffering=0)
        except FileNotFoundError as error:
            raise StoreError(f"{path} is missing: keep all parts of a store together") from error
        try:
            start = os.pread(self.file.fileno(), 2**16, 0)
            if b"\n" not in start:  # of very many layers
                start = os.pread(self.file.fileno(), 2**22, 0)
            line = start.partition(b"\n")[0] + b"\n"
            self.header = json.loads(line)
            self.places = {name: tuple(place) for name, place in self.header["places"].items()}
            content = {key: value for key, value in self.header.items() if key != "digest"}
            holes = [place for name, place in self.places.items() if is_rows(name)]
            if seal(content, outside(self.file, len(line), holes)) != line:
                raise ValueError("its digest is another")
            if self.header["size"] != os.fstat(self.file.fileno()).st_size:
                raise ValueError("its size is another")
        except MALFORMED as error:
            raise StoreError(
                f"{path} is damaged, truncated or no part of a store ({error}): extract it again, "
                "parts that are whole are kept"
            ) from error
        self.identity, self.rows = self.header["identity"], self.header["rows"]
        self.checksums = {
            name: self.array(f"checksums/{name}", "<u8") for name in self.places if is_rows(name)
        }

    def __del__(self):
        if hasattr(self, "file"):
            self.file.close()

    def array(self, name: str, dtype: str) -> np.ndarray:
        """A dataset outside the rows, flat; empty if there is none."""
        first, size = self.places.get(name, (0, 0))
        return np.frombuffer(os.pread(self.file.fileno(), size, first), dtype)

    def read_chunk(self, name: str, chunk: int, into: np.ndarray) -> None:
        """Fill `into` with a chunk's rows.

        Raises:
            StoreError: they fail their checksum, or the file ends before they do.
        """
        first = self.places[name][0] + chunk * CHUNK_ROWS * (into.nbytes // len(into))
        got = os.preadv(self.file.fileno(), [into.data.cast("B")], first)
        if got != into.nbytes or xxhash.xxh3_64_intdigest(into.data.cast("B")) != int(
            self.checksums[name][chunk]
        ):
            low = chunk * CHUNK_ROWS
            raise StoreError(
                f"{self.path}: {name}, rows {low} to {low + len(into)} of this part fail their checksum: "
                "the file is damaged, extract it again; parts that are whole are kept"
            )

    def check(self) -> None:
        """Read all rows.

        Raises:
            StoreError: some fail their checksum.
        """
        for name, checksums in self.checksums.items():
            row_bytes = self.places[name][1] // self.rows
            for chunk in range(len(checksums)):
                rows = min(CHUNK_ROWS, self.rows - chunk * CHUNK_ROWS)
                self.read_chunk(name, chunk, np.empty((rows, row_bytes), np.uint8))


class CheckedRows:
    """Rows of one dataset through all parts. No row is given out before its chunk was checked.

    Args:
        width: shape of a row, (d,) or ().
        part: opens a part by its index.
    """

    def __init__(self, name, width, dtype, n, part_rows, part: Callable[[int], Part]):
        self.name, self.width, self.dtype, self.n = name, width, dtype, n
        self._part_chunks, self._part = part_rows // CHUNK_ROWS, part

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
            StoreError: it fails its checksum, or its part is missing or damaged.
        """
        first, end = self.bounds(chunk)
        if into is None:
            into = np.empty((end - first, *self.width), self.dtype)
        part, index = divmod(chunk, self._part_chunks)
        self._part(part).read_chunk(self.name, index, into[: end - first])
        return into[: end - first]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Consecutive rows, (stop − start, …), which must be there.

        Raises:
            StoreError: as `read_chunk`.
        """
        values = np.empty((stop - start, *self.width), self.dtype)
        for chunk, first, end in self.chunks(start, stop):
            low = chunk * CHUNK_ROWS
            if (first, end) == self.bounds(chunk):
                self.read_chunk(chunk, values[first - start :])
            else:
                part = self.read_chunk(chunk)[first - low : end - low]
                values[first - start : end - start] = part
        return values


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


def to_numpy(values: Tensor) -> np.ndarray:
    """The same bits, bfloat16 as uint16."""
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()


def from_numpy(values: np.ndarray) -> Tensor:
    """The inverse of `to_numpy`."""
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def as_float(values: np.ndarray) -> np.ndarray:
    """Stored values as float32; bfloat16 comes as its 16 bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def moments_of(rows_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population variance of one or more rows, (d,) each, in float64."""
    centred = rows_nd.astype(np.float64)
    mean = centred.mean(0)
    centred -= mean
    return mean, np.einsum("nd,nd->d", centred, centred) / len(rows_nd)


class RunningMoments:
    """Mean and variance of rows seen so far, merged in float64 (Chan, Golub and LeVeque 1979, eq. 2.1)."""

    def __init__(self, d: int):
        self.count, self.mean, self._m2 = 0, np.zeros(d), np.zeros(d)

    def update(self, rows_nd: np.ndarray) -> None:
        """Merge a block of rows, (n, d)."""
        if len(rows_nd):
            self.merge(len(rows_nd), *moments_of(rows_nd))

    def merge(self, n: int, mean: np.ndarray, variance: np.ndarray) -> None:
        """Merge n rows of known mean and population variance, (d,) each."""
        delta, total = mean - self.mean, self.count + n
        self._m2 += variance * n + delta**2 * self.count * n / max(1, total)
        self.mean += delta * n / max(1, total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Population variance, (d,); 0 before any row."""
        return self._m2 / max(1, self.count)


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
            found = xxhash.xxh3_128()
            for block in outside(file, 0, ()):
                found.update(block)
            if found.digest() != xxhash.xxh3_128_digest(content):
                raise StoreError(f"{path} reads back otherwise than it was written: check the disk")
        replace_durably(partial, path)
    except FileNotFoundError:  # another process has finished the same store, and removed it
        if not path.exists():
            raise
    finally:
        partial.unlink(missing_ok=True)


def part_content(layout, part: int, rows: Mapping[str, np.ndarray]) -> memoryview:
    """The bytes of a part: a function of its rows and the layout alone.

    Args:
        layout: see `mmlib.activations.writer.Layout`.
        rows: {name: (rows, …)} of each of `layout.datasets()`.
    """
    first, n = layout.rows_of(part).start, len(layout.rows_of(part))
    starts, arrays = range(0, n, CHUNK_ROWS), dict(rows)
    training = min(n, max(0, layout.train_rows - first))
    for name, values in rows.items():
        chunks = [values[start : start + CHUNK_ROWS].data.cast("B") for start in starts]
        sums = [xxhash.xxh3_64_intdigest(chunk) for chunk in chunks]
        arrays[f"checksums/{name}"] = np.array(sums, "<u8")
    for layer in layout.layers if training else ():
        values = rows[f"activations/{layer_name(layer)}"][:training]
        moments = [moments_of(as_float(values[i : i + CHUNK_ROWS])) for i in starts if i < training]
        arrays[f"moments/{layer_name(layer)}"] = np.array(moments, "<f8")
    header = {
        "format": f"{FORMAT} part",
        "format_version": FORMAT_VERSION,
        "identity": layout.identity,
        "part": part,
        "first_row": first,
        "rows": n,
    }
    longest = seal({**header, "size": 10**15, "places": {name: (10**15,) * 2 for name in arrays}})
    made, places = io.BytesIO(), {}
    block = max(512, 1 << len(longest).bit_length())
    with h5py.File(made, "w", libver=LIBVER, userblock_size=block) as file:
        for name, values in arrays.items():
            dataset = file.create_dataset(name, data=values)
            places[name] = dataset.id.get_offset(), dataset.id.get_storage_size()
            if name.startswith("activations/"):
                dataset.attrs["dtype"] = layout.dtype
    content = made.getbuffer()
    header |= {"size": len(content), "places": places}
    holes = [place for name, place in places.items() if is_rows(name)]
    line = seal(header, outside(content, len(seal(header)), holes))
    content[: len(line)] = line
    return content
