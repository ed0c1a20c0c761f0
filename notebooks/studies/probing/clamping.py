"""What clamping a unit does to the language model: not whether the unit goes with a concept, but
whether the model uses it.

At one token of each of some negative examples of a task, the residual stream is changed as if a
unit had the mean value that it has on positive examples, and the model reads on from there.
Measured is the *margin*: the mean log-odds of the next token between the tokens that speak for the
positive class and those that speak against it, which are the `SIGNATURE` tokens whose mean
probability rises and falls most from negative to positive examples that were not held out. Log-odds
between tokens are differences of logits, so no other token enters. The unit of effects is the
*gap*, the difference of the mean margins of the two classes: 1 makes a negative example like a
positive one.
"""

import copy
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mmlib.activations.lm import LanguageModel, edited_block, residual_blocks, resolve_layer
from mmlib.activations.windows import Window, batches_of, padded
from mmlib.evaluation.intervals import mean_with_interval, ratio_interval
from mmlib_studies.probing.units import edited_inputs, mlp_output

SIGNATURE = 20  # tokens that speak for a class, and as many against it


NOTHING = 1e-5  # of the norm that changes are scaled to: shorter ones are not


ROWS = 32  # predictions over the whole vocabulary held in memory


def obstacle(lm: LanguageModel, layer: int) -> str | None:
    """Why units of this language model cannot be clamped: its logits are more than a product with a
    matrix, so that margins are not differences of them, or its neurons are not where they are
    looked for. None where they can.
    """
    head, config = lm.model.get_output_embeddings(), lm.model.config.get_text_config()
    scales = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    more = [name for name in scales if getattr(config, name, None) not in (None, 1)]
    more += ["a bias"] if getattr(head, "bias", None) is not None else []
    if more:
        return f"{type(lm.model).__name__} makes its logits with {', '.join(more)}: expected a matrix alone"
    try:
        mlp_output(lm.model, layer)
    except ValueError as error:
        return str(error)
    return None


def unembedding(lm: LanguageModel) -> Tensor:
    """The matrix (vocabulary, m) that turns last hidden states to logits.

    Raises:
        ValueError: the model does more to its logits than that, see `obstacle`.
    """
    if reason := obstacle(lm, 0):
        raise ValueError(f"{reason}; clamp units of another model")
    return lm.model.get_output_embeddings().weight


@torch.inference_mode()
def last_states(
    lm: LanguageModel, windows: Sequence[Window], positions: Sequence[np.ndarray], batch_tokens: int
) -> Tensor:
    """Last hidden states, normed, at chosen positions of windows, (n, m), one window after
    another.
    """
    found: list[Tensor] = [torch.empty(0)] * len(windows)
    for batch in batches_of(list(windows), batch_tokens):
        ids_bt = padded([windows[i] for i in batch], lm.opening_token).to(lm.model.device)
        read = lm.model.base_model(input_ids=ids_bt, use_cache=False)
        states_btm = read.last_hidden_state.float().cpu()
        for row, i in enumerate(batch):
            found[i] = states_btm[row, 1 + torch.from_numpy(np.asarray(positions[i]))]
    return torch.cat(found)


@lru_cache(maxsize=1)  # every task asks for the same, and the conversion takes half of its time
def _float32(matrix_vm: Tensor) -> Tensor:
    return matrix_vm.float().cpu()


@torch.inference_mode()
def signature(
    lm: LanguageModel, states_em: Tensor, label_e: np.ndarray, count: int = SIGNATURE
) -> tuple[Tensor, list[int], list[int]]:
    """What to multiply a last hidden state with to have the margin, (m,), and the tokens for and
    against the positive class.

    Args:
        states_em: last hidden states at examples that are not held out.
    """
    matrix_vm = _float32(unembedding(lm))
    total_cv = torch.zeros(2, len(matrix_vm))
    for state_em, label in zip(states_em.split(ROWS), torch.from_numpy(label_e).split(ROWS)):
        probability_ev = (state_em @ matrix_vm.T).softmax(1)
        total_cv += torch.stack([probability_ev[~label].sum(0), probability_ev[label].sum(0)])
    rise_v = total_cv[1] / label_e.sum() - total_cv[0] / (~label_e).sum()
    rising, falling = rise_v.topk(count).indices, (-rise_v).topk(count).indices
    return matrix_vm[rising].mean(0) - matrix_vm[falling].mean(0), rising.tolist(), falling.tolist()


