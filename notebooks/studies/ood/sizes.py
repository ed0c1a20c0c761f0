"""How much text is scored by the studies of unusual activations, and what is done to some of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TypicalitySize:
    """Tokens whose typicality is scored; see notebook 13."""

    windows: int = 40  # of each set of texts
    length: int = 224  # tokens of each, read behind <bos>
    first: int = 32  # those before this position are context only
    positions: int = 30  # scored in each window, evenly spread from `first` on
    sigmas: tuple[float, ...] = (0.1, 0.3, 0.5)  # of the denoising loss, which is their mean
    draws: int = 2  # of the noise at each
    neighbours_among: int = 20_000  # training tokens
    sample_steps: int = 50
    weight_noise: tuple[float, ...] = (0.03, 0.1)  # on the model's matrices, over their own norm
    steering: tuple[float, ...] = (0.2, 0.5)  # length of the vector over √d, that of a usual z
    noise: tuple[float, ...] = (0.1, 0.3, 1.0)  # isotropic, likewise
    noise_alike: tuple[float, ...] = (0.3, 0.6)  # of activations' covariance, which the sum keeps
    likelihood_positions: int = 3  # of those scored in a window, with a likelihood along the ODE
    likelihood_steps: int = 16
    likelihood_probes: int = 2


SIZES = {
    "smoke": TypicalitySize(
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
    "default": TypicalitySize(),
    "gpu": TypicalitySize(),
}
