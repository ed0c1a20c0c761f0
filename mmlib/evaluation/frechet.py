"""Sample quality: how close generated activations come to real ones."""

import numpy as np
import torch
from sklearn.metrics import pairwise_distances_argmin_min
from torch import Tensor


def frechet_distance(a_nd: Tensor, b_nd: Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½) (Dowson and Landau 1982), squared units of the inputs.

    Raises:
        ValueError: a set has no more rows than dimensions, so its covariance is not determined.
    """
    d = a_nd.shape[1]
    if min(len(a_nd), len(b_nd)) <= d:
        raise ValueError(
            f"sets of {len(a_nd)} and {len(b_nd)} rows in {d} dimensions: expected more rows than dimensions"
        )
    a_nd, b_nd = a_nd.double(), b_nd.double()
    cov_a, cov_b = torch.cov(a_nd.T).reshape(d, d), torch.cov(b_nd.T).reshape(d, d)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp(min=0).sqrt().sum()
    return float(
        (a_nd.mean(0) - b_nd.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    )


def nearest_distances(queries_nd: Tensor, reference_nd: Tensor) -> np.ndarray:
    """Euclidean distance of each query to its nearest reference row, (n,)."""
    return pairwise_distances_argmin_min(queries_nd.numpy(), reference_nd.numpy())[1]
