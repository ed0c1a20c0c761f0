"""Two runs of one preset with one seed, by papermill and by nbval, give the same results; make and
notebooks work from any folder.
"""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import papermill
import psutil
import pytest
import tiny_lm

from mmlib.activations.store import verify
from mmlib.files import processor, read_json
from mmlib.runs import pipeline, plan
from mmlib.runs import run as runs
from mmlib.runs.presets import OURS

# What two equal runs may differ in.
TIMES = set(
    "seconds train_seconds network_seconds fit_seconds minutes peak_gib provenance sources".split()
)
FIRST = {"01": "activations", "02": "baselines", "03": "training"}  # results of a notebook
NBVAL = (
    *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
    *("--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=600"),
)


def started(*command, cwd="/", **outside):
    """A command at the root of the file system, or in another folder, with more in its
    environment.
    """
    options = {"cwd": cwd, "capture_output": True, "text": True, "timeout": 1200}
    return subprocess.run(command, env={**os.environ, **outside}, **options)


def mmlib(*arguments, data):
    return started(sys.executable, "-m", "mmlib", *arguments, MMLIB_DATA=str(data))


def copy_of_make(folder):
    """A folder with what make needs before anything is installed."""
    for name in ("Makefile", "requirements.txt", "pyproject.toml", "notebooks/pyproject.toml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(runs.ROOT / name, folder / name)
    outside = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return {"cwd": folder, "text": True, "env": outside}


@pytest.mark.parametrize("other", ["2.7", "3.8", "3.9", "3.10", "3.14", "4.0"])
def test_make_refuses_another_python_in_a_line_and_helps_at_any(tmp_path, other):
    """In a fresh clone. `python` stands in for one of that version; it would also note an
    installation.
    """
    options = {**copy_of_make(tmp_path / "fresh"), "capture_output": True}
    python = tmp_path / "a python"
    version = tuple(map(int, other.split(".")))
    python.write_text(
        f"#!{sys.executable}\nimport sys\nopen('{tmp_path}/asked', 'a').write(str(sys.argv))\n"
        f"sys.version_info = (*{version}, 0)\nexec(sys.argv[2])\n"
    )
    python.chmod(0o755)
    helped = subprocess.run(["make", "help", f"PYTHON={python}"], **options)
    assert "make reproduce" in helped.stdout and not helped.stderr
    assert not (tmp_path / "asked").exists()
    done = subprocess.run(["make", "reproduce", f"PYTHON={python}"], **options)
    expected = f"{python} is Python {other}: expected 3.11 to 3.13, such as make PYTHON=python3.12"
    assert done.returncode and done.stderr.splitlines()[0] == expected and not done.stdout
    assert "venv" not in (tmp_path / "asked").read_text()
    code = (runs.ROOT / "Makefile").read_text(encoding="utf-8").split('"$(PYTHON)" -c \'')[1]
    code = code.split("'\n")[0].replace("\\\n", "").replace("$$", "$")
    ast.parse(code, feature_version=(3, 7))  # no later grammar, which an older Python would refuse


@pytest.mark.parametrize("name", ["my disk", "my $disk", "my $b", "$$", "a'b", "é #1 %d"])
@pytest.mark.parametrize("how", ["environment", "command line"])
def test_make_hands_on_the_data_folder_or_refuses_its_dollar(tmp_path, name, how):
    """It would replace $b by nothing, and write elsewhere."""
    folder = tmp_path / "My Documents"
    options = {**copy_of_make(folder), "capture_output": True}
    (folder / ".venv" / "bin").mkdir(parents=True)
    python, data = folder / ".venv" / "bin" / "python", str(tmp_path / name)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$MMLIB_DATA"\n')
    python.chmod(0o755)
    (folder / ".venv" / "ready").touch()
    given = {"MMLIB_DATA": data} if how == "environment" else {}
    options["env"] |= given
    command = ["make", "plan", *([] if given else [f"MMLIB_DATA={data}"])]
    done = subprocess.run(command, **options)
    if "$" in name and how == "command line":
        assert done.returncode and "MMLIB_DATA has a dollar: write it before make" in done.stderr
    else:
        assert done.returncode == 0 and done.stdout == f"{data}\n"


def test_make_refuses_in_a_line_what_cannot_work_and_helps_without_anything(tmp_path):
    folder = tmp_path / "a $b"
    options = {**copy_of_make(folder), "capture_output": True}
    assert "make reproduce" in subprocess.run(["make", "PYTHON=none"], **options).stdout
    done = subprocess.run(["make", "reproduce", "PYTHON=none"], **options)
    expected = "no none: expected Python 3.11 to 3.13, such as make PYTHON=python3.12\n"
    assert done.returncode and done.stdout == expected
    done = subprocess.run(["make", "reproduce", f"PYTHON={sys.executable}"], **options)
    assert done.returncode and "a $b has a dollar or a colon in its path" in done.stderr
    assert not (folder / ".venv").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_of_several_first_makes_at_the_same_moment_one_installs_and_the_others_wait(
    tmp_path, fails
):
    """`python` stands in for Python: it notes what it is asked, and an installation takes it a
    moment.
    """
    folder = tmp_path / "a folder"
    options = copy_of_make(folder)
    python = folder / "python"
    python.write_text(
        '#!/bin/sh\necho "$@" >> asked\ncase "$2" in\n'
        "  venv) mkdir -p .venv/bin; cp python .venv/bin/python;;\n"
        f"  pip) sleep 0.5; exit {int(fails)};;\nesac\n"
    )
    python.chmod(0o755)
    whole = ["make", "plan", "PYTHON=./python"]
    makes = [subprocess.Popen(whole, stdout=subprocess.PIPE, **options) for _ in range(3)]
    said = "".join(make.communicate(timeout=60)[0] for make in makes)
    asked = (folder / "asked").read_text().splitlines()
    assert not (folder / ".venv.lock").exists()
    if fails:
        assert all(make.returncode for make in makes) and "mmlib plan" not in str(asked)
    else:
        assert not any(make.returncode for make in makes)
        assert sum(line.startswith("-m venv") for line in asked) == 1
        assert sum("mmlib plan" in line for line in asked) == 3
        assert said.count("installing the pinned packages") == 1


def test_a_notebook_has_the_kernel_and_the_modules_of_its_environment_alone():
    """As VS Code starts it: by the interpreter of .venv, in the notebook's folder, with no path
    set; a kernel with a name or an interpreter of its own in the notebook would be asked for, and
    be nowhere else.
    """
    for notebook in plan.NOTEBOOKS:
        metadata = nbformat.read(plan.path_of(notebook), as_version=4).metadata
        assert set(metadata) <= {"kernelspec", "language_info", "widgets"}
        assert metadata.kernelspec.name == "python3" and metadata.kernelspec.language == "python"
    code = "import ipykernel_launcher, mmlib, mmlib_studies; from mmlib.runs.run import start"
    bare = {"PATH": "/usr/bin:/bin", "HOME": "/nowhere"}
    subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT / "notebooks", env=bare, check=True)


