"""Figures of units and dictionaries: probes of one unit, clamped units, the contexts of a unit. Notebook 12."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from mmlib.plots import (
    BLACK,
    BLUE,
    GREEN,
    LABELS,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TEXT_WIDTH,
    columns,
    curve,
    forest,
    height_axis,
    in_legend,
    legend_below,
    named,
    shaded_text,
)

_UNITS = {  # of a dictionary: label, colour
    "gated_mlp": ("meta-neurons, gated MLP (ours)", RED),
    "mlp": ("meta-neurons, MLP (paper)", ORANGE),
    "unet": ("meta-neurons, UNet (article)", PURPLE),
    "untrained": ("meta-neurons, MLP untrained", BLACK),
    "random": ("random directions", "0.45"),
    "random_silu": ("random SiLU features", "0.65"),
    "raw": ("dimensions", BLUE),
    "lm_neurons": ("neurons of the block's MLP", "#7A5C00"),
    "pca": ("principal components", SKY),
    "sae": ("SAE latents", GREEN),
    "sae_dense": ("SAE latents before TopK", "#00513B"),
    "mixture": (LABELS["mixture"], "#8C4B6E"),
    "mean_difference": ("difference of class means", BLACK),
}

_PAIR = {"full": {"marker": "o"}, "hollow": {"marker": "s", "mfc": "white"}}  # of a dictionary


def probing(result: dict) -> Figure:
    """Held-out AUC of one-unit probes by dictionary, with all units and with equally many candidates; and against the noise level."""
    figure, (kinds, noise) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 3.3), width_ratios=(1.35, 1))
    rows = sorted(result["rows"], key=lambda row: row["all"]["mean"])
    for y, row in enumerate(rows):
        style = {"colour": _UNITS[row["name"]][1], "width": 1.3}
        for key, shift, marks in (("all", 0.17, "full"), ("few", -0.17, "hollow")):
            found = row[key]
            forest(kinds, found["mean"], y + shift, found["ci95"], **_PAIR[marks], **style)
    _references(kinds, result, len(rows))
    titles = {name: named(label, result["meta_model"]) for name, (label, _) in _UNITS.items()}
    labels = [f"{titles[row['name']]} ({row['units']:,})" for row in rows]
    height_axis(kinds, labels, margin=0.6, rising=True)
    kinds.set(xlabel=f"mean AUC over {len(result['tasks'])} tasks, held out")
    for name, marker in (("gated_mlp", "o"), ("mlp", "s"), ("untrained", "^"), ("raw", "v")):
        found = [row for row in result["by_sigma"] if row["name"] == name]
        if found:  # results of before the paper's MLP was read at every σ lack it
            label = titles[name] + (", with that noise" if name == "raw" else "")
            _by_sigma(noise, found, _UNITS[name][1], marker, label)
    label = f"{result['candidates']} at random"
    noise.plot([], [], color="0.4", dashes=(3, 1.5), label=label)
    sigmas = sorted({row["sigma"] for row in result["by_sigma"]})
    noise.set(xlabel="σ at which units are read", ylabel="mean AUC", xscale="log")
    noise.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
    noise.minorticks_off()
    handles = [handle for ax in (kinds, noise) for handle in ax.get_legend_handles_labels()[0]]
    legend_below(figure, 3, handles)
    return figure


def _references(ax: Axes, result: dict, n: int) -> None:
    """Probes of all dimensions as lines, published numbers above the n rows; and what the rows' marks mean."""
    signs = {"color": "0.4", "ls": "", "ms": 4.5}
    ax.plot([], [], label="chosen from all units", **_PAIR["full"], **signs)
    few = f"from at most {result['candidates']} at random"
    ax.plot([], [], label=few, **_PAIR["hollow"], **signs)
    for name, dashes, label in (
        ("mean_difference", (4, 1.5), "fitted: difference of class means"),
        ("dense", (1, 1), "fitted: all dimensions"),
    ):
        mean = result["references"][name]["mean"]
        ax.axvline(mean, color=BLACK, lw=0.9, dashes=dashes, label=label)
    for (name, value), colour, marker in zip(result["published"].items(), (RED, GREEN), "vD"):
        style = {"color": colour, "marker": marker, "mfc": "none", "ms": 4.5, "ls": ""}
        label = f"published, other model: {name}"
        ax.plot(value, n - 0.35, clip_on=False, label=label, **style)


def _by_sigma(ax: Axes, rows: list[dict], colour: str, marker: str, label: str) -> None:
    """AUC against σ with all units, and dashed with few; there are no more dimensions than candidates."""
    style = {"colour": colour, "marker": marker, "ms": 3.5}
    kinds = {"all": {"dashes": ()}, "few": {"dashes": (3, 1.5), "mfc": "white"}}
    for key in ("all",) if rows[0]["name"] == "raw" else kinds:
        mean, interval = columns((row[key] for row in rows), "mean", "ci95")
        (sigma,) = columns(rows, "sigma")
        bars = {"lw": 0.7}
        curve(ax, sigma, mean, interval, bars=bars, lw=1.1, zorder=2.1, **style, **kinds[key])
    ax.plot([], [], color=colour, marker=marker, ms=3.5, label=label)


