"""Figures of speed: solvers, the store, training on a GPU. Notebook 22 and the GPU's studies."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from mmlib import plots

_SOLVERS = {
    "euler": ("Euler", plots.INDIGO, "o"),
    "heun": ("Heun", plots.OLIVE, "s"),
    "dpm++": ("DPM-Solver++", plots.WINE, "^"),
}


def solvers(result: dict) -> Figure:
    """Fréchet distance of samples and error of the end point by evaluations and solver."""
    figure, (distances, errors) = plots.panels(1, 2, 2.7)
    found = result["solvers"]
    for name, (label, colour, marker) in _SOLVERS.items():
        rows = sorted(found["by_solver"][name].values(), key=lambda row: row["evaluations"])
        style = {"color": colour, "marker": marker, "ms": 4}
        distances.plot(*plots.columns(rows, "evaluations", "distance"), label=label, **style)
        apart = [row for row in rows if row["endpoint_error"] > 0]
        errors.plot(*plots.columns(apart, "evaluations", "endpoint_error"), **style)
    near = (0.95 * found["reference"], 1.05 * found["reference"])
    label = f"within 5 % of {found['most']} Euler steps"
    distances.axhspan(*near, color="0.85", lw=0, label=label)
    style = {"color": plots.BLACK, "lw": 0.8, "ls": ":"}
    distances.axhline(found["floor"], label="real training activations", **style)
    evaluations = {"xscale": "log", "xlabel": "network evaluations per sample"}
    distances.set(title="samples", ylabel="Fréchet distance from test", **evaluations)
    errors.set(title="end point", yscale="log", ylabel="relative error", **evaluations)
    plots.legend_below(figure, 3)
    return figure


def throughput(result: dict) -> Figure:
    """Speed of extraction and of reading at three sizes of the store, beside the references."""
    figure, (extraction, reading) = plots.panels(1, 2, 2.7)
    growth, rows = result["growth"], result["measurements"]
    bare = rows["extraction to the store, against computing alone"]
    usual = rows["extraction to the store"]["reference"]
    batches = "shuffled batches, checksums on"
    style = {"color": plots.INDIGO, "marker": "o", "ms": 4}
    label = "all blocks to the middle one stored"
    extraction.plot(growth["tokens"], growth["tokens_per_second"], label=label, **style)
    _straight(extraction, "ours", bare["ours"], "the middle block stored")
    _straight(extraction, "computed", bare["reference"], "the same, computed only")
    _straight(extraction, "usual", usual, "full forward pass, padded batches")
    extraction.set(xscale="log", xlabel="tokens extracted", ylabel="tokens/s", title="extraction")
    reading.plot(growth["gigabytes"], growth["gb_per_second"], label=batches, **style)
    loader = rows[f"{batches}, against rows one at a time"]["reference"]
    _straight(reading, "computed", rows[batches]["reference"], "numpy.fromfile, in sequence")
    _straight(reading, "usual", loader, "DataLoader, rows one at a time")
    reading.set(xscale="log", yscale="log", xlabel="size of the store (GB)", ylabel="GB/s")
    reading.set(title="reading, warm cache")
    for axes in (extraction, reading):
        axes.margins(y=0.1)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.36))
    extraction.set_ylim(bottom=0)
    return figure


def _straight(ax: Axes, kind: str, rate: float, label: str) -> None:
    """The line of what is measured at one size alone."""
    colours = {"ours": plots.OLIVE, "computed": plots.BLACK, "usual": plots.WINE}
    dashes = {"ours": "-", "computed": (0, (4, 2)), "usual": ":"}
    ax.axhline(rate, lw=1, label=label, color=colours[kind], ls=dashes[kind])


_ON_GPU = {
    "mlp_44m": "MLP, 44 M",
    "mlp_0.5b": "MLP, 0.5 B",
    "unet_640": "UNet, d = 640",
    "unet_5120": "UNet, d = 5120",
    "mlp_44m_shared_levels": "MLP, 44 M, batch of 4096",
    "gated_mlp": "gated MLP, first settings",
    "mlp": "the paper's MLP",
    "two-blocks-late": "two blocks, late fall",
    "two-blocks-batch-2048": "two blocks, batch 2048",
    "two-blocks-rate-0.0014": "two blocks, rate 0.0014",
}


def gpu(rates: dict, budgets: dict) -> Figure:
    """Training rates on a GPU as shares of a product's, and losses of other settings.

    Args:
        rates: of `mmlib_studies.benchmarks`.
        budgets: of `mmlib_studies.gpu`.
    """
    figure, (speed, losses) = plots.panels(1, 2, 2.9)
    found = list(rates["rates"].values())
    _rates(
        speed, [network.get("false") for network in found], plots.INDIGO, "o", "not compiled", -11
    )
    _rates(speed, [network.get("true") for network in found], plots.WINE, "s", "compiled", 5)
    plots.height_axis(speed, [_ON_GPU.get(name, name) for name in rates["rates"]], margin=0.6)
    speed.set(title=f"activations/s on an {rates['provenance']['device']}", xlim=(0, 1))
    speed.set(xlabel="share of a matrix product's rate (8192³)", xticks=(0, 0.5, 1))
    plots.percent_axis(speed.xaxis)
    trials = {n: t for n, t in budgets["trials"].items() if t["objective"] == "flow_velocity"}
    names = sorted(trials, key=lambda name: -trials[name]["validation"])
    rows = [trials[name] for name in names]
    heights = range(len(rows))
    for split, colour, face in (("train", plots.OLIVE, "white"), ("validation", plots.OLIVE, None)):
        style = {"color": colour, "mfc": face, "marker": "o", "ls": "", "ms": 4.5}
        label = f"{'training' if split == 'train' else split} documents"
        losses.plot(*plots.columns(rows, split), heights, label=label, **style)
    labels = [_ON_GPU.get(name, name.replace("-", " ")) for name in names]
    losses.set(yticks=heights, yticklabels=labels)
    losses.set(xlabel="velocity loss per dimension", title="the same store, other settings")
    for axes in (speed, losses):
        axes.grid(axis="y", lw=0.4, color="0.9")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2)
    return figure


def _rates(
    ax: Axes, rows: list[dict | None], colour: str, marker: str, label: str, above: float
) -> None:
    """Shares of a product's rate, a network a height, and rates `above` them by so many points."""
    known = {y: row for y, row in enumerate(rows) if row is not None}
    shares = [row["fraction_of_matmul"]["8192"] for row in known.values()]
    ax.plot(shares, list(known), marker, color=colour, ms=5, label=label)
    for share, (y, row) in zip(shares, known.items()):
        rate = f"{EngFormatter(places=1)(row['activations_per_second'])}/s"
        side = "center" if share > 0.15 else "left"
        plots.note(ax, rate, (share, y), (0, above), ha=side, color=colour)
