"""House style of figures: colours and names of methods, type, marks that figures share, saving."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

TEXT_WIDTH = 6.75  # inches, two columns of a paper

SMALLEST = 7  # points: the least type that is read at that width

# Okabe and Ito's palette, told apart by all kinds of colour vision, and more for variants: methods
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, RED, PURPLE, BROWN = "#0072B2", "#D55E00", "#CC79A7", "#7A5C00"
DARK_GREEN = "#00513B"

# what is no method: losses, texts, solvers, data. No method has one of these colours
INDIGO, OLIVE, WINE = "#332288", "#999933", "#882255"

LABELS = {
    "mean": "mean only",
    "pca_k64": "PCA-64",
    "pca_k64_naive": "PCA-64, naive",
    "pca_k64_mixed": "PCA-64, mixed",
    "ppca_k64": "probabilistic PCA-64",
    "gaussian": "full Gaussian",
    "mixture": "mixture of Gaussians",
    "mixture_average": "average of mixtures",
    "sae": "SAE, mixed",
    "sae_best": "best SAE, mixed with Gaussian",
    "sae_gaussian": "SAE, mixed with Gaussian",
    "sae_naive": "SAE, naive",
    "denoising_sae": "SAE trained to denoise",
    "unet": "UNet (article)",
    "mlp": "MLP (paper)",
    "mlp_unet_activations": "MLP, UNet's activations",
    "mlp_short": "MLP, UNet's activations, whole schedule",
    "mlp_2m": "MLP, 2.6 M parameters",
    "mlp_5m": "MLP, 5.4 M parameters",
    "gated_mlp": "gated MLP",
    "gated_mlp_unet_seconds": "gated MLP, UNet's seconds",
    "mixture_mlp": "network on mixtures (ours)",
    "blend": "blend of MLP and mixtures",
    "additive": "plain addition",
    "norm_kept": "norm kept",
    "pca_k256": "PCA-256",
    "sae_clean": "SAE",
    "sdedit": "SDEdit, network",
    "sdedit_dpm": "SDEdit by DPM-Solver++",
    "sdedit_mixture": "SDEdit, mixture",
}

LINES = {  # colour and dashes: told apart in grey too
    "mean": (BLACK, (1, 1)),
    "pca_k64": (BROWN, (4, 1.5)),
    "gaussian": (BLUE, (6, 1.5)),
    "mixture": (SKY, (4, 1, 1, 1)),
    "mixture_average": (SKY, ()),
    "sae_naive": (GREEN, (1, 1)),
    "sae": (GREEN, (4, 1.5)),
    "sae_best": (DARK_GREEN, ()),
    "sae_gaussian": (DARK_GREEN, (2, 1)),
    "denoising_sae": (GREEN, ()),
    "unet": (PURPLE, ()),
    "mlp": (ORANGE, ()),
    "gated_mlp": (RED, ()),
    "mixture_mlp": (RED, (8, 1, 1, 1)),
    "blend": (RED, (1, 1)),
    "pca_k64_naive": (BROWN, (1, 1)),
    "pca_k64_mixed": (BROWN, (6, 1.5)),
    "ppca_k64": (BROWN, (4, 1, 1, 1)),
}

NAIVE = ("pca_k64", "pca_k64_naive", "sae_naive")  # fed or naive: every network beats them

OBJECTIVES = {"flow_velocity": "velocity loss", "ddpm_epsilon": "ε loss"}

LOSSES = {"flow_velocity": (INDIGO, "o"), "ddpm_epsilon": (OLIVE, "s")}  # colour and marker


OURS = ("mixture_mlp", "gated_mlp")  # our network; that of results made before it was this one

_OURS = r"(our network|network on mixtures|gated MLP|network)( \(ours\))?"  # in labels


def ours(found: Iterable[str]) -> str:
    """The key of our network among those of some results.

    Raises:
        ValueError: it is not among them; the message lists those that are.
    """
    names = list(found)
    for name in OURS:
        if name in names:
            return name
    raise ValueError(f"none of {', '.join(OURS)} in these results: they have {', '.join(names)}")


def named(label: str, meta_model: str | None) -> str:
    """A label, with the name of the meta-model that a notebook was given for the run's own."""
    if meta_model in (None, *OURS):
        return label
    return re.sub(_OURS, Path(meta_model).name, label)


def set_style() -> None:
    """Paper sizes and type; called by every notebook that draws."""
    colours = [BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK]
    sns.set_theme(context="paper", style="ticks", palette=colours)
    plt.rcParams.update(
        {
            "font.size": 8,
            "axes.titlesize": 8.5,
            "axes.labelsize": 8,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "legend.fontsize": 7.5,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.dpi": 110,
            "savefig.dpi": 200,
            "savefig.bbox": "tight",
            "savefig.pad_inches": 0.03,
            "pdf.fonttype": 42,
            "figure.constrained_layout.use": True,
        }
    )


def panels(rows: int, columns: int, height: float, **layout) -> tuple[Figure, np.ndarray]:
    """A figure as wide as the text, `height` inches high, and its axes, (rows, columns); see
    `plt.subplots`.
    """
    return plt.subplots(rows, columns, figsize=(TEXT_WIDTH, height), **layout)


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.pdf and NAME.png, the same bytes for the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})


