"""A UNet sees an activation as an image: which shapes it can have, and whether neighbours in it
have anything to do with each other.
"""

import numpy as np
import torch

from mmlib.denoisers.networks import image_shape


def other_heights(d: int, heights: tuple[int, ...]) -> list[int]:
    """Those of the heights, multiples of 4, that an image of d dimensions can have, without its
    own.
    """
    own, width = image_shape(d)
    return [height for height in heights if height != own and own * width % (4 * height) == 0]


def neighbours(
    z_nd: torch.Tensor, width: int, seed: int, permutations: int = 1000
) -> dict[str, dict]:
    """Do dimensions correlate that a convolution sees side by side, or one row apart in an image of
    that width, more than others do?

    Returns:
        By "beside" and "above": mean, of the absolute correlations of such pairs, and band, which
        95 % of random orders are in.
    """
    correlation = np.abs(np.corrcoef(z_nd.double().numpy(), rowvar=False))
    rng, d, found = np.random.default_rng(seed), z_nd.shape[1], {}
    orders = [np.arange(d), *(rng.permutation(d) for _ in range(permutations))]
    for name, apart in (("beside", 1), ("above", width)):
        means = [float(correlation[order[:-apart], order[apart:]].mean()) for order in orders]
        found[name] = {"mean": means[0], "band": np.quantile(means[1:], (0.025, 0.975)).tolist()}
    return found
