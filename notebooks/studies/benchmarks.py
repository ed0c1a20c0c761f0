"""How fast training is on a GPU: activations a second, and the share of the rate at which the
device multiplies matrices.

    python -m mmlib_studies.benchmarks                             on a machine with CUDA: under 5 minutes, with no store or language model
    python -m mmlib_studies.benchmarks --smoke --out rates.json    tiny networks, on any machine: shows that it runs

The step of `mmlib.training.train` itself is timed, on standard normal activations held on the
device: all but reading. FLOP are what torch counts in a forward and a backward pass: matrix
products, convolutions, attention.
"""

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product, repeat
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode

from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import MLPDenoiser, UNetDenoiser, count_parameters
from mmlib.files import GPU_PACKAGES, default_device, provenance, write_json
from mmlib.runs.results import keyed_results
from mmlib.runs.run import ROOT
from mmlib.training.recipe import Training
from mmlib.training.train import TrainingRun, step_generator

COMMAND = "python -m mmlib_studies.benchmarks"

ROUNDS = 3  # of each row: matrix products and training in turns


class LeftOut(RuntimeError):
    """A row is not measured; the message says why."""


@dataclass(frozen=True)
class Workload:
    """A network and how it is trained."""

    name: str
    network: Callable[[int], nn.Module]  # of the width d
    d: int
    objective: str
    batches: tuple[int, ...]  # tried in this order until one fits
    rows_per_level: int = 1  # rows of a batch that share a noise level


@dataclass(frozen=True)
class Size:
    """What is measured and for how long."""

    workloads: tuple[Workload, ...]
    sides: tuple[int, ...]  # of the square matrices
    seconds: float  # of training in a round; each matrix product has a quarter
    # seconds after which no further network is compiled, which can take more than a minute
    compile_within: float


def _mlp(name: str, d: int, *batches: int, rows_per_level: int = 1, **size) -> Workload:
    network = partial(MLPDenoiser, **size)
    return Workload(name, network, d, "flow_velocity", batches, rows_per_level)


def _unet(name: str, d: int, *batches: int, **size) -> Workload:
    return Workload(name, partial(UNetDenoiser, **size), d, "ddpm_epsilon", batches)


FULL = Size(
    (
        _mlp("mlp_44m", 640, 65_536, 16_384, 4096, 1024),
        _mlp("mlp_0.5b", 2048, 32_768, 16_384, 8192, 4096, 1024),
        _unet("unet_640", 640, 2048, 1024, 512, 256, 128, 64),
        _unet("unet_5120", 5120, 256, 128, 64, 32, 16, 8),
        _mlp("mlp_44m_shared_levels", 640, 4096, rows_per_level=16),  # as the preset gpu trains it
    ),
    sides=(8192, 2048),
    seconds=1.0,
    compile_within=90,
)

SMOKE = Size(
    (
        _mlp("mlp_tiny", 16, 64, 32, n_layers=2),
        _unet("unet_tiny", 48, 8, 4, block_out_channels=(32, 32, 32), layers_per_block=1),
        _mlp("mlp_tiny_shared_levels", 16, 64, rows_per_level=4, n_layers=2),
    ),
    sides=(128, 64),
    seconds=0.02,
    compile_within=15,
)


def training_of(workload: Workload) -> TrainingRun:
    """A training that has not begun, on the device that `mmlib.training.train` would use."""
    torch.manual_seed(0)
    with torch.device(default_device()):  # half a billion random numbers take long on a CPU
        network = workload.network(workload.d)
    plain = Normaliser(torch.zeros(1, workload.d), torch.ones(1, workload.d))
    model = MetaModel(network, workload.objective, Origin(plain, "none", (0,), "standard normal"))
    settings = Training(workload.objective, steps=1_000_000, batch=workload.batches[0], lr=1e-4)
    with tempfile.TemporaryDirectory() as folder:  # nothing is saved
        return TrainingRun(model, settings, torch.randn(8, workload.d), Path(folder), 0, "", None)


def flop_per_activation(training: TrainingRun, workload: Workload) -> float:
    """Of a forward and a backward pass; what depends on the noise level alone counts once for the
    rows that share it.
    """
    n, device = 8 * workload.rows_per_level, training.device
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=training.bf16)
    with FlopCounterMode(display=False) as counter, mixed:
        z_nd = torch.randn(n, workload.d, device=device)
        training.model.loss(z_nd, step_generator(0, 0), levels=8).backward()
    training.optimizer.zero_grad()
    return counter.get_total_flops() / n


def begin(training: TrainingRun, workload: Workload) -> tuple[Iterator[Tensor], int]:
    """Train a few steps with the first batch size that fits; gives batches of it, and their size.

    Raises:
        LeftOut: not even the last fits.
    """
    for batch in workload.batches:
        levels = batch // workload.rows_per_level
        training.settings = replace(training.settings, batch=batch, levels=levels)
        # as stores hold them
        source = repeat(torch.randn(batch, workload.d, device=training.device).bfloat16())
        try:
            for _ in range(4):  # from the second on, the optimiser's state is there too
                training.advance(source)
            return source, batch
        except torch.cuda.OutOfMemoryError:
            print(f"{workload.name}: a batch of {batch} does not fit", flush=True)
        training.optimizer.zero_grad()
        torch.cuda.empty_cache()
    raise LeftOut(f"no batch of {', '.join(map(str, workload.batches))} fits into memory")


