"""Typicality: areas under ROC curves against closed forms and scikit-learn, denoising losses by
hand, shifts that do what they say.
"""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from letters import tiny
from sklearn.metrics import roc_auc_score

from mmlib.activations import lm as llm
from mmlib.activations.corpora import Document
from mmlib.activations.extract import describe, plan_extraction, write_store
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser, Tokens
from mmlib.activations.windows import Window
from mmlib.denoisers.gaussian import GaussianDenoiser, standard_normal
from mmlib.denoisers.mixture import GaussianMixtureDenoiser
from mmlib.files import CheckpointError
from mmlib_studies.ood import scores as score
from mmlib_studies.ood import sets as shifts
from mmlib_studies.ood.scores import Separation, token_noise
from mmlib_studies.ood.sizes import TypicalitySize

PLAIN = Normaliser(torch.zeros(1, 16), torch.ones(1, 16))


def gaussian(d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=generator))
    return GaussianDenoiser(torch.randn(d, generator=generator), basis, torch.logspace(-1, 1, d), 0)


def drawn_of(model, n, *seeds):
    return [model.sample(n, torch.Generator().manual_seed(seed)) for seed in seeds]


def tokens_of(z_nd):
    return Tokens(z_nd, np.zeros(len(z_nd), np.int64), np.arange(len(z_nd)))


def area(reference, shifted):
    documents = np.arange(len(reference)) % 7, np.arange(len(shifted)) % 5
    return Separation.of(reference, documents[0], shifted, documents[1]).auroc(np.ones(12))


def draws(n, seed):
    return np.random.default_rng(seed).standard_normal(n)


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.5, 2.0])
def test_the_area_of_a_shifted_normal_is_its_closed_form(shift):
    """Φ(δ/√2); the standard error of 4,000 pairs is at most 0.0065."""
    expected = scipy.stats.norm.cdf(shift / math.sqrt(2))
    assert area(draws(4000, 0), draws(4000, 1) + shift) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("scale, shift", [(0.8, 0), (1.2, 0), (1, 1.5)])
def test_mahalanobis_against_another_gaussian_is_a_noncentral_integral(scale, shift):
    """P(c² χ²_d(δ²) > χ²_d), the shift in standard deviations along the widest axis; the score
    itself is a χ² over d.
    """
    model = gaussian(6)
    z_nd, other_nd = drawn_of(model, 4000, 1, 2)
    scores = score.mahalanobis(model, z_nd)
    assert scipy.stats.kstest(6 * scores, scipy.stats.chi2(6).cdf).pvalue > 0.01
    moved_d = shift * model.eigenvalues_d[-1].sqrt() * model.basis_dd[:, -1]
    moved_nd = model.mean_d + scale * (other_nd - model.mean_d) + moved_d
    known, other = scipy.stats.chi2(6), scipy.stats.ncx2(6, shift**2)
    expected, _ = scipy.integrate.quad(lambda x: known.pdf(x) * other.sf(x / scale**2), 0, 60)
    assert abs(expected - 0.5) > 0.05
    assert area(scores, score.mahalanobis(model, moved_nd)) == pytest.approx(expected, abs=0.02)


def test_areas_are_scikit_learns_with_documents_as_weights():
    rng = np.random.default_rng(0)
    reference, shifted = rng.integers(0, 9, 40) / 1, rng.integers(2, 11, 50) / 1  # with ties
    of_reference, of_shifted = rng.integers(0, 6, 40), rng.integers(0, 5, 50)
    weights = rng.integers(0, 3, (4, 11)).astype(float)
    weights[:, [0, 6]] = 1
    truth, scores = np.repeat([0, 1], [40, 50]), np.concatenate([reference, shifted])
    for together, first in ((False, 6), (True, 0)):  # the place of a shifted document's weight
        found = Separation.of(reference, of_reference, shifted, of_shifted, together)
        expected = [
            roc_auc_score(
                truth, scores, sample_weight=[*row[of_reference], *row[first:][of_shifted]]
            )
            for row in weights
        ]
        assert found.groups == ((6,) if together else (6, 5))
        assert found.auroc(weights[:, : sum(found.groups)]) == pytest.approx(expected)


