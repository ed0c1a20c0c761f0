"""Pages with numbers: README.md, results/README.md and figures/README.md, rendered from
`templates/` and the published results by key.

In a template `r.loss_comparison.losses.flow_velocity.mlp` is what stands under those keys of
`results/default/loss_comparison.json`, and filters say how it is written:

    {{ row | share }}                    25.1 % [24.2, 26.0]        of `value` and `ci95`
    {{ row | lower }}                    25.1 % [24.2, 26.0] lower, or 2.9 % [2.3, 3.5] higher
    {{ row | estimate("mean", 2) }}      0.85 [0.82, 0.88]
    {{ x | number(2) }}, {{ x | percent }}, {{ ci95 | interval }}, {{ name | label }}
    {{ rows | ours }}                    mixture_mlp, or gated_mlp in results made before it

`test_times` is what results/test_times.json has by kind of machine. `recipes_of` are the networks
of the default preset by name, as `mmlib.runs.presets` has them, and `notebooks_of` the notebooks of
each line of `mmlib.runs.plan`. `repository` is this repository's address, "" where pyproject.toml's
`[tool.mmlib]` has none; badges and a notebook for Colab are there only with an address on GitHub.

    python -m mmlib_studies.pages                          render all pages, as `make pages` does
    python -m mmlib_studies.pages --took test 750.0        note first that `make test` took so many seconds here
"""

import argparse
import sys
import tomllib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmlib.files import (
    bf16_pays,
    cores,
    default_device,
    git_commit,
    processor,
    read_json,
    write_json,
    written_whole,
)
from mmlib.plots import LABELS, ours
from mmlib.runs import plan
from mmlib.runs.presets import DEFAULT
from mmlib.runs.results import check
from mmlib.runs.run import ROOT

PAGES = {  # page: template
    "README.md": "README.md.j2",
    "results/README.md": "results.md.j2",
    "figures/README.md": "figures.md.j2",
}
COLAB = "colab.ipynb"  # a page too, where the repository has an address on GitHub


class NoSuchNumber(ValueError):
    """A template names a key that results do not have; the message names file and path.

    It is no LookupError, which Jinja would turn into its own words.
    """


class Numbers(dict):
    """What stands in results, by key; a missing key is an error that says where and what there
    is.
    """

    def __init__(self, content: dict, file: str, path: str = ""):
        """Args: content: of the file, below `path`."""
        self._place = file, path
        for key, value in content.items():
            below = f"{path}.{key}" if path else key
            self[key] = Numbers(value, file, below) if isinstance(value, dict) else value

    def __missing__(self, key):
        file, path = self._place
        there = ", ".join(list(self)[:12])
        place = f"{path} " if path else ""
        raise NoSuchNumber(f"{file}: {place}has no {key!r}: expected one of {there}")


class Results(dict):
    """Results files by name: `r.scaling` is results/default/scaling.json, `r["gpu/budgets"]`
    results/gpu/budgets.json.
    """

    def __init__(self, folder: Path):
        """Args: folder: with `default` and `gpu`."""
        self._folder = folder

    def _file(self, name: str) -> str:
        return f"{name}.json" if "/" in name else f"default/{name}.json"

    def __contains__(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self._folder / self._file(name)).exists()

    def __missing__(self, name: str) -> Numbers:
        file = self._file(name)
        if name not in self:
            raise NoSuchNumber(f"{self._folder / file} is missing: a template reads it")
        self[name] = Numbers(read_json(self._folder / file), file)
        return self[name]


def number(value: float, digits: int = 2) -> str:
    """1234.5 as 1,234.50, with a minus sign where it is below 0.

    >>> number(-1234.5, 1)
    '−1,234.5'
    """
    text = f"{_finite(value):,.{digits}f}"
    return (text.lstrip("-") if float(text.replace(",", "")) == 0 else text).replace("-", "−")


def percent(value: float, digits: int = 1) -> str:
    """0.251 as 25.1 %."""
    return f"{number(100 * _finite(value), digits)} %"


