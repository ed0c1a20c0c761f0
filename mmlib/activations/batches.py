"""Shuffled batches for training, from a store or straight from a language model; both can restart at any step.

    shuffled_batches, multi_layer_batches    from a store of one layer, or from stores of several
    live_batches, streamed_batches           from the language model, epoch after epoch or once, with no disk between

What comes in pieces (chunks of a store, blocks of text) is mixed in a buffer of bounded size. As many pieces as fit are read, each row to
its shuffled place, and given out as batches; then the next. What an epoch gives depends on (seed, epoch) alone. For the same windows
live values are those of the store, bit for bit, since both come from `windows.read_block`. The blocks of a stream are cut elsewhere,
so there they agree up to rounding.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from mmlib.activations.corpora import Document
from mmlib.activations.extract import Plan
from mmlib.activations.lm import LanguageModel
from mmlib.activations.parts import CHUNK_ROWS, DTYPES
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import from_numpy, to_numpy
from mmlib.activations.windows import (
    Block,
    block_rows,
    cut_blocks,
    cut_windows,
    read_block,
    tokenize,
)

BUFFER_BYTES = 2**29


ORDER_BYTES = 16  # a row, for the shuffled order


READERS = min(
    4, os.cpu_count() or 1
)  # threads; the system call, the checksum and the copy all run outside Python's lock


Piece = tuple[int, Callable[[], np.ndarray]]  # its rows, and what reads them: (rows, …)


def mixed_epoch(
    pieces: Iterable[Piece],
    batch: int,
    buffer_rows: int,
    rng: np.random.Generator,
    skip_rows: int = 0,
    buffer: "MixingBuffer | None" = None,
) -> Iterator[Tensor]:
    """One epoch of shuffled batches, (batch, …). Every row comes once, apart from the last few that fill no batch.

    Args:
        skip_rows: leave out so many rows at the start, a multiple of `batch`; pieces whose rows are all left out are not read.
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
            places = slice(first_row, first_row + batch)
            if first_row + batch < whole:
                yield from_numpy(mixed[places])
            else:  # a copy, so that whoever holds it does not hold the buffer
                yield from_numpy(mixed[places].copy())


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
    """Memory that is used again once nobody holds a batch in it, and threads that fill it: fresh pages cost as much as reading.

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
        if (
            self._array is None or len(self._array) < rows or sys.getrefcount(self._array) > 2
        ):  # 2: the attribute and the argument
            self._array = None  # first, or there would be two
            self._array = np.empty((rows, *like.shape[1:]), like.dtype)
        return self._array[:rows]


def as_items(rows: np.ndarray) -> np.ndarray:
    """Rows (n, …) as n opaque items of a row's bytes, (n,): numpy copies such an item in one piece, a sixth faster."""
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
    """Endless shuffled batches (batch, d) of raw activations. Batch i is a function of (seed, i) alone, so any step can restart.

    Each epoch visits the chunks in a new order.

    Raises:
        StoreError: the split has fewer rows than a batch, or a chunk fails its checksum.
    """
    rows, source = store.rows(split), store.activations
    chunks = list(source.chunks(rows.start, rows.stop))
    largest = min(CHUNK_ROWS, store.n)
    row_bytes, scratch = store.d * source.dtype.itemsize, threading.local()
    buffer_rows = largest * max(1, buffer_bytes // (largest * (row_bytes + ORDER_BYTES)))
    per_epoch = len(rows) // batch
    if not per_epoch:
        raise StoreError(f"split {split!r} has {len(rows)} rows, fewer than one batch of {batch}")

    def piece(chunk: int, first: int, end: int) -> Piece:
        low = chunk * CHUNK_ROWS

        def read() -> np.ndarray:
            if not hasattr(scratch, "rows"):  # one a thread, for the sake of the allocator
                scratch.rows = np.empty((largest, store.d), source.dtype)
            return source.read_chunk(chunk, scratch.rows)[first - low : end - low]

        return end - first, read

    epoch, skip = divmod(start, per_epoch)
    buffer = MixingBuffer(READERS)
    while True:
        rng = np.random.default_rng([seed, epoch])
        yield from mixed_epoch(
            (piece(*chunks[i]) for i in rng.permutation(len(chunks))),
            batch,
            buffer_rows,
            rng,
            skip * batch,
            buffer,
        )
        epoch, skip = epoch + 1, 0


def multi_layer_batches(
    stores: list[ActivationStore], split: str, batch: int, seed: int, *, start: int = 0
) -> Iterator[Tensor]:
    """As `shuffled_batches`, from several layers of the same texts: (layers, batch, d), the same rows of each.

    Raises:
        StoreError: the stores do not have the same rows.
    """
    first = stores[0]
    for store in stores[1:]:
        if (store.documents, store.n, store.d, store.dtype) != (
            first.documents,
            first.n,
            first.d,
            first.dtype,
        ) or not np.array_equal(store.document_rows, first.document_rows):
            raise StoreError(
                f"{store.path} does not have the rows of {first.path}: extract the layers together"
            )
    for parts in zip(
        *(
            shuffled_batches(
                store, split, batch, seed, start=start, buffer_bytes=BUFFER_BYTES // len(stores)
            )
            for store in stores
        )
    ):
        yield torch.stack(parts)


def spread_rows(n_rows: int, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows spread evenly over n_rows from a random start: every document gets its share. (n,) increasing.

    Raises:
        ValueError: there are fewer than n.
    """
    if n > n_rows:
        raise ValueError(
            f"{n} different rows were asked for, there are {n_rows}: extract more text or use a smaller preset"
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

    As with `shuffled_batches`, batch i is a function of (seed, i) alone and an epoch visits the blocks of text in a new order; what
    comes before `start` is skipped without running the model, apart from the buffer that `start` lies in.

    Returns:
        Raw activations, (batch, d), or (layers, batch, d) where the plan has several layers.
    Raises:
        StoreError: the split has fewer rows than a batch.
    """
    inside = np.array([document.split == split for document in plan.documents])
    blocks = [kept for block in plan.blocks if (kept := _Block(block, inside)).rows]
    per_epoch = sum(block.rows for block in blocks) // batch
    if not per_epoch:
        raise StoreError(
            f"split {split!r} has {sum(block.rows for block in blocks)} rows, fewer than one batch of {batch}"
        )
    epoch, skip = divmod(start, per_epoch)
    while True:
        rng = np.random.default_rng([seed, epoch])
        pieces = [blocks[i].piece(plan, lm) for i in rng.permutation(len(blocks))]
        yield from map(
            _layers_first,
            mixed_epoch(pieces, batch, _buffer_rows(plan, buffer_bytes), rng, skip * batch),
        )
        epoch, skip = epoch + 1, 0


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
    """Shuffled batches of a stream of documents too long to plan, once through, in the order of the stream but for the mixing buffer.

    Args:
        documents: all are used, so leave out what is held out; read again from the first if `start` is not 0.
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
    pieces = (
        _Block(block, None).piece(plan, lm)
        for block in cut_blocks(cut_windows(token_ids, plan.window), plan.batch_tokens)
    )
    rng = np.random.default_rng(seed)
    given = start
    for given, rows in enumerate(
        mixed_epoch(pieces, batch, _buffer_rows(plan, buffer_bytes), rng, start * batch), start + 1
    ):
        yield _layers_first(rows)
    raise StoreError(
        f"the stream of documents ended after {given} batches of {batch}: train for fewer steps, or give more text"
    )


class _Block:
    """A block, and which of its rows are wanted."""

    def __init__(self, block: Block, inside: np.ndarray | None):
        self.block = block
        self.wanted = (
            None
            if inside is None
            else np.concatenate([np.full(len(w.token_ids), inside[w.document]) for w in block])
        )
        self.rows = block_rows(block) if inside is None else int(self.wanted.sum())

    def piece(self, plan: Plan, lm: LanguageModel) -> Piece:
        """Its wanted rows, (rows, d) or (rows, layers, d)."""

        def read() -> np.ndarray:
            activations = read_block(self.block, lm, plan.layers, plan.batch_tokens).activations
            values = np.stack([to_numpy(activations[layer]) for layer in plan.layers], 1)[
                :, slice(None) if len(plan.layers) > 1 else 0
            ]
            return values if self.wanted is None or self.wanted.all() else values[self.wanted]

        return self.rows, read


def _buffer_rows(plan: Plan, buffer_bytes: int) -> int:
    return max(
        1, buffer_bytes // (len(plan.layers) * plan.d * DTYPES[plan.dtype].itemsize + ORDER_BYTES)
    )


def _layers_first(batch: Tensor) -> Tensor:
    return batch if batch.ndim == 2 else batch.transpose(0, 1)
