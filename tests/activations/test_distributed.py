"""Two processes train, and extract, what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_faults import tiny_plan

from mmlib.activations.extract import describe, extract
from mmlib.activations.store import ActivationStore, verify
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
    make_store(dtype="float32")[0].rename(data / "runs" / "smoke" / "activations.h5")
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
import sys
sys.path[:0] = [{tests!r} + "/activations", {tests!r} + "/training", {tests!r}]
import test_faults as t
from pathlib import Path
from accelerate import PartialState
from mmlib.activations.extract import describe, extract_shards
from mmlib.runs.presets import get_preset
state = PartialState(cpu=True)
plan, lm = t.tiny_plan()
extract_shards(plan, lm, Path(sys.argv[1]), attributes=describe(lm, "letters@1", plan, created_by="a test"), state=state)
state.destroy_process_group()
"""


def test_two_processes_extract_the_rows_of_one_bit_for_bit(tmp_path):
    script = tmp_path / "extraction.py"
    script.write_text(EXTRACTION.format(tests=str(Path(__file__).parents[1])))
    command = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(script),
        str(tmp_path / "two" / "activations.h5"),
    )
    assert "is there already" not in launch(*command)
    assert launch(*command).count("is there already") == 2  # once more, over what is there
    plan, lm = tiny_plan()
    extract(
        plan,
        lm,
        tmp_path / "one.h5",
        attributes=describe(lm, "letters@1", plan, created_by="a test"),
    )
    one, two = (
        ActivationStore(tmp_path / "one.h5"),
        ActivationStore(tmp_path / "two" / "activations.h5"),
    )
    assert sorted(file.name for file in (tmp_path / "two").iterdir()) == [
        "activations.h5",
        "activations.shard-0-of-2.h5",
        "activations.shard-1-of-2.h5",
    ]
    assert (
        torch.equal(one.read(range(one.n)), two.read(range(two.n)))
        and one.documents == two.documents
    )
    for name in ("token_ids", "document", "position"):
        assert np.array_equal(one.column(name), two.column(name))
    assert np.allclose(one.mean, two.mean, rtol=1e-12) and np.allclose(
        one.variance, two.variance, rtol=1e-12
    )
    assert verify(two.path) == []
    two.close()
    assert not list(two.path.parent.glob("*.folder"))
    content = two.path.read_bytes()
    extract(
        plan, lm, two.path, attributes=describe(lm, "letters@1", plan, created_by="a test")
    )  # one process finds what two left
    assert two.path.read_bytes() == content


def test_processes_that_could_not_be_joined_are_refused_before_any_work(tmp_path):
    script = tmp_path / "extraction.py"
    script.write_text(
        EXTRACTION.format(tests=str(Path(__file__).parents[1])).replace(
            'created_by="a test"), state',
            'created_by="a test") | {"device": f"GPU {state.process_index}"}, state',
        )
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(script),
            str(tmp_path / "a.h5"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (
        done.returncode
        and "the processes differ in device" in done.stderr
        and not list(tmp_path.glob("*.h5*"))
    )
