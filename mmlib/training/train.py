"""One training loop for every denoiser: AdamW, warm-up and cosine decay, clipping, averaged weights, exact resume.

    python -m mmlib train gated_mlp --preset default          train what a preset names, on the store that notebook 01 wrote
    torchrun --nproc-per-node 2 -m mmlib train gated_mlp …    the same, on several processes or machines with a shared disk

Batches, noise levels and noise are functions of (seed, step), so on a CPU a run that was killed and resumed with as many threads
ends with the same bytes as one that was not (how sums round depends on their number), and a checkpoint needs no random-number state.
Noise is drawn where training runs: a GPU draws other numbers than a CPU, so a run that moves to the other kind trains on, but not to
the same weights. Several processes each take their part of every batch: the loss is the one of a single process.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from mmlib.denoisers.gaussian import standard_normal
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.noise import DENSITIES
from mmlib.files import bf16_pays, code_digest, default_device, require_disk, written_whole
from mmlib.training.resume import done, resume, save_state


def _later(default):
    """A field that came after trials of studies had been trained with its default: see `sweep.RecipeTrial.configuration`."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True)
class Training:
    """One training run of a denoiser: AdamW, linear warm-up, cosine decay, gradient clipping, EMA weights."""

    objective: str  # what the network predicts: "flow_velocity" (v = ε − z) or "ddpm_epsilon" (ε)
    steps: int
    batch: int  # activations per step
    lr: float  # peak learning rate
    warmup: float = 0.02  # fraction of the steps that warms up linearly
    final_lr: float = 0.02  # the cosine ends at this fraction of the peak
    ema: float = 0.99  # decay of the averaged weights, the ones evaluated and saved; after s steps at most (1 + s)/(10 + s), diffusers' warm-up
    beta2: float = 0.99  # of AdamW
    levels: int | None = (
        None  # different noise levels in a batch, shared by runs of rows; None: one a row
    )
    stop_if_stuck: bool = True  # give up on a training that stays above the mean predictor's loss
    compile: bool = False  # torch.compile, where a compiler is installed and it pays
    clip: float = 1.0  # gradient norm
    weight_decay: float = 0.0
    bf16: bool = True  # bfloat16 autocast where the device computes in it, float32 elsewhere
    log_every: int = 10
    validate_every: int = 100
    save_every: int = 100  # a state to resume from; both at steps that are logged
    keep: tuple[
        tuple[str, int], ...
    ] = ()  # (name, step): copies of the averaged weights kept on the way
    density: str = _later(
        "uniform"
    )  # of the noise levels, or "logit_normal": see `noise.DENSITIES`
    weighting: str = _later("uniform")  # of the squared errors by noise level, likewise
    decay: str = _later(
        "cosine"
    )  # of the rate; or "linear", or "late": constant, then linear over the last fifth

    def __post_init__(self):
        """Refuse validation or saving at steps that are not logged, where they would not happen, and names that nothing has."""
        if self.validate_every % self.log_every or self.save_every % self.log_every:
            raise ValueError(
                f"validate_every={self.validate_every} and save_every={self.save_every}: expected multiples of log_every={self.log_every}"
            )
        for name, allowed in (("density", DENSITIES), ("weighting", DENSITIES), ("decay", DECAYS)):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} {getattr(self, name)!r}: expected one of {', '.join(allowed)}"
                )


VALIDATION_ROWS = 1024  # at most


VALIDATION_BATCHES = 8  # likewise: a slow network has small batches, and would spend a tenth of its training's time on validation


CODE = (  # what decides the outcome of a training, besides its settings and its source
    "training/train",
    "training/resume",
    "training/recipe",
    "denoisers/meta_model",
    "denoisers/networks",
    "denoisers/gaussian",
    "denoisers/noise",
    "activations/tokens",
    "activations/batches",
)


class TrainingDiverged(RuntimeError):
    """The loss is NaN or infinite, or stays above what the mean alone has; the message says at which step."""


def learning_rate(step: int, settings: Training) -> float:
    """Rate of step 0, 1, …: linear warm-up, then a decay to `final_lr` of the peak."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * (
        settings.final_lr + (1 - settings.final_lr) * DECAYS[settings.decay](progress)
    )


DECAYS = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "late": lambda progress: min(1.0, (1 - progress) / 0.2),
}  # of the peak that is above the final rate, by progress from 0 to 1


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Random numbers of one step, drawn on that device: a GPU's differ from a CPU's."""
    return torch.Generator(device).manual_seed(
        int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
    )


