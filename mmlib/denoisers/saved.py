"""Fitted objects on disk: a folder of safetensors, and model.json, written last.

    model.json              kind, identity (language model, layers, width, documents), cost, facts of the fit, sha256 of every other file
    normaliser.safetensors  mean and std of the training rows, (1, d)
    gaussian.safetensors    mean, axes and variances of the same rows: the Gaussian baseline
    weights.safetensors     of a mixture or an average of some; sae/ in SAELens's format, network/ in diffusers', of the others

`load` also reads what notebooks and others wrote: folders of `MetaModel` and `save_sae`, files of
`PrincipalComponents`, `GaussianMixtureDenoiser` and `MixtureAverage`, and published checkpoints of the paper, from
a folder or the Hub.
"""

import re
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.average import MixtureAverage
from mmlib.denoisers.checkpoints import STATISTICS, CheckpointError, Origin, read_weights
from mmlib.denoisers.fitted import Cost, Fitted
from mmlib.denoisers.gaussian import PrincipalComponents, Projection, read_cost
from mmlib.denoisers.kinds import (
    KINDS,
    FittedAverage,
    FittedGaussian,
    FittedMixture,
    FittedNetwork,
    FittedSAE,
)
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.denoisers.sae import DIGESTS, SAEDenoiser, read_sae, save_sae
from mmlib.files import read_sealed, write_sealed

GAUSSIAN, WEIGHTS = "gaussian.safetensors", "weights.safetensors"
FORMAT = "mmlib.model 1"
FILES = ("meta_model.json", STATISTICS, GAUSSIAN, WEIGHTS, "sae/*", "network/*")  # of every kind


