"""The sizes of a run. Budgets are numbers of steps, never seconds: two runs of one preset give the same results.

Steps of the `default` preset were calibrated once on two CPU cores to the minutes stated beside them.
"""

from dataclasses import dataclass, replace

from mmlib.denoisers.mixture import MixtureSize
from mmlib.denoisers.networks import MLPSize, SparseSize, UNetSize
from mmlib.denoisers.sae import SAESize
from mmlib.training.recipe import Recipe
from mmlib.training.train import Training

PCA_K = 64  # components of the primary PCA methods, in every preset: the methods are named by it


PCA_KS = (16, 64, 256)  # all that are compared


@dataclass(frozen=True)
class DensitySize:
    """Log-likelihoods along the probability-flow ODE."""

    tokens: int = 1000  # of the test documents
    tokens_unet: int = 0  # of these; 0: the UNet is left out, its ODE takes an hour on two cores
    steps: int = 24  # of Heun's method
    probes: int = 2  # of the trace
    tokens_check: int = 200  # of these, once more with half the steps


@dataclass(frozen=True)
class TypicalitySize:
    """Tokens whose typicality is scored, and what is done to some of them; see notebook 13."""

    windows: int = 40  # of each set of texts
    length: int = 224  # tokens of each, read behind <bos>
    first: int = 32  # those before this position are context only
    positions: int = 30  # scored in each window, evenly spread from `first` on
    sigmas: tuple[float, ...] = (0.1, 0.3, 0.5)  # of the denoising loss, which is their mean
    draws: int = 2  # of the noise at each
    neighbours_among: int = 20_000  # training tokens
    sample_steps: int = 50
    weight_noise: tuple[float, ...] = (
        0.03,
        0.1,
    )  # added to the language model's matrices, over their own norm
    steering: tuple[float, ...] = (
        0.2,
        0.5,
    )  # length of the steering vector over √d, the length of a usual z
    noise: tuple[float, ...] = (0.1, 0.3, 1.0)  # isotropic, likewise
    noise_alike: tuple[float, ...] = (
        0.3,
        0.6,
    )  # with the covariance of activations, which the sum keeps
    likelihood_positions: int = (
        3  # of those scored in each window, the ones with a likelihood along the ODE
    )
    likelihood_steps: int = 16
    likelihood_probes: int = 2


@dataclass(frozen=True)
class ProbingSize:
    """One-unit probes of the meta-model's hidden units and of their opponents, and what clamping a unit does."""

    posts: int = 120  # of each newsgroup
    post_words: int = 40  # read of each
    window_tokens: int = 15_000  # of running text for tasks on its tokens, from validation and from test documents each
    held_out: float = (
        0.4  # share of posts, sentences and words; of running text, the test documents
    )
    per_class: int = 100  # examples of a class, to fit to and held out each, at most
    least: int = 20  # the same, at least, for a task to be asked
    candidates: int = 640  # units of the comparison at equal numbers, drawn at random
    draws: int = 5  # of those
    sigma: float = 0.1  # at which hidden units are read, the paper's
    sigmas: tuple[float, ...] = (0.03, 0.1, 0.3, 0.5)
    catalogue_tokens: int = 6000  # of test documents, on which units are described
    catalogue_random: int = 4  # units that are shown though no task chose them
    clamped: int = 25  # examples a task at which units are clamped
    controls: int = 10  # random units beside each
    controls_at_once: int = 2  # of these, at each example, in turns


