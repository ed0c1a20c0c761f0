"""Language model × documents → store. Runs only the blocks up to the last one asked for, on packed windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mmlib.corpus import SPLITS, Document
from mmlib.files import require_disk, written_whole
from mmlib.llm import LanguageModel, read_residual_stream, resolve_layer, residual_blocks
from mmlib.store import DocumentRows, StoreWriter

PROGRESS = {"bar_format": "{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left", "mininterval": 2}


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of one document; the forward pass puts the opening token before them."""

    document: int
    start: int  # position of the first token in the document
    token_ids: list[int]


def tokenize(documents: list[Document], lm: LanguageModel, limit: int | None = None) -> list[list[int]]:
    """Token ids of each document without special tokens, at most `limit` of each."""
    texts = [document.text for document in documents]
    return [ids[:limit] for ids in lm.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


def cut_windows(token_ids: list[list[int]], window: int) -> list[Window]:
    """Cut each document into windows of `window − 1` tokens; a document's last one may be shorter."""
    size = window - 1
    return [Window(d, start, ids[start : start + size]) for d, ids in enumerate(token_ids) for start in range(0, len(ids), size)]


@dataclass(frozen=True)
class Plan:
    """What an extraction will do, known before it starts."""

    documents: list[DocumentRows]
    windows: list[Window]
    layers: list[int]
    d: int
    dtype: str

    @property
    def tokens(self) -> int:
        """Rows to be stored."""
        return sum(document.rows for document in self.documents)

    @property
    def bytes(self) -> int:
        """Size on disk: activations and three integers a row."""
        width = {"bfloat16": 2, "float32": 4}[self.dtype]
        return int(1.01 * self.tokens * (len(self.layers) * self.d * width + 12))


def plan_extraction(documents: list[Document], splits: list[str], lm: LanguageModel, layer: int | Sequence[int] | None, window: int,
                    document_tokens: int | None = None) -> Plan:
    """Tokenise, order the documents by split, and cut windows.

    Args:
        layer: a block index, several (stored by one pass), or None: the middle block.
    Raises:
        ValueError: no such layer; the message gives those there are.
    """
    blocks = len(residual_blocks(lm.model))
    layers = [resolve_layer(one, blocks) for one in (layer if isinstance(layer, Sequence) else [layer])]
    order = sorted(range(len(documents)), key=lambda i: SPLITS.index(splits[i]))
    token_ids = tokenize([documents[i] for i in order], lm, document_tokens)
    rows = [DocumentRows(documents[i].title, splits[i], len(ids)) for i, ids in zip(order, token_ids)]
    config = lm.model.config.get_text_config()
    return Plan(rows, cut_windows(token_ids, window), layers, config.hidden_size, str(lm.model.dtype).removeprefix("torch."))


def extract(plan: Plan, lm: LanguageModel, path: Path, *, attributes: dict, batch: int = 16) -> None:
    """Write the store that `plan` describes. The file takes its name only when it is complete.

    Args:
        attributes: recorded in the file (model, corpus, seed, window, …).
    Raises:
        OSError: the disk lacks room for it, found before any work is done.
        StoreError: an activation is NaN or infinite.
    """
    with written_whole(path) as partial:
        require_disk(path.parent, plan.bytes, "extraction")
        with (StoreWriter(partial, plan.documents, plan.layers, plan.d, plan.dtype, attributes) as writer,
              tqdm(total=plan.tokens, desc="extracting", unit=" tokens", **PROGRESS) as bar):
            for windows in _batches(plan.windows, batch):
                writer.append(*_forward(windows, lm, plan.layers))
                bar.update(sum(len(window.token_ids) for window in windows))
            writer.finish()


def _batches(windows: list[Window], batch: int) -> Iterator[list[Window]]:
    for first in range(0, len(windows), batch):
        yield windows[first : first + batch]


def _forward(windows: list[Window], lm: LanguageModel, layers: list[int]) -> tuple:
    """One forward pass; its rows without the opening and padding positions, as `StoreWriter.append` takes them."""
    lengths = torch.tensor([len(window.token_ids) for window in windows])
    ids_bt = torch.full((len(windows), int(lengths.max()) + 1), lm.opening_token)
    for row, window in enumerate(windows):
        ids_bt[row, 1 : 1 + len(window.token_ids)] = torch.tensor(window.token_ids)
    columns = torch.arange(ids_bt.shape[1])
    real_bt = (columns > 0) & (columns <= lengths[:, None])
    outputs = read_residual_stream(lm.model, layers, ids_bt)
    activations = {layer: outputs[layer].cpu()[real_bt] for layer in layers}
    document = np.concatenate([np.full(len(w.token_ids), w.document) for w in windows])
    position = np.concatenate([np.arange(w.start, w.start + len(w.token_ids)) for w in windows])
    return activations, ids_bt[real_bt].numpy(), document, position
