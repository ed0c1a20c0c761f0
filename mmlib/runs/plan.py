"""What is due, why, and for how long: the notebooks in their order, what each depends on, what they
take on this machine.

A notebook is due when its code, a file that it imports, or results that it reads are others than
when it last ran, or when a notebook before it ran since; its stamp in the data folder says what
these were. Imports are followed name by name: who takes the evaluator from a file does not depend
on what its other functions use. What draws is left out for notebooks that compute: a changed colour
redraws the figures (notebook 31) and retrains nothing. `python -m mmlib plan` is the command line;
no torch is loaded here.
"""

import ast
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmlib.files import cores, free_memory, processor, read_json, require_disk, write_json
from mmlib.runs import run as runs

MAIN, APPLICATIONS, STUDIES = LINES = ("main", "applications", "studies")

NOTEBOOKS = {  # in the order in which they run: its line, and the notebooks whose outputs it reads
    "01_extract_activations": (MAIN, ()),
    "02_fit_baselines": (MAIN, ("01_extract_activations",)),
    "03_train_meta_model": (MAIN, ("02_fit_baselines",)),
    "04_compare_losses": (MAIN, ("03_train_meta_model",)),
    "05_sample_quality": (MAIN, ("03_train_meta_model",)),
    "07_density": (MAIN, ("03_train_meta_model",)),
    "08_lm_loss": (MAIN, ("03_train_meta_model",)),
    "11_steer": (APPLICATIONS, ("03_train_meta_model",)),
    "12_meta_neurons": (APPLICATIONS, ("03_train_meta_model",)),
    "13_off_manifold": (APPLICATIONS, ("03_train_meta_model",)),
    "06_scaling": (STUDIES, ("03_train_meta_model",)),
    "21_recipes": (STUDIES, ("02_fit_baselines",)),
    "22_benchmarks": (STUDIES, ("03_train_meta_model",)),
    "23_robustness": (STUDIES, ("03_train_meta_model",)),
    "24_replication": (STUDIES, ("04_compare_losses",)),
    "25_steering_study": (STUDIES, ("03_train_meta_model",)),
    "26_best_model": (STUDIES, ("01_extract_activations",)),
    "09_claims": (MAIN, ("04_compare_losses", "05_sample_quality", "07_density", "08_lm_loss")),
    "31_figures": (MAIN, ("09_claims",)),
}


# Results of applications and studies, which the ledger takes in where they ran.
LEDGER_READS = "scaling steering probing typicality robustness replication steering_study".split()


DISK = {  # bytes that a notebook writes, the language model and checkpoints included
    "smoke": {"01_extract_activations": 2_000_000_000},
    "quick": {"01_extract_activations": 2_000_000_000},
    "default": {
        "01_extract_activations": 5_000_000_000,
        "02_fit_baselines": 5_000_000_000,
        "03_train_meta_model": 4_000_000_000,
        "22_benchmarks": 6_000_000_000,
        "23_robustness": 4_000_000_000,
    },
    "gpu": {"01_extract_activations": 12_000_000_000},
}


LOW_PRECISION = {  # share of a notebook's time that passes in bfloat16 products where those pay
    "01_extract_activations": 0.9,
    "02_fit_baselines": 0.4,
    "04_compare_losses": 0.2,
    "05_sample_quality": 0.3,
    "08_lm_loss": 0.9,
    "11_steer": 0.8,
    "12_meta_neurons": 0.7,
    "13_off_manifold": 0.7,
    "25_steering_study": 0.8,
    "26_best_model": 0.2,
}
USUAL_SHARE = 0.6
# of the rate of float32: emulated, bfloat16 is far slower; other work beside a probe takes less
WITHOUT_UNITS = 0.7

ONLY_MAIN = {"quick"}  # presets that studies and applications have no sizes for


PACKAGES = {"mmlib": "mmlib", "mmlib_studies": "notebooks/studies"}
DRAWS_ONLY = "31_figures"
DRAWING = ("mmlib.plots", "mmlib_studies.figures")  # modules, and all below them


CONFIGS = {"mmlib.runs.presets"}  # who uses what they configure imports it too


def path_of(notebook: str) -> Path:
    """The file of a notebook."""
    return runs.ROOT / "notebooks" / f"{notebook}.ipynb"


def named(names: Sequence[str]) -> list[str]:
    """Notebooks in their order, by lines ("main", "all") or their own names, numbers or paths.

    Raises:
        ValueError: no notebook or line is called so.
    """
    found = set()
    for name in names:
        stem = Path(name).stem
        of_it = {
            notebook
            for notebook, (line, _) in NOTEBOOKS.items()
            if name in (line, "all") or stem in (notebook, notebook[:2])
        }
        if not of_it and name not in LINES:
            raise ValueError(
                f"unknown notebook {name!r}: expected {', '.join(LINES)}, all, or some of "
                f"{', '.join(NOTEBOOKS)}"
            )
        found |= of_it
    return [notebook for notebook in NOTEBOOKS if notebook in found]


