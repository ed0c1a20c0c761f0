"""Does the verdict hold elsewhere: at other layers, on other texts, in other coordinates, without outliers, on fresh documents, with other seeds?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor

from mmlib.activations.batches import spread_rows
from mmlib.activations.corpora import SPLITS
from mmlib.activations.store import ActivationStore, StoreError
from mmlib.activations.tokens import Normaliser
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
    """The activations of a store with its documents in other splits, copied bit for bit unless they are there; statistics are those of the new split.

    Args:
        splits: of each document, in the store's order.
        path: folder of the copy; a copy of anything else that is there is replaced.
    Raises:
        StoreError: the store has another number of documents, or a split is unknown.
    """
    if len(splits) != len(store.titles):
        raise StoreError(
            f"{store.path} holds {len(store.titles)} documents, {len(splits)} splits are given: expected one a document"
        )
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise StoreError(
            f"splits {', '.join(unknown)}: expected {', '.join(SPLITS)}, one a document"
        )
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
                writer.append(
                    {store.layer: store.read(rows)},
                    store.column("token_ids", rows),
                    np.full(len(rows), new),
                    store.column("position", rows),
                )
    if not writer.finished:
        writer.finish()
    return ActivationStore(path)


@dataclass(frozen=True)
class RobustnessSize:
    """What is trained on each layer, and how closely it is measured on which texts."""

    # 11.5 million parameters at d = 640, one pass, a minute
    recipe: Recipe = Recipe(
        MLPSize(layers=3, d_model=640, d_mlp=1280),
        Training(
            "flow_velocity",
            steps=1014,
            batch=512,
            lr=2e-3,
            ema=0.99,
            weight_decay=0.05,
            levels=64,
            validate_every=1020,
            save_every=1020,
        ),
    )
    corpora: tuple[tuple[str, int, int], ...] = (
        ("newsgroups", 400, 256),
        ("self", 40, 255),
    )  # (name, documents, tokens of each at most)
    tokens: int = 300  # test tokens at each noise level
    tokens_mixture: int = 100  # of these, what the slow mixture sees


SIZES = {
    "smoke": RobustnessSize(
        recipe=Recipe(
            MLPSize(layers=1, d_model=64, d_mlp=128),
            Training(
                "flow_velocity",
                steps=20,
                batch=256,
                lr=2e-3,
                ema=0.9,
                levels=64,
                validate_every=30,
                save_every=30,
            ),
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
    """The small network on every layer; and on the middle one with further seeds, and in whitened coordinates."""
    found = [RecipeTrial(f"layer{one}", size.recipe, at, seed) for one, at in stores.items()]
    for other in (seed + more for more in FURTHER_SEEDS):
        name = f"layer{middle}-seed{other}"
        found.append(RecipeTrial(name, size.recipe, stores[middle], other))
    name, coordinates = f"layer{middle}-whitened", ("whitened", whitening)
    return [*found, RecipeTrial(name, size.recipe, stores[middle], seed, *coordinates)]


OUTLIER_FACTOR = 3.0  # of the median norm of the training activations


OUTLIER_SAMPLE = 20_000  # training rows that give the median


def early_middle_late(n_blocks: int, middle: int) -> list[int]:
    """Block indices a quarter, about half (the run's own layer) and three quarters of the way, each once."""
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
                f"{int((components.variances_d <= 0).sum())} principal components have no variance: nothing makes it 1"
            )
        return cls(components.mean_d, components.axes_dd / components.variances_d.sqrt())

    def __call__(self, z_nd: Tensor) -> Tensor:
        """Whitened z, (n, d)."""
        return (z_nd - self.mean_d) @ self.matrix_dd


def training_median(store: ActivationStore) -> float:
    """Median norm of the raw activations of the training documents, from up to 20,000 rows spread over them."""
    rows = store.rows("train")
    chosen = rows.start + spread_rows(
        len(rows), min(OUTLIER_SAMPLE, len(rows)), np.random.default_rng(0)
    )
    return float(store.read(chosen).float().norm(dim=1).median())


