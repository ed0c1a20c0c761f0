"""Make rules that say which files of mmlib each notebook depends on, as `gcc -MM` does for C. Standard library only.

    python3 mmlib/dependencies.py > dependencies.mk

What draws is left out for notebooks that compute: a changed colour redraws figures/ (notebook 31) and retrains nothing.
"""

import ast
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def imported_rooms(source: str) -> set[str]:
    """Names of the files of mmlib that some Python source imports."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "mmlib":
            rooms |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmlib."):
            rooms.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            rooms |= {
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mmlib.")
            }
    return rooms


def rooms_of(notebook: Path, ignored: frozenset[str] = frozenset()) -> set[str]:
    """Files of mmlib that a notebook imports, directly or through others.

    Args:
        ignored: files that are left out, and so what only they import.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [
        "".join(
            line for line in cell["source"] if not line.lstrip().startswith(("%", "!"))
        )  # IPython's own commands
        for cell in cells
        if cell["cell_type"] == "code"
    ]
    todo = set().union(*map(imported_rooms, code)) - ignored
    found = set()
    while todo:
        room = todo.pop()
        found.add(room)
        todo |= (
            imported_rooms((ROOT / "mmlib" / f"{room}.py").read_text(encoding="utf-8"))
            - found
            - ignored
        )
    return found


DRAWS_ONLY = "31_figures"
DRAWING = frozenset({"figures", "study_figures", "application_figures", "style"})


if __name__ == "__main__":
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        rooms = rooms_of(path, frozenset() if path.stem == DRAWS_ONLY else DRAWING)
        files = " ".join(f"mmlib/{room}.py" for room in sorted(rooms))
        print(f"$(STAMPS)/{path.stem}: notebooks/{path.name} {files}")
