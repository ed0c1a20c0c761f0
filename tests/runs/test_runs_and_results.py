"""Parameters, run names, results with provenance, and the errors a user meets first."""

import ast
import json
import shutil
from types import SimpleNamespace

import nbformat
import papermill
import pytest

from mmlib import files as results
from mmlib.files import MissingInput, processor, require, require_disk, written_whole
from mmlib.runs import pipeline as reproduce
from mmlib.runs import run as runs
from mmlib.runs.presets import PRESETS, get_preset
from mmlib_studies import (
    density,
    generalisation,
    lm_loss,
    replication,
    robustness,
    samples,
    scaling,
)
from mmlib_studies.ood import sizes as text_sizes
from mmlib_studies.probing import sizes as probing_sizes
from mmlib_studies.recipes import sizes as recipe_sizes
from mmlib_studies.steering import sizes as steering_sizes

NOTEBOOKS = runs.ROOT / "notebooks"


def test_unknown_preset_lists_those_there_are():
    with pytest.raises(
        ValueError, match="unknown preset 'big': expected one of smoke, default, gpu"
    ):
        get_preset("big")


@pytest.mark.parametrize("seed", [-1, 1.5, "0", True])
def test_impossible_seed(seed):
    with pytest.raises(ValueError, match="expected an integer of 0 or more"):
        runs.start(preset="smoke", seed=seed)


def test_departures_from_the_preset_name_the_run():
    assert runs.start(preset="smoke", seed=0).name == "smoke"
    run = runs.start(preset="default", seed=2, model="EleutherAI/pythia-160m", corpus="texts/")
    assert (
        run.name == "default+EleutherAI--pythia-160m+texts+seed2"
        and run.preset.model == "EleutherAI/pythia-160m"
    )
    assert run.figures != runs.start(preset="default", seed=0).figures == runs.ROOT / "figures"
    assert runs.start(preset="default", seed=0, model="gemma3-270m", layer=8).name == "default"
    assert runs.start(preset="default", seed=0, layer=3).name == "default+layer3"
    assert (
        runs.start(preset="smoke", seed=3).shared
        == runs.start(preset="smoke", seed=0).data
        != runs.start(preset="smoke", seed=3).data
    )


def test_a_parameter_of_one_notebook_names_its_results_and_leaves_the_runs_data(
    tmp_path, monkeypatch
):
    plain = runs.start(preset="default", seed=0, meta_model=None)
    other = runs.start(preset="default", seed=1, meta_model="owner/prior")
    assert (
        plain == runs.start(preset="default", seed=0)
        and plain.results == runs.ROOT / "results" / "default"
    )
    assert (
        other.data == runs.start(preset="default", seed=1).data
        and other.results == runs.ROOT / "results" / "default+seed1+meta_model-owner--prior"
    )
    assert runs.start(preset="default", seed=0, meta_model="mlp").figures not in (
        plain.figures,
        other.figures,
    )
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    path = runs.start(preset="smoke", seed=0, meta_model="mlp").write(
        "steering", {"answer": 1}, "11_steer"
    )
    assert path == tmp_path / "results" / "smoke+meta_model-mlp" / "steering.json"
    assert "-p meta_model mlp" in json.loads(path.read_text())["provenance"]["command"]
    monkeypatch.setattr(runs, "_injected_names", lambda: ["meta_model"])
    assert runs.start(preset="smoke", seed=0, meta_model="mlp").preset.name == "smoke"
    with pytest.raises(
        ValueError,
        match="unknown parameter meta_model: this notebook takes preset, seed, model, corpus, layer$",
    ):
        runs.start(preset="smoke", seed=0)


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_begins_its_run_before_anything_else_and_refuses_parameters_that_it_does_not_declare(
    path, monkeypatch
):
    """Its own parameters and its own call, in a moment; a kernel would import for ten seconds first."""
    declared, started, *_ = [
        cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"
    ]
    body = ast.parse(started).body
    (at,) = (
        i
        for i, node in enumerate(body)
        if isinstance(node, ast.Assign) and ast.unparse(node).startswith("run = runs.start(")
    )
    assert all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body[:at])
    names = {"runs": runs}
    exec(declared, names)
    names["preset"] = "smoke"
    exec(ast.unparse(body[at]), names)
    assert names["run"].preset.name == "smoke"
    own = ", meta_model" if "meta_model" in names else ""
    monkeypatch.setattr(runs, "_injected_names", lambda: ["preset", "sed", "stepz"])
    with pytest.raises(
        ValueError,
        match=f"unknown parameter sed, stepz: this notebook takes preset, seed, model, corpus, layer{own}$",
    ):
        exec(ast.unparse(body[at]), names)


