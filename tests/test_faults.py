"""Faults: processes killed at any moment, files with flipped bits or cut short, a full disk.

pytest -m faults --faults 50 --faults-from 100      the faults numbered 100 to 149 of each kind;
`make test` does the first few
"""

import errno
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from letters import tiny
from test_store import flip
from toy_fits import METHODS, fitted

import mmlib
from mmlib.activations import extract as extraction
from mmlib.activations.corpora import Document
from mmlib.activations.extract import describe, plan_extraction, write_store
from mmlib.activations.lm import load_language_model
from mmlib.activations.pretrained import EMBEDDED
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.tokens import Normaliser
from mmlib.activations.windows import read_block
from mmlib.denoisers.checkpoints import CheckpointError, Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import MLPDenoiser
from mmlib.denoisers.sae import read_sae, save_sae
from mmlib.files import DiskFull, read_sealed
from mmlib.runs.run import DATA
from mmlib.training import train as training
from mmlib.training.fit import row_batches
from mmlib.training.recipe import Training

pytestmark = pytest.mark.faults

PART_BYTES = 300_000  # four chunks: 37 parts


def write_documents(lm, path, texts, attributes=None, **options):
    """A store of texts, half of them for training."""
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    quarter = len(texts) // 4
    splits = np.repeat(["train", "validation", "test"], [2 * quarter, quarter, quarter]).tolist()
    plan = plan_extraction(documents, splits, lm, 1, window=64, batch_tokens=512)
    facts = describe(lm, "letters@1", plan, created_by="a test") | (attributes or {})
    return write_store(plan, lm, path, attributes=facts, progress=False, **options)


def random_texts(n, length):
    return ["".join(map(chr, np.random.default_rng(i).integers(60, 120, length))) for i in range(n)]


def write_tiny(path, attributes=None, **options):
    """150,000 random letters in 60 documents, which the model reads in about a second."""
    torch.set_num_threads(1)
    options = {"part_bytes": PART_BYTES, **options}
    return write_documents(tiny(), path, random_texts(60, 2500), attributes, **options)


EVERY = {"validate_every": 4, "save_every": 4, "log_every": 2, "keep": (("early", 8),)}
SETTINGS = Training("flow_velocity", steps=48, batch=64, lr=1e-3, bf16=False, **EVERY)


class Killed(RuntimeError):
    pass


def train_tiny(path, kill_at=None):
    """A training whose every file is a function of its settings: its clock stands still."""
    torch.set_num_threads(1)
    h_nd = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    origin = Origin(Normaliser(torch.zeros(1, 8), torch.ones(1, 8)), "toy@1", (1,))
    model = MetaModel(MLPDenoiser(8, 16, 32, 2), "flow_velocity", origin)

    def batches(start):
        for step, batch in enumerate(row_batches(h_nd, 64, 0, start), start):
            if step == kill_at:
                raise Killed
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: 0.0))
        training.train(model, SETTINGS, batches, h_nd[:100], path, seed=0, device="cpu")


def write_embedded(lm, path):
    torch.set_num_threads(1)
    write_documents(lm, path, random_texts(12, 400), part_bytes=1)  # of a part's least size


