"""Results by key: rows become dictionaries, named for good, and every file is checked against its
schema.

`results/schema/keys.json` says, for each results file and each list of rows in it, by which fields
the rows are named; beside it stands one JSON Schema for each file. A row of `loss_comparison` with
`objective="flow_velocity"` and `method="gaussian"` so becomes `losses.flow_velocity.gaussian`. A
field that is a name on its own is the key and leaves the row; numbers stay in it too.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mmlib.files import read_json

SCHEMA = Path(__file__).resolve().parents[2] / "results" / "schema"

ROLES = {
    "gated_mlp": "ours",
    "mixture_mlp": "ours",
    "mlp": "paper",
    "unet": "article",
    "mixture": "control",
    "mixture_average": "control",
    "mean": "baseline",
    "gaussian": "baseline",
}


def role(method: str) -> str:
    """What a method is here for: "ours", "paper", "article", "control", "baseline", or "variant" of
    a network.

    >>> role("gated_mlp"), role("pca_k64"), role("mlp_2m")
    ('ours', 'baseline', 'variant')
    """
    if method.startswith(("gated_mlp_", "mlp_", "small_mlp")):
        return "variant"
    return ROLES.get(method, "baseline")


def keyed(rows: Sequence[Mapping], *fields: str) -> dict:
    """Rows as nested dictionaries, one level for each field.

    Args:
        fields: a name of a field, or a text with several in braces, such as
            "{intervention}@{sigma}"; a part of "@" that is None is left out.
    Raises:
        KeyError: a row lacks a field; the message lists those it has.
        ValueError: two rows have one key.

    >>> keyed([{"method": "mean", "sigma": 0.1, "loss": 1.5}], "method", "sigma")
    {'mean': {'0.1': {'sigma': 0.1, 'loss': 1.5}}}
    """
    found: dict = {}
    for row in rows:
        *above, last = keys_of(row, fields)
        place = found
        for key in above:
            place = place.setdefault(key, {})
        if last in place:
            raise ValueError(
                f"two rows of {' . '.join((*above, last))}: {', '.join(fields)} do not tell them "
                "apart"
            )
        names = {field for field in fields if isinstance(row.get(field), str)}
        place[last] = {name: value for name, value in row.items() if name not in names}
    return found


def keys_of(row: Mapping, fields: Sequence[str]) -> list[str]:
    """The keys under which `keyed` puts a row."""
    try:
        return [
            re.sub(r"\{(\w+)\}", lambda part: _text(row[part[1]]), field).removesuffix("@none")
            if "{" in field
            else _text(row[field])
            for field in fields
        ]
    except KeyError as error:
        raise KeyError(
            f"a row has no {error.args[0]!r}: expected {', '.join(fields)}, it has {', '.join(row)}"
        ) from None


def _text(value) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(map(_text, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def rows_of(content: Mapping, *fields: str) -> list[dict]:
    """Rows of nested dictionaries as a list, each with the names it stood under: what `keyed` made,
    undone.

    Args:
        fields: those of `keyed`.

    >>> rows_of({"mean": {"0.1": {"sigma": 0.1, "loss": 1.5}}}, "method", "sigma")
    [{'method': 'mean', 'sigma': 0.1, 'loss': 1.5}]
    """
    if not fields:
        return [dict(content)]
    field, *others = fields
    return [
        row if "{" in field or field in row else {field: key, **row}
        for key, inner in content.items()
        for row in rows_of(inner, *others)
    ]


@cache
def tables() -> dict[str, dict]:
    """`results/schema/keys.json`: how rows are named; empty outside the repository."""
    path = SCHEMA / "keys.json"
    return read_json(path) if path.exists() else {}


def entry_at(name: str, path: Sequence[str]) -> dict | list | str | None:
    """What the table says of a path; `*` in it stands for one key, or for any row."""
    for pattern, entry in tables().get(name, {}).items():
        parts = pattern.split(".")
        if len(parts) == len(path) and all(p in ("*", key) for p, key in zip(parts, path)):
            return entry
    return None


def keyed_results(name: str, content: dict) -> dict:
    """The content of a results file with all its lists of rows keyed; what is keyed already stays.

    Args:
        name: of the file, such as "loss_comparison" or "gpu/budgets".
    Raises:
        ValueError: a list of rows has no entry in the table: nothing is found by its place.
    """
    return _keyed(name, content, ()) if name in tables() else content


def _keyed(name: str, value, path: tuple[str, ...], depth: int = 0):
    """What stands at a path, keyed. `depth`: names of rows that come before the next key."""
    if depth:
        return {key: _keyed(name, inner, path, depth - 1) for key, inner in value.items()}
    if isinstance(value, dict):
        return dict(_named(name, key, inner, path) for key, inner in value.items())
    if not isinstance(value, (list, tuple)):
        return value
    entry = entry_at(name, path)
    if entry == "estimate":
        middle, low, high = value
        return {"value": middle, "ci95": [low, high]}
    if isinstance(entry, list):
        return dict(zip(entry, value, strict=True))
    if entry != "series" and value and isinstance(value[0], dict):
        raise ValueError(
            f"{name}.json: {'.'.join(path)} is a list of rows: name its key in "
            "results/schema/keys.json"
        )
    return value


def _named(name: str, key: str, value, path: tuple[str, ...]) -> tuple[str, object]:
    """What stands under a key, keyed, and the key that it gets."""
    former = key
    for pattern, entry in tables()[name].items():
        *above, last = pattern.split(".")
        if isinstance(entry, dict) and entry.get("to") == key and above == list(path):
            former = last  # keyed before: the table knows it as the list that it was
    entry = entry_at(name, (*path, former))
    if not isinstance(entry, dict):
        return key, _keyed(name, value, (*path, key))
    row_path, fields = (*path, former, "*"), entry["key"]
    if isinstance(value, dict):
        value = _keyed(name, value, row_path, len(fields))
    elif isinstance(value, list):
        value = keyed([_renamed(_keyed(name, row, row_path), entry) for row in value], *fields)
    return entry.get("to", key), value


def _renamed(row: dict, entry: Mapping) -> dict:
    """A row with its fields named as the table says, and its role where the table asks for it."""
    names = entry.get("rename", {})
    found = {names.get(field, field): value for field, value in row.items()}
    return found | ({"role": role(row[entry["role"]])} if "role" in entry else {})


def check(name: str, content: dict) -> None:
    """Check a results file against `results/schema/NAME.schema.json`, where there is one.

    Raises:
        ValueError: it does not fit; the message names file, path, and what is expected there.
    """
    path = SCHEMA / f"{name}.schema.json"
    if not path.exists():
        return
    import jsonschema  # takes a tenth of a second to import

    validator = jsonschema.Draft202012Validator(read_json(path))
    written = json.loads(json.dumps(content))  # as the file gives it back: tuples are lists there
    if error := jsonschema.exceptions.best_match(validator.iter_errors(written)):
        where = ".".join(map(str, error.absolute_path)) or "the whole"
        raise ValueError(f"{name}.json does not fit its schema at {where}: {error.message[:300]}")
