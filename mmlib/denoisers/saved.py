"""Fitted objects on disk: a folder of safetensors, and model.json, written last.

    model.json              kind, identity (language model, layers, width, documents), cost, facts of the fit, sha256 of every other file
    normaliser.safetensors  mean and std of the training rows, (1, d)
    gaussian.safetensors    mean, axes and variances of the same rows: the Gaussian baseline
    weights.safetensors     of a mixture; sae/ in SAELens's format, network/ in diffusers', of the others

`load` also reads what notebooks and others wrote: folders of `MetaModel` and `save_sae`, files of `PrincipalComponents` and of
`GaussianMixtureDenoiser`, and published checkpoints of the paper, from a folder or the Hub.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import CheckpointError, Origin, read_weights
from mmlib.denoisers.fitted import (
    KINDS,
    Cost,
    Fitted,
    FittedGaussian,
    FittedMixture,
    FittedNetwork,
    FittedSAE,
)
from mmlib.denoisers.gaussian import PrincipalComponents, Projection, read_cost
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.denoisers.sae import SAEDenoiser, read_sae
from mmlib.files import sha256, written_whole

FORMAT = "mmlib.model 1"


MIXTURE = ("log_weights", "mean_d", "basis_dd", "eigenvalues_d")


COMPONENTS = ("mean", "axes", "variances")


def save(model: Fitted, folder: Path) -> Path:
    """Write a fitted object; `load` reads it. An older one in the same folder is replaced.

    Raises:
        FileExistsError: the folder holds other things.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "model.json").exists():
        raise FileExistsError(f"{folder} holds other things: give a new or an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.json").unlink(missing_ok=True)  # until everything else is there
    origin = model.origin
    written = _save_weights(model, folder)
    if not isinstance(model, FittedNetwork):
        written.append(_write(folder / "normaliser.safetensors", _statistics(origin.normaliser)))
    if model.components is not None:
        tensors = dict(zip(COMPONENTS, _numbers(model.components)))
        written.append(_write(folder / "gaussian.safetensors", tensors))
    content = {
        "format": FORMAT,
        "kind": model.kind,
        "identity": {
            "language_model": origin.language_model,
            "layers": list(origin.layers),
            "d": origin.d,
            "documents": origin.documents,
        },
        "cost": asdict(model.cost),
        "facts": {**model.facts, **_options(model)},
        "files": {str(path.relative_to(folder)): sha256(path) for path in written},
    }
    with written_whole(folder / "model.json") as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return folder


def _statistics(normaliser: Normaliser) -> dict[str, Tensor]:
    return {"mean": normaliser.mean_ld, "std": normaliser.std_ld}


def _numbers(components: PrincipalComponents) -> tuple[Tensor, ...]:
    return components.mean_d, components.axes_dd, components.variances_d


