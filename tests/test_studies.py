"""Cells of a study: skipped where their results are there, run again where the configuration differs."""

from dataclasses import replace

import pytest

from mmlib import runs, studies
from mmlib.presets import MLPSize, Recipe, Training
from mmlib.results import read_json
from mmlib.store import ActivationStore

TINY = Training("flow_velocity", steps=4, batch=32, lr=1e-3, bf16=False, log_every=2, validate_every=2)
CELL = studies.Cell("two words", Recipe(MLPSize(1, 8, 16), TINY))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "DATA", tmp_path / "data")
    return runs.start(preset="smoke", seed=0)


@pytest.fixture
def store(make_store):
    return ActivationStore(make_store(dtype="float32")[0])


def test_a_cell_is_run_once_and_again_when_its_configuration_changes(run, store, tmp_path):
    first = studies.run_cell(run, store, CELL)
    path = tmp_path / "results" / "smoke" / "recipes" / "two-words-lr0.001-seed0.json"
    written = path.stat().st_mtime_ns
    assert studies.run_cell(run, store, CELL) == first == read_json(path) and path.stat().st_mtime_ns == written
    assert [entry["step"] for entry in first["log"]] == [2, 4] and first["setup_seconds"] == 0
    changed = studies.run_cell(run, store, replace(CELL, recipe=replace(CELL.recipe, training=replace(TINY, weight_decay=0.5))))
    assert changed["log"] != first["log"] and changed["provenance"]["command"].startswith("make studies")


def test_fitting_the_gaussian_of_a_linear_skip_is_counted(run, store):
    cell = replace(CELL, recipe=replace(CELL.recipe, linear_skip=True))
    result = studies.run_cell(run, store, cell)
    d = store.d
    assert result["setup_seconds"] > 0 and result["parameters"] == studies.run_cell(run, store, CELL)["parameters"] + d + d * (d + 1) // 2


def test_seconds_to_a_loss_by_hand():
    log = [{"seconds": 1.0, "validation_loss": 1.5}, {"seconds": 2.0, "validation_loss": 1.3}, {"seconds": 3.0, "validation_loss": 1.35}]
    result = {"setup_seconds": 0.5, "log": log}
    assert studies.seconds_to(result, 1.4) == 2.5 and studies.seconds_to(result, 1.3) == 2.5 and studies.seconds_to(result, 1.2) is None


def test_every_variant_gets_every_learning_rate_and_every_cell_its_own_file(run):
    cells = studies.sweep(runs.start(preset="default", seed=0), 640)
    assert len({cell.file for cell in cells}) == len(cells)
    trials = {name: sorted(cell.recipe.training.lr for cell in cells if cell.name == name) for name in {cell.name for cell in cells}}
    assert len(trials) == 4 and all(rates == sorted(studies.LEARNING_RATES) for rates in trials.values())
    assert len({(cell.recipe.training.steps, cell.recipe.training.batch, cell.seed) for cell in cells}) == 1
