"""Trials of recipes: which rate to try next, when a loss was reached, and what remains of a
difference over seeds.

An outcome is what `study.RecipeStudy` keeps of a trial: `loss`, the plain loss on validation
documents, `seconds`, `setup_seconds` and the `log` of its validation losses; or `diverged` in place
of losses.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from mmlib.evaluation.intervals import spread

NEVER = math.inf


def further_rate(losses: dict[float, float]) -> float:
    """The next rate to try: twice beyond the edge where the best is there, else halfway (in ratio)
    to its better neighbour.
    """
    rates, best = sorted(losses), min(losses, key=losses.get)
    i = rates.index(best)
    if at_edge(losses):
        return best / 2 if i == 0 else best * 2
    neighbour = min((rates[i - 1], rates[i + 1]), key=losses.get)
    return float(f"{math.sqrt(best * neighbour):.3g}")


def at_edge(losses: dict[float, float]) -> bool:
    """Whether the rate of the lowest loss is the lowest or the highest tried."""
    return min(losses, key=losses.get) in (min(losses), max(losses))


def tune(
    rates: Sequence[float], most: int, names: Sequence[str], train: Callable[[str, float], dict]
) -> dict[str, dict[float, dict]]:
    """Outcomes of several networks by rate. While any has its best at the edge, every one gets
    another trial: all have as many.

    Args:
        most: further trials of each.
        train: outcome of a network at a rate.
    """
    found = {name: {rate: train(name, rate) for rate in rates} for name in names}
    for _ in range(most):
        losses = [{rate: loss_of(one) for rate, one in found[name].items()} for name in names]
        if not any(map(at_edge, losses)):
            break
        for name, tried in zip(names, losses):
            rate = further_rate(tried)
            found[name][rate] = train(name, rate)
    return found


def loss_of(outcome: dict) -> float:
    """The plain loss on validation documents; infinite where training diverged."""
    return NEVER if "diverged" in outcome else outcome["loss"]


def best_of(outcomes: dict) -> object:
    """The key of the outcome of the lowest loss.

    Raises:
        ValueError: all diverged.
    """
    best = min(outcomes, key=lambda key: loss_of(outcomes[key]))
    if "diverged" in outcomes[best]:
        raise ValueError(
            f"every trial diverged, the last so: {outcomes[best]['diverged']}; lower the rates"
        )
    return best


def end_of(outcome: dict) -> float:
    """The last validation loss of the training's log; infinite where training diverged."""
    return NEVER if "diverged" in outcome else outcome["log"]["validation_loss"][-1]


def whole_time(outcome: dict) -> float:
    """Seconds of set-up and training."""
    return outcome["setup_seconds"] + outcome["seconds"]


def time_to(outcome: dict, target: float) -> float | None:
    """Seconds of set-up and training to the first entry of the log at the target or below it; None
    if there is none.
    """
    log = outcome["log"]
    reached = np.flatnonzero(np.less_equal(log["validation_loss"], target))
    return outcome["setup_seconds"] + log["seconds"][reached[0]] if len(reached) else None


def seconds_a_step(outcome: dict) -> float:
    """The median over intervals of the log, which start-up, compilation and a busy moment leave
    alone.
    """
    return float(np.median(np.diff(outcome["log"]["seconds"]) / np.diff(outcome["log"]["step"])))


def row_of(outcome: dict) -> dict:
    """What a table says of an outcome; its loss is None where training diverged."""
    training = outcome["configuration"]["recipe"]["training"]
    return {
        "rate": training["lr"],
        "batch": training["batch"],
        "steps": training["steps"],
        "activations": outcome["activations"],
        "loss": outcome.get("loss"),
        "seconds": whole_time(outcome),
    }


def curve_of(outcome: dict) -> dict[str, list[float]]:
    """Seconds of set-up and training, and the validation losses there."""
    return {
        "seconds": [outcome["setup_seconds"] + second for second in outcome["log"]["seconds"]],
        "loss": outcome["log"]["validation_loss"],
    }


def losses_of(outcomes: Sequence[dict]) -> dict:
    """The spread of the losses of what did not diverge, and the number that did."""
    losses = [outcome["loss"] for outcome in outcomes if "diverged" not in outcome]
    return spread(losses) | {"diverged": len(outcomes) - len(losses)}


def paired(outcomes: Sequence[dict], references: Sequence[dict]) -> dict:
    """The spread of the differences in loss, seed by seed; and whether none diverged and all are
    negative: lower with every seed.

    Seeds with which the reference or the other diverged are left out of the spread, and counted.
    """
    differences = [
        loss_of(ours) - loss_of(theirs) for ours, theirs in zip(outcomes, references, strict=True)
    ]
    finite = [difference for difference in differences if math.isfinite(difference)]
    return spread(finite) | {
        "every_seed": len(finite) == len(differences) and max(finite) < 0,
        "diverged": len(differences) - len(finite),
    }


def ratios(ours: Sequence[dict], theirs: Sequence[dict], targets: Sequence[float]) -> dict:
    """Times of ours to the targets over times of theirs, seed by seed; `ratio` only where every one
    of ours comes there.

    One of theirs that never comes there counts with its whole time, so that the ratio is an upper
    bound.
    """
    times, others = (
        [time_to(outcome, target) for outcome, target in zip(outcomes, targets, strict=True)]
        for outcomes in (ours, theirs)
    )
    whole = [whole_time(outcome) if time is None else time for outcome, time in zip(theirs, others)]
    found = {
        "targets": list(targets),
        "ours_seconds": times,
        "theirs_seconds": whole,
        "theirs_reached": [time is not None for time in others],
    }
    if None not in times:
        found["ratio"] = spread([mine / other for mine, other in zip(times, whole)])
    return found
