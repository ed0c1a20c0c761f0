"""Raw activations as people have them: tensors, arrays, lists, HDF5 datasets, files and stores as
one matrix of rows, and each row's document. The rest is refused in words.

Only torch.load(weights_only=True) unpickles anything.
"""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import h5py
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmlib.activations.tokens import Statistics


@runtime_checkable
class Store(Statistics, Protocol):
    """What `rows_of` needs of an `ActivationStore`."""

    model: str
    documents: str
    rows: Callable
    read: Callable
    column: Callable


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
    _refuse_masked(values, what)
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


def _refuse_masked(values: Values, what: str) -> None:
    """Refuse numpy's masked values, alone or in a list: they would be taken as they lie below."""
    listed = values if isinstance(values, (list, tuple)) else [values]
    if any(map(np.ma.is_masked, listed)):
        raise ValueError(
            f"{what} has masked values, which nothing here leaves out: choose whole rows first, or "
            "fill them, .filled(value)"
        )


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
    _refuse_masked(groups, "groups")
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
