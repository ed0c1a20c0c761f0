"""Parameters and names of runs, the errors a user meets first, and results by key: rows with names,
schemas, a migration that loses nothing.
"""

import ast
import copy
import errno
import importlib
import pkgutil
import re
import runpy
import shlex
from types import SimpleNamespace

import papermill
import pytest
from papermill.cli import _resolve_type

import mmlib_studies
from mmlib import files
from mmlib.activations import corpora, pretrained
from mmlib.runs import plan, results
from mmlib.runs import run as runs
from mmlib.runs.presets import PRESETS
from mmlib_studies import density, generalisation, lm_loss, replication, robustness, samples

NOTEBOOKS = sorted((runs.ROOT / "notebooks").glob("*.ipynb"))
FILES = {
    path.relative_to(runs.ROOT / "results")
    .with_suffix("")
    .as_posix()
    .removeprefix("default/"): path
    for folder in ("default", "gpu")
    for path in sorted((runs.ROOT / "results" / folder).glob("*.json"))
    if path.stem != "preregistered"  # written by hand, before there are results
}


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"preset": "big"}, "unknown preset 'big': expected one of smoke, quick, default, gpu"),
        ({"preset": 2024}, "unknown preset 2024: expected one of"),
        ({"preset": ["smoke"]}, "unknown preset"),
        *(({"seed": seed}, "expected an integer of 0 or more") for seed in (-1, 1.5, "0", True)),
        *(
            ({name: value}, f"{name} .*expected a string that is not empty; .* -r {name}")
            for name in ("model", "corpus", "meta_model")
            for value in (2024, 1e3, True, "", " ", ["a"])
        ),
    ],
)
def test_impossible_parameters_are_refused_in_words(parameters, message):
    with pytest.raises(ValueError, match=message):
        runs.start(**{"preset": "smoke", "seed": 0, **parameters})


def test_departures_from_the_preset_name_the_run():
    plain, third = (runs.start(preset="smoke", seed=seed) for seed in (0, 3))
    assert plain.name == "smoke" and third.shared == plain.data != third.data
    run = runs.start(preset="default", seed=2, model="EleutherAI/pythia-160m", corpus="texts/")
    assert run.name == "default+EleutherAI--pythia-160m+texts+seed2"
    assert run.preset.model == "EleutherAI/pythia-160m"
    assert run.figures != runs.start(preset="default", seed=0).figures
    assert runs.start(preset="default", seed=0, model="gemma3-270m", layer=8).name == "default"
    assert runs.start(preset="default", seed=0, layer=3).name == "default+layer3"


@pytest.mark.parametrize("name", ["model", "corpus", "meta_model"])
def test_no_two_values_give_one_name_of_a_run(name, tmp_path, monkeypatch):
    """Folders of one last part, seen from two places, with odd letters, of more letters than a
    file's name may have; ids of the Hub; and streams of both.
    """
    found = {}
    for place in ("a", "c"):
        for folder in ("b", "a/b", "b c", "b$c", "b+seed1", "b" * 200, "gpt2", "mlp2"):
            (tmp_path / place / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / place)
        local = ["b", "a/b", "b c", "b$c", "b+seed1", "b" * 200, "gpt2"]
        values = [*local, *([f"hf:{x}:train" for x in ("b", "a/b")] if name == "corpus" else [])]
        for value in values:
            run = runs.start(preset="smoke", seed=0, **{name: value})
            label = run.results.name
            assert len(label) < 100 and re.fullmatch(r"[\w.+:-]+", label)
            found.setdefault(label, set()).add((place, value))
            if not value.startswith("hf:"):  # the same folder by another way to it
                whole = runs.start(preset="smoke", seed=0, **{name: str(tmp_path / place / value)})
                assert whole.results == run.results
    hub = ["owner/b", "b1", "owner--b"] + ["hf:owner/b@c:train", "hf:b1"] * (name == "corpus")
    for value in hub[:2] + hub[3:]:
        label = runs.start(preset="smoke", seed=0, **{name: value}).results.name
        assert label.endswith(value.replace("/", "--"))
        found.setdefault(label, set()).add(value)
    assert all(len(values) == 1 for values in found.values()) and len(found) >= 16


def test_one_folder_as_model_and_as_corpus_are_two_runs(tmp_path):
    both = [runs.start(preset="smoke", seed=0, **{x: str(tmp_path)}) for x in ("model", "corpus")]
    assert len({run.name for run in both}) == 2


def test_names_of_what_is_packaged_are_no_paths(tmp_path, monkeypatch):
    texts = (corpora.WIKIPEDIA, corpora.NEWSGROUPS, corpora.PASSAGES, corpora.SELF)
    assert runs.NAMES == (named := (pretrained.EMBEDDED, *texts))
    for name in named:
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert runs.start(preset="smoke", seed=0, corpus="newsgroups").name == "smoke+newsgroups"


