"""Shuffled batches for training, from a store or from a language model; restart at any step.

    shuffled_batches, multi_layer_batches    from a store of one layer, or from stores of several
    live_batches, streamed_batches           from the language model, epoch after epoch or once

What comes in pieces (chunks of a store, blocks of text) is mixed in a buffer of bounded size. As
many pieces as fit are read, each row to its shuffled place, and given out as batches; then the
next. What an epoch gives depends on (seed, epoch) alone. For the same windows live values are those
of the store, bit for bit, since both come from `windows.read_block`. The blocks of a stream are cut
elsewhere, so there they agree up to rounding.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mmlib.activations.corpora import Document
from mmlib.activations.extract import Plan
from mmlib.activations.lm import LanguageModel
from mmlib.activations.store import CHUNK_ROWS, ActivationStore, StoreError
from mmlib.activations.tokens import chunks_of, from_numpy, to_numpy
from mmlib.activations.windows import Block, cut_blocks, cut_windows, tokenize

BUFFER_BYTES = 2**29
ORDER_BYTES = 16  # a row, for the shuffled order
READERS = min(4, os.cpu_count() or 1)  # threads: reading runs outside Python's lock

Piece = tuple[int, Callable[[], np.ndarray]]  # its rows, and what reads them: (rows, …)


def endless_batches(
    pieces: list[Piece],
    split: str,
    batch: int,
    seed: int,
    start: int,
    buffer_rows: int,
    buffer: "MixingBuffer | None" = None,
) -> Iterator[Tensor]:
    """Epoch after epoch of shuffled batches, from batch `start` on; see `mixed_epoch`.

    Raises:
        StoreError: the pieces have fewer rows than a batch.
    """
    rows = sum(rows for rows, _ in pieces)
    if rows < batch:
        raise StoreError(f"split {split!r} has {rows} rows, fewer than one batch of {batch}")
    epoch, skip = divmod(start, rows // batch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = (pieces[i] for i in rng.permutation(len(pieces)))
        yield from mixed_epoch(order, batch, buffer_rows, rng, skip * batch, buffer)
        epoch, skip = epoch + 1, 0


def mixed_epoch(
    pieces: Iterable[Piece],
    batch: int,
    buffer_rows: int,
    rng: np.random.Generator,
    skip_rows: int = 0,
    buffer: "MixingBuffer | None" = None,
) -> Iterator[Tensor]:
    """One epoch of shuffled batches, (batch, …): every row once, but a few that fill no batch.

    Args:
        skip_rows: leave out so many rows at the start, a multiple of `batch`; pieces whose rows are
            all left out are not read.
        buffer: memory and threads of earlier epochs, to be used again; None: no threads.
    """
    left, buffer = None, buffer or MixingBuffer()
    for group in _groups(pieces, buffer_rows):
        size = sum(rows for rows, _ in group)
        order = rng.permutation(size)
        if skip_rows >= size:
            skip_rows -= size
            continue
        mixed = None  # let go of the last group before there is another
        mixed = buffer.fill(group, order)
        mixed, skip_rows = mixed[skip_rows:], 0
        if left is not None:
            first = np.concatenate([left, mixed[: batch - len(left)]])
            mixed = mixed[batch - len(left) :]
            if len(first) < batch:
                left = first
                continue
            yield from_numpy(first)
        whole = len(mixed) // batch * batch
        left = mixed[whole:].copy()  # by numpy: torch would start threads beside the readers
        for first_row in range(0, whole, batch):
            rows = mixed[first_row : first_row + batch]
            if first_row + batch == whole:  # so that whoever holds it does not hold the buffer
                rows = rows.copy()
            yield from_numpy(rows)


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


class MixingBuffer:
    """Memory that is used again once nobody holds a batch in it, and threads that fill it.

    Fresh pages would cost as much as reading.

    Args:
        threads: pieces read at a time.
    """

    def __init__(self, threads: int = 1):
        self._array, self._threads = None, threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def fill(self, group: list[Piece], order: np.ndarray) -> np.ndarray:
        """Rows of the group in shuffled order: row `order[i]` of all comes to place i."""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        ends = np.cumsum([rows for rows, _ in group])
        first = group[0][1]()
        mixed = self._room(len(order), first)
        whole_rows = as_items(mixed)
        whole_rows[place[: ends[0]]] = as_items(first)

        def put(thread: int) -> None:
            for i in range(1 + thread, len(group), self._threads):
                whole_rows[place[ends[i - 1] : ends[i]]] = as_items(group[i][1]())

        if self._pool is None:
            put(0)
        else:
            list(self._pool.map(put, range(self._threads)))  # raises what a piece raised
        return mixed

    def _room(self, rows: int, like: np.ndarray) -> np.ndarray:
        """Room for so many rows of the shape and type of `like`'s."""
        held = sys.getrefcount(self._array) > 2  # 2: the attribute and the argument
        if self._array is None or len(self._array) < rows or held:
            self._array = None  # first, or there would be two
            self._array = np.empty((rows, *like.shape[1:]), like.dtype)
        return self._array[:rows]


