"""Figures of telling unusual activations from usual ones: notebook 13."""

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from mmlib import plots

_SCORES = {  # label, colour, marker and its face: the mixture has two scores
    "mahalanobis": ("Mahalanobis distance (Gaussian)", plots.BLUE, "s", None),
    "sae": ("SAE, reconstruction error", plots.GREEN, "^", None),
    "mixture": ("mixture of Gaussians, likelihood", plots.SKY, "D", None),
    "denoise_mixture": ("mixture of Gaussians, denoising loss", plots.SKY, "v", "white"),
    **{
        f"denoise_{name}": (f"{label}, denoising loss", plots.RED, "o", None)
        for name, label in (("mixture_mlp", "our network"), ("gated_mlp", "gated MLP"))
    },
}


def typicality(result: dict) -> Figure:
    """AUROC of five scores on every shifted set, with intervals by document."""
    sets, found = result["sets"], result["auroc"]
    scores = [name for name in _SCORES if name in result["scores"]]
    figure, ax = plots.panels(1, 1, 0.8 + 0.27 * len(sets))
    for j, score in enumerate(scores):
        label, colour, marker, face = _SCORES[score]
        style = {"colour": colour, "marker": marker, "mfc": face, "size": 3.2, "width": 0.9}
        for i, name in enumerate(sets):
            row, y = found[name][score], i + 0.15 * (j - (len(scores) - 1) / 2)
            bar = {"solid_capstyle": "butt"}
            plots.forest(ax, row["auroc"], y, row["ci95"], bar=bar, **style)
        label = plots.named(label, result["meta_model"])
        ax.plot([], [], color=colour, marker=marker, mfc=face, ms=3.2, ls="", label=label)
    ax.axvline(0.5, color="0.4", lw=0.8, ls=":")
    groups = [row["group"] for row in sets.values()]
    for i in range(1, len(groups)):
        inside = groups[i] == groups[i - 1]
        ax.axhline(i - 0.5, color="0.85" if inside else "0.4", lw=0.5 if inside else 0.8)
    titles = [plots.named(row["title"], result["meta_model"]) for row in sets.values()]
    plots.height_axis(ax, titles)
    ax.tick_params(axis="y", length=0)
    lowest = min(0.5, *(found[name][score]["ci95"][0] for name in sets for score in scores))
    ax.set(xlim=(lowest - 0.02, 1.02))
    ax.set(xlabel="AUROC against test documents (½: as typical; below: taken for more typical)")
    plots.legend_below(figure, 2)
    return figure


COLUMNS = 96  # characters of a line of a passage

_SHADE = 0.6  # of the colour map, for a token above all: black type stays legible


def typicality_passage(result: dict) -> Figure:
    """A text whose tokens are the darker the less typical they are, by two scores."""
    passage = result["passage"]
    ours = plots.ours(name.removeprefix("denoise_") for name in passage["ranks"])
    names = (f"denoise_{ours}", "mixture")
    lines = passage_lines(passage["strings"], passage["segments"])
    height = 0.6 + 0.15 * len(names) * (len(lines) + 1)
    figure, axes = plots.panels(len(names), 1, height)
    for ax, name in zip(axes, names):
        for row, (title, tokens) in enumerate(lines):
            style = {"ha": "right", "va": "center", "fontsize": plots.SMALLEST, "style": "italic"}
            ax.text(-1, row + 0.5, title, **style)
            for i, column, text in tokens:
                shade = {"color": colormaps["Oranges"](_SHADE * passage["ranks"][name][i])}
                place = (column, row + 0.5, len(text), 0.92)
                plots.shaded_text(ax, text, *place, shade=shade, fontsize=plots.SMALLEST)
        ax.set(xlim=(0, COLUMNS), ylim=(len(lines), 0))
        ax.set(title=plots.named(_SCORES[name][0], result["meta_model"]))
        ax.axis("off")
    shades = ScalarMappable(cmap=ListedColormap(colormaps["Oranges"](np.linspace(0, _SHADE, 256))))
    bar = figure.colorbar(shades, ax=axes, location="bottom", fraction=0.03, aspect=60, pad=0.02)
    bar.set_label("share of validation tokens with a lower score")
    return figure


def passage_lines(
    strings: list[str], segments: list[str]
) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Lines of a passage in a type of equal widths.

    Returns:
        Each line: the segment that begins there, or "", and tokens as (number, column, text).
    """
    lines, column = [], 0
    for i, (string, segment) in enumerate(zip(strings, segments)):
        begins = i == 0 or segment != segments[i - 1]
        text = string.replace("\n", "↵").replace("\t", " ")
        if begins or column + len(text) > COLUMNS:
            lines.append((segment if begins else "", []))
            column = 0
        lines[-1][1].append((i, column, text))
        column += len(text)
    return lines
