"""The HDF5 store of activations, format version 2: what is in it, and how it is read and verified.

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

and `python -m mmlib.store activations.h5` prints a summary and verifies every byte.
"""

import hashlib
import sys
from collections.abc import Callable
from numbers import Integral
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor
from tqdm import tqdm

from mmlib.layout import (
    CHUNK_ROWS,
    COLUMNS,
    DTYPES,
    CheckedRows,
    Part,
    Seal,
    StoreError,
    from_numpy,
    layer_name,
    read_seal,
)
from mmlib.moments import RunningMoments
from mmlib.writer import as_float


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


def main() -> None:
    """Print the summary of a store and verify it; ends with status 1 if anything is wrong."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mmlib.store PATH")
    problems = verify(Path(sys.argv[1]))
    if not problems:
        store = ActivationStore(Path(sys.argv[1]))
        for key, value in {
            **store.summary(),
            **{
                k: v
                for k, v in store.attributes.items()
                if k in ("window", "hook_point", "packages", "created_by")
            },
        }.items():
            print(f"{key:>15}: {value}")
        print(
            f"{'verified':>15}: seal, checksums, finite values, documents and positions, statistics"
        )
    else:
        sys.exit(f"{len(problems)} problems:\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
