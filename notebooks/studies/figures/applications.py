"""One function per figure of the applications. Reads results, never models."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D

from mmlib.plots import (
    BLACK,
    BLUE,
    GREEN,
    LABELS,
    LINES,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TEXT_WIDTH,
    named,
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


TYPICALITY = {  # score of notebook 13 → name, colour, marker
    "mahalanobis": ("Mahalanobis distance (Gaussian)", BLUE, "s"),
    "sae": ("SAE, reconstruction error", GREEN, "^"),
    "mixture": ("mixture of Gaussians, likelihood", SKY, "D"),
    "denoise_mixture": ("mixture of Gaussians, denoising loss", PURPLE, "v"),
    "denoise_gated_mlp": ("gated MLP, denoising loss", RED, "o"),
}


COLUMNS = 108  # characters of a line of a passage


SHADE = 0.6  # of the colour map, for a token above all: black type stays legible


SHADE_OF_UNIT = 0.85  # opacity at a unit's largest value


_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")


_EDIT_LINES = {  # colour and dashes of an edit or of the method that repairs it
    "additive": (BLACK, ()),
    "norm_kept": ("0.5", (4, 1.5)),
    "pca_k256": (ORANGE, (4, 1.5)),
    "sae_clean": (GREEN, (1, 1)),
    "gaussian": LINES["gaussian"],
    "mixture": LINES["mixture"],
    "gated_mlp": (PURPLE, (4, 1, 1, 1)),
    "sdedit": (RED, ()),
    "sdedit_dpm": (SKY, (1, 1)),
}


_STEERING_LABELS = {
    "gated_mlp": "gated MLP, one step",
    "gaussian": "full Gaussian, one step",
    "mixture": "mixture, one step",
}


def steering(result: dict) -> Figure:
    """Fronts of concept against fluency, areas between fronts, and how much of an edit each repair leaves; of the first concept and σ."""
    figure, (fronts, areas, left) = plt.subplots(
        1, 3, figsize=(TEXT_WIDTH, 3.3), width_ratios=(1.35, 0.9, 1)
    )
    concept, sigmas = result["rows"][0]["concept"], (None, result["sigmas"][0])
    rows = [row for row in result["rows"] if row["concept"] == concept and row["sigma"] in sigmas]
    names = [
        name for name in dict.fromkeys(row["intervention"] for row in rows) if name != "sdedit_dpm"
    ]
    for name, marker in zip(names, _MARKERS):
        colour, dashes = _EDIT_LINES[name]
        mine = [
            r for r in rows if (r["intervention"], r["direction"]) == (name, "mean_difference")
        ]  # by strength
        style = {"color": colour, "dashes": dashes, "marker": marker, "ms": 4, "lw": 1.1}
        start = (
            [] if mine[0]["strength"] == 0 else [0]
        )  # the repair alone; where there is nothing to repair that is no steering
        changes, costs = ([*start, *(r[key] for r in mine)] for key in ("change", "cost"))
        fronts.plot(
            changes,
            costs,
            label=named(_STEERING_LABELS.get(name, LABELS[name]), result["meta_model"]["name"]),
            **style,
        )
        fronts.plot(changes[:1], costs[:1], **style | {"mfc": "white", "ls": ""})
        known = [
            r
            for r in result["geometry"]
            if (r["concept"], r["intervention"]) == (concept, name)
            and r["sigma"] in sigmas
            and r["strength"] > 0
        ]
        left.plot([r["strength"] for r in known], [r["along"] for r in known], **style)
        left.vlines(
            [r["strength"] for r in known],
            *np.transpose([r["along_ci95"] for r in known]),
            color=colour,
            lw=0.6,
            alpha=0.6,
        )
        for row in mine if name == "additive" else ():
            last = (
                row["strength"] == result["strengths"][-1]
            )  # to the left, where no interval is in the way
            fronts.annotate(
                f"× {row['strength']:g}",
                (row["change"], row["cost"]),
                xytext=(-5, 3) if last else (5, -2),
                textcoords="offset points",
                ha="right" if last else "left",
                va="bottom" if last else "top",
                fontsize=6.5,
            )
    with_intervals = [
        r
        for r in rows
        if r["strength"] == result["strengths"][-1] or r["intervention"] in ("additive", "sdedit")
    ]
    for row in (r for r in with_intervals if r["direction"] == "mean_difference"):
        colour = _EDIT_LINES[row["intervention"]][0]
        fronts.plot(row["change_ci95"], 2 * [row["cost"]], color=colour, lw=0.6, alpha=0.6)
        fronts.plot(2 * [row["change"]], row["cost_ci95"], color=colour, lw=0.6, alpha=0.6)
    fronts.axhline(0, color="0.8", lw=0.7, zorder=0)
    fronts.axvline(0, color="0.8", lw=0.7, zorder=0)
    fronts.set(
        title=f"{_concept(concept)}, and its cost",
        xlabel=_measure(concept),
        ylabel="cost (nats per token)",
    )
    _areas(
        areas,
        [
            r
            for r in result["areas"]
            if r["concept"] == concept and r["against"] == "additive" and r["sigma"] in sigmas
        ],
        result["meta_model"]["name"],
    )
    left.axhline(1, color="0.8", lw=0.7, zorder=0)
    left.set(
        title="what is left of the edit",
        xlabel="strength (class differences)",
        ylabel="share left along its direction",
        ylim=(min(0, left.get_ylim()[0]), None),
    )
    signs = _front_signs(
        "95 % intervals, at × "
        + f"{result['strengths'][-1]:g}"
        + "\n(plain addition, SDEdit: at all)"
    )
    figure.legend(
        handles=[*fronts.get_legend_handles_labels()[0], *signs],
        loc="outside lower center",
        ncol=4,
        handlelength=2.8,
        columnspacing=1.6,
    )
    return figure


def _front_signs(intervals: str) -> list[Line2D]:
    """What marks of a front mean that all fronts share."""
    return [
        Line2D(
            [],
            [],
            color="0.4",
            marker="o",
            mfc="white",
            ms=3.5,
            ls="",
            label="nothing edited, the repair alone",
        ),
        Line2D([], [], color="0.4", marker="+", mew=0.8, ms=8, ls="", label=intervals),
    ]


def _concept(name: str) -> str:
    """A concept of notebook 11 or 25 as a reader would say it."""
    topic, _, sign = name.partition(" ")
    return (
        _CONCEPTS.get(name)
        or f"{'less' if sign == '−' else 'more'} {'' if topic == 'sentiment' else 'of '}{topic}"
    )


def _measure(concept: str) -> str:
    if concept == "sentiment-less":
        return "fall of VADER's score (−1 to 1)"
    return (
        "change of VADER's score (−1 to 1)"
        if concept.startswith("sentiment")
        else "change of the probe's probability"
    )


_STUDY_LINES = {  # intervention and rank of its σ, from the largest → colour, dashes, marker
    ("additive", 0): (BLACK, (), "o"),
    ("sae_clean", 0): (GREEN, (1, 1), "^"),
    ("mixture", 0): (SKY, (4, 1, 1, 1), "D"),
    ("sdedit", 0): (RED, (), "s"),
    ("sdedit", 1): (ORANGE, (4, 1.5), "v"),
    ("sdedit", 2): (PURPLE, (1, 1), "P"),
    ("sdedit_mixture", 0): (BLUE, (6, 1.5), "X"),
}


_CONCEPTS = {
    "sentiment": "more sentiment",
    "sentiment-less": "less sentiment",
    "sci.space": "topic: space",
    "rec.sport.hockey": "topic: hockey",
}


_DIRECTIONS = {
    "mean_difference": "difference of means",
    "sae_decoder": "SAE latent",
    "probe": "logistic probe",
}


def steering_study(result: dict) -> Figure:
    """Fronts of concept against fluency, a row of panels a concept, a column a direction; hollow where the repair is alone."""
    concepts, sigmas = (
        list(dict.fromkeys(row["concept"] for row in result["rows"])),
        sorted(result["sigmas"], reverse=True),
    )
    figure, panels = plt.subplots(
        len(concepts),
        len(_DIRECTIONS),
        figsize=(TEXT_WIDTH, 0.9 + 1.9 * len(concepts)),
        sharex="row",
        sharey="row",
        squeeze=False,
    )
    handles = {}
    for i, (concept, line) in enumerate(zip(concepts, panels)):
        for direction, ax in zip(_DIRECTIONS, line):
            mine = [
                row
                for row in result["rows"]
                if (row["concept"], row["direction"]) == (concept, direction)
            ]
            for name, sigma in dict.fromkeys((row["intervention"], row["sigma"]) for row in mine):
                style = _STUDY_LINES.get((name, sigmas.index(sigma) if sigma in sigmas else 0))
                if style is not None:  # one step of the mixture is drawn at the largest σ alone
                    label = named(
                        _STEERING_LABELS.get(name, LABELS[name]), result["meta_model"]["name"]
                    ) + ("" if sigma is None else f", σ = {sigma:g}")
                    handles[label] = _study_front(
                        ax,
                        [
                            row
                            for row in mine
                            if (row["intervention"], row["sigma"]) == (name, sigma)
                        ],
                        label,
                        *style,
                    )
            ax.axhline(0, color="0.8", lw=0.7, zorder=0)
            ax.axvline(0, color="0.8", lw=0.7, zorder=0)
            if ax is line[0]:
                ax.set(ylabel=f"{_concept(concept)}\ncost (nats per token)")
            if i == 0:
                ax.set(title=_DIRECTIONS[direction])
            ax.set(xlabel=_measure(concept))
    figure.legend(
        handles=[*handles.values(), *_front_signs("95 % intervals, highest strength")],
        loc="outside lower center",
        ncol=3,
        handlelength=3.2,
    )
    return figure


def _study_front(ax: Axes, rows: list[dict], label: str, colour: str, dashes: tuple, marker: str):
    """The path of one intervention with the intervals of its last strength; returns its handle for the legend."""
    changes, costs = ([row[key] for row in rows] for key in ("change", "cost"))
    (handle,) = ax.plot(
        changes, costs, color=colour, dashes=dashes, marker=marker, ms=3.5, lw=1, label=label
    )
    ax.plot(changes[:1], costs[:1], color=colour, marker=marker, ms=3.5, mfc="white", ls="")
    ax.plot(rows[-1]["change_ci95"], 2 * costs[-1:], color=colour, lw=0.6, alpha=0.6)
    ax.plot(2 * changes[-1:], rows[-1]["cost_ci95"], color=colour, lw=0.6, alpha=0.6)
    return handle


def _areas(ax: Axes, rows: list[dict], meta_model: str) -> None:
    for y, row in enumerate(rows):
        colour = _EDIT_LINES[row["intervention"]][0]
        if row["area"] is None:
            ax.annotate(
                "no common level",
                (0.5, y),
                xycoords=ax.get_yaxis_transform(),
                ha="center",
                va="center",
                fontsize=6.5,
            )
            continue
        ax.plot(row["ci95"], [y, y], color=colour, lw=1.4)
        ax.plot(row["area"], y, marker="o", color=colour, ms=4)
    ax.axvline(0, color=BLACK, lw=0.8, zorder=0)
    ax.set(
        title="area to plain addition",
        xlabel="nats per token × measure\n(< 0: cheaper than it)",
        yticks=range(len(rows)),
        ylim=(len(rows) - 0.5, -0.5),
    )
    short = {
        "mixture": "mixture",
        "gaussian": "Gaussian",
        "gated_mlp": "gated MLP",
        "sdedit": "SDEdit",
    }
    ax.set_yticklabels(
        [
            named(short.get(row["intervention"], LABELS[row["intervention"]]), meta_model)
            for row in rows
        ]
    )


def probing(result: dict) -> Figure:
    """Held-out AUC of one-unit probes by dictionary, with all units and with equally many candidates; and against the noise level."""
    figure, (kinds, noise) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 3.3), width_ratios=(1.35, 1))
    rows = sorted(result["rows"], key=lambda row: row["all"]["mean"])
    for y, row in enumerate(rows):
        colour = _UNITS[row["name"]][1]
        for key, shift, face in (("all", 0.17, colour), ("few", -0.17, "white")):
            kinds.plot(row[key]["ci95"], [y + shift] * 2, color=colour, lw=1.3)
            kinds.plot(
                row[key]["mean"],
                y + shift,
                "o" if key == "all" else "s",
                color=colour,
                mfc=face,
                ms=4.5,
            )
    kinds.plot([], [], "o", color="0.4", ms=4.5, label="chosen from all units")
    kinds.plot(
        [],
        [],
        "s",
        color="0.4",
        mfc="white",
        ms=4.5,
        label=f"from at most {result['candidates']} at random",
    )
    for name, dashes, label in (
        ("mean_difference", (4, 1.5), "fitted: difference of class means"),
        ("dense", (1, 1), "fitted: all dimensions"),
    ):
        kinds.axvline(
            result["references"][name]["mean"], color=BLACK, lw=0.9, dashes=dashes, label=label
        )
    for (name, value), colour, marker in zip(result["published"].items(), (RED, GREEN), "vD"):
        kinds.plot(
            value,
            len(rows) - 0.35,
            marker,
            color=colour,
            mfc="none",
            ms=4.5,
            clip_on=False,
            label=f"published, other model: {name}",
        )
    titles = {name: named(label, result["meta_model"]) for name, (label, _) in _UNITS.items()}
    labels = [f"{titles[row['name']]} ({row['units']:,})" for row in rows]
    kinds.set(
        yticks=range(len(rows)),
        yticklabels=labels,
        ylim=(-0.6, len(rows) - 0.4),
        xlabel=f"mean AUC over {len(result['tasks'])} tasks, held out",
    )
    for name, marker in (("gated_mlp", "o"), ("mlp", "s"), ("untrained", "^"), ("raw", "v")):
        found = [row for row in result["by_sigma"] if row["name"] == name]
        if not found:
            continue  # results of before the paper's MLP was read at every σ
        for key, dashes in (("all", ()), ("few", (3, 1.5)))[
            : 1 if name == "raw" else 2
        ]:  # there are no more dimensions than candidates
            mean, interval = (
                np.array([row[key][part] for row in found]) for part in ("mean", "ci95")
            )
            noise.errorbar(
                [row["sigma"] for row in found],
                mean,
                np.abs(interval.T - mean),
                color=_UNITS[name][1],
                marker=marker,
                ms=3.5,
                lw=1.1,
                elinewidth=0.7,
                mfc=None if key == "all" else "white",
            )[0].set_dashes(dashes)
        noise.plot(
            [],
            [],
            color=_UNITS[name][1],
            marker=marker,
            ms=3.5,
            label=titles[name] + (", with that noise" if name == "raw" else ""),
        )
    noise.plot([], [], color="0.4", dashes=(3, 1.5), label=f"{result['candidates']} at random")
    sigmas = sorted({row["sigma"] for row in result["by_sigma"]})
    noise.set(xlabel="σ at which units are read", ylabel="mean AUC", xscale="log")
    noise.set_xticks(sigmas, [f"{sigma:g}" for sigma in sigmas])
    noise.minorticks_off()
    figure.legend(
        handles=[handle for ax in (kinds, noise) for handle in ax.get_legend_handles_labels()[0]],
        loc="outside lower center",
        ncol=3,
    )
    return figure


def clamping(result: dict) -> Figure:
    """What clamping the chosen unit, and matched random units, does to the next token's log-odds, in parts of the gap between the classes."""
    if "skipped" in result["clamping"]:
        return _said(f"No unit was clamped. {result['clamping']['skipped']}")
    figure, panels = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.9), sharey=True)
    titles = {"unscaled": "clamped to the positive mean", "scaled": "all changes at one norm"}
    for ax, (scale, title) in zip(panels, titles.items()):
        rows = [row for row in reversed(result["clamping"]["effects"]) if row["scale"] == scale]
        for y, row in enumerate(rows):
            label, colour = _UNITS[row["name"]]
            for key, shift, face in (("best", 0.17, colour), ("controls", -0.17, "white")):
                if key in row:
                    ax.plot(row[key]["ci95"], [y + shift] * 2, color=colour, lw=1.3)
                    fitted = row["name"] == "mean_difference"
                    ax.plot(
                        row[key]["effect"],
                        y + shift,
                        "D" if fitted else "o" if key == "best" else "s",
                        color=colour,
                        mfc=face,
                        ms=4.5,
                    )
        ax.axvline(0, color=BLACK, lw=0.8)
        ax.set(
            yticks=range(len(rows)),
            yticklabels=[named(_UNITS[row["name"]][0], result["meta_model"]) for row in rows],
            title=title,
            xlabel="share of the gap between the classes",
        )
    panels[0].plot([], [], "o", color="0.4", ms=4.5, label="unit chosen for the task")
    panels[0].plot(
        [], [], "s", color="0.4", mfc="white", ms=4.5, label="random units of the same density"
    )
    panels[0].plot([], [], "D", color="0.4", ms=4.5, label="direction fitted to it")
    figure.legend(loc="outside lower center", ncol=3)
    return figure


