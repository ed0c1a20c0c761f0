"""A network on top of an average of mixtures of Gaussians: it predicts what their estimate leaves.

    v̂(x, σ) = v₀ + 2 √(σ (1 − σ)) (W h + W₁ h ⊙ x + W₂ h ⊙ ẑ₀),   v₀ = (x − ẑ₀)/σ

ẑ₀ is the average of the mixtures' posterior means, h the last hidden state of the paper's blocks,
which read x and ẑ₀. The W start at zero, so an untrained network is the average. The factor
vanishes where noise is all or nothing: there no smooth density leaves anything to predict. Gates on
x and ẑ₀ let a correction grow with its input, which the layer norm before W forbids.

A mixture knows the rows it was fitted to too well. So each mixture is fitted without a fold of the
documents, and a row in training has its ẑ₀ from the mixture that has not seen it;
`mmlib.training.crossfit` fits them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import save_file
from torch import Tensor, nn

from mmlib.denoisers.average import MixtureAverage
from mmlib.denoisers.checkpoints import read_weights
from mmlib.denoisers.networks import MLPBlock, by_run, sinusoid
from mmlib.denoisers.posterior import FastPosterior
from mmlib.files import written_whole

BASE = "mixture.safetensors"  # beside the network's weights


@dataclass(frozen=True)
class ResidualSize:
    """The mixtures below it, and the network on top of them."""

    components: int = 512  # of each mixture
    prior: float = 128.0  # strength ν of the components' covariances, in tokens
    folds: int = 4  # of documents, each left out of a mixture of its own: so many mixtures
    layers: int = 3
    d_model: int | None = None  # None: d
    d_mlp: int | None = None  # None: 2 m
    gated: bool = True  # W₁ and W₂
    reads_mixture: bool = True  # ẑ₀ is an input of the network
    leaves_out: bool = True  # False: every mixture is fitted to all documents


class MixtureResidual(ModelMixin, ConfigMixin):
    """Velocity of an average of mixtures plus a network's correction.

    Args:
        d_input: width d of the activations.
        d_model: width m of the blocks; None: d.
        d_mlp: width f inside a block; None: 2 m.
        n_layers: number of blocks.
        gated, reads_mixture: see `ResidualSize`.
    """

    @register_to_config
    def __init__(
        self,
        d_input: int,
        d_model: int | None = None,
        d_mlp: int | None = None,
        n_layers: int = 3,
        gated: bool = True,
        reads_mixture: bool = True,
    ):
        super().__init__()
        m = d_model or d_input
        self.in_proj = nn.Linear(d_input * (2 if reads_mixture else 1), m)
        self.time_embed = nn.Sequential(nn.Linear(m, m), nn.SiLU(), nn.Linear(m, m))
        self.layers = nn.ModuleList(MLPBlock(m, d_mlp or 2 * m) for _ in range(n_layers))
        self.ln = nn.LayerNorm(m)
        self.out_proj = nn.Linear(m, d_input * (3 if gated else 1))
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)
        self.average: MixtureAverage | None = None
        self.posteriors = nn.ModuleList()  # of its members; no part of a checkpoint of the network
        self.fold: int | None = None  # in training: the member that has not seen the batch

    def over(self, average: MixtureAverage) -> "MixtureResidual":
        """This network, on that average.

        Raises:
            ValueError: it is of another width.
        """
        if (d := average.members[0].mean_kd.shape[1]) != self.config.d_input:
            raise ValueError(f"mixtures of width {d}: expected {self.config.d_input}")
        self.average = average
        self.posteriors = nn.ModuleList(map(FastPosterior, average.members))
        return self

    @property
    def units(self) -> dict[str, nn.Module]:
        """Modules whose inputs are the hidden units, (n, f) each, by name."""
        return {f"block {i}": block.down_proj for i, block in enumerate(self.layers)}

    @property
    def fitted_numbers(self) -> int:
        """Free numbers of the mixtures."""
        return self.average.parameters if self.average else 0

    def forward(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """Velocity (n, d) from noisy activations (n, d) and times 1000 σ, (u,), of u runs of rows.

        Raises:
            ValueError: it has no mixtures yet.
        """
        self._require_mixtures()
        one = self.training and self.fold is not None
        below = [self.posteriors[self.fold]] if one else self.posteriors
        sigma_u = time_u / 1000
        with torch.autocast(x_nd.device.type, enabled=False):
            estimate_nd = sum(posterior(x_nd, sigma_u)[0] for posterior in below) / len(below)
        sigma_n1 = sigma_u.repeat_interleave(len(x_nd) // len(sigma_u))[:, None]
        correction_nd = self.correction(x_nd, estimate_nd, time_u)
        scale_n1 = 2 * (sigma_n1 * (1 - sigma_n1)).clamp(min=0).sqrt()
        return (x_nd - estimate_nd) / sigma_n1 + scale_n1 * correction_nd

    def _require_mixtures(self) -> None:
        if self.average is None:
            raise ValueError("this network has no mixtures below it: call .over(average) first")

    def correction(self, x_nd: Tensor, estimate_nd: Tensor, time_u: Tensor) -> Tensor:
        """What the mixtures leave of the velocity, before its factor, (n, d), in float32."""
        read = torch.cat([x_nd, estimate_nd], 1) if self.config.reads_mixture else x_nd
        h_nm = self.in_proj(read)
        embedding_um = self.time_embed(sinusoid(time_u, h_nm.shape[1]))
        h_urm = by_run(h_nm, len(time_u))
        for layer in self.layers:
            h_urm = layer(h_urm, embedding_um)
        output = self.out_proj(self.ln(h_urm).flatten(0, 1)).float()
        if not self.config.gated:
            return output
        plain_nd, on_x_nd, on_estimate_nd = output.chunk(3, 1)
        return plain_nd + on_x_nd * x_nd + on_estimate_nd * estimate_nd

    def save_pretrained(self, folder: Path, **options) -> None:
        """diffusers' files, and the mixtures beside them.

        Raises:
            ValueError: it has no mixtures yet.
        """
        self._require_mixtures()
        super().save_pretrained(folder, **options)
        with written_whole(Path(folder) / BASE) as partial:
            save_file(self.average.tensors(), partial)

    def load_base(self, folder: Path) -> None:
        """Take up the mixtures that `save_pretrained` wrote."""
        self.over(MixtureAverage.of_tensors(read_weights(Path(folder) / BASE)))