@dataclass(frozen=True)
class SteeringSize:
    """Steered generation and what is measured of it."""

    concepts: tuple[tuple[str, int], ...] = (
        ("sentiment", 1),
    )  # a name that `concepts.concept` knows, and the sign
    strengths: tuple[float, ...] = (
        3.0,
        6.0,
        12.0,
    )  # in differences of class means, rising; chosen on validation prompts
    sigmas: tuple[float, ...] = (0.5,)  # of the repairs that add noise; the first is the paper's
    steps: int = 20  # of SDEdit by Euler, as in the paper
    steps_dpm: int = 5  # by DPM-Solver++
    prompts: int = 100
    prompt_tokens: int = 8
    tokens: int = 20  # of each continuation
    places: int = 2  # of each unsteered continuation, where the geometry of edits is measured
    judge_sigmas: tuple[float, ...] = (
        0.1,
        0.3,
        0.5,
        0.7,
        0.9,
    )  # of the diffusion loss before and after
    posts: int = 200  # of each class for the direction of a newsgroup
    batch: int = 100  # prompts that are continued together
    timed_batch: int = 32
    timed_rounds: int = 3


@dataclass(frozen=True)
class SteeringStudySize:
    """The study of steering (notebook 25): concepts, directions, strengths and σ; see `steering_study.combinations` for what is combined."""

    concepts: tuple[tuple[str, int], ...] = (
        ("sentiment", 1),
        ("sentiment", -1),
        ("sci.space", 1),
        ("rec.sport.hockey", 1),
    )
    strengths: tuple[float, ...] = (3.0, 6.0, 12.0, 18.0)  # in differences of class means, rising
    sigmas: tuple[float, ...] = (0.1, 0.3, 0.5)
    mixture_sdedit_sigmas: tuple[float, ...] = (
        0.5,
    )  # of SDEdit by the mixture, some of `sigmas`: nine times plain generation
    fraction_strengths: tuple[float, ...] = (3.0, 6.0, 12.0)  # of other concepts and directions
    fraction_sigmas: tuple[float, ...] = (0.3, 0.5)
    steps: int = 20  # of SDEdit by Euler
    prompts: int = 100
    prompt_tokens: int = 8
    tokens: int = 20  # of each continuation
    posts: int = 200  # of each class for the direction of a newsgroup
    text_tokens: int = 96  # read of each text for the directions
    shown: int = 3  # continuations of each run that are kept as text


@dataclass(frozen=True)
class RecipeStudySize:
    """The study of recipes (notebook 21): what is tried, and for how long. Lengths are multiples of the tuning's `steps`."""

    mlp: MLPSize = MLPSize(layers=3, d_model=640, d_mlp=1280)  # 11.5 million parameters at d = 640
    large: MLPSize = MLPSize()  # the published ratios: 44 million
    steps: int = 507  # of a batch of 512: half a pass
    batch: int = 512
    levels: int = 64  # shared noise levels in a batch
    seeds: int = 3
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)  # of every variant
    more_rates: int = 3  # at most, of every variant, while any has its best at the edge
    batches: tuple[int, ...] = (256, 1024)  # beside `batch`, for as many seconds
    long: float = 9.8  # of the published architecture at its best: six minutes
    long_factors: tuple[float, ...] = (
        0.25,
        0.5,
        1.0,
    )  # of its best rate, at that length: longer schedules want lower rates
    lengths: tuple[float, ...] = (
        4.5,
        6.0,
        8.0,
        10.0,
    )  # of our schedule, until all seeds come to where that one ends
    short_lengths: tuple[float, ...] = (
        0.5,
        0.75,
        1.0,
        1.5,
        2.0,
    )  # the same, until all come to `target`
    target: float = 1.30
    published: Training = Training(
        "flow_velocity",
        steps=490,
        batch=4096,
        lr=5e-5,
        warmup=0.01,
        final_lr=0.1,
        ema=0.0,
        beta2=0.999,
        weight_decay=0.01,
        stop_if_stuck=False,
    )  # 2 million activations
    large_length: float = 0.5
    large_factors: tuple[float, ...] = (
        1.0,
        0.5,
        0.25,
    )  # of the rate that is best at the smaller size
    unet_channels: tuple[tuple[int, int, int], ...] = (
        (32, 32, 64),
        (32, 64, 128),
        (64, 128, 256),
    )  # the middle one is the reference
    unet_batch: int = 32
    unet_steps: int = (
        240  # of the reference, a minute; other sizes and layouts take the steps that last as long
    )
    unet_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    unet_heights: tuple[int, ...] = (8, 40)  # of the image, beside that of `denoisers.image_shape`
    permutations: int = 3  # of the dimensions
    speed_steps: int = 24  # that a speed is measured on
    tokens: int = 200  # validation tokens at each noise level
    tokens_unet: int = 40
    validation_rows: int = (
        256  # of the losses during training: the smallest batch, see `studies.Study`
    )


