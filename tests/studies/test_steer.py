"""Steered generation: what it must leave alone, what reaches later blocks and tokens, and repairs
against closed forms.
"""

import copy

import numpy as np
import pytest
import torch
from letters import SIZES, tiny
from test_meta_model import exact, gaussian, generator

from mmlib.activations import lm as llm
from mmlib.activations.generate import (
    GumbelNoise,
    continuations,
    log_likelihoods,
    shipped_settings_off,
)
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.average import MixtureAverage
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser, full_gaussian
from mmlib.denoisers.networks import MLPDenoiser
from mmlib.denoisers.residual import MixtureResidual
from mmlib_studies.steering import edits as steer
from mmlib_studies.steering.edits import Steering, norm_kept, posterior_mean, projected

NORMALISER = Normaliser(torch.linspace(-1, 1, 16)[None], torch.linspace(0.5, 2, 16)[None])
DIRECTION = torch.randn(16, generator=torch.Generator().manual_seed(1))
PROMPTS = torch.randint(4, 60, (5, 6), generator=torch.Generator().manual_seed(2))


def network():
    torch.manual_seed(3)
    origin = Origin(NORMALISER, "tiny@0", (1,))
    return MetaModel(MLPDenoiser(16, 32, 48, 2), "flow_velocity", origin)


REPAIRS = {
    "additive": steer.unrepaired,
    "norm": norm_kept(NORMALISER),
    "reconstruction": steer.reconstructed(lambda x_nd, sigma: 0.5 * x_nd),
    "posterior mean": posterior_mean(lambda x_nd, sigma: (1 - sigma) * x_nd, 0.5),
    "meta-model": projected(network(), 0.5, 4),
}


def plain_text(lm, seed=0, **how):
    return continuations(lm, PROMPTS, 1, tokens=8, seed=seed, **how)


def steered(lm, strength, repair, tokens=8):
    def edit(batch):
        return Steering(NORMALISER, DIRECTION, strength, repair)

    return continuations(lm, PROMPTS, 1, edit, tokens=tokens, seed=0)


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize("name", REPAIRS)
def test_strength_0_leaves_logits_and_text_bit_for_bit(architecture, name):
    lm = tiny(architecture)
    edit = Steering(NORMALISER, DIRECTION, 0.0, REPAIRS[name])
    with llm.edited_block(lm.model, 1, edit):
        same = lm.model(PROMPTS).logits
    assert torch.equal(same, lm.model(PROMPTS).logits)
    plain = plain_text(lm)
    assert torch.equal(steered(lm, 0.0, REPAIRS[name]), plain)
    assert not torch.equal(steered(lm, 5.0, REPAIRS[name]), plain)


def not_finite(z_nd, edited_nd, generator):
    return edited_nd / 0


def of_another_shape(z_nd, edited_nd, generator):
    return edited_nd[1:]


@pytest.mark.parametrize("wrong", [not_finite, of_another_shape])
def test_a_wrong_repair_is_refused_and_leaves_no_hook_and_settings_as_shipped(wrong):
    with pytest.raises(ValueError, match=r"expected finite values of shape \(2, 16\)"):
        Steering(NORMALISER, DIRECTION, 1.0, wrong).edited(torch.ones(2, 16))
    lm = tiny()
    before, shipped = lm.model(PROMPTS).logits, lm.model.generation_config
    with pytest.raises(ValueError, match="lower the strength, or mend the repair"):
        steered(lm, 1.0, wrong, tokens=3)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in lm.model.modules())
    assert lm.model.generation_config is shipped
    assert torch.equal(lm.model(PROMPTS).logits, before)


