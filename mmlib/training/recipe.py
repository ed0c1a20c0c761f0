"""A recipe: a denoiser's size and how it is trained; and untrained models of it."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import GaussianDenoiser
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import (
    LinearSkip,
    MLPDenoiser,
    MLPSize,
    SparseDenoiser,
    SparseSize,
    UNetDenoiser,
    UNetSize,
)
from mmlib.training.train import Training

Size = MLPSize | UNetSize | SparseSize


@dataclass(frozen=True)
class Recipe:
    """A denoiser and how it is trained."""

    size: Size
    training: Training
    linear_skip: bool = False  # the network adds to the closed-form Gaussian's prediction


def network_of(size: Size, d: int, layers: int | None = None) -> nn.Module:
    """A network of that size for activations of width d, with random weights.

    Args:
        layers: of the language model, for an MLP that is conditioned on the layer; None: it knows one layer.
    """
    if isinstance(size, MLPSize):
        return MLPDenoiser(
            d, size.d_model, size.d_mlp, size.layers, layers, gated_skip=size.gated_skip
        )
    if isinstance(size, SparseSize):
        return SparseDenoiser(d, size.latents, size.k, size.level_gain)
    order = size.order and list(size.order)
    return UNetDenoiser(d, size.channels, size.layers_per_block, size.height, order)


def new_model(
    recipe: Recipe,
    origin: Origin,
    seed: int,
    gaussian: GaussianDenoiser | None = None,
) -> MetaModel:
    """A model with random weights for activations of one layer of a language model, or of several layers.

    Args:
        origin: of the activations; `Origin.of(store)`, or of several stores: one a layer.
        gaussian: fitted to the training documents, for a recipe with a linear skip.
    Raises:
        ValueError: the recipe needs a Gaussian and none is given, or asks for several layers of what has one.
    """
    d, n_layers, size = origin.d, len(origin.normaliser.mean_ld), recipe.size
    if n_layers > 1 and (recipe.linear_skip or not isinstance(size, MLPSize)):
        raise ValueError(
            f"{n_layers} layers: only an MLP without a linear skip is conditioned on the layer"
        )
    torch.manual_seed(seed)
    network = network_of(size, d, max(origin.layers) + 1 if n_layers > 1 else None)
    if recipe.linear_skip:
        if gaussian is None:
            raise ValueError(
                "this recipe adds to a Gaussian: pass the one fitted to the training documents"
            )
        network = LinearSkip.over(gaussian, network, recipe.training.objective)
    return MetaModel.of(network, recipe.training.objective, origin)


def untrained(model: MetaModel, seed: int) -> MetaModel:
    """The same architecture with random weights; the Gaussian below a network with a linear skip stays."""
    torch.manual_seed(seed)
    trained = model.network
    inner = trained.inner if isinstance(trained, LinearSkip) else trained
    settings = {key: value for key, value in inner.config.items() if not key.startswith("_")}
    network = type(inner)(**settings)
    if inner is not trained:
        skip = copy.deepcopy(trained)
        skip.inner, network = network, skip
    known = (model.process.objective, model.normaliser, model.language_model, model.layers)
    return MetaModel(network.eval(), *known, documents="").to(str(model.device))
