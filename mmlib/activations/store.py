"""The store of activations: a folder of HDF5 parts, each written whole, and a manifest that is written last.

    activations/
      part-00000.h5 …    rows, about 30 MB a file; at most 2,000 files
      activations.h5     all parts as one, by HDF5's virtual datasets
      manifest.json      what decides the values, and each file's name, size and digest: the sign that the store is finished

Bare h5py reads the whole in five lines. The folder may be moved; bfloat16 is kept as its 16 bits:

    with h5py.File("activations/activations.h5") as file:
        bits = file["activations/layer_08"][:1000].astype("uint32") << 16
        activations = bits.view("float32")           # (1000, d)
        documents = file["document"][:1000]
        mean = file["statistics/layer_08/mean"][:]

`activations.h5` holds, and each part holds of its own run of rows what is marked *:

    /activations/layer_LL *  (n, d)  values exactly as the language model computed them, a dataset a layer. Attribute `dtype`:
                                     "float32", "float16", or "bfloat16", whose 16 bits are kept in uint16 (HDF5 has no portable
                                     type for it): float32 value = (bits << 16).view(float32). NaN where a part is missing
    /token_ids *             (n,)    int32, the token at whose position the activation was read; -1 where a part is missing
    /document *              (n,)    int32, index into /documents
    /position *              (n,)    int32, index of the token in its document, from 0
    /checksums/NAME *        XXH3-64 of every 1,024 rows of each of these; /places/NAME: where they begin in each part's file
    /documents/title, split  (D,)    UTF-8 strings; the split is "train", "validation" or "test"
    /documents/first_row, rows (D,)  int64; the rows of a document lie side by side
    /statistics/layer_LL/mean, variance   (d,) float64, over the rows of training documents only
    attributes of /: what the extraction was told and used

Documents are ordered train, validation, test, so each split is one run of rows. The opening <bos> of a window is left out. Datasets
are little-endian, contiguous and uncompressed, in the file format of HDF5 1.10: they can be mapped.

Every bit is guarded. A part begins with the XXH3-128 of the rest of it, in HDF5's user block; the manifest repeats that digest, beside
those of `activations.h5` and of itself. Whoever reads rows needs no digest of a whole part: the rows are found and checked by the
places and checksums in `activations.h5`. Digests guard against accident, not against malice.

Parts end at multiples of 1,024 rows of the whole store. So the chunks that are shuffled are the same whatever the parts' size, and
none lies in two files. A part's bytes depend on the plan of the extraction alone, so parts can be written in any order, by any
number of processes, again after a kill, and without a file lock. `python -m mmlib verify FOLDER` reads every byte.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from numbers import Integral
from pathlib import Path

import h5py
import numpy as np
import xxhash
from torch import Tensor
from tqdm import tqdm

from mmlib.activations.parts import (
    CHUNK_ROWS,
    COLUMNS,
    FORMAT_VERSION,
    FORMER,
    MANIFEST,
    OPEN_PARTS,
    SEAL_BYTES,
    VIRTUAL,
    CheckedRows,
    PartFile,
    check_part,
    chunk_count,
    columns,
    layer_name,
    part_seal,
    row_numbers,
    sealed,
)
from mmlib.activations.tokens import Normaliser, RunningMoments, Tokens, as_float, from_numpy
from mmlib.files import StoreError


def refuse_former(path: Path) -> None:
    """Refuse what another version wrote. Before version 3 a store was one HDF5 file, with a seal before it.

    Raises:
        StoreError: `path` is such a file, another file, or a folder with such a file or such a manifest.
    """
    manifest, advice = (
        path / MANIFEST,
        f"this code reads version {FORMAT_VERSION}, a folder of parts",
    )
    if (version := _entries(manifest).get("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise StoreError(f"{manifest} is of version {version}: {advice}. Give another folder")
    inside = [] if manifest.exists() else sorted(path.glob("*.h5"))
    for file in [path] if path.is_file() else inside:
        start, command = b"", "python -m mmlib extract"
        with suppress(OSError, KeyError), open(file, "rb") as opened:
            start = opened.readline(64).rstrip()
            if start.startswith(FORMER):
                made_by = str(h5py.File(opened, "r").attrs["created_by"])
                command = made_by if made_by.startswith("python") else command
        if start.startswith(FORMER):
            raise StoreError(
                f"{file} is a store of the former format, {start.decode()}, one file; {advice}. Make it again: {command}"
            )
    if path.is_file():
        raise StoreError(f"{path} is a file: expected the folder of a store, with {MANIFEST} in it")


def _entries(manifest: Path) -> dict:
    """What a manifest says, unchecked; nothing if it does not read."""
    with suppress(OSError, ValueError):
        found = json.loads(manifest.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def read_manifest(folder: Path) -> dict:
    """The manifest of a finished store, after checking its digest.

    Raises:
        StoreError: there is no finished store, or it is damaged or of another format version.
    """
    refuse_former(folder)
    if not (folder / MANIFEST).exists():
        raise StoreError(
            f"{folder} was not finished: run the extraction again, it continues with the parts that miss"
            if any(folder.glob("part-*.h5*"))
            else f"{folder} holds no store: expected a folder with {MANIFEST} in it"
        )
    found = _entries(folder / MANIFEST)
    content = {key: value for key, value in found.items() if key != "digest"}
    if sealed(content) != (folder / MANIFEST).read_bytes():
        raise StoreError(f"{folder / MANIFEST} is damaged or was changed: run the extraction again")
    return found


class ActivationStore:
    """One layer of a finished store, read-only. Opening checks the manifest; parts and rows are checked as they are read.

    Args:
        folder: of the store.
        layer: block index; None: the first that is stored.
    Raises:
        StoreError: the store is damaged, unfinished, of another format, or lacks a part or the layer.
    """

    def __init__(self, folder: Path, layer: int | None = None):
        self.path = Path(folder)
        self.manifest = read_manifest(self.path)
        identity, documents = self.manifest["identity"], self.manifest["documents"]
        self.titles, self.splits = (
            np.array(documents[key] + [None], dtype=object)[:-1] for key in ("title", "split")
        )
        self.document_rows = np.array(documents["rows"], dtype=np.int64)
        self.first_row = np.cumsum(self.document_rows) - self.document_rows
        told = ("format", "format_version", "created_by")
        self.attributes = {**identity, **{key: self.manifest[key] for key in told}}
        self.model, self.corpus = identity["model"], identity["corpus"]
        self.d, self.dtype, self.n = identity["d"], identity["dtype"], self.manifest["rows"]
        self.layers = identity["layers"]
        self.layer = self.layers[0] if layer is None else layer
        if self.layer not in self.layers:
            raise StoreError(
                f"{self.path} holds layers {self.layers}, not layer {layer}: run 01_extract_activations for that layer"
            )
        self._check_sizes()
        self.columns = self._open()
        self.activations = self.columns[layer_name(self.layer)]

    def __reduce__(self):
        """Opened again where it is unpickled, as in the workers of a DataLoader."""
        return type(self), (self.path, self.layer)

    def _check_sizes(self) -> None:
        """Refuse a store that lacks a part, before anything is computed with it."""
        for entry in self.manifest["parts"]:
            path = self.path / entry["file"]
            size = path.stat().st_size if path.exists() else None
            if size != entry["size"]:
                what = "is missing" if size is None else f"has {size:,} bytes"
                raise StoreError(
                    f"{path} {what}, of the {entry['size']:,} bytes that {MANIFEST} lists: keep all parts together, "
                    "or run the extraction again"
                )

    def _open(self) -> dict[str, CheckedRows]:
        """The columns of the store and of this layer, by what `activations.h5` says of them; the statistics too."""
        path, part_rows = self.path / VIRTUAL, self.manifest["identity"]["part_rows"]
        content = path.read_bytes() if path.exists() else b""
        if xxhash.xxh3_128_hexdigest(content) != self.manifest["virtual"]["digest"]:
            raise StoreError(f"{path} is damaged, missing or of another store: extract it again")
        folder, entries = self.path, self.manifest["parts"]

        @lru_cache(OPEN_PARTS)
        def part(index: int) -> PartFile:  # it does not hold the store
            file = folder / entries[index]["file"]
            try:
                opened = PartFile(file)
            except FileNotFoundError as error:
                raise StoreError(f"{file} is missing: keep all parts together") from error
            if os.pread(opened.fileno(), SEAL_BYTES, 0) != part_seal(entries[index]["digest"]):
                raise StoreError(f"{file} is not the part that {MANIFEST} lists: extract it again")
            return opened

        self.close = part.cache_clear  # closes the files; they are opened again if more is read
        with h5py.File(io.BytesIO(content), "r") as file:
            statistics = file[layer_name(self.layer, "statistics")]
            self.mean, self.variance = statistics["mean"][:], statistics["variance"][:]
            made = {}
            for name, column in columns([self.layer], self.d, self.dtype).items():
                where = file[f"checksums/{name}"][:], file[f"places/{name}"][:]
                made[name] = CheckedRows(name, column, self.n, part_rows, *where, part)
            return made

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
        """The run of rows that a split occupies.

        Raises:
            StoreError: there are no such documents; the message lists the splits.
        """
        documents = np.flatnonzero(self.splits == split)
        if not len(documents):
            raise StoreError(
                f"{self.path} has no documents in split {split!r}: expected one of {sorted(set(self.splits))}"
            )
        first, last = documents[0], documents[-1]
        stop = self.first_row[last] + self.document_rows[last]
        return range(int(self.first_row[first]), int(stop))

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
        if not isinstance(rows, (range, slice)) or rows.step not in (None, 1):
            raise IndexError(f"{rows}: expected consecutive rows; `take` gives any")
        start = 0 if rows.start is None else rows.start
        stop = self.n if rows.stop is None else rows.stop
        if not 0 <= start <= stop <= self.n:
            raise IndexError(
                f"rows {start} to {stop} were asked for, {self.path} has {self.n}: there are no others"
            )
        return start, stop

    def take(self, rows: np.ndarray) -> Tensor:
        """Raw activations of chosen rows, (rows, d), read chunk by chunk.

        Args:
            rows: row numbers in any order, or a mask of all rows of the store, (n,) bool.
        Raises:
            IndexError: the store has no such row, or a mask has another length.
            StoreError: a chunk fails its checksum.
        """
        rows = row_numbers(rows, self.n, self.path)
        order, chunks = np.argsort(rows, kind="stable"), rows // CHUNK_ROWS
        values = np.empty((len(rows), self.d), self.activations.dtype)
        for part in np.split(order, np.flatnonzero(np.diff(chunks[order])) + 1):
            if len(part):
                chunk = int(chunks[part[0]])
                values[part] = self.activations.read_chunk(chunk)[rows[part] - chunk * CHUNK_ROWS]
        return from_numpy(values)

    def column(self, name: str, rows: range | slice | None = None) -> np.ndarray:
        """`token_ids`, `document` or `position` of consecutive rows (all rows if None), (n,)."""
        start, stop = self._consecutive(rows)
        if name == "document":  # known from the table
            found = np.searchsorted(self.first_row, np.arange(start, stop), "right") - 1
            return found.astype(np.int32)
        if name not in COLUMNS:
            raise KeyError(f"no column {name!r}: expected one of {', '.join(COLUMNS)}")
        return self.columns[name].read(start, stop)

    def tokens(self, split: str, rows: np.ndarray | slice | None = None) -> Tokens:
        """The standardised activations of a split, with the document and position of each row.

        Args:
            split: "train", "validation" or "test".
            rows: of the split, counted from 0, in any order; or a mask of its rows. None: all.
        Returns:
            z (n, d) float32, standardised by the store's training statistics; document (n,), an index into `titles`; position (n,).
        Raises:
            StoreError: no such split, a damaged part, or a dimension that never varies.
            IndexError: the split has no such rows.
        """
        run = self.rows(split)
        document, position = self.column("document", run), self.column("position", run)
        if rows is None:
            return Tokens(Normaliser.of(self)(self.read(run)), document, position)
        chosen = row_numbers(rows, len(run), f"split {split!r} of {self.path}")
        z = Normaliser.of(self)(self.take(run.start + chosen))
        return Tokens(z, document[chosen], position[chosen])

    @property
    def identities(self) -> dict:
        """What a results file says of the activations it was made from."""
        return {"language_model": self.model, "corpus": self.corpus, "layer": self.layer}

    @property
    def bytes(self) -> int:
        """Size of all files."""
        names = MANIFEST, VIRTUAL, *(entry["file"] for entry in self.manifest["parts"])
        return sum((self.path / name).stat().st_size for name in names)

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

    Checked: the manifest, all digests and checksums, finite values, documents and positions in order, and statistics against the rows.
    """
    try:
        stores = [ActivationStore(folder)]
        stores += [ActivationStore(folder, layer) for layer in stores[0].layers[1:]]
    except StoreError as error:
        return [str(error)]
    first, problems = stores[0], []
    chunks = (len(stores) + len(COLUMNS)) * chunk_count(first.n)
    with tqdm(total=chunks, desc=f"verifying {Path(folder).name}", unit=" chunks", delay=2) as bar:
        for name in COLUMNS:
            problems += _problems(first, name, partial(_fits, first, name), bar)
        for store in stores:
            problems += _wrong_values(store, bar)
            store.close()
    for entry in first.manifest["parts"]:
        if not any(entry["file"] in problem for problem in problems):
            try:  # what is outside the rows
                check_part(first.path / entry["file"])
            except (StoreError, OSError) as error:
                problems.append(str(error))
    return list(dict.fromkeys(problems))


