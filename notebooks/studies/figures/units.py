"""Figures of units: as probes, clamped, and in the contexts that they respond to. Notebook 12."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from mmlib import plots

_UNITS = {  # of a dictionary: label, colour: controls grey, what the language model itself has indigo
    "mixture_mlp": ("meta-neurons, our network", plots.RED),
    "gated_mlp": ("meta-neurons, gated MLP", plots.RED),
    "mlp": ("meta-neurons, MLP (paper)", plots.ORANGE),
    "unet": ("meta-neurons, UNet (article)", plots.PURPLE),
    "untrained": ("meta-neurons, untrained", "0.6"),
    "random": ("random directions", "0.6"),
    "random_silu": ("random SiLU features", "0.6"),
    "raw": ("dimensions", plots.INDIGO),
    "lm_neurons": ("neurons of the block's MLP", plots.INDIGO),
    "pca": ("principal components", plots.BROWN),
    "sae": ("SAE latents", plots.GREEN),
    "sae_dense": ("SAE latents before TopK", plots.DARK_GREEN),
    "mixture": (plots.LABELS["mixture"], plots.SKY),
    "mean_difference": ("difference of class means", plots.BLACK),
}

_PAIR = {  # of a dictionary: how far from its height, and with which marks
    "full": (0.17, {"marker": "o"}),
    "hollow": (-0.17, {"marker": "s", "mfc": "white"}),
}


def probing(result: dict) -> Figure:
    """Held-out AUC of one-unit probes by dictionary, with all units and few; and by noise."""
    figure, (kinds, noise) = plots.panels(1, 2, 3.3, width_ratios=(1.35, 1))
    found = result["dictionaries"]
    names = sorted(found, key=lambda name: found[name]["all"]["mean"])
    for y, name in enumerate(names):
        style = {"colour": _UNITS[name][1], "width": 1.3}
        for row, (shift, marks) in zip((found[name]["all"], found[name]["few"]), _PAIR.values()):
            plots.forest(kinds, row["mean"], y + shift, row["ci95"], **marks, **style)
    _references(kinds, result, len(names))
    titles = {name: plots.named(label, result["meta_model"]) for name, (label, _) in _UNITS.items()}
    labels = [f"{titles[name]} ({found[name]['units']:,})" for name in names]
    plots.height_axis(kinds, labels, margin=0.6, rising=True)
    kinds.set(xlabel=f"mean AUC over {len(result['tasks'])} tasks, held out")
    for name, marker in ((plots.ours(found), "o"), ("mlp", "s"), ("untrained", "^"), ("raw", "v")):
        style = {"colour": _UNITS[name][1], "marker": marker, "ms": 3.5}
        label = titles[name] + (", with that noise" if name == "raw" else "")
        _by_sigma(noise, name, list(result["by_sigma"][name].values()), label, style)
    label = f"{result['candidates']} at random"
    noise.plot([], [], color="0.4", dashes=(3, 1.5), label=label)
    sigmas = sorted({row["sigma"] for rows in result["by_sigma"].values() for row in rows.values()})
    noise.set(xlabel="σ at which units are read", ylabel="mean AUC", xscale="log")
    noise.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
    noise.minorticks_off()
    handles = [handle for ax in (kinds, noise) for handle in ax.get_legend_handles_labels()[0]]
    plots.legend_below(figure, 3, handles)
    return figure


def _references(ax: Axes, result: dict, n: int) -> None:
    """Fitted probes as lines, published numbers above the n rows; and what the rows' marks mean."""
    signs = {"color": "0.4", "ls": "", "ms": 4.5}
    few = f"from at most {result['candidates']} at random"
    for label, (_, marks) in zip(("chosen from all units", few), _PAIR.values()):
        ax.plot([], [], label=label, **marks, **signs)
    for name, dashes, label in (
        ("mean_difference", (4, 1.5), "fitted: difference of class means"),
        ("dense", (1, 1), "fitted: all dimensions"),
    ):
        mean = result["references"][name]["mean"]
        ax.axvline(mean, color=plots.BLACK, lw=0.9, dashes=dashes, label=label)
    looks = zip((plots.RED, plots.GREEN), "vD")
    for (name, value), (colour, marker) in zip(result["published"].items(), looks):
        style = {"color": colour, "marker": marker, "mfc": "none", "ms": 4.5, "ls": ""}
        label = f"published, other model: {name}"
        ax.plot(value, n - 0.35, clip_on=False, label=label, **style)


def _by_sigma(ax: Axes, name: str, rows: list[dict], label: str, style: dict) -> None:
    """AUC against σ with all units, and dashed with few, which of dimensions are all."""
    kinds = {"all": {"dashes": ()}, "few": {"dashes": (3, 1.5), "mfc": "white"}}
    for key in ("all",) if name == "raw" else kinds:
        mean, interval = plots.columns((row[key] for row in rows), "mean", "ci95")
        (sigma,) = plots.columns(rows, "sigma")
        bars = {"lw": 0.7}
        plots.curve(ax, sigma, mean, interval, bars=bars, lw=1.1, zorder=2.1, **style, **kinds[key])
    plots.curve(ax, [], [], label=label, **style)


