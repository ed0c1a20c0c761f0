"""Another run's results beside those in git."""

import json
import subprocess

import pytest

from mmlib.runs.agreement import as_text, compare, in_git, quotes

README = (
    "A loss of 1.25<!-- losses:rows.0.loss -->, a reduction of 25.1 %<!-- losses:rows.0.reduction %--> [24.0 %<!-- losses:rows.0.ci95.0 %-->, "
    "26 %<!-- losses:rows.0.ci95.1 %-->] and −3 %<!-- losses:rows.1.reduction %-->, in 12<!-- losses:rows.0.train_seconds --> s; "
    "1,000<!-- others:tokens --> tokens; 7.0<!-- run_times:machines.0.minutes --> minutes; 1.25<!-- losses:rows.0.loss --> again."
)


def losses(loss, reduction, second, written):
    return {
        "provenance": {"written": written},
        "rows": [
            {"loss": loss, "reduction": reduction, "ci95": [0.24, 0.26], "train_seconds": 12.0},
            {"reduction": second, "ci95": [-0.04, -0.02]},
        ],
    }


@pytest.fixture
def repository(tmp_path):
    """A README and its results in git, and a folder for those of another run."""
    folder = tmp_path / "results" / "default"
    folder.mkdir(parents=True)
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (folder / "losses.json").write_text(json.dumps(losses(1.2512, 0.2511, -0.031, "then")))
    (folder / "others.json").write_text(
        json.dumps({"provenance": {"written": "then"}, "tokens": 1000})
    )
    (folder / "claims.json").write_text(
        json.dumps(
            {
                "provenance": {"written": "then"},
                "claims": [
                    {"statement": "A", "verdict": "undecided"},
                    {"statement": "B", "verdict": "reproduced"},
                ],
            }
        )
    )
    (folder / "run_times.json").write_text(
        json.dumps({"provenance": {"written": "then"}, "machines": [{"minutes": 7.0}]})
    )
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "results"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    return tmp_path


def test_numbers_are_compared_as_far_as_they_are_quoted(repository):
    folder = repository / "results" / "default"
    (folder / "losses.json").write_text(
        json.dumps(losses(1.2534, 0.2559, -0.0151, "now") | {"new": 1})
    )
    found = compare(folder, repository)
    assert found["other_verdicts"] == [] and "every verdict of the ledger is the same" in as_text(
        found
    )
    loss, reduction, second = found["rows"]
    assert (loss["number"], loss["git"], loss["here"], loss["same"], loss["inside"]) == (
        "losses:rows.0.loss",
        1.2512,
        1.2534,
        True,
        None,
    )
    assert (reduction["same"], reduction["inside"], second["same"], second["inside"]) == (
        False,
        True,
        False,
        False,
    )
    assert "3 numbers" in as_text(found) and as_text(found).index("rows.1.reduction") < as_text(
        found
    ).index("rows.0.reduction")
    assert as_text(found).count("OUTSIDE") == 1 and "rows.0.loss" not in as_text(found)


def test_another_verdict_is_named(repository):
    other = repository / "other"
    other.mkdir()
    (other / "losses.json").write_text(json.dumps(losses(1.2512, 0.2511, -0.031, "now")))
    ledger = json.loads((repository / "results" / "default" / "claims.json").read_text())
    ledger["claims"][0]["verdict"] = "artefact"
    (other / "claims.json").write_text(json.dumps(ledger))
    assert compare(other, repository)["other_verdicts"] == ["A: undecided, artefact here"]


def test_results_that_no_run_wrote_anew_are_refused(repository):
    with pytest.raises(FileNotFoundError, match="no results of another run"):
        compare(repository / "results" / "default", repository)
    with pytest.raises(FileNotFoundError, match="no results/default/none.json in git"):
        in_git("none", repository)


def test_quotes_have_text_file_keys_and_whether_they_are_per_cent():
    assert (
        quotes(README)[:2]
        == [("1.25", "losses", "rows.0.loss", False), ("25.1", "losses", "rows.0.reduction", True)]
        and len(quotes(README)) == 9
    )
