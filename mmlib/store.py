"""The HDF5 store of activations, format version 2: what is in it, and how it is read and verified.

    /activations/layer_LL    (n, d)  values exactly as the language model computed them, one dataset a layer. Attribute `dtype`:
                                     "float32", "float16", or "bfloat16" kept as its 16 bits in uint16 (no HDF5 type for it is
                                     portable): float32 value = (bits << 16).view(float32).
    /token_ids               (n,)    int32, the token at whose position the activation was read
    /document                (n,)    int32, index into /documents
    /position                (n,)    int32, index of the token in its document, from 0
    /documents/title         (D,)    UTF-8 strings
    /documents/split         (D,)    "train", "validation" or "test"
    /documents/first_row     (D,)    int64, and /documents/rows (D,): a document's rows lie side by side
    /statistics/layer_LL/mean, variance   (d,) float64, over the rows of training documents only
    /checksums/…             uint64  XXH3-64 of every 1024 rows of the dataset of that name
    attributes of /: format, format_version, layers, d, dtype, chunk_rows, train_rows, and what the extraction was told and used: model,
        tokenizer, corpus, layer_convention, hook_point, window, batch_tokens, seed, packages, code, created_by
    user block (the first 16 KiB): the seal, text that covers every other byte of the file; see `layout.py`

Documents are ordered train, validation, test, so each split is one run of rows. The opening <bos> of a window is left out.
Datasets are contiguous and uncompressed: any HDF5 reader since 1.10 can read or map them. Several processes write a shard each, a
store of its own; an index file then joins the shards in their order by virtual datasets, with attribute `shards`.

Bare h5py reads it in five lines:

    with h5py.File("activations.h5") as file:
        bits = file["activations/layer_08"][:1000].astype("uint32") << 16
        activations = bits.view("float32")           # (1000, d)
        documents = file["document"][:1000]
        mean = file["statistics/layer_08/mean"][:]

and `python -m mmlib.store activations.h5` prints a summary and verifies every byte.
"""

import hashlib
import os
import sys
from pathlib import Path

import h5py
import numpy as np
from torch import Tensor
from tqdm import tqdm

from mmlib.layout import COLUMNS, DTYPES, CheckedRows, Part, Seal, StoreError, from_numpy, layer_name, read_seal
from mmlib.writer import RunningMoments, as_float