@pytest.mark.parametrize("where", ["HOME", "JUPYTER_PATH", "JUPYTER_DATA_DIR", "XDG_DATA_HOME"])
def test_another_kernel_of_the_same_name_is_not_taken(tmp_path, monkeypatch, where):
    """Left by another Python in a user's own folder, or set by a cluster's modules."""
    below = {"HOME": ".local/share/jupyter", "XDG_DATA_HOME": "jupyter"}.get(where, "")
    foreign = tmp_path / below / "kernels" / "python3"
    foreign.mkdir(parents=True)
    spec = {"argv": ["/usr/bin/other", "{connection_file}"], "display_name": "a", "language": "b"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    seen = {}
    monkeypatch.setenv(where, str(tmp_path))
    monkeypatch.setattr(pipeline, "_record_times", lambda preset: None)

    def notice(command, env):
        seen.update(env)
        return SimpleNamespace(returncode=0)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.subprocess, "run", notice)
        pipeline.run(["01_extract_activations"], "smoke")
    code = (
        "from jupyter_client.kernelspec import get_kernel_spec as g; print(g('python3').argv[:3])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=seen, capture_output=True, text=True)
    command = ast.literal_eval(done.stdout)
    assert command[0] in ("python", sys.executable) and command[1:] == ["-m", "ipykernel_launcher"]


@pytest.fixture(scope="module")
def much_text(tmp_path_factory):
    """A wide model of one block and 60,000 tokens a part, so that parts come soon; and several
    parts of text.
    """
    folder = tmp_path_factory.mktemp("much")
    sizes = dict(hidden_size=512, intermediate_size=512, num_hidden_layers=2, head_dim=128)
    model = tiny_lm.saved(folder / "model", **sizes)
    (folder / "texts").mkdir()
    letters = np.random.default_rng(0).choice([*"abcdefgh "], (40, 4000))
    for i, row in enumerate(letters):
        (folder / "texts" / f"{i}.txt").write_text("".join(row))
    return model, folder / "texts"


@pytest.mark.faults
@pytest.mark.notebooks
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_killed_papermill_leaves_no_kernel_and_the_next_run_goes_on(
    much_text, tmp_path, how, pytestconfig
):
    """A minute each: all three by `--faults 3`."""
    if how != "SIGKILL" and pytestconfig.getoption("--faults") < 3:
        pytest.skip("a minute more: --faults 3")
    model, texts = much_text
    same = {"preset": "default", "model": str(model), "corpus": str(texts), "layer": "0"}
    outside = {**os.environ, "MMLIB_DATA": str(tmp_path)}
    options = [x for name, value in same.items() for x in ("-p", name, value)]
    notebook = plan.path_of("01_extract_activations")
    command = [sys.executable, "-m", "papermill", notebook, tmp_path / "o.ipynb", *options]
    running = subprocess.Popen(
        [*command, "-k", "python3"], env=outside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    ends = time.time() + 200
    while not list(tmp_path.glob("runs/*/activations/part-*.h5")):
        assert running.poll() is None and time.time() < ends, running.communicate()[0][-3000:]
        time.sleep(0.05)
    kernels = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(getattr(signal, how))
    assert kernels and not psutil.wait_procs(kernels, timeout=20)[1]
    running.communicate()
    options = [x for name, value in same.items() for x in (f"--{name}", value)]
    options[-2] = "--layers"
    done = mmlib("extract", *options, data=tmp_path)
    assert done.returncode == 0 and "continuing after" in done.stdout, done.stdout + done.stderr
    assert not verify(next(tmp_path.glob("runs/*/activations")))


@pytest.mark.notebooks
def test_a_run_shows_itself_on_a_terminal_of_ascii(tmp_path):
    outside = {"PYTHONIOENCODING": "ascii", "MMLIB_DATA": str(tmp_path)}
    done = started(sys.executable, "-m", "mmlib", "run", "09", "--only", **outside)
    assert done.returncode == 0 and "\\u2500 09_claims" in done.stdout, done.stderr[-3000:]


def results(data, names):
    def without_times(value):
        if isinstance(value, dict):
            return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
        return [without_times(inner) for inner in value] if isinstance(value, list) else value

    folder = Path(data) / "results" / "smoke"
    return {name: without_times(read_json(folder / f"{name}.json")) for name in names}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data_folder):
    """The data folder, at a path with a space, in which `python -m mmlib run` has run 01 to 03."""
    data = data_folder(tmp_path_factory.mktemp("run") / "a folder")
    done = mmlib("run", "03", "--preset", "smoke", data=data)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "03_train_meta_model" in done.stdout.split("peak GiB")[1]
    return data


@pytest.mark.notebooks
def test_a_run_keeps_its_times_and_a_second_one_does_nothing(finished):
    shown = mmlib("run", "03", "--preset", "smoke", data=finished).stdout
    assert "nothing to do" in shown
    machines = read_json(finished / "results" / "smoke" / "run_times.json")["machines"].values()
    here = (processor(), os.cpu_count())
    (this,) = (m for m in machines if (m["processor"], m["cores"]) == here)
    assert set(this["rates"]) == {"float32", "bfloat16", "disk"}
    assert {"01_extract_activations", "03_train_meta_model"} <= set(this["notebooks"])


@pytest.mark.notebooks
def test_two_runs_by_papermill_and_by_nbval_give_identical_results(finished, tmp_path, data_folder):
    """`make test` runs nbval on every notebook beside the tests, and says where; alone, 01 to 03
    are run here.
    """
    if beside := os.environ.get("MMLIB_NBVAL"):
        data, end = runs.ROOT / beside, time.time() + 1200
        while not (data / "results" / "smoke" / "training.json").exists() and time.time() < end:
            time.sleep(2)
    else:
        data = data_folder(tmp_path / "data")
        paths = [plan.path_of(n) for n in plan.NOTEBOOKS if n[:2] in FIRST]
        done = started(*NBVAL, *paths, PRESET="smoke", MMLIB_DATA=str(data))
        assert done.returncode == 0, done.stdout[-5000:]
    assert results(data, FIRST.values()) == results(finished, FIRST.values())


@pytest.mark.notebooks
def test_the_command_line_trains_what_the_notebook_trained(finished):
    """The same settings, data and code, so it finds the notebook's model and repeats nothing; what
    no notebook trains is trained, or refused by name.
    """

    def train(recipe, *options):
        return mmlib("train", recipe, "--preset", "smoke", *options, data=finished)

    assert "already trained" in train(OURS).stdout
    assert "published: {'step': 4, 'activations': 512," in train("published").stdout
    there = "preset smoke has gated_mlp, unet, mlp, mixture_mlp, denoising_sae, mlp_short"
    assert f"unknown recipe 'mpl': {there}" in train("mpl").stderr
    refused = train("mlp", "--layer", "8", "--layers", "4", "8").stderr
    assert "--layer 8 and --layers 4 8: expected one of the two" in refused


@pytest.mark.notebooks
def test_papermill_runs_notebook_04_from_notebooks_at_a_path_with_a_space(
    finished, tmp_path, monkeypatch
):
    """`make test` runs all notebooks by nbval from the root of the file system, and `finished` by
    papermill.
    """
    monkeypatch.setenv("MMLIB_DATA", str(finished))
    monkeypatch.setenv("PRESET", "smoke")
    monkeypatch.chdir(runs.ROOT / "notebooks")
    (tmp_path / "a folder").mkdir()
    path = shutil.copy(plan.path_of("04_compare_losses"), tmp_path / "a folder")
    output = tmp_path / "a folder" / "out.ipynb"
    papermill.execute_notebook(path, output, progress_bar=False, kernel_name="python3")
    assert (finished / "results" / "smoke" / "loss_comparison.json").exists()


@pytest.mark.notebooks
def test_nbval_runs_a_notebook_from_notebooks_at_a_path_with_a_space(tmp_path):
    (tmp_path / "a folder").mkdir()
    path = shutil.copy(plan.path_of("09_claims"), tmp_path / "a folder")
    outside = {"PRESET": "default", "MMLIB_DATA": str(tmp_path / "data")}
    at = runs.ROOT / "notebooks"
    done = started(*NBVAL, "--rootdir", tmp_path, path, cwd=at, **outside)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "data" / "results" / "default" / "claims.json").exists()
