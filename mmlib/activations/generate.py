"""The language model as its own corpus: plain samples from it, seeded, cached as token ids."""

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from mmlib.activations.lm import PROGRESS, LanguageModel, edited_block

BATCH = 40  # both 40 and 200 documents, those of the presets, are whole batches


TIMED_TOKENS = 8  # drawn and thrown away, to say how long the rest will take


def sample_token_ids(
    lm: LanguageModel, n: int, tokens: int, seed: int, cache: Path, *, batch: int = BATCH
) -> list[list[int]]:
    """Ids of `n` samples at temperature 1 from the opening token on, which is left out; [] where the model ended at once.

    A sample is what the model's own softmax gives, with no truncation and none of the settings the model ships for chatting.
    It ends before <eos> or at `tokens` ids. Batch i depends on (seed, i, lm.identity, tokens) alone, so `n` samples are the
    first of any larger number; on another device or torch the same seed may give others. Whole batches are drawn.

    Args:
        cache: folder that keeps, in `self/`, one JSON list a line for each sample, written batch by batch: an interrupted
            call resumes after the last whole batch. One call at a time may write to it.
    Raises:
        ValueError: `n` or `tokens` is below 1, or the cache holds something else.
    """
    if n < 1 or tokens < 1:
        raise ValueError(f"{n} samples of {tokens} tokens: expected at least one of each")
    dtype = str(lm.model.dtype).removeprefix(
        "torch."
    )  # the identity of the embedded model does not tell it
    path = (
        Path(cache)
        / "self"
        / f"{Path(lm.identity).name}-{dtype}-seed{seed}-{tokens}tokens-batch{batch}.jsonl"
    )
    samples, n_bytes = _whole_batches(path, batch)
    batches = range(len(samples) // batch, math.ceil(n / batch))
    if batches:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.truncate(n_bytes)
            for drawn in _draw(lm, batches, batch, tokens, seed):
                file.write(b"".join(json.dumps(ids).encode() + b"\n" for ids in drawn))
                file.flush()
                samples += drawn
    return samples[:n]


def _whole_batches(path: Path, batch: int) -> tuple[list[list[int]], int]:
    """The cached samples without what an interruption left of a batch, and the number of bytes they take in the file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    n_whole = sum(line.endswith(b"\n") for line in lines) // batch * batch
    try:
        return [json.loads(line) for line in lines[:n_whole]], sum(map(len, lines[:n_whole]))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): expected a JSON list of token ids a line; delete it to draw them anew"
        ) from error


def _draw(
    lm: LanguageModel, batches: range, batch: int, tokens: int, seed: int
) -> Iterator[list[list[int]]]:
    """The samples of each batch, with progress."""
    n_tokens = len(batches) * batch * tokens
    with _seeded("time"):
        start = time.perf_counter()
        _generate(lm, batch, min(TIMED_TOKENS, tokens))
        minutes = (
            (time.perf_counter() - start) / (batch * min(TIMED_TOKENS, tokens)) * n_tokens / 60
        )
    print(
        f"sampling {len(batches) * batch} documents from {lm.identity}: at most {n_tokens:,} tokens, about {minutes:.1f} minutes",
        flush=True,
    )
    with tqdm(total=n_tokens, desc="sampling", unit=" tokens", **PROGRESS) as bar:
        for done, i in enumerate(batches):
            with _seeded(seed, i, lm.identity, tokens):
                drawn = _generate(lm, batch, tokens, _Ticks(bar))
            bar.update(
                (done + 1) * batch * tokens - bar.n
            )  # all samples of the batch may have ended early
            yield drawn


class _Ticks(BaseStreamer):
    """Moves the bar by a batch at each step of `generate`, which passes the opening tokens first."""

    def __init__(self, bar: tqdm):
        self.bar, self.opened = bar, False

    def put(self, value):
        self.bar.update(len(value) if self.opened else 0)
        self.opened = True

    def end(self):
        pass


@contextmanager
def _seeded(*key):
    """Random numbers of torch that depend on the key alone; afterwards its generators are as they were."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8]))
        yield


def _generate(
    lm: LanguageModel, batch: int, tokens: int, streamer: BaseStreamer | None = None
) -> list[list[int]]:
    """One batch of samples without the opening token, <eos> and what follows it."""
    eos, opening_b1 = (
        lm.tokenizer.eos_token_id,
        torch.full((batch, 1), lm.opening_token, device=lm.model.device),
    )
    shipped = lm.model.generation_config
    lm.model.generation_config = (
        GenerationConfig()
    )  # `generate` takes from it whatever is not given here: penalties, bans, …
    try:
        ids_bt = lm.model.generate(
            opening_b1,
            attention_mask=torch.ones_like(opening_b1),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_beams=1,
            max_new_tokens=tokens,
            eos_token_id=eos,
            pad_token_id=lm.opening_token if eos is None else eos,
            streamer=streamer,
        )
    finally:
        lm.model.generation_config = shipped
    rows = ids_bt[:, 1:].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]