def test_documents_of_one_set_alone_are_weighed_where_they_are():
    """Reference documents 3, 8 and 9, shifted ones 8 and 9: pairs by hand."""
    given = ([1.0, 2, 3], [3, 8, 9], [2.0, 2.5], [9, 8])
    found = Separation.of(*map(np.array, given), same_documents=True)
    assert found.wins_ab.tolist() == [[0, 1, 1], [0, 1, 0.5], [0, 0, 0]]
    assert found.sizes_b.tolist() == [0, 1, 1]
    assert found.auroc(np.ones(3)) == 3.5 / 6
    assert found.auroc(np.array([0.0, 2, 1])) == pytest.approx((2 * 2 * 1 + 2 * 0.5) / 9)


def test_intervals_point_the_right_way_and_cover():
    """Twelve and fifteen documents, each with an effect of its own: 95 % intervals hold the truth
    about that often.
    """
    effect, shift, truth = 0.5, 1.0, scipy.stats.norm.cdf(1.0 / math.sqrt(2 * (1 + 0.5**2)))
    rng, covered, trials = np.random.default_rng(0), 0, 150
    documents, others = np.repeat(np.arange(12), 10), np.repeat(np.arange(15), 10)
    for _ in range(trials):
        reference = rng.standard_normal(120) + effect * rng.standard_normal(12)[documents]
        shifted = rng.standard_normal(150) + effect * rng.standard_normal(15)[others] + shift
        row = Separation.of(reference, documents, shifted, others).row()
        assert row["ci95"][0] < row["auroc"] < row["ci95"][1] and row["ci95"][1] > 0.5
        covered += row["ci95"][0] <= truth <= row["ci95"][1]
    assert 0.90 < covered / trials <= 0.99
    worse = Separation.of(reference, documents, -shifted, others)
    assert worse.row()["ci95"][1] < 0.5
    better = Separation.of(reference, documents, shifted, others)
    assert score.difference(better, worse)["ci95"][0] > 0


def test_sets_told_apart_wholly_have_an_area_of_one_and_no_width():
    row = Separation.of(np.zeros(6), np.arange(6), np.ones(6), np.arange(6)).row()
    assert row == {"auroc": 1.0, "ci95": [1.0, 1.0]}
    with pytest.raises(ValueError, match="4 documents: an interval needs at least 5"):
        Separation.of(np.zeros(6), np.arange(6), np.ones(4), np.arange(4)).row()


def test_noise_is_a_function_of_seed_and_token():
    z_nd = torch.zeros(4, 8)
    tokens = Tokens(z_nd, np.array([0, 0, 1, 5]), np.array([0, 1, 0, 7]))
    noise_nd = token_noise(tokens, 0.3, 0, 1)
    assert torch.equal(token_noise(tokens[np.array([3, 1])], 0.3, 0, 1), noise_nd[[3, 1]])
    assert len({tuple(row.tolist()) for row in noise_nd}) == 4
    for other in ((0.3, 1, 1), (0.3, 0, 2), (0.4, 0, 1)):
        assert not (token_noise(tokens, *other) == noise_nd).any()
    many_nd = token_noise(tokens_of(torch.zeros(500, 40)), 0.5, 0, 0)
    assert abs(many_nd.mean()) < 0.02 and many_nd.std() == pytest.approx(1, abs=0.02)


def test_denoising_loss_of_the_mean_model_by_hand():
    z_nd = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    tokens, sigmas = tokens_of(z_nd), (0.25, 0.5)
    methods = {"mean": standard_normal(8), "noisy": lambda x_nd, sigma: x_nd}
    found = score.denoising_losses(methods, tokens, sigmas, 2, seed=3)
    for j, sigma in enumerate(sigmas):
        gain = (1 - sigma) / ((1 - sigma) ** 2 + sigma**2)
        by_hand, untouched = np.zeros(5), np.zeros(5)
        for draw in (0, 1):
            noise_nd = token_noise(tokens, sigma, draw, 3)
            estimate_nd = gain * ((1 - sigma) * z_nd + sigma * noise_nd)
            by_hand += ((z_nd - estimate_nd) / sigma).square().mean(1).numpy() / 2
            # x itself has the velocity's own square
            untouched += (z_nd - noise_nd).square().mean(1).numpy() / 2
        assert found["mean"][:, j] == pytest.approx(by_hand, rel=1e-5)
        assert found["noisy"][:, j] == pytest.approx(untouched, rel=1e-4)
    alone = score.denoising_losses(methods, tokens[np.array([4])], sigmas, 2, seed=3)
    assert alone["mean"][0] == pytest.approx(found["mean"][4], rel=1e-6)


