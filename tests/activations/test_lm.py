"""Residual blocks of the common architectures, and the loading of language models."""

import pytest
import torch
from letters import ARCHITECTURES, tiny
from transformers import GPT2Config

from mmlib.activations import lm as llm
from mmlib.activations import pretrained


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_found_and_their_output_is_the_next_hidden_state(architecture):
    model, ids = tiny(architecture).model, torch.randint(4, 60, (2, 9))
    assert len(llm.residual_blocks(model)) == 3
    hidden = model(ids, output_hidden_states=True, use_cache=False).hidden_states
    read = llm.read_residual_stream(model, [0, 1], ids)
    assert torch.equal(read[0], hidden[1]) and torch.equal(read[1], hidden[2])


def test_later_blocks_never_run_and_hooks_are_removed_even_after_an_error():
    model, ran = tiny().model, []
    model.model.layers[2].register_forward_hook(lambda *_: ran.append(2))
    llm.read_residual_stream(model, [1], torch.ones(1, 3, dtype=torch.long))
    assert not ran
    with pytest.raises(IndexError):
        llm.read_residual_stream(model, [1], torch.full((1, 3), 10**6))
    assert not any(block._forward_hooks for block in llm.residual_blocks(model)[:2])
    model(torch.ones(1, 3, dtype=torch.long))
    assert ran == [2]


@torch.inference_mode()
def test_a_forward_pass_is_resumed_at_a_block_and_the_model_is_afterwards_as_before():
    model, ids = tiny("gptj").model, torch.randint(4, 60, (2, 9))
    clean, others, ran = model(ids).logits, model(ids.flip(1)).logits, []
    output = llm.read_blocks(model, [1], ids)[1]
    model.transformer.h[0].mlp.register_forward_hook(lambda *_: ran.append(0))
    with llm.resumed_at(model, 1, output):
        assert torch.allclose(model(ids).logits, clean, atol=1e-5) and not ran
    assert torch.equal(model(ids.flip(1)).logits, others) and ran


@pytest.mark.parametrize("layer", [99, 18, -1, 2.0, True])
def test_impossible_layer_lists_what_is_allowed(layer):
    assert llm.resolve_layer(None, 18) == 8 and llm.resolve_layer(0, 18) == 0
    with pytest.raises(ValueError, match="expected an integer from 0 to 17"):
        llm.resolve_layer(layer, 18)


UNKNOWN = "no causal language model '{}'.*gemma3-270m.*local folder.*Hub"


def test_a_model_that_cannot_be_loaded_says_what_is_expected(tmp_path):
    ambiguous = torch.nn.Module()
    ambiguous.config = GPT2Config(n_layer=2)
    for name in "ab":
        setattr(ambiguous, name, torch.nn.ModuleList([torch.nn.Identity()] * 2))
    dtypes = "'float8' is not supported: expected bfloat16, float32, float16"
    for load, message in (
        (lambda: llm.load_language_model("nobody/nothing"), UNKNOWN.format("nobody/nothing")),
        (lambda: llm.count_blocks(str(tmp_path), tmp_path), UNKNOWN.format(tmp_path)),
        (lambda: llm.load_language_model("gpt2", dtype="float8"), dtypes),
        (lambda: llm.residual_blocks(ambiguous), r"one ModuleList of 2 blocks, found \['a', 'b'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            load()


def test_a_tokenizer_that_was_converted_wrongly_is_refused():
    """As transformers 5.17 converts the embedded one: letters in place of words."""
    pretrained._require_known_tokens(lambda text: {"input_ids": list(pretrained.KNOWN_IDS)})
    with pytest.raises(
        ValueError,
        match=r"transformers \d.* cuts 'The Eiffel.* into 42 tokens, .* into 10: convert it with the version in requirements.txt",
    ):
        pretrained._require_known_tokens(
            lambda text: {"input_ids": [ord(letter) for letter in text]}
        )


def test_buffers_are_part_of_the_digest_of_weights():
    module = torch.nn.BatchNorm1d(3)
    before = pretrained.weights_digest(module)
    module.running_mean += 1
    assert pretrained.weights_digest(module) != before
