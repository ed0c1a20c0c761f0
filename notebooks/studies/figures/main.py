"""One function per figure of the main line, and the list of all figures. Reads results, never models: drawing takes seconds and needs no torch."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from mmlib.evaluation import claim as claimed
from mmlib.plots import (
    BLACK,
    BLUE,
    GREEN,
    LABELS,
    LINES,
    MARKERS,
    OBJECTIVES,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    TABLES_ONLY,
    TEXT_WIDTH,
)
from mmlib_studies.figures.applications import (
    clamping,
    probing,
    steering,
    steering_study,
    typicality,
    typicality_passage,
    unit_contexts,
)
from mmlib_studies.figures.studies import (
    recipes,
    robustness,
    scaling,
    solvers,
    throughput,
    unet_recipes,
)


def activations(result: dict) -> Figure:
    """Anatomy of the stored activations: norms by position, spread and kurtosis by dimension, PCA spectrum."""
    figure, ((norms, spread), (kurtosis, spectrum)) = plt.subplots(2, 2, figsize=(TEXT_WIDTH, 4.4))
    quantiles = result["norm_by_position"]
    norms.fill_between(
        quantiles["position"],
        quantiles["q01"],
        quantiles["q99"],
        color=SKY,
        alpha=0.45,
        lw=0,
        label="1–99 %",
    )
    norms.plot(quantiles["position"], quantiles["q50"], color=BLUE, label="median")
    norms.set(
        title="norm by position in the window",
        xlabel="position (tokens after <bos>)",
        ylabel="norm of the activation",
        yscale="log",
    )
    norms.legend(loc="lower right", ncol=2)
    norms.margins(y=0.2)
    spread.plot(np.sort(result["std"])[::-1], color=BLUE)
    spread.set(
        title="spread by dimension",
        xlabel="dimension, sorted",
        ylabel="standard deviation",
        yscale="log",
    )
    values = np.sort(result["kurtosis"])[::-1]
    kurtosis.plot(values, color=BLUE)
    kurtosis.axhline(0, color=BLACK, lw=0.8, ls=":")
    kurtosis.annotate(
        "a Gaussian's: 0",
        (0.35 * len(values), 0),
        xytext=(0, -3),
        textcoords="offset points",
        va="top",
        fontsize=7,
    )
    kurtosis.set(title="tails by dimension", xlabel="dimension, sorted", ylabel="excess kurtosis")
    kurtosis.set_yscale("symlog", linthresh=1)
    variances = np.asarray(result["variances"])
    spectrum.plot(
        np.arange(1, len(variances) + 1), variances.cumsum() / variances.sum(), color=BLUE
    )
    spectrum.axvline(result["effective_rank"], color=BLACK, lw=0.8, ls=":")
    spectrum.annotate(
        f"effective rank {result['effective_rank']:.0f}",
        (result["effective_rank"], 0.05),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=7,
    )
    spectrum.set(
        title="PCA spectrum", xlabel="components", ylabel="share of variance", ylim=(0, 1.02)
    )
    return figure


def baselines(result: dict) -> Figure:
    """Reconstruction of clean activations by PCA-k and SAEs, and how often the latents of the main one fire."""
    figure, (fvu, firing) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.6), width_ratios=(1.5, 1))
    pca, sae = result["pca"], result["sae"]
    fvu.plot(pca["k"], pca["fvu"], color=ORANGE, marker="o", ms=3, label="PCA-k")
    for row in result["sae_grid"].values():
        _sae(fvu, row, "none")
    _sae(fvu, sae, GREEN)
    fvu.plot(
        [],
        [],
        color=GREEN,
        marker="D",
        ms=5,
        ls="",
        label=f"TopK SAE, {sae['train_activations'] / 1e6:.2g} M seen",
    )
    small = next(iter(result["sae_grid"].values()))
    for kind in dict.fromkeys(row["kind"] for row in result["sae_grid"].values()):
        fvu.plot(
            [],
            [],
            color=GREEN,
            marker=SAE_MARKERS[kind][0],
            mfc="none",
            ms=5,
            ls="",
            label=f"{SAE_MARKERS[kind][1]}, {small['train_activations'] / 1e6:.2g} M",
        )
    fvu.set(
        title="clean activations of validation documents",
        xlabel="components or active latents",
        ylabel="FVU",
        xscale="log",
        ylim=(0, 1.02),
    )
    fvu.legend(loc="lower left", title="larger: more latents", alignment="left", title_fontsize=7.5)
    frequency = np.asarray(sae["frequency"])
    firing.hist(np.log10(frequency[frequency > 0]), bins=40, color=GREEN)
    firing.set(
        title=f"SAE latents ({100 * sae['dead']:.1f} % silent here)",
        xlabel="log₁₀ share of activations",
        ylabel="latents",
    )
    return figure


SAE_MARKERS = {
    "topk": ("D", "TopK"),
    "batchtopk": ("s", "BatchTopK"),
    "jumprelu": ("^", "JumpReLU"),
}


def _sae(ax: Axes, row: dict, face: str) -> None:
    """A point whose size grows with the number of latents."""
    ax.plot(
        row["l0"],
        row["fvu"],
        marker=SAE_MARKERS[row["kind"]][0],
        ms=2 + 2 * np.sqrt(row["latents"] / 2048),
        color=GREEN,
        mfc=face,
        ls="",
    )


def independence(result: dict) -> Figure:
    """Joint firing of the SAE's latents against independence, and the tails of whitened coordinates against a Gaussian's."""
    figure, (joint, tails) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.5))
    found, whitened = result["independence"]["coactivation"], result["independence"]["whitened"]
    for name, colour, dash, label in (
        ("null", BLACK, "--", "shifted apart"),
        ("data", GREEN, "-", "as they are"),
    ):
        joint.stairs(
            found["histogram"][name],
            found["histogram"]["edges"],
            color=colour,
            ls=dash,
            lw=1.3,
            label=label,
        )
    joint.set(
        title=f"pairs of {found['latents']} SAE latents",
        xlabel="log₂ (joint rate / product of rates)",
        ylabel="share of pairs",
    )
    joint.legend()
    component = np.arange(1, len(whitened["kurtosis"]) + 1)
    tails.plot(component, whitened["kurtosis"], ".", color=BLUE, ms=2.5, label="as it is")
    tails.plot(
        component,
        whitened["norm_kurtosis"],
        "x",
        color=ORANGE,
        ms=2.5,
        mew=0.6,
        label="every token scaled to one norm",
    )
    tails.axhline(0, color=BLACK, lw=0.8, ls=":", label="a Gaussian's")
    tails.set(
        title="whitened principal components",
        xlabel="component",
        ylabel="excess kurtosis",
        xscale="log",
    )
    tails.set_yscale("symlog", linthresh=1)
    tails.set_ylim(bottom=-10)
    tails.legend(loc="lower left")
    return figure


def training(result: dict) -> Figure:
    """Training and validation loss of the networks against activations seen and against seconds."""
    figure, axes = plt.subplots(2, 2, figsize=(TEXT_WIDTH, 4.2), sharey="row")
    for row, names in zip(axes, (("mlp", "gated_mlp"), ("unet",))):
        for name in names:
            for ax, key in zip(row, ("activations", "seconds")):
                _training_curve(ax, result[name]["log"], key, name)
        run = result[names[0]]
        for ax, label in zip(row, ("activations seen", "seconds of training")):
            for method in ("mean", "gaussian"):
                ax.axhline(
                    run["references"][method],
                    color=LINES[method][0],
                    dashes=LINES[method][1],
                    lw=1,
                    label=LABELS[method],
                )
            ax.set(xscale="log", xlabel=label)
        lowest = min(
            run["references"]["gaussian"],
            *(e["loss"] for name in names for e in result[name]["log"]),
        )
        row[0].set(
            ylabel=f"{OBJECTIVES[run['objective']]} per dimension",
            ylim=(0.95 * lowest, (3 if "unet" in names else 1.35) * run["references"]["mean"]),
        )
        row[0].set_title(
            ", ".join(
                f"{LABELS[name]}: {result[name]['parameters'] / 1e6:.1f} M parameters"
                for name in names
            ),
            loc="left",
        )
    neutral = [
        *(
            Line2D([], [], color=LINES[name][0], dashes=LINES[name][1], label=LABELS[name])
            for name in ("mlp", "gated_mlp", "unet")
        ),
        Line2D([], [], color="0.4", alpha=0.5, lw=1, label="training batches"),
        Line2D([], [], color="0.4", marker="o", ms=3, label="validation, averaged weights"),
        *(
            line
            for line in axes[0, 0].get_lines()
            if line.get_label() in (LABELS["mean"], LABELS["gaussian"])
        ),
    ]
    figure.legend(handles=neutral, loc="outside lower center", ncol=4)
    return figure


def _training_curve(ax: Axes, log: list[dict], key: str, name: str) -> None:
    colour, dashes = LINES[name]
    ax.plot(
        [e[key] for e in log],
        [e["loss"] for e in log],
        color=colour,
        alpha=0.35,
        lw=1,
        dashes=dashes,
    )
    measured = [e for e in log if "validation_loss" in e]
    ax.plot(
        [e[key] for e in measured],
        [e["validation_loss"] for e in measured],
        color=colour,
        dashes=dashes,
        marker="o",
        ms=3,
    )


def loss_by_noise(result: dict) -> Figure:
    """Loss of every method against the noise level; two readings of PCA are light, the naive one is left out."""
    figure, axes = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 3.4))
    for ax, (objective, label) in zip(axes, OBJECTIVES.items()):
        curves, velocity = result["curves"][objective], objective == "flow_velocity"
        for method, (colour, dashes) in (
            (m, line) for m, line in LINES.items() if m in curves["loss"] and m != "pca_k64_naive"
        ):
            light = method in TABLES_ONLY
            ax.plot(
                curves["sigma"],
                curves["loss"][method],
                color=colour,
                dashes=dashes,
                lw=0.7 if light else 1.3,
                alpha=0.7 if light else 1,
                zorder=1 if light else 2,
                label=LABELS[method],
            )
        ax.set(
            yscale="log",
            xlabel="noise level σ",
            ylabel=f"{label} per dimension",
            xlim=(0, 1),
            ylim=(0.8, 10) if velocity else (1e-3, 10),
        )
        _limits(ax, velocity)
        if velocity:
            ax.set_yticks((1, 2, 3, 5, 10), labels=("1", "2", "3", "5", "10"))
            ax.minorticks_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=4)
    return figure


def _limits(ax: Axes, velocity: bool) -> None:
    """The limits of the best loss: of the velocity 1 at both ends; of ε 1 at low noise, and 0 at high, which the axis of a logarithm does not have."""
    for end, limit in ((0, 1), (1, 1 if velocity else ax.get_ylim()[0])):
        ax.plot(
            end,
            limit,
            ls="",
            marker="D" if velocity or not end else "v",
            ms=5,
            mfc="white",
            color=BLACK,
            clip_on=False,
            zorder=5,
            label=None if end else "limits of the best loss",
        )
    if not velocity:
        ax.annotate(
            "to 0",
            (1, ax.get_ylim()[0]),
            xytext=(-24, 4),
            textcoords="offset points",
            ha="right",
            fontsize=7,
        )


LEAST = -0.5  # reduction at the left end of the axis


def reductions(result: dict, replication: dict | None = None) -> Figure:
    """The primary definitions, set apart; then the reduction of the loss by each network over each baseline.

    Args:
        replication: results of notebook 24, whose training seeds become small ticks.
    """
    figure = plt.figure(figsize=(TEXT_WIDTH, 5.5))
    grid = figure.add_gridspec(2, 3, height_ratios=(1.6, 3.3))
    _primary(figure.add_subplot(grid[0, :]), result["primary"], replication)
    baselines_ = list(dict.fromkeys(row["baseline"] for row in result["reductions"]))
    first = None
    for column, method in enumerate(("unet", "mlp", "gated_mlp")):
        first = ax = figure.add_subplot(grid[1, column], sharey=first)
        for i, row in (
            (i, r)
            for i, b in enumerate(baselines_)
            for r in result["reductions"]
            if (r["method"], r["baseline"]) == (method, b)
        ):
            j = list(OBJECTIVES).index(row["objective"])
            _reduction(ax, row, i + 0.17 * (2 * j - 1), (BLUE, RED)[j])
        _reduction_axis(ax)
        ax.set(
            title=LABELS[method],
            xlabel="reduction of the loss (%)",
            yticks=range(len(baselines_)),
            ylim=(len(baselines_) - 0.5, -0.7),
        )
        ax.set_yticklabels([LABELS[b] for b in baselines_])
        ax.tick_params(labelleft=column == 0)
    for j, (objective, label) in enumerate(OBJECTIVES.items()):
        first.plot([], [], color=(BLUE, RED)[j], marker=MARKERS[objective], ms=4, label=label)
    first.plot([], [], color=BLACK, lw=1, ls="--", label="claimed 47 %")
    if replication:
        first.plot(
            [], [], ls="", marker="|", ms=8, mew=0.8, color=BLACK, label="each training seed"
        )
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncol=5)
    return figure


def _primary(ax: Axes, rows: list[dict], replication: dict | None) -> None:
    seeds = {
        (row["method"], row["baseline"], row["objective"]): row["reductions"]["values"]
        for row in (replication or {"seeds": []})["seeds"]
    }
    for y, row in enumerate(rows):
        _reduction(ax, row, y, (BLUE, RED)[list(OBJECTIVES).index(row["objective"])])
        values = seeds.get((row["method"], row["baseline"], row["objective"]), [])
        ax.plot(values, [y] * len(values), ls="", marker="|", ms=11, mew=0.8, color=BLACK, zorder=4)
    _reduction_axis(ax)
    ax.set(
        title="primary definitions, and the paper's MLP (added); [95 % interval by document]",
        yticks=range(len(rows)),
        ylim=(len(rows) - 0.5, -0.5),
    )
    values = [
        f"{100 * row['reduction']:.1f} [{100 * row['ci95'][0]:.1f}, {100 * row['ci95'][1]:.1f}] %".replace(
            "-", "−"
        )
        for row in rows
    ]
    ax.set_yticklabels(
        [
            f"{LABELS[row['method']]} over {LABELS[row['baseline']]}\n{value}"
            for row, value in zip(rows, values)
        ]
    )  # over no line there


def _reduction_axis(ax: Axes) -> None:
    ax.axvline(0, color=BLACK, lw=0.8, zorder=1)
    ax.axvline(claimed.CLAIM, color=BLACK, lw=1, ls="--", zorder=1)
    ax.set_xlim(LEAST, 1.05)
    ax.set_xticks((0, 0.5, 1), labels=("0", "50", "100"))


def _reduction(ax: Axes, row: dict, y: float, colour: str) -> None:
    """A point with its interval; what is left of the axis is an arrow with its value."""
    low, high = row["ci95"]
    if row["reduction"] < LEAST:
        ax.annotate(
            f"◂ {100 * row['reduction']:,.0f} %".replace("-", "−"),
            (LEAST, y),
            xytext=(2, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=6.3,
            bbox={"fc": "white", "ec": "none", "pad": 0},
        )
        return
    ax.plot([max(low, LEAST), high], [y, y], color=colour, lw=1.4)
    ax.plot(row["reduction"], y, marker=MARKERS[row["objective"]], color=colour, ms=4)


def floors(result: dict, scaling: dict | None = None) -> Figure:
    """The reduction of what can be reduced, against the unknown best possible loss, for the primary definitions.

    Args:
        scaling: results of notebook 06, whose E is marked, with its interval cut at the lowest loss.
    """
    figure, ax = plt.subplots(figsize=(TEXT_WIDTH * 0.62, 3.0))
    for found, colour, dashes in zip(
        result["floors"], (PURPLE, GREEN, ORANGE, RED), ((4, 1.5), (1, 1), (6, 1, 1, 1), ())
    ):
        share = [row["floor"] / found["lowest_loss_seen"] for row in found["rows"]]
        ax.fill_between(
            share, *zip(*(row["ci95"] for row in found["rows"])), color=colour, alpha=0.25, lw=0
        )
        label = f"{LABELS[found['method']]} over {LABELS[found['baseline']]}, {OBJECTIVES[found['objective']].removesuffix(' loss')}"
        ax.plot(
            share,
            [row["reduction"] for row in found["rows"]],
            color=colour,
            dashes=dashes,
            marker="o",
            ms=3,
            label=label,
        )
    ax.axhline(0, color=BLACK, lw=0.8)
    ax.axhline(claimed.CLAIM, color=BLACK, lw=1, ls="--", label="claimed 47 %")
    ax.set(
        xlabel="assumed best possible loss, as a share of the lowest loss seen",
        ylabel="reduction of the rest",
        xlim=(0, 1),
        ylim=(-1, 1.05),
    )
    if scaling is not None:
        _estimated_floor(ax, claimed.over_the_estimate(result, scaling))
    ax.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    ax.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    figure.legend(loc="outside lower center", ncol=1)
    return figure


def _estimated_floor(ax: Axes, found: dict) -> None:
    """E as a line, its interval as a bar along the axis, and the mixture's reduction over it as a star."""
    if not found["possible"]:
        return
    at, ends = (
        found["e"] / found["lowest_loss"],
        [end / found["lowest_loss"] for end in found["cut_ci95"]],
    )
    ax.axvline(
        at,
        color=BLUE,
        lw=1,
        ls=":",
        label=f"E of the scaling law, velocity: {found['e']:.2f}; bar: its interval, cut at the lowest loss",
    )
    ax.plot(ends, [-0.93] * 2, color=BLUE, lw=3, alpha=0.5, solid_capstyle="butt")
    mixture = next(row["reduction"] for row in found["rows"] if row["method"] == "mixture")
    if mixture is not None:
        ax.plot(
            at,
            mixture,
            marker="*",
            ms=8,
            mfc=SKY,
            mec=BLACK,
            mew=0.6,
            ls="",
            zorder=5,
            label="mixture of Gaussians over full Gaussian, at E",
        )


