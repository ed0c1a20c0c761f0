"""The gap: how much lower a network's loss is on documents that it was trained on than on others,
and what that says of data and compute.

A gap has two parts: what was learnt by heart, and that one set of documents is easier than another.
The second is what a *control* shows that has read so few activations that it knows none by heart;
what remains of a gap when the control's is taken off is its *excess*.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from mmlib.evaluation.intervals import bootstrap_interval
from mmlib.evaluation.losses import DocumentLosses

# Tokens at each noise level, of training and of validation documents each, by preset.
GAP_TOKENS = {"smoke": 20, "quick": 30, "default": 100, "gpu": 1000}


def gap_rows(
    seen: Mapping[str, DocumentLosses],
    unseen: Mapping[str, DocumentLosses],
    split: str,
    control: str,
) -> dict[str, dict]:
    """Loss on unseen documents less that on seen ones, with intervals that resample both sets of
    documents.

    Args:
        seen, unseen: by network; of all networks on the same tokens.
        split: what the unseen documents are called.
        control: the network that knows nothing by heart.
    Returns:
        by network: train_loss, SPLIT_loss, gap, ci95, excess and excess_ci95 (0 for the control).
    """
    n_seen, n_unseen = len(seen[control].counts_d), len(unseen[control].counts_d)

    def gap(name: str, weights: np.ndarray) -> np.ndarray:
        return _mean(unseen[name], weights[..., n_seen:]) - _mean(seen[name], weights[..., :n_seen])

    def interval(statistic: Callable[[np.ndarray], np.ndarray]) -> list[float]:
        return list(bootstrap_interval(statistic, (n_seen, n_unseen)))

    def row(name: str) -> dict:
        def excess(weights: np.ndarray) -> np.ndarray:
            return gap(name, weights) - gap(control, weights)

        return {
            "train_loss": seen[name].mean,
            f"{split}_loss": unseen[name].mean,
            "gap": unseen[name].mean - seen[name].mean,
            "ci95": interval(partial(gap, name)),
            "excess": float(excess(np.ones(n_seen + n_unseen))),
            "excess_ci95": interval(excess),
        }

    return {name: row(name) for name in seen}


def _mean(losses: DocumentLosses, weights: np.ndarray) -> np.ndarray:
    return (weights @ losses.sums_d) / (weights @ losses.counts_d)


def gained_in_last_third(log: list[dict]) -> float:
    """How much the validation loss fell from the last measurement in the first two thirds of the
    steps to the end.

    Raises:
        ValueError: none was measured before.
    """
    measured = [entry for entry in log if "validation_loss" in entry]
    before = [entry for entry in measured if 3 * entry["step"] <= 2 * log[-1]["step"]]
    if not before:
        steps = f"{[entry['step'] for entry in measured]} of {log[-1]['step']}"
        expected = "expected one in the first two thirds, lower validate_every"
        raise ValueError(f"validation losses at steps {steps}: {expected}")
    return before[-1]["validation_loss"] - measured[-1]["validation_loss"]


def limit(excess: float, gained: float) -> str:
    """What holds a training back: "data", if unseen documents cost it more than the last third of
    its steps still gained; else "compute".
    """
    return "data" if excess > gained else "compute"


def in_words(name: str, row: Mapping[str, float], split: str, gained: float) -> str:
    """What a gap says, as a sentence.

    Args:
        row: of `gap_rows`, with `passes`, over the training documents.
        split: what the unseen documents are called.
        gained: by `gained_in_last_third`.
    """
    low, high = row["excess_ci95"]
    verdict = {"data": "more than", "compute": "no more than"}[limit(row["excess"], gained)]
    return (
        f"{name}, after {row['passes']:.1f} passes: {split} loss {row[f'{split}_loss']:.3f}, "
        f"training documents {row['train_loss']:.3f}, gap {row['gap']:+.3f}, of it "
        f"{row['excess']:+.3f} [{low:+.3f}, {high:+.3f}] beyond the control's. That is {verdict} "
        f"the {gained:.3f} that the last third of training still gained: "
        f"{limit(row['excess'], gained)} limits it."
    ).replace("-", "−")