@dataclass(frozen=True)
class Preset:
    """Everything that sets the size of a run; see `PRESETS` for the values."""

    name: str
    sae: SAESize
    recipes: dict[str, Recipe]  # see `_recipes`
    sae_grid: dict[
        str, SAESize
    ]  # further SAEs of other sizes, sparsities and kinds, all with one smaller budget
    mixture: MixtureSize = MixtureSize()
    density: DensitySize = DensitySize()
    typicality: TypicalitySize = TypicalitySize()
    probing: ProbingSize = ProbingSize()
    steering: SteeringSize = SteeringSize()
    steering_study: SteeringStudySize = SteeringStudySize()
    model: str = "gemma3-270m"
    corpus: str = "wikipedia"
    layer: int | None = None  # block index from 0; None: the middle block, L/2 − 1
    dtype: str | None = (
        None  # of the language model, and so of the stored activations; None: bfloat16 where the device computes in it
    )
    window: int = 256  # tokens of a document that are read together, the opening <bos> included
    batch_tokens: int = 4096  # positions in one forward pass of the language model
    documents: int = 2000  # read at most so many of the corpus; a streamed one may have no end
    sampled_documents: int = 200  # samples of one window each that make up the corpus "self"
    document_tokens: int | None = None  # read only so many tokens of each document
    validation_documents: int = 8
    test_documents: int = 20
    split_seed: int = 0  # apart from `seed`, so that training seeds share their documents
    eval_tokens: int = 100  # test tokens at each of the 100 noise levels, fresh ones at each; notebook 24 measures on more
    mix_tokens: int = 1000  # training tokens per level on which the per-level mixes are fitted
    gap_tokens: int = 100  # at each noise level, of training and of validation documents each, for the gap between them
    quality_tokens: int = 16_384  # validation tokens, where there are more, on which SAEs' errors and sparsity are measured
    paired_latents: int = (
        500  # the SAE's most frequent ones, whose pairs are tested for independence
    )
    samples: int = 5000  # drawn from each generative model
    sample_steps: int = 50
    samples_unet: int = 128  # all methods are also compared at this number, in the top components
    components_unet: int = 16
    lm_loss_tokens: int = 5100  # test tokens that the language model reads under each replacement: about a window of each document
    lm_loss_tokens_unet: int = 2000  # of these, the tokens that the slow UNet denoises too
    lm_loss_sigmas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    lm_loss_sigmas_unet: tuple[float, ...] = (0.3, 0.5)
    lm_loss_components: tuple[int, ...] = (16, 64, 128, 256, 512)  # k of PCA-k
    study_tokens: int = 300  # test tokens at each noise level for a cell of a study
    study_tokens_mixture: int = (
        100  # of these, the tokens that a mixture of Gaussians sees, which is slow
    )
    scaling_widths: tuple[int, ...] = (
        80,
        160,
        320,
        640,
        1280,
    )  # d_model of the MLPs: 0.25 to 44 million parameters at d = 640
    scaling_budgets: tuple[tuple[int, int], ...] = (
        (127, 256),
        (254, 256),
        (254, 512),
        (507, 512),
        (1014, 512),
    )  # (steps, batch), up to one pass
    scaling_levels: int = 64  # noise levels in each of those batches
    shift_cell: Recipe = (
        Recipe(  # of the robustness study: 11.5 million parameters at d = 640, one pass, a minute
            MLPSize(layers=3, d_model=640, d_mlp=1280),
            Training(
                "flow_velocity",
                steps=1014,
                batch=512,
                lr=2e-3,
                ema=0.99,
                weight_decay=0.05,
                levels=64,
                validate_every=1020,
                save_every=1020,
            ),
        )
    )
    shift_corpora: tuple[tuple[str, int, int], ...] = (
        ("newsgroups", 400, 256),
        ("self", 40, 255),
    )  # (name, documents, tokens of each at most)
    replicated: tuple[str, ...] = (
        "gated_mlp",
        "mlp",
        "unet",
    )  # networks of the primary definitions that are trained again, in this order
    replicate_sae: bool = True  # the main SAE too
    replication_seeds: tuple[int, ...] = (1, 2)  # with these seeds beside the run's own
    replication_tokens: int = 1000  # test tokens at each noise level
    replication_tokens_slow: int = (
        200  # of these, the tokens that the UNet, and the SAE it is compared with, see
    )
    recipe_study: RecipeStudySize = RecipeStudySize()

    @property
    def trainable(self) -> dict[str, Recipe]:
        """What `mmlib.training.train` trains by name: the recipes of the main line, and "published", the paper's MLP of the recipe study by the paper's settings."""
        return {
            **self.recipes,
            "published": Recipe(self.recipe_study.mlp, self.recipe_study.published),
        }