def clamping(result: dict) -> Figure:
    """What clamping the chosen unit, and matched random units, does to the next token's log-odds, in parts of the gap between the classes."""
    found = result["clamping"]
    if "skipped" in found:
        return _said(f"No unit was clamped. {found['skipped']}")
    figure, panels = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.9), sharey=True)
    titles = {"unscaled": "clamped to the positive mean", "scaled": "all changes at one norm"}
    for ax, (scale, title) in zip(panels, titles.items()):
        rows = [row for row in reversed(found["effects"]) if row["scale"] == scale]
        for y, row in enumerate(rows):
            _clamped(ax, row, y)
        ax.axvline(0, color=BLACK, lw=0.8)
        labels = [named(_UNITS[row["name"]][0], result["meta_model"]) for row in rows]
        ax.set(yticks=range(len(rows)), yticklabels=labels)
        ax.set(title=title, xlabel="share of the gap between the classes")
    signs = {"ms": 4.5, "ls": ""}
    handles = [
        in_legend("unit chosen for the task", **_PAIR["full"], **signs),
        in_legend("random units of the same density", **_PAIR["hollow"], **signs),
        in_legend("direction fitted to it", marker="D", **signs),
    ]
    legend_below(figure, 3, handles)
    return figure


def _clamped(ax: Axes, row: dict, y: float) -> None:
    style = {"colour": _UNITS[row["name"]][1], "width": 1.3}
    for key, shift, marks in (("best", 0.17, "full"), ("controls", -0.17, "hollow")):
        if key in row:
            fitted = {"marker": "D"} if row["name"] == "mean_difference" else {}
            effect, interval = row[key]["effect"], row[key]["ci95"]
            forest(ax, effect, y + shift, interval, **_PAIR[marks] | fitted, **style)


def _said(text: str) -> Figure:
    """In place of a figure, why there is none."""
    figure = plt.figure(figsize=(TEXT_WIDTH, 0.8))
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return figure


_SIZE = 6.0  # of the type of contexts, in points

_LINE, _CHARACTER = 1.75 * _SIZE / 72, 0.602 * _SIZE / 72  # of that type, in inches

_OPAQUE = 0.85  # opacity at a unit's largest value


def unit_contexts(result: dict, units: int = 8, lines: int = 3) -> Figure:
    """Tokens in context at which chosen meta-neurons, and some that no task chose, are largest; shaded by the unit's value."""
    chosen = [unit for unit in result["units"] if unit["auc"] is not None]
    others = [unit for unit in result["units"] if unit["auc"] is None]
    shown = [*chosen[: units - min(2, len(others))], *others[:2]]
    height = _LINE * (len(shown) * (lines + 1.6) + 1)
    figure = plt.figure(figsize=(TEXT_WIDTH, height), layout="constrained")
    # inches are laid out by hand; a figure made without an engine would be given one by savefig
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, TEXT_WIDTH), ylim=(height, 0))
    ax.axis("off")
    y = 0.7 * _LINE
    for unit in shown:
        style = {"fontsize": _SIZE + 0.4, "va": "center", "weight": "bold"}
        ax.text(0.05, y, _facts(unit), **style)
        for context in unit["contexts"][:lines]:
            y += _LINE
            _shaded_line(ax, context, y, 0.6 * TEXT_WIDTH)
        y += 1.6 * _LINE
    for i in range(21):  # what the shade means
        shade = {"color": ORANGE, "alpha": _OPAQUE * i / 20, "lw": 0}
        at = (3 + 0.05 * i, y - 0.4 * _LINE)
        ax.add_patch(plt.Rectangle(at, 0.05, 0.6 * _LINE, **shade))
    style = {"fontsize": _SIZE, "va": "center"}
    ax.text(2.95, y, "the unit's median and below", ha="right", **style)
    ax.text(4.1, y, "its largest value", ha="left", **style)
    return figure


def _facts(unit: dict) -> str:
    judged = "" if unit["auc"] is None else f"   AUC {unit['auc']:.2f}"
    density = f"density {unit['density']:.2f}" if unit["density"] >= 0.005 else "density < 0.005"
    index = f"{'−' * (unit['sign'] < 0)}{unit['index']}"
    texts = (
        f"{unit['task']}{judged}",
        f"block {unit['block']}, unit {index}",
        density,
        f"selectivity {unit['selectivity']:.2f}",
        f"nearest latent r = {unit['correlation']:.2f}",
    )
    return "   ".join(texts).replace("-0.", "−0.")


def _shaded_line(ax: Axes, context: dict, y: float, centre: float) -> None:
    """One context whose token at `at` begins at x = `centre`; what would leave the page is left out."""
    pieces = [_drawable(piece) for piece in context["pieces"]]
    x = centre - _CHARACTER * sum(map(len, pieces[: context["at"]]))
    for i, (piece, value) in enumerate(zip(pieces, context["values"])):
        width = _CHARACTER * len(piece)
        if x >= 0.05 and x + width <= TEXT_WIDTH - 0.05:
            shade = {"color": ORANGE, "alpha": _OPAQUE * value}
            style = {"fontsize": _SIZE, "weight": "bold" if i == context["at"] else "normal"}
            shaded_text(ax, piece, x, y, width, 0.9 * _LINE, shade=shade, **style)
        x += width


def _drawable(piece: str) -> str:
    """The text with signs that the type lacks as boxes, and line ends as arrows."""
    known = get_font(findfont(FontProperties(family="monospace"))).get_charmap()
    return "".join(
        "↵" if c == "\n" else c if ord(c) in known and c != "\N{REPLACEMENT CHARACTER}" else "□"
        for c in piece
    )
