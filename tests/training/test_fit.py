"""`mmlib.fit`: splits, standardisation, sizes, budgets, and what is refused in words."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_fits import METHODS, activations, fitted

import mmlib
from mmlib.denoisers.average import AverageSize
from mmlib.denoisers.mixture import MixtureSize
from mmlib.denoisers.networks import MLPSize, UNetSize
from mmlib.denoisers.residual import ResidualSize
from mmlib.denoisers.sae import SAESize
from mmlib.training import budget
from mmlib.training.budget import (
    Budget,
    PCASize,
    averaged,
    sized,
    with_components,
    with_steps,
)
from mmlib.training.fit import NAMES, row_batches, split_rows
from mmlib.training.recipe import Recipe, Training

H, DOCUMENTS = activations()


def fit(method="gaussian", h=H, **options):
    """Quietly, by document unless said otherwise."""
    return mmlib.fit(h, method, **{"groups": DOCUMENTS, "progress": False, **options})


def test_groups_are_whole_in_one_part():
    group_n = np.repeat(np.arange(40), np.arange(1, 41))
    train, held_out = split_rows(len(group_n), group_n, 0.2, seed=3)
    assert sorted([*train, *held_out]) == list(range(len(group_n)))
    assert not set(group_n[train]) & set(group_n[held_out])
    assert 0.2 * len(group_n) <= len(held_out) <= 0.4 * len(group_n)
    others = split_rows(len(group_n), group_n, 0.2, seed=4)[1]
    assert not np.array_equal(held_out, others)


def test_a_group_of_nearly_all_rows_is_not_held_out():
    group_n = np.array([0] * 90 + [1] * 10)
    for seed in range(5):
        assert set(group_n[split_rows(100, group_n, 0.1, seed)[1]]) == {1}
    train, held_out = split_rows(100, np.array([0] * 60 + [1] * 40), 0.1, 0)
    assert len(held_out) == 40, "the smaller, where both are too large"
    with pytest.raises(ValueError, match="all rows are of one group"):
        split_rows(10, np.zeros(10, int), 0.1, 0)


def test_rows_without_groups_are_split_at_random_and_it_is_said(capsys):
    train, held_out = split_rows(100, None, 0.1, seed=0)
    assert len(held_out) == 10 and len({*train, *held_out}) == 100
    model = mmlib.fit(H, "gaussian", progress=True)
    said = capsys.readouterr().out
    assert "1,350 rows of 12 dimensions for training, 150 for validation" in said
    assert "at random by row: no groups were given" in said and model.facts["split"] == "row"
    assert "GB and a minute or less on cpu" in said and said.count("\n") == 1
    fit()
    assert not capsys.readouterr().out


def test_statistics_are_of_the_training_rows_alone():
    marked = H.clone()
    group_n = np.repeat(np.arange(30), 50)
    train, held_out = split_rows(len(H), group_n, 0.1, seed=0)
    marked[torch.from_numpy(held_out)] += 1000
    model = fit(h=marked)
    normaliser = model.origin.normaliser
    rows = H[torch.from_numpy(train)].double()
    assert torch.allclose(normaliser.mean_ld[0], rows.mean(0).float(), rtol=1e-6)
    assert torch.allclose(normaliser.std_ld[0], rows.std(0, correction=0).float(), rtol=1e-6)
    z = model.standardise(rows.float())
    axes, variances = model.components.axes_dd, model.components.variances_d
    covariance = axes * variances @ axes.T * (len(z) - 1) / len(z)
    assert torch.allclose(z.T @ z / len(z), covariance, atol=1e-3)


def test_a_standardisation_can_be_shared():
    other = fit("pca", seed=5, standardise=fitted("gaussian"))
    assert other.origin.normaliser is fitted("gaussian").origin.normaliser
    with pytest.raises(ValueError, match="standardise is 12 wide, h is 5"):
        fit(h=H[:, :5], standardise=fitted("gaussian"))


def test_the_same_seed_gives_the_same_fit():
    for kind in ("mixture", "average", "network", "residual"):
        again = fit(METHODS[kind])
        x = again.noised(H[:50], 0.4)
        assert torch.equal(again.denoise(x, 0.4), fitted(kind).denoise(x, 0.4))
        before = torch.get_rng_state()
        other = fit(METHODS[kind], seed=1)
        assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers go on"
        assert not torch.equal(other.denoise(x, 0.4), fitted(kind).denoise(x, 0.4))


def test_arrays_of_any_kind_give_the_same_fit():
    wanted = fitted("gaussian").sample(3)
    for values, groups in (
        (H.double().numpy(), np.array(DOCUMENTS)),
        (H.tolist(), [hash(name) for name in DOCUMENTS]),
    ):
        assert torch.allclose(fit(h=values, groups=groups).sample(3), wanted, rtol=1e-4)


def test_costs_and_facts_are_carried():
    assert fitted("network").cost.activations == 30 * 64
    assert fitted("sae").cost.activations == 20 * 64
    mixture = fitted("mixture")
    assert mixture.cost.activations == mixture.facts["rows"]["train"] == 1350
    assert mixture.cost.parameters == mixture.denoiser.parameters and mixture.cost.seconds > 0
    assert {row["components"] for row in mixture.facts["tried"]} == {2, 4}
    assert fitted("network").facts["validation_loss"] > 0
    assert "1,350 activations" in repr(mixture)


def test_a_linear_skip_gets_its_gaussian():
    recipe = Recipe(MLPSize(1, 16, 32), Training("flow_velocity", 2, 64, 1e-4, bf16=False), True)
    model = fit(recipe)
    x = model.noised(H[:20], 0.4)
    assert (model(x, 0.4) - fitted("gaussian")(x, 0.4)).abs().mean() < 0.5


CONSTANT = H.clone()
CONSTANT[:, [2, 5]] = 0.1
SKIP = Recipe(MLPSize(), Training("flow_velocity", 2, 64, 1e-4), linear_skip=True)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "unet"}, "method 'unet': expected gaussian, pca, mixture"),
        ({"validation": 0}, "validation = 0: expected a share"),
        ({"seed": -1}, "seed -1"),
        ({"minutes": 0}, "minutes = 0: expected more than 0"),
        ({"steps": 5}, "has steps, this method has none"),
        ({"groups": ["a"] * 7}, "an id for each of 1,500 rows"),
        ({"groups": np.ma.masked_less(np.arange(1500), 5)}, "groups has masked values"),
        ({"h": np.ma.masked_less(H.numpy(), 0)}, "h has masked values"),
        ({"h": list(np.ma.masked_less(H.numpy(), 0))}, "choose whole rows first, or fill them"),
        ({"h": H[:10]}, "9 rows for training and 1 for validation: expected at least 20 and 5"),
        ({"h": torch.randn(60, 60)}, "54 rows for training, of 60 dimensions"),
        ({"h": torch.randn(60, 60), "method": SKIP}, "a covariance needs more rows than"),
        ({"h": torch.randn(60, 60), "method": "mixture_mlp"}, "a covariance needs more rows"),
        ({"h": torch.randn(60, 60), "method": METHODS["residual"]}, "a covariance needs more rows"),
        ({"h": CONSTANT}, "dimensions 2, 5 of h never vary"),
        ({"h": torch.randn(150, 1), "method": "sae"}, "an SAE needs at least 2 dimensions"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        fit(**{"groups": None, **change})


@pytest.mark.parametrize("d", [1, 2, 3, 33])
@pytest.mark.parametrize("method", NAMES)
def test_narrow_activations_and_few_rows_work(d, method):
    """Issue cases: widths below 64, and fewer than a thousand rows."""
    h = torch.randn(150, d, generator=torch.Generator().manual_seed(d)) * 3 + 5
    steps = {} if method in ("gaussian", "pca", "mixture", "mixture_average") else {"steps": 4}
    if (method, d) == ("sae", 1):
        pytest.skip("refused, see above")
    model = fit(method, h, groups=None, **steps)
    assert model.denoise(model.noised(h[:7], 0.5), 0.5).isfinite().all()


def test_sizes_follow_rows_and_width():
    assert sized("mixture", 10**6, 640).components == (128, 256)
    assert sized("mixture", 100, 8).components == (1,)
    assert sized("mixture", 1000, 8).components == (1, 7, 15)
    assert sized("pca", 1000, 640) == PCASize(64) and sized("pca", 1000, 3) == PCASize(1)
    sae = sized("sae", 10**6, 640)
    assert (sae.latents, sae.k, sae.steps) == (5120, 64, 1500)
    mlp, gated = (sized(name, 10**6, 640) for name in ("mlp", "gated_mlp"))
    assert mlp.size == MLPSize() and mlp.training.steps == 800
    assert gated.size == MLPSize(layers=2, d_mlp=3840, gated_skip=True)
    for n, components in ((10**6, 512), (50_000, 50), (600, 2)):
        ours, average = (sized(name, n, 640) for name in ("mixture_mlp", "mixture_average"))
        assert average == AverageSize(components=components)
        assert averaged(ours) == AverageSize(components=components)
    assert sized("mixture_mlp", 10**6, 640).training.batch == 2048
    assert sized("mlp", 600, 8).training.steps == budget.FEWEST_STEPS
    assert with_steps(mlp, 7).training.steps == 7 and with_steps(sae, 7).steps == 7


def test_a_mixture_too_large_for_the_memory_is_replaced_with_a_sentence(monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda: 64 * 10**9)
    plan = Budget(200_000, 2048, "cpu", flops=1e11)
    size, (remark,) = plan.within(sized("mixture", 200_000, 2048), None)
    assert size.components == (64, 128)
    assert "256 components with full covariances take 4.3 GB at d = 2,048" in remark
    assert "128 are fitted instead" in remark
    monkeypatch.setattr(budget, "free_memory", lambda: 3 * 10**9)
    with pytest.raises(MemoryError, match="give fewer rows"):
        plan.within(MixtureSize((8,)), None)
    small = Budget(1000, 8, "cpu", flops=1e11)
    assert small.within(MixtureSize((2, 4)), None) == (MixtureSize((2, 4)), [])


@pytest.mark.parametrize("method", ["mixture", "mixture_average", "sae", "mlp", "mixture_mlp"])
def test_minutes_cut_the_work(method, monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda: 64 * 10**9)
    plan = Budget(200_000, 640, "cpu", flops=1e11)
    size = sized(method, 200_000, 640)
    if method == "mixture_average":
        size = replace(size, components=512)
    assert plan.seconds(size) > 120
    cut, (remark,) = plan.within(size, 1.5)
    assert plan.seconds(cut) <= 91 and remark.startswith("1.5 minutes allow ")
    assert plan.within(size, 1e4) == (size, [])


def on_mixtures(components=64, folds=4, steps=100):
    training = Training("flow_velocity", steps, 256, 1e-3)
    return Recipe(ResidualSize(components=components, folds=folds), training)


@pytest.mark.parametrize("of", [AverageSize, on_mixtures])
def test_an_average_costs_by_its_members_and_their_components(of):
    plan = Budget(100_000, 640, "cpu", flops=1e11)
    count = "members" if of is AverageSize else "folds"
    few, more, larger = of(64, **{count: 2}), of(64, **{count: 8}), of(256, **{count: 2})
    for bigger in (more, larger):
        assert plan.seconds(few) < plan.seconds(bigger)
        assert plan.memory(few) < plan.memory(bigger)
    a_mixture = 64 * 4 * 640**2  # its axes
    assert plan.memory(more) - plan.memory(few) == 6 * a_mixture
    assert plan.memory(few) > 8 * 100_000 * 640 + 2 * a_mixture
    network, mixtures = on_mixtures(64, 2), AverageSize(64, members=2)
    assert plan.seconds(network) > plan.seconds(mixtures) > plan.seconds(None)
    assert plan.memory(network) > plan.memory(mixtures) > plan.memory(None)


@pytest.mark.parametrize("size", [AverageSize(512, members=4), on_mixtures(512)])
def test_mixtures_that_do_not_fit_the_memory_have_fewer_components(size, monkeypatch):
    plan, narrow = (Budget(20_000, d, "cpu", flops=1e11) for d in (2048, 640))
    monkeypatch.setattr(budget, "free_memory", lambda: 64 * 10**9)
    assert narrow.within(size, None) == (size, [])
    smaller, (remark,) = plan.within(size, None)
    assert remark == (
        "4 mixtures of 512 components take 34.4 GB; 64.0 GB are free and 4.3 GB are the most: 64 "
        "are fitted instead"
    )
    assert averaged(smaller) == AverageSize(64, members=4)
    free = plan.memory(with_components(size, 64)) - 1
    monkeypatch.setattr(budget, "free_memory", lambda: free)
    assert averaged(plan.within(size, None)[0]).components == 32
    monkeypatch.setattr(budget, "free_memory", lambda: 10**8)
    with pytest.raises(MemoryError, match="give fewer rows"):
        plan.within(size, None)


def test_minutes_that_one_mixture_exceeds_cut_its_components(monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda: 64 * 10**9)
    plan, size = Budget(200_000, 640, "cpu", flops=1e10), AverageSize(512, members=4)
    one = plan.seconds(AverageSize(512, members=1))
    two, (remark,) = plan.within(size, plan.seconds(AverageSize(512, members=2)) / 60 + 0.01)
    assert two == AverageSize(512, members=2) and "minutes allow 2 × 512 components" in remark
    less, (remark,) = plan.within(size, one / 60 / 2)
    assert less.components < 512 and plan.seconds(less) <= one / 2
    assert f"allow {less.members} × {less.components} components" in remark


@pytest.mark.parametrize("minutes", [1, 3, 8])
def test_mixtures_below_a_network_leave_it_half_of_the_minutes(minutes, monkeypatch):
    monkeypatch.setattr(budget, "free_memory", lambda: 64 * 10**9)
    plan = Budget(200_000, 640, "cpu", flops=1e11)
    size = on_mixtures(512, steps=5000)
    cut, (remark,) = plan.within(size, minutes)
    assert 30 * minutes < plan.seconds(cut) <= 60 * minutes * 1.01
    assert plan.seconds(with_steps(cut, 0)) <= 30 * minutes
    below = averaged(cut)
    assert below.members == 4 and (below.components == 512 or minutes < 8)
    steps = f"{cut.training.steps:,} steps on mixtures of {below.components} components"
    assert remark == f"{minutes:g} minutes allow {steps}"
    least, _ = plan.within(size, 0.01)
    assert least.training.steps == 1 and averaged(least).components > 2, "fewer would save little"


def test_memory_and_minutes_rise_with_the_work(monkeypatch):
    plan = Budget(10_000, 64, "cpu", flops=1e10)
    sizes = [
        (None, MixtureSize((64,))),
        (SAESize(64, 4, 10), SAESize(640, 4, 10)),
        (sized("mlp", 10_000, 64), sized("gated_mlp", 10_000, 64)),
    ]
    for small, large in sizes:
        assert plan.seconds(small) < plan.seconds(large)
        assert plan.memory(small) <= plan.memory(large)
    unet = Recipe(UNetSize(), Training("ddpm_epsilon", 5, 8, 1e-3))
    assert plan.seconds(unet) > 0 and budget.free_memory() > 0 and budget.speed("cpu") > 1e8


def test_batches_depend_on_the_seed_and_the_step_alone():
    h = torch.arange(50.0)[:, None]
    source = row_batches(h, 8, seed=1)
    first = [next(source) for _ in range(15)]
    assert len(torch.cat(first[:6]).unique()) == 48, "no row twice in a pass"
    assert not torch.equal(first[0], first[6]), "each pass has an order of its own"
    for start in (3, 6, 9):
        later = row_batches(h, 8, seed=1, start=start)
        assert all(torch.equal(next(later), one) for one in first[start:])
    assert not torch.equal(first[0], next(row_batches(h, 8, seed=2)))
    with pytest.raises(ValueError, match="50 rows for batches of 64"):
        next(row_batches(h, 64, 0))


def test_a_store_is_split_by_its_documents_and_keeps_its_test_documents_out(store):
    model = fit(h=store, groups=None, validation=0.2)
    assert sum(model.facts["rows"].values()) == 3500 and model.facts["split"] == "group"
    assert model.check(store).origin.layers == (1,)


def test_a_network_on_a_mixture_is_fitted_by_name_and_few_groups_make_few_folds(capsys):
    h, documents = activations(600)
    model = mmlib.fit(h, "mixture_mlp", groups=documents, steps=3)
    assert (
        model.facts["size"]["size"]["folds"] == 4
        and model.denoise(model.noised(h[:5], 0.5), 0.5).isfinite().all()
    )
    groups = np.arange(600) // 200
    few = mmlib.fit(h, "mixture_mlp", groups=groups, steps=3, validation=0.3)
    assert few.facts["size"]["size"]["folds"] == 2
    assert few.facts["size"]["training"]["batch"] <= 200
