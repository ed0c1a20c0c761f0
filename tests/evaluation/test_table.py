"""`mmlib.evaluate`: rows for methods and for anyone's function, on one standardisation and the same
noise.
"""

import numpy as np
import pytest
import torch
from toy_fits import D, activations, fitted

import mmlib
from mmlib.activations.tokens import Normaliser

H, DOCUMENTS = activations(600, seed=3)
QUICK = {"rows": 40, "progress": False}


def zero(x, sigma):
    return 0 * x


@pytest.fixture(scope="module")
def table():
    methods = {"zero": zero, "mixture": fitted("mixture"), "mine": fitted("gaussian").denoiser}
    return mmlib.evaluate(methods, H, groups=DOCUMENTS, **QUICK)


def test_each_method_has_a_row_and_the_gaussian_joins(table):
    assert list(table.index) == ["zero", "mixture", "mine", "gaussian"]
    for prefix in ("velocity", "epsilon"):
        loss = table[f"{prefix}_loss"]
        assert loss["mixture"] < loss["gaussian"] < loss["zero"]
        assert loss["mine"] == loss["gaussian"]
        reduction = 1 - loss / loss["gaussian"]
        assert np.allclose(table[f"{prefix}_reduction"], reduction)
        for column, middle in (("", loss), ("_reduction", reduction)):
            low, high = (table[f"{prefix}{column}_{end}"] for end in ("low", "high"))
            assert (low <= middle + 1e-9).all() and (middle <= high + 1e-9).all()
            assert (low < high)[["zero", "mixture"]].all()
    assert table.loc["mixture", "parameters"] == fitted("mixture").parameters


def test_the_table_says_what_it_is_of(table):
    assert set(table["interval_by"]) == {"group"}
    assert table.attrs["interval"] == "95 %, by group: 12 groups"
    assert table.attrs["standardisation"] == "training statistics of 'mixture'"
    assert (table.attrs["rows"], table.attrs["levels"]) == (600, 100)
    assert table.attrs["baseline"] == "gaussian"


def test_the_loss_of_a_constant_estimate_is_known_in_closed_form(table):
    """Estimate 0 has the error z: its velocity loss is the mean of 1/σ² times that of z²."""
    z = fitted("mixture").standardise(H)
    weight = np.mean([1 / ((i + 0.5) / 100) ** 2 for i in range(100)])
    expected = weight * float(z.square().mean())
    assert table.loc["zero", "velocity_loss"] == pytest.approx(expected, rel=0.1)


def test_without_groups_the_interval_is_by_row_and_the_table_says_so(table):
    methods = {"mixture": fitted("mixture")}
    rows = mmlib.evaluate(methods, H, **QUICK)
    assert set(rows["interval_by"]) == {"row"}
    said = "95 %, by row: 600 rows, no groups were given, in 100 random blocks"
    assert rows.attrs["interval"] == said
    expected = table.loc["mixture", "velocity_loss"]
    assert rows.loc["mixture", "velocity_loss"] == pytest.approx(expected)


