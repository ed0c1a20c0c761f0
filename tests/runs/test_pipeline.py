"""Another run's results beside the published ones, and how they take their place."""

import json

import nbformat
import pytest

from mmlib.runs import pipeline, plan


def losses(loss, reduction, second, written):
    return {
        "provenance": {"written": written, "commit": "abc", "notebook": "notebooks/04_b.ipynb"},
        "gaussian": {"value": loss, "train_seconds": 12.0},
        "rows": [
            {"reduction": reduction, "ci95": [0.24, 0.26]},
            {"reduction": second, "ci95": [-0.04, -0.02], "verdict": "below"},
        ],
    }


@pytest.fixture
def folders(tmp_path):
    """Of another run, and of the published one."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (there / "losses.json").write_text(json.dumps(losses(1.2512, 0.2511, -0.031, "then")))
    times = {"provenance": {"written": "then"}, "minutes": 3}
    (there / "run_times.json").write_text(json.dumps(times))
    return here, there


def test_numbers_are_compared_by_their_keys_and_judged_by_their_intervals(folders):
    here, there = folders
    (here / "losses.json").write_text(json.dumps(losses(1.2513, 0.2559, -0.0151, "now")))
    (here / "run_times.json").write_text(
        json.dumps({"provenance": {"written": "now"}, "minutes": 9})
    )
    found = pipeline.compare(here, there)
    assert (found["numbers"], found["same"], found["with_interval"], found["inside"]) == (
        3,
        1,
        2,
        1,
    )
    first, second = found["rows"]
    numbers = {"number": "losses:rows.0.reduction", "published": 0.2511, "here": 0.2559}
    assert first == numbers | {"ci95": [0.24, 0.26], "same": False, "inside": True}
    assert second["inside"] is False and found["other_verdicts"] == []
    shown = pipeline.as_text(found)
    assert "every verdict is the same" in shown and shown.count("OUTSIDE") == 1
    assert shown.index("rows.1.reduction") < shown.index("rows.0.reduction")
    assert "1 more that lie nearer" not in shown
    assert "and 1 that lie nearer" in pipeline.as_text(found, most=1)


def test_an_end_that_is_not_known_leaves_out_nothing(folders):
    here, there = folders
    for folder, value in ((here, 9e9), (there, 2.0)):
        content = {"provenance": {"written": str(folder)}}
        content["a"] = {"value": value, "ci95": [1.0, None]}
        (folder / "scaling.json").write_text(json.dumps(content))
    found = pipeline.compare(here, there)
    assert found["inside"] == 1 and "[1, ?]" in pipeline.as_text(found)


def test_another_verdict_is_named(folders):
    here, there = folders
    other = losses(1.2512, 0.2511, -0.031, "now")
    other["rows"][1]["verdict"] = "above"
    (here / "losses.json").write_text(json.dumps(other))
    found = pipeline.compare(here, there)
    assert found["other_verdicts"] == ["losses:rows.1.verdict: below, above here"]
    assert "below, above here" in pipeline.as_text(found)


def test_results_that_no_run_wrote_anew_are_refused(folders):
    here, there = folders
    with pytest.raises(FileNotFoundError, match="no results of another run"):
        pipeline.compare(there, there)
    with pytest.raises(FileNotFoundError, match="no results of another run"):
        pipeline.compare(here, there)


@pytest.fixture
def finished(own_root, monkeypatch):
    """A repository of one notebook, and a data folder in which it has run at the default preset."""
    tmp_path = own_root
    monkeypatch.setattr(plan, "NOTEBOOKS", {"04_b": ("main", ()), "11_c": ("applications", ())})
    (tmp_path / "requirements.txt").touch()
    (tmp_path / "notebooks").mkdir()
    for name in plan.NOTEBOOKS:
        book = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_markdown_cell("# old"), nbformat.v4.new_code_cell("print(1)")]
        )
        nbformat.write(book, plan.path_of(name))
        done = pipeline.executed(name, "default")
        done.parent.mkdir(parents=True, exist_ok=True)
        code = book.cells[1]
        code.execution_count = 1
        code.outputs = [
            nbformat.v4.new_output("stream", name="stdout", text="1\n"),
            nbformat.v4.new_output("stream", name="stderr", text="100 %"),
        ]
        nbformat.write(book, done)
    plan.stamp("04_b", "default", plan.state_of("04_b", "default"))
    own = tmp_path / "data" / "results" / "default"
    (own / "losses").mkdir(parents=True)
    (own / "losses.json").write_text(json.dumps(losses(1, 2, 3, "now")))
    (own / "losses" / "trial.json").write_text("{}")
    other = {"provenance": {"notebook": "notebooks/11_c.ipynb"}}
    (own / "steering.json").write_text(json.dumps(other))
    figures = tmp_path / "data" / "figures" / "default"
    figures.mkdir(parents=True)
    (figures / "losses.pdf").touch()
    (tmp_path / "results" / "default").mkdir(parents=True)
    (tmp_path / "figures").mkdir()
    return tmp_path


def test_a_finished_run_takes_the_place_of_what_is_published_and_an_unfinished_line_stays(
    finished,
):
    text = plan.path_of("04_b")
    text.write_text(text.read_text().replace("# old", "# new"))  # text reruns nothing
    said = pipeline.publish()
    assert said == [
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
