"""Load any causal language model and read its residual stream.

Layer ℓ means the output of block ℓ, counting from 0: transformers' `hidden_states[ℓ + 1]`, save for
the last block, whose entry there is normed already.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mmlib.activations.pretrained import (
    EMBEDDED,
    EMBEDDED_SHA256,
    cause_of,
    pretrained,
    refuse_adapter,
    require_complete,
    require_memory,
    weights_id,
)
from mmlib.files import bf16_pays, whole_number

# of one block: the residual stream (batch, tokens, d), or a tuple or list that begins with it, as
# some architectures give
BlockOutput = Tensor | tuple | list
DTYPES = ("bfloat16", "float32", "float16")
# of tqdm, where tokens are counted
BAR = "{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left"
PROGRESS = {"bar_format": BAR, "mininterval": 2}


@dataclass(frozen=True)
class LanguageModel:
    """A causal LM with its tokenizer, and a name for it that pins its weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    identity: (
        str  # "name@hash"; the hash is of the packaged file, or of the weights in the checkpoint
    )

    @property
    def opening_token(self) -> int:
        """The id that opens each window: <bos>, or <eos> where the tokenizer has no <bos>."""
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None and eos is None:
            raise ValueError(
                f"the tokenizer of {self.identity} has neither <bos> nor <eos> to open a window "
                "with"
            )
        return eos if bos is None else bos

    @property
    def device_name(self) -> str:
        """What it computes on: last bits differ from one kind of device to another."""
        device = self.model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def width(self) -> int:
        """d, of the residual stream."""
        return self.model.config.get_text_config().hidden_size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; the name of a control token in it, "<s>", is plain text."""
        if not texts:
            return []
        options = dict(add_special_tokens=False, split_special_tokens=True, verbose=False)
        return self.tokenizer(list(texts), **options)["input_ids"]

    def require_room(self, token_ids: int, window: int) -> None:
        """Refuse token ids that have no embedding, and windows beyond the positions that the model
        knows.

        Args:
            token_ids: so many different ones, i.e. 1 + the largest.
            window: positions that are read together, opening token included.
        Raises:
            ValueError: there is no room for them.
        """
        words = self.model.get_input_embeddings().weight.shape[0]
        if token_ids > words:
            raise ValueError(
                f"the tokenizer of {self.identity} gives token {token_ids - 1}, but the model has "
                f"{words} embeddings: they do not belong together"
            )
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(positions, int) and window > positions > 0:
            raise ValueError(
                f"windows of {window} tokens were asked for, {self.identity} knows {positions} "
                f"positions: ask for a window of at most {positions}"
            )

    @property
    def tokenizer_identity(self) -> str:
        """Class of the tokenizer and a hash of its vocabulary."""
        vocabulary = sorted(self.tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        listing = "\0".join(f"{token}\1{i}" for token, i in vocabulary)
        return (
            f"{type(self.tokenizer).__name__}@{hashlib.sha256(listing.encode()).hexdigest()[:12]}"
        )


def load_language_model(
    name: str, *, dtype: str | None = None, device: str = "cpu", cache: Path | None = None
) -> LanguageModel:
    """The embedded model (`"gemma3-270m"`), a local folder, or a Hub id (`"gpt2"`,
    `"EleutherAI/pythia-160m"`, …).

    Args:
        dtype: of the weights: "bfloat16", "float32" or "float16" (whose end, 65,504, many residual
            streams pass: such activations are refused when they are stored). None: bfloat16 where
            the device computes in it, else float32.
        cache: folder in which the embedded model is converted once; None: ~/.cache/mmlib.
    Raises:
        ValueError: no model of that name can be loaded, its checkpoint lacks weights, holds others
            or has an adapter beside it, its tokens see later ones, or `dtype` is not one of the
            three.
        MemoryError: its weights need more memory than is free.
    """
    dtype = dtype or ("bfloat16" if bf16_pays(device) else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported: expected {', '.join(DTYPES)}")
    if name != EMBEDDED:
        refuse_adapter(name)
        require_memory(name, dtype)
    model, loading = pretrained(
        AutoModelForCausalLM,
        name,
        cache,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are listed, and refused below
    )
    require_complete(name, loading)
    tokenizer = pretrained(AutoTokenizer, name, cache)
    if name == EMBEDDED:
        identity = f"{EMBEDDED}@{EMBEDDED_SHA256[:12]}"
    else:  # a folder may be moved, so its path names nothing
        known = model.config.model_type if Path(name).is_dir() else name
        identity = f"{known}@{weights_id(name, model)}"
    model.eval().requires_grad_(False).to(device)
    require_causal(model, len(residual_blocks(model)) - 1)
    return LanguageModel(model, tokenizer, identity)


def count_blocks(name: str, cache: Path) -> int:
    """Number of residual blocks of a model, from its configuration alone.

    Raises:
        ValueError: it tells none, as where it is no language model's.
    """
    config = pretrained(AutoConfig, name, cache)
    if not isinstance(depth := _depth(config), int) or depth < 1:
        raise ValueError(
            f"{name}: the configuration of a {config.model_type} tells no number of blocks: "
            "expected a causal language model"
        )
    return depth


def _depth(config: PretrainedConfig) -> int | None:
    """Number of residual blocks; of an architecture that has an encoder too, those of the decoder.
    None: the configuration tells none."""
    try:
        text = config.get_text_config()
    except ValueError:  # more than one, such as of an encoder's and a decoder's
        return None
    return getattr(text, "decoder_layers", None) or getattr(text, "num_hidden_layers", None)


def resolve_layer(layer: int | None, n_blocks: int) -> int:
    """The block index asked for; None is the middle block, L/2 − 1.

    Raises:
        ValueError: the model has no such block.
    """
    if layer is None:
        return max(0, n_blocks // 2 - 1)
    return whole_number("layer", layer, most=n_blocks - 1)


def residual_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks that write to the residual stream: the one ModuleList as long as the model is
    deep.

    Lists inside of it, such as as many experts, do not count; nor do those beside the language
    model, such as a tower for images.

    Raises:
        ValueError: no list, or more than one, has that length.
    """
    depth = _depth(model.config)
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    found = _lists(decoder, depth) or _lists(model, depth)
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one ModuleList of {depth} blocks, found "
            f"{sorted(found) or 'none'}. Such an architecture has no residual stream that this "
            "code reads"
        )
    return next(iter(found.values()))


