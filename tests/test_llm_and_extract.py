"""Residual blocks of the common architectures, and extraction on tiny random-weight models."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from mmlib import llm
from mmlib.corpus import Document
from mmlib.extract import cut_windows, extract, plan_extraction
from mmlib.meta_model import MetaModel
from mmlib.presets import MLPSize, Recipe, Training
from mmlib.recipes import new_model
from mmlib.store import ActivationStore, StoreError, multi_layer_batches
from mmlib.train import train

TINY = {
    "llama": dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2),
    "gemma3_text": dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8),
    "qwen2": dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2),
    "gpt2": dict(n_embd=16, n_layer=3, n_head=2),
    "gpt_neox": dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2),
    "opt": dict(hidden_size=16, ffn_dim=32, num_hidden_layers=3, num_attention_heads=2, word_embed_proj_dim=16),
}


def tiny(architecture):
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=64, **TINY[architecture])
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("architecture", TINY)
def test_blocks_are_found_and_their_output_is_the_next_hidden_state(architecture):
    model, ids = tiny(architecture), torch.randint(4, 60, (2, 9))
    assert len(llm.residual_blocks(model)) == 3
    hidden = model(ids, output_hidden_states=True).hidden_states
    read = llm.read_residual_stream(model, [0, 1], ids)
    assert torch.equal(read[0], hidden[1]) and torch.equal(read[1], hidden[2])


def test_later_blocks_never_run_and_hooks_are_removed_even_after_an_error():
    model = tiny("llama")
    ran = []
    model.model.layers[2].register_forward_hook(lambda *_: ran.append(2))
    llm.read_residual_stream(model, [1], torch.ones(1, 3, dtype=torch.long))
    assert not ran
    with pytest.raises(IndexError):
        llm.read_residual_stream(model, [1], torch.full((1, 3), 10**6))
    assert not any(block._forward_hooks for block in llm.residual_blocks(model)[:2])
    model(torch.ones(1, 3, dtype=torch.long))
    assert ran == [2]


@pytest.mark.parametrize("layer", [99, 18, -1, 2.0, True])
def test_impossible_layer_lists_what_is_allowed(layer):
    with pytest.raises(ValueError, match="18 blocks, expected an integer from 0 to 17"):
        llm.resolve_layer(layer, 18)


def test_default_layer_is_the_middle_block():
    assert llm.resolve_layer(None, 18) == 8 and llm.resolve_layer(0, 18) == 0


def test_unknown_model_says_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match="no causal language model 'nobody/nothing'.*gemma3-270m.*local folder.*Hub"):
        llm.load_language_model("nobody/nothing", cache=tmp_path)
    with pytest.raises(ValueError, match="no causal language model"):
        llm.count_blocks(str(tmp_path), tmp_path)


def test_float16_is_refused(tmp_path):
    with pytest.raises(ValueError, match="overflow float16"):
        llm.load_language_model("gpt2", dtype="float16", cache=tmp_path)


def test_ambiguous_architecture_is_refused():
    model = torch.nn.Module()
    model.config = GPT2Config(n_layer=2)
    model.a, model.b = (torch.nn.ModuleList([torch.nn.Identity()] * 2) for _ in range(2))
    with pytest.raises(ValueError, match=r"expected one ModuleList of 2 blocks, found \['a', 'b'\]"):
        llm.residual_blocks(model)


class Letters:
    """A tokenizer of letters; 1 opens a window."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, texts, **options):
        return {"input_ids": [[4 + ord(c) % 50 for c in text] for text in texts]}


@pytest.fixture
def lm():
    return llm.LanguageModel(tiny("llama"), Letters(), "tiny@0")


DOCUMENTS = [Document("a", "a test document of some length" * 3), Document("b", "short"), Document("c", "and another one, " * 4)]
SPLITS = ["test", "train", "validation"]


def test_windows_cover_each_document_and_never_cross_it():
    windows = cut_windows([list(range(10)), [7], list(range(6))], window=4)
    assert [(w.document, w.start, len(w.token_ids)) for w in windows] == [
        (0, 0, 3), (0, 3, 3), (0, 6, 3), (0, 9, 1), (1, 0, 1), (2, 0, 3), (2, 3, 3)]


def test_stored_rows_are_what_the_model_computes_for_each_window_alone(lm, tmp_path):
    plan = plan_extraction(DOCUMENTS, SPLITS, lm, 1, window=16)
    extract(plan, lm, tmp_path / "a.h5", attributes={"model": lm.identity, "corpus": "c"}, batch=5)
    store = ActivationStore(tmp_path / "a.h5")
    assert [row.split for row in plan.documents] == ["train", "validation", "test"] and store.titles.tolist() == ["b", "c", "a"]
    row = 0
    for window in plan.windows:
        n = len(window.token_ids)
        alone = lm.model(torch.tensor([[1, *window.token_ids]]), output_hidden_states=True).hidden_states[2][0, 1:]
        assert torch.allclose(store.read(range(row, row + n)), alone, atol=1e-5)
        assert store.column("position", range(row, row + n)).tolist() == list(range(window.start, window.start + n))
        assert store.column("token_ids", range(row, row + n)).tolist() == window.token_ids
        row += n
    assert row == store.n


def test_several_layers_are_stored_by_one_pass_and_trained_on_together(lm, tmp_path):
    """From text to one meta-model of two layers: the rows of each layer are those of an extraction of it alone."""
    extract(plan_extraction(DOCUMENTS, SPLITS, lm, [0, 2], window=16), lm, tmp_path / "both.h5", attributes={"model": "tiny@1", "corpus": "toy@1"})
    extract(plan_extraction(DOCUMENTS, SPLITS, lm, 2, window=16), lm, tmp_path / "one.h5", attributes={"model": "tiny@1", "corpus": "toy@1"})
    stores = [ActivationStore(tmp_path / "both.h5", layer) for layer in (0, 2)]
    alone = ActivationStore(tmp_path / "one.h5")
    assert torch.equal(stores[1].read(range(alone.n)), alone.read(range(alone.n)))
    training = Training("flow_velocity", steps=4, batch=4, lr=1e-3, bf16=False, log_every=2, validate_every=2, save_every=2)
    model = new_model(Recipe(MLPSize(1, 16, 32), training), stores, seed=0)
    validation = model.normaliser(torch.stack([store.read(store.rows("validation")) for store in stores]))
    train(model, training, lambda start: multi_layer_batches(stores, "train", 4, 0, start=start), validation, tmp_path / "model", seed=0)
    MetaModel.from_pretrained(tmp_path / "model").at(2).check_store(alone)


def test_full_disk_is_refused_before_any_work(lm, tmp_path, monkeypatch):
    plan = plan_extraction(DOCUMENTS, SPLITS, lm, 1, window=16)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=plan.bytes - 1))
    with pytest.raises(OSError, match="extraction needs .* GB .* are free"):
        extract(plan, lm, tmp_path / "a.h5", attributes={})
    assert not list(tmp_path.iterdir())


def test_an_interrupted_extraction_leaves_no_store(lm, tmp_path):
    plan = plan_extraction(DOCUMENTS, SPLITS, lm, 1, window=16)
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(StoreError, match="NaN or infinity in layer 1 at document 'b', position 0"):
        extract(plan, lm, tmp_path / "a.h5", attributes={})
    assert not list(tmp_path.iterdir())


def test_impossible_layer_is_refused_by_the_plan(lm):
    with pytest.raises(ValueError, match="layer 99: this model has 3 blocks"):
        plan_extraction(DOCUMENTS, SPLITS, lm, 99, window=16)
