"""Language model × documents → store. Runs only the blocks up to the last one asked for, on packed windows.

    python -m mmlib extract --preset default                          what notebook 01 extracts
    torchrun --nproc-per-node 2 -m mmlib extract --layers 4 8 13      by several processes or machines with a shared disk, a shard each

Several machines need the same packages and kind of device; torchrun gives each process one CPU thread unless OMP_NUM_THREADS says more. Killed or interrupted at any moment, the same command (with as many processes) continues where the last whole chunk ended.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from mmlib.activations.corpora import SPLITS, Document
from mmlib.activations.lm import PROGRESS, LanguageModel, residual_blocks, resolve_layer
from mmlib.activations.store import ActivationStore, StoreError, verify
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
from mmlib.activations.writer import DocumentRows, StoreWriter, join_shards
from mmlib.files import code_digest, require_disk

BATCH_TOKENS = 4096  # positions in one forward pass, unless told otherwise
CODE = ("windows", "lm", "corpora", "writer", "store")  # what decides the bytes of a store


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
    first_document: int = 0  # in the whole extraction, of which this may be a share

    @property
    def tokens(self) -> int:
        """Rows to be stored."""
        return sum(document.rows for document in self.documents)

    @property
    def bytes(self) -> int:
        """Size on disk: activations, three integers a row, checksums."""
        width = {"bfloat16": 2, "float16": 2, "float32": 4}[self.dtype]
        return (
            int(1.001 * self.tokens * (len(self.layers) * self.d * width + 12))
            + 500 * len(self.documents)
            + 100_000
        )

    @cached_property
    def windows(self) -> list[Window]:
        """All windows, in the order of the text."""
        return list(cut_windows(self.token_ids, self.window))

    @cached_property
    def blocks(self) -> list[Block]:
        """The windows as they are read together."""
        return list(cut_blocks(self.windows, self.batch_tokens))

    def describe(self, lm: LanguageModel) -> str:
        """What will be done, and how long it takes at the speed of one batch, which is read for that."""
        batch = self.windows[: max(1, self.batch_tokens // self.window)]
        read_block(batch[:1], lm, self.layers, self.batch_tokens)  # the first pass is slow
        began = time.perf_counter()
        read_block(batch, lm, self.layers, self.batch_tokens)
        speed = block_rows(batch) / (time.perf_counter() - began)
        return (
            f"layers {', '.join(map(str, self.layers))}: {self.tokens:,} tokens in {len(self.windows):,} windows, {self.bytes / 1e9:.2f} GB on disk, "
            f"about {self.tokens / speed / 60:.1f} minutes at {speed:,.0f} tokens/s"
        )

    def rows(self, lm: LanguageModel, start: int = 0, rooms: int = 0) -> Iterator[Rows]:
        """Activations from row `start` on, block by block.

        Args:
            rooms: use the memory of a block's activations again, so many blocks later; 0: never.
        """
        largest, dtype = max(map(block_rows, self.blocks)), getattr(torch, self.dtype)
        room = [
            {layer: torch.empty(largest, self.d, dtype=dtype) for layer in self.layers}
            for _ in range(rooms)
        ]
        at = 0
        for i, block in enumerate(self.blocks):
            end = at + block_rows(block)
            if end > start:
                yield read_block(
                    block, lm, self.layers, self.batch_tokens, room[i % rooms] if rooms else None
                )[max(0, start - at) :]
            at = end

    def share(self, index: int, count: int) -> "Plan":
        """The documents of one of `count` processes: a run of near-equal tokens that ends where a block does.

        Raises:
            ValueError: the documents cannot be divided among so many.
        """
        ends = [
            (block[-1].document + 1, tokens)
            for block, tokens in zip(
                self.blocks, np.cumsum([block_rows(block) for block in self.blocks])
            )
            if block[-1].ends_document
        ]
        cuts = [
            0,
            *(
                min(ends, key=lambda end: abs(end[1] - self.tokens * i / count))[0]
                for i in range(1, count)
            ),
            len(self.documents),
        ]
        if any(a >= b for a, b in zip(cuts, cuts[1:])):
            raise ValueError(
                f"{len(self.documents)} documents with {self.tokens:,} tokens cannot be divided among {count} processes: use fewer"
            )
        part = slice(cuts[index], cuts[index + 1])
        return replace(
            self,
            documents=self.documents[part],
            token_ids=self.token_ids[part],
            first_document=cuts[index],
        )


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
        ValueError: no such layer; the message gives those there are.
    """
    blocks = len(residual_blocks(lm.model))
    layers = [
        resolve_layer(one, blocks) for one in (layer if isinstance(layer, Sequence) else [layer])
    ]
    if len(set(layers)) < len(layers):
        raise ValueError(f"layers {layers}: expected each once")
    order = sorted(range(len(documents)), key=lambda i: SPLITS.index(splits[i]))
    token_ids = tokenize([documents[i] for i in order], lm, document_tokens)
    rows = [
        DocumentRows(documents[i].title, splits[i], len(ids)) for i, ids in zip(order, token_ids)
    ]
    return Plan(
        rows,
        token_ids,
        layers,
        lm.width,
        str(lm.model.dtype).removeprefix("torch."),
        window,
        batch_tokens,
    )


def describe(lm: LanguageModel, corpus: str, plan: Plan, *, created_by: str, seed: int = 0) -> dict:
    """Attributes of a store: what its values depend on, and the command line that makes it.

    Args:
        corpus: identity of the documents.
        created_by: the command that makes it.
        seed: of the split, and of a sampled corpus.
    """
    code = code_digest(*(f"activations/{room}" for room in CODE))
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "h5py")}
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
        "packages": json.dumps(packages),
        "code": code,
        "created_by": created_by,
    }


