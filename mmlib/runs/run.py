"""One run of the notebooks: a preset, what departs from it, where its files live, and its results
by key.

Rows of results become dictionaries, named for good, and every file is checked against its schema.
`results/schema/keys.json` says, for each results file and each list of rows in it, by which fields
the rows are named; beside it stands one JSON Schema for each file. A row of `loss_comparison` with
`objective="flow_velocity"` and `method="gaussian"` so becomes `losses.flow_velocity.gaussian`. A
field that is a name on its own is the key and leaves the row; numbers stay in it too.
"""

import ast
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
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

if TYPE_CHECKING:  # configs bring torch, and paths alone are read without it
    from mmlib.runs.presets import Preset

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
ROOT = _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").exists() else Path.cwd()
SCHEMA = _PACKAGE_PARENT / "results" / "schema"
# A relative path counts from the repository.
DATA = (ROOT / (os.environ.get("MMLIB_DATA") or "data")).resolve()
PUBLISHED = "default"  # the preset whose results/ and figures/ are in git
# Set: the default run works on results/ and figures/ themselves.
PUBLISHING = bool(os.environ.get("MMLIB_PUBLISHED"))

NAMES = ("gemma3-270m", "wikipedia", "newsgroups", "self")  # of models and corpora: no paths
NOT_TEXT = r"[-+]?[\d_.]+(e[-+]?\d+)?|[-+]?(inf|infinity|nan)|true|false|none"  # for papermill's -p

ROLES = {
    "gated_mlp": "ours",
    "mlp": "paper",
    "unet": "article",
    "mixture": "control",
    "mean": "baseline",
    "gaussian": "baseline",
}


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
        preset: sizes: "smoke" (its numbers mean nothing), "default", or "gpu".
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


def role(method: str) -> str:
    """What a method is here for: "ours", "paper", "article", "control", "baseline", or "variant" of
    a network.

    >>> role("gated_mlp"), role("pca_k64"), role("mlp_2m")
    ('ours', 'baseline', 'variant')
    """
    if method.startswith(("gated_mlp_", "mlp_", "small_mlp")):
        return "variant"
    return ROLES.get(method, "baseline")


def keyed(rows: Sequence[Mapping], *fields: str) -> dict:
    """Rows as nested dictionaries, one level for each field.

    Args:
        fields: a name of a field, or a text with several in braces, such as
            "{intervention}@{sigma}"; a part of "@" that is None is left out.
    Raises:
        KeyError: a row lacks a field; the message lists those it has.
        ValueError: two rows have one key.

    >>> keyed([{"method": "mean", "sigma": 0.1, "loss": 1.5}], "method", "sigma")
    {'mean': {'0.1': {'sigma': 0.1, 'loss': 1.5}}}
    """
    found: dict = {}
    for row in rows:
        *above, last = keys_of(row, fields)
        place = found
        for key in above:
            place = place.setdefault(key, {})
        if last in place:
            raise ValueError(
                f"two rows of {' . '.join((*above, last))}: {', '.join(fields)} do not tell them "
                "apart"
            )
        names = {field for field in fields if isinstance(row.get(field), str)}
        place[last] = {name: value for name, value in row.items() if name not in names}
    return found


def keys_of(row: Mapping, fields: Sequence[str]) -> list[str]:
    """The keys under which `keyed` puts a row."""
    try:
        return [
            re.sub(r"\{(\w+)\}", lambda part: _text(row[part[1]]), field).removesuffix("@none")
            if "{" in field
            else _text(row[field])
            for field in fields
        ]
    except KeyError as error:
        raise KeyError(
            f"a row has no {error.args[0]!r}: expected {', '.join(fields)}, it has {', '.join(row)}"
        ) from None


