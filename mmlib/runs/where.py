"""Which cell of which notebook made a number: the value, its file, and where the notebook assigns and computes what is above it.

    python -m mmlib.runs.where loss_comparison:primary.2.reduction
    python -m mmlib.runs.where --preset smoke lm_loss:reductions.0.ci95.0

The results file names its notebook. There the cell is sought that calls `run.write` for that name, the cell that puts the first of the keys into
what is written, and, where it does so from a variable, the cells that assign that. Cells are counted from 0, as Jupyter does in the file.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mmlib.files import read_json
from mmlib.runs.run import ROOT

QUOTED = re.compile(r"(−?\d[\d.,]*)(?: %)?<!-- ([\w/]+):([^>]+?) (%|)-->")


def quotes(readme: str) -> list[tuple[str, str, str, bool]]:
    """(text, results file, keys, in per cent) of every number that is followed by `<!-- FILE:KEYS -->`."""
    return [
        (text, name, keys, bool(percent)) for text, name, keys, percent in QUOTED.findall(readme)
    ]


def value_at(content, keys: list[str], name: str):
    """What stands under keys and list indices.

    Raises:
        KeyError: no such key; the message lists those that there are.
    """
    for i, key in enumerate(keys):
        known = (
            [str(j) for j in range(len(content))]
            if isinstance(content, list)
            else list(content)
            if isinstance(content, dict)
            else []
        )
        if key not in known:
            shown = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            raise KeyError(
                f"{name}.json has no {'.'.join(keys[: i + 1])}: expected one of {shown}"
                if known
                else f"{name}.json has a single value at {'.'.join(keys[:i])}: nothing is below it"
            )
        content = content[int(key)] if isinstance(content, list) else content[key]
    return content


def code_cells(notebook: dict) -> Iterator[tuple[int, str, ast.Module]]:
    """(index, the markdown heading above it, syntax tree) of each code cell."""
    heading = ""
    for index, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = next(
                (line.lstrip("# ") for line in source.splitlines() if line.startswith("#")), heading
            )
        elif cell["cell_type"] == "code":
            yield (
                index,
                heading,
                ast.parse(
                    "\n".join(
                        "" if line.lstrip().startswith(("%", "!")) else line
                        for line in source.splitlines()
                    )
                ),
            )


def _written(tree: ast.Module, name: str) -> ast.expr | None:
    """What `run.write(name, …)` is given."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "write"
            and len(node.args) > 1
            and isinstance(node.args[0], ast.Constant)
            and node.args[0].value == name
        ):
            return node.args[1]
    return None


def _in_dictionary(node: ast.expr | None, key: str) -> ast.expr | None:
    """The value of a key of a dictionary written out, `{…}` or `{…} | {…}`."""
    if isinstance(node, ast.Dict):
        return next(
            (
                value
                for k, value in zip(node.keys, node.values)
                if isinstance(k, ast.Constant) and k.value == key
            ),
            None,
        )
    if isinstance(node, ast.BinOp):
        right = _in_dictionary(node.right, key)
        return right if right is not None else _in_dictionary(node.left, key)
    return None


def _assigned(tree: ast.Module, variable: str) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(target, value) of the assignments to a variable, to something in it, and by `+=` or `|=`; those in functions left out."""
    todo = list(tree.body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AugAssign)
            else []
        )
        for target in (
            inner
            for outer in targets
            for inner in (outer.elts if isinstance(outer, ast.Tuple) else [outer])
        ):
            base = target
            while isinstance(base, ast.Subscript):
                base = base.value
            if isinstance(base, ast.Name) and base.id == variable:
                yield target, node.value


def _of_key(tree: ast.Module, variable: str, key: str) -> ast.expr | None:
    """The value that a cell puts under a key of a variable."""
    for target, value in _assigned(tree, variable):
        if (
            isinstance(target, ast.Subscript)
            and isinstance(target.slice, ast.Constant)
            and target.slice.value == key
        ):
            return value
        if (found := _in_dictionary(value, key)) is not None:
            return found
    return None


def _variables(node: ast.expr) -> list[str]:
    """Names that an expression reads; those of a comprehension's own left out."""
    names = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
    own = {inner.id for inner in names if isinstance(inner.ctx, ast.Store)}
    return list(dict.fromkeys(inner.id for inner in names if inner.id not in own))