def _said(text: str) -> Figure:
    """In place of a figure, why there is none."""
    figure = plt.figure(figsize=(TEXT_WIDTH, 0.8))
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return figure


def unit_contexts(result: dict, units: int = 8, lines: int = 3, size: float = 6.0) -> Figure:
    """Tokens in context at which chosen meta-neurons, and some that no task chose, are largest; shaded by the unit's value."""
    chosen = [unit for unit in result["units"] if unit["auc"] is not None]
    others = [unit for unit in result["units"] if unit["auc"] is None]
    shown = [*chosen[: units - min(2, len(others))], *others[:2]]
    step, character = (
        1.75 * size / 72,
        0.602 * size / 72,
    )  # inches: a line, and a character of the monospaced type
    height = step * (len(shown) * (lines + 1.6) + 1)
    figure = plt.figure(figsize=(TEXT_WIDTH, height), layout="constrained")
    figure.set_layout_engine(
        "none"
    )  # inches are laid out by hand; a figure made without an engine would be given one by savefig
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, TEXT_WIDTH), ylim=(height, 0))
    ax.axis("off")
    y = 0.7 * step
    for unit in shown:
        judged = "" if unit["auc"] is None else f"   AUC {unit['auc']:.2f}"
        density = (
            f"density {unit['density']:.2f}" if unit["density"] >= 0.005 else "density < 0.005"
        )
        title = (
            f"{unit['task']}{judged}   block {unit['block']}, unit {'−' * (unit['sign'] < 0)}{unit['index']}   {density}   "
            f"selectivity {unit['selectivity']:.2f}   nearest latent r = {unit['correlation']:.2f}"
        )
        ax.text(
            0.05, y, title.replace("-0.", "−0."), fontsize=size + 0.4, va="center", weight="bold"
        )
        for context in unit["contexts"][:lines]:
            y += step
            _shaded_line(ax, context, y, 0.6 * TEXT_WIDTH, character, size, step)
        y += 1.6 * step
    for i in range(21):  # what the shade means
        ax.add_patch(
            plt.Rectangle(
                (3 + 0.05 * i, y - 0.4 * step),
                0.05,
                0.6 * step,
                color=ORANGE,
                alpha=SHADE_OF_UNIT * i / 20,
                lw=0,
            )
        )
    for x, side, text in (
        (2.95, "right", "the unit's median and below"),
        (4.1, "left", "its largest value"),
    ):
        ax.text(x, y, text, fontsize=size, ha=side, va="center")
    return figure