def _text(value) -> str:
    if isinstance(value, (list, tuple)):
        return "+".join(map(_text, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def rows_of(content: Mapping, *fields: str) -> list[dict]:
    """Rows of nested dictionaries as a list, each with the names it stood under: what `keyed` made,
    undone.

    Args:
        fields: those of `keyed`.

    >>> rows_of({"mean": {"0.1": {"sigma": 0.1, "loss": 1.5}}}, "method", "sigma")
    [{'method': 'mean', 'sigma': 0.1, 'loss': 1.5}]
    """
    if not fields:
        return [dict(content)]
    field, *others = fields
    return [
        row if "{" in field or field in row else {field: key, **row}
        for key, inner in content.items()
        for row in rows_of(inner, *others)
    ]


@cache
def tables() -> dict[str, dict]:
    """`results/schema/keys.json`: how rows are named; empty outside the repository."""
    path = SCHEMA / "keys.json"
    return read_json(path) if path.exists() else {}


def entry_at(name: str, path: Sequence[str]) -> dict | list | str | None:
    """What the table says of a path; `*` in it stands for one key, or for any row."""
    for pattern, entry in tables().get(name, {}).items():
        parts = pattern.split(".")
        if len(parts) == len(path) and all(p in ("*", key) for p, key in zip(parts, path)):
            return entry
    return None


def keyed_results(name: str, content: dict) -> dict:
    """The content of a results file with all its lists of rows keyed; what is keyed already stays.

    Args:
        name: of the file, such as "loss_comparison" or "gpu/budgets".
    Raises:
        ValueError: a list of rows has no entry in the table: nothing is found by its place.
    """
    return _keyed(name, content, ()) if name in tables() else content


def _keyed(name: str, value, path: tuple[str, ...], depth: int = 0):
    """What stands at a path, keyed. `depth`: names of rows that come before the next key."""
    if depth:
        return {key: _keyed(name, inner, path, depth - 1) for key, inner in value.items()}
    if isinstance(value, dict):
        return dict(_named(name, key, inner, path) for key, inner in value.items())
    if not isinstance(value, (list, tuple)):
        return value
    entry = entry_at(name, path)
    if entry == "estimate":
        middle, low, high = value
        return {"value": middle, "ci95": [low, high]}
    if isinstance(entry, list):
        return dict(zip(entry, value, strict=True))
    if entry != "series" and value and isinstance(value[0], dict):
        raise ValueError(
            f"{name}.json: {'.'.join(path)} is a list of rows: name its key in "
            "results/schema/keys.json"
        )
    return value


def _named(name: str, key: str, value, path: tuple[str, ...]) -> tuple[str, object]:
    """What stands under a key, keyed, and the key that it gets."""
    former = key
    for pattern, entry in tables()[name].items():
        *above, last = pattern.split(".")
        if isinstance(entry, dict) and entry.get("to") == key and above == list(path):
            former = last  # keyed before: the table knows it as the list that it was
    entry = entry_at(name, (*path, former))
    if not isinstance(entry, dict):
        return key, _keyed(name, value, (*path, key))
    row_path, fields = (*path, former, "*"), entry["key"]
    if isinstance(value, dict):
        value = _keyed(name, value, row_path, len(fields))
    elif isinstance(value, list):
        value = keyed([_renamed(_keyed(name, row, row_path), entry) for row in value], *fields)
    return entry.get("to", key), value


def _renamed(row: dict, entry: Mapping) -> dict:
    """A row with its fields named as the table says, and its role where the table asks for it."""
    names = entry.get("rename", {})
    found = {names.get(field, field): value for field, value in row.items()}
    return found | ({"role": role(row[entry["role"]])} if "role" in entry else {})


def check(name: str, content: dict) -> None:
    """Check a results file against `results/schema/NAME.schema.json`, where there is one.

    Raises:
        ValueError: it does not fit; the message names file, path, and what is expected there.
    """
    path = SCHEMA / f"{name}.schema.json"
    if not path.exists():
        return
    import jsonschema  # takes a tenth of a second to import

    validator = jsonschema.Draft202012Validator(read_json(path))
    written = json.loads(json.dumps(content))  # as the file gives it back: tuples are lists there
    if error := jsonschema.exceptions.best_match(validator.iter_errors(written)):
        where = ".".join(map(str, error.absolute_path)) or "the whole"
        raise ValueError(f"{name}.json does not fit its schema at {where}: {error.message[:300]}")


def cell_that_writes(name: str, notebook: Path) -> str | None:
    """The id of the notebook's cell that calls `run.write` for a results file, if any."""
    if not notebook.exists():
        return None
    for cell in read_json(notebook)["cells"]:
        if re.search(rf'run\.write\(\s*"{re.escape(name)}"', "".join(cell["source"])):
            return cell.get("id")
    return None
