"""The sizes of a run: what the main line and several studies share. Budgets are numbers of steps,
never seconds: two runs of one preset give the same results. What one study alone uses stands beside
it in notebooks/studies, as `SIZES` by the preset's name.

Steps of the `default` preset were calibrated once on two CPU cores to the minutes stated beside
them.
"""

from dataclasses import dataclass, replace

from mmlib.denoisers.mixture import MixtureSize
from mmlib.denoisers.networks import MLPSize, SparseSize, UNetSize
from mmlib.denoisers.residual import ResidualSize
from mmlib.denoisers.sae import SAESize
from mmlib.training.recipe import Recipe, Training

PCA_K = 64  # components of the primary PCA methods, in every preset: the methods are named by it
PCA_KS = (16, 64, 256)  # all that are compared


# The paper's MLP at a small size, trained by the paper's own settings.
PUBLISHED = Recipe(
    MLPSize(layers=3, d_model=640, d_mlp=1280),  # 11.5 million parameters at d = 640
    Training(
        "flow_velocity",
        steps=490,  # 2 million activations
        batch=4096,
        lr=5e-5,
        warmup=0.01,
        final_lr=0.1,
        ema=0.0,
        beta2=0.999,
        weight_decay=0.01,
        stop_if_stuck=False,
    ),
)


@dataclass(frozen=True)
class Preset:
    """Everything that sets the size of a run; see `PRESETS` for the values."""

    name: str

    # What is fitted
    sae: SAESize
    sae_grid: dict[str, SAESize]  # further sizes, sparsities and kinds, all with one smaller budget
    recipes: dict[str, Recipe]  # of the main line's networks, see `_recipes`
    studied: dict[str, Recipe]  # of networks that studies train
    published: Recipe = PUBLISHED
    mixture: MixtureSize = MixtureSize(components=(256, 512), priors=(128.0,), em_steps=0)
    mixtures: int = 4  # like it, from other starts, of which the average is taken

    # Text and activations
    model: str = "gemma3-270m"
    corpus: str = "wikipedia"
    layer: int | None = None  # block index from 0; None: the middle block, L/2 − 1
    # Of the language model, and so of the stored activations; None: bfloat16 where the device
    # computes in it.
    dtype: str | None = None
    window: int = 256  # tokens of a document that are read together, the opening <bos> included
    batch_tokens: int = 4096  # positions in one forward pass of the language model
    documents: int = 2000  # read at most so many of the corpus; a streamed one may have no end
    document_tokens: int | None = None  # read only so many tokens of each document
    sampled_documents: int = 200  # samples of one window each that make up the corpus "self"
    validation_documents: int = 8
    test_documents: int = 20
    split_seed: int = 0  # apart from `seed`, so that training seeds share their documents

    # What is measured
    eval_tokens: int = 100  # test tokens at each of the 100 noise levels, fresh ones at each
    mix_tokens: int = 1000  # training tokens per level on which the per-level mixes are fitted
    # Validation tokens, where there are more, on which SAEs' errors and sparsity are measured.
    quality_tokens: int = 16_384

    @property
    def trainable(self) -> dict[str, Recipe]:
        """What `mmlib.training.train` trains by name: the recipes of the main line, of studies, and
        "published".
        """
        return {**self.studied, **self.recipes, "published": self.published}


OURS = "mixture_mlp"  # the recipe that applications use


def _recipes(
    *, unet: Recipe, mlp: Recipe, mixture_mlp: Recipe, denoising_sae: Recipe
) -> dict[str, Recipe]:
    """The networks of a preset: the article's UNet, the paper's MLP, ours, an SAE trained to
    denoise; and of the paper's kind one with a whole schedule of as many activations as the UNet
    sees.
    """
    seen = unet.training.steps * unet.training.batch
    short = replace(
        mlp.training,
        steps=round(seen / mlp.training.batch),
        warmup=0.1,
        keep=(),
    )
    return {
        "unet": unet,
        "mlp": mlp,
        OURS: mixture_mlp,
        "denoising_sae": denoising_sae,
        "mlp_short": Recipe(mlp.size, short),
    }