def _shaded_line(
    ax: Axes, context: dict, y: float, centre: float, character: float, size: float, step: float
) -> None:
    """One context whose token at `at` begins at x = `centre`; what would leave the page is left out."""
    pieces = [_drawable(piece) for piece in context["pieces"]]
    x = centre - character * sum(map(len, pieces[: context["at"]]))
    for i, (piece, value) in enumerate(zip(pieces, context["values"])):
        end = x + character * len(piece)
        if x >= 0.05 and end <= TEXT_WIDTH - 0.05:
            ax.add_patch(
                plt.Rectangle(
                    (x, y - 0.45 * step),
                    end - x,
                    0.9 * step,
                    color=ORANGE,
                    alpha=SHADE_OF_UNIT * value,
                    lw=0,
                )
            )
            ax.text(
                x,
                y,
                piece,
                fontsize=size,
                family="monospace",
                va="center",
                weight="bold" if i == context["at"] else "normal",
            )
        x = end


def _drawable(piece: str) -> str:
    """The text with signs that the type lacks as boxes, line ends as arrows, and dollars that are no mathematics."""
    known = get_font(findfont(FontProperties(family="monospace"))).get_charmap()
    return "".join(
        "↵" if c == "\n" else c if ord(c) in known and c != "\N{REPLACEMENT CHARACTER}" else "□"
        for c in piece
    ).replace("$", r"\$")


