"""How much is probed: tasks, candidate units, and units that are clamped."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ProbingSize:
    """One-unit probes of the meta-model's hidden units and of their opponents, and what clamping a
    unit does; see notebook 12.
    """

    posts: int = 120  # of each newsgroup
    post_words: int = 40  # read of each
    window_tokens: int = 15_000  # of running text, from validation and from test documents each
    held_out: float = 0.4  # of posts, sentences and words; of running text, the test documents
    per_class: int = 100  # examples of a class, to fit to and held out each, at most
    least: int = 20  # the same, at least, for a task to be asked
    candidates: int = 640  # units of the comparison at equal numbers, drawn at random
    draws: int = 5  # of those
    sigma: float = 0.1  # at which hidden units are read, the paper's
    sigmas: tuple[float, ...] = (0.03, 0.1, 0.3, 0.5)
    catalogue_tokens: int = 6000  # of test documents, on which units are described
    catalogue_random: int = 4  # units that are shown though no task chose them
    clamped: int = 25  # examples a task at which units are clamped
    controls: int = 10  # random units beside each
    controls_at_once: int = 2  # of these, at each example, in turns


SIZES = {
    "smoke": ProbingSize(
        posts=16,
        post_words=12,
        window_tokens=1200,
        per_class=10,
        least=8,
        candidates=100,
        draws=1,
        sigmas=(0.1,),
        catalogue_tokens=500,
        catalogue_random=1,
        clamped=1,
        controls=1,
        controls_at_once=1,
    ),
    "default": ProbingSize(),
    "gpu": ProbingSize(),
}
