"""From a recipe to an untrained model; and from a name to a trained one."""

import copy
from dataclasses import dataclass

import torch

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


@dataclass(frozen=True)
class Recipe:
    """A denoiser and how it is trained."""

    size: MLPSize | UNetSize | SparseSize
    training: Training
    linear_skip: bool = False  # the network adds to the closed-form Gaussian's prediction


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
    if isinstance(size, MLPSize):
        several = max(origin.layers) + 1 if n_layers > 1 else None
        network = MLPDenoiser(
            d, size.d_model, size.d_mlp, size.layers, several, gated_skip=size.gated_skip
        )
    elif isinstance(size, SparseSize):
        network = SparseDenoiser(d, size.latents, size.k, size.level_gain)
    else:
        network = UNetDenoiser(
            d, size.channels, size.layers_per_block, size.height, size.order and list(size.order)
        )
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
    network = model.network
    skipped = isinstance(network, LinearSkip)
    inner = network.inner if skipped else network
    fresh = type(inner)(
        **{key: value for key, value in inner.config.items() if not key.startswith("_")}
    )
    if skipped:
        outer = copy.deepcopy(network)
        outer.inner, fresh = fresh, outer
    return MetaModel(
        fresh.eval(),
        model.process.objective,
        model.normaliser,
        model.language_model,
        model.layers,
        "",
    ).to(str(model.device))
