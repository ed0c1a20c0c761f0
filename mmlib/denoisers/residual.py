"""A network on top of a mixture of Gaussians: it predicts what the mixture's posterior mean leaves.

    v̂(x, σ) = v_mix + 2 √(σ (1 − σ)) (W h + W₁ h ⊙ x + W₂ h ⊙ ẑ_mix),   v_mix = (x − ẑ_mix)/σ

h is the last hidden state of the paper's blocks, which read x, ẑ_mix and the components'
probabilities. The W start at zero, so an untrained network is the mixture. The factor vanishes
where noise is all or nothing: there no smooth density leaves anything to predict. Gates on x and
ẑ_mix let a correction grow with its input, which the layer norm before W forbids.

A mixture knows the rows it was fitted to too well. So each training row gets its ẑ_mix from a
mixture that was fitted without that row's document (`crossed`); `mmlib.training.crossfit` makes
them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import save_file
from torch import Tensor, nn

from mmlib.denoisers.checkpoints import read_weights
from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.denoisers.networks import MLPBlock, by_run, sinusoid
from mmlib.denoisers.posterior import FastPosterior
from mmlib.files import written_whole

BASE = "mixture.safetensors"  # beside the network's weights


@dataclass(frozen=True)
class ResidualSize:
    """The mixture below, and the network on top of it."""

    components: int = 512
    prior: float = 128.0  # strength ν of the components' covariances, in tokens
    folds: int = 4  # of documents, each left out of a mixture of its own; 1: the mixture of all
    layers: int = 3
    d_model: int | None = None  # None: d
    d_mlp: int | None = None  # None: 2 m
    gated: bool = True  # W₁ and W₂
    reads_mixture: bool = True  # the network's input has ẑ_mix and the components' probabilities


class MixtureResidual(ModelMixin, ConfigMixin):
    """Velocity of a mixture plus a network's correction.

    Args:
        d_input: width d of the activations.
        components: K, of the mixture.
        d_model: width m of the blocks; None: d.
        d_mlp: width f inside a block; None: 2 m.
        n_layers: number of blocks.
        gated, reads_mixture: see `ResidualSize`.
    """

    @register_to_config
    def __init__(
        self,
        d_input: int,
        components: int,
        d_model: int | None = None,
        d_mlp: int | None = None,
        n_layers: int = 3,
        gated: bool = True,
        reads_mixture: bool = True,
    ):
        super().__init__()
        m = d_model or d_input
        self.in_proj = nn.Linear(d_input * (2 if reads_mixture else 1), m)
        if reads_mixture:
            self.component_embed = nn.Linear(components, m, bias=False)
        self.time_embed = nn.Sequential(nn.Linear(m, m), nn.SiLU(), nn.Linear(m, m))
        self.layers = nn.ModuleList(MLPBlock(m, d_mlp or 2 * m) for _ in range(n_layers))
        self.ln = nn.LayerNorm(m)
        self.out_proj = nn.Linear(m, d_input * (3 if gated else 1))
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)
        self.mixture: GaussianMixtureDenoiser | None = None
        self.posterior: FastPosterior | None = None
        self.crossed = nn.ModuleList()  # one a fold; no part of a checkpoint
        self.fold = 0  # of the batch that is trained on

    def over(
        self, mixture: GaussianMixtureDenoiser, crossed: Iterable[GaussianMixtureDenoiser] = ()
    ) -> "MixtureResidual":
        """This network, on that mixture.

        Args:
            crossed: the mixtures below it in training, one for each fold of the documents, of as
                many components in the same order. They are taken up one by one.
        Raises:
            ValueError: a mixture has another number of components or another width.
        """
        self.mixture, self.posterior = mixture, self._below(mixture)
        self.crossed = nn.ModuleList(self._below(one) for one in crossed)
        return self

    def _below(self, mixture: GaussianMixtureDenoiser) -> FastPosterior:
        found = (len(mixture.components), len(mixture.components[0].mean_d))
        if found != (expected := (self.config.components, self.config.d_input)):
            raise ValueError(
                f"a mixture of {found[0]} components in {found[1]} dimensions: expected "
                f"{expected[0]} in {expected[1]}"
            )
        return FastPosterior(mixture)

    @property
    def units(self) -> dict[str, nn.Module]:
        """Modules whose inputs are the hidden units, (n, f) each, by name."""
        return {f"block {i}": block.down_proj for i, block in enumerate(self.layers)}

    @property
    def fitted_numbers(self) -> int:
        """Free numbers of the mixture."""
        return self.mixture.parameters if self.mixture else 0

    def forward(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """Velocity (n, d) from noisy activations (n, d) and times 1000 σ, (u,), of u runs of rows.

        Raises:
            ValueError: it has no mixture yet.
        """
        if self.posterior is None:
            raise ValueError("this network has no mixture below it: call .over(mixture) first")
        below = self.crossed[self.fold] if self.training and self.crossed else self.posterior
        sigma_u = time_u / 1000
        with torch.autocast(x_nd.device.type, enabled=False):
            estimate_nd, probability_nk = below(x_nd, sigma_u)
        sigma_n1 = sigma_u.repeat_interleave(len(x_nd) // len(sigma_u))[:, None]
        correction_nd = self.correction(x_nd, estimate_nd, probability_nk, time_u)
        scale_n1 = 2 * (sigma_n1 * (1 - sigma_n1)).clamp(min=0).sqrt()
        return (x_nd - estimate_nd) / sigma_n1 + scale_n1 * correction_nd

    def correction(
        self, x_nd: Tensor, estimate_nd: Tensor, probability_nk: Tensor, time_u: Tensor
    ) -> Tensor:
        """What the mixture leaves of the velocity, before its factor, (n, d), in float32."""
        if self.config.reads_mixture:
            h_nm = self.in_proj(torch.cat([x_nd, estimate_nd], 1))
            h_nm = h_nm + self.component_embed(probability_nk)
        else:
            h_nm = self.in_proj(x_nd)
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
        """diffusers' files, and the mixture beside them."""
        super().save_pretrained(folder, **options)
        with written_whole(Path(folder) / BASE) as partial:
            save_file(self.mixture.tensors(), partial)

    def load_base(self, folder: Path) -> None:
        """Take up the mixture that `save_pretrained` wrote."""
        self.over(GaussianMixtureDenoiser.of_tensors(read_weights(Path(folder) / BASE)))
