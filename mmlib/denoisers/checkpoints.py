"""Weights from a folder or the Hub: complete, finite and of the right shapes, or refused by name.
Nothing is unpickled.

`Origin` is what every fit carries beside its weights: the activations it is of. `fetched` brings a
folder or a repository of the Hub, `load_network` fills a network, `model_card` writes the page that
lies beside the weights. `read` reads the checkpoints of the paper's authors (arXiv 2602.06964) as
they are: config.yaml, rep_statistics.pt (mean and var of the activations, by layer if there are
several), and final.safetensors or epochs in checkpoints/. Their parameter names are the names in
`MLPDenoiser`, after "model.".
"""

import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.networks import MLPDenoiser
from mmlib.files import CheckpointError

STATISTICS = "normaliser.safetensors"


FILES = (
    "meta_model.json",
    STATISTICS,
    "network/*",
    "config.yaml",
    "rep_statistics.pt",
    "final.safetensors",
    "README.md",
)


@dataclass(frozen=True)
class Origin:
    """The activations that a fit is of: their standardisation, and where they were read.

    Args:
        normaliser: statistics of the training documents, a row for each layer.
        language_model: its identity, "name@hash"; "" if unknown.
        layers: block indices, in the normaliser's order; none if unknown.
        documents: identity of the documents and of their split; "" if unknown.
    """

    normaliser: Normaliser
    language_model: str = ""
    layers: tuple[int, ...] = ()
    documents: str = ""

    @classmethod
    def of(cls, *stores: ActivationStore) -> "Origin":
        """Of a store, or of several: one a layer, of the same texts.

        Raises:
            StoreError: they hold other language models or other documents.
        """
        first = stores[0]
        for store in stores[1:]:
            if (store.model, store.documents, store.n) != (first.model, first.documents, first.n):
                raise StoreError(
                    f"{store.path} holds {store.model} on {store.documents}, {first.path} holds "
                    f"{first.model} on {first.documents}: layers of one model on the same texts "
                    "were expected"
                )
        layers = tuple(store.layer for store in stores)
        return cls(Normaliser.of(*stores), first.model, layers, first.documents)

    @classmethod
    def read(cls, folder: Path, identity: Mapping) -> "Origin":
        """Of the statistics that `write` left in a folder, and the identity that was kept
        elsewhere.

        Raises:
            CheckpointError: the statistics are missing or truncated.
        """
        numbers = read_weights(folder / STATISTICS)
        normaliser = Normaliser(numbers["mean"], numbers["std"])
        layers = tuple(identity["layers"])
        return cls(normaliser, identity["language_model"], layers, identity["documents"])

    def write(self, folder: Path) -> Path:
        """Write the statistics; the path of their file."""
        numbers = {"mean": self.normaliser.mean_ld, "std": self.normaliser.std_ld}
        save_file(numbers, folder / STATISTICS)
        return folder / STATISTICS

    @property
    def identity(self) -> dict[str, object]:
        """What is known beside the statistics, for JSON."""
        return {
            "language_model": self.language_model,
            "layers": list(self.layers),
            "documents": self.documents,
        }

    def at(self, layer: int) -> "Origin":
        """Of one of its layers."""
        normaliser = self.normaliser.at(self.layers.index(layer))
        return replace(self, normaliser=normaliser, layers=(layer,))

    @property
    def d(self) -> int:
        """Width of the activations."""
        return self.normaliser.d

    def check(
        self,
        what: str,
        *,
        language_model: str | None = None,
        layer: int | None = None,
        d: int | None = None,
        documents: str | None = None,
    ) -> None:
        """Refuse activations that the fit was not made for; what is None here or unknown to the fit
        is not compared.

        Raises:
            StoreError: they are of another language model, layer, width or of other documents; the
                message has both.
        """
        pinned = "@" in self.language_model  # published checkpoints name no revision
        theirs = language_model if pinned else (language_model or "").partition("@")[0]
        differs = (
            (self.language_model and language_model and self.language_model != theirs)
            or (self.layers and layer is not None and layer not in self.layers)
            or (d is not None and d != self.d)
        )
        if differs:
            theirs = _place(language_model, [] if layer is None else [layer], d)
            raise StoreError(
                f"{what} was trained on {_place(self.language_model, self.layers, self.d)}, the "
                f"store holds {theirs}: extract or train again with the same model and layer"
            )
        if self.documents and documents and self.documents != documents:
            raise StoreError(
                f"{what} was fitted to documents {self.documents}, these are {documents}: its "
                "training documents may be among them"
            )


def _place(language_model: str | None, layers: Sequence[int], d: int | None) -> str:
    """Where activations were read, in words."""
    of = language_model or "an unknown model"
    return f"{of} layer {', '.join(map(str, layers)) or 'unknown'} (width {d or 'unknown'})"


