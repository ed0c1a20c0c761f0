"""The benchmark of a GPU, run on tiny networks: what its rows hold, FLOP by hand, batches that do not fit, machines that will not do."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from mmlib.files import read_json
from mmlib.runs.run import rows_of
from mmlib_studies import benchmarks
from mmlib_studies.benchmarks import SMOKE, LeftOut, begin, flop_per_activation, main, training_of

MLP, UNET, SHARED = SMOKE.workloads


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_every_row_is_finite_positive_and_says_what_it_divides(monkeypatch, tmp_path):
    compiled = torch.compile
    # a compiler takes minutes
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    out = str(tmp_path / "rates.json")
    asked = ["gpu_benchmarks", "--smoke", "--out", out, "--commit", "abc"]
    monkeypatch.setattr(sys, "argv", asked)
    size = replace(SMOKE, workloads=(MLP, UNET), seconds=0.001, compile_within=math.inf)
    monkeypatch.setattr(benchmarks, "SMOKE", size)
    main()
    result = read_json(tmp_path / "rates.json")
    rows = rows_of(result["rates"], "name", "compiled")
    assert [(row["name"], row["compiled"]) for row in rows] == [
        (w.name, c) for w in (MLP, UNET) for c in (False, True)
    ]
    for row in rows:
        matmul, rounds = row["matmul_flop_per_second"], row["rounds"]["activations_per_second"]
        rates = (row["activations_per_second"], *matmul.values(), *rounds)
        assert all(math.isfinite(rate) and rate > 0 for rate in rates)
        assert len(rounds) == 3 and row["batch"] in (64, 8)
        flop = row["activations_per_second"] * row["flop_per_activation"]
        for side, fraction in row["fraction_of_matmul"].items():
            assert fraction == pytest.approx(flop / matmul[side])
    assert result["left_out"] == {}
    assert result["provenance"]["commit"] == "abc"
    assert result["provenance"]["packages"]["torch"] == torch.__version__


@pytest.mark.parametrize("workload", [MLP, SHARED], ids=lambda workload: workload.name)
def test_flop_of_the_mlp_by_hand(workload):
    """Two per weight in each of three products; none gives the gradient of the network's inputs; what knows the level alone is shared."""
    d, m, f, blocks = 16, 32, 64, 2
    # into the network; up, gate and down; out of it
    of_rows = 2 * d * m + blocks * 3 * 3 * m * f + 3 * m * d
    # the embedding's two; the blocks' time projections
    of_levels = 2 * m * m + 3 * m * m + blocks * 3 * m * f
    assert flop_per_activation(training_of(workload), workload) == 2 * (
        of_rows + of_levels / workload.rows_per_level
    )


def test_a_batch_that_does_not_fit_is_named_and_the_next_one_tried(monkeypatch, capsys):
    training = training_of(MLP)
    step = training.advance

    def advance(source):
        if len(next(source)) > limit:
            raise torch.cuda.OutOfMemoryError("out of memory")
        step(source)

    monkeypatch.setattr(training, "advance", advance)
    limit = 32
    source, batch = begin(training, MLP)
    assert batch == 32 == len(next(source))
    assert training.settings.levels == 32
    assert "a batch of 64 does not fit" in capsys.readouterr().out
    limit = 0
    with pytest.raises(LeftOut, match="no batch of 64, 32 fits"):
        begin(training, MLP)


@pytest.mark.parametrize(
    "arguments, message", [([], "no CUDA device"), (["--smoke"], "--smoke needs --out")]
)
def test_machines_without_a_gpu_and_smoke_results_in_its_place_are_refused(
    no_cuda, monkeypatch, capsys, arguments, message
):
    monkeypatch.setattr(sys, "argv", ["gpu_benchmarks", *arguments])
    with pytest.raises(SystemExit):
        main()
    assert message in capsys.readouterr().err
