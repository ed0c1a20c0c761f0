"""What `make reproduce` says and does around each notebook. Which notebooks are due is make's own knowledge.

python -m mmlib.runs.pipeline plan PRESET NOTEBOOK…       table of what will run, with the times it took on the reference machine
python -m mmlib.runs.pipeline run PRESET NOTEBOOK STAMP   run one by papermill, with its progress on the terminal, then touch STAMP
python -m mmlib.runs.pipeline summary PRESET NOTEBOOK…    table of what ran, with times, memory and outputs
python -m mmlib.runs.pipeline publish NOTEBOOK…           put the executed notebooks in place of those in notebooks/
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

from mmlib.files import provenance, read_json, require_disk, write_json, written_whole
from mmlib.runs.dependencies import DRAWS_ONLY
from mmlib.runs.presets import get_preset
from mmlib.runs.results import keyed_results
from mmlib.runs.run import DATA, ROOT

DISK = {
    "smoke": 2_000_000_000,
    "default": 5_000_000_000,
    "gpu": 12_000_000_000,
}  # bytes, language model and checkpoints included


def executed(preset: str, notebook: str) -> Path:
    """Where the executed copy of a notebook goes."""
    return DATA / "executed" / preset / f"{notebook}.ipynb"


def times_file(preset: str) -> Path:
    """Committed times: of each machine, every notebook's as last measured there."""
    return ROOT / "results" / preset / "run_times.json"


def measured_times(preset: str) -> tuple[list[dict], dict]:
    """The machines in `times_file`, and the one of them that has this processor and as many cores: a new one, last, where none has."""
    from mmlib.files import (
        processor,  # here: with it comes torch, which running a notebook needs in the notebook's process alone
    )

    machines = (
        list(read_json(times_file(preset))["machines"].values())
        if times_file(preset).exists()
        else []
    )
    this = {"processor": processor(), "cores": os.cpu_count()}
    if not any(machine.items() >= this.items() for machine in machines):
        machines.append({**this, "notebooks": {}})
    return machines, next(machine for machine in machines if machine.items() >= this.items())


def plan(preset: str, notebooks: list[str]) -> None:
    """Print what will run and for how long; refuse if the disk cannot hold it."""
    get_preset(preset)
    DATA.mkdir(parents=True, exist_ok=True)
    if "01_extract_activations" in notebooks:
        require_disk(DATA, DISK[preset], f"the {preset} preset")
    machines, this = measured_times(preset)
    known = {
        notebook: (row["minutes"], machine)
        for machine in (*reversed(machines), this)
        for notebook, row in machine["notebooks"].items()
    }
    print(
        f"\npreset {preset}: {len(notebooks)} notebook{'s' if len(notebooks) > 1 else ''} to run"
        " (minutes as last measured; `?` where never)\n"
    )
    for notebook in notebooks:
        minutes, machine = known.get(notebook, (None, this))
        elsewhere = (
            "" if machine is this else f"   on {machine['cores']} cores of {machine['processor']}"
        )
        print(f"  {notebook:<28}{'?' if minutes is None else f'{minutes:.1f}':>8}{elsewhere}")
    if known:
        print(f"  {'together':<28}{sum(known[n][0] for n in notebooks if n in known):>8.1f}")
    print(flush=True)


def run(preset: str, notebook: str, stamp: str) -> None:
    """Execute a notebook in a fresh kernel; its log and progress bars appear on the terminal."""
    import papermill

    print(f"── {notebook}", flush=True)
    output, began = executed(preset, notebook), time.time()
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ["PRESET"] = preset
    papermill.execute_notebook(
        ROOT / "notebooks" / f"{notebook}.ipynb",
        output,
        progress_bar=False,
        kernel_name="python3",
        iopub_timeout=60,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    took = {"minutes": round((time.time() - began) / 60, 2), "peak_gib": round(peak / 2**30, 2)}
    write_json(output.with_suffix(".time.json"), took)
    Path(stamp).touch()
    os.utime(stamp, (began, began))  # what was edited while it ran is newer, so make runs it again


def summary(preset: str, notebooks: list[str]) -> None:
    """Print what ran, and record its times in results/."""
    took = {n: read_json(executed(preset, n).with_suffix(".time.json")) for n in notebooks}
    print(f"\n  {'notebook':<28}{'minutes':>8}{'peak GiB':>10}   executed copy")
    for notebook, row in took.items():
        print(
            f"  {notebook:<28}{row['minutes']:>8.1f}{row['peak_gib']:>10.1f}   {_shown(executed(preset, notebook))}"
        )
    print(
        f"  {'together':<28}{sum(row['minutes'] for row in took.values()):>8.1f}\n\n"
        f"results: {_shown(ROOT / 'results' / preset)}    figures: {_shown(ROOT / 'figures' / ('' if preset == 'default' else preset))}\n"
    )
    facts = {
        "preset": preset,
        "command": f"make reproduce, applications and studies PRESET={preset}",
    }
    machines, this = measured_times(preset)
    measured = {
        path.name.removesuffix(".time.json"): read_json(path)
        for path in executed(preset, "any").parent.glob("*.time.json")
    }
    this["notebooks"] = dict(sorted({**this["notebooks"], **measured}.items()))
    content = {"provenance": provenance(ROOT, **facts), "machines": machines}
    write_json(times_file(preset), keyed_results("run_times", content))


def publish(notebooks: list[str]) -> None:
    """Replace the notebooks in git by their executed copies of the default preset; all of them or none.

    Raises:
        ValueError: a notebook was edited since it ran, or shows a path of this machine.
    """
    texts = {notebook: _readable(notebook) for notebook in notebooks}
    for notebook, text in texts.items():
        with written_whole(ROOT / "notebooks" / f"{notebook}.ipynb") as partial:
            partial.write_text(text, encoding="utf-8")


def _readable(notebook: str) -> str:
    """The executed copy without papermill's traces and progress bars, and without pictures where figures/ holds every one of them."""
    content = json.loads(executed("default", notebook).read_text(encoding="utf-8"))
    original = json.loads((ROOT / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))
    if ["".join(c["source"]) for c in content["cells"]] != [
        "".join(c["source"]) for c in original["cells"]
    ]:
        raise ValueError(
            f"{notebook} was edited since it ran: make reproduce, applications or studies first, whichever runs it"
        )
    content["metadata"].pop("papermill", None)
    for cell in content["cells"]:
        for trace in ("papermill", "execution"):
            cell["metadata"].pop(trace, None)
        if cell["cell_type"] == "code":
            cell["outputs"] = [
                o
                for o in cell["outputs"]
                if o.get("name") != "stderr"
                and not (notebook == DRAWS_ONLY and "image/png" in o.get("data", {}))
            ]
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if str(ROOT) in text:
        raise ValueError(
            f"{notebook} shows the path {ROOT}, which no reader's machine has: print it relative to the repository"
        )
    return text


def _shown(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    command, *names = sys.argv[1:] or [""]
    if command not in ("plan", "run", "summary", "publish"):
        raise SystemExit(f"unknown command {command!r}: expected plan, run, summary or publish")
    if command in ("plan", "summary"):
        {"plan": plan, "summary": summary}[command](names[0], names[1:])
    elif command == "run":
        run(*names)
    else:
        publish(names)