def find(notebook: dict, name: str, key: str) -> list[dict]:
    """What each cell does for a top-level key of a results file: cell, heading, does.

    Raises:
        LookupError: no cell writes that file, or none names that key.
    """
    cells = list(code_cells(notebook))
    writes = [
        (index, heading, argument)
        for index, heading, tree in cells
        if (argument := _written(tree, name)) is not None
    ]
    if not writes:
        raise LookupError(
            f"no cell calls run.write for {name!r}: it is written by a study of mmlib, for which its notebook holds the definition"
        )
    index, heading, argument = writes[-1]
    found = [{"cell": index, "heading": heading, "does": f"writes {name}.json"}]
    if isinstance(argument, ast.Name):
        keyed = [
            (i, above, value)
            for i, above, tree in cells
            if (value := _of_key(tree, argument.id, key)) is not None
        ]
    else:
        keyed = (
            [(index, heading, value)]
            if (value := _in_dictionary(argument, key)) is not None
            else []
        )
    if not keyed:
        raise LookupError(f"cell {index} writes {name}.json, but no cell names the key {key!r}")
    found += [{"cell": i, "heading": above, "does": f"puts {key} there"} for i, above, _ in keyed]
    for variable in dict.fromkeys(one for _, _, value in keyed for one in _variables(value)):
        found += [
            {"cell": i, "heading": above, "does": f"computes {variable}"}
            for i, above, tree in cells
            if any(_assigned(tree, variable))
        ]
    return found


def report(reference: str, preset: str = "default", root: Path = ROOT) -> str:
    """What the command prints.

    Raises:
        ValueError: the reference is not NAME:KEY.
        FileNotFoundError, KeyError, LookupError: there is no such file, key or cell.
    """
    name, colon, path = reference.partition(":")
    if not (name and colon and path):
        raise ValueError(
            f"{reference!r}: expected NAME:KEY, such as loss_comparison:primary.2.reduction"
        )
    file = root / "results" / preset / f"{name}.json"
    if not file.exists():
        there = ", ".join(sorted(other.stem for other in file.parent.glob("*.json")))
        raise FileNotFoundError(
            f"{file} is missing: expected one of {there or 'none: no notebook has written there'}"
        )
    content, keys = read_json(file), path.split(".")
    value = value_at(content, keys, name)
    if "notebook" not in content.get("provenance", {}):
        raise LookupError(f"{name}.json names no notebook: no cell writes it")
    notebook = root / content["provenance"]["notebook"]
    shown = json.dumps(value, ensure_ascii=False)
    lines = [
        f"{reference} = {shown if len(shown) < 300 else shown[:300] + ' …'}",
        f"file      {file.relative_to(root)}",
        f"notebook  {notebook.relative_to(root)}",
    ]
    found = find(json.loads(notebook.read_text(encoding="utf-8")), name, keys[0])
    return "\n".join(
        [
            *lines,
            *(f"cell {row['cell']:>3}  {row['does']}, under “{row['heading']}”" for row in found),
        ]
    )


def main() -> None:
    """Print which cell made a number of results/."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "reference",
        metavar="NAME:KEY",
        help="as in the comments of the README's source, such as loss_comparison:rows.12.loss",
    )
    parser.add_argument(
        "--preset", default="default", help="or the name of another run in results/"
    )
    arguments = parser.parse_args()
    try:
        print(report(arguments.reference, arguments.preset))
    except (ValueError, FileNotFoundError, LookupError) as error:
        sys.exit(str(error.args[0] if error.args else error))


if __name__ == "__main__":
    main()