def sized(notebooks: Sequence[str], preset: str) -> list[str]:
    """These notebooks, if the preset has sizes for them.

    Raises:
        ValueError: it has some for the main line alone.
    """
    others = [notebook for notebook in notebooks if NOTEBOOKS[notebook][0] != MAIN]
    if preset in ONLY_MAIN and others:
        raise ValueError(
            f"preset {preset} has no sizes for {', '.join(others)}: expected the main line alone, "
            "or another preset"
        )
    return list(notebooks)


def with_needs(notebooks: Sequence[str]) -> list[str]:
    """These notebooks and all that must have run before them, in their order."""
    found, todo = set(), list(notebooks)
    while todo:
        notebook = todo.pop()
        found.add(notebook)
        todo += NOTEBOOKS[notebook][1]
    return [notebook for notebook in NOTEBOOKS if notebook in found]


def state_of(notebook: str, preset: str) -> dict[str, str]:
    """What decides the outcome of a notebook besides those before it: digest by file.

    Of the notebook itself its code counts, and neither text nor outputs.
    """
    files = [runs.ROOT / "requirements.txt", *files_of(path_of(notebook))]
    found = {file.relative_to(runs.ROOT).as_posix(): _digest(file.read_bytes()) for file in files}
    found[f"notebooks/{notebook}.ipynb"] = _digest("\0".join(code_of(path_of(notebook))).encode())
    for name in LEDGER_READS if notebook == "09_claims" else ():
        file = Path("results", preset, f"{name}.json")
        path = runs.DATA / file
        if preset == runs.PUBLISHED and not path.exists():
            path = runs.ROOT / file
        if path.exists():
            found[f"{preset}/{name}.json"] = _digest(path.read_bytes())
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def stamp_of(notebook: str, preset: str) -> Path:
    """Says what a notebook was when it last ran, and what ran before it."""
    return runs.DATA / "stamps" / preset / f"{notebook}.json"


def stamp(notebook: str, preset: str, state: dict[str, str]) -> None:
    """Note that a notebook has run; `state` as it was when it began, so what was edited meanwhile
    is due.
    """
    before = {name: _ran(name, preset) for name in NOTEBOOKS[notebook][1]}
    write_json(stamp_of(notebook, preset), {"ran": time.time_ns(), "files": state, "after": before})


def _ran(notebook: str, preset: str) -> int | None:
    path = stamp_of(notebook, preset)
    return read_json(path)["ran"] if path.exists() else None


def due(notebooks: Sequence[str], preset: str, what_if: Sequence[str] = ()) -> dict[str, list[str]]:
    """Why each of these notebooks, or one that they need, must run; those that need not are left
    out.

    Args:
        what_if: paths in the repository that are taken to have just changed.
    """
    for file in what_if:
        if not (runs.ROOT / file).exists():
            raise ValueError(f"no file {file}: expected a path in the repository")
    found = {}
    for notebook in with_needs(notebooks):
        before = [name for name in NOTEBOOKS[notebook][1] if name in found]
        path = stamp_of(notebook, preset)
        if not path.exists():
            found[notebook] = ["it never ran here"]
            continue
        known, now = read_json(path), state_of(notebook, preset)
        reasons = [
            f"{file} changed"
            for file in sorted({*known["files"], *now})
            if known["files"].get(file) != now.get(file) or file in what_if
        ]
        reasons += [f"{name} runs before it" for name in before] + [
            f"{name} ran since"
            for name, ran in known["after"].items()
            if name not in before and _ran(name, preset) != ran
        ]
        if reasons:
            found[notebook] = reasons
    return found


def times_file(preset: str, home: Path) -> Path:
    """Times by machine: `runs.ROOT` has the published ones, `runs.DATA` those with this
    machine's.
    """
    return home / "results" / preset / "run_times.json"


def measured_times(preset: str) -> tuple[list[dict], dict]:
    """All machines whose times are known, and the one of them that is like this: a new one, last,
    where none is.
    """
    paths = [times_file(preset, home) for home in (runs.DATA, runs.ROOT)]
    content = next((read_json(path) for path in paths if path.exists()), {"machines": {}})
    machines = list(content["machines"].values())
    this = {"processor": processor(), "cores": os.cpu_count()}
    alike = [machine for machine in machines if machine.items() >= this.items()]
    if not alike:
        alike = [{**this, "notebooks": {}}]
        machines += alike
    return machines, alike[0]


