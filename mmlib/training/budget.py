"""How large a fit is, what memory it needs and how many minutes.

Sizes that were not asked for follow the number of rows and the width (`sized`). What does not fit
memory or minutes is made smaller (`Budget`), and says so.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from mmlib.denoisers.average import AverageSize
from mmlib.denoisers.mixture import MixtureSize
from mmlib.denoisers.networks import MLPSize
from mmlib.denoisers.residual import ResidualSize
from mmlib.denoisers.sae import SAESize
from mmlib.files import bf16_pays, free_memory
from mmlib.training.recipe import Recipe, Training

ROWS_PER_COMPONENT = 64  # of a mixture whose number of components was not asked for
ROWS_PER_TRAINED_COMPONENT = 1000  # of one that a network stands on
MIXTURE_BYTES = 2**31  # of the covariances of such a mixture, at most; an average may have twice
# of all covariances while a mixture is fitted: the scatters, the best and the one that is tried
COPIES = 3
PASSES = 10  # over the training rows, by networks and SAEs, unless the most steps are reached first
FEWEST_STEPS = 100
POSTERIOR_PRODUCTS = 40  # of d × (K + d) for a row, by the fast posterior, about
STEP_SECONDS = 0.01  # of a training step, whatever its arithmetic


@dataclass(frozen=True)
class PCASize:
    """A projection on the first principal components."""

    components: int


Size = (
    PCASize | MixtureSize | AverageSize | SAESize | Recipe | None
)  # None: the Gaussian, which has no size
Method = str | PCASize | MixtureSize | AverageSize | SAESize | Recipe


def sized(method: Method, n: int, d: int) -> Size:
    """A method's size; one that goes by a name has what suits n training rows of width d.

    >>> sized("mixture", 6400, 32).components
    (12, 50, 100)
    """
    if not isinstance(method, str):
        return method
    if method == "gaussian":
        return None
    if method == "pca":
        return PCASize(min(64, max(1, d // 4)))
    if method == "mixture":
        most = max(1, min(256, n // ROWS_PER_COMPONENT))
        shares = (1, 2) if most >= 128 else (1, 2, 8)  # of few rows it is open how many suit
        return MixtureSize(components=tuple(sorted({max(1, most // share) for share in shares})))
    k = max(2, min(512, n // ROWS_PER_TRAINED_COMPONENT))
    if method == "mixture_average":
        return AverageSize(components=k)
    batch = min(512 if method == "mlp" else 1024, 2 ** int(math.log2(n)))  # a power of two
    if method == "sae":
        return SAESize(8 * d, max(1, min(64, d // 10)), _passes(n, batch, 1500), batch)
    fixed = {"objective": "flow_velocity", "batch": batch, "weight_decay": 0.05}
    if method == "mlp":
        steps = _passes(n, batch, 800)
        return Recipe(MLPSize(), Training(**fixed, steps=steps, lr=2e-3, ema=0.99))
    fixed |= {"density": "logit_normal", "decay": "late"}
    if method == "mixture_mlp":
        batch = fixed["batch"] = min(2048, 2 ** max(0, int(math.log2(n / 8))))
        steps, levels = _passes(n, batch, 500), min(64, batch)
        training = Training(**fixed, steps=steps, lr=1e-3, ema=0.99, levels=levels)
        return Recipe(ResidualSize(components=k), training)
    steps, levels = _passes(n, batch, 1200), min(64, batch)
    fixed |= {"levels": levels}
    size = MLPSize(layers=2, d_mlp=6 * d, gated_skip=True)
    return Recipe(size, Training(**fixed, steps=steps, lr=1e-3, ema=0.995))


def averaged(size: Size) -> AverageSize | None:
    """The mixtures of which a size has an average, alone or below a network."""
    if isinstance(size, Recipe) and isinstance(below := size.size, ResidualSize):
        return AverageSize(below.components, below.prior, below.folds)
    return size if isinstance(size, AverageSize) else None


def with_components(size: Size, components: int) -> Size:
    """The same with mixtures of other numbers of components."""
    if isinstance(size, Recipe):
        return replace(size, size=replace(size.size, components=components))
    return replace(size, components=components)


def _passes(n: int, batch: int, most: int) -> int:
    return min(most, max(FEWEST_STEPS, PASSES * n // batch))


def with_steps(size: Size, steps: int | None) -> Size:
    """The same with other steps."""
    if steps is None:
        return size
    if isinstance(size, Recipe):
        return replace(size, training=replace(size.training, steps=steps))
    if isinstance(size, SAESize):
        return replace(size, steps=steps)
    raise ValueError(f"steps = {steps}: a network or an SAE has steps, this method has none")


def speed(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second, from a few hundredths of a second of products."""
    a_dd = torch.ones(1024, 1024, device=device, dtype=dtype)
    float((a_dd @ a_dd)[0, 0])  # the first may load a library
    began, products = time.perf_counter(), 0
    while time.perf_counter() - began < 0.05:
        float((a_dd @ a_dd)[0, 0])
        products += 1
    return 2 * 1024**3 * products / (time.perf_counter() - began)


