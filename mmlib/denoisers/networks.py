"""The denoising networks: the paper's MLP, the article's UNet, a sparse autoencoder, and any of
them on top of a Gaussian.

The MLP, with e the embedding of the time (and of the layer, where several share a network), each W
a linear layer with a bias:

    h₀ = W_in x;   h_{i+1} = h_i + W_down( SiLU( W_gate n_i ⊙ W_time e ) ⊙ W_up n_i ),   n_i = LayerNorm(h_i)
    e = W₂ SiLU( W₁ sinusoid(t) );   prediction = W_out LayerNorm(h_last)   (+ W_skip LayerNorm(h_last) ⊙ x, our gated skip)

A network maps noisy activations x (n, d) and times t (u,) in [0, 1000] to a prediction (n, d). What
it predicts is the noise process's business (`mmlib.denoisers.noise`). u divides n: rows come in u
runs of n/u that share a time, so what depends on the time alone is computed once a run. Letters: m
is the width of the blocks, f the width inside a block.
"""

from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F

from mmlib.denoisers.gaussian import GaussianDenoiser
from mmlib.denoisers.noise import noise_process


@dataclass(frozen=True)
class MLPSize:
    """Width and depth of the paper's denoiser; None takes the published ratios m = 2d and f =
    2m.
    """

    layers: int = 3
    d_model: int | None = None
    d_mlp: int | None = None
    gated_skip: bool = False  # see `MLPDenoiser`


class MLPDenoiser(ModelMixin, ConfigMixin):
    """The denoiser of arXiv 2602.06964, with its parameter names.

    Args:
        d_input: width d of the activations.
        d_model: width m of the blocks; None: 2 d.
        d_mlp: width f inside a block; None: 2 m.
        n_layers: number of blocks.
        multi_layer_n_layers: L, the number of blocks of a language model whose layers share this
            network; None: one layer.
        gated_skip: add gate(h) ⊙ x to the output, with a gate per dimension read off the last
            hidden state (not in the paper). A layer norm comes before the output, so without it a
            prediction cannot grow with its input.
        zero_init: start with a prediction of zero.
    """

    @register_to_config
    def __init__(
        self,
        d_input: int,
        d_model: int | None = None,
        d_mlp: int | None = None,
        n_layers: int = 3,
        multi_layer_n_layers: int | None = None,
        gated_skip: bool = False,
        zero_init: bool = False,
    ):
        super().__init__()
        m = d_model or 2 * d_input
        f = d_mlp or 2 * m
        self.in_proj = nn.Linear(d_input, m)
        self.time_embed = nn.Sequential(nn.Linear(m, m), nn.SiLU(), nn.Linear(m, m))
        if multi_layer_n_layers:
            self.layer_embed = nn.Sequential(nn.Linear(m, m), nn.SiLU(), nn.Linear(m, m))
        self.layers = nn.ModuleList(MLPBlock(m, f) for _ in range(n_layers))
        self.ln = nn.LayerNorm(m)
        self.out_proj = nn.Linear(m, d_input)
        outputs = [self.out_proj]
        if gated_skip:
            self.gate_out = nn.Linear(m, d_input)
            outputs.append(self.gate_out)
        if zero_init:
            for parameter in nn.ModuleList(outputs).parameters():
                nn.init.zeros_(parameter)

    @property
    def units(self) -> dict[str, nn.Module]:
        """Modules whose inputs are the hidden units ("meta-neurons"), (n, f) each, by name."""
        return {f"block {i}": block.down_proj for i, block in enumerate(self.layers)}

    def forward(self, x_nd: Tensor, time_u: Tensor, layer_u: Tensor | None = None) -> Tensor:
        """Prediction (n, d) from noisy activations (n, d).

        Args:
            time_u: times (u,) in [0, 1000] of u runs of rows.
            layer_u: block indices (u,), for a network of several layers.
        Raises:
            ValueError: a layer is missing, given to a network of one layer, or out of range.
        """
        h_urm = by_run(self.in_proj(x_nd), len(time_u))
        embedding_um = self.embedding(time_u, layer_u)
        for layer in self.layers:
            h_urm = layer(h_urm, embedding_um)
        h_nm = self.ln(h_urm).flatten(0, 1)
        output_nd = self.out_proj(h_nm)
        return output_nd + self.gate_out(h_nm) * x_nd if self.config.gated_skip else output_nd

    def embedding(self, time_u: Tensor, layer_u: Tensor | None) -> Tensor:
        """e (u, m) of the times and layers."""
        m, n_layers = self.in_proj.out_features, self.config.multi_layer_n_layers
        if (layer_u is None) != (n_layers is None):
            of = f"{n_layers} layers: choose one with MetaModel.at(layer)"
            raise ValueError(
                f"layer {layer_u} for a network of {of if n_layers else 'one layer: it takes none'}"
            )

        embedding_um = self.time_embed(sinusoid(time_u, m))
        if layer_u is None:
            return embedding_um
        if (layer_u < 0).any() or (layer_u >= n_layers).any():
            raise ValueError(f"layers {layer_u.unique().tolist()}: expected 0 to {n_layers - 1}")
        return embedding_um + self.layer_embed(sinusoid(layer_u / (n_layers - 1), m))


