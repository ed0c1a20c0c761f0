"""One-unit probes against planted units, scikit-learn's logistic regression and counts by hand."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mmlib_studies.probing import probes as probe
from mmlib_studies.probing.probes import TaskProbes, auc, mean_over_tasks, random_candidates
from mmlib_studies.probing.tasks import Task


def task_of(n=240, seed=0, per_group=3):
    rng = np.random.default_rng(seed)
    held = np.arange(n) >= 0.6 * n
    rows, label = rng.permutation(n), rng.permutation(n) % 2 == 0
    return Task("t", "s", rows, label, np.arange(n) // per_group, held)


def planted(task, units=50, where=17, sign=1.0, noise=0.01, seed=1):
    """Units of noise, one of which is the label."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((len(task.rows_e), units)).astype(np.float32)
    values[task.rows_e, where] = sign * task.label_e + noise * rng.standard_normal(len(task.rows_e))
    return values


def test_auc_is_counted_by_hand_and_agrees_with_scikit_learn():
    high, low = np.array([[1.0], [2.0], [2.0]]), np.array([[0.0], [2.0]])
    assert auc(high, low)[0] == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 0.5) / 6)
    values, label = np.random.default_rng(0).integers(0, 5, (60, 3)), np.arange(60) % 3 == 0
    expected = [roc_auc_score(label, column) for column in values.T]
    assert auc(values[label], values[~label]) == pytest.approx(expected)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_planted_unit_is_ranked_first_and_has_an_auc_of_1(sign, scale):
    task = task_of()
    values = planted(task, sign=sign)
    values[:, 17] *= scale  # standardised, so no matter
    probes = TaskProbes(values, task, seed=0)
    assert np.abs(probes.difference_u).argmax() == 17
    best = probes.best(keep=3)
    assert (best.unit, best.sign, best.auc, best.cv_auc) == (17, sign, 1.0, 1.0)


def test_useless_units_have_an_auc_near_one_half_however_many_there_are():
    found = []
    for seed in range(40):
        noise = np.random.default_rng(seed).standard_normal((240, 300)).astype(np.float32)
        found.append(TaskProbes(noise, task_of(seed=seed), seed=0).best())
    # 96 held-out examples, 40 times
    assert np.mean([one.auc for one in found]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([one.cv_auc for one in found]) > 0.6  # what choosing the best rewards


def test_nothing_held_out_enters_the_choice():
    task = task_of()
    values = planted(task, noise=1.0)
    before = TaskProbes(values, task, seed=0).best()
    held, _ = task.side(True)
    values[held] = np.random.default_rng(9).standard_normal((len(held), values.shape[1]))
    after = TaskProbes(values, task, seed=0).best()
    assert (before.unit, before.sign, before.cv_auc) == (after.unit, after.sign, after.cv_auc)
    assert before.auc != after.auc


@pytest.mark.parametrize("strength", [1e-4, 1.0, 100.0])
def test_logistic_regression_on_one_unit_orders_as_the_signed_unit_does(strength):
    task = task_of()
    values = planted(task, noise=2.0)
    (rows, label), (held, held_label) = task.side(False), task.side(True)
    for unit in (17, 3, 4, 5):
        model = LogisticRegression(C=strength).fit(values[rows][:, [unit]], label)
        ours = TaskProbes(values, task, seed=0).best(candidates=[unit]).auc
        expected = roc_auc_score(held_label, model.decision_function(values[held][:, [unit]]))
        assert ours == pytest.approx(expected)


def test_cross_validated_auc_is_that_of_refitted_regressions():
    task = task_of(per_group=2)
    probes = TaskProbes(planted(task, noise=1.5), task, seed=3)
    units = np.array([17, 2, 9])
    expected, label = [], probes.label_e
    for rest, fold in probes.folds:
        for unit in units:
            model = LogisticRegression().fit(probes.fit_eu[rest][:, [unit]], label[rest])
            scores = model.decision_function(probes.fit_eu[fold][:, [unit]])
            expected.append(roc_auc_score(label[fold], scores))
    assert len(probes.folds) == probe.FOLDS
    assert probes.cv_auc(units) == pytest.approx(np.reshape(expected, (-1, 3)).mean(0))


def test_folds_never_divide_a_group():
    group, label = np.repeat(np.arange(20), 4), np.tile([True, False], 40)
    folds = probe.grouped_folds(label, group, 5, seed=0)
    assert len(folds) == 5
    assert sorted(np.concatenate([fold for _, fold in folds])) == list(range(80))
    assert all(not set(group[rest]) & set(group[fold]) for rest, fold in folds)
    with pytest.raises(ValueError, match="4 examples in 2 groups: no fold holds both classes"):
        probe.grouped_folds(np.array([True, True, False, False]), np.array([0, 0, 1, 1]), 5, seed=0)


def test_a_unit_that_never_varies_is_never_preferred():
    task = task_of()
    values = planted(task)
    values[:, 0] = 3.0
    probes = TaskProbes(values, task, seed=0)
    assert probes.difference_u[0] == 0 and probes.cv_auc(np.array([0]))[0] == 0.5


def test_random_candidates_are_seeded_and_different():
    draws, again, others = (random_candidates(7680, 640, 5, seed=seed) for seed in (0, 0, 1))
    assert len(draws) == 5 and all(len(set(draw)) == 640 and draw.max() < 7680 for draw in draws)
    assert np.array_equal(draws, again)
    assert not any(np.array_equal(draws[0], other) for other in (draws[1], others[0]))
    assert [list(draw) for draw in random_candidates(3, 640, 5, seed=0)] == [[0, 1, 2]]


def test_only_candidates_are_chosen():
    task = task_of()
    values = planted(task)
    without = np.setdiff1d(np.arange(50), [17])
    assert TaskProbes(values, task, seed=0).best(without).unit != 17
    assert TaskProbes(values, task, seed=0).best(np.array([3, 17])).unit == 17


def test_fitted_directions_find_what_no_single_unit_holds():
    task = task_of(n=600)
    values = np.random.default_rng(0).standard_normal((600, 12)).astype(np.float32)
    # one direction, spread over all units
    values[task.rows_e] += 1.2 * np.where(task.label_e, 1, -1)[:, None] / np.sqrt(12)
    single = TaskProbes(values, task, seed=0).best().auc
    assert probe.mean_difference_auc(values, task) > single + 0.1
    assert probe.dense_auc(values, task, seed=0) > single + 0.1


def test_a_paired_difference_has_an_interval_of_its_own():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.5, 1, 40)
    assert mean_over_tasks(first)["mean"] == pytest.approx(first.mean())
    shifted = mean_over_tasks(first + 0.1, first)
    assert shifted["mean"] == pytest.approx(0.1)
    assert np.ptp(shifted["ci95"]) == pytest.approx(0, abs=1e-9)
    noisy = mean_over_tasks(first + rng.normal(0, 0.1, 40), first)
    assert noisy["ci95"][0] < 0 < noisy["ci95"][1]