def as_items(rows: np.ndarray) -> np.ndarray:
    """Rows (n, …) as n opaque items, (n,), which numpy copies in one piece each, a sixth faster."""
    rows = np.ascontiguousarray(rows).reshape(len(rows), -1)
    return rows.view(f"V{rows.shape[1] * rows.itemsize}")[:, 0]


def shuffled_batches(
    store: ActivationStore,
    split: str,
    batch: int,
    seed: int,
    *,
    start: int = 0,
    buffer_bytes: int = BUFFER_BYTES,
) -> Iterator[Tensor]:
    """Endless shuffled batches (batch, d) of raw activations, from batch `start` on.

    Batch i is a function of (seed, i) alone. Each epoch visits the chunks in a new order.

    Raises:
        StoreError: the split has fewer rows than a batch, or a chunk fails its checksum.
    """
    source, scratch, largest = store.activations, threading.local(), min(CHUNK_ROWS, store.n)

    def read(chunk: int, within: slice) -> np.ndarray:
        if not hasattr(scratch, "rows"):  # one a thread, for the sake of the allocator
            scratch.rows = np.empty((largest, store.d), source.dtype)
        return source.read_chunk(chunk, scratch.rows)[within]

    pieces = [
        (within.stop - within.start, partial(read, chunk, within))
        for chunk, _, within in chunks_of(store.rows(split), CHUNK_ROWS)
    ]
    chunk_bytes = largest * (store.d * source.dtype.itemsize + ORDER_BYTES)
    buffer_rows = largest * max(1, buffer_bytes // chunk_bytes)
    buffer = MixingBuffer(READERS)
    yield from endless_batches(pieces, split, batch, seed, start, buffer_rows, buffer)


def multi_layer_batches(
    stores: list[ActivationStore], split: str, batch: int, seed: int, *, start: int = 0
) -> Iterator[Tensor]:
    """As `shuffled_batches`, from several layers of the same texts: (layers, batch, d).

    Raises:
        StoreError: the stores do not have the same rows.
    """
    first = stores[0]
    for store in stores[1:]:
        same = all(getattr(store, x) == getattr(first, x) for x in ("documents", "n", "d", "dtype"))
        if not (same and np.array_equal(store.document_rows, first.document_rows)):
            raise StoreError(
                f"{store.path} does not have the rows of {first.path}: extract the layers together"
            )
    options = {"start": start, "buffer_bytes": BUFFER_BYTES // len(stores)}
    sources = (shuffled_batches(store, split, batch, seed, **options) for store in stores)
    yield from map(torch.stack, zip(*sources))


def spread_rows(n_rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows spread evenly over n_rows from a random start, (n,) increasing.

    Every document gets its share.

    Raises:
        ValueError: there are fewer than n.
    """
    if n > n_rows:
        raise ValueError(
            f"{n} different rows were asked for, there are {n_rows}: extract more text or use a "
            "smaller preset"
        )
    return np.floor((np.arange(n) + rng.random()) * n_rows / n).astype(np.int64)


def live_batches(
    plan: Plan,
    lm: LanguageModel,
    split: str,
    batch: int,
    seed: int,
    *,
    start: int = 0,
    buffer_bytes: int = BUFFER_BYTES,
) -> Iterator[Tensor]:
    """Endless shuffled batches of a plan's split, computed as they are asked for.

    As with `shuffled_batches`, batch i is a function of (seed, i) alone and an epoch visits the
    blocks of text in a new order; what comes before `start` is skipped without running the model,
    apart from the buffer that `start` lies in.

    Returns:
        Raw activations, (batch, d), or (layers, batch, d) where the plan has several layers.
    Raises:
        StoreError: the split has fewer rows than a batch.
    """
    inside = np.array([document.split == split for document in plan.documents])
    pieces = [_piece(block, plan, lm, inside) for block in plan.blocks]
    pieces = [piece for piece in pieces if piece[0]]
    buffer_rows = _buffer_rows(plan, buffer_bytes)
    batches = endless_batches(pieces, split, batch, seed, start, buffer_rows)
    yield from map(_layers_first, batches)


def streamed_batches(
    documents: Iterable[Document],
    plan: Plan,
    lm: LanguageModel,
    batch: int,
    seed: int,
    *,
    start: int = 0,
    document_tokens: int | None = None,
    buffer_bytes: int = BUFFER_BYTES,
) -> Iterator[Tensor]:
    """Shuffled batches of a stream of documents too long to plan, once through.

    They come in the order of the stream but for the mixing buffer.

    Args:
        documents: all are used, so leave out what is held out, see `corpora.without_held_out`; read
            again from the first if `start` is not 0.
        plan: of a store from the same language model; gives layers, window and batch shape.
        document_tokens: read only so many tokens of each document.
    Returns:
        As `live_batches`.
    Raises:
        StoreError: the stream has ended; the message says after how many batches.
    """
    unread = iter(documents)
    groups = iter(lambda: list(islice(unread, 64)), [])
    token_ids = (ids for group in groups for ids in tokenize(group, lm, document_tokens))
    blocks = cut_blocks(cut_windows(token_ids, plan.window), plan.batch_tokens)
    pieces = (_piece(block, plan, lm) for block in blocks)
    rng, buffer_rows = np.random.default_rng(seed), _buffer_rows(plan, buffer_bytes)
    given = start
    for rows in mixed_epoch(pieces, batch, buffer_rows, rng, start * batch):
        yield _layers_first(rows)
        given += 1
    raise StoreError(
        f"the stream of documents ended after {given} batches of {batch}: train for fewer steps, "
        "or give more text"
    )


def _piece(block: Block, plan: Plan, lm: LanguageModel, inside: np.ndarray | None = None) -> Piece:
    """Rows of a block, (rows, d) or (rows, layers, d); of documents that are `inside`, or all."""
    wanted = np.concatenate([np.full(len(w), inside is None or inside[w.document]) for w in block])

    def read() -> np.ndarray:
        activations = plan.read(block, lm).activations
        values = np.stack([to_numpy(activations[layer]) for layer in plan.layers], 1)
        values = values if len(plan.layers) > 1 else values[:, 0]
        return values if wanted.all() else values[wanted]

    return int(wanted.sum()), read


def _buffer_rows(plan: Plan, buffer_bytes: int) -> int:
    row_bytes = len(plan.layers) * plan.d * getattr(torch, plan.dtype).itemsize
    return max(1, buffer_bytes // (row_bytes + ORDER_BYTES))


def _layers_first(batch: Tensor) -> Tensor:
    return batch if batch.ndim == 2 else batch.transpose(0, 1)
