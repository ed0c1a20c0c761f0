"""The study of the best model (notebook 26): mixtures of Gaussians to the end of their grid, their
average, a network on such an average, and a primary that is measured once on frozen articles.

Settings are chosen on validation documents. A trial that is measured on test documents or on the
fresh articles is a *final* one; the settings of finals are in this file, and were committed before
any was run.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from mmlib.activations.corpora import NGRAM, Document, folded, ngrams
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Tokens
from mmlib.denoisers.average import one_mixture
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.mixture import ClusterMoments, GaussianMixtureDenoiser, clusters
from mmlib.denoisers.noise import Denoiser
from mmlib.denoisers.posterior import FastMixture
from mmlib.denoisers.residual import ResidualSize
from mmlib.evaluation import losses as compare
from mmlib.evaluation.intervals import spread
from mmlib.evaluation.losses import Losses
from mmlib.runs.presets import OURS
from mmlib.runs.run import Run
from mmlib.runs.sweep import Sweep, Trial
from mmlib.training.crossfit import train_on_mixture
from mmlib.training.fit import row_batches
from mmlib.training.recipe import Recipe, Training

OBJECTIVE, NOTEBOOK = "flow_velocity", "26_best_model"


@dataclass(frozen=True)
class BestModelSize:
    """What is fitted, and how closely it is measured. Steps were calibrated once, on two CPU cores
    with bf16 units: a whole fit of ours, mixtures included, takes eight minutes, as long as the
    last average.
    """

    components: tuple[int, ...] = (128, 256, 512, 1024)
    priors: tuple[float, ...] = (32.0, 128.0, 512.0)
    averages: tuple[tuple[int, int], ...] = ((512, 8), (1024, 9))  # of components, members
    prior: float = 128.0  # of averages
    # written out, though like the preset's: what is frozen follows nothing
    ours: Recipe = Recipe(
        ResidualSize(components=1024, folds=4, layers=3, d_model=640, d_mlp=1280),
        Training(
            OBJECTIVE,
            steps=250,  # a pass
            batch=2048,
            lr=1e-3,
            ema=0.99,
            weight_decay=0.05,
            levels=64,
            density="logit_normal",
            decay="late",
            validate_every=50,
            save_every=50,
        ),
    )
    seeds: int = 3  # of ours
    tokens: int = 200  # at each noise level, of every measurement
    articles: int = 400
    read_before: int = 400  # articles that a former primary was measured on: passed over
    least_characters: int = 600  # of an article


SIZES = {
    "smoke": BestModelSize(
        components=(2, 4),
        priors=(128.0,),
        averages=((2, 2), (4, 2)),
        ours=Recipe(
            ResidualSize(components=4, folds=2, layers=1, d_model=64, d_mlp=128),
            Training(OBJECTIVE, 12, 64, 1e-3, ema=0.9, levels=16, log_every=5, validate_every=5),
        ),
        seeds=2,
        tokens=20,
        articles=12,
        read_before=12,
    ),
    "default": BestModelSize(),
    "gpu": BestModelSize(),
}

CHANGES: dict[str, dict] = {  # of ours, one thing each
    "mixtures that have seen the row": {"leaves_out": False},
}


def fresh_articles(
    articles: Sequence[Document], known: Sequence[Document], size: BestModelSize, seed: int
) -> list[Document]:
    """Articles of another source that share no run of 13 words with the known documents, nor their
    title, drawn at random from a seed; the first `read_before` of them are passed over.

    Raises:
        ValueError: fewer are left than are wanted.
    """
    titles = {folded(document.title) for document in known}
    seen = set().union(*(ngrams(folded(document.text)) for document in known))
    found = []
    for i in np.random.default_rng(seed).permutation(len(articles)):
        article = articles[i]
        bare = folded(article.title.partition("[")[2].removesuffix("]"))
        if len(article.text) >= size.least_characters and bare not in titles:
            if seen.isdisjoint(ngrams(folded(article.text))):
                found.append(article)
        if len(found) == size.read_before + size.articles:
            return found[size.read_before :]
    raise ValueError(
        f"{len(found)} articles of at least {size.least_characters} characters share no run of "
        f"{NGRAM} words with the corpus: expected {size.read_before + size.articles}"
    )


def digest_of(articles: Sequence[Document]) -> str:
    """SHA-256 of titles and texts, in order."""
    digest = hashlib.sha256()
    for article in articles:
        digest.update(f"{article.title}\0{article.text}\0".encode())
    return digest.hexdigest()


class BestModelStudy:
    """Trials of the study on one store, and of finals on fresh articles too.

    Args:
        fresh: of the fresh articles; all are test documents.
    """

    def __init__(self, run: Run, store: ActivationStore, fresh: ActivationStore):
        self.run, self.store, self.fresh = run, store, fresh
        self.size = SIZES[run.preset.name]
        self.sweep = Sweep(run, "best_model", NOTEBOOK)

    @cached_property
    def origin(self) -> Origin:
        """Statistics and identity of the training documents."""
        return Origin.of(self.store)

    @cached_property
    def raw(self):
        """Raw activations of training documents, (n, d)."""
        return self.store.read(self.store.rows("train"))

    @cached_property
    def checked(self):
        """Raw activations of validation documents."""
        return self.store.read(self.store.rows("validation"))

    @cached_property
    def documents(self) -> np.ndarray:
        """The document of each training row."""
        return self.store.column("document", self.store.rows("train"))

    @cached_property
    def places(self) -> dict[str, Tokens]:
        """Where a final is measured: validation and test documents, and the fresh articles."""
        rows = self.fresh.rows("test")
        columns = [self.fresh.column(name, rows) for name in ("document", "position")]
        z_nd = self.origin.normaliser(self.fresh.read(rows))
        return {
            "validation": self.store.tokens("validation"),
            "test": self.store.tokens("test"),
            "fresh": Tokens(z_nd, *columns),
        }

    def losses(self, denoiser: Denoiser, tokens: Tokens) -> Losses:
        """On the evaluation grid; the same tokens and noise for all."""
        how = {"per_level": self.size.tokens, "seed": self.run.seed}
        return compare.evaluate({"it": denoiser}, tokens, OBJECTIVE, **how)

    def places_of(self, final: bool) -> dict[str, Tokens]:
        """Validation documents; of a final also the others."""
        return dict([*self.places.items()][: None if final else 1])

    def measured_at(self, denoiser: Denoiser, tokens: Tokens) -> dict:
        """Loss, curve, and sums by document."""
        losses = self.losses(denoiser, tokens)
        return {
            "loss": losses.mean("it"),
            "curve": [round(float(value), 5) for value in losses.curve("it")],
            "by_document": losses.by_document("it").as_json(),
        }

    def measured(self, denoiser: Denoiser, final: bool) -> dict:
        """At each place."""
        places = self.places_of(final)
        return {place: self.measured_at(denoiser, tokens) for place, tokens in places.items()}

    def facts(self, settings: Mapping, seed: int, final: bool) -> dict:
        """Everything that decides the outcome of a trial."""
        return {
            **settings,
            "seed": seed,
            "documents": self.store.documents,
            **self.store.identities,
            "tokens": self.size.tokens,
            "noise_seed": self.run.seed,
            **({"fresh": self.fresh.documents} if final else {}),
        }

    def trial(self, name: str, settings: Mapping, seed: int, final: bool, compute) -> Trial:
        """A trial whose outcome has its cost and what `measured` gives of a denoiser.

        Args:
            compute: (folder) → a denoiser that carries what it cost, and what else is kept.
        """

        def outcome(folder: Path) -> dict:
            denoiser, kept = compute(folder)
            return {**cost(denoiser), **kept, **self.measured(denoiser, final)}

        facts = self.facts(settings, seed, final)
        return Trial(name, facts, outcome, self.store.identities, kind=name.split("-")[0])

    # ── mixtures ─────────────────────────────────────────────────────────────────────────────────

    @cache
    def labels(self, k: int, seed: int) -> tuple[torch.Tensor, float]:
        """The cluster of each training row, which mixtures of other priors share; and the seconds
        of k-means.
        """
        began = perf_counter()
        found = clusters(self.origin.normaliser(self.raw), k, seed)
        return found, perf_counter() - began

    def mixture(self, k: int, prior: float, seed: int) -> GaussianMixtureDenoiser:
        """k-means and a Gaussian for each cluster, with what they cost."""
        label_n, seconds = self.labels(k, seed)
        began, z_nd = perf_counter(), self.origin.normaliser(self.raw)
        found = ClusterMoments.of(z_nd, label_n).mixture(prior)
        cost = {"train_seconds": seconds + perf_counter() - began, "train_activations": len(z_nd)}
        return replace(found, **cost)

    def mixture_trial(self, k: int, prior: float) -> Trial:
        """A mixture on validation documents, and on as many training tokens: its gap."""

        def compute(_: Path) -> tuple[Denoiser, dict]:
            denoiser = FastMixture(self.mixture(k, prior, self.run.seed))
            training = self.losses(denoiser, self.store.tokens("train")).mean("it")
            return denoiser, {"training": training}

        name = f"mixture-{k}-prior{prior:g}-seed{self.run.seed}"
        return self.trial(name, {"components": k, "prior": prior}, self.run.seed, False, compute)

    # ── averages ─────────────────────────────────────────────────────────────────────────────────

    def average_trial(self, k: int, members: int, final: bool) -> Trial:
        """An average as it grows, member by member. A final also has its first member and the full
        Gaussian, which is fitted to the same rows.
        """
        places, settings = self.places_of(final), {"components": k, "members": members}

        def compute(_: Path) -> dict:
            z_nd, grown = self.origin.normaliser(self.raw), []
            methods = {}
            if final:
                gaussian = PrincipalComponents.fit(z_nd).gaussian()
                methods["gaussian"] = {**cost(gaussian), **self.measured(gaussian, final)}
            running, parameters, seconds = {place: Running() for place in places}, 0, 0.0
            for i in range(members):
                start = self.run.seed * members + i
                member = FastMixture(one_mixture(z_nd, k, self.size.prior, start))
                parameters += member.parameters
                seconds += member.train_seconds
                found = {"parameters": parameters, "activations": len(z_nd), "seconds": seconds}
                for place, tokens in places.items():
                    running[place].take(member)
                    found[place] = self.measured_at(running[place], tokens)
                grown.append({"validation": found["validation"]["loss"], "seconds": seconds})
                if i == 0:
                    methods["mixture"] = found
            methods["mixture_average"] = found
            return {"grown": grown, "seconds": seconds, **({"methods": methods} if final else {})}

        name = f"average-{k}-members{members}{'-final' if final else ''}"
        facts = self.facts(settings | {"prior": self.size.prior}, self.run.seed, final)
        return Trial(name, facts, compute, self.store.identities, kind="average")

    # ── networks ─────────────────────────────────────────────────────────────────────────────────

    def ours_trial(self, seed: int, change: str = "") -> Trial:
        """Our network on its mixture; with one thing changed it is no final."""
        size = replace(self.size.ours.size, **CHANGES.get(change, {}))
        recipe = replace(self.size.ours, size=size)

        def compute(folder: Path) -> tuple[Denoiser, dict]:
            given = (recipe, self.raw, self.checked, self.documents, self.origin, row_batches)
            model, log = train_on_mixture(*given, folder, seed=seed)
            return model, {"network_seconds": log[-1]["seconds"], "log": series(log)}

        label = change.replace(" ", "_") or "final"
        return self.trial(
            f"ours-{label}-seed{seed}", {"recipe": asdict(recipe)}, seed, not change, compute
        )

    # ── the primary ──────────────────────────────────────────────────────────────────────────────

    @staticmethod
    def primary(ours: Sequence[dict], theirs: Mapping[str, dict], baseline: str) -> list[dict]:
        """The reduction of ours over an opponent on test documents and on the fresh articles: over
        all seeds of ours with its interval by document, and seed by seed.
        """
        rows = []
        for place in ("test", "fresh"):
            mine, other = [one[place] for one in ours], theirs[baseline][place]
            losses = over_seeds({OURS: mine, baseline: [other] * len(mine)})
            rows.append(
                {
                    "place": place,
                    "baseline": baseline,
                    "loss": losses.mean(OURS),
                    "baseline_loss": losses.mean(baseline),
                    "value": losses.reduction(OURS, baseline),
                    "ci95": list(compare.reduction_interval(losses, OURS, baseline)),
                    "by_seed": [1 - one["loss"] / other["loss"] for one in mine],
                    "documents": len(losses.by_document(OURS).counts_d),
                }
            )
        return rows


class Running:
    """The average of the members so far. Each is asked for the same draws in the same order, so
    that the sum of all estimates is held, and of the members one.
    """

    def __init__(self):
        self.sums, self.members, self.member = {}, 0, None

    def take(self, member: Denoiser) -> None:
        """The next member."""
        self.member, self.members = member, self.members + 1

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Estimate of z, (n, d); once a member and level."""
        self.sums[sigma] = self.sums.get(sigma, 0) + self.member(x_nd, sigma)
        return self.sums[sigma] / self.members


