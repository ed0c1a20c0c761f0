"""What a reader of the repository relies on: pins, notebooks, dependencies, and numbers in the README."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from mmlib.runs import dependencies
from mmlib.runs.presets import get_preset
from mmlib.runs.run import ROOT
from mmlib.runs.where import quotes
from mmlib_studies import claims
from mmlib_studies.steering.grid import combinations

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_requirement_is_pinned_once():
    lines = [
        line
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names)) and "torch==2.13.0" in lines


def test_conda_takes_its_versions_from_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.txt"]} and environment["channels"] == ["conda-forge"]
    assert [re.split(r"[<>=]", line)[0] for line in conda] == ["python", "pip", "make"]


def test_installed_versions_are_the_pinned_ones():
    from importlib.metadata import version

    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, pinned = line.split("==")
            assert version(name).split("+")[0] == pinned


def lines_without_imports(cell):
    code = "\n".join(re.sub(r"^[%!].*", "", line) for line in cell.source.splitlines())
    imports = [n for n in ast.parse(code).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    return len(code.splitlines()) - sum(n.end_lineno - n.lineno + 1 for n in imports)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_fit_to_read(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert (
        notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
        and "**" in notebook.cells[0].source
    )
    assert "What this does not show" in notebook.cells[-1].source
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    assert any("nbval-check-output" in cell.metadata.get("tags", []) for cell in code)
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in code)
    assert max(map(lines_without_imports, code)) <= 40
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), (
        "run from top to bottom: make reproduce publish"
    )
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert not re.search(r"/(home|work|root|tmp|Users)/", path.read_text())
    # ipywidgets' Output, which interact uses, can make nbclient miss the end of a cell and wait for ever (jupyter/nbclient, issue 312)
    assert not any(re.search(r"ipywidgets\.(interact|Output)\w*\(", cell.source) for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_checks_holds_in_the_copy_in_git(path):
    """Else nbval would expect a failed check to fail."""
    checks = [
        cell
        for cell in nbformat.read(path, as_version=4).cells
        if "nbval-check-output" in cell.metadata.get("tags", [])
    ]
    shown = ["".join(output.get("text", "") for output in cell.outputs) for cell in checks]
    assert checks and all(text and "False" not in text for text in shown)


def test_arrows_run_down():
    """The contracts of import-linter in pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_code_is_formatted_and_passes_its_linter():
    ruff = (sys.executable, "-m", "ruff")
    code = ("mmlib", "notebooks/studies", "tests")
    for command in (("format", "--check", *code), ("check", *code, "notebooks")):
        found = subprocess.run([*ruff, *command], cwd=ROOT, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


def test_a_changed_module_is_known_to_the_notebooks_that_use_it():
    users = {path.stem[:2]: dependencies.modules_of(path) for path in NOTEBOOKS}
    store, losses, claim = (
        "mmlib.activations.store",
        "mmlib.evaluation.losses",
        "mmlib.evaluation.claim",
    )
    assert all(store in users[n] for n in ("01", "02", "03", "04", "05"))
    assert losses in users["04"] and losses not in users["02"]
    computed_by = {
        path.stem[:2]: dependencies.modules_of(path, dependencies.DRAWING) for path in NOTEBOOKS
    }
    assert claim in users["01"] and claim not in computed_by["01"], (
        "what only figures import makes nothing but figures due"
    )
    assert claim in computed_by["04"] and "mmlib_studies.steering.grid" in computed_by["25"]


def committed(name):
    """A results file as it is in git: `make reproduce` writes one of other times in its place. Without git, as it is on disk."""
    path = f"results/{name if name.startswith('gpu/') else f'default/{name}'}.json"
    shown = subprocess.run(
        ["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    return json.loads(
        shown.stdout if shown.returncode == 0 else (ROOT / path).read_text(encoding="utf-8")
    )


def test_committed_comparison_has_what_its_readers_need():
    result, splits = committed("loss_comparison"), committed("activations")["splits"]
    assert result["test"]["documents"] == splits["test"]["documents"] >= 20
    assert splits["validation"]["documents"] >= 8 and splits["train"]["tokens"] >= 500_000
    methods = {
        "mean",
        "pca_k64",
        "sae",
        "pca_k64_naive",
        "sae_naive",
        "ppca_k64",
        "gaussian",
        "mixture",
        "sae_gaussian",
        "denoising_sae",
        "unet",
        "mlp",
        "gated_mlp",
    }
    for objective in ("ddpm_epsilon", "flow_velocity"):
        rows = {row["method"]: row for row in result["rows"] if row["objective"] == objective}
        assert methods <= set(rows)
        assert all(
            {"loss", "ci95", "parameters", "train_seconds", "train_activations"} <= set(row)
            for row in rows.values()
        )
        assert all(row["ci95"][0] <= row["loss"] <= row["ci95"][1] for row in rows.values())
        assert rows["mlp_unet_activations"]["train_activations"] == pytest.approx(
            rows["unet"]["train_activations"], rel=0.02
        )
        for same_seconds in ("mlp", "gated_mlp_unet_seconds"):
            assert rows[same_seconds]["train_seconds"] == pytest.approx(
                rows["unet"]["train_seconds"], rel=0.25
            )
        assert objective == "ddpm_epsilon" or rows["gated_mlp"]["loss"] <= 1.05
        assert (
            rows["gaussian"]["loss"] < rows["ppca_k64"]["loss"] < rows["mean"]["loss"]
        )  # closed forms; who wins among the others is an outcome
        assert abs(result["closed_form"][objective]["relative_difference"]) < 0.01
        assert abs(result["closed_form"][objective]["z"]) < 3
    for row in result["reductions"]:
        assert row["claim"] == 0.47 and row["verdict"] in ("below", "consistent with", "above")
        assert row["ci95"][0] <= row["reduction"] <= row["ci95"][1]


def test_committed_densities_and_lm_losses_have_what_their_readers_need():
    density, lm_loss = committed("density"), committed("lm_loss")
    assert (
        density["tokens"] >= 1000
        and {"mean", "ppca_k64", "gaussian", "mixture", "mlp", "gated_mlp"} <= set(density["rows"])
        and "sae" in density["absent"]
    )
    assert abs(density["ode"]["of_gaussian"]["difference"]["mean"]) < 0.01
    assert all(
        density["ode"]["trace_errors"][name]["of_mean"] < 0.01 for name in ("mlp", "gated_mlp")
    )
    assert {row["method"] for row in lm_loss["ablations"]} == {
        "mean_ablation",
        "zero_ablation",
    } and lm_loss["test"]["tokens_unet"] <= 2000
    assert (
        len({row["sigma"] for row in lm_loss["denoisers"]}) >= 4
        and len(lm_loss["reconstructions"]["sae"]) >= 6
    )
    assert all(row["ci95"][0] <= row["delta"] <= row["ci95"][1] for row in lm_loss["denoisers"])


def test_committed_scaling_has_its_cells():
    scaling = committed("scaling")
    assert (
        len({row["d_model"] for row in scaling["rows"]}) >= 5
        and len({row["activations"] for row in scaling["rows"]}) >= 4
    )
    assert (
        max(row["activations"] for row in scaling["rows"])
        <= committed("activations")["splits"]["train"]["tokens"]
    )
    assert all(
        committed(f"scaling/{row['name']}")["test"]["loss"] == row["loss"]
        for row in scaling["rows"]
    )


def test_the_ledger_in_the_readme_is_the_one_in_results():
    rows, readme = committed("claims")["claims"], (ROOT / "README.md").read_text()
    assert len(rows) == len(claims.CLAIMS) and claims.as_markdown(rows, short=True) in readme


def test_committed_benchmarks_have_what_their_readers_need():
    benchmarks = committed("benchmarks")
    for row in benchmarks["rows"]:
        assert {"name", "ours", "reference", "reference_name", "ratio", "unit", "better"} <= set(
            row
        )
    assert all(len(values) >= 5 for values in benchmarks["rates"].values())
    ratios = {row["name"]: row["ratio"] for row in benchmarks["rows"]}
    assert (
        ratios["extraction to the store"] >= 2
        and ratios["extraction to the store, against computing alone"] >= 0.95
    )
    assert (
        ratios["shuffled batches, checksums on"] >= 0.3
        and ratios["shuffled batches, checksums on, against rows one at a time"] >= 20
    )
    memory = [row for row in benchmarks["rows"] if row["name"].startswith("peak memory")]
    assert len(memory) == 2 and all(row["ratio"] <= 1 for row in memory)
    assert (
        min(row["ratio"] for row in benchmarks["rows"] if row["name"].startswith("growth")) >= 0.75
    )
    assert len(benchmarks["growth"]["tokens"]) == len(benchmarks["growth"]["gigabytes"]) == 3


@pytest.mark.parametrize(
    "name",
    [
        "activations",
        "baselines",
        "training",
        "loss_comparison",
        "sample_quality",
        "density",
        "lm_loss",
        "claims",
        "scaling",
        "recipes",
        "benchmarks",
        "steering",
        "probing",
        "typicality",
        "robustness",
        "replication",
        "steering_study",
        "other_processor",
    ],
)
def test_committed_results_say_where_they_come_from(name):
    provenance = committed(name)["provenance"]
    assert (
        provenance["preset"] == "default"
        and provenance["seed"] == 0
        and "+changes" not in provenance["commit"]
    )


def test_numbers_quoted_in_the_readme_stand_in_results():
    """Each number in the README is written `number<!-- file:path.to.value -->` and must equal the value as rounded."""
    text = (ROOT / "README.md").read_text().replace("`<!-- FILE:KEYS -->`", "")
    quoted = quotes(text)
    assert len(quoted) == text.count("<!-- ") >= 30
    for text, name, path, percent in quoted:
        value = committed(name)
        for key in path.split("."):
            value = value[int(key)] if isinstance(value, list) else value[key]
        number = float(text.replace("−", "-").replace(",", ""))
        decimals = len(text.split(".")[1]) if "." in text else 0
        assert number == pytest.approx(
            round(value * (100 if percent else 1), decimals), abs=1e-9
        ), (text, name, path)


def test_committed_applications_have_what_their_readers_need():
    steering, probing, typicality = (
        committed("steering"),
        committed("probing"),
        committed("typicality"),
    )
    assert (
        steering["prompts"] >= 100 and len(steering["strengths"]) >= 3 and steering["tokens"] == 20
    )
    assert {"additive", "norm_kept", "sae_clean", "gaussian", "mixture", "gated_mlp", "sdedit"} <= {
        row["intervention"] for row in steering["rows"]
    }
    assert {"plain", "sdedit"} <= set(steering["cost"]["median_seconds"])
    assert steering["cost"]["ratios"]["sdedit"] <= 2.5 and steering["cost"]["batch"] == 32
    assert len(probing["tasks"]) >= 40 and {
        "gated_mlp",
        "untrained",
        "random",
        "sae",
        "raw",
        "mixture",
    } <= {row["name"] for row in probing["rows"]}
    assert all(
        row["all"]["ci95"][0] <= row["all"]["mean"] <= row["all"]["ci95"][1]
        for row in probing["rows"]
    )
    assert {"mahalanobis", "mixture", "pca", "sae", "denoise_gated_mlp"} <= set(
        typicality["scores"]
    ) and len(typicality["sets"]) >= 15
    control = [row for row in typicality["rows"] if row["set"] == "validation"]
    assert all(row["ci95"][0] <= 0.5 <= row["ci95"][1] for row in control), (
        "validation documents are told from test documents"
    )


def test_committed_study_of_steering_is_the_whole_of_its_plan():
    study = committed("steering_study")
    size = get_preset("default").steering_study
    assert study["cells"] == [cell.name for cell in combinations(size)] and study["runs"] == sum(
        len(cell.strengths) for cell in combinations(size)
    )
    steered = [row for row in study["rows"] if row["concept"]]
    assert {row["direction"] for row in steered} >= {
        "mean_difference",
        "sae_decoder",
        "probe",
    } and len({row["concept"] for row in steered}) == len(size.concepts)
    assert study["prompts"] == size.prompts and study["projections"]
    assert all(
        row["reach"]["ci95"] and (row["area"]["ci95"] is None) == (row["area"]["up_to"] is None)
        for row in study["against_addition"]
    )


def test_committed_robustness_and_replication_have_what_their_readers_need():
    robustness, replication = committed("robustness"), committed("replication")
    assert len(robustness["layers"]) == 3 and set(robustness["grid"]) == {
        "wikipedia",
        "newsgroups",
        "self",
    }
    assert all(
        set(by_layer) == {str(layer) for layer in robustness["layers"]}
        for by_layer in robustness["grid"].values()
    )
    cells = [cell for by_layer in robustness["grid"].values() for cell in by_layer.values()]
    assert all(
        {"over_gaussian", "over_mixture", "mixture_over_gaussian"} == set(cell) for cell in cells
    )
    assert {"whitened", "standardised"} == {
        row["coordinates"] for row in robustness["rows"]
    } and all(len(s["values"]) == 3 for s in robustness["seeds"].values())
    assert {(row["method"], row["baseline"]) for row in robustness["rows"]} >= {
        ("gated_mlp", "mixture"),
        ("mixture", "gaussian"),
        ("gated_mlp", "sae"),
    }
    assert (
        all(len(row["reductions"]["values"]) == 3 for row in replication["seeds"])
        and replication["fresh"]["test"]["documents"] >= 20
    )
    assert len(replication["seeds"]) == 4 and {"gated_mlp", "mlp", "unet", "mixture"} <= set(
        replication["spread_by_method"]
    )
    assert all(
        len(row["losses"]) == len(row["reductions"]) == 3
        for row in replication["spread_by_method"].values()
    )
    assert len(replication["mixture"]["tie"]["values"]) == 3 and {
        "mixture",
        "gated_mlp",
        "gaussian",
    } <= set(replication["fresh"]["losses"])
    assert {"gaussian"} <= set(
        replication["mixture"]["fresh"]["over"]
    ) and "reduction" in replication["mixture"]["fresh"]["recipe_over_mixture"]


def test_committed_recipes_have_their_cells_and_as_many_trials_for_the_published_architecture_as_for_ours():
    recipes = committed("recipes")
    assert {"published", "shared", "gated", "linear"} == set(recipes["variants"]) and all(
        len(row["losses"]["values"]) == 3 for row in recipes["variants"].values()
    )
    assert len({len(tried) for tried in recipes["rates"].values()}) == 1
    assert len(recipes["tuned"]["trials"]["published"]) >= len(recipes["tuned"]["trials"]["gated"])
    assert {row["rate"] for row in recipes["rates"]["published"]} and len(
        recipes["tuned"]["targets"]
    ) == len(recipes["published"]["targets"]) == 3
    assert all(
        committed(f"recipes/{name}")["configuration"]["seed"] in (0, 1, 2)
        for name in recipes["cells"]
    )
    assert (
        len(recipes["unet"]["orders"]["natural"]["values"])
        == len(recipes["unet"]["orders"]["permuted"]["values"])
        >= 3
    )
