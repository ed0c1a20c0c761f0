"""Notebook 02: how well SAEs reconstruct, which of their latents fire, and draws without features."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmlib.denoisers.gaussian import GaussianDenoiser

if TYPE_CHECKING:
    from sae_lens import SAE


@torch.inference_mode()
def sae_quality(sae: "SAE", z_nd: Tensor) -> dict[str, float]:
    """How well an SAE reconstructs clean activations.

    Returns:
        fvu: fraction of variance unexplained, Σ‖z − ẑ‖² / Σ‖z‖² (the training mean of z is 0); l0:
            active latents per activation; dead: fraction of latents that fire on none of these
            activations; frequency: list, each latent's share of activations.
    """
    error, fired = 0.0, torch.zeros(sae.cfg.d_sae)
    for part_nd in z_nd.split(2048):
        latents = sae.encode(part_nd)
        error += (sae.decode(latents) - part_nd).double().square().sum().item()
        fired += (latents > 0).sum(0)
    return {
        "fvu": error / z_nd.double().square().sum().item(),
        "l0": fired.double().sum().item() / len(z_nd),
        "dead": (fired == 0).double().mean().item(),
        "frequency": (fired / len(z_nd)).tolist(),
    }


@torch.inference_mode()
def frequent_firing(sae: "SAE", z_nd: Tensor, count: int) -> Tensor:
    """Whether the SAE's most frequent latents fire, (n, count), most frequent first; fewer where
    fewer fire somewhere and not everywhere.
    """
    firing_nm = torch.cat([sae.encode(part_nd) > 0 for part_nd in z_nd.split(2048)])
    tokens_m = firing_nm.sum(0)
    tokens_m[tokens_m == len(z_nd)] = 0
    return firing_nm[:, tokens_m.topk(min(count, int((tokens_m > 0).sum()))).indices]


def drawn_batches(gaussian: GaussianDenoiser, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless draws from a Gaussian, each (batch, d): what
    `train_sae` takes for activations that
    are known to have no features.
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield gaussian.sample(batch, generator)