def contents(path):
    """Of all files below a folder, by name."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def die(after=0.0):
    if after:
        return threading.Timer(after, die).start()
    os.kill(os.getpid(), signal.SIGKILL)


def dying(event, delay):
    """Be killed when that fsync or rename is due, with half of what was to be synced, or so many
    seconds after it; without an event after now. Gives the names that files took, which grow.
    """
    due, names = itertools.count(), []

    def fatal(call):
        def wrapped(file, *to):
            if next(due) == event:
                if not delay:
                    with suppress(OSError, TypeError):  # a folder, or a name
                        os.ftruncate(file, os.fstat(file).st_size // 2)
                die(delay)
            names.extend(Path(path).name for path in to)
            return call(file, *to)

        return wrapped

    if event is None and delay:
        die(delay)
    os.fsync, os.replace = fatal(os.fsync), fatal(os.replace)
    return names


def disturbed(job, path, event=None, delay=0.0):
    """In a process of its own: the job, killed at the latest when it is done; without event and
    delay, undisturbed.
    """
    names, began = dying(event, delay), time.monotonic()
    job(path)
    if event is not None or delay:
        die()
    path.with_name("undisturbed").write_text(json.dumps([names, time.monotonic() - began]))


@pytest.fixture(scope="module")
def processes():
    """Children that come with the libraries loaded, forked from a process that never computed."""
    context = multiprocessing.get_context("forkserver")
    preloaded = ["pytest", "mmlib", "mmlib.training.fit", "mmlib.activations.extract"]
    context.set_forkserver_preload(preloaded)
    return context


def started(processes, job, path, *moment):
    child = processes.Process(target=disturbed, args=(job, path, *moment), daemon=True)
    child.start()
    return child


def finish(start, path):
    """Files of a job that was allowed to end, the names they took one after another, and its
    seconds.
    """
    child = start(path)
    child.join(120)
    assert child.exitcode == 0
    names, seconds = json.loads(path.with_name("undisturbed").read_text())
    return contents(path), names, seconds


def moments(kind, number, names, seconds):
    """When to kill: event and delay of the first, and in half of the cases of a second kill, while
    it is continued.

    A file is synced, renamed, and its folder synced. Of a kind with boundaries, as many faults as
    there are hit each once.
    """
    draw = random.Random(f"{kind} {number}")
    again = (draw.randrange(3 * len(names)), draw.choice((0.0, draw.uniform(0, 0.2))))
    begins, events = BOUNDARIES.get(kind, ((), ()))
    boundaries = [3 * i + j for i, x in enumerate(names) if x.startswith(begins) for j in events]
    if boundaries:
        order = random.Random(kind).sample(boundaries, len(boundaries))
        first = (order[number % len(order)], 0.0)
    else:
        first = (None, draw.uniform(0.02, 1) * seconds)
    return [first] if draw.random() < 0.5 else [first, again]


BOUNDARIES = {  # kind: which files it is of, and at which of their events; of others at any moment
    "part": ("part-", (0,)),
    "rename": ("part-", (1, 2)),
    "manifest": (("activations.h5", "manifest.json"), (0, 1, 2)),
    "checkpoint": ("", (0, 1, 2)),
}


def check_left(path, content):
    """Of a store, whole files under their names and no manifest before everything else is there; of
    a network, the whole.
    """
    found = contents(path) if path.exists() else {}
    left = {name: data for name, data in found.items() if not name.endswith(".partial")}
    if any(name.endswith(".h5") for name in content):
        assert left.items() <= content.items()
        assert "manifest.json" not in left or left == content
    elif "meta_model.json" in left:
        network = "network/diffusion_pytorch_model.safetensors"
        assert MetaModel.from_pretrained(path) and left[network] == content[network]


def check_kills(start, folder, kind, numbers, whole, record=lambda *counted: None):
    """Each is continued until it ends, with the bytes of one that was never killed."""
    content, names, seconds = whole
    for number in numbers:
        path, kills = folder / str(number) / "made", moments(kind, number, names, seconds)
        for moment in kills:
            child = start(path, *moment)
            child.join(120)
            assert child.exitcode == -signal.SIGKILL
            check_left(path, content)
        assert finish(start, path)[0] == content, f"{kind} {number}"
        record(f"killed: {kind}", 1)
        record("killed: again while continuing", len(kills) - 1)
        shutil.rmtree(path.parent)


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory):
    """Of an undisturbed extraction."""
    folder, start = tmp_path_factory.mktemp("whole"), partial(started, processes, write_tiny)
    finish(start, folder / "first")  # the first child also waits for the libraries
    content, names, seconds = finish(start, folder / "activations")
    assert content == contents(folder / "first") and len(content) == len(names) == 39
    return content, names, seconds


@pytest.fixture(scope="module")
def whole_training(processes, tmp_path_factory):
    start = partial(started, processes, train_tiny)
    whole = finish(start, tmp_path_factory.mktemp("whole") / "network")
    assert whole[1].count("state.json") == 12 and "early/meta_model.json" in whole[0]
    return whole


@pytest.mark.parametrize("kind", ["extraction", "part", "rename", "manifest"])
def test_an_extraction_that_is_killed_continues_and_ends_byte_identical(
    processes, whole, tmp_path, kind, numbers, record_property
):
    start = partial(started, processes, write_tiny)
    check_kills(start, tmp_path, kind, numbers, whole, record_property)


@pytest.mark.parametrize("kind", ["training", "checkpoint"])
def test_a_training_that_is_killed_is_resumed_and_ends_byte_identical(
    processes, whole_training, tmp_path, kind, numbers, record_property
):
    start = partial(started, processes, train_tiny)
    check_kills(start, tmp_path, kind, numbers, whole_training, record_property)


def kill_embedded(folder, numbers):
    """In a process that has the model, and forks from it."""
    torch.set_num_threads(1)
    lm = load_language_model(EMBEDDED, cache=DATA / "models")
    start = partial(started, multiprocessing.get_context("fork"), partial(write_embedded, lm))
    check_kills(start, folder, "embedded model", numbers, finish(start, folder / "whole" / "made"))


def test_an_extraction_from_the_embedded_model_that_is_killed_ends_byte_identical(
    processes, tmp_path, numbers, record_property
):
    child = processes.Process(target=kill_embedded, args=(tmp_path, numbers))
    child.start()
    child.join()
    assert child.exitcode == 0
    record_property("killed: embedded model", len(numbers))


def test_a_training_killed_elsewhere_is_resumed_here(processes, whole_training, tmp_path, capsys):
    """Python's string hashes differ between the processes, and must not decide what counts as the
    same training.
    """
    child = started(processes, train_tiny, tmp_path / "network", 30, 0.0)
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    train_tiny(tmp_path / "network")
    assert "resuming at step 16" in capsys.readouterr().out
    assert contents(tmp_path / "network") == whole_training[0]


def a_store(folder):
    write_tiny(folder)
    rows = range(ActivationStore(folder).n)
    values = ActivationStore(folder).read(rows)

    def read():
        with suppress(StoreError):
            assert torch.equal(ActivationStore(folder).read(rows), values)
        if problems := verify(folder):
            raise StoreError(problems[0])

    return read


def an_unfinished_training(folder):
    with pytest.raises(Killed):
        train_tiny(folder, kill_at=10)
    return partial(train_tiny, folder)


def a_training(folder):
    train_tiny(folder)
    shutil.rmtree(folder / "early")
    return partial(train_tiny, folder)


def a_meta_model(folder):
    train_tiny(folder / "made")
    shutil.copytree(folder / "made" / "early", folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "made")
    return partial(MetaModel.from_pretrained, folder)


def a_fit(kind, folder):
    fitted(kind).save(folder)
    return partial(mmlib.load, folder)


def one_file(kind, folder):
    folder.mkdir()
    fit = fitted(kind).components if kind == "pca" else fitted(kind).denoiser
    fit.save(folder / f"{kind}.safetensors", "texts@1")
    return partial(mmlib.load, folder / f"{kind}.safetensors", standardise=fitted(kind))


def an_sae(folder):
    save_sae(fitted("sae").sae, folder, "texts@1")
    return partial(read_sae, folder)


# kind: what makes the folder and gives a function that reads it, and which of its files are damaged
DAMAGED = {
    "part": (a_store, "part-*"),
    "virtual datasets": (a_store, "activations.h5"),
    "manifest": (a_store, "manifest.json"),
    "checkpoint": (an_unfinished_training, "state*"),
    "training": (a_training, "*"),
    "meta_model.json": (a_meta_model, "*"),
    **{f"model.json, {kind}": (partial(a_fit, kind), "*") for kind in METHODS},
    "components": (partial(one_file, "pca"), "*"),
    "mixture": (partial(one_file, "mixture"), "*"),
    "average": (partial(one_file, "average"), "*"),
    "SAE": (an_sae, "*"),
}
# without these it is as if nothing had been trained, and a whole meta-model lies in a network's
# folder
GUARDS = ("state.json", "done.json", "model.json")


@pytest.mark.parametrize("kind", DAMAGED)
def test_every_damage_of_a_file_is_reported(kind, tmp_path, numbers, record_property):
    """A bit is another, the end is missing, or the file."""
    folder = tmp_path / "kept"
    read, files = DAMAGED[kind][0](folder), DAMAGED[kind][1]
    files = [
        path for path in sorted(folder.rglob(files)) if path.is_file() and path.suffix != ".md"
    ]
    read() if kind != "checkpoint" else read_sealed(folder / "state.json")
    for number in range(numbers.start, numbers.start + max(12, len(numbers))):
        draw = random.Random(f"{kind} {number}")
        path, how = draw.choice(files), ("flipped", "cut", "flipped", "removed")[number % 4]
        content = path.read_bytes()
        ends = draw.choice(
            (64, 1024, len(content))
        )  # headers are small, and as interesting as the rest
        at = draw.choice((1, -1)) * draw.randrange(min(ends, len(content)))
        if how == "removed" and path.name not in GUARDS:
            path.unlink()
        elif how == "cut":
            os.truncate(path, at % len(content))
        else:
            flip(path, at, bit=1 << draw.randrange(8))
        with pytest.raises((StoreError, CheckpointError, FileNotFoundError)) as raised:
            read()
        assert getattr(raised.value, "errno", None) is None, "a library's, or the system's"
        named = path.name in str(raised.value) or str(folder) in str(raised.value)
        assert named, f"{kind} {number}: {path.name} {how} at {at}: {raised.value}"
        path.write_bytes(content)
        record_property(f"damaged: {kind}", 1)


@pytest.fixture
def copy(whole, tmp_path):
    """A whole store to be damaged."""
    path = tmp_path / "copy"
    path.mkdir()
    for name, content in whole[0].items():
        (path / name).write_bytes(content)
    return path


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


def write_together(barrier, replace, path):
    barrier.wait()
    write_tiny(path, replace=replace)


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
    job = partial(write_together, barrier, before != "nothing")
    both = [started(processes, job, path) for _ in range(2)]
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
    check_left(path, whole[0])
    assert 3 < len(list(path.iterdir())) < 30 and not list(path.glob("*.partial"))
    write_tiny(path)
    assert "continuing after" in capsys.readouterr().out and contents(path) == whole[0]
