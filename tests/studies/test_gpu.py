"""What needs a GPU, with tiny networks on a CPU: what is measured on which documents, FLOP by hand,
batches that do not fit, wrong calls.
"""

import json
import math
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from mmlib.activations.store import ActivationStore
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.networks import LinearSkip, MLPDenoiser, MLPSize
from mmlib.evaluation import losses
from mmlib.files import read_json
from mmlib.runs import run as runs
from mmlib.runs.presets import PCA_K
from mmlib.runs.results import keyed_results, rows_of
from mmlib.training.recipe import Recipe, Training
from mmlib_studies import benchmarks
from mmlib_studies import gpu as gpu_study
from mmlib_studies.benchmarks import SMOKE, LeftOut, begin, flop_per_activation, training_of
from mmlib_studies.gpu import GPURun, GPUStudy, measure, resident_batches

MLP, UNET, SHARED = SMOKE.workloads

TINY = Recipe(
    MLPSize(layers=1, d_model=16, d_mlp=32),
    Training("flow_velocity", steps=20, batch=64, lr=1e-3, levels=16, bf16=False),
)


@pytest.fixture
def study(make_store, monkeypatch):
    monkeypatch.setattr(gpu_study, "TOKENS", 50)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows, splits = (3000, 500, *6 * (120,)), ("train", "validation", *6 * ("test",))
    return GPUStudy(ActivationStore(make_store(dtype="float32", rows=rows, splits=splits)[0]))


