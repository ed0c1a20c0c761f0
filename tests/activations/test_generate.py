"""Seeded text: prompts of any lengths, two sources of draws, nothing of what a model ships for
chatting.
"""

import numpy as np
import pytest
import torch
from letters import SIZES, tiny

from mmlib.activations.generate import GumbelNoise, continuations, generate

PROMPTS = [[7, 8, 30], [9], [], [7, 8, 30]]


@pytest.mark.parametrize("architecture", SIZES)
def test_padding_in_front_of_a_short_prompt_changes_nothing(architecture):
    """Its noise is the first row's, whatever stands in the others."""
    lm = tiny(architecture)
    others = ([[9], [9]], [[9], [7, 8, 30, 11]])
    alone, padded = (generate(lm, prompts, 10, GumbelNoise(3))[0] for prompts in others)
    assert alone == padded and len(alone) == 10


def test_equally_long_prompts_are_continued_as_continuations_are():
    """Batch by batch, each with draws of its own: the same prompts in another batch go on
    otherwise.
    """
    lm, ids = tiny(), torch.tensor([[7, 8, 30], [9, 9, 9]] * 2)
    opened = torch.cat([torch.ones(4, 1, dtype=int), ids], 1)
    found = continuations(lm, opened, 1, tokens=6, seed=4, batch=2).tolist()
    batches = (generate(lm, ids[:2].tolist(), 6, GumbelNoise(4, i)) for i in range(2))
    assert found == sum(batches, []) and found[:2] != found[2:]


def test_text_follows_the_softmax_behind_its_prompt():
    lm, n = tiny(), 4000
    drawn = np.array(generate(lm, [[7, 8, 30]] * n, 1, draws=0, may_end=False))[:, 0]
    logits = lm.model(torch.tensor([[1, 7, 8, 30]])).logits[0, -1]
    logits[lm.tokenizer.eos_token_id] = -torch.inf
    shares = np.bincount(drawn, minlength=64) / n
    assert np.abs(shares - logits.softmax(0).detach().numpy()).max() < 0.03


@pytest.mark.parametrize("draws", [5, GumbelNoise])
def test_draws_are_seeded_and_settings_and_generators_are_afterwards_as_before(draws):
    lm = tiny()
    lm.model.generation_config.update(do_sample=True, top_k=1, suppress_tokens=[7, 8])
    shipped, before = lm.model.generation_config, torch.random.get_rng_state()

    def drawn(seed):
        return generate(lm, PROMPTS, 12, draws(seed) if draws is GumbelNoise else seed)

    first = drawn(5)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert drawn(5) == first and drawn(6) != first and first[0] != first[3]
    assert lm.model.generation_config is shipped
    assert {len(row) for row in first} == {12} and not any(2 in row for row in first)


def test_a_text_that_may_end_does_so_before_eos():
    lm = tiny()
    rows = generate(lm, [[]] * 200, 12, draws=0, may_end=True)
    assert max(map(len, rows)) == 12 and min(map(len, rows)) < 12
    assert not any(lm.tokenizer.eos_token_id in row for row in rows)
