"""Another run's results beside the published ones, and how they take their place."""

import nbformat
import pytest

from mmlib.files import write_json
from mmlib.runs import pipeline, plan


def losses(loss=1.2512, reduction=0.2511, second=-0.031, verdict="below"):
    return {
        "gaussian": {"value": loss, "train_seconds": 12.0},
        "rows": [
            {"reduction": reduction, "ci95": [0.24, 0.26]},
            {"reduction": second, "ci95": [-0.04, -0.02], "verdict": verdict},
        ],
    }


@pytest.fixture
def compared(tmp_path):
    """Compares results with published ones; both have times of a machine too."""

    def compare(here, there, name="losses"):
        for when, content in (("then", there), ("now", here)):
            facts = {"written": when, "commit": "abc", "notebook": "notebooks/04_b.ipynb"}
            write_json(tmp_path / when / f"{name}.json", {"provenance": facts, **content})
            times = {"provenance": facts, "minutes": 3}
            write_json(tmp_path / when / "run_times.json", times)
        return pipeline.compare(tmp_path / "now", tmp_path / "then")

    return compare


def test_numbers_are_compared_by_their_keys_and_judged_by_their_intervals(compared):
    found = compared(losses(1.2513, 0.2559, -0.0151), losses())
    counts = ("numbers", "same", "with_interval", "inside")
    assert [found[key] for key in counts] == [3, 1, 2, 1]
    first, second = found["rows"]
    numbers = {"number": "losses:rows.0.reduction", "published": 0.2511, "here": 0.2559}
    assert first == numbers | {"ci95": [0.24, 0.26], "same": False, "inside": True}
    assert second["inside"] is False and found["other_verdicts"] == []
    shown = pipeline.as_text(found)
    assert "every verdict is the same" in shown and shown.count("OUTSIDE") == 1
    assert shown.index("rows.1.reduction") < shown.index("rows.0.reduction")
    assert "1 more that lie nearer" not in shown
    assert "and 1 that lie nearer" in pipeline.as_text(found, most=1)


def test_an_end_that_is_not_known_leaves_out_nothing(compared):
    found = compared(*({"a": {"value": value, "ci95": [1.0, None]}} for value in (9e9, 2.0)))
    assert found["inside"] == 1 and "[1, ?]" in pipeline.as_text(found)


def test_a_network_whose_name_ends_like_a_time_is_compared_and_times_are_not(compared):
    name = "gated_mlp_unet_seconds"
    here, there = ({name: {"value": value, "fit_seconds": value}} for value in (1.0, 2.0))
    assert compared(here, there)["numbers"] == 1


def test_another_verdict_is_named(compared):
    found = compared(losses(verdict="above"), losses())
    assert found["other_verdicts"] == ["losses:rows.1.verdict: below, above here"]
    assert "below, above here" in pipeline.as_text(found)


def test_results_that_no_run_wrote_anew_are_refused(compared, tmp_path):
    compared(losses(), losses())
    (tmp_path / "empty").mkdir()
    for folder in ("then", "empty"):
        with pytest.raises(FileNotFoundError, match="no results of another run"):
            pipeline.compare(tmp_path / folder, tmp_path / "then")


@pytest.fixture
def finished(own_root, monkeypatch):
    """A repository of two notebooks, and a data folder in which the first has run at the default
    preset.
    """
    monkeypatch.setattr(plan, "NOTEBOOKS", {"04_b": ("main", ()), "11_c": ("applications", ())})
    (own_root / "notebooks").mkdir()
    own = own_root / "data" / "results" / "default"
    for path in ("requirements.txt", "data/figures/default/losses.pdf", "figures/old.pdf"):
        (own_root / path).parent.mkdir(parents=True, exist_ok=True)
        (own_root / path).touch()
    (own_root / "results" / "default").mkdir(parents=True)
    for name in plan.NOTEBOOKS:
        cells = [nbformat.v4.new_markdown_cell("# old"), nbformat.v4.new_code_cell("print(1)")]
        book = nbformat.v4.new_notebook(cells=cells)
        nbformat.write(book, plan.path_of(name))
        done = pipeline.executed(name, "default")
        done.parent.mkdir(parents=True, exist_ok=True)
        code = book.cells[1]
        code.execution_count = 1
        code.outputs = [
            nbformat.v4.new_output("stream", name=stream, text=text)
            for stream, text in (("stdout", "1\n"), ("stderr", "100 %"))
        ]
        nbformat.write(book, done)
    plan.stamp("04_b", "default", plan.state_of("04_b", "default"))
    for name, notebook in (("losses", "04_b"), ("steering", "11_c")):
        facts = {"provenance": {"notebook": f"notebooks/{notebook}.ipynb"}}
        write_json(own / f"{name}.json", facts)
    write_json(own / "losses" / "trial.json", {})
    return own_root


def test_a_finished_run_takes_the_place_of_what_is_published_and_an_unfinished_line_stays(finished):
    text = plan.path_of("04_b")
    text.write_text(text.read_text().replace("# old", "# new"))  # text reruns nothing
    assert pipeline.publish() == [
        "applications not published: 11_c due, make applications first",
        "published: 04",
    ]
    first, second = (nbformat.read(plan.path_of(n), as_version=4) for n in ("04_b", "11_c"))
    assert first.cells[0].source == "# new" and [o.text for o in first.cells[1].outputs] == ["1\n"]
    assert first.cells[1].execution_count == 1 and not second.cells[1].outputs
    found = {path.name for path in finished.glob("results/default/**/*.json")}
    assert found == {"losses.json", "trial.json"} and (finished / "figures/losses.pdf").exists()
    assert not plan.due(["04_b"], "default"), "published outputs make nothing due"


def test_what_was_edited_since_it_ran_is_not_published(finished):
    path = plan.path_of("04_b")
    path.write_text(path.read_text().replace("print(1)", "print(2)"))
    with pytest.raises(ValueError, match=r"04_b is due \(notebooks/04_b.ipynb changed\): make rep"):
        pipeline.publish()
    assert not list((finished / "results" / "default").iterdir())


def test_a_path_of_this_machine_is_not_published(finished):
    done = pipeline.executed("04_b", "default")
    done.write_text(done.read_text().replace("1\\n", f"{finished}/data\\n"))
    with pytest.raises(ValueError, match="04_b shows the path .*, which no reader's machine has"):
        pipeline.publish()
    assert str(finished) not in plan.path_of("04_b").read_text()