class ActivationStore:
    """One layer of a finished store, read-only. Opening checks the seal; rows are checked as they are read.

    Raises:
        StoreError: the file is damaged, truncated, unfinished, of another format version, or lacks the layer.
    """

    def __init__(self, path: Path, layer: int | None = None):
        self.path, self._open_files = Path(path), []
        self.seal = read_seal(self.path)
        with h5py.File(self.path, "r") as file:
            self.attributes = dict(file.attrs)
            layers = [int(known) for known in self.attributes["layers"]]
            self.layer = layers[0] if layer is None else layer
            if self.layer not in layers:
                raise StoreError(f"{self.path} holds layers {layers}, not layer {layer}: run 01_extract_activations for that layer")
            statistics = file[f"statistics/{layer_name(self.layer)}"]
            self.mean, self.variance = statistics["mean"][:], statistics["variance"][:]
            documents = file["documents"]
            self.titles, self.splits = documents["title"].asstr()[:], documents["split"].asstr()[:]
            self.first_row, self.document_rows = documents["first_row"][:], documents["rows"][:]
        self.model, self.corpus = self.attributes["model"], self.attributes["corpus"]
        self.d, self.dtype, self.n = int(self.attributes["d"]), self.attributes["dtype"], int(self.document_rows.sum())
        names = f"activations/{layer_name(self.layer)}", *COLUMNS
        shapes = ((self.d,), DTYPES[self.dtype]), *(((), np.dtype("<i4")) for _ in COLUMNS)
        files = self._shards() if "shards" in self.attributes else [(self.path, self.seal)]
        self.activations, *columns = (CheckedRows(name, [self._part(*file, name) for file in files], *shape) for name, shape in zip(names, shapes))
        self._columns = dict(zip(COLUMNS, columns))

    def _shards(self) -> list[tuple[Path, Seal]]:
        """The files that an index joins, as it knew them."""
        shards = []
        for line in self.attributes["shards"]:
            name, _, digest = line.rpartition(" ")
            path = self.path.with_name(name)
            if not path.exists():
                raise StoreError(f"{self.path} joins {self.attributes['shards'].size} files, of which {name} is missing: keep them in one folder")
            shards.append((path, read_seal(path)))
            if shards[-1][1].digest != digest:
                raise StoreError(f"{path} is not the file that {self.path.name} joins: extract them together")
        return shards

    def _part(self, path: Path, sealed: Seal, name: str) -> Part:
        first, length = next((first, length) for known, first, length in sealed.rows if known == name)
        with h5py.File(path, "r") as file:
            rows, checksums = file[name].shape[0], file[f"checksums/{name}"][:]
        known = [part for part in self._open_files if part[0] == path]
        if not known:
            self._open_files.append((path, os.open(path, os.O_RDONLY)))
        return Part(path, dict(self._open_files)[path], first, rows, checksums)

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
            raise StoreError(f"{what} was fitted to documents {documents}, the store holds {self.documents}: its test documents may have been "
                             "trained on; run the notebooks again from 02")

    def check_source(self, *, model: str | None = None, d: int | None = None) -> None:
        """Refuse a store of another language model or width than asked.

        Args:
            model: name or identity ("name@hash").
        Raises:
            StoreError: it is another one.
        """
        if model is not None and model != (self.model if "@" in model else self.model.partition("@")[0]):
            raise StoreError(f"{self.path} holds activations of {self.model}, not of {model}: run 01_extract_activations for that model")
        if d is not None and d != self.d:
            raise StoreError(f"{self.path} holds activations of width {self.d}, not {d}")

    def rows(self, split: str) -> range:
        """The run of rows that a split occupies."""
        documents = np.flatnonzero(self.splits == split)
        if not len(documents):
            raise StoreError(f"{self.path} has no documents in split {split!r}: expected one of {sorted(set(self.splits))}")
        return range(int(self.first_row[documents[0]]), int(self.first_row[documents[-1]] + self.document_rows[documents[-1]]))

    def rows_of(self, document: int | str, positions: slice = slice(None)) -> range:
        """The rows of a document, by index or title, or of consecutive positions in it.

        Raises:
            StoreError: there is no such document, or more than one of that title.
        """
        found = [document] if isinstance(document, int) and 0 <= document < len(self.titles) else np.flatnonzero(self.titles == document)
        if len(found) != 1:
            raise StoreError(f"{self.path} has {len(found) or 'no'} documents {document!r}: expected an index below {len(self.titles)} or a title of its own")
        first = int(self.first_row[found[0]])
        return range(first, first + int(self.document_rows[found[0]]))[positions]

    def read(self, rows: range | slice) -> Tensor:
        """Consecutive raw activations, (n, d), in the stored dtype.

        Raises:
            StoreError: a chunk fails its checksum.
        """
        return from_numpy(self.activations.read(rows.start, rows.stop))

    def take(self, rows: np.ndarray) -> Tensor:
        """Raw activations of chosen rows in any order, (n, d), read chunk by chunk.

        Raises:
            StoreError: a chunk fails its checksum.
            IndexError: the store has no such row.
        """
        rows = np.asarray(rows)
        if len(rows) and not 0 <= rows.min() <= rows.max() < self.n:
            raise IndexError(f"rows {rows.min()} to {rows.max()} were asked for, {self.path} has {self.n}")
        order, starts = np.argsort(rows, kind="stable"), self.activations.starts
        values = np.empty((len(rows), self.d), self.activations.dtype)
        chunks = np.searchsorted(starts, rows[order], "right") - 1
        for part in np.split(order, np.flatnonzero(np.diff(chunks)) + 1):
            if len(part):
                chunk = int(np.searchsorted(starts, rows[part[0]], "right")) - 1
                values[part] = self.activations.read_chunk(chunk)[rows[part] - starts[chunk]]
        return from_numpy(values)

    def column(self, name: str, rows: range | slice | None = None) -> np.ndarray:
        """`token_ids`, `document` or `position` of consecutive rows (all rows if None), (n,)."""
        rows = range(self.n) if rows is None else rows
        if name == "document":  # known from the table; a shard counts its documents from 0
            return (np.searchsorted(self.first_row, np.arange(rows.start, rows.stop), "right") - 1).astype(np.int32)
        return self._columns[name].read(rows.start, rows.stop)

    def expected(self, name: str, rows: range, found: np.ndarray) -> np.ndarray:
        """What a column must hold if it fits the table of documents; token ids need only be none below 0."""
        document = self.column("document", rows)
        if name == "document":
            return document if "shards" not in self.attributes else found  # verified shard by shard
        return np.arange(rows.start, rows.stop) - self.first_row[document] if name == "position" else np.maximum(found, 0)

    @property
    def identities(self) -> dict:
        """What a results file says of the activations it was made from."""
        return {"language_model": self.model, "corpus": self.corpus, "layer": self.layer}

    def summary(self) -> dict[str, str]:
        """What the store holds, for a reader."""
        split_rows = ", ".join(f"{s} {len(self.rows(s)):,}" for s in dict.fromkeys(self.splits))
        size = sum(path.stat().st_size for path in {self.path, *(path for path, _ in self._open_files)})
        return {"model": self.model, "corpus": self.corpus, "layers": str([int(x) for x in self.attributes["layers"]]),
                "shape": f"{self.n:,} × {self.d}", "dtype": self.dtype, "documents": str(len(self.titles)),
                "rows by split": split_rows, "size": f"{size / 1e9:.2f} GB"}

    def close(self) -> None:
        """Close the files."""
        for _, file in self._open_files:
            os.close(file)
        self._open_files = []


