"""The figure of the best model: notebook 26."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlib import plots

_METHODS = ("mixture", "mixture_average", "mixture_mlp")


def best_model(result: dict) -> Figure:
    """Validation loss of averages as they grow and of ours, by seconds; and the loss along the
    noise on fresh articles, as a share of the single mixture's.
    """
    figure, (grown, shares) = plots.panels(1, 2, 3.0)
    _grown(grown, result)
    curves, tenths = result["curves"]["fresh"], np.arange(10) / 10 + 0.05
    by_tenth = {name: np.reshape(curves[name], (10, -1)).mean(1) for name in _METHODS}
    for name in _METHODS:
        colour, dashes = plots.LINES[name]
        share = by_tenth[name] / by_tenth["mixture"]
        style = {"colour": colour, "dashes": dashes, "label": plots.LABELS[name]}
        plots.curve(shares, tenths, share, **style)
    shares.set(xlim=(0, 1), xlabel="noise level σ", title="loss, as a share of one mixture's")
    plots.percent_axis(shares.yaxis)
    plots.legend_below(figure, 3, shares.get_legend_handles_labels()[0])
    return figure


def _grown(ax: Axes, result: dict) -> None:
    for (components, rows), marker in zip(result["averages"].items(), "os^v"):
        seconds, losses = plots.columns(rows.values(), "seconds", "validation")
        colour, _ = plots.LINES["mixture_average"]
        ax.plot(seconds, losses, color=colour, marker=marker, ms=3.5, lw=1)
        text = f"of {int(components):,} components"
        plots.note(ax, text, (seconds[0], losses[0]), (6, 0), va="center")
    found, colour = result["losses"]["validation"]["mixture_mlp"], plots.LINES["mixture_mlp"][0]
    values = found["values"]
    ax.plot([found["seconds"]] * len(values), values, "D", ms=4, color=colour)
    plots.note(ax, "ours", (found["seconds"], max(values)), (0, 5), ha="center", color=colour)
    ax.set(xlabel="seconds of fitting", title="velocity loss, validation documents")
    ax.set_xlim(left=0)