def test_denoising_loss_of_a_gaussian_on_its_own_draws_is_the_expected_one():
    model = gaussian(8)
    tokens = tokens_of(*drawn_of(model, 3000, 0))
    found = score.denoising_losses({"gaussian": model}, tokens, (0.3,), 1, seed=0)
    expected = model.expected_mse(0.3, model.eigenvalues_d.double()) / 0.3**2
    assert found["gaussian"].mean() == pytest.approx(expected, rel=0.02)


def test_a_mixture_of_one_is_as_surprised_as_its_gaussian():
    model = gaussian(8)
    tokens = tokens_of(*drawn_of(model, 50, 0))
    mixture = GaussianMixtureDenoiser.of(torch.zeros(1), (model,))
    assert score.surprise(mixture, tokens, 0) == pytest.approx(score.surprise(model, tokens, 0))
    expected = np.argsort(score.mahalanobis(model, tokens.z))[-1]
    assert np.argsort(score.surprise(model, tokens, 0))[-1] == expected


def test_residuals_and_neighbours_by_hand():
    z_nd = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    first_kept = score.residual(lambda x_nd, sigma: x_nd * torch.tensor([1.0, 0.0]), z_nd)
    assert first_kept.tolist() == [8, 2]
    distance = score.NeighbourDistance(torch.stack([torch.arange(20.0), torch.zeros(20)], 1))
    assert distance(torch.tensor([[-1.0, 0.0], [0.0, 0.0]])).tolist() == [10, 9]


def test_a_score_that_is_not_finite_is_refused_by_name():
    message = "score 'of mine' is not finite on 2 of 3 tokens: they cannot be ranked"
    with pytest.raises(ValueError, match=message):
        score.checked("of mine", np.array([1.0, np.nan, np.inf]))
    broken, gap = {"broken": lambda x_nd, sigma: x_nd / 0}, torch.tensor([[1.0, math.nan], [0, 0]])
    with pytest.raises(ValueError, match="score 'broken' is not finite on 4 of 4 tokens"):
        score.denoising_losses(broken, tokens_of(torch.ones(4, 3)), (0.5,), 1, 0)
    with pytest.raises(ValueError, match="score 'mahalanobis' is not finite on 1 of 2"):
        score.checked("mahalanobis", score.mahalanobis(standard_normal(2), gap))
    with pytest.raises(ValueError, match="score 'shifted' is not finite on 1 of 2"):
        Separation.of(np.zeros(2), np.arange(2), np.array([0, np.nan]), np.arange(2))


def test_ranks_and_means_of_documents_by_hand():
    ranks = score.ranks_among(np.array([0.0, 2, 2.5, 9]), np.array([1.0, 2, 3, 4]))
    assert ranks.tolist() == [0, 0.375, 0.5, 1]
    means, names = score.by_document(np.array([1.0, 3, 5]), np.array([7, 2, 7]))
    assert names.tolist() == [2, 7] and means.tolist() == [3, 3]


def test_tokens_are_no_html():
    found = score.coloured_text(["<b>", "a"], np.array([1.0, 0.0]), lambda i: f'"{i}"')
    assert "&lt;b&gt;" in found and "<b>" not in found and 'title="&quot;0&quot;"' in found
    first, second = found.split("<span")[1:]
    assert first[:30] != second[:30]  # other colours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_perturbed_weights_come_back_bit_for_bit(dtype):
    model = tiny(dtype=dtype).model
    weights = dict(model.named_parameters())
    before = {name: weight.clone() for name, weight in weights.items()}

    def changed():
        return {name for name in before if not torch.equal(weights[name], before[name])}

    with shifts.perturbed(model, 1, 0.2, seed=0):
        noisy = changed()
        sizes = [
            ((weights[name] - before[name]).float().norm() / before[name].float().norm()).item()
            for name in noisy
        ]
    in_blocks = {name for name in before if "layers.0" in name or "layers.1" in name}
    assert noisy == {name for name in in_blocks if before[name].ndim > 1}
    assert len(noisy) == 14
    assert np.allclose(sizes, 0.2, rtol=0.15)
    assert not changed()
    with pytest.raises(ZeroDivisionError), shifts.perturbed(model, 1, 0.2, seed=0):
        1 / 0
    assert not changed()
    beyond = pytest.raises(ValueError, match="expected an integer from 0 to 2")
    with beyond, shifts.perturbed(model, 3, 0.2, seed=0):
        pass


