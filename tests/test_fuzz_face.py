"""The face under odd activations, groups and settings: a right result, or an error of ours that
names what came.
"""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from test_fuzz import examples

import mmlib

OURS = (ValueError, TypeError, IndexError, FileNotFoundError, MemoryError)
N, D = 96, 3
KINDS = ["torch", "numpy", "list", "npy", "pt"]


def activations(dtype="float32", n=N, d=D, seed=0, damage=None):
    h = np.random.default_rng(seed).normal(2, 3, (n, d))
    if damage == "constant":
        h[:, 0] = 4
    elif damage is not None and n:
        h[n // 2, 0] = damage
    return h.astype(dtype)


def given_as(kind, h, folder):
    if kind == "torch":
        return torch.from_numpy(h)
    if kind == "list":
        return h.tolist()
    path = Path(folder) / f"h.{kind}"
    if kind == "npy":
        np.save(path, h)
        return path
    if kind == "pt":
        torch.save(torch.from_numpy(h), path)
        return str(path)
    return h


usual = dict(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(["float32", "float64", "float16"]),
    shape=st.sampled_from([(N, D), (N, 1), (40, 2)]),
    damage=st.none(),
    groups=st.sampled_from([None, "ids", "strings"]),
    method=st.sampled_from(["gaussian", "gaussian", "pca", "mixture"]),
    seed=st.integers(0, 9),
    validation=st.sampled_from([0.1, 0.5]),
)
odd = dict(
    dtype=st.sampled_from(["int64", "complex64", "bool"]),
    shape=st.sampled_from([(0, 3), (1, 3), (7, 3), (40, 90), (N,), (2, 3, 4)]),
    damage=st.sampled_from([float("nan"), float("inf"), 1e38, "constant"]),
    groups=st.sampled_from(["one", "short", "nan"]),
    method=st.sampled_from(["nobody", 3, None, ["pca"]]),
    seed=st.sampled_from([-1, 1.5, True]),
    validation=st.sampled_from([0, 1, -3, float("nan"), "0.1"]),
)


@examples(120)
@given(st.fixed_dictionaries(usual), st.fixed_dictionaries({}, optional=odd))
@pytest.mark.filterwarnings("ignore")
def test_any_fit_is_made_or_refused(asked, changed):
    if changed:  # one at a time: the first
        asked |= dict([next(iter(changed.items()))])
    shape, groups = asked["shape"], asked["groups"]
    with tempfile.TemporaryDirectory() as folder:
        h = activations(n=shape[0], d=int(np.prod(shape[1:])), damage=asked["damage"])
        with np.errstate(all="ignore"):
            h = h.reshape(shape).astype(asked["dtype"])
        ids = np.arange(shape[0]) // 5
        groups = {
            None: None,
            "ids": ids,
            "strings": [f"d{i}" for i in ids],
            "one": ids * 0,
            "short": ids[:-1],
            "nan": np.where(ids == 1, np.nan, ids),
        }[groups]
        h = given_as(asked["kind"], h, folder)
        try:
            model = mmlib.fit(
                h,
                asked["method"],
                groups=groups,
                seed=asked["seed"],
                validation=asked["validation"],
                progress=False,
            )
        except OURS as error:
            assert type(error).__module__.partition(".")[0] in ("builtins", "mmlib") and str(error)
            assert str(error) != "torch" and "Traceback" not in str(error)
            COUNTS["refused"] += 1
            return
        assert torch.isfinite(model.denoise(model.noised(h, 0.5), 0.5)).all()
        if asked["method"] != "pca":
            assert model.sample(2).shape == (2, shape[1])
        COUNTS["made"] += 1


COUNTS = {"made": 0, "refused": 0}


def test_fits_of_both_outcomes_came():
    assert min(COUNTS.values()) > 10, COUNTS


@pytest.fixture(scope="module")
def fitted():
    return mmlib.fit(activations(), "gaussian", progress=False)


odd_levels = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0, 1, None, "0.5", True, [0.5] * N, np.linspace(0.1, 0.9, N), [0.5]]),
)


@examples(150)
@given(sigma=odd_levels, n=st.sampled_from([N, 1, 0]), d=st.sampled_from([D, D, D + 1]))
@example(sigma=0.5, n=N, d=D)
def test_any_noise_level_is_used_or_refused(fitted, sigma, n, d):
    x = activations(n=n, d=d)
    try:
        found = fitted.denoise(x, sigma)
    except OURS as error:
        assert str(error)
        return
    assert found.shape == (n, d) and torch.isfinite(found).all()
