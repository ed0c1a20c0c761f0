"""What the study of recipes is about to do: trials by part, how many are left, and about how many
minutes they take on this machine.

Later parts depend on what earlier ones find, so guesses stand in for outcomes that are not there
yet.
"""

import math

from mmlib.activations.store import ActivationStore
from mmlib.runs.run import Run
from mmlib.runs.sweep import Trial
from mmlib_studies.recipes.sizes import RecipeStudySize
from mmlib_studies.recipes.study import PARTS, RecipeStudy


def plan(run: Run, store: ActivationStore, size: RecipeStudySize | None = None) -> list[dict]:
    """Parts of the study with their trials, how many are left, and about how many minutes those
    take; None where nothing tells.
    """
    trials: dict[str, Trial] = {}

    def ask(trial: Trial) -> dict:
        trials.setdefault(trial.name, trial)
        return study.sweep.known(trial) or guess(trial, study.size)

    study, rows = RecipeStudy(run, store, size=size, ask=ask), []
    for part in PARTS:
        before = len(trials)
        getattr(study, part)
        own = list(trials.values())[before:]
        left = sum(study.sweep.known(trial) is None for trial in own)
        minutes = study.sweep.minutes(own)
        found = {"trials": len(own), "left": left, "minutes": minutes}
        rows.append({"part": part.replace("_", " "), **found})
    return rows


def guess(trial: Trial, size: RecipeStudySize) -> dict:
    """An outcome to plan with: a loss that falls with the activations, is best at the middle rate,
    and lower for ours. Nothing else rests on it.
    """
    recipe = trial.configuration["recipe"]
    training, unet = recipe["training"], "channels" in recipe["size"]
    rates = size.unet_rates if unet else size.rates
    octaves = abs(math.log2(training["lr"] / rates[len(rates) // 2]))
    scale = 0.3 if recipe["size"].get("gated_skip", True) else 0.45
    share = size.steps * size.batch / (training["steps"] * training["batch"])
    loss = 1 + scale * share**0.5 + 0.05 * octaves
    seconds = [1.0 * training["batch"], 2.0 * training["batch"]]
    losses = [2.0, loss]
    log = {"step": [1, 2], "seconds": seconds, "loss": losses, "validation_loss": losses}
    return {"loss": loss, "seconds": seconds[-1], "setup_seconds": 0.0, "log": log}
