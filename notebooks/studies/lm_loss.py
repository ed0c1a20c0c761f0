"""The study of what replacing activations costs the language model (notebook 08): its sizes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LMLossSize:
    """What the language model reads under each replacement."""

    tokens: int = 5100  # test tokens: about a window of each document
    tokens_unet: int = 2000  # of these, the tokens that the slow UNet denoises too
    sigmas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    sigmas_unet: tuple[float, ...] = (0.3, 0.5)
    components: tuple[int, ...] = (16, 64, 128, 256, 512)  # k of PCA-k


SIZES = {
    "smoke": LMLossSize(
        tokens=1300, tokens_unet=1100, sigmas=(0.5,), sigmas_unet=(0.5,), components=(64, 512)
    ),
    "quick": LMLossSize(tokens=2500, tokens_unet=1100, sigmas=(0.3, 0.5), sigmas_unet=(0.5,)),
    "default": LMLossSize(),
    "gpu": LMLossSize(tokens=50_000, tokens_unet=50_000, sigmas_unet=(0.1, 0.3, 0.5, 0.7)),
}
