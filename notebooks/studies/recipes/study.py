"""The study of recipes: its parts, and which of them depend on the outcome of which.

Everything is chosen and measured on validation documents. A loss is the plain objective's, on the
evaluation grid, the same tokens and noise for all; a time to a loss is read from the log of the
training, whose validation losses are on fixed rows, levels and noise of their own, the same for all
networks of the MLP's kind. Seconds are of training alone, reading and averaging included, and of
what was fitted before it; measuring validation losses is in nobody's.
"""

import re
from dataclasses import replace
from functools import cached_property, partial

from torch._dynamo.exc import BackendCompilerFailed

from mmlib.activations.store import ActivationStore
from mmlib.runs.run import Run
from mmlib_studies.recipes.images import other_heights
from mmlib_studies.recipes.outcomes import best_of, end_of, loss_of, row_of, time_to, tune
from mmlib_studies.recipes.trainings import VARIANTS, Trainings, watched

OURS = "gated"  # fixed before this study: the recipe that notebook 03 had then

RIVALS = ("published", OURS)

# published settings that end further above the target than this share have no further seeds
MARGIN = 0.05

LOGIT_NORMAL = {"density": "logit_normal"}

# of our recipe: what differs in its training, its network (deeper, wider), or what it adds to
ABLATIONS = {
    "16 levels": {"training": {"levels": 16}},
    "shorter averaging": {"training": {"ema": 0.97}},
    "deeper and narrower": {"shape": (2.0, 0.5)},
    "shallower and wider": {"shape": (1 / 3, 3.0)},
    "logit-normal σ": {"training": LOGIT_NORMAL},
    "logit-normal weights": {"training": {"weighting": "logit_normal"}},
    "rate falls linearly": {"training": {"decay": "linear"}},
    "rate falls late": {"training": {"decay": "late"}},
    "slower second moment": {"training": {"beta2": 0.999}},
    "no weight decay": {"training": {"weight_decay": 0.0}},
    "gated and linear skip": {"linear_skip": True},
    "both that held": {"shape": (1 / 3, 3.0), "training": LOGIT_NORMAL},
}

BEST_ABLATIONS = 3  # that are repeated with the other seeds