def train(
    model: MetaModel,
    settings: Training,
    batches: Callable[[int], Iterator[Tensor]],
    validation: Tensor,
    folder: Path,
    *,
    seed: int,
    source: str = "",
    tracker: str | GeneralTracker | None = None,
    device: str | None = None,
) -> list[dict]:
    """Train `model.network` in place; it ends with the averaged weights, saved in `folder`.

    A training that was interrupted is resumed; one that was finished with the same settings, data and code is loaded.

    Args:
        batches: called with a step, gives the raw activations (batch, d) of that step and those after it; (layers, batch, d) for a
            model of several layers. From a store or live: the loop does not know.
        validation: standardised activations of validation documents, (n, d) or (layers, n, d).
        source: what decides the batches besides the store's documents, if anything does; a training from another source is not resumed.
        folder: gets log.jsonl, the model, its copies `settings.keep`, and while training runs state.safetensors to resume from.
        tracker: a tracker of accelerate that also gets the log, such as "tensorboard", whose package must be installed.
        device: None: "cuda" where there is one, else "cpu".
    Returns:
        The log: per entry step, activations, seconds (of training alone), loss, and where measured validation_loss.
    Raises:
        TrainingDiverged: the loss or its gradient is no longer finite, or the loss stays above the mean predictor's.
        ValueError: the tracker is unknown or its package is not installed.
    """
    run = TrainingRun(model, settings, validation, folder, seed, source, tracker, device)
    if done(run):
        return run.log
    given = batches(run.step)
    with tqdm(
        total=settings.steps,
        initial=run.step,
        desc=f"training {type(model.network).__name__}",
        mininterval=2,
        disable=not run.main,
    ) as bar:
        while run.step < settings.steps:
            run.advance(given)
            bar.update()
            step, last = run.step, run.step == settings.steps
            for name in [name for name, kept in settings.keep if kept == step and run.main]:
                model.costing(run.seconds, step * settings.batch)
                with run.averaged_weights():
                    model.save_pretrained(folder / name, {"steps": step, "of": settings.steps})
            if step % settings.log_every == 0 or last:
                entry = run.entry()
                if step % settings.validate_every == 0 or last:
                    entry["validation_loss"] = run.validation_loss()
                run.write(entry)
                if step % settings.save_every == 0:
                    save_state(run)  # last: what it does not cover is done again on resuming
                run.check_progress()
                bar.set_postfix(loss=f"{entry['loss']:.3f}")
    return run.finish()


def _accelerator(tracker: str | GeneralTracker | None, folder: Path, device: str) -> Accelerator:
    accelerator = Accelerator(
        cpu=device == "cpu", log_with=tracker, project_dir=folder if tracker else None
    )
    if tracker and not accelerator.log_with:
        raise ValueError(
            f"tracker {tracker!r} cannot be used: install its package, or leave it out (log.jsonl is always written)"
        )
    return accelerator


