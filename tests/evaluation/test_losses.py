"""The evaluator: known losses, identical draws, sums by document, honest intervals."""

import numpy as np
import pytest
import torch
from known import Scaled, tokens_of

from mmlib.denoisers.gaussian import PrincipalComponents, standard_normal
from mmlib.denoisers.noise import Level, noise_process
from mmlib.evaluation.losses import (
    DocumentLosses,
    Losses,
    evaluate,
    grid_losses,
    loss_interval,
    reduction_interval,
    reduction_rows,
    spread_draws,
    token_losses,
    velocity_loss,
)
from mmlib_studies.verdict import closed_form_check, loss_rows

DOCUMENTS = np.repeat(np.arange(6), (50, 100, 200, 400, 750, 1500))
GRID = ("flow_velocity", "ddpm_epsilon")


@pytest.fixture(scope="module")
def tokens():
    return tokens_of(torch.randn(3000, 5, generator=torch.Generator().manual_seed(0)), DOCUMENTS)


def test_estimating_zero_has_the_known_velocity_loss(tokens):
    """ẑ = 0: the error is z, so the loss at σ is mean(z²)/σ² ≈ 1/σ²."""
    losses = evaluate({"zero": Scaled(0.0)}, tokens, "flow_velocity", per_level=3000, seed=0)
    expected = tokens.z.square().mean().item() / losses.sigma_l**2
    assert np.allclose(losses.curve("zero"), expected, rtol=1e-4)


@pytest.mark.parametrize("objective", GRID)
def test_all_methods_see_the_same_tokens_and_noise_and_what_slow_ones_see_is_part_of_it(
    tokens, objective
):
    two = {"a": standard_normal(5), "b": standard_normal(5)}
    found = grid_losses(two, tokens.z, objective, per_level=300, seed=0, every={"b": 3})
    full, common = found.by_document(DOCUMENTS, ["a"]), found.by_document(DOCUMENTS)
    assert np.array_equal(common.sums["a"], common.sums["b"]) and set(full.sums) == {"a"}
    assert (full.counts_ld.sum(), common.counts_ld.sum()) == (30_000, 10_000)
    for level, rows_n in enumerate(found.rows_ln):
        expected = np.bincount(DOCUMENTS[rows_n[::3]], minlength=6)
        assert np.array_equal(common.counts_ld[level], expected), "of the draws both have seen"
    again = evaluate({"a": standard_normal(5)}, tokens, objective, per_level=300, seed=0)
    assert np.array_equal(again.sums["a"], full.sums["a"])
    third = evaluate({"b": standard_normal(5)}, tokens, objective, per_level=300, seed=0, every=3)
    assert np.array_equal(third.sums["b"], common.sums["b"])
    other = evaluate({"a": standard_normal(5)}, tokens, objective, per_level=300, seed=1)
    assert not np.isclose(other.sums["a"][:, -1], full.sums["a"][:, -1]).any()


def test_every_level_draws_noise_of_its_own(tokens):
    """A method that gives x back has the error σ (ε − z): over σ it is the velocity itself, the
    same at all levels for the same draws.
    """
    losses = evaluate({"x": Scaled(1.0)}, tokens, "flow_velocity", per_level=50, seed=0)
    assert len(np.unique(losses.curve("x").round(9))) == 100
    assert losses.mean("x") == pytest.approx(2, rel=0.02)


def test_every_document_gets_its_share(tokens):
    losses = evaluate({"a": Scaled(1.0)}, tokens, "flow_velocity", per_level=600, seed=0)
    assert np.allclose(losses.counts_ld.sum(0) / 60_000, np.bincount(DOCUMENTS) / 3000, atol=0.005)


