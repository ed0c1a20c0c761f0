"""The bytes of a store: where rows lie in the file, their checksums, and the seal over everything else.

An HDF5 file may begin with a user block that HDF5 ignores. Ours holds the seal, plain text that is written last:

    mmlib.activations 2
    size 907743456
    rows activations/layer_08 17408 898867200          name, first byte, number of bytes; one line for each dataset of rows
    …
    seal 5f3c…                                          XXH3-128 of the lines above and of every byte outside those rows and this block

Rows are checked chunk by chunk as they are read, against checksums that the seal covers; so no bit of the file is unguarded, and
opening a store reads its metadata only.

The HDF5 store of activations, format version 2: what is in it, and how it is read and verified.

    /activations/layer_LL    (n, d)  values exactly as the language model computed them, one dataset a layer. Attribute `dtype`:
                                     "float32", "float16", or "bfloat16" kept as its 16 bits in uint16 (no HDF5 type for it is
                                     portable): float32 value = (bits << 16).view(float32).
    /token_ids               (n,)    int32, the token at whose position the activation was read
    /document                (n,)    int32, index into /documents plus attribute `first_document` (0; in a shard, the documents before it)
    /position                (n,)    int32, index of the token in its document, from 0
    /documents/title         (D,)    UTF-8 strings
    /documents/split         (D,)    "train", "validation" or "test"
    /documents/first_row     (D,)    int64, and /documents/rows (D,): a document's rows lie side by side
    /statistics/layer_LL/mean, variance   (d,) float64, over the rows of training documents only
    /checksums/…             uint64  XXH3-64 of every 1024 rows of the dataset of that name (the last may be fewer)
    attributes of /: format, format_version, layers, d, dtype, chunk_rows, train_rows, first_document, and what the extraction was told and
        used: model, tokenizer, corpus, layer_convention, hook_point, window, batch_tokens, seed, device, packages, code, created_by
    user block (the first 16 KiB): the seal, text that covers every other byte of the file; see `layout.py`

Documents are ordered train, validation, test, so each split is one run of rows. The opening <bos> of a window is left out. Datasets
are little-endian, contiguous and uncompressed, in the file format of HDF5 1.10: they can be mapped. Checksums guard against accident,
not against malice.

Several processes write a shard each, a store of its own with attribute `shard`, "i of N". An index file then joins the shards in
their order by virtual datasets; it has no checksums of rows, and attribute `shards`, "NAME DIGEST" of each. Another reader of HDF5 shows
zeros in place of a missing shard; this one refuses.

Bare h5py reads a store of bfloat16 in five lines; of another dtype, the dataset holds the values themselves:

    with h5py.File("activations.h5") as file:
        bits = file["activations/layer_08"][:1000].astype("uint32") << 16
        activations = bits.view("float32")           # (1000, d)
        documents = file["document"][:1000]
        mean = file["statistics/layer_08/mean"][:]

and `python -m mmlib verify activations.h5` prints a summary and verifies every byte.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
from numbers import Integral
from pathlib import Path

import h5py
import numpy as np
import torch
import xxhash
from torch import Tensor
from tqdm import tqdm

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


def as_float(values: np.ndarray) -> np.ndarray:
    """Stored values as float32; bfloat16 comes as its 16 bits."""
    return (
        (values.astype(np.uint32) << 16).view(np.float32)
        if values.dtype == np.uint16
        else values.astype(np.float32)
    )


class RunningMoments:
    """Mean and variance of rows seen so far, merged in float64 (Chan, Golub and LeVeque 1979, eq. 2.1)."""

    def __init__(self, d: int):
        self.count, self.mean, self._m2 = 0, np.zeros(d), np.zeros(d)

    def update(self, rows_nd: np.ndarray) -> None:
        """Merge a block of rows, (n, d)."""
        if not len(rows_nd):
            return
        centred = rows_nd.astype(np.float64)
        mean = centred.mean(0)
        centred -= mean
        self.merge(len(rows_nd), mean, np.einsum("nd,nd->d", centred, centred) / len(rows_nd))

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


class ActivationStore:
    """One layer of a finished store, read-only. Opening checks the seal; rows are checked as they are read.

    Raises:
        StoreError: the file is damaged, truncated, unfinished, of another format version, or lacks the layer.
    """

    def __init__(self, path: Path, layer: int | None = None):
        self.path, self._open_files = Path(path), {}
        self.seal = read_seal(self.path)
        with h5py.File(self.path, "r") as file:
            self.attributes = dict(file.attrs)
            layers = [int(known) for known in self.attributes["layers"]]
            self.layer = layers[0] if layer is None else layer
            if self.layer not in layers:
                raise StoreError(
                    f"{self.path} holds layers {layers}, not layer {layer}: run 01_extract_activations for that layer"
                )
            statistics = file[f"statistics/{layer_name(self.layer)}"]
            self.mean, self.variance = statistics["mean"][:], statistics["variance"][:]
            if self.attributes["chunk_rows"] != CHUNK_ROWS:
                raise StoreError(
                    f"{self.path} has a checksum every {self.attributes['chunk_rows']} rows: this code reads {CHUNK_ROWS}"
                )
            documents = file["documents"]
            self.titles, self.splits = documents["title"].asstr()[:], documents["split"].asstr()[:]
            self.first_row, self.document_rows = documents["first_row"][:], documents["rows"][:]
        self.model, self.corpus = self.attributes["model"], self.attributes["corpus"]
        self.d, self.dtype, self.n = (
            int(self.attributes["d"]),
            self.attributes["dtype"],
            int(self.document_rows.sum()),
        )
        name = f"activations/{layer_name(self.layer)}"
        parts = self._parts(
            (name, *COLUMNS),
            self._shards() if "shards" in self.attributes else [(self.path, self.seal)],
        )
        self.activations = CheckedRows(name, parts[name], (self.d,), DTYPES[self.dtype])
        self._columns = {
            column: CheckedRows(column, parts[column], (), np.dtype("<i4")) for column in COLUMNS
        }

    def _shards(self) -> list[tuple[Path, Seal]]:
        """The files that an index joins, as it knew them."""
        shards = []
        for line in self.attributes["shards"]:
            name, _, digest = line.rpartition(" ")
            path = self.path.with_name(name)
            if not path.exists():
                raise StoreError(
                    f"{self.path} joins {self.attributes['shards'].size} files, of which {name} is missing: keep them in one folder"
                )
            shards.append((path, read_seal(path)))
            if shards[-1][1].digest != digest:
                raise StoreError(
                    f"{path} is not the file that {self.path.name} joins: extract them together"
                )
        return shards

    def _parts(
        self, names: tuple[str, ...], files: list[tuple[Path, Seal]]
    ) -> dict[str, list[Part]]:
        """Where each file has the rows of each dataset; the files stay open."""
        parts = {name: [] for name in names}
        for path, sealed in files:
            self._open_files[path] = open(path, "rb", buffering=0)
            with h5py.File(path, "r") as file:
                for name in names:
                    parts[name].append(
                        Part(
                            path,
                            self._open_files[path],
                            sealed.place(path, name),
                            len(file[name]),
                            file[f"checksums/{name}"][:],
                        )
                    )
        return parts

    @property
    def documents(self) -> str:
        """Identity of the corpus and of its split: what was trained here must not be tested where that differs."""
        listing = "\0".join(f"{title}\1{split}" for title, split in zip(self.titles, self.splits))
        return f"{self.corpus}/{hashlib.sha256(listing.encode()).hexdigest()[:12]}"

    def check_documents(self, documents: str, what: Path | str) -> None:
        """Refuse something fitted to other documents, or to another split of them.

        Raises:
            StoreError: `documents` is not this store's identity.
        """
        if documents != self.documents:
            raise StoreError(
                f"{what} was fitted to documents {documents}, the store holds {self.documents}: its test documents may have been "
                "trained on; run the notebooks again from 02"
            )

    def check_source(self, *, model: str | None = None, d: int | None = None) -> None:
        """Refuse a store of another language model or width than asked.

        Args:
            model: name or identity ("name@hash").
        Raises:
            StoreError: it is another one.
        """
        if model is not None and model != (
            self.model if "@" in model else self.model.partition("@")[0]
        ):
            raise StoreError(
                f"{self.path} holds activations of {self.model}, not of {model}: run 01_extract_activations for that model"
            )
        if d is not None and d != self.d:
            raise StoreError(f"{self.path} holds activations of width {self.d}, not {d}")

    def rows(self, split: str) -> range:
        """The run of rows that a split occupies."""
        documents = np.flatnonzero(self.splits == split)
        if not len(documents):
            raise StoreError(
                f"{self.path} has no documents in split {split!r}: expected one of {sorted(set(self.splits))}"
            )
        return range(
            int(self.first_row[documents[0]]),
            int(self.first_row[documents[-1]] + self.document_rows[documents[-1]]),
        )

    def rows_of(self, document: int | str, positions: slice = slice(None)) -> range:
        """The rows of a document, by index or title, or of consecutive positions in it.

        Raises:
            StoreError: there is no such document, or more than one of that title.
        """
        by_index = isinstance(document, Integral) and 0 <= document < len(self.titles)
        found = [document] if by_index else np.flatnonzero(self.titles == document)
        if len(found) != 1:
            raise StoreError(
                f"{self.path} has {len(found) or 'no'} documents {document!r}: expected an index below {len(self.titles)} or a title of its own"
            )
        first = int(self.first_row[found[0]])
        return range(first, first + int(self.document_rows[found[0]]))[positions]

    def read(self, rows: range | slice) -> Tensor:
        """Consecutive raw activations, (n, d), in the stored dtype.

        Raises:
            IndexError: there are no such rows, or they are not consecutive.
            StoreError: a chunk fails its checksum.
        """
        return from_numpy(self.activations.read(*self._consecutive(rows)))

    def _consecutive(self, rows: range | slice | None) -> tuple[int, int]:
        """First and end row."""
        if rows is None:
            return 0, self.n
        if rows.step not in (None, 1):
            raise IndexError(f"{rows}: expected consecutive rows; `take` gives any")
        start, stop = (
            0 if rows.start is None else rows.start,
            self.n if rows.stop is None else rows.stop,
        )
        if not 0 <= start <= stop <= self.n:
            raise IndexError(
                f"rows {start} to {stop} were asked for, {self.path} has {self.n}: there are no others"
            )
        return start, stop

    def take(self, rows: np.ndarray) -> Tensor:
        """Raw activations of chosen rows in any order, (n, d), read chunk by chunk.

        Raises:
            StoreError: a chunk fails its checksum.
            IndexError: the store has no such row.
        """
        rows = np.asarray(rows)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n:
            raise IndexError(
                f"rows {rows.min()} to {rows.max()} were asked for, {self.path} has {self.n}"
            )
        order, starts = np.argsort(rows, kind="stable"), self.activations.starts
        values = np.empty((len(rows), self.d), self.activations.dtype)
        chunks = np.searchsorted(starts, rows, "right") - 1
        for part in np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1):
            if len(part):
                chunk = int(chunks[part[0]])
                values[part] = self.activations.read_chunk(chunk)[rows[part] - starts[chunk]]
        return from_numpy(values)

    def column(self, name: str, rows: range | slice | None = None) -> np.ndarray:
        """`token_ids`, `document` or `position` of consecutive rows (all rows if None), (n,)."""
        start, stop = self._consecutive(rows)
        if name == "document":  # known from the table
            return (np.searchsorted(self.first_row, np.arange(start, stop), "right") - 1).astype(
                np.int32
            )
        return self._columns[name].read(start, stop)

    def expected(self, name: str, rows: range, found: np.ndarray) -> np.ndarray:
        """What a column must hold if it fits the table of documents; token ids need only be none below 0."""
        document = self.column("document", rows)
        if name == "document":
            return document + int(self.attributes["first_document"])
        return (
            np.arange(rows.start, rows.stop) - self.first_row[document]
            if name == "position"
            else np.maximum(found, 0)
        )

    @property
    def identities(self) -> dict:
        """What a results file says of the activations it was made from."""
        return {"language_model": self.model, "corpus": self.corpus, "layer": self.layer}

    def summary(self) -> dict[str, str]:
        """What the store holds, for a reader."""
        split_rows = ", ".join(f"{s} {len(self.rows(s)):,}" for s in dict.fromkeys(self.splits))
        size = sum(path.stat().st_size for path in {self.path, *self._open_files})
        return {
            "model": self.model,
            "corpus": self.corpus,
            "layers": str([int(x) for x in self.attributes["layers"]]),
            "shape": f"{self.n:,} × {self.d}",
            "dtype": self.dtype,
            "documents": str(len(self.titles)),
            "rows by split": split_rows,
            "size": f"{size / 1e9:.2f} GB",
        }

    def close(self) -> None:
        """Close the files."""
        for file in self._open_files.values():
            file.close()


def layers_of(path: Path) -> list[int]:
    """The layers that a file holds; it is not checked."""
    with h5py.File(path, "r") as file:
        return [int(layer) for layer in file.attrs["layers"]]


def verify(path: Path) -> list[str]:
    """Read every byte of a store, its shards included. The list of what is wrong: empty for a sound one.

    Checked: seals, all checksums, finite values, documents and positions in order, and statistics against the rows.
    """
    try:
        read_seal(path)
        stores = [ActivationStore(path, layer) for layer in layers_of(path)]
    except (StoreError, FileNotFoundError) as error:
        return [str(error)]
    problems = [
        problem
        for shard in stores[0]._open_files
        if shard != stores[0].path
        for problem in verify(shard)
    ]
    chunks, whole = stores[0].activations.starts, stores[0]
    progress = tqdm(
        total=(len(stores) + len(COLUMNS)) * (len(chunks) - 1),
        desc=f"verifying {Path(path).name}",
        unit=" chunks",
        delay=2,
    )
    for name, rows in whole._columns.items():
        problems += _chunk_problems(
            rows,
            progress,
            lambda chunk, values: (
                None
                if np.array_equal(
                    values, whole.expected(name, range(*chunks[chunk : chunk + 2]), values)
                )
                else "do not fit the table of documents"
            ),
        )
    for store in stores:
        moments, train_rows = RunningMoments(store.d), int(store.attributes["train_rows"])

        def check(chunk: int, values: np.ndarray) -> str | None:
            values = as_float(values)
            moments.update(values[: max(0, train_rows - int(chunks[chunk]))])
            return None if np.isfinite(values).all() else "have values that are not finite"

        found = _chunk_problems(store.activations, progress, check)
        if not found and not (
            np.allclose(store.variance, moments.variance, rtol=1e-9, atol=0)
            and (
                np.abs(store.mean - moments.mean)
                <= 1e-9 * (np.abs(moments.mean) + np.sqrt(moments.variance))
            ).all()
        ):
            found = [
                f"{path}: the statistics of layer {store.layer} are not those of its training rows"
            ]
        problems += found
        store.close()
    progress.close()
    return list(dict.fromkeys(problems))


def _chunk_problems(
    rows: CheckedRows, progress: tqdm, check: Callable[[int, np.ndarray], str | None]
) -> list[str]:
    """What is wrong with the chunks of one dataset: their checksums, and what `check` says of their values."""
    problems = []
    for chunk in range(len(rows.starts) - 1):
        progress.update()
        try:
            if wrong := check(chunk, rows.read_chunk(chunk)):
                problems.append(
                    f"{rows.path(chunk)}: {rows.name}, rows {rows.starts[chunk]} to {rows.starts[chunk + 1]} {wrong}"
                )
        except StoreError as error:
            problems.append(str(error))
    return problems
