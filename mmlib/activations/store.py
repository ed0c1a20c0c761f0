"""The store of activations: a folder of HDF5 parts, each written whole, and a manifest, last.

    activations/
      part-00000.h5 …    rows, about 30 MB a file; at most 2,000 files
      activations.h5     all parts as one, by HDF5's virtual datasets
      manifest.json      what decides the values, and each file's name, size and digest: where it
                         is, the store is finished

Bare h5py reads the whole in five lines. The folder may be moved; bfloat16 is kept as its 16 bits:

    with h5py.File("activations/activations.h5") as file:
        bits = file["activations/layer_08"][:1000].astype("uint32") << 16
        activations = bits.view("float32")           # (1000, d)
        documents = file["document"][:1000]
        mean = file["statistics/layer_08/mean"][:]

`activations.h5` holds, and each part holds of its own run of rows what is marked *:

    /activations/layer_LL *  (n, d)  values exactly as the language model computed them. Attribute
                                     `dtype`: "float32", "float16", or "bfloat16", kept as uint16
                                     (HDF5 has no portable type for it): float32 value =
                                     (bits << 16).view(float32). NaN where a part is missing
    /token_ids *             (n,)    int32, the token at whose position the activation was read;
                                     -1 where a part is missing
    /document *              (n,)    int32, index into /documents
    /position *              (n,)    int32, index of the token in its document, from 0
    /checksums/NAME *        XXH3-64 of every 1,024 rows of each of these
    /places/NAME             where each of these begins in each part's file, in bytes
    /documents/title, split  (D,)    UTF-8; the split is "train", "validation" or "test"
    /documents/first_row, rows (D,)  int64; the rows of a document lie side by side
    /statistics/layer_LL/mean, variance   (d,) float64, over the rows of training documents only
    attributes of /: what the extraction was told and used

Documents are ordered train, validation, test, so each split is one run of rows. The opening <bos>
of a window is left out. Datasets are little-endian, contiguous and uncompressed, in the file format
of HDF5 1.10: they can be mapped. Parts end at multiples of 1,024 rows of the whole store, so the
chunks that are shuffled are the same whatever the parts' size, and none lies in two files.

Every bit is guarded, against accident, not against malice. A part begins with the XXH3-128 of its
rest, in HDF5's user block; the manifest repeats it, beside the digests of `activations.h5` and of
itself. Rows are found and checked by the places and checksums in `activations.h5`: whoever reads
them need not read a whole part. `python -m mmlib verify FOLDER` reads every byte.
"""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from numbers import Integral
from pathlib import Path

import h5py
import numpy as np
import xxhash
from torch import Tensor
from tqdm import tqdm

from mmlib.activations.tokens import (
    Normaliser,
    RunningMoments,
    Tokens,
    as_float,
    chunks_of,
    from_numpy,
    row_numbers,
)
from mmlib.files import StoreError, sealed

FORMAT, FORMAT_VERSION = "mmlib.activations", 4
MANIFEST, VIRTUAL = "manifest.json", "activations.h5"
CHUNK_ROWS = 1024  # rows under one checksum
SEAL_BYTES = 512  # before the HDF5 of a part
OPEN_PARTS = 512  # files at most, half of what a process may usually open
COLUMNS = ("token_ids", "document", "position")


def layer_name(layer: int, what: str = "activations") -> str:
    """Name of a layer's dataset."""
    return f"{what}/layer_{layer:02d}"


def part_seal(digest: str) -> bytes:
    """What a part begins with."""
    return f"{FORMAT}-part {digest}\n".encode().ljust(SEAL_BYTES, b"\0")


def check_part(path: Path) -> str:
    """Digest of a part, after reading every byte of it.

    Raises:
        StoreError: it is damaged or none.
    """
    with open(path, "rb") as file:
        seal = file.read(SEAL_BYTES)
        digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    if seal != part_seal(digest):
        raise StoreError(f"{path} is damaged, truncated or no part of a store: extract it again")
    return digest