def verify(path: Path) -> list[str]:
    """Read every byte of a store, its shards included. The list of what is wrong: empty for a sound one.

    Checked: seals, all checksums, finite values, documents and positions in order, and statistics against the rows.
    """
    try:
        stores = [ActivationStore(path, int(layer)) for layer in ActivationStore(path).attributes["layers"]]
    except (StoreError, FileNotFoundError) as error:
        return [str(error)]
    problems = [problem for shard, _ in stores[0]._open_files if shard != stores[0].path for problem in verify(shard)]
    checks = [(name, rows, chunk) for store in stores for name, rows in ((f"layer {store.layer}", store.activations),
              *(store._columns.items() if store is stores[0] else ())) for chunk in range(len(rows.starts) - 1)]
    moments = {f"layer {store.layer}": RunningMoments(store.d) for store in stores}
    for name, rows, chunk in tqdm(checks, desc=f"verifying {Path(path).name}", unit=" chunks", delay=2):
        start, stop = (int(x) for x in rows.starts[chunk : chunk + 2])
        try:
            values = rows.read_chunk(chunk)
        except StoreError as error:
            problems.append(str(error))
            continue
        if name in moments:
            values = as_float(values)
            moments[name].update(values[: max(0, int(stores[0].attributes["train_rows"]) - start)])
            if not np.isfinite(values).all():
                problems.append(f"{path}: {name}, rows {start} to {stop} have values that are not finite")
        elif not np.array_equal(values, stores[0].expected(name, range(start, stop), values)):
            problems.append(f"{path}: {name}, rows {start} to {stop} do not fit the table of documents")
    problems += [f"{path}: the statistics of layer {store.layer} are not those of its training rows" for store in stores
                 if not problems and not all(np.allclose(getattr(store, s), getattr(moments[f"layer {store.layer}"], s), rtol=1e-9) for s in ("mean", "variance"))]
    for store in stores:
        store.close()
    return list(dict.fromkeys(problems))


def main() -> None:
    """Print the summary of a store and verify it; ends with status 1 if anything is wrong."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mmlib.store PATH")
    problems = verify(Path(sys.argv[1]))
    if not problems:
        store = ActivationStore(Path(sys.argv[1]))
        for key, value in {**store.summary(), **{k: v for k, v in store.attributes.items() if k in ("window", "hook_point", "packages", "created_by")}}.items():
            print(f"{key:>15}: {value}")
        print(f"{'verified':>15}: seal, checksums, finite values, documents and positions, statistics")
    else:
        sys.exit(f"{len(problems)} problems:\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
