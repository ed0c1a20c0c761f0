"""What a reader of the repository relies on: pins, notebooks, dependencies, and numbers in the
README.
"""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
import setuptools
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from mmlib.runs.run import ROOT
from mmlib_studies.notebooks import NOTEBOOKS as WRITERS

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


LINES = (ROOT / "requirements.txt").read_text().splitlines()
PINS = [line.split("==") for line in LINES if line and not line.startswith("#")]
PROJECT, STUDIES = (
    tomllib.loads((ROOT / folder / "pyproject.toml").read_text()) for folder in ("", "notebooks")
)


def test_every_requirement_is_pinned_once_and_installed_so():
    names = [canonicalize_name(name) for name, _ in PINS]
    assert len(names) == len(set(names)) and ["torch", "2.13.0"] in PINS
    for name, pinned in PINS:
        assert re.fullmatch(r"[\w.]+", pinned) and version(name).split("+")[0] == pinned


def test_conda_takes_its_versions_from_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-r requirements.txt"]} and environment["channels"] == ["conda-forge"]
    assert [re.split(r"[<>=]", line)[0] for line in conda] == ["python", "pip", "make"]


def test_binder_installs_the_pins_and_the_studies_on_a_python_of_ours_at_the_smoke_sizes():
    """Its buildpack reads a version only after a single "="; else it begins from a Python that is
    too old.
    """
    base, build, start = ((ROOT / ".binder" / n) for n in ("environment.yml", "postBuild", "start"))
    python, *others = yaml.safe_load(base.read_text())["dependencies"]
    asked = SpecifierSet(PROJECT["project"]["requires-python"])
    assert python.removeprefix("python=") in asked and others == ["pip", "make"]
    assert (
        "-r requirements.txt\n" in build.read_text() and "-e . -e notebooks\n" in build.read_text()
    )
    assert start.read_text().splitlines()[1:] == ["export PRESET=smoke", 'exec "$@"']


def test_what_the_package_asks_for_is_what_is_pinned_here():
    """Lower bounds that the pins fulfil; the extra `test` names the others."""
    project, pins = PROJECT["project"], {canonicalize_name(name): pin for name, pin in PINS}
    extras = project["optional-dependencies"]
    asked = [Requirement(line) for line in sum(extras.values(), project["dependencies"])]
    for one in asked:
        assert one.name == "mmlib" or pins[canonicalize_name(one.name)] in one.specifier, one
    assert {"torch", "transformers", "sae-lens", "papermill"} <= {one.name for one in asked}


def test_the_wheel_holds_mmlib_alone():
    found = setuptools.find_packages(ROOT, include=["mmlib*"])
    wings = {path.parent for path in (ROOT / "mmlib").glob("**/__init__.py")}
    assert {ROOT.joinpath(*name.split(".")) for name in found} == wings
    rooms = (ROOT / "notebooks" / "studies").glob("**/__init__.py")
    assert sorted(STUDIES["tool"]["setuptools"]["packages"]) == sorted(
        ".".join(("mmlib_studies", *path.parent.relative_to(ROOT / "notebooks" / "studies").parts))
        for path in rooms
    )


