"""The pipeline: run notebooks, compare a run with the published results, publish it in their place.

`python -m mmlib run` is the command line; what is due, and why, is `mmlib.runs.plan`. Each notebook
has a process of its own, which needs the memory: no torch is loaded here. Bits differ between
processors and numbers of threads, so a run elsewhere gives other last digits. A number that leaves
the interval published beside it is more than that.
"""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmlib.files import any_terminal, processor, provenance, read_json, write_json, written_whole
from mmlib.runs import plan
from mmlib.runs import run as runs
from mmlib.runs.results import keyed_results

# glibc gives freed memory back at once, and every training step faults it in again, in the backward
# pass's own heap too. Kept in one heap, in large pages, steps are faster, with the same bits.
MEMORY_SETTINGS = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:"
    "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8589934592"
)


# A "ci95" is of the first of these that stands beside it.
ESTIMATES = "value reduction gap loss delta mean auroc area difference effect".split()
OTHER = "other_processor"  # a comparison that is kept
# Times of a machine, comparisons themselves, and where all comes from.
NOT_COMPARED = {"run_times", "benchmarks", OTHER}
APART = {"provenance", "sources", "ci95", "migrated_from"}
TIMES = ("seconds", "minutes", "per_second", "_gib")  # how keys of what a machine took end


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
    # this environment's kernel, whatever others of its name a user or a cluster has
    kernels = (str(Path(sys.prefix, "share", "jupyter")), os.environ.get("JUPYTER_PATH"))
    outside["JUPYTER_PATH"] = os.pathsep.join(filter(None, kernels))
    for notebook in wanted:
        print(f"── {notebook}", flush=True)
        done = subprocess.run([sys.executable, "-c", code, notebook, preset], env=outside)
        if done.returncode:
            sys.exit(f"{notebook} stopped: the last lines above say why")
    _record_times(preset)


def execute(notebook: str, preset: str) -> None:
    """Execute a notebook in a fresh kernel, with its log and progress on the terminal, then stamp
    it.
    """
    import papermill

    any_terminal()
    output, state, began = executed(notebook, preset), plan.state_of(notebook, preset), time.time()
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        plan.path_of(notebook),
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
        plan.stamp(notebook, preset, state)


def _record_times(preset: str) -> None:
    """Put what notebooks took here beside the published times, in the data folder, with this
    machine's rates.

    What a machine like this took before, at other rates, is brought to these; at unknown rates it
    is left out.
    """
    machines, this = plan.measured_times(preset)
    rates, before = plan.rates_here(), this.get("rates")
    for notebook, row in this["notebooks"].items() if before else ():
        row["minutes"] = round(row["minutes"] * plan.slower_by(notebook, before, rates), 2)
    measured = {
        path.name.removesuffix(".time.json"): read_json(path)
        for path in executed("any", preset).parent.glob("*.time.json")
    }
    known = this["notebooks"] if before else {}
    this |= {"rates": rates, "notebooks": dict(sorted({**known, **measured}.items()))}
    facts = {"preset": preset, "command": f"python -m mmlib run --preset {preset}"}
    content = {"provenance": provenance(runs.ROOT, **facts), "machines": machines}
    write_json(plan.times_file(preset, runs.DATA), keyed_results("run_times", content))


def summary(ran: Sequence[str], preset: str) -> None:
    """Print what ran, how long it took, and where the outcomes are."""
    took = {n: read_json(executed(n, preset).with_suffix(".time.json")) for n in ran}
    print(f"\n  {'notebook':<24}{'minutes':>8}{'peak GiB':>10}   executed copy")
    for notebook, row in took.items():
        shown = os.path.relpath(executed(notebook, preset))
        print(f"  {notebook:<24}{row['minutes']:>8.1f}{row['peak_gib']:>10.1f}   {shown}")
    print(f"  {'together':<24}{sum(row['minutes'] for row in took.values()):>8.1f}\n")


def leaves(content: dict | list, path: str = "") -> Iterator[tuple[str, object, list | None]]:
    """(keys, number or text, its 95 % interval or None) of all in a results file but times and
    where it comes from.
    """
    content = dict(enumerate(content)) if isinstance(content, list) else content
    interval = content.get("ci95")
    paired = next((key for key in ESTIMATES if key in content), None)
    for key, value in content.items():
        where = f"{path}.{key}" if path else str(key)
        if key in APART or _is_time(str(key)):
            continue
        if isinstance(value, (dict, list)):
            yield from leaves(value, where)
        else:
            yield where, value, (interval or None) if key == paired else None