def test_masked_tokens_are_left_out_of_the_same_draws(tokens):
    """With them and without add up to all; what is left has the loss of its own tokens, not that of
    others drawn in their place.
    """
    methods, mask = {"a": Scaled(0.3), "zero": Scaled(0.0)}, np.arange(3000) % 7 != 0
    options = {"objective": "flow_velocity", "per_level": 3000, "seed": 0}
    masks = (None, mask, ~mask)
    whole, kept, rest = (evaluate(methods, tokens, mask=one, **options) for one in masks)
    both = kept + rest
    assert np.array_equal(both.counts_ld, whole.counts_ld)
    assert all(np.allclose(both.sums[name], whole.sums[name], rtol=1e-12) for name in methods)
    assert kept.counts_ld.sum() == 100 * mask.sum()
    # of 300 spread tokens, those of the last three documents
    late = evaluate(methods, tokens, "flow_velocity", per_level=300, seed=0, mask=DOCUMENTS >= 3)
    assert not late.counts_ld[:, :3].any() and 250 < late.counts_ld[0].sum() < 300
    power = tokens.z[torch.from_numpy(mask)].square().mean().item()
    assert np.allclose(kept.curve("zero"), power / kept.sigma_l**2, rtol=1e-4)


def test_impossible_numbers_of_tokens_are_refused(tokens):
    one = {"a": Scaled(1.0)}
    with pytest.raises(ValueError, match="3001 different rows were asked for, there are 3000"):
        evaluate(one, tokens, "flow_velocity", per_level=3001, seed=0)
    for every in (7, 0):
        with pytest.raises(ValueError, match=f"300 tokens a level, every {every}th for a"):
            evaluate(one, tokens, "flow_velocity", per_level=300, seed=0, every=every)
    two, every = {"a": Scaled(1.0), "b": Scaled(1.0)}, {"a": 2, "b": 3}
    found = grid_losses(two, tokens.z, "flow_velocity", per_level=300, seed=0, every=every)
    with pytest.raises(ValueError, match="a saw every 2th draw, another method every 3th"):
        found.by_document(DOCUMENTS)
    assert found.by_document(DOCUMENTS, ["a"]).counts_ld.sum() == 15_000


def test_a_method_may_be_given_few_rows_at_once_and_noise_may_come_from_anywhere():
    z, noise = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(1))
    levels, seen = [Level(0.25, 16.0), Level(0.5, 4.0)], []

    def noticed(x, sigma):
        seen.append((len(x), sigma))
        return 0.5 * x

    def draw(i, level):
        return np.arange(10) + 0 * i, noise

    found = token_losses({"m": noticed}, z, levels, draw, batch=4)
    assert seen == [(n, sigma) for sigma in (0.25, 0.5) for n in (4, 4, 2)]
    for level, loss_n in zip(levels, found.loss["m"]):
        x = (1 - level.sigma) * z + level.sigma * noise
        assert loss_n == pytest.approx((0.5 * x - z).square().mean(1) * level.weight, rel=1e-5)
    velocity = token_losses({"m": noticed}, z, levels, draw, loss=velocity_loss)
    assert velocity.loss["m"] == pytest.approx(found.loss["m"], rel=1e-5)


def test_a_method_against_itself_is_reduced_by_exactly_nothing(tokens):
    two = {"a": standard_normal(5), "b": standard_normal(5)}
    losses = evaluate(two, tokens, "flow_velocity", per_level=300, seed=0)
    (row,) = reduction_rows(losses, "flow_velocity", ["a"], ["b"])
    assert row["reduction"] == 0 and row["ci95"] == [0, 0] and row["verdict"] == "below"


def test_rows_by_hand():
    """Five documents of 2, 1, 1, 1, 1 tokens at two levels: means over tokens, and over
    documents.
    """
    method = np.array([[4.0, 2, 2, 2, 2], [1, 1, 1, 1, 1]])
    counts = np.array([[2.0, 1, 1, 1, 1], [2, 1, 1, 1, 1]])
    losses = Losses(np.array([0.01, 0.5]), {"m": method, "b": 2 * method}, counts)
    row = loss_rows(losses, "o", {"m": {"parameters": 1}, "b": {}})[0]
    assert row["loss"] == pytest.approx((12 / 6 + 5 / 6) / 2)
    assert row["loss_without_sigma_below_0.05"] == pytest.approx(5 / 6)
    noisiest_last = Losses(np.array([0.5, 0.99]), {"m": method}, counts)
    without = loss_rows(noisiest_last, "o", {"m": {}})[0]["loss_without_sigma_above_0.95"]
    assert without == pytest.approx(12 / 6)
    assert row["loss_documents_equal"] == pytest.approx((5 / 4 + 4 * 3 / 2) / 5)
    assert row["parameters"] == 1
    reduction = reduction_rows(losses, "o", ["m"], ["b"])[0]
    assert reduction["reduction"] == pytest.approx(0.5)
    assert reduction["ci95"] == pytest.approx([0.5, 0.5])


