"""What is due after a change; and that two runs of one preset with one seed, by papermill and by nbval, give the same results."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import papermill
import pytest

from mmlib.__main__ import COMMANDS
from mmlib.files import processor
from mmlib.runs import plan
from mmlib.runs import run as runs

TIMES = {
    "seconds",
    "train_seconds",
    "fit_seconds",
    "minutes",
    "peak_gib",
    "provenance",
    "sources",
}  # what two equal runs may differ in
FIRST = {"01": "activations", "02": "baselines", "03": "training"}  # results of a notebook
NBVAL = (
    *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
    *("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600"),
)


def mmlib(*arguments, data, **outside):
    return subprocess.run(
        [sys.executable, "-m", "mmlib", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "MMLIB_DATA": str(data), **outside},
        timeout=1200,
    )


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The data folder of a run in which every notebook has its stamp."""
    monkeypatch.setattr(runs, "DATA", tmp_path)
    for notebook in plan.NOTEBOOKS:
        plan.stamp(notebook, "smoke", plan.state_of(notebook, "smoke"))
    return tmp_path


MAIN = ["01", "02", "03", "04", "05", "07", "08", "09", "31"]


@pytest.mark.parametrize(
    "changed, expected",
    [
        ("mmlib/activations/extract.py", MAIN),
        ("mmlib/denoisers/sae.py", MAIN[1:]),
        ("mmlib/training/train.py", MAIN[1:]),
        ("notebooks/studies/verdict.py", ["04", "09", "31"]),
        ("mmlib/evaluation/claim.py", ["04", "08", "09", "31"]),
        ("mmlib/evaluation/lm_loss.py", ["08", "09", "31"]),
        ("notebooks/studies/figures/losses.py", ["31"]),
        ("notebooks/05_sample_quality.ipynb", ["05", "09", "31"]),
        ("notebooks/studies/claims/ledger.py", ["09", "31"]),
        ("requirements.txt", MAIN),
        ("README.md", []),
    ],
)
def test_a_change_reruns_what_depends_on_it_and_no_more(ran, changed, expected):
    found = plan.due(["09_claims", "31_figures"], "smoke", [changed])
    assert [name[:2] for name in found] == expected
    assert all(
        f"{changed} changed" in reasons or "runs before it" in reasons[0]
        for reasons in found.values()
    )


def test_a_study_is_due_by_what_it_imports_and_by_what_ran_before_it(ran):
    found = plan.due(plan.named(["studies"]), "smoke", ["notebooks/studies/robustness.py"])
    assert [name[:2] for name in found] == ["23", "24"]
    plan.stamp("03_train_meta_model", "smoke", plan.state_of("03_train_meta_model", "smoke"))
    found = plan.due(["06_scaling", "21_recipes"], "smoke")
    assert found == {"06_scaling": ["03_train_meta_model ran since"]}


def test_results_that_the_ledger_takes_in_make_it_due(ran):
    folder = ran / "results" / "smoke"
    folder.mkdir(parents=True)
    (folder / "steering.json").write_text("{}")
    found = plan.due(plan.named(["main"]), "smoke")
    assert found == {
        "09_claims": ["smoke/steering.json changed"],
        "31_figures": ["09_claims runs before it"],
    }


def test_what_was_edited_while_a_notebook_ran_is_due(ran):
    before = plan.state_of("05_sample_quality", "smoke")
    before["mmlib/evaluation/losses.py"] = "as it was"
    plan.stamp("05_sample_quality", "smoke", before)
    found = plan.due(["05_sample_quality"], "smoke")
    assert found == {"05_sample_quality": ["mmlib/evaluation/losses.py changed"]}


def test_the_command_says_what_is_due_and_why(ran, monkeypatch, capsys):
    monkeypatch.setattr(plan, "rates_here", lambda: {"float32": 100.0, "bfloat16": 200.0})

    def said(name, *arguments):
        COMMANDS[name]([*arguments])
        return capsys.readouterr().out

    assert "nothing to do" in said("plan", "--preset", "smoke", "all")
    shown = said("run", "--preset", "smoke", "31")
    assert "nothing to do" in shown and "results: " in shown
    (ran / "stamps" / "smoke" / "05_sample_quality.json").unlink()
    shown = said("plan", "--preset", "smoke")
    rows = [line.split(maxsplit=2) for line in shown.splitlines() if line.startswith("  0")]
    assert [(name, why) for name, _, why in rows] == [
        ("05_sample_quality", "it never ran here"),
        ("09_claims", "05_sample_quality runs before it"),
    ]
    assert "31_figures" in shown and "together" in shown
    assert said("plan", "--paths", "02", "studies").splitlines()[:2] == [
        "notebooks/02_fit_baselines.ipynb",
        "notebooks/06_scaling.ipynb",
    ]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("plan 99", "unknown notebook '99': expected main, applications, studies, all, or"),
        ("plan --preset huge", "unknown preset 'huge': expected one of smoke, default"),
        ("plan --what-if mmlib/none.py", "no file mmlib/none.py: expected a path in the repo"),
        ("run --publish", r"01_extract_activations is due \(it never ran here\): make reproduce"),
        ("run --folder nowhere", "nowhere has no results of another run"),
    ],
)
def test_wrong_calls_are_refused_in_words(ran, wrong, message):
    name, *arguments = wrong.split()
    with pytest.raises(SystemExit, match=message):
        COMMANDS[name](arguments)