def _write(path: Path, tensors: dict[str, Tensor]) -> Path:
    with written_whole(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    return path


def _options(model: Fitted) -> dict[str, object]:
    """What the weights alone do not say."""
    if isinstance(model.denoiser, Projection):
        return {"k": model.denoiser.components_dk.shape[1], "fed": model.denoiser.fed}
    return {"fed": model.denoiser.fed} if isinstance(model.denoiser, SAEDenoiser) else {}


def _save_weights(model: Fitted, folder: Path) -> list[Path]:
    """Write what is the method's own; the files."""
    if isinstance(model, FittedNetwork):
        model.denoiser.save_pretrained(folder)
        network = sorted(path for path in (folder / "network").iterdir() if path.is_file())
        return [*network, folder / "normaliser.safetensors", folder / "meta_model.json"]
    if isinstance(model, FittedSAE):
        written = model.sae  # of training, or as loaded
        getattr(written, "save_inference_model", written.save_model)(folder / "sae")
        return sorted(path for path in (folder / "sae").iterdir() if path.is_file())
    if isinstance(model, FittedMixture):
        return [_write(folder / "weights.safetensors", model.denoiser.tensors())]
    return []  # a Gaussian or a PCA: gaussian.safetensors is all


def load(
    source: str | Path,
    *,
    layer: int | None = None,
    standardise: "Fitted | Normaliser | ActivationStore | None" = None,
) -> Fitted:
    """Read a fitted object.

    Args:
        source: a folder that `save` wrote, or what the module's head lists; or the id of a Hub repository.
        layer: of a network of several layers, the one that is meant.
        standardise: the statistics that a PCA, a mixture or an SAE of a notebook was fitted with, which such files do not hold: the store, or
            another fitted object.
    Raises:
        FileNotFoundError: there is nothing of the kind.
        CheckpointError: it is damaged or incomplete, or lacks its standardisation.

    >>> import tempfile, torch, mmlib
    >>> model = mmlib.fit(torch.randn(200, 4), "gaussian", progress=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load(model.save(Path(folder) / "gaussian"))
    >>> type(again).__name__, again.d
    ('FittedGaussian', 4)
    """
    path = Path(source)
    if (path / "model.json").exists():
        return _load_own(path)
    if (path / "cfg.json").exists():
        sae = read_sae(path)
        documents = getattr(sae.cfg.metadata, "documents", None) or ""
        origin = _origin_of(standardise, documents, path)
        denoiser = SAEDenoiser(sae, "mean_estimate")
        return FittedSAE(denoiser, origin, Cost.of(denoiser))
    if path.is_file() and path.suffix == ".safetensors":
        return _load_file(path, standardise)
    if path.is_dir() and not any((path / n).exists() for n in ("meta_model.json", "config.yaml")):
        raise FileNotFoundError(
            f"{path} holds no model.json, meta_model.json, config.yaml or cfg.json: expected a folder that model.save wrote"
        )
    model = MetaModel.from_pretrained(source)
    return FittedNetwork.of(model if layer is None else model.at(layer))


def _origin_of(
    given: "Fitted | Normaliser | ActivationStore | None", documents: str, path: Path
) -> Origin:
    if given is None:
        raise CheckpointError(
            f"{path} does not hold the mean and standard deviation that it was fitted with: pass standardise=, the store or a fitted object"
        )
    if isinstance(given, ActivationStore):
        origin = Origin.of(given)
        origin.check(str(path), documents=documents)
        return Origin(origin.normaliser, origin.language_model, origin.layers, documents)
    if isinstance(given, Fitted):
        return Origin(
            given.origin.normaliser, given.origin.language_model, given.origin.layers, documents
        )
    return Origin(given, documents=documents)


def _load_file(path: Path, standardise: "Fitted | Normaliser | ActivationStore | None") -> Fitted:
    """What `PrincipalComponents.save` or `GaussianMixtureDenoiser.save` wrote."""
    tensors = read_weights(path)
    with safe_open(path, "pt") as file:
        origin = _origin_of(standardise, (file.metadata() or {}).get("documents", ""), path)
    if set(tensors) == set(MIXTURE):
        mixture = replace(GaussianMixtureDenoiser.of_tensors(tensors), **read_cost(path))
        return FittedMixture(mixture, origin, Cost.of(mixture))
    if set(tensors) == set(COMPONENTS):
        numbers = (tensors[name] for name in COMPONENTS)
        components = PrincipalComponents(*numbers, **read_cost(path))
        gaussian = components.gaussian()
        return FittedGaussian(gaussian, origin, Cost.of(gaussian), components)
    raise CheckpointError(
        f"{path} holds {', '.join(sorted(tensors)[:5])}: expected principal components or a mixture"
    )


def _load_own(folder: Path) -> Fitted:
    try:
        content = json.loads((folder / "model.json").read_text("utf-8"))
        kind, files, cost = content["kind"], content["files"], Cost(**content["cost"])
        identity, facts, form = content["identity"], content["facts"], content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder}/model.json is damaged ({error}): save it again") from error
    if form != FORMAT or kind not in KINDS:
        raise CheckpointError(f"{folder} is a {kind!r} of format {form!r}: expected {FORMAT!r}")
    for name, digest in files.items():
        if not (folder / name).exists():
            raise CheckpointError(f"{folder} lacks {name}: copy the whole folder again")
        if sha256(folder / name) != digest:
            raise CheckpointError(f"{folder}/{name} is damaged or was changed: copy it again")
    numbers = read_weights(folder / "normaliser.safetensors")
    origin = Origin(
        Normaliser(numbers["mean"], numbers["std"]),
        identity["language_model"],
        tuple(identity["layers"]),
        identity["documents"],
    )
    components = None
    if "gaussian.safetensors" in files:
        tensors = read_weights(folder / "gaussian.safetensors")
        components = PrincipalComponents(*(tensors[name] for name in COMPONENTS))
    denoiser = _denoiser(kind, folder, facts, components)
    return KINDS[kind](denoiser, origin, cost, components, facts)


def _denoiser(kind: str, folder: Path, facts: dict, components: PrincipalComponents | None):
    """What a kind's files hold."""
    if kind == "network":
        return MetaModel.from_pretrained(folder)
    if kind == "sae":
        return SAEDenoiser(read_sae(folder / "sae"), facts["fed"])
    if kind == "mixture":
        return GaussianMixtureDenoiser.of_tensors(read_weights(folder / "weights.safetensors"))
    if components is None:
        raise CheckpointError(f"{folder} lacks gaussian.safetensors: copy the whole folder again")
    return (
        components.gaussian()
        if kind == "gaussian"
        else components.projection(facts["k"], facts["fed"])
    )
