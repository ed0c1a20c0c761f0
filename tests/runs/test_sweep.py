"""Trials of a sweep: skipped where their outcomes are there, computed again where the configuration
differs.
"""

from dataclasses import replace

import pytest
import torch

from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.networks import MLPSize
from mmlib.files import read_json
from mmlib.runs.sweep import RecipeTrial, Sweep, Trial, require_one_pass, seconds_a_step
from mmlib.training.recipe import Recipe, Training

RATES = {"lr": 1e-3, "bf16": False, "log_every": 2, "validate_every": 6, "save_every": 6}
TINY = Training("flow_velocity", steps=4, batch=32, **RATES)
RECIPE = Recipe(MLPSize(1, 8, 16), TINY)


@pytest.fixture
def sweep(run):
    return Sweep(run, "toys", "06_scaling")


class Counting:
    """Trials whose outcome is how many were computed before."""

    def __init__(self):
        self.names = []

    def trial(self, name, **configuration):
        def compute(folder):
            self.names.append(name)
            return {"answer": len(self.names)}

        return Trial(name, configuration, compute, {"language_model": "toy@1"})


def test_any_callable_is_a_trial_and_is_computed_again_only_where_its_configuration_changed(
    sweep, capsys
):
    of = Counting()
    trials = [of.trial("one", pair=(1, 2)), of.trial("two", pair=(1, 3))]
    found = sweep.outcomes(trials)
    assert "toys: 2 of 2 trials left\n" in capsys.readouterr().out
    assert found["one"]["answer"] == 1 and found["two"]["configuration"] == {"pair": [1, 3]}
    assert found["one"] == read_json(sweep.run.results / "toys" / "one.json")
    assert found["one"]["provenance"]["command"].startswith("make studies")
    assert found["one"]["provenance"]["language_model"] == "toy@1"
    assert sweep.outcomes(trials) == found and of.names == ["one", "two"]
    assert "toys: 0 of 2 trials left" in capsys.readouterr().out
    found = sweep.outcomes([of.trial("one", pair=(1, 4)), trials[1]])
    assert of.names == ["one", "two", "one"] and found["one"]["configuration"] == {"pair": [1, 4]}


def test_an_interrupted_trial_is_not_there_and_keeps_its_folder(sweep):
    def killed(folder):
        folder.mkdir(parents=True)
        (folder / "state").write_text("half")
        raise KeyboardInterrupt

    trial = Trial("one", {}, killed)
    with pytest.raises(KeyboardInterrupt):
        sweep.outcome(trial)
    assert sweep.known(trial) is None
    found = sweep.outcome(replace(trial, compute=lambda f: {"was": (f / "state").read_text()}))
    assert found["was"] == "half" and not list(sweep.run.data.rglob("state"))


def test_names_that_clash_or_name_no_file_are_refused(sweep):
    of = Counting()
    with pytest.raises(ValueError, match="2 trials have 1 names"):
        sweep.outcomes([of.trial("one"), of.trial("one", seed=1)])
    with pytest.raises(ValueError, match="since it names a file"):
        of.trial("a/b")


def test_minutes_are_of_trials_timed_here_else_of_a_probe_of_each_kind(sweep, monkeypatch):
    def trial(name, kind, cost, seconds=None, probe=None):
        return Trial(name, {}, lambda folder: {"seconds": seconds}, {}, kind, cost, probe)

    done, far = trial("done", "slow", 10, 600.0), trial("far", "slow", 10, 6000.0)
    sweep.outcomes([done])
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("mmlib.runs.sweep.processor", lambda: "another")
        sweep.outcome(far)
    left = trial("left", "slow", 30, probe=lambda: pytest.fail("timed trials are there"))
    quick = trial("quick", "quick", 2, probe=lambda: 120.0)
    quicker = trial("quicker", "quick", 1, probe=lambda: pytest.fail("one probe is enough"))
    assert sweep.minutes([done, far, left, quick, quicker]) == pytest.approx(30 + 3)
    assert "2 trials left, about" not in sweep.describe([done, trial("unknown", "new", 1)])
    assert sweep.describe([done, left]).endswith(
        "1 of 2 trials left, about 30 minutes on this machine"
    )


# Recipes


def test_a_trained_recipe_is_a_trial(sweep, store, tmp_path):
    seen = []

    def evaluate(trial, model):
        seen.append((trial.name, not model.network.training))
        return {"answer": len(seen)}

    def outcomes(*wanted, tokens=(3, 4)):
        return sweep.outcomes([one.trial(evaluate, {"tokens": tokens}) for one in wanted])

    one, two = RecipeTrial("one", RECIPE, store), RecipeTrial("two", RECIPE, store, seed=1)
    first = outcomes(one, two)
    assert seen == [("one", True), ("two", True)]
    assert first["one"]["validation_loss"] != first["two"]["validation_loss"]
    assert first["one"]["activations"] == 128 and first["one"]["seconds"] > 0
    assert not list((tmp_path / "data").rglob("*.safetensors"))
    assert outcomes(one, two) == first and len(seen) == 2
    outcomes(one, tokens=(3, 5))
    assert len(seen) == 3, "what is measured with is told apart by more than its name"
    decayed = replace(RECIPE, training=replace(TINY, weight_decay=0.5))
    outcomes(replace(one, recipe=decayed), replace(two, seed=3), tokens=(3, 5))
    assert len(seen) == 5


