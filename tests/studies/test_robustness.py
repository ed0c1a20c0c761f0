"""Whitening, outliers, reductions and fresh test documents by hand."""

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


def reductions(
    methods, baselines, z, documents, outlier=None, objectives=("flow_velocity",), **more
):
    """Rows of reductions of toy methods; without `outlier`, no token is one."""
    outlier = np.zeros(len(z), dtype=bool) if outlier is None else outlier
    more = {"seed": 0} | more
    return robustness.reduction_rows(
        methods, baselines, list(objectives), z, documents, outlier, **more
    )


@pytest.mark.parametrize(
    "blocks, middle, expected",
    [(18, 8, [4, 8, 13]), (12, 5, [3, 5, 9]), (4, 1, [1, 3]), (18, 4, [4, 13])],
)
def test_layers(blocks, middle, expected):
    assert robustness.early_middle_late(blocks, middle) == expected


def test_whitened_activations_have_unit_covariance_and_a_standard_gaussian():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5000, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 2
    components = PrincipalComponents.fit(z)
    whitened = robustness.Whitening.of(components)(z)
    assert torch.allclose(torch.cov(whitened.T), torch.eye(6), atol=1e-3)
    assert torch.allclose(whitened.mean(0), torch.zeros(6), atol=1e-3)
    gaussian = PrincipalComponents.fit(whitened).gaussian()
    x = torch.randn(10, 6, generator=generator)
    assert torch.allclose(gaussian(x, 0.4), standard_normal(6)(x, 0.4), atol=2e-3)
    flat = PrincipalComponents(
        components.mean_d,
        components.axes_dd,
        components.variances_d * torch.tensor([1, 1, 1, 1, 1, 0.0]),
    )
    with pytest.raises(ValueError, match="1 principal components have no variance"):
        robustness.Whitening.of(flat)


def test_outliers_by_hand():
    activations = torch.tensor([[3.0, 4.0], [0.0, 5.0], [5.0, 0.0], [9.0, 12.0], [9.0, 12.1]])
    assert robustness.outliers(activations, 5).tolist() == [False, False, False, False, True]


def test_the_median_is_of_training_documents(make_store):
    path, values = make_store(dtype="float32")
    store = ActivationStore(path)
    expected = values[:3000].norm(dim=1).median().item()
    assert robustness.training_median(store) == pytest.approx(expected)


def test_reductions_with_and_without_outliers_agree_with_the_comparison():
    """All tokens: what `evaluate` says. Without: what is left of the same draws when outliers are dropped from them."""
    z = torch.randn(400, 4, generator=torch.Generator().manual_seed(1))
    documents = np.repeat(np.arange(6), (20, 20, 60, 80, 100, 120))
    outlier = np.zeros(400, dtype=bool)
    outlier[10:20] = True
    z[outlier] *= 10
    methods, baselines = {"m": Scaled(0.3)}, {"b": Scaled(0.8)}
    rows = reductions(methods, baselines, z, documents, outlier, tokens=400, seed=3)
    losses = evaluate(
        {**methods, **baselines}, tokens_of(z, documents), "flow_velocity", per_level=400, seed=3
    )
    everything, without = rows
    assert (everything["tokens"], without["tokens"]) == ("all", "without outliers")
    assert everything["reduction"] == pytest.approx(1 - losses.mean("m") / losses.mean("b"))
    assert everything["draws"] == 40_000
    assert without["draws"] == 39_000
    (ours, sizes), (theirs, _) = losses.by_document("m"), losses.by_document("b")
    low, high = bootstrap_interval(lambda w: (w @ ours) / (w @ theirs), len(sizes), positive=True)
    assert everything["ci95"] == pytest.approx([1 - high, 1 - low])

    by_token = evaluate(
        {**methods, **baselines},
        tokens_of(z, np.arange(400)),
        "flow_velocity",
        per_level=400,
        seed=3,
    )
    kept = [by_token.sums[m].sum(0)[~outlier].sum() for m in ("m", "b")]
    assert without["reduction"] == pytest.approx(1 - kept[0] / kept[1])
    assert without["loss"] == pytest.approx(kept[0] / 39_000)


