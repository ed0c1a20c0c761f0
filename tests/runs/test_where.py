"""From a number to the cell that made it."""

import json

import pytest

from mmlib.runs.run import ROOT
from mmlib.runs.where import find, quotes, report, value_at


def notebook(*cells):
    return {"cells": [{"cell_type": kind, "source": source} for kind, source in cells]}


BOOK = notebook(
    ("markdown", "# 99 · A book\n\n**Why?**"),
    ("code", "%matplotlib inline\nrows = [1]"),
    ("markdown", "## The sums"),
    ("code", "def other():\n    total = 1\ntotal, rest = sum(rows), 0\ntotal += 1"),
    ("markdown", "no heading"),
    (
        "code",
        'results = {"rows": rows, "more": {"total": total, "n": [n for n in rows]}} | {"late": 1}\nresults["verdict"] = total > 2',
    ),
    ("markdown", "### The end"),
    (
        "code",
        'run.write("book", results, "99_book")\nrun.write("other", {"direct": rest}, "99_book")',
    ),
)


def test_cells_are_found_with_the_heading_above_them():
    def cells(name, key):
        return [(row["cell"], row["heading"], row["does"]) for row in find(BOOK, name, key)]

    end, sums = (7, "The end", "writes book.json"), "The sums"
    assert cells("book", "rows") == [
        end,
        (5, sums, "puts rows there"),
        (1, "99 · A book", "computes rows"),
    ]
    assert cells("book", "verdict") == [
        end,
        (5, sums, "puts verdict there"),
        (3, sums, "computes total"),
    ]
    assert cells("book", "more") == [
        end,
        (5, sums, "puts more there"),
        (3, sums, "computes total"),
        (1, "99 · A book", "computes rows"),
    ]
    assert cells("book", "late") == [end, (5, sums, "puts late there")]
    assert cells("other", "direct") == [
        (7, "The end", "writes other.json"),
        (7, "The end", "puts direct there"),
        (3, sums, "computes rest"),
    ]


@pytest.mark.parametrize(
    "name, key, message",
    [
        ("none", "rows", "no cell calls run.write for 'none'"),
        ("book", "total", "no cell names the key 'total'"),
    ],
)
def test_what_no_cell_writes_is_said_to_be_so(name, key, message):
    with pytest.raises(LookupError, match=message):
        find(BOOK, name, key)


def test_values_by_keys_and_indices():
    content = {"rows": [{"loss": 1.5}, {"loss": 2.5}]}
    assert value_at(content, ["rows", "1", "loss"], "x") == 2.5
    for path, message in (
        (["row"], "x.json has no row: expected one of rows"),
        (["rows", "2"], "x.json has no rows.2: expected one of 0, 1"),
        (["rows", "0", "loss", "a"], "single value at rows.0.loss"),
    ):
        with pytest.raises(KeyError, match=message):
            value_at(content, path, "x")


def test_the_report_names_value_file_notebook_and_cells(tmp_path):
    for folder in ("results/default", "notebooks"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "notebooks" / "99_book.ipynb").write_text(json.dumps(BOOK))
    (tmp_path / "results" / "default" / "book.json").write_text(
        json.dumps({"provenance": {"notebook": "notebooks/99_book.ipynb"}, "rows": [3]})
    )
    (tmp_path / "results" / "default" / "times.json").write_text(
        json.dumps({"provenance": {}, "rows": [3]})
    )
    lines = report("book:rows.0", root=tmp_path).splitlines()
    assert lines[:3] == [
        "book:rows.0 = 3",
        "file      results/default/book.json",
        "notebook  notebooks/99_book.ipynb",
    ]
    assert lines[4] == "cell   5  puts rows there, under “The sums”" and len(lines) == 6
    for reference, error, message in (
        ("book", ValueError, "expected NAME:KEY"),
        ("boo:rows", FileNotFoundError, "expected one of book, times"),
        ("times:rows", LookupError, "names no notebook"),
    ):
        with pytest.raises(error, match=message):
            report(reference, root=tmp_path)


def test_every_number_of_the_readme_has_its_cells():
    by_commands = ("run_times", "other_processor")  # and what has a folder in its name
    quoted = {
        f"{name}:{keys.split('.')[0]}"
        for _, name, keys, _ in quotes((ROOT / "README.md").read_text())
        if "/" not in name and name not in by_commands
    }
    assert len(quoted) >= 20
    for reference in sorted(quoted):
        assert " there, under “" in report(reference), reference
