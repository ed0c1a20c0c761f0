"""Shuffled batches from anything that comes in pieces: chunks of a store, or blocks of text that a language model reads.

Pieces are mixed in a buffer of bounded size: as many as fit it are read, each row to its shuffled place at once, and given out as
batches; then the next. What an epoch gives depends on (seed, epoch) alone, and a step in it is found by counting rows, so batches
restart anywhere without reading what came before.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from mmlib.layout import StoreError, from_numpy
from mmlib.store import ActivationStore

BUFFER_BYTES = 2**29
Piece = tuple[int, Callable[[], np.ndarray]]  # its rows, and what reads them: (rows, …)


def mixed_epoch(pieces: Iterable[Piece], batch: int, buffer_rows: int, rng: np.random.Generator, skip_rows: int = 0) -> Iterator[Tensor]:
    """One epoch of shuffled batches, (batch, …). Every row comes once, apart from the last few that fill no batch.

    Args:
        skip_rows: leave out so many rows at the start, a multiple of `batch`; pieces whose rows are all left out are not read.
    """
    left = None
    for group in _groups(pieces, buffer_rows):
        size = sum(rows for rows, _ in group)
        order = rng.permutation(size)
        if skip_rows >= size:
            skip_rows -= size
            continue
        mixed = None  # let go of the last buffer before there is another
        mixed = _fill(group, order)
        mixed, skip_rows = mixed[skip_rows:], 0
        if left is not None:
            first = torch.cat([left, mixed[: batch - len(left)]])
            mixed = mixed[batch - len(left) :]
            if len(first) < batch:
                left = first
                continue
            yield first
        whole = len(mixed) // batch * batch
        left = mixed[whole:].clone()
        for first_row in range(0, whole, batch):
            last = first_row + batch == whole  # a copy, so that whoever holds it does not hold the buffer
            yield mixed[first_row : first_row + batch].clone() if last else mixed[first_row : first_row + batch]


def _groups(pieces: Iterable[Piece], buffer_rows: int) -> Iterator[list[Piece]]:
    """Runs of pieces that fit the buffer; one that is larger by itself has it alone."""
    group, size = [], 0
    for piece in pieces:
        if group and size + piece[0] > buffer_rows:
            yield group
            group, size = [], 0
        group.append(piece)
        size += piece[0]
    if group:
        yield group


def _fill(group: list[Piece], order: np.ndarray) -> Tensor:
    """Rows of the group in shuffled order: row `order[i]` of all comes to place i."""
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    mixed, at = None, 0
    for rows, read in group:
        values = read()
        if mixed is None:
            mixed = np.empty((len(order), *values.shape[1:]), values.dtype)
        mixed[place[at : at + rows]] = values
        at += rows
    return from_numpy(mixed)


def shuffled_batches(store: ActivationStore, split: str, batch: int, seed: int, *, start: int = 0,
                     buffer_bytes: int = BUFFER_BYTES) -> Iterator[Tensor]:
    """Endless shuffled batches (batch, d) of raw activations. Batch i is a function of (seed, i) alone, so any step can restart.

    Each epoch visits the chunks in a new order.

    Raises:
        StoreError: the split has fewer rows than a batch, or a chunk fails its checksum.
    """
    rows, source = store.rows(split), store.activations
    chunks = list(source.chunks(rows.start, rows.stop))
    largest = int(np.diff(source.starts).max())
    scratch = np.empty((largest, store.d), source.dtype)
    buffer_rows = largest * max(1, buffer_bytes // scratch.nbytes)
    per_epoch = len(rows) // batch
    if not per_epoch:
        raise StoreError(f"split {split!r} has {len(rows)} rows, fewer than one batch of {batch}")

    def piece(chunk: int, first: int, end: int) -> Piece:
        low = int(source.starts[chunk])
        return end - first, lambda: source.read_chunk(chunk, scratch)[first - low : end - low]

    epoch, skip = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        yield from mixed_epoch([piece(*chunks[i]) for i in rng.permutation(len(chunks))], batch, buffer_rows, rng, skip * batch)
        epoch, skip = epoch + 1, 0


def multi_layer_batches(stores: list[ActivationStore], split: str, batch: int, seed: int, *, start: int = 0) -> Iterator[Tensor]:
    """As `shuffled_batches`, from several layers of the same texts: (layers, batch, d), the same rows of each."""
    for parts in zip(*(shuffled_batches(store, split, batch, seed, start=start, buffer_bytes=BUFFER_BYTES // len(stores)) for store in stores)):
        yield torch.stack(parts)


def spread_rows(n_rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows spread evenly over n_rows from a random start: every document gets its share. (n,) increasing.

    Raises:
        ValueError: there are fewer than n.
    """
    if n > n_rows:
        raise ValueError(f"{n} different rows were asked for, there are {n_rows}: extract more text or use a smaller preset")
    return np.floor((np.arange(n) + rng.random()) * n_rows / n).astype(np.int64)