class RecipeStudy:
    """The parts of the study, each an attribute that trains what is missing when it is first asked
    for. Later ones ask for earlier ones.

    Args:
        options: `size` and `ask` of `Trainings`.
    """

    def __init__(self, run: Run, store: ActivationStore, **options):
        self.train = Trainings(run, store, **options)
        self.size, self.seed, self.sweep = self.train.size, run.seed, self.train.sweep
        self.all_seeds = tuple(range(run.seed, run.seed + self.size.seeds))
        self.published = run.preset.published

    def mlp(self, *what, **how) -> dict:
        """The outcome of a training of `Trainings.mlp`."""
        return self.train.outcome(self.train.mlp(*what, **how))

    def unet(self, *what, **how) -> dict:
        """The outcome of a training of `Trainings.unet`."""
        return self.train.outcome(self.train.unet(*what, **how))

    @cached_property
    def rates(self) -> dict[str, dict[float, dict]]:
        """Outcomes by variant and rate."""
        return tune(self.size.rates, self.size.more_rates, list(VARIANTS), self.mlp)

    @cached_property
    def batches(self) -> dict[str, dict[int, dict]]:
        """Outcomes of the published architecture and of ours by batch, each for as many seconds, at
        the best rate.
        """
        found = {variant: {} for variant in RIVALS}
        for variant, tried in found.items():
            for batch in (self.size.batch, *self.size.batches):
                tried[batch] = self.mlp(variant, best_of(self.rates[variant]), batch=batch)
        return found

    @cached_property
    def variants(self) -> dict[str, list[dict]]:
        """Outcomes of each variant at its best rate, seed by seed."""
        return {
            variant: [self.mlp(variant, best_of(tried), seed) for seed in self.all_seeds]
            for variant, tried in self.rates.items()
        }

    @cached_property
    def published_long(self) -> dict:
        """The published architecture for six minutes: `trials` by rate at that length, `rate`, the
        best, and its `outcomes`, seed by seed.
        """
        best, batch = best_of(self.rates["published"]), best_of(self.batches["published"])

        def train(_, rate: float, seed: int | None = None) -> dict:
            long = {"label": "long", "length": self.size.long, "batch": batch}
            return self.mlp("published", rate, seed, **long)

        rates = [factor * best for factor in self.size.long_factors]
        trials = tune(rates, 1, ["long"], train)["long"]
        rate = best_of(trials)
        outcomes = [train("long", rate, seed) for seed in self.all_seeds]
        return {"trials": trials, "rate": rate, "batch": batch, "outcomes": outcomes}

    def shortest(self, lengths: tuple[float, ...], targets: list[float]) -> dict:
        """Ours at the shortest of the lengths, at its best rate and batch, at which every seed
        comes to its target, else at the longest.

        Returns:
            length, outcomes, seed by seed, and tried: outcomes of the first seeds at all lengths
                that were tried.
        """
        rate, batch, tried = best_of(self.rates[OURS]), best_of(self.batches[OURS]), {}
        for length in lengths:
            tried[length] = []
            for seed, target in zip(self.all_seeds, targets, strict=True):
                tried[length].append(self.mlp(OURS, rate, seed, length=length, batch=batch))
                if time_to(tried[length][-1], target) is None and length < lengths[-1]:
                    break
            else:
                break
        found = {"length": length, "rate": rate, "batch": batch}
        return {**found, "outcomes": tried[length], "tried": tried}

    @cached_property
    def ours_long(self) -> dict:
        """Ours to where the published architecture ends after six minutes, seed by seed."""
        targets = [end_of(outcome) for outcome in self.published_long["outcomes"]]
        return self.shortest(self.size.lengths, targets) | {"targets": targets}

    @cached_property
    def published_settings(self) -> list[dict]:
        """Outcomes of the published settings; of one seed alone where that ends far above the
        target: then only its time counts.
        """
        settings = watched(self.published.training)
        recipe, outcomes = replace(self.published, training=settings), []
        for seed in self.all_seeds:
            name = f"published-settings-steps{settings.steps}-seed{seed}"
            outcomes.append(self.train.outcome(self.train.of(name, recipe, seed)))
            if end_of(outcomes[-1]) > (1 + MARGIN) * self.size.target:
                break
        return outcomes

    @cached_property
    def ours_short(self) -> dict:
        """Ours to the lower of the target and where the published settings end."""
        missing = len(self.all_seeds) - len(self.published_settings)
        theirs = self.published_settings + self.published_settings[-1:] * missing
        targets = [min(self.size.target, end_of(outcome)) for outcome in theirs]
        found = self.shortest(self.size.short_lengths, targets)
        return {**found, "targets": targets, "theirs": theirs}

    @cached_property
    def large(self) -> dict[str, dict[float, dict]]:
        """The published architecture and ours with the published ratios of widths, by rate, one
        seed.
        """
        how = {"label": "large", "length": self.size.large_length, "size": self.size.large}
        found = {variant: {} for variant in RIVALS}
        for variant, tried in found.items():
            for factor in self.size.large_factors:
                rate = factor * best_of(self.rates[variant])
                tried[rate] = self.mlp(variant, rate, **how)
        return found

    def ablation(self, name: str, seed: int) -> dict:
        """Outcome of ours with one thing changed."""
        change, size = dict(ABLATIONS[name]), self.size.mlp
        deeper, wider = change.pop("shape", (1, 1))
        layers, d_mlp = max(1, round(deeper * size.layers)), round(wider * size.d_mlp)
        size = replace(size, layers=layers, d_mlp=d_mlp)
        label = "-".join(["ablation", *re.findall(r"[a-z0-9]+", name.replace("σ", "sigma"))])
        return self.mlp(OURS, best_of(self.rates[OURS]), seed, label=label, size=size, **change)

    @cached_property
    def ablations(self) -> dict[str, dict]:
        """Outcomes of ours with one thing changed, one seed."""
        return {name: self.ablation(name, self.seed) for name in ABLATIONS}

    @cached_property
    def ablation_seeds(self) -> dict[str, list[dict]]:
        """The best of these with all seeds."""
        best = sorted(ABLATIONS, key=lambda name: loss_of(self.ablations[name]))[:BEST_ABLATIONS]
        return {name: [self.ablation(name, seed) for seed in self.all_seeds] for name in best}

    @cached_property
    def unet_rates(self) -> dict[float, dict]:
        """Outcomes of the reference UNet by rate."""
        rates, reference = self.size.unet_rates, self.train.reference
        return tune(rates, 1, ["unet"], lambda _, rate: self.unet(rate, reference))["unet"]

    @cached_property
    def unet_widths(self) -> dict[tuple, dict]:
        """Outcomes by (channels, rate): the reference at its rates; narrower UNets also at twice
        its best rate, wider ones at half.
        """
        best, reference = best_of(self.unet_rates), self.train.reference
        found = {(reference, rate): outcome for rate, outcome in self.unet_rates.items()}
        for other in (one for one in self.size.unet_channels if one != reference):
            for rate in (best, best * (2 if sum(other) < sum(reference) else 0.5)):
                found[other, rate] = self.unet(rate, other)
        return found

    @cached_property
    def unet_heights(self) -> dict[int | None, dict]:
        """Outcomes of the best UNet by height of the image; None: the height that it has by
        itself.
        """
        channels, rate = best_of(self.unet_widths)
        heights = (None, *other_heights(self.train.store.d, self.size.unet_heights))
        return {height: self.unet(rate, channels, height=height) for height in heights}

    @cached_property
    def unet_orders(self) -> dict[str, list[dict]]:
        """Outcomes of the best UNet on the best image, with dimensions in their natural order, and
        permuted: another permutation with each seed.
        """
        (channels, rate), height = best_of(self.unet_widths), best_of(self.unet_heights)
        train = partial(self.unet, rate, channels, height=height)
        seeds = range(self.seed, self.seed + self.size.permutations)
        return {
            "natural": [train(seed) for seed in seeds],
            "permuted": [train(seed, order=seed) for seed in seeds],
        }

    @cached_property
    def compiled(self) -> dict:
        """Seconds a step of ours as it is, and compiled; or `skipped`, why not."""
        plain = self.train.mlp(OURS, self.size.rates[0], steps=2)
        training = replace(plain.recipe.training, compile=True)
        other = replace(plain, recipe=replace(plain.recipe, training=training))
        both = {"compiled": other, "eager": plain}
        try:
            return {name: self.train.speed(trial, name) for name, trial in both.items()}
        except BackendCompilerFailed as reason:  # no compiler, or none that it can use
            why = " ".join(str(reason).split())[:200]
            return {"skipped": f"torch.compile does not work here: {why}"}

    def tried(self) -> dict[str, list[dict]]:
        """Every training by whose loss or time a setting of the published architecture or of ours
        was chosen, once each, with the first seed.
        """
        long = self.published_long["trials"].values()
        ours = [outcomes[0] for outcomes in self.ours_long["tried"].values()]
        found = {}
        for variant, last in zip(RIVALS, (long, ours)):
            tried = (*self.rates[variant].values(), *self.batches[variant].values(), *last)
            once = {(row["rate"], row["batch"], row["steps"]): row for row in map(row_of, tried)}
            found[variant] = list(once.values())
        return found


# in the order in which they stand above, in which none asks for a later one
PARTS = tuple(name for name, one in vars(RecipeStudy).items() if isinstance(one, cached_property))