@pytest.mark.parametrize("architecture", SIZES)
def test_the_cache_holds_the_edited_stream(architecture):
    """Greedy text by `generate` with a cache is that of whole forward passes in which every
    position from the last of the prompt on is edited.
    """
    lm, strength = tiny(architecture), 4.0
    steering = Steering(NORMALISER, DIRECTION, strength)
    with shipped_settings_off(lm.model), llm.edited_block(lm.model, 1, steering):
        greedy = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0}
        cached = lm.model.generate(PROMPTS, attention_mask=torch.ones_like(PROMPTS), **greedy)
    ids, first = PROMPTS, PROMPTS.shape[1] - 1
    offset = strength * DIRECTION * NORMALISER.std_ld[0]

    def edited_from_the_last(h):
        return torch.cat([h[:, :first], h[:, first:] + offset], 1)

    for _ in range(10):
        with llm.edited_block(lm.model, 1, edited_from_the_last):
            ids = torch.cat([ids, lm.model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(cached, ids)


def test_the_same_draws_choose_tokens_under_every_edit():
    lm = tiny()
    plain = plain_text(lm)
    for repair in (REPAIRS["additive"], projected(network(), 1e-6, 2)):
        assert torch.equal(steered(lm, 1e-6, repair), plain)
    assert not torch.equal(plain_text(lm, seed=1), plain)
    assert torch.equal(plain_text(lm, batch=5), plain)
    assert plain.shape == (5, 8) and not (plain == lm.tokenizer.eos_token_id).any()


def test_batches_of_prompts_share_no_noise_and_the_first_keeps_the_seeds_own():
    edits = (Steering(NORMALISER, DIRECTION, 1.0, seed=3, batch=batch) for batch in (0, 1, 2, 1))
    first, second, third, again = (torch.randn(4, generator=edit.generator) for edit in edits)
    assert torch.equal(first, torch.randn(4, generator=generator(3)))
    assert torch.equal(second, again)
    assert not torch.isclose(torch.stack([first, third]), second).any()
    asked = []

    def edit(batch):
        asked.append(batch)
        return Steering(NORMALISER, DIRECTION, 1.0, batch=batch)

    continuations(tiny(), PROMPTS, 1, edit, tokens=2, seed=0, batch=2)
    assert asked == [0, 1, 2]


def test_sdedit_by_a_closed_form_denoiser_is_the_meta_models_own():
    model, z = network(), torch.randn(7, 16, generator=generator(8))
    ours, theirs = steer.projected_by(model, 0.4, 5), projected(model, 0.4, 5)
    assert torch.allclose(ours(z, z + 1, generator(2)), theirs(z, z + 1, generator(2)), atol=1e-5)
    point = torch.linspace(-1, 1, 16)  # a distribution of one point is where all are taken
    to_point = steer.projected_by(lambda x_nd, sigma: point.expand_as(x_nd), 0.5, 3)
    assert torch.allclose(to_point(z, z, generator(2)), point.expand_as(z), atol=1e-5)


PLAIN = ("In 1990, he was born at", "The king's half-brother came to", "A naïve term,", "A")
BROKEN = (
    *("It produces the ''asphalt'' of", "He wrote about , it was", "The  gap left by a"),
    *("the city of", "It was (", "The of the '", "Born in, , 1990"),
)


@pytest.mark.parametrize("opening", PLAIN + BROKEN)
def test_openings_that_markup_has_broken_are_refused(opening):
    assert bool(steer.PLAIN_OPENING.fullmatch(opening)) == (opening in PLAIN)


def test_gumbel_noise_samples_the_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf, -1.0])
    drawn = GumbelNoise(3, 0)(None, logits.expand(40_000, 5)).argmax(1)
    assert torch.bincount(drawn, minlength=5) / 40_000 == pytest.approx(logits.softmax(0), abs=0.01)
    rare = torch.full((150, 200_000), -40.0)  # together 1e-12 of the probability
    rare[:, :50] = 0
    assert (GumbelNoise(4)(None, rare).argmax(1) < 50).all()
    again, other = (
        GumbelNoise(3, batch)(None, logits.expand(40_000, 5)).argmax(1) for batch in (0, 1)
    )
    assert torch.equal(again, drawn) and not torch.equal(other, drawn)


