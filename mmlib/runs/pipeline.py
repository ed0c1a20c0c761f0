"""The notebooks: their order, what each needs, what is due and why, how long it takes here; and running them.

`python -m mmlib plan` and `run` are the command lines. A notebook is due when its code, a file that it imports, or
results that it reads are others than when it last ran, or when a notebook before it ran since; its stamp in the data
folder says what these were. No torch here: the notebook's own process has need of the memory.
"""

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmlib.files import (
    cores,
    free_memory,
    processor,
    provenance,
    read_json,
    require_disk,
    write_json,
)
from mmlib.runs import run as runs
from mmlib.runs.dependencies import code_of, files_of
from mmlib.runs.results import keyed_results

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
    "09_claims": (
        MAIN,
        ("04_compare_losses", "05_sample_quality", "07_density", "08_lm_loss"),
    ),
    "31_figures": (MAIN, ("09_claims",)),
}


READS_IF_THERE = {  # results of applications and studies, which the ledger takes in where they ran
    "09_claims": (
        "scaling",
        "steering",
        "probing",
        "typicality",
        "robustness",
        "replication",
        "steering_study",
    )
}


DISK = {  # bytes that a notebook writes, the language model and checkpoints included
    "smoke": {"01_extract_activations": 2_000_000_000},
    "default": {
        "01_extract_activations": 5_000_000_000,
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
}
USUAL_SHARE = 0.6


# glibc gives freed memory back at once, and every training step faults it in again, in the backward pass's own heap
# too. Kept in one heap, in large pages, steps are faster, with the same bits.
MEMORY_SETTINGS = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
    "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8589934592"
)


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
                f"unknown notebook {name!r}: expected {', '.join(LINES)}, all, or some of {', '.join(NOTEBOOKS)}"
            )
        found |= of_it
    return [notebook for notebook in NOTEBOOKS if notebook in found]


def with_needs(notebooks: Sequence[str]) -> list[str]:
    """These notebooks and all that must have run before them, in their order."""
    found, todo = set(), list(notebooks)
    while todo:
        notebook = todo.pop()
        found.add(notebook)
        todo += NOTEBOOKS[notebook][1]
    return [notebook for notebook in NOTEBOOKS if notebook in found]


def needs_line(notebook: str) -> str:
    """What the head of a notebook says must have run before it."""
    before = [name[:2] for name in with_needs([notebook]) if name != notebook]
    if notebook in ("09_claims", "31_figures"):
        return f"*Needs: {', '.join(before)} for a run of your own; in a clone the published results do.*"
    return f"*Needs: {', '.join(before) or 'nothing, it is the first'}.*"


def state_of(notebook: str, preset: str) -> dict[str, str]:
    """What decides the outcome of a notebook besides those before it: digest by file.

    Of the notebook itself its code counts, and neither text nor outputs.
    """
    files = [runs.ROOT / "requirements.txt", *files_of(path_of(notebook))]
    found = {file.relative_to(runs.ROOT).as_posix(): _digest(file.read_bytes()) for file in files}
    found[f"notebooks/{notebook}.ipynb"] = _digest("\0".join(code_of(path_of(notebook))).encode())
    for name in READS_IF_THERE.get(notebook, ()):
        homes = (runs.DATA, runs.ROOT) if preset == runs.PUBLISHED else (runs.DATA,)
        paths = [home / "results" / preset / f"{name}.json" for home in homes]
        if path := next((path for path in paths if path.exists()), None):
            found[f"{preset}/{name}.json"] = _digest(path.read_bytes())
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def stamp_of(notebook: str, preset: str) -> Path:
    """Says what a notebook was when it last ran, and what ran before it."""
    return runs.DATA / "stamps" / preset / f"{notebook}.json"


def stamp(notebook: str, preset: str, state: dict[str, str]) -> None:
    """Note that a notebook has run; `state` as it was when it began, so what was edited meanwhile is due."""
    before = {name: _ran(name, preset) for name in NOTEBOOKS[notebook][1]}
    write_json(stamp_of(notebook, preset), {"ran": time.time_ns(), "files": state, "after": before})


def _ran(notebook: str, preset: str) -> int | None:
    path = stamp_of(notebook, preset)
    return read_json(path)["ran"] if path.exists() else None


def due(notebooks: Sequence[str], preset: str, what_if: Sequence[str] = ()) -> dict[str, list[str]]:
    """Why each of these notebooks, or one that they need, must run; those that need not are left out.

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
    """Times by machine: `runs.ROOT` has the published ones, `runs.DATA` those with this machine's."""
    return home / "results" / preset / "run_times.json"


def measured_times(preset: str) -> tuple[list[dict], dict]:
    """All machines whose times are known, and the one of them that is like this: a new one, last, where none is."""
    paths = [times_file(preset, home) for home in (runs.DATA, runs.ROOT)]
    found = next((read_json(path)["machines"] for path in paths if path.exists()), {})
    machines = list(found.values()) if isinstance(found, dict) else []  # else of an old version
    this = {"processor": processor(), "cores": os.cpu_count()}
    if not any(machine.items() >= this.items() for machine in machines):
        machines.append({**this, "notebooks": {}})
    return machines, next(machine for machine in machines if machine.items() >= this.items())


def rates_here() -> dict[str, float]:
    """`machine_rates` in a process of its own, which takes torch with it when it ends."""
    code = "import json, sys; from mmlib.files import machine_rates; print(json.dumps(machine_rates(sys.argv[1])))"
    runs.DATA.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code, runs.DATA], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def slower_by(share: float, there: dict[str, float], here: dict[str, float]) -> float:
    """How much longer work takes here than there, by the rates of both.

    Args:
        share: of the work that is done in bfloat16 where that is the faster; the rest is in float32.
    """
    fast_there, fast_here = (max(rates["float32"], rates["bfloat16"]) for rates in (there, here))
    return share * fast_there / fast_here + (1 - share) * there["float32"] / here["float32"]


