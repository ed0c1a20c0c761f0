"""What a replacement of activations does to the language model: Δ LM loss, in nats per predicted
token.

The language model reads windows of test documents while the output h of one block is replaced by
r(h) at every position but the opening one. A window of n tokens stands at positions 1 … n behind
<bos>. *Counted* are the predictions made at positions 1 … n − 1, of tokens 2 … n: each is made at a
replaced position, all before it but <bos> are replaced too. The prediction at <bos>, which no
replacement can change, does not count, and the one at position n has no target in the window. Δ is
the mean loss under a replacement less that without.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmlib.activations.generate import prediction_losses
from mmlib.activations.lm import (
    BlockOutput,
    LanguageModel,
    edited_block,
    evaluation_mode,
    hidden,
    read_blocks,
    resumed_at,
)
from mmlib.activations.tokens import Normaliser
from mmlib.activations.windows import Window, batches_of, padded
from mmlib.denoisers.noise import Denoiser
from mmlib.evaluation.claim import CLAIM, verdict
from mmlib.evaluation.intervals import bootstrap_interval, ratio_interval

# positions in one forward pass: their logits take 0.5 GB where the vocabulary has 262,144 tokens
BATCH_TOKENS = 1024

Replacement = Callable[[Tensor], Tensor]


def window_noise(windows: Sequence[Window], d: int, sigma: float, seed: int) -> Tensor:
    """Standard normal noise (n, d) for the tokens of windows: a function of (seed, σ, window), so
    every method meets the same.
    """
    parts = []
    for window in windows:
        key = [seed, round(sigma * 1e9), window.document, window.start]
        shape = (len(window.token_ids), d)
        parts.append(np.random.default_rng(key).standard_normal(shape, dtype=np.float32))
    return torch.from_numpy(np.concatenate(parts))


def denoised(
    method: Denoiser, sigma: float, noise_nd: Tensor, normaliser: Normaliser
) -> Replacement:
    """The replacement of h by its one-step estimate from x = (1 − σ) z + σ ε, z standardised h."""

    def replacement(h_nd: Tensor) -> Tensor:
        return normaliser.inverse(method((1 - sigma) * normaliser(h_nd) + sigma * noise_nd, sigma))

    return replacement


def reconstructed(method: Callable[[Tensor], Tensor], normaliser: Normaliser) -> Replacement:
    """The replacement of h by what a method makes of standardised z: PCA, an SAE, a constant."""
    return lambda h_nd: normaliser.inverse(method(normaliser(h_nd)))


@dataclass(frozen=True)
class Outcome:
    """What came of one replacement, by window, (W,) each."""

    loss_w: np.ndarray  # summed over the counted predictions, nats
    error_w: np.ndarray  # Σ‖z − ẑ‖² over the window's tokens
    power_w: np.ndarray  # Σ‖z‖²


class SplicedModel:
    """A language model that reads fixed windows while one block's output is replaced.

    Args:
        layer: the block.
        windows: see `spread_windows`.
        normaliser: of that layer; errors are measured on its z.
        batch_tokens: positions in one forward pass (or one window).
    """

    def __init__(
        self,
        lm: LanguageModel,
        layer: int,
        windows: Sequence[Window],
        normaliser: Normaliser,
        batch_tokens: int = BATCH_TOKENS,
    ):
        self.lm, self.layer, self.windows, self.normaliser = lm, layer, list(windows), normaliser
        self.batches = list(batches_of(self.windows, batch_tokens))
        self.lengths_w = np.array([len(window.token_ids) for window in self.windows])
        self.ends_w = np.cumsum(self.lengths_w)
        ids = (self._ids(batch) for batch in self.batches)
        self.outputs = [read_blocks(lm.model, [layer], ids_bt)[layer] for ids_bt in ids]
        self.h_nd = self._rows()  # raw, in the stream's own dtype, one window after another

    def rows(self, i: int) -> slice:
        """Where the tokens of window i stand among the n of all windows."""
        return slice(int(self.ends_w[i] - self.lengths_w[i]), int(self.ends_w[i]))

    def _rows(self) -> Tensor:
        stream = hidden(self.outputs[0])
        h_nd = torch.empty(int(self.ends_w[-1]), stream.shape[-1], dtype=stream.dtype)
        for batch, output in zip(self.batches, self.outputs):
            output_btd = hidden(output).cpu()
            for row, i in enumerate(batch):
                h_nd[self.rows(i)] = output_btd[row, 1 : 1 + self.lengths_w[i]]
        return h_nd

    def _ids(self, batch: list[int]) -> Tensor:
        windows = [self.windows[i] for i in batch]
        return padded(windows, self.lm.opening_token).to(self.lm.model.device)

    @torch.inference_mode()
    def __call__(self, replacement: Replacement | None = None) -> Outcome:
        """Read all windows with the block's output replaced.

        Args:
            replacement: maps raw activations (n, d), float32, of all windows one after another, to
                those put in their places, which are rounded to the stream's dtype; None:
                nothing is replaced.
        Raises:
            ValueError: it gives another shape, or a value that is not finite.
        """
        z_nd = self.normaliser(self.h_nd)
        if replacement is None:
            return Outcome(self._losses(None), np.zeros(len(self.windows)), self._squares(z_nd))
        replaced_nd = replacement(self.h_nd.float())
        if replaced_nd.shape != self.h_nd.shape or not replaced_nd.isfinite().all():
            raise ValueError(
                f"the replacement has shape {tuple(replaced_nd.shape)}: expected finite values of "
                f"shape {tuple(self.h_nd.shape)}"
            )
        error_w = self._squares(self.normaliser(replaced_nd) - z_nd)
        return Outcome(self._losses(replaced_nd), error_w, self._squares(z_nd))

    def _squares(self, values_nd: Tensor) -> np.ndarray:
        squares_n = values_nd.double().square().sum(1).numpy()
        return np.add.reduceat(squares_n, self.ends_w - self.lengths_w)

    def _losses(self, replaced_nd: Tensor | None) -> np.ndarray:
        loss_w = np.zeros(len(self.windows))
        for batch, output in zip(self.batches, self.outputs):
            logits_btv = self._logits(batch, output, replaced_nd)
            for row, i in enumerate(batch):
                logits_nv = logits_btv[row, 1 : self.lengths_w[i]]
                loss_w[i] = _summed_loss(logits_nv, self.windows[i].token_ids[1:])
        return loss_w

    def _logits(self, batch: list[int], output: BlockOutput, replaced_nd: Tensor | None) -> Tensor:
        def put(hidden_btd: Tensor) -> Tensor:
            edited_btd = hidden_btd.clone()
            for row, i in enumerate(batch):
                own_nd = replaced_nd[self.rows(i)].to(edited_btd)
                edited_btd[row, 1 : 1 + self.lengths_w[i]] = own_nd
            return edited_btd

        model = self.lm.model
        edit = nullcontext() if replaced_nd is None else edited_block(model, self.layer, put)
        with evaluation_mode(model), resumed_at(model, self.layer, output), edit:
            return model(input_ids=self._ids(batch), use_cache=False).logits


def _summed_loss(logits_nv: Tensor, token_ids: np.ndarray) -> float:
    """Of the predictions of tokens (n,), nats."""
    target_n = torch.from_numpy(token_ids).long().to(logits_nv.device)
    losses = prediction_losses(logits_nv, target_n)
    return sum(loss_m.double().sum().item() for loss_m in losses)


Key = tuple[str, float | None]  # method, and σ of the noise that it met; None: clean activations


MEAN_ABLATION: Key = ("mean_ablation", None)


class Effects:
    """Δ LM loss and squared error of several replacements on the same windows, summed by document,
    the unit of all intervals.

    Means weigh predictions equally, and in squared errors tokens.

    Args:
        windows: the first of those that `outcomes` are of, or all.
        clean: nothing replaced.
        outcomes: by method and σ; `MEAN_ABLATION` among them is the scale.
    """

    def __init__(self, windows: Sequence[Window], clean: Outcome, outcomes: Mapping[Key, Outcome]):
        n = len(windows)
        self.documents, document_w = np.unique(
            [window.document for window in windows], return_inverse=True
        )

        def sums(values_w: np.ndarray) -> np.ndarray:
            return np.bincount(document_w, values_w[:n])

        predictions = [len(window.token_ids) - 1 for window in windows]
        self.counts_d = sums(np.array(predictions))
        self.clean_d, self.power_d = sums(clean.loss_w), sums(clean.power_w)
        self.change_d = {key: sums(one.loss_w) - self.clean_d for key, one in outcomes.items()}
        self.error_d = {key: sums(one.error_w) for key, one in outcomes.items()}

    def clean_loss(self) -> tuple[float, list[float]]:
        """Nats per prediction with nothing replaced, and its interval."""
        return self._ratio(self.clean_d, self.counts_d)

    def row(self, key: Key) -> dict:
        """Δ LM loss (nats per prediction), FVU, and the share of mean ablation's Δ that does not
        occur, with 95 % intervals by document.
        """
        change_d, whole_d = self.change_d[key], self.change_d[MEAN_ABLATION]
        row = dict(zip(("method", "sigma"), key))
        row["delta"], row["ci95"] = self._ratio(change_d, self.counts_d)
        row["fvu"], row["fvu_ci95"] = self._ratio(self.error_d[key], self.power_d)
        row["recovered"], row["recovered_ci95"] = self._one_less([change_d], [whole_d])
        return row

    def reduction(self, method: str, baseline: str, sigmas: Sequence[float]) -> dict:
        """1 − Δ_method/Δ_baseline, and beside it the reduction of the diffusion loss (velocity) on
        the same tokens and noise.

        Args:
            sigmas: noise levels, summed over. The noisiest dominates that sum, so the mean of the
                reductions at each stands beside it.
        Returns:
            `reduction`, its paired interval and the verdict on the claim are None, None and
            "undetermined" where the baseline's own Δ has an
            interval that reaches 0: a share of what may be nothing means nothing. So are
                `mean_reduction`, `mean_ci95` and `mean_verdict` where that holds at any one σ.
        """
        names = (method, baseline)
        ours, theirs = ([self.change_d[name, sigma] for sigma in sigmas] for name in names)
        velocity_losses = (
            [sum(self.error_d[name, sigma] / sigma**2 for sigma in sigmas)] for name in names
        )
        loss, loss_ci = self._one_less(*velocity_losses)
        return {
            "method": method,
            "baseline": baseline,
            "sigmas": list(sigmas),
            "claim": CLAIM,
            "loss_reduction": loss,
            "loss_ci95": loss_ci,
            **self._judged("", [sum(ours)], [sum(theirs)]),
            **self._judged("mean_", ours, theirs),
        }

    def _judged(self, prefix: str, ours: list[np.ndarray], theirs: list[np.ndarray]) -> dict:
        """The mean over pairs of 1 − Σ ours / Σ theirs, its interval and the verdict;
        "undetermined" where some Σ theirs may be 0 or less.
        """
        undetermined = any(self._ratio(theirs_d, self.counts_d)[1][0] <= 0 for theirs_d in theirs)
        value, interval = (None, None) if undetermined else self._one_less(ours, theirs)
        return {
            f"{prefix}reduction": value,
            f"{prefix}ci95": interval,
            f"{prefix}verdict": "undetermined" if undetermined else verdict(*interval),
        }

    def _ratio(self, above_d: np.ndarray, below_d: np.ndarray) -> tuple[float, list[float]]:
        """Σ above / Σ below and its interval."""
        ones_d = np.ones(len(above_d))
        value = float((ones_d @ above_d) / (ones_d @ below_d))
        return value, list(ratio_interval(above_d, below_d))

    def _one_less(
        self, ours: list[np.ndarray], theirs: list[np.ndarray]
    ) -> tuple[float, list[float]]:
        """Mean over pairs of 1 − Σ ours / Σ theirs and its interval."""

        def statistic(weights_rd: np.ndarray) -> np.ndarray:
            pairs = zip(ours, theirs)
            ratios = ((weights_rd @ ours_d) / (weights_rd @ theirs_d) for ours_d, theirs_d in pairs)
            return 1 - sum(ratios) / len(ours)

        n = len(self.counts_d)
        return float(statistic(np.ones(n))), list(bootstrap_interval(statistic, n))
