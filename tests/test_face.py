"""The face: a dozen names, quick to import, and the two commands beside it."""

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_lm
import torch
from letters import tiny
from toy_fits import activations

import mmlib
from mmlib import __main__ as command
from mmlib.activations.corpora import Document
from mmlib.activations.lm import edited_block
from mmlib.activations.store import StoreError
from mmlib.runs import pipeline, plan
from mmlib.runs import run as runs


def test_importing_it_is_quick_and_loads_no_torch():
    code = (
        "import sys, time; began = time.perf_counter(); import mmlib; names = dir(mmlib); "
        "print(time.perf_counter() - began, *(m in sys.modules for m in ('torch', 'numpy', "
        "'pandas')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = found.stdout.split()
    assert float(seconds) < 0.3 and loaded == ["False"] * 3


def test_its_names_are_there():
    assert set(mmlib.__all__) <= set(dir(mmlib)) and len(mmlib.__all__) <= 15
    for name in mmlib.__all__:
        assert getattr(mmlib, name) is not None
    with pytest.raises(AttributeError, match="mmlib has no 'fitt': its names are __version__, fit"):
        mmlib.fitt


def test_saelens_is_loaded_by_nothing_but_saes():
    """It is an extra, and takes seconds to import: nothing imports it as a module is loaded."""
    for path in Path(mmlib.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "sae_lens" not in ast.unparse(node), path


def test_the_commands_fit_evaluate_and_explain_themselves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (h, documents), (held_out, groups) = activations(), activations(300, seed=1)
    torch.save(h, "acts.pt")
    np.save("documents.npy", documents)
    np.save("test.npy", held_out.numpy())
    np.save("test_documents.npy", groups)
    common = ["acts.pt", "--groups", "documents.npy"]
    command.COMMANDS["fit"]([*common, "--method", "pca", "--out", "pca"])
    command.COMMANDS["fit"](
        [*common, "--method", "gaussian", "--out", "full", "--like", "pca", "--seed", "3"]
    )
    assert json.loads((tmp_path / "full" / "model.json").read_text())["facts"]["seed"] == 3
    capsys.readouterr()
    options = "--data test.npy --groups test_documents.npy --rows 20 --csv t.csv".split()
    command.COMMANDS["evaluate"](["pca", "full", *options])
    shown = capsys.readouterr().out
    assert "velocity_loss" in shown and "interval: 95 %, by group: 6 groups" in shown
    assert (tmp_path / "t.csv").read_text().startswith("method,velocity_loss")
    for name in ("fit", "evaluate"):
        with pytest.raises(SystemExit) as ended:
            command.COMMANDS[name](["--help"])
        assert ended.value.code == 0 and f"python -m mmlib {name} " in capsys.readouterr().out
    with pytest.raises(SystemExit, match="groups have shape"):
        command.COMMANDS["fit"](["acts.pt", "--groups", "test_documents.npy", "--out", "x"])
    with pytest.raises(SystemExit, match="h: there is no file nowhere.pt"):
        command.COMMANDS["fit"](["nowhere.pt", "--out", "x"])


def test_from_texts_to_an_edited_language_model(tmp_path):
    """extract → fit → evaluate → an edit of the very stream that was read."""
    lm = tiny("gpt2", initializer_range=0.02)
    texts = [Document(f"text {i}", "some words of no sense " * (6 + i)) for i in range(20)]
    split = {"validation": 4, "test": 6, "window": 32}
    store = mmlib.extract(lm, texts, tmp_path / "acts", layers=[1], **split, progress=False)
    model = mmlib.fit(store, "gaussian", validation=0.3, progress=False)
    model = model.check(store).check(lm, layer=1)
    table = mmlib.evaluate({"gaussian": model}, store, rows=20, progress=False)
    assert table.attrs["interval"] == "95 %, by group: 6 groups"
    with pytest.raises(StoreError, match="layer 1 .* layer 2"):
        model.check(lm, layer=2)
    ids = torch.arange(4, 20).view(1, 16)
    with torch.no_grad():
        clean = lm.model(ids).logits
        with edited_block(lm.model, 1, model.hook(sigma=0.3, steps=2)):
            edited = lm.model(ids).logits
    assert not torch.allclose(edited[:, 1:], clean[:, 1:], atol=1e-4)
    assert torch.allclose(edited[:, 0], clean[:, 0], atol=1e-5)


@pytest.fixture
def in_ascii(tmp_path, monkeypatch):
    """Runs a command on a terminal that has no other letters, as under cron; gives what it
    shows.
    """

    def run(*arguments):
        streams = [io.TextIOWrapper(io.BytesIO(), "ascii") for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["mmlib", *map(str, arguments)])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            command.main()
            for stream in streams:
                stream.flush()
        return streams[0].buffer.getvalue().decode("ascii")

    monkeypatch.setattr(runs, "DATA", tmp_path / "données")
    monkeypatch.setattr(plan, "rates_here", lambda: {"float32": 1.0, "bfloat16": 1.0})
    return run


def test_every_command_runs_on_a_terminal_of_ascii(in_ascii, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run", lambda wanted, preset: print("── × …"))
    monkeypatch.setattr(pipeline, "summary", lambda wanted, preset: None)
    model, texts = tiny_lm.saved(tmp_path / "modèle"), tmp_path / "texte"
    texts.mkdir()
    for i, text in enumerate(tiny_lm.texts(32)):
        (texts / f"né{i}.txt").write_text(text + "é→", encoding="utf-8")
    options = ("--preset", "smoke", "--model", model, "--corpus", texts)
    assert "tokens/s" in in_ascii("extract", *options, "--output", tmp_path / "étage")
    assert "\\xd7" in in_ascii("verify", tmp_path / "étage")
    assert "mod\\xe8le" in in_ascii(
        "fit", tmp_path / "étage", "--method", "gaussian", "--out", "modèle de z"
    )
    held_out = tmp_path / "tenu.npy"
    np.save(held_out, np.random.default_rng(0).normal(size=(60, 32)).astype("float32"))
    assert "\\xe8le de z" in in_ascii("evaluate", "modèle de z", "--data", held_out)
    assert "01_extract_activations" in in_ascii("plan", "--preset", "smoke", "main")
    assert "\\u2500\\u2500 \\xd7" in in_ascii("run", "--preset", "smoke", "01", "--only")
    assert "COMMAND" in in_ascii("--help")
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) as ended:
            in_ascii(name, "--help")
        assert ended.value.code == 0