def sinusoid(value_u: Tensor, width: int) -> Tensor:
    """Cosines and sines (u, width) of numbers (u,), such as times."""
    return get_timestep_embedding(value_u, width, flip_sin_to_cos=True, downscale_freq_shift=0)


class MLPBlock(nn.Module):
    """x + down( SiLU( gate(h) ⊙ time(e) ) ⊙ up(h) ) with h = LayerNorm(x): a SwiGLU block whose
    gate the noise level modulates.
    """

    def __init__(self, d_model: int, d_mlp: int):
        super().__init__()
        self.ln = nn.LayerNorm(d_model)
        self.up_proj = nn.Linear(d_model, d_mlp)
        self.gate_proj = nn.Linear(d_model, d_mlp)
        self.time_proj = nn.Linear(d_model, d_mlp)
        self.down_proj = nn.Linear(d_mlp, d_model)

    def forward(self, x_urm: Tensor, embedding_um: Tensor) -> Tensor:
        """The next hidden state, (u, n/u, m)."""
        h_urm = self.ln(x_urm)
        gate_urf = self.gate_proj(h_urm) * self.time_proj(embedding_um)[:, None]
        return x_urm + self.down_proj(F.silu(gate_urf) * self.up_proj(h_urm))


def by_run(x_nm: Tensor, runs: int) -> Tensor:
    """(u, n/u, m): the rows that share a time together.

    Raises:
        ValueError: the runs cannot have the same length.
    """
    if len(x_nm) % runs:
        raise ValueError(
            f"{len(x_nm)} rows and {runs} times: expected the second to divide the first"
        )
    return x_nm.unflatten(0, (runs, -1))


@dataclass(frozen=True)
class UNetSize:
    """Channels of the article's UNet. Its own are (128, 256, 512) with 2 layers a block: 59 M
    parameters.
    """

    channels: tuple[int, int, int] = (128, 256, 512)
    layers_per_block: int = 2
    height: int | None = None  # of the image of the activation; None: see `image_shape`
    order: tuple[int, ...] | None = None  # of the dimensions in it; None: as they come


