"""Text from the language model: one seeded generator, with or without prompts, with or without an
edit of its activations.

Text is drawn at temperature 1 from the model's own softmax: no truncation, and none of the settings
that a model ships for chatting (`shipped_settings_off`). The draws that choose tokens come from one
of two sources, each of which gives the same text for the same seed on the same machine: torch's own
generator, by a seed, or `GumbelNoise`, whose noise is a function of prompt, step and token, so that
texts under different edits are chosen by the same draws.

    generate          new ids behind prompts of any lengths, or behind the opening token alone
    continuations     new ids behind equally long prompts, in batches, under an edit
    sample_token_ids  samples from the opening token on, cached batch by batch
"""

import hashlib
import inspect
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from mmlib.activations.lm import (
    PROBE_TOKENS,
    PROGRESS,
    LanguageModel,
    edited_block,
    evaluation_mode,
)

BATCH = 40  # both 40 and 200 documents, those of the presets, are whole batches
TIMED_TOKENS = 8  # drawn and thrown away, to say how long the rest will take
# predictions whose logits are taken to float32 at a time: they stay in the cache, which is eight
# times as fast as a window
LOGIT_ROWS = 8
SCORED_AT_ONCE = 16  # continuations in one forward pass
PROBE_STEPS = 4  # of the pass that asks whether `generate` is faithful


