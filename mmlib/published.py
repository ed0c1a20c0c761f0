"""Checkpoints of the paper's authors (arXiv 2602.06964), read as they are.

A folder holds config.yaml, rep_statistics.pt (mean and var of the activations, per layer if there are several) and
final.safetensors, or epochs in checkpoints/. Their parameter names are those of `MLPDenoiser`, after "model.".
"""

import pickle
import re
from pathlib import Path

import torch
import yaml
from torch import Tensor

from mmlib.checkpoints import CheckpointError, fill, read_weights
from mmlib.denoisers import MLPDenoiser
from mmlib.normaliser import Normaliser


class _PlainLoader(yaml.SafeLoader):
    """YAML as data: tags that ask for Python objects (OmegaConf writes its paths so) become None, and nothing is constructed."""


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)

SIZES = ("d_input", "d_model", "d_mlp", "n_layers", "multi_layer_n_layers")


def read(
    folder: Path, checkpoint: str = "final"
) -> tuple[MLPDenoiser, str, Normaliser, str, list[int], str]:
    """What `MetaModel` is made of: network, objective, normaliser, language model, layers, documents (unknown: "").

    Args:
        checkpoint: "final", or the latest epoch if there is no final one; or a name in checkpoints/.
    Raises:
        CheckpointError: a file is missing or damaged, or the parts do not fit each other; the message names it.
    """
    sizes, layers, language_model = _configuration(folder)
    network = MLPDenoiser(**sizes).eval()
    path = _weights_file(folder, checkpoint)
    fill(
        network,
        {key.removeprefix("model."): tensor.float() for key, tensor in read_weights(path).items()},
        path,
    )
    normaliser = _statistics(folder / "rep_statistics.pt", layers, sizes["d_input"])
    return network, "flow_velocity", normaliser, language_model, layers, ""


def _configuration(folder: Path) -> tuple[dict, list[int], str]:
    try:
        config = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), _PlainLoader)
        kwargs = config["glp_kwargs"]
        denoiser, trace = kwargs["denoiser_config"], kwargs["tracedict_config"]
        sizes = {name: denoiser.get(name) for name in SIZES}
        layers = trace["layers"]
    except yaml.YAMLError as error:
        raise CheckpointError(f"{folder}/config.yaml is no YAML ({error})") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder}/config.yaml lacks {error}: expected glp_kwargs with denoiser_config and tracedict_config"
        ) from error
    if any(isinstance(value, str) for value in sizes.values()):
        raise CheckpointError(
            f"{folder}/config.yaml: sizes {sizes} are no numbers; resolve the file's ${{…}} references first"
        )
    if sizes["multi_layer_n_layers"] is not None and len(layers) < 2:
        raise CheckpointError(
            f"{folder}/config.yaml: layers {layers} of a network for {sizes['multi_layer_n_layers']} layers"
        )
    return sizes, [int(layer) for layer in layers], str(config.get("model_name", "unknown"))


def _weights_file(folder: Path, checkpoint: str) -> Path:
    if checkpoint != "final":
        path = folder / "checkpoints" / f"{checkpoint}.safetensors"
        there = sorted(p.stem for p in folder.glob("checkpoints/*.safetensors"))
        if not path.exists():
            raise CheckpointError(f"{path} is missing: there are {', '.join(there) or 'none'}")
        return path
    epochs = sorted(
        folder.glob("checkpoints/epoch_*.safetensors"),
        key=lambda path: int(re.sub(r"\D", "", path.stem) or -1),
    )
    for path in (folder / "final.safetensors", *reversed(epochs)):
        if path.exists():
            return path
    raise CheckpointError(
        f"{folder} holds neither final.safetensors nor checkpoints/epoch_….safetensors"
    )


def _statistics(path: Path, layers: list[int], d: int) -> Normaliser:
    """Of these layers: a row for each, or rows of all layers of the language model from which theirs are taken."""
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: without the activations' mean and variance the weights mean nothing"
        )
    try:
        numbers: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
        mean_ld, var_ld = (numbers[name].float().reshape(-1, d) for name in ("mean", "var"))
    except (KeyError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: expected tensors mean and var of {len(layers)} × {d} numbers ({error})"
        ) from error
    if len(mean_ld) > max(layers) and len(mean_ld) > len(layers):
        mean_ld, var_ld = mean_ld[layers], var_ld[layers]
    if not len(mean_ld) == len(var_ld) == len(layers):
        raise CheckpointError(
            f"{path} has statistics of {len(mean_ld)} layers, config.yaml names layers {layers}"
        )
    if not (mean_ld.isfinite().all() and var_ld.isfinite().all() and (var_ld > 0).all()):
        raise CheckpointError(
            f"{path}: a mean or variance is not finite, or a variance not positive"
        )
    return Normaliser(mean_ld, var_ld.sqrt())
