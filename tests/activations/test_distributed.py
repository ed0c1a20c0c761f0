"""Two processes train, and extract, what one does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from test_faults import tiny_plan

from mmlib.activations.extract import describe, extract
from mmlib.activations.store import ActivationStore, verify


def launch(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


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