def test_every_notebook_is_in_the_plan_and_says_at_its_head_what_it_needs():
    paths = sorted((runs.ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(plan.NOTEBOOKS) == [path.stem for path in paths]
    order = list(plan.NOTEBOOKS)
    for i, (notebook, (_, needs)) in enumerate(plan.NOTEBOOKS.items()):
        assert all(order.index(name) < i for name in needs)
        head = json.loads(plan.path_of(notebook).read_text())["cells"][0]["source"]
        assert plan.needs_line(notebook) in "".join(head).splitlines()


def test_make_refuses_in_a_line_what_cannot_work_and_helps_without_anything(tmp_path):
    folder = tmp_path / "a $b"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "notebooks/pyproject.toml"):
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(runs.ROOT / name, target)

    def make(*arguments):
        outside = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        return subprocess.run(
            ["make", *arguments], cwd=folder, capture_output=True, text=True, env=outside
        )

    assert "make reproduce" in make("PYTHON=none").stdout
    done = make("reproduce", "PYTHON=none")
    assert done.returncode
    expected = "no none: expected Python 3.11 to 3.13, such as make PYTHON=python3.12\n"
    assert done.stdout == expected
    done = make("reproduce", f"PYTHON={sys.executable}")
    assert done.returncode and "a $b has a dollar or a colon in its path" in done.stderr
    assert not (folder / ".venv").exists()


def results(data, names):
    def without_times(value):
        if isinstance(value, dict):
            return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
        return [without_times(inner) for inner in value] if isinstance(value, list) else value

    folder = Path(data) / "results" / "smoke"
    return {
        name: without_times(json.loads((folder / f"{name}.json").read_text())) for name in names
    }


def data_folder(path):
    """A data folder that shares the converted language model with others."""
    (runs.DATA / "models").mkdir(parents=True, exist_ok=True)
    path.mkdir()
    (path / "models").symlink_to(runs.DATA / "models")
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The data folder in which `python -m mmlib run` has run 01 to 03."""
    data = data_folder(tmp_path_factory.mktemp("run") / "data")
    done = mmlib("run", "03", "--preset", "smoke", data=data)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "03_train_meta_model" in done.stdout.split("peak GiB")[1]
    return data


@pytest.mark.notebooks
def test_a_run_keeps_its_times_and_a_second_one_does_nothing(finished):
    shown = mmlib("run", "03", "--preset", "smoke", data=finished).stdout
    assert "nothing to do" in shown
    times = json.loads((finished / "results" / "smoke" / "run_times.json").read_text())
    machines = times["machines"].values()
    (this,) = (
        m for m in machines if m["cores"] == os.cpu_count() and m["processor"] == processor()
    )
    assert set(this["rates"]) == {"float32", "bfloat16", "disk"}
    assert {"01_extract_activations", "03_train_meta_model"} <= set(this["notebooks"])


@pytest.mark.notebooks
def test_two_runs_by_papermill_and_by_nbval_give_identical_results(finished, tmp_path):
    """`make test` runs nbval on every notebook beside the tests, and says where; alone, 01 to 03 are run here."""
    paths = [plan.path_of(n) for n in plan.NOTEBOOKS if n[:2] in FIRST]
    if beside := os.environ.get("MMLIB_NBVAL"):
        data, end = runs.ROOT / beside, time.time() + 1200
        while not (data / "results" / "smoke" / "training.json").exists() and time.time() < end:
            time.sleep(2)
    else:
        data = data_folder(tmp_path / "data")
        outside = {**os.environ, "PRESET": "smoke", "MMLIB_DATA": str(data)}
        done = subprocess.run([*NBVAL, *paths], capture_output=True, text=True, env=outside)
        assert done.returncode == 0, done.stdout[-5000:]
    assert results(data, FIRST.values()) == results(finished, FIRST.values())


@pytest.mark.notebooks
def test_the_command_line_trains_what_the_notebook_trained(finished):
    """The same settings, data and code, so it finds the notebook's model and repeats nothing; what no notebook trains is trained, or refused by name."""

    def train(recipe, *options):
        return mmlib("train", recipe, "--preset", "smoke", *options, data=finished)

    assert "already trained" in train("gated_mlp").stdout
    assert "published: {'step': 4, 'activations': 512," in train("published").stdout
    assert (
        "unknown recipe 'mpl': preset smoke has unet, mlp, gated_mlp, denoising_sae"
        in train("mpl").stderr
    )
    assert (
        "--layer 8 and --layers 4 8: expected one of the two"
        in train("mlp", "--layer", "8", "--layers", "4", "8").stderr
    )


@pytest.mark.notebooks
@pytest.mark.parametrize("where", ["/", "a folder"])
def test_a_notebook_finds_its_kernel_and_mmlib_from_any_folder(where, tmp_path, monkeypatch):
    """By papermill started at the root of the file system, and at a path with a space; `make test` starts them beside it."""
    monkeypatch.setenv("MMLIB_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PRESET", "default")
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path / where)
    output = tmp_path / "a folder" / "out.ipynb"
    papermill.execute_notebook(
        plan.path_of("09_claims"), output, progress_bar=False, kernel_name="python3"
    )
    assert (tmp_path / "data" / "results" / "default" / "claims.json").exists()


@pytest.mark.notebooks
def test_nbval_runs_a_notebook_at_a_path_with_a_space_from_the_root(tmp_path):
    (tmp_path / "a folder").mkdir()
    path = shutil.copy(plan.path_of("09_claims"), tmp_path / "a folder")
    outside = {**os.environ, "PRESET": "default", "MMLIB_DATA": str(tmp_path / "data")}
    done = subprocess.run(
        [*NBVAL, "--rootdir", tmp_path, path], cwd="/", capture_output=True, text=True, env=outside
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "data" / "results" / "default" / "claims.json").exists()