def _lists(module: nn.Module, length: int | None) -> dict[str, nn.ModuleList]:
    """The outermost lists of that length by name."""
    found = {
        name: m
        for name, m in module.named_modules()
        if isinstance(m, nn.ModuleList) and len(m) == length
    }
    return {
        name: m for name, m in found.items() if not any(name.startswith(f"{x}.") for x in found)
    }


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Within the context no dropout acts; afterwards each module is in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


PROBE_TOKENS = 16  # of a pass that asks what a model does


def require_causal(model: PreTrainedModel, layer: int) -> Tensor:
    """Refuse a model whose tokens see later ones: what it gives at a token would depend on the
    padding of its batch.

    The later half of a few tokens is changed; what block `layer` gives at the earlier ones must
    stay, see `moved_by`.

    Returns:
        What the block gives, (1, tokens, d): its width and dtype are those of the residual stream.
    Raises:
        ValueError: they see later ones.
    """
    half = PROBE_TOKENS // 2
    try:
        words = model.get_input_embeddings().weight.shape[0]
        ids_bt = torch.arange(PROBE_TOKENS)[None] * 7 % words
        changed_bt = torch.cat([ids_bt[:, :half], (ids_bt[:, half:] + 3) % words], 1)
        given, other = (
            read_residual_stream(model, [layer], ids)[layer] for ids in (ids_bt, changed_bt)
        )
    except (AttributeError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot read {PROBE_TOKENS} token ids ({cause_of(error)}): "
            "expected a causal language model"
        ) from error
    if moved := moved_by(given[:, :half], other[:, :half]):
        raise ValueError(
            f"{type(model).__name__} is not causal: its tokens see later ones (other later tokens "
            f"move the output of block {layer} by {100 * moved:.1f} %). Expected a causal language "
            "model, which reads padding on the right without harm"
        )
    return given


def moved_by(before: Tensor, after: Tensor) -> float:
    """By which share of itself the median element of an activation (…, d) is another, at most; 0
    where rounding may do that: experts round otherwise in batches of other sizes.
    """
    eps = torch.finfo(before.dtype).eps
    before, after = before.float(), after.float()
    moved_bt = ((after - before).abs() / before.abs().clamp(min=1e-6)).median(-1).values
    moved = moved_bt.max().item()
    return moved if moved > max(1e-4, 16 * eps) else 0.0  # NaN is refused where it is stored


class _LastBlockReached(Exception):
    """Ends a forward pass early; never leaves this file."""


