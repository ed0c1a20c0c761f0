"""Another language model and another corpus, from local folders, through notebook 01 as a user would run it."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import papermill
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mmlib.activations import lm as llm
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser, full_gaussian
from mmlib.denoisers.sae import SAESize, save_sae, train_sae
from mmlib.runs import run as runs
from mmlib.runs.artefacts import live_source
from mmlib.runs.results import rows_of, tables
from mmlib.training.recipe import new_model

WORDS = [f"word{i}" for i in range(50)]
CAPITALS = [f"Word{i}" for i in range(10)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", *WORDS, *CAPITALS, "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt2", vocab_size=len(vocabulary), n_embd=16, n_layer=4, n_head=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_a_local_folder_is_named_by_its_weights(model_folder, tmp_path):
    lm = llm.load_language_model(str(model_folder), cache=tmp_path)
    again = llm.load_language_model(str(model_folder), cache=tmp_path)
    assert lm.identity == again.identity and len(lm.identity.split("@")[1]) == 12
    with torch.no_grad():
        again.model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    again.model.save_pretrained(tmp_path / "changed")
    again.tokenizer.save_pretrained(tmp_path / "changed")
    assert (
        llm.load_language_model(str(tmp_path / "changed"), cache=tmp_path).identity.split("@")[1]
        != lm.identity.split("@")[1]
    )
    assert lm.opening_token == 0 and llm.count_blocks(str(model_folder), tmp_path) == 4


@pytest.mark.parametrize(("pays", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_without_a_dtype_a_model_takes_the_one_that_this_processor_is_fast_in(
    model_folder, tmp_path, monkeypatch, pays, dtype
):
    monkeypatch.setattr(llm, "bf16_pays", lambda device: pays)
    assert llm.load_language_model(str(model_folder), cache=tmp_path).model.dtype == dtype


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    texts = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for i in range(40):
        (texts / f"{i:02d}.txt").write_text(" ".join(rng.choice(WORDS, 100 + i)))
    return texts


@pytest.mark.notebooks
def test_notebook_01_takes_them_by_parameter(model_folder, corpus_folder, tmp_path):
    parameters = {
        "preset": "smoke",
        "model": str(model_folder),
        "corpus": str(corpus_folder),
        "layer": 2,
    }
    run = runs.start(seed=0, **parameters)
    try:
        papermill.execute_notebook(
            runs.ROOT / "notebooks" / "01_extract_activations.ipynb",
            tmp_path / "out.ipynb",
            parameters=parameters,
            progress_bar=False,
            kernel_name="python3",
            execution_timeout=300,
            iopub_timeout=60,
        )
        store = ActivationStore(run.store, 2)
        assert (store.n, store.d) == (
            sum(100 + i for i in range(40)),
            16,
        ) and store.model.startswith(str(model_folder))
        assert (store.splits == "test").sum() == 20 and (store.splits == "validation").sum() == 8
    finally:
        shutil.rmtree(run.data, ignore_errors=True)
        shutil.rmtree(run.results, ignore_errors=True)


def fitted(run, store, folder):
    """What notebooks 02 and 03 leave for the applications, in seconds; and a meta-model in a folder of its own."""
    z = Normaliser.of(store)(store.read(store.rows("train")))
    components = PrincipalComponents.fit(z)
    components.save(run.shared / "pca.safetensors", store.documents)
    save_sae(
        train_sae(
            (z[i::10] for i in range(10)),
            store.d,
            SAESize(latents=32, k=4, steps=10, batch=64),
            seed=0,
        ),
        run.data / "sae",
        store.documents,
    )
    parts = tuple(
        full_gaussian(z[half].mean(0), *torch.linalg.eigh(torch.cov(z[half].T))[::-1])
        for half in (slice(0, None, 2), slice(1, None, 2))
    )
    GaussianMixtureDenoiser(torch.tensor([0.5, 0.5]).log(), parts).save(
        run.shared / "mixture.safetensors", store.documents
    )
    new_model(run.preset.recipes["mlp"], Origin.of(store), 0).save_pretrained(folder)


@pytest.mark.notebooks
def test_notebook_11_steers_another_model_with_a_meta_model_from_a_folder(
    model_folder, tmp_path, leaves_nothing
):
    rng, texts = np.random.default_rng(0), tmp_path / "sentences"
    texts.mkdir()
    for i in range(40):
        sentences = (
            " ".join([str(rng.choice(CAPITALS)), *rng.choice(WORDS, 14)]) for _ in range(12)
        )
        (texts / f"{i:02d}.txt").write_text(" . ".join(sentences) + " .")
    parameters = {"preset": "smoke", "model": str(model_folder), "corpus": str(texts)}
    run = runs.start(seed=0, meta_model=str(tmp_path / "prior"), **parameters)
    leaves_nothing.append(run)
    command(
        "-m",
        "mmlib",
        "extract",
        *(part for key, value in parameters.items() for part in (f"--{key}", value)),
    )
    store = ActivationStore(run.store)
    fitted(run, store, tmp_path / "prior")
    papermill.execute_notebook(
        runs.ROOT / "notebooks" / "11_steer.ipynb",
        tmp_path / "out.ipynb",
        progress_bar=False,
        kernel_name="python3",
        parameters=parameters | {"meta_model": str(tmp_path / "prior")},
        execution_timeout=300,
        iopub_timeout=60,
    )
    result = run.read("steering", "11_steer")
    assert (
        result["meta_model"]["name"] == str(tmp_path / "prior")
        and "+meta_model-" in result["provenance"]["run"]
    )
    rows = rows_in("steering", "rows", result)
    assert {"additive", "sdedit", "mixture"} <= {row["intervention"] for row in rows}
    examples = rows_in("steering", "examples.rows", result["examples"])
    assert all(len(row["texts"]) == 4 for row in examples)
    assert not (runs.DATA / "results" / run.name / "steering.json").exists()


@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("notebook", "result"), [("12_meta_neurons", "probing"), ("13_off_manifold", "typicality")]
)
def test_notebooks_12_and_13_read_another_model_with_a_meta_model_from_a_folder(
    notebook, result, tmp_path, leaves_nothing
):
    """A GPT-2 with random weights that reads the packaged texts by the packaged tokenizer."""
    embedded, folder = (
        llm.load_language_model(llm.EMBEDDED, cache=runs.start(preset="smoke", seed=0).cache),
        tmp_path / "tiny-gpt2",
    )
    embedded.tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            "gpt2", vocab_size=len(embedded.tokenizer), n_embd=16, n_layer=4, n_head=2
        )
    ).save_pretrained(folder)
    parameters = {"preset": "smoke", "model": str(folder)}
    run = runs.start(seed=0, meta_model=str(tmp_path / "prior"), **parameters)
    leaves_nothing.append(run)
    command(
        "-m",
        "mmlib",
        "extract",
        *(part for key, value in parameters.items() for part in (f"--{key}", value)),
    )
    store = ActivationStore(run.store)
    fitted(run, store, tmp_path / "prior")
    for name in ("mlp", "unet", "denoising_sae"):
        recipe = run.preset.recipes[name]
        new_model(
            recipe,
            Origin.of(store),
            1,
            PrincipalComponents.load(run.shared / "pca.safetensors", store).gaussian(),
        ).save_pretrained(run.data / name)
    papermill.execute_notebook(
        runs.ROOT / "notebooks" / f"{notebook}.ipynb",
        tmp_path / "out.ipynb",
        progress_bar=False,
        kernel_name="python3",
        parameters=parameters | {"meta_model": str(tmp_path / "prior")},
        execution_timeout=300,
        iopub_timeout=60,
    )
    found = run.read(result, notebook)
    assert (
        found["meta_model"] == str(tmp_path / "prior")
        and "+meta_model-" in found["provenance"]["run"]
    )
    rows = rows_in(result, "rows", found)
    areas = [row["auroc"] if "auroc" in row else row["all"]["mean"] for row in rows]
    assert all(0 <= area <= 1 for area in areas) and len(areas) > 5


def rows_in(name, table, content):
    """The rows of one table of a results file, which is keyed; `content` is what holds the table."""
    entry = tables()[name][table]
    return rows_of(content[entry.get("to", "rows")], *entry["key"])


@pytest.fixture
def leaves_nothing():
    """Removes what runs of these tests leave in data/ and results/."""
    started = []
    yield started
    for run in started:
        for folder in (run.data, runs.DATA / "results" / run.name, run.results, run.figures):
            shutil.rmtree(folder, ignore_errors=True)


def write_stream(folder, n):
    rng = np.random.default_rng(1)
    folder.mkdir()
    (folder / "train.jsonl").write_text(
        "".join(
            json.dumps({"text": " ".join(rng.choice(WORDS, 150 + i % 40))}) + "\n" for i in range(n)
        )
    )
    return f"hf:{folder}"


def command(*arguments):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def row_bytes(rows):
    return Counter(row.view(torch.int16).numpy().tobytes() for row in rows)


def test_the_command_line_extracts_by_several_processes_and_trains_live(
    model_folder, tmp_path, leaves_nothing
):
    """From a stream of 260 documents: a store of the first 200, by two processes; then live batches that leave out what it holds out."""
    corpus = write_stream(tmp_path / "texts", 260)
    run = runs.start(preset="smoke", seed=0, model=str(model_folder), corpus=corpus, layer=2)
    leaves_nothing.append(run)
    same = ("--preset", "smoke", "--model", str(model_folder), "--corpus", corpus)
    shown = command(
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "mmlib",
        "extract",
        *same,
        "--layers",
        "2",
    )
    assert (
        "tokens/s (by one process, not by 2)" in shown
        and "has more than the 200 documents" in shown
        and len(list(run.store.glob("part-*.h5"))) == 1
    )
    store = ActivationStore(run.store, 2)
    assert len(store.titles) == 200 and verify(store.path) == []

    batches, identity = live_source(run, [store], 64)
    seen = []
    with pytest.raises(StoreError, match="the stream of documents ended after"):
        for batch in batches(0):
            seen.append(batch)
    held_out = row_bytes(store.read(slice(store.rows("validation").start, store.n)))
    trained = row_bytes(store.read(store.rows("train")))
    found = row_bytes(torch.cat(seen))
    beyond = sum(min(192, 150 + i % 40) for i in range(200, 260))
    assert found.total() == (len(store.rows("train")) + beyond) // 64 * 64
    assert (
        sum((found & trained).values()) > 0.98 * len(store.rows("train"))
        and sum((found & (held_out - trained)).values()) < 0.01 * held_out.total()
    )

    shown = command("-m", "mmlib", "train", "mlp", *same, "--layer", "2", "--live")
    assert "mlp-live" in shown and MetaModel.from_pretrained(run.data / "mlp-live").d == 16
    assert "already trained" in command(
        "-m", "mmlib", "train", "mlp", *same, "--layer", "2", "--live"
    )


def test_one_network_is_trained_on_several_layers_from_the_command_line(
    model_folder, tmp_path, leaves_nothing
):
    corpus = write_stream(tmp_path / "texts", 100)
    run = runs.start(preset="smoke", seed=0, model=str(model_folder), corpus=corpus)
    leaves_nothing.append(run)
    same = (
        "--preset",
        "smoke",
        "--model",
        str(model_folder),
        "--corpus",
        corpus,
        "--layers",
        "0",
        "2",
    )
    done = subprocess.run(
        [sys.executable, "-m", "mmlib", "train", "mlp", *same], capture_output=True, text=True
    )
    assert (
        "activations-layers-0-2 is missing: run python -m mmlib extract --layers 0 2 first"
        in done.stderr
    )
    command("-m", "mmlib", "extract", *same)
    assert "mlp-layers-0-2" in command("-m", "mmlib", "train", "mlp", *same)
    model, store = (
        MetaModel.from_pretrained(run.data / "mlp-layers-0-2"),
        ActivationStore(run.store_of([0, 2]), 2),
    )
    assert list(model.layers) == [0, 2]
    model.at(2).check_store(store)


def test_live_batches_of_other_texts_than_the_store_holds_are_refused(
    model_folder, tmp_path, leaves_nothing
):
    corpus = write_stream(tmp_path / "texts", 100)
    run = runs.start(preset="smoke", seed=0, model=str(model_folder), corpus=corpus, layer=2)
    leaves_nothing.append(run)
    command(
        "-m",
        "mmlib",
        "extract",
        "--preset",
        "smoke",
        "--model",
        str(model_folder),
        "--corpus",
        corpus,
        "--layers",
        "2",
    )
    store = ActivationStore(run.store, 2)
    text = tmp_path / "texts" / "train.jsonl"
    text.write_text(text.read_text().replace("word1 ", "word2 ", 1))
    with pytest.raises(
        StoreError, match="live batches would be of corpus .* run 01_extract_activations again"
    ):
        live_source(run, [store], 64)
