"""Steering: a direction is added to a block's output while text is generated, and the edit may be
repaired.

Everything is in standardised activations z, where the edit is z → z + s v: s is the strength, v a
direction (d,). For v the difference of two classes' means, s = 1 carries one class's mean to the
other's, in z as in raw activations. Any other direction is given that difference's length, so that
equal strengths are edits of equal length.

An edit applies where a new token is about to be made: at the last position of the prompt and at
every generated one. Under `generate` with a cache that is the last position of each call; what
later blocks keep in their caches is the edited stream's.

A *repair* maps the edited z + s v back towards activations that occur: what is compared here. Those
that add noise take x = (1 − σ)(z + s v) + σ ε with the same ε for all.
"""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy.stats import mannwhitneyu
from sklearn.linear_model import LogisticRegressionCV
from torch import Tensor, nn

from mmlib.activations.lm import LanguageModel, read_residual_stream
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.noise import Denoiser, Level, sdedit
from mmlib.evaluation.losses import token_losses, velocity_loss

PROBE_STRENGTHS = 10 ** np.arange(-4.0, 1.0)  # inverse regularisations tried by cross-validation


# tokens that a sentence has behind its opening: a whole sentence leaves less to continue
LEAST_REST = 4

_WORD = r"[^\W_]+(?:['’-][^\W_]+)*"

# words with single spaces between: what markup leaves behind is refused
PLAIN_OPENING = re.compile(rf"(?=[A-Z]){_WORD}(?:,? {_WORD})*,?")

