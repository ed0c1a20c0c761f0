"""Figures of other amounts of compute, layers and texts: notebooks 06 and 23."""

import itertools
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from numpy.typing import ArrayLike

from mmlib import plots


def scaling(result: dict) -> Figure:
    """Loss against compute by size, the law through the lower envelope, and the claim."""
    figure, ax = plots.panels(1, 1, 3.4)
    trials, reach = result["trials"], result["extrapolation"]
    widths = sorted({trial["d_model"] for trial in trials.values()})
    looks = zip(plots.shades(plots.INDIGO, len(widths)), itertools.cycle("vD^so<>"))
    for width, (colour, marker) in zip(widths, looks):
        mine = [trial for trial in trials.values() if trial["d_model"] == width]
        mine.sort(key=lambda trial: trial["compute"])
        label = f"width {width}, {mine[0]['parameters'] / 1e6:.2g} M parameters"
        style = {"color": colour, "marker": marker, "ms": 4, "lw": 0.8}
        ax.plot(*plots.columns(mine, "compute", "loss"), label=label, **style)
    best = [trial for name, trial in trials.items() if name in result["envelope"]]
    style = {"marker": "o", "ms": 8, "mfc": "none", "mec": plots.BLACK, "mew": 0.8, "ls": ""}
    ax.plot(*plots.columns(best, "compute", "loss"), label="lower envelope", **style)
    _law(ax, result["curve"], reach["largest_measured"])
    end = result["curve"]["compute"][-1]
    claimed = f"{100 * result['claim']:.0f} % below the Gaussian"
    for loss, text, (colour, dashes) in (
        (result["references"]["mean"]["loss"], "mean only", plots.LINES["mean"]),
        (result["references"]["gaussian"]["loss"], "full Gaussian", plots.LINES["gaussian"]),
        (reach["loss"], claimed, (plots.BLACK, (8, 2, 1, 2, 1, 2))),
    ):
        ax.axhline(loss, color=colour, dashes=dashes, lw=1)
        plots.note(ax, text, (end, loss), (0, 2), ha="right")
    (losses,) = plots.columns(trials.values(), "loss")
    ax.set(xscale="log", ylim=(0.9 * min(reach["loss"], *losses), 1.05 * max(losses)))
    ax.set(xlabel="compute C = 6·N·D (FLOP)")
    ax.set(ylabel=f"{plots.OBJECTIVES['flow_velocity']} per dimension, test")
    plots.legend_below(figure, 3, ax.get_legend_handles_labels()[0])
    return figure


def _law(ax: Axes, found: dict, largest_measured: float) -> None:
    """The law with its band, dashed beyond the largest compute that was measured."""
    compute, loss, low, high = (np.array(found[k]) for k in ("compute", "loss", "low", "high"))
    label = "95 % over resamples of the cells"
    ax.fill_between(compute, low, high, color="0.5", alpha=0.25, lw=0, label=label)
    measured, style = compute <= largest_measured, {"color": plots.BLACK, "lw": 1.2}
    label = r"$E + A\,C^{-\alpha}$"
    ax.plot(compute[measured], loss[measured], label=label, **style)
    label, style = "the same, extrapolated", {**style, "ls": (0, (4, 2))}
    ax.plot(compute[~measured], loss[~measured], label=label, **style)


_TEXTS = {
    "self": "the model's own\nsamples",
    "newsgroups": "newsgroups,\nletters only",
    "wikipedia": "Wikipedia",
}

_SHOWN = (  # groups, a row each, where they were measured
    "mixture_mlp",
    "gated_mlp",
    "mlp",
    "denoising_sae",
    "sae",
    "mixture",
    "mixture_average",
)


def robustness(result: dict) -> Figure:
    """A small MLP by layer and text, and all methods by text, over two baselines each."""
    figure = plt.figure(figsize=(plots.TEXT_WIDTH, 4.9))
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.1, 2.8))
    _layers_and_texts(top, result["grid"])
    _by_text(bottom, result)
    return figure


