"""How much is steered: notebook 11 looks at a few interventions closely, notebook 25 at a grid of
them.
"""

from dataclasses import dataclass

# a name that `concepts.concept` knows, and the sign
CONCEPTS = (("sentiment", 1), ("sentiment", -1), ("sci.space", 1), ("rec.sport.hockey", 1))


@dataclass(frozen=True)
class Generation:
    """What both studies generate from, and how long."""

    steps: int = 20  # of SDEdit by Euler, as in the paper
    prompts: int = 100
    prompt_tokens: int = 8
    tokens: int = 20  # of each continuation
    posts: int = 200  # of each class for the direction of a newsgroup


@dataclass(frozen=True)
class SteeringSize(Generation):
    """Steered generation and what is measured of it."""

    concepts: tuple[tuple[str, int], ...] = CONCEPTS[:1]
    # In differences of class means, rising; chosen on validation prompts.
    strengths: tuple[float, ...] = (3.0, 6.0, 12.0)
    sigmas: tuple[float, ...] = (0.5,)  # of the repairs that add noise; the first is the paper's
    steps_dpm: int = 5  # by DPM-Solver++
    places: int = 2  # of each unsteered continuation, where the geometry of edits is measured
    judge_sigmas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the loss before and after
    batch: int = 100  # prompts that are continued together
    timed_batch: int = 32
    timed_rounds: int = 3


@dataclass(frozen=True)
class GridSize(Generation):
    """Concepts, directions, strengths and σ; see `grid.combinations` for what is combined."""

    concepts: tuple[tuple[str, int], ...] = CONCEPTS
    strengths: tuple[float, ...] = (3.0, 6.0, 12.0, 18.0)  # in differences of class means, rising
    sigmas: tuple[float, ...] = (0.1, 0.3, 0.5)
    mixture_sdedit_sigmas: tuple[float, ...] = (0.5,)  # of SDEdit by the mixture, some of `sigmas`
    fraction_strengths: tuple[float, ...] = (3.0, 6.0, 12.0)  # of other concepts and directions
    fraction_sigmas: tuple[float, ...] = (0.3, 0.5)
    text_tokens: int = 96  # read of each text for the directions
    shown: int = 3  # continuations of each run that are kept as text


SIZES = {
    "smoke": SteeringSize(
        strengths=(1.0, 3.0),
        steps=3,
        steps_dpm=2,
        prompts=6,
        tokens=4,
        judge_sigmas=(0.5,),
        batch=6,
        timed_batch=4,
        timed_rounds=1,
    ),
    "default": SteeringSize(),
    "gpu": SteeringSize(concepts=CONCEPTS, sigmas=(0.5, 0.3, 0.7), prompts=400),
}

GRIDS = {
    "smoke": GridSize(
        concepts=(("sentiment", 1), ("sci.space", 1)),
        strengths=(1.0, 3.0),
        sigmas=(0.5,),
        fraction_strengths=(3.0,),
        fraction_sigmas=(0.5,),
        steps=2,
        prompts=6,
        tokens=3,
        posts=30,
        text_tokens=24,
        shown=1,
    ),
    "default": GridSize(),
    "gpu": GridSize(prompts=200, mixture_sdedit_sigmas=(0.1, 0.3, 0.5)),
}
