"""Language model × documents → store. Runs only the blocks up to the last one asked for.

    python -m mmlib extract --preset default                          what notebook 01 extracts
    torchrun --nproc-per-node 2 -m mmlib extract --layers 4 8 13      by several processes, or by
                                                                      machines with a shared disk

Several machines need the same packages and kind of device; torchrun gives each process one CPU
thread unless OMP_NUM_THREADS says more. Killed at any moment, the same command continues with the
parts that miss, by as many processes as one likes.
"""

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import xxhash
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from mmlib.activations.corpora import (
    SPLITS,
    Document,
    corpus_identity,
    folded,
    overlap,
    split_documents,
    told,
)
from mmlib.activations.lm import (
    PROGRESS,
    LanguageModel,
    require_causal,
    residual_blocks,
    resolve_layer,
)
from mmlib.activations.pretrained import weights_digest
from mmlib.activations.store import CHUNK_ROWS, ActivationStore, StoreError
from mmlib.activations.windows import (
    Block,
    Rows,
    Window,
    block_rows,
    cut_blocks,
    cut_windows,
    read_block,
    tokenize,
)
from mmlib.activations.writer import (
    PART_BYTES,
    DocumentRows,
    Layout,
    StoreWriter,
    differences,
    examine,
)
from mmlib.files import code_digest, require_disk, whole_number

BATCH_TOKENS = 4096  # positions in one forward pass, unless told otherwise
# What decides the bytes of a store, given its texts, split and token ids. These have digests of
# their own, so corpora, labelled and generate are not among them.
CODE = ("windows", "lm", "pretrained", "extract", "tokens", "store", "writer")