def _layers_and_texts(figure: SubFigure, grid: dict[str, dict]) -> None:
    """Two maps of the small MLP's velocity reductions on one scale, an interval in each cell."""
    texts, layers = list(grid), list(next(iter(grid.values())))
    titles = {
        "over_gaussian": "small MLP over the full Gaussian",
        "over_mixture": "small MLP over the mixture of Gaussians",
    }
    cells = {k: [[grid[text][layer][k] for text in texts] for layer in layers] for k in titles}
    values = {k: np.array([plots.columns(row, "reduction")[0] for row in cells[k]]) for k in titles}
    low, high = np.min(list(values.values())), np.max(list(values.values()))
    for ax, (key, title) in zip(figure.subplots(1, 2, sharey=True), titles.items()):
        words = [[_in_words(cell) for cell in row] for row in cells[key]]
        image = heat_map(ax, values[key], words, low, high)
        ax.set(xticks=range(len(texts)), xticklabels=[_TEXTS.get(text, text) for text in texts])
        ax.set(yticks=range(len(layers)), yticklabels=[f"layer {layer}" for layer in layers])
        ax.set(title=title)
    bar = figure.colorbar(image, ax=figure.axes, pad=0.01, fraction=0.03)
    plots.percent_axis(bar.ax.yaxis)
    bar.set_label("reduction, velocity loss")
    bar.outline.set_visible(False)


def heat_map(
    ax: Axes, values: ArrayLike, texts: Sequence[Sequence[str]], low: float, high: float
) -> AxesImage:
    """A map of values with a text in each cell, white where the cell is dark.

    Where the scale has both signs, 0 is white and equal sizes are equally dark.

    Args:
        values: (rows, columns). texts: as many, in the same order.
        low, high: ends of the scale of colours, which maps side by side share.

    Returns:
        What a colour bar is drawn of.
    """
    if low < 0 < high:
        low, high = -max(-low, high), max(-low, high)
        colours = colormaps["PuOr"]  # told apart by all kinds of colour vision
    else:
        colours = colormaps["cividis"]
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ink = "white" if _luminance(image.to_rgba(value)) < 0.4 else plots.BLACK
        style = {"ha": "center", "va": "center", "fontsize": plots.SMALLEST, "linespacing": 1.3}
        ax.text(j, i, texts[i][j], color=ink, **style)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _luminance(colour: Sequence[float]) -> float:
    """How light red, green and blue are together, 0 to 1."""
    return float(np.dot(colour[:3], (0.299, 0.587, 0.114)))


def _in_words(cell: dict) -> str:
    shares = (cell["reduction"], *cell["ci95"])
    value, low, high = (plots.percent(share, "+.1f") for share in shares)
    return f"{value} %\n[{low}, {high}]"


_MARKS = (  # of a text: colour, marker, how far from the row's height
    (plots.INDIGO, "o", -0.2),
    (plots.OLIVE, "s", 0.0),
    (plots.WINE, "^", 0.2),
)


def _by_text(figure: SubFigure, result: dict) -> None:
    """Velocity reductions of every method by text: over the Gaussian, and over the mixture."""
    found, marks = result["reductions"], dict(zip(result["grid"], _MARKS))
    shown = [name for name in _SHOWN if name in found]
    rows = [(plots.LABELS[name], found[name], name) for name in shown]
    for name, label in (("small_mlp", "small MLP"), ("mixture", "mixture")):
        rows.append((f"{label}, whitened", found.get("coordinates", {}), name))
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (1.2, 1)})
    for ax, baseline in zip(axes, ("gaussian", "mixture")):
        for y, (_, cells, method) in enumerate(rows):
            for cell, losses in cells.items():
                row = losses["flow_velocity"]["all"].get(method, {}).get(baseline)
                if row is not None:
                    colour, marker, shift = marks[cell.rsplit("-", 2)[0]]
                    style = {"colour": colour, "marker": marker, "size": 4}
                    plots.forest(ax, row["value"], y + shift, row["ci95"], **style)
        ax.axhline(len(shown) - 0.5, color="0.8", lw=0.6)
        ax.axvline(0, color=plots.BLACK, lw=0.8)
        ax.set(title=f"over the {plots.LABELS[baseline]}", xlabel="reduction of the velocity loss")
        plots.height_axis(ax, [label for label, _, _ in rows])
        plots.percent_axis(ax.xaxis)
        ax.locator_params(axis="x", nbins=4)
    claim, style = result["claim"], {"ha": "right", "va": "top"}
    axes[0].axvline(claim, color=plots.BLACK, lw=1, ls="--")
    plots.note(axes[0], f"claimed {100 * claim:.0f} %", (claim, -0.5), (-3, -2), **style)
    handles = [
        plots.in_legend(_TEXTS.get(text, text).replace("\n", " "), colour, marker=marker, ms=4)
        for text, (colour, marker, _) in marks.items()
    ]
    plots.legend_below(figure, 3, handles)
