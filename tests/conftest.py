"""Shared by the tests: a small store of synthetic activations with known statistics."""

import os
from collections import Counter

# Before any library reads it: no test asks a network for anything.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch

from mmlib.activations.store import ActivationStore
from mmlib.activations.writer import DocumentRows, Layout, StoreWriter
from mmlib.runs import run as runs


def pytest_addoption(parser):
    parser.addoption("--faults", type=int, default=2, help="how many faults of each kind")
    parser.addoption(
        "--faults-from", type=int, default=0, help="number of the first: so many were done before"
    )
    parser.addoption(
        "--architectures",
        choices=("common", "all"),
        default="common",
        help="which of transformers' causal language models are tried; all: results/architectures.json is written anew",
    )
    parser.addoption(
        "--bf16", choices=("no", "yes"), help="answer whether this processor has bf16 units"
    )


def pytest_configure(config):
    if answer := config.getoption("bf16"):  # of the tests' own process; of others, the machine's
        torch.cpu._is_avx512_bf16_supported = lambda: answer == "yes"
        torch.cpu._is_amx_tile_supported = lambda: answer == "yes"


def pytest_terminal_summary(terminalreporter):
    """How many faults of each kind were done, all of them reported or continued."""
    done = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, n in report.user_properties:
            done[name] += n
    for name, n in done.items():
        terminalreporter.write_line(f"{name}: {n}")


@pytest.fixture
def numbers(pytestconfig):
    """Of the faults to be done of each kind; a fault is a function of its kind and number."""
    first = pytestconfig.getoption("faults_from")
    return range(first, first + pytestconfig.getoption("faults"))


ATTRIBUTES = {"model": "toy@1", "corpus": "toy@2"}


@pytest.fixture(autouse=True)
def threads():
    """A test that sets the number of threads does so for itself alone: rounding, and with it
    equality to the bit, depends on it.
    """
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_store(tmp_path):
    """Writes a store of three splits; returns (path, values (n, d))."""

    def make(
        rows=(3000, 500, 700),
        d=8,
        dtype="bfloat16",
        seed=0,
        layer=1,
        splits=("train", "validation", "test"),
        stop_after=None,
        next_row=0,
        part_bytes=20_000,  # one chunk of the smallest, so that most stores have several parts
        **attributes,
    ):
        """stop_after: be interrupted after so many rows. next_row: where writing is expected to
        begin.
        """
        documents = [
            DocumentRows(f"{split} {i}", split, n // 2 + i * (n % 2))
            for split, n in zip(splits, rows)
            for i in range(2)
        ]
        n = sum(document.rows for document in documents)
        values = (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 1).to(
            getattr(torch, dtype)
        )
        document = np.repeat(np.arange(len(documents)), [x.rows for x in documents])
        position = np.concatenate([np.arange(x.rows) for x in documents])
        path = tmp_path / f"store-{layer}-{seed}"
        layout = Layout(documents, [layer], d, dtype, {**ATTRIBUTES, **attributes}, part_bytes)
        writer = StoreWriter(path, layout, replace=True)
        assert writer.next_row == next_row
        for part in np.array_split(
            np.arange(next_row, n if stop_after is None else stop_after), 7
        ):  # blocks that cross documents and splits
            writer.append({layer: values[part]}, part, document[part], position[part])
        if stop_after is not None:
            raise KeyboardInterrupt
        writer.finish()
        return path, values

    return make


@pytest.fixture
def store(make_store):
    """A store in float32, so that what is read from it is what a test computes with."""
    return ActivationStore(make_store(dtype="float32")[0])


@pytest.fixture(scope="session")
def data_folder():
    """Makes a data folder that shares converted language models and fetched texts with others."""
    models = runs.DATA / "models"

    def make(path):
        models.mkdir(parents=True, exist_ok=True)
        path.mkdir()
        (path / "models").symlink_to(models)
        return path

    return make


@pytest.fixture
def own_root(tmp_path, monkeypatch):
    """A repository and a data folder that hold nothing yet."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "DATA", tmp_path / "data")
    return tmp_path


@pytest.fixture
def run(own_root):
    """A run of that repository."""
    return runs.start(preset="smoke", seed=0)
