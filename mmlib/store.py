"""The HDF5 store of activations, format version 1.

    /activations/layer_LL    (n, d)  values exactly as the language model computed them, one dataset a layer, in checksummed
                                     chunks. Attribute `dtype`: "float32", or "bfloat16" kept as its 16 bits in uint16 (no HDF5
                                     type for it is portable): float32 value = (bits << 16).view(float32).
    /token_ids               (n,)    int32, the token at whose position the activation was read
    /document                (n,)    int32, index into /documents
    /position                (n,)    int32, index of the token in its document, from 0
    /documents/title         (D,)    UTF-8 strings
    /documents/split         (D,)    "train", "validation" or "test"
    /documents/first_row     (D,)    int64, and /documents/rows (D,): a document's rows lie side by side
    /statistics/layer_LL/mean, variance   (d,) float64, over the rows of training documents only
    attributes of /: format, format_version, complete, and what the writer was told (model, corpus, layers, dtype, window, …)

Documents are ordered train, validation, test, so each split is one run of rows. The opening <bos> of a window is left out.

Bare h5py reads it in five lines:

    with h5py.File("activations.h5") as file:
        bits = file["activations/layer_08"][:1000].astype("uint32") << 16
        activations = bits.view("float32")           # (1000, d)
        documents = file["document"][:1000]
        mean = file["statistics/layer_08/mean"][:]
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

FORMAT, FORMAT_VERSION = "mmlib.activations", 1
CHUNK_ROWS = 1024
DTYPES = {"bfloat16": np.uint16, "float32": np.float32}


class StoreError(ValueError):
    """A store that must not be used: damaged, unfinished, or made from something else than was asked for."""


def layer_name(layer: int) -> str:
    """Name of a layer's datasets."""
    return f"layer_{layer:02d}"


class RunningMoments:
    """Mean and variance of rows seen so far, merged in float64 (Chan, Golub and LeVeque 1979, eq. 2.1)."""

    def __init__(self, d: int):
        self.count, self.mean, self._m2 = 0, np.zeros(d), np.zeros(d)

    def update(self, rows_nd: np.ndarray) -> None:
        """Merge a block of rows, (n, d)."""
        rows_nd = rows_nd.astype(np.float64)
        n, mean = len(rows_nd), rows_nd.mean(0)
        delta, total = mean - self.mean, self.count + len(rows_nd)
        self._m2 += ((rows_nd - mean) ** 2).sum(0) + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Population variance, (d,)."""
        return self._m2 / self.count


@dataclass(frozen=True)
class DocumentRows:
    """A document's place in the store."""

    title: str
    split: str
    rows: int


class StoreWriter:
    """Writes rows in order. Used as a context manager; unless `finish` is called the file stays marked incomplete."""

    def __init__(self, path: Path, documents: list[DocumentRows], layers: list[int], d: int, dtype: str, attributes: Mapping):
        self._file = h5py.File(path, "w")
        self._documents, self._dtype, self._next = documents, dtype, 0
        rows = np.array([document.rows for document in documents], dtype=np.int64)
        self._train_rows, self.n = int(sum(r.rows for r in documents if r.split == "train")), int(rows.sum())
        self._file.attrs.update({**attributes, "format": FORMAT, "format_version": FORMAT_VERSION, "complete": False,
                                 "layers": layers, "d": d, "dtype": dtype})
        for layer in layers:
            data = self._file.create_dataset(f"activations/{layer_name(layer)}", (self.n, d), DTYPES[dtype],
                                             chunks=(min(CHUNK_ROWS, self.n), d), fletcher32=True)
            data.attrs["dtype"] = dtype
        for name in ("token_ids", "document", "position"):
            self._file.create_dataset(name, (self.n,), np.int32, chunks=(min(CHUNK_ROWS, self.n),), fletcher32=True)
        group = self._file.create_group("documents")
        group["title"] = [document.title for document in documents]
        group["split"] = [document.split for document in documents]
        group["rows"], group["first_row"] = rows, np.cumsum(rows) - rows
        self._moments = {layer: RunningMoments(d) for layer in layers}

    def append(self, activations: Mapping[int, Tensor], token_ids: np.ndarray, document: np.ndarray, position: np.ndarray) -> None:
        """Append n rows.

        Args:
            activations: {layer: (n, d)} in the store's dtype.
            token_ids, document, position: (n,) integers.
        Raises:
            StoreError: a value is NaN or infinite; the message names document, position and token.
        """
        rows = slice(self._next, self._next + len(token_ids))
        for layer, values_nd in activations.items():
            if not (finite := values_nd.isfinite().all(-1)).all():
                bad = int((~finite).nonzero()[0])
                raise StoreError(f"NaN or infinity in layer {layer} at document {self._documents[document[bad]].title!r}, "
                                 f"position {position[bad]}, token {token_ids[bad]}: nothing is stored")
            self._file[f"activations/{layer_name(layer)}"][rows] = _to_numpy(values_nd)
            if (training := values_nd[: max(0, self._train_rows - self._next)]).numel():
                self._moments[layer].update(training.float().numpy())
        self._file["token_ids"][rows], self._file["document"][rows], self._file["position"][rows] = token_ids, document, position
        self._next = rows.stop

    def finish(self) -> None:
        """Write the statistics and mark the store complete.

        Raises:
            StoreError: fewer rows were appended than the documents have.
        """
        if self._next != self.n:
            raise StoreError(f"{self._next} rows were written, {self.n} were announced")
        for layer, moments in self._moments.items():
            group = self._file.create_group(f"statistics/{layer_name(layer)}")
            group["mean"], group["variance"] = moments.mean, moments.variance
        self._file.attrs["complete"] = True

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()


