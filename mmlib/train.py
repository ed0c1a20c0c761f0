"""One training loop for every denoiser: AdamW, warm-up and cosine decay, clipping, averaged weights, exact resume.

Batches, noise levels and noise are functions of (seed, step), so on a CPU a run that was killed and resumed ends with the same
bytes as one that was not, and a checkpoint needs no random-number state.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mmlib.files import require_disk, sha256, written_whole
from mmlib.meta_model import MetaModel
from mmlib.presets import Training

VALIDATION_ROWS = 1024


class TrainingDiverged(RuntimeError):
    """The loss is NaN or infinite; the message says at which step."""


def default_device() -> str:
    """"cuda" where there is one, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def bf16_pays(device: str) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def learning_rate(step: int, settings: Training) -> float:
    """Rate of step 0, 1, …: linear warm-up, then a cosine to `final_lr` of the peak."""
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * (settings.final_lr + (1 - settings.final_lr) * (1 + math.cos(math.pi * progress)) / 2)


def step_generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))


def train(model: MetaModel, settings: Training, batches: Callable[[int], Iterator[Tensor]], validation_nd: Tensor, folder: Path,
          *, seed: int, device: str | None = None) -> list[dict]:
    """Train `model.network` in place; it ends with the averaged weights, saved in `folder`.

    A training that was interrupted is resumed; one that was finished with the same settings, data and code is loaded.

    Args:
        batches: called with a step, gives the raw activations (batch, d) of that step and those after it.
        validation_nd: standardised activations of validation documents.
        folder: gets log.jsonl, the model, its copies `settings.keep`, and while training runs state.safetensors to resume from.
    Returns:
        The log: per entry step, activations, seconds (of training alone), loss, and where measured validation_loss.
    Raises:
        TrainingDiverged: the loss is no longer finite.
    """
    run = _TrainingRun(model, settings, folder, seed, device or default_device())
    if run.done():
        return run.log
    source = batches(run.step)
    with tqdm(total=settings.steps, initial=run.step, desc=f"training {type(model.network).__name__}", mininterval=2) as bar:
        while run.step < settings.steps:
            run.advance(source)
            bar.update()
            step, last = run.step, run.step == settings.steps
            for name in [name for name, kept in settings.keep if kept == step]:
                with run.averaged_weights():
                    model.save_pretrained(folder / name)
            if step % settings.log_every == 0 or last:
                entry = run.entry()
                if validated := step % settings.validate_every == 0 or last:
                    entry["validation_loss"] = run.validation_loss(validation_nd)
                run.write(entry)
                if validated:
                    run.save_state()  # last: what it does not cover is done again on resuming
                bar.set_postfix(loss=f"{entry['loss']:.3f}")
    return run.finish()


