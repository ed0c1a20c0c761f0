"""Figures of results, drawn from JSON alone: drawing takes seconds and loads no torch.

`FIGURES` lists them. Each function takes results as `results/` holds them and returns a figure:

    from mmlib_studies import figures
    figure = figures.reductions(result)        # of results/default/loss_comparison.json, as a dict
    figure = figures.draw("reductions", read)  # where read("loss_comparison") gives that dict
"""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from mmlib_studies.figures.best import best_model
from mmlib_studies.figures.fronts import steering, steering_study
from mmlib_studies.figures.generality import robustness, scaling
from mmlib_studies.figures.hero import headline
from mmlib_studies.figures.losses import floors, loss_by_noise, reductions
from mmlib_studies.figures.machines import gpu, solvers, throughput
from mmlib_studies.figures.networks import recipes, training, unet_recipes
from mmlib_studies.figures.ood import typicality, typicality_passage
from mmlib_studies.figures.quality import density, lm_loss, samples
from mmlib_studies.figures.store import activations, baselines, independence
from mmlib_studies.figures.units import clamping, probing, unit_contexts
from mmlib_studies.notebooks import NOTEBOOKS, OPTIONAL

__all__ = ["FIGURES", "NOTEBOOKS", "OPTIONAL", "draw"]


@dataclass(frozen=True)
class Entry:
    """A figure of the list, which is named as the function that draws it.

    Attributes:
        draw: takes the results in their order, and those `beside` by keyword.
        results: names of results files; those of a GPU are the same for every run.
        beside: results that the figure also shows where a run has them.
    """

    draw: Callable[..., Figure]
    results: tuple[str, ...]
    beside: tuple[str, ...] = ()


_DRAWN_OF = {  # results → the figures that need nothing else
    "activations": (activations,),
    "baselines": (baselines, independence),
    "training": (training,),
    "loss_comparison": (headline, loss_by_noise, reductions, floors),
    "sample_quality": (samples,),
    "density": (density,),
    "benchmarks": (throughput, solvers),
    "lm_loss": (lm_loss,),
    "scaling": (scaling,),
    "robustness": (robustness,),
    "recipes": (recipes, unet_recipes),
    "typicality": (typicality, typicality_passage),
    "probing": (probing, unit_contexts, clamping),
    "steering": (steering,),
    "steering_study": (steering_study,),
    "best_model": (best_model,),
}
_BESIDE = {reductions: ("replication",), floors: ("scaling",)}
FIGURES = {
    figure.__name__: Entry(figure, (result,), _BESIDE.get(figure, ()))
    for result, figures in _DRAWN_OF.items()
    for figure in figures
} | {"gpu": Entry(gpu, ("gpu/benchmarks", "gpu/budgets"))}


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
