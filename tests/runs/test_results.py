"""Results by key: rows that have names, files that fit their schema, and a migration that loses nothing."""

import copy
import importlib.util
import json
import re

import pytest

from mmlib.files import read_json
from mmlib.runs import results
from mmlib.runs.run import ROOT

FILES = {
    path.relative_to(ROOT / "results").with_suffix("").as_posix().removeprefix("default/"): path
    for folder in ("default", "gpu")
    for path in sorted((ROOT / "results" / folder).glob("*.json"))
}


def migrate():
    spec = importlib.util.spec_from_file_location("migrate", results.SCHEMA / "migrate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_found_by_name():
    rows = [
        {"intervention": "sdedit", "sigma": 0.5, "strength": 12.0, "cost": 1},
        {"intervention": "additive", "sigma": None, "strength": 12.0, "cost": 2},
    ]
    found = results.keyed(rows, "{intervention}@{sigma}", "strength")
    assert list(found) == ["sdedit@0.5", "additive"] and found["additive"]["12"]["cost"] == 2
    assert results.rows_of(found, "{intervention}@{sigma}", "strength") == rows


def test_a_name_on_its_own_leaves_the_row_and_comes_back():
    rows = [{"method": "a", "sigmas": [0.1, 0.3], "x": 1}, {"method": "b", "sigmas": [0.5], "x": 2}]
    found = results.keyed(rows, "method", "sigmas")
    assert found["a"] == {"0.1+0.3": {"sigmas": [0.1, 0.3], "x": 1}}
    assert results.rows_of(found, "method", "sigmas") == rows


@pytest.mark.parametrize(
    "rows, error, words",
    [
        ([{"a": 1}, {"a": 1}], ValueError, "two rows of 1: a do not tell them apart"),
        ([{"b": 1}], KeyError, "a row has no 'a': expected a, it has b"),
    ],
)
def test_rows_that_cannot_be_named_are_refused(rows, error, words):
    with pytest.raises(error, match=re.escape(words)):
        results.keyed(rows, "a")


def test_nothing_in_results_is_found_by_its_place():
    with pytest.raises(ValueError, match="scaling.json: more is a list of rows: name its key"):
        results.keyed_results("scaling", {"more": [{"a": 1}]})


@pytest.mark.parametrize("name", FILES)
def test_committed_results_fit_their_schema_and_are_keyed(name):
    content = read_json(FILES[name])
    assert (results.SCHEMA / f"{name}.schema.json").exists()
    results.check(name, content)
    assert results.keyed_results(name, content) == content


@pytest.mark.parametrize("name", FILES)
def test_committed_results_say_where_they_come_from(name):
    provenance = read_json(FILES[name])["provenance"]
    assert "+changes" not in provenance["commit"] and provenance["command"]
    assert "migrated_from" in provenance or "cell" in provenance or "notebook" not in provenance


@pytest.mark.parametrize("name", FILES)
def test_estimates_lie_in_their_intervals(name):
    def walk(content):
        if isinstance(content, dict):
            if content.get("ci95") and isinstance(content.get("value"), float):
                low, high = content["ci95"]
                assert low <= content["value"] <= high
            for inner in content.values():
                walk(inner)

    walk(read_json(FILES[name]))


def test_what_does_not_fit_a_schema_is_named_with_file_and_path():
    content = copy.deepcopy(read_json(FILES["loss_comparison"]))
    content["losses"]["flow_velocity"]["mean"]["value"] = "1.5"
    message = r"loss_comparison.json .* at losses.flow_velocity.mean.value: '1.5'"
    with pytest.raises(ValueError, match=message):
        results.check("loss_comparison", content)
    del content["losses"]["flow_velocity"]["mean"]["value"]
    with pytest.raises(ValueError, match="at losses.flow_velocity.mean: 'value' is a required"):
        results.check("loss_comparison", content)


def test_a_tuple_is_the_list_that_its_file_will_hold():
    content = json.loads((ROOT / "results" / "default" / "steering_study.json").read_text())
    results.check("steering_study", content | {"strengths": tuple(content["strengths"])})


def test_every_file_that_a_notebook_writes_has_a_schema_and_its_cell():
    found = {}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        source = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
        found |= dict.fromkeys(re.findall(r'run\.write\(\s*"(\w+)"', source), path)
    assert len(found) == 17 and set(found) <= set(results.tables())
    assert all(results.cell_that_writes(name, path) for name, path in found.items())
    assert results.cell_that_writes("recipes/one-trial", found["recipes"]) is None


OLD = {
    "scaling": {
        "rows": [{"name": "a", "d_model": 8, "loss": 1.5}, {"name": "b", "d_model": 8, "loss": 2}],
        "envelope": ["a"],
    },
    "replication": {
        "fresh": {
            "losses": {"mlp": [1.1, 1.0, 1.2]},
            "reductions": [
                {"objective": "o", "method": "mlp", "baseline": "mean", "reduction": 0.1}
            ],
        }
    },
}


def test_a_migration_keeps_every_leaf(capsys):
    new = migrate().migrate(OLD, None)
    assert new["scaling"]["trials"]["b"]["loss"] == 2
    fresh = new["replication"]["fresh"]
    assert fresh["losses"]["mlp"] == {"value": 1.1, "ci95": [1.0, 1.2]}
    assert fresh["reductions"]["o"]["mlp"]["mean"] == {"value": 0.1, "role": "paper"}
    assert "'equal': 9, 'keys': 5, 'added': 1" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    "place, value, words",
    [
        (("trials", "a", "loss"), 1.6, "scaling: rows → 0 → loss = 1.5 is not 1.6"),
        (("trials", "a"), {"d_model": 8}, "scaling: rows → 0 → loss = 1.5 is not None"),
        (("envelope",), [], "scaling: envelope → 0 = 'a' is not None"),
        (("trials", "b", "loss"), 2.0, "scaling: rows → 1 → loss = 2 is not"),
    ],
)
def test_a_leaf_that_a_migration_changed_or_lost_is_named(place, value, words):
    new = results.keyed_results("scaling", OLD["scaling"])
    *above, last = place
    spot = new
    for key in above:
        spot = spot[key]
    spot[last] = value
    with pytest.raises(ValueError, match=words):
        migrate().account("scaling", OLD["scaling"], new)
