"""Shared by the tests of the face: raw activations in clusters, their documents, and one small fit
of each kind, made once.
"""

from functools import cache

import numpy as np
import torch

import mmlib
from mmlib.denoisers.average import AverageSize
from mmlib.denoisers.mixture import MixtureSize
from mmlib.denoisers.networks import MLPSize
from mmlib.denoisers.residual import ResidualSize
from mmlib.denoisers.sae import SAESize
from mmlib.training.budget import PCASize
from mmlib.training.recipe import Recipe, Training

D = 12


METHODS = {
    "gaussian": "gaussian",
    "pca": PCASize(4),
    "mixture": MixtureSize((2, 4), (32.0,), em_steps=1),
    "average": AverageSize(3, 32.0, members=2),
    "sae": SAESize(32, 4, steps=20, batch=64),
    "network": Recipe(MLPSize(1, 16, 32), Training("flow_velocity", 30, 64, 2e-3, bf16=False)),
    "residual": Recipe(
        ResidualSize(components=3, folds=2, layers=1, d_model=16, d_mlp=32),
        Training("flow_velocity", 30, 64, 2e-3, bf16=False),
    ),
}


@cache
def activations(n=1500, seed=0):
    """(n, d) raw ones around three means, of scales from 2 to 10, far from 0; and the document of
    each, of 50 rows.
    """
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(0, 3, (3, D))
    z = centres[rng.integers(3, size=n)] + rng.normal(0, 1, (n, D))
    h = z * np.linspace(2, 10, D) + 30
    return torch.from_numpy(h).float(), [f"document {i // 50}" for i in range(n)]


@cache
def fitted(kind):
    """A fit of the kind."""
    h, documents = activations()
    return mmlib.fit(h, METHODS[kind], groups=documents, progress=False)
