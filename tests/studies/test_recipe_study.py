"""The study of recipes: tuning gives everyone as many trials, times are read off the log, and parts
depend on each other as they say.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmlib.activations.store import ActivationStore
from mmlib.denoisers.networks import MLPSize, image_shape
from mmlib.training.recipe import Recipe, Training
from mmlib_studies.recipes import images
from mmlib_studies.recipes import outcomes as trials
from mmlib_studies.recipes.plan import guess, plan
from mmlib_studies.recipes.sizes import SIZES, RecipeStudySize
from mmlib_studies.recipes.study import PARTS, RecipeStudy
from mmlib_studies.recipes.trainings import Trainings, watched

TINY = watched(Training("flow_velocity", steps=4, batch=32, lr=1e-3, bf16=False), 2)


def outcome(seconds, losses, setup=0.0, loss=None):
    log = {"step": list(range(1, len(losses) + 1)), "seconds": seconds}
    log |= {"loss": losses, "validation_loss": losses}
    loss = losses[-1] if loss is None else loss
    return {"loss": loss, "setup_seconds": setup, "seconds": seconds[-1], "log": log}


# Rates


@pytest.mark.parametrize(
    "losses, rate, edge",
    [
        ({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0}, 8e-3, True),
        ({1e-3: 1.0, 2e-3: 2.0}, 5e-4, True),
        ({1e-3: 1.5, 4e-3: 1.0, 9e-3: 2.0}, 2e-3, False),
        ({1e-3: 2.5, 4e-3: 1.0, 9e-3: 2.0}, 6e-3, False),
    ],
)
def test_the_next_rate_is_beyond_the_edge_or_towards_the_better_neighbour(losses, rate, edge):
    assert trials.further_rate(losses) == pytest.approx(rate) and trials.at_edge(losses) == edge


def test_everyone_gets_as_many_trials_and_the_edge_is_left_behind():
    """Two parabolas in log rate: one has its best inside the grid, the other two octaves above
    it.
    """
    asked = []

    def train(name, rate):
        asked.append((name, rate))
        return {"loss": (np.log2(rate) - {"inside": 1.1, "above": 4.1}[name]) ** 2}

    found = trials.tune([1.0, 2.0, 4.0], 4, ["inside", "above"], train)
    assert len(found["inside"]) == len(found["above"]) == 6 and len(asked) == 12
    assert trials.best_of(found["above"]) == 16.0
    assert not trials.at_edge({rate: o["loss"] for rate, o in found["above"].items()})
    assert trials.best_of(found["inside"]) == pytest.approx(2**1.1, rel=0.15)
    assert len(trials.tune([1.0, 2.0, 4.0], 1, ["above"], train)["above"]) == 4


def test_a_training_that_diverged_is_never_the_best():
    gone = {"diverged": "loss nan at step 3"}
    assert trials.best_of({1.0: gone, 2.0: {"loss": 5.0}}) == 2.0
    with pytest.raises(ValueError, match="every trial diverged, the last so: loss nan at step 3"):
        trials.best_of({1.0: gone})


# Times


def test_time_to_a_loss_counts_the_setup_and_takes_the_first_entry_there():
    found = outcome([10.0, 20.0, 30.0], [1.5, 1.3, 1.35], setup=4.0)
    times = [trials.time_to(found, target) for target in (1.3, 1.4, 1.2)]
    assert times == [24.0, 24.0, None] and trials.whole_time(found) == 34.0
    assert trials.curve_of(found)["seconds"] == [14.0, 24.0, 34.0]


def test_ratios_are_paired_by_seed_and_missing_where_a_seed_is():
    ours = [outcome([1.0, 2.0], [1.4, 1.0]), outcome([1.0, 4.0], [1.4, 1.0])]
    theirs = [outcome([10.0, 20.0, 30.0], [1.4, 1.1, 1.0]), outcome([2.0, 5.0], [1.9, 1.8])]
    found = trials.ratios(ours, theirs, [1.1, 1.5])
    assert found["theirs_seconds"] == [20.0, 5.0] and found["theirs_reached"] == [True, False]
    assert found["ours_seconds"] == [2.0, 1.0] and found["ratio"]["values"] == [0.1, 0.2]
    assert "ratio" not in trials.ratios(ours, theirs, [0.9, 1.5])


def test_speed_is_a_median_that_start_up_does_not_move():
    log = {"step": [3, 6, 9, 12], "seconds": [50.0, 50.6, 51.2, 60.0]}
    assert trials.seconds_a_step({"log": log}) == pytest.approx(0.2)


def test_recipes_are_paired_by_seed():
    pair = trials.paired([{"loss": 1.0}, {"loss": 2.0}], [{"loss": 1.5}, {"loss": 1.9}])
    assert pair["values"] == pytest.approx([-0.5, 0.1]) and not pair["every_seed"]
    lower = [{"loss": 1.0}, {"loss": 1.2}, {"loss": 1.1}]
    gone = [{"loss": 2.0}, {"loss": 1.9}, {"diverged": "so"}]
    assert trials.paired(lower[:2], gone[:2])["every_seed"]
    for pair in (trials.paired(gone, lower), trials.paired(lower, gone)):
        assert pair["diverged"] == 1 and len(pair["values"]) == 2 and not pair["every_seed"]
    found = trials.losses_of(gone)
    assert (found["values"], found["diverged"]) == ([2.0, 1.9], 1)


# Trainings


@pytest.fixture
def trainings(run, store):
    return Trainings(run, store)


def test_an_outcome_of_a_training_holds_its_log_and_its_setup(trainings):
    recipe = Recipe(MLPSize(1, 8, 16), TINY)
    plain, linear = (
        trainings.outcome(trainings.of(name, replace(recipe, linear_skip=skip), 0))
        for name, skip in (("plain", False), ("linear", True))
    )
    assert plain["log"]["step"] == [2, 4]
    assert plain["log"]["validation_loss"][-1] == pytest.approx(plain["validation_loss"], abs=1e-5)
    assert plain["setup_seconds"] == 0 < linear["setup_seconds"]
    assert linear["parameters"] == plain["parameters"] + 8 + 36
    assert linear["loss"] > 0 and plain["configuration"]["evaluation"]["tokens_per_level"] == 10
    again = Trainings(trainings.sweep.run, trainings.store)
    assert again.outcome(again.of("plain", recipe, 0)) == plain


def test_only_the_log_of_a_speed_is_kept(trainings):
    one = trainings.of("one", Recipe(MLPSize(1, 8, 16), TINY), 3)
    assert trainings.speed(one, "toy") > 0
    found = trainings.outcomes["speed-toy"]
    assert "loss" not in found and found["configuration"]["evaluation"] == {}
    assert found["configuration"]["seed"] == 0  # whatever the trial's


def test_a_training_that_diverges_is_an_outcome(trainings):
    hot = trainings.of("hot", Recipe(MLPSize(1, 8, 16), replace(TINY, lr=1e30, steps=8)), 0)
    found = trainings.outcome(hot)
    assert "step" in found["diverged"] and "loss" not in found
    assert trials.loss_of(found) == np.inf and trials.row_of(found)["loss"] is None
    assert trainings.sweep.known(trainings.trial(hot, measured=True))


# The study

SIZE = replace(SIZES["smoke"], mlp=MLPSize(3, 8, 16), steps=4, more_rates=0, tokens=4)


@pytest.fixture
def study(run, store, monkeypatch):
    """With made-up outcomes: `study.asked` lists trials, losses come from `study.law(trial)`."""
    found = RecipeStudy(run, store, size=SIZE)
    found.asked = []

    def made_up(cell, measured=True):
        found.asked.append(cell.name)
        training, loss = cell.recipe.training, found.law(cell)
        settings = {key: getattr(training, key) for key in ("lr", "batch", "steps")}
        return {
            "configuration": {"recipe": {"training": settings}},
            "activations": cell.activations,
            "parameters": 1,
            **outcome([0.5 * training.batch, 1.0 * training.batch], [2.0, loss]),
        }

    monkeypatch.setattr(found.train, "outcome", made_up)
    found.law = lambda cell: 1 + abs(np.log2(cell.recipe.training.lr / 2e-3))
    return found


def test_another_batch_gets_the_steps_that_last_as_long(study):
    # a row takes as long in any batch here
    assert study.train.steps_for("published", 32) == 8
    assert study.train.steps_for("published", 64) == 4
    assert study.asked == ["speed-published-batch32", "speed-published-batch64"]


def test_ours_takes_the_shortest_schedule_with_which_every_seed_comes_there(study):
    def law(cell):  # with the second seed it is there only after twice as long
        late = cell.recipe.training.steps == 4 and cell.seed == 1
        return 1.6 if late else 1.0

    study.law = law
    found = study.shortest((1.0, 2.0, 3.0), [1.5, 1.5])
    assert found["length"] == 2.0 and list(found["tried"]) == [1.0, 2.0]
    assert [end["loss"] for end in found["outcomes"]] == [1.0, 1.0]
    never = study.shortest((1.0, 2.0), [0.5, 0.5])
    assert never["length"] == 2.0 and len(never["outcomes"]) == 2 and len(never["tried"][1.0]) == 1


def test_published_settings_stop_at_one_seed_only_far_above_the_target(study):
    study.law = lambda cell: 2.0
    assert len(study.published_settings) == 1
    del study.__dict__["published_settings"]
    study.law = lambda cell: 1.33
    assert len(study.published_settings) == 2


def test_the_published_architecture_is_tried_as_often_as_ours_at_the_length_used(study):
    rate_law = study.law
    study.law = lambda cell: rate_law(cell) + 0.1 * (not cell.recipe.size.gated_skip)
    tried = study.tried()
    assert len(tried["published"]) >= len(tried["gated"]) and study.published_long["rate"] == 2e-3
    # tuned, another batch, the whole length
    assert len({row["steps"] for row in tried["published"]}) == 3


def planned(run, store, size=None, parts=PARTS):
    """The study with guesses for outcomes."""
    study = RecipeStudy(run, store, size=size, ask=lambda trial: guess(trial, study.size))
    for part in parts:
        getattr(study, part)
    return study


@pytest.mark.parametrize("size", [None, RecipeStudySize(steps=40, batch=512)])
def test_no_two_cells_share_a_name_so_that_a_rerun_finds_them_all(run, make_store, size):
    """Every trial of the whole study, the speeds too: a name with two configurations would be
    trained anew each time.
    """
    store = ActivationStore(make_store(d=64, dtype="float32")[0])
    train, size = planned(run, store, size).train, size or SIZES["smoke"]
    kinds = {"published", "shared", "gated", "linear", "unet", "speed"}
    assert {name.split("-")[0] for name in train.named} == kinds
    for seed in (0, 1):
        train.unet(2e-3, size.unet_channels[0], seed)
        train.mlp("published", 2e-3, seed, batch=256)
    speeds = [trial for name, trial in train.named.items() if name.startswith("speed-")]
    assert {(trial.seed, trial.recipe.training.lr) for trial in speeds} == {(0, size.rates[0])}
    with pytest.raises(ValueError, match="two trials are called speed-unet-reference"):
        train.outcome(replace(train.named["speed-unet-reference"], seed=5))


def test_the_plan_trains_nothing_and_counts_every_cell_once(run, store, tmp_path):
    rows = plan(run, store)
    assert [row["part"] for row in rows] == [part.replace("_", " ") for part in PARTS]
    assert all(row["left"] == row["trials"] for row in rows)
    assert sum(row["trials"] for row in rows) > 30 and sum(row["minutes"] for row in rows) > 0
    assert not run.results.exists()


def test_parts_ask_for_none_that_stands_after_them(run, store):
    """So a plan counts each trial with the part that first asks for it."""
    for i, part in enumerate(PARTS):
        study = planned(run, store, parts=PARTS[: i + 1])
        assert not set(PARTS[i + 1 :]) & set(vars(study)), part


def test_a_compiler_that_fails_is_a_reason_not_an_error(run, store, monkeypatch):
    whole = torch.compile

    def broken(graph, inputs):
        raise OSError("no C++ compiler\nfurther lines")

    monkeypatch.setattr(torch, "compile", lambda module: whole(module, backend=broken))
    assert "no C++ compiler" in RecipeStudy(run, store).compiled["skipped"]


def test_neighbours_are_found_where_they_are_and_not_where_they_are_not():
    """Dimensions 2i and 2i + 1 share half their variance: half of the pairs side by side correlate
    by 0.5, and none a row apart.
    """
    generator = torch.Generator().manual_seed(0)
    alone = torch.randn(20_000, 24, generator=generator)
    shared = torch.randn(20_000, 12, generator=generator).repeat_interleave(2, dim=1)
    found = images.neighbours((alone + shared) / 2**0.5, 8, seed=0)
    beside, above = found["beside"], found["above"]
    assert beside["band"][1] < beside["mean"] == pytest.approx(0.5 * 12 / 23, abs=0.01)
    assert above["mean"] < 0.02 and above["mean"] <= above["band"][1]
    nothing = images.neighbours(alone, 8, seed=0)
    assert all(part["band"][0] <= part["mean"] <= part["band"][1] for part in nothing.values())


def test_heights_that_do_not_fit_the_width_are_left_out():
    assert images.other_heights(640, (4, 8, 20, 40)) == [4, 8, 40]  # 20 is its own
    assert images.other_heights(768, (4, 8, 40)) == [4, 8]
    for d in (96, 640, 768, 1000):
        heights = images.other_heights(d, range(4, 200, 4))
        assert [image_shape(d, height)[0] for height in heights] == heights
