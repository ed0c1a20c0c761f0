"""Activations in memory: standardised z, on which every loss is measured, and their rows.

Normaliser, Tokens               h ↔ z; the z of tokens, with their documents and positions
to_numpy, from_numpy, as_float   stored bits: bfloat16 is kept as uint16
RunningMoments                   mean and variance of rows that come in blocks
row_numbers, chunks_of           which rows are asked for, and in which chunks they lie
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmlib.files import StoreError


class Statistics(Protocol):
    """What standardises: a store, or anything with mean and variance of one layer, (d,) each."""

    path: Path
    layer: int
    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class Normaliser:
    """z = (h − mean)/std per dimension, with training statistics of one layer or of several.

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
            if len(constant := np.flatnonzero(~(store.variance > 0))):
                raise StoreError(
                    f"{store.path}: dimensions {constant.tolist()} of layer {store.layer} never "
                    "vary"
                )
        mean_ld, variance_ld = (
            torch.from_numpy(np.stack([getattr(store, name) for store in stores]))
            for name in ("mean", "variance")
        )
        return cls(mean_ld.float(), variance_ld.sqrt().float())

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
        """Mean and standard deviation in a shape that fits, on the values' device."""
        layers, d = self.mean_ld.shape
        lead, shape = (layers,) if layers > 1 else (), tuple(values.shape)
        if len(shape) != len(lead) + 2 or (*shape[:-2], shape[-1]) != (*lead, d):
            advice = ", or choose a layer with MetaModel.at(layer)" if lead else ""
            expected = ", ".join(map(str, (*lead, "n", d)))
            raise ValueError(f"activations of shape {shape}: expected ({expected}){advice}")
        mean, std = (x.to(values.device).view(*lead, 1, d) for x in (self.mean_ld, self.std_ld))
        return mean, std


@dataclass(frozen=True)
class Tokens:
    """Standardised activations of n tokens and where they come from.

    Documents are the units of all intervals.

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

    def __post_init__(self):
        if not len(self.z) == len(self.document) == len(self.position):
            raise ValueError(
                f"{len(self.z)} activations, {len(self.document)} documents and "
                f"{len(self.position)} positions: expected as many of each"
            )

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, rows: slice | np.ndarray) -> "Tokens":
        if not isinstance(rows, slice):
            rows = np.asarray(row_numbers(rows, len(self), "these tokens"))
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
    """Mean and variance of rows so far, merged in float64 (Chan, Golub, LeVeque 1979, eq. 2.1)."""

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


def row_numbers(rows, n: int, where: object) -> range | np.ndarray:
    """Rows 0 to n − 1: consecutive ones as a range, any others as numbers, (rows,) int64.

    Args:
        rows: a slice or range, row numbers in any order, or a mask of all rows, (n,) bool.
        where: they are, for the message.
    Raises:
        IndexError: there are no such rows, a mask has another length, or these are no row numbers.
    """
    if isinstance(rows, slice):
        if (rows.step or 1) < 1:
            raise IndexError(f"{rows} of {where}: expected a slice that goes forwards")
        rows = range(rows.start or 0, n if rows.stop is None else rows.stop, rows.step or 1)
    if isinstance(rows, range) and rows.step == 1:
        start, stop = rows.start, rows.stop
    else:
        rows = np.asarray(rows)
        if rows.dtype == bool and rows.shape == (n,):
            return np.flatnonzero(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise IndexError(
                f"rows of type {rows.dtype} and shape {rows.shape} were asked for: expected row "
                f"numbers, (rows,), or a mask of all {n} rows of {where}"
            )
        rows = rows.astype(np.int64)
        start, stop = (rows.min(), rows.max() + 1) if rows.size else (0, 0)
    if not 0 <= start <= stop <= n:
        raise IndexError(
            f"rows {start} to {stop - 1} were asked for, {where} has {n}: there are no others"
        )
    return rows


def chunks_of(rows: range | np.ndarray, size: int) -> Iterator[tuple]:
    """(chunk, where its rows are among `rows`, where in it), for each chunk of `size` with any."""
    if isinstance(rows, range):
        for low in range(rows.start - rows.start % size, rows.stop, size):
            first, end = max(rows.start, low), min(rows.stop, low + size)
            places = slice(first - rows.start, end - rows.start)
            yield low // size, places, slice(first - low, end - low)
        return
    order = np.argsort(rows, kind="stable")
    chunks, begins = np.unique(rows[order] // size, return_index=True)
    for chunk, places in zip(chunks.tolist(), np.split(order, begins[1:])):
        yield chunk, places, rows[places] - chunk * size