class TrainingRun:
    """The state of a run between steps."""

    def __init__(
        self,
        model: MetaModel,
        settings: Training,
        validation: Tensor,
        folder: Path,
        seed: int,
        source: str,
        tracker: str | GeneralTracker | None,
        device: str | None = None,
    ):
        self.model, self.settings, self.folder, self.seed, self.source = (
            model,
            settings,
            Path(folder),
            seed,
            source,
        )
        self.accelerator = _accelerator(tracker, self.folder, device or default_device())
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        self.network = model.network.to(self.device).train()
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=(0.9, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.ema = EMAModel(self.parameters, decay=settings.ema, foreach=True)
        self.step, self.seconds, self.log, self._losses = 0, 0.0, [], []
        self.bf16 = settings.bf16 and bf16_pays(self.device.type)
        rows = min(VALIDATION_ROWS, VALIDATION_BATCHES * settings.batch)
        self.validation = validation[..., :: max(1, validation.shape[-2] // rows), :][..., :rows, :]
        self.mean_loss = standard_normal(model.d).expected_loss(
            settings.objective, self.validation.flatten(0, -2)
        )
        self.fingerprint = self._fingerprint()
        self._begin(tracker)

    def _begin(self, tracker: str | GeneralTracker | None) -> None:
        """Take up what the folder holds; unless that is the whole training, make ready for the next step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        numbers = sum(p.numel() for p in self.parameters)
        require_disk(self.folder, 2 * 4 * 4 * numbers, "checkpoints of this training")
        resume(self)
        if done(self):
            return
        self.forward = self.accelerator.prepare(
            torch.compile(self.network) if self.settings.compile else self.network
        )
        if tracker:
            settings = {key: str(value) for key, value in asdict(self.settings).items()}
            self.accelerator.init_trackers("mmlib", settings)

    def _fingerprint(self) -> str:
        """Everything that decides the outcome: settings, data and code. Only a run with the same one is resumed or taken as done."""
        config = {
            key: value for key, value in self.network.config.items() if not key.startswith("_")
        }
        code = code_digest(*CODE)
        normaliser = self.model.normaliser
        start = hashlib.sha256()
        for tensor in (*self.network.state_dict().values(), normaliser.mean_ld, normaliser.std_ld):
            start.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return json.dumps(
            [
                asdict(self.settings),
                self.seed,
                self.source,
                config,
                self.bf16,
                self.model.language_model,
                self.model.layers,
                self.model.documents,
                start.hexdigest(),
                code,
            ],
            sort_keys=True,
            default=str,
        )

    def advance(self, source: Iterator[Tensor]) -> None:
        """One optimiser step on the next batch; reading it is counted in the seconds."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        z = self.model.normaliser(next(source).to(self.device))
        generator, part = (
            step_generator(self.seed, self.step, self.device),
            (self.accelerator.process_index, self.accelerator.num_processes),
        )
        loss = self._loss(z, generator, self.forward, part)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        value = self.accelerator.reduce(loss.detach(), "mean").item()
        self._refuse_non_finite("loss", value, self.step + 1)
        total_norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None], foreach=True
        )
        norm = total_norm.item()
        self._refuse_non_finite("gradient norm", norm, self.step + 1)
        if (
            norm > self.settings.clip
        ):  # clip_grad_norm_ multiplies by 1 where nothing is to be clipped, another pass over all gradients
            torch.nn.utils.clip_grads_with_norm_(
                self.parameters, self.settings.clip, total_norm, foreach=True
            )
        self.optimizer.step()
        self._average()
        self._losses.append(value)
        self.step += 1
        self.seconds += time.perf_counter() - began

    @torch.no_grad()
    def _average(self) -> None:
        """As `EMAModel.step`, which is slower: it writes the differences of all weights beside them first."""
        self.ema.optimization_step += 1
        weight = 1 - self.ema.get_decay(self.ema.optimization_step)
        for average, parameter in zip(self.ema.shadow_params, self.parameters):
            average.lerp_(parameter, weight)

    def _refuse_non_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"{what} {value} at step {step} of {self.settings.steps}, learning rate "
                f"{learning_rate(step - 1, self.settings):.2g}: lower it, or raise the warm-up"
            )

    def _loss(
        self, z: Tensor, generator: torch.Generator, network: torch.nn.Module, part: tuple[int, int]
    ) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model.loss(
                z,
                generator,
                levels=self.settings.levels,
                part=part,
                network=network,
                density=self.settings.density,
                weighting=self.settings.weighting,
            )

    def validation_loss(self) -> float:
        """The training loss of the averaged weights on fixed validation rows, with a level each, the same for all seeds."""
        with (
            self.averaged_weights(),
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16),
        ):
            generator, parts = (
                step_generator(0, 2**31),
                self.validation.split(self.settings.batch, dim=-2),
            )
            losses = [
                self.model.loss(part.to(self.device), generator).item() * part.shape[-2]
                for part in parts
            ]
        mean = sum(losses) / self.validation.shape[-2]
        self._refuse_non_finite("validation loss", mean, self.step)
        return mean

    def check_progress(self) -> None:
        """Stop what does not learn: for a quarter of the steps (at least 200) the loss is above the mean predictor's, and does not fall.

        Raises:
            TrainingDiverged: it is so.
        """
        if not self.settings.stop_if_stuck:
            return
        patience = max(200, self.settings.steps // 4)
        recent = [entry["loss"] for entry in self.log if entry["step"] > self.step - patience]
        if self.step < 2 * patience or min(recent) < self.mean_loss:
            return
        earlier = [
            entry["loss"]
            for entry in self.log
            if self.step - 2 * patience < entry["step"] <= self.step - patience
        ]
        if min(recent) > 0.98 * min(earlier, default=math.inf):
            raise TrainingDiverged(
                f"loss {recent[-1]:.4g} at step {self.step} of {self.settings.steps}: for {patience} steps it has been above the "
                f"{self.mean_loss:.4g} of the mean alone and has not fallen: change the learning rate ({self.settings.lr:.2g}), or "
                "set stop_if_stuck=False to train on"
            )

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within this context the network has its averaged weights."""
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        self.network.eval()
        try:
            yield
        finally:
            self.ema.restore(self.parameters)
            self.network.train()

    def entry(self) -> dict:
        """A log entry: the mean loss since the last one."""
        losses, self._losses = self._losses, []
        return {
            "step": self.step,
            "activations": self.step * self.settings.batch * len(self.model.normaliser.mean_ld),
            "seconds": round(self.seconds, 4),
            "loss": float(np.mean(losses)),
        }

    def write(self, entry: dict) -> None:
        """Append to log.jsonl, flushed, so that a notebook beside it can plot while training runs."""
        self.log.append(entry)
        self.accelerator.log(
            {key: value for key, value in entry.items() if key != "step"}, step=self.step
        )
        if self.main:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def finish(self) -> list[dict]:
        """Keep the averaged weights, save the model, drop the state."""
        self.ema.copy_to(self.parameters)
        self.network.eval().to("cpu")
        self.model.costing(self.log[-1]["seconds"], self.log[-1]["activations"])
        if self.main:
            self.model.save_pretrained(
                self.folder,
                {"training": asdict(self.settings), "seed": self.seed, "outcome": self.log[-1]},
            )
            with written_whole(self.folder / "done.json") as partial:
                partial.write_text(self.fingerprint, encoding="utf-8")
            (self.folder / "state.safetensors").unlink(missing_ok=True)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()  # none returns before the model is there
        return self.log
