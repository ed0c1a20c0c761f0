"""Sparse autoencoders (SAEs), trained by SAELens, as denoisers. PCA and Gaussians are in `mmlib.gaussian`."""

from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens import SAE, LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from mmlib.gaussian import clean_input
from mmlib.noise import Denoiser, Level
from mmlib.presets import SAESize
from mmlib.store import ActivationStore


def train_sae(batches: Iterator[Tensor], d: int, size: SAESize, *, seed: int, device: str = "cpu") -> SAE:
    """Train a TopK SAE (Gao et al. 2024) on clean standardised activations, the way people use SAEs.

    Args:
        batches: standardised activations, each (size.batch, d).
    Returns:
        The SAE in evaluation mode, on the CPU; `encode` gives latents (n, latents), `decode` activations (n, d).
    """
    torch.manual_seed(seed)
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d, d_sae=size.latents, k=size.k, device=device))
    config = SAETrainerConfig(
        total_training_samples=size.steps * size.batch, train_batch_size_samples=size.batch, lr=size.lr, lr_end=size.lr / 10, device=device,
        lr_warm_up_steps=size.steps // 20, lr_decay_steps=size.steps // 5,
        dead_feature_window=max(1, size.steps // 10),  # steps without firing before the auxiliary loss revives a latent
        logger=LoggingConfig(log_to_wandb=False))
    return SAETrainer(config, sae, batches).fit().eval().to("cpu")


def save_sae(sae: SAE, folder: Path, documents: str) -> None:
    """Write SAELens's inference format (cfg.json and safetensors), with the identity of the documents it was trained on."""
    sae.cfg.metadata.documents = documents
    sae.save_inference_model(folder)


def load_sae(folder: Path, store: ActivationStore) -> SAE:
    """Read what `save_sae` wrote.

    Raises:
        StoreError: it was trained on another store's documents.
    """
    sae = SAE.load_from_disk(folder, device="cpu").eval()
    store.check_documents(sae.cfg.metadata.documents, folder)
    return sae


@torch.inference_mode()
def sae_quality(sae: SAE, z_nd: Tensor) -> dict[str, float]:
    """How well an SAE reconstructs clean activations.

    Returns:
        fvu: fraction of variance unexplained, Σ‖z − ẑ‖² / Σ‖z‖² (the training mean of z is 0); l0: active latents per activation; dead: fraction of
        latents that fire on none of these activations; frequency: list, each latent's share of activations.
    """
    error, fired, active = 0.0, torch.zeros(sae.cfg.d_sae), 0.0
    for part_nd in z_nd.split(2048):
        latents = sae.encode(part_nd)
        error += (sae.decode(latents) - part_nd).double().square().sum().item()
        fired += (latents > 0).sum(0)
        active += (latents > 0).sum().item()
    return {"fvu": error / z_nd.double().square().sum().item(), "l0": active / len(z_nd), "dead": (fired == 0).double().mean().item(),
            "frequency": (fired / len(z_nd)).tolist()}


class SAEDenoiser:
    """An SAE's reconstruction taken as the clean estimate; `fed` as in `mmlib.gaussian.clean_input`."""

    def __init__(self, sae: SAE, fed: str):
        self.sae, self.fed = sae, fed
        self.parameters = sum(p.numel() for p in sae.parameters())

    @torch.inference_mode()
    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        return self.sae(clean_input(x_nd, sigma, self.fed))


class MixedDenoiser:
    """α ẑ + β x, with α and β fitted at each noise level: the charitable reading of a method that was not made to denoise.

    Args:
        inner: gives ẑ.
        levels: the noise levels at which it will be asked.
        z_nd: standardised activations of training documents to fit on.
        generator: draws the noise.
    """

    def __init__(self, inner: Denoiser, levels: list[Level], z_nd: Tensor, generator: torch.Generator):
        self.inner, self.parameters = inner, inner.parameters
        self.weights = {level.sigma: self._fit(level.sigma, z_nd, generator) for level in levels}

    def _fit(self, sigma: float, z_nd: Tensor, generator: torch.Generator) -> tuple[float, float]:
        x_nd = (1 - sigma) * z_nd + sigma * torch.randn(z_nd.shape, generator=generator)
        terms = torch.stack([self.inner(x_nd, sigma).flatten(), x_nd.flatten()], 1).double()
        return tuple(torch.linalg.lstsq(terms, z_nd.flatten()[:, None].double(), driver="gelsd").solution[:, 0].tolist())

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        if sigma not in self.weights:
            raise ValueError(f"no mix was fitted at σ = {sigma}: expected one of the {len(self.weights)} fitted levels")
        alpha, beta = self.weights[sigma]
        return alpha * self.inner(x_nd, sigma) + beta * x_nd
