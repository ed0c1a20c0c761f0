"""Sparse autoencoders (SAEs): trained by SAELens, saved and loaded in its format, and read as
denoisers (`SAEDenoiser`, `MixedDenoiser`).

SAELens is imported where it is used: that takes seconds, and without it everything but SAEs works.
PCA and Gaussians are in `mmlib.denoisers.gaussian`.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from mmlib.activations.store import ActivationStore
from mmlib.denoisers.gaussian import check_fit, clean_input
from mmlib.denoisers.noise import Denoiser, Level
from mmlib.files import CheckpointError, bf16_pays, read_sealed, write_sealed

if TYPE_CHECKING:
    from sae_lens import SAE


DIGESTS = "digests.json"  # of what `save_sae` wrote
APPLIED = ("constant_norm_rescale", "layer_norm")  # by SAELens, to what comes in and back


@dataclass(frozen=True)
class SAESize:
    """A sparse autoencoder, trained with SAELens on clean standardised activations."""

    latents: int
    k: int  # active latents per activation (L0): exactly ("topk"), on average ("batchtopk"), aimed at ("jumprelu")
    steps: int
    batch: int = 1024
    lr: float = 1e-3
    kind: str = "topk"  # or "batchtopk", "jumprelu"; see `SAE_KINDS`


def sae_lens():
    """SAELens.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import sae_lens as module
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("an SAE needs SAELens: pip install sae-lens") from error
    return module


def _topk(size: SAESize) -> dict:
    """The k largest latents of each activation (Gao et al. 2024)."""
    return {"k": size.k}


def _batchtopk(size: SAESize) -> dict:
    """The k·batch largest latents of a batch (Bussmann et al. 2024); saved with the running mean of
    the least of them as threshold.
    """
    # of that mean: SAELens's 0.01 would not forget the start within a few hundred steps
    rate = max(0.01, min(1.0, 20 / size.steps))
    return {"k": size.k, "topk_threshold_lr": rate}


def _jumprelu(size: SAESize) -> dict:
    """A learnt threshold for each latent (Rajamanoharan et al. 2024), with Gemma Scope 2's
    quadratic penalty around L0 = k.

    Thresholds begin where about k latents pass: from SAELens's 0.01 Adam would not bring them there
    within a few hundred steps.
    """
    # latents of standardised z start with a standard deviation of 0.1
    spread = 0.1 * NormalDist().inv_cdf(1 - size.k / size.latents)
    return {
        "jumprelu_sparsity_loss_mode": "quadratic",
        "target_l0": size.k,
        "jumprelu_ste_to_input": True,
        "jumprelu_init_threshold": max(0.01, spread),
        "l0_warm_up_steps": size.steps // 5,
    }


# settings for a size, by SAELens's names of the kinds
SAE_KINDS = {"topk": _topk, "batchtopk": _batchtopk, "jumprelu": _jumprelu}


