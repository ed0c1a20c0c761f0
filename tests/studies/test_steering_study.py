"""The study of steering: what is combined, what is skipped, and what is read off prompts that are
known.
"""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mmlib.runs.results import keyed_results
from mmlib.runs.sweep import Sweep
from mmlib_studies import figures
from mmlib_studies.steering import grid as steering_study
from mmlib_studies.steering.grid import Findings, combinations, trial
from mmlib_studies.steering.sizes import GRIDS, GridSize

SIZE = GridSize(
    concepts=(("sentiment", 1), ("sentiment", -1)),
    strengths=(1.0, 2.0),
    fraction_strengths=(2.0,),
    prompts=12,
)
CELLS = combinations(SIZE)


@pytest.mark.parametrize("name", GRIDS)
def test_every_repair_has_its_opponents_and_every_file_its_name(name):
    size = GRIDS[name]
    cells = combinations(size)
    assert len({cell.name for cell in cells}) == len(cells) and cells[0].name == "alone_unsteered"
    there = {cell.name: cell.strengths for cell in cells}
    for cell in (cell for cell in cells if cell.concept and cell.intervention != "additive"):
        # the repair alone, where its front begins
        assert replace(cell, concept=None, direction=None).name in there
        assert set(cell.strengths) <= set(there[cell.by("additive").name])
        if cell.intervention == "sdedit_mixture":
            assert there[cell.by("sdedit", cell.sigma).name] == cell.strengths
    concepts = {steering_study.slug(*concept) for concept in size.concepts}
    assert {cell.concept for cell in cells} == {None, *concepts}
    assert {cell.direction for cell in cells} == {None, *steering_study.DIRECTIONS}


def said(cell, strength):
    """Plain addition: one of the concept and two of cost a strength. SDEdit: three quarters of
    each, and 0.1 of cost alone; by the mixture dearer.
    """
    noise = 0.01 * np.random.default_rng(0).normal(size=SIZE.prompts)
    shares = {"unsteered": (0, 0), "additive": (1, 0)}
    shares |= {"sdedit": (0.75, 0.1), "sdedit_mixture": (0.75, 0.5)}
    share, alone = shares.get(cell.intervention, (0.5, 0.2))
    concepts = [cell.concept] if cell.concept else ["sentiment", "sentiment-less"]
    values = dict.fromkeys(concepts, (share * strength + noise).tolist())
    return {
        "said": values,
        "log_likelihood": (-3 - alone - 2 * share * strength + noise).tolist(),
        "distinct_2": 0.9,
        "repetition": strength / 10,
    }


@pytest.fixture
def sweep(run):
    return Sweep(run, "steering_study", "25_steering_study")


def trials_of(cells=CELLS, asked=None, **evaluation):
    """asked: takes the (combination, strength) that are generated."""

    def generate(cell, strength):
        if asked is not None:
            asked.append((cell.name, strength))
        return said(cell, strength)

    known, evaluation = {"language_model": "toy@1"}, {"tokens": 3} | evaluation
    return [trial(cell, generate, evaluation, known, lambda: 60.0) for cell in cells]


def test_a_combination_is_generated_once_and_again_when_its_strengths_change(sweep):
    asked, total = [], sum(len(cell.strengths) for cell in CELLS)
    for _ in range(2):
        sweep.outcomes(trials_of(asked=asked))
        assert len(asked) == total
    sweep.outcomes(trials_of([replace(CELLS[-1], strengths=(2.0, 5.0))], asked))
    assert asked[total:] == [(CELLS[-1].name, 2.0), (CELLS[-1].name, 5.0)]
    assert sweep.known(trials_of(tokens=4)[0]) is None


def test_minutes_follow_what_an_intervention_costs(sweep):
    plain = sum(steering_study.COSTS[cell.intervention] * len(cell.strengths) for cell in CELLS)
    assert sweep.minutes(trials_of()) == pytest.approx(plain)  # a minute a run


def test_findings_are_those_that_were_planted(sweep):
    findings = Findings(CELLS, sweep.outcomes(trials_of()))

    def row_of(rows, *wanted):
        keys = ("direction", "intervention", "strength")[: len(wanted)]
        return next(
            r for r in rows if r["concept"] == "sentiment" and tuple(r[k] for k in keys) == wanted
        )

    rows = findings.rows()
    plain = row_of(rows, "mean_difference", "additive", 2.0)
    assert (plain["change"], plain["cost"]) == pytest.approx((2, 4)) and plain["repetition"] == 0.2
    assert row_of(rows, "probe", "additive", 0.0)["change"] == 0
    repaired = row_of(rows, "mean_difference", "sdedit", 2.0)
    assert (repaired["change"], repaired["cost"]) == pytest.approx((1.5, 3.1))
    against = row_of(findings.against_addition(), "mean_difference", "sdedit")
    # 0.1 dearer up to 1.5
    assert against["reach"]["difference"] == pytest.approx(-0.5)
    assert against["area"]["area"] == pytest.approx(0.15)
    costs = [against[key]["cost"] for key in ("cost_of_addition", "cost")]
    assert [against["level"], *costs] == pytest.approx([1, 2, 2.1])
    equal = row_of(findings.at_equal_strength(), "mean_difference", "sdedit", 2.0)
    assert equal["change"]["difference"] == pytest.approx(-0.5)
    assert equal["cost"]["difference"] == pytest.approx(-0.9)
    (projection,) = findings.projections()
    assert projection["area"]["area"] == pytest.approx(-0.6)
    assert projection["reach"]["difference"] == 0
    steps = [step["cost"]["difference"] for step in projection["at_equal_strength"]]
    assert steps == pytest.approx([-0.4, -0.4])
    drawn = {"rows": rows, "sigmas": SIZE.sigmas, "meta_model": {"name": "mixture_mlp"}}
    figure = figures.steering_study(keyed_results("steering_study", drawn))
    titles = [ax.get_title() for ax in figure.axes[:3]]
    assert titles == ["difference of means", "SAE latent", "logistic probe"]
    plt.close(figure)


def test_a_verdict_is_read_off_an_interval():
    intervals = ([0.1, 0.2], [-0.2, -0.1], [-0.1, 0.1], None)
    verdicts = ["higher", "lower", "undecided", "not compared"]
    assert list(map(steering_study.verdict, intervals)) == verdicts


def test_a_digest_tells_two_trainings_apart():
    first, other = (torch.nn.Linear(2, 1) for _ in range(2))
    digest = steering_study.weights_digest(first)
    assert digest != steering_study.weights_digest(other) and len(digest) == 12
    other.load_state_dict(first.state_dict())
    assert digest == steering_study.weights_digest(other)
