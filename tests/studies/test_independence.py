"""Independence measured on data whose dependence is known."""

import numpy as np
import pytest
import torch

from mmlib_studies.independence import (
    _jackknife,
    coactivation,
    gaussianity,
    made_independent,
    mutual_information,
    paired,
)

BINS = np.linspace(-4, 4, 17)


def halves(firing):
    """Two documents of the same length."""
    return np.arange(len(firing)) >= len(firing) // 2


def bursts(n, m, rng):
    """Latents that are independent of each other but stay on or off for 10 tokens at a time, each
    beginning somewhere else.
    """
    columns = np.repeat(rng.random((m, n // 10)) < 0.2, 10, axis=1)
    return torch.from_numpy(np.stack([np.roll(column, rng.integers(10)) for column in columns], 1))


def test_independent_latents_are_outside_five_percent_of_the_time():
    """45 pairs of bursty latents, 20 times: 900 pairs, of which 5 % ± 4 standard errors."""
    shares = []
    for trial in range(20):
        firing = bursts(4000, 10, np.random.default_rng(trial))
        shares.append(coactivation(firing, halves(firing), trial, BINS)["outside"])
    assert np.mean(shares) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 900))


def test_a_planted_pair_is_found_and_named_by_its_side():
    firing = bursts(20_000, 6, np.random.default_rng(0))
    firing[:, 1] = firing[:, 0] | firing[:, 1]
    firing[:, 3] &= ~firing[:, 2]
    pairs = paired(firing, seed=0)
    place = {pair: i for i, pair in enumerate(zip(*np.triu_indices(6, 1)))}
    assert pairs.above_p[place[0, 1]] and not pairs.below_p[place[0, 1]]
    assert pairs.below_p[place[2, 3]]
    found = coactivation(firing, halves(firing), 0, BINS)
    assert (found["above"], found["below"]) == (pairs.above_p.mean(), pairs.below_p.mean())
    assert found["never_together"] == pytest.approx(1 / 15)
    assert found["mutual_information"] > 2 * found["mutual_information_null"]
    histogram = found["histogram"]
    assert [sum(histogram[of]) for of in ("data", "null")] == pytest.approx([1, 1])
    assert histogram["data"][0] == pytest.approx(1 / 15)


def test_shares_without_each_document():
    """One pair of latents agrees in the last of 5 documents alone, so it is outside the band unless
    that one is left out.
    """
    rng, document = np.random.default_rng(2), np.repeat([3, 4, 7, 8, 9], 1000)
    firing = torch.from_numpy(rng.random((5000, 2)) < 0.3)
    firing[document == 9, 1] = firing[document == 9, 0]
    found = coactivation(firing, document, 1, BINS)
    above = found["by_document"]["above"]
    assert above["value"] == found["above"] == paired(firing, 1).above_p.mean() == 1
    assert above["without"] == [1, 1, 1, 1, 0] and above["ci95"][0] == 0 and above["ci95"][1] == 1
    everywhere = torch.cat([firing[:, :1], firing[:, :1]], 1)
    assert coactivation(everywhere, document, 1, BINS)["by_document"]["outside"]["ci95"] == [1, 1]


def test_the_jackknifes_interval_by_hand():
    """Without each of three documents 0.4, 0.5, 0.6: standard error √(2/3 · 0.02), and t of two
    degrees is 4.303.
    """
    found = _jackknife(np.array([0.5, 0.4, 0.5, 0.6]))
    assert found["value"] == 0.5
    expected = [0.5 - 4.303 * np.sqrt(0.04 / 3), 0.5 + 4.303 * np.sqrt(0.04 / 3)]
    assert found["ci95"] == pytest.approx(expected, abs=1e-3)


def test_shifting_keeps_rates_and_runs():
    """The null of a column with itself shifted is its autocorrelation: a constant pattern of period
    2 has 0 or its rate, nothing between.
    """
    column = torch.arange(1000) % 2 == 0
    null = paired(torch.stack([column, column], 1), seed=0).null_sp
    assert set(null.round(6).ravel()) == {0.0, 0.5}


def test_made_independent_keeps_each_column_and_nothing_between_them():
    """Two columns that always agree: afterwards each has its values in its order around the end,
    and the pair is inside the band.
    """
    column = torch.rand(5000, generator=torch.Generator().manual_seed(0)) < 0.2
    both = torch.stack([column, column], 1)
    apart = made_independent(both, seed=3)
    assert all(any(torch.equal(row.roll(-by), column) for by in range(5000)) for row in apart.T)
    assert not torch.equal(*apart.T)
    assert paired(both, 0).above_p[0] and not paired(apart, 0).above_p[0]


def test_mutual_information_by_hand():
    """Two coins that always agree share ln 2; that are independent, nothing; p = ½, ¼ with joint ¼:
    ¼ ln 2 + ¼ ln(2/3) + ½ ln(4/3).
    """
    half, quarter = np.array([0.5]), np.array([0.25])
    assert mutual_information(half, half, half)[0] == pytest.approx(np.log(2))
    assert mutual_information(quarter, half, half)[0] == pytest.approx(0, abs=1e-12)
    expected = 0.25 * np.log(2) + 0.25 * np.log(2 / 3) + 0.5 * np.log(4 / 3)
    assert mutual_information(quarter, half, quarter)[0] == pytest.approx(expected)


def test_independent_gaussians():
    normal = torch.randn(20_000, 12, generator=torch.Generator().manual_seed(0))
    found = gaussianity(3 + 2 * normal, seed=0)
    assert np.abs(found["kurtosis"]).max() < 0.2 and max(found["distance"]) < 0.015
    assert found["squares"]["correlation"] == pytest.approx(0, abs=0.003)
    assert found["squares"]["outside"] < 0.2


def test_a_mixture_of_radii_has_heavy_tails_and_squares_that_go_together():
    """Radius 1 or 3 with equal chance: E r² = 5, E r⁴ = 41. Kurtosis 3·41/25 − 3; corr of squares
    (41/25 − 1)/(3·41/25 − 1).
    """
    generator = torch.Generator().manual_seed(0)
    radius = 1 + 2 * (torch.rand(40_000, 1, generator=generator) < 0.5)
    found = gaussianity(radius * torch.randn(40_000, 40, generator=generator), seed=0)
    assert np.mean(found["kurtosis"]) == pytest.approx(3 * 41 / 25 - 3, rel=0.03)
    expected = (41 / 25 - 1) / (3 * 41 / 25 - 1)
    assert found["squares"]["correlation"] == pytest.approx(expected, rel=0.03)
    # all but those that one of 39 shifts happens to move alike, 780 · 39 / 40,000 expected
    assert found["squares"]["above"] > 0.99
    # without the radius nothing is left but the sphere's −6/(d + 2)
    assert np.abs(found["norm_kurtosis"]).max() < 0.25


@pytest.mark.parametrize(
    "firing, document, message",
    [
        ([[True, True], [False, True]], [0, 1], "a latent fires nowhere or everywhere"),
        ([[True, True], [False, False]], [0, 0], "one document"),
    ],
)
def test_impossible_latents_are_refused(firing, document, message):
    with pytest.raises(ValueError, match=message):
        coactivation(torch.tensor(firing), np.array(document), 0, BINS)


def test_one_column_has_no_pairs():
    with pytest.raises(ValueError, match="1 columns and 39 shifts: expected at least 2 and 39"):
        paired(torch.ones(10, 1), seed=0)
