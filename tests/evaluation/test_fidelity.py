"""Fréchet distance against its closed form, nearest neighbours by hand."""

import pytest
import torch

from mmlib.evaluation.losses import frechet_distance
from mmlib_studies.samples import nearest_distances


def test_frechet_of_axis_aligned_gaussians():
    """N(0, diag(1, 4)) against N((3, 0), diag(9, 4)): 3² + (1 − 3)² + 0 = 13."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 2, generator=generator) * torch.tensor([1.0, 2.0])
    b = torch.randn(200_000, 2, generator=generator) * torch.tensor([3.0, 2.0]) + torch.tensor(
        [3.0, 0.0]
    )
    assert frechet_distance(a, b) == pytest.approx(13, rel=0.01)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_is_symmetric_and_unchanged_by_rotation():
    a, b = torch.randn(500, 6), torch.randn(500, 6) @ torch.randn(6, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    expected = frechet_distance(a, b)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(expected, rel=1e-4)


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match="5 and 9 rows in 6 dimensions"):
        frechet_distance(torch.randn(5, 6), torch.randn(9, 6))


def test_nearest_distances_by_hand():
    assert nearest_distances(
        torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([[3.0, 4.0], [9.0, 9.0]])
    ) == pytest.approx([5, 0])