@pytest.mark.parametrize("notebook", ["01_extract_activations", "11_steer"])
def test_papermill_parameter_that_a_notebook_does_not_declare_fails_at_once(notebook, tmp_path):
    with pytest.raises(
        papermill.PapermillExecutionError,
        match="unknown parameter sed, stepz: this notebook takes preset, seed, model, corpus, layer",
    ):
        papermill.execute_notebook(
            NOTEBOOKS / f"{notebook}.ipynb",
            tmp_path / "out.ipynb",
            progress_bar=False,
            parameters={"preset": "smoke", "sed": 1, "stepz": 3},
            kernel_name="python3",
            execution_timeout=300,
            iopub_timeout=60,
        )


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"preset": "huge"}, "unknown preset 'huge': expected one of smoke, default, gpu"),
        ({"preset": "smoke", "seed": -1}, "seed -1: expected an integer of 0 or more"),
        (
            {"preset": "smoke", "layer": 99},
            "layer 99: this model has 18 blocks, expected an integer from 0 to 17",
        ),
        (
            {"preset": "smoke", "layer": 17},
            "activations.h5 is missing: run notebooks/01_extract_activations.ipynb first",
        ),
    ],
)
def test_impossible_papermill_values_fail_at_once(parameters, message, tmp_path):
    with pytest.raises(papermill.PapermillExecutionError, match=message):
        papermill.execute_notebook(
            NOTEBOOKS / "02_fit_baselines.ipynb",
            tmp_path / "out.ipynb",
            progress_bar=False,
            parameters=parameters,
            kernel_name="python3",
            execution_timeout=300,
            iopub_timeout=60,
        )


def test_missing_input_names_the_notebook(tmp_path):
    with pytest.raises(MissingInput, match="run notebooks/02_fit_baselines.ipynb first"):
        require(tmp_path / "pca.safetensors", "02_fit_baselines")


def test_full_disk_is_refused_with_both_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000_000))
    with pytest.raises(OSError, match="extraction needs 3.00 GB at .*, where 2.00 GB are free"):
        require_disk(tmp_path, 3_000_000_000, "extraction")
    with pytest.raises(OSError, match="the default preset needs 5.00 GB"):
        reproduce.plan("default", ["01_extract_activations"])
    with pytest.raises(ValueError, match="unknown preset 'huge'"):
        reproduce.plan("huge", ["01_extract_activations"])


def test_times_are_kept_by_machine_and_this_one_is_asked_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(reproduce, "DATA", tmp_path / "data")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    other = {
        "processor": "Abacus",
        "cores": 3,
        "notebooks": {"01_a": {"minutes": 9.0}, "02_b": {"minutes": 5.0}},
    }
    results.write_json(reproduce.times_file("smoke"), {"machines": [other]})
    results.write_json(
        reproduce.executed("smoke", "01_a").with_suffix(".time.json"),
        {"minutes": 1.5, "peak_gib": 2.0},
    )
    reproduce.summary("smoke", ["01_a"])
    known = results.read_json(reproduce.times_file("smoke"))["machines"]
    assert known == [
        other,
        {
            "processor": processor(),
            "cores": 3,
            "notebooks": {"01_a": {"minutes": 1.5, "peak_gib": 2.0}},
        },
    ]
    capsys.readouterr()
    reproduce.plan("smoke", ["01_a", "02_b", "03_c"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert rows == [
        ["01_a", "1.5"],
        ["02_b", "5.0", "on", "3", "cores", "of", "Abacus"],
        ["03_c", "?"],
        ["together", "6.5"],
    ]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    results.write_json(path, {"x": 1})
    with pytest.raises(KeyboardInterrupt), written_whole(path) as partial:
        partial.write_text("{")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"x": 1} and list(tmp_path.iterdir()) == [path]


def test_results_refuse_what_is_not_a_number_by_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"a.json.rows\[1\].loss is nan"):
        results.write_json(tmp_path / "a.json", {"rows": [{"loss": 1.0}, {"loss": float("nan")}]})
    assert not list(tmp_path.iterdir())


def test_provenance_says_where_a_number_comes_from():
    facts = results.provenance(runs.ROOT, preset="smoke", seed=3)
    assert (
        facts["preset"] == "smoke"
        and facts["seed"] == 3
        and set(facts["packages"]) == set(results.PACKAGES)
    )
    assert len(facts["commit"].removesuffix("+changes")) == 40 or facts["commit"] == "unknown"


def test_every_study_has_sizes_for_every_preset():
    assert list(samples.SIZES) == list(PRESETS)
    for sizes in (
        generalisation.GAP_TOKENS,
        density.SIZES,
        lm_loss.SIZES,
        scaling.SIZES,
        text_sizes.SIZES,
        probing_sizes.SIZES,
        steering_sizes.SIZES,
        steering_sizes.GRIDS,
        recipe_sizes.SIZES,
        robustness.SIZES,
        replication.SIZES,
    ):
        assert list(sizes) == list(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_slow_methods_see_a_whole_share_of_the_tokens(name):
    again, shifted, drawn = (study.SIZES[name] for study in (replication, robustness, samples))
    assert again.tokens % again.tokens_slow == 0 and shifted.tokens % shifted.tokens_mixture == 0
    assert drawn.drawn_unet <= drawn.drawn


def test_every_preset_is_consistent():
    for preset in PRESETS.values():
        trainings = {name: recipe.training for name, recipe in preset.recipes.items()}
        assert set(trainings) == {
            "unet",
            "mlp",
            "gated_mlp",
            "denoising_sae",
            "mlp_short",
            "mlp_2m",
            "mlp_5m",
        }
        for training in trainings.values():
            assert (
                all(step <= training.steps for _, step in training.keep)
                and training.batch % (training.levels or 1) == 0
            )
        seen = trainings["unet"].steps * trainings["unet"].batch / trainings["mlp"].batch
        assert dict(trainings["mlp"].keep)["unet_activations"] == pytest.approx(seen, rel=0.35)
        assert (
            trainings["mlp_short"].steps == pytest.approx(seen, rel=0.35)
            and not trainings["mlp_short"].keep
        )