def save(model: Fitted, folder: Path) -> Path:
    """Write a fitted object; `load` reads it. An older one in the same folder is replaced.

    Raises:
        FileExistsError: the folder holds other things.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "model.json").exists():
        raise FileExistsError(f"{folder} holds other things: give a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "model.json", *_files(folder)):  # first what says that all is there
        old.unlink(missing_ok=True)
    _save_weights(model, folder)
    if model.components is not None:
        save_file(model.components.tensors(), folder / GAUSSIAN)
    content = {
        "format": FORMAT,
        "kind": model.kind,
        "identity": {**model.origin.identity, "d": model.d},
        "cost": asdict(model.cost),
        "facts": {**model.facts, **_options(model.denoiser)},
    }
    write_sealed(folder / "model.json", content, _files(folder))
    return folder


def _files(folder: Path) -> list[Path]:
    found = [path for pattern in FILES for path in sorted(folder.glob(pattern))]
    return [path for path in found if path.is_file()]


def _options(denoiser) -> dict[str, object]:
    """What the weights alone do not say."""
    if isinstance(denoiser, Projection):
        return {"k": denoiser.components_dk.shape[1], "fed": denoiser.fed}
    return {"fed": denoiser.fed} if isinstance(denoiser, SAEDenoiser) else {}


def _save_weights(model: Fitted, folder: Path) -> None:
    """Write statistics and what is the method's own; of a Gaussian or a PCA gaussian.safetensors is
    all.
    """
    if isinstance(model, FittedNetwork):
        return model.denoiser.save_pretrained(folder)
    model.origin.write(folder)
    if isinstance(model, FittedSAE):
        save_sae(model.sae, folder / "sae", model.origin.documents, *model.origin.activations)
    elif isinstance(model, FittedMixture):
        save_file(model.denoiser.tensors(), folder / WEIGHTS)


def load(
    source: str | Path,
    *,
    layer: int | None = None,
    standardise: "Fitted | Normaliser | ActivationStore | None" = None,
) -> Fitted:
    """Read a fitted object.

    Args:
        source: a folder that `save` wrote, or what the module's head lists; or the id of a Hub
            repository.
        layer: of a network of several layers, the one that is meant; compared with any other's.
        standardise: the statistics that a PCA, a mixture or an SAE of a notebook was fitted with,
            which such files do not hold: the store, or another fitted object. Others' SAEs that
            name their block read raw activations, and take none.
    Raises:
        FileNotFoundError: there is nothing of the kind.
        CheckpointError: it is damaged or incomplete, or lacks its standardisation.
        StoreError: it is of another layer, or of other documents than `standardise`.

    >>> import tempfile, torch, mmlib
    >>> model = mmlib.fit(torch.randn(200, 4), "gaussian", progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load(model.save(Path(folder) / "gaussian"))
    >>> type(again).__name__, again.d
    ('FittedGaussian', 4)
    """
    path = Path(source)
    own = (path / "model.json").exists() or (path / "meta_model.json").exists()
    if own and standardise is not None:
        raise CheckpointError(f"{path} holds its own standardisation: leave standardise= out")
    if (path / "model.json").exists():
        return _load_own(path).check(layer=layer)
    if (path / "cfg.json").exists():
        sae = read_sae(path)
        known = sae.cfg.metadata
        if known.hook_name and standardise is not None:
            raise CheckpointError(
                f"{path} is an SAE of raw activations of {known.hook_name}: leave standardise= out"
            )
        if known.hook_name:
            as_they_are = Normaliser(torch.zeros(1, sae.cfg.d_in), torch.ones(1, sae.cfg.d_in))
            block = re.findall(r"\d+", known.hook_name)[-1]
            origin = Origin(as_they_are, known.model_name or "", layers=(int(block),))
        else:
            activations = read_sealed(path / DIGESTS)["activations"] if known.documents else ""
            origin = _origin_of(standardise, known.documents or "", activations, path)
            origin = _named(origin, known.model_name or "", path)
        denoiser = SAEDenoiser(sae, "mean_estimate")
        return FittedSAE(denoiser, origin, Cost.of(denoiser)).check(layer=layer)
    if path.is_file() and path.suffix == ".safetensors":
        return _load_file(path, standardise).check(layer=layer)
    if path.is_dir() and not any((path / n).exists() for n in ("meta_model.json", "config.yaml")):
        raise FileNotFoundError(
            f"{path} holds no model.json, meta_model.json, config.yaml or cfg.json: expected a "
            "folder that model.save wrote"
        )
    model = MetaModel.from_pretrained(source)
    return FittedNetwork.of(model if layer is None else model.at(layer))


def _origin_of(
    given: "Fitted | Normaliser | ActivationStore | None",
    documents: str,
    activations: str,
    path: Path,
) -> Origin:
    """The standardisation that was given, of the activations that a file says it was fitted to.

    Raises:
        CheckpointError: none was given.
        StoreError: it is of others.
    """
    if given is None:
        raise CheckpointError(
            f"{path} does not hold the mean and standard deviation that it was fitted with: pass "
            "standardise=, the store or a fitted object"
        )
    if isinstance(given, ActivationStore):
        origin = Origin.of(given)
    else:
        origin = given.origin if isinstance(given, Fitted) else Origin(given)
    theirs = replace(origin, documents=documents, activations=(activations,) if activations else ())
    theirs.check(str(path), documents=origin.documents, activations=origin.activations)
    return theirs


def _named(origin: Origin, language_model: str, path: Path) -> Origin:
    """The origin, if the language model that an SAE names, if any, may be its own."""
    replace(origin, language_model=language_model).check(
        str(path), language_model=origin.language_model
    )
    return origin if origin.language_model else replace(origin, language_model=language_model)


def _load_file(path: Path, standardise: "Fitted | Normaliser | ActivationStore | None") -> Fitted:
    """What `PrincipalComponents.save` or `GaussianMixtureDenoiser.save` wrote."""
    cost, tensors = read_cost(path), read_weights(path)  # digests first
    activations = read_sealed(path.with_suffix(".json")).get("activations", "")
    with safe_open(path, "pt") as file:
        documents = (file.metadata() or {}).get("documents", "")
    origin = _origin_of(standardise, documents, activations, path)
    if set(tensors) == set(GaussianMixtureDenoiser.names):
        mixture = GaussianMixtureDenoiser.of_tensors(tensors, **cost)
        return FittedMixture(mixture, origin, Cost.of(mixture))
    if "mean_d.0" in tensors:
        average = MixtureAverage.of_tensors(tensors, **cost)
        return FittedAverage(average, origin, Cost.of(average))
    if set(tensors) == set(PrincipalComponents.names):
        components = PrincipalComponents.of_tensors(tensors, **cost)
        return FittedGaussian(components.gaussian(), origin, Cost.of(components), components)
    raise CheckpointError(
        f"{path} holds {', '.join(sorted(tensors)[:5])}: expected principal components or a mixture"
    )


def _load_own(folder: Path) -> Fitted:
    content = read_sealed(folder / "model.json")
    kind, facts, form = (content.get(key) for key in ("kind", "facts", "format"))
    if form != FORMAT or kind not in KINDS:
        raise CheckpointError(f"{folder} is a {kind!r} of format {form!r}: expected {FORMAT!r}")
    origin, components = Origin.read(folder, content["identity"]), None
    if GAUSSIAN in content["files"]:
        components = PrincipalComponents.of_tensors(read_weights(folder / GAUSSIAN))
    denoiser = _denoiser(kind, folder, facts, components)
    return KINDS[kind](denoiser, origin, Cost(**content["cost"]), components, facts)


def _denoiser(kind: str, folder: Path, facts: dict, components: PrincipalComponents | None):
    """What a kind's files hold."""
    if kind == "network":
        return MetaModel.from_pretrained(folder)
    if kind == "sae":
        return SAEDenoiser(read_sae(folder / "sae"), facts["fed"])
    if kind == "mixture_average":
        return MixtureAverage.of_tensors(read_weights(folder / WEIGHTS))
    if kind == "mixture":
        return GaussianMixtureDenoiser.of_tensors(read_weights(folder / WEIGHTS))
    if components is None:
        raise CheckpointError(f"{folder} lacks {GAUSSIAN}: copy the whole folder again")
    if kind == "gaussian":
        return components.gaussian()
    return components.projection(facts["k"], facts["fed"])