def interval(ci95: list, digits: int = 2, scale: float = 1) -> str:
    """[0.08, 0.78]; an end that is not known is written …"""
    low, high = ("…" if end is None else number(scale * end, digits) for end in ci95)
    return f"[{low}, {high}]"


def estimate(row, field: str = "value", digits: int = 2, ci95: str = "ci95") -> str:
    """A number and its interval: 0.25 [0.08, 0.78]."""
    return f"{number(row[field], digits)} {interval(row[ci95], digits)}"


def share(row, field: str = "value", digits: int = 1, ci95: str = "ci95") -> str:
    """A share and its interval in per cent: 25.1 % [24.2, 26.0]."""
    return f"{percent(row[field], digits)} {interval(row[ci95], digits, 100)}"


def lower(row, field: str = "value", digits: int = 1, ci95: str = "ci95") -> str:
    """A reduction as it is said: 25.1 % [24.2, 26.0] lower; below 0 it is 2.9 % [2.3, 3.5]
    higher.
    """
    value, (low, high) = _finite(row[field]), row[ci95]
    if value >= 0:
        return f"{percent(value, digits)} {interval([low, high], digits, 100)} lower"
    return f"{percent(-value, digits)} {interval([-high, -low], digits, 100)} higher"


def count(rows: Numbers, depth: int = 1) -> int:
    """How many rows there are, `depth` keys below."""
    return len(rows) if depth == 1 else sum(count(inner, depth - 1) for _, inner in rows.items())


def label(name: str) -> str:
    """A method as readers know it."""
    if name not in LABELS:
        raise NoSuchNumber(f"no label for {name!r}: mmlib.plots.LABELS has those of methods")
    return LABELS[name]


def _finite(value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise NoSuchNumber(f"{value!r} is no number that a page could show")
    return value


def render(
    page: str, results: Path = ROOT / "results", templates: Path = ROOT / "templates"
) -> str:
    """The text of a page.

    Raises:
        NoSuchNumber: its template names a key that results do not have.
    """
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, percent, interval, estimate, share, lower, count, label, ours)
    environment.filters |= {function.__name__: function for function in filters}
    return environment.get_template(PAGES.get(page, f"{page}.j2")).render(
        r=Results(results),
        test_times=_test_times(results),
        repository=repository(),
        recipes_of=DEFAULT.recipes,
        notebooks_of={line: plan.named([line]) for line in plan.LINES},
    )


def repository(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """This repository's address, "" while it has none: pyproject.toml is the one place where it is
    written.
    """
    return tomllib.loads(pyproject.read_text(encoding="utf-8"))["tool"]["mmlib"]["repository"]


def render_pages(root: Path = ROOT) -> list[str]:
    """Write every page anew; what is there is replaced whole."""
    pages = [*PAGES, *([COLAB] if repository().startswith("https://github.com/") else [])]
    for page in pages:
        text = render(page, root / "results", root / "templates")
        with written_whole(root / page) as partial:
            partial.write_text(text, encoding="utf-8")
    return pages


def note_time(target: str, seconds: float, results: Path = ROOT / "results") -> Path:
    """Write into results/test_times.json how long a target of make took on this kind of machine,
    with the commit.
    """
    machines = _test_times(results)
    units = bf16_pays(default_device())
    machine = f"{processor()}, {cores()} cores, {'with' if units else 'without'} bf16 units"
    took = {"minutes": round(seconds / 60, 1), "commit": git_commit(ROOT)}
    machines.setdefault(machine, {})[target] = took
    check("test_times", {"machines": machines})
    return write_json(results / "test_times.json", {"machines": machines})


def _test_times(results: Path) -> dict[str, dict]:
    path = results / "test_times.json"
    return read_json(path)["machines"] if path.exists() else {}


def main(arguments: list[str] | None = None) -> None:
    """The command line; what results do not have ends it in one line."""
    parser = argparse.ArgumentParser(description="Render the pages from templates/ and results/.")
    parser.add_argument("--took", nargs=2, metavar=("TARGET", "SECONDS"), help="note a time first")
    took = parser.parse_args(arguments).took
    try:
        if took:
            note_time(took[0], float(took[1]))
        print(*render_pages(), sep="\n")
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