def rates_here() -> dict[str, float]:
    """`machine_rates` in a process of its own, which takes torch with it when it ends."""
    code = "import json, sys; from mmlib.files import machine_rates; print(json.dumps(machine_rates(sys.argv[1])))"
    runs.DATA.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code, runs.DATA], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def slower_by(notebook: str, there: dict[str, float], here: dict[str, float]) -> float:
    """How much longer a notebook takes here than there, by the rates of both.

    A share of its work is done in bfloat16 where that is the faster; the rest is in float32.
    """
    share = LOW_PRECISION.get(notebook, USUAL_SHARE)
    fast_there, fast_here = (max(rates["float32"], rates["bfloat16"]) for rates in (there, here))
    return share * fast_there / fast_here + (1 - share) * there["float32"] / here["float32"]


def minutes_here(preset: str, here: dict[str, float]) -> dict[str, tuple[float, str | None]]:
    """Minutes of every notebook that was ever timed, for a machine of these rates.

    This machine's own times come first, then times of machines whose rates are known, then any.

    Returns:
        by notebook: minutes; and None, or the processor that they were measured on where its rates
            are not known.
    """
    machines, this = measured_times(preset)
    found = {}
    for machine in sorted(machines, key=lambda m: (m is this, "rates" in m)):  # the best last
        rates = machine.get("rates")
        for notebook, row in machine["notebooks"].items():
            factor = slower_by(notebook, rates, here) if rates else 1.0
            found[notebook] = row["minutes"] * factor, None if rates else machine["processor"]
    return found


def show(wanted: dict[str, list[str]], preset: str) -> None:
    """Print what will run, why, and for how long on this machine, and what the machine lacks.

    Args:
        wanted: notebooks with the reasons why they run, as `due` gives them.
    Raises:
        ValueError: no such preset.
        OSError: the disk cannot hold what the notebooks write.
    """
    if preset not in DISK:
        raise ValueError(f"unknown preset {preset!r}: expected one of {', '.join(DISK)}")
    if not wanted:
        print(f"preset {preset}: nothing has changed since the last run, nothing to do")
        return
    runs.DATA.mkdir(parents=True, exist_ok=True)
    if needed := sum(DISK[preset].get(notebook, 0) for notebook in wanted):
        require_disk(runs.DATA, needed, f"the {preset} preset")
    rates = rates_here()
    minutes = minutes_here(preset, rates)
    count = f"{len(wanted)} notebook{'s' if len(wanted) > 1 else ''} to run"
    print(f"\npreset {preset}: {count}; minutes as estimated for this machine, ? where unknown\n")
    for notebook, reasons in wanted.items():
        known = f"{minutes[notebook][0]:.1f}" if notebook in minutes else "?"
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        print(f"  {notebook:<24}{known:>8}   {reasons[0]}{more}")
    together = sum(minutes[notebook][0] for notebook in wanted if notebook in minutes)
    print(f"  {'together':<24}{together:>8.1f}   {needed / 1e9:.0f} GB of disk\n")
    for warning in [*unsure(wanted, minutes), *warnings(wanted, preset, rates)]:
        print(f"  {warning}\n")
    sys.stdout.flush()


def unsure(notebooks: Sequence[str], minutes: dict[str, tuple[float, str | None]]) -> Iterator[str]:
    """What may be wrong with the minutes that `minutes_here` gives for these notebooks, in
    words.
    """
    if untimed := [name[:2] for name in notebooks if name not in minutes]:
        yield f"never timed, so not in the sum: {', '.join(untimed)}"
    timed_on = {name[:2]: minutes[name][1] for name in notebooks if name in minutes}
    for machine in sorted({machine for machine in timed_on.values() if machine}):
        of_it = ", ".join(name for name, timed in timed_on.items() if timed == machine)
        yield (
            f"timed only on a machine whose speed is not known ({machine}), and several times "
            f"slower or faster here perhaps: {of_it}"
        )
    if shutil.which("nvidia-smi"):
        yield "a GPU is here, and the minutes are estimated by the processor: expect fewer"


def warnings(notebooks: Sequence[str], preset: str, rates: dict[str, float]) -> Iterator[str]:
    """What this machine lacks for a run of these notebooks."""
    peaks = [
        (row["peak_gib"], name)
        for machine in measured_times(preset)[0]
        for name, row in machine["notebooks"].items()
        if name in notebooks
    ]
    most, hungriest = max(peaks, default=(0, ""))
    if (free := free_memory()) < most * 2**30:
        yield (
            f"low memory: {hungriest} took {most:.1f} GiB elsewhere, {free / 2**30:.1f} GiB are "
            "free here: close what you can spare, or take --preset smoke"
        )
    if cores() == 1:
        yield "one core: whatever was timed on two takes about twice as long"
    if rates["bfloat16"] < WITHOUT_UNITS * rates["float32"]:
        yield "no units for bfloat16: the language model and training run in float32"


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
    cells = read_json(notebook)["cells"]
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
    """(module of this repository, the name taken from it or None for all) for each import of some
    Python source.

    Args:
        name: leave out what this name, which is defined there, makes no use of; None: leave out
            nothing.
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
    """Names that a definition of a module uses, itself or through others there; and what runs on
    import uses.
    """
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