def _is_time(key: str) -> bool:
    """Of what a machine took; the network that is kept after as many seconds as the UNet is named
    so too.
    """
    return key.endswith(TIMES) and not key.endswith("unet_seconds")


def estimates(content: dict) -> dict[str, tuple[float, list | None]]:
    """By keys, every number of a results file that is neither a time nor a truth value, and its 95
    % interval or None.
    """
    return {
        keys: (value, ci95)
        for keys, value, ci95 in leaves(content)
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def verdicts(content: dict) -> dict[str, str]:
    """By keys, the verdict on everything in a results file that is judged."""
    return {
        keys: str(value) for keys, value, _ in leaves(content) if keys.split(".")[-1] == "verdict"
    }


def same(folder: Path) -> bool:
    """Whether every results file of the folder, if there are any, is the published one."""
    published = runs.ROOT / "results" / runs.PUBLISHED
    return all(
        read_json(path)["provenance"] == read_json(published / path.name)["provenance"]
        for path in folder.glob("*.json")
        if path.stem not in NOT_COMPARED and (published / path.name).exists()
    )


def compare(folder: Path, published: Path) -> dict:
    """Numbers of a run beside the published ones, over all results files that both have.

    Returns:
        counts of `numbers`, of those the `same` to three digits, of those `with_interval`, and of
        these the ones `inside` it; `other_verdicts`; and `rows`: per number with an interval its
        `number` (FILE:KEYS), `published`, `here`, `ci95`, `same`, `inside`.
    Raises:
        FileNotFoundError: no results file in the folder is of another run than the published.
    """
    rows, others = [], []
    for path in sorted(published.glob("*.json")):
        if path.stem in NOT_COMPARED or not (folder / path.name).exists():
            continue
        old, new = read_json(path), read_json(folder / path.name)
        if old["provenance"]["written"] == new["provenance"]["written"]:
            continue
        here, judged = estimates(new), verdicts(new)
        rows += [
            {
                "number": f"{path.stem}:{keys}",
                "published": value,
                "here": here[keys][0],
                "ci95": ci95,
                "same": math.isclose(value, here[keys][0], rel_tol=5e-4),
                "inside": _inside(here[keys][0], ci95 or (None, None)),
            }
            for keys, (value, ci95) in estimates(old).items()
            if keys in here
        ]
        others += [
            f"{path.stem}:{keys}: {verdict}, {judged[keys]} here"
            for keys, verdict in verdicts(old).items()
            if judged.get(keys, verdict) != verdict
        ]
    if not rows:
        raise FileNotFoundError(
            f"{folder} has no results of another run than the published: make reproduce first, or "
            f"name a folder like {published}"
        )
    with_interval = [row for row in rows if row["ci95"]]
    return {
        "numbers": len(rows),
        "same": sum(row["same"] for row in rows),
        "with_interval": len(with_interval),
        "inside": sum(row["inside"] for row in with_interval),
        "other_verdicts": others,
        "rows": with_interval,
    }


def _inside(value: float, ci95: Sequence) -> bool:
    """Whether a number lies in an interval; an end that is not known, null in the file, leaves out
    nothing.
    """
    low, high = ci95
    return (low is None or low <= value) and (high is None or value <= high)


def as_text(found: dict, most: int = 40) -> str:
    """The counts, the verdicts that differ, and the numbers furthest from the published ones."""
    import pandas as pd

    lines = [
        f"{found['numbers']} numbers beside the published ones: {found['same']} are the same to "
        f"three digits; of {found['with_interval']} with a 95 % interval {found['inside']} lie in "
        "it",
        *(found["other_verdicts"] or ["every verdict is the same"]),
    ]

    def distance(row: dict) -> float:
        low, high = row["ci95"]
        width = math.inf if low is None or high is None else max(high - low, 1e-12)
        return abs(row["here"] - row["published"]) / width

    differing = sorted((row for row in found["rows"] if not row["same"]), key=distance)[::-1]
    if differing:
        table = pd.DataFrame(differing[:most])
        table["inside"] = table["inside"].map({True: "", False: "OUTSIDE"})
        table["ci95"] = [
            f"[{', '.join('?' if end is None else f'{end:.4g}' for end in ends)}]"
            for ends in table["ci95"]
        ]
        shown = table.drop(columns="same").rename(columns={"inside": ""})
        lines += ["", shown.to_string(index=False, float_format="{:.4g}".format)]
        if further := differing[most:]:
            lines.append(f"… and {len(further)} that lie nearer")
    return "\n".join(lines)


def keep(found: dict, folder: Path, name: str) -> Path:
    """Put a comparison with the results of another machine among the published results."""
    of_it = next(path for path in sorted(folder.glob("*.json")) if path.stem not in NOT_COMPARED)
    facts = {
        "preset": runs.PUBLISHED,
        "seed": 0,
        "command": f"python -m mmlib run --folder FOLDER --keep {name}",
        "processor": processor(),
        "commit_of_the_other_run": read_json(of_it)["provenance"]["commit"],
    }
    content = {"provenance": provenance(runs.ROOT, **facts), **keyed_results(OTHER, found)}
    return write_json(runs.ROOT / "results" / runs.PUBLISHED / f"{name}.json", content)


def publish() -> list[str]:
    """Put a finished default run in place of what is in git: executed notebooks, results, figures;
    all or nothing.

    Applications and studies that are due stay as they were. `make publish` then renders the pages.

    Returns:
        what was published, or why it was not, a line each.
    Raises:
        ValueError: the main line is due, or a notebook shows a path of this machine.
    """
    said, names = [], []
    for line in plan.LINES:
        notebooks = plan.named([line])
        reasons = plan.due(notebooks, runs.PUBLISHED)
        if reasons and line == plan.MAIN:
            first, why = next(iter(reasons.items()))
            raise ValueError(f"{first} is due ({why[0]}): make reproduce first")
        if reasons:
            said.append(f"{line} not published: {', '.join(reasons)} due, make {line} first")
        else:
            names += notebooks
    texts = {notebook: _readable(notebook) for notebook in names}
    for notebook, text in texts.items():
        with written_whole(plan.path_of(notebook)) as partial:
            partial.write_text(text, encoding="utf-8")
    _copy_outcomes(names)
    return [*said, f"published: {', '.join(name[:2] for name in names)}"]


def _copy_outcomes(names: list[str]) -> None:
    """Results of these notebooks, with the trials that they rest on, and all figures."""
    own = runs.DATA / "results" / runs.PUBLISHED
    target = runs.ROOT / "results" / runs.PUBLISHED
    for path in own.glob("*.json"):
        notebook = read_json(path)["provenance"].get("notebook")
        if notebook and Path(notebook).stem not in names:
            continue
        shutil.copy2(path, target / path.name)
        if (trials := own / path.stem).is_dir():
            shutil.copytree(trials, target / path.stem, dirs_exist_ok=True)
    figures = runs.DATA / "figures" / runs.PUBLISHED
    if figures.exists():
        shutil.copytree(figures, runs.ROOT / "figures", dirs_exist_ok=True)


def _readable(notebook: str) -> str:
    """The notebook with the outputs of its executed copy.

    Progress bars are left out, and pictures where figures/ holds every one of them.
    """
    content, done = map(read_json, (plan.path_of(notebook), executed(notebook, runs.PUBLISHED)))
    if "widgets" in done["metadata"]:
        content["metadata"]["widgets"] = done["metadata"]["widgets"]
    code, ran = ([c for c in book["cells"] if c["cell_type"] == "code"] for book in (content, done))
    if ["".join(c["source"]) for c in code] != ["".join(c["source"]) for c in ran]:
        raise ValueError(f"{notebook} was edited since it ran: make reproduce first")
    for cell, done_cell in zip(code, ran):
        cell["execution_count"] = done_cell["execution_count"]
        cell["outputs"] = [
            output
            for output in done_cell["outputs"]
            if output.get("name") != "stderr"
            and not (notebook == plan.DRAWS_ONLY and "image/png" in output.get("data", {}))
        ]
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    if str(runs.ROOT) in text:
        raise ValueError(
            f"{notebook} shows the path {runs.ROOT}, which no reader's machine has: print it "
            "relative to the repository"
        )
    return text


def where(preset: str) -> str:
    """Where the outcomes of a run are, relative to where the reader is."""
    folder = runs.home(preset)
    figures = folder / "figures" / ("" if folder == runs.ROOT else preset)
    return f"results: {os.path.relpath(folder / 'results' / preset)}    figures: {os.path.relpath(figures)}"
