"""Files: whose commit a result names, and what the machine has."""

import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmlib import files
from mmlib.files import git_commit

IDENTITY = ("-c", "user.name=a", "-c", "user.email=a@b.org")


def repository(folder):
    """A repository with two files of code, and its commit."""
    for name in ("mmlib", "notebooks"):
        (folder / name).mkdir(parents=True)
        (folder / name / "a.py").write_text(f"x = {folder.name!r}\n")
    for command in (("init", "-q"), ("add", "."), (*IDENTITY, "commit", "-qm", "one")):
        subprocess.run(("git", "-C", folder, *command), check=True)
    head = subprocess.run(
        ("git", "-C", folder, "rev-parse", "HEAD"), capture_output=True, text=True, check=True
    )
    return head.stdout.strip()


def test_a_result_names_the_commit_of_its_own_repository(tmp_path):
    assert git_commit(tmp_path) == "unknown"
    assert len(commit := repository(tmp_path / "a")) == 40 and git_commit(tmp_path / "a") == commit


@pytest.mark.parametrize("folder", ["mmlib", "notebooks"])
@pytest.mark.parametrize("change", ["changed", "new", "in a new folder"])
def test_code_that_differs_from_the_commit_marks_it(tmp_path, folder, change):
    commit = repository(tmp_path)
    path = {"changed": "a.py", "new": "b.py", "in a new folder": "c/d.py"}[change]
    (tmp_path / folder / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / path).write_text("x = 2\n")
    assert git_commit(tmp_path) == commit + "+changes"


def test_what_is_no_code_marks_nothing(tmp_path):
    commit = repository(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text("{}")
    assert git_commit(tmp_path) == commit


def test_an_enclosing_repository_is_never_named(tmp_path):
    repository(tmp_path / "outer")
    shutil.copytree(tmp_path / "outer" / "mmlib", tmp_path / "outer" / "unpacked" / "mmlib")
    assert git_commit(tmp_path / "outer" / "unpacked") == "unknown"


def test_a_repository_that_the_environment_names_is_never_taken_for_this_one(tmp_path, monkeypatch):
    commit = repository(tmp_path / "this")
    repository(tmp_path / "other" / "code")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / "code" / ".git"))
    assert git_commit(tmp_path / "this") == commit
    assert git_commit(tmp_path) == "unknown"


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("150000 100000", 1), ("50000 100000", 1), ("400000 100000", 4), (None, 8)],
)
def test_a_container_may_have_fewer_cores_than_its_machine(monkeypatch, quota, expected):
    """`None`: no control group says anything."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    monkeypatch.setattr(Path, "exists", lambda path: quota is not None)
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: quota)
    assert files.cores() == expected


@pytest.mark.parametrize(
    ("needed", "free", "told"),
    [(3e9, 1e9, "3.00 GB .*, where 1.00 GB are free"), (3e6, 0, "3.00 MB .*, where 0.00 MB are")],
)
def test_a_disk_that_is_too_small_is_told_in_readable_numbers(monkeypatch, needed, free, told):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    with pytest.raises(OSError, match=f"this needs {told}"):
        files.require_disk(Path(), int(needed), "this")
