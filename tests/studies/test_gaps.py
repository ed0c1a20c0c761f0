"""The gap between seen and unseen documents, on denoisers that know by heart or do not."""

import numpy as np
import pytest
import torch
from known import tokens_of

from mmlib.denoisers.gaussian import standard_normal
from mmlib.evaluation.intervals import bootstrap_interval
from mmlib.evaluation.losses import DocumentLosses, evaluate
from mmlib_studies.generalisation import gained_in_last_third, gap_rows, in_words, limit

DOCUMENTS = np.repeat(np.arange(6), (50, 50, 80, 100, 120, 200))


class Remembering:
    """The posterior mean if only the remembered activations existed: perfect on them, and wrong on
    others.
    """

    parameters = 0

    def __init__(self, z):
        self.z = z

    def __call__(self, x, sigma):
        distance = torch.cdist(x, (1 - sigma) * self.z).square()
        return (-distance / (2 * sigma**2)).softmax(1) @ self.z


def losses_of(denoisers, z):
    losses = evaluate(denoisers, tokens_of(z, DOCUMENTS), "flow_velocity", per_level=300, seed=0)
    return {name: losses.by_document(name) for name in denoisers}


@pytest.fixture(scope="module")
def rows():
    """Gap rows of a denoiser that remembers and of the one that generated the data, control."""
    seen_z, unseen_z = torch.randn(2, 600, 8, generator=torch.Generator().manual_seed(0))
    denoisers = {"control": standard_normal(8), "remembering": Remembering(seen_z)}
    seen, unseen = (losses_of(denoisers, z) for z in (seen_z, unseen_z))
    return gap_rows(seen, unseen, "test", control="control")


def test_what_is_known_by_heart_has_a_gap_and_the_truth_has_none(rows):
    learnt, control = rows["remembering"], rows["control"]
    assert learnt["train_loss"] < control["train_loss"]
    assert learnt["test_loss"] > control["test_loss"]
    assert learnt["gap"] == learnt["test_loss"] - learnt["train_loss"] > 0.5
    assert learnt["ci95"][0] > 0
    assert learnt["excess"] == pytest.approx(learnt["gap"] - control["gap"])
    assert learnt["excess_ci95"][0] > 0
    assert abs(control["gap"]) < 0.05 and control["ci95"][0] < 0 < control["ci95"][1]
    assert control["excess"] == 0 and control["excess_ci95"] == [0, 0]


def test_seen_and_unseen_documents_are_resampled_each_for_themselves():
    sums_d, counts_d = np.array([9.0, 1, 4, 30, 2]), np.array([3.0, 1, 2, 5, 4])
    seen = {"one": DocumentLosses(sums_d, counts_d)}
    unseen = {"one": DocumentLosses(np.ones(8), np.ones(8))}

    def gap(weights):
        return 1 - (weights[..., :5] @ sums_d) / (weights[..., :5] @ counts_d)

    found = gap_rows(seen, unseen, "test", control="one")["one"]["ci95"]
    assert found == pytest.approx(bootstrap_interval(gap, (5, 8)))


def test_an_easier_set_of_documents_is_not_taken_for_memory():
    """Unseen activations of half the variance: the loss falls, for the control as well, and the
    excess is none.
    """
    z = torch.randn(2, 600, 8, generator=torch.Generator().manual_seed(1))
    same = {"control": standard_normal(8), "model": standard_normal(8)}
    seen, unseen = (losses_of(same, part) for part in (z[0], 0.7 * z[1]))
    row = gap_rows(seen, unseen, "validation", control="control")["model"]
    assert row["gap"] < -0.1 and row["ci95"][1] < 0 and row["excess"] == 0


def test_what_the_last_third_gained():
    """Measured at steps 10, 20, 30 of 30: 1.4 at two thirds, 1.1 at the end."""
    log = [
        {"step": 5, "loss": 3.0},
        {"step": 10, "validation_loss": 2.0},
        {"step": 20, "validation_loss": 1.4},
        {"step": 30, "validation_loss": 1.1},
    ]
    assert gained_in_last_third(log) == pytest.approx(0.3)
    message = r"at steps \[30\] of 30: expected one in the first two thirds"
    with pytest.raises(ValueError, match=message):
        gained_in_last_third(log[-1:])


def test_the_verdict_in_words(rows):
    assert [limit(excess, 0.02) for excess in (0.05, 0.01, 0.02)] == ["data", "compute", "compute"]
    words = in_words("remembering", {**rows["remembering"], "passes": 3.16}, "test", gained=0.02)
    assert words.startswith("remembering, after 3.2 passes: test loss ")
    assert "more than the 0.020" in words
    assert words.endswith("data limits it.")
    control = in_words("control", {**rows["control"], "passes": 0.1}, "test", gained=0.02)
    assert control.endswith("compute limits it.")
