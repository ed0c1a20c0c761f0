"""Figures of samples, likelihoods and the language model's loss: notebooks 05, 07 and 08."""

from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlib import plots

_REAL = "0.5"  # colour of real activations, which no model has

_SAMPLED = {  # label, colour, marker, dashes
    "real": ("real (test)", _REAL, ".", ":"),
    "gaussian": (plots.LABELS["gaussian"], plots.BLUE, "x", "--"),
    **{name: (plots.LABELS[name], plots.RED, "+", "-") for name in plots.OURS},
}


def samples(result: dict) -> Figure:
    """Generated against real activations: first principal components, norms, Fréchet distance."""
    figure, (scatter, norms, distance) = plots.panels(1, 3, 2.6, width_ratios=(1.1, 1, 1.25))
    handles = []
    for name in ("real", "gaussian", plots.ours(result["scatter"])):
        label, colour, marker, dash = _SAMPLED[name]
        points, histogram = np.transpose(result["scatter"][name]), result["norms"][name]
        scatter.plot(*points, marker, color=colour, ms=2.5, mew=0.6, alpha=0.6)
        style = {"color": colour, "lw": 1.3, "ls": dash}
        norms.stairs(histogram["density"], histogram["edges"], **style)
        handles.append(plots.in_legend(label, colour, marker=marker, ms=5, ls=dash))
    scatter.set(title="principal components", xlabel="PC 1 of z", ylabel="PC 2 of z")
    norms.set(title="norms", xlabel="norm of z", ylabel="density")
    figure.supxlabel("z: standardised activations", x=0.98, ha="right", fontsize=plots.SMALLEST)
    figure.legend(handles=handles, loc="outside lower left", ncol=3)
    _distances(distance, result["frechet"]["all_dimensions"])
    return figure


def _distances(ax: Axes, rows: dict[str, dict]) -> None:
    order = sorted(rows, key=lambda name: rows[name]["distance"], reverse=True)
    distances = [rows[name]["distance"] for name in order]
    names, lines = plots.LABELS | {"floor": "real (training)"}, plots.LINES | {"floor": (_REAL,)}
    labels, colours = [names[name] for name in order], [lines[name][0] for name in order]
    ax.barh(labels, distances, color=colours, height=0.6)
    for y, distance in enumerate(distances):
        plots.note(ax, f"{distance:.0f}", (distance, y), (2, 0), va="center")
    ax.set(title="distance from test documents", xlabel="Fréchet distance of z")
    ax.margins(x=0.15)


def dimensions(samples: dict[str, np.ndarray]) -> Figure:
    """Histograms of eight dimensions, spread evenly, of real and of generated activations.

    Args:
        samples: name in the legend → standardised activations z (n, d); at most three.
    """
    figure, axes = plots.panels(2, 4, 3.2)
    d, bins = next(iter(samples.values())).shape[1], np.linspace(-4, 4, 41)
    for ax, dimension in zip(axes.flat, np.linspace(0, d - 1, 8).astype(int)):
        styles = zip((_REAL, plots.BLUE, plots.RED), ("-", "--", "-"))
        for (name, z_nd), (colour, dash) in zip(samples.items(), styles):
            style = {"histtype": "step", "color": colour, "ls": dash, "label": name}
            ax.hist(np.asarray(z_nd[:, dimension]), bins, density=True, **style)
        ax.set(title=f"dimension {dimension}", yticks=[])
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncol=3)
    figure.supxlabel("z", fontsize=8)
    return figure


def density(result: dict) -> Figure:
    """Log-likelihood of test activations by method, and its gain over the Gaussian's by token."""
    figure, (means, differences) = plots.panels(1, 2, 2.6, width_ratios=(1, 1.15))
    rows = sorted(result["rows"].items(), key=lambda item: item[1]["mean"])
    labels = plots.LABELS | {"mixture_average": "union of mixtures"}  # an average has no density
    for y, (name, row) in enumerate(rows):
        colour, dashes = plots.LINES[name]
        marker = "o" if row["kind"] == "exact" else "s"
        plots.forest(means, row["mean"], y, row["ci95"], colour=colour, marker=marker)
        plots.forest(means, row["median"], y, colour=colour, **_MEDIAN)
        if name not in ("gaussian", "mean"):
            over = row["over_gaussian"]["quantiles"]
            share = np.linspace(0.005, 0.995, len(over))
            differences.plot(over, share, color=colour, dashes=dashes, label=labels[name])
    plots.height_axis(means, [labels[name] for name, _ in rows], margin=0.6, rising=True)
    means.set(title="mean log-likelihood", xlabel="nats per dimension")
    differences.axvline(0, color=plots.BLACK, lw=0.8)
    differences.set(title="gain over the full Gaussian", ylim=(0, 1))
    differences.set(xlabel="nats per dimension, token by token")
    differences.set(ylabel="share of test tokens below")
    plots.percent_axis(differences.yaxis)
    handles = [
        plots.in_legend("exact", marker="o", ms=4.5, lw=1.4),
        plots.in_legend("along the ODE", marker="s", ms=4.5, lw=1.4),
        plots.in_legend("median token", marker="|", ms=9, mew=1.2, ls=""),
    ]
    plots.legend_below(figure, 4, [*handles, *differences.get_legend_handles_labels()[0]])
    return figure


