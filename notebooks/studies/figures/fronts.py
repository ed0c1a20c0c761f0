"""Figures of steering, notebooks 11 and 25: what edits gain and cost, what repairs leave."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmlib import plots

_EDIT_LINES = {  # colour and dashes of an edit or of the method that repairs it
    "additive": (plots.BLACK, ()),
    "norm_kept": ("0.5", (4, 1.5)),
    "pca_k256": (plots.BROWN, (4, 1.5)),
    "sae_clean": (plots.GREEN, (1, 1)),
    "gaussian": plots.LINES["gaussian"],
    "mixture": plots.LINES["mixture"],
    **dict.fromkeys(plots.OURS, (plots.RED, (4, 1, 1, 1))),
    "sdedit": (plots.RED, ()),
    "sdedit_dpm": (plots.RED, (1, 1)),
}

_IN_FRONTS = ("additive", "sae_clean", "mixture", "sdedit")  # more cannot be told apart there

_LABELS = plots.LABELS | {
    "mixture_mlp": "our network, one step",
    "gated_mlp": "gated MLP, one step",
    "gaussian": "full Gaussian, one step",
    "mixture": "mixture, one step",
}

_SHORT = plots.LABELS | {
    "mixture": "mixture",
    "gaussian": "Gaussian",
    "mixture_mlp": "our network",
    "gated_mlp": "gated MLP",
    "sdedit": "SDEdit",
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


def _concept(name: str) -> str:
    """A concept of notebook 11 or 25 as a reader would say it."""
    if name in _CONCEPTS:
        return _CONCEPTS[name]
    topic, _, sign = name.partition(" ")
    return f"{'less' if sign == '−' else 'more'} {'' if topic == 'sentiment' else 'of '}{topic}"


def _measure(concept: str) -> str:
    if concept == "sentiment-less":
        return "fall of VADER's score (−1 to 1)"
    if concept.startswith("sentiment"):
        return "change of VADER's score (−1 to 1)"
    return "change of the probe's probability"


def steering(result: dict) -> Figure:
    """Fronts of concept against fluency, areas between them, what repairs leave of an edit.

    Of the first concept and σ.
    """
    figure, (fronts, areas, left) = plots.panels(1, 3, 3.3, width_ratios=(1.35, 0.9, 1))
    concept, sigmas = next(iter(result["rows"])), (None, result["sigmas"][0])
    paths = _by_intervention(result["rows"][concept]["mean_difference"], sigmas)
    geometry = _by_intervention(result["geometry"][concept], sigmas)
    meta_model, strongest = result["meta_model"]["name"], result["strengths"][-1]
    names = [name for name in paths if name != "sdedit_dpm"]
    for name, marker in zip(names, "os^DvPX<>"):
        style = dict(zip(("colour", "dashes"), _EDIT_LINES[name]), marker=marker, ms=4, lw=1.1)
        if name in _IN_FRONTS:
            _path(fronts, paths[name], **style)
            for row in paths[name]:
                _cross(fronts, row, style["colour"])
        label = plots.named(_LABELS[name], meta_model)
        _left(left, [row for row in geometry[name] if row["strength"] > 0], label=label, **style)
        if name == "additive":
            _strengths(fronts, paths[name], strongest)
    _origin(fronts)
    fronts.set(title=f"{_concept(concept)}, and its cost", ylabel="cost (nats per token)")
    fronts.set(xlabel=_measure(concept))
    to_addition = [found["additive"] for found in result["areas"][concept].values()]
    _areas(areas, [row for row in to_addition if row["sigma"] in sigmas], meta_model)
    left.axhline(1, color="0.8", lw=0.7, zorder=0)
    left.set(title="what is left of the edit", xlabel="strength (class differences)")
    left.set(xticks=result["strengths"])
    left.set(ylabel="share left along its direction", ylim=(min(0, left.get_ylim()[0]), None))
    handles = [*left.get_legend_handles_labels()[0], *_signs("95 % intervals")]
    plots.legend_below(figure, 4, handles, handlelength=2.8, columnspacing=1.6)
    return figure


def _by_intervention(edits: dict[str, dict], sigmas: tuple) -> dict[str, list[dict]]:
    """Rows by strength of each intervention, of those with one of these σ."""
    rows = (list(by_strength.values()) for by_strength in edits.values())
    return {row[0]["intervention"]: row for row in rows if row[0]["sigma"] in sigmas}


def _path(ax: Axes, rows: list[dict], *, colour: str, **style) -> Line2D:
    """Change against cost by strength, from the repair alone or from no steering, hollow."""
    start = [] if rows[0]["strength"] == 0 else [0]
    changes, costs = ([*start, *values] for values in plots.columns(rows, "change", "cost"))
    (line,) = ax.plot(changes, costs, color=colour, **style)
    start = style | {"mfc": "white", "ls": "", "label": None}
    ax.plot(changes[:1], costs[:1], color=colour, **start)
    return line


def _left(ax: Axes, rows: list[dict], **style) -> None:
    strength, along, interval = plots.columns(rows, "strength", "along", "along_ci95")
    plots.curve(ax, strength, along, interval, bars={"lw": 0.6, "alpha": 0.6}, **style)


def _strengths(ax: Axes, rows: list[dict], strongest: float) -> None:
    for row in rows:
        last = row["strength"] == strongest  # to the left, where no interval is in the way
        offset, place = ((-5, 3), ("right", "bottom")) if last else ((5, -2), ("left", "top"))
        style = dict(zip(("ha", "va"), place))
        plots.note(ax, f"× {row['strength']:g}", (row["change"], row["cost"]), offset, **style)


def _cross(ax: Axes, row: dict, colour: str) -> None:
    """Intervals of change and of cost."""
    style = {"color": colour, "lw": 0.6, "alpha": 0.6}
    ax.plot(row["change_ci95"], [row["cost"]] * 2, **style)
    ax.plot([row["change"]] * 2, row["cost_ci95"], **style)


def _origin(ax: Axes) -> None:
    ax.axhline(0, color="0.8", lw=0.7, zorder=0)
    ax.axvline(0, color="0.8", lw=0.7, zorder=0)


def _signs(intervals: str) -> list[Line2D]:
    """What marks of a front mean that all fronts share."""
    alone = {"marker": "o", "mfc": "white", "ms": 3.5, "ls": ""}
    return [
        plots.in_legend("nothing edited, the repair alone", **alone),
        plots.in_legend(intervals, marker="+", mew=0.8, ms=8, ls=""),
    ]


def _areas(ax: Axes, rows: list[dict], meta_model: str) -> None:
    for y, row in enumerate(rows):
        if row["area"] is None:
            style = {"ha": "center", "va": "center"}
            plots.note(ax, "no common level", (0.5, y), xycoords=ax.get_yaxis_transform(), **style)
        else:
            colour = _EDIT_LINES[row["intervention"]][0]
            plots.forest(ax, row["area"], y, row["ci95"], colour=colour, size=4)
    ax.axvline(0, color=plots.BLACK, lw=0.8, zorder=0)
    ax.set(title="area to plain addition")
    ax.set(xlabel="nats per token × measure\n(below 0: cheaper)")
    plots.height_axis(ax, [plots.named(_SHORT[row["intervention"]], meta_model) for row in rows])


_STUDY_LINES = {  # intervention and rank of its σ, from the largest → colour, dashes, marker
    ("additive", 0): (plots.BLACK, (), "o"),
    ("sae_clean", 0): (plots.GREEN, (1, 1), "^"),
    ("mixture", 0): (plots.SKY, (4, 1, 1, 1), "D"),
    ("sdedit", 0): (plots.shades(plots.RED, 3)[2], (), "s"),
    ("sdedit", 1): (plots.shades(plots.RED, 3)[1], (4, 1.5), "v"),
    ("sdedit", 2): (plots.shades(plots.RED, 3)[0], (1, 1), "P"),
    ("sdedit_mixture", 0): (plots.SKY, (), "X"),
}


def steering_study(result: dict) -> Figure:
    """Fronts of concept against fluency: a row of panels a concept, a column a direction."""
    concepts = list(result["rows"])
    share, n = {"sharex": "row", "sharey": "row", "squeeze": False}, len(concepts)
    figure, panels = plots.panels(n, len(_DIRECTIONS), 0.9 + 1.9 * n, **share)
    handles = {}
    for concept, line in zip(concepts, panels):
        for direction, ax in zip(_DIRECTIONS, line):
            edits = result["rows"][concept].get(direction, {})
            handles |= _fronts(ax, edits, result["sigmas"], result["meta_model"]["name"])
            _origin(ax)
            ax.set(xlabel=_measure(concept))
        line[0].set(ylabel=f"{_concept(concept)}\ncost (nats per token)")
    for direction, ax in zip(_DIRECTIONS, panels[0]):
        ax.set(title=_DIRECTIONS[direction])
    signs = _signs("95 % intervals, highest strength")
    plots.legend_below(figure, 3, [*handles.values(), *signs], handlelength=3.2)
    return figure


def _fronts(ax: Axes, edits: dict, sigmas: list[float], meta_model: str) -> dict[str, Line2D]:
    """A path for each intervention and σ of one panel; returns the handles by their labels."""
    handles, ranks = {}, {s: rank for rank, s in enumerate(sorted(sigmas, reverse=True))}
    for rows in (list(by_strength.values()) for by_strength in edits.values()):
        name, sigma = rows[0]["intervention"], rows[0]["sigma"]
        style = _STUDY_LINES.get((name, ranks.get(sigma, 0)))
        if style is not None:  # one step of the mixture is drawn at the largest σ alone
            label = plots.named(_LABELS[name], meta_model)
            label += "" if sigma is None else f", σ = {sigma:g}"
            look = dict(zip(("colour", "dashes", "marker"), style), ms=3.5, lw=1)
            handles[label] = _path(ax, rows, label=label, **look)
            _cross(ax, rows[-1], style[0])
    return handles