def test_perturbation_is_read_from_its_layer_on():
    lm, windows = tiny(), [Window(0, 0, np.arange(4, 24, dtype=np.int32), True)]
    positions = shifts.scored_positions(20, 4, 5)
    clean = [shifts.read_tokens(lm, layer, windows, positions, PLAIN, 64) for layer in (0, 1)]
    with shifts.perturbed(lm.model, 0, 0.1, seed=0):
        noisy = [shifts.read_tokens(lm, layer, windows, positions, PLAIN, 64) for layer in (0, 1)]
    assert not any(torch.equal(a.z, b.z) for a, b in zip(clean, noisy))
    assert clean[0].position.tolist() == [4, 8, 12, 15, 19]


def test_tokens_are_those_of_the_positions_asked_for():
    lm = tiny()
    first, second = np.arange(4, 16, dtype=np.int32), np.arange(20, 32, dtype=np.int32)
    windows = [Window(3, 0, first, False), Window(1, 12, second, True)]
    found = shifts.read_tokens(lm, 1, windows, np.array([2, 11]), PLAIN, 64)
    assert found.document.tolist() == [3, 3, 1, 1] and found.position.tolist() == [2, 11, 14, 23]
    ids = torch.tensor([[1, *first], [1, *second]])
    whole = llm.read_residual_stream(lm.model, [1], ids)[1]
    assert torch.allclose(found.z, whole[:, [3, 12]].reshape(4, 16), atol=1e-5)
    with pytest.raises(ValueError, match="9 positions from 4 to 11: expected between 1 and 8"):
        shifts.scored_positions(12, 4, 9)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_store_is_read_again_to_the_bit_and_by_no_other_model(split, tmp_path):
    """In bfloat16, with windows of many lengths in several blocks and batches, in which other
    shapes would round otherwise.
    """
    lm = tiny(dtype=torch.bfloat16)
    letters = (np.random.default_rng(i).integers(60, 120, 30 + 7 * i) for i in range(12))
    texts = [Document(str(i), "".join(map(chr, some))) for i, some in enumerate(letters)]
    splits = ["train", "test", "train", "validation", "test", "train"] * 2
    plan = plan_extraction(texts, splits, lm, 1, window=16, batch_tokens=64)
    facts = describe(lm, "letters@1", plan, created_by="a test")
    write_store(plan, lm, tmp_path / "a", attributes=facts, progress=False)
    store = ActivationStore(tmp_path / "a")
    assert len(plan.blocks) > 3 and shifts.difference_from_store(lm, store, split) == 0
    with shifts.perturbed(lm.model, 1, 0.05, seed=0):
        assert shifts.difference_from_store(lm, store, split) > 0.01


def test_all_windows_are_of_one_length_and_documents_take_turns():
    lm = tiny()
    texts = [Document(str(i), "x" * n) for i, n in enumerate((50, 9, 31, 10))]
    windows = shifts.text_windows(texts, lm, 10, 6, seed=0)
    assert all(len(window.token_ids) == 10 for window in windows) and len(windows) == 6
    assert sorted(window.document for window in windows[:3]) == [0, 2, 3]
    message = "1 of 2 documents have a window of 10 tokens: expected two at least"
    with pytest.raises(ValueError, match=message):
        shifts.text_windows(texts[:2], lm, 10, 6, seed=0)


