"""Whitening, outliers, reductions and fresh test documents by hand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from known import Scaled, tokens_of

from mmlib.activations.corpora import Document, split_documents
from mmlib.activations.store import ActivationStore
from mmlib.denoisers.gaussian import PrincipalComponents, standard_normal
from mmlib.denoisers.mixture import MixtureSize
from mmlib.evaluation.intervals import bootstrap_interval
from mmlib.evaluation.losses import evaluate
from mmlib_studies import robustness

M, B, S = ({name: Scaled(factor)} for name, factor in {"m": 0.3, "b": 0.8, "s": 0.5}.items())


def normal(n, d=4, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def reductions(z, documents, methods=M, baselines=B, outlier=None, **more):
    """Rows of reductions of toy methods on velocity; without `outlier`, no token is one."""
    outlier = np.zeros(len(z), dtype=bool) if outlier is None else outlier
    more = {"objectives": ["flow_velocity"], "seed": 3} | more
    return robustness.reduction_rows(
        methods, baselines, more.pop("objectives"), z, documents, outlier, **more
    )


def evaluated(methods, z, documents, per_level, every=1):
    """What `reductions` is to agree with."""
    tokens = tokens_of(z, documents)
    return evaluate(methods, tokens, "flow_velocity", per_level=per_level, seed=3, every=every)


@pytest.mark.parametrize(
    "blocks, middle, expected",
    [(18, 8, [4, 8, 13]), (12, 5, [3, 5, 9]), (4, 1, [1, 3]), (18, 4, [4, 13])],
)
def test_layers(blocks, middle, expected):
    assert robustness.early_middle_late(blocks, middle) == expected


def test_whitened_activations_have_unit_covariance_and_a_standard_gaussian():
    z = normal(5000, 6) @ normal(6, 6, seed=2) + 2
    components = PrincipalComponents.fit(z)
    whitened = robustness.Whitening.of(components)(z)
    assert torch.allclose(torch.cov(whitened.T), torch.eye(6), atol=1e-3)
    assert torch.allclose(whitened.mean(0), torch.zeros(6), atol=1e-3)
    gaussian, x = PrincipalComponents.fit(whitened).gaussian(), normal(10, 6, seed=3)
    assert torch.allclose(gaussian(x, 0.4), standard_normal(6)(x, 0.4), atol=2e-3)
    variances = components.variances_d * torch.tensor([1, 1, 1, 1, 1, 0.0])
    with pytest.raises(ValueError, match="1 principal components have no variance"):
        robustness.Whitening.of(replace(components, variances_d=variances))


def test_outliers_have_three_times_the_median_norm_of_training_documents(make_store):
    activations = torch.tensor([[3.0, 4.0], [0.0, 5.0], [5.0, 0.0], [9.0, 12.0], [9.0, 12.1]])
    assert robustness.outliers(activations, 5).tolist() == [False, False, False, False, True]
    path, values = make_store(dtype="float32")
    expected = values[:3000].norm(dim=1).median().item()
    assert robustness.training_median(ActivationStore(path)) == pytest.approx(expected)


def test_reductions_with_and_without_outliers_agree_with_the_comparison():
    """All tokens: what `evaluate` says. Without: what is left of the same draws when outliers are
    dropped from them.
    """
    z, documents = normal(400), np.repeat(np.arange(6), (20, 20, 60, 80, 100, 120))
    outlier = np.zeros(400, dtype=bool)
    outlier[10:20] = True
    z[outlier] *= 10
    everything, without = reductions(z, documents, outlier=outlier, tokens=400)
    losses = evaluated({**M, **B}, z, documents, 400)
    assert (everything["tokens"], without["tokens"]) == ("all", "without outliers")
    assert everything["reduction"] == pytest.approx(1 - losses.mean("m") / losses.mean("b"))
    assert (everything["draws"], without["draws"]) == (40_000, 39_000)
    (ours, sizes), (theirs, _) = losses.by_document("m"), losses.by_document("b")
    low, high = bootstrap_interval(lambda w: (w @ ours) / (w @ theirs), len(sizes), positive=True)
    assert everything["ci95"] == pytest.approx([1 - high, 1 - low])

    by_token = evaluated({**M, **B}, z, np.arange(400), 400)
    kept = [by_token.sums[m].sum(0)[~outlier].sum() for m in ("m", "b")]
    assert without["reduction"] == pytest.approx(1 - kept[0] / kept[1])
    assert without["loss"] == pytest.approx(kept[0] / 39_000)


def test_outliers_count_to_their_own_documents():
    """One document is nothing but outliers: it is missing without them, and the others are
    whole.
    """
    z, documents = normal(100), np.repeat(np.arange(10), 10)
    everything, without = reductions(z, documents, outlier=documents == 3, tokens=100)
    assert (everything["documents"], without["documents"]) == (10, 9)
    assert (everything["draws"], without["draws"]) == (10_000, 9000)


def test_no_outlier_changes_nothing():
    z, documents = normal(100), np.repeat(np.arange(5), 20)
    everything, without = reductions(z, documents, objectives=["ddpm_epsilon"], tokens=300)
    assert everything == {**without, "tokens": "all"} and everything["draws"] == 10_000


def test_redrawn_test_documents_were_in_training_and_span_the_lengths():
    sizes = np.random.default_rng(0).permutation(np.arange(100, 206))
    documents = [Document(str(i), "x" * n) for i, n in enumerate(sizes)]
    old = np.array(split_documents(documents, 8, 20, seed=0))
    new = np.array(robustness.redraw_test(sizes, old, 20, seed=0))
    assert (new == "test").sum() == 20 and set(old[new == "test"]) == {"train"}
    assert np.array_equal(new == "validation", old == "validation")
    assert set(new[old == "test"]) == {"train"}
    assert new.tolist() == robustness.redraw_test(sizes, old, 20, seed=0)
    lengths, drawn = (np.sort(sizes[chosen])[::-1] for chosen in (old == "train", new == "test"))
    strata = np.array_split(lengths, 20)
    assert all(part[-1] <= length <= part[0] for part, length in zip(strata, drawn))
    with pytest.raises(ValueError, match="78 training documents cannot give 100 for test"):
        robustness.redraw_test(sizes, old, 100, seed=0)


def test_slow_opponents_see_every_nth_token_and_what_is_compared_with_them_too():
    z, documents = normal(300), np.repeat(np.arange(6), 50)
    both, options = {**M, **B}, {"tokens": 30, "slow": S}
    rows = reductions(z, documents, both, slow_tokens=10, **options)
    found = {(row["method"], row["baseline"]): row for row in rows if row["tokens"] == "all"}
    assert set(found) == {("m", "b"), ("m", "s"), ("b", "s"), ("s", "b")} and len(rows) == 8
    full = evaluated(both, z, documents, 30)
    common = evaluated({**both, **S}, z, documents, 30, every=3)
    for baseline, losses, draws in (("b", full, 3000), ("s", common, 1000)):
        expected = 1 - losses.mean("m") / losses.mean(baseline)
        assert found["m", baseline]["draws"] == draws
        assert found["m", baseline]["reduction"] == pytest.approx(expected)
    there, back = (1 - found[pair]["reduction"] for pair in (("s", "b"), ("b", "s")))
    assert there * back == pytest.approx(1)
    for wrong in (7, None):
        with pytest.raises(ValueError, match="expected the second to divide the first"):
            reductions(z, documents, both, slow_tokens=wrong, **options)


def test_a_mixture_of_one_component_is_the_gaussian_and_takes_nothing_off_its_loss():
    """Only the divisor of the covariance differs, n for n − 1."""
    z = normal(6000) @ normal(4, seed=2) + 1
    train, validation, test = z[:5000], z[5000:5500], z[5500:]
    size = MixtureSize(components=(1,), priors=(0.0,), em_steps=1, validation_tokens=200)
    one = {"mixture": robustness.mixture_again(train, validation, size, seed=0)}
    gaussian = {"gaussian": PrincipalComponents.fit(train).gaussian()}
    both, documents = ["flow_velocity", "ddpm_epsilon"], np.repeat(np.arange(5), 100)
    rows = reductions(test, documents, one, gaussian, objectives=both, tokens=50)
    assert len(rows) == 4 and all(row["reduction"] == pytest.approx(0, abs=1e-3) for row in rows)


def test_only_what_was_chosen_is_tried_again():
    tried = [
        {"components": 16, "prior": 32.0, "em_steps": 0, "nats_per_dimension": -0.9},
        {"components": 32, "prior": 128.0, "em_steps": 2, "nats_per_dimension": -0.7},
        {"components": 64, "prior": 128.0, "em_steps": 0, "nats_per_dimension": -0.8},
    ]
    chosen = robustness.as_chosen(MixtureSize(em_steps=2, validation_tokens=7), tried)
    assert chosen == MixtureSize((32,), (128.0,), 2, 7)
    z, size = (
        normal(600) + 5 * torch.arange(600)[:, None].remainder(2),
        MixtureSize((2,), (8.0,), 1, 50),
    )
    fitted, again, other = (
        robustness.mixture_again(z[:500], z[500:], size, seed).components for seed in (0, 0, 1)
    )
    assert sorted(c.mean_d.mean().round().item() for c in fitted) == [0, 5]
    assert torch.equal(fitted[0].basis_dd, again[0].basis_dd)
    assert len(fitted) == len(other) == 2


def test_an_sae_that_copies_its_input_is_mixed_to_the_mean_model(store):
    """Its estimate is x times a number, so the mix is the least-squares multiple of x: (1 − σ)/((1
    − σ)² + σ²) for unit variance.
    """

    class Copy(torch.nn.Linear):
        cfg = SimpleNamespace(metadata=SimpleNamespace(train_seconds=None, train_activations=None))

        def forward(self, x):
            return x

    mixed = robustness.mixed_sae(Copy(8, 8), store, ["flow_velocity"], 3000, seed=0)
    x, sigma = normal(5, 8, seed=3), 0.405
    assert len(mixed.weights) == 100
    assert torch.allclose(mixed(x, sigma), standard_normal(8)(x, sigma), atol=0.03)


def test_methods_measured_apart_on_the_same_draws_are_compared_as_if_together():
    z, documents = normal(300), np.repeat(np.arange(6), 50)
    both = evaluated({**M, **B}, z, documents, 30)
    sums = {
        name: evaluated(one, z, documents, 30).by_document(name).as_json()
        for name, one in {"m": M, "b": B}.items()
    }
    together = robustness.paired_reduction(both, "m", "b")
    assert robustness.paired_reduction(robustness.joined(sums), "m", "b") == together
    sums["b"]["counts"][0] += 1
    message = r"m, b have \[3000, 3001\] draws .*: expected the same draws for all"
    with pytest.raises(ValueError, match=message):
        robustness.joined(sums)


def test_the_grid_takes_the_velocity_reductions_of_the_small_network_by_hand():
    row = {"objective": "flow_velocity", "tokens": "all", "method": "small_mlp", "loss": 1.0}
    row |= {"baseline": "gaussian", "group": "layers", "corpus": "w", "layer": 13}
    row |= {"reduction": 0.1, "ci95": [0.0, 0.2], "verdict": "below"}
    others = [
        {"layer": 4, "reduction": 0.3},
        {"baseline": "mixture", "reduction": -0.1},
        {"group": "texts", "corpus": "n"},
        {"method": "mixture", "reduction": 0.2},
        {"group": "seeds", "reduction": 9},
        {"objective": "ddpm_epsilon", "reduction": 9},
        {"tokens": "without outliers", "reduction": 9},
        {"method": "mixture", "baseline": "ppca_k64", "reduction": 9},
    ]
    grid = robustness.grid([row, *({**row, **other} for other in others)])
    assert list(grid) == ["w", "n"] and list(grid["w"]) == ["4", "13"]
    found = {key: entry["reduction"] for key, entry in grid["w"]["13"].items()}
    assert found == {"over_gaussian": 0.1, "over_mixture": -0.1, "mixture_over_gaussian": 0.2}
    kept = {"reduction": 0.3, "ci95": [0.0, 0.2], "verdict": "below"}
    assert grid["w"]["4"] == {"over_gaussian": kept}
