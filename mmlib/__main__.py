"""The command line: `python -m mmlib COMMAND --help` shows what a command takes, and an example.

    extract    language model × documents → store, by one process or several (torchrun)
    train      one of a preset's networks on a store, by one process or several
    verify     read every byte of a store
    fit        a model of activations in a file, a row each
    evaluate   denoising losses of saved models on activations in a file, side by side
    plan       which notebooks are due, why, and for how many minutes on this machine
    run        run them, compare the outcome with the published one, publish it

A command is a function: its signature says what it takes, its docstring what each is for. Libraries
are imported by the command that needs them, so that --help comes at once.
"""

import argparse
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

from mmlib.files import CheckpointError, any_terminal

COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {}


def command(example: str) -> Callable[[Callable], Callable]:
    """Makes a function a command of the name before "_command"; an error that the user can mend
    ends it with its message alone.
    """

    def register(function: Callable) -> Callable:
        name = function.__name__.removesuffix("_command")

        def run(arguments: Sequence[str]) -> None:
            given = _parser(name, function, example).parse_args(arguments)
            try:
                function(**vars(given))
            except (OSError, ValueError, TypeError, MemoryError, CheckpointError) as error:
                sys.exit(str(error))

        COMMANDS[name] = run
        return function

    return register


def _parser(name: str, function: Callable, example: str) -> argparse.ArgumentParser:
    """Positional parameters are arguments, keywords are options: required without a default, flags
    if of type bool, several if lists.
    """
    description, _, entries = inspect.cleandoc(function.__doc__).partition("\n\nArgs:\n")
    helps = dict(re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", entries, re.MULTILINE))
    parser = argparse.ArgumentParser(
        prog=f"python -m mmlib {name}",
        description=description,
        epilog=f"example:\n  python -m mmlib {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, parameter in inspect.signature(function).parameters.items():
        required, kind = parameter.default is parameter.empty, parameter.annotation
        kind = get_args(kind)[0] if isinstance(kind, UnionType) else kind  # of X | None
        options = {"help": helps[name]} | ({} if required else {"default": parameter.default})
        if kind is bool:
            options["action"] = "store_true"
        elif get_origin(kind) is list:
            options |= {"type": get_args(kind)[0], "nargs": "+"}
        else:
            options["type"] = kind
        if parameter.kind is parameter.KEYWORD_ONLY:
            parser.add_argument("--" + name.replace("_", "-"), required=required, **options)
        else:
            parser.add_argument(name, **options | ({} if required else {"nargs": "*"}))
    return parser


@command("--preset smoke --layers 4 8")
def extract_command(
    *,
    preset: str = "default",
    model: str | None = None,
    corpus: str | None = None,
    layers: list[int] | None = None,
    output: Path | None = None,
    replace: bool = False,
) -> None:
    """Extract from the command line, by one or several processes.

    Args:
        preset: smoke, quick, default or gpu: the sizes
        model: as in the notebooks; left out: the preset's
        corpus: as in the notebooks; left out: the preset's
        layers: block indices from 0; left out: the preset's
        output: a folder; left out: the run's store for one layer, activations-layers-… beside it
            for several
        replace: replace a store of other contents that is there
    """
    from accelerate import PartialState

    from mmlib.activations.corpora import corpus_identity
    from mmlib.activations.extract import write_store
    from mmlib.activations.lm import load_language_model
    from mmlib.files import default_device
    from mmlib.runs.artefacts import documents_of, facts_of, prepare
    from mmlib.runs.run import start

    # the slowest process may take long
    state = PartialState(cpu=default_device() == "cpu", timeout=timedelta(days=7))
    with state.main_process_first():  # one converts or downloads the model, and caches the text
        layer = layers[0] if layers and len(layers) == 1 else None
        same = {"model": model, "corpus": corpus, "layer": layer, "writes": False}
        run = start(preset=preset, seed=0, **same)
        size = run.preset
        lm = load_language_model(
            size.model, dtype=size.dtype, device=str(state.device), cache=run.cache
        )
        documents = documents_of(run, lm)
    plan = prepare(size, lm, documents, layers)
    path = output or run.store_of(layers)
    among = f"(by one process, not by {state.num_processes})" if state.num_processes > 1 else ""
    state.print(plan.describe(lm), among, flush=True)
    attributes = facts_of(size, lm, corpus_identity(size.corpus, documents), plan)
    write_store(plan, lm, path, attributes=attributes, replace=replace, state=state)
    state.print(os.path.relpath(path))
    state.destroy_process_group()


@command("gated_mlp --preset smoke")
def train_command(
    recipe: str,
    *,
    preset: str = "default",
    seed: int = 0,
    model: str | None = None,
    corpus: str | None = None,
    layer: int | None = None,
    layers: list[int] | None = None,
    tracker: str | None = None,
    live: bool = False,
) -> None:
    """Train one recipe of a preset from the command line, by one or several processes.

    Args:
        recipe: one of the preset's recipes: gated_mlp, mlp, unet, denoising_sae, …; or published,
            the paper's own settings
        preset: smoke, quick, default or gpu: the sizes
        seed: of the weights, batches and noise (0)
        model: as in the notebooks; left out: the preset's
        corpus: as in the notebooks; left out: the preset's
        layer: as in the notebooks; left out: the preset's
        layers: one network for several layers, of the store that mmlib extract --layers wrote
        tracker: a tracker of accelerate, such as tensorboard
        live: activations straight from the language model; statistics and validation from the store
    """
    from accelerate import Accelerator

    from mmlib.activations.store import ActivationStore
    from mmlib.files import MissingInput, default_device
    from mmlib.runs.artefacts import folder_name, train_recipe
    from mmlib.runs.run import start

    listed = " ".join(map(str, layers or []))
    if layers and layer is not None:
        raise ValueError(f"--layer {layer} and --layers {listed}: expected one of the two")
    one = layers[0] if layers and len(layers) == 1 else layer  # as mmlib extract names its runs
    same = {"model": model, "corpus": corpus, "layer": one, "writes": False}
    run = start(preset=preset, seed=seed, **same)
    path = run.store_of(layers)
    if layers and not path.exists():
        raise MissingInput(
            f"{path} is missing: run python -m mmlib extract --layers {listed} first, with the "
            "same options"
        )
    stores = [ActivationStore(path, index) for index in layers or [layer]]
    _, log = train_recipe(run, recipe, stores, tracker=tracker, live=live)
    accelerator = Accelerator(cpu=default_device() == "cpu")
    accelerator.print(f"{run.data / folder_name(recipe, stores, live)}: {log[-1]}")
    accelerator.end_training()


@command("data/runs/smoke/activations")
def verify_command(path: Path) -> None:
    """Print the summary of a store and verify it; ends with status 1 if anything is wrong.

    Args:
        path: folder of the store
    """
    from mmlib.activations.store import ActivationStore, verify

    if problems := verify(path):
        sys.exit(f"{len(problems)} problems:\n" + "\n".join(problems))
    store = ActivationStore(path)
    made_by = ("window", "hook_point", "packages", "created_by")
    facts = {key: store.attributes[key] for key in made_by if key in store.attributes}
    checked = "manifest, digests, checksums, finite values, documents and positions, statistics"
    for key, value in {**store.summary(), **facts, "verified": checked}.items():
        print(f"{key:>15}: {value}")


@command("acts.pt --groups documents.npy --method mixture --out mixture")
def fit_command(
    data: str,
    *,
    out: Path,
    method: str = "mixture",
    groups: str | None = None,
    like: str | None = None,
    layer: int | None = None,
    seed: int = 0,
    minutes: float | None = None,
    steps: int | None = None,
    validation: float = 0.1,
    language_model: str = "",
) -> None:
    """Fit a denoiser to raw activations (n, d) in a file, and save it in a folder that mmlib.load
    reads.

    Args:
        data: activations: .pt, .npy or .safetensors; or a store's folder
        out: a new folder for the model
        method: gaussian, pca, mixture (default), mixture_average, sae, mlp, gated_mlp, mixture_mlp
        groups: .npy or .pt: an id for each row, such as its document's
        like: folder of a model whose standardisation is to be shared
        layer: block index from 0
        seed: of all that is drawn (0)
        minutes: about so long at most
        steps: of a network or an SAE
        validation: share of the rows (0.1)
        language_model: what the activations are of
    """
    from mmlib.denoisers.saved import load
    from mmlib.training.fit import fit

    model = fit(
        _data(data, layer),
        method,
        groups=groups,
        seed=seed,
        minutes=minutes,
        steps=steps,
        validation=validation,
        standardise=like and load(like),
        language_model=language_model,
        layer=layer,
    )
    print(model)
    print(model.save(out))


@command("mixture mlp --data test.npy --groups test_documents.npy")
def evaluate_command(
    models: list[str],
    *,
    data: str,
    groups: str | None = None,
    layer: int | None = None,
    rows: int = 500,
    seed: int = 0,
    csv: Path | None = None,
) -> None:
    """Velocity and ε losses of saved models on raw activations (n, d) that none was fitted to, with
    95 % intervals.

    Args:
        models: folders that mmlib fit wrote; the first one's standardisation is the table's
        data: activations: .pt, .npy or .safetensors; or a store's folder
        groups: .npy or .pt: an id for each row, the unit of the intervals
        layer: of a store, the block index from 0
        rows: drawn at each noise level (500)
        seed: of rows and noise (0)
        csv: write the table here too
    """
    from mmlib.denoisers.saved import load
    from mmlib.evaluation.table import evaluate

    by_name = {Path(folder).name or folder: load(folder) for folder in models}
    if len(by_name) < len(models):
        raise ValueError(f"models {' '.join(models)}: expected folders of different names")
    table = evaluate(by_name, _data(data, layer), groups=groups, rows=rows, seed=seed)
    print(table.T.to_string(float_format="{:.4f}".format))
    for key, value in table.attrs.items():
        print(f"{key}: {value}")
    if csv:
        table.to_csv(csv)


def _data(name: str, layer: int | None):
    """A file of activations by its name, or a store."""
    from mmlib.activations.store import ActivationStore

    return ActivationStore(Path(name), layer) if Path(name).is_dir() else name


@command("--preset smoke 04_compare_losses")
def plan_command(
    names: list[str] = (),
    *,
    preset: str = "default",
    what_if: list[str] = (),
    paths: bool = False,
) -> None:
    """Print which notebooks are due, why, and for how many minutes on this machine.

    Args:
        names: main, applications, studies or all; or notebooks, such as 04 or 04_compare_losses;
            left out: main
        preset: smoke, quick, default or gpu: the sizes
        what_if: files that are taken to have just changed, such as mmlib/denoisers/sae.py
        paths: print the named notebooks in their order, due or not
    """
    from mmlib.runs import plan

    named = plan.named(names or [plan.MAIN])
    if paths:
        print(*(os.path.relpath(plan.path_of(name)) for name in named), sep="\n")
    else:
        plan.show(plan.due(plan.sized(named, preset), preset, what_if), preset)


@command("main --preset smoke")
def run_command(
    names: list[str] = (),
    *,
    preset: str = "default",
    only: bool = False,
    compare: bool = False,
    publish: bool = False,
    folder: Path | None = None,
    keep: str | None = None,
) -> None:
    """Run the notebooks that are due, in their order, and say where their outcomes are.

    A run writes to the data folder alone; results/ and figures/ change by --publish.

    Args:
        names: main, applications, studies or all; or notebooks, such as 04 or 04_compare_losses;
            left out: main
        preset: smoke, quick, default or gpu: the sizes
        only: run the named notebooks, due or not, and nothing that they need
        compare: then show how far results at the default preset are from the published ones
        publish: run nothing: put a finished default run in place of what is in git
        folder: results of another machine: compare these, and run nothing
        keep: a NAME: write results/default/NAME.json of them
    """
    from mmlib.runs import pipeline, plan
    from mmlib.runs import run as runs

    if publish:
        return print(*pipeline.publish(), sep="\n")
    if not folder:
        named = plan.sized(plan.named(names or [plan.MAIN]), preset)
        wanted = dict.fromkeys(named, ["asked for"]) if only else plan.due(named, preset)
        plan.show(wanted, preset)
        if wanted:
            pipeline.run(list(wanted), preset)
            pipeline.summary(list(wanted), preset)
        print(pipeline.where(preset))
    if folder or (compare and preset == runs.PUBLISHED):
        ours = folder or runs.DATA / "results" / preset
        if not folder and pipeline.same(ours):
            return print("these are the published results")
        found = pipeline.compare(ours, runs.ROOT / "results" / runs.PUBLISHED)
        print(f"\n{pipeline.as_text(found)}")
        if keep:
            print(pipeline.keep(found, ours, keep))


def main() -> None:
    """Run the command that the first argument names."""
    any_terminal()
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        return print(__doc__)
    if name not in COMMANDS:
        sys.exit(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
    COMMANDS[name](arguments)


if __name__ == "__main__":
    main()
