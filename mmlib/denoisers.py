"""The two denoising networks: the article's UNet on the vector seen as an image, and the paper's MLP.

A network maps (noisy activations (n, d), time (n,) in [0, 1000]) to a prediction (n, d); what it predicts is the noise process's
business (`mmlib.noise`).
"""

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F


class MLPBlock(nn.Module):
    """x + down( SiLU( gate(h) ⊙ time(e) ) ⊙ up(h) ) with h = LayerNorm(x): a SwiGLU block whose gate the noise level modulates."""

    def __init__(self, d_model: int, d_mlp: int):
        super().__init__()
        self.ln = nn.LayerNorm(d_model)
        self.up_proj = nn.Linear(d_model, d_mlp)
        self.gate_proj = nn.Linear(d_model, d_mlp)
        self.time_proj = nn.Linear(d_model, d_mlp)
        self.down_proj = nn.Linear(d_mlp, d_model)

    def forward(self, x_nm: Tensor, embedding_nm: Tensor) -> Tensor:
        h_nm = self.ln(x_nm)
        return x_nm + self.down_proj(F.silu(self.gate_proj(h_nm) * self.time_proj(embedding_nm)) * self.up_proj(h_nm))


class MLPDenoiser(ModelMixin, ConfigMixin):
    """The denoiser of arXiv 2602.06964, with its parameter names.

    Args:
        d_input: width d of the activations.
        d_model: width m of the blocks; None: 2 d.
        d_mlp: width f inside a block; None: 2 m.
        n_layers: number of blocks.
    """

    @register_to_config
    def __init__(self, d_input: int, d_model: int | None = None, d_mlp: int | None = None, n_layers: int = 3):
        super().__init__()
        m = d_model or 2 * d_input
        f = d_mlp or 2 * m
        self.in_proj = nn.Linear(d_input, m)
        self.time_embed = nn.Sequential(nn.Linear(m, m), nn.SiLU(), nn.Linear(m, m))
        self.layers = nn.ModuleList(MLPBlock(m, f) for _ in range(n_layers))
        self.ln = nn.LayerNorm(m)
        self.out_proj = nn.Linear(m, d_input)

    def forward(self, x_nd: Tensor, time_n: Tensor) -> Tensor:
        """Prediction (n, d) from noisy activations (n, d) and times (n,) in [0, 1000]."""
        sinusoid_nm = get_timestep_embedding(time_n, self.in_proj.out_features, flip_sin_to_cos=True, downscale_freq_shift=0)
        embedding_nm = self.time_embed(sinusoid_nm)
        h_nm = self.in_proj(x_nd)
        for layer in self.layers:
            h_nm = layer(h_nm, embedding_nm)
        return self.out_proj(self.ln(h_nm))


def image_shape(d: int) -> tuple[int, int]:
    """Height and width of the image that holds a d-vector, row by row; the UNet halves both twice, so 4 divides them.

    The height is the largest multiple of 4, at most 32 and at most √d, that divides the vector: 5120 → 32 × 160 as published,
    640 → 20 × 32. A vector that no such height divides is padded with zeros to the next multiple of 16.
    """
    padded = -(-d // 16) * 16
    height = max(h for h in range(4, 33, 4) if h == 4 or (h * h <= padded and padded % (4 * h) == 0))
    return height, padded // height


class UNetDenoiser(ModelMixin, ConfigMixin):
    """The article's denoiser: a `UNet2DModel` on the activation seen as a one-channel image.

    Repaired, against the snippet as published: the output is flattened to the input's shape before it meets the noise, and
    any width is accepted.

    Args:
        activation_dim: width d of the activations.
        block_out_channels, layers_per_block: size of the UNet; the defaults are the article's (59 M parameters).
    """

    @register_to_config
    def __init__(self, activation_dim: int = 5120, block_out_channels: tuple[int, int, int] = (128, 256, 512),
                 layers_per_block: int = 2):
        super().__init__()
        self.image = image_shape(activation_dim)
        self.unet = UNet2DModel(
            sample_size=self.image, in_channels=1, out_channels=1, layers_per_block=layers_per_block,
            block_out_channels=tuple(block_out_channels),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"))

    def forward(self, x_nd: Tensor, time_n: Tensor) -> Tensor:
        """Prediction (n, d) from noisy activations (n, d) and times (n,) in [0, 1000]."""
        n, d = x_nd.shape
        height, width = self.image
        image = F.pad(x_nd, (0, height * width - d)).view(n, 1, height, width)
        return self.unet(image, time_n).sample.reshape(n, height * width)[:, :d]


ActivationDiffusionModel = UNetDenoiser  # the article's name for it


DENOISERS = {"MLPDenoiser": MLPDenoiser, "UNetDenoiser": UNetDenoiser}


def count_parameters(network: torch.nn.Module) -> int:
    """Number of trainable numbers."""
    return sum(parameter.numel() for parameter in network.parameters())
