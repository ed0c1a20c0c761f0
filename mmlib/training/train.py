"""One training loop for every denoiser: AdamW, clipping, averaged weights, exact resume. Settings
and rates: `mmlib.training.recipe`.

    python -m mmlib train gated_mlp --preset default          train what a preset names, on the store that notebook 01 wrote
    torchrun --nproc-per-node 2 -m mmlib train gated_mlp …    the same, on several processes or machines with a shared disk

Batches, noise levels and noise are functions of (seed, step). So on a CPU a run that was killed and
resumed with as many threads ends with the same bytes as one that was not, and a checkpoint needs no
random-number state. A GPU draws other noise than a CPU: a run that moves there trains on, to other
weights. Several processes each take their part of every batch. A training's folder holds log.jsonl,
the model, state.json and state-N.pt to resume from at step N while it runs, and done.json once it
is finished; state.json and done.json have the digests of the others and a *fingerprint*, everything
that decides the outcome. What bears another one is removed, never resumed.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
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
from mmlib.files import (
    bf16_pays,
    code_digest,
    default_device,
    read_sealed,
    require_disk,
    write_sealed,
    written_whole,
)
from mmlib.training.recipe import Training, learning_rate

STATE, LOG, DONE = "state.json", "log.jsonl", "done.json"  # of a training's folder
VALIDATION_ROWS = 1024  # at most
# likewise: a slow network has small batches, and would spend a tenth of its training's time on
# validation
VALIDATION_BATCHES = 8
CODE = (  # what decides the outcome of a training, besides its settings and its source
    "training/train",
    "training/recipe",
    "denoisers/meta_model",
    "denoisers/networks",
    "denoisers/gaussian",
    "denoisers/noise",
    "activations/tokens",
    "activations/batches",
)


class TrainingDiverged(RuntimeError):
    """The loss is NaN or infinite, or stays above the mean's; the message names the step."""


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
    spent: float = 0.0,
    tracker: str | GeneralTracker | None = None,
    device: str | None = None,
) -> list[dict]:
    """Train `model.network` in place; it ends with the averaged weights, saved in `folder`.

    A training that was interrupted is resumed; one that was finished with the same settings, data
    and code is loaded.

    Args:
        batches: called with a step, gives the raw activations (batch, d) of that step and those
            after it; (layers, batch, d) for a model of several layers. From a store or live: the
            loop does not know.
        validation: standardised activations of validation documents, (n, d) or (layers, n, d).
        source: what decides the batches besides the store's documents, if anything does; a training
            from another source is not resumed.
        spent: seconds that what the network stands on has cost; the model's cost includes them, the
            log does not.
        folder: gets log.jsonl, the model, its copies `settings.keep`, and while training runs a
            state to resume from.
        tracker: a tracker of accelerate that also gets the log, such as "tensorboard", whose
            package must be installed.
        device: None: "cuda" where there is one, else "cpu".
    Returns:
        The log: per entry step, activations, seconds (of training alone), loss, and where measured
            validation_loss.
    Raises:
        TrainingDiverged: the loss or its gradient is no longer finite, or the loss stays above the
            mean predictor's.
        CheckpointError: what the folder holds of this training is damaged.
        ValueError: the tracker is unknown or its package is not installed.
    """
    run = TrainingRun(model, settings, validation, folder, seed, source, tracker, device, spent)
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
                model.costing(spent + run.seconds, step * settings.batch)
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
            f"tracker {tracker!r} cannot be used: install its package, or leave it out (log.jsonl "
            "is always written)"
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
        spent: float = 0.0,
    ):
        self.model, self.settings, self.folder = model, settings, Path(folder)
        self.seed, self.source, self.spent = seed, source, spent
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
        """Take up what the folder holds, or make ready for the next step."""
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
        """Settings, data and code: only a run with the same ones is resumed or taken as done."""
        network, normaliser = self.network, self.model.normaliser
        config = {key: value for key, value in network.config.items() if not key.startswith("_")}
        start = hashlib.sha256()
        for tensor in (*network.state_dict().values(), normaliser.mean_ld, normaliser.std_ld):
            start.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        data = (self.model.language_model, self.model.layers, self.model.documents)
        decisive = [asdict(self.settings), self.seed, self.source, config, self.bf16, *data]
        decisive += [start.hexdigest(), code_digest(*CODE)]
        return json.dumps(decisive, sort_keys=True, default=str)

    def advance(self, source: Iterator[Tensor]) -> None:
        """One optimiser step on the next batch; reading it is counted in the seconds."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        z = self.model.normaliser(next(source).to(self.device))
        generator = step_generator(self.seed, self.step, self.device)
        loss = self._loss(z, generator)
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        value = self.accelerator.reduce(loss.detach(), "mean").item()
        self._refuse_non_finite("loss", value, self.step + 1)
        total_norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None], foreach=True
        )
        norm = total_norm.item()
        self._refuse_non_finite("gradient norm", norm, self.step + 1)
        # clip_grad_norm_ multiplies by 1 where nothing is to be clipped, another pass over all
        # gradients
        if norm > self.settings.clip:
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
        """As `EMAModel.step`, without its copies of all differences."""
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

    def _loss(self, z: Tensor, generator: torch.Generator) -> Tensor:
        settings = self.settings
        noise = {name: getattr(settings, name) for name in ("levels", "density", "weighting")}
        part = (self.accelerator.process_index, self.accelerator.num_processes)
        with self._autocast():
            return self.model.loss(z, generator, part=part, network=self.forward, **noise)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def validation_loss(self) -> float:
        """The averaged weights' loss on fixed validation rows and levels, of all seeds alike."""
        generator, losses = step_generator(0, 2**31), []
        with self.averaged_weights(), torch.inference_mode(), self._autocast():
            for part in self.validation.split(self.settings.batch, dim=-2):
                loss = self.model.loss(part.to(self.device), generator).item()
                losses.append(loss * part.shape[-2])
        mean = sum(losses) / self.validation.shape[-2]
        self._refuse_non_finite("validation loss", mean, self.step)
        return mean

    def check_progress(self) -> None:
        """Stop what does not learn: for a quarter of the steps (at least 200) the loss is above the
        mean predictor's, and does not fall.

        Raises:
            TrainingDiverged: it is so.
        """
        if not self.settings.stop_if_stuck:
            return
        patience = max(200, self.settings.steps // 4)

        def least(after: int, until: int) -> float:
            losses = (entry["loss"] for entry in self.log if after < entry["step"] <= until)
            return min(losses, default=math.inf)

        since = self.step - patience
        recent = least(since, self.step)
        stuck = self.step >= 2 * patience and recent >= self.mean_loss
        if stuck and recent > 0.98 * least(since - patience, since):
            raise TrainingDiverged(
                f"loss {self.log[-1]['loss']:.4g} at step {self.step} of {self.settings.steps}: "
                f"for {patience} steps it has been above the {self.mean_loss:.4g} of the mean "
                f"alone and has not fallen: change the learning rate ({self.settings.lr:.2g}), or "
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
        """Append to log.jsonl, flushed, so that a notebook beside it can plot while training
        runs.
        """
        self.log.append(entry)
        self.accelerator.log(
            {key: value for key, value in entry.items() if key != "step"}, step=self.step
        )
        if self.main:
            with open(self.folder / LOG, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def finish(self) -> list[dict]:
        """Keep the averaged weights, save the model, drop the state."""
        self.ema.copy_to(self.parameters)
        self.network.eval().to("cpu")
        self.model.costing(self.spent + self.log[-1]["seconds"], self.log[-1]["activations"])
        if self.main:
            self.model.save_pretrained(
                self.folder,
                {"training": asdict(self.settings), "seed": self.seed, "outcome": self.log[-1]},
            )
            files = [self.folder / name for name in (LOG, "meta_model.json")]
            write_sealed(self.folder / DONE, {"fingerprint": self.fingerprint}, files)
            _remove_states(self.folder)
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.wait_for_everyone()  # none returns before the model is there
        return self.log


def save_state(run: TrainingRun) -> None:
    """Write what `resume` needs, then remove what it needed before. The main process does."""
    if not run.main:
        return
    known = {key: getattr(run, key) for key in ("fingerprint", "step", "seconds", "log")}
    state = {
        "network": run.network.state_dict(),
        "averages": run.ema.state_dict(),
        "optimizer": run.optimizer.state_dict(),
    }
    path = run.folder / f"state-{run.step}.pt"
    with written_whole(path) as partial:
        torch.save(state, partial)
    write_sealed(run.folder / STATE, known, [path])
    _remove_states(run.folder, (STATE, path.name))


def _remove_states(folder: Path, but: tuple[str, ...] = ()) -> None:
    """First what says that all is there."""
    for old in (folder / STATE, *folder.glob("state*")):
        if old.name not in but:
            old.unlink(missing_ok=True)


def resume(run: TrainingRun) -> None:
    """Take up what the folder holds of this very training; remove what else lies there."""
    path = run.folder / STATE
    if done(run):
        run.log = [json.loads(line) for line in (run.folder / LOG).read_text().splitlines()]
        run.model.costing(run.spent + run.log[-1]["seconds"], run.log[-1]["activations"])
        run.network.load_state_dict(MetaModel.from_pretrained(run.folder).network.state_dict())
        run.network.eval().to("cpu")
        if run.main:
            _remove_states(run.folder)  # where a kill came before that
        return run.accelerator.print("already trained with these settings, data and code")
    known = read_sealed(path) if path.exists() else None
    if known and known["fingerprint"] != run.fingerprint:
        run.accelerator.print(f"{path.name} is of another configuration: training starts afresh")
        known = None
    if known:
        run.step, run.seconds, run.log = known["step"], known["seconds"], known["log"]
        (file,) = known["files"]
        state = torch.load(run.folder / file, weights_only=True, map_location=run.device)
        run.network.load_state_dict(state["network"])
        run.ema.load_state_dict(state["averages"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.accelerator.print(f"resuming at step {run.step}")
    run.accelerator.wait_for_everyone()  # all have read what one now removes or writes again
    if run.main and known:
        lines = "".join(json.dumps(entry) + "\n" for entry in run.log)
        (run.folder / LOG).write_text(lines, encoding="utf-8")
    elif run.main:
        _forget(run)


def done(run: TrainingRun) -> bool:
    """Whether the folder holds the outcome of this very training.

    Raises:
        CheckpointError: it is damaged.
    """
    path = run.folder / DONE
    if not path.exists():
        return False
    with suppress(ValueError):
        if isinstance(json.loads(path.read_bytes()), list):  # of former code, by other code
            return False
    return read_sealed(path)["fingerprint"] == run.fingerprint


def _forget(run: TrainingRun) -> None:
    """Remove what an earlier training left, so that nothing of it can be taken for this one's."""
    if run.main:
        for name in (DONE, LOG):
            (run.folder / name).unlink(missing_ok=True)
        _remove_states(run.folder)
        for name in (".", *(name for name, _ in run.settings.keep)):
            (run.folder / name / "meta_model.json").unlink(missing_ok=True)
