"""The figure of the best model: notebook 26."""

import numpy as np
from matplotlib.figure import Figure

from mmlib import plots

_METHODS = ("gaussian", "gated_mlp", "blend", "mixture", "ours")
_LOOKS = {
    "gaussian": ("full Gaussian", plots.BLACK, (1, 1)),
    "gated_mlp": ("gated network", plots.RED, (4, 1.5)),
    "blend": ("blend of the two", plots.OLIVE, (6, 1.5)),
    "mixture": ("best mixture", plots.LINES["mixture"][0], ()),
    "ours": ("network on a mixture", plots.RED, ()),
}


def best_model(result: dict) -> Figure:
    """Velocity loss of each method on fresh articles, with every seed; and along the noise, as a
    share of the best mixture's.
    """
    figure, (losses, shares) = plots.panels(1, 2, 3.0)
    for y, name in enumerate(_METHODS):
        label, colour, _ = _LOOKS[name]
        values = result["losses"]["fresh"][name]["values"]
        losses.plot(values, [y] * len(values), "o", color=colour, ms=4)
        losses.text(np.mean(values), y + 0.22, label, ha="center", fontsize=7)
    losses.set(yticks=(), ylim=(-0.5, len(_METHODS)), xlabel="velocity loss on fresh articles")
    curves = result["curves"]["fresh"]
    mixture, tenths = np.asarray(curves["mixture"]), np.arange(10) / 10 + 0.05
    for name in ("gated_mlp", "blend", "ours"):
        label, colour, dashes = _LOOKS[name]
        share = np.asarray(curves[name]).reshape(10, -1).mean(1) / mixture.reshape(10, -1).mean(1)
        plots.curve(shares, tenths, share, colour=colour, dashes=dashes, label=label)
    shares.axhline(1, color="0.6", lw=0.8)
    shares.set(xlim=(0, 1), xlabel="noise level σ", title="loss, as a share of the best mixture's")
    plots.percent_axis(shares.yaxis)
    plots.legend_below(figure, 3, shares.get_legend_handles_labels()[0])
    return figure
