"""One run of the notebooks: a preset, what departs from it, where its files live, and the results
that it writes.
"""

import ast
import hashlib
import os
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmlib.files import (
    provenance,
    read_json,
    require,
    require_writable,
    whole_number,
    write_json,
)
from mmlib.runs.results import check, keyed_results

if TYPE_CHECKING:  # configs bring torch, and paths alone are read without it
    from mmlib.runs.presets import Preset

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
ROOT = _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").exists() else Path.cwd()
# A relative path counts from the repository.
DATA = (ROOT / (os.environ.get("MMLIB_DATA") or "data")).resolve()
PUBLISHED = "default"  # the preset whose results/ and figures/ are in git
# Set: the default run works on results/ and figures/ themselves.
PUBLISHING = bool(os.environ.get("MMLIB_PUBLISHED"))

NAMES = (
    "gemma3-270m",
    "wikipedia",
    "newsgroups",
    "passages",
    "self",
)  # of models and corpora: no paths
NOT_TEXT = r"[-+]?[\d_.]+(e[-+]?\d+)?|[-+]?(inf|infinity|nan)|true|false|none"  # for papermill's -p


def home(name: str) -> Path:
    """The folder with the `results` and `figures` that a run of this name writes."""
    return ROOT if PUBLISHING and name == PUBLISHED else DATA


@dataclass(frozen=True)
class Run:
    """A preset with its overrides applied. The name lists the departures: "default", "smoke+seed1",
    "default+gpt2+layer3".
    """

    preset: "Preset"
    seed: int
    name: str
    overrides: dict
    # departures of one notebook's own parameters: they name results and figures, not what these
    # were computed from
    variant: str = ""

    @property
    def data(self) -> Path:
        """What depends on the seed: autoencoders and checkpoints (git-ignored)."""
        return DATA / "runs" / self.name

    @property
    def shared(self) -> Path:
        """What runs of all seeds share: the store and its principal components (git-ignored)."""
        return DATA / "runs" / self.name.removesuffix(f"+seed{self.seed}")

    @property
    def cache(self) -> Path:
        """Converted language models, fetched and sampled texts, for all runs (git-ignored)."""
        return DATA / "models"

    @property
    def store(self) -> Path:
        """The activation store; the error of a missing one names notebook 01."""
        return require(self.shared / "activations", "01_extract_activations")

    def store_of(self, layers: list[int] | None) -> Path:
        """Where a store goes: notebook 01's for one layer, a folder of its own for several."""
        several = layers and len(layers) > 1
        return self.shared / (
            "activations-layers-" + "-".join(map(str, layers)) if several else "activations"
        )

    @property
    def figures(self) -> Path:
        """Where figures are saved: in the data folder, and in figures/ by who publishes."""
        folder = home(self.results.name) / "figures"
        return folder if folder.parent == ROOT else folder / self.results.name

    @property
    def results(self) -> Path:
        """Where results are written: in the data folder, and in results/ by who publishes."""
        name = f"{self.name}{self.variant}"
        return home(name) / "results" / name

    def found(self, name: str) -> Path:
        """Where `name`.json is read: the run's own, or else the published one of the same run.

        So the ledger of a run that made the main line alone has the published studies beside it,
        and no trial that is published is made again.
        """
        own = self.results / f"{name}.json"
        published = ROOT / "results" / self.results.name / f"{name}.json"
        return published if self.results.name == PUBLISHED and not own.exists() else own

    def write(
        self, name: str, content: dict, notebook: str, target: str = "reproduce", **identities
    ) -> Path:
        """Write results/<run>/<name>.json of the data folder: rows keyed, with provenance, and
        checked against its schema.

        Args:
            target: of make, that writes it.
            identities: of the language model, corpus and layer, as the store records them.
        Raises:
            ValueError: a list of rows has no key, or the content does not fit
                `results/schema/NAME.schema.json`.
        """
        command = (
            f"make {target} PRESET={self.preset.name}"
            if self.results.name == self.preset.name
            else " ".join(
                [
                    f"papermill notebooks/{notebook}.ipynb out.ipynb -p preset {self.preset.name} "
                    f"-p seed {self.seed}",
                    *(_option(key, value) for key, value in self.overrides.items()),
                ]
            )
        )
        facts = {
            "preset": self.preset.name,
            "run": self.results.name,
            "seed": self.seed,
            **identities,
            "command": command,
            "notebook": f"notebooks/{notebook}.ipynb",
            "cell": cell_that_writes(name, ROOT / "notebooks" / f"{notebook}.ipynb"),
        }
        content = {"provenance": provenance(ROOT, **facts), **keyed_results(name, content)}
        check(name, content)
        return write_json(self.results / f"{name}.json", content)

    def has(self, name: str) -> bool:
        """Whether results of that name are there, the run's own or published ones."""
        return self.found(name).exists()

    def read(self, name: str, notebook: str) -> dict:
        """Read what `found` finds; the error of a missing one names the notebook that writes it."""
        return read_json(require(self.found(name), notebook))


