"""The command line: `python -m mmlib COMMAND --help` shows what a command takes, and an example.

    extract    language model × documents → store, by one process or several (torchrun)
    train      one of a preset's networks on a store, by one process or several
    verify     read every byte of a store
    fit        a model of activations in a file, a row each
    evaluate   denoising losses of saved models on activations in a file, side by side

Libraries are imported by the command that needs them, so that --help comes at once.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path


def extract_command(arguments: list[str]) -> None:
    """Extract from the command line, by one or several processes."""
    from accelerate import PartialState

    from mmlib.activations.corpora import corpus_identity
    from mmlib.activations.extract import describe, extract, extract_shards
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
        help="left out: the run's store for one layer, activations-layers-….h5 beside it for several",
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
    if state.num_processes == 1:
        extract(plan, lm, path, attributes=attributes)
    else:
        extract_shards(plan, lm, path, attributes=attributes, state=state)
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
        sys.exit("usage: python -m mmlib verify PATH")
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
            f"{'verified':>15}: seal, checksums, finite values, documents and positions, statistics"
        )
    else:
        sys.exit(f"{len(problems)} problems:\n" + "\n".join(problems))


FIT_EXAMPLE = """example:
  python -m mmlib fit acts.pt --groups documents.npy --method mixture --out mixture
"""


def fit_command(arguments: list[str]) -> None:
    """Fit a denoiser to raw activations (n, d) in a file, and save it in a folder that mmlib.load reads."""
    parser = argparse.ArgumentParser(
        prog="python -m mmlib fit",
        description=fit_command.__doc__,
        epilog=FIT_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", help="activations: .pt, .npy or .safetensors; or a store's folder")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the model")
    parser.add_argument(
        "--method", default="mixture", help="gaussian, pca, mixture (default), sae, mlp, gated_mlp"
    )
    parser.add_argument("--groups", help=".npy or .pt: an id for each row, such as its document's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="about so long at most")
    parser.add_argument("--steps", type=int, help="of a network or an SAE")
    parser.add_argument("--validation", type=float, default=0.1, help="share of the rows (0.1)")
    parser.add_argument("--like", help="folder of a model whose standardisation is to be shared")
    parser.add_argument("--language-model", default="", help="what the activations are of")
    parser.add_argument("--layer", type=int, help="block index from 0")
    given = parser.parse_args(arguments)
    with _said_plainly():
        from mmlib.denoisers.saved import load
        from mmlib.training.fit import fit

        model = fit(
            _data(given.data, given.layer),
            given.method,
            groups=given.groups,
            seed=given.seed,
            minutes=given.minutes,
            steps=given.steps,
            validation=given.validation,
            standardise=given.like and load(given.like),
            language_model=given.language_model,
            layer=given.layer,
        )
        print(model)
        print(model.save(given.out))


EVALUATE_EXAMPLE = """example:
  python -m mmlib evaluate mixture mlp --data test.npy --groups test_documents.npy
"""


def evaluate_command(arguments: list[str]) -> None:
    """Velocity and ε losses of saved models on raw activations (n, d) that none was fitted to, with 95 % intervals."""
    parser = argparse.ArgumentParser(
        prog="python -m mmlib evaluate",
        description=evaluate_command.__doc__,
        epilog=EVALUATE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "models",
        nargs="+",
        help="folders that mmlib fit wrote; the first one's standardisation is the table's",
    )
    parser.add_argument(
        "--data", required=True, help="activations: .pt, .npy or .safetensors; or a store's folder"
    )
    parser.add_argument(
        "--groups", help=".npy or .pt: an id for each row, the unit of the intervals"
    )
    parser.add_argument("--layer", type=int, help="of a store, the block index from 0")
    parser.add_argument("--rows", type=int, default=500, help="drawn at each noise level (500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, help="write the table here too")
    given = parser.parse_args(arguments)
    with _said_plainly():
        from mmlib.denoisers.saved import load
        from mmlib.evaluation.table import evaluate

        models = {Path(folder).name or folder: load(folder) for folder in given.models}
        if len(models) < len(given.models):
            parser.error(f"models {' '.join(given.models)}: expected folders of different names")
        data = _data(given.data, given.layer)
        table = evaluate(models, data, groups=given.groups, rows=given.rows, seed=given.seed)
        print(table.T.to_string(float_format="{:.4f}".format))
        for key, value in table.attrs.items():
            print(f"{key}: {value}")
        if given.csv:
            table.to_csv(given.csv)


def _data(name: str, layer: int | None):
    """A file of activations by its name, or a store."""
    from mmlib.activations.store import ActivationStore

    return ActivationStore(Path(name), layer) if Path(name).is_dir() else name


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Within this context a mistake in the input ends the command with its sentence alone."""
    try:
        yield
    except (ValueError, TypeError, OSError, MemoryError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


COMMANDS = {
    "fit": fit_command,
    "evaluate": evaluate_command,
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
