"""The study of steering: what is combined, what is skipped, and what is read off prompts that are known."""

import json
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from mmlib.runs.run import keyed_results
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
    there = {
        (cell.concept, cell.direction, cell.intervention, cell.sigma): cell.strengths
        for cell in cells
    }
    for concept, direction, intervention, sigma in there:
        if concept and intervention != "additive":
            # the repair alone, where its front begins
            assert (None, None, intervention, sigma) in there
            assert set(there[concept, direction, intervention, sigma]) <= set(
                there[concept, direction, "additive", None]
            )
        if intervention == "sdedit_mixture" and concept:
            expected = there[concept, direction, intervention, sigma]
            assert there[concept, direction, "sdedit", sigma] == expected
    assert {cell.concept for cell in cells} == {
        None,
        *(steering_study.slug(*concept) for concept in size.concepts),
    }
    assert {cell.direction for cell in cells} == {None, *steering_study.DIRECTIONS}


def said(cell, strength):
    """Plain addition: one of the concept and two of cost a strength. SDEdit: three quarters of each, and 0.1 of cost alone; by the mixture dearer."""
    noise = 0.01 * np.random.default_rng(0).normal(size=SIZE.prompts)
    share, alone = {
        "unsteered": (0, 0),
        "additive": (1, 0),
        "sdedit": (0.75, 0.1),
        "sdedit_mixture": (0.75, 0.5),
    }.get(cell.intervention, (0.5, 0.2))
    values = {
        name: (share * strength + noise).tolist()
        for name in ("sentiment", "sentiment-less")
        if cell.concept in (None, name)
    }
    return {
        "said": values,
        "log_likelihood": (-3 - alone - 2 * share * strength + noise).tolist(),
        "distinct_2": 0.9,
        "repetition": strength / 10,
    }


@pytest.fixture
def sweep(run):
    return Sweep(run, "steering_study", "25_steering_study")


@pytest.fixture
def asked():
    """(combination, strength) of what has been generated."""
    return []


@pytest.fixture
def trials_of(asked):
    def generate(cell, strength):
        asked.append((cell.name, strength))
        return said(cell, strength)

    def make(cells=CELLS, evaluation=None):
        evaluation, known = evaluation or {"tokens": 3}, {"language_model": "toy@1"}
        return [trial(cell, generate, evaluation, known, lambda: 60.0) for cell in cells]

    return make


def test_a_combination_is_generated_once_and_again_when_its_configuration_changes(
    sweep, asked, trials_of, capsys
):
    total = sum(len(cell.strengths) for cell in CELLS)
    first = sweep.outcomes(trials_of())
    assert len(asked) == total
    assert f"{len(CELLS)} of {len(CELLS)} trials left, about " in capsys.readouterr().out
    assert sweep.outcomes(trials_of()) == first and len(asked) == total
    assert f"0 of {len(CELLS)} trials left" in capsys.readouterr().out
    path = sweep.run.results / "steering_study" / "sentiment_probe_additive.json"
    assert json.loads(path.read_text())["provenance"]["command"].startswith("make studies")
    sweep.outcomes(trials_of([replace(CELLS[-1], strengths=(2.0, 5.0))]))
    assert len(asked) == total + 2
    assert sweep.known(trials_of(evaluation={"tokens": 4})[0]) is None
    path.unlink()
    sweep.outcomes(trials_of(CELLS[:-1]))
    assert len(asked) == total + 3


def test_minutes_follow_what_an_intervention_costs(sweep, trials_of):
    plain = sum(steering_study.COSTS[cell.intervention] * len(cell.strengths) for cell in CELLS)
    assert sweep.minutes(trials_of()) == pytest.approx(plain)  # a minute a run


def test_findings_are_those_that_were_planted(sweep, trials_of):
    findings = Findings(CELLS, sweep.outcomes(trials_of()))
    rows = {
        (r["concept"], r["direction"], r["intervention"], r["sigma"], r["strength"]): r
        for r in findings.rows()
    }
    plain = rows["sentiment", "mean_difference", "additive", None, 2.0]
    assert plain["change"] == pytest.approx(2)
    assert plain["cost"] == pytest.approx(4)
    assert plain["repetition"] == 0.2
    assert rows["sentiment", "probe", "additive", None, 0.0]["change"] == 0
    repaired = rows["sentiment", "mean_difference", "sdedit", 0.5, 2.0]
    assert repaired["change"] == pytest.approx(1.5) and repaired["cost"] == pytest.approx(3.1)
    against = next(
        r
        for r in findings.against_addition()
        if (r["concept"], r["direction"], r["intervention"])
        == ("sentiment", "mean_difference", "sdedit")
    )
    # 0.1 dearer up to 1.5
    assert against["reach"]["difference"] == pytest.approx(-0.5)
    assert against["area"]["area"] == pytest.approx(0.15)
    assert against["level"] == pytest.approx(1)
    assert against["cost_of_addition"]["cost"] == pytest.approx(2)
    assert against["cost"]["cost"] == pytest.approx(2.1)
    equal = next(
        r
        for r in findings.at_equal_strength()
        if (r["intervention"], r["strength"]) == ("sdedit", 2.0)
    )
    assert equal["change"]["difference"] == pytest.approx(-0.5)
    assert equal["cost"]["difference"] == pytest.approx(-0.9)
    (projection,) = findings.projections()
    assert projection["area"]["area"] == pytest.approx(-0.6)
    assert projection["reach"]["difference"] == 0
    assert [
        step["cost"]["difference"] for step in projection["at_equal_strength"]
    ] == pytest.approx([-0.4, -0.4])
    assert [
        steering_study.verdict(interval)
        for interval in ([0.1, 0.2], [-0.2, -0.1], [-0.1, 0.1], None)
    ] == ["higher", "lower", "undecided", "not compared"]
    drawn = {"rows": findings.rows(), "sigmas": SIZE.sigmas, "meta_model": {"name": "gated_mlp"}}
    figure = figures.steering_study(keyed_results("steering_study", drawn))
    assert [ax.get_title() for ax in figure.axes[:3]] == [
        "difference of means",
        "SAE latent",
        "logistic probe",
    ]
    plt.close(figure)


def test_a_digest_tells_two_trainings_apart():
    first, other = (torch.nn.Linear(2, 1) for _ in range(2))
    assert steering_study.weights_digest(first) != steering_study.weights_digest(other)
    other.load_state_dict(first.state_dict())
    assert steering_study.weights_digest(first) == steering_study.weights_digest(other)
    assert len(steering_study.weights_digest(first)) == 12
