"""The command line: `python -m mmlib COMMAND --help` shows what a command takes, and an example.

    extract    language model × documents → store, by one process or several (torchrun)
    train      one of a preset's networks on a store, by one process or several
    verify     read every byte of a store
    fit        a model of activations in a file, a row each
    evaluate   denoising losses of saved models on activations in a file, side by side
    plan       which notebooks are due, why, and for how many minutes on this machine
    run        run them, compare the outcome with the published one, publish it

Libraries are imported by the command that needs them, so that --help comes at once.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    parser = _parser(
        "extract", extract_command, "python -m mmlib extract --preset smoke --layers 4 8"
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

    parser = _parser("train", train_command, "python -m mmlib train gated_mlp --preset smoke")
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

    parser = _parser("verify", verify_command, "python -m mmlib verify data/runs/smoke/activations")
    parser.add_argument("path", type=Path, help="folder of the store")
    path = parser.parse_args(arguments).path
    problems = verify(path)
    if not problems:
        store = ActivationStore(path)
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


def fit_command(arguments: list[str]) -> None:
    """Fit a denoiser to raw activations (n, d) in a file, and save it in a folder that mmlib.load reads."""
    parser = _parser(
        "fit",
        fit_command,
        "python -m mmlib fit acts.pt --groups documents.npy --method mixture --out mixture",
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
    with _said_in_a_line():
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


def evaluate_command(arguments: list[str]) -> None:
    """Velocity and ε losses of saved models on raw activations (n, d) that none was fitted to, with 95 % intervals."""
    parser = _parser(
        "evaluate",
        evaluate_command,
        "python -m mmlib evaluate mixture mlp --data test.npy --groups test_documents.npy",
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
    with _said_in_a_line():
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


def plan_command(arguments: list[str]) -> None:
    """Print which notebooks are due, why, and for how many minutes on this machine."""
    from mmlib.runs import plan

    parser = _parser(
        "plan", plan_command, "python -m mmlib plan --preset smoke 04_compare_losses", NAMES
    )
    parser.add_argument(
        "--what-if",
        nargs="+",
        default=[],
        metavar="FILE",
        help="files that are taken to have just changed, such as mmlib/denoisers/sae.py",
    )
    parser.add_argument(
        "--paths", action="store_true", help="print the named notebooks in their order, due or not"
    )
    given = parser.parse_args(arguments)
    with _said_in_a_line():
        names = plan.named(given.names or [plan.MAIN])
        if given.paths:
            return print(*(os.path.relpath(plan.path_of(name)) for name in names), sep="\n")
        plan.show(plan.due(names, given.preset, given.what_if), given.preset)


def run_command(arguments: list[str]) -> None:
    """Run the notebooks that are due, in their order, and say where their outcomes are.

    A run writes to the data folder alone; results/ and figures/ change by --publish.
    """
    from mmlib.runs import pipeline, plan
    from mmlib.runs import run as runs

    parser = _parser("run", run_command, "python -m mmlib run main --preset smoke", NAMES)
    for name, about in (
        ("only", "run the named notebooks, due or not, and nothing that they need"),
        ("compare", "then show how far results at the default preset are from the published ones"),
        ("publish", "run nothing: put a finished default run in place of what is in git"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=about)
    parser.add_argument(
        "--folder", type=Path, help="results of another machine: compare these, and run nothing"
    )
    parser.add_argument("--keep", metavar="NAME", help="write results/default/NAME.json of them")
    given = parser.parse_args(arguments)
    with _said_in_a_line():
        if given.publish:
            return print(*pipeline.publish(), sep="\n")
        if not given.folder:
            names = plan.named(given.names or [plan.MAIN])
            wanted = (
                dict.fromkeys(names, ["asked for"]) if given.only else plan.due(names, given.preset)
            )
            plan.show(wanted, given.preset)
            if wanted:
                pipeline.run(list(wanted), given.preset)
                pipeline.summary(list(wanted), given.preset)
            print(pipeline.where(given.preset))
        if given.folder or (given.compare and given.preset == runs.PUBLISHED):
            folder = given.folder or runs.DATA / "results" / given.preset
            if not given.folder and pipeline.same(folder):
                return print("these are the published results")
            found = pipeline.compare(folder, runs.ROOT / "results" / runs.PUBLISHED)
            print(f"\n{pipeline.as_text(found)}")
            if given.keep:
                print(pipeline.keep(found, folder, given.keep))


NAMES = "main, applications, studies or all; or notebooks, such as 04 or 04_compare_losses"


def _parser(
    name: str, function: Callable, example: str, names: str | None = None
) -> argparse.ArgumentParser:
    """The parser of a command; its --help ends with an example."""
    parser = argparse.ArgumentParser(
        prog=f"python -m mmlib {name}",
        description=inspect.cleandoc(function.__doc__),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if names:
        parser.add_argument("names", nargs="*", metavar="NAME", help=f"{names}; left out: main")
        parser.add_argument("--preset", default="default", help="smoke, default or gpu: the sizes")
    return parser


@contextmanager
def _said_in_a_line() -> Iterator[None]:
    """Within this context an error that the user can mend ends the command with its message alone."""
    try:
        yield
    except (OSError, ValueError, TypeError, MemoryError) as error:
        sys.exit(str(error))


COMMANDS = {
    "fit": fit_command,
    "evaluate": evaluate_command,
    "extract": extract_command,
    "train": train_command,
    "verify": verify_command,
    "plan": plan_command,
    "run": run_command,
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