_MIXTURE_MLP = Recipe(  # 5 minutes, of which 2 for the mixtures
    ResidualSize(components=512, folds=4, layers=3, d_model=640, d_mlp=1280),
    Training(
        "flow_velocity",
        steps=250,
        batch=2048,
        lr=1e-3,
        ema=0.99,
        weight_decay=0.05,
        levels=64,
        density="logit_normal",
        decay="late",
        validate_every=50,
        save_every=50,
    ),
)


def _sae_grid(latents: int, k: int, steps: int, batch: int) -> dict[str, SAESize]:
    """SAEs around one size and sparsity: half and double of each, and the same in the other
    kinds.
    """
    around = (
        (latents // 2, k),
        (latents, k // 2),
        (latents, k),
        (latents, 2 * k),
        (2 * latents, k),
    )
    sizes = [SAESize(m, l0, steps, batch) for m, l0 in around]
    sizes += [SAESize(latents, k, steps, batch, kind=kind) for kind in ("batchtopk", "jumprelu")]
    return {f"{size.kind}_{size.latents}_k{size.k}": size for size in sizes}


_SMOKE_GATES = Training(  # of ours and of the gated MLP
    "flow_velocity",
    steps=60,
    batch=256,
    lr=2e-3,
    ema=0.9,
    levels=64,
    density="logit_normal",
    decay="late",
    validate_every=30,
)

SMOKE = Preset(  # every line of code in about a minute a notebook; its numbers mean nothing
    name="smoke",
    documents=200,
    sampled_documents=40,
    document_tokens=192,
    sae=SAESize(latents=1024, k=32, steps=30, batch=512),
    sae_grid={
        "topk_256_k16": SAESize(256, 16, steps=10, batch=256),
        "jumprelu_256_k16": SAESize(256, 16, steps=10, batch=256, kind="jumprelu"),
    },
    mixture=MixtureSize(
        components=(2, 4),
        priors=(128.0, 512.0),
        em_steps=1,
        validation_tokens=500,
    ),
    recipes=_recipes(
        unet=Recipe(
            UNetSize(channels=(32, 32, 32), layers_per_block=1),
            Training(
                "ddpm_epsilon",
                steps=12,
                batch=32,
                lr=1e-3,
                ema=0.8,
                bf16=False,
                log_every=2,
                validate_every=6,
            ),
        ),
        mlp=Recipe(
            MLPSize(layers=2, d_model=256, d_mlp=512),
            Training(
                "flow_velocity",
                steps=30,
                batch=256,
                lr=2e-3,
                ema=0.9,
                validate_every=10,
                keep=(("unet_activations", 2),),
            ),
        ),
        mixture_mlp=Recipe(
            ResidualSize(components=4, folds=2, layers=1, d_model=64, d_mlp=256),
            _SMOKE_GATES,
        ),
        denoising_sae=Recipe(
            SparseSize(latents=256, k=16, level_gain=True),
            Training("flow_velocity", steps=20, batch=256, lr=1e-3, ema=0.9, validate_every=10),
            linear_skip=True,
        ),
    ),
    studied={
        "gated_mlp": Recipe(
            MLPSize(layers=1, d_model=256, d_mlp=1024, gated_skip=True),
            _SMOKE_GATES,
        ),
    },
    published=Recipe(
        MLPSize(layers=1, d_model=32, d_mlp=64),
        replace(PUBLISHED.training, steps=4, batch=128),
    ),
    eval_tokens=40,
    mix_tokens=100,
)

QUICK = Preset(  # of the main line: some minutes, with wide intervals
    name="quick",
    document_tokens=1000,
    sae=SAESize(latents=2048, k=64, steps=200),
    sae_grid={
        "topk_1024_k64": SAESize(1024, 64, steps=80, batch=256),
        "batchtopk_2048_k64": SAESize(2048, 64, steps=80, batch=256, kind="batchtopk"),
    },
    mixture=MixtureSize(components=(32, 64), priors=(128.0,), em_steps=0, validation_tokens=2000),
    recipes=_recipes(
        unet=Recipe(
            UNetSize(channels=(32, 64, 128), layers_per_block=1),
            Training("ddpm_epsilon", steps=40, batch=32, lr=1e-3, ema=0.9, bf16=False),
        ),
        mlp=Recipe(
            MLPSize(layers=2, d_model=640, d_mlp=1280),
            Training(
                "flow_velocity",
                steps=200,
                batch=256,
                lr=2e-3,
                ema=0.98,
                weight_decay=0.05,
                keep=(("unet_activations", 5),),
            ),
        ),
        mixture_mlp=replace(
            _MIXTURE_MLP,
            size=ResidualSize(components=64, layers=2, d_model=320, d_mlp=640),
            training=replace(_MIXTURE_MLP.training, steps=60, batch=1024, validate_every=20),
        ),
        denoising_sae=Recipe(
            SparseSize(latents=2048, k=64, level_gain=True),
            Training("flow_velocity", steps=300, batch=512, lr=3e-3, ema=0.98),
            linear_skip=True,
        ),
    ),
    studied={},
    eval_tokens=40,
    mix_tokens=400,
    quality_tokens=4000,
)

DEFAULT = Preset(
    name="default",
    sae=SAESize(latents=4096, k=64, steps=1500),  # 5 minutes
    sae_grid=_sae_grid(latents=4096, k=64, steps=240, batch=256),  # 2 minutes in all
    recipes=_recipes(
        unet=Recipe(  # 5 minutes
            UNetSize(channels=(32, 64, 128), layers_per_block=1),
            Training("ddpm_epsilon", steps=800, batch=32, lr=1e-3, ema=0.995, bf16=False),
        ),
        mlp=Recipe(  # 5 minutes
            MLPSize(),
            Training(
                "flow_velocity",
                steps=800,
                batch=512,
                lr=2e-3,
                ema=0.99,
                weight_decay=0.05,
                keep=(("unet_activations", 50),),
            ),
        ),
        mixture_mlp=_MIXTURE_MLP,
        denoising_sae=Recipe(  # 5 minutes
            SparseSize(latents=4096, k=64, level_gain=True),
            Training("flow_velocity", steps=3000, batch=1024, lr=3e-3, ema=0.995),
            linear_skip=True,
        ),
    ),
    studied={
        "gated_mlp": Recipe(  # 12 minutes
            MLPSize(layers=2, d_mlp=3840, gated_skip=True),
            Training(
                "flow_velocity",
                steps=1200,
                batch=1024,
                lr=1e-3,
                ema=0.995,
                weight_decay=0.05,
                levels=64,
                density="logit_normal",
                decay="late",
                keep=(("unet_seconds", 500),),
            ),
        ),
    },
)

GPU = Preset(  # the article's full-size UNet, longer budgets; any CUDA device of 16 GB
    name="gpu",
    documents=100_000,
    batch_tokens=16_384,
    sae=SAESize(latents=8192, k=64, steps=8000, batch=4096),
    sae_grid=_sae_grid(latents=8192, k=64, steps=2000, batch=4096),
    mixture=MixtureSize(components=(64, 128, 256)),
    recipes=_recipes(
        unet=Recipe(
            UNetSize(),
            Training("ddpm_epsilon", steps=8000, batch=256, lr=3e-4, ema=0.999),
        ),
        mlp=Recipe(
            MLPSize(),
            Training(
                "flow_velocity",
                steps=8000,
                batch=4096,
                lr=1e-3,
                ema=0.999,
                keep=(("unet_activations", 500),),
            ),
        ),
        mixture_mlp=Recipe(
            ResidualSize(components=512, folds=4),
            Training(
                "flow_velocity",
                steps=8000,
                batch=4096,
                lr=1e-3,
                ema=0.999,
                levels=256,
                density="logit_normal",
                decay="late",
            ),
        ),
        denoising_sae=Recipe(
            SparseSize(latents=8192, k=64, level_gain=True),
            Training("flow_velocity", steps=8000, batch=4096, lr=3e-3, ema=0.999),
            linear_skip=True,
        ),
    ),
    studied={
        "gated_mlp": Recipe(
            MLPSize(layers=2, d_mlp=3840, gated_skip=True),
            Training(
                "flow_velocity",
                steps=8000,
                batch=4096,
                lr=1e-3,
                ema=0.999,
                levels=256,
                density="logit_normal",
                decay="late",
                keep=(("unet_seconds", 4000),),
            ),
        ),
    },
    eval_tokens=4000,
    mix_tokens=4000,
    quality_tokens=100_000,
)

PRESETS = {preset.name: preset for preset in (SMOKE, QUICK, DEFAULT, GPU)}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: no preset has it; the message lists those there are.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