def lines_without_imports(cell):
    code = "\n".join(re.sub(r"^[%!].*", "", line) for line in cell.source.splitlines())
    imports = [n for n in ast.parse(code).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    return len(code.splitlines()) - sum(n.end_lineno - n.lineno + 1 for n in imports)


TO_RUN = {  # notebooks whose results are to come
    notebook
    for result, notebook in WRITERS.items()
    if not (ROOT / "results" / "default" / f"{result}.json").exists()
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_fit_to_read(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.cells[0].source.startswith(f"# {path.stem[:2]} · ")
    assert "**" in notebook.cells[0].source
    assert "What this does not show" in notebook.cells[-1].source
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    checks = [cell for cell in code if "nbval-check-output" in cell.metadata.get("tags", [])]
    shown = ["".join(output.get("text", "") for output in cell.outputs) for cell in checks]
    if path.stem in TO_RUN:
        assert not any(cell.outputs for cell in code), "outputs without results"
    else:
        assert checks and all(text and "False" not in text for text in shown), (
            "nbval would expect a check that failed in git to fail"
        )
    assert not any("injected-parameters" in cell.metadata.get("tags", []) for cell in code)
    assert max(map(lines_without_imports, code)) <= 40
    ran = [None] * len(code) if path.stem in TO_RUN else list(range(1, len(code) + 1))
    assert [cell.execution_count for cell in code] == ran, (
        "run from top to bottom: make reproduce publish"
    )
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert not re.search(r"/(home|work|root|tmp|Users)/", path.read_text())
    # ipywidgets' Output, which interact uses, can make nbclient miss the end of a cell and wait for
    # ever (jupyter/nbclient, issue 312)
    assert not any(re.search(r"ipywidgets\.(interact|Output)\w*\(", cell.source) for cell in code)


def test_arrows_run_down():
    """The contracts of import-linter in pyproject.toml."""
    linter = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([linter], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_code_is_formatted_and_passes_its_linter():
    ruff = (sys.executable, "-m", "ruff")
    code = ("mmlib", "notebooks/studies", "tests")
    for command in (("format", "--check", *code), ("check", *code, "notebooks")):
        found = subprocess.run([*ruff, *command], cwd=ROOT, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "figures/README.md"),
    "results/schema/README.md",
)
PACKAGES = {"mmlib": ROOT / "mmlib", "mmlib_studies": ROOT / "notebooks" / "studies"}
CODE = [path for folder in PACKAGES.values() for path in sorted(folder.rglob("*.py"))]


def texts_of(path):
    """What a reader reads of a file: a page, a notebook's markdown, a module with its docstrings
    and comments.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return text


def resolves(dotted):
    """Whether a name like mmlib.denoisers.noise.sdedit is a package, a module, or what one
    defines.
    """
    package, *parts = dotted.split(".")
    place = PACKAGES[package]
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    module = place / "__init__.py"
    if parts and (place / f"{parts[0]}.py").exists():
        module = place / f"{parts.pop(0)}.py"
    defined = rf"^\s*(?:def |class |\"?){parts[0] if parts else ''}\b"
    return not parts or bool(re.search(defined, texts_of(module), re.MULTILINE))


@pytest.mark.parametrize(
    "path",
    [ROOT / page for page in PAGES] + NOTEBOOKS + CODE,
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_every_file_and_module_that_a_text_names_is_there(path):
    text = texts_of(path)
    files = re.findall(
        r"(?<![\w./{}-])((?:mmlib|notebooks|tests|templates)/[\w/.-]*\.(?:py|ipynb|md|j2))\b", text
    )
    if path.suffix != ".py":
        quoted = re.findall(r"`([\w/.-]+\.(?:py|ipynb|md|toml|j2))`", text)
        files += [name for name in quoted if not (path.parent / name).exists()]
    files = [name for name in files if "NN" not in name]  # a notebook that is yet to be written
    missing = [name for name in files if not (ROOT / name).exists()]
    modules = re.findall(r"(?<![\w./\"'-])((?:mmlib|mmlib_studies)(?:\.[A-Za-z_]\w*)+)", text)
    missing += [name for name in modules if not resolves(name)]
    assert not missing, f"{path.relative_to(ROOT)} names what is not there: {', '.join(missing)}"


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_docstring_that_names_what_is_in_a_room_finds_it_there(path):
    """`room.name`: the room defines the name, or both are of the module's own code."""
    tree = ast.parse(texts_of(path))
    own = {getattr(node, "id", getattr(node, "arg", None)) for node in ast.walk(tree)}
    imports = [alias for node in ast.walk(tree) for alias in getattr(node, "names", ())]
    own |= {alias.asname or alias.name for alias in imports if isinstance(alias, ast.alias)}
    missing = []
    for room, name in re.findall(r"`([a-z]\w*)\.(?!h5\b)([A-Za-z_]\w*)[^`]*`", texts_of(path)):
        homes = [code for code in CODE if code.stem == room]
        found = room in own or any(re.search(rf"\b{name}\b", texts_of(home)) for home in homes)
        if not found and room not in ("mmlib", "mmlib_studies", "numpy", "r", "model"):
            missing.append(f"{room}.{name}")
    assert not missing, f"{path.relative_to(ROOT)} names {', '.join(missing)}"