def refuse_former(path: Path) -> dict:
    """What a folder's manifest says, unchecked: nothing if it does not read, or is not there.

    Raises:
        StoreError: another version wrote what is there. Before version 3 a store was one HDF5 file.
    """
    found, command = {}, "python -m mmlib extract"
    advice = f"this code reads version {FORMAT_VERSION}, a folder of parts"
    with suppress(OSError, ValueError):
        found = json.loads((path / MANIFEST).read_bytes())
        found = found if isinstance(found, dict) else {}
    version = found.get("format_version", FORMAT_VERSION)
    ours = {**found, "format_version": FORMAT_VERSION}
    digest = ours.pop("digest", "")  # of this very version: a digit of its number was damaged
    if version != FORMAT_VERSION and json.loads(sealed(ours))["digest"] != digest:
        raise StoreError(
            f"{path / MANIFEST} is of version {version}: {advice}. Give another folder"
        )
    for file in [path] if path.is_file() else [] if found else path.glob("*.h5"):
        with suppress(FileNotFoundError), open(file, "rb") as opened:  # another process replaces it
            seal = opened.readline(64).decode(errors="replace").strip()
            if not seal.startswith(f"{FORMAT} "):
                continue
            with suppress(OSError), h5py.File(opened, "r") as former:
                command = former.attrs.get("created_by", command)
            raise StoreError(
                f"{file} is a store of the former format, {seal}, one file; {advice}. "
                f"Make it again: {command}"
            )
    if path.is_file():
        raise StoreError(f"{path} is a file: expected the folder of a store, with {MANIFEST} in it")
    return found


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished store, after checking its digest.

    Raises:
        StoreError: there is no finished store, or it is damaged or of another format version.
    """
    found, manifest = refuse_former(folder), folder / MANIFEST
    if not manifest.exists():
        raise StoreError(
            f"{folder} was not finished: run the extraction again, it continues with what misses"
            if any(folder.glob("part-*.h5*"))
            else f"{folder} holds no store: expected a folder with {MANIFEST} in it"
        )
    if sealed({key: found[key] for key in found if key != "digest"}) != manifest.read_bytes():
        raise StoreError(f"{manifest} is damaged or was changed: run the extraction again")
    return found


class PartFile(io.FileIO):
    """Closed where nobody holds it any more: a store never waits for Python to warn of it."""

    def __del__(self):
        self.close()


class CheckedRows:
    """Rows of one dataset through all parts. No row is given out before its chunk was checked.

    Args:
        file: `activations.h5`, with the dataset's shape, checksums and places.
        part: opens a part by its index.
    """

    def __init__(self, file: h5py.File, name: str, part_rows: int, part: Callable):
        self.name, self.dtype, (self.n, *self.width) = name, file[name].dtype, file[name].shape
        self._part_chunks, self._part = part_rows // CHUNK_ROWS, part
        self._checksums = file[f"checksums/{name}"][:].tolist()
        self._places = file[f"places/{name}"][:].tolist()
        self._chunk_bytes = CHUNK_ROWS * self.dtype.itemsize * math.prod(self.width)

    def read_chunk(self, chunk: int, into: np.ndarray | None = None) -> np.ndarray:
        """One whole chunk, (rows, …), in the first rows of `into` if that is given.

        Raises:
            StoreError: it fails its checksum, or its part is missing or another.
        """
        rows = min(CHUNK_ROWS, self.n - chunk * CHUNK_ROWS)
        into = np.empty((rows, *self.width), self.dtype) if into is None else into[:rows]
        index, within = divmod(chunk, self._part_chunks)
        file, data = self._part(index), into.data.cast("B")
        at = self._places[index] + within * self._chunk_bytes
        got = os.preadv(file.fileno(), [data], at)  # it and the checksum run outside Python's lock
        if got != into.nbytes or xxhash.xxh3_64_intdigest(data) != self._checksums[chunk]:
            low = within * CHUNK_ROWS
            raise StoreError(
                f"{file.name}: {self.name}, rows {low} to {low + rows} of this part fail their "
                "checksum: extract it again; parts that are whole are kept"
            )
        return into

    def read(self, rows: range | np.ndarray) -> np.ndarray:
        """Rows that are there, (rows, …), as `row_numbers` gives them; errors as `read_chunk`."""
        values = np.empty((len(rows), *self.width), self.dtype)
        for chunk, places, within in chunks_of(rows, CHUNK_ROWS):
            if isinstance(rows, range) and within == slice(0, CHUNK_ROWS):
                self.read_chunk(chunk, values[places])
            else:
                values[places] = self.read_chunk(chunk)[within]
        return values


class ActivationStore:
    """One layer of a finished store, read-only. Parts and rows are checked as they are read.

    Args:
        folder: of the store; its manifest is checked at once.
        layer: block index; None: the first that is stored.
    Raises:
        StoreError: it is damaged, unfinished, of another format, or lacks a part or the layer.
    """

    def __init__(self, folder: Path, layer: int | None = None):
        self.path = Path(folder)
        self.manifest = read_manifest(self.path)
        identity, documents = self.manifest["identity"], self.manifest["documents"]
        self.titles, self.splits = (np.array(documents[key], object) for key in ("title", "split"))
        self.document_rows = np.array(documents["rows"], dtype=np.int64)
        self.first_row = np.cumsum(self.document_rows) - self.document_rows
        told = ("format", "format_version", "created_by")
        self.attributes = {**identity, **{key: self.manifest[key] for key in told}}
        self.model, self.corpus = identity["model"], identity["corpus"]
        self.d, self.dtype, self.n = identity["d"], identity["dtype"], self.manifest["rows"]
        self.model_dtype = identity.get("model_dtype", self.dtype)  # in which it computed
        self.layers = identity["layers"]
        self.layer = self.layers[0] if layer is None else layer
        if self.layer not in self.layers:
            raise StoreError(
                f"{self.path} holds layers {self.layers}, not layer {layer}: "
                "run 01_extract_activations for that layer"
            )
        self._open()
        self.activations = self.columns[layer_name(self.layer)]

    def __reduce__(self):
        """Opened again where it is unpickled, as in the workers of a DataLoader."""
        return type(self), (self.path, self.layer)

    def _open(self) -> None:
        """Columns of the store and of this layer, by what `activations.h5` says; statistics too."""
        folder, entries = self.path, self.manifest["parts"]
        for entry in entries:  # before anything is computed
            path = folder / entry["file"]
            size = path.stat().st_size if path.exists() else None
            if size != entry["size"]:
                raise StoreError(
                    f"{path} {'is missing' if size is None else f'has {size:,} bytes'}, of the "
                    f"{entry['size']:,} bytes that {MANIFEST} lists: keep all parts together, "
                    "or run the extraction again"
                )
        content = (folder / VIRTUAL).read_bytes() if (folder / VIRTUAL).exists() else b""
        if xxhash.xxh3_128_hexdigest(content) != self.manifest["virtual"]["digest"]:
            raise StoreError(
                f"{folder / VIRTUAL} is damaged, missing or of another store: extract it again"
            )

        @lru_cache(OPEN_PARTS)
        def part(index: int) -> PartFile:  # it does not hold the store
            opened = PartFile(folder / entries[index]["file"])
            if os.pread(opened.fileno(), SEAL_BYTES, 0) != part_seal(entries[index]["digest"]):
                raise StoreError(
                    f"{opened.name} is not the part that {MANIFEST} lists: extract it again"
                )
            return opened

        self.close = part.cache_clear  # closes the files; they are opened again if more is read
        with h5py.File(io.BytesIO(content), "r") as file:
            statistics = file[layer_name(self.layer, "statistics")]
            self.mean, self.variance = statistics["mean"][:], statistics["variance"][:]
            self.columns = {
                name: CheckedRows(file, name, self.attributes["part_rows"], part)
                for name in (layer_name(self.layer), *COLUMNS)
            }

    @property
    def documents(self) -> str:
        """Identity of corpus and split: what was trained here is not tested where that differs."""
        listing = "\0".join(f"{title}\1{split}" for title, split in zip(self.titles, self.splits))
        return f"{self.corpus}/{hashlib.sha256(listing.encode()).hexdigest()[:12]}"

    def check_documents(self, documents: str, what: Path | str) -> None:
        """Refuse something fitted to other documents, or to another split of them.

        Raises:
            StoreError: `documents` is not this store's identity.
        """
        if documents != self.documents:
            raise StoreError(
                f"{what} was fitted to documents {documents}, the store holds {self.documents}: "
                "its test documents may have been trained on; run the notebooks again from 02"
            )

    def check_source(self, *, model: str, d: int) -> None:
        """Refuse a store of another language model, by its identity ("name@hash"), or width.

        Raises:
            StoreError: it is another one.
        """
        if (model, d) != (self.model, self.d):
            raise StoreError(
                f"{self.path} holds activations of {self.model}, {self.d} wide, not of {model}, "
                f"{d} wide: run 01_extract_activations for that model"
            )

    def rows(self, split: str) -> range:
        """The run of rows that a split occupies.

        Raises:
            StoreError: there are no such documents; the message lists the splits.
        """
        documents = np.flatnonzero(self.splits == split)
        if not len(documents):
            raise StoreError(
                f"{self.path} has no documents in split {split!r}: "
                f"expected one of {sorted(set(self.splits))}"
            )
        return range(self.rows_of(documents[0]).start, self.rows_of(documents[-1]).stop)

    def rows_of(self, document: int | str, positions: slice = slice(None)) -> range:
        """The rows of a document, by index or title, or of consecutive positions in it.

        Raises:
            StoreError: there is no such document, or more than one of that title.
        """
        by_index = isinstance(document, Integral) and 0 <= document < len(self.titles)
        found = [document] if by_index else np.flatnonzero(self.titles == document)
        if len(found) != 1:
            raise StoreError(
                f"{self.path} has {len(found) or 'no'} documents {document!r}: "
                f"expected an index below {len(self.titles)} or a title of its own"
            )
        first = int(self.first_row[found[0]])
        return range(first, first + int(self.document_rows[found[0]]))[positions]

    def read(self, rows: range | slice | np.ndarray) -> Tensor:
        """Raw activations, (rows, d), in the stored dtype.

        Args:
            rows: consecutive ones, row numbers in any order, or a mask of all rows, (n,) bool.
        Raises:
            IndexError: there are no such rows.
            StoreError: a chunk fails its checksum.
        """
        return from_numpy(self.activations.read(row_numbers(rows, self.n, self.path)))

    def column(self, name: str, rows: range | slice | np.ndarray = slice(None)) -> np.ndarray:
        """`token_ids`, `document` or `position` of rows as in `read`, (rows,) int32."""
        if name not in COLUMNS:
            raise KeyError(f"no column {name!r}: expected one of {', '.join(COLUMNS)}")
        return self.columns[name].read(row_numbers(rows, self.n, self.path))

    def tokens(self, split: str, rows: np.ndarray | range | slice = slice(None)) -> Tokens:
        """The standardised activations of a split, with the document and position of each row.

        Args:
            split: "train", "validation" or "test".
            rows: of the split, counted from 0, in any order; or a mask of its rows.
        Returns:
            z (n, d) float32, standardised by the store's training statistics; document (n,), an
            index into `titles`; position (n,).
        Raises:
            StoreError: no such split, a damaged part, or a dimension that never varies.
            IndexError: the split has no such rows.
        """
        run = self.rows(split)
        if isinstance(rows, slice):
            rows = run[rows]
        else:
            where = f"split {split!r} of {self.path}"
            rows = run.start + np.asarray(row_numbers(rows, len(run), where))
        z = Normaliser.of(self)(self.read(rows))
        return Tokens(z, self.column("document", rows), self.column("position", rows))

    @property
    def identities(self) -> dict:
        """What a results file says of the activations it was made from."""
        return {"language_model": self.model, "corpus": self.corpus, "layer": self.layer}

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.path.iterdir())

    def summary(self) -> dict[str, str]:
        """What the store holds, for a reader."""
        split_rows = ", ".join(f"{s} {len(self.rows(s)):,}" for s in dict.fromkeys(self.splits))
        return {
            "model": self.model,
            "corpus": self.corpus,
            "layers": str(self.layers),
            "shape": f"{self.n:,} × {self.d}",
            "dtype": self.dtype,
            "documents": str(len(self.titles)),
            "rows by split": split_rows,
            "size": f"{self.bytes / 1e9:.2f} GB in {len(self.manifest['parts'])} parts",
        }


def verify(folder: Path) -> list[str]:
    """Read every byte of a store. The list of what is wrong: empty for a sound one.

    Checked: the manifest and all digests; where these are right also each checksum, finite values,
    documents and positions in order, and the statistics against the rows.
    """
    problems = []
    try:
        store = ActivationStore(folder)
        for entry in tqdm(store.manifest["parts"], f"verifying {store.path.name}", delay=2):
            try:
                check_part(store.path / entry["file"])
            except StoreError as error:
                problems.append(str(error))
        for layer in [] if problems else store.layers:
            problems += _contradictions(ActivationStore(folder, layer))
    except (StoreError, OSError) as error:
        problems.append(str(error))
    return list(dict.fromkeys(problems))


def _contradictions(store: ActivationStore) -> Iterator[str]:
    """What is wrong with columns, values and statistics although their bytes are right."""
    moments, train_rows = RunningMoments(store.d), store.manifest["train_rows"]
    starts = range(0, store.n, CHUNK_ROWS)
    for start in tqdm(starts, f"layer {store.layer}", unit=" chunks", delay=2):
        rows = range(start, min(store.n, start + CHUNK_ROWS))
        where = f"{store.path}: {{}}, rows {start} to {rows.stop} {{}}"
        document = np.searchsorted(store.first_row, rows, "right") - 1
        due = {"document": document, "position": np.array(rows) - store.first_row[document]}
        due["token_ids"] = np.maximum(0, store.column("token_ids", rows))
        for name in COLUMNS:
            if not np.array_equal(store.column(name, rows), due[name]):
                yield where.format(name, "do not fit the table of documents")
        values = as_float(store.activations.read(rows))
        if not np.isfinite(values).all():
            yield where.format(store.activations.name, "have values that are not finite")
        moments.update(values[: max(0, train_rows - start)])
    spread = np.abs(moments.mean) + np.sqrt(moments.variance)
    same = np.allclose(store.variance, moments.variance, rtol=1e-9, atol=0)
    if not same or (np.abs(store.mean - moments.mean) > 1e-9 * spread).any():
        yield f"{store.path}: layer {store.layer} has other statistics than its training rows"
