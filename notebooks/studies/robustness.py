"""Does the verdict hold elsewhere: at other layers, on other texts, in other coordinates, without
outliers, on fresh documents, with other seeds?
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor

from mmlib.activations.batches import spread_rows
from mmlib.activations.corpora import SPLITS
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.writer import DocumentRows, Layout, StoreWriter
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.mixture import GaussianMixtureDenoiser, MixtureSize, fit_mixture
from mmlib.denoisers.networks import MLPSize
from mmlib.denoisers.noise import Denoiser, noise_process
from mmlib.denoisers.sae import MixedDenoiser, SAEDenoiser
from mmlib.evaluation.claim import verdict
from mmlib.evaluation.losses import Losses, grid_losses, reduction_interval
from mmlib.runs.sweep import RecipeTrial
from mmlib.training.recipe import Recipe, Training


def resplit_store(store: ActivationStore, splits: Sequence[str], path: Path) -> ActivationStore:
    """The activations of a store with its documents in other splits, copied bit for bit unless they
    are there; statistics are those of the new split.

    Args:
        splits: of each document, in the store's order.
        path: folder of the copy; a copy of anything else that is there is replaced.
    Raises:
        StoreError: the store has another number of documents, or a split is unknown.
    """
    if len(splits) != len(store.titles):
        raise StoreError(
            f"{store.path} holds {len(store.titles)} documents, {len(splits)} splits are given: "
            "expected one a document"
        )
    if unknown := sorted(set(splits) - set(SPLITS)):
        named = ", ".join(unknown)
        raise StoreError(f"splits {named}: expected {', '.join(SPLITS)}, one a document")
    order = sorted(range(len(splits)), key=lambda i: SPLITS.index(splits[i]))
    documents = [
        DocumentRows(str(store.titles[i]), splits[i], int(store.document_rows[i])) for i in order
    ]
    attributes = {
        **store.manifest["identity"],
        "copied_from": store.manifest["digest"],
        "created_by": f"another split of {store.path.name}",
    }
    layout = Layout(documents, [store.layer], store.d, store.dtype, attributes)
    writer = StoreWriter(path, layout, replace=True)
    for new, old in enumerate(order):
        first = int(layout.first_row[new])
        for span in writer.spans:
            due = slice(max(0, span.start - first), max(0, span.stop - first))
            if rows := store.rows_of(old, due):
                ids, position = store.column("token_ids", rows), store.column("position", rows)
                values = {store.layer: store.read(rows)}
                writer.append(values, ids, np.full(len(rows), new), position)
    if not writer.finished:
        writer.finish()
    return ActivationStore(path)


def _flow(validate_every: int, **settings) -> Training:
    """A training that is validated and saved at most once: it takes a minute."""
    every = {"validate_every": validate_every, "save_every": validate_every}
    return Training("flow_velocity", lr=2e-3, levels=64, **every, **settings)


@dataclass(frozen=True)
class RobustnessSize:
    """What is trained on each layer, and how closely it is measured on which texts."""

    # 11.5 million parameters at d = 640, one pass, a minute
    recipe: Recipe = Recipe(
        MLPSize(layers=3, d_model=640, d_mlp=1280),
        _flow(steps=1014, batch=512, ema=0.99, weight_decay=0.05, validate_every=1020),
    )
    # (name, documents, tokens of each at most)
    corpora: tuple[tuple[str, int, int], ...] = (("newsgroups", 400, 256), ("self", 40, 255))
    tokens: int = 300  # test tokens at each noise level
    tokens_mixture: int = 100  # of these, what the slow mixture sees


SIZES = {
    "smoke": RobustnessSize(
        recipe=Recipe(
            MLPSize(layers=1, d_model=64, d_mlp=128),
            _flow(steps=20, batch=256, ema=0.9, validate_every=30),
        ),
        corpora=(("self", 10, 16),),
        tokens=20,
        tokens_mixture=10,
    ),
    "default": RobustnessSize(),
    "gpu": RobustnessSize(),
}

FURTHER_SEEDS = (1, 2)  # beside the run's own, on its own layer


def trials(
    size: RobustnessSize,
    stores: Mapping[int, ActivationStore],
    middle: int,
    seed: int,
    whitening: Callable[[Tensor], Tensor],
) -> list[RecipeTrial]:
    """The small network on every layer; and on the middle one with further seeds, and in whitened
    coordinates.
    """

    def one(name: str, layer: int, seed: int, *coordinates) -> RecipeTrial:
        return RecipeTrial(f"layer{name}", size.recipe, stores[layer], seed, *coordinates)

    return [
        *(one(layer, layer, seed) for layer in stores),
        *(one(f"{middle}-seed{seed + more}", middle, seed + more) for more in FURTHER_SEEDS),
        one(f"{middle}-whitened", middle, seed, "whitened", whitening),
    ]


OUTLIER_FACTOR = 3.0  # of the median norm of the training activations

OUTLIER_SAMPLE = 20_000  # training rows that give the median


def early_middle_late(n_blocks: int, middle: int) -> list[int]:
    """Block indices a quarter, about half (the run's own layer) and three quarters of the way, each
    once.
    """
    return sorted({n_blocks // 4, middle, 3 * n_blocks // 4})


@dataclass(frozen=True)
class Whitening:
    """z → Λ^−½ Uᵀ (z − μ): PCA whitening, after which the fitted Gaussian is N(0, I).

    Raises:
        ValueError: a component has no variance.
    """

    mean_d: Tensor
    matrix_dd: Tensor

    @classmethod
    def of(cls, components: PrincipalComponents) -> "Whitening":
        """From the principal components of the training documents."""
        if not (components.variances_d > 0).all():
            raise ValueError(
                f"{int((components.variances_d <= 0).sum())} principal components have no "
                "variance: nothing makes it 1"
            )
        return cls(components.mean_d, components.axes_dd / components.variances_d.sqrt())

    def __call__(self, z_nd: Tensor) -> Tensor:
        """Whitened z, (n, d)."""
        return (z_nd - self.mean_d) @ self.matrix_dd


def training_median(store: ActivationStore) -> float:
    """Median norm of the raw activations of the training documents, from up to 20,000 rows spread
    over them.
    """
    rows = store.rows("train")
    chosen = rows.start + _spread(len(rows), OUTLIER_SAMPLE, 0)
    return float(store.read(chosen).float().norm(dim=1).median())


def _spread(there: int, most: int, seed: int) -> np.ndarray:
    """Up to so many numbers of rows, spread evenly over those that are there."""
    return spread_rows(there, min(most, there), np.random.default_rng(seed))


def outliers(activations_nd: Tensor, training_median: float) -> np.ndarray:
    """Which raw activations have a norm above three times the training median, (n,) of bool."""
    return (activations_nd.float().norm(dim=1) > OUTLIER_FACTOR * training_median).numpy()


def as_chosen(size: MixtureSize, tried: Sequence[dict]) -> MixtureSize:
    """The number of components and the prior that validation documents chose, as the only ones to
    be tried; EM has as many steps as it had.

    Args:
        tried: what `mmlib.denoisers.mixture.fit_mixture` reports.
    """
    best = max(tried, key=lambda trial: trial["nats_per_dimension"])
    return replace(size, components=(best["components"],), priors=(best["prior"],))


def mixture_again(
    z_train_nd: Tensor, z_validation_nd: Tensor, size: MixtureSize, seed: int
) -> GaussianMixtureDenoiser:
    """A mixture fitted as notebook 02 fits it, here usually with one size to try: k-means, the
    noise and the validation tokens follow the seed.

    Args:
        z_train_nd, z_validation_nd: activations in the coordinates of the mixture.
    """
    rows = _spread(len(z_validation_nd), size.validation_tokens, seed)
    return fit_mixture(z_train_nd, z_validation_nd[rows], size, seed=seed)[0]


def mixed_sae(
    sae: SAE, store: ActivationStore, objectives: Sequence[str], tokens: int, seed: int
) -> MixedDenoiser:
    """An SAE read as notebook 04 reads it: fed the mean model's estimate, mixed with its input at
    each level of these objectives' grids.

    Args:
        store: whose training documents give the tokens that mixes are fitted on.
        tokens: their number; seed: of the tokens and their noise.
    """
    z_nd = store.tokens("train", _spread(len(store.rows("train")), tokens, seed)).z
    levels = [level for objective in objectives for level in noise_process(objective).grid()]
    generator = torch.Generator().manual_seed(seed)
    return MixedDenoiser(SAEDenoiser(sae, "mean_estimate"), levels, z_nd, generator)


def redraw_test(lengths: Sequence[int], splits: Sequence[str], n_test: int, seed: int) -> list[str]:
    """Another split of the same documents: test documents are drawn from those of training, which
    the old ones join.

    For when test documents have been looked at and choices may have followed. Validation documents
    stay. Stratified by length, as `mmlib.activations.corpora.split_documents` is.

    Args:
        lengths: of the documents, in tokens.
    Raises:
        ValueError: fewer documents are in training than are to be drawn.
    """
    old = np.asarray(splits, dtype=object)
    if (there := (old == "train").sum()) < n_test:
        raise ValueError(f"{there} training documents cannot give {n_test} for test")
    rng, new = np.random.default_rng(seed), np.where(old == "test", "train", old)
    by_length = np.argsort(-np.asarray(lengths), kind="stable")  # longest first
    strata = np.array_split(by_length[old[by_length] == "train"], n_test)
    new[[rng.choice(stratum) for stratum in strata]] = "test"
    return new.tolist()


def reduction_rows(
    methods: Mapping[str, Denoiser],
    baselines: Mapping[str, Denoiser],
    objectives: Sequence[str],
    z_nd: Tensor,
    document_n: np.ndarray,
    outlier_n: np.ndarray,
    *,
    tokens: int,
    seed: int,
    slow: Mapping[str, Denoiser] | None = None,
    slow_tokens: int | None = None,
) -> list[dict]:
    """Reductions of each method over each baseline on all tokens and on those that are no outliers,
    with intervals by document.

    All see the same tokens and noise. "Without outliers" leaves out draws; it draws no others.
    Nothing is compared with itself.

    Args:
        z_nd: activations in the coordinates of the methods.
        document_n: index of each one's document, from 0.
        outlier_n: which are outliers.
        tokens: drawn at each noise level, all of them if there are fewer.
        slow: further methods, each a baseline of `methods` too, that see only every (tokens /
            slow_tokens)-th token; so does what is compared with them.
    Raises:
        ValueError: `slow_tokens` does not divide `tokens`, or is missing.
    """
    slow, slow_tokens = slow or {}, slow_tokens or (tokens if not slow else 0)
    if not slow_tokens or tokens % slow_tokens:
        raise ValueError(
            f"{tokens} tokens a level, {slow_tokens} for {', '.join(slow)}: expected the second to "
            "divide the first"
        )
    stride = tokens // slow_tokens
    draws = {"per_level": min(tokens, len(z_nd)) // stride * stride, "seed": seed}
    draws["every"] = dict.fromkeys(slow, stride)
    everyone, rows = {**methods, **baselines, **slow}, []
    pairs = list(product(methods, baselines))
    slow_pairs = [(m, s) for s in slow for m in methods] + list(product(slow, baselines))
    for objective in objectives:
        found = grid_losses(everyone, z_nd, objective, **draws)
        for names, compared in (([*methods, *baselines], pairs), (everyone, slow_pairs)):
            without, outliers = (
                found.by_document(document_n, names, mask) for mask in (~outlier_n, outlier_n)
            )
            for which, losses in (("all", without + outliers), ("without outliers", without)):
                facts = {"objective": objective, "tokens": which}
                rows += [
                    {**facts, "method": m, "baseline": b, **paired_reduction(losses, m, b)}
                    for m, b in compared
                    if m != b
                ]
    return rows


def joined(measured: Mapping[str, dict]) -> Losses:
    """Losses of methods that were measured one at a time on the same draws, as if at a single
    level.

    Args:
        measured: by method, what `DocumentLosses.as_json` gives of it alone.
    Raises:
        ValueError: they differ in their numbers of draws by document, so the draws were not the
            same.
    """
    counts, *others = (found["counts"] for found in measured.values())
    if any(other != counts for other in others):
        draws = [int(sum(one)) for one in (counts, *others)]
        raise ValueError(
            f"{', '.join(measured)} have {draws} draws in documents of their own: expected the "
            "same draws for all"
        )
    sums = {method: np.array([found["sums"]]) for method, found in measured.items()}
    return Losses(np.full(1, np.nan), sums, np.array([counts]))


def paired_reduction(losses: Losses, method: str, baseline: str) -> dict:
    """The reduction with both losses, its interval by document and the verdict."""
    ours, theirs = losses.by_document(method), losses.by_document(baseline)
    interval = list(reduction_interval(losses, method, baseline))
    return {
        "loss": ours.mean,
        "baseline_loss": theirs.mean,
        "reduction": float(1 - ours.sums_d.sum() / theirs.sums_d.sum()),
        "ci95": interval,
        "documents": len(ours.counts_d),
        "draws": int(ours.counts_d.sum()),
        "verdict": verdict(*interval),
    }


GRID = {
    ("small_mlp", "gaussian"): "over_gaussian",
    ("small_mlp", "mixture"): "over_mixture",
    ("mixture", "gaussian"): "mixture_over_gaussian",
}


def grid(rows: Sequence[dict]) -> dict[str, dict[str, dict]]:
    """Layers × texts: by corpus and layer, the velocity reductions of the small MLP over the
    Gaussian and the mixture, and of one over the other.

    Args:
        rows: of `reduction_rows`, each with its group, corpus and layer; those of groups "layers",
            "texts" and "layers and texts" count.
    """
    found: dict[str, dict[str, dict]] = {}
    for row in sorted(rows, key=lambda row: row["layer"]):
        key = GRID.get((row["method"], row["baseline"]))
        counts = row["group"] in ("layers", "texts", "layers and texts")
        if key and counts and (row["objective"], row["tokens"]) == ("flow_velocity", "all"):
            by_layer = found.setdefault(row["corpus"], {})
            by_layer.setdefault(str(row["layer"]), {})[key] = {
                name: row[name] for name in ("reduction", "ci95", "verdict")
            }
    return found
