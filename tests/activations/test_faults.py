"""Faults injected into stores: processes killed at any moment, torn writes, flipped bits, cut files, a full disk.

pytest -m faults --faults 50        kills and torn writes of each kind; `make test` does a few
"""

import errno
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from letters import Letters
from transformers import AutoConfig, AutoModelForCausalLM

from mmlib.activations import extract as extraction
from mmlib.activations.corpora import Document
from mmlib.activations.extract import describe, extract, plan_extraction
from mmlib.activations.lm import LanguageModel
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.windows import read_block
from mmlib.files import DiskFull

pytestmark = pytest.mark.faults


def tiny_plan():
    """150,000 tokens of random letters in 60 documents, and a random-weight Llama that reads them in about a second."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    lm = LanguageModel(AutoModelForCausalLM.from_config(config).eval(), Letters(), "tiny@0")
    texts = ["".join(map(chr, np.random.default_rng(i).integers(60, 120, 2500))) for i in range(60)]
    splits = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    return plan_extraction(
        [Document(str(i), text) for i, text in enumerate(texts)],
        splits,
        lm,
        1,
        window=64,
        batch_tokens=512,
    ), lm


def extract_tiny(path, die_at=None):
    """In a process of its own. die_at: be killed in the middle of that write, or before that fsync or rename."""
    plan, lm = tiny_plan()
    events = itertools.count()

    def fatal(call):
        def wrapped(file, *arguments):
            if next(events) == die_at:
                if call is real["pwrite"]:
                    call(
                        file, arguments[0][: len(arguments[0]) // 2], arguments[1]
                    )  # half of it reaches the file
                os.kill(os.getpid(), signal.SIGKILL)
            return call(file, *arguments)

        return wrapped

    real = {name: getattr(os, name) for name in ("pwrite", "fsync", "replace")}
    for name, call in real.items():
        setattr(os, name, fatal(call))
    extract(
        plan,
        lm,
        path,
        attributes=describe(lm, "letters@1", plan, created_by="a test"),
        progress=False,
    )
    path.with_name("events").write_text(str(next(events)))


@pytest.fixture(scope="module")
def processes():
    """Children that come with the libraries loaded, forked from a process that never computed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmlib.activations.extract"])
    return context


def finish(processes, path):
    child = processes.Process(target=extract_tiny, args=(path,), daemon=True)
    child.start()
    child.join(120)
    assert child.exitcode == 0
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory):
    """The bytes of a store whose extraction nobody disturbed, how long that took, and its number of writes, fsyncs and renames."""
    folder = tmp_path_factory.mktemp("whole")
    finish(processes, folder / "first.h5")  # the first child also waits for the libraries
    began = time.monotonic()
    content = finish(processes, folder / "activations.h5")
    return content, time.monotonic() - began, int((folder / "events").read_text())


def check_what_a_kill_left(path, content):
    assert not path.exists() or path.read_bytes() == content
    partial = path.with_name(path.name + ".partial")
    if (
        partial.exists() and partial.read_bytes() != content
    ):  # whole, sealed and about to be renamed is fine too
        with pytest.raises(StoreError, match="not finished|seal"):
            ActivationStore(partial)


def killed_after(processes, path, seconds):
    """Whether the kill came before the end of the extraction."""
    child = processes.Process(target=extract_tiny, args=(path,), daemon=True)
    child.start()
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
        path = tmp_path / f"{i}" / "activations.h5"
        for _ in range(rng.choice((1, 2))):  # once, or again while it continues
            while not killed_after(processes, path, rng.uniform(0.1, 1) * duration):
                duration /= 2  # the machine has become faster since it was measured
                path.unlink()
            check_what_a_kill_left(path, content)
        assert finish(processes, path) == content
        continued += (
            int(path.with_name("events").read_text()) < events - 10
        )  # fewer writes than from the beginning
    assert continued >= kills // 4


def test_killed_in_the_middle_of_a_write_it_continues_and_ends_byte_identical(
    processes, whole, tmp_path, request
):
    content, _, events = whole
    n = request.config.getoption("--faults")
    moments = [
        0,
        events - 3,
        events - 2,
        events - 1,
        *random.Random(1).sample(range(1, events - 2), n),
    ]  # the last: sealing and renaming
    for moment in moments:
        path = tmp_path / f"{moment}" / "activations.h5"
        child = processes.Process(target=extract_tiny, args=(path, moment), daemon=True)
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
        check_what_a_kill_left(path, content)
        assert finish(processes, path) == content


def test_single_flipped_bits_anywhere_are_all_reported(whole, tmp_path, request):
    content, rng = bytearray(whole[0]), random.Random(2)
    path = tmp_path / "flipped.h5"
    places = [
        0,
        20,
        16383,
        16384,
        16390,
        17000,
        len(content) - 1,
    ]  # seal, its padding, HDF5's own structure, the last byte
    for byte in places + [
        rng.randrange(len(content)) for _ in range(max(10, request.config.getoption("--faults")))
    ]:
        content[byte] ^= (bit := 1 << rng.randrange(8))
        path.write_bytes(content)
        assert verify(path), f"bit {bit} of byte {byte}"
        content[byte] ^= bit
    path.write_bytes(content)
    assert verify(path) == []


def test_files_cut_anywhere_are_all_refused(whole, tmp_path, request):
    content, rng = whole[0], random.Random(3)
    for length in [0, 100, 16384, len(content) - 1] + [
        rng.randrange(len(content)) for _ in range(max(10, request.config.getoption("--faults")))
    ]:
        (tmp_path / "cut.h5").write_bytes(content[:length])
        with pytest.raises(StoreError, match="truncated"):
            ActivationStore(tmp_path / "cut.h5")


def fill_up_then_continue(path, whole, monkeypatch, capsys, fill, free):
    """Extract while the disk fills up, then again with room: the same store as if nothing had been."""
    plan, lm = tiny_plan()
    calls = itertools.count()

    def reading(*arguments):
        if next(calls) == 30:
            fill()
        return read_block(*arguments)

    monkeypatch.setattr(extraction, "read_block", reading)
    facts = describe(lm, "letters@1", plan, created_by="a test")
    with pytest.raises(
        DiskFull, match="the disk is full: .* rows, which are safe; free some space and run again"
    ):
        extract(plan, lm, path, attributes=facts)
    assert not path.exists()
    free()
    extract(plan, lm, path, attributes=facts)
    assert "continuing after" in capsys.readouterr().out and path.read_bytes() == whole[0]


def test_a_full_disk_leaves_a_store_that_continues(whole, tmp_path, monkeypatch, capsys):
    """A real small disk; where mounting one is not allowed, the next test has to do."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small disk is not allowed here")

    def fill():
        with (
            open(disk / "filler", "wb", buffering=0) as file,
            pytest.raises(OSError, match="No space"),
        ):
            while True:
                file.write(b"x" * 2**16)

    try:
        fill_up_then_continue(
            disk / "activations.h5",
            whole,
            monkeypatch,
            capsys,
            fill,
            lambda: (disk / "filler").unlink(),
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_that_finds_no_room_leaves_a_store_that_continues(
    whole, tmp_path, monkeypatch, capsys, code
):
    real = os.pwrite

    def full(*arguments):
        raise OSError(code, os.strerror(code))

    fill_up_then_continue(
        tmp_path / "activations.h5",
        whole,
        monkeypatch,
        capsys,
        lambda: setattr(os, "pwrite", full),
        lambda: setattr(os, "pwrite", real),
    )
