"""The study of the best model: which articles are fresh, and the primary over seeds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmlib.activations.corpora import Document
from mmlib.activations.tokens import Tokens
from mmlib.denoisers.noise import Level
from mmlib.denoisers.sae import MixedDenoiser
from mmlib.evaluation.losses import evaluate
from mmlib_studies.best_model import (
    BestModelSize,
    BestModelStudy,
    Running,
    digest_of,
    fresh_articles,
    over_seeds,
)

WORDS = [f"word{i}" for i in range(40)]


def article(title, first, words=20):
    """An article of distinct words from `first` on."""
    return Document(f"passages[{title}]", " ".join(f"word{i}" for i in range(first, first + words)))


def test_fresh_articles_share_no_title_and_no_run_of_13_words_with_the_corpus():
    known = [Document("Anarchism", " ".join(WORDS))]
    shared, title, short = (
        article("Shared", 27),
        article("anarchism", 100),
        article("Short", 200, 2),
    )
    edge = article("Edge", 28)  # twelve words in common
    others = [article(f"Other {i}", 1000 * (i + 1)) for i in range(4)]
    size = BestModelSize(articles=5, least_characters=50, read_before=0)
    found = fresh_articles([shared, title, short, edge, *others], known, size, seed=0)
    assert sorted(one.title for one in found) == sorted(one.title for one in (edge, *others))
    assert digest_of(found) != digest_of(found[::-1])
    with pytest.raises(ValueError, match="5 articles .* expected 6"):
        fresh_articles([shared, edge, *others], known, replace(size, articles=6), 0)
    late = fresh_articles([edge, *others], known, replace(size, articles=3, read_before=2), seed=0)
    assert late == fresh_articles([edge, *others], known, size, seed=0)[2:]


def measured(sums, counts=(10, 20, 30, 40, 50)):
    """What a final keeps of a place."""
    loss = float(np.sum(sums) / np.sum(counts))
    return {"loss": loss, "by_document": {"sums": list(sums), "counts": list(counts)}}


def test_the_primary_adds_seeds_up_and_compares_the_same_draws():
    counts = np.array([10, 20, 30, 40, 50])
    ours = [{place: measured(f * counts) for place in ("test", "fresh")} for f in (0.8, 1.0)]
    theirs = {"mixture": {place: measured(1.2 * counts) for place in ("test", "fresh")}}
    rows = BestModelStudy.primary(ours, theirs, "mixture")
    assert [row["place"] for row in rows] == ["test", "fresh"]
    assert rows[1]["loss"] == pytest.approx(0.9) and rows[1]["value"] == pytest.approx(0.25)
    assert rows[1]["by_seed"] == pytest.approx([1 - 0.8 / 1.2, 1 - 1 / 1.2])
    assert rows[1]["documents"] == 5
    with pytest.raises(ValueError, match="the same draws"):
        over_seeds({"one": [measured(counts)], "other": [measured(counts, (10, 20, 30, 40, 51))]})


def test_a_running_average_is_that_of_all_members_so_far():
    z_nd = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(z_nd, np.arange(60) // 10, np.arange(60))
    members, running = [lambda x, s: x, lambda x, s: 0 * x, lambda x, s: 3 * x], Running()
    how = {"objective": "flow_velocity", "per_level": 20, "seed": 0}
    for i, member in enumerate(members):
        running.take(member)
        found = evaluate({"it": running}, tokens, **how).mean("it")
        mean = sum(m(1.0, 0) for m in members[: i + 1]) / (i + 1)
        expected = evaluate({"it": lambda x, s: mean * x}, tokens, **how).mean("it")
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_blend_of_weights_1_and_0_is_its_part():
    parts = [lambda x, sigma: x * 2, lambda x, sigma: x + 1]
    for part in parts:
        part.parameters = 0
    z_nd, generator = torch.randn(50, 3), torch.Generator().manual_seed(0)
    blend = MixedDenoiser(parts[0], [Level(0.5, 4.0)], z_nd, generator, also=parts[1:])
    x_nd = torch.randn(5, 3)
    for weights, expected in (((1, 0, 0), x_nd * 2), ((0, 0, 1), x_nd + 1)):
        blend.weights[0.5] = weights
        assert torch.equal(blend(x_nd, 0.5), expected)
