"""The first figure: how much lower each method's velocity loss is than the best linear method's."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmlib import plots
from mmlib.evaluation.claim import CLAIM

GROUPS = {
    "linear": ("mean", "ppca_k64", "pca_k64_mixed"),
    "sparse autoencoders": ("sae", "sae_gaussian", "sae_best", "denoising_sae"),
    "mixtures of Gaussians": ("mixture", "mixture_average"),
    "diffusion networks": ("unet", "mlp_short", "mlp", "blend", "gated_mlp", "mixture_mlp"),
}
_LABELS = plots.LABELS | {"mlp_short": "MLP (paper), few activations"}
_MARKERS = dict(zip(GROUPS, "sv^o"))
_ROW, _AROUND = 0.19, 0.75  # inches


def headline(result: dict) -> Figure:
    """A row for each method that was compared with the full Gaussian, sorted within its group. The
    article's UNet, which was trained at a part of its size, has words and no point.
    """
    found = {
        name: over["gaussian"]
        for name, over in result["reductions"]["flow_velocity"].items()
        if "gaussian" in over
    }
    rows = [line for group in GROUPS for line in _lines(group, found)]
    figure, ax = plots.panels(1, 1, _AROUND + _ROW * len(rows))
    for y, (group, name, _) in enumerate(rows):
        if name == "unet":
            _in_words(ax, "not comparable", y)
        elif name:
            _point(ax, found[name], y, name, _MARKERS[group])
    shown = [found[name]["ci95"][0] for _, name, _ in rows if name not in (None, "unet")]
    _axis(ax, min(0.0, *shown) - 0.03)
    plots.height_axis(ax, [label for *_, label in rows], margin=0.7)
    for tick, (_, name, _) in zip(ax.get_yticklabels(), rows):
        tick.set_fontweight("normal" if name else "bold")
    ax.tick_params(axis="y", length=0)
    return figure


def _lines(group: str, found: Mapping[str, dict]) -> list[tuple[str, str | None, str]]:
    """A head and the methods of a group that were measured: (group, method, label)."""
    known = [name for name in GROUPS[group] if name in found]
    known.sort(key=lambda name: (name != "unet", found[name]["value"]))
    head = [(group, None, group)] if known else []
    return head + [(group, name, _LABELS[name]) for name in known]


def _point(ax: Axes, row: dict, y: float, name: str, marker: str) -> None:
    colour, _ = plots.LINES.get(name, plots.LINES["mlp"])
    plots.forest(ax, row["value"], y, row["ci95"], colour=colour, marker=marker, size=5)
    value, low, high = (plots.percent(share) for share in (row["value"], *row["ci95"]))
    _in_words(ax, f"{value} % [{low}, {high}]", y)


def _in_words(ax: Axes, text: str, y: float) -> None:
    at = {"xycoords": ("axes fraction", "data"), "va": "center", "annotation_clip": False}
    plots.note(ax, text, (1, y), (4, 0), **at)


def _axis(ax: Axes, left: float) -> None:
    ax.axvline(0, color=plots.LINES["gaussian"][0], lw=1, zorder=1)
    ax.axvline(CLAIM, color=plots.BLACK, lw=1, ls="--", zorder=1)
    head = {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
    plots.note(ax, "full Gaussian", (0, 1), (0, 2), color=plots.LINES["gaussian"][0], **head)
    plots.note(ax, f"claimed {CLAIM:.0%}".replace("%", " %"), (CLAIM, 1), (0, 2), **head)
    ax.set(xlim=(left, 0.52), xlabel="reduction of the velocity loss over the full Gaussian")
    plots.percent_axis(ax.xaxis)
