"""Figures of the compared loss, by noise level, as reductions, and over a floor: notebook 04."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlib import plots
from mmlib.evaluation import claim as claimed

_COMPARED = (
    "unet",
    "mean",
    "sae",
    "denoising_sae",
    "mlp",
    "mixture",
    "gated_mlp",
    "mixture_average",
    "mixture_mlp",
)


def loss_by_noise(result: dict) -> Figure:
    """Velocity loss against the noise level, and over the full Gaussian's: curves that lie on each
    other as losses stand apart as ratios, which are those of the ε loss too.
    """
    figure, (losses, ratios) = plots.panels(1, 2, 3.3)
    curves = result["curves"]["flow_velocity"]
    sigma, gaussian = np.asarray(curves["sigma"]), np.asarray(curves["loss"]["gaussian"])
    compared = {
        name: np.asarray(curves["loss"][name]) for name in _COMPARED if name in curves["loss"]
    }
    for method, loss in ({"gaussian": gaussian} | compared).items():
        colour, dashes = plots.LINES[method]
        style = {"dashes": dashes, "lw": 1.3, "label": plots.LABELS[method]}
        plots.curve(losses, sigma, loss, colour=colour, **style)
        plots.curve(ratios, sigma, loss / gaussian, colour=colour, **style)
    ends = {"color": plots.BLACK, "mfc": "white", "ms": 5, "ls": "", "clip_on": False, "zorder": 5}
    losses.plot((0, 1), (1, 1), marker="D", label="limits of the best loss", **ends)
    least, most = min(map(np.min, compared.values())), np.max(compared["mean"])
    losses.set(title="velocity loss per dimension", ylim=(0.9 * least, 1.1 * most))
    shares = {name: loss / gaussian for name, loss in compared.items()}
    least, most = min(map(np.min, shares.values())), np.max(shares["mean"])
    ratios.set(title="the same, as a share of the full Gaussian's", ylim=(0.9 * least, 1.05 * most))
    plots.percent_axis(ratios.yaxis)
    for ax in (losses, ratios):
        ax.set(xlim=(0, 1), xlabel="noise level σ")
    plots.legend_below(figure, 3, losses.get_legend_handles_labels()[0])
    return figure


_LEAST = -0.5  # reduction at the left end of the axis


def reductions(result: dict, replication: dict | None = None) -> Figure:
    """The primary definitions; then the reduction of the loss by each network over each baseline.

    Args:
        replication: results of notebook 24, whose training seeds become small ticks.
    """
    figure = plt.figure(figsize=(plots.TEXT_WIDTH, 6.2))
    grid, found = figure.add_gridspec(2, 3, height_ratios=(1.6, 2.6)), result["reductions"]
    seeds = replication["seeds"] if replication else {}
    _primary(figure.add_subplot(grid[0, :]), result["primaries"], seeds)
    baselines = [name for name in found["flow_velocity"]["mlp"] if name not in plots.NAIVE]
    first = None
    named = [row["method"] for row in result["primaries"].values()]
    methods = list(dict.fromkeys(named))
    shown = [
        found[o][m][b]["ci95"][1] for o in plots.OBJECTIVES for m in methods for b in baselines
    ]
    for column, method in enumerate(methods):
        first = ax = figure.add_subplot(grid[1, column], sharey=first)
        for y, baseline in enumerate(baselines):
            for objective, beside in zip(plots.OBJECTIVES, (-0.17, 0.17)):
                _reduction(ax, found[objective][method][baseline], objective, y + beside)
        _reduction_axis(ax, max(0.6, 0.05 + max(shown)))
        ax.set(title=f"{_short(method)} over")
        plots.height_axis(ax, [plots.LABELS[baseline] for baseline in baselines])
        ax.set_ylim(top=-0.7)
        ax.tick_params(labelleft=column == 0)
    for objective, label in plots.OBJECTIVES.items():
        colour, marker = plots.LOSSES[objective]
        first.plot([], [], ms=4, label=label, color=colour, marker=marker)
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
    _reduction_axis(ax, 1.05)
    ax.set(title="47 % of what? The definitions [95 % interval by document]")
    plots.height_axis(ax, labels)


def _short(method: str) -> str:
    """Its label, in few words where there is little room."""
    return "ours" if method == "mixture_mlp" else plots.LABELS[method]


def _over(row: dict) -> str:
    return f"{_short(row['method'])} over {_short(row['baseline'])}"


def _reduction_axis(ax: Axes, most: float) -> None:
    ax.axvline(0, color=plots.BLACK, lw=0.8, zorder=1)
    ax.axvline(claimed.CLAIM, color=plots.BLACK, lw=1, ls="--", zorder=1)
    ticks = [tick for tick in (0, 0.5, 1) if tick <= most]
    ax.set(xlim=(_LEAST, most), xticks=ticks, xlabel="reduction of the loss")
    plots.percent_axis(ax.xaxis)


def _reduction(ax: Axes, row: dict, objective: str, y: float) -> None:
    """A point with its interval; what is left of the axis is an arrow with its value."""
    (colour, marker), (low, high) = plots.LOSSES[objective], row["ci95"]
    if row["value"] < _LEAST:
        style = {"color": colour, "va": "center"}
        style["bbox"] = {"fc": "white", "ec": "none", "pad": 0}
        text = f"◂ {plots.percent(row['value'], ',.0f')} %"
        plots.note(ax, text, (_LEAST, y), (2, 0), **style)
    else:
        style = {"colour": colour, "marker": marker, "size": 4}
        plots.forest(ax, row["value"], y, (max(low, _LEAST), high), **style)


def floors(result: dict, scaling: dict | None = None) -> Figure:
    """The reduction of what can be reduced, against the unknown best possible loss.

    Args:
        scaling: results of notebook 06, whose E is marked.
    """
    figure, ax = plots.panels(1, 1, 3.0)
    ends = {}  # words at the right → height of the curve's end
    for found in result["floors"].values():
        floor, values, intervals = plots.columns(found["rows"], "floor", "reduction", "ci95")
        share = np.divide(floor, found["lowest_loss_seen"])
        colour, dashes = plots.LINES[found["method"]]
        style = {"dashes": dashes, "marker": plots.LOSSES[found["objective"]][1], "ms": 3.5}
        plots.curve(ax, share, values, intervals, colour=colour, band={"alpha": 0.25}, **style)
        ends[_over(found)] = float(np.clip(values[-1], -1, 1))  # or words would leave the figure
    ax.axhline(0, color=plots.BLACK, lw=0.8)
    ax.axhline(claimed.CLAIM, color=plots.BLACK, lw=1, ls="--", label="claimed 47 %")
    ax.set(xlabel="assumed best possible loss, as a share of the lowest loss seen", xlim=(0, 1))
    ax.set(ylabel="reduction above the floor", ylim=(-1, 1.05))
    y = np.inf
    for text in sorted(ends, key=ends.get, reverse=True):
        y = min(ends[text], y - 0.14)  # words do not touch
        plots.note(ax, text, (1, y), (3, 0), va="center", annotation_clip=False)
    for objective, label in plots.OBJECTIVES.items():
        ax.plot([], [], marker=plots.LOSSES[objective][1], color="0.4", ms=3.5, label=label)
    if scaling is not None:
        _estimated_floor(ax, claimed.over_the_estimate(result, scaling))
    plots.percent_axis(ax.xaxis)
    plots.percent_axis(ax.yaxis)
    plots.legend_below(figure, 2)
    return figure


def _estimated_floor(ax: Axes, found: dict) -> None:
    """E as a line, its interval as a bar, and the reduction over it of the mixture, or of the average
    of mixtures if its loss is lower, as a star.
    """
    if not found["possible"]:
        return
    at, *ends = (loss / found["lowest_loss"] for loss in (found["e"], *found["cut_ci95"]))
    law = f"E of the scaling law, velocity: {found['e']:.2f}"
    label = f"{law}; bar: its interval, cut at the lowest loss"
    ax.axvline(at, color="0.4", lw=1, ls=":", label=label)
    ax.plot(ends, [-0.93] * 2, color="0.4", lw=3, alpha=0.5, solid_capstyle="butt")
    mixtures = [row for row in found["rows"] if row["method"] in claimed.MIXTURES]
    best = max(mixtures, key=lambda row: row["over_zero"])
    if best["reduction"] is not None:
        style = {"ms": 8, "mfc": plots.SKY, "mec": plots.BLACK, "mew": 0.6, "zorder": 5}
        label = f"{_over(best)}, at E"
        ax.plot(at, best["reduction"], "*", label=label, **style)
