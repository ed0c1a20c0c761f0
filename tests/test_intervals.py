"""Intervals by document: what they cover in simulation, and where they agree with textbook ones."""

import numpy as np
import pytest
import scipy.stats

from mmlib.corpus import effective_clusters
from mmlib.intervals import bootstrap_interval, resampled_weights


def test_of_equal_documents_it_is_students_interval_of_the_mean():
    """Rao and Wu's variance of a mean is s²/n, so the interval is Student's, up to the noise of 2000 resamples."""
    values = np.random.default_rng(1).standard_normal(30)
    low, high = bootstrap_interval(lambda w: w @ values / w.sum(1), np.ones(30))
    reach = scipy.stats.t.ppf(0.975, 29) * values.std(ddof=1) / np.sqrt(30)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.05) and (low + high) / 2 == pytest.approx(values.mean())


def test_weights_are_unbiased_and_the_same_every_time():
    weights = resampled_weights(20)
    assert weights.shape == (2000, 20) and np.allclose(weights.sum(1), 20) and np.array_equal(weights, resampled_weights(20))
    assert weights.var(0, ddof=1).mean() == pytest.approx(1, rel=0.02)  # n − 1 draws, weighted n/(n − 1): variance exactly 1


def percentile_interval(statistic, n):
    """The plain cluster bootstrap, for comparison."""
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 2000)
    return np.quantile(statistic(weights), (0.025, 0.975))


@pytest.mark.parametrize("effect", [0.05, 0.3])
def test_intervals_cover_with_few_unequal_documents(effect):
    """20 documents, sizes over a factor of 70, an effect of its own for each: 95 % intervals must hold the truth that often.

    The plain percentile bootstrap does not, which is why it is not used.
    """
    rng, trials, covered, covered_plainly = np.random.default_rng(0), 1000, 0, 0
    for _ in range(trials):
        sizes = np.exp(rng.uniform(0, np.log(70), 20))
        baseline = sizes * np.exp(effect * rng.standard_normal(20))
        method = 0.7 * baseline * np.exp(effect * rng.standard_normal(20) - effect**2 / 2)

        def ratio(weights, method=method, baseline=baseline):
            return (weights @ method) / (weights @ baseline)

        low, high = bootstrap_interval(ratio, sizes, positive=True)
        covered += low < 0.7 < high
        low, high = percentile_interval(ratio, 20)
        covered_plainly += low < 0.7 < high
    assert 0.93 < covered / trials < 0.985
    assert covered_plainly / trials < 0.92


def test_differences_may_be_negative():
    a, b, n = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 4.0, 5.0, 9.0]), np.array([1.0, 2, 3, 4])
    low, high = bootstrap_interval(lambda w: (w @ a - w @ b) / (w @ n), n)
    assert low < -1 < high < 0 and effective_clusters(n) == pytest.approx(100 / 30)


def test_one_document_has_no_interval():
    with pytest.raises(ValueError, match="1 document: an interval needs at least two"):
        bootstrap_interval(lambda w: w.sum(1), [3.0])
