"""Activations as people have them (tensors, arrays, lists, datasets of HDF5, files, stores) as one matrix of rows, with each row's document.

Whatever does not read as n activations of width d is refused in words. Nothing is unpickled, except by torch.load(weights_only=True).
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from mmlib.activations.store import ActivationStore

Values = Tensor | np.ndarray | h5py.Dataset | Sequence | str | Path | ActivationStore


SHOWN = 5  # row numbers that an error lists


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
    d: int | None = None,
    what: str = "h",
) -> Rows:
    """Activations (n, d) and their documents, from whatever holds them.

    Args:
        values: a tensor, a numpy array, a dataset of HDF5, nested lists, the path of a .pt, .npy or .safetensors file, or a store.
        groups: an id for each row (numbers or strings), or the path of a .npy file of them; a store has its own.
        splits: of a store, the ones to read.
        d: the width that is expected.
        what: the name that an error gives the values.
    Raises:
        TypeError: the values are no real numbers.
        ValueError: they are no n × d finite numbers, or the ids do not fit them.

    >>> rows = rows_of([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], groups=["a", "b", "a"])
    >>> rows.h_nd.shape, rows.group_n.tolist()
    (torch.Size([3, 2]), [0, 1, 0])
    """
    if isinstance(values, ActivationStore):
        return _of_store(values, groups, splits)
    h_nd = matrix(values, d=d, what=what)
    return Rows(h_nd, None if groups is None else group_numbers(groups, len(h_nd)))


def _of_store(store: ActivationStore, groups: Values | None, splits: Sequence[str]) -> Rows:
    if groups is not None:
        raise ValueError("groups beside a store: it knows the document of each row, leave them out")
    runs = [store.rows(split) for split in splits]
    h_nd = torch.cat([store.read(rows).float() for rows in runs])
    documents = np.concatenate([store.column("document", rows) for rows in runs])
    numbers = group_numbers(documents, len(h_nd))
    return Rows(h_nd, numbers, store.model, store.layer, store.documents)


def matrix(values: Values, *, d: int | None = None, what: str = "h") -> Tensor:
    """Values (n, d) as float32 on the CPU; see `rows_of`.

    >>> matrix([[1, float("nan")], [3, 4]])
    Traceback (most recent call last):
    ...
    ValueError: h: 1 of 2 rows holds NaN or infinity: rows 0
    """
    array = _array(values, what)
    if array.ndim != 2:
        hint = {
            1: "one activation is h[None]",
            3: "a batch of texts is h.reshape(-1, h.shape[-1]), without its padding",
        }
        raise ValueError(
            f"{what} has shape {tuple(array.shape)}: expected (n, d), a row for each activation"
            + (f"; {hint[array.ndim]}" if array.ndim in hint else "")
        )
    if d is not None and array.shape[1] != d:
        raise ValueError(f"{what} is {array.shape[1]} wide: expected {d}, the width of the model")
    if not array.numel():
        raise ValueError(f"{what} has shape {tuple(array.shape)}: expected at least one activation")
    h_nd = array.float().contiguous()
    if len(bad := (~h_nd.isfinite().all(1)).nonzero()[:, 0].tolist()):
        more = ", …" if len(bad) > SHOWN else ""
        raise ValueError(
            f"{what}: {len(bad)} of {len(h_nd)} rows {'holds' if len(bad) == 1 else 'hold'} NaN or infinity: "
            f"rows {', '.join(map(str, bad[:SHOWN]))}{more}"
        )
    return h_nd


def _array(values: Values, what: str) -> Tensor:
    """A tensor of real numbers on the CPU, of any shape."""
    if isinstance(values, (str, Path)):
        return _array(_read(Path(values), what), f"{what} ({values})")
    if isinstance(values, (list, tuple)) and values and all(map(torch.is_tensor, values)):
        shapes = {tuple(row.shape) for row in values}
        if len(shapes) > 1:
            raise ValueError(
                f"{what} is a list of tensors of shapes {sorted(shapes)}: expected one"
            )
        values = torch.stack(tuple(values))
    if torch.is_tensor(values):
        return _real(values.detach().cpu(), values.dtype, what)
    if isinstance(values, h5py.Dataset):
        values = values[...]
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{what} has rows of different lengths: expected (n, d)") from error
    if isinstance(values, (list, tuple)) and array.dtype.kind in "iu":
        array = array.astype(np.float64)  # people write 3 for 3.0
    if array.dtype == np.uint16:
        raise TypeError(f"{what} is uint16: if these are the bits of bfloat16, give {BF16_BITS}")
    if array.dtype.kind != "f":
        raise TypeError(f"{what} has dtype {array.dtype}: {_expected(array.dtype.kind == 'b')}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _real(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    if not dtype.is_floating_point:
        raise TypeError(f"{what} has dtype {dtype}: {_expected(dtype == torch.bool)}")
    return tensor


def _expected(mask: bool) -> str:
    if mask:
        return "expected activations, not a mask; choose rows first, h[mask]"
    return "expected activations of float64, float32, float16 or bfloat16"


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
            return _only(torch.load(path, weights_only=True, map_location="cpu"), path)
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".safetensors":
            return _only(load_file(path), path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, which only unpickling would read, and that may run code: "
            "save the tensor alone, torch.save(h, path)"
        ) from error
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"{path} holds Python objects: save strings as np.asarray(ids, dtype='U')"
        ) from error
    raise ValueError(
        f"{path}: expected .pt, .npy or .safetensors; of an HDF5 file give the dataset, h5py.File(path)[name]"
    )


def _only(content: object, path: Path) -> Tensor:
    if torch.is_tensor(content):
        return content
    tensors = (
        {key: value for key, value in content.items() if torch.is_tensor(value)}
        if isinstance(content, dict)
        else {}
    )
    if len(tensors) != 1:
        raise ValueError(
            f"{path} holds {', '.join(map(str, tensors)) or type(content).__name__}: expected one tensor; load it and give the one you mean"
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
    >>> group_numbers([True, False], 2)
    Traceback (most recent call last):
    ...
    ValueError: groups are true or false: expected an id for each row, such as its document's number; choose rows by a mask first
    """
    if isinstance(groups, (str, Path)):
        groups = _read(Path(groups), "groups")
    if torch.is_tensor(groups):
        groups = groups.detach().cpu().numpy()
    array = groups[...] if isinstance(groups, h5py.Dataset) else np.asarray(groups)
    if array.shape != (n,):
        raise ValueError(f"groups have shape {array.shape}: expected an id for each of {n:,} rows")
    if array.dtype == bool:
        raise ValueError(
            "groups are true or false: expected an id for each row, such as its document's number; choose rows by a mask first"
        )
    numbers, _ = pd.factorize(array)
    if (numbers < 0).any():
        missing = np.flatnonzero(numbers < 0)
        raise ValueError(
            f"groups: {len(missing)} rows have no id (None or NaN), the first is {missing[0]}"
        )
    return numbers
