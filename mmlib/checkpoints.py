"""Weights from a folder or the Hub: complete, finite and of the right shapes, or refused by name. Nothing is unpickled."""

from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

FILES = (
    "meta_model.json",
    "normaliser.safetensors",
    "network/*",
    "config.yaml",
    "rep_statistics.pt",
    "final.safetensors",
    "README.md",
)


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, incomplete or of another architecture; the message names the file."""


def fetched(source: str | Path, revision: str | None = None, extra: tuple[str, ...] = ()) -> Path:
    """A local folder as it is, or the local copy of a Hub repository.

    Args:
        extra: files to fetch beside those of a final model; earlier epochs are left out, since each is as large.

    Raises:
        FileNotFoundError: no such folder, and no such repository within reach.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(
            snapshot_download(str(source), revision=revision, allow_patterns=[*FILES, *extra])
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is no folder, so meta_model.json cannot be read, and no Hub repository within reach "
            f"({type(error).__name__}): run notebooks/03_train_meta_model.ipynb first, or check the name"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Raises:
        CheckpointError: it is missing or truncated.
    """
    try:
        return load_file(path)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(
            f"{path} is missing or truncated: copy or train it again ({error})"
        ) from error


def fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into a network.

    Raises:
        CheckpointError: some are missing, unknown, of another shape, or not finite.
    """
    wanted = network.state_dict()
    if missing := sorted(set(wanted) - set(weights)):
        raise CheckpointError(
            f"{path} lacks {missing[0]} and {len(missing) - 1} more weights of {type(network).__name__}"
        )
    if unknown := sorted(set(weights) - set(wanted)):
        raise CheckpointError(
            f"{path} has {unknown[0]} and {len(unknown) - 1} more weights that {type(network).__name__} does not have"
        )
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {tuple(wanted[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity")
    network.load_state_dict(weights)


def load_network(kind: type[nn.Module], folder: Path) -> nn.Module:
    """A network that diffusers' `save_pretrained` wrote, in evaluation mode.

    Raises:
        CheckpointError: as `fill`.
    """
    if not (folder / "config.json").exists():
        raise CheckpointError(f"{folder} holds no config.json: the checkpoint is incomplete")
    network = kind.from_config(kind.load_config(folder)).eval()
    path = folder / "diffusion_pytorch_model.safetensors"
    fill(network, read_weights(path), path)
    return network
