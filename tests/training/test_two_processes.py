"""Two processes train what one does."""

import json
import os
import subprocess
import sys

import pytest
import test_train as t
import torch
from accelerate import PartialState

from mmlib.denoisers.meta_model import MetaModel
from mmlib.runs.presets import OURS, get_preset

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
SETTINGS = t.dataclasses.replace(t.SETTINGS, levels=16, keep=())
WORKER = """
import sys
from pathlib import Path
import test_two_processes as two
two.train_whole_then_cut(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def train_whole_then_cut(path, folder):
    """What each of two processes does: a training to its end, and one that stops at step 9."""
    store = t.ActivationStore(path)
    t.run(store, folder / "two", SETTINGS)
    try:
        t.run(store, folder / "cut", SETTINGS, kill_at=9)
    except t.Killed:
        state = PartialState()
        (folder / f"process-{state.process_index}").write_text(f"of {state.num_processes}")
        os._exit(
            0
        )  # as a kill would: threads of the group can abort an interpreter that ends in order


def launch(*command, **outside):
    done = subprocess.run(
        [sys.executable, *LAUNCHER, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **outside},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_end_where_one_does_and_one_resumes_what_two_left(
    make_store, tmp_path, capsys
):
    path = make_store(dtype="float32")[0]
    (tmp_path / "worker.py").write_text(WORKER)
    launch(tmp_path / "worker.py", path, tmp_path)
    assert [(tmp_path / f"process-{i}").read_text() for i in (0, 1)] == ["of 2", "of 2"]
    store = t.ActivationStore(path)
    _, one_log = t.run(store, tmp_path / "one", SETTINGS)
    one, two = (MetaModel.from_pretrained(tmp_path / name) for name in ("one", "two"))
    for (name, a), b in zip(one.network.named_parameters(), two.network.parameters()):
        assert torch.allclose(a, b, atol=2e-5), name
    lines = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    two_log = [json.loads(line) for line in lines]
    assert [e["step"] for e in one_log] == [e["step"] for e in two_log]
    for a, b in zip(one_log, two_log):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        if "validation_loss" in a:
            assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-4)
    capsys.readouterr()
    t.run(store, tmp_path / "cut", SETTINGS)
    assert "resuming at step 8" in capsys.readouterr().out


def test_the_command_line_trains_by_two_processes(make_store, tmp_path):
    """On a store where notebook 01 would have put one; each process fits the same mixtures."""
    data = tmp_path / "data"
    (data / "runs" / "smoke").mkdir(parents=True)
    make_store(dtype="float32")[0].rename(data / "runs" / "smoke" / "activations")
    shown = launch("-m", "mmlib", "train", OURS, "--preset", "smoke", MMLIB_DATA=str(data))
    folder = data / "runs" / "smoke" / OURS
    steps = get_preset("smoke").recipes[OURS].training.steps
    assert shown.count(f"{folder}: {{'step': {steps}") == 1  # by one of the two
    assert MetaModel.from_pretrained(folder).language_model == "toy@1"
    assert json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"] == steps