@pytest.mark.parametrize("architecture", SIZES)
def test_log_likelihood_is_that_of_transformers_labels(architecture):
    lm = tiny(architecture)
    new = torch.randint(4, 60, (5, 3), generator=generator(4))
    for prompt, ids, value in zip(PROMPTS, new, log_likelihoods(lm, PROMPTS, new)):
        labels = torch.cat([torch.full_like(prompt, -100), ids])[None]
        expected = -lm.model(torch.cat([prompt, ids])[None], labels=labels).loss.item()
        assert value == pytest.approx(expected, rel=1e-5)


def test_plain_addition_adds_the_difference_of_raw_means():
    normaliser, h = NORMALISER, torch.randn(40, 16, generator=generator(5)) * 3
    positive = np.arange(40) < 15
    direction = steer.mean_difference(normaliser(h), positive)
    moved = Steering(normaliser, direction, 2.0).edited(h)
    assert torch.allclose(moved - h, 2 * (h[:15].mean(0) - h[15:].mean(0)), atol=1e-4)
    with pytest.raises(ValueError, match="40 of 40 texts are positive"):
        steer.mean_difference(h, np.ones(40))


def test_a_kept_norm_is_the_raw_one():
    normaliser = Normaliser(torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 1.0]]))
    h = torch.tensor([[3.0, 4.0], [0.0, 2.0]])  # z = (1, 5), (−½, 3)
    found = Steering(normaliser, torch.tensor([-1.5, 2.0]), 1.0, norm_kept(normaliser)).edited(h)
    # raw edit (−3, 2): (0, 6) of norm 5, (−3, 4) of norm 2
    assert torch.allclose(found, torch.tensor([[0.0, 5.0], [-1.2, 1.6]]))


def test_directions_find_a_planted_one_and_share_a_length():
    rng = np.random.default_rng(0)
    positive = np.arange(60) % 2 == 0
    z = torch.from_numpy(rng.normal(size=(60, 16))).float()
    z[positive, 3] += 4.0
    length = steer.mean_difference(z, positive).norm()
    probe = steer.probe_direction(z, positive, 0)
    decoder, latents = torch.eye(16), z.clamp(min=0)
    row, best, auc = steer.sae_direction(decoder, latents, z, positive, 0)
    assert best == 3 and auc > 0.98 and probe.argmax() == 3
    assert torch.allclose(torch.stack([probe.norm(), row.norm()]), length)
    three, facts = steer.three_directions(z, latents, positive, decoder, 0)
    assert torch.equal(three["probe"], probe) and torch.equal(three["sae_decoder"], row)
    assert (facts["texts"], facts["sae_latent"], facts["sae_auc"]) == (60, best, auc)
    assert facts["length_z"] == length.item() and facts["cosines"]["mean_difference"] > 0.999
    with pytest.raises(ValueError, match="length 0"):
        steer.as_long(torch.zeros(16), probe)


def test_a_latent_is_judged_on_texts_that_it_was_not_chosen_on():
    """Of a thousand latents without any meaning the best is about ½ where it was not chosen."""
    rng, positive = np.random.default_rng(1), np.arange(80) < 40
    latents = torch.from_numpy(rng.normal(size=(80, 1000))).float()
    z = torch.from_numpy(rng.normal(size=(80, 16))).float()
    decoder = torch.ones(1000, 16)
    aucs = [steer.sae_direction(decoder, latents, z, positive, seed)[2] for seed in range(20)]
    assert np.mean(aucs) == pytest.approx(0.5, abs=0.06)
    with pytest.raises(ValueError, match="1 texts are positive and 79 are not"):
        steer.sae_direction(decoder, latents, z, np.arange(80) < 1, 0)


def test_a_one_step_repair_is_the_closed_form_on_the_noised_edit_and_tends_to_the_identity():
    z, edited = torch.zeros(3, 3), torch.ones(3, 3)
    noise = torch.randn(3, 3, generator=generator(6))
    expected = gaussian()(0.6 * edited + 0.4 * noise, 0.4)
    assert torch.equal(posterior_mean(gaussian(), 0.4)(z, edited, generator(6)), expected)
    z = gaussian().sample(500, generator(9))
    assert torch.allclose(posterior_mean(gaussian(), 1e-4)(z, z, generator()), z, atol=2e-3)


