"""Weights from a folder or the Hub: complete, finite and of the right shapes, or refused by name.
Nothing is unpickled.

`Origin` is what every fit carries beside its weights: the activations it is of. `fetched` brings a
folder or a repository of the Hub, `load_network` fills a network, `model_card` writes the page that
lies beside the weights. Checkpoints of the paper's authors are read in `mmlib.denoisers.published`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.gaussian import activations_id
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
        activations: `activations_id` of each layer's store, in the same order; none if unknown.
    """

    normaliser: Normaliser
    language_model: str = ""
    layers: tuple[int, ...] = ()
    documents: str = ""
    activations: tuple[str, ...] = ()

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
        activations = tuple(map(activations_id, stores))
        return cls(Normaliser.of(*stores), first.model, layers, first.documents, activations)

    @classmethod
    def read(cls, folder: Path, identity: Mapping) -> "Origin":
        """Of the statistics that `write` left in a folder, and the identity that was kept
        elsewhere.

        Raises:
            CheckpointError: the statistics are missing or truncated.
        """
        numbers = read_weights(folder / STATISTICS)
        normaliser = Normaliser(numbers["mean"], numbers["std"])
        layers, activations = (tuple(identity.get(x, ())) for x in ("layers", "activations"))
        known = identity["language_model"], layers, identity["documents"], activations
        return cls(normaliser, *known)

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
            "activations": list(self.activations),
        }

    def at(self, layer: int) -> "Origin":
        """Of one of its layers."""
        i = self.layers.index(layer)
        one = {"layers": (layer,), "activations": self.activations[i : i + 1]}
        return replace(self, normaliser=self.normaliser.at(i), **one)

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
        activations: Sequence[str] = (),
    ) -> None:
        """Refuse activations that the fit was not made for; what is None or empty here or unknown
        to the fit is not compared.

        Raises:
            StoreError: they are of another language model, layer, width or of other documents, or
                of these with another window or type; the message has both.
        """
        differs = (
            (language_model and not _same_model(self.language_model, language_model))
            or (self.layers and layer is not None and layer not in self.layers)
            or (d is not None and d != self.d)
        )
        if differs:
            theirs = _place(language_model, [] if layer is None else [layer], d)
            raise StoreError(
                f"{what} was trained on {_place(self.language_model, self.layers, self.d)}, these "
                f"activations are of {theirs}: extract or train again with the same model and layer"
            )
        if self.documents and documents and self.documents != documents:
            raise StoreError(
                f"{what} was fitted to documents {self.documents}, these are {documents}: its "
                "training documents may be among them"
            )
        if self.activations and not {*activations} <= {*self.activations}:
            raise StoreError(
                f"{what} was fitted to other activations of these documents: of another layer, "
                "window, type, weights or token ids. Extract as it was then, or train again"
            )

    def check_store(self, what: str, store: ActivationStore, same_documents: bool = True) -> None:
        """`check` with all that a store says of itself.

        Args:
            same_documents: refuse other documents, and any where the fit does not name its own.
        """
        self.check(what, language_model=store.model, layer=store.layer, d=store.d)
        if same_documents:
            store.check_documents(self.documents, what)
        if self.documents == store.documents:
            self.check(what, activations=activations_of(store))


def activations_of(values: object) -> tuple[str, ...]:
    """`activations_id` of a store; none of anything else, of which it is not known."""
    return (activations_id(values),) if isinstance(values, ActivationStore) else ()


# what TransformerLens, and with it many an SAE, calls a model otherwise than its authors do
ALIASES = {"gpt2-small": "gpt2"}


def _same_model(ours: str, theirs: str) -> bool:
    """Whether two names may be of one language model. Fits of others pin no weights; they are
    compared by the name without its case, and by the owner where both say one.
    """
    if not ours or "@" in ours:
        return ours in ("", theirs)
    our_owner, our_name = _named(ours)
    their_owner, their_name = _named(theirs.partition("@")[0])
    return our_name == their_name and (our_owner == their_owner or not (our_owner and their_owner))


def _named(model: str) -> tuple[str, str]:
    """Owner, if any, and name of a language model, in the letters that all spellings share."""
    owner, _, name = model.casefold().rpartition("/")
    return owner, re.sub(r"[-_.]", "", ALIASES.get(name, name))


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
            f"{source} is no folder and no Hub repository within reach ({type(error).__name__}): "
            "expected what model.save, save_pretrained or the paper's authors wrote; check the name"
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
    known = ("network", "objective", "language_model", "layers", "documents", "activations")
    known += ("d", "parameters")
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
