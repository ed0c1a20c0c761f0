"""A sparse autoencoder as a denoising network, to be trained on noisy activations and not on clean ones."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F

LEVEL_FEATURES = 64  # of the noise level, that its gain is read off


class Directions(nn.Module):
    """Σ_m latent_m direction_m, (n, d) from (n, m): a linear layer whose rows, not columns, are the directions, to be looked up one by one."""

    def __init__(self, directions_md: Tensor):
        super().__init__()
        self.weight = nn.Parameter(directions_md)

    def forward(self, latents_nm: Tensor) -> Tensor:
        return latents_nm @ self.weight


class SparseDenoiser(ModelMixin, ConfigMixin):
    """decoder(TopK(ReLU(encoder(x − b_dec) + b_enc))) + b_dec: a TopK sparse autoencoder (Gao et al. 2024, eqs. 1 and 2), fed x.

    Used on top of a Gaussian (`mmlib.skip.LinearSkip`), where it predicts what that leaves. Alone it could not: at low noise the
    velocity is nearly −x/(1 − σ), and k latents reconstruct x far too coarsely for that.

    Weights start as SAELens's do: decoder rows of norm 0.1, the encoder their transpose, biases 0.

    Args:
        d_input: width d of the activations.
        latents: number m of latents.
        k: at most so many are active.
        level_gain: multiply the output by a number that depends on the noise level alone. The latents do not know the level either
            way.
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
        """Prediction (n, d) from noisy activations (n, d) and times (u,) in [0, 1000] of u runs of rows."""
        if (
            self.training
        ):  # the same sum over the active latents alone; otherwise `units` are to be read
            values_nk, places_nk = self._active(x_nd)
            output_nd = (
                F.embedding_bag(
                    places_nk,
                    self.decoder.weight,
                    per_sample_weights=values_nk.to(self.decoder.weight),
                    mode="sum",
                )
                + self.b_dec
            )
        else:
            output_nd = self.decoder(self.encode(x_nd)) + self.b_dec
        if not self.config.level_gain:
            return output_nd
        gain_u1 = self.gain(
            get_timestep_embedding(
                time_u, LEVEL_FEATURES, flip_sin_to_cos=True, downscale_freq_shift=0
            )
        )
        return (output_nd.unflatten(0, (len(time_u), -1)) * gain_u1[:, None]).flatten(0, 1)