@pytest.mark.parametrize(
    "value", ["2024", "1e5", "-3", "1_0", "True", "None", "nan", "a b$c'", "x"]
)
def test_the_recorded_command_gives_the_value_back(own_root, value):
    run = runs.start(preset="smoke", seed=0, meta_model=value)
    path = run.write("numbers", {}, "11_steer")
    *_, option, name, text = shlex.split(files.read_json(path)["provenance"]["command"])
    assert name == "meta_model" and (_resolve_type(text) if option == "-p" else text) == value


@pytest.mark.parametrize("kind", ["results", "figures", "data folder", "permission", "full"])
def test_a_run_that_could_not_write_its_outcome_does_not_begin(own_root, monkeypatch, kind):
    if kind in ("permission", "full"):

        def refuse(dir, buffering):
            raise OSError(
                errno.EROFS if kind == "permission" else errno.ENOSPC, "words of the disk"
            )

        monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    else:
        path = own_root / "data" / ("" if kind == "data folder" else kind)
        path.parent.mkdir(exist_ok=True)
        path.write_text("a file is in the way")
    before = sorted(own_root.rglob("*"))
    with pytest.raises(OSError, match="smoke cannot be written .*, or point MMLIB_DATA to another"):
        runs.start(preset="smoke", seed=0)
    assert runs.start(preset="smoke", seed=0, writes=False).name == "smoke"
    assert sorted(own_root.rglob("*")) == before


def test_looking_whether_it_could_leaves_nothing(own_root):
    runs.start(preset="smoke", seed=0)
    assert not list(own_root.iterdir())


def test_a_parameter_of_one_notebook_names_its_results_and_leaves_the_runs_data(
    own_root, monkeypatch
):
    plain = runs.start(preset="smoke", seed=0, meta_model=None)
    other = runs.start(preset="smoke", seed=1, meta_model="owner/prior")
    assert plain == runs.start(preset="smoke", seed=0)
    assert plain.results == runs.DATA / "results" / "smoke"
    assert other.data == runs.start(preset="smoke", seed=1).data
    assert other.results == runs.DATA / "results" / "smoke+seed1+meta_model-owner--prior"
    one = runs.start(preset="smoke", seed=0, meta_model="mlp")
    assert len({run.figures for run in (one, plain, other)}) == 3
    path = one.write("numbers", {"answer": 1}, "11_steer")
    assert path == runs.DATA / "results" / "smoke+meta_model-mlp" / "numbers.json"
    assert "-p meta_model mlp" in files.read_json(path)["provenance"]["command"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_begins_its_run_first_and_refuses_parameters_that_it_does_not_declare(
    path, monkeypatch
):
    """Its own parameters and its own call, in a moment; a kernel would import for ten seconds
    first.
    """
    declared, *others = plan.code_of(path)
    start = next(i for i, code in enumerate(others) if "runs.start(" in code)
    body = ast.parse("\n".join(others[: start + 1])).body  # imports may have cells of their own
    (at,) = (
        i
        for i, node in enumerate(body)
        if isinstance(node, ast.Assign) and ast.unparse(node).startswith("run = runs.start(")
    )
    assert all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body[:at])
    names = {"runs": runs}
    exec(declared, names)
    names["preset"] = "smoke"
    own = ["meta_model"] if "meta_model" in names else []
    monkeypatch.setattr(runs, "_injected_names", lambda: ["preset", *own])
    exec(ast.unparse(body[at]), names)
    assert names["run"].preset.name == "smoke"
    allowed = ", ".join(["preset", "seed", "model", "corpus", "layer", *own])
    monkeypatch.setattr(runs, "_injected_names", lambda: ["preset", "sed", "stepz"])
    message = f"unknown parameter sed, stepz: this notebook takes {allowed}$"
    with pytest.raises(ValueError, match=message):
        exec(ast.unparse(body[at]), names)