@contextmanager
def compact_logits(model: PreTrainedModel):
    """Within the context, the vocabulary's matrix meets rows that lie side by side.

    `generate` slices the last position out of a prompt's hidden states; torch multiplies such a
    slice prompt by prompt, with a copy of the matrix for each: 10 GB at 32 prompts of a
    262,144-token vocabulary.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: (inputs[0].contiguous(), *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def shipped_settings_off(model: PreTrainedModel):
    """Within the context, `generate` takes nothing from the settings that the model ships:
    penalties, bans, temperatures.
    """
    shipped = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        with compact_logits(model):
            yield
    finally:
        model.generation_config = shipped


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise to the logits, so that their largest is a sample at temperature 1 (Maddison
    et al. 2014).

    The noise of a prompt, step and token depends on the key alone. On a CPU torch.multinomial's
    draws take half of a step of `generate`.
    """

    def __init__(self, *key: int):
        self.rng = np.random.Generator(np.random.SFC64(key))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits (b, v) with noise added, on their device."""
        # double: of single-precision draws one in ten million is 0, and its token would win
        room_v, rows = np.empty(scores.shape[1]), []
        for row in scores:
            noise_v = np.log(self.rng.standard_exponential(out=room_v), out=room_v)
            rows.append(row - torch.from_numpy(noise_v).to(row))
        return torch.stack(rows)


# what chooses tokens: torch's own generator by that seed, or Gumbel noise
Draws = int | GumbelNoise


@contextmanager
def _drawn_by(draws: Draws):
    """What `generate` of transformers is told of the draws; torch's generators are afterwards as
    they were.
    """
    if isinstance(draws, GumbelNoise):
        yield {"do_sample": False, "logits_processor": LogitsProcessorList([draws])}
    else:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(draws)
            yield {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def _new_ids(
    lm: LanguageModel, ids_bt: Tensor, tokens: int, draws: Draws, may_end: bool, **options
) -> Tensor:
    """Ids that follow equally long rows, (b, at most `tokens`), by transformers' own `generate`
    with a KV cache.

    Args:
        may_end: <eos> may be drawn; what follows it in its row means nothing.
        options: further ones of `generate`.
    """
    eos = lm.tokenizer.eos_token_id
    options = {"attention_mask": torch.ones_like(ids_bt), "num_beams": 1} | options
    if not may_end:
        options["min_new_tokens"] = tokens
    with evaluation_mode(lm.model), shipped_settings_off(lm.model), _drawn_by(draws) as drawing:
        found_bt = lm.model.generate(
            ids_bt,
            max_new_tokens=tokens,
            eos_token_id=eos,
            pad_token_id=lm.opening_token if eos is None else eos,
            **drawing,
            **options,
        )
    return found_bt[:, ids_bt.shape[1] :]


_FAITHFUL: dict[bool, WeakSet[PreTrainedModel]] = {
    False: WeakSet(),
    True: WeakSet(),
}  # models that passed `_require_faithful_steps`, without and with padding


@torch.inference_mode()
def _require_faithful_steps(lm: LanguageModel, padded: bool = False) -> None:
    """Refuse a model to which transformers' `generate` gives other logits than a plain pass over
    the same tokens does.

    So it is where positions are counted otherwise (RoBERTa as a decoder), a cache forgets (RWKV in
    batches) or padding on the left shifts positions (BART): the text would be another model's. Two
    rows of a few tokens are continued by a few, once for each model.

    Args:
        padded: the second row is shorter, with padding on its left.
    Raises:
        ValueError: the logits differ, or `generate` fails.
    """
    model = lm.model
    if model in _FAITHFUL[padded]:
        return
    words, padding = model.config.get_text_config().vocab_size, [0, 3 * padded]
    ids_bt = (torch.arange(PROBE_TOKENS, device=model.device) * 7 % words).view(2, -1)
    options = {"output_logits": True, "return_dict_in_generate": True, "do_sample": False}
    name = f"{type(model).__name__} cannot generate"
    name += " behind prompts of several lengths" if padded else ""
    try:
        mask = {"attention_mask": torch.ones_like(ids_bt)}
        options |= _left_padded(lm, ids_bt, padding) if padded else mask
        with evaluation_mode(model), shipped_settings_off(model):
            found = model.generate(ids_bt, max_new_tokens=PROBE_STEPS, pad_token_id=0, **options)
    except Exception as error:
        raise ValueError(
            f"{name}: transformers fails with {type(error).__name__}: {error}"
        ) from error
    moved = []
    for row, n in enumerate(padding):
        stepped_sv = torch.stack([logits_bv[row] for logits_bv in found.logits]).float()
        ids_bt = found.sequences[row : row + 1, n:-1]
        with evaluation_mode(model):
            whole_tv = model(input_ids=ids_bt, use_cache=False).logits[0]
        whole_sv = whole_tv[-PROBE_STEPS:].float()
        moved.append((stepped_sv - whole_sv).abs().median(-1).values / whole_sv.std(-1))
    share = torch.cat(moved).mean().item()
    if not share <= 0.05 + 8 * torch.finfo(model.dtype).eps:  # in bfloat16 0.11, Gemma 3 has 0.03
        raise ValueError(
            f"{name}: step by step its logits are other ones than in one pass, by {share:.2f} "
            "standard deviations. transformers counts positions otherwise then, or its cache "
            "loses something"
        )
    _FAITHFUL[padded].add(model)


def _newest_alone(
    model: PreTrainedModel, ids_bt: Tensor, edit: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """The edit, which refuses a model that reads everything anew in each step: an edit of the
    newest position would be forgotten in the next.
    """
    steps = iter([ids_bt.shape[1]])

    def edited(hidden_btd: Tensor) -> Tensor:
        expected = len(ids_bt), next(steps, 1)
        if hidden_btd.shape[:2] != expected:
            raise ValueError(
                f"{type(model).__name__} cannot be steered: the block gives "
                f"{tuple(hidden_btd.shape)}, expected {expected} (batch, tokens) and d. With a "
                "cache each step behind the prompt reads the newest token alone"
            )
        return edit(hidden_btd)

    return edited


def generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    draws: Draws,
    *,
    may_end: bool = False,
    streamer: BaseStreamer | None = None,
) -> list[list[int]]:
    """New token ids behind each prompt.

    Args:
        prompts: token ids without the opening token, of any lengths; empty ones draw from the
            opening token on.
        tokens: so many new ones for each, or fewer where it may end.
        draws: a seed of torch's generator, or `GumbelNoise`.
        may_end: a text ends before <eos>; otherwise <eos> is never drawn, so all are equally long.
        streamer: is told of every step, as transformers' `generate` does.
    Raises:
        ValueError: transformers' `generate` does not give this architecture's own logits, or not
            behind padding.
    """
    if not prompts:
        raise ValueError("no prompts: expected at least one, which may be empty")
    width, eos = max(map(len, prompts)), lm.tokenizer.eos_token_id
    lm.require_room(0, 1 + width + tokens)
    padding = [width - len(ids) for ids in prompts]
    _require_faithful_steps(lm, any(padding))
    opened = [[lm.opening_token] * (1 + n) + list(ids) for n, ids in zip(padding, prompts)]
    opened_bt = torch.tensor(opened, device=lm.model.device)
    options = _left_padded(lm, opened_bt, padding) if any(padding) else {}
    new_bt = _new_ids(lm, opened_bt, tokens, draws, may_end, streamer=streamer, **options)
    rows = new_bt.tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows] if may_end else rows


def _left_padded(lm: LanguageModel, opened_bt: Tensor, padding: Sequence[int]) -> dict:
    """What `generate` of transformers is told of rows that begin with padding: the mask that hides
    it, and the rows as already read.

    `generate` would read them too, in a pass of another shape, in which a bfloat16 model may round
    otherwise: texts that were drawn this way are kept, and are drawn again where the cache is gone.
    """
    width = opened_bt.shape[1]
    mask_bt = torch.tensor([[0] * n + [1] * (width - n) for n in padding], device=lm.model.device)
    with torch.no_grad(), evaluation_mode(lm.model):
        read = lm.model.base_model(
            input_ids=opened_bt[:, :-1],
            attention_mask=mask_bt[:, :-1],
            use_cache=True,
            position_ids=(mask_bt.cumsum(1) - 1).clamp(min=0)[:, :-1],
        )
    return {"attention_mask": mask_bt, "past_key_values": read.past_key_values}


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
    """New token ids (b, tokens) behind equally long prompts, with a block's output edited or not.

    The draws that choose tokens depend on (seed, batch) and not on the edit: equal logits give
    equal text. Never <eos>, so all are equally long.

    Args:
        prompt_ids_bt: equally long prompts, opening token included.
        layer: block whose output is edited.
        steering: makes the edit of a batch from the batch's number; None: the language model as it
            is.
        batch: prompts that are continued together.
    Raises:
        ValueError: transformers' `generate` does not give this architecture's own logits, or the
            architecture has no cache to steer with.
    """
    lm.require_room(0, prompt_ids_bt.shape[1] + tokens)
    _require_faithful_steps(lm)
    drawn = []
    for i, part_bt in enumerate(prompt_ids_bt.to(lm.model.device).split(batch)):
        editing = nullcontext()
        if steering is not None:
            edit = _newest_alone(lm.model, part_bt, steering(i))
            editing = edited_block(lm.model, layer, edit)
        with editing:
            drawn.append(_new_ids(lm, part_bt, tokens, GumbelNoise(seed, i), may_end=False).cpu())
    return torch.cat(drawn)


def sample_token_ids(
    lm: LanguageModel, n: int, tokens: int, seed: int, cache: Path, *, batch: int = BATCH
) -> list[list[int]]:
    """Ids of `n` samples at temperature 1 from the opening token on, which is left out; [] where
    the model ended at once.

    A sample is what the model's own softmax gives, with no truncation and none of the settings the
    model ships for chatting. It ends before <eos> or at `tokens` ids. Batch i depends on (seed, i,
    lm.identity, tokens) alone, so `n` samples are the first of any larger number; on another device
    or torch the same seed may give others. Whole batches are drawn.

    Args:
        cache: folder that keeps, in `self/`, one JSON list a line for each sample, written batch by
            batch: an interrupted call resumes after the last whole batch. One call at a time may
            write to it.
    Raises:
        ValueError: `n` or `tokens` is below 1, or the cache holds something else.
    """
    if n < 1 or tokens < 1:
        raise ValueError(f"{n} samples of {tokens} tokens: expected at least one of each")
    # the identity of the embedded model does not say its dtype
    dtype = str(lm.model.dtype).removeprefix("torch.")
    name = f"{Path(lm.identity).name}-{dtype}-seed{seed}-{tokens}tokens-batch{batch}.jsonl"
    path = Path(cache) / "self" / name
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
    """The cached samples without what an interruption left of a batch, and the number of bytes they
    take in the file.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    n_whole = sum(line.endswith(b"\n") for line in lines) // batch * batch
    try:
        return [json.loads(line) for line in lines[:n_whole]], sum(map(len, lines[:n_whole]))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}): expected a JSON list of token ids a line; delete it to "
            "draw them anew"
        ) from error


