"""One function per figure of the studies. Reads results, never models."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter

from mmlib.plots import (
    BLACK,
    BLUE,
    GREEN,
    LINES,
    MARKERS,
    OBJECTIVES,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TEXT_WIDTH,
)


def solvers(result: dict) -> Figure:
    """Fréchet distance of samples, and error of the end point, against the number of evaluations, for each solver."""
    figure, (distances, errors) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.7))
    found = result["solvers"]
    for (name, label), colour, marker in zip(
        {"euler": "Euler", "heun": "Heun", "dpm++": "DPM-Solver++"}.items(),
        (BLUE, GREEN, RED),
        "os^",
    ):
        rows = sorted(
            (row for row in found["rows"] if row["solver"] == name),
            key=lambda row: row["evaluations"],
        )
        evaluations = [row["evaluations"] for row in rows]
        distances.plot(
            evaluations,
            [row["distance"] for row in rows],
            color=colour,
            marker=marker,
            ms=4,
            label=label,
        )
        measured = [
            (e, row["endpoint_error"])
            for e, row in zip(evaluations, rows)
            if row["endpoint_error"] > 0
        ]
        errors.plot(*zip(*measured), color=colour, marker=marker, ms=4)
    distances.axhspan(
        0.95 * found["reference"],
        1.05 * found["reference"],
        color="0.85",
        lw=0,
        label=f"within 5 % of {found['most']} Euler steps",
    )
    distances.axhline(
        found["floor"], color=BLACK, lw=0.8, ls=":", label="real training activations"
    )
    distances.set(
        xscale="log",
        xlabel="evaluations of the network a sample",
        ylabel="Fréchet distance of z from test",
    )
    errors.set(
        xscale="log",
        yscale="log",
        xlabel="evaluations of the network a sample",
        ylabel="error of the end point, relative",
    )
    figure.legend(loc="outside lower center", ncol=3)
    return figure


def throughput(result: dict) -> Figure:
    """Speed of extraction and of reading at three sizes of the store, beside the references."""
    figure, (extraction, reading) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.5))
    growth, rows = result["growth"], {row["name"]: row for row in result["rows"]}
    plain, bare = (
        rows["extraction to the store"],
        rows["extraction to the store, against computing alone"],
    )
    fromfile, loader = (
        rows["shuffled batches, checksums on"],
        rows["shuffled batches, checksums on, against rows one at a time"],
    )
    extraction.plot(
        growth["tokens"],
        growth["tokens_per_second"],
        color=RED,
        marker="o",
        ms=4,
        label="all blocks to the middle one stored",
    )
    extraction.axhline(bare["ours"], color=BLUE, lw=1, label="the middle block stored")
    extraction.axhline(
        bare["reference"], color=BLACK, lw=1, ls=(0, (4, 2)), label="the same, computed only"
    )
    extraction.axhline(
        plain["reference"], color=ORANGE, lw=1, ls=":", label="full forward pass, padded batches"
    )
    extraction.set(xscale="log", xlabel="tokens extracted", ylabel="tokens/s", title="extraction")
    reading.plot(
        growth["gigabytes"],
        growth["gb_per_second"],
        color=RED,
        marker="o",
        ms=4,
        label="shuffled batches, checksums on",
    )
    reading.axhline(
        fromfile["reference"],
        color=BLACK,
        lw=1,
        ls=(0, (4, 2)),
        label="numpy.fromfile, in sequence",
    )
    reading.axhline(
        loader["reference"], color=ORANGE, lw=1, ls=":", label="DataLoader, rows one at a time"
    )
    reading.set(
        xscale="log",
        yscale="log",
        xlabel="size of the store (GB)",
        ylabel="GB/s",
        title="reading, warm cache",
    )
    for axes in (extraction, reading):
        axes.margins(y=0.1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3))
    extraction.set_ylim(bottom=0)
    return figure


def scaling(result: dict) -> Figure:
    """Loss against compute by size, the law through the lower envelope, and where it would meet the claim."""
    figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 3.4))
    rows, reach, curve = (
        result["rows"],
        result["extrapolation"],
        {key: np.asarray(values) for key, values in result["curve"].items()},
    )
    widths = sorted({row["d_model"] for row in rows})
    for width, colour, marker in zip(
        widths, (SKY, ORANGE, GREEN, PURPLE, RED, BLUE, BLACK), "vD^so<>"
    ):
        mine = sorted(
            (row for row in rows if row["d_model"] == width), key=lambda row: row["compute"]
        )
        ax.plot(
            [row["compute"] for row in mine],
            [row["loss"] for row in mine],
            color=colour,
            marker=marker,
            ms=4,
            lw=0.8,
            label=f"width {width}, {mine[0]['parameters'] / 1e6:.2g} M",
        )
    best = [row for row in rows if row["name"] in result["envelope"]]
    ax.plot(
        [row["compute"] for row in best],
        [row["loss"] for row in best],
        ls="",
        marker="o",
        ms=8,
        mfc="none",
        mec=BLACK,
        mew=0.8,
        label="lower envelope",
    )
    measured = curve["compute"] <= reach["largest_measured"]
    ax.fill_between(
        curve["compute"],
        curve["low"],
        curve["high"],
        color="0.5",
        alpha=0.25,
        lw=0,
        label="95 % over resamples of the cells",
    )
    ax.plot(
        curve["compute"][measured],
        curve["loss"][measured],
        color=BLACK,
        lw=1.2,
        label=r"$E + A\,C^{-\alpha}$",
    )
    ax.plot(
        curve["compute"][~measured],
        curve["loss"][~measured],
        color=BLACK,
        lw=1.2,
        ls=(0, (4, 2)),
        label="the same, extrapolated",
    )
    mean, gaussian = (result["references"][name]["loss"] for name in ("mean", "gaussian"))
    claimed = f"{100 * result['claim']:.0f} % below the Gaussian"
    for loss, text, (colour, dashes) in (
        (mean, "mean only", LINES["mean"]),
        (gaussian, "full Gaussian", LINES["gaussian"]),
        (reach["loss"], claimed, (BLACK, (8, 2, 1, 2, 1, 2))),
    ):
        ax.axhline(loss, color=colour, dashes=dashes, lw=1)
        ax.annotate(
            text,
            (curve["compute"][-1], loss),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )
    ax.set(
        xscale="log",
        xlabel="compute C = 6·N·D (FLOP)",
        ylabel=f"{OBJECTIVES['flow_velocity']} per dimension, test",
        ylim=(
            0.9 * min(reach["loss"], min(row["loss"] for row in rows)),
            1.05 * max(row["loss"] for row in rows),
        ),
    )
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncol=3)
    return figure


_TEXTS = {
    "self": "the model's own samples",
    "newsgroups": "newsgroups, letters only",
    "wikipedia": "Wikipedia",
}


_IN_THE_GRID = (
    "layers",
    "texts",
    "layers and texts",
    "seeds",
)  # groups of rows that the two maps show, or that a sentence tells


def robustness(result: dict) -> Figure:
    """Layers × texts over the Gaussian and over the mixture; then the other rows, with and without outliers, on both objectives."""
    rows = [
        row
        for row in result["rows"]
        if row["baseline"] == "gaussian" and row["group"] not in _IN_THE_GRID
    ]
    labels = list(dict.fromkeys((row["group"], row["label"]) for row in rows))
    figure = plt.figure(figsize=(TEXT_WIDTH, 3.0 + 0.24 * len(labels)))
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.2, 0.8 + 0.24 * len(labels)))
    _layers_and_texts(top, result["grid"])
    _further_rows(bottom, rows, labels, result["claim"])
    return figure


def _layers_and_texts(figure: SubFigure, grid: dict[str, dict]) -> None:
    """Two maps of the small MLP's velocity reductions on one scale, with the interval in each cell."""
    texts, layers = list(grid), list(next(iter(grid.values())))
    titles = {
        "over_gaussian": "small MLP over the full Gaussian",
        "over_mixture": "small MLP over the mixture of Gaussians",
    }
    values = {
        key: np.array([[grid[text][layer][key]["reduction"] for text in texts] for layer in layers])
        for key in titles
    }
    low, high = min(map(np.min, values.values())), max(map(np.max, values.values()))
    for ax, (key, title) in zip(figure.subplots(1, 2, sharey=True), titles.items()):
        image = ax.imshow(values[key], cmap="cividis", vmin=low, vmax=high, aspect="auto")
        for i, layer in enumerate(layers):
            for j, text in enumerate(texts):
                found = grid[text][layer][key]
                numbers = [
                    f"{100 * value:+.1f}".replace("-", "−")
                    for value in (found["reduction"], *found["ci95"])
                ]
                ax.text(
                    j,
                    i,
                    f"{numbers[0]} %\n[{numbers[1]}, {numbers[2]}]",
                    ha="center",
                    va="center",
                    fontsize=7,
                    linespacing=1.3,
                    color="white" if found["reduction"] < (low + high) / 2 else BLACK,
                )
        ax.set(
            xticks=range(len(texts)),
            xticklabels=[
                _TEXTS.get(text, text).replace(", ", ",\n").replace("own ", "own\n")
                for text in texts
            ],
            yticks=range(len(layers)),
            yticklabels=[f"layer {layer}" for layer in layers],
            title=title,
        )
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(
        image, ax=figure.axes, pad=0.01, fraction=0.03, format=PercentFormatter(1, symbol=" %")
    )
    bar.set_label("reduction, velocity loss")
    bar.outline.set_visible(False)


