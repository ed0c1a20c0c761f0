"""Activations in memory: whatever holds them read alike or refused in words, and h ↔ z."""

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmlib.activations.arrays import group_numbers, matrix, rows_of
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser, Tokens, row_numbers

VALUES = torch.arange(12.0).view(4, 3)


def test_tensors_arrays_lists_datasets_and_files_give_the_same_rows(tmp_path):
    torch.save(VALUES, tmp_path / "a.pt")
    torch.save({"acts": VALUES.double()}, tmp_path / "named.pt")
    np.save(tmp_path / "a.npy", VALUES.numpy())
    save_file({"acts": VALUES}, tmp_path / "a.safetensors")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("acts", data=VALUES.numpy())
        given = [
            VALUES.clone().requires_grad_(),
            VALUES.bfloat16(),
            VALUES.double().numpy(),
            VALUES.numpy()[:, ::-1][:, ::-1],
            VALUES.int().tolist(),
            list(VALUES),
            dataset,
            *(tmp_path / name for name in ("a.pt", "named.pt", "a.npy", "a.safetensors")),
            str(tmp_path / "a.npy"),
        ]
        for values in given:
            found = matrix(values)
            assert torch.equal(found, VALUES) and found.dtype == torch.float32


@pytest.mark.parametrize(
    "values, said",
    [
        (torch.zeros(3), r"shape \(3,\): expected \(n, d\).*h\[None\]"),
        (torch.zeros(2, 3, 4), r"h\.reshape\(-1, h\.shape\[-1\]\)"),
        (torch.zeros(0, 4), "at least one activation"),
        (torch.zeros(3, 4) > 0, "not a mask; choose rows first"),
        (np.zeros((3, 4), bool), "not a mask"),
        (np.zeros((3, 4), "uint16"), "bits of bfloat16"),
        (np.zeros((3, 4), complex), "complex"),
        (np.array([["a", "b"]]), "dtype <U1"),
        (torch.zeros(3, 4, dtype=torch.long), "dtype torch.int64: expected activations of float64"),
        ([[1.0, 2.0], [3.0]], "rows of different lengths"),
        ([torch.zeros(2), torch.zeros(3)], "list of tensors of shapes"),
        ("nowhere.npy", "there is no file nowhere.npy"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused_in_words(values, said):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=said):
        matrix(values)


def test_rows_that_are_not_finite_are_named():
    values = torch.zeros(20, 3)
    values[[4, 7, 9, 11, 12, 13], 1] = torch.tensor([float("nan"), float("inf")] * 3)
    with pytest.raises(
        ValueError,
        match=r"6 of 20 rows hold NaN, infinity or values over 1e\+15: rows 4, 7, 9, 11, 12, …",
    ):
        matrix(values)
    with pytest.raises(ValueError, match=r"over 1e\+15: rows 1"):
        matrix(np.array([[1.0], [1e300]]))  # past float32


def test_files_that_only_unpickling_would_read_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    torch.save({"a": VALUES, "b": VALUES}, tmp_path / "two.pt")
    (tmp_path / "a.csv").write_text("1,2")
    for name, said in (
        ("evil.pt", "only unpickling would read"),
        ("objects.npy", "holds Python objects"),
        ("two.pt", "holds a, b: expected one tensor"),
        ("a.csv", "expected .pt, .npy or .safetensors"),
    ):
        with pytest.raises(ValueError, match=said):
            matrix(tmp_path / name)


def test_groups_of_any_kind_are_numbered_by_first_appearance(tmp_path):
    np.save(tmp_path / "ids.npy", np.array(["x", "y", "x"]))
    for ids in (
        ["x", "y", "x"],
        [7, -1, 7],
        torch.tensor([7, 9, 7]),
        np.array([b"x", b"y", b"x"]),
        tmp_path / "ids.npy",
    ):
        assert group_numbers(ids, 3).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "groups, said",
    [
        ([1, 2], r"shape \(2,\): expected an id for each of 3 rows"),
        ([[1], [2], [3]], r"shape \(3, 1\)"),
        ([True, False, True], "are true or false"),
        ([1.0, float("nan"), 2.0], "1 rows have no id .* the first is 1"),
        (["a", None, "b"], "no id"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, said):
    with pytest.raises(ValueError, match=said):
        group_numbers(np.array(groups, object) if None in groups else groups, 3)


def test_a_store_gives_its_rows_documents_and_identity(make_store):
    store = ActivationStore(make_store()[0])
    rows = rows_of(store)
    assert len(rows.h_nd) == 3500 and rows.group_n.tolist() == sorted(rows.group_n)
    assert (rows.language_model, rows.layer, rows.documents) == (store.model, 1, store.documents)
    assert len(rows_of(store, splits=("test",)).h_nd) == 700
    with pytest.raises(ValueError, match="groups beside a store"):
        rows_of(store, groups=[0] * 3500)


def test_activations_are_standardised_by_layer_and_back():
    """Layer l has mean l and standard deviation l + 1."""
    levels = torch.arange(2.0)[:, None].expand(2, 3)
    both, h = Normaliser(levels, levels + 1), torch.randn(2, 5, 3)
    z = torch.stack([h[0], (h[1] - 1) / 2])
    assert torch.equal(both(h), z) and torch.allclose(both.inverse(z), h)
    assert torch.equal(both.at(1)(h[1]), z[1]) and torch.equal(both.at(0).inverse(z[0]), h[0])
    for normaliser, values, said in (
        (both, h[0], r"\(5, 3\): expected \(2, n, 3\), or choose a layer with MetaModel.at"),
        (both, h[:1], r"\(1, 5, 3\): expected \(2, n, 3\)"),
        (both.at(0), h, r"\(2, 5, 3\): expected \(n, 3\)$"),
        (both.at(0), h[0, :, :2], r"\(5, 2\): expected \(n, 3\)$"),
    ):
        with pytest.raises(ValueError, match=said):
            normaliser(values)


def test_rows_of_tokens_are_numbers_or_a_mask_and_go_forwards():
    tokens = Tokens(torch.arange(8.0).view(4, 2), np.arange(4), np.arange(4))
    asked = np.array([0, 0, 1, 1], dtype=np.uint8)  # torch would take it for a mask
    assert len(tokens[asked]) == 4 and tokens[asked].document.tolist() == [0, 0, 1, 1]
    assert torch.equal(tokens[asked].z, tokens.z[[0, 0, 1, 1]])
    with pytest.raises(IndexError, match="goes forwards"):
        row_numbers(slice(None, None, -1), 4, "these")
    with pytest.raises(ValueError, match="4 activations, 3 documents"):
        Tokens(tokens.z, np.arange(3), np.arange(4))