@dataclass(frozen=True)
class Plan:
    """What an extraction will do, known before it starts."""

    documents: list[DocumentRows]
    token_ids: list[np.ndarray]  # of each document
    layers: list[int]
    d: int
    dtype: str
    window: int
    batch_tokens: int

    @property
    def tokens(self) -> int:
        """Rows to be stored."""
        return sum(document.rows for document in self.documents)

    @property
    def bytes(self) -> int:
        """Size on disk: activations, three integers a row, checksums, moments of each chunk."""
        value = getattr(torch, self.dtype).itemsize + 16 / CHUNK_ROWS
        row = len(self.layers) * self.d * value + 12
        return int(1.001 * self.tokens * row) + 500 * len(self.documents) + 100_000

    @cached_property
    def windows(self) -> list[Window]:
        """All windows, in the order of the text."""
        return list(cut_windows(self.token_ids, self.window))

    @cached_property
    def blocks(self) -> list[Block]:
        """The windows as they are read together."""
        return list(cut_blocks(self.windows, self.batch_tokens))

    def describe(self, lm: LanguageModel) -> str:
        """What will be done, and how long it takes at the speed of one batch, read for that."""
        batch = self.windows[: max(1, self.batch_tokens // self.window)]
        self.read(batch[:1], lm)  # the first pass is slow
        began = time.perf_counter()
        self.read(batch, lm)
        speed = block_rows(batch) / (time.perf_counter() - began)
        return (
            f"layers {', '.join(map(str, self.layers))}: {self.tokens:,} tokens in "
            f"{len(self.windows):,} windows, {self.bytes / 1e9:.2f} GB on disk, about "
            f"{self.tokens / speed / 60:.1f} minutes at {speed:,.0f} tokens/s"
        )

    def read(self, block: Block, lm: LanguageModel, room: dict | None = None) -> Rows:
        """A block as it is stored; see `read_block`."""
        return read_block(block, lm, self.layers, self.batch_tokens, room)

    def rows(self, lm: LanguageModel, span: range | None = None, rooms: int = 0) -> Iterator[Rows]:
        """Activations of the rows of `span`, or of all, block by block.

        A block that crosses the ends of `span` is read whole, so every batch keeps its shape.

        Args:
            rooms: use the memory of a block's activations again, so many blocks later; 0: never.
        """
        span = range(self.tokens) if span is None else span
        shape, dtype = (max(map(block_rows, self.blocks)), self.d), getattr(torch, self.dtype)
        room = [{x: torch.empty(shape, dtype=dtype) for x in self.layers} for _ in range(rooms)]
        end = 0
        for i, block in enumerate(self.blocks):
            start, end = end, end + block_rows(block)
            if end > span.start and start < span.stop:
                rows = self.read(block, lm, room[i % rooms] if rooms else None)
                yield rows[max(0, span.start - start) : span.stop - start]

    def identity(self, lm: LanguageModel) -> dict:
        """What of the plan decides the values, for the store to keep."""
        texts = xxhash.xxh3_128()
        for ids in self.token_ids:
            texts.update(np.int64(len(ids)).tobytes() + ids.astype("<i4").tobytes())
        return {
            "weights": weights_digest(lm.model),
            "model_dtype": str(lm.model.dtype).removeprefix("torch."),  # of a float32 stream, too
            "window": self.window,
            "batch_tokens": self.batch_tokens,
            "opening_token": lm.opening_token,
            "token_ids": texts.hexdigest(),
        }


def plan_extraction(
    documents: list[Document],
    splits: list[str],
    lm: LanguageModel,
    layer: int | Sequence[int] | None,
    window: int,
    document_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Plan:
    """Tokenise, order the documents by split, and cut windows.

    Args:
        layer: a block index, several (stored by one pass), or None: the middle block.
        batch_tokens: positions in one forward pass.
    Raises:
        ValueError: no such layer (the message gives those there are), a window or token ids beyond
            what the model knows, or a model whose tokens see later ones.
    """
    window = whole_number("window", window, 2)
    batch_tokens = whole_number("batch_tokens", batch_tokens, 1)
    if document_tokens is not None:
        document_tokens = whole_number("document_tokens", document_tokens, 1)
    blocks = len(residual_blocks(lm.model))
    several = isinstance(layer, Sequence) and not isinstance(layer, str)
    layers = [resolve_layer(one, blocks) for one in (layer if several else [layer])]
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"layers {layers}: expected at least one, and each once")
    _refuse_shared_texts(documents, splits)
    order = sorted(range(len(documents)), key=lambda i: SPLITS.index(splits[i]))
    token_ids = tokenize([documents[i] for i in order], lm, document_tokens)
    lm.require_room(1 + max((int(ids.max()) for ids in token_ids if len(ids)), default=0), window)
    stream = require_causal(lm.model, max(layers))
    rows = [
        DocumentRows(documents[i].title, splits[i], len(ids)) for i, ids in zip(order, token_ids)
    ]
    dtype = str(stream.dtype).removeprefix("torch.")
    return Plan(rows, token_ids, layers, stream.shape[-1], dtype, window, batch_tokens)


def _refuse_shared_texts(documents: Sequence[Document], splits: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for i, document in enumerate(documents):
        at = first.setdefault(folded(document.text), i)
        if splits[at] != splits[i] and document.text.strip():
            raise ValueError(
                f"{document.title!r} ({splits[i]}) has the text of {documents[at].title!r} "
                f"({splits[at]}): give both one split, or leave splits= out"
            )


def describe(lm: LanguageModel, corpus: str, plan: Plan, *, created_by: str, seed: int = 0) -> dict:
    """Attributes of a store: what its values depend on, and the command line that makes it.

    Args:
        corpus: identity of the documents.
        created_by: the command that makes it.
        seed: of the split, and of a sampled corpus.
    """
    return {
        "model": lm.identity,
        "tokenizer": lm.tokenizer_identity,
        "corpus": corpus,
        "hook_point": "block output",
        "layer_convention": "output of block l, counting from 0",
        "window": plan.window,
        "batch_tokens": plan.batch_tokens,
        "seed": seed,
        "device": lm.device_name,
        "packages": {name: version(name) for name in ("torch", "transformers", "numpy", "h5py")},
        "code": code_digest(*(f"activations/{room}" for room in CODE)),
        "created_by": created_by,
    }


def extract(
    lm: LanguageModel,
    documents: Sequence[Document],
    folder: Path | str,
    *,
    layers: Sequence[int] | int | None = None,
    window: int = 256,
    splits: Sequence[str] | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    document_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    corpus: str = "documents",
    replace: bool = False,
    progress: bool = True,
) -> ActivationStore:
    """Activations of a language model on documents, as a store in a folder.

    What is there already is continued or kept.

    Args:
        lm: see `mmlib.activations.lm.load_language_model`.
        documents: see `mmlib.activations.corpora.load_documents`.
        layers: block indices from 0; None: the middle block.
        window: positions that the model reads at once, the opening token included.
        splits: of each document, "train", "validation" or "test"; None: drawn, stratified by
            length.
        validation, test: how many documents are drawn for these splits; None: a tenth each.
        seed: of the draw.
        document_tokens: at most so many tokens of each document; None: all.
        batch_tokens: positions in one forward pass.
        corpus: a name for the documents; a hash of them is added.
        replace: replace a store of other contents in `folder`, instead of refusing it.
    Returns:
        The store, opened at the first of the layers.
    Raises:
        ValueError: no such layer, unknown splits, or too few documents.
        StoreError: the folder holds a store of other contents, or an activation is NaN or infinite.
        OSError: the disk lacks room.

    >>> lm = load_language_model("gpt2", cache=Path("data"))  # doctest: +SKIP
    >>> store = extract(lm, documents, "acts", layers=[6])  # doctest: +SKIP
    >>> store.tokens("test").z.shape  # doctest: +SKIP
    torch.Size([20481, 768])
    """
    documents, tenth = list(documents), len(documents) // 10
    if splits is None:
        validation, test = (tenth if n is None else n for n in (validation, test))
        splits = split_documents(documents, validation, test, seed)
        if progress:
            print(told(overlap(documents, splits)), flush=True)
    if len(splits) != len(documents) or not set(splits) <= set(SPLITS):
        raise ValueError(
            f"{len(splits)} splits {sorted(set(splits))} for {len(documents)} documents: expected "
            f"one of {', '.join(SPLITS)} for each"
        )
    splits = list(splits)
    plan = plan_extraction(documents, splits, lm, layers, window, document_tokens, batch_tokens)
    identity = corpus_identity(corpus, documents)
    attributes = describe(lm, identity, plan, created_by="mmlib.extract", seed=seed)
    return write_store(plan, lm, folder, attributes=attributes, replace=replace, progress=progress)


def write_store(
    plan: Plan,
    lm: LanguageModel,
    folder: Path | str,
    *,
    attributes: Mapping,
    replace: bool = False,
    progress: bool = True,
    part_bytes: int = PART_BYTES,
    state: PartialState | None = None,
) -> ActivationStore:
    """Write the store that `plan` describes; a part is written while the next block is read.

    Parts of the same plan and attributes that are there and whole are kept, whoever wrote them; so
    is a finished store. Each of several processes writes a run of the parts that miss: a run, since
    a block of text that two processes share is read by both.

    Args:
        attributes: recorded in the store, see `describe`; all but `created_by` must be those of
            what is there.
        replace: remove a store of other contents, with a word, instead of refusing it.
        part_bytes: size of a part, about.
        state: of the processes, all of which call this; None: one, or those that torchrun started.
    Raises:
        OSError: the disk lacks room, found before any work; or `DiskFull`, if it fills later.
        StoreError: the folder holds a store of other contents, or one of the former format; an
            activation is NaN or infinite; or the processes have other devices, packages, models or
            texts, or do not share the folder.
    """
    folder, facts = Path(folder), {"model": lm.identity, "tokenizer": lm.tokenizer_identity}
    if state is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        state = PartialState(cpu=lm.model.device.type == "cpu")
    facts |= {**attributes, **plan.identity(lm)}
    layout = Layout(plan.documents, plan.layers, plan.d, plan.dtype, facts, part_bytes)
    if state:
        _check_processes(layout.identity, folder, state)
    due, finished = _agree(state, lambda: _due(plan, layout, folder, replace))
    index, count = (state.process_index, state.num_processes) if state else (0, 1)
    while due:
        mine = np.array_split(due, count)[index].tolist()
        _write(plan, lm, StoreWriter(folder, layout, due=mine), progress and index == 0)
        if state:
            state.wait_for_everyone()
        due = _agree(state, lambda: layout.missing(folder))  # if another start replaced some
    if finished and index == 0:
        print(f"{folder.name} is there already, with the same contents", flush=True)
    if not finished:
        _agree(state, StoreWriter(folder, layout, due=[]).finish)
    return ActivationStore(folder)


def _due(plan: Plan, layout: Layout, folder: Path, replace: bool) -> tuple[list[int], bool]:
    """Parts to write, and whether the store is finished; refuses what the disk cannot hold."""
    due, finished = examine(folder, layout, replace)
    left = sum(len(layout.rows_of(part)) for part in due)
    require_disk(folder, plan.bytes * left // layout.n, "extraction")
    if 0 < left < layout.n:
        print(f"continuing after {layout.n - left:,} of {layout.n:,} tokens", flush=True)
    return due, finished


def _write(plan: Plan, lm: LanguageModel, writer: StoreWriter, progress: bool) -> None:
    """Read the rows that are due, and write each block on a thread while the next is read."""
    total, quiet = sum(map(len, writer.spans)), not progress
    bar = tqdm(total=total, desc="extracting", unit=" tokens", disable=quiet, **PROGRESS)
    with ThreadPoolExecutor(1) as thread, bar:
        writing = None
        for span in writer.spans:
            for rows in plan.rows(lm, span, rooms=2):  # one is written, one is read into
                if writing:
                    writing.result()  # raises what went wrong in it
                columns = rows.token_ids, rows.document, rows.position
                writing = thread.submit(writer.append, rows.activations, *columns)
                bar.update(len(rows))
        if writing:
            writing.result()


def _agree(state: PartialState | None, work: Callable):
    """What `work` gives the first process, in all of them; its errors too."""
    if state is None:
        return work()
    found = None
    if state.is_main_process:
        try:
            found = work()
        except (StoreError, OSError) as error:
            found = error
    (found,) = broadcast_object_list([found])
    if isinstance(found, Exception):
        raise found
    return found


def _check_processes(identity: Mapping, folder: Path, state: PartialState) -> None:
    """Refuse processes whose parts would not be of one store, or that do not share its folder."""
    mark = folder.with_name(folder.name + ".mark")
    if state.is_main_process:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(uuid.uuid4().hex, encoding="utf-8")
    state.wait_for_everyone()
    read = mark.read_text(encoding="utf-8") if mark.exists() else ""
    state.wait_for_everyone()
    if state.is_main_process:
        mark.unlink()
    facts = {key: str(value) for key, value in {**identity, "folder": read}.items()}
    known = gather_object([facts])
    if found := [other for other in known if other != known[0]]:
        raise StoreError(
            f"the processes differ in {differences(known[0], found[0])}: give all the same "
            "packages, texts, kind of device and folder"
        )