def test_a_trial_in_other_coordinates_is_trained_in_them(store, tmp_path):
    """Doubling z and training on that is what a store of doubled spread would do if nothing
    standardised it.
    """
    doubled = RecipeTrial("doubled", RECIPE, store, 0, "doubled", lambda z_nd: 2 * z_nd)
    raw = store.read(store.rows("test"))
    plain = RecipeTrial("plain", RECIPE, store)
    assert torch.equal(doubled.seen(raw), 2 * plain.seen(raw))
    assert plain.seen(raw).std().item() == pytest.approx(1, abs=0.05)
    model, log = doubled.train(tmp_path / "doubled")
    _, plain_log = plain.train(tmp_path / "plain")
    assert torch.equal(model.normaliser(raw), raw)
    assert log[-1]["validation_loss"] > plain_log[-1]["validation_loss"]
    assert [("validation_loss" in entry) for entry in log] == [False, True]
    with pytest.raises(ValueError, match="need a transform"):
        RecipeTrial("a", RECIPE, store, coordinates="whitened")


def test_the_gaussian_of_a_trial_is_the_one_of_its_training_documents(store, tmp_path):
    trial = RecipeTrial("linear", replace(RECIPE, linear_skip=True), store)
    gaussian = trial.gaussian()
    z_nd = Normaliser.of(store)(store.read(store.rows("train"))).double()
    covariance = gaussian.basis_dd @ gaussian.eigenvalues_d.diag() @ gaussian.basis_dd.T
    assert torch.allclose(covariance.double(), torch.cov(z_nd.T), atol=1e-4)
    linear = replace(RECIPE, linear_skip=True)
    doubled = RecipeTrial("doubled", linear, store, 0, "doubled", lambda z_nd: 2 * z_nd).gaussian()
    assert torch.allclose(doubled.eigenvalues_d, 4 * gaussian.eigenvalues_d, rtol=1e-4)
    model, _ = trial.train(tmp_path / "linear", gaussian)
    assert torch.equal(model.network.basis_dd, gaussian.basis_dd)
    with pytest.raises(ValueError, match="pass the one fitted"):
        trial.train(tmp_path / "none")
    assert RecipeTrial("plain", RECIPE, store).gaussian() is None


def test_validation_rows_of_the_smallest_batch_give_every_batch_the_same_noise(store, tmp_path):
    """At a learning rate of nothing the weights stay, so the validation loss differs by its rows
    and noise alone.
    """

    def loss(batch, rows):
        still = replace(TINY, batch=batch, lr=0.0, weight_decay=0.0)
        name = f"still{batch}-{rows}"
        trial = RecipeTrial(name, replace(RECIPE, training=still), store, validation_rows=rows)
        return trial.train(tmp_path / name)[1][-1]["validation_loss"]

    assert loss(32, 32) == loss(64, 32) == loss(128, 32)
    assert loss(32, 128) != loss(64, 128)


def test_settings_that_came_later_count_only_where_they_differ(store):
    plain = RecipeTrial("one", RECIPE, store)
    changed = replace(plain, recipe=replace(RECIPE, training=replace(TINY, density="logit_normal")))
    training = plain.configuration({})["recipe"]["training"]
    assert not {"density", "weighting", "decay"} & set(training)
    later = changed.configuration({})["recipe"]["training"]
    assert later == {**training, "density": "logit_normal"}
    assert "validation_rows" not in plain.configuration({})
    assert replace(plain, validation_rows=9).configuration({})["validation_rows"] == 9


def test_more_activations_than_one_pass_are_refused(store):
    endless = replace(RECIPE, training=replace(TINY, steps=94))  # 94 × 32 = 3008 of 3000
    require_one_pass([RecipeTrial("one", RECIPE, store)])
    with pytest.raises(ValueError, match="takes 3,008 activations, 3,000 are there"):
        require_one_pass([RecipeTrial("one", endless, store)])


def test_a_probe_takes_longer_for_a_larger_network():
    small, large = (
        seconds_a_step(Recipe(MLPSize(3, width, 2 * width), replace(TINY, batch=256)), 64)
        for width in (16, 1024)
    )
    assert 0 < 3 * small < large


def test_validation_losses_are_of_validation_documents(store, tmp_path, monkeypatch):
    monkeypatch.setattr("mmlib.runs.sweep.train", lambda *given, **options: given[3])
    trial = RecipeTrial("one", RECIPE, store)
    _, validation_nd = trial.train(tmp_path)
    assert torch.equal(validation_nd, trial.seen(store.read(store.rows("validation"))))