def _problems(store: ActivationStore, name: str, check: Callable, bar: tqdm) -> Iterator[str]:
    """What is wrong with the chunks of one column: their checksums, and what `check` says of their values."""
    for chunk in range(chunk_count(store.n)):
        bar.update()
        bounds = range(*store.columns[name].bounds(chunk))
        try:
            if wrong := check(bounds, store.columns[name].read_chunk(chunk)):
                yield f"{store.path}: {name}, rows {bounds.start} to {bounds.stop} {wrong}"
        except StoreError as error:
            yield str(error)


def _fits(store: ActivationStore, name: str, bounds: range, found: np.ndarray) -> str | None:
    """Whether a column holds what the table of documents says; token ids need only be none below 0."""
    document = store.column("document", bounds)
    due = {
        "document": document,
        "position": np.arange(bounds.start, bounds.stop) - store.first_row[document],
        "token_ids": np.maximum(found, 0),
    }
    return None if np.array_equal(found, due[name]) else "do not fit the table of documents"


def _wrong_values(store: ActivationStore, bar: tqdm) -> list[str]:
    """What is wrong with a layer's activations and statistics."""
    moments, train_rows = RunningMoments(store.d), store.manifest["train_rows"]

    def finite(bounds: range, values: np.ndarray) -> str | None:
        values = as_float(values)
        moments.update(values[: max(0, train_rows - bounds.start)])
        return None if np.isfinite(values).all() else "have values that are not finite"

    found = list(_problems(store, layer_name(store.layer), finite, bar))
    spread = np.abs(moments.mean) + np.sqrt(moments.variance)
    same = np.allclose(store.variance, moments.variance, rtol=1e-9, atol=0)
    same &= bool((np.abs(store.mean - moments.mean) <= 1e-9 * spread).all())
    if found or same:
        return found
    return [
        f"{store.path}: the statistics of layer {store.layer} are not those of its training rows"
    ]
