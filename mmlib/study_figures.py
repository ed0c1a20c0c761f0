"""One function per figure of the studies. Reads results, never models."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from mmlib.style import BLACK, BLUE, GREEN, LINES, MARKERS, OBJECTIVES, ORANGE, PURPLE, RED, SKY, TEXT_WIDTH


def solvers(result: dict) -> Figure:
    """Fréchet distance of samples, and error of the end point, against the number of evaluations, for each solver."""
    figure, (distances, errors) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.7))
    found = result["solvers"]
    for (name, label), colour, marker in zip({"euler": "Euler", "heun": "Heun", "dpm++": "DPM-Solver++"}.items(), (BLUE, GREEN, RED), "os^"):
        rows = sorted((row for row in found["rows"] if row["solver"] == name), key=lambda row: row["evaluations"])
        evaluations = [row["evaluations"] for row in rows]
        distances.plot(evaluations, [row["distance"] for row in rows], color=colour, marker=marker, ms=4, label=label)
        measured = [(e, row["endpoint_error"]) for e, row in zip(evaluations, rows) if row["endpoint_error"] > 0]
        errors.plot(*zip(*measured), color=colour, marker=marker, ms=4)
    distances.axhspan(0.95 * found["reference"], 1.05 * found["reference"], color="0.85", lw=0, label=f"within 5 % of {found['most']} Euler steps")
    distances.axhline(found["floor"], color=BLACK, lw=0.8, ls=":", label="real training activations")
    distances.set(xscale="log", xlabel="evaluations of the network a sample", ylabel="Fréchet distance of z from test")
    errors.set(xscale="log", yscale="log", xlabel="evaluations of the network a sample", ylabel="error of the end point, relative")
    figure.legend(loc="outside lower center", ncol=3)
    return figure


def throughput(result: dict) -> Figure:
    """Speed of extraction and of reading at three sizes of the store, beside the references."""
    figure, (extraction, reading) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.5))
    growth, rows = result["growth"], {row["name"]: row for row in result["rows"]}
    plain, bare = rows["extraction to the store"], rows["extraction to the store, against computing alone"]
    fromfile, loader = rows["shuffled batches, checksums on"], rows["shuffled batches, checksums on, against rows one at a time"]
    extraction.plot(growth["tokens"], growth["tokens_per_second"], color=RED, marker="o", ms=4, label="all blocks to the middle one stored")
    extraction.axhline(bare["ours"], color=BLUE, lw=1, label="the middle block stored")
    extraction.axhline(bare["reference"], color=BLACK, lw=1, ls=(0, (4, 2)), label="the same, computed only")
    extraction.axhline(plain["reference"], color=ORANGE, lw=1, ls=":", label="full forward pass, padded batches")
    extraction.set(xscale="log", xlabel="tokens extracted", ylabel="tokens/s", title="extraction")
    reading.plot(growth["gigabytes"], growth["gb_per_second"], color=RED, marker="o", ms=4, label="shuffled batches, checksums on")
    reading.axhline(fromfile["reference"], color=BLACK, lw=1, ls=(0, (4, 2)), label="numpy.fromfile, in sequence")
    reading.axhline(loader["reference"], color=ORANGE, lw=1, ls=":", label="DataLoader, rows one at a time")
    reading.set(xscale="log", yscale="log", xlabel="size of the store (GB)", ylabel="GB/s", title="reading, warm cache")
    for axes in (extraction, reading):
        axes.margins(y=0.1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3))
    extraction.set_ylim(bottom=0)
    return figure


def scaling(result: dict) -> Figure:
    """Loss against compute by size, the law through the lower envelope, and where it would meet the claim."""
    figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 3.4))
    rows, reach, curve = result["rows"], result["extrapolation"], {key: np.asarray(values) for key, values in result["curve"].items()}
    widths = sorted({row["d_model"] for row in rows})
    for width, colour, marker in zip(widths, (SKY, ORANGE, GREEN, PURPLE, RED, BLUE, BLACK), "vD^so<>"):
        mine = sorted((row for row in rows if row["d_model"] == width), key=lambda row: row["compute"])
        ax.plot([row["compute"] for row in mine], [row["loss"] for row in mine], color=colour, marker=marker, ms=4, lw=0.8,
                label=f"width {width}, {mine[0]['parameters'] / 1e6:.2g} M")
    best = [row for row in rows if row["name"] in result["envelope"]]
    ax.plot([row["compute"] for row in best], [row["loss"] for row in best], ls="", marker="o", ms=8, mfc="none", mec=BLACK, mew=0.8,
            label="lower envelope")
    measured = curve["compute"] <= reach["largest_measured"]
    ax.fill_between(curve["compute"], curve["low"], curve["high"], color="0.5", alpha=0.25, lw=0, label="95 % over resamples of the cells")
    ax.plot(curve["compute"][measured], curve["loss"][measured], color=BLACK, lw=1.2, label=r"$E + A\,C^{-\alpha}$")
    ax.plot(curve["compute"][~measured], curve["loss"][~measured], color=BLACK, lw=1.2, ls=(0, (4, 2)), label="the same, extrapolated")
    mean, gaussian = (result["references"][name]["loss"] for name in ("mean", "gaussian"))
    claimed = f"{100 * result['claim']:.0f} % below the Gaussian"
    for name, loss, text in (("mean", mean, "mean only"), ("gaussian", gaussian, "full Gaussian"), ("unet", reach["loss"], claimed)):
        colour, dashes = LINES[name]
        ax.axhline(loss, color=colour, dashes=dashes, lw=1)
        ax.annotate(text, (curve["compute"][-1], loss), xytext=(0, 2), textcoords="offset points", ha="right", fontsize=7)
    ax.set(xscale="log", xlabel="compute C = 6·N·D (FLOP)", ylabel=f"{OBJECTIVES['flow_velocity']} per dimension, test",
           ylim=(0.9 * min(reach["loss"], min(row["loss"] for row in rows)), 1.05 * max(row["loss"] for row in rows)))
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncol=3)
    return figure


def robustness(result: dict) -> Figure:
    """Reduction over the full Gaussian by layer, text, coordinates and seed, with and without outliers."""
    rows = [row for row in result["rows"] if row["baseline"] == "gaussian"]
    labels = list(dict.fromkeys((row["group"], row["label"]) for row in rows))
    figure, ax = plt.subplots(figsize=(TEXT_WIDTH, 0.8 + 0.32 * len(labels)))
    for row in rows:
        j = list(OBJECTIVES).index(row["objective"])
        y = labels.index((row["group"], row["label"])) + 0.14 * (2 * j - 1)
        colour, hollow = (BLUE, RED)[j], row["tokens"] != "all"
        if not hollow:
            ax.plot(row["ci95"], [y, y], color=colour, lw=1.4)
        ax.plot(row["reduction"], y + (0.16 if hollow else 0) * (2 * j - 1), marker=MARKERS[row["objective"]], color=colour, ms=3 if hollow else 4.5,
                mfc="white" if hollow else colour, ls="")
    for i in range(1, len(labels)):
        if labels[i][0] != labels[i - 1][0]:
            ax.axhline(i - 0.5, color="0.8", lw=0.6)
    ax.axvline(0, color=BLACK, lw=0.8)
    ax.axvline(result["claim"], color=BLACK, lw=1, ls="--")
    ax.annotate(f"claimed {100 * result['claim']:.0f} %", (result["claim"], -0.5), xytext=(-3, -2), textcoords="offset points", ha="right",
                va="top", fontsize=7)
    ax.set(xlabel="reduction of the loss over the full Gaussian of the same training documents", yticks=range(len(labels)),
           ylim=(len(labels) - 0.5, -0.5))
    ax.set_yticklabels([label for _, label in labels])
    ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    handles = [Line2D([], [], color=colour, marker=MARKERS[objective], ms=4.5, label=label)
               for colour, (objective, label) in zip((BLUE, RED), OBJECTIVES.items())]
    handles.append(Line2D([], [], color="0.3", marker="o", mfc="white", ms=3, ls="", label="without outliers"))
    figure.legend(handles=handles, loc="outside lower center", ncol=3)
    return figure
