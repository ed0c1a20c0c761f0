"""Figures of the store and of the fits on clean activations: notebooks 01 and 02."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlib import plots


def activations(result: dict) -> Figure:
    """Stored activations: norms by position, spread and kurtosis by dimension, PCA spectrum."""
    figure, ((norms, spread), (tails, spectrum)) = plots.panels(2, 2, 4.4)
    _norms(norms, result["norm_by_position"])
    spread.plot(np.sort(result["std"])[::-1], color=plots.INDIGO)
    spread.set(title="spread by dimension", ylabel="standard deviation", yscale="log")
    values = np.sort(result["kurtosis"])[::-1]
    tails.plot(values, color=plots.INDIGO)
    tails.axhline(0, color=plots.BLACK, lw=0.8, ls=":")
    plots.note(tails, "a Gaussian's: 0", (0.35 * len(values), 0), (0, -3), va="top")
    tails.set(title="tails by dimension", ylabel="excess kurtosis")
    tails.set_yscale("symlog", linthresh=1)
    tails.set_ylim(bottom=min(-1.0, 1.3 * values[-1]))
    for ax in (spread, tails):
        ax.set(xlabel="dimension, sorted")
    _spectrum(spectrum, np.asarray(result["variances"]), result["effective_rank"])
    return figure


def _norms(ax: Axes, quantiles: dict) -> None:
    ends = np.transpose([quantiles["q01"], quantiles["q99"]])
    band = {"color": plots.INDIGO, "alpha": 0.2, "label": "1–99 % of tokens"}
    at, median = quantiles["position"], quantiles["q50"]
    plots.curve(ax, at, median, ends, colour=plots.INDIGO, band=band, label="median")
    ax.set(title="norm by position in the window")
    ax.set(xlabel="position (tokens after <bos>)", ylabel="norm of the activation")
    ax.set_ylim(bottom=0)
    ax.legend(loc="lower right")


def _spectrum(ax: Axes, variances: np.ndarray, rank: float) -> None:
    share = variances.cumsum() / variances.sum()
    ax.plot(np.arange(1, len(variances) + 1), share, color=plots.INDIGO)
    ax.axvline(rank, color=plots.BLACK, lw=0.8, ls=":")
    plots.note(ax, f"effective rank {rank:.0f}", (rank, 0.05), (4, 0))
    ax.set(
        title="PCA spectrum",
        xlabel="components",
        ylabel="cumulative share of variance",
        ylim=(0, 1.02),
    )


def baselines(result: dict) -> Figure:
    """What PCA-k and SAEs leave of clean activations, and how often the main SAE's latents fire."""
    figure, (fvu, firing) = plots.panels(1, 2, 2.6, width_ratios=(1.5, 1))
    pca, sae = result["pca"], result["sae"]
    fvu.plot(pca["k"], pca["fvu"], color=plots.BROWN, marker="o", ms=3, label="PCA-k")
    _saes(fvu, sae, list(result["sae_grid"].values()))
    fvu.set(title="clean activations of validation documents", ylim=(0, 1.02))
    fvu.set(ylabel="fraction of variance unexplained")
    fvu.set(xlabel="components or active latents", xscale="log")
    fvu.legend(loc="lower left", title="larger: more latents", alignment="left", title_fontsize=7.5)
    frequency = np.asarray(sae["frequency"])
    firing.hist(np.log10(frequency[frequency > 0]), bins=40, color=plots.GREEN)
    firing.set(title=f"SAE latents ({100 * sae['dead']:.1f} % silent here)")
    firing.set(xlabel="log₁₀ share of activations where it fires", ylabel="number of latents")
    return figure


_SAE_MARKERS = {"topk": "D", "batchtopk": "s", "jumprelu": "^"}
_SAE_NAMES = {"topk": "TopK", "batchtopk": "BatchTopK", "jumprelu": "JumpReLU"}


def _saes(ax: Axes, main: dict, grid: list[dict]) -> None:
    """FVU against L0, the main SAE full, those of the grid hollow, larger with more latents."""
    for row, face in (*((row, "none") for row in grid), (main, plots.GREEN)):
        marker, size = _SAE_MARKERS[row["kind"]], 2 + 2 * np.sqrt(row["latents"] / 2048)
        ax.plot(row["l0"], row["fvu"], color=plots.GREEN, marker=marker, ms=size, mfc=face, ls="")
    seen, seen_small = (f"{row['train_activations'] / 1e6:.2g} M" for row in (main, grid[0]))
    style = {"color": plots.GREEN, "ms": 5, "ls": ""}
    ax.plot([], [], marker="D", label=f"TopK SAE, {seen} seen", **style)
    for kind in dict.fromkeys(row["kind"] for row in grid):
        style |= {"marker": _SAE_MARKERS[kind], "label": f"{_SAE_NAMES[kind]}, {seen_small}"}
        ax.plot([], [], mfc="none", **style)


def independence(result: dict) -> Figure:
    """Joint firing of SAE latents, and tails of whitened components, against independence."""
    figure, (joint, tails) = plots.panels(1, 2, 2.9)
    found, whitened = result["independence"]["coactivation"], result["independence"]["whitened"]
    histogram = found["histogram"]
    apart = {"color": plots.BLACK, "ls": "--", "lw": 1.3, "label": "made independent (shifted)"}
    joint.stairs(histogram["null"], histogram["edges"], **apart)
    joint.stairs(
        histogram["data"], histogram["edges"], color=plots.GREEN, lw=1.3, label="as they are"
    )
    joint.set(title=f"pairs of {found['latents']} SAE latents", ylabel="share of pairs")
    joint.set(xlabel="log₂ (joint rate / product of rates); ends: all beyond")
    component = np.arange(1, len(whitened["kurtosis"]) + 1)
    tails.plot(component, whitened["kurtosis"], ".", color=plots.INDIGO, ms=2.5, label="as it is")
    style = {"color": plots.OLIVE, "ms": 2.5, "mew": 0.6}
    label = "every token scaled to one norm"
    tails.plot(component, whitened["norm_kurtosis"], "x", label=label, **style)
    tails.axhline(0, color=plots.BLACK, lw=0.8, ls=":", label="a Gaussian's")
    tails.set(title="whitened principal components", ylabel="excess kurtosis")
    tails.set(xlabel="component", xscale="log")
    tails.set_yscale("symlog", linthresh=1)
    tails.set_ylim(bottom=-1)
    for ax in (joint, tails):
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.3))
    return figure
