"""Committed trials are recognised as done, all of them, and what changes recomputes the trials that
it touches and no others.

No store is needed: a trial is known by the identity of one, which the committed files hold.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mmlib.files import read_json
from mmlib.runs import run as runs
from mmlib.runs.presets import OURS, get_preset
from mmlib.runs.results import rows_of
from mmlib.runs.sweep import Sweep, as_json
from mmlib_studies import replication, robustness, scaling
from mmlib_studies.best_model import BestModelStudy
from mmlib_studies.recipes.plan import plan
from mmlib_studies.recipes.study import PARTS, RecipeStudy
from mmlib_studies.steering import grid
from mmlib_studies.steering.sizes import GRIDS

RESULTS = runs.ROOT / "results" / "default"
PRESET = get_preset("default")


def committed(study):
    """The configurations in the committed files of a study, by name."""
    files = sorted((RESULTS / study).glob("*.json"))
    return {path.stem: read_json(path)["configuration"] for path in files}


def store_of(configuration, **changes):
    """What trials ask of a store, as the trial of that configuration had it."""
    keys = ("language_model", "corpus", "layer")
    identities = {key: configuration[key] for key in keys} | changes
    documents = configuration.get("documents") or configuration["evaluation"]["documents"]
    return SimpleNamespace(
        d=640,
        documents=documents,
        identities=identities,
        layer=identities["layer"],
        rows=lambda split: range(519_338),
    )


def scaling_trials(seed=0, **changes):
    store = store_of(committed("scaling")["width80-32512"])
    store = SimpleNamespace(**vars(store) | changes)
    size = scaling.SIZES["default"]
    evaluation = {"objective": "flow_velocity", "documents": "test", "seed": seed}
    evaluation["tokens_per_level"] = size.tokens
    rates = scaling.rate_trials(size, store, seed)
    return [
        *(one.trial(None, {"documents": "validation"}) for one in rates),
        *(one.trial(None, evaluation) for one in scaling.trials(size, store, seed)),
    ]


def replication_trials(prior=None):
    known = committed("replication")
    stores = [store_of(known[name]) for name in ("mixture-seed1", "mixture-fresh")]
    tried = read_json(RESULTS / "baselines.json")["mixture"]["tried_on_validation"]
    mixture = robustness.as_chosen(
        PRESET.mixture, rows_of(tried, "components", "prior", "em_steps")
    )
    mixture = replace(mixture, priors=(prior,)) if prior else mixture
    return replication.trials(PRESET, replication.SIZES["default"], *stores, 0, mixture, None, {})


def robustness_trials(weights=None):
    known = committed("robustness")
    stores = {layer: store_of(known[f"layer{layer}"]) for layer in (4, 8, 13)}
    evaluation = known["layer8"]["evaluation"]
    evaluation["mixture"]["weights"] = weights or evaluation["mixture"]["weights"]
    trials = robustness.trials(robustness.SIZES["default"], stores, 8, 0, abs)
    return [one.trial(None, evaluation) for one in trials]


def steering_trials(size=GRIDS["default"], **weights):
    known = committed("steering_study")["alone_unsteered"]
    identities, evaluation = store_of(known).identities, known["evaluation"]
    evaluation["weights"] |= weights
    return [grid.trial(one, None, evaluation, identities) for one in grid.combinations(size)]


def recipe_store():
    return store_of(next(iter(committed("recipes").values())))


def recipe_trials():
    """Planned with the outcomes that are committed: what comes later follows from what earlier
    parts found.
    """
    trials = {}
    run = runs.start(preset="default", seed=0)
    sweep = Sweep(run, "recipes", "21_recipes")

    def ask(trial):
        trials[trial.name] = trial
        return sweep.known(trial)

    study = RecipeStudy(run, recipe_store(), ask=ask)
    for part in PARTS:
        getattr(study, part)
    return list(trials.values())


def best_model_trials(seed=0):
    known = committed("best_model")["mixture-512-prior128-seed0"]
    run, fresh = runs.start(preset="default", seed=seed), SimpleNamespace(documents="articles")
    study = BestModelStudy(run, store_of(known), fresh)
    size = study.size
    # its finals are not run yet
    return [study.mixture_trial(k, prior) for k in size.components for prior in size.priors]


def changed(trials, study):
    """Names of the trials that would be computed: no file, or another configuration."""
    known = committed(study)
    return {trial.name for trial in trials if known.get(trial.name) != as_json(trial)}


@pytest.mark.parametrize(
    "study, trials, count",
    [
        ("scaling", scaling_trials, 37),
        ("robustness", robustness_trials, 6),
        ("recipes", recipe_trials, 93),
        ("best_model", best_model_trials, 12),
    ],
)
def test_no_committed_trial_is_computed_again(study, trials, count):
    trials = trials()
    assert {trial.name for trial in trials} == set(committed(study))
    assert len(trials) == count and changed(trials, study) == set()


def test_no_training_of_what_stayed_is_replicated_again():
    trials = replication_trials()
    anew = {trial.name for trial in trials if trial.name.startswith((OURS, "mixture"))}
    assert len(trials) == 12 and len(anew) == 6
    assert changed(trials, "replication") <= anew
    assert set(committed("replication")) <= {trial.name for trial in trials}


def test_of_steering_what_no_network_repairs_is_not_computed_again():
    trials = steering_trials()
    anew = {trial.name for trial in trials if OURS in trial.name}
    assert len(trials) == 69 and len(anew) == 6
    assert changed(trials, "steering_study") == anew


def test_the_plan_of_recipes_finds_all_of_them_done():
    rows = plan(runs.start(preset="default", seed=0), recipe_store())
    assert sum(row["trials"] for row in rows) == 93
    assert sum(row["left"] for row in rows) == sum(row["minutes"] for row in rows) == 0


@pytest.mark.parametrize(
    "study, trials, count",
    [
        ("scaling", lambda: scaling_trials(seed=1), 37),
        ("scaling", lambda: scaling_trials(documents="wikipedia@0/0"), 37),
        ("robustness", lambda: robustness_trials(weights="0" * 12), 6),
        ("best_model", lambda: best_model_trials(seed=1), 12),
        *(
            ("steering_study", lambda name=name: steering_trials(**{name: "0" * 12}), 69)
            for name in ("meta_model", "sae", "mixture")
        ),
    ],
)
def test_another_seed_text_or_digest_recomputes_a_whole_study(study, trials, count):
    assert len(changed(trials(), study)) == count


def test_another_prior_recomputes_the_mixtures_alone():
    plain, other = (
        {trial.name: as_json(trial) for trial in replication_trials(prior)}
        for prior in (None, 32.0)
    )
    touched = {name for name in plain if plain[name] != other[name]}
    assert touched == {"mixture-fresh", "mixture-seed1", "mixture-seed2"}


def test_another_strength_recomputes_its_own_combinations():
    size = replace(GRIDS["default"], strengths=(3.0, 6.0, 12.0, 24.0))
    plain = {one.name: as_json(one) for one in steering_trials()}
    touched = {one.name for one in steering_trials(size) if as_json(one) != plain.get(one.name)}
    assert touched and all(name.startswith("sentiment_mean_difference_") for name in touched)
    assert len(touched) == len(grid.interventions(size))
