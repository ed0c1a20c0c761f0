"""Figures of the compared loss: against the noise level, as reductions over baselines, and over a floor. Notebook 04."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlib.evaluation import claim as claimed
from mmlib.plots import (
    BLACK,
    BLUE,
    GREEN,
    LABELS,
    LINES,
    MARKERS,
    OBJECTIVES,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TABLES_ONLY,
    TEXT_WIDTH,
    columns,
    curve,
    forest,
    height_axis,
    legend_below,
    note,
    percent,
    percent_axis,
)

_COLOURS = dict(zip(OBJECTIVES, (BLUE, RED)))


def loss_by_noise(result: dict) -> Figure:
    """Loss of every method against the noise level; two readings of PCA are light, the naive one is left out."""
    figure, axes = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 3.4))
    for ax, (objective, label) in zip(axes, OBJECTIVES.items()):
        curves, velocity = result["curves"][objective], objective == "flow_velocity"
        for method, (colour, dashes) in LINES.items():
            if method in curves["loss"] and method != "pca_k64_naive":
                light, of_all = {"lw": 0.7, "alpha": 0.7, "zorder": 1}, {"lw": 1.3}
                style = {"dashes": dashes, **(light if method in TABLES_ONLY else of_all)}
                values = curves["loss"][method]
                curve(ax, curves["sigma"], values, colour=colour, label=LABELS[method], **style)
        ax.set(yscale="log", xlabel="noise level σ", ylabel=f"{label} per dimension")
        ax.set(xlim=(0, 1), ylim=(0.8, 10) if velocity else (1e-3, 10))
        _limits(ax, velocity)
        if velocity:
            ax.set_yticks((1, 2, 3, 5, 10), labels=("1", "2", "3", "5", "10"))
            ax.minorticks_off()
    legend_below(figure, 4, axes[0].get_legend_handles_labels()[0])
    return figure


def _limits(ax: Axes, velocity: bool) -> None:
    """The limits of the best loss: of the velocity 1 at both ends; of ε 1 at low noise, and 0 at high, which the axis of a logarithm does not have."""
    bottom = ax.get_ylim()[0]
    style = {"color": BLACK, "mfc": "white", "ms": 5, "ls": "", "clip_on": False, "zorder": 5}
    ax.plot(0, 1, marker="D", label="limits of the best loss", **style)
    ax.plot(1, 1 if velocity else bottom, marker="D" if velocity else "v", **style)
    if not velocity:
        note(ax, "to 0", (1, bottom), (-24, 4), ha="right")


_LEAST = -0.5  # reduction at the left end of the axis


def reductions(result: dict, replication: dict | None = None) -> Figure:
    """The primary definitions, set apart; then the reduction of the loss by each network over each baseline.

    Args:
        replication: results of notebook 24, whose training seeds become small ticks.
    """
    figure = plt.figure(figsize=(TEXT_WIDTH, 5.5))
    grid = figure.add_gridspec(2, 3, height_ratios=(1.6, 3.3))
    _primary(figure.add_subplot(grid[0, :]), result["primary"], replication)
    baselines = list(dict.fromkeys(row["baseline"] for row in result["reductions"]))
    first = None
    for column, method in enumerate(("unet", "mlp", "gated_mlp")):
        first = ax = figure.add_subplot(grid[1, column], sharey=first)
        rows = [row for row in result["reductions"] if row["method"] == method]
        for row in sorted(rows, key=lambda row: baselines.index(row["baseline"])):
            beside = 0.17 if row["objective"] == "ddpm_epsilon" else -0.17
            _reduction(ax, row, baselines.index(row["baseline"]) + beside)
        _reduction_axis(ax)
        ax.set(title=LABELS[method], xlabel="reduction of the loss (%)")
        height_axis(ax, [LABELS[baseline] for baseline in baselines])
        ax.set_ylim(top=-0.7)
        ax.tick_params(labelleft=column == 0)
    for objective, label in OBJECTIVES.items():
        style = {"color": _COLOURS[objective], "marker": MARKERS[objective]}
        first.plot([], [], ms=4, label=label, **style)
    first.plot([], [], color=BLACK, lw=1, ls="--", label="claimed 47 %")
    if replication:
        first.plot([], [], **_SEEDS, ms=8, label="each training seed")
    legend_below(figure, 5, first.get_legend_handles_labels()[0])
    return figure


_SEEDS = {"color": BLACK, "marker": "|", "mew": 0.8, "ls": ""}


def _primary(ax: Axes, rows: list[dict], replication: dict | None) -> None:
    seeds = {
        _comparison(row): row["reductions"]["values"]
        for row in (replication or {"seeds": []})["seeds"]
    }
    labels = []
    for y, row in enumerate(rows):
        _reduction(ax, row, y)
        values = seeds.get(_comparison(row), [])
        ax.plot(values, [y] * len(values), ms=11, zorder=4, **_SEEDS)
        value, low, high = (percent(share) for share in (row["reduction"], *row["ci95"]))
        over = f"{LABELS[row['method']]} over {LABELS[row['baseline']]}"
        labels.append(f"{over}\n{value} [{low}, {high}] %")  # over no line there
    _reduction_axis(ax)
    ax.set(title="primary definitions, and the paper's MLP (added); [95 % interval by document]")
    height_axis(ax, labels)


def _comparison(row: dict) -> tuple[str, str, str]:
    return row["method"], row["baseline"], row["objective"]


def _reduction_axis(ax: Axes) -> None:
    ax.axvline(0, color=BLACK, lw=0.8, zorder=1)
    ax.axvline(claimed.CLAIM, color=BLACK, lw=1, ls="--", zorder=1)
    ax.set_xlim(_LEAST, 1.05)
    ax.set_xticks((0, 0.5, 1), labels=("0", "50", "100"))


def _reduction(ax: Axes, row: dict, y: float) -> None:
    """A point with its interval; what is left of the axis is an arrow with its value."""
    colour, (low, high) = _COLOURS[row["objective"]], row["ci95"]
    if row["reduction"] < _LEAST:
        style = {"color": colour, "va": "center", "fontsize": 6.3}
        box = {"fc": "white", "ec": "none", "pad": 0}
        note(ax, f"◂ {percent(row['reduction'], ',.0f')} %", (_LEAST, y), (2, 0), bbox=box, **style)
    else:
        style = {"colour": colour, "marker": MARKERS[row["objective"]], "size": 4}
        forest(ax, row["reduction"], y, (max(low, _LEAST), high), **style)


def floors(result: dict, scaling: dict | None = None) -> Figure:
    """The reduction of what can be reduced, against the unknown best possible loss, for the primary definitions.

    Args:
        scaling: results of notebook 06, whose E is marked, with its interval cut at the lowest loss.
    """
    figure, ax = plt.subplots(figsize=(TEXT_WIDTH * 0.62, 3.0))
    styles = zip((PURPLE, GREEN, ORANGE, RED), ((4, 1.5), (1, 1), (6, 1, 1, 1), ()))
    for found, (colour, dashes) in zip(result["floors"], styles):
        floor, values, intervals = columns(found["rows"], "floor", "reduction", "ci95")
        share = np.divide(floor, found["lowest_loss_seen"])
        objective = OBJECTIVES[found["objective"]].removesuffix(" loss")
        label = f"{LABELS[found['method']]} over {LABELS[found['baseline']]}, {objective}"
        style = {"dashes": dashes, "marker": "o", "ms": 3, "label": label}
        curve(ax, share, values, intervals, colour=colour, band={"alpha": 0.25}, **style)
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.axhline(claimed.CLAIM, color=BLACK, lw=1, ls="--", label="claimed 47 %")
    ax.set(xlabel="assumed best possible loss, as a share of the lowest loss seen", xlim=(0, 1))
    ax.set(ylabel="reduction of the rest", ylim=(-1, 1.05))
    if scaling is not None:
        _estimated_floor(ax, claimed.over_the_estimate(result, scaling))
    percent_axis(ax.xaxis)
    percent_axis(ax.yaxis)
    legend_below(figure, 1)
    return figure


def _estimated_floor(ax: Axes, found: dict) -> None:
    """E as a line, its interval as a bar along the axis, and the mixture's reduction over it as a star."""
    if not found["possible"]:
        return
    at, *ends = (loss / found["lowest_loss"] for loss in (found["e"], *found["cut_ci95"]))
    law = f"E of the scaling law, velocity: {found['e']:.2f}"
    label = f"{law}; bar: its interval, cut at the lowest loss"
    ax.axvline(at, color=BLUE, lw=1, ls=":", label=label)
    ax.plot(ends, [-0.93] * 2, color=BLUE, lw=3, alpha=0.5, solid_capstyle="butt")
    mixture = next(row["reduction"] for row in found["rows"] if row["method"] == "mixture")
    if mixture is not None:
        style = {
            "marker": "*",
            "ms": 8,
            "mfc": SKY,
            "mec": BLACK,
            "mew": 0.6,
            "ls": "",
            "zorder": 5,
        }
        ax.plot(at, mixture, label="mixture of Gaussians over full Gaussian, at E", **style)
