"""What is due after a change, why, and for how many minutes on this machine."""

import shutil
from types import SimpleNamespace

import pytest

from mmlib import files
from mmlib.__main__ import COMMANDS
from mmlib.runs import pipeline, plan, results
from mmlib.runs import run as runs

MAIN = ["01", "02", "03", "04", "05", "07", "08", "09", "31"]


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The data folder of a run in which every notebook has its stamp."""
    monkeypatch.setattr(runs, "DATA", tmp_path)
    for notebook in plan.NOTEBOOKS:
        plan.stamp(notebook, "smoke", plan.state_of(notebook, "smoke"))
    return tmp_path


@pytest.mark.parametrize(
    "changed, expected",
    [
        ("mmlib/activations/extract.py", MAIN),
        ("mmlib/denoisers/sae.py", MAIN[1:]),
        ("mmlib/training/train.py", MAIN[1:]),
        ("notebooks/studies/verdict.py", ["04", "09", "31"]),
        ("mmlib/evaluation/claim.py", ["04", "08", "09", "31"]),
        ("mmlib/evaluation/lm_loss.py", ["08", "09", "31"]),
        ("notebooks/studies/figures/losses.py", ["31"]),
        ("notebooks/05_sample_quality.ipynb", ["05", "09", "31"]),
        ("notebooks/studies/claims/ledger.py", ["09", "31"]),
        ("requirements.txt", MAIN),
        ("README.md", []),
    ],
)
def test_a_change_reruns_what_depends_on_it_and_no_more(ran, changed, expected):
    found = plan.due(["09_claims", "31_figures"], "smoke", [changed])
    assert [name[:2] for name in found] == expected
    for reasons in found.values():
        assert f"{changed} changed" in reasons or "runs before it" in reasons[0]


def test_a_study_is_due_by_what_it_imports_and_by_what_ran_before_it(ran):
    found = plan.due(plan.named(["studies"]), "smoke", ["notebooks/studies/robustness.py"])
    assert [name[:2] for name in found] == ["23", "24"]
    plan.stamp("03_train_meta_model", "smoke", plan.state_of("03_train_meta_model", "smoke"))
    found = plan.due(["06_scaling", "21_recipes"], "smoke")
    assert found == {"06_scaling": ["03_train_meta_model ran since"]}


def test_results_that_the_ledger_takes_in_and_edits_during_a_run_make_due(ran):
    files.write_json(ran / "results" / "smoke" / "steering.json", {})
    before = plan.state_of("05_sample_quality", "smoke")
    before["notebooks/studies/samples.py"] = "as it was"
    plan.stamp("05_sample_quality", "smoke", before)
    assert plan.due(plan.named(["main"]), "smoke") == {
        "05_sample_quality": ["notebooks/studies/samples.py changed"],
        "09_claims": ["smoke/steering.json changed", "05_sample_quality runs before it"],
        "31_figures": ["09_claims runs before it"],
    }


def test_the_command_says_what_is_due_and_why(ran, monkeypatch, capsys):
    monkeypatch.setattr(plan, "rates_here", lambda: {"float32": 100.0, "bfloat16": 200.0})

    def said(name, *arguments):
        COMMANDS[name]([*arguments])
        return capsys.readouterr().out

    assert "nothing to do" in said("plan", "--preset", "smoke", "all")
    shown = said("run", "--preset", "smoke", "31")
    assert "nothing to do" in shown and "results: " in shown
    (ran / "stamps" / "smoke" / "05_sample_quality.json").unlink()
    shown = said("plan", "--preset", "smoke")
    rows = [line.split(maxsplit=2) for line in shown.splitlines() if line.startswith("  0")]
    assert [(name, why) for name, _, why in rows] == [
        ("05_sample_quality", "it never ran here"),
        ("09_claims", "05_sample_quality runs before it"),
    ]
    assert "31_figures" in shown and "together" in shown
    monkeypatch.chdir(runs.ROOT / "tests")
    shown = said("plan", "--paths", "02", "studies").splitlines()
    assert shown[:2] == ["../notebooks/02_fit_baselines.ipynb", "../notebooks/06_scaling.ipynb"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("plan 99", "unknown notebook '99': expected main, applications, studies, all, or"),
        ("plan --preset huge", "unknown preset 'huge': expected one of smoke, quick"),
        (
            "plan --preset quick 26",
            "preset quick has no sizes for 26_best_model: expected the main",
        ),
        ("plan --what-if mmlib/none.py", "no file mmlib/none.py: expected a path in the repo"),
        ("run --publish", r"01_extract_activations is due \(it never ran here\): make reproduce"),
        ("run --folder nowhere", "nowhere has no results of another run"),
    ],
)
def test_wrong_calls_are_refused_in_words(ran, wrong, message):
    name, *arguments = wrong.split()
    with pytest.raises(SystemExit, match=message):
        COMMANDS[name](arguments)


def needs_line(notebook: str) -> str:
    """What the head of a notebook says must have run before it."""
    before = [name[:2] for name in plan.with_needs([notebook]) if name != notebook]
    if notebook in ("09_claims", "31_figures"):
        return f"*Needs: {', '.join(before)} for a run of your own; in a clone the published results do.*"
    return f"*Needs: {', '.join(before) or 'nothing, it is the first'}.*"


def test_every_notebook_is_in_the_plan_and_says_at_its_head_what_it_needs():
    paths = sorted((runs.ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(plan.NOTEBOOKS) == [path.stem for path in paths]
    order = list(plan.NOTEBOOKS)
    for i, (notebook, (_, needs)) in enumerate(plan.NOTEBOOKS.items()):
        assert all(order.index(name) < i for name in needs)
        head = files.read_json(plan.path_of(notebook))["cells"][0]["source"]
        assert needs_line(notebook) in "".join(head).splitlines()


def test_a_full_disk_is_refused_with_both_numbers(own_root, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000_000))
    with pytest.raises(OSError, match="the default preset needs 5.00 GB at .*, where 2.00 GB are"):
        plan.show({"01_extract_activations": ["it never ran here"]}, "default")


@pytest.fixture
def timed(own_root, monkeypatch):
    """A repository whose notebooks were timed on another machine, which is known to be twice as
    fast in float32, and one on a machine of which no speed is known.
    """
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    other = {
        "processor": "Abacus",
        "cores": 3,
        "rates": {"float32": 200.0, "bfloat16": 600.0, "disk": 100.0},
        "notebooks": {
            "01_extract_activations": {"minutes": 9.0, "peak_gib": 2.0},
            "04_compare_losses": {"minutes": 5.0, "peak_gib": 7.5},
        },
    }
    took = {"minutes": 7.0, "peak_gib": 1.0}
    unknown = {"processor": "Quipu", "cores": 2, "notebooks": dict.fromkeys(["05_b"], took)}
    unknown["notebooks"]["04_compare_losses"] = took
    content = results.keyed_results("run_times", {"machines": [other, unknown]})
    files.write_json(plan.times_file("smoke", own_root), content)
    return [other, unknown]


def test_minutes_are_those_of_another_machine_by_the_rates_of_both(timed, monkeypatch, capsys):
    """Without bfloat16 units the language model takes six times as long, float32 twice; each in its
    share.
    """
    here, there = {"float32": 100.0, "bfloat16": 2.0, "disk": 100.0}, timed[0]["rates"]
    assert plan.slower_by(FIRST, there, here) == pytest.approx(0.9 * 6 + 0.1 * 2)
    assert plan.slower_by(FIRST, here, here) == 1.0
    monkeypatch.setattr(plan, "rates_here", lambda: here)
    monkeypatch.setattr(plan, "free_memory", lambda: 4 * 2**30)
    monkeypatch.setattr(plan, "cores", lambda: 1)
    names = ("01_extract_activations", "04_compare_losses", "05_b", "31_figures")
    plan.show(dict.fromkeys(names, ["it never ran here", "b"]), "smoke")
    shown = capsys.readouterr().out
    rows = [line.split(maxsplit=2) for line in shown.splitlines() if line[2:3].isdigit()]
    assert [row[1] for row in rows] == ["50.4", "14.0", "7.0", "?"]  # 9 × 5.6, 5 × (1.2 + 1.6)
    assert rows[0][2] == "it never ran here and 1 more" and "71.4   2 GB of disk" in shown
    assert "low memory: 04_compare_losses took 7.5 GiB elsewhere, 4.0 GiB are free here" in shown
    assert "one core" in shown and "no units for bfloat16" in shown and "GPU" not in shown
    assert "never timed, so not in the sum: 31\n" in shown
    assert "whose speed is not known (Quipu), and several times slower" in shown
    assert shown.split("Quipu")[1].splitlines()[0].endswith("here perhaps: 05")


FIRST, TOOK = "01_extract_activations", {"minutes": 1.5, "peak_gib": 2.0}
HALF_AS_FAST = {"float32": 100.0, "bfloat16": 300.0, "disk": 100.0}  # as the first of `timed`


def machines_after_a_run(monkeypatch):
    """What is known of machines after notebook 01 ran here."""
    monkeypatch.setattr(plan, "rates_here", lambda: HALF_AS_FAST)
    files.write_json(pipeline.executed(FIRST, "smoke").with_suffix(".time.json"), TOOK)
    pipeline.run([], "smoke")
    content = files.read_json(plan.times_file("smoke", runs.DATA))
    return list(content["machines"].values())


def test_times_are_kept_by_machine_and_this_one_is_asked_first(timed, monkeypatch):
    this = {"processor": files.processor(), "cores": 3, "notebooks": {FIRST: TOOK}}
    assert machines_after_a_run(monkeypatch) == [*timed, {**this, "rates": HALF_AS_FAST}]
    published = files.read_json(plan.times_file("smoke", runs.ROOT))
    assert list(published["machines"].values()) == timed
    slower = {name: rate / 2 for name, rate in HALF_AS_FAST.items()}
    assert plan.minutes_here("smoke", slower)[FIRST] == (pytest.approx(3.0), None)


@pytest.mark.parametrize(("like", "left"), [(0, {"04_compare_losses": 10.0}), (1, {})])
def test_former_times_of_a_machine_like_this_are_brought_to_its_rates_or_left_out(
    timed, monkeypatch, like, left
):
    """How fast the second was is not known."""
    monkeypatch.setattr(plan, "processor", lambda: timed[like]["processor"])
    monkeypatch.setattr("os.cpu_count", lambda: timed[like]["cores"])
    this = machines_after_a_run(monkeypatch)[like]
    found = {notebook: row["minutes"] for notebook, row in this["notebooks"].items()}
    assert found == {FIRST: 1.5, **left} and this["rates"] == HALF_AS_FAST


def test_the_machine_is_measured_in_a_process_of_its_own(own_root):
    rates = plan.rates_here()
    assert set(rates) == {"float32", "bfloat16", "disk"} and all(v > 0 for v in rates.values())
    assert files.cores() >= 1 and files.free_memory() > 2**20