class _TrainingRun:
    """The state of a run between steps."""

    def __init__(self, model: MetaModel, settings: Training, folder: Path, seed: int, device: str):
        self.model, self.settings, self.folder, self.seed, self.device = model, settings, Path(folder), seed, device
        self.network = model.network.to(device).train()
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=settings.lr, weight_decay=settings.weight_decay, foreach=True)
        self.ema = EMAModel(self.parameters, decay=settings.ema)
        self.step, self.seconds, self.log, self._losses = 0, 0.0, [], []
        self.bf16 = settings.bf16 and bf16_pays(device)
        self.fingerprint = self._fingerprint()
        self.folder.mkdir(parents=True, exist_ok=True)
        require_disk(self.folder, 2 * 4 * 4 * sum(p.numel() for p in self.parameters), "checkpoints of this training")
        self._resume()

    def _fingerprint(self) -> str:
        """Everything that decides the outcome: settings, data and code. Only a run with the same one is resumed or taken as done."""
        config = {key: value for key, value in self.network.config.items() if not key.startswith("_")}
        code = [sha256(Path(__file__).with_name(f"{room}.py")) for room in ("train", "meta_model", "denoisers", "noise", "normaliser", "store")]
        return json.dumps([asdict(self.settings), self.seed, config, self.bf16, self.model.language_model, self.model.layer,
                           self.model.documents, self.model.normaliser.mean_d.double().sum().item(), code], sort_keys=True, default=str)

    def advance(self, source: Iterator[Tensor]) -> None:
        """One optimiser step on the next batch; reading it is counted in the seconds."""
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.settings)
        z_nd = self.model.normaliser(next(source).to(self.device))
        loss = self._loss(z_nd, step_generator(self.seed, self.step))
        if not math.isfinite(value := loss.item()):
            raise TrainingDiverged(f"loss {value} at step {self.step + 1} of {self.settings.steps}, learning rate "
                                   f"{learning_rate(self.step, self.settings):.2g}: lower it, or raise the warm-up")
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        self.ema.step(self.parameters)
        self._losses.append(value)
        self.step += 1
        self.seconds += time.perf_counter() - began

    def _loss(self, z_nd: Tensor, generator: torch.Generator) -> Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            return self.model.loss(z_nd, generator)

    def validation_loss(self, validation_nd: Tensor) -> float:
        """The training loss of the averaged weights on fixed validation rows, levels and noise."""
        rows_nd = validation_nd[:: max(1, len(validation_nd) // VALIDATION_ROWS)][:VALIDATION_ROWS]
        generator = step_generator(self.seed, 2**31)
        with self.averaged_weights(), torch.inference_mode():
            losses = [self._loss(part_nd.to(self.device), generator).item() * len(part_nd)
                      for part_nd in rows_nd.split(self.settings.batch)]
        return sum(losses) / len(rows_nd)

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
        return {"step": self.step, "activations": self.step * self.settings.batch, "seconds": round(self.seconds, 2),
                "loss": float(np.mean(losses))}

    def write(self, entry: dict) -> None:
        """Append to log.jsonl, flushed, so that a notebook beside it can plot while training runs."""
        self.log.append(entry)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def save_state(self) -> None:
        """Write everything that `_resume` needs, atomically."""
        state = self.optimizer.state
        tensors = {f"{kind}.{i}": tensor.detach().contiguous() for i, p in enumerate(self.parameters) for kind, tensor in
                   (("weight", p), ("average", self.ema.shadow_params[i]), ("m", state[p]["exp_avg"]), ("v", state[p]["exp_avg_sq"]))}
        facts = {"step": str(self.step), "seconds": str(self.seconds), "fingerprint": self.fingerprint}
        with written_whole(self.folder / "state.safetensors") as partial:
            save_file(tensors, partial, metadata=facts)

    @torch.no_grad()
    def _resume(self) -> None:
        path = self.folder / "state.safetensors"
        if self.done():
            self.log = self._read_log()
            self.network.load_state_dict(MetaModel.from_pretrained(self.folder).network.state_dict())
            self.network.eval().to("cpu")
            print("already trained with these settings, data and code")
            return
        if not path.exists():
            return self._forget()
        with safe_open(path, "pt", device=self.device) as file:
            facts = file.metadata()
            if facts["fingerprint"] != self.fingerprint:
                print(f"{path.name} is of another configuration: training starts afresh")
                return self._forget()
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            for i, p in enumerate(self.parameters):
                p.copy_(file.get_tensor(f"weight.{i}"))
                self.ema.shadow_params[i].copy_(file.get_tensor(f"average.{i}"))
                self.optimizer.state[p] = {"step": torch.tensor(float(self.step)), "exp_avg": file.get_tensor(f"m.{i}"),
                                           "exp_avg_sq": file.get_tensor(f"v.{i}")}
            self.ema.optimization_step = self.step
        self.log = [entry for entry in self._read_log() if entry["step"] <= self.step]
        (self.folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in self.log), encoding="utf-8")
        print(f"resuming at step {self.step}")

    def done(self) -> bool:
        """Whether the folder holds the outcome of this very training."""
        path = self.folder / "done.json"
        return path.exists() and path.read_text(encoding="utf-8") == self.fingerprint

    def _read_log(self) -> list[dict]:
        text = (self.folder / "log.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]  # a kill may have cut the last line

    def _forget(self) -> None:
        """Remove what an earlier training left, so that nothing of it can be taken for this one's."""
        for name in ("log.jsonl", "done.json"):
            (self.folder / name).unlink(missing_ok=True)
        for name in (".", *(name for name, _ in self.settings.keep)):
            (self.folder / name / "meta_model.json").unlink(missing_ok=True)

    def finish(self) -> list[dict]:
        """Keep the averaged weights, save the model, drop the state."""
        self.ema.copy_to(self.parameters)
        self.network.eval().to("cpu")
        self.model.save_pretrained(self.folder)
        with written_whole(self.folder / "done.json") as partial:
            partial.write_text(self.fingerprint, encoding="utf-8")
        (self.folder / "state.safetensors").unlink(missing_ok=True)
        return self.log