def _draw(
    lm: LanguageModel, batches: range, batch: int, tokens: int, seed: int
) -> Iterator[list[list[int]]]:
    """The samples of each batch, with progress."""
    n_tokens, nothing = len(batches) * batch * tokens, [[]] * batch
    few = min(TIMED_TOKENS, tokens)
    start = time.perf_counter()
    generate(lm, nothing, few, _seed_of("time"), may_end=True)
    minutes = (time.perf_counter() - start) / (batch * few) * n_tokens / 60
    print(
        f"sampling {len(batches) * batch} documents from {lm.identity}: at most {n_tokens:,} "
        f"tokens, about {minutes:.1f} minutes",
        flush=True,
    )
    with tqdm(total=n_tokens, desc="sampling", unit=" tokens", **PROGRESS) as bar:
        for done, i in enumerate(batches):
            key = _seed_of(seed, i, lm.identity, tokens)
            drawn = generate(lm, nothing, tokens, key, may_end=True, streamer=_Ticks(bar))
            # all samples of the batch may have ended early
            bar.update((done + 1) * batch * tokens - bar.n)
            yield drawn


def _seed_of(*key) -> int:
    """A seed of torch's generator that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8])


class _Ticks(BaseStreamer):
    """Moves the bar by a batch at each step of `generate`, which passes the opening tokens
    first.
    """

    def __init__(self, bar: tqdm):
        self.bar, self.opened = bar, False

    def put(self, value):
        self.bar.update(len(value) if self.opened else 0)
        self.opened = True

    def end(self):
        pass


@torch.inference_mode()
def log_likelihoods(lm: LanguageModel, prompt_ids_bt: Tensor, new_ids_bt: Tensor) -> np.ndarray:
    """Mean log-likelihood of each continuation, nats per token, under the language model as it is,
    (b,).
    """
    found, n_new, options = [], new_ids_bt.shape[1], {"use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        options["logits_to_keep"] = n_new + 1
    predicting = slice(-n_new - 1, -1)
    for ids_bt in torch.cat([prompt_ids_bt, new_ids_bt], 1).split(SCORED_AT_ONCE):
        ids_bt = ids_bt.to(lm.model.device)
        with evaluation_mode(lm.model), compact_logits(lm.model):
            logits_nv = lm.model(input_ids=ids_bt, **options).logits[:, predicting].flatten(0, 1)
        losses_n = torch.cat(list(prediction_losses(logits_nv, ids_bt[:, -n_new:].flatten())))
        found.append(-losses_n.double().view(-1, n_new).mean(1).cpu())
    return torch.cat(found).numpy()


def prediction_losses(logits_nv: Tensor, target_n: Tensor) -> Iterator[Tensor]:
    """Of the predictions of tokens (n,), nats in float32, a few rows at a time."""
    for logits_mv, target_m in zip(logits_nv.split(LOGIT_ROWS), target_n.split(LOGIT_ROWS)):
        yield cross_entropy(logits_mv.float(), target_m, reduction="none")
