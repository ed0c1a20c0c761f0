"""Two processes train, and extract, what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_faults import contents, write_tiny

from mmlib.activations.store import verify
from mmlib.denoisers.meta_model import MetaModel
from mmlib.runs.presets import get_preset

WORKER = """
import sys
sys.path[:0] = [{tests!r} + "/activations", {tests!r} + "/training", {tests!r}]
import dataclasses
from pathlib import Path
import test_train as t
store = t.ActivationStore(Path(sys.argv[1]))
settings = dataclasses.replace(t.SETTINGS, levels=16, keep=())
t.run(store, Path(sys.argv[2]), settings)
from accelerate import PartialState
print("processes:", PartialState().num_processes)
"""


def launch(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(WORKER.format(tests=str(Path(__file__).parents[1])))
    return str(path)


def test_two_processes_end_where_one_does(make_store, worker, tmp_path):
    store = str(make_store(dtype="float32")[0])
    launch(worker, store, str(tmp_path / "one"))
    assert "processes: 2" in launch(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        worker,
        store,
        str(tmp_path / "two"),
    )
    one, two = (MetaModel.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for (name, a), b in zip(one.network.named_parameters(), two.network.parameters()):
        assert torch.allclose(a, b, atol=2e-5), name
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [e["step"] for e in logs[0]] == [e["step"] for e in logs[1]]
    for a, b in zip(*logs):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        if "validation_loss" in a:
            assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-4)


def test_what_two_processes_left_unfinished_one_resumes(make_store, tmp_path):
    store = str(make_store(dtype="float32")[0])
    killed = WORKER.replace(
        "t.run(store, Path(sys.argv[2]), settings)",
        "t.run(store, Path(sys.argv[2]), settings, kill_at=9)",
    )
    (tmp_path / "killed.py").write_text(killed.format(tests=str(Path(__file__).parents[1])))
    (tmp_path / "worker.py").write_text(WORKER.format(tests=str(Path(__file__).parents[1])))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(tmp_path / "killed.py"),
            store,
            str(tmp_path / "run"),
        ],
        capture_output=True,
        timeout=300,
    )
    assert "resuming at step 8" in launch(str(tmp_path / "worker.py"), store, str(tmp_path / "run"))


def test_the_command_line_trains_by_two_processes(make_store, tmp_path):
    """What the README says to type, on a store where notebook 01 would have put one."""
    data = tmp_path / "data"
    (data / "runs" / "smoke").mkdir(parents=True)
    make_store(dtype="float32")[0].rename(data / "runs" / "smoke" / "activations")
    launcher = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    )
    command = (*launcher, "-m", "mmlib", "train", "gated_mlp", "--preset", "smoke")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "MMLIB_DATA": str(data)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    folder, steps = (
        data / "runs" / "smoke" / "gated_mlp",
        get_preset("smoke").recipes["gated_mlp"].training.steps,
    )
    assert done.stdout.count(f"{folder}: {{'step': {steps}") == 1  # by one of the two
    assert MetaModel.from_pretrained(folder).language_model == "toy@1"
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"] == steps


EXTRACTION = """
import os, sys
sys.path[:0] = [{tests!r} + "/activations", {tests!r} + "/training", {tests!r}]
import test_faults as t
from pathlib import Path
from accelerate import PartialState
state = PartialState(cpu=True)
if "DIE_AT" in os.environ and state.process_index == 1:
    t.die_at_event(int(os.environ["DIE_AT"]))
t.write_tiny(Path(sys.argv[1]){options})
state.destroy_process_group()
"""


@pytest.fixture
def extraction(tmp_path):
    """Runs the extraction of test_faults by so many processes."""

    def run(count, path, options="", **environment):
        script = tmp_path / "extraction.py"
        tests = str(Path(__file__).parents[1])
        script.write_text(EXTRACTION.format(tests=tests, options=options))
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count))
        return subprocess.run(
            [sys.executable, *launcher, str(script), str(path)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, **environment},
        )

    return run


def test_any_number_of_processes_gives_the_same_files_also_after_a_kill(extraction, tmp_path):
    """One, two, and two of which one is killed, then three."""
    one = write_tiny(tmp_path / "one")
    whole = contents(one.path)
    done = extraction(2, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path / "two") == whole and verify(tmp_path / "two") == []
    assert extraction(2, tmp_path / "killed", DIE_AT="20").returncode
    left = contents(tmp_path / "killed")
    assert 5 < len(left) < 37 and "manifest.json" not in left
    done = extraction(3, tmp_path / "killed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continuing after" in done.stdout and "is there already" not in done.stdout
    assert contents(tmp_path / "killed") == whole
    done = extraction(2, tmp_path / "killed")  # once more, over what is there
    assert done.stdout.count("killed is there already, with the same contents") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "extraction.py",
        "killed",
        "one",
        "two",
    ]


def test_processes_that_differ_or_meet_another_store_are_refused_before_any_work(
    extraction, tmp_path
):
    differing = ', attributes={"device": f"GPU {state.process_index}"}'
    done = extraction(2, tmp_path / "a", differing)
    assert done.returncode and "the processes differ in device" in done.stderr
    assert not (tmp_path / "a").exists()
    store = write_tiny(tmp_path / "b", attributes={"corpus": "another@1"})
    before = contents(store.path)
    done = extraction(2, tmp_path / "b")
    assert done.returncode and done.stderr.count("StoreError: ") >= 2
    assert "a finished store of other corpus (another@1 → letters@1)" in done.stderr
    assert contents(store.path) == before