class LastToken:
    """A text that a language model has read up to its last token, which it reads again and again
    under changes of one block.

    Args:
        layer: the block.
        token_ids: of the text, at least two tokens, without the opening token.
    Raises:
        ValueError: no such layer.
    """

    @torch.inference_mode()
    def __init__(self, lm: LanguageModel, layer: int, token_ids: Sequence[int]):
        self.lm, self.layer = lm, resolve_layer(layer, len(residual_blocks(lm.model)))
        ids = torch.tensor([[lm.opening_token, *map(int, token_ids)]], device=lm.model.device)
        self.last = ids[:, -1:]
        self.cache = lm.model.base_model(input_ids=ids[:, :-1], use_cache=True).past_key_values

    @torch.inference_mode()
    def _read(self, copies: int) -> Tensor:
        """Last hidden state of the token, read that many times side by side: (copies, m)."""
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(copies)
        ids = self.last.expand(copies, 1)
        read = self.lm.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return read.last_hidden_state[:, -1].float().cpu()

    def activation(self) -> Tensor:
        """The block's output at the token, raw, (1, d)."""
        return self._outputs(1)

    def _outputs(self, copies: int) -> Tensor:
        seen: list[Tensor] = []

        def see(h_ktd: Tensor) -> Tensor:
            seen.append(h_ktd[:, -1].float().cpu())
            return h_ktd

        with edited_block(self.lm.model, self.layer, see):
            self._read(copies)
        return seen[0]

    def changed(self, change_kd: Tensor) -> Tensor:
        """Last hidden states (k, m) when each of these changes, raw, is added to the block's output
        at the token.
        """

        def add(h_ktd: Tensor) -> Tensor:
            return h_ktd + change_kd[:, None].to(h_ktd)

        with edited_block(self.lm.model, self.layer, add):
            return self._read(len(change_kd))

    def neurons_clamped(self, units: Sequence[int], values: Sequence[float]) -> Tensor:
        """The block's outputs (k, d) when one neuron of its MLP, another in each row, is set to a
        value.
        """
        rows = torch.arange(len(units))

        def put(hidden: Tensor) -> Tensor:
            hidden = hidden.clone()
            hidden[rows, -1, torch.as_tensor(units)] = torch.as_tensor(values).to(hidden)
            return hidden

        with edited_inputs(mlp_output(self.lm.model, self.layer), put):
            return self._outputs(len(units))


def scaled(change_nd: Tensor, norm: float) -> Tensor:
    """Changes at one norm; one that is shorter than `NOTHING` of it is rounding, and becomes 0."""
    length_n = change_nd.norm(dim=1, keepdim=True)
    return torch.where(length_n > NOTHING * norm, norm * change_nd / length_n, torch.zeros(()))


def effect_over_tasks(effect_t: Sequence[float], gap_t: Sequence[float]) -> dict:
    """Σ effect / Σ gap over tasks, in which tasks of a large gap weigh more, and the mean of effect
    / gap, in which all weigh alike; each with a 95 % interval that resamples tasks.
    """
    effect, gap = np.asarray(effect_t, float), np.asarray(gap_t, float)
    mean, mean_interval = mean_with_interval(effect / gap)
    return {
        "effect": float(effect.sum() / gap.sum()),
        "ci95": list(ratio_interval(effect, gap)),
        "mean_ratio": mean,
        "mean_ratio_ci95": mean_interval,
        "tasks": len(effect),
    }


def taking_turns(controls: int, at_once: int, examples: int) -> np.ndarray:
    """Which controls are clamped at which example, (controls, examples): `at_once` at each, and all
    equally often as far as that divides.

    Raises:
        ValueError: there are fewer controls than should be clamped at once, or some would have no
            example.
    """
    if not 0 < at_once <= controls <= at_once * examples:
        asked = f"{controls} controls, {at_once} at each of {examples} examples"
        raise ValueError(f"{asked}: expected each control at one of them at least")
    return (np.arange(controls)[:, None] - at_once * np.arange(examples)) % controls < at_once