class Budget:
    """What fits of n rows of width d to a device take there, about.

    Args:
        flops: operations a second; None: measured, on the CPU for closed forms, else on the device.
    """

    def __init__(self, n: int, d: int, device: str, flops: float | None = None):
        self.n, self.d, self.device = n, d, device
        self.closed = flops or speed("cpu")
        half = bf16_pays(device)
        self.trained = flops or speed(device, torch.bfloat16 if half else torch.float32)

    def within(self, size: Size, minutes: float | None) -> tuple[Size, list[str]]:
        """A size that fits the memory and about the minutes; sentences on what had to change.

        Raises:
            MemoryError: the method cannot be made to fit.
        """
        remarks, free = [], free_memory()
        if isinstance(size, MixtureSize):
            one, asked = 4 * self.d**2, max(size.components)
            most = max(1, min(MIXTURE_BYTES, free // (COPIES + 1)) // one)
            if asked > most:
                size = replace(size, components=tuple(sorted({max(1, most // 2), most})))
                remarks.append(
                    f"{asked} components with full covariances take {asked * one / 1e9:.1f} GB at "
                    f"d = {self.d:,} and {COPIES} times as much while they are fitted; "
                    f"{free / 1e9:.1f} GB are free and {MIXTURE_BYTES / 1e9:.1f} GB are the most: "
                    f"{most} are fitted instead"
                )
        if mixtures := averaged(size):
            asked = most = mixtures.components
            one = mixtures.members * 4 * self.d**2
            while most > 2 and (self.memory(size) > free or most * one > 2 * MIXTURE_BYTES):
                most //= 2
                size = with_components(size, most)
            if most < asked:
                remarks.append(
                    f"{mixtures.members} mixtures of {asked} components take "
                    f"{asked * one / 1e9:.1f} GB; {free / 1e9:.1f} GB are free and "
                    f"{2 * MIXTURE_BYTES / 1e9:.1f} GB are the most: {most} are fitted instead"
                )
        if (needed := self.memory(size)) > free:
            raise MemoryError(
                f"this needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: give fewer "
                "rows or a smaller size"
            )
        if minutes is not None and self.seconds(size) > 60 * minutes:
            size, what = self._cut(size, 60 * minutes)
            remarks.append(f"{minutes:g} minutes allow {what}")
        return size, remarks

    def _cut(self, size: Size, seconds: float) -> tuple[Size, str]:
        """As much of it as about that many seconds allow; where they can, mixtures below a network
        leave it half of them.
        """
        if isinstance(size, MixtureSize):
            most = max(size.components)
            while most > 1 and self.seconds(size) > seconds:
                most //= 2
                size = replace(size, components=(most,))
            return size, f"{most} components"
        if isinstance(size, AverageSize):
            size = self._simpler(size, lambda one: replace(one, members=1), seconds)
            fixed = self.seconds(replace(size, members=0))
            a_member = self.seconds(replace(size, members=1)) - fixed
            members = min(size.members, max(1, int((seconds - fixed) / a_member)))
            found = replace(size, members=members)
            return found, f"{members} × {found.components} components"
        if isinstance(size, (Recipe, SAESize)):
            below = ""
            if averaged(size):
                size = self._simpler(size, lambda one: with_steps(one, 0), seconds / 2)
                below = f" on mixtures of {averaged(size).components} components"
            fixed = self.seconds(with_steps(size, 0))  # the Gaussian and the mixtures
            before = size.steps if isinstance(size, SAESize) else size.training.steps
            a_step = (self.seconds(size) - fixed) / before
            steps = min(before, max(1, int((seconds - fixed) / a_step)))
            return with_steps(size, steps), f"{steps:,} steps{below}"
        return size, "no less than the whole of this method"

    def _simpler(self, size: Size, part: Callable[[Size], Size], seconds: float) -> Size:
        """With components halved until a part of the fit takes no more than these seconds, or half
        of them would save less than a tenth.
        """
        while (k := averaged(size).components) > 2 and self.seconds(part(size)) > seconds:
            half = with_components(size, k // 2)
            if self.seconds(part(half)) > 0.9 * self.seconds(part(size)):
                break
            size = half
        return size

    def memory(self, size: Size) -> int:
        """Bytes that the fit needs beside the raw rows, about."""
        data = 8 * self.n * self.d  # standardised, and a copy
        if isinstance(size, MixtureSize):
            return data + COPIES * max(size.components) * 4 * self.d**2
        if isinstance(size, SAESize):
            return data + 16 * 2 * self.d * size.latents + 12 * size.batch * size.latents
        if isinstance(size, Recipe):
            network = 20 * self.numbers(size) + 4 * size.training.batch * 40 * self.d
            return data + network + self._mixture_bytes(size)
        return data + 16 * self.d**2 + self._mixture_bytes(size)

    def _mixture_bytes(self, size: Size) -> int:
        """Of an average: all mixtures, and the moments of the one that is fitted; and a copy of the
        rows it is fitted to.
        """
        if not (mixtures := averaged(size)):
            return 0
        held = (mixtures.members + 2) * mixtures.components * 4 * self.d**2
        return held + 4 * self.n * self.d

    def numbers(self, recipe: Recipe) -> int:
        """Parameters of a recipe's network, about: an MLP's are counted, others' guessed."""
        size, d = recipe.size, self.d
        if not isinstance(size, (MLPSize, ResidualSize)):
            return 2 * d * getattr(size, "latents", 5 * d)
        m = size.d_model or (d if isinstance(size, ResidualSize) else 2 * d)
        return size.layers * 4 * m * (size.d_mlp or 2 * m) + 2 * m * m + 2 * m * d

    def seconds(self, size: Size) -> float:
        """Seconds of the fit here, about: its matrix products, and a little for each step."""
        n, d = self.n, self.d
        covariance, axes = 2 * n * d**2, 9 * d**3
        closed, trained, steps = covariance + axes, 0, 0
        if isinstance(size, MixtureSize):
            held = size.validation_tokens * d**2
            for k in size.components:
                closed += 20 * n * k * d + covariance + len(size.priors) * k * (axes + held)
            k = max(size.components)
            closed += size.em_steps * (8 * n * d**2 + covariance + k * (axes + held))
        elif isinstance(size, SAESize):
            steps, trained = size.steps, 16 * d * size.latents * size.batch * size.steps
        elif isinstance(size, Recipe):
            steps, batch = size.training.steps, size.training.batch
            trained = 6 * self.numbers(size) * batch * steps
            if mixtures := averaged(size):
                closed += POSTERIOR_PRODUCTS * d * (mixtures.components + d) * batch * steps
        if mixtures := averaged(size):
            k = mixtures.components
            closed += mixtures.members * (12 * n * k * d + covariance + k * axes)
        return 2.5 * closed / self.closed + 1.5 * trained / self.trained + STEP_SECONDS * steps

    def describe(self, size: Size) -> str:
        """Memory and minutes, in words."""
        gigabytes, minutes = self.memory(size) / 1e9, self.seconds(size) / 60
        memory = f"about {gigabytes:.1f} GB" if gigabytes >= 0.05 else "less than 0.1 GB"
        duration = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "a minute or less"
        return f"{memory} and {duration} on {self.device}"
