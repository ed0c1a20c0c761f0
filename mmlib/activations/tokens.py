"""Raw activations h and standardised ones z: every loss of this repository is measured on z."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmlib.files import StoreError


class Statistics(Protocol):
    """What standardises: an `ActivationStore`, or anything with mean and variance of one layer, (d,) each."""

    path: Path
    layer: int
    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class Normaliser:
    """z = (h − mean)/std per dimension, with training statistics of one layer, or of each of several.

    Args:
        mean_ld, std_ld: (layers, d).
    """

    mean_ld: Tensor
    std_ld: Tensor

    @classmethod
    def of(cls, *stores: Statistics) -> "Normaliser":
        """From the statistics of stores, one a layer.

        Raises:
            StoreError: a dimension never varies.
        """
        for store in stores:
            if not (store.variance > 0).all():
                raise StoreError(
                    f"{store.path}: dimensions {(store.variance <= 0).nonzero()[0].tolist()} of layer {store.layer} never vary"
                )
        mean_ld = torch.stack([torch.from_numpy(store.mean) for store in stores])
        return cls(
            mean_ld.float(),
            torch.stack([torch.from_numpy(store.variance) for store in stores]).sqrt().float(),
        )

    @property
    def d(self) -> int:
        """Width of the activations."""
        return self.mean_ld.shape[1]

    def at(self, index: int) -> "Normaliser":
        """Of one of the layers."""
        return Normaliser(self.mean_ld[index, None], self.std_ld[index, None])

    def __call__(self, activations: Tensor) -> Tensor:
        """Standardised z of raw activations: (n, d) of the one layer, or (layers, n, d)."""
        mean, std = self._matching(activations)
        return (activations.float() - mean) / std

    def inverse(self, z: Tensor) -> Tensor:
        """Raw activations, float32, of standardised ones; shapes as above."""
        mean, std = self._matching(z)
        return z.float() * std + mean

    def _matching(self, values: Tensor) -> tuple[Tensor, Tensor]:
        layers, d = self.mean_ld.shape
        if (
            values.shape[-1] != d
            or values.ndim != (2 if layers == 1 else 3)
            or (layers > 1 and len(values) != layers)
        ):
            raise ValueError(
                f"activations of shape {tuple(values.shape)}: expected (n, {d})"
                if layers == 1
                else f"activations of shape {tuple(values.shape)}: expected ({layers}, n, {d}), or choose a layer with MetaModel.at(layer)"
            )
        mean, std = self.mean_ld.to(values.device), self.std_ld.to(values.device)
        return (mean[0], std[0]) if layers == 1 else (mean[:, None], std[:, None])


@dataclass(frozen=True)
class Tokens:
    """Standardised activations of n tokens and where they come from; documents are the units of all intervals.

    Args:
        z: (n, d) float32.
        document: (n,) the document of each row, as its store numbers them.
        position: (n,) of the token in its document, from 0.

    >>> tokens = Tokens(torch.zeros(3, 2), np.array([0, 0, 1]), np.array([0, 1, 0]))
    >>> len(tokens), tokens[tokens.document == 0].z.shape
    (3, torch.Size([2, 2]))
    """

    z: Tensor
    document: np.ndarray
    position: np.ndarray

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: slice | np.ndarray) -> "Tokens":
        return Tokens(self.z[rows], self.document[rows], self.position[rows])

    def altered(self, z: Tensor) -> "Tokens":
        """Other activations at the same tokens."""
        return replace(self, z=z)


def to_numpy(values: Tensor) -> np.ndarray:
    """The same bits, bfloat16 as uint16."""
    if values.dtype == torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()


def from_numpy(values: np.ndarray) -> Tensor:
    """The inverse of `to_numpy`."""
    if values.dtype == np.uint16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)


def as_float(values: np.ndarray) -> np.ndarray:
    """Stored values as float32; bfloat16 comes as its 16 bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def moments_of(rows_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population variance of one or more rows, (d,) each, in float64."""
    centred = rows_nd.astype(np.float64)
    mean = centred.mean(0)
    centred -= mean
    return mean, np.einsum("nd,nd->d", centred, centred) / len(rows_nd)


class RunningMoments:
    """Mean and variance of rows seen so far, merged in float64 (Chan, Golub and LeVeque 1979, eq. 2.1)."""

    def __init__(self, d: int):
        self.count, self.mean, self._m2 = 0, np.zeros(d), np.zeros(d)

    def update(self, rows_nd: np.ndarray) -> None:
        """Merge a block of rows, (n, d)."""
        if len(rows_nd):
            self.merge(len(rows_nd), *moments_of(rows_nd))

    def merge(self, n: int, mean: np.ndarray, variance: np.ndarray) -> None:
        """Merge n rows of known mean and population variance, (d,) each."""
        delta, total = mean - self.mean, self.count + n
        self._m2 += variance * n + delta**2 * self.count * n / max(1, total)
        self.mean += delta * n / max(1, total)
        self.count = total

    @property
    def variance(self) -> np.ndarray:
        """Population variance, (d,); 0 before any row."""
        return self._m2 / max(1, self.count)
