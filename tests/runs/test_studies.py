"""Cells of a study: skipped where their outcomes are there, trained again where the configuration differs."""

from dataclasses import replace

import pytest
import torch

from mmlib.activations.store import ActivationStore
from mmlib.denoisers.networks import MLPSize
from mmlib.files import read_json
from mmlib.runs import run as runs
from mmlib.runs import sweep as studies
from mmlib.training.recipe import Recipe
from mmlib.training.train import Training

TINY = studies.measured_at_the_end(
    Training(
        "flow_velocity",
        steps=4,
        batch=32,
        lr=1e-3,
        bf16=False,
        log_every=2,
        validate_every=2,
        save_every=2,
    )
)
RECIPE = Recipe(MLPSize(1, 8, 16), TINY)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "DATA", tmp_path / "data")
    return runs.start(preset="smoke", seed=0)


@pytest.fixture
def store(make_store):
    return ActivationStore(make_store(dtype="float32")[0])


def counting(run, evaluation):
    """A study, and the list of what it has evaluated."""
    seen = []

    def evaluate(cell, model):
        seen.append((cell.name, not model.network.training))
        return {"answer": len(seen)}

    return studies.Study(run, "toys", "06_scaling", evaluate, evaluation), seen


def test_a_cell_is_trained_once_and_again_when_its_configuration_changes(
    run, store, tmp_path, capsys
):
    study, seen = counting(run, {"tokens": (3, 4)})
    cells = [studies.Cell("one", RECIPE, store), studies.Cell("two", RECIPE, store, seed=1)]
    first = study.outcomes(cells)
    assert "2 of 2 cells left to train, 8 steps, 256 activations" in capsys.readouterr().out
    assert (
        seen == [("one", True), ("two", True)]
        and first["one"]["validation_loss"] != first["two"]["validation_loss"]
    )
    path = run.results / "toys" / "one.json"
    assert first["one"] == read_json(path) and first["one"]["provenance"]["command"].startswith(
        "make studies"
    )
    assert (
        study.outcomes(cells) == first
        and len(seen) == 2
        and "0 of 2 cells left" in capsys.readouterr().out
    )
    for changed in (
        replace(cells[0], recipe=replace(RECIPE, training=replace(TINY, weight_decay=0.5))),
        replace(cells[0], seed=3),
    ):
        assert study.known(changed) is None
    other, _ = counting(run, {"tokens": (3, 5)})
    assert other.known(cells[0]) is None and study.known(cells[0]) == first["one"]


def test_a_finished_cell_leaves_no_checkpoint(run, store, tmp_path):
    study, _ = counting(run, {})
    study.outcomes([studies.Cell("one", RECIPE, store)])
    assert not list((tmp_path / "data").rglob("*.safetensors"))


def test_a_cell_in_other_coordinates_is_trained_in_them(run, store, tmp_path):
    """Doubling z and training on that is what a store of doubled spread would do if nothing standardised it."""
    doubled = studies.Cell(
        "doubled", RECIPE, store, coordinates="doubled", transform=lambda z_nd: 2 * z_nd
    )
    raw = store.read(store.rows("test"))
    plain = studies.Cell("plain", RECIPE, store)
    assert torch.equal(doubled.seen(raw), 2 * plain.seen(raw)) and plain.seen(
        raw
    ).std().item() == pytest.approx(1, abs=0.05)
    model, log = studies.train_cell(doubled, tmp_path / "doubled")
    assert (
        torch.equal(model.normaliser(raw), raw)
        and log[-1]["validation_loss"]
        > studies.train_cell(plain, tmp_path / "plain")[1][-1]["validation_loss"]
    )
    assert [("validation_loss" in entry) for entry in log] == [False, True]


def test_more_activations_than_one_pass_are_refused(run, store):
    study, _ = counting(run, {})
    endless = replace(RECIPE, training=replace(TINY, steps=94))  # 94 × 32 = 3008 of 3000
    with pytest.raises(ValueError, match="takes 3,008 activations, 3,000 are there"):
        study.outcomes([studies.Cell("one", endless, store)])
    study.one_pass = False
    assert study.outcomes([studies.Cell("one", endless, store)])["one"]["activations"] == 3008


def test_names_that_clash_or_name_no_file_are_refused(run, store):
    study, _ = counting(run, {})
    with pytest.raises(ValueError, match="2 cells have 1 names"):
        study.outcomes(
            [studies.Cell("one", RECIPE, store), studies.Cell("one", RECIPE, store, seed=1)]
        )
    with pytest.raises(ValueError, match="since it names a file"):
        studies.Cell("a/b", RECIPE, store)
    with pytest.raises(ValueError, match="need a transform"):
        studies.Cell("a", RECIPE, store, coordinates="whitened")


class Constant:
    """A denoiser with one number."""

    parameters = 1

    def __call__(self, x_nd, sigma):
        return torch.ones_like(x_nd)


def test_a_fitted_cell_is_fitted_once_and_again_when_its_settings_or_seed_change(run, store):
    fits, evaluated = [], []
    study = studies.Study(
        run,
        "toys",
        "24_replication",
        lambda cell, denoiser: evaluated.append(denoiser) or {"loss": 2.0},
        {},
    )

    def cell(name, seed=1, **settings):
        return studies.FittedCell(
            name, store, seed, settings, lambda: fits.append(name) or Constant(), 3000
        )

    found = study.outcomes(
        [cell("mixture-seed1", components=(2, 3)), studies.Cell("one", RECIPE, store)]
    )
    assert fits == ["mixture-seed1"] and isinstance(evaluated[0], Constant) and len(evaluated) == 2
    assert {key: found["mixture-seed1"][key] for key in ("parameters", "activations", "loss")} == {
        "parameters": 1,
        "activations": 3000,
        "loss": 2.0,
    }
    assert (
        study.outcomes([cell("mixture-seed1", components=(2, 3))])["mixture-seed1"]
        == found["mixture-seed1"]
        and len(fits) == 1
    )
    assert (
        study.known(cell("mixture-seed1", seed=2, components=(2, 3))) is None
        and study.known(cell("mixture-seed1", components=(4,))) is None
    )
    with pytest.raises(ValueError, match="since it names a file"):
        cell("a/b")
