"""Distinct-n, repetition, fronts and the area between them, against values by hand; measures of
concepts.
"""

import numpy as np
import pytest

from mmlib.activations.corpora import Document
from mmlib_studies.steering import concepts
from mmlib_studies.steering.fronts import Front, area_between, cost_at, distinct, repetition


def test_distinct_n_counts_over_all_continuations_and_repetition_within_each():
    texts = [[1, 2, 1, 2], [1, 2, 3, 4]]
    assert distinct(texts, 1) == 4 / 8 and distinct(texts, 2) == 4 / 6  # 12 21 23 34
    assert repetition([*texts, [7, 7, 7, 7]], 2) == pytest.approx([1 / 3, 0, 2 / 3])
    with pytest.raises(ValueError, match="no continuation has 5 tokens"):
        distinct(texts, 5)


def test_cost_is_read_where_the_path_first_reaches_the_level():
    concept, cost = np.array([0.0, 0.2, 0.6, 0.4]), np.array([0.0, 1.0, 2.0, 5.0])
    assert cost_at(0.1, concept, cost) == pytest.approx(0.5)
    assert cost_at(0.5, concept, cost) == pytest.approx(1.75)  # not 3.5, on the way back
    assert cost_at(0.0, concept, cost) == 0 and np.isnan(cost_at(0.7, concept, cost))
    assert cost_at(0.3, np.array([0.0, -0.5, 0.5]), np.array([0.0, 1.0, 2.0])) == pytest.approx(1.8)
    # the repair alone is at 0.1 already, and costs 0.4
    repaired = (np.array([0.1, 0.5]), np.array([0.4, 0.8]))
    assert cost_at(0.05, *repaired) == pytest.approx(0.4)
    assert cost_at(0.3, *repaired) == pytest.approx(0.6)
    many = cost_at(np.array([0.1, 0.5]), np.stack([concept, concept]), np.stack([cost, 2 * cost]))
    assert many == pytest.approx([0.5, 3.5])