def test_no_outlier_changes_nothing():
    z = torch.randn(100, 4, generator=torch.Generator().manual_seed(1))
    documents, options = np.repeat(np.arange(5), 20), {"objectives": ["ddpm_epsilon"]}
    rows = reductions({"m": Scaled(0.3)}, {"b": Scaled(0.8)}, z, documents, tokens=300, **options)
    assert rows[0] == {**rows[1], "tokens": "all"} and rows[0]["draws"] == 10_000


def test_redrawn_test_documents_were_in_training_and_span_the_lengths():
    documents = [
        Document(str(i), "x" * n)
        for i, n in enumerate(np.random.default_rng(0).permutation(np.arange(100, 206)))
    ]
    old = split_documents(documents, 8, 20, seed=0)
    sizes = [len(document.text) for document in documents]
    new = robustness.redraw_test(sizes, old, 20, seed=0)
    assert new.count("test") == 20 and all(o == "train" for o, n in zip(old, new) if n == "test")
    assert [i for i, s in enumerate(new) if s == "validation"] == [
        i for i, s in enumerate(old) if s == "validation"
    ]
    assert all(n == "train" for o, n in zip(old, new) if o == "test")
    assert new == robustness.redraw_test(sizes, old, 20, seed=0)
    lengths = np.sort([len(d.text) for d, o in zip(documents, old) if o == "train"])[::-1]
    drawn = np.sort([len(d.text) for d, n in zip(documents, new) if n == "test"])[::-1]
    assert all(
        stratum[-1] <= length <= stratum[0]
        for stratum, length in zip(np.array_split(lengths, 20), drawn)
    )
    with pytest.raises(ValueError, match="78 training documents cannot give 100 for test"):
        robustness.redraw_test(sizes, old, 100, seed=0)


def test_slow_opponents_see_every_nth_token_and_what_is_compared_with_them_too():
    z = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    documents = np.repeat(np.arange(6), 50)
    methods = {"m": Scaled(0.3), "b": Scaled(0.8)}
    baselines = {"b": Scaled(0.8)}
    slow = {"s": Scaled(0.5)}
    some, options = (methods, baselines, z, documents), {"tokens": 30, "seed": 3, "slow": slow}
    rows = reductions(*some, slow_tokens=10, **options)
    found = {(row["method"], row["baseline"]): row for row in rows if row["tokens"] == "all"}
    assert set(found) == {("m", "b"), ("m", "s"), ("b", "s"), ("s", "b")} and len(rows) == 8
    full, common = (
        evaluate(seen, tokens_of(z, documents), "flow_velocity", per_level=30, seed=3, every=every)
        for seen, every in (({**methods, **baselines}, 1), ({**methods, **baselines, **slow}, 3))
    )
    assert found["m", "b"]["draws"] == 3000
    assert found["m", "b"]["reduction"] == pytest.approx(1 - full.mean("m") / full.mean("b"))
    assert found["m", "s"]["draws"] == 1000
    assert found["m", "s"]["reduction"] == pytest.approx(1 - common.mean("m") / common.mean("s"))
    assert (1 - found["s", "b"]["reduction"]) * (1 - found["b", "s"]["reduction"]) == pytest.approx(
        1
    )
    for wrong in (7, None):
        with pytest.raises(ValueError, match="expected the second to divide the first"):
            reductions(*some, slow_tokens=wrong, **options)


def test_a_mixture_of_one_component_is_the_gaussian_and_takes_nothing_off_its_loss():
    """Only the divisor of the covariance differs, n for n − 1."""
    z = (
        torch.randn(6000, 4, generator=torch.Generator().manual_seed(1))
        @ torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
        + 1
    )
    train, validation, test = z[:5000], z[5000:5500], z[5500:]
    size = MixtureSize(components=(1,), priors=(0.0,), em_steps=1, validation_tokens=200)
    one = robustness.mixture_again(train, validation, size, seed=0)
    gaussian, documents = PrincipalComponents.fit(train).gaussian(), np.repeat(np.arange(5), 100)
    both = ["flow_velocity", "ddpm_epsilon"]
    given = ({"mixture": one}, {"gaussian": gaussian}, test, documents)
    rows = reductions(*given, objectives=both, tokens=50)
    assert len(rows) == 4 and all(row["reduction"] == pytest.approx(0, abs=1e-3) for row in rows)


