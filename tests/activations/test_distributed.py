"""Several processes extract what one does, whatever their number and whoever was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_faults import write_tiny
from test_store import contents

from mmlib.activations.store import verify

EXTRACTION = """
import os, sys
sys.path[:0] = [{tests!r} + "/activations", {tests!r} + "/training", {tests!r}]
import test_faults as t
from pathlib import Path
from accelerate import PartialState
state = PartialState(cpu=True)
if "DIE_AT" in os.environ and state.process_index == 1:
    t.dying(int(os.environ["DIE_AT"]), 0.0)
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
    assert {file.name for file in tmp_path.iterdir()} == {"extraction.py", "killed", "one", "two"}


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