def extract(
    plan: Plan, lm: LanguageModel, path: Path, *, attributes: dict, progress: bool = True
) -> None:
    """Write the store that `plan` describes; the file is written while the next block is read.

    What an interrupted extraction with the same plan and attributes left is continued; a finished one that verifies is left as it is.

    Args:
        attributes: recorded in the file, see `describe`.
    Raises:
        OSError: the disk lacks room for it, found before any work is done; or `DiskFull`, if it fills up later.
        StoreError: an activation is NaN or infinite, or another process writes this store.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if _is_there(plan, path, attributes):
        return print(f"{path.name} is there already, with the same contents", flush=True)
    _require_room(plan, [path.with_name(path.name + ".partial")])
    with (
        StoreWriter(path, plan.documents, plan.layers, plan.d, plan.dtype, attributes) as writer,
        ThreadPoolExecutor(1) as thread,
        tqdm(
            total=plan.tokens,
            initial=writer.next_row,
            desc="extracting",
            unit=" tokens",
            disable=not progress,
            **PROGRESS,
        ) as bar,
    ):
        if writer.next_row:
            print(f"continuing after {writer.next_row:,} of {plan.tokens:,} tokens", flush=True)
        writing = None
        for rows in plan.rows(
            lm, writer.next_row, rooms=2
        ):  # one is written while the other is read
            if writing:
                writing.result()  # raises what went wrong in it
            writing = thread.submit(
                writer.append, rows.activations, rows.token_ids, rows.document, rows.position
            )
            bar.update(len(rows))
        if writing:
            writing.result()
        writer.finish()


def _is_there(plan: Plan, path: Path, attributes: dict) -> bool:
    if not path.exists():
        return False
    try:
        store = ActivationStore(path, plan.layers[0])
        listing = list(zip(store.titles, store.splits, store.document_rows.tolist()))
        known = (
            {key: store.attributes.get(key) for key in attributes},
            store.attributes["layers"].tolist(),
            store.dtype,
            listing,
        )
        store.close()
    except StoreError as error:
        print(f"replacing what is there: {error}", flush=True)
        return False
    wanted = (
        attributes,
        plan.layers,
        plan.dtype,
        [(x.title, x.split, x.rows) for x in plan.documents],
    )
    names = [key for key in attributes if attributes[key] != known[0][key]] + [
        name
        for name, a, b in zip(("layers", "dtype", "documents"), known[1:], wanted[1:])
        if a != b
    ]
    problems = [f"it is of other {', '.join(names)}"] if names else verify(path)
    for problem in problems:
        print(f"replacing what is there: {problem}", flush=True)
    return not problems


def _require_room(plan: Plan, paths: list[Path]) -> None:
    """Refuse what the disk cannot hold besides `paths`, which an earlier run has written of it."""
    there = sum(path.stat().st_blocks * 512 for path in paths if path.exists())
    require_disk(paths[0].parent, plan.bytes - there, "extraction")


def extract_shards(
    plan: Plan, lm: LanguageModel, path: Path, *, attributes: dict, state: PartialState
) -> None:
    """As `extract`, by all processes of `state`: each writes a shard beside `path`, which joins them.

    Raises:
        StoreError: the processes have other devices, packages, models or texts, or do not share the folder; found before any work.
        Whatever else `extract` raises.
    """
    count = state.num_processes
    shards = [
        path.with_name(f"{path.stem}.shard-{i}-of-{count}{path.suffix}") for i in range(count)
    ]
    mine = state.process_index
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_processes(
        {**attributes, "documents": repr(plan.documents), "folder": _mark(path, state)}
    )
    if state.is_main_process:
        _require_room(plan, shards + [shard.with_name(shard.name + ".partial") for shard in shards])
        if others := sorted(
            {*path.parent.glob(f"{path.stem}.shard-*")}
            - {*shards, *(shard.with_name(shard.name + ".partial") for shard in shards)}
        ):
            print(
                f"shards of another number of processes lie here and are not used: {', '.join(file.name for file in others)}",
                flush=True,
            )
    state.wait_for_everyone()
    share = plan.share(mine, count)
    extract(
        share,
        lm,
        shards[mine],
        attributes={
            **attributes,
            "shard": f"{mine} of {count}",
            "first_document": share.first_document,
        },
        progress=state.is_main_process,
    )
    state.wait_for_everyone()
    if state.is_main_process:
        join_shards(path, shards)
    state.wait_for_everyone()


def _mark(path: Path, state: PartialState) -> str:
    """What the first process wrote beside `path`, as this one reads it: "" if it cannot."""
    mark = path.with_name(path.name + ".folder")
    if state.is_main_process:
        mark.write_text(uuid.uuid4().hex, encoding="utf-8")
    state.wait_for_everyone()
    found = mark.read_text(encoding="utf-8") if mark.exists() else ""
    state.wait_for_everyone()
    if state.is_main_process:
        mark.unlink()
    return found


def _check_processes(facts: dict[str, str]) -> None:
    """Refuse processes whose facts differ: their shards could not be joined."""
    known = gather_object([{key: str(value) for key, value in facts.items()}])
    if differing := [key for key in facts if len({one[key] for one in known}) > 1]:
        seen = "; ".join(sorted({str({key: one[key][:80] for key in differing}) for one in known}))
        raise StoreError(
            f"the processes differ in {', '.join(differing)} ({seen}): give all the same packages, texts, kind of device and folder"
        )