@torch.inference_mode()
def read_blocks(
    model: PreTrainedModel, layers: Sequence[int], token_ids_bt: Tensor
) -> dict[int, BlockOutput]:
    """What the blocks `layers` give for a batch of windows, as they give it; later blocks and the
    logits are never computed.

    Args:
        token_ids_bt: (batch, tokens) integer ids; pad on the right, where causal attention makes it
            harmless.
    """
    blocks, outputs = residual_blocks(model), {}

    def recorder(layer: int) -> Callable:
        def record(module, inputs, output):
            outputs[layer] = output
            if layer == max(layers):
                raise _LastBlockReached

        return record

    with ExitStack() as hooks, suppress(_LastBlockReached):
        hooks.enter_context(evaluation_mode(model))
        for layer in layers:
            block = blocks[resolve_layer(layer, len(blocks))]
            hooks.callback(block.register_forward_hook(recorder(layer)).remove)
        model(input_ids=token_ids_bt.to(model.device), use_cache=False)
    for layer in layers:
        _require_stream(model, layer, outputs.get(layer), token_ids_bt)
    return outputs


def _require_stream(
    model: PreTrainedModel, layer: int, output: BlockOutput | None, token_ids_bt: Tensor
) -> None:
    stream = hidden(output) if type(output) in (Tensor, tuple, list) else output
    d = model.config.get_text_config().hidden_size
    if not isinstance(stream, Tensor) or stream.shape != (*token_ids_bt.shape, d):
        given = tuple(stream.shape) if isinstance(stream, Tensor) else type(stream).__name__
        raise ValueError(
            f"{type(model).__name__}: block {layer} gives {given} for ids "
            f"{tuple(token_ids_bt.shape)}: expected (batch, tokens, d = {d}). Such an architecture "
            "has no residual stream that this code reads"
        )


def read_residual_stream(
    model: PreTrainedModel, layers: Sequence[int], token_ids_bt: Tensor
) -> dict[int, Tensor]:
    """{layer: (batch, tokens, d)} in the model's own dtype, see `read_blocks`."""
    return {
        layer: hidden(output) for layer, output in read_blocks(model, layers, token_ids_bt).items()
    }


@contextmanager
def resumed_at(model: PreTrainedModel, layer: int, output: BlockOutput) -> Iterator[None]:
    """Within the context, block `layer` gives `output`. Neither it nor a block before it is
    computed, unless later ones share its keys and values.

    For many passes over the same tokens that differ from that block on only. An `edited_block` sees
    `output` as if it had been computed.
    """
    blocks = residual_blocks(model)
    if getattr(model.config.get_text_config(), "num_kv_shared_layers", 0):
        # later blocks read keys and values of earlier ones, which must be computed then
        handle = blocks[layer].register_forward_hook(
            lambda module, inputs, computed: output, prepend=True
        )
        try:
            yield
        finally:
            handle.remove()
        return
    skipped = blocks[: layer + 1]
    for block in skipped:  # what those before `layer` give is read by the next, which ignores it
        block.forward = lambda *inputs, **options: output
    try:
        yield
    finally:
        for block in skipped:
            del block.forward


@contextmanager
def edited_block(
    model: PreTrainedModel, layer: int, edit: Callable[[Tensor], Tensor]
) -> Iterator[None]:
    """Within the context, block `layer` gives edit(h) in place of its output h, to all that reads
    it: later blocks, their caches, the logits.

    Also under `model.generate`: with a cache the first call sees the prompt, each later one the
    newest token alone, (batch, 1, d).

    Args:
        edit: maps h (batch, tokens, d), padding and <bos> included, to as many values, of any dtype
            and on any device. It must leave h as it is.
    Raises:
        ValueError: the model has no such block, or the edit changes the shape.
    """
    blocks = residual_blocks(model)

    def replace(module, inputs, output):
        hidden_btd = hidden(output)
        edited_btd = edit(hidden_btd)
        if edited_btd.shape != hidden_btd.shape:
            raise ValueError(
                f"the edit of block {layer} gives shape {tuple(edited_btd.shape)}: expected "
                f"{tuple(hidden_btd.shape)}"
            )
        edited_btd = edited_btd.to(hidden_btd)  # its dtype and device
        return (edited_btd, *output[1:]) if isinstance(output, tuple | list) else edited_btd

    handle = blocks[resolve_layer(layer, len(blocks))].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def hidden(output: BlockOutput) -> Tensor:
    """The residual stream (batch, tokens, d) in what a block gives."""
    return output[0] if isinstance(output, tuple | list) else output