class ActivationStore:
    """One layer of a finished store, read-only.

    Raises:
        StoreError: the file is damaged, of another format version, incomplete, or lacks the layer.
    """

    def __init__(self, path: Path, layer: int | None = None):
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path, "r")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{self.path} is truncated or no HDF5 file: extract it again ({error})") from error
        self.attributes = dict(self._file.attrs)
        self._check_header()
        layers = [int(known) for known in self.attributes["layers"]]
        self.layer = layers[0] if layer is None else layer
        if self.layer not in layers:
            raise StoreError(f"{self.path} holds layers {layers}, not layer {layer}: run 01_extract_activations for that layer")
        self._data = self._file[f"activations/{layer_name(self.layer)}"]
        self.n, self.d = self._data.shape
        self.model, self.corpus = self.attributes["model"], self.attributes["corpus"]
        statistics = self._file[f"statistics/{layer_name(self.layer)}"]
        self.mean, self.variance = statistics["mean"][:], statistics["variance"][:]
        documents = self._file["documents"]
        self.titles, self.splits = documents["title"].asstr()[:], documents["split"].asstr()[:]
        self.first_row, self.document_rows = documents["first_row"][:], documents["rows"][:]

    def _check_header(self) -> None:
        found = self.attributes.get("format"), self.attributes.get("format_version")
        if found != (FORMAT, FORMAT_VERSION):
            raise StoreError(f"{self.path} is {found[0]} version {found[1]}: this code reads {FORMAT} version {FORMAT_VERSION}")
        if not self.attributes["complete"]:
            raise StoreError(f"{self.path} was not finished: run 01_extract_activations again")

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

    def rows(self, split: str) -> range:
        """The run of rows that a split occupies."""
        documents = np.flatnonzero(self.splits == split)
        if not len(documents):
            raise StoreError(f"{self.path} has no documents in split {split!r}: expected one of {sorted(set(self.splits))}")
        return range(int(self.first_row[documents[0]]), int(self.first_row[documents[-1]] + self.document_rows[documents[-1]]))

    def read(self, rows: range | slice) -> Tensor:
        """Consecutive raw activations, (n, d), in the stored dtype.

        Raises:
            StoreError: a chunk fails its checksum.
        """
        try:
            values = self._data[rows.start : rows.stop]
        except OSError as error:
            raise StoreError(f"{self.path}: rows {rows.start} to {rows.stop} of layer {self.layer} fail their checksum, "
                             "the file is damaged: extract it again") from error
        return _from_numpy(values)

    def take(self, rows: np.ndarray) -> Tensor:
        """Raw activations of chosen rows (strictly increasing), (n, d), read chunk by chunk."""
        rows = np.asarray(rows)
        cuts = np.flatnonzero(np.diff(rows // CHUNK_ROWS)) + 1
        parts = [self.read(slice(int(part[0]), int(part[-1]) + 1))[part - part[0]] for part in np.split(rows, cuts)]
        return torch.cat(parts)

    def column(self, name: str, rows: range | slice | None = None) -> np.ndarray:
        """`token_ids`, `document` or `position` of consecutive rows (all rows if None), (n,)."""
        return self._file[name][:] if rows is None else self._file[name][rows.start : rows.stop]

    @property
    def identities(self) -> dict:
        """What a results file says of the activations it was made from."""
        return {"language_model": self.model, "corpus": self.corpus, "layer": self.layer}

    def summary(self) -> dict[str, str]:
        """What the store holds, for a reader."""
        split_rows = ", ".join(f"{s} {len(self.rows(s)):,}" for s in dict.fromkeys(self.splits))
        return {"model": self.model, "corpus": self.corpus, "layers": str([int(x) for x in self.attributes["layers"]]),
                "shape": f"{self.n:,} × {self.d}", "dtype": self.attributes["dtype"], "documents": str(len(self.titles)),
                "rows by split": split_rows, "size": f"{self.path.stat().st_size / 1e9:.2f} GB"}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def shuffled_batches(store: ActivationStore, split: str, batch: int, seed: int, *, start: int = 0,
                     buffer_bytes: int = 2**29) -> Iterator[Tensor]:
    """Endless shuffled batches (batch, d) of raw activations. Batch i is a function of (seed, i) alone, so any step can restart.

    Each epoch visits the chunks in a new order; as many as fit `buffer_bytes` are mixed at a time. Every row comes once an
    epoch, apart from the last few that fill no batch.
    """
    rows = store.rows(split)
    chunks = [range(max(c, rows.start), min(c + CHUNK_ROWS, rows.stop))
              for c in range(rows.start // CHUNK_ROWS * CHUNK_ROWS, rows.stop, CHUNK_ROWS)]
    per_group = max(1, buffer_bytes // (CHUNK_ROWS * store.d * store.read(range(rows.start, rows.start + 1)).element_size()))
    per_epoch = len(rows) // batch
    if not per_epoch:
        raise StoreError(f"split {split!r} has {len(rows)} rows, fewer than one batch of {batch}")
    epoch, skip = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(chunks))
        yield from _epoch([chunks[i] for i in order], store, batch, per_group, rng, skip * batch)
        epoch, skip = epoch + 1, 0


def multi_layer_batches(stores: list[ActivationStore], split: str, batch: int, seed: int, *, start: int = 0) -> Iterator[Tensor]:
    """As `shuffled_batches`, from several layers of the same texts: (layers, batch, d), the same rows of each."""
    for parts in zip(*(shuffled_batches(store, split, batch, seed, start=start, buffer_bytes=2**29 // len(stores)) for store in stores)):
        yield torch.stack(parts)


def _epoch(chunks: list[range], store: ActivationStore, batch: int, per_group: int, rng: np.random.Generator,
           skip_rows: int) -> Iterator[Tensor]:
    left = torch.empty(0)
    for first in range(0, len(chunks), per_group):
        group = chunks[first : first + per_group]
        size = sum(map(len, group))
        order = torch.from_numpy(rng.permutation(size))
        if skip_rows >= size:
            skip_rows -= size
            continue
        mixed = torch.cat([store.read(chunk) for chunk in group])
        order, skip_rows = order[skip_rows:], 0
        if len(left):
            mixed_rows = torch.cat([left, mixed[order[: batch - len(left)]]])
            order = order[batch - len(left) :]
            if len(mixed_rows) < batch:
                left = mixed_rows
                continue
            yield mixed_rows
        whole = len(order) // batch * batch
        for i in range(0, whole, batch):
            yield mixed[order[i : i + batch]]
        left = mixed[order[whole:]]


def spread_rows(n_rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows spread evenly over n_rows from a random start: every document gets its share. (n,) increasing.

    Raises:
        ValueError: there are fewer than n.
    """
    if n > n_rows:
        raise ValueError(f"{n} different rows were asked for, there are {n_rows}: extract more text or use a smaller preset")
    return np.floor((np.arange(n) + rng.random()) * n_rows / n).astype(np.int64)


def _to_numpy(values: Tensor) -> np.ndarray:
    return values.view(torch.int16).numpy().view(np.uint16) if values.dtype == torch.bfloat16 else values.numpy()


def _from_numpy(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16) if values.dtype == np.uint16 else torch.from_numpy(values)