class UNetDenoiser(ModelMixin, ConfigMixin):
    """The article's denoiser: a `UNet2DModel` on the activation seen as a one-channel image.

    Its convolutions assume that dimensions whose numbers are close, in a row of the image or across
    rows, belong together, and that every place in the image works alike. Nothing in a language
    model makes it so; `order` tests it.

    Repaired, against the snippet as published: the output is flattened to the input's shape before
    it meets the noise, and any width is accepted.

    Args:
        activation_dim: width d of the activations.
        block_out_channels, layers_per_block: size of the UNet; the defaults are the article's (59 M
            parameters).
        height: of the image; None: see `image_shape`.
        order: dimensions in the order in which they fill the image, a permutation of 0 … d − 1;
            None: as they come.
    Raises:
        ValueError: `order` is no permutation.
    """

    @register_to_config
    def __init__(
        self,
        activation_dim: int = 5120,
        block_out_channels: tuple[int, int, int] = (128, 256, 512),
        layers_per_block: int = 2,
        height: int | None = None,
        order: list[int] | None = None,
    ):
        super().__init__()
        if order is not None and sorted(order) != list(range(activation_dim)):
            raise ValueError(
                f"order has {len(order)} entries: expected a permutation of 0 to "
                f"{activation_dim - 1}"
            )
        self.image = image_shape(activation_dim, height)
        order_d = None if order is None else torch.tensor(order)
        inverse_d = None if order_d is None else order_d.argsort()
        self.register_buffer("order_d", order_d, persistent=False)
        self.register_buffer("inverse_order_d", inverse_d, persistent=False)
        self.unet = UNet2DModel(
            sample_size=self.image,
            in_channels=1,
            out_channels=1,
            layers_per_block=layers_per_block,
            block_out_channels=tuple(block_out_channels),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )

    @property
    def units(self) -> dict[str, nn.Module]:
        """Modules whose inputs are the hidden units, (n, channels, height, width) each, by name:
        the last convolution of each ResNet block.
        """
        last = [name for name, _ in self.unet.named_modules() if name.endswith(".conv2")]
        return {name.removesuffix(".conv2"): self.unet.get_submodule(name) for name in last}

    def forward(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """Prediction (n, d) from noisy activations (n, d) and times (u,) in [0, 1000] of u runs of
        rows.
        """
        n, d = x_nd.shape
        height, width = self.image
        time_n = time_u.repeat_interleave(by_run(x_nd, len(time_u)).shape[1])
        if self.order_d is not None:
            x_nd = x_nd[:, self.order_d]
        image = F.pad(x_nd, (0, height * width - d)).view(n, 1, height, width)
        flat_nd = self.unet(image, time_n).sample.reshape(n, height * width)[:, :d]
        return flat_nd if self.order_d is None else flat_nd[:, self.inverse_order_d]


ActivationDiffusionModel = UNetDenoiser  # the article's name for it


def image_shape(d: int, height: int | None = None) -> tuple[int, int]:
    """Height and width of the image that holds a d-vector, row by row; the UNet halves both twice,
    so 4 divides them.

    The height is the largest multiple of 4, at most 32 and at most √d, that divides the vector:
    5120 → 32 × 160 as published, 640 → 20 × 32. A vector that no such height divides is padded with
    zeros to the next multiple of 16.

    Args:
        height: another height instead.
    Raises:
        ValueError: 4 does not divide the height, or it does not divide the padded vector into a
            width that 4 divides.
    """
    padded = -(-d // 16) * 16
    if height is None:
        height = max(
            h for h in range(4, 33, 4) if h == 4 or (h * h <= padded and padded % (4 * h) == 0)
        )
    if height % 4 or padded % (4 * height):
        raise ValueError(
            f"height {height} for {d} dimensions (padded to {padded}): expected a multiple of 4 "
            f"that divides {padded // 4}"
        )
    return height, padded // height


@dataclass(frozen=True)
class SparseSize:
    """A TopK sparse autoencoder that is trained to denoise, see `SparseDenoiser`."""

    latents: int
    k: int  # active latents per activation
    level_gain: bool = False  # its output is scaled by a number that depends on the noise level


LEVEL_FEATURES = 64  # of the noise level, that its gain is read off


class SparseDenoiser(ModelMixin, ConfigMixin):
    """decoder(TopK(ReLU(encoder(x − b_dec) + b_enc))) + b_dec: a TopK sparse autoencoder (Gao et
    al. 2024, eqs. 1 and 2), fed x.

    Used on top of a Gaussian (`mmlib.denoisers.networks.LinearSkip`), where it predicts what that
    leaves. Alone it could not: at low noise the velocity is nearly −x/(1 − σ), and k latents
    reconstruct x far too coarsely for that.

    Weights start as SAELens's do: decoder rows of norm 0.1, the encoder their transpose, biases 0.

    Args:
        d_input: width d of the activations.
        latents: number m of latents.
        k: at most so many are active.
        level_gain: multiply the output by a number that depends on the noise level alone. The
            latents do not know the level either way.
    Raises:
        ValueError: more latents are to be active than there are.
    """

    @register_to_config
    def __init__(self, d_input: int, latents: int, k: int, level_gain: bool = False):
        super().__init__()
        if not 0 < k <= latents:
            raise ValueError(f"k={k} of {latents} latents: expected 1 to {latents}")
        self.encoder = nn.Linear(d_input, latents)
        self.b_dec = nn.Parameter(torch.zeros(d_input))
        self.decoder = Directions(0.1 * F.normalize(torch.randn(latents, d_input), dim=1))
        with torch.no_grad():
            self.encoder.weight.copy_(self.decoder.weight)
            self.encoder.bias.zero_()
        if level_gain:
            self.gain = nn.Linear(LEVEL_FEATURES, 1)
            nn.init.zeros_(self.gain.weight)
            nn.init.ones_(self.gain.bias)

    @property
    def units(self) -> dict[str, nn.Module]:
        """Modules whose inputs are the hidden units, (n, m), by name."""
        return {"latents": self.decoder}

    def _active(self, x_nd: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row the k largest latents, (n, k), and their numbers, (n, k)."""
        values_nk, places_nk = self.encoder(x_nd - self.b_dec).topk(self.config.k, sorted=False)
        return values_nk.relu(), places_nk

    def encode(self, x_nd: Tensor) -> Tensor:
        """Latents (n, m), at most k of them above 0 in each row."""
        values_nk, places_nk = self._active(x_nd)
        return values_nk.new_zeros(len(x_nd), self.config.latents).scatter(1, places_nk, values_nk)

    def forward(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """Prediction (n, d) from noisy activations (n, d) and times (u,) in [0, 1000] of u runs of
        rows.
        """
        if self.training:  # over the active latents alone; otherwise `units` are to be read
            values_nk, places_nk = self._active(x_nd)
            weights = {"per_sample_weights": values_nk.to(self.decoder.weight), "mode": "sum"}
            output_nd = F.embedding_bag(places_nk, self.decoder.weight, **weights) + self.b_dec
        else:
            output_nd = self.decoder(self.encode(x_nd)) + self.b_dec
        if not self.config.level_gain:
            return output_nd
        gain_u1 = self.gain(sinusoid(time_u, LEVEL_FEATURES))
        return (output_nd.unflatten(0, (len(time_u), -1)) * gain_u1[:, None]).flatten(0, 1)


class Directions(nn.Module):
    """Σ_m latent_m direction_m, (n, d) from (n, m): a linear layer whose rows, not columns, are the
    directions, to be looked up one by one.
    """

    def __init__(self, directions_md: Tensor):
        super().__init__()
        self.weight = nn.Parameter(directions_md)

    def forward(self, latents_nm: Tensor) -> Tensor:
        """The sum of directions, (n, d)."""
        return latents_nm @ self.weight


DENOISERS = {kind.__name__: kind for kind in (MLPDenoiser, UNetDenoiser, SparseDenoiser)}


class LinearSkip(ModelMixin, ConfigMixin):
    """Prediction of N(μ, Σ)'s posterior mean, plus a network's. Same posterior as
    `mmlib.denoisers.gaussian`, for a whole batch of noise levels.

    Args:
        objective: what is predicted.
        network: name of the inner denoiser's class.
        config: its arguments.
        d: width of the activations.
    """

    @register_to_config
    def __init__(self, objective: str, network: str, config: dict, d: int):
        super().__init__()
        self.process = noise_process(objective)
        self.inner = DENOISERS[network](**config)
        self.register_buffer("mean_d", torch.zeros(d))
        self.register_buffer("basis_dd", torch.eye(d))
        self.register_buffer("eigenvalues_d", torch.ones(d))

    @classmethod
    def over(cls, gaussian: GaussianDenoiser, inner: nn.Module, objective: str) -> "LinearSkip":
        """With that Gaussian below a network."""
        config = {key: value for key, value in inner.config.items() if not key.startswith("_")}
        skip = cls(objective, type(inner).__name__, config, len(gaussian.mean_d))
        skip.inner = inner
        skip.mean_d, skip.basis_dd = gaussian.mean_d, gaussian.basis_dd
        skip.eigenvalues_d = gaussian.eigenvalues_d
        return skip

    @property
    def units(self) -> dict[str, nn.Module]:
        """Hidden units of the inner network."""
        return self.inner.units

    @property
    def fitted_numbers(self) -> int:
        """Free numbers of the Gaussian."""
        d = len(self.mean_d)
        return d + d * (d + 1) // 2

    def forward(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """Prediction (n, d) from noisy activations (n, d) and times (u,) in [0, 1000] of u runs of
        rows.
        """
        return self.linear(x_nd, time_u) + self.inner(x_nd, time_u)

    def linear(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """The Gaussian's prediction, (n, d), in float32."""
        with torch.autocast(x_nd.device.type, enabled=False):
            a, s = (value[:, None, None] for value in self.process.at_time(time_u))
            power = a**2 * self.eigenvalues_d + s**2
            # of ẑ and of ε̂, along each eigenvector
            gain = self.process.target(a * self.eigenvalues_d / power, s / power)
            centred_urd = by_run(x_nd.float(), len(time_u)) - a * self.mean_d
            linear_urd = (centred_urd @ self.basis_dd * gain) @ self.basis_dd.T
            at_mean_d = self.process.target(self.mean_d, torch.zeros_like(self.mean_d))
            return (linear_urd + at_mean_d).flatten(0, 1)


def count_parameters(network: torch.nn.Module) -> int:
    """Number of trained numbers, and of those fitted in closed form."""
    trained = sum(parameter.numel() for parameter in network.parameters())
    return trained + getattr(network, "fitted_numbers", 0)
