"""How large a fit is, and what that costs: sizes that suit the rows, memory, and minutes on this machine."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from mmlib.denoisers.mixture import MixtureSize
from mmlib.denoisers.networks import MLPSize
from mmlib.denoisers.sae import SAESize
from mmlib.files import bf16_pays
from mmlib.training.recipe import Recipe, Training

ROWS_PER_COMPONENT = 64  # of a mixture whose number of components was not asked for


MIXTURE_BYTES = 2**31  # of the covariances of such a mixture, at most


COPIES = 3  # of all covariances while a mixture is fitted: the scatters, the best and the one that is tried


PASSES = 10  # over the training rows, by networks and SAEs, unless the most steps are reached first


FEWEST_STEPS = 100


STEP_SECONDS = 0.01  # of a training step, whatever its arithmetic


@dataclass(frozen=True)
class PCASize:
    """A projection on the first principal components."""

    components: int


Size = PCASize | MixtureSize | SAESize | Recipe | None  # None: the Gaussian, which has no size
Method = str | PCASize | MixtureSize | SAESize | Recipe


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
    if method == "sae":
        batch = _batch(n, 1024)
        return SAESize(8 * d, max(1, min(64, d // 10)), _passes(n, batch, 1500), batch)
    batch = _batch(n, 512 if method == "mlp" else 1024)
    if method == "mlp":
        settings = {"steps": _passes(n, batch, 800), "lr": 2e-3, "ema": 0.99}
        return Recipe(MLPSize(), _training(batch, **settings))
    settings = {"steps": _passes(n, batch, 1200), "lr": 1e-3, "ema": 0.995, "decay": "late"}
    levels = {"levels": min(64, batch), "density": "logit_normal"}
    return Recipe(
        MLPSize(layers=2, d_mlp=6 * d, gated_skip=True), _training(batch, **settings, **levels)
    )


def _batch(n: int, most: int) -> int:
    """A power of two, at most n."""
    return min(most, 2 ** int(math.log2(n)))


def _passes(n: int, batch: int, most: int) -> int:
    return min(most, max(FEWEST_STEPS, PASSES * n // batch))


def _training(batch: int, *, steps: int, **settings) -> Training:
    return Training("flow_velocity", steps=steps, batch=batch, weight_decay=0.05, **settings)


def with_steps(size: Size, steps: int | None) -> Size:
    """The same with other steps."""
    if steps is None:
        return size
    if isinstance(size, Recipe):
        return replace(size, training=replace(size.training, steps=steps))
    if isinstance(size, SAESize):
        return replace(size, steps=steps)
    raise ValueError(f"steps = {steps}: a network or an SAE has steps, this method has none")


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its control group where that has less."""
    free = psutil.virtual_memory().available
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return free


def speed(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of matrix products, from a few hundredths of a second of them."""
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
        flops: floating-point operations a second; None: measured, of closed forms on the CPU and of training on the device.
    """

    def __init__(self, n: int, d: int, device: str, flops: float | None = None):
        self.n, self.d, self.device = n, d, device
        self.closed = flops or speed("cpu")
        self.trained = flops or speed(
            device, torch.bfloat16 if bf16_pays(device) else torch.float32
        )

    def within(self, size: Size, minutes: float | None) -> tuple[Size, list[str]]:
        """A size that fits the memory and about the minutes; sentences on what had to change.

        Raises:
            MemoryError: the method cannot be made to fit.
        """
        remarks, free = [], free_memory()
        if isinstance(size, MixtureSize):
            smaller, one = size, 4 * self.d**2
            most = max(1, min(MIXTURE_BYTES, free // (COPIES + 1)) // one)
            if (asked := max(size.components)) > most:
                smaller = replace(size, components=tuple(sorted({max(1, most // 2), most})))
                remarks.append(
                    f"{asked} components with full covariances take {asked * one / 1e9:.1f} GB at d = {self.d:,} and {COPIES} times as much while "
                    f"they are fitted; {free / 1e9:.1f} GB are free and {MIXTURE_BYTES / 1e9:.1f} GB are the most: {most} are fitted instead"
                )
            size = smaller
        if (needed := self.memory(size)) > free:
            raise MemoryError(
                f"this needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: give fewer rows or a smaller size"
            )
        if minutes is not None and self.seconds(size) > 60 * minutes:
            size, what = self._cut(size, 60 * minutes)
            remarks.append(f"{minutes:g} minutes allow {what}")
        return size, remarks

    def _cut(self, size: Size, seconds: float) -> tuple[Size, str]:
        """As much of it as about that many seconds allow."""
        if isinstance(size, MixtureSize):
            most = max(size.components)
            while most > 1 and self.seconds(size) > seconds:
                most //= 2
                size = replace(size, components=(most,))
            return size, f"{most} components"
        if isinstance(size, (Recipe, SAESize)):
            before = size.steps if isinstance(size, SAESize) else size.training.steps
            a_step = (self.seconds(size) - self.seconds(None)) / before  # without the Gaussian
            steps = max(1, int((seconds - self.seconds(None)) / a_step))
            return with_steps(size, steps), f"{steps:,} steps"
        return size, "no less than the whole of this method"

    def memory(self, size: Size) -> int:
        """Bytes that the fit needs beside the raw rows, about."""
        data = 8 * self.n * self.d  # standardised, and a copy
        if isinstance(size, MixtureSize):
            return data + COPIES * max(size.components) * 4 * self.d**2
        if isinstance(size, SAESize):
            return data + 16 * 2 * self.d * size.latents + 12 * size.batch * size.latents
        if isinstance(size, Recipe):
            batch = size.training.batch
            return data + 20 * self.numbers(size) + 4 * batch * 40 * self.d
        return data + 16 * self.d**2

    def numbers(self, recipe: Recipe) -> int:
        """Parameters of a recipe's network, about: those of an MLP are counted, those of another are taken for 10 d²."""
        size, d = recipe.size, self.d
        if not isinstance(size, MLPSize):
            return 2 * d * getattr(size, "latents", 5 * d)
        m = size.d_model or 2 * d
        return size.layers * 4 * m * (size.d_mlp or 2 * m) + 2 * m * m + 2 * m * d

    def seconds(self, size: Size) -> float:
        """How long the fit takes here, about: its products of matrices at this machine's speed, and a little for each step."""
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
            steps = size.training.steps
            trained = 6 * self.numbers(size) * size.training.batch * steps
        return 2.5 * closed / self.closed + 1.5 * trained / self.trained + STEP_SECONDS * steps

    def describe(self, size: Size) -> str:
        """Memory and minutes, in words."""
        gigabytes, minutes = self.memory(size) / 1e9, self.seconds(size) / 60
        memory = f"about {gigabytes:.1f} GB" if gigabytes >= 0.05 else "less than 0.1 GB"
        duration = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "a minute or less"
        return f"{memory} and {duration} on {self.device}"
