"""Make rules that say which files each notebook depends on, as `gcc -MM` does for C. Standard library only.

    python3 mmlib/runs/dependencies.py > dependencies.mk

What draws is left out for notebooks that compute: a changed colour redraws figures/ (notebook 31) and retrains nothing.
"""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"mmlib": ROOT / "mmlib", "mmlib_studies": ROOT / "notebooks" / "studies"}
DRAWS_ONLY = "31_figures"
CONFIGS = {
    "mmlib.runs.presets"
}  # imports configs alone; who uses what they configure imports it too
DRAWING = ("mmlib.plots", "mmlib_studies.figures")  # modules, and all below them


def file_of(module: str) -> Path | None:
    """The file of a module of this repository; None if it is none, such as a name in a module."""
    package, *parts = module.split(".")
    if package not in PACKAGES:
        return None
    path = PACKAGES[package].joinpath(*parts)
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.exists() else None


def imported_modules(source: str) -> set[str]:
    """Modules of this repository that some Python source imports, by their dotted names."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if file_of(name)}


def modules_of(notebook: Path, ignored: tuple[str, ...] = ()) -> set[str]:
    """Modules that a notebook imports, directly or through others.

    Args:
        ignored: modules that are left out with all below them, and so what only they import.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [
        "".join(line for line in cell["source"] if not line.lstrip().startswith(("%", "!")))
        for cell in cells
        if cell["cell_type"] == "code"
    ]

    def kept(names: set[str]) -> set[str]:
        return {
            name for name in names if not f"{name}.".startswith(tuple(f"{i}." for i in ignored))
        }

    todo, found = kept(set().union(*map(imported_modules, code))), set()
    while todo:
        module = todo.pop()
        found.add(module)
        if module not in CONFIGS:
            todo |= kept(imported_modules(file_of(module).read_text(encoding="utf-8"))) - found
    return found


if __name__ == "__main__":
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        modules = modules_of(path, () if path.stem == DRAWS_ONLY else DRAWING)
        files = sorted(file_of(module).relative_to(ROOT).as_posix() for module in modules)
        print(f"$(STAMPS)/{path.stem}: notebooks/{path.name} {' '.join(files)}")