def estimates(preset: str, here: dict[str, float]) -> dict[str, float]:
    """Minutes of every notebook that was ever timed, for a machine of these rates.

    This machine's own times come first, then times of machines whose rates are known, then any.
    """
    machines, this = measured_times(preset)
    found = {}
    for machine in sorted(machines, key=lambda m: (m is this, "rates" in m)):  # the best last
        for notebook, row in machine["notebooks"].items():
            share = LOW_PRECISION.get(notebook, USUAL_SHARE)
            factor = slower_by(share, machine["rates"], here) if "rates" in machine else 1.0
            found[notebook] = row["minutes"] * factor
    return found


def plan(wanted: dict[str, list[str]], preset: str) -> None:
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
    minutes = estimates(preset, rates)
    count = f"{len(wanted)} notebook{'s' if len(wanted) > 1 else ''} to run"
    print(f"\npreset {preset}: {count}; minutes as estimated for this machine, ? where unknown\n")
    for notebook, reasons in wanted.items():
        known = f"{minutes[notebook]:.1f}" if notebook in minutes else "?"
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        print(f"  {notebook:<24}{known:>8}   {reasons[0]}{more}")
    together = sum(minutes.get(notebook, 0) for notebook in wanted)
    print(f"  {'together':<24}{together:>8.1f}   {needed / 1e9:.0f} GB of disk\n")
    for warning in warnings(wanted, preset, rates):
        print(f"  {warning}\n")
    sys.stdout.flush()


def warnings(notebooks: Sequence[str], preset: str, rates: dict[str, float]) -> list[str]:
    """What this machine lacks for a run of these notebooks."""
    peaks = {
        name: row["peak_gib"]
        for machine in measured_times(preset)[0]
        for name, row in machine["notebooks"].items()
        if name in notebooks
    }
    found, free = [], free_memory()
    if peaks and free is not None and free < max(peaks.values()) * 2**30:
        hungriest = max(peaks, key=peaks.get)
        found.append(
            f"low memory: {hungriest} took {peaks[hungriest]:.1f} GiB elsewhere, {free / 2**30:.1f} GiB are free"
            " here: close what you can spare, or take --preset smoke"
        )
    if cores() == 1:
        found.append("one core: whatever was timed on two takes about twice as long")
    if rates["bfloat16"] <= rates["float32"]:
        found.append("no units for bfloat16: the language model and training run in float32")
    return found


def executed(notebook: str, preset: str) -> Path:
    """Where the executed copy of a notebook goes."""
    return runs.DATA / "executed" / preset / f"{notebook}.ipynb"


def run(wanted: Sequence[str], preset: str) -> None:
    """Run these notebooks, each in a process of its own, and record their times.

    Raises:
        SystemExit: one of them failed; those before it keep their stamps.
    """
    code = "import sys; from mmlib.runs.pipeline import execute; execute(*sys.argv[1:])"
    outside = {"GLIBC_TUNABLES": MEMORY_SETTINGS, **os.environ, "PRESET": preset}
    for notebook in wanted:
        print(f"── {notebook}", flush=True)
        done = subprocess.run([sys.executable, "-c", code, notebook, preset], env=outside)
        if done.returncode:
            sys.exit(f"{notebook} stopped: the last lines above say why")
    _record_times(preset)


def execute(notebook: str, preset: str) -> None:
    """Execute a notebook in a fresh kernel, with its log and progress on the terminal, then stamp it."""
    import papermill

    output, state, began = executed(notebook, preset), state_of(notebook, preset), time.time()
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        path_of(notebook),
        output,
        progress_bar=False,
        kernel_name="python3",
        iopub_timeout=60,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
    )
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    took = {"minutes": round((time.time() - began) / 60, 2), "peak_gib": round(peak / 2**30, 2)}
    write_json(output.with_suffix(".time.json"), took)
    if runs.home(preset) == runs.DATA:  # else what it drew is not of this folder's run
        stamp(notebook, preset, state)


def _record_times(preset: str) -> None:
    """Put what notebooks took here beside the published times, in the data folder."""
    machines, this = measured_times(preset)
    measured = {
        path.name.removesuffix(".time.json"): read_json(path)
        for path in executed("any", preset).parent.glob("*.time.json")
    }
    this["notebooks"] = dict(sorted({**this["notebooks"], **measured}.items()))
    this["rates"] = rates_here()
    facts = {"preset": preset, "command": f"python -m mmlib run --preset {preset}"}
    content = {"provenance": provenance(runs.ROOT, **facts), "machines": machines}
    write_json(times_file(preset, runs.DATA), keyed_results("run_times", content))


def summary(ran: Sequence[str], preset: str) -> None:
    """Print what ran, how long it took, and where the outcomes are."""
    took = {n: read_json(executed(n, preset).with_suffix(".time.json")) for n in ran}
    print(f"\n  {'notebook':<24}{'minutes':>8}{'peak GiB':>10}   executed copy")
    for notebook, row in took.items():
        shown = os.path.relpath(executed(notebook, preset))
        print(f"  {notebook:<24}{row['minutes']:>8.1f}{row['peak_gib']:>10.1f}   {shown}")
    print(f"  {'together':<24}{sum(row['minutes'] for row in took.values()):>8.1f}\n")
