"""What the study of recipes tries, and for how long."""

from dataclasses import dataclass

from mmlib.denoisers.networks import MLPSize


@dataclass(frozen=True)
class RecipeStudySize:
    """Lengths are multiples of the tuning's `steps`; the paper's own settings are the preset's
    `published`.
    """

    mlp: MLPSize = MLPSize(layers=3, d_model=640, d_mlp=1280)  # 11.5 million parameters at d = 640
    large: MLPSize = MLPSize()  # the published ratios of widths: 44 million
    steps: int = 507  # of a batch of 512: half a pass
    batch: int = 512
    levels: int = 64  # shared noise levels in a batch
    seeds: int = 3
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3)  # of every variant
    more_rates: int = 3  # at most, of every variant, while any has its best at the edge
    batches: tuple[int, ...] = (256, 1024)  # beside `batch`, for as many seconds
    # The published architecture at its best, six minutes; longer schedules want lower rates, so
    # factors of its best rate are tried at that length.
    long: float = 9.8
    long_factors: tuple[float, ...] = (0.25, 0.5, 1.0)
    # Our schedule until all seeds come to where that one ends, and until all come to `target`.
    lengths: tuple[float, ...] = (4.5, 6.0, 8.0, 10.0)
    short_lengths: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0)
    target: float = 1.30
    large_length: float = 0.5
    large_factors: tuple[float, ...] = (1.0, 0.5, 0.25)  # of the best rate at the smaller size
    # UNets; the middle one is the reference, and others take the steps that last as long as its.
    unet_channels: tuple[tuple[int, int, int], ...] = ((32, 32, 64), (32, 64, 128), (64, 128, 256))
    unet_batch: int = 32
    unet_steps: int = 240  # of the reference, a minute
    unet_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    unet_heights: tuple[int, ...] = (8, 40)  # of the image, beside that of `networks.image_shape`
    permutations: int = 3  # of the dimensions
    speed_steps: int = 24  # that a speed is measured on
    tokens: int = 200  # validation tokens at each noise level
    tokens_unet: int = 40
    validation_rows: int = 256  # of the losses during training: the smallest batch


SIZES = {
    "smoke": RecipeStudySize(
        mlp=MLPSize(layers=1, d_model=32, d_mlp=64),
        large=MLPSize(layers=1, d_model=64, d_mlp=128),
        steps=8,
        batch=64,
        levels=16,
        seeds=2,
        more_rates=1,
        batches=(32,),
        lengths=(1.0, 2.0),
        short_lengths=(0.5, 1.0),
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
    "default": RecipeStudySize(),
    "gpu": RecipeStudySize(),
}