# (z, z + s v, noise's generator) → repaired, each (n, d)
Repair = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def text_means(
    store: ActivationStore, normaliser: Normaliser, of: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Mean over the tokens of each document of of(z), (documents, …); left out: of z.

    z is standardised with the training statistics of another store.
    """
    every_z = (normaliser(store.read(store.rows_of(i))) for i in range(len(store.titles)))
    return torch.stack([(of(z_nd) if of else z_nd).mean(0) for z_nd in every_z])


def mean_difference(z_nd: Tensor, positive_n: np.ndarray) -> Tensor:
    """Mean of the positive class less that of the other, (d,).

    Raises:
        ValueError: one of the classes is empty.
    """
    positive = torch.from_numpy(np.asarray(positive_n, dtype=bool))
    if positive.all() or not positive.any():
        raise ValueError(
            f"{int(positive.sum())} of {len(positive)} texts are positive: a direction needs both "
            "classes"
        )
    return z_nd[positive].mean(0) - z_nd[~positive].mean(0)


def probe_direction(z_nd: Tensor, positive_n: np.ndarray, seed: int) -> Tensor:
    """Weights (d,) of scikit-learn's logistic regression on z, regularised as 5-fold
    cross-validation says, as long as the mean difference.
    """
    probe = LogisticRegressionCV(
        Cs=PROBE_STRENGTHS,
        cv=5,
        scoring="neg_log_loss",
        max_iter=1000,
        l1_ratios=(0,),
        use_legacy_attributes=False,
        random_state=seed,
    ).fit(z_nd.numpy(), np.asarray(positive_n, dtype=bool))
    return as_long(torch.from_numpy(probe.coef_[0]).float(), mean_difference(z_nd, positive_n))


def sae_direction(
    decoder_md: Tensor, latents_nm: Tensor, z_nd: Tensor, positive_n: np.ndarray, seed: int
) -> tuple[Tensor, int, float]:
    """Decoder row of the latent that tells the classes best, as long as the mean difference; its
    index; its AUC, by Mann and Whitney.

    The latent is chosen on one half of the texts of each class, drawn at random, and its AUC is on
    the other: the best of thousands looks better than it is where it was chosen.

    Args:
        decoder_md: the dictionary, a row a latent.
        latents_nm: mean activity of each latent on each text.
    Raises:
        ValueError: a class has fewer than two texts.
    """
    positive, rng = np.asarray(positive_n, dtype=bool), np.random.default_rng(seed)
    classes = [rng.permutation(np.flatnonzero(positive == value)) for value in (True, False)]
    if min(map(len, classes)) < 2:
        raise ValueError(
            f"{len(classes[0])} texts are positive and {len(classes[1])} are not: a latent is "
            "chosen on half of each and judged on the other"
        )

    def auc(half: int, columns: slice | list[int]) -> np.ndarray:
        high, low = (latents_nm.numpy()[rows[half::2]][:, columns] for rows in classes)
        wins = mannwhitneyu(high, low, axis=0, method="asymptotic").statistic
        return wins / (len(high) * len(low))

    best = int(np.argmax(auc(0, slice(None))))
    direction_d = as_long(decoder_md[best], mean_difference(z_nd, positive))
    return direction_d, best, float(auc(1, [best])[0])


def three_directions(
    z_nd: Tensor, latents_nm: Tensor, positive_n: np.ndarray, decoder_md: Tensor, seed: int
) -> tuple[dict[str, Tensor], dict]:
    """A concept's direction found in three ways, by name, and facts about them.

    The facts: how many texts, the mean difference's length, the SAE's latent and its AUC, and the
    cosine of each direction with the mean difference.

    Args:
        decoder_md: the dictionary, a row a latent.
        latents_nm: mean activity of each latent on each text.
    """
    mean = mean_difference(z_nd, positive_n)
    by_sae, latent, auc = sae_direction(decoder_md, latents_nm, z_nd, positive_n, seed)
    directions = {
        "mean_difference": mean,
        "sae_decoder": by_sae,
        "probe": probe_direction(z_nd, positive_n, seed),
    }
    cosines = {
        key: torch.cosine_similarity(mean, value, 0).item() for key, value in directions.items()
    }
    return directions, {
        "texts": len(z_nd),
        "length_z": mean.norm().item(),
        "sae_latent": latent,
        "sae_auc": auc,
        "cosines": cosines,
    }


def as_long(direction_d: Tensor, other_d: Tensor) -> Tensor:
    """The direction with the other's length.

    Raises:
        ValueError: it has none of its own.
    """
    if not direction_d.norm() > 0:
        raise ValueError("a direction of length 0 cannot be made as long as another")
    return direction_d * (other_d.norm() / direction_d.norm())


def unrepaired(z_nd: Tensor, edited_nd: Tensor, generator: torch.Generator) -> Tensor:
    """Plain addition."""
    return edited_nd


def norm_kept(normaliser: Normaliser) -> Repair:
    """The edited activation, raw, scaled to the norm that it had before."""

    def repair(z_nd: Tensor, edited_nd: Tensor, generator: torch.Generator) -> Tensor:
        before_nd, after_nd = normaliser.inverse(z_nd), normaliser.inverse(edited_nd)
        share_n1 = before_nd.norm(dim=1, keepdim=True) / after_nd.norm(dim=1, keepdim=True)
        return normaliser(after_nd * share_n1)

    return repair


def reconstructed(method: Denoiser) -> Repair:
    """What a method made for clean activations (PCA, an SAE) makes of the edited one."""
    return lambda z_nd, edited_nd, generator: method(edited_nd, 0.0)


def posterior_mean(method: Denoiser, sigma: float) -> Repair:
    """A denoiser's one-step estimate from the edited activation noised to σ."""
    return _noised(lambda z_nd, noise_nd: method((1 - sigma) * z_nd + sigma * noise_nd, sigma))


def projected_by(method: Denoiser, sigma: float, steps: int) -> Repair:
    """SDEdit from σ by any denoiser, from the same noise as `projected`: what differs is who
    estimates.

    See `mmlib.denoisers.noise.sdedit`.
    """
    return _noised(lambda z_nd, noise_nd: sdedit(method, z_nd, noise_nd, sigma, steps))


def _noised(estimate: Callable[[Tensor, Tensor], Tensor]) -> Repair:
    """A repair by an estimate from the edited activation and noise, (n, d) each."""

    def repair(z_nd: Tensor, edited_nd: Tensor, generator: torch.Generator) -> Tensor:
        return estimate(edited_nd, torch.randn(edited_nd.shape, generator=generator))

    return repair


def projected(
    meta_model: MetaModel,
    sigma: float,
    steps: int,
    *,
    solver: str | None = None,
    bf16: bool = False,
) -> Repair:
    """SDEdit by the meta-model from σ, see `MetaModel.project`."""
    options = {"sigma": sigma, "steps": steps, "solver": solver, "bf16": bf16, "progress": False}
    project = partial(meta_model.project, **options)
    return lambda z_nd, edited_nd, generator: project(edited_nd, generator=generator)


def with_bf16_weights(meta_model: MetaModel) -> MetaModel:
    """A copy whose linear layers are in bfloat16, for `bf16=True`; mixtures below it are shared.

    Autocast alone would convert them anew at every evaluation, which takes longer than using them
    where rows are few.
    """
    network = meta_model.network
    shared = [*network.buffers(), getattr(network, "average", None)]  # gigabytes
    copied = copy.deepcopy(meta_model, {id(one): one for one in shared})
    for module in copied.network.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
    return copied


@dataclass(eq=False)
class Steering:
    """An edit for `edited_block`: the direction is added at the last position of each call, then
    repaired.

    At strength 0 it does nothing.

    Args:
        direction_d: in z.
        seed: of the repair's noise, which is the same for every repair that draws as much of it.
        batch: number of the batch of prompts; batches share no noise, and the first has the seed's
            own.
    """

    normaliser: Normaliser
    direction_d: Tensor
    strength: float
    repair: Repair = unrepaired
    seed: int = 0
    batch: int = 0

    def __post_init__(self):
        key = np.random.SeedSequence((self.seed, self.batch)).generate_state(1)[0]
        self.generator = torch.Generator().manual_seed(int(key) if self.batch else self.seed)

    def edited(self, h_nd: Tensor) -> Tensor:
        """Raw activations (n, d), float32, in place of raw ones.

        Raises:
            ValueError: the repair gives another shape, or a value that is not finite.
        """
        z_nd = self.normaliser(h_nd.float().cpu())
        repaired_nd = self.repair(z_nd, z_nd + self.strength * self.direction_d, self.generator)
        if repaired_nd.shape != z_nd.shape or not repaired_nd.isfinite().all():
            odd = int((~repaired_nd.isfinite()).sum())
            raise ValueError(
                f"the repair gives shape {tuple(repaired_nd.shape)} with {odd} values that are not "
                f"finite, at strength {self.strength}: expected finite values of shape "
                f"{tuple(z_nd.shape)}; lower the strength, or mend the repair"
            )
        return self.normaliser.inverse(repaired_nd)

    def __call__(self, hidden_btd: Tensor) -> Tensor:
        """The edited stream (batch, tokens, d)."""
        if self.strength == 0:
            return hidden_btd
        last_btd = self.edited(hidden_btd[:, -1])[:, None].to(hidden_btd)
        return torch.cat([hidden_btd[:, :-1], last_btd], 1)


def neutral_openings(
    store: ActivationStore,
    lm: LanguageModel,
    split: str,
    n: int,
    *,
    tokens: int,
    neutral: Callable[[str], bool],
    seed: int,
) -> Tensor:
    """Prompts (n, 1 + tokens): the opening token and the first tokens of a sentence of a split's
    documents, which take turns in random order.

    Args:
        neutral: refuses openings that have the concept already.
    Raises:
        ValueError: the documents have fewer such sentences.
    """
    rng, turns, chosen = np.random.default_rng(seed), [], {}
    for order, document in enumerate(rng.permutation(np.flatnonzero(store.splits == split))):
        text = lm.tokenizer.decode(store.column("token_ids", store.rows_of(int(document))).tolist())
        sentences = re.split(r"(?<=[.!?])\s+|\n+", text)
        shuffled = enumerate(rng.permutation(len(sentences)))
        turns += [(turn, order, sentences[i]) for turn, i in shuffled]
    for _, _, sentence in sorted(turns):
        ids = lm.encode([sentence])[0]
        opening, rest = lm.tokenizer.decode(ids[:tokens]), len(ids) - tokens
        if rest >= LEAST_REST and PLAIN_OPENING.fullmatch(opening) and neutral(opening):
            chosen.setdefault(opening, [lm.opening_token, *ids[:tokens]])
        if len(chosen) == n:
            return torch.tensor(list(chosen.values()))
    raise ValueError(
        f"{len(chosen)} neutral openings of {tokens} tokens in the {split} documents: {n} were "
        "asked for"
    )


def edited_places(
    lm: LanguageModel, layer: int, prompt_ids_bt: Tensor, new_ids_bt: Tensor, places: int
) -> Tensor:
    """Raw activations of unsteered continuations where edits would apply, (b · places, d), prompt
    by prompt.

    Args:
        places: how many of each continuation, evenly spread from the last prompt position to the
            one before the last token.
    """
    last = prompt_ids_bt.shape[1] - 1
    columns = last + np.linspace(0, new_ids_bt.shape[1] - 1, places).round().astype(int)
    ids_bt = torch.cat([prompt_ids_bt, new_ids_bt], 1)
    h_btd = read_residual_stream(lm.model, [layer], ids_bt)[layer]
    return h_btd[:, columns].flatten(0, 1).float().cpu()


def diffusion_losses(
    judge: Denoiser, z_nd: Tensor, sigmas: Sequence[float], seed: int
) -> np.ndarray:
    """Velocity loss per dimension of a judge on each activation, averaged over noise levels, (n,);
    the same noise for as many activations at the same levels.
    """
    generator, rows_n = torch.Generator().manual_seed(seed), np.arange(len(z_nd))
    found = token_losses(
        {"judge": judge},
        z_nd,
        [Level(sigma, 1 / sigma**2) for sigma in sigmas],
        lambda i, level: (rows_n, torch.randn(z_nd.shape, generator=generator)),
        loss=velocity_loss,
    )
    return torch.from_numpy(found.loss["judge"]).mean(0).numpy()


def geometry(z_nd: Tensor, edited_nd: Tensor, repaired_nd: Tensor) -> dict[str, np.ndarray]:
    """What a repair left of an edit, for each activation, (n,).

    Returns:
        repair_over_edit: ‖repaired − edited‖/‖edited − z‖; cosine: of repaired − z with the edit;
            along: the part of the edit's length that is left along it, ⟨repaired − z,
            edit⟩/‖edit‖².
    """
    edit_nd, change_nd = edited_nd - z_nd, repaired_nd - z_nd
    length_n, inner_n = edit_nd.norm(dim=1), (change_nd * edit_nd).sum(1)
    values = {
        "repair_over_edit": (repaired_nd - edited_nd).norm(dim=1) / length_n,
        "cosine": inner_n / (length_n * change_nd.norm(dim=1)),
        "along": inner_n / length_n**2,
    }
    return {name: value.double().numpy() for name, value in values.items()}
