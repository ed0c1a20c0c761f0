"""House style: colours, names of methods, sizes and type, and how a figure is saved."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

TEXT_WIDTH = 7.0  # inches, two columns of a paper


(
    BLACK,
    ORANGE,
    SKY,
    GREEN,
    BLUE,
    RED,
    PURPLE,
) = (  # Okabe and Ito's palette, told apart by all kinds of colour vision
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)


LABELS = {
    "mean": "mean only",
    "pca_k64": "PCA-64",
    "pca_k64_naive": "PCA-64, naive",
    "pca_k64_mixed": "PCA-64, mixed",
    "ppca_k64": "probabilistic PCA-64",
    "gaussian": "full Gaussian",
    "mixture": "mixture of Gaussians",
    "sae": "SAE, mixed",
    "sae_gaussian": "SAE, mixed with Gaussian",
    "sae_naive": "SAE, naive",
    "denoising_sae": "SAE trained to denoise",
    "unet": "UNet (article)",
    "mlp": "MLP (paper)",
    "mlp_unet_activations": "MLP, UNet's activations",
    "mlp_short": "MLP, UNet's activations, whole schedule",
    "mlp_2m": "MLP, 2.6 M parameters",
    "mlp_5m": "MLP, 5.4 M parameters",
    "gated_mlp": "gated MLP (ours)",
    "gated_mlp_unet_seconds": "gated MLP, UNet's seconds",
    "additive": "plain addition",
    "norm_kept": "norm kept",
    "pca_k256": "PCA-256",
    "sae_clean": "SAE",
    "sdedit": "SDEdit, gated MLP",
    "sdedit_dpm": "SDEdit by DPM-Solver++",
    "sdedit_mixture": "SDEdit, mixture",
}


LINES = {  # colour and dashes: told apart in grey too
    "mean": (BLACK, (1, 1)),
    "pca_k64": (ORANGE, (4, 1.5)),
    "gaussian": (BLUE, (6, 1.5)),
    "mixture": (SKY, (4, 1, 1, 1)),
    "sae_naive": (GREEN, (1, 1)),
    "sae": (GREEN, (4, 1.5)),
    "sae_gaussian": ("0.55", (2, 1)),
    "denoising_sae": (GREEN, ()),
    "unet": (PURPLE, ()),
    "mlp": (ORANGE, ()),
    "gated_mlp": (RED, ()),
    "pca_k64_naive": (ORANGE, (1, 1)),
    "pca_k64_mixed": ("0.5", (6, 1.5)),
    "ppca_k64": (SKY, (1, 1)),
}


TABLES_ONLY = ("pca_k64_naive", "pca_k64_mixed", "ppca_k64")  # too many curves tell nothing


OBJECTIVES = {"flow_velocity": "velocity loss", "ddpm_epsilon": "ε loss"}


MARKERS = {"flow_velocity": "o", "ddpm_epsilon": "s"}


def named(label: str, meta_model: str | None) -> str:
    """A label, with the name of the meta-model that a notebook was given in place of the run's own."""
    return (
        label
        if meta_model in (None, "gated_mlp")
        else re.sub(r"gated MLP( \(ours\))?", Path(meta_model).name, label)
    )


def set_style() -> None:
    """Paper sizes and type; called by every notebook that draws."""
    sns.set_theme(
        context="paper", style="ticks", palette=[BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK]
    )
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
            "pdf.fonttype": 42,
            "figure.constrained_layout.use": True,
        }
    )


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.pdf and NAME.png, the same bytes for the same numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
