"""From a recipe to an untrained model."""

import torch

from mmlib.denoisers import MLPDenoiser, UNetDenoiser
from mmlib.gaussian import GaussianDenoiser
from mmlib.meta_model import MetaModel
from mmlib.presets import MLPSize, Recipe, SparseSize
from mmlib.skip import LinearSkip
from mmlib.sparse_denoiser import SparseDenoiser
from mmlib.store import ActivationStore


def new_model(recipe: Recipe, stores: ActivationStore | list[ActivationStore], seed: int, gaussian: GaussianDenoiser | None = None) -> MetaModel:
    """A model with random weights for the activations of a store, or of several: one a layer.

    Args:
        gaussian: fitted to the training documents, for a recipe with a linear skip.
    Raises:
        ValueError: the recipe needs a Gaussian and none is given, or asks for several layers of what has one.
    """
    stores = stores if isinstance(stores, list) else [stores]
    d, size = stores[0].d, recipe.size
    if len(stores) > 1 and (recipe.linear_skip or not isinstance(size, MLPSize)):
        raise ValueError(f"{len(stores)} layers: only an MLP without a linear skip is conditioned on the layer")
    torch.manual_seed(seed)
    if isinstance(size, MLPSize):
        several = max(store.layer for store in stores) + 1 if len(stores) > 1 else None
        network = MLPDenoiser(d, size.d_model, size.d_mlp, size.layers, several, gated_skip=size.gated_skip)
    elif isinstance(size, SparseSize):
        network = SparseDenoiser(d, size.latents, size.k, size.level_gain)
    else:
        network = UNetDenoiser(d, size.channels, size.layers_per_block, size.height, size.order and list(size.order))
    if recipe.linear_skip:
        if gaussian is None:
            raise ValueError("this recipe adds to a Gaussian: pass the one fitted to the training documents")
        network = LinearSkip.over(gaussian, network, recipe.training.objective)
    return MetaModel.for_store(network, recipe.training.objective, *stores)