def clamping(result: dict) -> Figure:
    """Effect of clamped units on log-odds, as a share of the gap between the classes."""
    found = result["clamping"]
    if "skipped" in found:
        return _said(f"No unit was clamped. {found['skipped']}")
    figure, panels = plots.panels(1, 2, 2.9, sharey=True)
    titles = {"unscaled": "clamped to the positive mean", "scaled": "all changes at one norm"}
    for ax, (scale, title) in zip(panels, titles.items()):
        names = [name for name in reversed(found["effects"]) if scale in found["effects"][name]]
        for y, name in enumerate(names):
            _clamped(ax, found["effects"][name][scale], name, y)
        ax.axvline(0, color=plots.BLACK, lw=0.8)
        labels = [plots.named(_UNITS[name][0], result["meta_model"]) for name in names]
        ax.set(yticks=range(len(names)), yticklabels=labels)
        ax.set(title=title, xlabel="share of the gap between the classes")
    signs = {
        "unit chosen for the task": _PAIR["full"][1],
        "random units of the same density": _PAIR["hollow"][1],
        "direction fitted to it": {"marker": "D"},
    }
    handles = [plots.in_legend(text, ms=4.5, ls="", **marks) for text, marks in signs.items()]
    plots.legend_below(figure, 3, handles)
    return figure


def _clamped(ax: Axes, row: dict, name: str, y: float) -> None:
    style = {"colour": _UNITS[name][1], "width": 1.3}
    fitted = {"marker": "D"} if name == "mean_difference" else {}
    for key, (shift, marks) in zip(("best", "controls"), _PAIR.values()):
        if found := row.get(key):
            plots.forest(ax, found["effect"], y + shift, found["ci95"], **marks | fitted, **style)


def _said(text: str) -> Figure:
    """In place of a figure, why there is none."""
    figure = plt.figure(figsize=(plots.TEXT_WIDTH, 0.8))
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return figure


_SIZE = plots.SMALLEST  # of the type of contexts, in points

_LINE, _CHARACTER = 1.75 * _SIZE / 72, 0.602 * _SIZE / 72  # of that type, in inches

_OPAQUE = 0.85  # opacity at a unit's largest value


def unit_contexts(result: dict, units: int = 8, lines: int = 3) -> Figure:
    """Contexts in which meta-neurons that a task chose, or none, are largest, shaded by value."""
    found = [(task, unit) for task, mine in result["units"].items() for unit in mine.values()]
    chosen = [pair for pair in found if pair[1]["auc"] is not None]
    others = [pair for pair in found if pair[1]["auc"] is None]
    shown = [*chosen[: units - min(2, len(others))], *others[:2]]
    height = _LINE * (len(shown) * (lines + 1.6) + 1)
    figure = plt.figure(figsize=(plots.TEXT_WIDTH, height), layout="constrained")
    # inches are laid out by hand; a figure made without an engine would be given one by savefig
    figure.set_layout_engine("none")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, plots.TEXT_WIDTH), ylim=(height, 0))
    ax.axis("off")
    y = 0.7 * _LINE
    for task, unit in shown:
        style = {"fontsize": _SIZE, "va": "center"}
        ax.text(0.05, y, task, weight="bold", **style)
        ax.text(plots.TEXT_WIDTH - 0.05, y, _facts(unit), ha="right", **style)
        for context in unit["contexts"][:lines]:
            y += _LINE
            _shaded_line(ax, context, y, 0.6 * plots.TEXT_WIDTH)
        y += 1.6 * _LINE
    for i in range(21):  # what the shade means
        shade = {"color": plots.ORANGE, "alpha": _OPAQUE * i / 20, "lw": 0}
        at = (3 + 0.05 * i, y - 0.4 * _LINE)
        ax.add_patch(plt.Rectangle(at, 0.05, 0.6 * _LINE, **shade))
    style = {"fontsize": _SIZE, "va": "center"}
    ax.text(2.95, y, "the unit's median and below", ha="right", **style)
    ax.text(4.1, y, "its largest value", ha="left", **style)
    return figure


def _facts(unit: dict) -> str:
    judged = () if unit["auc"] is None else (f"AUC {unit['auc']:.2f}",)
    density = f"density {unit['density']:.2f}" if unit["density"] >= 0.005 else "density < 0.005"
    index = f"{'−' * (unit['sign'] < 0)}{unit['index']}"
    nearest = f"nearest latent r = {unit['correlation']:.2f}"
    texts = (*judged, f"block {unit['block']}, unit {index}", density)
    texts += (f"selectivity {unit['selectivity']:.2f}", nearest)
    return "   ".join(texts).replace("-0.", "−0.")


def _shaded_line(ax: Axes, context: dict, y: float, centre: float) -> None:
    """A context whose token `at` begins at x = `centre`, as far as the page holds it."""
    pieces = [_drawable(piece) for piece in context["pieces"]]
    x = centre - _CHARACTER * sum(map(len, pieces[: context["at"]]))
    for i, (piece, value) in enumerate(zip(pieces, context["values"])):
        width = _CHARACTER * len(piece)
        if x >= 0.05 and x + width <= plots.TEXT_WIDTH - 0.05:
            shade = {"color": plots.ORANGE, "alpha": _OPAQUE * value}
            style = {"fontsize": _SIZE, "weight": "bold" if i == context["at"] else "normal"}
            plots.shaded_text(ax, piece, x, y, width, 0.9 * _LINE, shade=shade, **style)
        x += width


def _drawable(piece: str) -> str:
    """The text with signs that the type lacks as boxes, and line ends as arrows."""
    known = get_font(findfont(FontProperties(family="monospace"))).get_charmap()
    signs = {c: c if ord(c) in known else "□" for c in piece}
    signs |= {"\n": "↵", "\N{REPLACEMENT CHARACTER}": "□"}
    return "".join(signs[c] for c in piece)