LOGIT_ROWS = (
    8  # predictions whose logits are taken to float32 at a time, see `mmlib.evaluation.lm_loss`
)


SCORED_AT_ONCE = 16  # continuations in one forward pass


@contextmanager
def compact_logits(model: PreTrainedModel):
    """Within the context, the vocabulary's matrix meets rows that lie side by side.

    `generate` slices the last position out of a prompt's hidden states; torch multiplies such a slice prompt by prompt, with a copy of the
    matrix for each: 10 GB at 32 prompts of a 262,144-token vocabulary.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: (inputs[0].contiguous(), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to the logits, so that their largest is a sample at temperature 1 (Maddison et al. 2014).

    The noise of a prompt, step and token depends on the key alone. On a CPU torch.multinomial's draws take half of a step of `generate`.
    """

    def __init__(self, *key: int):
        self.rng = np.random.Generator(np.random.SFC64(key))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        room = np.empty(
            scores.shape[1]
        )  # double: of single-precision draws one in ten million is 0, and its token would win
        return torch.stack(
            [
                row
                - torch.from_numpy(np.log(self.rng.standard_exponential(out=room), out=room)).to(
                    row
                )
                for row in scores
            ]
        )


@contextmanager
def shipped_settings_off(model: PreTrainedModel):
    """Within the context, `generate` takes nothing from the settings that the model ships: penalties, bans, temperatures."""
    shipped = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        with compact_logits(model):
            yield
    finally:
        model.generation_config = shipped


def continuations(
    lm: LanguageModel,
    prompt_ids_bt: Tensor,
    layer: int,
    steering: Callable[[int], Callable[[Tensor], Tensor]] | None = None,
    *,
    tokens: int,
    seed: int,
    batch: int = 100,
) -> Tensor:
    """New token ids (b, tokens), sampled at temperature 1 by transformers' own `generate` with a KV cache.

    The draws that choose tokens depend on (seed, batch) and not on the edit: equal logits give equal text. Never <eos>, so all are equally long.

    Args:
        prompt_ids_bt: equally long prompts, opening token included.
        steering: makes the edit of a batch from the batch's number; None: the language model as it is.
    """
    eos, drawn = lm.tokenizer.eos_token_id, []
    for i, part_bt in enumerate(prompt_ids_bt.to(lm.model.device).split(batch)):
        editing = nullcontext() if steering is None else edited_block(lm.model, layer, steering(i))
        with shipped_settings_off(lm.model), editing:
            ids_bt = lm.model.generate(
                part_bt,
                attention_mask=torch.ones_like(part_bt),
                do_sample=False,
                num_beams=1,
                use_cache=True,
                logits_processor=LogitsProcessorList([GumbelNoise(seed, i)]),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                eos_token_id=eos,
                pad_token_id=lm.opening_token if eos is None else eos,
            )
        drawn.append(ids_bt[:, part_bt.shape[1] :].cpu())
    return torch.cat(drawn)


@torch.inference_mode()
def log_likelihoods(lm: LanguageModel, prompt_ids_bt: Tensor, new_ids_bt: Tensor) -> np.ndarray:
    """Mean log-likelihood of each continuation, nats per token, under the language model as it is, (b,)."""
    found, n_new = [], new_ids_bt.shape[1]
    keep = (
        {"logits_to_keep": n_new + 1}
        if "logits_to_keep" in inspect.signature(lm.model.forward).parameters
        else {}
    )
    for prompt, new in zip(
        prompt_ids_bt.split(SCORED_AT_ONCE), new_ids_bt.split(SCORED_AT_ONCE), strict=True
    ):
        ids_bt = torch.cat([prompt, new], 1).to(lm.model.device)
        with compact_logits(lm.model):
            logits_nv = (
                lm.model(input_ids=ids_bt, use_cache=False, **keep)
                .logits[:, -n_new - 1 : -1]
                .flatten(0, 1)
            )
        parts = zip(logits_nv.split(LOGIT_ROWS), ids_bt[:, -n_new:].flatten().split(LOGIT_ROWS))
        losses_n = torch.cat(
            [cross_entropy(logits.float(), target, reduction="none") for logits, target in parts]
        )
        found.append(-losses_n.double().view(-1, n_new).mean(1).cpu())
    return torch.cat(found).numpy()