def test_only_what_was_chosen_is_tried_again():
    tried = [
        {"components": 16, "prior": 32.0, "em_steps": 0, "nats_per_dimension": -0.9},
        {"components": 32, "prior": 128.0, "em_steps": 2, "nats_per_dimension": -0.7},
        {"components": 64, "prior": 128.0, "em_steps": 0, "nats_per_dimension": -0.8},
    ]
    assert robustness.as_chosen(MixtureSize(em_steps=2, validation_tokens=7), tried) == MixtureSize(
        (32,), (128.0,), 2, 7
    )
    z = torch.randn(600, 4, generator=torch.Generator().manual_seed(1)) + 5 * torch.arange(600)[
        :, None
    ].remainder(2)
    size = MixtureSize((2,), (8.0,), 1, 50)
    fitted, again, other = (
        robustness.mixture_again(z[:500], z[500:], size, seed) for seed in (0, 0, 1)
    )
    assert len(fitted.components) == 2
    assert sorted(c.mean_d.mean().round().item() for c in fitted.components) == [0, 5]
    assert torch.equal(fitted.components[0].basis_dd, again.components[0].basis_dd)
    assert len(other.components) == 2


def test_an_sae_that_copies_its_input_is_mixed_to_the_mean_model(make_store):
    """Its estimate is x times a number, so the mix is the least-squares multiple of x: (1 − σ)/((1 − σ)² + σ²) for unit variance."""

    class Copy(torch.nn.Linear):
        cfg = SimpleNamespace(metadata=SimpleNamespace(train_seconds=None, train_activations=None))

        def forward(self, x):
            return x

    store = ActivationStore(make_store(dtype="float32")[0])
    mixed = robustness.mixed_sae(Copy(8, 8), store, ["flow_velocity"], 3000, seed=0)
    x, sigma = torch.randn(5, 8, generator=torch.Generator().manual_seed(3)), 0.405
    assert len(mixed.weights) == 100
    assert torch.allclose(mixed(x, sigma), standard_normal(8)(x, sigma), atol=0.03)


def test_methods_measured_apart_on_the_same_draws_are_compared_as_if_together():
    z = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    documents = np.repeat(np.arange(6), 50)
    tokens, two = tokens_of(z, documents), {"m": Scaled(0.3), "b": Scaled(0.8)}
    both, *alone = (
        evaluate(some, tokens, "flow_velocity", per_level=30, seed=3)
        for some in (two, *({name: method} for name, method in two.items()))
    )
    sums = {name: losses.by_document(name).as_json() for name, losses in zip(two, alone)}
    together, apart = (
        robustness.paired_reduction(one, "m", "b") for one in (both, robustness.joined(sums))
    )
    assert together == apart
    sums["b"]["counts"][0] += 1
    message = r"m, b have \[3000, 3001\] draws .*: expected the same draws for all"
    with pytest.raises(ValueError, match=message):
        robustness.joined(sums)


def test_the_grid_takes_the_velocity_reductions_of_the_small_network_by_hand():
    row = {"objective": "flow_velocity", "tokens": "all", "method": "small_mlp", "loss": 1.0}
    row |= {"baseline": "gaussian", "group": "layers", "corpus": "w", "layer": 13}
    row |= {"reduction": 0.1, "ci95": [0.0, 0.2], "verdict": "below"}
    rows = [
        row,
        {**row, "layer": 4, "reduction": 0.3},
        {**row, "baseline": "mixture", "reduction": -0.1},
        {**row, "group": "texts", "corpus": "n"},
        {**row, "method": "mixture", "reduction": 0.2},
        {**row, "group": "seeds", "reduction": 9},
        {**row, "objective": "ddpm_epsilon", "reduction": 9},
        {**row, "tokens": "without outliers", "reduction": 9},
        {**row, "method": "mixture", "baseline": "ppca_k64", "reduction": 9},
    ]
    grid = robustness.grid(rows)
    assert list(grid) == ["w", "n"] and list(grid["w"]) == ["4", "13"]
    assert {key: found["reduction"] for key, found in grid["w"]["13"].items()} == {
        "over_gaussian": 0.1,
        "over_mixture": -0.1,
        "mixture_over_gaussian": 0.2,
    }
    assert grid["w"]["4"] == {
        "over_gaussian": {"reduction": 0.3, "ci95": [0.0, 0.2], "verdict": "below"}
    }
