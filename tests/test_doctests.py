"""Examples in docstrings run as they stand."""

import doctest
from importlib import import_module

import pytest

MODULES = (
    "mmlib.activations.arrays",
    "mmlib.activations.tokens",
    "mmlib.denoisers.fitted",
    "mmlib.denoisers.noise",
    "mmlib.denoisers.saved",
    "mmlib.evaluation.table",
    "mmlib.training.budget",
    "mmlib.training.fit",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    found = doctest.testmod(import_module(name))
    assert found.failed == 0


def test_there_are_examples():
    found = [doctest.DocTestFinder().find(import_module(name)) for name in MODULES]
    assert sum(len(test.examples) for tests in found for test in tests) >= 15