def start(
    *,
    preset: str,
    seed: int,
    model: str | None = None,
    corpus: str | None = None,
    layer: int | None = None,
    writes: bool = True,
    **own: str | None,
) -> Run:
    """Begin a notebook: check its parameters and find its run. None takes the preset's value.

    Every notebook takes these, in its first cell or from papermill (`-p model
    EleutherAI/pythia-160m -p layer 8`). A run is named by its preset and what departs from it,
    `default+EleutherAI--pythia-160m+layer8`; so are its folders.

    Args:
        preset: sizes: "smoke" (its numbers mean nothing), "quick" (of the main line, with wide
            intervals), "default", or "gpu".
        seed: of everything random but the split of the documents.
        model: Hub id or local folder of a causal language model of transformers.
        corpus: see `mmlib.activations.corpora.load_documents`.
        layer: the output of that block, from 0.
        writes: whether results or figures will be written.
        own: parameters that this notebook alone takes, such as `meta_model`; one that is not None
            names the run's results and figures.
    Raises:
        ValueError: a parameter that the notebook does not declare was passed by papermill, or a
            value is impossible; the message lists what is allowed.
        OSError: no results or figures can be written where they belong.
    """
    allowed = ("preset", "seed", "model", "corpus", "layer", *own)
    if unknown := sorted(set(_injected_names()) - set(allowed)):
        raise ValueError(
            f"unknown parameter {', '.join(unknown)}: this notebook takes {', '.join(allowed)}"
        )
    from mmlib.runs.presets import get_preset

    base = get_preset(preset)
    whole_number("seed", seed)
    for key, value in {"model": model, "corpus": corpus, **own}.items():
        if value is not None and not (isinstance(value, str) and value.strip()):
            raise ValueError(
                f"{key} {value!r} is of type {type(value).__name__}: expected a string that is not "
                f"empty; papermill takes -p {key} {value} for a number or truth value, and -r "
                f"{key} {value} for a string"
            )
    wanted = {"model": model, "corpus": corpus, "layer": layer}
    changes = {
        key: value
        for key, value in wanted.items()
        if value is not None and value != getattr(base, key)
    }
    if layer is not None:
        # takes seconds to import; drawing figures does not need it
        from mmlib.activations.lm import count_blocks, resolve_layer

        blocks = count_blocks(changes.get("model", base.model), DATA / "models")
        if resolve_layer(layer, blocks) == resolve_layer(base.layer, blocks):
            changes.pop("layer", None)
    labels = [_label(key, value) for key, value in changes.items()]
    name = "+".join([preset, *labels, *([f"seed{seed}"] if seed else [])])
    given = {key: value for key, value in own.items() if value is not None}
    run = Run(
        replace(base, **changes),
        seed,
        name,
        {**changes, **given},
        "".join(f"+{key}-{_label(key, value)}" for key, value in given.items()),
    )
    for folder in (run.results, run.figures) if writes else ():
        require_writable(folder)
    return run


def _label(key: str, value: str | int) -> str:
    """A parameter's value as part of the name of a run, which no other value has. Ids of the Hub
    have "--" for "/"; a path has its last part and six hex digits of the whole of it, from the root
    on: `/a/b` and `a/b` are two corpora.
    """
    if isinstance(value, int):
        return f"{key}{value}"
    streamed = re.fullmatch(r"(hf:)([^:@]*)(.*)", value, re.DOTALL)
    kind, name, end = streamed.groups() if streamed else ("", value, "")
    path = Path(name)
    if value in NAMES or not (path.is_absolute() or name.startswith(".") or path.exists()):
        return value.strip("/").replace("/", "--")
    whole = path.resolve()
    digits = hashlib.sha256(f"{key} ".encode() + os.fsencode(whole)).hexdigest()[:6]
    last = re.sub(r"[^\w.-]+", "-", whole.name)[:60]
    return f"{kind}{last}-{digits}{end}"


def _option(key: str, value: str | int) -> str:
    """A parameter for papermill: -r where -p would make a number or truth value of a text."""
    numeric = not isinstance(value, int) and re.fullmatch(NOT_TEXT, value, re.IGNORECASE)
    return f"{'-r' if numeric else '-p'} {key} {shlex.quote(str(value))}"


def _injected_names() -> list[str]:
    """Names assigned in the cell that papermill adds after the `parameters` cell; none outside
    papermill.

    Papermill itself only warns about a parameter that the notebook does not declare.
    """
    ipython = sys.modules.get("IPython")  # every notebook has it loaded
    shell = ipython and ipython.get_ipython()
    cells = shell.user_ns.get("In", []) if shell else []
    return [
        target.id
        for cell in cells
        if cell.startswith("# Parameters\n")
        for node in ast.parse(cell).body
        for target in getattr(node, "targets", ())
    ]


def cell_that_writes(name: str, notebook: Path) -> str | None:
    """The id of the notebook's cell that calls `run.write` for a results file, if any."""
    if not notebook.exists():
        return None
    for cell in read_json(notebook)["cells"]:
        if re.search(rf'run\.write\(\s*"{re.escape(name)}"', "".join(cell["source"])):
            return cell.get("id")
    return None