def typicality(result: dict) -> Figure:
    """AUROC of five scores on every shifted set, with intervals by document."""
    names, rows = list(result["sets"]), {(row["set"], row["score"]): row for row in result["rows"]}
    figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 0.8 + 0.27 * len(names)))
    lowest = 0.5
    for j, (score, (label, colour, marker)) in enumerate(TYPICALITY.items()):
        height = np.arange(len(names)) + 0.15 * (j - (len(TYPICALITY) - 1) / 2)
        mine = [rows[name, score] for name in names]
        area, (low, high) = (
            np.array([row["auroc"] for row in mine]),
            np.transpose([row["ci95"] for row in mine]),
        )
        ax.hlines(height, low, high, color=colour, lw=0.9)
        ax.plot(
            area,
            height,
            color=colour,
            marker=marker,
            ms=3.2,
            ls="",
            label=named(label, result["meta_model"]),
        )
        lowest = min(lowest, *low)
    ax.axvline(0.5, color="0.4", lw=0.8, ls=":")
    groups = [result["sets"][name]["group"] for name in names]
    for i in range(1, len(names)):
        inside = groups[i] == groups[i - 1]
        ax.axhline(i - 0.5, color="0.85" if inside else "0.4", lw=0.5 if inside else 0.8)
    ax.set_yticks(
        range(len(names)),
        [named(result["sets"][name]["title"], result["meta_model"]) for name in names],
    )
    ax.tick_params(axis="y", length=0)
    ax.set(
        xlabel="AUROC against test documents (½: not told apart; below: taken for more typical)",
        xlim=(lowest - 0.02, 1.02),
        ylim=(len(names) - 0.5, -0.5),
    )
    figure.legend(loc="outside lower center", ncol=2)
    return figure


def typicality_passage(result: dict) -> Figure:
    """A text whose tokens are the darker the less typical they are, by two scores."""
    passage = result["passage"]
    lines = _lines(passage["strings"], passage["segments"])
    names = ("denoise_gated_mlp", "mixture")
    figure, axes = plt.subplots(
        len(names), 1, figsize=(TEXT_WIDTH, 0.6 + 0.135 * len(names) * (len(lines) + 1))
    )
    for ax, name in zip(axes, names):
        for row, (title, tokens) in enumerate(lines):
            ax.text(-1, row + 0.5, title, ha="right", va="center", fontsize=6.5, style="italic")
            for i, column, string in tokens:
                shade = colormaps["Oranges"](SHADE * passage["ranks"][name][i])
                ax.add_patch(
                    plt.Rectangle((column, row + 0.04), len(string), 0.92, color=shade, lw=0)
                )
                ax.text(
                    column,
                    row + 0.5,
                    string,
                    va="center",
                    fontsize=6.2,
                    family="monospace",
                    parse_math=False,
                )
        ax.set(
            xlim=(0, COLUMNS),
            ylim=(len(lines), 0),
            title=named(TYPICALITY[name][0], result["meta_model"]),
        )
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
