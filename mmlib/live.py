"""Language model → mixing buffer → training, with no disk between: how more activations are trained on than any disk holds.

For the same windows the values are those of the store, bit for bit, since both come from `windows.read_block`. The blocks of a stream
are cut elsewhere than those of a store, so there they agree up to rounding.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from accelerate import PartialState
from torch import Tensor

from mmlib.batches import BUFFER_BYTES, ORDER_BYTES, Piece, mixed_epoch
from mmlib.corpus import Document, corpus_identity, is_stream, stream_documents
from mmlib.devices import default_device
from mmlib.extract import Plan, describe, documents_of, prepare
from mmlib.layout import DTYPES, StoreError, to_numpy
from mmlib.llm import LanguageModel, load_language_model
from mmlib.runs import Run
from mmlib.store import ActivationStore
from mmlib.windows import Block, block_rows, cut_blocks, cut_windows, read_block, tokenize


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


def live_source(
    run: Run, stores: list[ActivationStore], batch: int
) -> tuple[Callable[[int], Iterator[Tensor]], str]:
    """Batches of a run's own text for `train`, from the language model instead of the store, and an identity of that source.

    A corpus of known size is read epoch after epoch, its training documents only; a streamed one (`hf:…`) once, without the documents
    that the store holds out. Each of several processes reads every batch whole, so more of them train no faster on what is read.

    Raises:
        StoreError: the store is of another language model, of other documents than the corpus has now, or of other windows.
    """
    size, state = run.preset, PartialState(cpu=default_device() == "cpu")
    with state.main_process_first():
        lm = load_language_model(
            size.model, dtype=size.dtype, device=str(state.device), cache=run.cache
        )
        documents = documents_of(run, lm)
    store = stores[0]
    store.check_source(model=lm.identity, d=lm.width)
    plan = prepare(size, lm, documents, [one.layer for one in stores])
    facts = describe(lm, corpus_identity(size.corpus, documents), plan, size, size.split_seed)
    facts["dtype"] = plan.dtype
    for key in ("dtype", "corpus", "tokenizer", "window", "batch_tokens", "device"):
        if facts[key] != store.attributes.get(key):
            raise StoreError(
                f"live batches would be of {key} {facts[key]}, {store.path} is of {store.attributes.get(key)}: "
                "run 01_extract_activations again, on this machine"
            )
    identity = json.dumps([facts, hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]])
    if not is_stream(size.corpus):
        return lambda start: live_batches(plan, lm, "train", batch, run.seed, start=start), identity
    held_out = set(store.titles[store.splits != "train"])

    def stream(start: int) -> Iterator[Tensor]:
        wanted = (
            document for document in stream_documents(size.corpus) if document.title not in held_out
        )
        return streamed_batches(
            wanted, plan, lm, batch, run.seed, start=start, document_tokens=size.document_tokens
        )

    return stream, identity


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
