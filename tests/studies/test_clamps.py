"""Reading one token again under changes gives what reading the whole text gives; margins and
effects by hand.
"""

import numpy as np
import pytest
import torch
from letters import SIZES, tiny, window

from mmlib.activations import lm as llm
from mmlib_studies.probing import clamping as clamps
from mmlib_studies.probing import units
from mmlib_studies.probing.clamping import LastToken

IDS = [7, 30, 12, 5, 41, 22]


def last_state(lm, edit=lambda h: h):
    with torch.inference_mode(), llm.edited_block(lm.model, 1, edit):
        return lm.model.base_model(torch.tensor([[1, *IDS]])).last_hidden_state[0, -1]


def last_output(lm):
    return llm.read_residual_stream(lm.model, [1], torch.tensor([[1, *IDS]]))[1][0, -1]


@pytest.mark.parametrize("architecture", SIZES)
def test_changes_at_the_last_token_are_those_of_a_whole_reading(architecture):
    lm = tiny(architecture)
    text = LastToken(lm, 1, IDS)
    changes = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    changes[1] = 0
    found = text.changed(changes)
    for change, state in zip(changes, found):
        whole = last_state(lm, lambda h: torch.cat([h[:, :-1], h[:, -1:] + change], 1))
        assert torch.allclose(state, whole, atol=1e-4)
    assert torch.allclose(found[1], last_state(lm), atol=1e-4)
    assert not torch.allclose(found[0], found[1], atol=1e-2)
    assert torch.equal(found, text.changed(changes))  # the cache is as it was
    assert torch.allclose(text.activation()[0], last_output(lm), atol=1e-5)
    assert torch.equal(text.changed(torch.zeros(1, 16)), text._read(1))  # bit for bit


def test_logits_that_are_more_than_a_product_are_refused():
    lm = tiny()
    assert clamps.unembedding(lm) is lm.model.get_output_embeddings().weight
    lm.model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping: expected a matrix alone"):
        clamps.unembedding(lm)
    lm.model.config.final_logit_softcapping = None
    lm.model.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="with a bias"):
        clamps.unembedding(lm)
    expected = "LlamaForCausalLM makes its logits with a bias: expected a matrix alone"
    assert clamps.obstacle(lm, 1) == expected
    assert clamps.obstacle(tiny(), 1) is None


@pytest.mark.parametrize("architecture", SIZES)
def test_clamped_neurons_are_those_of_a_whole_reading(architecture):
    lm = tiny(architecture)
    text, module = LastToken(lm, 1, IDS), units.mlp_output(lm.model, 1)
    found = text.neurons_clamped([3, 20], [5.0, -4.0])
    for unit, value, output in zip((3, 20), (5.0, -4.0), found):

        def put(module, inputs):
            inputs[0][0, -1, unit] = value

        handle = module.register_forward_pre_hook(put)
        whole = last_output(lm)
        handle.remove()
        assert torch.allclose(output, whole, atol=1e-4)
    assert not module._forward_pre_hooks
    assert not torch.allclose(found[0], text.activation()[0], atol=1e-2)


def test_last_states_are_those_of_each_window_alone():
    lm, windows = tiny(), [window(9), window(5, 1), window(12, 4)]
    positions = [np.array([0, 8]), np.array([4]), np.array([3, 11])]
    found = clamps.last_states(lm, windows, positions, batch_tokens=24)
    alone = []
    for one, places in zip(windows, positions):
        with torch.inference_mode():
            read = lm.model.base_model(torch.tensor([[1, *one.token_ids]]))
        alone.append(read.last_hidden_state[0, 1 + places])
    assert torch.allclose(found, torch.cat(alone), atol=1e-4)


def test_the_margin_is_the_difference_of_mean_log_probabilities_of_the_signature():
    lm, states = tiny(), torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    label = np.arange(50) % 5 == 0
    direction, rising, falling = clamps.signature(lm, states, label, count=3)
    with torch.inference_mode():
        log_probability = lm.model.get_output_embeddings()(states).log_softmax(1)
    probability = log_probability.exp().numpy()
    order = np.argsort(probability[label].mean(0) - probability[~label].mean(0))
    assert set(rising) == set(order[-3:]) and set(falling) == set(order[:3])
    expected = log_probability[:, rising].mean(1) - log_probability[:, falling].mean(1)
    assert torch.allclose(states @ direction, expected, atol=1e-4)


def test_scaled_changes_have_one_norm_and_nothing_comes_of_nothing():
    found = clamps.scaled(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.5], [1e-7, 0.0]]), 2.0)
    assert found.numpy() == pytest.approx(np.array([[1.2, 1.6], [0, 0], [0, 2], [0, 0]]))


def test_effects_are_a_ratio_of_sums():
    found = clamps.effect_over_tasks([1.0, 2, 3, 0, 4, 2], [2.0, 4, 6, 2, 8, 1])
    assert found["mean_ratio"] == pytest.approx(np.mean([0.5, 0.5, 0.5, 0, 0.5, 2]))
    assert found["mean_ratio_ci95"][0] < found["mean_ratio"] < found["mean_ratio_ci95"][1]
    assert found["effect"] == pytest.approx(12 / 23)
    assert found["ci95"][0] < 12 / 23 < found["ci95"][1]
    assert found["tasks"] == 6
    alike = clamps.effect_over_tasks(np.arange(1, 8) / 2, np.arange(1, 8))
    assert alike["ci95"] == pytest.approx([0.5, 0.5])


def test_controls_take_turns():
    turns = clamps.taking_turns(10, 4, 25)
    assert turns.shape == (10, 25) and (turns.sum(0) == 4).all() and (turns.sum(1) == 10).all()
    assert clamps.taking_turns(3, 3, 2).all()
    with pytest.raises(ValueError, match="10 controls, 4 at each of 2 examples"):
        clamps.taking_turns(10, 4, 2)