def test_with_few_groups_there_is_no_interval():
    few = mmlib.evaluate({"mixture": fitted("mixture")}, H, groups=np.arange(600) // 200, **QUICK)
    assert np.isnan(few.loc["mixture", "velocity_low"]) and few.loc["mixture", "velocity_loss"] > 0


def test_every_method_sees_the_same_noise_and_none_can_change_it():
    seen = []

    def spoil(x, sigma):
        seen.append((sigma, x.clone()))
        return x.mul_(0).requires_grad_().detach().numpy().astype("float64")

    def watch(x, sigma):
        seen.append((sigma, x.clone()))
        with torch.enable_grad():
            x = x.requires_grad_()
            (x.square().sum()).backward()
        return 0 * x.grad

    options = {"standardise": fitted("gaussian"), "baseline": None, **QUICK}
    table = mmlib.evaluate({"spoil": spoil, "watch": watch}, H, **options)
    assert len(seen) == 400 and seen[0][0] == 0.005
    for (sigma, first), (other, second) in zip(seen[::2], seen[1::2]):
        assert sigma == other and torch.equal(first, second)
    assert table.loc["spoil", "velocity_loss"] == table.loc["watch", "velocity_loss"]
    assert "velocity_reduction" not in table
    again = mmlib.evaluate({"zero": zero}, H, **options)
    assert again.loc["zero", "epsilon_loss"] == table.loc["watch", "epsilon_loss"]
    other = mmlib.evaluate({"zero": zero}, H, seed=1, **options)
    assert other.loc["zero", "epsilon_loss"] != again.loc["zero", "epsilon_loss"]


def test_methods_of_different_standardisations_are_refused():
    (h, documents), gaussian = activations(), {"method": "gaussian", "seed": 9, "progress": False}
    other = mmlib.fit(h, groups=documents, **gaussian)
    message = "'other' was fitted in another standardisation than training statistics of 'one'"
    with pytest.raises(ValueError, match=message):
        mmlib.evaluate({"one": fitted("mixture"), "other": other}, H, **QUICK)
    own = fitted("mixture").origin.normaliser
    wider = Normaliser(own.mean_ld, 1.01 * own.std_ld)
    with pytest.raises(
        ValueError, match="'one' was fitted in another standardisation than as given"
    ):
        mmlib.evaluate({"one": fitted("mixture")}, H, standardise=wider, **QUICK)
    shared = mmlib.fit(h, groups=documents, standardise=fitted("mixture"), **gaussian)
    table = mmlib.evaluate({"one": fitted("mixture"), "gaussian": shared}, H, **QUICK)
    assert list(table.index) == ["one", "gaussian"]


OTHER = Normaliser(torch.full((1, D), 30.0), torch.full((1, D), 9.0))


@pytest.mark.parametrize(
    "methods, options, said",
    [
        ({}, {}, "no methods"),
        ({"zero": zero}, {}, "nothing says how to standardise h"),
        ({"zero": zero}, {"standardise": OTHER}, "knows its Gaussian"),
        ({"pca": fitted("pca")}, {"baseline": "sae"}, "baseline 'sae': expected one of pca"),
        ({"pca": fitted("pca")}, {"h": H[:, :3]}, "h is 3 wide: expected 12"),
        ({"pca": fitted("pca")}, {"h": fitted("pca").standardise(H)}, "scale of standardised"),
        ({"pca": fitted("pca")}, {"groups": ["a"]}, "an id for each of 600 rows"),
        ({"flat": lambda x, sigma: x[:, 0]}, None, "'flat' gives torch.float32 of shape"),
        ({"lost": lambda x, sigma: x / 0}, None, "'lost' gives NaN or infinity at σ = 0.0050"),
        ({"ints": lambda x, sigma: x.long()}, None, "'ints' gives torch.int64"),
    ],
)
def test_what_cannot_be_compared_is_refused(methods, options, said):
    if options is None:
        options = {"standardise": OTHER, "baseline": None}
    with pytest.raises(ValueError, match=said):
        mmlib.evaluate(methods, **{"h": H, **QUICK, **options})


def test_fewer_levels_lie_in_the_middle_of_as_many_equal_parts():
    seen = []
    watching = {"mine": lambda x, sigma: seen.append(sigma) or 0 * x}
    options = {"standardise": fitted("gaussian"), "baseline": None, **QUICK}
    mmlib.evaluate(watching, H, levels=4, **options)
    assert seen[:4] == [0.125, 0.375, 0.625, 0.875]


def test_an_error_in_a_method_names_it():
    def broken(x, sigma):
        raise KeyError("weights")

    with pytest.raises(KeyError) as found:
        mmlib.evaluate({"pca": fitted("pca"), "broken": broken}, H, **QUICK)
    assert "in method 'broken' at σ = 0.0050" in "".join(found.value.__notes__)


def test_many_groups_are_resampled_in_blocks_of_whole_groups():
    table = mmlib.evaluate({"pca": fitted("pca")}, H, groups=np.arange(600) // 2, **QUICK)
    assert table.attrs["interval"] == "95 %, by group: 300 groups in 100 random blocks"
