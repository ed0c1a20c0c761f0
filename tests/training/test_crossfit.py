"""Cross-fitting: folds by document, a mixture for each that knows nothing of it, and batches that
are told their fold.
"""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.average import MixtureAverage, one_mixture
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.residual import MixtureResidual, ResidualSize
from mmlib.training import crossfit
from mmlib.training.fit import row_batches
from mmlib.training.recipe import Recipe, Training, new_model

D = 6
RECIPE = Recipe(
    ResidualSize(components=4, prior=20.0, folds=3, layers=1, d_model=16, d_mlp=32),
    Training("flow_velocity", 30, 32, 3e-3, levels=16, log_every=10, validate_every=30, bf16=False),
)


def rows(n=1200, seed=0):
    """Rows around four centres, and their documents of 50 rows."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(0, 4, (4, D))
    z = centres[rng.integers(4, size=n)] + rng.normal(0, 1, (n, D))
    return torch.from_numpy(z).float(), np.arange(n) // 50


def test_folds_take_whole_documents_of_about_equal_rows():
    group_n = np.repeat(np.arange(20), np.random.default_rng(0).integers(5, 60, 20))
    fold_n = crossfit.folds_of(group_n, 4, seed=0)
    assert all(len(set(fold_n[group_n == group])) == 1 for group in range(20))
    counts = np.bincount(fold_n)
    assert len(counts) == 4 and counts.max() - counts.min() < 60
    with pytest.raises(ValueError, match="2 groups for 4 folds"):
        crossfit.folds_of(np.array([0, 1]), 4, seed=0)


def planted():
    """Rows, of which one document lies far from all; their folds; and which rows are planted."""
    z_nd, group_n = rows()
    at_n = group_n == 7
    z_nd[at_n] = 60 + torch.randn(50, D, generator=torch.Generator().manual_seed(0)) / 10
    return z_nd, crossfit.folds_of(group_n, 3, seed=0), at_n


def test_a_folds_mixture_knows_nothing_of_its_planted_document():
    z_nd, fold_n, at_n = planted()
    size = ResidualSize(components=5, prior=20.0, folds=3)
    average, own = crossfit.bagged(z_nd, fold_n, size, seed=2), fold_n[at_n][0]
    for fold, member in enumerate(average.members):
        assert (member.log_density(z_nd[at_n], 0.02).mean() > -20) == (fold != own)
        kept = torch.from_numpy(fold_n != fold)
        alone = one_mixture(z_nd[kept], 5, 20.0, seed=2 * 3 + fold)
        assert member.train_activations == int(kept.sum())
        for one, other in zip(member.tensors().values(), alone.tensors().values(), strict=True):
            assert torch.equal(one, other)
    assert len(average.members) == 3
    assert average.train_seconds == sum(member.train_seconds for member in average.members)


def test_where_nothing_is_left_out_every_mixture_knows_all_rows():
    """Of starts that differ; and so does the only mixture of one fold."""
    z_nd, fold_n, at_n = planted()
    size = ResidualSize(components=5, prior=20.0, folds=3, leaves_out=False)
    average = crossfit.bagged(z_nd, fold_n, size, seed=0)
    for member in average.members:
        assert member.log_density(z_nd[at_n], 0.02).mean() > -20
        assert member.train_activations == len(z_nd)
    first, second, _ = (member.mean_kd for member in average.members)
    assert not torch.equal(first, second)
    size = replace(size, folds=1, leaves_out=True)
    (only,) = crossfit.bagged(z_nd, np.zeros_like(fold_n), size, seed=0).members
    assert only.train_activations == len(z_nd)


def test_every_batch_is_of_one_fold_and_the_network_knows_which():
    z_nd, group_n = rows()
    z_nd[:, 0] = torch.from_numpy(group_n).float()
    fold_n = crossfit.folds_of(group_n, 3, seed=0)
    fold_of = {int(group): int(fold) for group, fold in zip(group_n, fold_n)}
    network = MixtureResidual(D, 16, 32, 1)

    def given(start, count):
        source = crossfit.by_fold(network, z_nd, fold_n, row_batches, 32, 5, start)
        return [(network.fold, batch) for batch in islice(source, count)]

    whole = []
    for fold, batch in given(0, 40):
        assert {fold_of[int(group)] for group in batch[:, 0]} == {fold}
        whole.append(batch)
    again = [batch for _, batch in given(17, 23)]
    assert all(torch.equal(one, other) for one, other in zip(whole[17:], again, strict=True))


def test_batches_of_one_fold_are_told_no_fold_and_those_of_several_come_in_turn():
    z_nd, group_n = rows()
    network = MixtureResidual(D, 16, 32, 1)
    for folds in (1, 3):
        fold_n = crossfit.folds_of(group_n, folds, seed=0)
        source, told = crossfit.by_fold(network, z_nd, fold_n, row_batches, 32, 5, 0), []
        for _ in range(7):
            next(source)
            told.append(network.fold)
        assert told == ([None] * 7 if folds == 1 else [0, 1, 2, 0, 1, 2, 0])


def trained(recipe, folder):
    """On rows that four Gaussians describe badly: each pair of dimensions is a ring. Gives the model,
    the log and rows that it has not seen.
    """
    rng = np.random.default_rng(0)
    angle_nr = rng.uniform(0, 2 * np.pi, (4000, D // 2))
    z_nd = np.concatenate([np.cos(angle_nr), np.sin(angle_nr)], 1) + rng.normal(0, 0.05, (4000, D))
    z_nd, group_n = torch.from_numpy(z_nd).float(), np.arange(4000) // 50
    origin = Origin(Normaliser(z_nd.mean(0)[None], z_nd.std(0)[None]))
    held_out_nd = z_nd[3000:]
    model, log = crossfit.train_on_mixture(
        recipe, z_nd[:3000], held_out_nd, group_n[:3000], origin, row_batches, folder, seed=0
    )
    return model, log, model.normaliser(held_out_nd)


def velocity_loss(denoise, z_nd):
    """Mean over some levels, with the same noise at each call."""
    generator, losses = torch.Generator().manual_seed(1), []
    for sigma in (0.2, 0.4, 0.6, 0.8):
        x_nd = (1 - sigma) * z_nd + sigma * torch.randn(z_nd.shape, generator=generator)
        losses.append((denoise(x_nd, sigma) - z_nd).square().mean() / sigma**2)
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize("leaves_out", [True, False])
def test_training_lowers_the_loss_of_the_mixtures(tmp_path, monkeypatch, leaves_out):
    """A network whose mixtures know all rows reads their average in training too."""
    told, by_fold = set(), crossfit.by_fold

    def noted(network, *given):
        for batch in by_fold(network, *given):
            told.add(network.fold)
            yield batch

    monkeypatch.setattr(crossfit, "by_fold", noted)
    training = replace(RECIPE.training, steps=400, batch=64, validate_every=100)
    recipe = Recipe(replace(RECIPE.size, leaves_out=leaves_out), training)
    model, log, z_nd = trained(recipe, tmp_path)
    assert told == ({0, 1, 2} if leaves_out else {None})
    average = model.network.average
    assert isinstance(average, MixtureAverage) and len(average.members) == 3
    assert velocity_loss(model.denoise, z_nd) < 0.98 * velocity_loss(average, z_nd)
    assert log[-1]["validation_loss"] < log[0]["loss"]


def test_a_training_that_is_done_is_read_again_and_stands_on_the_average_of_all(tmp_path):
    (model, log, z_nd), (again, _, _) = (trained(RECIPE, tmp_path) for _ in range(2))
    saved = MetaModel.from_pretrained(tmp_path)
    x_nd = torch.randn(10, D, generator=torch.Generator().manual_seed(1))
    for other in (again, saved):
        assert torch.equal(model.denoise(x_nd, 0.5), other.denoise(x_nd, 0.5))
        assert other.network.fold is None
    assert model.train_seconds > log[-1]["seconds"] > 0
    mixtures = sum(member.train_seconds for member in model.network.average.members)
    assert model.train_seconds > log[-1]["seconds"] + mixtures
    assert saved.train_seconds == model.train_seconds


def test_a_training_that_was_cut_ends_with_the_same_bytes(tmp_path, monkeypatch):
    training = replace(RECIPE.training, save_every=10)
    recipe, by_fold = replace(RECIPE, training=training), crossfit.by_fold
    whole, _, z_nd = trained(recipe, tmp_path / "whole")

    def stopped(*given):
        for step, batch in enumerate(by_fold(*given)):
            if step == 17:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(crossfit, "by_fold", stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(recipe, tmp_path / "cut")
    monkeypatch.setattr(crossfit, "by_fold", by_fold)
    resumed, log, _ = trained(recipe, tmp_path / "cut")
    assert [entry["step"] for entry in log] == [10, 20, 30]
    assert torch.equal(whole.denoise(z_nd, 0.5), resumed.denoise(z_nd, 0.5))


@pytest.mark.parametrize("change", ["objective", "linear_skip"])
def test_a_network_on_mixtures_predicts_the_velocity_on_them_alone(change):
    training = replace(RECIPE.training, objective="ddpm_epsilon")
    changed = {"objective": {"training": training}, "linear_skip": {"linear_skip": True}}[change]
    origin = Origin(Normaliser(torch.zeros(1, D), torch.ones(1, D)))
    with pytest.raises(ValueError, match="it predicts the velocity, on mixtures alone"):
        new_model(replace(RECIPE, **changed), origin, 0)
