"""Which files of this repository a notebook depends on, by what it imports, directly or through others.

Imports are followed name by name: who takes the evaluator from a file does not depend on what its other functions use.
What draws is left out for notebooks that compute: a changed colour redraws the figures (notebook 31) and retrains nothing.
"""

import ast
import functools
import json
from pathlib import Path

from mmlib.runs import run as runs

PACKAGES = {"mmlib": "mmlib", "mmlib_studies": "notebooks/studies"}
DRAWS_ONLY = "31_figures"
DRAWING = ("mmlib.plots", "mmlib_studies.figures")  # modules, and all below them


CONFIGS = {"mmlib.runs.presets"}  # who uses what they configure imports it too


def file_of(module: str) -> Path | None:
    """The file of a module of this repository; None if it is none, such as a name in a module."""
    package, *parts = module.split(".")
    if package not in PACKAGES:
        return None
    path = runs.ROOT.joinpath(PACKAGES[package], *parts)
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.exists() else None


def code_of(notebook: Path) -> list[str]:
    """The sources of its code cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def files_of(notebook: Path) -> list[Path]:
    """Files of this repository that decide what a notebook gives, itself left out."""
    modules = modules_of(notebook, () if notebook.stem == DRAWS_ONLY else DRAWING)
    return sorted(file_of(module) for module in modules)


def modules_of(notebook: Path, ignored: tuple[str, ...] = ()) -> set[str]:
    """Modules that a notebook imports, directly or through others.

    Args:
        ignored: modules that are left out with all below them, and so what only they import.
    """
    outside = tuple(f"{name}." for name in ignored)
    todo, found = set(), set()
    for code in code_of(notebook):
        lines = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]
        todo |= imports("\n".join(lines))
    while todo:
        module, name = todo.pop()
        if (module, name) in found or f"{module}.".startswith(outside):
            continue
        found.add((module, name))
        if module not in CONFIGS:
            source = file_of(module).read_text(encoding="utf-8")
            todo |= imports(source, name)
    return {module for module, _ in found}


@functools.cache
def imports(source: str, name: str | None = None) -> frozenset[tuple[str, str | None]]:
    """(module of this repository, the name taken from it or None for all) for each import of some Python source.

    Args:
        name: leave out what this name, which is defined there, makes no use of; None: leave out nothing.
    """
    tree = ast.parse(source)
    used = _used_by(tree, name) if name else None
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        for alias in node.names:
            if used is not None and (alias.asname or alias.name.split(".")[0]) not in used:
                continue
            if isinstance(node, ast.Import):
                found.add((alias.name, None))
            elif node.module:
                as_module = f"{node.module}.{alias.name}"
                found |= {(as_module, None)} if file_of(as_module) else {(node.module, alias.name)}
    return frozenset((module, taken) for module, taken in found if file_of(module))


def _used_by(tree: ast.Module, name: str) -> set[str]:
    """Names that a definition of a module uses, itself or through others there; and what runs on import uses."""
    defined, todo = {}, {name}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound = {node.name}
        else:
            bound = {n.id for n in _names(node) if isinstance(n.ctx, ast.Store)}
        for one in bound:
            defined.setdefault(one, []).append(node)
        todo |= set() if bound else {n.id for n in _names(node)}
    used = set()
    while todo:
        one = todo.pop()
        used.add(one)
        todo |= {n.id for node in defined.get(one, ()) for n in _names(node)} - used
    return used


def _names(node: ast.AST) -> list[ast.Name]:
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
