"""Replacing a block's output while the language model reads: against transformers' own loss, closed
forms and sums by hand.
"""

import math

import numpy as np
import pytest
import torch
from letters import SIZES, tiny, window
from transformers import GPT2Config

from mmlib.activations import lm as llm
from mmlib.activations.corpora import Document
from mmlib.activations.extract import plan_extraction, write_store
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.activations.windows import spread_windows, stored_activations, stored_windows
from mmlib.evaluation import lm_loss
from mmlib.evaluation.claim import verdict
from mmlib.evaluation.lm_loss import (
    Effects,
    Outcome,
    SplicedModel,
    denoised,
    reconstructed,
    window_noise,
)

PLAIN = Normaliser(torch.zeros(1, 16), torch.ones(1, 16))


WINDOWS = [window(9), window(9, 1), window(5, 1, 9), window(12, 4)]


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_identity_leaves_the_loss_bit_for_bit(architecture, dtype):
    spliced = SplicedModel(tiny(architecture, dtype), 1, WINDOWS, PLAIN, batch_tokens=24)
    clean, same = spliced(), spliced(lambda h_nd: h_nd)
    assert np.array_equal(clean.loss_w, same.loss_w) and not same.error_w.any()
    assert not np.array_equal(clean.loss_w, spliced(lambda h_nd: 1.1 * h_nd).loss_w)


@pytest.mark.parametrize("architecture", SIZES)
def test_the_loss_is_that_of_transformers_labels(architecture):
    """Its `labels=` is a mean over all labels but −100; those of <bos> and of the first token
    behind it are left out.
    """
    lm = tiny(architecture)
    spliced = SplicedModel(lm, 1, WINDOWS, PLAIN, batch_tokens=24)
    for one, loss in zip(WINDOWS, spliced().loss_w):
        ids = torch.tensor([[1, *one.token_ids]])
        labels = ids.clone()
        labels[0, :2] = -100
        expected = lm.model(ids, labels=labels).loss.item() * (len(one.token_ids) - 1)
        assert loss == pytest.approx(expected, rel=1e-5)


def test_zero_in_the_last_block_makes_every_counted_prediction_uniform():
    """RMS norm of 0 is 0, and so are the logits: ln 64 a prediction."""
    outcome = SplicedModel(tiny(), 2, WINDOWS, PLAIN, batch_tokens=24)(lambda h_nd: 0 * h_nd)
    expected = [math.log(64) * (len(one.token_ids) - 1) for one in WINDOWS]
    assert outcome.loss_w == pytest.approx(expected, rel=1e-6)
    assert outcome.error_w == pytest.approx(outcome.power_w)