_MEDIAN = {"marker": "|", "size": 9, "mew": 1.2}

_REPLACED = {
    "noisy": "noisy, as it is",
    "mean_ablation": "replaced by the mean",
    "zero_ablation": "replaced by 0",
}


def lm_loss(result: dict) -> Figure:
    """Δ LM loss under one-step estimates against σ, and under every replacement against its FVU."""
    figure, (by_sigma, by_fvu) = plots.panels(1, 2, 4.0, sharey=True)
    styles = {"noisy": ("0.6", (1, 1)), **plots.LINES}
    rows = [(method, result["denoisers"].get(method)) for method in styles]
    rows.append(("unet", result["denoisers_common_subset"].get("unet")))
    measured = [(method, list(found.values())) for method, found in rows if found]
    middle = (len(measured) - 1) / 2
    for place, ((method, found), marker) in enumerate(zip(measured, cycle("x*ps^v<DoPh"))):
        colour, _ = styles[method]
        label = _REPLACED.get(method, plots.LABELS.get(method))
        label += ", on fewer documents" if method not in result["denoisers"] else ""
        style = {"marker": marker, "ms": 4, "ls": "", "label": label}
        _deltas(by_sigma, found, 0.017 * (place - middle), colour=colour, **style)
        by_fvu.plot(*plots.columns(found, "fvu", "delta"), marker, color=colour, ms=4)
    for method, dashes in (("mean_ablation", (5, 1, 1, 1, 1, 1)), ("zero_ablation", (1, 2))):
        style = {"lw": 0.8, "dashes": dashes, "label": _REPLACED[method]}
        by_sigma.axhline(result["ablations"][method]["delta"], color=plots.BLACK, **style)
    _reconstructions(by_fvu, result["reconstructions"])
    by_sigma.set(yscale="log", ylabel="Δ LM loss (nats per token)", xticks=(0.1, 0.3, 0.5, 0.7))
    by_sigma.set(title="one-step estimates", xlabel="noise level σ (▼: interval reaches 0)")
    by_fvu.set(title="any replacement", xscale="log", xlabel="fraction of variance unexplained")
    for between in (0.2, 0.4, 0.6):
        by_sigma.axvline(between, color="0.9", lw=0.7, zorder=0)
    plots.legend_below(figure, 3)
    return figure


def _deltas(ax: Axes, rows: list[dict], shift: float, *, colour: str, **style) -> None:
    """Points of several methods side by side around a σ, with their intervals."""
    sigma, delta, interval = map(np.array, plots.columns(rows, "sigma", "delta", "ci95"))
    at = sigma + shift
    bars = {"lw": 0.8, "caps": 3, "zorder": 1.5}
    plots.curve(ax, at, delta, interval, colour=colour, bars=bars, **style)
    below = at[interval.min(1) <= 0]  # where a logarithmic axis has no place for the end
    place = {"transform": ax.get_xaxis_transform(), "clip_on": False}
    (ends,) = ax.plot(below, np.zeros(len(below)), "v", color=colour, ms=3.5, **place)
    ends.set_in_layout(False)  # or the axes make room for the place of 0 on their logarithmic scale


def _reconstructions(ax: Axes, found: dict) -> None:
    """Reconstructions of clean activations: PCA-k with its k, and SAEs."""
    fvu, delta, ks = plots.columns(found["pca"].values(), "fvu", "delta", "k")
    style = {"color": plots.BROWN, "lw": 1.3, "marker": "s", "ms": 3.5, "zorder": 1}
    ax.plot(fvu, delta, label="PCA-k, no noise", **style)
    for x, y, k in zip(fvu, delta, ks):
        plots.note(ax, f"{k}", (x, y), (4, -8), color=plots.BROWN)
    style = {"color": plots.GREEN, "marker": "D", "ms": 5, "mfc": "none", "ls": ""}
    ax.plot(*plots.columns(found["sae"].values(), "fvu", "delta"), label="SAEs, no noise", **style)
