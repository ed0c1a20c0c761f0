"""The command line: `python -m mmlib COMMAND --help` shows what a command takes, and an example.

    extract    language model × documents → store, by one process or several (torchrun)
    train      one of a preset's networks on a store, by one process or several
    verify     read every byte of a store

Libraries are imported by the command that needs them, so that --help comes at once.
"""

import argparse
import os
import sys
from datetime import timedelta
from pathlib import Path


def extract_command(arguments: list[str]) -> None:
    """Extract from the command line, by one or several processes."""
    from accelerate import PartialState

    from mmlib.activations.corpora import corpus_identity
    from mmlib.activations.extract import describe, write_store
    from mmlib.activations.lm import load_language_model
    from mmlib.files import default_device
    from mmlib.runs.artefacts import documents_of, extraction_command, prepare
    from mmlib.runs.run import start

    parser = argparse.ArgumentParser(
        prog="python -m mmlib extract", description=extract_command.__doc__
    )
    parser.add_argument("--preset", default="default")
    for name, kind in (("model", str), ("corpus", str)):
        parser.add_argument(
            f"--{name}", type=kind, help="as in the notebooks; left out: the preset's"
        )
    parser.add_argument(
        "--layers", type=int, nargs="+", help="block indices from 0; left out: the preset's"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="a folder; left out: the run's store for one layer, activations-layers-… beside it for several",
    )
    parser.add_argument(
        "--replace", action="store_true", help="replace a store of other contents that is there"
    )
    given = parser.parse_args(arguments)
    layers = given.layers or [None]
    state = PartialState(
        cpu=default_device() == "cpu", timeout=timedelta(days=7)
    )  # the slowest may take long
    with state.main_process_first():  # one converts or downloads the model, and caches the text
        run = start(
            preset=given.preset,
            seed=0,
            model=given.model,
            corpus=given.corpus,
            layer=layers[0] if len(layers) == 1 else None,
        )
        lm = load_language_model(
            run.preset.model, dtype=run.preset.dtype, device=str(state.device), cache=run.cache
        )
        documents = documents_of(run, lm)
    plan = prepare(run.preset, lm, documents, given.layers)
    path = given.output or run.store_of(given.layers)
    if state.is_main_process:
        print(
            plan.describe(lm),
            f"(by one process, not by {state.num_processes})" if state.num_processes > 1 else "",
            flush=True,
        )
    attributes = describe(
        lm,
        corpus_identity(run.preset.corpus, documents),
        plan,
        created_by=extraction_command(run.preset, plan.layers),
        seed=run.preset.split_seed,
    )
    write_store(plan, lm, path, attributes=attributes, replace=given.replace, state=state)
    state.print(os.path.relpath(path))
    state.destroy_process_group()


def train_command(arguments: list[str]) -> None:
    """Train one recipe of a preset from the command line, by one or several processes."""
    from accelerate import Accelerator

    from mmlib.activations.store import ActivationStore
    from mmlib.files import MissingInput, default_device
    from mmlib.runs.artefacts import folder_name, train_recipe
    from mmlib.runs.run import start

    parser = argparse.ArgumentParser(
        prog="python -m mmlib train", description=train_command.__doc__
    )
    parser.add_argument(
        "recipe",
        help="one of the preset's recipes: gated_mlp, mlp, unet, denoising_sae, …; or published, the paper's own settings",
    )
    parser.add_argument("--preset", default="default")
    parser.add_argument("--seed", type=int, default=0)
    for name, kind in (("model", str), ("corpus", str), ("layer", int)):
        parser.add_argument(
            f"--{name}", type=kind, help="as in the notebooks; left out: the preset's"
        )
    parser.add_argument(
        "--layers",
        type=int,
        nargs="+",
        help="one network for several layers, of the store that mmlib extract --layers wrote",
    )
    parser.add_argument("--tracker", help="a tracker of accelerate, such as tensorboard")
    parser.add_argument(
        "--live",
        action="store_true",
        help="activations straight from the language model; statistics and validation from the store",
    )
    given = parser.parse_args(arguments)
    if given.layers and given.layer is not None:
        parser.error(
            f"--layer {given.layer} and --layers {' '.join(map(str, given.layers))}: expected one of the two"
        )
    layer = (
        given.layers[0] if given.layers and len(given.layers) == 1 else given.layer
    )  # as mmlib extract names its runs
    run = start(
        preset=given.preset, seed=given.seed, model=given.model, corpus=given.corpus, layer=layer
    )
    path = run.store_of(given.layers)
    if given.layers and not path.exists():
        raise MissingInput(
            f"{path} is missing: run python -m mmlib extract --layers {' '.join(map(str, given.layers))} first, with the same options"
        )
    stores = (
        [ActivationStore(path, layer) for layer in given.layers]
        if given.layers
        else [ActivationStore(run.store, given.layer)]
    )
    model, log = train_recipe(run, given.recipe, stores, tracker=given.tracker, live=given.live)
    accelerator = Accelerator(cpu=default_device() == "cpu")
    accelerator.print(f"{run.data / folder_name(given.recipe, stores, given.live)}: {log[-1]}")
    accelerator.end_training()


def verify_command(arguments: list[str]) -> None:
    """Print the summary of a store and verify it; ends with status 1 if anything is wrong."""
    from mmlib.activations.store import ActivationStore, verify

    if len(arguments) != 1:
        sys.exit("usage: python -m mmlib verify FOLDER")
    problems = verify(Path(arguments[0]))
    if not problems:
        store = ActivationStore(Path(arguments[0]))
        for key, value in {
            **store.summary(),
            **{
                k: v
                for k, v in store.attributes.items()
                if k in ("window", "hook_point", "packages", "created_by")
            },
        }.items():
            print(f"{key:>15}: {value}")
        print(
            f"{'verified':>15}: manifest, digests, checksums, finite values, documents and positions, statistics"
        )
    else:
        sys.exit(f"{len(problems)} problems:\n" + "\n".join(problems))


COMMANDS = {
    "extract": extract_command,
    "train": train_command,
    "verify": verify_command,
}


def main() -> None:
    """Run the command that the first argument names."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        return print(__doc__)
    if name not in COMMANDS:
        sys.exit(f"unknown command {name!r}: expected one of {', '.join(COMMANDS)}")
    COMMANDS[name](arguments)


if __name__ == "__main__":
    main()