class Zeroed(torch.nn.Module):
    """A block whose output is 0 behind the first position."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def __getattr__(self, name):
        return super().__getattr__(name) if name == "block" else getattr(self.block, name)

    def forward(self, *arguments, **options):
        hidden = self.block(*arguments, **options)
        return torch.cat([hidden[:, :1], 0 * hidden[:, 1:]], 1)


def test_zero_in_a_middle_block_is_as_in_a_model_built_so():
    lm = tiny()
    found = SplicedModel(lm, 1, WINDOWS, PLAIN, batch_tokens=24)(lambda h_nd: 0 * h_nd).loss_w
    lm.model.model.layers[1] = Zeroed(lm.model.model.layers[1])
    for one, loss in zip(WINDOWS, found):  # each window alone
        logits = lm.model(torch.tensor([[1, *one.token_ids]])).logits[0].double()
        chosen = logits.log_softmax(-1)[range(1, len(one.token_ids)), one.token_ids[1:]]
        assert loss == pytest.approx(-chosen.sum().item(), rel=1e-5)


def test_every_position_but_the_first_is_replaced_by_its_own_row():
    lm = tiny()
    spliced = SplicedModel(lm, 1, WINDOWS, PLAIN, batch_tokens=24)
    rows = torch.arange(float(len(spliced.h_nd)))[:, None].expand(-1, 16)
    entering = []
    handle = lm.model.model.layers[2].register_forward_pre_hook(
        lambda module, inputs: entering.append(inputs[0].clone())
    )
    spliced(lambda h_nd: rows)
    handle.remove()
    for batch, seen in zip(spliced.batches, entering):
        clean = llm.read_residual_stream(lm.model, [1], spliced._ids(batch))[1]
        assert torch.equal(seen[:, 0], clean[:, 0])
        for row, i in enumerate(batch):
            n = len(WINDOWS[i].token_ids)
            assert torch.equal(seen[row, 1 : 1 + n], rows[spliced.rows(i)])
            assert torch.equal(seen[row, 1 + n :], clean[row, 1 + n :])  # padding


@pytest.mark.parametrize("wrong", [lambda h_nd: h_nd[1:], lambda h_nd: h_nd / 0])
def test_a_replacement_of_another_shape_or_not_finite_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected finite values of shape \(35, 16\)"):
        SplicedModel(tiny(), 1, WINDOWS, PLAIN)(wrong)


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_pass_resumed_at_a_block_is_the_whole_one_bit_for_bit_and_computes_nothing_before(
    architecture, dtype
):
    model, ids = tiny(architecture, dtype).model, torch.tensor([[1, 7, 8, 30], [1, 9, 5, 5]])
    blocks, whole, computed = llm.residual_blocks(model), model(ids).logits, []
    output = llm.read_blocks(model, [1], ids)[1]
    for i, block in enumerate(blocks):
        next(block.children()).register_forward_hook(lambda *_, i=i: computed.append(i))
    with llm.resumed_at(model, 1, output):
        assert torch.equal(model(ids).logits, whole) and set(computed) == {2}
        with llm.edited_block(model, 1, lambda h_btd: 0 * h_btd):
            assert not torch.equal(model(ids).logits, whole)
    with pytest.raises(ZeroDivisionError), llm.resumed_at(model, 1, output):
        model(ids[:, : 1 // 0])
    computed.clear()
    assert torch.equal(model(ids).logits, whole) and set(computed) == {0, 1, 2}


def test_an_edit_ends_with_its_context_even_after_an_error():
    model, ids = tiny().model, torch.tensor([[1, 7, 8]])
    before = model(ids).logits
    shape = r"the edit of block 1 gives shape \(1, 2, 16\): expected \(1, 3, 16\)"
    for layer, edit, error, said in (
        (1, lambda h_btd: h_btd / (1 // 0), ZeroDivisionError, "zero"),
        (1, lambda h_btd: h_btd[:, 1:], ValueError, shape),
        (3, lambda h_btd: h_btd, ValueError, "layer 3: expected an integer from 0 to 2"),
    ):
        with pytest.raises(error, match=said), llm.edited_block(model, layer, edit):
            model(ids)
    assert not any(block._forward_hooks for block in llm.residual_blocks(model))
    assert torch.equal(model(ids).logits, before)


def test_an_edit_keeps_tuples_and_dtype():
    class Block(torch.nn.Module):
        def forward(self, hidden):
            return hidden + 1, "kept"

    model = torch.nn.Module()
    model.config, model.blocks = GPT2Config(n_layer=2), torch.nn.ModuleList([Block(), Block()])
    with llm.edited_block(model, 0, lambda h_btd: 2 * h_btd.double()):
        edited, rest = model.blocks[0](torch.ones(1, 2, 3, dtype=torch.bfloat16))
        untouched, _ = model.blocks[1](torch.ones(1, 2, 3))
    assert edited.dtype == torch.bfloat16 and rest == "kept"
    assert (edited == 4).all() and (untouched == 2).all()


@pytest.mark.parametrize("architecture", SIZES)
def test_text_is_generated_under_an_edit_with_a_cache_as_without(architecture):
    lm, direction = tiny(architecture), torch.randn(16, generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    ids = torch.tensor([[1, 7, 8, 30]])
    with llm.edited_block(lm.model, 1, lambda h_btd: h_btd + 3 * direction):
        cached, whole = (lm.model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached, whole) and not torch.equal(cached, lm.model.generate(ids, **options))


def test_windows_are_spread_over_documents_and_smaller_choices_are_part_of_larger_ones():
    counts = enumerate((9, 2, 1, 5))
    windows = [window(10, i, start) for i, n in counts for start in range(0, 10 * n, 10)]
    windows.append(window(1, 2, 10))  # has no prediction
    choices = set()
    for seed in range(5):
        chosen = spread_windows(windows, 70, seed)
        assert {w.document for w in chosen[:4]} == {0, 1, 2, 3}
        assert {w.document for w in chosen[4:]} == {0, 1, 3}
        assert len(chosen) == len({(w.document, w.start) for w in chosen}) == 7
        again = spread_windows(windows, 49, seed)
        assert all(a is b for a, b in zip(again, chosen)) and len(again) == 4
        choices.add(tuple((w.document, w.start) for w in again))
    assert len(choices) > 1
    assert len(spread_windows(windows, 10**6, 0)) == 17
    with pytest.raises(ValueError, match="windows of 19 tokens come from 1 documents"):
        spread_windows(windows, 19, 0)


def test_noise_depends_on_window_and_level_alone():
    noise = window_noise(WINDOWS, 16, 0.3, seed=0)
    assert noise.shape == (35, 16)
    assert torch.equal(window_noise(WINDOWS[1:3], 16, 0.3, seed=0), noise[9:23])
    others = [window_noise(WINDOWS, 16, 0.3, seed=1), window_noise(WINDOWS, 16, 0.5, seed=0)]
    assert all((other != noise).double().mean() > 0.99 for other in others)
    assert not torch.equal(noise[:9], noise[9:18])
    assert not (noise[9:14] == noise[18:23]).any()  # two windows of one document
    assert window_noise([window(4000)], 16, 0.3, 0).std() == pytest.approx(1, abs=0.02)


def test_methods_see_standardised_noisy_activations():
    normaliser = Normaliser(torch.full((1, 16), 2.0), torch.full((1, 16), 4.0))
    h_nd, noise_nd = torch.full((3, 16), 10.0), torch.ones(3, 16)

    def method(x_nd, sigma):
        assert sigma == 0.25 and torch.allclose(x_nd, torch.tensor(0.75 * 2 + 0.25))
        return x_nd

    replaced = denoised(method, 0.25, noise_nd, normaliser)(h_nd)
    assert torch.allclose(replaced, torch.tensor(9.0))
    assert torch.allclose(reconstructed(lambda z_nd: 0 * z_nd, normaliser)(h_nd), torch.tensor(2.0))


def test_windows_and_activations_are_those_of_the_store(tmp_path):
    lm = tiny()
    draws = (np.random.default_rng(i).integers(60, 120, 40 + 7 * i) for i in range(6))
    texts = [Document(str(i), "".join(map(chr, drawn))) for i, drawn in enumerate(draws)]
    splits = ["train", "test", "train", "validation", "test", "train"]
    plan = plan_extraction(texts, splits, lm, 1, window=16)
    attributes = {"model": lm.identity, "corpus": "c", "window": plan.window}
    write_store(plan, lm, tmp_path / "a", attributes=attributes, progress=False)
    store = ActivationStore(tmp_path / "a")
    windows = stored_windows(store, "test")
    planned = [w for w in plan.windows if plan.documents[w.document].split == "test"]
    found, expected = (
        [(w.document, w.start, w.token_ids.tolist(), w.ends_document) for w in one]
        for one in (windows, planned)
    )
    assert found == expected and len(windows) == 4 + 5
    chosen = spread_windows(windows, 60, 0)
    read = SplicedModel(lm, 1, chosen, Normaliser.of(store)).h_nd
    assert torch.allclose(read, stored_activations(store, chosen), atol=1e-5)


def test_effects_are_sums_by_document(monkeypatch):
    """Documents 0, 1 and 4 have 8, 8 + 4 and 11 predictions."""

    def least_and_most(statistic, n):  # with a document left out: three are too few for a bootstrap
        values = statistic(1 - np.eye(n))
        return min(values), max(values)

    def of_ratios(above_d, below_d):
        return least_and_most(lambda w: (w @ above_d) / (w @ below_d), len(below_d))

    monkeypatch.setattr(lm_loss, "bootstrap_interval", least_and_most)
    monkeypatch.setattr(lm_loss, "ratio_interval", of_ratios)

    def outcome(loss, error=0.0):
        return Outcome(np.array(loss), np.full(4, error), np.full(4, 10.0))

    outcomes = {
        ("mean_ablation", None): outcome([12.0, 12, 12, 12], 10),
        ("a", 0.5): outcome([3.0, 2, 3, 3], 1),
        ("b", 0.5): outcome([5.0, 6, 5, 6], 4),
        ("a", 0.25): outcome([2.0, 2, 2, 2], 0.5),
        ("b", 0.25): outcome([3.0, 3, 3, 2], 1),
        ("c", 0.5): outcome([1.0, 3, 3, 2], 1),
    }
    effects = Effects(WINDOWS, outcome([2.0, 2, 2, 2]), outcomes)
    assert effects.documents.tolist() == [0, 1, 4] and effects.counts_d.tolist() == [8, 12, 11]
    assert effects.change_d["a", 0.5].tolist() == [1, 1, 1]
    assert effects.error_d["b", 0.5].tolist() == [4, 8, 4]
    assert effects.clean_loss()[0] == pytest.approx(8 / 31)
    row = effects.row(("b", 0.5))
    values = [row[key] for key in ("method", "sigma", "delta", "fvu", "recovered")]
    assert values == pytest.approx(["b", 0.5, 14 / 31, 0.4, 1 - 14 / 40])
    intervals = {"delta": "ci95", "fvu": "fvu_ci95", "recovered": "recovered_ci95"}
    for value, interval in intervals.items():
        assert row[interval][0] <= row[value] <= row[interval][1]
    found = effects.reduction("a", "b", [0.5])
    assert (found["reduction"], found["loss_reduction"]) == pytest.approx((1 - 3 / 14, 0.75))
    assert found["ci95"][0] < found["reduction"] < found["ci95"][1]
    assert found["verdict"] in ("above", "consistent with")
    both = effects.reduction("a", "b", [0.5, 0.25])
    expected = (1 - 3 / 17, 1 - (4 / 0.25 + 2 / 0.0625) / (16 / 0.25 + 4 / 0.0625))
    assert (both["reduction"], both["loss_reduction"]) == pytest.approx(expected)
    assert both["mean_reduction"] == pytest.approx(1 - (3 / 14 + 0) / 2)
    assert both["mean_ci95"][0] <= both["mean_reduction"] <= both["mean_ci95"][1]
    assert both["mean_verdict"] == verdict(*both["mean_ci95"])
    assert found["mean_reduction"] == found["reduction"]
    uncertain = effects.reduction("a", "c", [0.5])  # its changes by document: −1, 2, 0
    nothing = ("reduction", "mean_reduction", "mean_ci95")
    assert [uncertain[key] for key in nothing] == [None] * 3 and uncertain["loss_reduction"] == 0
    assert uncertain["verdict"] == uncertain["mean_verdict"] == "undetermined"
    part = Effects(WINDOWS[:3], outcome([2.0, 2, 2, 2]), outcomes)
    assert part.counts_d.tolist() == [8, 12]
    assert part.row(("b", 0.5))["delta"] == pytest.approx(10 / 20)