def test_the_area_between_two_fronts_by_hand():
    """To 0.5, costs c and 2c: the area is −0.125. A kink at 0.25 adds a triangle."""
    slow = (np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    fast = (np.array([0.0, 0.5]), np.array([0.0, 1.0]))
    assert area_between(slow, fast) == pytest.approx(-0.125)
    assert area_between(fast, slow) == pytest.approx(0.125)
    kinked = (np.array([0.0, 0.25, 0.5]), np.array([0.0, 0.0, 0.5]))
    assert area_between(kinked, fast) == pytest.approx(0.0625 - 0.25)
    repaired = (np.array([0.0, 0.5]), np.array([0.3, 0.3]))
    assert area_between(repaired, fast) == pytest.approx(0.15 - 0.25)
    assert area_between((np.array([0.0, -0.1]), np.array([0.0, 1.0])), fast) == 0


def front(concept, cost, n=30, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    noisy = (
        np.asarray(values)[:, None] + noise * rng.normal(size=(len(values), n))
        for values in (concept, cost)
    )
    return Front(*(np.concatenate([np.zeros((1, n)), values]) for values in noisy))


def test_fronts_give_areas_and_costs_with_intervals():
    ours = front([0.5, 1.0], [0.5, 1.0], noise=0.05)
    theirs = front([0.25, 0.5], [0.5, 1.0], noise=0.05, seed=1)
    found = ours.area_to(theirs)
    assert found["area"] == pytest.approx(-0.125, abs=0.02)
    assert found["ci95"][0] < found["area"] < found["ci95"][1] < 0
    assert found["up_to"] == pytest.approx(theirs.reach)
    assert found["mean_difference"] == pytest.approx(found["area"] / theirs.reach)
    assert theirs.area_to(ours)["area"] == pytest.approx(-found["area"])
    cost = ours.cost(0.4)
    assert cost["cost"] == pytest.approx(0.4, abs=0.03)
    assert cost["ci95"][0] < cost["cost"] < cost["ci95"][1]


def test_what_is_not_reached_is_none_never_a_number():
    forth, back = front([0.5], [1.0], noise=0.01), front([-0.5], [1.0], noise=0.01)
    assert forth.area_to(back) == dict.fromkeys(("area", "ci95", "up_to", "mean_difference"))
    assert forth.cost(0.6) == {"cost": None, "ci95": [None, None], "reached": 0.0}
    assert forth.reach == pytest.approx(0.5, abs=0.01) and back.reach == 0
    at_the_end = front([0.5], [1.0], noise=0.1)
    # half of the resamples do not get there: their cost is infinite, not left out
    half, quarter = at_the_end.cost(at_the_end.reach), at_the_end.cost(0.25)
    assert half["reached"] == pytest.approx(0.5, abs=0.1)
    assert half["ci95"][0] < half["cost"] and half["ci95"][1] is None
    assert quarter["reached"] == 1.0 and None not in quarter["ci95"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (lambda: front([0.5], [1.0], n=4).cost(0.1), "4 prompts: an interval needs at least 5"),
        (
            lambda: front([np.nan], [1.0]),
            "with 30 and 0 values that are not finite: expected equal",
        ),
        (lambda: front([1], [1], n=6).area_to(front([1], [1], n=7)), "fronts of 6 and 7 prompts"),
        (lambda: front([1], [1]).reach_less(front([1], [1], n=31)), "fronts of 30 and 31 prompts"),
    ],
)
def test_fronts_of_too_few_unlike_or_unknown_prompts_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_the_interval_of_a_cost_covers_it():
    """Of a level that some samples of prompts reach and others do not."""
    truth, inside = cost_at(0.45, np.array([0.0, 0.5]), np.array([0.0, 1.0])), 0
    for seed in range(200):
        low, high = front([0.5], [1.0], n=50, noise=0.3, seed=seed).cost(0.45)["ci95"]
        inside += (np.inf if low is None else low) <= truth <= (np.inf if high is None else high)
    assert inside >= 180


def test_reaches_are_compared_prompt_by_prompt():
    ours = front([0.5, 0.8], [0.5, 1.0], noise=0.05)
    theirs = front([0.25, 0.1], [0.5, 1.0], noise=0.05, seed=1)
    found = ours.reach_less(theirs)
    assert found["difference"] == pytest.approx(0.55, abs=0.05)
    assert found["ci95"][0] < found["difference"] < found["ci95"][1]
    nothing = ours.area_to(ours)
    assert nothing["area"] == 0 and nothing["ci95"] == [0, 0]


def test_areas_and_reaches_are_covered_where_the_best_strengths_are_near_ties():
    """A maximum over noisy means is no smooth function of the prompts: of 20 samples of 40 prompts,
    with the noise of notebook 11, most intervals hold the truth.
    """
    ours = (np.array([-0.01, 0.05, 0.10, 0.12]), np.array([0.7, 0.75, 0.94, 1.84]))
    theirs = (np.array([0, 0.06, 0.10, 0.10]), np.array([0, 0.05, 0.5, 1.9]))
    rng, inside = np.random.default_rng(0), {"area": 0, "reach": 0}
    truths = {"area": area_between(ours, theirs), "reach": 0.02}

    def noisy(values, scale):
        return values[:, None] + rng.normal(0, scale, (4, 40))

    for _ in range(20):
        one, other = (Front(noisy(path[0], 0.35), noisy(path[1], 0.9)) for path in (ours, theirs))
        for name, found in one.less(other).items():
            low, high = found["ci95"]
            inside[name] += low <= truths[name] <= high
    assert min(inside.values()) >= 17


def test_sentiment_is_measured_by_vader_and_its_sign_turns_both():
    pos, neg = (concepts.concept("sentiment", sign, posts=0, cache=None) for sign in (1, -1))
    texts = ["a wonderful, delightful film", "a dreadful, tedious film", "a film"]
    good, bad, plain = pos.measure(texts)
    assert good > 0.5 > -0.3 > bad and plain == 0
    assert np.array_equal(neg.measure(texts), -pos.measure(texts))
    assert np.array_equal(neg.positive_n, ~pos.positive_n)
    assert len(pos.documents) == 200 and pos.positive_n.sum() == 100
    assert pos.neutral(texts[2]) and not pos.neutral(texts[0])
    with pytest.raises(ValueError, match="sign 2"):
        concepts.concept("sentiment", 2, posts=0, cache=None)


@pytest.fixture
def newsgroups(monkeypatch):
    """Twelve posts on space and as many on hockey."""
    words = {"space": "orbit launch shuttle moon", "hockey": "goal ice puck league"}
    posts = [
        Document(f"{label}{i}", f"{text} {text.split()[i % 4]}", label)
        for i in range(12)
        for label, text in words.items()
    ]
    monkeypatch.setattr(concepts, "load_documents", lambda corpus, cache: posts)


def topic(name, posts):
    return concepts.concept(name, 1, posts=posts, cache=None)


def test_a_topic_is_measured_by_a_probe_on_other_posts(newsgroups, monkeypatch):
    fitted, fit = [], concepts.text_probe

    def watched(texts, positive):
        fitted.extend(texts)
        return fit(texts, positive)

    monkeypatch.setattr(concepts, "text_probe", watched)
    space = topic("space", 5)
    assert [d.label for d in space.documents] == 5 * ["space"] + 5 * ["hockey"]
    assert space.positive_n.tolist() == 5 * [True] + 5 * [False]
    scores = space.measure(["The Moon, and a launch", "ice, a puck"])
    assert scores[0] > 0.6 > 0.4 > scores[1]
    assert space.neutral("a puck") and not space.neutral("moon")
    assert len(fitted) == 10 and len(space.judged) == 4
    assert [d.title for d in space.documents[:5]] == [f"space{i}" for i in range(5)]
    assert [d.title for d in space.judged[:2]] == ["space10", "space11"]
    assert concepts.measure_auc(space, str) == {"texts": 4, "whole": 1.0, "shortened": 1.0}
    assert concepts.measure_auc(space, lambda text: "")["shortened"] == 0.5


@pytest.mark.parametrize(
    "name, posts, message",
    [
        ("space", 6, "0 of 0 texts have the concept 'space': expected both classes"),
        ("space", 7, "'space' has 12 posts, 14 were asked for; there are hockey, space"),
        ("sentimant", 5, "unknown concept 'sentimant': expected 'sentiment' or .* hockey, space"),
    ],
)
def test_topics_with_too_few_posts_or_none_are_refused(newsgroups, name, posts, message):
    with pytest.raises(ValueError, match=message):
        concepts.measure_auc(topic(name, posts), str)
