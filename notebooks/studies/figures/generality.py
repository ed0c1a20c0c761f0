"""Figures of other amounts of compute, layers and texts: notebooks 06 and 23."""

from collections.abc import Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
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
    hues = (plots.SKY, plots.ORANGE, plots.GREEN, plots.PURPLE, plots.RED, plots.BLUE, plots.BLACK)
    for width, colour, marker in zip(widths, hues, "vD^so<>"):
        mine = [trial for trial in trials.values() if trial["d_model"] == width]
        mine.sort(key=lambda trial: trial["compute"])
        label = f"width {width}, {mine[0]['parameters'] / 1e6:.2g} M"
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

# groups of rows that the two maps show, or that a sentence tells
_IN_THE_GRID = ("layers", "texts", "layers and texts", "seeds")


def robustness(result: dict) -> Figure:
    """Reductions by layer and text over two baselines, then others, also without outliers."""
    rows = list(_over_the_gaussian(result["reductions"]))
    labels = list(dict.fromkeys((row["group"], row["label"]) for row in rows))
    figure = plt.figure(figsize=(plots.TEXT_WIDTH, 3.0 + 0.24 * len(labels)))
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.2, 0.8 + 0.24 * len(labels)))
    _layers_and_texts(top, result["grid"])
    _further_rows(bottom, rows, labels, result["claim"])
    return figure


def _over_the_gaussian(reductions: dict[str, dict]) -> Iterator[dict]:
    """Rows of the lower panel, with the names under which they stand."""
    for group in (group for group in reductions if group not in _IN_THE_GRID):
        for cell in reductions[group].values():
            for objective, by_tokens in cell.items():
                for tokens, by_method in by_tokens.items():
                    for found in by_method.values():
                        if "gaussian" in found:
                            names = {"group": group, "objective": objective, "tokens": tokens}
                            yield names | found["gaussian"]


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

    Args:
        values: (rows, columns). texts: as many, in the same order.
        low, high: ends of the scale of colours, which maps side by side share.

    Returns:
        What a colour bar is drawn of.
    """
    image = ax.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ink = "white" if value < (low + high) / 2 else plots.BLACK
        style = {"ha": "center", "va": "center", "fontsize": 7, "linespacing": 1.3}
        ax.text(j, i, texts[i][j], color=ink, **style)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def _in_words(cell: dict) -> str:
    shares = (cell["reduction"], *cell["ci95"])
    value, low, high = (plots.percent(share, "+.1f") for share in shares)
    return f"{value} %\n[{low}, {high}]"


_SIDES = {"flow_velocity": (-1, plots.BLUE), "ddpm_epsilon": (1, plots.RED)}  # of a row's height


def _further_rows(
    figure: SubFigure, rows: list[dict], labels: list[tuple[str, str]], claim: float
) -> None:
    ax = figure.subplots()
    for row in rows:
        side, colour = _SIDES[row["objective"]]
        style = {"colour": colour, "marker": plots.MARKERS[row["objective"]]}
        y = labels.index((row["group"], row["label"])) + 0.14 * side
        if row["tokens"] == "all":
            plots.forest(ax, row["value"], y, row["ci95"], **style)
        else:
            plots.forest(ax, row["value"], y + 0.16 * side, size=3, mfc="white", **style)
    for i in range(1, len(labels)):
        if labels[i][0] != labels[i - 1][0]:
            ax.axhline(i - 0.5, color="0.8", lw=0.6)
    ax.axvline(0, color=plots.BLACK, lw=0.8)
    ax.axvline(claim, color=plots.BLACK, lw=1, ls="--")
    plots.note(ax, f"claimed {100 * claim:.0f} %", (claim, -0.5), (-3, -2), ha="right", va="top")
    ax.set(xlabel="reduction of the loss over the full Gaussian of the same training documents")
    plots.height_axis(ax, [_said(label) for _, label in labels])
    plots.percent_axis(ax.xaxis)
    handles = [
        plots.in_legend(label, _SIDES[objective][1], marker=plots.MARKERS[objective], ms=4.5)
        for objective, label in plots.OBJECTIVES.items()
    ]
    style = {"marker": "o", "mfc": "white", "ms": 3, "ls": ""}
    hollow = plots.in_legend("hollow: without outliers", "0.3", **style)
    plots.legend_below(figure, 3, [*handles, hollow])


def _said(label: str) -> str:
    """The label of a row with its texts named as a reader would name them."""
    whole = {text: name.replace("\n", " ") for text, name in _TEXTS.items()}
    for text in ("self", "newsgroups"):
        label = label.replace(f"on {text}", f"on {whole[text]}")
    return label
