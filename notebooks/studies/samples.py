"""The study of samples beside real activations (notebook 05): its sizes, and how near samples lie
to real activations.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min
from torch import Tensor


@dataclass(frozen=True)
class SampleSize:
    """How many are drawn, and in how many steps."""

    drawn: int = 5000  # from each generative model
    steps: int = 50
    drawn_unet: int = 128  # all methods are also compared at this number, in the top components
    components_unet: int = 16


SIZES = {
    "smoke": SampleSize(drawn=700, steps=10, drawn_unet=64, components_unet=8),
    "quick": SampleSize(drawn=1000, steps=20, drawn_unet=64, components_unet=8),
    "default": SampleSize(),
    "gpu": SampleSize(drawn=20_000, steps=100, drawn_unet=5000, components_unet=64),
}


def nearest_distances(queries_nd: Tensor, reference_nd: Tensor) -> np.ndarray:
    """Euclidean distance of each query to its nearest reference row, (n,)."""
    return pairwise_distances_argmin_min(queries_nd.numpy(), reference_nd.numpy())[1]
