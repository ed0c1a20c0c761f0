"""One function per figure of the applications. Reads results, never models."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from mmlib.style import BLACK, LABELS, LINES, PURPLE, TEXT_WIDTH

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_ONE_STEP_LINE = (PURPLE, (4, 1, 1, 1))  # beside SDEdit by the same network
_STEERING_LABELS = {"gated_mlp": "gated MLP, one step", "gaussian": "full Gaussian, one step", "mixture": "mixture, one step"}


def steering(result: dict) -> Figure:
    """Fronts of concept against fluency, areas between fronts, and how much of an edit each repair leaves; of the first concept and σ."""
    figure, (fronts, areas, left) = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 3.3), width_ratios=(1.35, 0.9, 1))
    concept, sigmas = result["rows"][0]["concept"], (None, result["sigmas"][0])
    rows = [row for row in result["rows"] if row["concept"] == concept and row["sigma"] in sigmas]
    names = [name for name in dict.fromkeys(row["intervention"] for row in rows) if name != "sdedit_dpm"]
    for name, marker in zip(names, _MARKERS):
        colour, dashes = _ONE_STEP_LINE if name == "gated_mlp" else LINES[name]
        mine = [r for r in rows if (r["intervention"], r["direction"]) == (name, "mean_difference")]  # by strength
        style = {"color": colour, "dashes": dashes, "marker": marker, "ms": 4, "lw": 1.1}
        start = [] if mine[0]["strength"] == 0 else [0]  # the repair alone; where there is nothing to repair that is no steering
        fronts.plot([*start, *(r["change"] for r in mine)], [*start, *(r["cost"] for r in mine)], label=_STEERING_LABELS.get(name, LABELS[name]), **style)
        known = [r for r in result["geometry"] if (r["concept"], r["intervention"]) == (concept, name) and r["sigma"] in sigmas and r["strength"] > 0]
        left.plot([r["strength"] for r in known], [r["along"] for r in known], **style)
    for row in (r for r in rows if r["direction"] == "mean_difference" and r["strength"] == result["strengths"][-1]):
        colour = _ONE_STEP_LINE[0] if row["intervention"] == "gated_mlp" else LINES[row["intervention"]][0]
        fronts.plot(row["change_ci95"], 2 * [row["cost"]], color=colour, lw=0.6, alpha=0.6)
        fronts.plot(2 * [row["change"]], row["cost_ci95"], color=colour, lw=0.6, alpha=0.6)
    fronts.axhline(0, color="0.8", lw=0.7, zorder=0)
    fronts.axvline(0, color="0.8", lw=0.7, zorder=0)
    fronts.set(title=f"{concept}: concept and its cost", xlabel="change of the measure (VADER, −1 to 1)" if concept.startswith("sentiment") else
               "change of the probe's probability", ylabel="cost (nats per token)")
    _areas(areas, [r for r in result["areas"] if r["concept"] == concept and r["against"] == "additive" and r["sigma"] in sigmas])
    left.axhline(1, color="0.8", lw=0.7, zorder=0)
    left.set(title="what is left of the edit", xlabel="strength (class differences)", ylabel="part left along it", ylim=(min(0, left.get_ylim()[0]), None))
    figure.legend(*fronts.get_legend_handles_labels(), loc="outside lower center", ncol=4)
    return figure


def _areas(ax, rows: list[dict]) -> None:
    for y, row in enumerate(rows):
        colour = _ONE_STEP_LINE[0] if row["intervention"] == "gated_mlp" else LINES[row["intervention"]][0]
        if row["area"] is None:
            ax.annotate("no common level", (0.5, y), xycoords=ax.get_yaxis_transform(), ha="center", va="center", fontsize=6.5)
            continue
        ax.plot(row["ci95"], [y, y], color=colour, lw=1.4)
        ax.plot(row["area"], y, marker="o", color=colour, ms=4)
    ax.axvline(0, color=BLACK, lw=0.8, zorder=0)
    ax.set(title="area to plain addition", xlabel="area (< 0: cheaper than it)", yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    short = {"mixture": "mixture", "gaussian": "Gaussian", "gated_mlp": "gated MLP", "sdedit": "SDEdit"}
    ax.set_yticklabels([short.get(row["intervention"], LABELS[row["intervention"]]) for row in rows])
