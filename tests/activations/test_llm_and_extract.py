"""Residual blocks of the common architectures, and the loading of language models."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from mmlib.activations import lm as llm

TINY = {
    "llama": dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    ),
    "gemma3_text": dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    ),
    "qwen2": dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    ),
    "gpt2": dict(n_embd=16, n_layer=3, n_head=2),
    "gpt_neox": dict(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2
    ),
    "opt": dict(
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        word_embed_proj_dim=16,
    ),
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
    with pytest.raises(
        ValueError,
        match="no causal language model 'nobody/nothing'.*gemma3-270m.*local folder.*Hub",
    ):
        llm.load_language_model("nobody/nothing", cache=tmp_path)
    with pytest.raises(ValueError, match="no causal language model"):
        llm.count_blocks(str(tmp_path), tmp_path)


def test_a_tokenizer_that_was_converted_wrongly_is_refused():
    """As transformers 5.17 converts the embedded one: letters in place of words."""
    llm._require_known_tokens(lambda text: {"input_ids": list(llm.KNOWN_IDS)})
    with pytest.raises(
        ValueError,
        match=r"transformers \d.* cuts 'The Eiffel.* into 42 tokens, .* into 10: convert it with the version in requirements.txt",
    ):
        llm._require_known_tokens(lambda text: {"input_ids": [ord(letter) for letter in text]})


def test_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="dtype 'float8' is not supported: expected bfloat16, float32, float16"
    ):
        llm.load_language_model("gpt2", dtype="float8", cache=tmp_path)


def test_ambiguous_architecture_is_refused():
    model = torch.nn.Module()
    model.config = GPT2Config(n_layer=2)
    model.a, model.b = (torch.nn.ModuleList([torch.nn.Identity()] * 2) for _ in range(2))
    with pytest.raises(
        ValueError, match=r"expected one ModuleList of 2 blocks, found \['a', 'b'\]"
    ):
        llm.residual_blocks(model)