def samples(result: dict) -> Figure:
    """Generated against real activations: first principal components, norms, Fréchet distance."""
    figure, (scatter, norms, distance) = plt.subplots(
        1, 3, figsize=(TEXT_WIDTH, 2.6), width_ratios=(1.1, 1, 1.25)
    )
    colours = {"real": BLACK, "gaussian": BLUE, "gated_mlp": RED}
    names = {"real": "real (test)", "gaussian": "Gaussian", "gated_mlp": "gated MLP"}
    for name, marker in (("real", "."), ("gaussian", "x"), ("gated_mlp", "+")):
        points = np.asarray(result["scatter"][name])
        scatter.plot(
            points[:, 0],
            points[:, 1],
            marker,
            color=colours[name],
            ms=2.5,
            mew=0.6,
            alpha=0.6,
            label=names[name],
        )
        histogram = result["norms"][name]
        norms.stairs(
            histogram["density"],
            histogram["edges"],
            color=colours[name],
            lw=1.3,
            ls="-" if name != "gaussian" else "--",
            label=names[name],
        )
    scatter.set(title="principal components", xlabel="PC 1 of z", ylabel="PC 2 of z")
    norms.set(title="norms", xlabel="norm of z", ylabel="density")
    figure.legend(
        handles=[
            Line2D(
                [],
                [],
                color=colours[n],
                marker=m,
                ms=5,
                ls="--" if n == "gaussian" else "-",
                label=names[n],
            )
            for n, m in (("real", "."), ("gaussian", "x"), ("gated_mlp", "+"))
        ],
        loc="outside lower left",
        ncol=3,
    )
    rows = result["frechet"]["all_dimensions"]
    labels = {"floor": "real (training)", **{name: LABELS[name] for name in rows if name in LABELS}}
    order = sorted(rows, key=lambda name: rows[name]["distance"])
    distance.barh(
        [labels[name] for name in order],
        [rows[name]["distance"] for name in order],
        color=["0.6" if name == "floor" else LINES[name][0] for name in order],
        height=0.6,
    )
    for y, name in enumerate(order):
        distance.annotate(
            f"{rows[name]['distance']:.0f}",
            (rows[name]["distance"], y),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    distance.set(title="distance from test documents", xlabel="Fréchet distance of z")
    distance.margins(x=0.15)
    return figure


def density(result: dict) -> Figure:
    """Log-likelihood of test activations by method, and the distribution over tokens of its difference to the Gaussian's."""
    figure, (means, differences) = plt.subplots(
        1, 2, figsize=(TEXT_WIDTH, 2.6), width_ratios=(1, 1.15)
    )
    rows = sorted(result["rows"].items(), key=lambda item: item[1]["mean"])
    for y, (name, row) in enumerate(rows):
        colour, marker = LINES[name][0], "o" if row["kind"] == "exact" else "s"
        means.plot(row["ci95"], [y, y], color=colour, lw=1.4)
        means.plot(row["mean"], y, marker=marker, color=colour, ms=4.5)
        means.plot(row["median"], y, marker="|", color=colour, ms=9, mew=1.2)
        if name not in ("gaussian", "mean"):
            over = row["over_gaussian"]["quantiles"]
            differences.plot(
                over,
                np.linspace(0.005, 0.995, len(over)),
                color=colour,
                dashes=LINES[name][1],
                label=LABELS[name],
            )
    means.set(
        yticks=range(len(rows)),
        yticklabels=[LABELS[name] for name, _ in rows],
        ylim=(-0.6, len(rows) - 0.4),
        xlabel="nats per dimension",
    )
    differences.axvline(0, color=BLACK, lw=0.8)
    differences.set(
        xlabel="nats per dimension over the full Gaussian",
        ylabel="share of test tokens below",
        ylim=(0, 1),
    )
    differences.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    kinds = [
        Line2D([], [], color="0.4", marker=marker, ms=4.5, lw=1.4, label=text)
        for marker, text in (("o", "exact"), ("s", "along the ODE"))
    ]
    kinds.append(
        Line2D([], [], color="0.4", marker="|", ms=9, mew=1.2, ls="", label="median token")
    )
    figure.legend(
        handles=[*kinds, *differences.get_legend_handles_labels()[0]],
        loc="outside lower center",
        ncol=4,
    )
    return figure


def lm_loss(result: dict) -> Figure:
    """Δ LM loss under one-step estimates against σ, and under every replacement against its FVU."""
    figure, (by_sigma, by_fvu) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 3.6), sharey=True)
    styles = {"noisy": ("0.6", (1, 1)), **LINES}
    rows = [
        (method, [row for row in result[part] if row["method"] == method])
        for part, methods in (("denoisers", styles), ("denoisers_common_subset", ("unet",)))
        for method in methods
    ]
    for place, (method, found) in enumerate(entry for entry in rows if entry[1]):
        colour, dashes = styles[method]
        sigma, fvu, delta, interval = (
            np.array([row[key] for row in found]) for key in ("sigma", "fvu", "delta", "ci95")
        )
        apart = 0.008 * (
            place - 4
        )  # so that intervals at one σ stand side by side; points are at σ itself
        by_sigma.plot(
            sigma,
            delta,
            color=colour,
            dashes=dashes,
            lw=1.1,
            marker="o",
            ms=3,
            label=_LM_LABELS.get(method, LABELS.get(method)),
        )
        by_sigma.errorbar(
            sigma + apart,
            delta,
            np.abs(interval.T - delta),
            color=colour,
            ls="",
            elinewidth=0.8,
            capsize=1.5,
            marker="_",
            ms=3,
        )
        below = interval.min(1) <= 0  # where a logarithmic axis has no place for the end
        (ends,) = by_sigma.plot(
            (sigma + apart)[below],
            np.zeros(below.sum()),
            "v",
            color=colour,
            ms=3.5,
            transform=by_sigma.get_xaxis_transform(),
            clip_on=False,
        )
        ends.set_in_layout(
            False
        )  # or the axes make room for the place of 0 on their logarithmic scale
        by_fvu.plot(fvu, delta, color=colour, dashes=dashes, lw=0.9, marker="o", ms=3)
    for row, dashes in zip(result["ablations"], ((5, 1, 1, 1, 1, 1), (1, 2))):
        by_sigma.axhline(
            row["delta"], color=BLACK, lw=0.8, dashes=dashes, label=_LM_LABELS[row["method"]]
        )
    pca = result["reconstructions"]["pca"]
    by_fvu.plot(
        [row["fvu"] for row in pca],
        [row["delta"] for row in pca],
        color="0.55",
        lw=2.2,
        marker="s",
        ms=4,
        zorder=1,
        label="PCA-k, no noise",
    )
    for row in pca:
        by_fvu.annotate(
            f"{row['k']}",
            (row["fvu"], row["delta"]),
            xytext=(3, -8),
            textcoords="offset points",
            fontsize=6.5,
            color="0.35",
        )
    saes = result["reconstructions"]["sae"]
    by_fvu.plot(
        [row["fvu"] for row in saes],
        [row["delta"] for row in saes],
        color=GREEN,
        marker="D",
        ms=5,
        mec=BLACK,
        mew=0.5,
        ls="",
        label="SAEs, no noise",
    )
    by_sigma.set(
        yscale="log",
        xlabel="noise level σ (beside it: intervals, ▼ where below 0)",
        ylabel="Δ LM loss (nats per token)",
        xticks=(0.1, 0.3, 0.5, 0.7),
    )
    by_fvu.set(xscale="log", xlabel="fraction of variance unexplained (FVU)")
    figure.legend(loc="outside lower center", ncol=5)
    return figure