def test_an_epoch_has_every_row_once_in_an_order_of_its_own():
    rows = torch.arange(10.0)[:, None]
    batches = resident_batches(rows, 5, 3)
    epochs = [torch.cat([next(batches), next(batches)]).flatten() for _ in range(2)]
    assert all(torch.equal(epoch.sort().values, rows.flatten()) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(next(resident_batches(rows, 5, 3)).flatten(), epochs[0][:5])
    ragged = resident_batches(rows, 4, 0)
    assert {len(next(ragged)) for _ in range(6)} == {4}


def test_test_documents_are_read_by_final_runs_alone_and_a_run_that_is_there_is_not_repeated(
    study, tmp_path, monkeypatch, capsys
):
    seen, losses_on = [], gpu_study.losses_on
    split_of = {id(tokens): split for split, tokens in study.splits.items()}

    def watched(tokens, *rest):
        seen.append(split_of[id(tokens)])
        return losses_on(tokens, *rest)

    monkeypatch.setattr(gpu_study, "losses_on", watched)
    out = tmp_path / "budgets.json"
    measure(study, [GPURun("tried", TINY)], out, "abc")
    assert seen == ["validation", "train"]
    content = measure(study, [GPURun("tried", TINY), GPURun("last", TINY, final=True)], out, "abc")
    assert seen[2:] == ["test", "test", "validation", "train"]
    assert "tried: is in budgets.json already" in capsys.readouterr().out
    tried, last = content["rows"]
    assert json.loads(json.dumps(keyed_results("gpu/budgets", content))) == read_json(out)
    assert content["provenance"]["commit"] == "abc"
    # one recipe, one seed
    assert (tried["validation"], tried["train"]) == (last["validation"], last["train"])
    assert "test" not in tried
    assert set(last["test"]) == {"flow_velocity", "ddpm_epsilon"}
    losses = last["test"]["flow_velocity"]["losses"]
    assert set(losses) == {"last", "mean", f"pca_k{PCA_K}", "gaussian"}
    for row in last["test"]["flow_velocity"]["reductions"]:
        expected = 1 - losses["last"]["loss"] / losses[row["baseline"]]["loss"]
        assert row["reduction"] == pytest.approx(expected)
    assert last["log"][-1]["step"] == 20 and last["activations"] == 20 * 64
    measure(study, [GPURun("tried", TINY)], out, "of other code")
    assert len(read_json(out)["trials"]) == 1


def test_what_was_measured_before_a_machine_went_is_kept_and_such_a_run_is_begun_again(
    study, tmp_path, monkeypatch
):
    def gone(*_, **__):
        raise RuntimeError("the machine went")

    out, run = tmp_path / "budgets.json", GPURun("last", TINY, final=True)
    with monkeypatch.context() as broken:
        broken.setattr(losses, "evaluate", gone)
        with pytest.raises(RuntimeError, match="the machine went"):
            measure(study, [run], out, "abc")
    row = read_json(out)["trials"]["last"]
    assert row["log"][-1]["step"] == 20 and "train" not in row
    assert "train" in measure(study, [run], out, "abc")["rows"][0]


def test_likelihood_of_a_network_is_beside_the_gaussians_on_the_same_tokens(study, monkeypatch):
    """A network that predicts the Gaussian's velocity has its density, up to steps and probes."""
    monkeypatch.setattr(gpu_study, "DENSITY_TOKENS", 60)
    silent, gaussian = MLPDenoiser(8, zero_init=True), study.components.gaussian()
    network = LinearSkip.over(gaussian, silent, "flow_velocity")
    model = MetaModel(network, "flow_velocity", Origin.of(study.store))
    found = gpu_study.density_of(model, study.components, study.splits["test"])
    assert abs(found["over_gaussian"]) < 0.02
    assert found["mean"] == pytest.approx(found["gaussian"] + found["over_gaussian"])
    assert found["ci95"][0] <= found["over_gaussian"] <= found["ci95"][1]
    assert np.isfinite(found["trace_error_of_mean"])


def test_runs_have_names_of_their_own_and_are_what_was_measured():
    by_name = {run.name: run for run in gpu_study._runs()}
    assert len(by_name) == len(gpu_study._runs())
    measured = read_json(runs.ROOT / "results" / "gpu" / "budgets.json")["trials"]
    for name, row in measured.items():
        now = json.loads(json.dumps(asdict(by_name[name].recipe)))
        for recipe in (now, row["recipe"]):
            del recipe["training"]["keep"]  # copies kept on the way change nothing
        assert now == row["recipe"] and by_name[name].final == row["final"]


# Benchmarks


def test_every_row_is_finite_positive_and_says_what_it_divides(monkeypatch, tmp_path):
    compiled = torch.compile
    # a compiler takes minutes
    monkeypatch.setattr(torch, "compile", lambda module: compiled(module, backend="eager"))
    out = str(tmp_path / "rates.json")
    asked = ["gpu_benchmarks", "--smoke", "--out", out, "--commit", "abc"]
    monkeypatch.setattr(sys, "argv", asked)
    size = replace(SMOKE, workloads=(MLP, UNET), seconds=0.001, compile_within=math.inf)
    monkeypatch.setattr(benchmarks, "SMOKE", size)
    benchmarks.main()
    result = read_json(tmp_path / "rates.json")
    rows = rows_of(result["rates"], "name", "compiled")
    names = [(workload.name, compiled) for workload in (MLP, UNET) for compiled in (False, True)]
    assert [(row["name"], row["compiled"]) for row in rows] == names
    for row in rows:
        matmul, rounds = row["matmul_flop_per_second"], row["rounds"]["activations_per_second"]
        rates = (row["activations_per_second"], *matmul.values(), *rounds)
        assert all(math.isfinite(rate) and rate > 0 for rate in rates)
        assert len(rounds) == 3 and row["batch"] in (64, 8)
        flop = row["activations_per_second"] * row["flop_per_activation"]
        for side, fraction in row["fraction_of_matmul"].items():
            assert fraction == pytest.approx(flop / matmul[side])
    assert result["left_out"] == {} and result["provenance"]["commit"] == "abc"
    assert result["provenance"]["packages"]["torch"] == torch.__version__


@pytest.mark.parametrize("workload", [MLP, SHARED], ids=lambda workload: workload.name)
def test_flop_of_the_mlp_by_hand(workload):
    """Two per weight in each of three products; none gives the gradient of the network's inputs;
    what knows the level alone is shared.
    """
    d, m, f, blocks = 16, 32, 64, 2
    # into the network; up, gate and down; out of it
    of_rows = 2 * d * m + blocks * 3 * 3 * m * f + 3 * m * d
    # the embedding's two; the blocks' time projections
    of_levels = 2 * m * m + 3 * m * m + blocks * 3 * m * f
    expected = 2 * (of_rows + of_levels / workload.rows_per_level)
    assert flop_per_activation(training_of(workload), workload) == expected


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
    "command, arguments, message",
    [
        (gpu_study, [], "no CUDA device"),
        (gpu_study, ["one-blok"], "unknown run one-blok: expected some of gated_mlp"),
        (benchmarks, [], "no CUDA device"),
        (benchmarks, ["--smoke"], "--smoke needs --out"),
    ],
)
def test_wrong_calls_are_refused_by_name(monkeypatch, capsys, command, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["it", *arguments])
    with pytest.raises(SystemExit):
        command.main()
    assert message in capsys.readouterr().err