def outliers(activations_nd: Tensor, training_median: float) -> np.ndarray:
    """Which raw activations have a norm above three times the training median, (n,) of bool."""
    return (activations_nd.float().norm(dim=1) > OUTLIER_FACTOR * training_median).numpy()


def as_chosen(size: MixtureSize, tried: Sequence[dict]) -> MixtureSize:
    """The number of components and the prior that validation documents chose, as the only ones to be tried; EM has as many steps as it had.

    Args:
        tried: what `mmlib.denoisers.mixture.fit_mixture` reports.
    """
    best = max(tried, key=lambda trial: trial["nats_per_dimension"])
    return replace(size, components=(best["components"],), priors=(best["prior"],))


def mixture_again(
    z_train_nd: Tensor, z_validation_nd: Tensor, size: MixtureSize, seed: int
) -> GaussianMixtureDenoiser:
    """A mixture fitted as notebook 02 fits it, here usually with one size to try: k-means, the noise and the validation tokens follow the seed.

    Args:
        z_train_nd, z_validation_nd: activations in the coordinates of the mixture.
    """
    rows = spread_rows(
        len(z_validation_nd),
        min(size.validation_tokens, len(z_validation_nd)),
        np.random.default_rng(seed),
    )
    return fit_mixture(z_train_nd, z_validation_nd[rows], size, seed=seed)[0]


def mixed_sae(
    sae: SAE, store: ActivationStore, objectives: Sequence[str], tokens: int, seed: int
) -> MixedDenoiser:
    """An SAE read as notebook 04 reads it: fed the mean model's estimate, mixed with its input at each level of these objectives' grids.

    Args:
        store: whose training documents give the tokens that mixes are fitted on.
        tokens: their number; seed: of the tokens and their noise.
    """
    rows = store.rows("train")
    chosen = rows.start + spread_rows(
        len(rows), min(tokens, len(rows)), np.random.default_rng(seed)
    )
    levels = [level for objective in objectives for level in noise_process(objective).grid()]
    z_nd = Normaliser.of(store)(store.read(chosen))
    return MixedDenoiser(
        SAEDenoiser(sae, "mean_estimate"), levels, z_nd, torch.Generator().manual_seed(seed)
    )


def redraw_test(lengths: Sequence[int], splits: Sequence[str], n_test: int, seed: int) -> list[str]:
    """Another split of the same documents: test documents are drawn from those of training, which the old ones join.

    For when test documents have been looked at and choices may have followed. Validation documents stay. Stratified by length, as
    `mmlib.activations.corpora.split_documents` is.

    Args:
        lengths: of the documents, in tokens.
    Raises:
        ValueError: fewer documents are in training than are to be drawn.
    """
    old = np.asarray(splits, dtype=object)
    if (old == "train").sum() < n_test:
        raise ValueError(
            f"{(old == 'train').sum()} training documents cannot give {n_test} for test"
        )
    rng, new = np.random.default_rng(seed), np.where(old == "test", "train", old)
    by_length = np.argsort(-np.asarray(lengths), kind="stable")  # longest first
    new[
        [
            rng.choice(stratum)
            for stratum in np.array_split(by_length[old[by_length] == "train"], n_test)
        ]
    ] = "test"
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
    """Reductions of each method over each baseline on all tokens and on those that are no outliers, with intervals by document.

    All see the same tokens and noise. "Without outliers" leaves out draws; it draws no others. Nothing is compared with itself.

    Args:
        z_nd: activations in the coordinates of the methods.
        document_n: index of each one's document, from 0.
        outlier_n: which are outliers.
        tokens: drawn at each noise level, all of them if there are fewer.
        slow: further methods, each a baseline of `methods` too, that see only every (tokens / slow_tokens)-th token; so does what is compared with them.
    Raises:
        ValueError: `slow_tokens` does not divide `tokens`, or is missing.
    """
    slow, slow_tokens = slow or {}, slow_tokens or (tokens if not slow else 0)
    if not slow_tokens or tokens % slow_tokens:
        raise ValueError(
            f"{tokens} tokens a level, {slow_tokens} for {', '.join(slow)}: expected the second to divide the first"
        )
    stride = tokens // slow_tokens
    slow_tokens = min(tokens, len(z_nd)) // stride
    rows, fast = [], [*methods, *baselines]
    pairs = [(m, b) for m in methods for b in baselines]
    slow_pairs = [(m, s) for s in slow for m in methods] + [(s, b) for s in slow for b in baselines]
    for objective in objectives:
        found = grid_losses(
            {**methods, **baselines, **slow},
            z_nd,
            objective,
            per_level=slow_tokens * stride,
            seed=seed,
            every=dict.fromkeys(slow, stride),
        )
        for names, compared in ((fast, pairs), ([*fast, *slow], slow_pairs)):
            without, outliers = (
                found.by_document(document_n, names, mask) for mask in (~outlier_n, outlier_n)
            )
            for which, losses in (("all", without + outliers), ("without outliers", without)):
                rows += [
                    {
                        "objective": objective,
                        "tokens": which,
                        "method": m,
                        "baseline": b,
                        **paired_reduction(losses, m, b),
                    }
                    for m, b in compared
                    if m != b
                ]
    return rows


