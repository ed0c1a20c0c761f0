"""Checkpoints of the paper's authors (arXiv 2602.06964), read as they are. Nothing is unpickled but
tensors.

A folder holds config.yaml, rep_statistics.pt (mean and var of the activations, by layer if there
are several), and final.safetensors or epochs in checkpoints/. Their parameter names are the names
in `MLPDenoiser`, after "model.".
"""

import pickle
import re
from pathlib import Path

import torch
import yaml
from torch import Tensor

from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin, fill, read_weights
from mmlib.denoisers.networks import MLPDenoiser
from mmlib.files import CheckpointError


class _PlainLoader(yaml.SafeLoader):
    """YAML as data: tags that ask for Python objects (OmegaConf writes its paths so) become None,
    and nothing is constructed.
    """


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)


SIZES = ("d_input", "d_model", "d_mlp", "n_layers", "multi_layer_n_layers")


def read(folder: Path, checkpoint: str = "final") -> tuple[MLPDenoiser, str, Origin]:
    """What `MetaModel` is made of: network, objective, and the origin as far as it is known.

    Args:
        checkpoint: "final", or the latest epoch if there is no final one; or a name in
            checkpoints/.
    Raises:
        CheckpointError: a file is missing or damaged, or the parts do not fit each other; the
            message names it.
    """
    sizes, layers, language_model = _configuration(folder)
    network = MLPDenoiser(**sizes).eval()
    path = _weights_file(folder, checkpoint)
    weights = {key.removeprefix("model."): w.float() for key, w in read_weights(path).items()}
    fill(network, weights, path)
    normaliser = _statistics(folder / "rep_statistics.pt", layers, sizes["d_input"])
    return network, "flow_velocity", Origin(normaliser, language_model, tuple(layers))


def _configuration(folder: Path) -> tuple[dict, list[int], str]:
    try:
        config = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), _PlainLoader)
        kwargs = config["glp_kwargs"]
        denoiser, trace = kwargs["denoiser_config"], kwargs["tracedict_config"]
        sizes = {name: denoiser.get(name) for name in SIZES}
        layers = [int(layer) for layer in trace["layers"]]
    except yaml.YAMLError as error:
        raise CheckpointError(f"{folder}/config.yaml is no YAML ({error})") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}/config.yaml lacks {error}: expected glp_kwargs with denoiser_config and "
            "tracedict_config"
        ) from error
    for name, known in (("retain", ("output",)), ("layer_prefix", ("layers", "h", "blocks"))):
        found = trace.get(name, known[0])
        if str(found).split(".")[-1] not in known:
            raise CheckpointError(
                f"{folder}/config.yaml: tracedict_config.{name} is {found!r}, expected it to be or "
                f"end in {' or '.join(known)}: activations here are outputs of whole blocks"
            )
    if any(isinstance(value, str) for value in sizes.values()):
        raise CheckpointError(
            f"{folder}/config.yaml: sizes {sizes} are no numbers; resolve the file's ${{…}} "
            "references first"
        )
    if sizes["multi_layer_n_layers"] is not None and len(layers) < 2:
        raise CheckpointError(
            f"{folder}/config.yaml: layers {layers} of a network for "
            f"{sizes['multi_layer_n_layers']} layers"
        )
    return sizes, layers, str(config.get("model_name") or "")


def _weights_file(folder: Path, checkpoint: str) -> Path:
    epochs = sorted(
        folder.glob("checkpoints/*.safetensors"),
        key=lambda path: int(re.sub(r"\D", "", path.stem) or -1),
    )
    if checkpoint != "final":
        path = folder / "checkpoints" / f"{checkpoint}.safetensors"
        if path not in epochs:
            there = ", ".join(sorted(epoch.stem for epoch in epochs)) or "none"
            raise CheckpointError(f"{path} is missing: there are {there}")
        return path
    final = folder / "final.safetensors"
    latest = [path for path in epochs if path.stem.startswith("epoch_")]
    if not final.exists() and not latest:
        raise CheckpointError(
            f"{folder} holds neither {final.name} nor checkpoints/epoch_….safetensors"
        )
    return final if final.exists() else latest[-1]


def _statistics(path: Path, layers: list[int], d: int) -> Normaliser:
    """Of these layers: a row for each, or rows of all layers of the language model from which
    theirs are taken.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} is missing: without the activations' mean and variance the weights mean "
            "nothing"
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
