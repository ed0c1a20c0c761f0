"""One run of the notebooks: a preset, what departs from it, and where its files live."""

import ast
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mmlib.files import provenance, read_json, require, write_json
from mmlib.runs import results

if TYPE_CHECKING:  # configs bring torch, and paths alone are read without it
    from mmlib.runs.presets import Preset

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


ROOT = _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").exists() else Path.cwd()


DATA = (
    ROOT / (os.environ.get("MMLIB_DATA") or "data")
).resolve()  # a relative path counts from the repository


PUBLISHED = "default"  # the preset whose results/ and figures/ are in git


PUBLISHING = bool(
    os.environ.get("MMLIB_PUBLISHED")
)  # set: the default run works on results/ and figures/ themselves


def home(name: str) -> Path:
    """The folder with the `results` and `figures` that a run of this name writes."""
    return ROOT if PUBLISHING and name == PUBLISHED else DATA


@dataclass(frozen=True)
class Run:
    """A preset with its overrides applied. The name lists the departures: "default", "smoke+seed1", "default+gpt2+layer3"."""

    preset: "Preset"
    seed: int
    name: str
    overrides: dict
    variant: str = ""  # departures of one notebook's own parameters: they name results and figures, not what these were computed from

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
        """Converted language models, fetched and sampled texts, shared by all runs (git-ignored)."""
        return DATA / "models"

    @property
    def store(self) -> Path:
        """The activation store; the error of a missing one names notebook 01."""
        return require(self.shared / "activations", "01_extract_activations")

    def store_of(self, layers: list[int] | None) -> Path:
        """Where `mmlib.activations.extract` puts a store: that of notebook 01 for one layer (or the preset's), a folder of its own for several."""
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

        So the ledger of a run that made the main line alone has the published studies beside it, and no trial that is
        published is made again.
        """
        own = self.results / f"{name}.json"
        published = ROOT / "results" / self.results.name / f"{name}.json"
        return published if self.results.name == PUBLISHED and not own.exists() else own

    def write(
        self, name: str, content: dict, notebook: str, target: str = "reproduce", **identities
    ) -> Path:
        """Write results/<run>/<name>.json of the data folder: rows keyed, with provenance, and checked against its schema.

        Args:
            target: of make, that writes it.
            identities: of the language model, corpus and layer, as the store records them.
        Raises:
            ValueError: a list of rows has no key, or the content does not fit `results/schema/NAME.schema.json`.
        """
        command = (
            f"make {target} PRESET={self.preset.name}"
            if self.results.name == self.preset.name
            else " ".join(
                [
                    f"papermill notebooks/{notebook}.ipynb out.ipynb -p preset {self.preset.name} -p seed {self.seed}",
                    *(f"-p {key} {value}" for key, value in self.overrides.items()),
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
            "cell": results.cell_that_writes(name, ROOT / "notebooks" / f"{notebook}.ipynb"),
        }
        content = {
            "provenance": provenance(ROOT, **facts),
            **results.keyed_results(name, content),
        }
        results.check(name, content)
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
    **own: str | None,
) -> Run:
    """Begin a notebook: check its parameters and find its run. None takes the preset's value.

    Every notebook takes these, in its first cell or from papermill (`-p model EleutherAI/pythia-160m -p layer 8`). A run is
    named by its preset and what departs from it, `default+EleutherAI--pythia-160m+layer8`; so are its folders.

    Args:
        preset: sizes: "smoke" (its numbers mean nothing), "default", or "gpu".
        seed: of everything random but the split of the documents.
        model: Hub id or local folder of a causal language model of transformers.
        corpus: a folder of .txt files, a text file with a document for each paragraph, "newsgroups", "self" (samples of the
            language model), or "hf:NAME@CONFIG:SPLIT", a streamed dataset.
        layer: the output of that block, from 0.
        own: parameters that this notebook alone takes, such as `meta_model`; one that is not None names the run's results and figures.
    Raises:
        ValueError: a parameter that the notebook does not declare was passed by papermill, or a value is impossible; the
            message lists what is allowed.
    """
    allowed = ("preset", "seed", "model", "corpus", "layer", *own)
    if unknown := sorted(set(_injected_names()) - set(allowed)):
        raise ValueError(
            f"unknown parameter {', '.join(unknown)}: this notebook takes {', '.join(allowed)}"
        )
    from mmlib.runs.presets import get_preset

    base = get_preset(preset)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed {seed!r}: expected an integer of 0 or more")
    wanted = {"model": model, "corpus": corpus, "layer": layer}
    changes = {
        key: value
        for key, value in wanted.items()
        if value is not None and value != getattr(base, key)
    }
    if layer is not None:
        from mmlib.activations.lm import (  # takes seconds to import; drawing figures does not need it
            count_blocks,
            resolve_layer,
        )

        blocks = count_blocks(changes.get("model", base.model), DATA / "models")
        if resolve_layer(layer, blocks) == resolve_layer(base.layer, blocks):
            changes.pop("layer", None)
    chosen = replace(base, **changes)
    labels = [(key if key == "layer" else "") + _label(value) for key, value in changes.items()]
    name = "+".join([preset, *labels, *([f"seed{seed}"] if seed else [])])
    given = {key: value for key, value in own.items() if value is not None}
    return Run(
        chosen,
        seed,
        name,
        {**changes, **given},
        "".join(f"+{key}-{_label(value)}" for key, value in given.items()),
    )


def _label(value: str | int) -> str:
    """A value as part of the name of a run."""
    return str(value).strip("/").replace("/", "--")


def _injected_names() -> list[str]:
    """Names assigned in the cell that papermill adds after the `parameters` cell; none outside papermill.

    Papermill itself only warns about a parameter that the notebook does not declare.
    """
    try:
        from IPython import get_ipython
    except ImportError:
        return []
    shell = get_ipython()
    cells = [
        cell
        for cell in (shell.user_ns.get("In", []) if shell else [])
        if cell.startswith("# Parameters\n")
    ]
    return [
        target.id
        for cell in cells
        for node in ast.parse(cell).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]
