"""Activations in memory: raw h as people have it, standardised z on which every loss is measured.

rows_of, matrix, group_numbers   tensors, arrays, lists, HDF5 datasets, files and stores as one
                                 matrix of rows, and each row's document; the rest is refused in
                                 words. Only torch.load(weights_only=True) unpickles anything
Normaliser, Tokens               h ↔ z; the z of tokens, with their documents and positions
to_numpy, from_numpy, as_float   stored bits: bfloat16 is kept as uint16
RunningMoments                   mean and variance of rows that come in blocks
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import h5py
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmlib.files import StoreError


class Statistics(Protocol):
    """What standardises: a store, or anything with mean and variance of one layer, (d,) each."""

    path: Path
    layer: int
    mean: np.ndarray
    variance: np.ndarray


@runtime_checkable
class Store(Statistics, Protocol):
    """What `rows_of` needs of an `ActivationStore`."""

    model: str
    documents: str
    rows: Callable
    read: Callable
    column: Callable


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


Values = Tensor | np.ndarray | h5py.Dataset | Sequence | str | Path | Store
SHOWN = 5  # row numbers that an error lists
OF_FLOATS = " of float64, float32, float16 or bfloat16"
BF16_BITS = "(h.astype('uint32') << 16).view('float32')"


@dataclass(frozen=True)
class Rows:
    """Raw activations and what is known of them.

    Args:
        h_nd: (n, d), float32, on the CPU.
        group_n: number of each row's document, from 0, (n,); None: not given.
        language_model, layer, documents: of a store; "" and None elsewhere.
    """

    h_nd: Tensor
    group_n: np.ndarray | None = None
    language_model: str = ""
    layer: int | None = None
    documents: str = ""


def rows_of(
    values: Values,
    groups: Values | None = None,
    *,
    splits: Sequence[str] = ("train", "validation"),
) -> Rows:
    """Activations (n, d) and their documents, from whatever holds them.

    Args:
        values: a tensor, a numpy array, a dataset of HDF5, nested lists, the path of a .pt, .npy or
            .safetensors file, or a store.
        groups: an id for each row (numbers or strings), or the path of a .npy file of them; a store
            has its own.
        splits: of a store, the ones to read.
    Raises:
        TypeError: the values are no real numbers.
        ValueError: they are no n × d finite numbers, or the ids do not fit them.

    >>> rows = rows_of([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], groups=["a", "b", "a"])
    >>> rows.h_nd.shape, rows.group_n.tolist()
    (torch.Size([3, 2]), [0, 1, 0])
    """
    if not isinstance(values, Store):
        h_nd = matrix(values)
        return Rows(h_nd, None if groups is None else group_numbers(groups, len(h_nd)))
    if groups is not None:
        raise ValueError("groups beside a store: it knows the document of each row, leave them out")
    runs = [values.rows(split) for split in splits]
    h_nd = torch.cat([values.read(run).float() for run in runs])
    documents = np.concatenate([values.column("document", run) for run in runs])
    group_n = group_numbers(documents, len(h_nd))
    return Rows(h_nd, group_n, values.model, values.layer, values.documents)


LARGEST = 1e15  # the squares of larger ones, summed, pass what float32 holds


def matrix(values: Values, *, d: int | None = None, what: str = "h") -> Tensor:
    """Values (n, d) as float32 on the CPU; see `rows_of`.

    Args:
        d: the width that is expected.
        what: the name that an error gives the values.

    >>> matrix([[1, float("nan")], [3, 4]])
    Traceback (most recent call last):
    ...
    ValueError: h: 1 of 2 rows holds NaN, infinity or values over 1e+15: rows 0
    """
    array = _array(values, what)
    shape = tuple(array.shape)
    if array.ndim != 2:
        hint = {
            1: "; one activation is h[None]",
            3: "; a batch of texts is h.reshape(-1, h.shape[-1]), without its padding",
        }
        raise ValueError(
            f"{what} has shape {shape}: expected (n, d), a row for each activation"
            + hint.get(array.ndim, "")
        )
    if d is not None and shape[1] != d:
        raise ValueError(f"{what} is {shape[1]} wide: expected {d}, the width of the model")
    if not array.numel():
        raise ValueError(f"{what} has shape {shape}: expected at least one activation")
    h_nd = array.float().contiguous()
    if len(bad := (~(h_nd.abs() <= LARGEST).all(1)).nonzero()[:, 0].tolist()):
        raise ValueError(
            f"{what}: {len(bad)} of {len(h_nd)} rows {'holds' if len(bad) == 1 else 'hold'} NaN, "
            f"infinity or values over {LARGEST:.0e}: "
            f"rows {', '.join(map(str, bad[:SHOWN]))}{', …' if len(bad) > SHOWN else ''}"
        )
    return h_nd


def _array(values: Values, what: str) -> Tensor:
    """A tensor of real numbers on the CPU, of any shape."""
    if isinstance(values, (str, Path)):
        return _array(_read(Path(values), what), f"{what} ({values})")
    listed = isinstance(values, (list, tuple))
    if listed and values and all(map(torch.is_tensor, values)):
        if len(shapes := {tuple(row.shape) for row in values}) > 1:
            raise ValueError(
                f"{what} is a list of tensors of shapes {sorted(shapes)}: expected one"
            )
        values = torch.stack(tuple(values))
    if torch.is_tensor(values):
        array = values.detach().cpu()
        real, mask = array.dtype.is_floating_point, array.dtype == torch.bool
    else:
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise ValueError(f"{what} has rows of different lengths: expected (n, d)") from error
        if array.dtype == np.uint16:
            raise TypeError(
                f"{what} is uint16: if these are the bits of bfloat16, give {BF16_BITS}"
            )
        kind = array.dtype.kind
        real, mask = kind == "f" or (listed and kind in "iu"), kind == "b"  # people write 3 for 3.0
    if not real:
        expected = ", not a mask; choose rows first, h[mask]" if mask else OF_FLOATS
        raise TypeError(f"{what} has dtype {array.dtype}: expected activations{expected}")
    if torch.is_tensor(array):
        return array
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _read(path: Path, what: str) -> Tensor | np.ndarray:
    """The one array in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, or holds several arrays or none.
    """
    if not path.exists():
        raise FileNotFoundError(f"{what}: there is no file {path}")
    try:
        if path.suffix in (".pt", ".pth"):
            content = torch.load(path, weights_only=True, map_location="cpu")
        elif path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        elif path.suffix == ".safetensors":
            content = load_file(path)
        else:
            raise ValueError(
                f"{path}: expected .pt, .npy or .safetensors; of an HDF5 file give the dataset, "
                "h5py.File(path)[name]"
            )
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, which only unpickling would read, and that may run "
            "code: save the tensor alone, torch.save(h, path)"
        ) from error
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{path} holds Python objects: save strings as np.asarray(ids, dtype='U')"
        ) from error
    named = content.items() if isinstance(content, dict) else [(type(content).__name__, content)]
    tensors = {name: value for name, value in named if torch.is_tensor(value)}
    if len(tensors) != 1:
        raise ValueError(
            f"{path} holds {', '.join(map(str, tensors)) or type(content).__name__}: expected one "
            "tensor; load it and give the one you mean"
        )
    return next(iter(tensors.values()))


def group_numbers(groups: Values, n: int) -> np.ndarray:
    """The number of each row's group, from 0 in order of first appearance, (n,).

    Args:
        groups: n ids, numbers or strings.
    Raises:
        ValueError: there are more or fewer ids than rows, one is missing, or they are a mask.

    >>> group_numbers(["b", "b", "a"], 3).tolist()
    [0, 0, 1]
    """
    if isinstance(groups, (str, Path)):
        groups = _read(Path(groups), "groups")
    array = np.asarray(groups.detach().cpu() if torch.is_tensor(groups) else groups)
    if array.shape != (n,):
        raise ValueError(f"groups have shape {array.shape}: expected an id for each of {n:,} rows")
    if array.dtype == bool:
        raise ValueError(
            "groups are true or false: expected an id for each row, such as its document's number; "
            "choose rows by a mask first"
        )
    numbers, _ = pd.factorize(array)
    if len(missing := np.flatnonzero(numbers < 0)):
        raise ValueError(
            f"groups: {len(missing)} rows have no id (None or NaN), the first is {missing[0]}"
        )
    return numbers


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