def train_sae(
    batches: Iterator[Tensor], d: int, size: SAESize, *, seed: int, device: str = "cpu"
) -> "SAE":
    """Train an SAE on clean standardised activations, the way people use SAEs.

    Args:
        batches: standardised activations, each (size.batch, d).
    Returns:
        The SAE in evaluation mode, on the CPU; `encode` gives latents (n, latents), `decode`
        activations (n, d).
    Raises:
        ValueError: unknown kind.
    """
    if size.kind not in SAE_KINDS:
        known = ", ".join(SAE_KINDS)
        raise ValueError(f"unknown kind of SAE {size.kind!r}: expected one of {known}")
    lens = sae_lens()
    from sae_lens.config import SAETrainerConfig
    from sae_lens.registry import get_sae_training_class
    from sae_lens.training.sae_trainer import SAETrainer

    began = time.perf_counter()
    torch.manual_seed(seed)
    sae_class, config_class = get_sae_training_class(size.kind)
    settings = {"d_in": d, "d_sae": size.latents, "device": device, **SAE_KINDS[size.kind](size)}
    sae = sae_class(config_class(**settings))
    config = SAETrainerConfig(
        total_training_samples=size.steps * size.batch,
        train_batch_size_samples=size.batch,
        lr=size.lr,
        lr_end=size.lr / 10,
        device=device,
        lr_warm_up_steps=size.steps // 20,
        lr_decay_steps=size.steps // 5,
        # steps without firing before the auxiliary loss revives a latent
        dead_feature_window=max(1, size.steps // 10),
        autocast=bf16_pays(device),  # as the MLPs train
        logger=lens.LoggingConfig(log_to_wandb=False),
    )
    trained = SAETrainer(config, sae, batches).fit().eval().to("cpu")
    trained.cfg.metadata.train_seconds = time.perf_counter() - began
    trained.cfg.metadata.train_activations = size.steps * size.batch
    return _as_saved(trained) if size.kind == "batchtopk" else trained


def _as_saved(trained: "SAE") -> "SAE":
    """A BatchTopK SAE as SAELens saves it, with one threshold: in training what it makes of an
    activation depends on the rest of the batch.
    """
    with TemporaryDirectory() as folder:
        trained.save_inference_model(folder)
        return read_sae(Path(folder))


def save_sae(sae: "SAE", folder: Path, documents: str, activations: str = "") -> None:
    """Write SAELens's inference format (cfg.json and safetensors), with the identity of the
    documents it was trained on; last the digests, and the activations' `activations_id`.
    """
    (folder / DIGESTS).unlink(missing_ok=True)
    sae.cfg.metadata.documents = documents
    # one in training, or one that was loaded
    getattr(sae, "save_inference_model", sae.save_model)(folder)
    write_sealed(folder / DIGESTS, {"activations": activations}, sorted(folder.glob("*")))


def read_sae(folder: Path) -> "SAE":
    """What `save_sae` or SAELens wrote, whatever it was trained on, in float32.

    Raises:
        CheckpointError: it is damaged, or reads something else than outputs of blocks as they are;
            the message says what.
    """
    lens, ours = sae_lens(), (folder / DIGESTS).exists()
    if ours:
        read_sealed(folder / DIGESTS)
    try:
        sae = lens.SAE.load_from_disk(folder, device="cpu", dtype="float32").eval()
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no SAE that SAELens reads: {error!r}") from error
    if sae.cfg.metadata.documents is not None and not ours:
        read_sealed(folder / DIGESTS)  # it says what misses
    hook, normalised = sae.cfg.metadata.hook_name, sae.cfg.normalize_activations
    if hook is not None and not re.fullmatch(
        r"blocks\.\d+\.hook_resid_post|(\w+\.)*(layers|h)\.\d+", hook
    ):
        raise CheckpointError(
            f"{folder} is an SAE of {hook}: expected one of blocks.N.hook_resid_post, the output "
            "of a whole block, which is what activations are here"
        )
    if normalised not in ("none", *APPLIED):
        raise CheckpointError(
            f"{folder} expects activations normalised by {normalised!r}, which is not folded into "
            "its weights and which nothing here does: fold it in with SAELens; expected 'none', "
            f"or what SAELens itself applies: {', '.join(APPLIED)}"
        )
    return sae


def load_sae(folder: Path, store: ActivationStore) -> "SAE":
    """Read what `save_sae` wrote.

    Raises:
        StoreError: it was trained on another store's documents or activations.
    """
    sae = read_sae(folder)
    store.check_documents(sae.cfg.metadata.documents, folder)
    check_fit(read_sealed(folder / DIGESTS)["activations"], store, folder)
    return sae


class SAEDenoiser:
    """An SAE's reconstruction taken as the clean estimate; `fed` as in
    `mmlib.denoisers.gaussian.clean_input`.
    """

    def __init__(self, sae: "SAE", fed: str):
        self.sae, self.fed = sae, fed
        self.parameters = sum(p.numel() for p in sae.parameters())
        known = sae.cfg.metadata if hasattr(sae, "cfg") else None  # of SAELens, or another's
        self.train_seconds = known and known.train_seconds  # None: not known
        self.train_activations = known and known.train_activations

    @torch.inference_mode()
    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """The reconstruction of what stands in for z, (n, d)."""
        return self.sae(clean_input(x_nd, sigma, self.fed))


class MixedDenoiser:
    """α ẑ + β x, with α and β fitted at each noise level: the charitable reading of a method that
    was not made to denoise.

    Args:
        inner: gives ẑ.
        levels: the noise levels at which it will be asked.
        z_nd: standardised activations of training documents to fit on.
        generator: draws the noise.
        also: further denoisers whose estimates are added, each with a weight γ of its own: α ẑ + β
            x + Σ γ ẑ'. With the full Gaussian the mix is no worse than the best linear method on
            the tokens it was fitted to.
    """

    def __init__(
        self,
        inner: Denoiser,
        levels: list[Level],
        z_nd: Tensor,
        generator: torch.Generator,
        also: Sequence[Denoiser] = (),
    ):
        self.inner, self.also = inner, tuple(also)
        self.parameters = inner.parameters + sum(denoiser.parameters for denoiser in self.also)
        # a denoiser that fits nothing, or somebody else's, need not say what it cost
        seconds = [getattr(denoiser, "train_seconds", None) for denoiser in (inner, *self.also)]
        self.train_seconds = None if None in seconds else sum(seconds)
        self.train_activations = getattr(inner, "train_activations", None)
        self.weights = {level.sigma: self._fit(level.sigma, z_nd, generator) for level in levels}

    def _terms(self, x_nd: Tensor, sigma: float) -> list[Tensor]:
        return [self.inner(x_nd, sigma), x_nd, *(denoiser(x_nd, sigma) for denoiser in self.also)]

    def _fit(self, sigma: float, z_nd: Tensor, generator: torch.Generator) -> tuple[float, ...]:
        """Least squares by singular values, of terms scaled to one length; what differs between
        terms by float32 rounding alone gets no weight.
        """
        x_nd = (1 - sigma) * z_nd + sigma * torch.randn(z_nd.shape, generator=generator)
        terms = torch.stack([term.flatten() for term in self._terms(x_nd, sigma)], 1).double()
        length = terms.norm(dim=0)
        length[length == 0] = 1.0
        wanted = z_nd.flatten()[:, None].double()
        found = torch.linalg.lstsq(terms / length, wanted, rcond=1e-6, driver="gelsd")
        return tuple((found.solution[:, 0] / length).tolist())

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """The mix (n, d) at one of the fitted levels."""
        if sigma not in self.weights:
            raise ValueError(
                f"no mix was fitted at σ = {sigma}: expected one of the {len(self.weights)} fitted "
                "levels"
            )
        weighted = zip(self.weights[sigma], self._terms(x_nd, sigma))
        return sum(weight * term for weight, term in weighted)
