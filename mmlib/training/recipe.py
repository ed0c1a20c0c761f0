"""Recipes: a denoiser's size, how it is trained, the schedule of its learning rate; and untrained
models of it.

Recipe             a network's size and its `Training` Training           steps, batch, rate,
warm-up, decay, averaging, noise levels; each field says what it does learning_rate      the rate of
a step: linear warm-up, then a decay by name (`DECAYS`) new_model          a model with random
weights
"""

import copy
import math
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import GaussianDenoiser
from mmlib.denoisers.meta_model import DENSITIES, MetaModel
from mmlib.denoisers.networks import (
    LinearSkip,
    MLPDenoiser,
    MLPSize,
    SparseDenoiser,
    SparseSize,
    UNetDenoiser,
    UNetSize,
)
from mmlib.denoisers.residual import MixtureResidual, ResidualSize

DECAYS = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "late": lambda progress: min(1.0, (1 - progress) / 0.2),
}  # of the peak that is above the final rate, by progress from 0 to 1


def _later(default):
    """A field that came after trials of studies had been trained with its default: see
    `mmlib.runs.sweep`.
    """
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class Training:
    """One training run of a denoiser: AdamW, linear warm-up, cosine decay, gradient clipping, EMA
    weights.
    """

    objective: str  # what the network predicts: "flow_velocity" (v = ε − z) or "ddpm_epsilon" (ε)
    steps: int
    batch: int  # activations per step
    lr: float  # peak learning rate
    warmup: float = 0.02  # fraction of the steps that warms up linearly
    final_lr: float = 0.02  # the cosine ends at this fraction of the peak
    # decay of the averaged weights, the ones evaluated and saved; after s steps at most (1 + s)/(10
    # + s), diffusers' warm-up
    ema: float = 0.99
    beta2: float = 0.99  # of AdamW
    levels: int | None = None  # different in a batch, shared by runs of rows; None: one a row
    stop_if_stuck: bool = True  # give up on a training that stays above the mean predictor's loss
    compile: bool = False  # torch.compile, where a compiler is installed and it pays
    clip: float = 1.0  # gradient norm
    weight_decay: float = 0.0
    bf16: bool = True  # bfloat16 autocast where the device computes in it, float32 elsewhere
    log_every: int = 10
    validate_every: int = 100
    save_every: int = 100  # a state to resume from; both at steps that are logged
    keep: tuple[tuple[str, int], ...] = ()  # (name, step): copies of the averaged weights
    # of the noise levels, or "logit_normal": see `mmlib.denoisers.meta_model.DENSITIES`
    density: str = _later("uniform")
    weighting: str = _later("uniform")  # of the squared errors by noise level, likewise
    # of the rate; or "linear", or "late": constant, then linear over the last fifth
    decay: str = _later("cosine")

    def __post_init__(self):
        """Refuse validation or saving at steps that are not logged, where they would not happen,
        and names that nothing has.
        """
        if self.validate_every % self.log_every or self.save_every % self.log_every:
            raise ValueError(
                f"validate_every={self.validate_every} and save_every={self.save_every}: expected "
                f"multiples of log_every={self.log_every}"
            )
        for name, allowed in (("density", DENSITIES), ("weighting", DENSITIES), ("decay", DECAYS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} {value!r}: expected one of {', '.join(allowed)}")


Size = MLPSize | UNetSize | SparseSize | ResidualSize


@dataclass(frozen=True)
class Recipe:
    """A denoiser and how it is trained."""

    size: Size
    training: Training
    linear_skip: bool = False  # the network adds to the closed-form Gaussian's prediction


def learning_rate(step: int, settings: Training) -> float:
    """Rate of step 0, 1, …: linear warm-up, then a decay to `final_lr` of the peak."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    above_final = (1 - settings.final_lr) * DECAYS[settings.decay](progress)
    return settings.lr * (settings.final_lr + above_final)


def network_of(size: Size, d: int, layers: int | None = None) -> nn.Module:
    """A network of that size for activations of width d, with random weights.

    Args:
        layers: of the language model, for an MLP that is conditioned on the layer; None: it knows
            one layer.
    """
    if isinstance(size, MLPSize):
        widths = (size.d_model, size.d_mlp)
        return MLPDenoiser(d, *widths, size.layers, layers, gated_skip=size.gated_skip)
    if isinstance(size, ResidualSize):
        widths = (size.d_model, size.d_mlp, size.layers)
        return MixtureResidual(d, *widths, size.gated, size.reads_mixture)
    if isinstance(size, SparseSize):
        return SparseDenoiser(d, size.latents, size.k, size.level_gain)
    order = size.order and list(size.order)
    return UNetDenoiser(d, size.channels, size.layers_per_block, size.height, order)


def new_model(
    recipe: Recipe, origin: Origin, seed: int, gaussian: GaussianDenoiser | None = None
) -> MetaModel:
    """A model with random weights for activations of one layer of a language model, or of several
    layers.

    Args:
        origin: of the activations; `Origin.of(store)`, or of several stores: one a layer.
        gaussian: fitted to the training documents, for a recipe with a linear skip.
    Raises:
        ValueError: the recipe needs a Gaussian and none is given, or asks for several layers of
            what has one.
    """
    d, n_layers, size = origin.d, len(origin.normaliser.mean_ld), recipe.size
    if isinstance(size, ResidualSize):
        if recipe.training.objective != "flow_velocity" or recipe.linear_skip:
            raise ValueError(
                f"a network on mixtures with objective {recipe.training.objective!r}, linear_skip="
                f"{recipe.linear_skip}: it predicts the velocity, on mixtures alone; expected "
                "'flow_velocity' and False"
            )
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
    return MetaModel(network, recipe.training.objective, origin)


def untrained(model: MetaModel, seed: int) -> MetaModel:
    """The same architecture with random weights; the Gaussian below a network with a linear skip,
    or the mixtures below one, stay.
    """
    torch.manual_seed(seed)
    trained = model.network
    inner = trained.inner if isinstance(trained, LinearSkip) else trained
    settings = {key: value for key, value in inner.config.items() if not key.startswith("_")}
    network = type(inner)(**settings)
    if inner is not trained:
        skip = copy.deepcopy(trained)
        skip.inner, network = network, skip
    if isinstance(trained, MixtureResidual) and trained.average:
        network.over(trained.average)
    origin = replace(model.origin, documents="")
    return MetaModel(network.eval(), model.process.objective, origin).to(str(model.device))
