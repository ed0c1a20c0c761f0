"""Cross-fitting: folds by document, moments of parts, and that no row is part of what it is
corrected by.
"""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.mixture import ClusterMoments
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


def test_moments_of_parts_merge_to_those_of_the_whole():
    z_nd, _ = rows()
    label_n = torch.arange(len(z_nd)) % 3
    part_n = torch.arange(len(z_nd)) % 7 < 2
    parts = [ClusterMoments.of(z_nd[p] + 100, label_n[p], 4) for p in (part_n, ~part_n)]
    whole, merged = ClusterMoments.of(z_nd + 100, label_n, 4), ClusterMoments.merged(parts)
    assert merged.count_k.tolist() == whole.count_k.tolist()
    torch.testing.assert_close(merged.mean_kd, whole.mean_kd)
    torch.testing.assert_close(merged.scatter_kdd, whole.scatter_kdd, atol=0.05, rtol=1e-4)


def test_a_folds_mixture_knows_nothing_of_its_planted_document():
    z_nd, group_n = rows()
    planted = group_n == 7
    z_nd[planted] = 60 + torch.randn(50, D, generator=torch.Generator().manual_seed(0)) / 10
    label_n = torch.from_numpy(np.where(planted, 4, np.arange(len(z_nd)) % 4))
    fold_n = crossfit.folds_of(group_n, 3, seed=0)
    whole, *crossed = crossfit.cross_fitted(z_nd, label_n, fold_n, 20.0)
    own = fold_n[planted][0]
    for fold, mixture in enumerate(crossed):
        without = torch.from_numpy(np.flatnonzero(fold_n != fold))
        alone = ClusterMoments.of(z_nd[without], label_n[without], 5).mixture(20.0)
        for one, other in zip(mixture.tensors().values(), alone.tensors().values()):
            assert one.shape == other.shape
        x_nd = z_nd[:20]
        torch.testing.assert_close(mixture(x_nd, 0.3), alone(x_nd, 0.3), atol=1e-3, rtol=1e-3)
        known = mixture.log_density(z_nd[planted], 0.02).mean() > -20
        assert known == (fold != own)
    assert whole.log_density(z_nd[planted], 0.02).mean() > -20


def test_every_batch_is_of_one_fold_and_the_network_knows_which():
    z_nd, group_n = rows()
    z_nd[:, 0] = torch.from_numpy(group_n).float()
    fold_n = crossfit.folds_of(group_n, 3, seed=0)
    fold_of = {int(group): int(fold) for group, fold in zip(group_n, fold_n)}
    network = MixtureResidual(D, 4, 16, 32, 1)

    def given(start, count):
        source = crossfit.by_fold(network, z_nd, fold_n, row_batches, 32, 5, start)
        return [(network.fold, batch) for batch in islice(source, count)]

    whole = []
    for fold, batch in given(0, 40):
        assert {fold_of[int(group)] for group in batch[:, 0]} == {fold}
        whole.append(batch)
    again = [batch for _, batch in given(17, 23)]
    assert all(torch.equal(one, other) for one, other in zip(whole[17:], again, strict=True))


def test_training_lowers_the_loss_of_the_mixture_and_resumes_to_the_same_bytes(tmp_path):
    z_nd, group_n = rows(4000)
    # what a mixture of four Gaussians cannot say: the sign of one dimension is another's
    z_nd[:, 1] = z_nd[:, 1].abs() * z_nd[:, 0].sign()
    origin = Origin(Normaliser(z_nd.mean(0)[None], z_nd.std(0)[None]))
    model, log = crossfit.train_on_mixture(
        RECIPE, z_nd[:3000], z_nd[3000:], group_n[:3000], origin, row_batches, tmp_path, seed=0
    )
    again, _ = crossfit.train_on_mixture(
        RECIPE, z_nd[:3000], z_nd[3000:], group_n[:3000], origin, row_batches, tmp_path, seed=0
    )
    x_nd = torch.randn(10, D, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.denoise(x_nd, 0.5), again.denoise(x_nd, 0.5))
    assert model.train_seconds > log[-1]["seconds"] > 0
    assert len(model.network.crossed) == 0


@pytest.mark.parametrize("change", ["objective", "linear_skip"])
def test_a_network_on_a_mixture_predicts_the_velocity_on_the_mixture_alone(change):
    training = replace(RECIPE.training, objective="ddpm_epsilon")
    changed = {"objective": {"training": training}, "linear_skip": {"linear_skip": True}}[change]
    origin = Origin(Normaliser(torch.zeros(1, D), torch.ones(1, D)))
    with pytest.raises(ValueError, match="it predicts the velocity, on the mixture alone"):
        new_model(replace(RECIPE, **changed), origin, 0)
