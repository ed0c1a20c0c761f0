"""Figures of networks in training, and of the recipes that were tried: notebooks 03 and 21."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlib import plots


def training(result: dict) -> Figure:
    """Training and validation loss of the networks against activations seen and against seconds."""
    figure, axes = plots.panels(2, 2, 4.2, sharey="row")
    clocks = {"activations": "activations seen", "seconds": "seconds of training"}
    flow = [name for name in ("mlp", "gated_mlp", "mixture_mlp") if name in result]
    for row, names in zip(axes, (flow, ["unet"])):
        references = result[names[0]]["references"]
        for ax, (clock, label) in zip(row, clocks.items()):
            for name in names:
                _training_curve(ax, result[name]["log"], clock, name)
            for method in ("mean", "gaussian"):
                colour, dashes = plots.LINES[method]
                style = {"color": colour, "dashes": dashes, "label": plots.LABELS[method]}
                ax.axhline(references[method], lw=1, **style)
            ax.set(xscale="log", xlabel=label)
        losses = [entry["loss"] for name in names for entry in result[name]["log"]]
        ends = [result[name]["log"][-1]["loss"] for name in names]
        top = max((1.15 if "unet" in names else 1.35) * references["mean"], 1.1 * max(ends))
        row[0].set(ylim=(0.95 * min(references["gaussian"], *losses), top))
        row[0].set(ylabel=f"{plots.OBJECTIVES[result[names[0]]['objective']]} per dimension")
        sizes = [f"{result[name]['parameters'] / 1e6:.1f} M parameters" for name in names]
        titles = [f"{plots.LABELS[name]}: {size}" for name, size in zip(names, sizes)]
        row[0].set_title(", ".join(titles), loc="left")
    lines = [(plots.LABELS[name], *plots.LINES[name]) for name in (*flow, "unet")]
    handles = [plots.in_legend(label, colour, dashes=dashes) for label, colour, dashes in lines]
    handles += [
        plots.in_legend("training batches", alpha=0.5, lw=1),
        plots.in_legend("validation, averaged weights", marker="o", ms=3),
    ]
    plots.legend_below(figure, 4, handles + axes[0, 0].get_legend_handles_labels()[0])
    return figure


def _training_curve(ax: Axes, log: list[dict], clock: str, name: str) -> None:
    colour, dashes = plots.LINES[name]
    measured = [entry for entry in log if "validation_loss" in entry]
    style = {"color": colour, "dashes": dashes}
    ax.plot(*plots.columns(log, clock, "loss"), alpha=0.35, lw=1, **style)
    ax.plot(*plots.columns(measured, clock, "validation_loss"), marker="o", ms=3, **style)


_VARIANTS = {
    "published": (plots.ORANGE, (), "s"),
    "shared": ("0.45", (4, 1.5), "o"),
    "gated": (plots.RED, (), "D"),
    "linear": (plots.BLACK, (1, 1), "^"),
}

_RACE = {
    "published settings": (plots.ORANGE, (1, 1)),
    "published architecture, tuned": (plots.ORANGE, (6, 1.5)),
    "ours, to its end": (plots.RED, (6, 1.5)),
    "ours, to their target": (plots.RED, (1, 1)),
}

_CLOCK = {"xlabel": "seconds, set-up included", "ylabel": "velocity loss, training log"}


def recipes(result: dict) -> Figure:
    """Variants by learning rate and seconds, the race to two targets, ours with one change each."""
    figure = plt.figure(figsize=(plots.TEXT_WIDTH, 5.6))
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1))
    (rates, seconds), (race, changes) = top.subplots(1, 2), bottom.subplots(1, 2)
    mean = result["references"]["mean"]["flow_velocity"]
    for variant, (colour, dashes, marker) in _VARIANTS.items():
        rows = _known(result["rates"][variant])
        style = {"color": colour, "dashes": dashes, "marker": marker, "ms": 4}
        label = result["variants"][variant]["name"]
        rates.plot(*plots.columns(rows, "rate", "loss"), label=label, **style)
        _curves(seconds, result["curves"]["variants"][variant], color=colour, dashes=dashes)
    _rate_axis(rates, result["rates"])
    rates.set(ylabel="velocity loss, validation", title="learning rate (one seed)")
    worst = max(row["loss"] for row in result["variants"].values())
    rates.set_ylim(top=min(rates.get_ylim()[1], 1.15 * worst))
    seconds.set(title="at its best rate, every seed", xlim=(0, None), **_CLOCK)
    _loss_axis(seconds, result["curves"]["variants"], mean)
    _race(race, result, mean)
    _changes(changes, result["ablations"])
    plots.legend_below(top, 4, rates.get_legend_handles_labels()[0])
    plots.legend_below(bottom, 4, race.get_legend_handles_labels()[0])
    return figure


def _known(rows: dict[str, dict]) -> list[dict]:
    """Trainings that ended with a loss."""
    return [row for row in rows.values() if row["loss"] is not None]


def _rate_axis(ax: Axes, by_name: dict[str, dict[str, dict]]) -> None:
    rate_axis(ax, [row["rate"] for rows in by_name.values() for row in rows.values()])


def rate_axis(ax: Axes, rates: Sequence[float]) -> None:
    """A logarithmic axis of learning rates whose ticks are powers of 2 times 10⁻³."""
    low, high = np.log2(1000 * min(rates)), np.log2(1000 * max(rates))
    ticks = 2.0 ** np.arange(np.floor(low + 0.01), np.ceil(high - 0.01) + 1)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks / 1000, labels=[f"{tick:g}" for tick in ticks])
    ax.set_xlabel("peak learning rate (10⁻³)")


def _loss_axis(ax: Axes, curves: dict[str, list[dict]], mean: float) -> None:
    ends = [curve["loss"][-1] for found in curves.values() for curve in found]
    ax.set_ylim(0.95 * min(ends), 1.1 * max(mean, *ends))


def _curves(ax: Axes, curves: list[dict], label: str | None = None, **style) -> None:
    for i, curve in enumerate(curves):
        ax.plot(curve["seconds"], curve["loss"], lw=1, label=None if i else label, **style)


def _race(ax: Axes, result: dict, mean: float) -> None:
    for name, (colour, dashes) in _RACE.items():
        _curves(ax, result["curves"]["race"][name], name, color=colour, dashes=dashes)
    _loss_axis(ax, result["curves"]["race"], mean)
    for key, text in (("published", "published"), ("tuned", "tuned")):
        target = float(np.mean(result[key]["targets"]))
        ax.axhline(target, color="0.4", lw=0.8, ls=(0, (4, 2)))
        style = {"va": "top", "color": "0.3", "annotation_clip": True}
        place = {"xycoords": ("axes fraction", "data")}
        plots.note(ax, f"target, {text}", (0, target), (2, -2), **place, **style)
    ax.set(xscale="log", title="the race to two targets", **_CLOCK)
    low, high = ax.get_xlim()
    steps = [step * 10.0**power for power in range(-4, 7) for step in (1, 3)]
    ticks = [tick for tick in steps if low <= tick <= high]
    ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def _changes(ax: Axes, found: dict) -> None:
    rows = {name: row["difference"] for name, row in found["rows"].items()}
    known = [name for name in rows if rows[name] is not None]
    known.sort(key=rows.get, reverse=True)
    for y, name in enumerate(known):
        plots.forest(ax, rows[name], y, colour=plots.RED, mfc="white")
        values = found["seeds"][name]["values"] if name in found["seeds"] else []
        ax.plot(values, [y] * len(values), marker="|", ms=9, mew=1.2, color=plots.BLACK, ls="")
    ax.axvline(0, color=plots.BLACK, lw=0.8)
    plots.height_axis(ax, known, margin=0.6, rising=True)
    ax.set(xlabel="velocity loss less our recipe's", title="ours with one change (| every seed)")
    ax.margins(x=0.15)


def unet_recipes(result: dict) -> Figure:
    """The UNet at equal seconds: rate and width, height of its image, order of dimensions."""
    layout = {"sharey": True, "width_ratios": (1.4, 1, 1)}
    figure, (widths, heights, orders) = plots.panels(1, 3, 2.7, **layout)
    unet, mean = result["unet"], result["references"]["mean"]["ddpm_epsilon"]
    far = 1.05 * mean  # what is above leaves the picture, to keep the rest apart
    lowest = _widths(widths, unet["widths"], far)
    by_height = _heights(heights, unet["heights"])
    seeds = [unet["orders"][order]["values"] for order in ("natural", "permuted")]
    for i, pair in enumerate(zip(*seeds)):
        marker = "os^v<>"[i % 6]
        orders.plot((0, 1), pair, color=plots.PURPLE, marker=marker, ms=4.5, lw=0.9)
    orders.set(xticks=(0, 1), xticklabels=("natural", "permuted"), xlim=(-0.4, 1.4))
    orders.set(xlabel="order of the dimensions", title="one line per seed")
    for ax, label in ((widths, "mean only"), (heights, None), (orders, None)):
        ax.axhline(mean, color=plots.BLACK, lw=0.9, ls=":", label=label)
    shown = [loss for loss in (*lowest, mean) if loss <= far] + by_height + seeds[0] + seeds[1]
    widths.set_ylim(min(shown) - 0.1 * np.ptp(shown), max(shown) + 0.3 * np.ptp(shown))
    plots.legend_below(figure, 4, widths.get_legend_handles_labels()[0])
    return figure


def _widths(ax: Axes, widths: dict[str, dict], far: float) -> list[float]:
    """Loss by learning rate, a curve a width, words where all of it lies above the picture; returns
    the lowest loss of each.
    """
    lowest, above = [], []
    looks = zip(((), (4, 1.5), (1, 1)), "osD")
    for (channels, rows), (dashes, marker) in zip(widths.items(), looks):
        known = sorted(_known(rows), key=lambda row: row["rate"])
        rates, losses = plots.columns(known, "rate", "loss")
        lowest.append(min(losses))
        name = f"channels {channels.replace('+', ', ')}"
        if lowest[-1] > far:
            above.append(f"{name}:\nabove, from {lowest[-1]:.3f} up")
        else:
            style = {"color": plots.PURPLE, "dashes": dashes, "marker": marker, "ms": 4, "lw": 1}
            ax.plot(rates, losses, label=name, **style)
    plots.note(ax, "\n".join(above), (0, 0), (4, 6), xycoords="axes fraction")
    _rate_axis(ax, widths)
    ax.set(ylabel="ε loss, validation", title="rate and width")
    return lowest


def _heights(ax: Axes, rows: dict[str, dict]) -> list[float]:
    """Loss by the height of the image; returns these losses."""
    known = _known(rows)
    heights, losses = plots.columns(known, "height", "loss")
    ax.plot(range(len(known)), losses, color=plots.PURPLE, marker="o", ms=5, ls="")
    labels = ["own" if height is None else str(height) for height in heights]
    ax.set(xticks=range(len(known)), xticklabels=labels, xlim=(-0.6, len(known) - 0.4))
    ax.set(xlabel="height of the image", title="layout")
    return losses