# nats per dimension by which values must look more like the other kind to be refused
MARGIN = 0.5


def refuse_mistaken(values_nd: Tensor, origin: Origin, sigma: float | None) -> None:
    """Refuse raw activations where noised ones were expected, at σ, and standardised ones where raw
    ones were (σ None).

    Each kind has known means and variances in each dimension, and so a Gaussian density. Values are
    refused if the other kind's density is higher by `MARGIN` nats per dimension and they are at
    most twice as far from its mean as usual. Where mean and variance of raw activations are near 0
    and 1, the kinds cannot be told apart.
    """
    mean_d, variance_d = origin.normaliser.mean_ld[0], origin.normaliser.std_ld[0].square()

    def fit(mean: Tensor | float, variance: Tensor | float) -> tuple[float, float]:
        """Log-density per dimension, and mean square in standard deviations."""
        squares = float(((values_nd - mean).square() / variance).mean())
        scale = float(torch.as_tensor(variance).log().mean())
        return -(squares + scale + math.log(2 * math.pi)) / 2, squares

    raw, standard = fit(mean_d, variance_d), fit(0.0, 1.0)
    if sigma is None:
        ours, theirs, found = raw, [standard], "h has the scale of standardised activations"
        cure = "give raw activations: model.raw(z)"
    else:
        a = 1 - sigma
        ours = fit(0.0, a**2 + sigma**2)
        theirs = [raw, fit(a * mean_d, a**2 * variance_d + sigma**2)]
        found = "x has the scale of raw activations"
        cure = "give noised standardised ones: model.noised(h, sigma), or (1 − σ) model.standardise(h) + σ ε"
    density, squares = max(theirs)
    if density > ours[0] + MARGIN and 0.25 < squares < 4:
        raise ValueError(
            f"{found} ({density - ours[0]:.1f} nats per dimension likelier as such): {cure}"
        )


def fetched(source: str | Path, revision: str | None = None, extra: tuple[str, ...] = ()) -> Path:
    """A local folder as it is, or the local copy of a Hub repository.

    Args:
        extra: files to fetch beside those of a final model; earlier epochs are left out, since each
            is as large.

    Raises:
        FileNotFoundError: no such folder, and no such repository within reach.
    """
    if Path(source).is_dir():
        return Path(source)
    patterns = [*FILES, *extra]
    try:
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"{source} is no folder, so meta_model.json cannot be read, and no Hub repository "
            f"within reach ({type(error).__name__}): run notebooks/03_train_meta_model.ipynb "
            "first, or check the name"
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
    wanted, kind = network.state_dict(), type(network).__name__
    for names, says in (
        (set(wanted) - set(weights), f"lacks {{}} and {{}} more weights of {kind}"),
        (set(weights) - set(wanted), f"has {{}} and {{}} more weights that {kind} does not have"),
    ):
        if names:
            raise CheckpointError(f"{path} {says.format(min(names), len(names) - 1)}")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected "
                f"{tuple(wanted[name].shape)}"
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
    if hasattr(network, "load_base"):  # what it stands on has a file of its own
        network.load_base(folder)
    return network


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


USE = """import torch

from mmlib.denoisers.meta_model import MetaModel

model = MetaModel.from_pretrained("this folder"){at}
z = model.normaliser(activations)  # raw outputs of the block, (n, d)
samples = model.sample(1000, steps=50, generator=torch.Generator().manual_seed(0))
"""


def model_card(facts: Mapping[str, object]) -> str:
    """Markdown with what is known about a model.

    Args:
        facts: objective, language_model, layers, documents, d, parameters; others (about the
            training) are listed as they are.
    """
    layers = ", ".join(str(layer) for layer in facts["layers"]) or "unknown"
    known = ("network", "objective", "language_model", "layers", "documents", "d", "parameters")
    training = "".join(f"- {key}: {value}\n" for key, value in facts.items() if key not in known)
    return f"""---
library_name: diffusers
tags: [activations, meta-model, interpretability]
---
# Diffusion meta-model of {facts["language_model"] or "plain activations"}, block {layers}

A {facts["network"]} of {facts["parameters"]:,} parameters that predicts {facts["objective"]} of noised residual-stream activations (outputs of block
{layers}, counting from 0; width {facts["d"]}; standardised by the statistics in normaliser.safetensors).

- documents and split: {facts["documents"] or "unknown"}
{training}
```python
{USE.format(at=f".at({facts['layers'][0]})" if len(facts["layers"]) > 1 else "")}```

**Limits.** It knows single activations without their context, of one language model on the texts named above; it says nothing reliable about
others. Losses by noise level and the comparison with closed-form baselines are in the repository's results. **Licence.** What is derived from
a language model may be bound by that model's terms. **Misuse.** A model of normal activations can help to steer a language model past its
training, as any steering method can.
"""