_LM_LABELS = {
    "noisy": "noisy, as it is",
    "mean_ablation": "replaced by the mean",
    "zero_ablation": "replaced by 0",
}


FIGURES = {  # name of the figure → (drawing function, name of the results file)
    "activations": (activations, "activations"),
    "baselines": (baselines, "baselines"),
    "independence": (independence, "baselines"),
    "training": (training, "training"),
    "loss_by_noise": (loss_by_noise, "loss_comparison"),
    "reductions": (reductions, "loss_comparison"),
    "floors": (floors, "loss_comparison"),
    "samples": (samples, "sample_quality"),
    "density": (density, "density"),
    "throughput": (throughput, "benchmarks"),
    "solvers": (solvers, "benchmarks"),
    "lm_loss": (lm_loss, "lm_loss"),
    "scaling": (scaling, "scaling"),
    "robustness": (robustness, "robustness"),
    "recipes": (recipes, "recipes"),
    "unet_recipes": (unet_recipes, "recipes"),
    "typicality": (typicality, "typicality"),
    "typicality_passage": (typicality_passage, "typicality"),
    "probing": (probing, "probing"),
    "unit_contexts": (unit_contexts, "probing"),
    "clamping": (clamping, "probing"),
    "steering": (steering, "steering"),
    "steering_study": (steering_study, "steering_study"),
}


BESIDE = {
    "reductions": ("replication",),
    "floors": ("scaling",),
}  # results that a figure also shows, by keyword, where a run has them


NOTEBOOKS = {
    "activations": "01_extract_activations",
    "baselines": "02_fit_baselines",
    "training": "03_train_meta_model",
    "loss_comparison": "04_compare_losses",
    "sample_quality": "05_sample_quality",
    "density": "07_density",
    "lm_loss": "08_lm_loss",
    "benchmarks": "22_benchmarks",
    "scaling": "06_scaling",
    "robustness": "23_robustness",
    "recipes": "21_recipes",
    "steering": "11_steer",
    "probing": "12_meta_neurons",
    "typicality": "13_off_manifold",
    "replication": "24_replication",
    "steering_study": "25_steering_study",
}


# results that `make reproduce` does not write
OPTIONAL = (
    "benchmarks",
    "scaling",
    "robustness",
    "recipes",
    "steering",
    "probing",
    "typicality",
    "steering_study",
)
