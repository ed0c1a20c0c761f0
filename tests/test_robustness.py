"""Whitening, outliers, reductions and fresh test documents by hand."""

import numpy as np
import pytest
import torch

from mmlib import robustness
from mmlib.compare import evaluate
from mmlib.corpus import Document, split_documents
from mmlib.gaussian import PrincipalComponents, standard_normal
from mmlib.intervals import bootstrap_interval
from mmlib.store import ActivationStore


class Scaled:
    """Estimates `factor` times the input."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x, sigma):
        return self.factor * x


@pytest.mark.parametrize("blocks, middle, expected", [(18, 8, [4, 8, 13]), (12, 5, [3, 5, 9]), (4, 1, [1, 3]), (18, 4, [4, 13])])
def test_layers(blocks, middle, expected):
    assert robustness.early_middle_late(blocks, middle) == expected


def test_whitened_activations_have_unit_covariance_and_a_standard_gaussian():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5000, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 2
    components = PrincipalComponents.fit(z)
    whitened = robustness.Whitening.of(components)(z)
    assert torch.allclose(torch.cov(whitened.T), torch.eye(6), atol=1e-3) and torch.allclose(whitened.mean(0), torch.zeros(6), atol=1e-3)
    gaussian = PrincipalComponents.fit(whitened).gaussian()
    x = torch.randn(10, 6, generator=generator)
    assert torch.allclose(gaussian(x, 0.4), standard_normal(6)(x, 0.4), atol=2e-3)
    flat = PrincipalComponents(components.mean_d, components.axes_dd, components.variances_d * torch.tensor([1, 1, 1, 1, 1, 0.0]))
    with pytest.raises(ValueError, match="1 principal components have no variance"):
        robustness.Whitening.of(flat)


def test_outliers_by_hand():
    activations = torch.tensor([[3.0, 4.0], [0.0, 5.0], [5.0, 0.0], [9.0, 12.0], [9.0, 12.1]])
    assert robustness.outliers(activations, 5).tolist() == [False, False, False, False, True]


def test_the_median_is_of_training_documents(make_store):
    path, values = make_store(dtype="float32")
    store = ActivationStore(path)
    assert robustness.training_median(store) == pytest.approx(values[:3000].norm(dim=1).median().item())


def test_reductions_with_and_without_outliers_agree_with_the_comparison():
    """All tokens: what `compare.evaluate` says. Without: what is left of the same draws when outliers are dropped from them."""
    z = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    documents = np.repeat(np.arange(6), (20, 20, 60, 80, 100, 120))
    outlier = np.zeros(400, dtype=bool)
    outlier[10:20] = True
    z[outlier] *= 10
    methods, baselines = {"m": Scaled(0.3)}, {"b": Scaled(0.8)}
    rows = robustness.reduction_rows(methods, baselines, ["flow_velocity"], z, documents, outlier, tokens=400, seed=3)
    losses, _ = evaluate({**methods, **baselines}, {}, "flow_velocity", z, documents, tokens=400, common_tokens=400, seed=3)
    everything, without = rows
    assert (everything["tokens"], without["tokens"]) == ("all", "without outliers")
    assert everything["reduction"] == pytest.approx(1 - losses.mean("m") / losses.mean("b")) and everything["draws"] == 40_000 and without["draws"] == 39_000
    (ours, sizes), (theirs, _) = losses.by_document("m"), losses.by_document("b")
    low, high = bootstrap_interval(lambda w: (w @ ours) / (w @ theirs), len(sizes), positive=True)
    assert everything["ci95"] == pytest.approx([1 - high, 1 - low])

    by_token, _ = evaluate({**methods, **baselines}, {}, "flow_velocity", z, np.arange(400), tokens=400, common_tokens=400, seed=3)
    kept = [by_token.sums[m].sum(0)[~outlier].sum() for m in ("m", "b")]
    assert without["reduction"] == pytest.approx(1 - kept[0] / kept[1]) and without["loss"] == pytest.approx(kept[0] / 39_000)


def test_no_outlier_changes_nothing():
    z = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    rows = robustness.reduction_rows({"m": Scaled(0.3)}, {"b": Scaled(0.8)}, ["ddpm_epsilon"], z, np.repeat(np.arange(5), 20), np.zeros(100, dtype=bool), tokens=300, seed=0)
    assert rows[0] == {**rows[1], "tokens": "all"} and rows[0]["draws"] == 10_000


def test_spread_by_hand():
    assert robustness.spread([1.0, 2.0, 4.0]) == {"values": [1, 2, 4], "mean": pytest.approx(7 / 3), "std": pytest.approx(np.sqrt(7 / 3)), "range": 3}
    with pytest.raises(ValueError, match="1 seed"):
        robustness.spread([1.0])


def test_redrawn_test_documents_were_in_training_and_span_the_lengths():
    documents = [Document(str(i), "x" * n) for i, n in enumerate(np.random.default_rng(0).permutation(np.arange(100, 206)))]
    old = split_documents(documents, 8, 20, seed=0)
    sizes = [len(document.text) for document in documents]
    new = robustness.redraw_test(sizes, old, 20, seed=0)
    assert new.count("test") == 20 and all(o == "train" for o, n in zip(old, new) if n == "test")
    assert [i for i, s in enumerate(new) if s == "validation"] == [i for i, s in enumerate(old) if s == "validation"]
    assert all(n == "train" for o, n in zip(old, new) if o == "test") and new == robustness.redraw_test(sizes, old, 20, seed=0)
    lengths = np.sort([len(d.text) for d, o in zip(documents, old) if o == "train"])[::-1]
    drawn = np.sort([len(d.text) for d, n in zip(documents, new) if n == "test"])[::-1]
    assert all(stratum[-1] <= length <= stratum[0] for stratum, length in zip(np.array_split(lengths, 20), drawn))
    with pytest.raises(ValueError, match="78 training documents cannot give 100 for test"):
        robustness.redraw_test(sizes, old, 100, seed=0)
