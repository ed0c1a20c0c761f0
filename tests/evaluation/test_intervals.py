"""Intervals by document: what they cover in simulation, and what they are by hand."""

import numpy as np
import pytest
import scipy.stats

from mmlib.evaluation.intervals import (
    RESAMPLES,
    bootstrap_interval,
    effective_clusters,
    holm,
    jackknife_errors,
    mean_with_interval,
    p_value,
    paired_difference,
    ratio_interval,
    resampled,
    spread,
)


def mean_of(values):
    return lambda weights: weights @ values / weights.sum(-1)


def test_the_jackknife_error_of_a_mean_is_the_textbook_one():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    drawn = np.array([[1.0, 1, 1, 1, 1], [2, 0, 0, 1, 2]])
    resample = np.array([1, 1, 8, 16, 16])
    expected = [one.std(ddof=1) / np.sqrt(5) for one in (values, resample)]
    assert jackknife_errors(mean_of(values), drawn) == pytest.approx(expected)


def test_of_equal_normal_documents_it_is_nearly_students_interval():
    values = np.random.default_rng(1).standard_normal(40)
    low, high = bootstrap_interval(mean_of(values), 40)
    reach = scipy.stats.t.ppf(0.975, 39) * values.std(ddof=1) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.1)
    assert (low + high) / 2 == pytest.approx(values.mean())


def test_two_thousand_resamples_the_same_every_time():
    weights = resampled(20)
    assert RESAMPLES == 2000
    assert weights.shape == (2001, 20)
    assert (weights[0] == 1).all()
    assert (weights.sum(1) == 20).all()
    resampled.cache_clear()
    assert np.array_equal(weights, resampled(20))


@pytest.mark.parametrize("effect", [0.05, 0.3])
def test_intervals_cover_with_few_unequal_documents(effect):
    """20 documents, sizes over a factor of 70, an effect of its own for each: 95 % intervals must
    hold the truth that often.

    Percentiles of resampled documents do not, which is why they are not used.
    """
    rng, trials, covered, covered_plainly = np.random.default_rng(0), 500, 0, 0
    for _ in range(trials):
        sizes = np.exp(rng.uniform(0, np.log(70), 20))
        baseline = sizes * np.exp(effect * rng.standard_normal(20))
        method = 0.7 * baseline * np.exp(effect * rng.standard_normal(20) - effect**2 / 2)

        def ratio(weights, method=method, baseline=baseline):
            return (weights @ method) / (weights @ baseline)

        low, high = bootstrap_interval(ratio, 20, positive=True)
        covered += low < 0.7 < high
        low, high = np.quantile(ratio(resampled(20)[1:]), (0.025, 0.975))
        covered_plainly += low < 0.7 < high
    assert 0.93 < covered / trials < 0.98
    assert covered_plainly / trials < 0.92


def test_differences_may_be_negative():
    a, b = np.array([1.0, 2, 3, 4, 5, 7]), np.array([2.0, 4, 5, 9, 8, 11])
    low, high = bootstrap_interval(lambda w: (w @ a - w @ b) / w.sum(-1), 6)
    assert low < (a - b).mean() < high < 0


def test_a_method_against_itself_has_no_spread():
    a = np.arange(1.0, 9)
    assert bootstrap_interval(lambda w: (w @ a) / (w @ a), 8, positive=True) == (1, 1)


def test_what_has_no_interval_is_refused():
    with pytest.raises(ValueError, match="4 documents: an interval needs at least 5"):
        bootstrap_interval(lambda w: w.sum(-1), 4)
    with pytest.raises(ValueError, match="not finite on [0-9]+ of 2000 resamples of 6 documents"):
        bootstrap_interval(lambda w: w @ np.array([-1.0, 2, 3, 4, 5, 6]), 6, positive=True)