def _further_rows(
    figure: SubFigure, rows: list[dict], labels: list[tuple[str, str]], claim: float
) -> None:
    ax = figure.subplots()
    for row in rows:
        j = list(OBJECTIVES).index(row["objective"])
        y = labels.index((row["group"], row["label"])) + 0.14 * (2 * j - 1)
        colour, hollow = (BLUE, RED)[j], row["tokens"] != "all"
        if not hollow:
            ax.plot(row["ci95"], [y, y], color=colour, lw=1.4)
        ax.plot(
            row["reduction"],
            y + (0.16 if hollow else 0) * (2 * j - 1),
            marker=MARKERS[row["objective"]],
            color=colour,
            ms=3 if hollow else 4.5,
            mfc="white" if hollow else colour,
            ls="",
        )
    for i in range(1, len(labels)):
        if labels[i][0] != labels[i - 1][0]:
            ax.axhline(i - 0.5, color="0.8", lw=0.6)
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.axvline(claim, color=BLACK, lw=1, ls="--")
    ax.annotate(
        f"claimed {100 * claim:.0f} %",
        (claim, -0.5),
        xytext=(-3, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=7,
    )
    ax.set(
        xlabel="reduction of the loss over the full Gaussian of the same training documents",
        yticks=range(len(labels)),
        ylim=(len(labels) - 0.5, -0.5),
    )
    ax.set_yticklabels(
        [
            label.replace("on self", "on the model's own samples").replace(
                "on newsgroups", "on newsgroups, letters only"
            )
            for _, label in labels
        ]
    )
    ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    handles = [
        Line2D([], [], color=colour, marker=MARKERS[objective], ms=4.5, label=label)
        for colour, (objective, label) in zip((BLUE, RED), OBJECTIVES.items())
    ]
    handles.append(
        Line2D(
            [],
            [],
            color="0.3",
            marker="o",
            mfc="white",
            ms=3,
            ls="",
            label="hollow: without outliers",
        )
    )
    figure.legend(handles=handles, loc="outside lower center", ncol=3)


_VARIANTS = {
    "published": (ORANGE, (), "s"),
    "shared": (BLUE, (4, 1.5), "o"),
    "gated": (RED, (), "D"),
    "linear": (GREEN, (1, 1), "^"),
}


_RACE = {
    "published settings": (BLACK, (1, 1)),
    "published architecture, tuned": (ORANGE, (6, 1.5)),
    "ours, to its end": (RED, (6, 1.5)),
    "ours, to their target": (PURPLE, (4, 1.5)),
}


def recipes(result: dict) -> Figure:
    """Variants by learning rate and by seconds, the race to two targets, and what one change at a time does to ours."""
    figure, ((rates, seconds), (race, changes)) = plt.subplots(2, 2, figsize=(TEXT_WIDTH, 5.2))
    mean = result["references"]["mean"]["flow_velocity"]
    for variant, (colour, dashes, marker) in _VARIANTS.items():
        rows = [row for row in result["rates"][variant] if row["loss"] is not None]
        rates.plot(
            [row["rate"] for row in rows],
            [row["loss"] for row in rows],
            color=colour,
            dashes=dashes,
            marker=marker,
            ms=4,
            label=result["variants"][variant]["name"],
        )
        _curves(seconds, result["curves"]["variants"][variant], colour, dashes)
    _rate_axis(rates, [row["rate"] for rows in result["rates"].values() for row in rows])
    rates.set(ylabel="velocity loss, validation", title="learning rate (one seed)")
    rates.set_ylim(
        top=min(rates.get_ylim()[1], 1.15 * max(row["loss"] for row in result["variants"].values()))
    )
    seconds.set(
        xlabel="seconds, set-up included",
        ylabel="velocity loss, log of the training",
        title="at its best rate, every seed",
        xlim=(0, None),
    )
    _loss_axis(seconds, result["curves"]["variants"], mean)
    _race(race, result, mean)
    _changes(changes, result)
    figure.legend(
        *(
            first + second
            for first, second in zip(
                rates.get_legend_handles_labels(), race.get_legend_handles_labels()
            )
        ),
        loc="outside lower center",
        ncol=3,
    )
    return figure


def _rate_axis(ax: Axes, rates: list[float]) -> None:
    ax.set_xscale("log", base=2)
    ticks = 2.0 ** np.arange(
        np.floor(np.log2(1000 * min(rates)) + 0.01), np.ceil(np.log2(1000 * max(rates)) - 0.01) + 1
    )
    ax.set_xticks(ticks / 1000, labels=[f"{tick:g}" for tick in ticks])
    ax.set_xlabel("peak learning rate (10⁻³)")


def _loss_axis(ax: Axes, curves: dict[str, list[dict]], mean: float) -> None:
    ends = [curve["loss"][-1] for found in curves.values() for curve in found]
    ax.set_ylim(0.95 * min(ends), 1.1 * max(mean, *ends))


def _curves(
    ax: Axes, curves: list[dict], colour: str, dashes: tuple, label: str | None = None
) -> None:
    for i, curve in enumerate(curves):
        ax.plot(
            curve["seconds"],
            curve["loss"],
            color=colour,
            dashes=dashes,
            lw=1,
            label=label if i == 0 else None,
        )


def _race(ax: Axes, result: dict, mean: float) -> None:
    for name, (colour, dashes) in _RACE.items():
        _curves(ax, result["curves"]["race"][name], colour, dashes, name)
    _loss_axis(ax, result["curves"]["race"], mean)
    for key, text in (
        ("published", "target, published settings"),
        ("tuned", "target, tuned architecture"),
    ):
        target = float(np.mean(result[key]["targets"]))
        ax.axhline(target, color="0.4", lw=0.8, ls=(0, (4, 2)))
        ax.annotate(
            text,
            (0, target),
            xycoords=("axes fraction", "data"),
            xytext=(2, -2),
            textcoords="offset points",
            va="top",
            fontsize=6.5,
            color="0.3",
            annotation_clip=True,
        )
    ax.set(
        xscale="log",
        xlabel="seconds, set-up included",
        ylabel="velocity loss, log of the training",
        title="the race to two targets",
    )
    low, high = ax.get_xlim()
    ticks = [
        step * 10.0**power
        for power in range(-4, 7)
        for step in (1, 3)
        if low <= step * 10.0**power <= high
    ]
    ax.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    ax.minorticks_off()


def _changes(ax: Axes, result: dict) -> None:
    rows = [
        (name, row)
        for name, row in result["ablations"]["rows"].items()
        if row["difference"] is not None
    ]
    rows.sort(key=lambda item: -item[1]["difference"])
    for y, (name, row) in enumerate(rows):
        ax.plot(row["difference"], y, marker="o", mfc="white", ms=4.5, color=RED, ls="")
        if name in result["ablations"]["seeds"]:
            values = result["ablations"]["seeds"][name]["values"]
            ax.plot(values, [y] * len(values), marker="|", ms=9, mew=1.2, color=BLACK, ls="")
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.set(
        yticks=range(len(rows)),
        yticklabels=[name for name, _ in rows],
        ylim=(-0.6, len(rows) - 0.4),
        xlabel="loss, less that of ours",
        title="ours with one change (| every seed)",
    )
    ax.margins(x=0.15)


def unet_recipes(result: dict) -> Figure:
    """The UNet at equal seconds: by rate and width, by height of its image, and with its dimensions in order and permuted."""
    figure, (widths, heights, orders) = plt.subplots(
        1, 3, figsize=(TEXT_WIDTH, 2.7), sharey=True, width_ratios=(1.4, 1, 1)
    )
    unet, mean = result["unet"], result["references"]["mean"]["ddpm_epsilon"]
    far = 1.05 * mean  # what is above leaves the picture, to keep the rest apart
    for channels, colour, marker in zip(
        dict.fromkeys(tuple(row["channels"]) for row in unet["widths"]),
        (BLUE, ORANGE, GREEN),
        "osD",
    ):
        rows = sorted(
            (
                row
                for row in unet["widths"]
                if tuple(row["channels"]) == channels and row["loss"] is not None
            ),
            key=lambda row: row["rate"],
        )
        widths.plot(
            [row["rate"] for row in rows],
            [row["loss"] for row in rows],
            color=colour,
            marker=marker,
            ms=4,
            lw=1,
            label=f"channels {', '.join(map(str, channels))}"
            + (
                f" (from {lowest:.3f}, above)"
                if (lowest := min(r["loss"] for r in rows)) > far
                else ""
            ),
        )
    _rate_axis(widths, [row["rate"] for row in unet["widths"]])
    widths.set(ylabel="ε loss, validation", title="rate and width")
    rows = [row for row in unet["heights"] if row["loss"] is not None]
    heights.plot(
        range(len(rows)), [row["loss"] for row in rows], color=PURPLE, marker="o", ms=5, ls=""
    )
    heights.set(
        xticks=range(len(rows)),
        xticklabels=["own" if row["height"] is None else str(row["height"]) for row in rows],
        xlabel="height of the image",
        title="layout",
        xlim=(-0.6, len(rows) - 0.4),
    )
    for i, (natural, permuted) in enumerate(
        zip(unet["orders"]["natural"]["values"], unet["orders"]["permuted"]["values"])
    ):
        orders.plot(
            (0, 1),
            (natural, permuted),
            color="0.4",
            lw=0.9,
            marker="os^v<>"[i % 6],
            ms=4.5,
            mfc=SKY,
            mec=BLACK,
        )
    orders.set(
        xticks=(0, 1),
        xticklabels=("natural", "permuted"),
        xlabel="order of the dimensions",
        title="a line a seed",
        xlim=(-0.4, 1.4),
    )
    for ax in (widths, heights, orders):
        ax.axhline(mean, color=BLACK, lw=0.9, ls=":", label="mean only" if ax is widths else None)
    lowest = [min(line.get_ydata()) for line in widths.lines]  # of each width
    shown = [
        *(loss for loss in lowest if loss <= far),
        *(row["loss"] for row in rows),
        *unet["orders"]["natural"]["values"],
        *unet["orders"]["permuted"]["values"],
    ]
    widths.set_ylim(min(shown) - 0.1 * np.ptp(shown), max(shown) + 0.3 * np.ptp(shown))
    figure.legend(*widths.get_legend_handles_labels(), loc="outside lower center", ncol=4)
    return figure


def gpu(rates: dict, budgets: dict) -> Figure:
    """Training rates on a GPU as shares of its matrix products; and the losses of networks with other settings, trained there.

    Args:
        rates: of `mmlib_studies.benchmarks`.
        budgets: of `mmlib_studies.gpu`.
    """
    figure, (speed, losses) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.9))
    names = {
        name: place
        for place, name in enumerate(dict.fromkeys(row["name"] for row in rates["rows"]))
    }
    labels = {
        "mlp_44m": "MLP, 44 M",
        "mlp_0.5b": "MLP, 0.5 B",
        "unet_640": "UNet, d = 640",
        "unet_5120": "UNet, d = 5120",
        "mlp_44m_shared_levels": "MLP, 44 M, batch of 4096",
    }
    for compiled, colour, marker, label, above in (
        (False, BLUE, "o", "as it comes", -11),
        (True, RED, "s", "compiled", 5),
    ):
        rows = [row for row in rates["rows"] if row["compiled"] is compiled]
        speed.plot(
            [row["fraction_of_matmul"]["8192"] for row in rows],
            [names[row["name"]] for row in rows],
            marker,
            color=colour,
            ms=5,
            label=label,
        )
        for row in rows:
            speed.annotate(
                f"{EngFormatter(places=1)(row['activations_per_second'])}/s",
                (row["fraction_of_matmul"]["8192"], names[row["name"]]),
                xytext=(0, above),
                textcoords="offset points",
                ha="center" if row["fraction_of_matmul"]["8192"] > 0.15 else "left",
                fontsize=6.5,
                color=colour,
            )
    speed.set(
        yticks=list(names.values()),
        yticklabels=[labels.get(name, name) for name in names],
        xlim=(0, 1),
        ylim=(len(names) - 0.4, -0.6),
        xlabel="share of an 8192³ product's rate",
        title=f"activations/s on an {rates['provenance']['device']}",
    )
    speed.xaxis.set_major_formatter(PercentFormatter(1))
    rows = sorted(
        (row for row in budgets["rows"] if row["objective"] == "flow_velocity"),
        key=lambda row: -row["validation"],
    )
    losses.plot(
        [row["train"] for row in rows],
        range(len(rows)),
        "o",
        color=BLUE,
        mfc="white",
        ms=4.5,
        label="training documents",
    )
    losses.plot(
        [row["validation"] for row in rows],
        range(len(rows)),
        "o",
        color=RED,
        ms=4.5,
        label="validation documents",
    )
    labels = {
        "gated_mlp": "our first recipe",
        "mlp": "the paper's MLP",
        "two-blocks-late": "two blocks, late fall",
    }
    losses.set(
        yticks=range(len(rows)),
        yticklabels=[labels.get(row["name"], row["name"].replace("-", " ")) for row in rows],
        xlabel="velocity loss",
        title="the same store, other settings",
    )
    for axes in (speed, losses):
        axes.grid(axis="y", lw=0.4, color="0.9")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2)
    return figure