def calls_per_second(call: Callable[[], object], seconds: float) -> float:
    """Of work on the device, measured for about so many seconds after a warm-up; the device is
    waited for.
    """
    timer = benchmark.Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return 1 / timer.blocked_autorange(min_run_time=seconds).median


def matmul_rate(side: int, dtype: torch.dtype, seconds: float) -> float:
    """FLOP/s of the product of two random square matrices."""
    a, b = (torch.randn(side, side, device=default_device()).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 * calls_per_second(lambda: torch.mm(a, b, out=out), seconds)


def measure(workload: Workload, size: Size, compiled: bool) -> dict:
    """A row of the results; its rounds take matrix products and training in turns."""
    training = training_of(workload)
    flop = flop_per_activation(training, workload)
    if compiled:
        # or shapes that differ from the last network's would be compiled as variable
        torch.compiler.reset()
        training.forward = torch.compile(training.network)
    source, batch = begin(training, workload)
    dtype, cuda = torch.bfloat16 if training.bf16 else torch.float32, training.device.type == "cuda"
    rates, products, peak = [], {str(side): [] for side in size.sides}, 0
    for _ in range(ROUNDS):
        for side, measured in products.items():
            measured.append(matmul_rate(int(side), dtype, size.seconds / 4))
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        rates.append(batch * calls_per_second(lambda: training.advance(source), size.seconds))
        peak = max(peak, torch.cuda.max_memory_allocated()) if cuda else None  # None: not measured
    matmul = {side: median(measured) for side, measured in products.items()}
    return {
        "name": workload.name,
        "compiled": compiled,
        "parameters": count_parameters(training.network),
        "d": workload.d,
        "objective": workload.objective,
        "batch": batch,
        "rows_per_level": workload.rows_per_level,
        "dtype": str(dtype).removeprefix("torch."),
        "flop_per_activation": flop,
        "activations_per_second": median(rates),
        "matmul_flop_per_second": matmul,
        "fraction_of_matmul": {side: median(rates) * flop / rate for side, rate in matmul.items()},
        "peak_memory_bytes": peak,
        "rounds": {"activations_per_second": rates, "matmul_flop_per_second": products},
    }


def run(size: Size, out: Path, **facts) -> dict:
    """Measure everything as it comes, then compiled while time allows; what there is is written
    after every row.
    """
    began = time.monotonic()
    batches = {workload.name: workload.batches for workload in size.workloads}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = {"device": device, "cuda": torch.version.cuda, **facts}
    origin = provenance(ROOT, packages=GPU_PACKAGES, **facts)
    content = {"provenance": origin, "rows": [], "left_out": []}
    for compiled, workload in product((False, True), size.workloads):
        name, title = workload.name, workload.name + ", compiled" * compiled
        try:
            if compiled and time.monotonic() - began > size.compile_within:
                raise LeftOut(f"{size.compile_within} s had passed")
            row = measure(replace(workload, batches=batches[name]), size, compiled)
        except (LeftOut, TorchDynamoException) as error:  # no compiler, or none for this network
            why = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            content["left_out"].append({"name": name, "compiled": compiled, "why": why})
            print(f"{title}: left out, {why}", flush=True)
        else:
            batches[name] = tuple(batch for batch in workload.batches if batch <= row["batch"])
            content["rows"].append(row)
            fractions = row["fraction_of_matmul"].items()
            shares = (f"{fraction:.0%} of a {side}³ product" for side, fraction in fractions)
            rate = f"{row['activations_per_second']:,.0f} activations/s"
            print(f"{title}, batch {row['batch']}: {rate}, {', '.join(shares)}", flush=True)
        gc.collect()  # the last network, before the next
        torch.cuda.empty_cache()
        write_json(out, keyed_results("gpu/benchmarks", content))
    return content


def main() -> None:
    """Measure training rates on this machine's GPU."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=main.__doc__)
    default = "what to write; left out: results/gpu/benchmarks.json"
    tiny = "tiny networks, on a CPU too; its numbers mean nothing"
    parser.add_argument("--out", type=Path, help=default)
    parser.add_argument("--smoke", action="store_true", help=tiny)
    parser.add_argument("--commit", help="of this code, where it was copied without its git folder")
    given = parser.parse_args()
    if given.smoke and not given.out:
        parser.error("--smoke needs --out: its numbers are not for results/gpu")
    if not given.smoke and not torch.cuda.is_available():
        parser.error(
            f"no CUDA device (torch {torch.__version__} sees none): run it where there is one, or "
            "--smoke --out FILE for tiny networks here"
        )
    size, preset = (SMOKE, "smoke") if given.smoke else (FULL, "gpu")
    out = given.out or ROOT / "results" / "gpu" / "benchmarks.json"
    command = COMMAND + " --smoke" * given.smoke
    run(size, out, preset=preset, seed=0, command=command, commit=given.commit)


if __name__ == "__main__":
    main()
