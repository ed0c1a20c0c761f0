"""One function per figure of the applications. Reads results, never models."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from mmlib.style import BLUE, GREEN, PURPLE, RED, SKY, TEXT_WIDTH

TYPICALITY = {  # score of notebook 13 → name, colour, marker
    "mahalanobis": ("Mahalanobis distance (Gaussian)", BLUE, "s"), "sae": ("SAE, reconstruction error", GREEN, "^"),
    "mixture": ("mixture of Gaussians, likelihood", SKY, "D"), "denoise_mixture": ("mixture of Gaussians, denoising loss", PURPLE, "v"),
    "denoise_gated_mlp": ("gated MLP, denoising loss", RED, "o"),
}
COLUMNS = 108  # characters of a line of a passage
SHADE = 0.6  # of the colour map, for a token above all: black type stays legible


def typicality(result: dict) -> Figure:
    """AUROC of five scores on every shifted set, with intervals by document."""
    names, rows = list(result["sets"]), {(row["set"], row["score"]): row for row in result["rows"]}
    figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 0.8 + 0.27 * len(names)))
    for j, (score, (label, colour, marker)) in enumerate(TYPICALITY.items()):
        height = np.arange(len(names)) + 0.15 * (j - (len(TYPICALITY) - 1) / 2)
        mine = [rows[name, score] for name in names]
        area, (low, high) = np.array([row["auroc"] for row in mine]), np.transpose([row["ci95"] for row in mine])
        ax.hlines(height, low, high, color=colour, lw=0.9)
        ax.plot(area, height, color=colour, marker=marker, ms=3.2, ls="", label=label)
    ax.axvline(0.5, color="0.4", lw=0.8, ls=":")
    groups = [result["sets"][name]["group"] for name in names]
    for i in range(1, len(names)):
        inside = groups[i] == groups[i - 1]
        ax.axhline(i - 0.5, color="0.85" if inside else "0.4", lw=0.5 if inside else 0.8)
    ax.set_yticks(range(len(names)), [result["sets"][name]["title"] for name in names])
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="AUROC against test documents (½: not told apart; below: taken for more typical)",
           xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
    figure.legend(loc="outside lower center", ncol=2)
    return figure


def typicality_passage(result: dict) -> Figure:
    """A text whose tokens are the darker the less typical they are, by two scores."""
    passage = result["passage"]
    lines = _lines(passage["strings"], passage["segments"])
    names = ("denoise_gated_mlp", "mixture")
    figure, axes = plt.subplots(len(names), 1, figsize=(TEXT_WIDTH, 0.6 + 0.135 * len(names) * (len(lines) + 1)))
    for ax, name in zip(axes, names):
        for row, (title, tokens) in enumerate(lines):
            ax.text(-1, row + 0.5, title, ha="right", va="center", fontsize=6.5, style="italic")
            for i, column, string in tokens:
                shade = colormaps["Oranges"](SHADE * passage["ranks"][name][i])
                ax.add_patch(plt.Rectangle((column, row + 0.04), len(string), 0.92, color=shade, lw=0))
                ax.text(column, row + 0.5, string, va="center", fontsize=6.2, family="monospace", parse_math=False)
        ax.set(xlim=(0, COLUMNS), ylim=(len(lines), 0), title=TYPICALITY[name][0])
        ax.axis("off")
    shades = ScalarMappable(cmap=ListedColormap(colormaps["Oranges"](np.linspace(0, SHADE, 256))))
    bar = figure.colorbar(shades, ax=axes, location="bottom", fraction=0.03, aspect=60, pad=0.02)
    bar.set_label("share of validation tokens with a lower score")
    return figure


def _lines(strings: list[str], segments: list[str]) -> list[tuple[str, list[tuple[int, int, str]]]]:
    """Lines of a passage in a type of equal widths: (segment that begins there or "", its tokens as (number, column, text))."""
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