def over_seeds(measured: Mapping[str, Sequence[Mapping]]) -> Losses:
    """Losses of methods with every seed added up, as if at a single level.

    Raises:
        ValueError: they were measured on different draws.
    """
    counts = [one["by_document"]["counts"] for every in measured.values() for one in every]
    if any(one != counts[0] for one in counts):
        raise ValueError(f"{', '.join(measured)}: expected the same draws for all, and all seeds")
    sums = {
        name: np.sum([one["by_document"]["sums"] for one in every], axis=0)[None]
        for name, every in measured.items()
    }
    seeds = {len(every) for every in measured.values()}
    if len(seeds) > 1:
        raise ValueError(f"{', '.join(measured)}: expected as many seeds of each")
    return Losses(np.full(1, np.nan), sums, np.array([counts[0]]) * seeds.pop())


def mean_curve(outcomes: Sequence[Mapping], place: str) -> list[float]:
    """The loss at each level of the grid, the mean over seeds."""
    curves = np.array([one[place]["curve"] for one in outcomes])
    return [round(float(value), 5) for value in curves.mean(0)]


def content_of(
    mixtures: Mapping[tuple[int, float], dict],
    averages: Mapping[tuple[int, int], dict],
    ours: Sequence[dict],
    changes: Mapping[str, dict],
    theirs: Mapping[str, dict],
) -> dict:
    """What the results file says of every trial."""
    methods = {OURS: ours, **{name: [one] for name, one in theirs.items()}}
    shown = ("parameters", "activations", "seconds")
    return {
        "mixtures": [
            {"components": k, "prior": prior, "validation": one["validation"]["loss"]}
            | {key: one[key] for key in ("training", *shown)}
            for (k, prior), one in mixtures.items()
        ],
        "averages": [
            {"components": k, "members": i + 1, **row}
            for (k, _), one in averages.items()
            for i, row in enumerate(one["grown"])
        ],
        "changes": [
            {"name": name, "validation": one["validation"]["loss"]}
            | {"over_unchanged": one["validation"]["loss"] - ours[0]["validation"]["loss"]}
            | {key: one[key] for key in shown}
            for name, one in changes.items()
        ],
        "losses": [
            {"place": place, "method": name}
            | over_values([one[place]["loss"] for one in outcomes])
            | {key: float(np.mean([one[key] for one in outcomes])) for key in shown}
            for place in ("validation", "test", "fresh")
            for name, outcomes in methods.items()
        ],
        "network_seconds": [one["network_seconds"] for one in ours],
        "log": ours[0]["log"],
    }


def over_values(values: Sequence[float]) -> dict:
    """Their spread; of one alone there is none."""
    if len(values) > 1:
        return spread(values, "range")
    return {"values": [*values], "mean": values[0], "std": None, "range": None}


def cost(denoiser: Denoiser) -> dict:
    """What a fit cost, as results have it."""
    return {
        "parameters": denoiser.parameters,
        "activations": denoiser.train_activations,
        "seconds": round(denoiser.train_seconds, 2),
    }


def series(log: Sequence[Mapping]) -> dict[str, list[float]]:
    """The entries of a training's log that have a validation loss, by column."""
    entries = [entry for entry in log if "validation_loss" in entry]
    columns = ("step", "seconds", "loss", "validation_loss")
    return {key: [round(entry[key], 5) for entry in entries] for key in columns}