MATCHED_WIDTHS = {
    "mlp_2m": 292,
    "mlp_5m": 432,
}  # at d = 640 as many parameters as the `default` preset's UNet, and as its SAEs


def _recipes(
    unet: UNetSize,
    unet_training: Training,
    mlp: MLPSize,
    mlp_training: Training,
    gated: MLPSize,
    gated_training: Training,
    sparse: SparseSize,
    sparse_training: Training,
    matched_training: Training,
) -> dict[str, Recipe]:
    """The networks of a preset: the article's UNet, the paper's MLP, ours of about that size, an SAE trained to denoise; and of the paper's kind
    two with other networks' numbers of parameters, and one with a whole schedule of as many activations as the UNet sees."""
    short = replace(
        mlp_training,
        steps=round(unet_training.steps * unet_training.batch / mlp_training.batch),
        warmup=0.1,
        keep=(),
    )
    return {
        "unet": Recipe(unet, unet_training),
        "mlp": Recipe(mlp, mlp_training),
        "gated_mlp": Recipe(gated, gated_training),
        "denoising_sae": Recipe(sparse, sparse_training, linear_skip=True),
        "mlp_short": Recipe(mlp, short),
        **{
            name: Recipe(MLPSize(d_model=m, d_mlp=2 * m), matched_training)
            for name, m in MATCHED_WIDTHS.items()
        },
    }