def test_prompted_samples_begin_with_their_prompts_and_are_kept(tmp_path, capsys):
    lm = tiny()
    prompts = ["abc", "a", "abc"]
    found = shifts.prompted_samples(lm, prompts, 12, 0, tmp_path)
    assert [len(document.token_ids) for document in found] == [12, 12, 12]
    assert found[0].token_ids != found[2].token_ids
    for document, prompt in zip(found, lm.tokenizer(prompts)["input_ids"]):
        assert list(document.token_ids[: len(prompt)]) == prompt
    assert lm.tokenizer.eos_token_id not in {i for document in found for i in document.token_ids}
    capsys.readouterr()
    assert shifts.prompted_samples(lm, prompts, 12, 0, tmp_path) == found
    assert not capsys.readouterr().out, "read, not drawn"
    (kept,) = (tmp_path / "prompted").iterdir()
    assert shifts.prompted_samples(lm, prompts, 12, 1, tmp_path) != found
    kept.write_text(kept.read_text().replace(str(found[0].token_ids[-1]), "63"))
    with pytest.raises(CheckpointError, match=kept.name):
        shifts.prompted_samples(lm, prompts, 12, 0, tmp_path)


def test_texts_of_all_languages_say_which_language_and_opening_they_are_of(monkeypatch, tmp_path):
    asked = []

    def samples(lm, prompts, *rest):
        asked.extend(prompts)
        return [Document("prompted", prompt) for prompt in prompts]

    monkeypatch.setattr(shifts, "prompted_samples", samples)
    english, other = shifts.written_texts(None, TypicalitySize(windows=4), 0, tmp_path)
    assert [text.label for text in english] == ["en 0", "en 0", "en 0", "en 1"]
    assert [text.label for text in other] == ["fr 0", "de 0", "es 0", "fr 1"]
    assert [text.text for text in (*english, *other)] == asked
    for text in (*english, *other):
        language, i = text.label.split()
        assert text.text == shifts.PROMPTS[language][int(i)]
    both = shifts.written_texts(None, TypicalitySize(windows=40), 0, tmp_path)
    assert [len(part) for part in both] == [30, 30]


def test_texts_are_altered_as_they_say():
    assert shifts.lower_cased_letters(" It's 4 o'clock,\nEliza! ") == "it s o clock eliza"
    text = "one two\nthree  four five six"
    assert sorted(shifts.shuffled_words(text, 0).split(" ")) == sorted(text.split())
    assert shifts.shuffled_words(text, 0) != shifts.shuffled_words(text, 1)
    joined = shifts.joined_sentences(["aaaa", "bbb", "cc", "d"], 5, 0)
    assert all(len(document.text) >= 5 for document in joined) and len(joined) == 2
    assert {len(openings) for openings in shifts.PROMPTS.values()} == {10}


def test_texts_that_install_with_gensim():
    assert len(shifts.news()) == 300 and len(shifts.news()[0].text) > 3000
    page = shifts.bulgarian()
    assert page.title == "Григориански календар"
    assert len(page.text) > 10_000
    assert "{{" not in page.text
    code = shifts.python_code(5)
    assert len(code) == 5
    lines = [line for document in code for line in document.text.splitlines()]
    assert all("#" not in line.split('"')[0].split("'")[0] for line in lines)
    assert not any('"""' in document.text.split("\n")[1] for document in code)


def test_altered_activations_keep_what_they_say():
    model = gaussian(6)
    (z_nd,) = drawn_of(model, 20_000, 5)
    kept_nd = shifts.noised_alike(z_nd, model, 0.6, 0)
    expected = model.basis_dd * model.eigenvalues_d @ model.basis_dd.T
    from_mean_nd, kept_from_mean_nd = z_nd - model.mean_d, kept_nd - model.mean_d
    assert kept_from_mean_nd.mean(0).abs().max() < 0.1
    assert (kept_nd.T.cov() - expected).abs().max() < 0.05 * expected.diag().max()
    with pytest.raises(ValueError, match="strength 1.5: expected 0 to 1"):
        shifts.noised_alike(z_nd, model, 1.5, 0)
    between = (kept_from_mean_nd * from_mean_nd).sum() / from_mean_nd.square().sum()
    assert between == pytest.approx(0.8, abs=0.01)
    moved_nd = shifts.steered(z_nd, torch.tensor([0.0, 3, 0, 0, 0, 0]), 0.5) - z_nd
    assert moved_nd[0].tolist() == pytest.approx([0, 0.5 * 6**0.5, 0, 0, 0, 0], abs=1e-5)
    added_nd = shifts.noised(z_nd, 0.3, 0) - z_nd
    assert added_nd.square().mean().sqrt() == pytest.approx(0.3, rel=0.01)
    dealt = shifts.independent_tokens(z_nd[:10], 5)
    assert dealt.document.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert dealt.position.tolist() == [0, 1] * 5
