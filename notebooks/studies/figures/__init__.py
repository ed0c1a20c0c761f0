"""Figures of results, drawn from JSON alone: drawing takes seconds and loads no torch.

`FIGURES` lists them. Each function takes results as `results/` holds them and returns a figure:

    from mmlib_studies import figures
    figure = figures.reductions(result)        # of results/default/loss_comparison.json, as a dict
    figure = figures.draw("reductions", read)  # where read("loss_comparison") gives that dict
"""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from mmlib_studies.figures.fronts import steering, steering_study
from mmlib_studies.figures.generality import robustness, scaling
from mmlib_studies.figures.losses import floors, loss_by_noise, reductions
from mmlib_studies.figures.machines import gpu, solvers, throughput
from mmlib_studies.figures.networks import recipes, training, unet_recipes
from mmlib_studies.figures.ood import typicality, typicality_passage
from mmlib_studies.figures.quality import density, lm_loss, samples
from mmlib_studies.figures.store import activations, baselines, independence
from mmlib_studies.figures.units import clamping, probing, unit_contexts

# results → the notebook of the main line, or of applications and studies, that writes them
MAIN_LINE = {
    "activations": "01_extract_activations",
    "baselines": "02_fit_baselines",
    "training": "03_train_meta_model",
    "loss_comparison": "04_compare_losses",
    "sample_quality": "05_sample_quality",
    "density": "07_density",
    "lm_loss": "08_lm_loss",
}
OPTIONAL = {
    "scaling": "06_scaling",
    "steering": "11_steer",
    "probing": "12_meta_neurons",
    "typicality": "13_off_manifold",
    "recipes": "21_recipes",
    "benchmarks": "22_benchmarks",
    "robustness": "23_robustness",
    "replication": "24_replication",
    "steering_study": "25_steering_study",
}
NOTEBOOKS = MAIN_LINE | OPTIONAL


@dataclass(frozen=True)
class Entry:
    """A figure of the list, which is named as the function that draws it.

    Attributes:
        draw: takes the results in their order, and those `beside` by keyword.
        results: names of results files; a GPU's, the same for every run, have their folder before them.
        beside: results that the figure also shows where a run has them.
    """

    draw: Callable[..., Figure]
    results: tuple[str, ...]
    beside: tuple[str, ...] = ()

    @property
    def caption(self) -> str:
        """What is drawn, and what that shows."""
        drawn = self.draw.__doc__.partition("\n\n")[0]
        return f"{' '.join(drawn.split())} {SHOWS[self.draw.__name__]}"


_ENTRIES = (
    Entry(activations, ("activations",)),
    Entry(baselines, ("baselines",)),
    Entry(independence, ("baselines",)),
    Entry(training, ("training",)),
    Entry(loss_by_noise, ("loss_comparison",)),
    Entry(reductions, ("loss_comparison",), beside=("replication",)),
    Entry(floors, ("loss_comparison",), beside=("scaling",)),
    Entry(samples, ("sample_quality",)),
    Entry(density, ("density",)),
    Entry(throughput, ("benchmarks",)),
    Entry(solvers, ("benchmarks",)),
    Entry(lm_loss, ("lm_loss",)),
    Entry(scaling, ("scaling",)),
    Entry(robustness, ("robustness",)),
    Entry(recipes, ("recipes",)),
    Entry(unet_recipes, ("recipes",)),
    Entry(typicality, ("typicality",)),
    Entry(typicality_passage, ("typicality",)),
    Entry(probing, ("probing",)),
    Entry(unit_contexts, ("probing",)),
    Entry(clamping, ("probing",)),
    Entry(steering, ("steering",)),
    Entry(steering_study, ("steering_study",)),
    Entry(gpu, ("gpu/benchmarks", "gpu/budgets")),
)
FIGURES = {entry.draw.__name__: entry for entry in _ENTRIES}

# what a reader of the committed figures sees in them, as the last sentence of each caption
SHOWS = {
    "activations": "A few dimensions are far wider and have far heavier tails than the rest.",
    "baselines": "With as many active units, an SAE leaves less variance unexplained than PCA.",
    "independence": "Latents fire together more often, and less often, than independent ones "
    "would, and most of the heavy tails go where every token is scaled to one norm.",
    "training": "The MLPs fall below the full Gaussian, while the UNet stays near the mean alone.",
    "loss_by_noise": "Methods differ at middle noise levels, and at the ends none can win.",
    "reductions": "The baseline decides on which side of the claimed share a reduction lies.",
    "floors": "The same losses give other percentages for each best possible loss, which is unknown.",
    "samples": "The gated MLP gets the norms nearly right, which the full Gaussian does not, "
    "although its distance is the smaller one.",
    "density": "The mixture of Gaussians gives test tokens the highest mean likelihood.",
    "throughput": "Storing costs little beside computing, and shuffled batches are read about as "
    "fast as a plain file in sequence.",
    "solvers": "Few evaluations come as near to the test documents as a great many do.",
    "lm_loss": "A replacement costs the language model the more, the less variance it explains.",
    "scaling": "The loss falls smoothly, and where the law would meet the claim is uncertain.",
    "robustness": "On each layer and text the MLP is far from the claim and behind the mixture.",
    "recipes": "Ours reaches the losses of the published architecture in a fraction of the time.",
    "unet_recipes": "No width, rate or layout brings the UNet far below the mean alone.",
    "typicality": "No score is best on every set, and likelihood under a mixture is often ahead.",
    "typicality_passage": "Both scores darken code, other languages and shuffled words.",
    "probing": "With all units, meta-neurons are not shown to be ahead of SAE latents or dimensions.",
    "unit_contexts": "Units that no task chose are largest at tokens of one kind, too.",
    "clamping": "The fitted direction moves the answer most surely, and random units hardly do.",
    "steering": "No repair is shown to be cheaper than plain addition at an equal gain.",
    "steering_study": "Projection lowers the fluency before it adds to the concept.",
    "gpu": "Large MLPs come near the rate of a product, and wider blocks lower the loss.",
}
CAPTIONS = {name: entry.caption for name, entry in FIGURES.items()}


def draw(name: str, read: Callable[[str], dict | None]) -> Figure | None:
    """A figure by its name; None where results that it needs are missing.

    Args:
        read: gives results by the name of their file, None where there are none.
    """
    entry = FIGURES[name]
    found = [read(result) for result in entry.results]
    if any(result is None for result in found):
        return None
    beside = {result: read(result) for result in entry.beside}
    return entry.draw(*found, **{name: result for name, result in beside.items() if result})
