"""What `make reproduce` says and does around each notebook. Which notebooks are due is make's own knowledge.

    python -m mmlib.reproduce plan PRESET NOTEBOOK…       table of what will run, with the times it took on the reference machine
    python -m mmlib.reproduce run PRESET NOTEBOOK STAMP   run one by papermill, with its progress on the terminal, then touch STAMP
    python -m mmlib.reproduce summary PRESET NOTEBOOK…    table of what ran, with times, memory and outputs
    python -m mmlib.reproduce publish PRESET NOTEBOOK…    put the executed notebooks in place of those in notebooks/
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

from mmlib.files import require_disk, written_whole
from mmlib.results import provenance, read_json, write_json
from mmlib.runs import DATA, ROOT

DISK = {"smoke": 3_000_000_000, "default": 6_000_000_000, "gpu": 12_000_000_000}  # bytes, language model and checkpoints included


def executed(preset: str, notebook: str) -> Path:
    """Where the executed copy of a notebook goes."""
    return DATA / "executed" / preset / f"{notebook}.ipynb"


def times_file(preset: str) -> Path:
    """Committed times, each notebook's as last measured."""
    return ROOT / "results" / preset / "run_times.json"


def plan(preset: str, notebooks: list[str]) -> None:
    """Print what will run and for how long; refuse if the disk cannot hold it."""
    DATA.mkdir(parents=True, exist_ok=True)
    require_disk(DATA, DISK.get(preset, 0), f"the {preset} preset")
    known = read_json(times_file(preset))["notebooks"] if times_file(preset).exists() else {}
    print(f"\npreset {preset}: {len(notebooks)} notebook{'s' if len(notebooks) > 1 else ''} to run"
          " (minutes as last measured; `?` where never)\n")
    for notebook in notebooks:
        print(f"  {notebook:<28}{known[notebook]['minutes']:>8.1f}" if notebook in known else f"  {notebook:<28}{'?':>8}")
    if known:
        print(f"  {'together':<28}{sum(known[n]['minutes'] for n in notebooks if n in known):>8.1f}")
    print(flush=True)


def run(preset: str, notebook: str, stamp: str) -> None:
    """Execute a notebook in a fresh kernel; its log and progress bars appear on the terminal."""
    import papermill

    print(f"── {notebook}", flush=True)
    output, began = executed(preset, notebook), time.perf_counter()
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ["PRESET"] = preset
    papermill.execute_notebook(ROOT / "notebooks" / f"{notebook}.ipynb", output, progress_bar=False, kernel_name="python3",
                               stdout_file=sys.stdout, stderr_file=sys.stderr)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    took = {"minutes": round((time.perf_counter() - began) / 60, 2), "peak_gib": round(peak / 2**30, 2)}
    write_json(output.with_suffix(".time.json"), took)
    Path(stamp).touch()


def summary(preset: str, notebooks: list[str]) -> None:
    """Print what ran, and record its times in results/."""
    took = {n: read_json(executed(preset, n).with_suffix(".time.json")) for n in notebooks}
    print(f"\n  {'notebook':<28}{'minutes':>8}{'peak GiB':>10}   executed copy")
    for notebook, row in took.items():
        print(f"  {notebook:<28}{row['minutes']:>8.1f}{row['peak_gib']:>10.1f}   {_shown(executed(preset, notebook))}")
    print(f"  {'together':<28}{sum(row['minutes'] for row in took.values()):>8.1f}\n\n"
          f"results: {_shown(ROOT / 'results' / preset)}    figures: {_shown(ROOT / 'figures' / ('' if preset == 'default' else preset))}\n")
    facts = {"preset": preset, "command": f"make reproduce PRESET={preset}", "cores": os.cpu_count()}
    known = read_json(times_file(preset))["notebooks"] if times_file(preset).exists() else {}
    write_json(times_file(preset), {"provenance": provenance(ROOT, **facts), "notebooks": {**known, **took}})


def publish(preset: str, notebooks: list[str]) -> None:
    """Replace the notebooks in git by their executed copies, without papermill's traces, progress bars and file paths."""
    for notebook in notebooks:
        content = json.loads(executed(preset, notebook).read_text(encoding="utf-8"))
        content["metadata"].pop("papermill", None)
        for cell in content["cells"]:
            for trace in ("papermill", "execution"):
                cell["metadata"].pop(trace, None)
            if cell["cell_type"] == "code":
                cell["outputs"] = [o for o in cell["outputs"] if o.get("name") != "stderr"]
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        if str(ROOT) in text:
            raise ValueError(f"{notebook} shows the path {ROOT}: a reader's machine has none of it; print it relative to the repository")
        with written_whole(ROOT / "notebooks" / f"{notebook}.ipynb") as partial:
            partial.write_text(text, encoding="utf-8")


def _shown(path: Path) -> str:
    return os.path.relpath(path)


if __name__ == "__main__":
    command, preset_name, *names = sys.argv[1:]
    if command == "run":
        run(preset_name, *names)
    else:
        {"plan": plan, "summary": summary, "publish": publish}[command](preset_name, names)