def forest(
    ax: Axes,
    value: float,
    y: float,
    interval: Sequence[float] | None = None,
    *,
    colour: str,
    marker: str = "o",
    size: float = 4.5,
    width: float = 1.4,
    bar: dict | None = None,
    **point,
) -> None:
    """A point at height y, with its interval as a horizontal bar behind it.

    Args:
        interval: low and high end, in the units of `value`; None draws no bar.
        size, width: of the marker and of the bar, in points.
        bar: further properties of the bar's line.
        point: further properties of the marker, such as `mfc` or `label`.

    Example:
        >>> _, ax = plt.subplots()
        >>> forest(ax, 0.4, 0, (0.3, 0.6), colour=BLUE)
        >>> [[float(x) for x in line.get_xdata()] for line in ax.lines]
        [[0.3, 0.6], [0.4]]
        >>> plt.close()
    """
    if interval is not None:
        ax.plot(interval, [y, y], color=colour, lw=width, **(bar or {}))
    ax.plot([value], [y], color=colour, marker=marker, ms=size, ls="", **point)


def curve(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    interval: ArrayLike | None = None,
    *,
    colour: str,
    band: dict | None = None,
    bars: dict | None = None,
    **line,
) -> None:
    """A curve, with its interval as a band behind it or as bars at its points.

    Args:
        interval: low and high end of each point, (n, 2).
        band: properties of a filled band, such as `alpha`.
        bars: properties of bars, such as `lw`; with `caps`, how wide their ends are, in points.
        line: further properties of the line, such as `dashes` or `label`.

    Raises:
        ValueError: an interval needs one of `band` and `bars`, and they need an interval.
    """
    ways = (band is not None) + (bars is not None)
    if ways != (interval is not None):
        raise ValueError(f"{ways} of band and bars: expected one with an interval, none without")
    low, high = ([], []) if interval is None else np.transpose(interval)
    if band is not None:
        ax.fill_between(x, low, high, **{"color": colour, "lw": 0, **band})
    ax.plot(x, y, color=colour, **line)
    if bars is not None:
        style = dict(bars)
        caps = style.pop("caps", None)
        ax.vlines(x, low, high, color=colour, **style)
        for end in (low, high) if caps else ():
            ax.plot(x, end, color=colour, marker="_", ms=caps, ls="")


def shades(colour: str, n: int) -> list:
    """n shades of a colour, for the steps of one quantity: from light to the colour itself."""
    return sns.light_palette(colour, n + 2)[2:]


def shaded_text(
    ax: Axes, text: str, x: float, y: float, width: float, height: float, *, shade: dict, **type_
) -> None:
    """Monospaced text from x on, centred at height y, on a box of a colour that says a value.

    Args:
        width, height: of the box, in units of the axes; the caller knows how wide its type is.
        shade: the box's `color`, and its `alpha` where that is what says the value.
        type_: further properties of the text, such as `fontsize`.
    """
    ax.add_patch(plt.Rectangle((x, y - height / 2), width, height, lw=0, **shade))
    ax.text(x, y, text, va="center", family="monospace", parse_math=False, **type_)


def percent_axis(axis: Axis, symbol: str = " %") -> None:
    """Ticks of shares as percentages: 0.5 is written 50 %."""
    axis.set_major_formatter(PercentFormatter(1, symbol=symbol))


def height_axis(ax: Axes, labels: Sequence[str], margin: float = 0.5, rising: bool = False) -> None:
    """A label at each height 0, 1, … of a forest's points: the first on top, or below if rising.

    Args:
        margin: how far the axis reaches past its first and last label.
    """
    ends = (len(labels) - 1 + margin, -margin)
    ax.set(yticks=range(len(labels)), yticklabels=labels, ylim=ends[::-1] if rising else ends)


def note(ax: Axes, text: str, at: tuple, offset: tuple[float, float] = (0, 0), **style) -> None:
    """A few words at a point of the data, `offset` points away from it."""
    style = {"xytext": offset, "textcoords": "offset points", "fontsize": SMALLEST, **style}
    ax.annotate(text, at, **style)


def in_legend(label: str, colour: str = "0.4", **style) -> Line2D:
    """A line that stands in the legend alone."""
    return Line2D([], [], color=colour, label=label, **style)


def legend_below(figure: Figure, ncol: int, handles: list | None = None, **style) -> None:
    """One legend for all panels, under them; of `handles`, or of all that has a label."""
    given = {} if handles is None else {"handles": handles}
    figure.legend(**given, loc="outside lower center", ncol=ncol, **style)


def columns(rows: Iterable[dict], *keys: str) -> list[list]:
    """The values of some keys over all rows: a list a key."""
    rows = list(rows)
    return [[row[key] for row in rows] for key in keys]


def percent(value: float, spec: str = ".1f") -> str:
    """A share in percent, without the sign %, with a minus as long as a plus."""
    return f"{100 * value:{spec}}".replace("-", "−")