@pytest.mark.notebooks
@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"sed": 1, "stepz": 3}, "unknown parameter sed, stepz: this notebook takes preset, seed"),
        ({"layer": 99}, "layer 99: expected an integer from 0 to 17"),
        ({"layer": 17}, "activations is missing: run notebooks/01_extract_activations.ipynb first"),
    ],
)
def test_papermill_fails_at_once_on_what_cannot_be(parameters, message, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        papermill.execute_notebook(
            plan.path_of("02_fit_baselines"),
            tmp_path / "out.ipynb",
            parameters={"preset": "smoke", **parameters},
            progress_bar=False,
            kernel_name="python3",
            execution_timeout=300,
            iopub_timeout=60,
        )


def test_a_run_leaves_what_is_published_and_reads_it_where_it_has_nothing_of_its_own(
    own_root, monkeypatch
):
    published = own_root / "results" / "default"
    files.write_json(published / "numbers.json", {"answer": 1})
    run = runs.start(preset="default", seed=0)
    assert run.results == own_root / "data" / "results" / "default"
    assert run.figures == own_root / "data" / "figures" / "default"
    assert run.has("numbers") and run.read("numbers", "11_steer") == {"answer": 1}
    run.write("numbers", {"answer": 2}, "11_steer")
    assert run.read("numbers", "11_steer")["answer"] == 2
    assert files.read_json(published / "numbers.json") == {"answer": 1}
    other = runs.start(preset="default", seed=1)
    assert not other.has("numbers") and not runs.start(preset="smoke", seed=0).has("numbers")
    monkeypatch.setattr(runs, "PUBLISHING", True)
    assert run.results == published and run.figures == own_root / "figures"
    assert other.results == own_root / "data" / "results" / "default+seed1"


def test_results_are_written_whole_with_finite_numbers_and_where_they_come_from(run, monkeypatch):
    path = run.write("numbers", {"x": 1}, "11_steer")
    facts = files.read_json(path)["provenance"]
    assert (facts["preset"], facts["seed"]) == ("smoke", 0)
    assert set(facts["packages"]) == set(files.PACKAGES) and facts["commit"] == "unknown"
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"numbers.json.rows\[1\].loss is nan"):
        run.write("numbers", {"rows": [{"loss": 1.0}, {"loss": float("nan")}]}, "11_steer")
    with pytest.raises(KeyboardInterrupt), files.written_whole(path) as partial:
        partial.write_text("{")
        raise KeyboardInterrupt
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


# Presets


def test_every_study_has_sizes_for_every_preset_that_it_can_run_at():
    modules = pkgutil.walk_packages(mmlib_studies.__path__, "mmlib_studies.")
    found = [importlib.import_module(module.name) for module in modules]
    tables = [vars(module).get(name) for module in found for name in ("SIZES", "GRIDS")]
    sizes = [table for table in tables if table]
    assert len(sizes) >= 10
    assert all(set(table) | plan.ONLY_MAIN == set(PRESETS) for table in sizes)
    main = [study.SIZES for study in (density, lm_loss, samples)]
    main += [generalisation.GAP_TOKENS, plan.DISK]
    assert all(set(table) == set(PRESETS) for table in main)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_consistent(name):
    assert samples.SIZES[name].drawn_unet <= samples.SIZES[name].drawn
    if name not in plan.ONLY_MAIN:
        again, shifted = (study.SIZES[name] for study in (replication, robustness))
        assert again.tokens % again.tokens_slow == 0
        assert shifted.tokens % shifted.tokens_mixture == 0
    trainings = {key: recipe.training for key, recipe in PRESETS[name].recipes.items()}
    for training in trainings.values():
        assert all(step <= training.steps for _, step in training.keep)
        assert training.batch % (training.levels or 1) == 0
    seen = trainings["unet"].steps * trainings["unet"].batch / trainings["mlp"].batch
    assert dict(trainings["mlp"].keep)["unet_activations"] == pytest.approx(seen, rel=0.35)
    assert trainings["mlp_short"].steps == pytest.approx(seen, rel=0.35)
    assert not trainings["mlp_short"].keep


# Results by key


@pytest.mark.parametrize(
    "fields, rows, found",
    [
        (
            ("{intervention}@{sigma}", "strength"),
            [
                {"intervention": "sdedit", "sigma": 0.5, "strength": 12.0, "cost": 1},
                {"intervention": "additive", "sigma": None, "strength": 12.0, "cost": 2},
            ],
            {"sdedit@0.5": ["12"], "additive": ["12"]},
        ),
        (
            ("method", "sigmas"),
            [{"method": "a", "sigmas": [0.1, 0.3], "x": 1}, {"method": "b", "sigmas": [0.5]}],
            {"a": ["0.1+0.3"], "b": ["0.5"]},
        ),
    ],
)
def test_rows_are_found_by_name_and_come_back(fields, rows, found):
    keyed = results.keyed(rows, *fields)
    assert {key: list(inner) for key, inner in keyed.items()} == found
    assert results.rows_of(keyed, *fields) == rows
    assert "method" not in str(keyed), "a field that is a name on its own leaves the row"


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


def test_rows_of_one_key_are_refused_below_the_outermost_name_too():
    with pytest.raises(ValueError, match="two rows of x . 1: a, b do not tell them apart"):
        results.keyed([{"a": "x", "b": 1}, {"a": "x", "b": 1}], "a", "b")


