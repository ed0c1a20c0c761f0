"""How far the results of a run here are from those in git: every number that the README quotes, times left out.

    python -m mmlib.runs.agreement                       results/default as the last run left it, against the commit that is checked out
    python -m mmlib.runs.agreement FOLDER --keep NAME    the results in FOLDER, such as another machine's; kept as results/default/NAME.json

Bits differ between processors and numbers of threads, so a run elsewhere gives other last digits; a number that leaves the interval
printed beside it is more than that.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from mmlib.files import processor, provenance, read_json, write_json
from mmlib.runs.run import ROOT
from mmlib.runs.where import value_at

QUOTED = re.compile(r"(−?\d[\d.,]*)(?: %)?<!-- ([\w/]+):([^>]+?) (%|)-->")


ESTIMATES = (
    "reduction",
    "gap",
    "loss",
    "mean",
    "auroc",
    "area",
    "difference",
    "effect",
    "value",
)  # a "ci95" is of the first that stands beside it


def quotes(readme: str) -> list[tuple[str, str, str, bool]]:
    """(text, results file, keys, in per cent) of every number that is followed by `<!-- FILE:KEYS -->`, as the README's are."""
    return [
        (text, name, keys, bool(percent)) for text, name, keys, percent in QUOTED.findall(readme)
    ]


def in_git(name: str, root: Path = ROOT) -> dict:
    """A results file as committed: what stands in results/ are those of the last run.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    shown = subprocess.run(
        ["git", "-C", str(root), "show", f"HEAD:results/default/{name}.json"],
        capture_output=True,
        encoding="utf-8",
    )
    if shown.returncode:
        raise FileNotFoundError(f"no results/default/{name}.json in git: {shown.stderr.strip()}")
    return json.loads(shown.stdout)


def compare(folder: Path, root: Path = ROOT) -> dict:
    """Quoted numbers of results files that were written anew, beside those in git.

    Args:
        folder: with the other results, as `results/default` has them.
    Returns:
        rows: per number its `number` (FILE:KEYS), `git`, `here`, `ci95` (its interval in git, or None), `same` as far as quoted, `inside`
        the interval (None without one); the counts of them; and `other_verdicts`, the statements of the ledger that are judged otherwise there.
    Raises:
        FileNotFoundError: no results file in the folder is of another run than git's.
        KeyError: a file there lacks a quoted number; the message says which.
    """
    known, rows = {}, {}
    for text, name, path, percent in quotes((root / "README.md").read_text(encoding="utf-8")):
        keys, other = path.split("."), folder / f"{name}.json"
        if (
            any(key.endswith("ci95") for key in keys)
            or keys[-1].endswith("seconds")
            or name == "run_times"
            or not other.exists()
        ):
            continue  # ends of intervals, and times
        if name not in known:
            known[name] = in_git(name, root), read_json(other)
        git, here = known[name]
        if here["provenance"]["written"] != git["provenance"]["written"]:
            rows[f"{name}:{path}"] = _row(
                git, here, name, keys, len(text.partition(".")[2]) + 2 * percent
            )
    if not rows:
        raise FileNotFoundError(
            f"{folder} has no results of another run than git's: make reproduce first, or name a folder like results/default"
        )
    judged = [row for row in rows.values() if row["ci95"]]
    return {
        "numbers": len(rows),
        "same": sum(row["same"] for row in rows.values()),
        "with_interval": len(judged),
        "inside": sum(row["inside"] for row in judged),
        "other_verdicts": _other_verdicts(folder, root),
        "rows": list(rows.values()),
    }


def _row(git: dict, here: dict, name: str, keys: list[str], decimals: int) -> dict:
    """One number of two runs."""
    old, new = (value_at(content, keys, name) for content in (git, here))
    ci95 = _interval(value_at(git, keys[:-1], name), keys[-1])
    return {
        "number": f"{name}:{'.'.join(keys)}",
        "git": old,
        "here": new,
        "ci95": ci95,
        "same": round(old, decimals) == round(new, decimals),
        "inside": ci95 and ci95[0] <= new <= ci95[1],
    }


def _other_verdicts(folder: Path, root: Path) -> list[str] | None:
    """Statements of the ledger whose verdict is another there; None where no ledger was written."""
    if not (folder / "claims.json").exists():
        return None
    git, here = (
        {row["statement"]: row["verdict"] for row in ledger["claims"]}
        for ledger in (in_git("claims", root), read_json(folder / "claims.json"))
    )
    return [
        f"{statement}: {verdict}, {here[statement]} here"
        for statement, verdict in git.items()
        if here[statement] != verdict
    ]


def _interval(above: dict | list, key: str) -> list[float] | None:
    """The interval of that number, if the "ci95" beside it is one."""
    estimate = (
        next((name for name in ESTIMATES if name in above), None)
        if isinstance(above, dict)
        else None
    )
    return above.get("ci95") if key == estimate else None


def as_text(found: dict) -> str:
    """The counts, and the numbers that differ, those outside their intervals first."""
    differing = sorted(
        (row for row in found["rows"] if not row["same"]),
        key=lambda row: row["inside"] is not False,
    )
    lines = [
        f"{found['numbers']} numbers that the README quotes were measured anew: {found['same']} are the same as far as they are quoted; "
        f"of {found['with_interval']} with an interval {found['inside']} lie in it",
        "",
    ]
    if found["other_verdicts"] is not None:
        lines += found["other_verdicts"] or ["every verdict of the ledger is the same", ""]
    for row in differing:
        interval = f"[{row['ci95'][0]:.4g}, {row['ci95'][1]:.4g}]" if row["ci95"] else ""
        lines.append(
            f"  {row['number']:<52}{row['git']:>11.4g}{row['here']:>11.4g}  {interval}{'  OUTSIDE' if row['inside'] is False else ''}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the comparison, and keep it where asked to."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=ROOT / "results" / "default",
        help="results of a run at the default preset",
    )
    parser.add_argument("--keep", help="write results/default/KEEP.json")
    given = parser.parse_args()
    try:
        found = compare(given.folder)
    except (FileNotFoundError, KeyError) as error:
        sys.exit(str(error.args[0]))
    print(as_text(found))
    if given.keep:
        code = read_json(given.folder / "loss_comparison.json")["provenance"]["commit"]
        facts = {
            "preset": "default",
            "seed": 0,
            "command": f"python -m mmlib.runs.agreement FOLDER --keep {given.keep}",
            "processor": processor(),
            "commit_of_the_other_run": code,
        }
        write_json(
            ROOT / "results" / "default" / f"{given.keep}.json",
            {"provenance": provenance(ROOT, **facts), **found},
        )


if __name__ == "__main__":
    main()
