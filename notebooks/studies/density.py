"""The study of log-likelihoods along the probability-flow ODE (notebook 07): its sizes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DensitySize:
    """How many tokens, and how finely the ODE is solved."""

    tokens: int = 1000  # of the test documents
    tokens_unet: int = 0  # of these; 0: the UNet is left out, its ODE takes an hour on two cores
    steps: int = 24  # of Heun's method
    probes: int = 2  # of the trace
    tokens_check: int = 200  # of these, once more with half the steps


SIZES = {
    "smoke": DensitySize(tokens=60, steps=8, tokens_check=20),
    "quick": DensitySize(tokens=100, steps=12, tokens_check=20),
    "default": DensitySize(),
    "gpu": DensitySize(tokens=4000, tokens_unet=200, steps=32, probes=4, tokens_check=1000),
}
