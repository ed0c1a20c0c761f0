"""Intervals by document: what they cover in simulation, and what they are by hand."""

import numpy as np
import pytest
import scipy.stats

from mmlib.evaluation.intervals import RESAMPLES, bootstrap_interval, jackknife_errors, resampled


def mean_of(values):
    return lambda weights: weights @ values / weights.sum(-1)


def test_the_jackknife_error_of_a_mean_is_the_textbook_one():
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    drawn = np.array([[1.0, 1, 1, 1, 1], [2, 0, 0, 1, 2]])
    expected = [
        values.std(ddof=1) / np.sqrt(5),
        np.array([1, 1, 8, 16, 16]).std(ddof=1) / np.sqrt(5),
    ]
    assert jackknife_errors(mean_of(values), drawn) == pytest.approx(expected)


def test_of_equal_normal_documents_it_is_nearly_students_interval():
    values = np.random.default_rng(1).standard_normal(40)
    low, high = bootstrap_interval(mean_of(values), 40)
    reach = scipy.stats.t.ppf(0.975, 39) * values.std(ddof=1) / np.sqrt(40)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.1) and (low + high) / 2 == pytest.approx(
        values.mean()
    )


def test_two_thousand_resamples_the_same_every_time():
    weights = resampled(20)
    assert (
        RESAMPLES == 2000
        and weights.shape == (2001, 20)
        and (weights[0] == 1).all()
        and (weights.sum(1) == 20).all()
    )
    resampled.cache_clear()
    assert np.array_equal(weights, resampled(20))


@pytest.mark.parametrize("effect", [0.05, 0.3])
def test_intervals_cover_with_few_unequal_documents(effect):
    """20 documents, sizes over a factor of 70, an effect of its own for each: 95 % intervals must hold the truth that often.

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