def test_groups_are_resampled_each_for_itself():
    """Equal ones too: were they drawn alike, the difference of two groups with the same values
    would have no spread.
    """
    seen = []
    bootstrap_interval(lambda w: seen.append(w) or (w @ np.arange(12.0)), (5, 7))
    assert seen[0].shape == (2001, 12)
    assert (seen[0][:, :5].sum(1) == 5).all() and (seen[0][:, 5:].sum(1) == 7).all()
    values = np.random.default_rng(2).standard_normal(30)

    def difference(weights):
        return (weights[..., :30] @ values - weights[..., 30:] @ values) / 30

    low, high = bootstrap_interval(difference, (30, 30))
    reach = scipy.stats.t.ppf(0.975, 58) * np.sqrt(2 / 30) * values.std(ddof=1)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.15)
    assert p_value(difference, (30, 30)) == 1


def test_a_ratio_of_sums_is_resampled_with_its_documents():
    above, below = np.array([1.0, 2, 3, 5, 4, 6]), np.array([2.0, 4, 6, 10, 8, 12])
    assert ratio_interval(above, below) == pytest.approx((0.5, 0.5))
    unequal = above + np.array([0, 1.0, 0, 0, -1, 0])
    expected = bootstrap_interval(lambda w: (w @ unequal) / (w @ below), 6, positive=True)
    assert ratio_interval(unequal, below, positive=True) == expected
    assert expected[0] < unequal.sum() / below.sum() < expected[1]


def test_spreads_over_seeds_by_hand():
    assert spread([1.0, 2.0, 4.0], "range") == {
        "values": [1, 2, 4],
        "mean": pytest.approx(7 / 3),
        "std": pytest.approx(np.sqrt(7 / 3)),
        "range": 3,
    }
    student = scipy.stats.ttest_1samp([1.0, 2.0, 4.5], 0).confidence_interval(0.95)
    assert spread([1.0, 2.0, 4.5])["ci95"] == pytest.approx(student)
    with pytest.raises(ValueError, match="1 value: a spread needs at least two"):
        spread([1.0])
    with pytest.raises(ValueError, match="width 'sd': expected 'ci95' or 'range'"):
        spread([1.0, 2.0], "sd")


@pytest.mark.parametrize(
    "p_m, adjusted_m",
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.03], [0.06, 0.06]),  # 0.04 alone would do, but the smaller is not rejected
        ([0.9, 0.8], [1.0, 1.0]),
    ],
)
def test_holms_correction_by_hand(p_m, adjusted_m):
    assert holm(p_m).tolist() == pytest.approx(adjusted_m)


def test_the_p_value_is_below_one_in_twenty_where_the_interval_leaves_out_0():
    rng, left_out, small = np.random.default_rng(0), [], []
    for shift in np.linspace(-0.8, 0.8, 30):
        values = rng.normal(shift, 1, 25)

        def mean(weights, values=values):
            return weights @ values / weights.sum(-1)

        low, high = bootstrap_interval(mean, (25,))
        left_out.append(low > 0 or high < 0)
        small.append(p_value(mean, (25,)) <= 0.05)
    assert sum(a != b for a, b in zip(left_out, small)) <= 1 and 0 < sum(small) < 30
    assert p_value(lambda weights: 0.0 * weights.sum(-1), (25,)) == 1.0


@pytest.mark.parametrize("unit", [2**-10, 2**10])
def test_the_p_value_has_no_unit(unit):
    values = np.random.default_rng(4).normal(0.4, 1, 25)
    expected = p_value(mean_of(values), (25,))
    assert 0.001 < expected < 0.5 and p_value(mean_of(unit * values), (25,)) == expected


def test_means_by_prompt():
    mean, interval = mean_with_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert mean == 3.5 and interval[0] < 3.5 < interval[1]


def test_a_paired_difference_is_the_mean_of_differences_and_narrow_where_prompts_agree():
    theirs_n = np.random.default_rng(0).normal(size=50)
    found = paired_difference(theirs_n + 0.25, theirs_n)
    assert found["difference"] == pytest.approx(0.25)
    assert found["ci95"] == pytest.approx([0.25, 0.25])
    low, high = paired_difference(np.random.default_rng(1).normal(size=50) + 0.25, theirs_n)["ci95"]
    assert low < 0.25 < high and high - low > 0.4


def test_effective_clusters_by_hand():
    assert effective_clusters([5, 5, 5, 5]) == 4
    assert effective_clusters([3, 1]) == pytest.approx(1.6)
