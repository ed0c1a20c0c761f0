"""`make`: what is due after a change, and that two runs of one preset with one seed, by papermill and by nbval, give the same results."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from mmlib.runs.run import DATA, ROOT

TIMES = {
    "seconds",
    "train_seconds",
    "fit_seconds",
    "minutes",
    "peak_gib",
    "provenance",
    "sources",
}  # what two equal runs may differ in


def make(data, *arguments):
    outside = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MMLIB_DATA")
    }
    command = ("make", "--no-print-directory", *arguments, "PRESET=smoke", f"MMLIB_DATA={data}")
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env=outside, timeout=1200
    ).stdout


def planned(data, *changed):
    """Notebooks that make would run, if the named files had just changed."""
    return re.findall(
        r"mmlib.runs.pipeline run smoke (\w+)",
        make(data, "--dry-run", "main", *(f"--what-if={path}" for path in changed)),
    )


def due(data, *changed):
    return [name[:2] for name in planned(data, *changed)]


def results():
    def without_times(value):
        if isinstance(value, dict):
            return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
        return [without_times(inner) for inner in value] if isinstance(value, list) else value

    paths = (ROOT / "results" / "smoke").glob("*.json")
    return {
        path.name: without_times(json.loads(path.read_text()))
        for path in paths
        if path.stem != "run_times"
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The data folder of a finished smoke run, and its results; the converted language model is shared with other runs."""
    data = tmp_path_factory.mktemp("data")
    (DATA / "models").mkdir(parents=True, exist_ok=True)
    (data / "models").symlink_to(DATA / "models")
    shutil.rmtree(ROOT / "results" / "smoke", ignore_errors=True)
    make(data, "reproduce")
    return data, results()


def test_a_second_run_does_nothing_and_says_so(finished):
    assert "nothing to do" in make(finished[0], "reproduce") and due(finished[0]) == []


@pytest.mark.parametrize(
    "changed, expected",
    [
        ("mmlib/activations/extract.py", ["01", "02", "03", "04", "05", "07", "08", "09", "31"]),
        ("mmlib/denoisers/sae.py", ["02", "03", "04", "05", "07", "08", "09", "31"]),
        ("mmlib/training/train.py", ["02", "03", "04", "05", "07", "08", "09", "31"]),
        ("notebooks/studies/verdict.py", ["04", "09", "31"]),
        ("mmlib/evaluation/claim.py", ["04", "08", "09", "31"]),
        ("mmlib/evaluation/frechet.py", ["05", "09", "31"]),
        ("notebooks/studies/figures/main.py", ["31"]),
        ("notebooks/05_sample_quality.ipynb", ["05", "09", "31"]),
        ("notebooks/studies/claims.py", ["09", "31"]),
        ("README.md", []),
    ],
)
def test_a_change_reruns_what_depends_on_it_and_no_more(finished, changed, expected):
    assert due(finished[0], changed) == expected


def test_the_command_line_trains_what_the_notebook_trained(finished):
    """The same settings, data and code, so it finds the notebook's model and repeats nothing; what no notebook trains is trained, or refused by name."""

    def command(recipe, *options):
        outside = {**os.environ, "MMLIB_DATA": str(finished[0])}
        return subprocess.run(
            [sys.executable, "-m", "mmlib", "train", recipe, "--preset", "smoke", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=outside,
        )

    assert "already trained" in command("gated_mlp").stdout
    assert "published: {'step': 4, 'activations': 512," in command("published").stdout
    assert (
        "unknown recipe 'mpl': preset smoke has unet, mlp, gated_mlp, denoising_sae"
        in command("mpl").stderr
    )
    assert (
        "--layer 8 and --layers 4 8: expected one of the two"
        in command("mlp", "--layer", "8", "--layers", "4", "8").stderr
    )


def test_two_runs_by_papermill_and_by_nbval_give_identical_results(finished):
    """The main line again, in the data folder in which `make test` goes on with applications and studies."""
    data, first = finished
    make(data, "clean")
    for left in (
        DATA / "runs" / "smoke",
        DATA / "stamps" / "smoke",
        ROOT / "results" / "smoke",
        ROOT / "figures" / "smoke",
    ):
        if left.exists():
            shutil.rmtree(left)
    notebooks = [
        f"notebooks/{name}.ipynb" for name in planned(data) if name != "31_figures"
    ]  # its pictures are of what ran before
    assert len(notebooks) == 8
    nbval = (
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout=600",
        "-p",
        "no:cacheprovider",
        *notebooks,
    )
    done = subprocess.run(
        nbval,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PRESET": "smoke"},
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert set(first) >= {
        "activations.json",
        "baselines.json",
        "training.json",
        "loss_comparison.json",
        "sample_quality.json",
        "density.json",
        "lm_loss.json",
        "claims.json",
    }
    assert results() == first


def test_an_unknown_step_of_a_reproduction_publishes_nothing():
    refused = subprocess.run(
        [sys.executable, "-m", "mmlib.runs.pipeline", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        refused.returncode == 1
        and "unknown command 'help': expected plan, run, summary or publish" in refused.stderr
    )
