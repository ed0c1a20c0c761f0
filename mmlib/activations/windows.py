"""Documents → windows → blocks → rows of activations, for the store and live batches alike.

A *window* is a run of tokens of one document, which the language model reads behind an opening
token. A *block* is a run of windows that is read together: within it windows are sorted by length
and packed into batches, so that padding costs next to nothing, and its rows come out in the order
of the text. Blocks depend on the documents alone; so does the shape of every batch, and with it,
bit for bit, every value (a matrix product may round differently in another shape).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmlib.activations.corpora import Document
from mmlib.activations.lm import LanguageModel, read_residual_stream
from mmlib.activations.store import ActivationStore

BLOCK_BATCHES = 2  # a block holds at most about so many full batches


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document; the forward pass puts the opening token before them."""

    document: int
    start: int  # position of the first token in the document
    token_ids: np.ndarray  # (tokens,) int32
    ends_document: bool

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def positions(self) -> np.ndarray:
        """Of its tokens in the document, (tokens,) int32."""
        return np.arange(self.start, self.start + len(self), dtype=np.int32)


Block = list[Window]


@dataclass(frozen=True)
class Rows:
    """Activations of n tokens, in the order of the text."""

    activations: dict[int, Tensor]  # {layer: (n, d)}
    token_ids: np.ndarray
    document: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.token_ids)

    def __getitem__(self, rows: slice) -> "Rows":
        activations = {layer: values[rows] for layer, values in self.activations.items()}
        return Rows(activations, self.token_ids[rows], self.document[rows], self.position[rows])


def tokenize(
    documents: Sequence[Document], lm: LanguageModel, limit: int | None = None
) -> list[np.ndarray]:
    """Token ids of each document without special tokens, at most `limit` of each: int32."""
    known = [document.token_ids for document in documents]
    texts = [document.text for document, ids in zip(documents, known) if ids is None]
    read = iter(lm.encode(texts))
    return [np.asarray((next(read) if ids is None else ids)[:limit], np.int32) for ids in known]


def cut_windows(token_ids: Iterable[np.ndarray], window: int) -> Iterator[Window]:
    """Cut each document into windows of `window − 1` tokens; its last one may be shorter."""
    size = window - 1
    for document, ids in enumerate(token_ids):
        for start in range(0, len(ids), size):
            yield Window(document, start, ids[start : start + size], start + size >= len(ids))


def cut_blocks(windows: Iterable[Window], batch_tokens: int) -> Iterator[Block]:
    """Gather windows to blocks.

    A block ends with a document once it holds a full batch, or inside one that is long, at two.
    """
    block, tokens = [], 0
    for window in windows:
        block.append(window)
        tokens += len(window)
        if tokens >= BLOCK_BATCHES * batch_tokens / (2 if window.ends_document else 1):
            yield block
            block, tokens = [], 0
    if block:
        yield block


def block_rows(block: Block) -> int:
    """Number of activations that a block gives."""
    return sum(map(len, block))


def read_block(
    block: Block,
    lm: LanguageModel,
    layers: Sequence[int],
    batch_tokens: int,
    room: dict[int, Tensor] | None = None,
) -> Rows:
    """The language model's activations of a block.

    Args:
        batch_tokens: at most so many positions, padding and opening tokens included, in one forward
            pass (or one window).
        room: {layer: (rows or more, d)} to put the activations in; what a caller gives again and
            again keeps memory from growing.
    """
    lengths = list(map(len, block))
    ends, values = np.cumsum(lengths), {}
    for batch in batches_of(block, batch_tokens):
        ids_bt = padded([block[i] for i in batch], lm.opening_token)
        outputs = read_residual_stream(lm.model, layers, ids_bt)
        for layer, output in outputs.items():
            output = output.cpu()
            if layer not in values:
                new = output.new_empty(ends[-1], output.shape[-1])
                values[layer] = room[layer][: ends[-1]] if room else new
            for row, i in enumerate(batch):
                values[layer][ends[i] - lengths[i] : ends[i]] = output[row, 1 : 1 + lengths[i]]
    return Rows(
        values,
        np.concatenate([window.token_ids for window in block]),
        np.repeat(np.array([window.document for window in block], np.int32), lengths),
        np.concatenate([window.positions for window in block]),
    )


def padded(windows: Sequence[Window], opening_token: int) -> Tensor:
    """Token ids of windows behind the opening token, (windows, tokens).

    Padded on the right, where causal attention makes it harmless.
    """
    ids_bt = torch.full((len(windows), max(map(len, windows)) + 1), opening_token)
    for row, window in enumerate(windows):
        ids_bt[row, 1 : 1 + len(window)] = torch.from_numpy(window.token_ids)
    return ids_bt


def batches_of(block: Block, batch_tokens: int) -> Iterator[list[int]]:
    """Indices of windows, longest first, in batches of padded size up to `batch_tokens`.

    A batch is less than full where padding would pass a quarter.
    """
    batch, longest = [], 0
    for i in sorted(range(len(block)), key=lambda i: -len(block[i])):
        length = len(block[i]) + 1
        much_shorter = length < 0.75 * longest and len(batch) * longest >= batch_tokens / 8
        if batch and (much_shorter or (len(batch) + 1) * longest > batch_tokens):
            yield batch
            batch = []
        longest = longest if batch else length
        batch.append(i)
    yield batch


def stored_windows(store: ActivationStore, split: str) -> list[Window]:
    """The windows from which a split was extracted, in the order of the text."""
    inside = store.splits == split
    token_ids = (
        store.column("token_ids", store.rows_of(i) if inside[i] else range(0))
        for i in range(len(inside))
    )
    return list(cut_windows(token_ids, store.attributes["window"]))


def spread_windows(windows: Sequence[Window], tokens: int, seed: int) -> list[Window]:
    """Windows of at most `tokens` tokens together, from as many documents as that allows.

    Documents take turns in random order, each giving a random window of those it has left. A
    smaller `tokens` gives the first of the windows that a larger one gives. Where there are fewer
    tokens, all windows of at least two tokens, as a prediction needs, are given.

    Raises:
        ValueError: that is fewer than two documents, too few for an interval.
    """
    rng, turns, order = np.random.default_rng(seed), defaultdict(int), []
    for i in rng.permutation([i for i, window in enumerate(windows) if len(window) >= 2]):
        order.append((turns[windows[i].document], len(order), windows[i]))
        turns[windows[i].document] += 1
    chosen = [window for _, _, window in sorted(order, key=lambda entry: entry[:2])]
    chosen = chosen[: int(np.searchsorted(np.cumsum(list(map(len, chosen))), tokens, "right"))]
    if (documents := len({window.document for window in chosen})) < 2:
        raise ValueError(
            f"windows of {tokens} tokens come from {documents} documents: intervals need two or "
            "more"
        )
    return chosen


def stored_activations(store: ActivationStore, windows: Sequence[Window]) -> Tensor:
    """What the store holds for the tokens of windows, (n, d) raw, one window after another."""
    rows = [store.rows_of(w.document, slice(w.start, w.start + len(w))) for w in windows]
    return store.read(np.concatenate(rows))
