"""Small, committed, machine-readable outcomes: JSON with provenance, written whole or not at all."""

import json
import math
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from mmlib.files import written_whole

PACKAGES = ("torch", "transformers", "diffusers", "sae-lens", "scikit-learn", "numpy", "h5py")


def git_commit(root: Path) -> str:
    """The commit that `root` is at, with "+changes" if tracked code differs from it; "unknown" outside git."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", "-C", str(root), *arguments), capture_output=True, text=True, check=True
        ).stdout

    try:
        dirty = git(
            "status",
            "--porcelain",
            "--untracked-files=no",
            "--",
            "mmlib",
            "notebooks",
            "requirements.txt",
        )
        return git("rev-parse", "HEAD").strip() + ("+changes" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(
    root: Path, *, packages: Sequence[str] = PACKAGES, commit: str | None = None, **facts
) -> dict:
    """What a reader needs to make the number again: commit, package versions, time, and the caller's facts.

    Args:
        commit: of the code; None: the one that `root` is at.
    """
    return {
        **facts,
        "commit": commit or git_commit(root),
        "packages": {name: version(name) for name in packages},
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_json(path: Path, content: dict) -> Path:
    """Write atomically: a reader sees the old file or the new one.

    Raises:
        ValueError: a number is NaN or infinite; the message names where it stands.
    """
    _refuse_non_finite(content, path.name)
    with written_whole(path) as partial:
        partial.write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return path


def read_json(path: Path) -> dict:
    """Read a results file written by `write_json`."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _refuse_non_finite(value, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_non_finite(inner, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _refuse_non_finite(inner, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: results hold finite numbers only")
