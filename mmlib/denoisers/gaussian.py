"""Linear-Gaussian denoisers in closed form.

For z ~ N(μ, Σ) and x = (1 − σ) z + σ ε the posterior mean is E[z | x] = μ + U g(σ) Uᵀ (x − (1 − σ)
μ), with Σ = U diag(λ) Uᵀ and g = (1 − σ) λ / ((1 − σ)² λ + σ²). No linear method has a lower mean
squared error on data with that mean and covariance.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.decomposition import PCA
from torch import Tensor

from mmlib.activations.store import ActivationStore, StoreError
from mmlib.denoisers.noise import Level, noise_process
from mmlib.files import read_sealed, write_sealed, written_whole


@dataclass(frozen=True)
class GaussianDenoiser:
    """Posterior mean under N(μ, U diag(λ) Uᵀ)."""

    mean_d: Tensor
    basis_dd: Tensor  # columns are eigenvectors
    eigenvalues_d: Tensor
    parameters: int  # free numbers
    train_seconds: float | None = None  # of the fit; None: not known
    train_activations: int | None = None  # that the fit saw

    def gain(self, sigma: float) -> Tensor:
        """g(σ), (d,)."""
        a = 1 - sigma
        return a * self.eigenvalues_d / (a**2 * self.eigenvalues_d + sigma**2)

    def scores(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Coordinates along the eigenvectors, Uᵀ (x − (1 − σ) μ), (n, d)."""
        return (x_nd - (1 - sigma) * self.mean_d) @ self.basis_dd

    def estimate(self, scores_nd: Tensor, sigma: float) -> Tensor:
        """Posterior mean, (n, d), of x with these coordinates."""
        return self.mean_d + scores_nd * self.gain(sigma) @ self.basis_dd.T

    def score_density(self, scores_nd: Tensor, sigma: float) -> Tensor:
        """Natural logarithm of the density of x with these coordinates, N(0, (1 − σ)² diag(λ) + σ²
        I), per dimension, (n,), double.
        """
        variance_d = (1 - sigma) ** 2 * self.eigenvalues_d + sigma**2
        squares_n = (scores_nd.square() / variance_d).mean(1, dtype=torch.double)
        return -(squares_n + (2 * math.pi * variance_d).log().mean(dtype=torch.double)) / 2

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """E[z | x], (n, d)."""
        return self.estimate(self.scores(x_nd, sigma), sigma)

    def log_density(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Natural logarithm of the density of x = (1 − σ) z + σ ε, N((1 − σ) μ, (1 − σ)² Σ + σ² I),
        per dimension, (n,), double.
        """
        return self.score_density(self.scores(x_nd, sigma), sigma)

    def expected_mse(self, sigma: float, power_d: Tensor) -> float:
        """Squared error per dimension, exact over the noise: Σⱼ (1 − a gⱼ)² mⱼ + σ² gⱼ², averaged,
        with a = 1 − σ.

        Args:
            power_d: mⱼ, the mean square of z − μ along each eigenvector. On the Gaussian's own data
                mⱼ = λⱼ, and no denoiser has less.
        """
        gain = self.gain(sigma).double()
        return float(((1 - (1 - sigma) * gain) ** 2 * power_d + sigma**2 * gain**2).mean())

    def expected_losses(self, levels: Sequence[Level], z_nd: Tensor) -> list[float]:
        """Its loss on activations `z_nd` at each level, weighed as the objective weighs it, exact
        over the noise.
        """
        power_d = ((z_nd - self.mean_d) @ self.basis_dd).double().square().mean(0)
        return [level.weight * self.expected_mse(level.sigma, power_d) for level in levels]

    def expected_loss(self, objective: str, z_nd: Tensor) -> float:
        """Mean of `expected_losses` over the evaluation grid of an objective."""
        losses = self.expected_losses(noise_process(objective).grid(), z_nd)
        return sum(losses) / len(losses)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws from the Gaussian, (n, d)."""
        noise_nd = torch.randn(n, len(self.mean_d), generator=generator)
        return self.mean_d + noise_nd * self.eigenvalues_d.sqrt() @ self.basis_dd.T


@dataclass(frozen=True)
class Projection:
    """PCA as people use it: the estimate is the projection on the first k components.

    It expects clean activations. `fed="mean_estimate"` gives it the posterior mean of N(0, I);
    `fed="rescaled"` gives it x/(1 − σ), the naive reading.
    """

    mean_d: Tensor
    components_dk: Tensor
    fed: str
    train_seconds: float | None = None
    train_activations: int | None = None

    @property
    def parameters(self) -> int:
        """Mean and components."""
        return self.mean_d.numel() + self.components_dk.numel()

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """The projection of what stands in for z, (n, d)."""
        centred_nd = clean_input(x_nd, sigma, self.fed) - self.mean_d
        return self.mean_d + centred_nd @ self.components_dk @ self.components_dk.T


def clean_input(x_nd: Tensor, sigma: float, fed: str) -> Tensor:
    """What a method made for clean activations is given in place of z: "mean_estimate" or
    "rescaled" (see `Projection`).

    Raises:
        ValueError: another reading.
    """
    if fed == "mean_estimate":
        return x_nd * (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)
    if fed == "rescaled":
        return x_nd / (1 - sigma)
    raise ValueError(f"fed={fed!r}: expected 'mean_estimate' or 'rescaled'")


def standard_normal(d: int) -> GaussianDenoiser:
    """The mean model: posterior mean under N(0, I)."""
    return GaussianDenoiser(torch.zeros(d), torch.eye(d), torch.ones(d), 0, 0.0, 0)


def cost_of(name: str, denoiser) -> dict:
    """`parameters`, `train_seconds` and `train_activations` of a fitted denoiser.

    Raises:
        ValueError: its file came before fits carried what they cost.
    """
    if denoiser.train_seconds is None:
        raise ValueError(
            f"{name} does not say what it cost: fit it again, by notebook 02 or, for a network, 03"
        )
    kinds = {"parameters": int, "train_seconds": float, "train_activations": int}
    return {name: kind(getattr(denoiser, name)) for name, kind in kinds.items()}


def activations_id(store: ActivationStore) -> str:
    """Digest of what decides a store's values: weights, token ids, windows, types, layer."""
    keys = ("model", "weights", "model_dtype", "tokenizer", "token_ids", "window", "opening_token")
    known = {key: store.attributes.get(key) for key in keys}
    known |= {"dtype": store.dtype, "layer": store.layer, "documents": store.documents}
    return xxhash.xxh3_128_hexdigest(json.dumps(known, sort_keys=True).encode())


def check_fit(known: str, store: ActivationStore, what: Path) -> None:
    """Refuse a fit of other activations than a store's, though of the same documents.

    Raises:
        StoreError: `known` is not the store's `activations_id`.
    """
    if known != activations_id(store):
        raise StoreError(
            f"{what} was fitted to other activations than {store.path} holds, of another language "
            "model, layer, window or type: run the notebooks again from 02"
        )


class SavedFit:
    """A fit in safetensors; subclasses give `tensors()` by name and are made `of_tensors`."""

    def save(self, path: Path, documents: str, activations: str = "") -> None:
        """Write it, with the identity of the documents it was fitted to, and of their activations,
        `activations_id`; "" where nobody knows them.

        What it cost, and the file's digest, are in JSON beside it: fits of the same data have the
        same weights, byte for byte.
        """
        beside = path.with_suffix(".json")
        beside.unlink(missing_ok=True)
        with written_whole(path) as partial:
            save_file(self.tensors(), partial, {"documents": documents})
        names = ("parameters", "train_seconds", "train_activations")
        facts = {"activations": activations, **{name: getattr(self, name) for name in names}}
        write_sealed(beside, facts, [path])

    @classmethod
    def load(cls, path: Path, store: ActivationStore) -> "SavedFit":
        """Read what `save` wrote.

        Raises:
            StoreError: it was fitted to another store's documents or activations.
            CheckpointError: it is damaged, or the JSON beside it.
        """
        cost = read_cost(path)
        with safe_open(path, "pt") as file:
            store.check_documents(file.metadata()["documents"], path)
            check_fit(read_sealed(path.with_suffix(".json"))["activations"], store, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        return cls.of_tensors(tensors, **cost)


def read_cost(path: Path) -> dict:
    """`train_seconds` and `train_activations` of what `SavedFit.save` wrote, after checking that it
    is whole.
    """
    known = read_sealed(path.with_suffix(".json"))
    return {name: known[name] for name in ("train_seconds", "train_activations")}


@dataclass(frozen=True)
class PrincipalComponents(SavedFit):
    """Mean, all d principal axes and their variances, largest first."""

    names = ("mean", "axes", "variances")

    mean_d: Tensor
    axes_dd: Tensor  # columns
    variances_d: Tensor
    train_seconds: float | None = None
    train_activations: int | None = None

    @property
    def parameters(self) -> int:
        """Free numbers of the mean and the covariance."""
        d = len(self.mean_d)
        return d + d * (d + 1) // 2

    @classmethod
    def fit(cls, z_nd: Tensor) -> "PrincipalComponents":
        """By scikit-learn, from standardised activations (n, d), n > d.

        Raises:
            ValueError: too few activations to determine d components.
        """
        if len(z_nd) <= z_nd.shape[1]:
            raise ValueError(
                f"{len(z_nd)} activations cannot determine {z_nd.shape[1]} components: extract more"
            )
        began = time.perf_counter()
        pca = PCA(svd_solver="covariance_eigh").fit(z_nd.numpy())
        arrays = (pca.mean_, pca.components_.T, pca.explained_variance_)
        mean, axes, variances = (torch.from_numpy(array.copy()).float() for array in arrays)
        seconds = time.perf_counter() - began
        return cls(mean, axes.contiguous(), variances, seconds, len(z_nd))

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name."""
        return dict(zip(self.names, (self.mean_d, self.axes_dd, self.variances_d)))

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], **cost) -> "PrincipalComponents":
        """What `tensors` gave."""
        return cls(*(tensors[name] for name in cls.names), **cost)

    def scores(self, z_nd: Tensor, k: int) -> Tensor:
        """Coordinates of activations along the first k axes, (n, k)."""
        return (z_nd - self.mean_d) @ self.axes_dd[:, :k]

    def gaussian(self) -> GaussianDenoiser:
        """The full-covariance Gaussian."""
        cost = (self.parameters, self.train_seconds, self.train_activations)
        return GaussianDenoiser(self.mean_d, self.axes_dd, self.variances_d, *cost)

    def probabilistic(self, k: int) -> GaussianDenoiser:
        """Probabilistic PCA (Tipping and Bishop 1999, eq. 8): the variances beyond the first k are
        replaced by their mean.
        """
        variances, d = self.variances_d.clone(), len(self.variances_d)
        if k >= d:
            return self.gaussian()
        variances[k:] = variances[k:].mean()
        parameters = d + d * k + 1 - k * (k - 1) // 2
        return replace(self.gaussian(), eigenvalues_d=variances, parameters=parameters)

    def projection(self, k: int, fed: str) -> Projection:
        """PCA-k as people use it."""
        axes_dk = self.axes_dd[:, :k].contiguous()
        return Projection(self.mean_d, axes_dk, fed, self.train_seconds, self.train_activations)