def test_nothing_in_results_is_found_by_its_place():
    with pytest.raises(ValueError, match="scaling.json: more is a list of rows: name its key"):
        results.keyed_results("scaling", {"more": [{"a": 1}]})


def with_intervals(content):
    """Every estimate of a results file."""
    if isinstance(content, dict):
        if content.get("ci95") and isinstance(content.get("value"), float):
            yield content
        for inner in content.values():
            yield from with_intervals(inner)


@pytest.mark.parametrize("name", FILES)
def test_committed_results_are_keyed_and_fit_their_schema_intervals_and_source(name):
    content = files.read_json(FILES[name])
    assert (results.SCHEMA / f"{name}.schema.json").exists()
    results.check(name, content)
    assert results.keyed_results(name, content) == content
    for row in with_intervals(content):
        assert row["ci95"][0] <= row["value"] <= row["ci95"][1]
    facts = content["provenance"]
    assert "+changes" not in facts["commit"] and facts["command"]
    assert "migrated_from" in facts or "cell" in facts or "notebook" not in facts


def test_what_does_not_fit_a_schema_is_named_with_file_and_path():
    content = copy.deepcopy(files.read_json(FILES["loss_comparison"]))
    content["losses"]["flow_velocity"]["mean"]["value"] = "1.5"
    message = r"loss_comparison.json .* at losses.flow_velocity.mean.value: '1.5'"
    with pytest.raises(ValueError, match=message):
        results.check("loss_comparison", content)
    del content["losses"]["flow_velocity"]["mean"]["value"]
    with pytest.raises(ValueError, match="at losses.flow_velocity.mean: 'value' is a required"):
        results.check("loss_comparison", content)
    content = files.read_json(FILES["steering_study"])
    results.check("steering_study", content | {"strengths": tuple(content["strengths"])})


@pytest.mark.parametrize("table", ["reductions", "reductions_common_subset"])
def test_what_is_undetermined_is_a_result_too(table):
    """As `Effects.reduction` gives it, where a baseline may have cost nothing."""
    content = copy.deepcopy(files.read_json(FILES["lm_loss"]))
    unknown = dict.fromkeys(("value", "ci95", "mean_reduction", "mean_ci95"))
    for row in results.rows_of(content[table], "method", "baseline", "sigmas"):
        place = content[table][row["method"]][row["baseline"]]
        for key in place:
            place[key] |= unknown | {"verdict": "undetermined", "mean_verdict": "undetermined"}
    results.check("lm_loss", content)


def test_every_file_that_a_notebook_writes_has_a_schema_and_its_cell():
    found = {}
    for path in NOTEBOOKS:
        source = "".join(plan.code_of(path))
        found |= dict.fromkeys(re.findall(r'run\.write\(\s*"(\w+)"', source), path)
    assert len(found) == 18 and set(found) <= set(results.tables())
    assert all(runs.cell_that_writes(name, path) for name, path in found.items())
    assert runs.cell_that_writes("recipes/one-trial", found["recipes"]) is None


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


@pytest.fixture(scope="module")
def migration():
    """The script that brought former results here, as a module."""
    return SimpleNamespace(**runpy.run_path(str(results.SCHEMA / "migrate.py")))


def test_a_migration_keeps_every_leaf(migration, capsys):
    new = migration.migrate(OLD, None)
    assert new["scaling"]["trials"]["b"]["loss"] == 2
    fresh = new["replication"]["fresh"]
    assert fresh["losses"]["mlp"] == {"value": 1.1, "ci95": [1.0, 1.2]}
    assert fresh["reductions"]["o"]["mlp"]["mean"] == {"value": 0.1, "role": "paper"}
    assert "'equal': 9, 'keys': 5, 'added': 1" in capsys.readouterr().out.splitlines()[-1]
    assert results.keyed_results("replication", new["replication"]) == new["replication"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"trials": {"a": {"loss": 1.6}}}, "scaling: rows → 0 → loss = 1.5 is not 1.6"),
        ({"trials": {"a": {"loss": None}}}, "scaling: rows → 0 → loss = 1.5 is not None"),
        ({"envelope": []}, "scaling: envelope → 0 = 'a' is not None"),
        ({"trials": {"b": {"loss": 2.0}}}, "scaling: rows → 1 → loss = 2 is not"),
    ],
)
def test_a_leaf_that_a_migration_changed_or_lost_is_named(migration, change, words):
    new = results.keyed_results("scaling", OLD["scaling"])
    for name, row in change.pop("trials", {}).items():
        new["trials"][name].update(row)
    with pytest.raises(ValueError, match=words):
        migration.account("scaling", OLD["scaling"], new | change)