@pytest.mark.parametrize("objective", ["flow_velocity", "ddpm_epsilon"])
def test_projection_moves_real_activations_less_from_less_noise(objective):
    """The meta-model is the exact one of a Gaussian, and the activations are drawn from it."""
    model, z = exact(objective), gaussian().sample(2000, generator(7))
    found = {s: projected(model, s, 20)(z, z, generator(8)) for s in (0.01, 0.1, 0.3, 0.6, 0.9)}
    moves = [(z_nd - z).square().mean().sqrt().item() for z_nd in found.values()]
    assert moves[0] < 0.03 and moves == sorted(moves)
    again = model.project(z, sigma=0.3, steps=20, generator=generator(8))
    assert torch.equal(found[0.3], again)


def test_a_copy_in_bfloat16_projects_alike_and_leaves_the_original():
    model, z = network(), torch.randn(50, 16, generator=generator(12))
    before, full = copy.deepcopy(model.network.state_dict()), projected(model, 0.5, 5)
    half = projected(steer.with_bf16_weights(model), 0.5, 5, bf16=True)
    full, half = (repair(z, z, generator(13)) for repair in (full, half))
    assert 0 < (half - full).norm() < 0.02 * (full - z).norm() and half.dtype == torch.float32
    torch.testing.assert_close(dict(model.network.state_dict()), dict(before), rtol=0, atol=0)


def test_a_copy_in_bfloat16_shares_the_mixtures_below_a_network():
    parts = [
        full_gaussian(torch.full((16,), m), torch.eye(16), torch.ones(16)) for m in (-1.0, 1.0)
    ]
    average = MixtureAverage(tuple(GaussianMixtureDenoiser.of(torch.zeros(1), [p]) for p in parts))
    network = MixtureResidual(16, 32, 48, 2).over(average)
    copied = steer.with_bf16_weights(
        MetaModel(network, "flow_velocity", Origin(NORMALISER, "tiny@0", (1,)))
    ).network
    assert copied.average is average and copied.in_proj.weight.dtype == torch.bfloat16
    assert network.in_proj.weight.dtype == torch.float32
    assert all(one is other for one, other in zip(copied.buffers(), network.buffers(), strict=True))


def test_the_geometry_of_a_repair_by_hand():
    z, edited = torch.zeros(2, 2), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    found = steer.geometry(z, edited, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    assert found["repair_over_edit"] == pytest.approx([2**0.5 / 2, 0.5])
    assert found["cosine"] == pytest.approx([0.5**0.5, 1.0])
    assert found["along"] == pytest.approx([0.5, 0.5])


def test_the_diffusion_loss_of_a_gaussian_judge_is_the_closed_form():
    z = gaussian().sample(20_000, generator(10))
    losses = steer.diffusion_losses(gaussian(), z, [0.3, 0.7], seed=0)
    power = ((z - gaussian().mean_d) @ gaussian().basis_dd).double().square().mean(0)
    exact_loss = sum(gaussian().expected_mse(sigma, power) / sigma**2 for sigma in (0.3, 0.7)) / 2
    assert losses.shape == (20_000,) and losses.mean() == pytest.approx(exact_loss, rel=0.02)


def test_places_are_those_where_edits_apply():
    lm = tiny()
    new = torch.randint(4, 60, (5, 7), generator=generator(11))
    seen = []
    with llm.edited_block(lm.model, 1, lambda h: seen.append(h) or h):
        lm.model(torch.cat([PROMPTS, new], 1))
    expected = seen[0][:, [5, 8, 11]].flatten(0, 1)
    assert torch.allclose(steer.edited_places(lm, 1, PROMPTS, new, 3), expected, atol=1e-6)
