"""A training's folder: the state to resume from, what marks a finished training, and what must not be taken for either.

    log.jsonl            a JSON object for each logged step; a line that a kill cut is passed over
    state.safetensors    weights, averaged weights and Adam's two moments of each parameter, by number, with step, seconds and fingerprint
    done.json            the fingerprint of the training whose outcome lies beside it

A *fingerprint* is everything that decides the outcome. What bears another one is removed, never resumed.
"""

import json
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mmlib.denoisers.meta_model import MetaModel
from mmlib.files import written_whole

if TYPE_CHECKING:
    from mmlib.training.train import TrainingRun


def save_state(run: "TrainingRun") -> None:
    """Write everything that `resume` needs, atomically; the main process alone does."""
    if not run.main:
        return
    state = run.optimizer.state
    tensors = {
        f"{kind}.{i}": tensor.detach().contiguous()
        for i, p in enumerate(run.parameters)
        for kind, tensor in (
            ("weight", p),
            ("average", run.ema.shadow_params[i]),
            ("m", state[p]["exp_avg"]),
            ("v", state[p]["exp_avg_sq"]),
        )
    }
    facts = {
        "step": str(run.step),
        "seconds": str(run.seconds),
        "fingerprint": run.fingerprint,
    }
    with written_whole(run.folder / "state.safetensors") as partial:
        save_file(tensors, partial, metadata=facts)


@torch.no_grad()
def resume(run: "TrainingRun") -> None:
    """Take up what the folder holds of this very training; anything else that lies there is removed."""
    path = run.folder / "state.safetensors"
    if done(run):
        run.log = _read_log(run)
        run.model.costing(run.log[-1]["seconds"], run.log[-1]["activations"])
        run.network.load_state_dict(MetaModel.from_pretrained(run.folder).network.state_dict())
        run.network.eval().to("cpu")
        return run.accelerator.print("already trained with these settings, data and code")
    if not path.exists():
        run.accelerator.wait_for_everyone()
        return _forget(run)
    with safe_open(path, "pt", device=str(run.device)) as file:
        facts = file.metadata()
        if facts["fingerprint"] != run.fingerprint:
            run.accelerator.print(
                f"{path.name} is of another configuration: training starts afresh"
            )
            run.accelerator.wait_for_everyone()
            return _forget(run)
        run.step, run.seconds = int(facts["step"]), float(facts["seconds"])
        for i, p in enumerate(run.parameters):
            p.copy_(file.get_tensor(f"weight.{i}"))
            run.ema.shadow_params[i].copy_(file.get_tensor(f"average.{i}"))
            run.optimizer.state[p] = {
                "step": torch.tensor(float(run.step), device=p.device),
                "exp_avg": file.get_tensor(f"m.{i}"),
                "exp_avg_sq": file.get_tensor(f"v.{i}"),
            }
        run.ema.optimization_step = run.step
    run.log = [entry for entry in _read_log(run) if entry["step"] <= run.step]
    run.accelerator.wait_for_everyone()  # all have read what one now writes again
    if run.main:
        (run.folder / "log.jsonl").write_text(
            "".join(json.dumps(entry) + "\n" for entry in run.log), encoding="utf-8"
        )
    run.accelerator.print(f"resuming at step {run.step}")


def done(run: "TrainingRun") -> bool:
    """Whether the folder holds the outcome of this very training."""
    path = run.folder / "done.json"
    return path.exists() and path.read_text(encoding="utf-8") == run.fingerprint


def _read_log(run: "TrainingRun") -> list[dict]:
    text = (run.folder / "log.jsonl").read_text(encoding="utf-8")
    whole = text.split("\n")[:-1]  # a kill may have cut the last line
    return [json.loads(line) for line in whole]


def _forget(run: "TrainingRun") -> None:
    """Remove what an earlier training left, so that nothing of it can be taken for this one's."""
    if run.main:
        for name in ("state.safetensors", "log.jsonl", "done.json"):
            (run.folder / name).unlink(missing_ok=True)
        for name in (".", *(name for name, _ in run.settings.keep)):
            (run.folder / name / "meta_model.json").unlink(missing_ok=True)