def _sae_grid(latents: int, k: int, steps: int, batch: int) -> dict[str, SAESize]:
    """SAEs around one size and sparsity: half and double of each, and the same in the other kinds."""
    sizes = [
        SAESize(m, l0, steps, batch)
        for m, l0 in (
            (latents // 2, k),
            (latents, k // 2),
            (latents, k),
            (latents, 2 * k),
            (2 * latents, k),
        )
    ]
    sizes += [SAESize(latents, k, steps, batch, kind=kind) for kind in ("batchtopk", "jumprelu")]
    return {f"{size.kind}_{size.latents}_k{size.k}": size for size in sizes}


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="smoke",  # every line of code in about a minute a notebook; its numbers mean nothing
            documents=200,
            sampled_documents=40,
            document_tokens=192,
            sae=SAESize(latents=1024, k=32, steps=30, batch=512),
            sae_grid={
                "topk_256_k16": SAESize(256, 16, steps=10, batch=256),
                "jumprelu_256_k16": SAESize(256, 16, steps=10, batch=256, kind="jumprelu"),
            },
            mixture=MixtureSize(
                components=(2, 4), priors=(128.0, 512.0), em_steps=1, validation_tokens=500
            ),
            density=DensitySize(tokens=60, steps=8, tokens_check=20),
            typicality=TypicalitySize(
                windows=8,
                length=96,
                positions=4,
                sigmas=(0.1, 0.5),
                draws=1,
                neighbours_among=500,
                sample_steps=5,
                weight_noise=(0.1,),
                likelihood_positions=1,
                likelihood_steps=4,
                likelihood_probes=1,
            ),
            probing=ProbingSize(
                posts=16,
                post_words=12,
                window_tokens=1200,
                per_class=10,
                least=8,
                candidates=100,
                draws=1,
                sigmas=(0.1,),
                catalogue_tokens=500,
                catalogue_random=1,
                clamped=1,
                controls=1,
                controls_at_once=1,
            ),
            steering=SteeringSize(
                strengths=(1.0, 3.0),
                steps=3,
                steps_dpm=2,
                prompts=6,
                tokens=4,
                places=2,
                judge_sigmas=(0.5,),
                batch=6,
                timed_batch=4,
                timed_rounds=1,
            ),
            steering_study=SteeringStudySize(
                concepts=(("sentiment", 1), ("sci.space", 1)),
                strengths=(1.0, 3.0),
                sigmas=(0.5,),
                fraction_strengths=(3.0,),
                fraction_sigmas=(0.5,),
                steps=2,
                prompts=6,
                tokens=3,
                posts=30,
                text_tokens=24,
                shown=1,
            ),
            recipes=_recipes(
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
                MLPSize(layers=1, d_model=256, d_mlp=1024, gated_skip=True),
                Training(
                    "flow_velocity",
                    steps=60,
                    batch=256,
                    lr=2e-3,
                    ema=0.9,
                    levels=64,
                    density="logit_normal",
                    decay="late",
                    validate_every=30,
                    keep=(("unet_seconds", 30),),
                ),
                SparseSize(latents=256, k=16, level_gain=True),
                Training("flow_velocity", steps=20, batch=256, lr=1e-3, ema=0.9, validate_every=10),
                Training("flow_velocity", steps=20, batch=256, lr=4e-3, ema=0.9, validate_every=10),
            ),
            eval_tokens=40,
            mix_tokens=100,
            gap_tokens=20,
            replication_tokens=80,
            replication_tokens_slow=20,
            samples=700,
            sample_steps=10,
            samples_unet=64,
            components_unet=8,
            study_tokens=50,
            study_tokens_mixture=25,
            scaling_widths=(8, 16, 32, 64, 128),
            scaling_budgets=((4, 128), (8, 128), (12, 256), (24, 256)),
            scaling_levels=32,
            recipe_study=RecipeStudySize(
                mlp=MLPSize(layers=1, d_model=32, d_mlp=64),
                large=MLPSize(layers=1, d_model=64, d_mlp=128),
                steps=8,
                batch=64,
                levels=16,
                seeds=2,
                rates=(2e-3, 4e-3, 8e-3),
                more_rates=1,
                batches=(32,),
                lengths=(1.0, 2.0),
                short_lengths=(0.5, 1.0),
                published=Training(
                    "flow_velocity",
                    steps=4,
                    batch=128,
                    lr=5e-5,
                    warmup=0.01,
                    final_lr=0.1,
                    ema=0.0,
                    beta2=0.999,
                    weight_decay=0.01,
                    stop_if_stuck=False,
                ),
                unet_channels=((32, 32, 32), (32, 32, 64)),
                unet_batch=8,
                unet_steps=2,
                unet_rates=(1e-3, 2e-3),
                unet_heights=(4,),
                permutations=2,
                speed_steps=4,
                tokens=10,
                tokens_unet=1,
                validation_rows=32,
            ),
            shift_corpora=(("self", 40, 16),),
            shift_cell=Recipe(
                MLPSize(layers=1, d_model=64, d_mlp=128),
                Training(
                    "flow_velocity",
                    steps=20,
                    batch=256,
                    lr=2e-3,
                    ema=0.9,
                    levels=64,
                    validate_every=30,
                    save_every=30,
                ),
            ),
            lm_loss_tokens=1300,
            lm_loss_tokens_unet=1100,
            lm_loss_sigmas=(0.5,),
            lm_loss_sigmas_unet=(0.5,),
            lm_loss_components=(64, 512),
        ),
        Preset(
            name="default",
            sae=SAESize(latents=4096, k=64, steps=1500),  # 5 minutes
            sae_grid=_sae_grid(latents=4096, k=64, steps=240, batch=256),  # 2 minutes in all
            recipes=_recipes(
                UNetSize(channels=(32, 64, 128), layers_per_block=1),
                Training(
                    "ddpm_epsilon", steps=800, batch=32, lr=1e-3, ema=0.995, bf16=False
                ),  # 5 minutes
                MLPSize(),
                Training(
                    "flow_velocity",
                    steps=800,
                    batch=512,
                    lr=2e-3,
                    ema=0.99,
                    weight_decay=0.05,  # 5 minutes
                    keep=(("unet_activations", 50),),
                ),
                MLPSize(layers=2, d_mlp=3840, gated_skip=True),
                Training(
                    "flow_velocity",
                    steps=1200,
                    batch=1024,
                    lr=1e-3,
                    ema=0.995,
                    weight_decay=0.05,
                    levels=64,
                    density="logit_normal",  # 12 minutes
                    decay="late",
                    keep=(("unet_seconds", 500),),
                ),
                SparseSize(latents=4096, k=64, level_gain=True),
                Training("flow_velocity", steps=3000, batch=1024, lr=3e-3, ema=0.995),  # 5 minutes
                Training(
                    "flow_velocity", steps=1014, batch=512, lr=4e-3, ema=0.99, weight_decay=0.05
                ),
            ),  # one pass: a minute or two together
        ),
        Preset(
            name="gpu",  # the article's full-size UNet, longer budgets; any CUDA device of 16 GB
            documents=100_000,
            batch_tokens=16_384,
            sae=SAESize(latents=8192, k=64, steps=8000, batch=4096),
            sae_grid=_sae_grid(latents=8192, k=64, steps=2000, batch=4096),
            mixture=MixtureSize(components=(64, 128, 256)),
            density=DensitySize(
                tokens=4000, tokens_unet=200, steps=32, probes=4, tokens_check=1000
            ),
            steering=SteeringSize(
                concepts=(
                    ("sentiment", 1),
                    ("sentiment", -1),
                    ("sci.space", 1),
                    ("rec.sport.hockey", 1),
                ),
                sigmas=(0.5, 0.3, 0.7),
                prompts=400,
            ),
            steering_study=SteeringStudySize(prompts=200, mixture_sdedit_sigmas=(0.1, 0.3, 0.5)),
            recipes=_recipes(
                UNetSize(),
                Training("ddpm_epsilon", steps=8000, batch=256, lr=3e-4, ema=0.999),
                MLPSize(),
                Training(
                    "flow_velocity",
                    steps=8000,
                    batch=4096,
                    lr=1e-3,
                    ema=0.999,
                    keep=(("unet_activations", 500),),
                ),
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
                SparseSize(latents=8192, k=64, level_gain=True),
                Training("flow_velocity", steps=8000, batch=4096, lr=3e-3, ema=0.999),
                Training(
                    "flow_velocity", steps=8000, batch=4096, lr=2e-3, ema=0.999, weight_decay=0.05
                ),
            ),
            eval_tokens=4000,
            mix_tokens=4000,
            gap_tokens=1000,
            quality_tokens=100_000,
            replication_tokens=4000,
            replication_tokens_slow=4000,
            samples=20_000,
            sample_steps=100,
            samples_unet=5000,
            components_unet=64,
            lm_loss_tokens=50_000,
            lm_loss_tokens_unet=50_000,
            lm_loss_sigmas_unet=(0.1, 0.3, 0.5, 0.7),
        ),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ValueError: no preset has it; the message lists those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
