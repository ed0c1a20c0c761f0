"""Results in the form of before 2026-11-30, rows in lists, to the keyed form; every leaf is
accounted for.

    python results/schema/migrate.py OLD NEW [--commit HASH]

reads OLD/*.json and writes NEW/*.json. Afterwards it looks up every leaf of the old file in the new
one: it stands there with an equal value, or is the key that it stood for, or is one of `DROPPED`.
Old provenance stays as it is, with `migrated_from` beside it.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from mmlib.files import read_json, write_json
from mmlib.runs import results
from mmlib_studies.claims import CLAIMS

SEPARATOR = " → "  # of the keys of a path: names have dots and slashes in them
NAMES = {claim.statement: claim.name for claim in CLAIMS}
DROPPED = {"loss_comparison": ("plain_words",)}  # an essay assembled from the numbers beside it


def named(name: str, old: dict, others: dict[str, dict]) -> dict:
    """Old content, with the names that its rows are keyed by: of a claim, and of a number that
    stood at a place in a list.
    """
    if name == "claims":
        rows = [{"name": NAMES[row["statement"]], **row} for row in old["claims"]]
        return {**old, "claims": rows}
    if name == "other_processor":
        return {
            **old,
            "rows": [{**row, "number": place(row["number"], others)} for row in old["rows"]],
        }
    return {key: value for key, value in old.items() if key not in DROPPED.get(name, ())}


def place(number: str, others: dict[str, dict]) -> str:
    """FILE:KEYS of a number, with its new keys; as it was where that file has no such number any
    more.
    """
    file, path = number.split(":")
    try:
        return f"{file}:{'.'.join(moved(file, others[file], path.split('.')))}"
    except (KeyError, IndexError, ValueError):
        print("  no longer in results:", number)
        return number


def moved(name: str, old: dict, keys: list[str]) -> list[str]:
    """Where something of the old content stands in the new one."""
    found, path, value, rename = [], (), old, {}
    for key in keys:
        entry = results.entry_at(name, path)
        if isinstance(value, list) and isinstance(entry, dict):
            value, path = value[int(key)], (*path, "*")
            found += results.keys_of(value, entry["key"])
            rename = entry.get("rename", {})
        elif entry == "estimate":
            found += {"0": ["value"], "1": ["ci95", "0"], "2": ["ci95", "1"]}[key]
        elif isinstance(entry, list):
            found.append(entry[int(key)])
        else:
            value, path = value[int(key) if isinstance(value, list) else key], (*path, key)
            entry = results.entry_at(name, path)
            to = entry.get("to") if isinstance(entry, dict) else None
            found.append(to or rename.get(key, key))
            rename = {}
    return found


def leaves(content, path: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """(path, value) of everything that is neither a dictionary nor a list; a path's keys are joined
    by `SEPARATOR`.
    """
    if isinstance(content, dict):
        for key, inner in content.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(content, list):
        for index, inner in enumerate(content):
            yield from leaves(inner, (*path, str(index)))
    else:
        yield SEPARATOR.join(path), content


def account(name: str, old: dict, new: dict) -> dict[str, int]:
    """Every leaf of the old content looked up in the new one, and what the new one has besides,
    counted.

    Raises:
        ValueError: a leaf has another value, or none, or shares its place with another.
    """
    left, counts = dict(leaves(new)), {"equal": 0, "keys": 0}
    for path, value in leaves(old):
        keys = moved(name, old, path.split(SEPARATOR))
        place = SEPARATOR.join(keys)
        if place in left and left[place] == value and type(left.pop(place)) is type(value):
            counts["equal"] += 1
        elif isinstance(value, str) and value in keys[:-1]:
            counts["keys"] += 1
        else:
            raise ValueError(f"{name}: {path} = {value!r} is not {left.get(place)!r} at {place}")
    return {**counts, "added": len(left)}


def migrate(old: dict[str, dict], commit: str | None) -> dict[str, dict]:
    """All files of a folder in the keyed form; every leaf is accounted for, and the counts are
    printed.
    """
    new, total = {}, {}
    for name, content in old.items():
        before = named(name, content, old)
        new[name] = results.keyed_results(name, before)
        counts = account(name, before, new[name])
        counts["dropped"] = sum(key in content for key in DROPPED.get(name, ()))
        print(f"{name:<18}", counts)
        total = {key: total.get(key, 0) + count for key, count in counts.items()}
        if commit:
            origin = {"migrated_from": {"format": "rows in lists", "commit": commit}}
            new[name]["provenance"] = {**new[name]["provenance"], **origin}
    print("in all            ", total)
    return new


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Migrate a folder of results.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path, nargs="?", help="where to write; left out: only count")
    parser.add_argument("--commit", help="that the old results were committed in")
    parser.add_argument("--under", default="", help='"gpu/" for results/gpu')
    given = parser.parse_args()
    found = {f"{given.under}{path.stem}": read_json(path) for path in given.old.glob("*.json")}
    for name, content in migrate(dict(sorted(found.items())), given.commit).items():
        if given.new:
            write_json(given.new / f"{Path(name).name}.json", content)
