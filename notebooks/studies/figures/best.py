"""The figure of the best model: notebook 26."""

import numpy as np
from matplotlib.figure import Figure

from mmlib import plots
from mmlib.evaluation.claim import CLAIM

_METHODS = ("gated_mlp", "blend", "mixture", "mixture_mlp")


def best_model(result: dict) -> Figure:
    """Reduction of the velocity loss over the best linear method on the fresh articles, a point a
    seed, beside the claimed 47 %; and the loss along the noise, as a share of the best mixture's.
    """
    figure, (reductions, shares) = plots.panels(1, 2, 3.0)
    fresh = result["losses"]["fresh"]
    for y, name in enumerate(_METHODS):
        values = 1 - np.array(fresh[name]["values"]) / fresh["gaussian"]["mean"]
        style = {"color": plots.LINES[name][0], "ms": 4, "alpha": 0.8}
        reductions.plot(values, [y] * len(values), "o", **style)
        text = {"fontsize": plots.SMALLEST, "transform": reductions.get_yaxis_transform()}
        reductions.text(0.02, y + 0.2, plots.LABELS[name], **text)
    reductions.axvline(CLAIM, color=plots.BLACK, lw=1, dashes=(4, 2))
    reductions.set(yticks=(), ylim=(-0.5, len(_METHODS)), xlim=(0, 0.52))
    reductions.set(xlabel="reduction over the full Gaussian, and 47 %")
    plots.percent_axis(reductions.xaxis)
    curves = result["curves"]["fresh"]
    tenths = np.arange(10) / 10 + 0.05
    by_tenth = {name: np.reshape(curves[name], (10, -1)).mean(1) for name in _METHODS}
    for name in ("gated_mlp", "blend", "mixture_mlp"):
        colour, dashes = plots.LINES[name]
        share = by_tenth[name] / by_tenth["mixture"]
        label = plots.LABELS[name]
        plots.curve(shares, tenths, share, colour=colour, dashes=dashes, label=label)
    shares.axhline(1, color=plots.LINES["mixture"][0], lw=1, label=plots.LABELS["mixture"])
    shares.set(xlim=(0, 1), xlabel="noise level σ", title="loss, as a share of the best mixture's")
    plots.percent_axis(shares.yaxis)
    plots.legend_below(figure, 2, shares.get_legend_handles_labels()[0])
    return figure
