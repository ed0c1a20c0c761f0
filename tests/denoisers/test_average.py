"""The average of several mixtures against its members, in closed form and by integration; its file;
`mmlib.fit`; and that it is a better estimate than its members are.
"""

from dataclasses import replace

import pytest
import torch
from toy_fits import activations

import mmlib
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.average import AverageSize, MixtureAverage, fit_average, one_mixture
from mmlib.denoisers.checkpoints import CheckpointError
from mmlib.denoisers.gaussian import activations_id
from mmlib.denoisers.kinds import FittedAverage
from mmlib.denoisers.mixture import GaussianMixtureDenoiser, full_gaussian
from mmlib.denoisers.noise import SMOOTHING
from mmlib.denoisers.posterior import FastMixture
from mmlib.training import budget
from mmlib.training.budget import Budget

SIGMAS = (SMOOTHING, 0.3, 0.9)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixture_of(k, d=4, seed=0):
    """Components with means about 2 apart and variances about ½, of weights that differ."""
    g, components = generator(seed), []
    for _ in range(k):
        basis_dd = torch.linalg.qr(torch.randn(d, d, generator=g))[0]
        variances_d = torch.rand(d, generator=g).sort().values + 0.1
        components.append(full_gaussian(2 * torch.randn(d, generator=g), basis_dd, variances_d))
    weights_k = torch.rand(k, generator=g) + 0.2
    return GaussianMixtureDenoiser.of((weights_k / weights_k.sum()).log(), components)