def joined(measured: Mapping[str, dict]) -> Losses:
    """Losses of methods that were measured one at a time on the same draws, as if at a single level.

    Args:
        measured: by method, what `DocumentLosses.as_json` gives of it alone.
    Raises:
        ValueError: they differ in their numbers of draws by document, so the draws were not the same.
    """
    counts = {method: found["counts"] for method, found in measured.items()}
    if len({tuple(one) for one in counts.values()}) != 1:
        raise ValueError(
            f"{', '.join(counts)} have {[int(sum(one)) for one in counts.values()]} draws in documents of their own: expected the same draws for all"
        )
    return Losses(
        np.full(1, np.nan),
        {method: np.array([found["sums"]]) for method, found in measured.items()},
        np.array([next(iter(counts.values()))]),
    )


def paired_reduction(losses: Losses, method: str, baseline: str) -> dict:
    """The reduction with both losses, its interval by document and the verdict."""
    (ours_d, counts_d), (theirs_d, _) = losses.by_document(method), losses.by_document(baseline)
    interval = list(reduction_interval(losses, method, baseline))
    return {
        "loss": float(ours_d.sum() / counts_d.sum()),
        "baseline_loss": float(theirs_d.sum() / counts_d.sum()),
        "reduction": float(1 - ours_d.sum() / theirs_d.sum()),
        "ci95": interval,
        "documents": len(counts_d),
        "draws": int(counts_d.sum()),
        "verdict": verdict(*interval),
    }


GRID = {
    ("small_mlp", "gaussian"): "over_gaussian",
    ("small_mlp", "mixture"): "over_mixture",
    ("mixture", "gaussian"): "mixture_over_gaussian",
}


def grid(rows: Sequence[dict]) -> dict[str, dict[str, dict]]:
    """Layers × texts: by corpus and layer, the velocity reductions of the small MLP over the Gaussian and the mixture, and of one over the other.

    Args:
        rows: of `reduction_rows`, each with its group, corpus and layer; those of groups "layers", "texts" and "layers and texts" count.
    """
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        key = GRID.get((row["method"], row["baseline"]))
        if (
            key
            and row["group"] in ("layers", "texts", "layers and texts")
            and (row["objective"], row["tokens"]) == ("flow_velocity", "all")
        ):
            found.setdefault(row["corpus"], {}).setdefault(str(row["layer"]), {})[key] = {
                name: row[name] for name in ("reduction", "ci95", "verdict")
            }
    return {
        corpus: dict(sorted(by_layer.items(), key=lambda item: int(item[0])))
        for corpus, by_layer in found.items()
    }
