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
from mmlib.runs import pipeline, plan
from mmlib.runs import run as runs
from mmlib.runs.presets import PRESETS, get_preset
from mmlib.runs.results import keyed_results
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
    assert run.figures != runs.start(preset="default", seed=0).figures
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
        and plain.results == runs.DATA / "results" / "default"
    )
    assert (
        other.data == runs.start(preset="default", seed=1).data
        and other.results == runs.DATA / "results" / "default+seed1+meta_model-owner--prior"
    )
    assert runs.start(preset="default", seed=0, meta_model="mlp").figures not in (
        plain.figures,
        other.figures,
    )
    monkeypatch.setattr(runs, "DATA", tmp_path)
    path = runs.start(preset="smoke", seed=0, meta_model="mlp").write(
        "numbers", {"answer": 1}, "11_steer"
    )
    assert path == tmp_path / "results" / "smoke+meta_model-mlp" / "numbers.json"
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


@pytest.mark.notebooks
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


@pytest.mark.notebooks
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
            "activations is missing: run notebooks/01_extract_activations.ipynb first",
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
        plan.show({"01_extract_activations": ["it never ran here"]}, "default")


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """A repository whose notebooks were timed on another machine, which is known to be twice as fast in float32."""
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "DATA", tmp_path / "data")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    other = {
        "processor": "Abacus",
        "cores": 3,
        "rates": {"float32": 200.0, "bfloat16": 600.0, "disk": 100.0},
        "notebooks": {
            "01_extract_activations": {"minutes": 9.0, "peak_gib": 2.0},
            "04_compare_losses": {"minutes": 5.0, "peak_gib": 7.5},
        },
    }
    content = keyed_results("run_times", {"machines": [other]})
    results.write_json(plan.times_file("smoke", tmp_path), content)
    return other


def test_minutes_are_those_of_another_machine_by_the_rates_of_both(timed, monkeypatch, capsys):
    """Without bfloat16 units the language model takes six times as long, float32 twice; each in its share."""
    here = {"float32": 100.0, "bfloat16": 2.0, "disk": 100.0}
    assert plan.slower_by(0.9, timed["rates"], here) == pytest.approx(0.9 * 6 + 0.1 * 2)
    assert plan.slower_by(0.9, here, here) == 1.0
    assert plan.minutes_here("smoke", here) == pytest.approx(
        {"01_extract_activations": 9.0 * 5.6, "04_compare_losses": 5.0 * (0.2 * 6 + 0.8 * 2)}
    )
    monkeypatch.setattr(plan, "rates_here", lambda: here)
    monkeypatch.setattr(plan, "free_memory", lambda: 4 * 2**30)
    monkeypatch.setattr(plan, "cores", lambda: 1)
    names = ("01_extract_activations", "04_compare_losses", "31_figures")
    plan.show(dict.fromkeys(names, ["it never ran here", "b"]), "smoke")
    shown = capsys.readouterr().out
    rows = [line.split(maxsplit=2) for line in shown.splitlines() if line[2:3].isdigit()]
    assert [row[1] for row in rows] == ["50.4", "14.0", "?"]
    assert rows[0][2] == "it never ran here and 1 more" and "64.4   2 GB of disk" in shown
    assert "low memory: 04_compare_losses took 7.5 GiB elsewhere, 4.0 GiB are free here" in shown
    assert "one core" in shown and "no units for bfloat16" in shown


def test_times_are_kept_by_machine_and_this_one_is_asked_first(timed, monkeypatch):
    here = {"float32": 100.0, "bfloat16": 300.0, "disk": 100.0}
    monkeypatch.setattr(plan, "rates_here", lambda: here)
    took = {"minutes": 1.5, "peak_gib": 2.0}
    name = "01_extract_activations"
    results.write_json(pipeline.executed(name, "smoke").with_suffix(".time.json"), took)
    pipeline.run([], "smoke")
    known, published = (
        list(results.read_json(plan.times_file("smoke", home))["machines"].values())
        for home in (runs.DATA, runs.ROOT)
    )
    this = {"processor": processor(), "cores": 3, "notebooks": {name: took}, "rates": here}
    assert known == [timed, this] and published == [timed]
    slower = {"float32": 50.0, "bfloat16": 150.0, "disk": 100.0}
    assert plan.minutes_here("smoke", slower)[name] == pytest.approx(3.0)


def test_the_machine_is_measured():
    rates = plan.rates_here()
    assert set(rates) == {"float32", "bfloat16", "disk"} and all(v > 0 for v in rates.values())
    assert results.cores() >= 1 and results.free_memory() > 2**20


def test_a_run_leaves_what_is_published_and_reads_it_where_it_has_nothing_of_its_own(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "DATA", tmp_path / "data")
    published = tmp_path / "results" / "default"
    results.write_json(published / "numbers.json", {"answer": 1})
    run = runs.start(preset="default", seed=0)
    assert run.results == tmp_path / "data" / "results" / "default"
    assert run.figures == tmp_path / "data" / "figures" / "default"
    assert run.has("numbers") and run.read("numbers", "11_steer") == {"answer": 1}
    run.write("numbers", {"answer": 2}, "11_steer")
    assert run.read("numbers", "11_steer")["answer"] == 2
    assert results.read_json(published / "numbers.json") == {"answer": 1}
    other = runs.start(preset="default", seed=1)
    assert not other.has("numbers") and not runs.start(preset="smoke", seed=0).has("numbers")
    monkeypatch.setattr(runs, "PUBLISHING", True)
    assert run.results == published and run.figures == tmp_path / "figures"
    assert other.results == tmp_path / "data" / "results" / "default+seed1"


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


def test_every_preset_says_what_disk_it_needs():
    assert set(plan.DISK) == set(PRESETS)


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