@pytest.fixture(scope="module")
def average():
    """Three members of 3, 5 and 1 components."""
    return MixtureAverage(tuple(mixture_of(k, seed=k) for k in (3, 5, 1)), 6.0, 700)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_estimate_is_the_mean_of_the_members_posterior_means(average, sigma):
    x_nd = average.sample(200, generator(1))
    mean_nd = torch.stack([member(x_nd, sigma) for member in average.members]).mean(0)
    torch.testing.assert_close(average(x_nd, sigma), mean_nd, atol=2e-3, rtol=1e-3)
    fast_nd = torch.stack([FastMixture(one)(x_nd, sigma) for one in average.members]).mean(0)
    torch.testing.assert_close(average(x_nd, sigma), fast_nd, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_an_average_of_one_is_that_mixture(average, sigma):
    x_nd, first = average.sample(200, generator(1)), average.members[0]
    alone = MixtureAverage((first,))
    torch.testing.assert_close(alone(x_nd, sigma), first(x_nd, sigma), atol=2e-3, rtol=1e-3)
    density_n = alone.log_density(x_nd, sigma)
    torch.testing.assert_close(density_n, first.log_density(x_nd, sigma), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_density_is_the_mean_of_the_members_densities(average, sigma):
    """Of whole rows, not per dimension: the mean of roots would be another number."""
    x_nd = average.sample(200, generator(2))
    densities_mn = torch.stack([4 * member.log_density(x_nd, sigma) for member in average.members])
    found_n = 4 * average.log_density(x_nd, sigma)
    torch.testing.assert_close(found_n.exp(), densities_mn.exp().mean(0), rtol=1e-9, atol=0)
    assert found_n.dtype == torch.double and found_n.shape == (200,)


def test_a_density_in_one_dimension_integrates_to_one_and_is_the_sampled_one():
    one = MixtureAverage((mixture_of(3, 1, seed=4), mixture_of(2, 1, seed=5)))
    at_n = torch.linspace(-15, 15, 6001)
    for sigma in SIGMAS:
        mass = torch.trapezoid(one.log_density(at_n[:, None], sigma).exp(), at_n.double())
        assert float(mass) == pytest.approx(1, abs=1e-4)
    drawn_n = one.sample(20_000, generator(6))[:, 0]
    density_n = one.log_density(at_n[:, None], 0.0).exp()
    below_n = torch.cumulative_trapezoid(density_n, at_n.double())
    for point in (1000, 2800, 3000, 3300):
        share = float((drawn_n <= at_n[point + 1]).double().mean())
        assert share == pytest.approx(float(below_n[point]), abs=0.02)


def test_samples_are_of_all_members_and_a_function_of_the_generator(average):
    """Each third of the draws has a member's mean; together they have the mean of all and the
    covariance of the union.
    """
    z_nd = average.sample(60_000, generator(3))
    assert torch.equal(z_nd, average.sample(60_000, generator(3)))
    components = [one for member in average.members for one in member.components]
    weights = torch.cat([member.log_weights_k.exp() / 3 for member in average.members])
    means_kd = torch.stack([one.mean_d for one in components])
    mean_d = weights @ means_kd
    torch.testing.assert_close(z_nd.mean(0), mean_d, atol=0.05, rtol=0)
    within = sum(
        weight * (one.basis_dd * one.eigenvalues_d @ one.basis_dd.T)
        for weight, one in zip(weights, components)
    )
    off_kd = means_kd - mean_d
    covariance_dd = within + (weights * off_kd.T) @ off_kd
    torch.testing.assert_close(z_nd.T.cov(), covariance_dd, atol=0.1, rtol=0.03)
    # in random order: of any part as of the whole
    torch.testing.assert_close(z_nd[:20_000].mean(0), mean_d, atol=0.08, rtol=0)


def test_members_of_unlike_sizes_come_back_from_their_tensors(average):
    tensors = average.tensors()
    assert len(tensors) == 12 and tensors["basis_dd.1"].shape == (5, 4, 4)
    again = MixtureAverage.of_tensors(tensors, train_seconds=6.0, train_activations=700)
    assert [len(member.mean_kd) for member in again.members] == [3, 5, 1]
    assert again.parameters == average.parameters == sum(m.parameters for m in average.members)
    x_nd = average.sample(20, generator(1))
    assert torch.equal(again(x_nd, 0.3), average(x_nd, 0.3))
    many = MixtureAverage(tuple(mixture_of(1, 2, seed=i) for i in range(12)))
    numbered = dict(sorted(many.tensors().items()))  # "mean_d.10" before "mean_d.2"
    for one, other in zip(MixtureAverage.of_tensors(numbered).members, many.members):
        assert torch.equal(one.mean_kd, other.mean_kd)


def test_it_is_read_with_its_cost_and_for_its_own_store_alone(average, make_store, tmp_path):
    store = ActivationStore(make_store(dtype="float32", window=64)[0])
    path = tmp_path / "mixture_average.safetensors"
    average.save(path, store.documents, activations_id(store))
    again = MixtureAverage.load(path, store)
    assert (again.train_seconds, again.train_activations) == (6.0, 700)
    x_nd = average.sample(20, generator(1))
    assert torch.equal(again(x_nd, 0.3), average(x_nd, 0.3))
    other = ActivationStore(make_store(dtype="float32", window=32, seed=1)[0])
    with pytest.raises(StoreError, match="other activations .* run the notebooks again from 02"):
        MixtureAverage.load(path, other)
    elsewhere = ActivationStore(make_store(dtype="float32", seed=2, corpus="other@1")[0])
    with pytest.raises(StoreError, match="documents"):
        MixtureAverage.load(path, elsewhere)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="mixture_average.safetensors"):
        MixtureAverage.load(path, store)


def test_mixtures_of_different_widths_or_none_are_refused():
    with pytest.raises(ValueError, match="mixtures of widths 2, 3: expected one width"):
        MixtureAverage((mixture_of(1, 2), mixture_of(1, 3)))
    with pytest.raises(ValueError, match="no mixtures: expected at least one"):
        MixtureAverage(())


def test_members_begin_at_starts_of_their_own_and_the_first_may_be_given():
    z_nd, size = mixture_of(6, seed=9).sample(600, generator(1)), AverageSize(4, 32.0, members=3)
    average = fit_average(z_nd, size, seed=2)
    for i, member in enumerate(average.members):
        alone = one_mixture(z_nd, 4, 32.0, seed=2 * 3 + i)
        assert torch.equal(member.mean_kd, alone.mean_kd)
    assert len({float(member.mean_kd.abs().sum()) for member in average.members}) == 3
    assert average.train_seconds == sum(member.train_seconds for member in average.members)
    assert average.train_activations == 600
    first = replace(average.members[0], train_seconds=100.0)
    again = fit_average(z_nd, size, seed=2, first=first)
    assert again.members[0] is first and again.train_seconds > 100
    for one, other in zip(again.members, average.members, strict=True):
        assert torch.equal(one.mean_kd, other.mean_kd)
    unknown = replace(first, train_seconds=None)
    assert MixtureAverage.of([first, unknown]).train_seconds is None
    with pytest.raises(ValueError, match="600 activations for 601 components: extract more"):
        one_mixture(z_nd, 601, 32.0, seed=0)


def rings(n, seed):
    """Four pairs of dimensions, each a ring: a smooth density in which clusters have borders that
    the data do not, (n, 8).
    """
    g = generator(seed)
    angle_nr = 2 * torch.pi * torch.rand(n, 4, generator=g)
    z_nd = torch.cat([angle_nr.cos(), angle_nr.sin()], 1) * 2**0.5
    return z_nd + 0.1 * torch.randn(n, 8, generator=g)


def test_the_average_has_a_lower_velocity_loss_than_each_member_on_a_smooth_density():
    z_nd, held_out_nd = rings(6000, 0), rings(4000, 1)
    average = fit_average(z_nd, AverageSize(24, 32.0, members=4), seed=0)
    noise_nd, sigma = torch.randn(held_out_nd.shape, generator=generator(2)), 0.3
    x_nd = (1 - sigma) * held_out_nd + sigma * noise_nd

    def loss(denoiser):
        return float((denoiser(x_nd, sigma) - held_out_nd).square().mean() / sigma**2)

    assert loss(average) < 0.985 * min(loss(member) for member in average.members)


def test_it_is_fitted_by_name_saved_and_loaded_equal(tmp_path):
    h, documents = activations()
    model = mmlib.fit(h, "mixture_average", groups=documents, progress=False)
    assert isinstance(model, FittedAverage) and model.kind == "mixture_average"
    assert model.facts["size"] == {"components": 2, "prior": 128.0, "members": 4}
    assert model.cost.activations == model.facts["rows"]["train"] and model.cost.seconds > 0
    again, x = mmlib.load(model.save(tmp_path / "model")), model.noised(h[:50], 0.4)
    assert type(again) is FittedAverage and again.cost == model.cost
    assert torch.equal(again.denoise(x, 0.4), model.denoise(x, 0.4))
    assert torch.equal(again.log_likelihood(h[:50]), model.log_likelihood(h[:50]))
    assert torch.equal(again.sample(30, seed=1), model.sample(30, seed=1))
    shares = again.features(h[:50])
    assert shares.shape == (50, 8) and torch.allclose(shares.sum(1), torch.full((50,), 4.0))


def test_minutes_cut_the_members(monkeypatch, capsys):
    h, documents = activations()
    monkeypatch.setattr(budget, "speed", lambda *_: 1e6)
    size, plan = AverageSize(2, 128.0, members=4), Budget(1350, 12, "cpu")
    minutes = (plan.seconds(replace(size, members=2)) + 0.01) / 60
    model = mmlib.fit(h, size, groups=documents, minutes=minutes)
    assert len(model.denoiser.members) == model.facts["size"]["members"] == 2
    assert "minutes allow 2 × 2 components" in capsys.readouterr().out


def test_a_file_of_a_notebook_is_loaded_with_a_standardisation(average, make_store, tmp_path):
    store = ActivationStore(make_store(dtype="float32", d=4)[0])
    path = tmp_path / "mixture_average.safetensors"
    average.save(path, store.documents, activations_id(store))
    loaded = mmlib.load(path, standardise=store)
    assert isinstance(loaded, FittedAverage) and loaded.train_seconds == 6.0
    z_nd = Normaliser.of(store)(store.read(store.rows("test")))[:20]
    assert torch.equal(loaded(z_nd, 0.3), average(z_nd, 0.3))
    loaded.check(store)
