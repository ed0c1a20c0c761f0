"""Figures of the compared loss, by noise level, as reductions, and over a floor: notebook 04."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlib import plots
from mmlib.evaluation import claim as claimed

_LIGHT = ("pca_k64_naive", "pca_k64_mixed", "ppca_k64")  # too many curves tell nothing
_COLOURS = dict(zip(plots.OBJECTIVES, (plots.BLUE, plots.RED)))


def loss_by_noise(result: dict) -> Figure:
    """Loss of every method against the noise level, two readings of PCA in light lines."""
    figure, axes = plots.panels(1, 2, 3.4)
    for ax, (objective, label) in zip(axes, plots.OBJECTIVES.items()):
        curves, velocity = result["curves"][objective], objective == "flow_velocity"
        for method, (colour, dashes) in plots.LINES.items():
            if method in curves["loss"] and method != "pca_k64_naive":
                light = {"lw": 0.7, "alpha": 0.7, "zorder": 1}
                style = light if method in _LIGHT else {"lw": 1.3}
                style |= {"colour": colour, "dashes": dashes, "label": plots.LABELS[method]}
                plots.curve(ax, curves["sigma"], curves["loss"][method], **style)
        ax.set(yscale="log", xlabel="noise level σ", ylabel=f"{label} per dimension")
        ax.set(xlim=(0, 1), ylim=(0.8, 10) if velocity else (1e-3, 10))
        _limits(ax, velocity)
        if velocity:
            ax.set_yticks((1, 2, 3, 5, 10), labels=("1", "2", "3", "5", "10"))
            ax.minorticks_off()
    plots.legend_below(figure, 4, axes[0].get_legend_handles_labels()[0])
    return figure


def _limits(ax: Axes, velocity: bool) -> None:
    """Limits of the best loss: velocity 1 at both ends; ε 1 at low noise, and 0 at high."""
    bottom = ax.get_ylim()[0]
    style = {"color": plots.BLACK, "mfc": "white", "ms": 5, "ls": "", "clip_on": False, "zorder": 5}
    ax.plot(0, 1, marker="D", label="limits of the best loss", **style)
    ax.plot(1, 1 if velocity else bottom, marker="D" if velocity else "v", **style)
    if not velocity:
        plots.note(ax, "to 0", (1, bottom), (-24, 4), ha="right")


_LEAST = -0.5  # reduction at the left end of the axis


def reductions(result: dict, replication: dict | None = None) -> Figure:
    """The primary definitions; then the reduction of the loss by each network over each baseline.

    Args:
        replication: results of notebook 24, whose training seeds become small ticks.
    """
    figure = plt.figure(figsize=(plots.TEXT_WIDTH, 5.5))
    grid, found = figure.add_gridspec(2, 3, height_ratios=(1.6, 3.3)), result["reductions"]
    seeds = replication["seeds"] if replication else {}
    _primary(figure.add_subplot(grid[0, :]), result["primaries"], seeds)
    baselines = list(found["flow_velocity"]["mlp"])
    first = None
    for column, method in enumerate(("unet", "mlp", "gated_mlp")):
        first = ax = figure.add_subplot(grid[1, column], sharey=first)
        for y, baseline in enumerate(baselines):
            for objective, beside in zip(plots.OBJECTIVES, (-0.17, 0.17)):
                _reduction(ax, found[objective][method][baseline], objective, y + beside)
        _reduction_axis(ax)
        ax.set(title=plots.LABELS[method], xlabel="reduction of the loss (%)")
        plots.height_axis(ax, [plots.LABELS[baseline] for baseline in baselines])
        ax.set_ylim(top=-0.7)
        ax.tick_params(labelleft=column == 0)
    for objective, label in plots.OBJECTIVES.items():
        style = {"color": _COLOURS[objective], "marker": plots.MARKERS[objective]}
        first.plot([], [], ms=4, label=label, **style)
    first.plot([], [], color=plots.BLACK, lw=1, ls="--", label="claimed 47 %")
    if replication:
        first.plot([], [], **_SEEDS, ms=8, label="each training seed")
    plots.legend_below(figure, 5, first.get_legend_handles_labels()[0])
    return figure


_SEEDS = {"color": plots.BLACK, "marker": "|", "mew": 0.8, "ls": ""}


def _primary(ax: Axes, primaries: dict[str, dict], seeds: dict[str, dict]) -> None:
    labels = []
    for y, (name, row) in enumerate(primaries.items()):
        _reduction(ax, row, row["objective"], y)
        values = seeds[name]["reductions"]["values"] if name in seeds else []
        ax.plot(values, [y] * len(values), ms=11, zorder=4, **_SEEDS)
        value, low, high = (plots.percent(share) for share in (row["value"], *row["ci95"]))
        labels.append(f"{_over(row)}\n{value} [{low}, {high}] %")  # over no line there
    _reduction_axis(ax)
    ax.set(title="primary definitions, and the paper's MLP (added); [95 % interval by document]")
    plots.height_axis(ax, labels)


def _over(row: dict) -> str:
    return f"{plots.LABELS[row['method']]} over {plots.LABELS[row['baseline']]}"


def _reduction_axis(ax: Axes) -> None:
    ax.axvline(0, color=plots.BLACK, lw=0.8, zorder=1)
    ax.axvline(claimed.CLAIM, color=plots.BLACK, lw=1, ls="--", zorder=1)
    ax.set_xlim(_LEAST, 1.05)
    ax.set_xticks((0, 0.5, 1), labels=("0", "50", "100"))


def _reduction(ax: Axes, row: dict, objective: str, y: float) -> None:
    """A point with its interval; what is left of the axis is an arrow with its value."""
    colour, (low, high) = _COLOURS[objective], row["ci95"]
    if row["value"] < _LEAST:
        style = {"color": colour, "va": "center", "fontsize": 6.3}
        style["bbox"] = {"fc": "white", "ec": "none", "pad": 0}
        text = f"◂ {plots.percent(row['value'], ',.0f')} %"
        plots.note(ax, text, (_LEAST, y), (2, 0), **style)
    else:
        style = {"colour": colour, "marker": plots.MARKERS[objective], "size": 4}
        plots.forest(ax, row["value"], y, (max(low, _LEAST), high), **style)


def floors(result: dict, scaling: dict | None = None) -> Figure:
    """The reduction of what can be reduced, against the unknown best possible loss.

    Args:
        scaling: results of notebook 06, whose E is marked.
    """
    figure, ax = plt.subplots(figsize=(plots.TEXT_WIDTH * 0.62, 3.0))
    colours = (plots.PURPLE, plots.GREEN, plots.ORANGE, plots.RED)
    styles = zip(colours, ((4, 1.5), (1, 1), (6, 1, 1, 1), ()))
    for found, (colour, dashes) in zip(result["floors"].values(), styles):
        floor, values, intervals = plots.columns(found["rows"], "floor", "reduction", "ci95")
        share = np.divide(floor, found["lowest_loss_seen"])
        objective = plots.OBJECTIVES[found["objective"]].removesuffix(" loss")
        label = f"{_over(found)}, {objective}"
        style = {"dashes": dashes, "marker": "o", "ms": 3, "label": label}
        plots.curve(ax, share, values, intervals, colour=colour, band={"alpha": 0.25}, **style)
    ax.axhline(0, color=plots.BLACK, lw=0.8)
    ax.axhline(claimed.CLAIM, color=plots.BLACK, lw=1, ls="--", label="claimed 47 %")
    ax.set(xlabel="assumed best possible loss, as a share of the lowest loss seen", xlim=(0, 1))
    ax.set(ylabel="reduction above the floor", ylim=(-1, 1.05))
    if scaling is not None:
        _estimated_floor(ax, claimed.over_the_estimate(result, scaling))
    plots.percent_axis(ax.xaxis)
    plots.percent_axis(ax.yaxis)
    plots.legend_below(figure, 1)
    return figure


def _estimated_floor(ax: Axes, found: dict) -> None:
    """E as a line, its interval as a bar, and the mixture's reduction over it as a star."""
    if not found["possible"]:
        return
    at, *ends = (loss / found["lowest_loss"] for loss in (found["e"], *found["cut_ci95"]))
    law = f"E of the scaling law, velocity: {found['e']:.2f}"
    label = f"{law}; bar: its interval, cut at the lowest loss"
    ax.axvline(at, color=plots.BLUE, lw=1, ls=":", label=label)
    ax.plot(ends, [-0.93] * 2, color=plots.BLUE, lw=3, alpha=0.5, solid_capstyle="butt")
    mixture = next(row["reduction"] for row in found["rows"] if row["method"] == "mixture")
    if mixture is not None:
        style = {"ms": 8, "mfc": plots.SKY, "mec": plots.BLACK, "mew": 0.6, "zorder": 5}
        label = "mixture of Gaussians over full Gaussian, at E"
        ax.plot(at, mixture, "*", label=label, **style)