def test_a_floor_is_a_loss_per_token_in_the_interval_too():
    """Where every document's loss lies half as far above the floor as the baseline's does, whatever
    its length, the interval is ½ alone.
    """
    counts_d, theirs_d = np.array([10.0, 300, 20, 4, 77]), np.array([1.5, 2.0, 1.1, 3.0, 1.7])
    floor = 0.6
    ours_d = floor + (theirs_d - floor) / 2
    sums = {"m": (ours_d * counts_d)[None], "b": (theirs_d * counts_d)[None]}
    losses = Losses(np.array([0.5]), sums, counts_d[None])
    assert reduction_interval(losses, "m", "b", floor) == pytest.approx((0.5, 0.5))
    low, high = reduction_interval(losses, "m", "b")
    assert low < high < 0.5


def test_the_interval_of_a_loss_holds_its_mean_and_no_document_is_counted_that_has_no_token():
    z = torch.randn(600, 4, generator=torch.Generator().manual_seed(3))
    z *= torch.linspace(0.5, 1.5, 600)[:, None]
    document = np.repeat(np.array([0, 1, 2, 3, 4, 7]), (50, 50, 80, 100, 120, 200))
    # the second as in a store, after the training documents
    losses, counted_on = (
        evaluate({"a": standard_normal(4)}, tokens_of(z, one), GRID[0], per_level=60, seed=0)
        for one in (document, document + 11)
    )
    found = losses.by_document("a")
    low, high = loss_interval(losses, "a")
    assert np.array_equal(counted_on.sums["a"], losses.sums["a"])
    assert losses.counts_ld.shape == (100, 8) and len(found.counts_d) == 6
    assert low < found.mean < high and found.mean == pytest.approx(losses.mean("a"))
    again = DocumentLosses.of_json(found.as_json())
    assert np.array_equal(again.sums_d, found.sums_d) and again.mean == found.mean


@pytest.mark.parametrize("objective", GRID)
def test_the_closed_form_is_met_within_its_monte_carlo_error(tokens, objective):
    """Documents of unlike power, which is no Monte-Carlo error; a loss that is off by a tenth is
    noticed.
    """
    unlike = tokens.altered(tokens.z * torch.from_numpy(1 + 0.3 * DOCUMENTS).float()[:, None])
    gaussian = PrincipalComponents.fit(unlike.z).gaussian()
    zs = []
    for seed in range(12):
        losses = evaluate({"gaussian": gaussian}, unlike, objective, per_level=300, seed=seed)
        found = closed_form_check(losses, gaussian, objective, unlike)
        zs.append(found["z"])
    exact = gaussian.expected_loss(objective, unlike.z)
    assert found["closed_form"] == pytest.approx(exact, rel=1e-6)
    expected = found["z"] * found["standard_error"] / found["closed_form"]
    assert found["relative_difference"] == pytest.approx(expected)
    assert abs(found["relative_difference"]) < 0.02
    assert 0.5 < np.sqrt(np.mean(np.square(zs))) < 1.5 and max(map(abs, zs)) < 3, zs
    losses.sums["gaussian"] *= 1.1
    assert closed_form_check(losses, gaussian, objective, unlike)["z"] > 3


@pytest.mark.parametrize("wrong", [np.ones(6, int), np.ones(7, bool)])
def test_a_mask_that_is_none_is_refused(wrong):
    losses = token_losses(
        {"zero": lambda x, sigma: 0 * x},
        torch.ones(6, 2),
        noise_process("flow_velocity").grid()[:2],
        spread_draws(torch.ones(6, 2), "flow_velocity", 6, 0),
    )
    with pytest.raises(ValueError, match="expected bool"):
        losses.by_document(np.zeros(6, int), mask=wrong)
