"""Faults injected into stores: kills at any moment, torn writes, flipped bits, a full disk.

pytest -m faults --faults 50        kills and torn writes of each kind; `make test` does a few
"""

import contextlib
import errno
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from letters import tiny
from test_store import contents, flip

from mmlib.activations import extract as extraction
from mmlib.activations.corpora import Document
from mmlib.activations.extract import describe, plan_extraction, write_store
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.windows import read_block
from mmlib.files import DiskFull

pytestmark = pytest.mark.faults


PART_BYTES = 300_000  # four chunks: 37 parts


def write_tiny(path, attributes=None, **options):
    """150,000 random letters in 60 documents, which the model reads in about a second."""
    torch.set_num_threads(1)
    lm = tiny()
    texts = ["".join(map(chr, np.random.default_rng(i).integers(60, 120, 2500))) for i in range(60)]
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    splits = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    plan = plan_extraction(documents, splits, lm, 1, window=64, batch_tokens=512)
    facts = describe(lm, "letters@1", plan, created_by="a test") | (attributes or {})
    options = {"progress": False, "part_bytes": PART_BYTES, **options}
    return write_store(plan, lm, path, attributes=facts, **options)


def die_at_event(die_at):
    """Be killed before that fsync or rename, with half of what was to be synced; counts them."""
    events = itertools.count()

    def fatal(call):
        def wrapped(file, *arguments):
            if next(events) == die_at:
                with contextlib.suppress(OSError, TypeError):  # a folder, or a name
                    os.ftruncate(file, os.fstat(file).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(file, *arguments)

        return wrapped

    os.fsync, os.replace = fatal(os.fsync), fatal(os.replace)
    return events


def extract_tiny(path, die_at=None, barrier=None, replace=False):
    """In a process of its own, killed before `die_at`; with a barrier, all begin together."""
    events = die_at_event(die_at)
    if barrier:
        barrier.wait()
    write_tiny(path, replace=replace)
    if not barrier:
        path.with_name("events").write_text(str(next(events)))


@pytest.fixture(scope="module")
def processes():
    """Children that come with the libraries loaded, forked from a process that never computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmlib.activations.extract"])
    return context


def started(processes, *arguments):
    child = processes.Process(target=extract_tiny, args=arguments, daemon=True)
    child.start()
    return child


def finish(processes, path):
    """The files of a store whose extraction was allowed to end."""
    child = started(processes, path)
    child.join(120)
    assert child.exitcode == 0
    return contents(path)


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory):
    """Files of an undisturbed extraction, its seconds, and its number of fsyncs and renames."""
    folder = tmp_path_factory.mktemp("whole")
    finish(processes, folder / "first")  # the first child also waits for the libraries
    began = time.monotonic()
    content = finish(processes, folder / "activations")
    assert content == contents(folder / "first") and len(content) == 39
    return content, time.monotonic() - began, int((folder / "events").read_text())


def check_what_a_kill_left(path, content):
    """Whole files under their names, and no manifest before everything else is there."""
    found = contents(path) if path.exists() else {}
    left = {name: data for name, data in found.items() if not name.endswith(".partial")}
    assert left.items() <= content.items()
    assert "manifest.json" not in left or left == content


def killed_after(processes, path, seconds):
    """Whether the kill came before the end of the extraction."""
    child = started(processes, path)
    time.sleep(seconds)
    child.kill()
    child.join()
    return child.exitcode == -signal.SIGKILL


def test_killed_at_random_moments_it_continues_and_ends_byte_identical(
    processes, whole, tmp_path, request
):
    content, duration, events = whole
    rng, continued = random.Random(0), 0
    for i in range(kills := request.config.getoption("--faults")):
        path = tmp_path / f"{i}" / "activations"
        for _ in range(rng.choice((1, 2))):  # once, or again while it continues
            while not killed_after(processes, path, rng.uniform(0.1, 1) * duration):
                duration /= 2  # the machine has become faster since it was measured
                shutil.rmtree(path)
            check_what_a_kill_left(path, content)
        assert finish(processes, path) == content
        continued += int(path.with_name("events").read_text()) < events - 10  # fewer files
    assert continued >= kills // 4


def test_killed_at_any_fsync_or_rename_it_continues_and_ends_byte_identical(
    processes, whole, tmp_path, request
):
    content, _, events = whole
    n = request.config.getoption("--faults")
    assert events == 3 * 39  # a file is synced, renamed, and its folder synced
    last = [events - back for back in (7, 4, 3, 2, 1)]  # a part's rename, and around the manifests
    moments = [0, *last, *random.Random(1).sample(range(1, events - 7), n)]
    for moment in moments:
        path = tmp_path / f"{moment}" / "activations"
        child = started(processes, path, moment)
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        check_what_a_kill_left(path, content)
        assert finish(processes, path) == content


@pytest.fixture
def copy(whole, tmp_path):
    """A whole store to be damaged."""
    path = tmp_path / "copy"
    path.mkdir()
    for name, content in whole[0].items():
        (path / name).write_bytes(content)
    return path


def test_single_flipped_bits_anywhere_are_all_reported(whole, copy, request):
    rng, n = random.Random(2), max(10, request.config.getoption("--faults"))
    part = whole[0]["part-00007.h5"]
    block, rows = part.index(b"\x89HDF"), part.index(b"OHDR")
    places = [("part-00007.h5", at) for at in (0, 1, block - 1, block, block + 9, rows, -1)]
    places += [("part-00036.h5", -1), ("activations.h5", 8), ("activations.h5", -1)]
    places += [("manifest.json", 30), ("manifest.json", -1)]
    for name in rng.choices(list(whole[0]), map(len, whole[0].values()), k=n):
        places.append((name, rng.randrange(len(whole[0][name]))))
    for name, byte in places:
        flip(copy / name, byte, bit := 1 << rng.randrange(8))
        problems = verify(copy)
        assert problems and name in problems[0], f"bit {bit} of byte {byte} of {name}: {problems}"
        (copy / name).write_bytes(whole[0][name])
    assert verify(copy) == []


def test_files_cut_anywhere_are_all_refused_by_name(whole, copy, request):
    rng, n = random.Random(3), max(10, request.config.getoption("--faults"))
    for name in ["manifest.json", "activations.h5", *rng.choices(list(whole[0]), k=n)]:
        size = len(whole[0][name])
        for length in (0, rng.randrange(size), size - 1, None):
            (copy / name).unlink() if length is None else os.truncate(copy / name, length)
            gone = length is None and name == "manifest.json"
            with pytest.raises(StoreError, match="not finished" if gone else name):
                ActivationStore(copy)
            (copy / name).write_bytes(whole[0][name])


def test_what_is_damaged_is_written_again_and_nothing_else(whole, copy, capsys):
    for name in ("part-00003.h5", "activations.h5", "manifest.json"):
        flip(copy / name, len(whole[0][name]) // 2)
    (copy / "part-00020.h5").unlink()
    written = (copy / "part-00004.h5").stat().st_mtime_ns
    write_tiny(copy)
    shown = capsys.readouterr().out
    assert "replacing what is there: " in shown and "part-00003.h5" in shown
    assert "continuing after" in shown and "part-00004" not in shown
    assert contents(copy) == whole[0] and (copy / "part-00004.h5").stat().st_mtime_ns == written


@pytest.mark.parametrize("before", ["nothing", "another store", "another that is unfinished"])
def test_two_that_begin_at_the_same_moment_both_end_with_a_right_store(
    processes, whole, tmp_path, before
):
    path = tmp_path / "activations"
    if before != "nothing":
        write_tiny(path, attributes={"corpus": "another@1"})
    if before == "another that is unfinished":
        (path / "manifest.json").unlink()
    barrier = processes.Barrier(2)
    both = [started(processes, path, None, barrier, before != "nothing") for _ in range(2)]
    for child in both:
        child.join(120)
    assert [child.exitcode for child in both] == [0, 0]
    assert contents(path) == whole[0] and verify(path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_a_store_that_continues(
    whole, tmp_path, monkeypatch, capsys, code
):
    """The disk, or a quota, has no room from the sixtieth block on; then it has again."""
    calls, path = itertools.count(), tmp_path / "activations"

    def full(file):
        raise OSError(code, os.strerror(code))

    def reading(*arguments):
        if next(calls) == 60:
            monkeypatch.setattr(os, "fsync", full)
        return read_block(*arguments)

    monkeypatch.setattr(extraction, "read_block", reading)
    message = "the disk is full: .* rows, which are safe; free some space and run again"
    with pytest.raises(DiskFull, match=message):
        write_tiny(path)
    monkeypatch.undo()
    check_what_a_kill_left(path, whole[0])
    assert 3 < len(list(path.iterdir())) < 30 and not list(path.glob("*.partial"))
    write_tiny(path)
    assert "continuing after" in capsys.readouterr().out and contents(path) == whole[0]
