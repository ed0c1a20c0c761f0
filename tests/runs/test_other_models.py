"""Another language model and another corpus, from local folders, through notebook 01 as a user
would run it.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import papermill
import pytest
import tiny_lm
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mmlib.activations import lm as llm
from mmlib.activations.pretrained import EMBEDDED
from mmlib.activations.store import ActivationStore, StoreError, verify
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.average import MixtureAverage
from mmlib.denoisers.checkpoints import Origin
from mmlib.denoisers.gaussian import PrincipalComponents, activations_id
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser, full_gaussian
from mmlib.denoisers.residual import MixtureResidual
from mmlib.denoisers.sae import SAESize, save_sae, train_sae
from mmlib.runs import results
from mmlib.runs import run as runs
from mmlib.runs.artefacts import live_source
from mmlib.training.recipe import new_model

WORDS = [f"word{i}" for i in range(50)]


@pytest.fixture(scope="module", autouse=True)
def own_data(tmp_path_factory, data_folder):
    """A data folder of these tests' own, here and in the processes that they start."""
    path = data_folder(tmp_path_factory.mktemp("run") / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "DATA", path)
        patch.setenv("MMLIB_DATA", str(path))
        yield path


def save_gpt2(folder, tokens):
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=tokens, n_embd=16, n_layer=4, n_head=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", *WORDS, "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    save_gpt2(folder, len(vocabulary))
    return folder


def test_a_local_folder_is_named_by_its_weights(model_folder, tmp_path):
    lm, again = (llm.load_language_model(str(model_folder), cache=tmp_path) for _ in range(2))
    assert lm.identity == again.identity and len(lm.identity.split("@")[1]) == 12
    with torch.no_grad():
        again.model.transformer.h[0].mlp.c_fc.weight[0, 0] += 1
    again.model.save_pretrained(tmp_path / "changed")
    again.tokenizer.save_pretrained(tmp_path / "changed")
    changed = llm.load_language_model(str(tmp_path / "changed"), cache=tmp_path)
    assert changed.identity.split("@")[1] != lm.identity.split("@")[1]
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


def execute(notebook, folder, **parameters):
    papermill.execute_notebook(
        runs.ROOT / "notebooks" / f"{notebook}.ipynb",
        folder / "out.ipynb",
        parameters={"preset": "smoke", **parameters},
        progress_bar=False,
        kernel_name="python3",
        execution_timeout=300,
        iopub_timeout=60,
    )


@pytest.mark.notebooks
def test_notebook_01_takes_them_by_parameter(model_folder, corpus_folder, tmp_path):
    parameters = {"model": str(model_folder), "corpus": str(corpus_folder), "layer": 2}
    run = runs.start(preset="smoke", seed=0, **parameters)
    execute("01_extract_activations", tmp_path, **parameters)
    store = ActivationStore(run.store, 2)
    assert (store.n, store.d) == (sum(100 + i for i in range(40)), 16)
    assert store.model.startswith("gpt2@")
    assert (store.splits == "test").sum() == 20 and (store.splits == "validation").sum() == 8


DESIGNS = {
    "blocks that end in a LayerNorm": dict(
        kind="opt", word_embed_proj_dim=16, ffn_dim=64, do_layer_norm_before=False
    ),
    "one block of width 8": dict(num_hidden_layers=1, hidden_size=8, head_dim=2),
}
TEXTS = {
    "a word each": [f"{chr(97 + i % 26) * (1 + i // 26)}{i}" for i in range(40)],
    "a letter each": [chr(33 + i) for i in range(60)],
}


@pytest.mark.notebooks
@pytest.mark.parametrize(("design", "texts"), list(zip(DESIGNS, TEXTS)))
def test_notebook_01_describes_any_design_and_the_smallest_corpora(design, texts, tmp_path):
    """A hyperplane in which one variance is 0; fewer dimensions, rows, blocks and positions than
    any real one has.
    """
    options = DESIGNS[design]
    layer = 1 if "LayerNorm" in design else 0
    model, folder = tiny_lm.saved(tmp_path / "model", **options), tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(TEXTS[texts]):
        (folder / f"{i:02d}.txt").write_text(text)
    parameters = {"model": str(model), "corpus": str(folder), "layer": layer}
    run = runs.start(preset="smoke", seed=0, **parameters)
    execute("01_extract_activations", tmp_path, **parameters)
    found, store = run.read("activations", "01"), ActivationStore(run.store)
    assert 1 <= found["effective_rank"] <= store.d and store.n < 1000
    assert "as read by mmlib: True" in (tmp_path / "out.ipynb").read_text()


def options_of(parameters):
    """Parameters of a notebook as options of the command line, at the smoke sizes."""
    pairs = [(f"--{name}", str(value)) for name, value in parameters.items()]
    return ("--preset", "smoke", *sum(pairs, ()))


def fitted(run):
    """Leaves what notebooks 02 and 03 do, of a moment's training; gives the run's store."""
    store = ActivationStore(run.store)
    z = Normaliser.of(store)(store.read(store.rows("train")))
    components = PrincipalComponents.fit(z)
    components.save(run.shared / "pca.safetensors", store.documents, activations_id(store))
    size = SAESize(latents=32, k=4, steps=10, batch=64)
    sae = train_sae((z[i::10] for i in range(10)), store.d, size, seed=0)
    save_sae(sae, run.data / "sae", store.documents, activations_id(store))
    parts = tuple(
        full_gaussian(z[half].mean(0), *torch.linalg.eigh(torch.cov(z[half].T))[::-1])
        for half in (slice(0, None, 2), slice(1, None, 2))
    )
    mixture = GaussianMixtureDenoiser.of(torch.tensor([0.5, 0.5]).log(), parts)
    average = MixtureAverage.of([replace(mixture, train_seconds=1.0)])
    for name, fit in (("mixture", mixture), ("mixture_average", average)):
        fit.save(run.shared / f"{name}.safetensors", store.documents, activations_id(store))
    for name in run.preset.sae_grid:
        save_sae(sae, run.data / "sae_grid" / name, store.documents, activations_id(store))
    for name, recipe in run.preset.recipes.items():
        model = new_model(recipe, Origin.of(store), 1, components.gaussian())
        if isinstance(model.network, MixtureResidual):
            model.network.over(average)
        model.save_pretrained(run.data / name)
    return store


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """Parameters of the applications: a GPT-2 with random weights that reads the packaged texts by
    the packaged tokenizer, with what notebooks 01 to 03 leave for its run, and a meta-model in a
    folder of its own.
    """
    embedded = llm.load_language_model(EMBEDDED, cache=runs.DATA / "models")
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    embedded.tokenizer.save_pretrained(folder)
    save_gpt2(folder, len(embedded.tokenizer))
    parameters = {"model": str(folder), "meta_model": str(folder.parent / "prior")}
    run = runs.start(preset="smoke", seed=0, **parameters)
    command("extract", *options_of({"model": folder}))
    store = fitted(run)
    prior = new_model(run.preset.recipes["mlp"], Origin.of(store), 0)
    prior.save_pretrained(folder.parent / "prior")
    return run, parameters


@pytest.mark.notebooks
def test_a_model_narrower_than_any_pca_at_this_preset_has_its_fidelity_measured(tmp_path):
    """32 wide: what costs the language model nothing is undetermined, and PCA has one k all the
    same.
    """
    model, folder = tiny_lm.saved(tmp_path / "model"), tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(tiny_lm.texts(60)):
        (folder / f"{i:02d}.txt").write_text(text)
    parameters = {"model": str(model), "corpus": str(folder)}
    run = runs.start(preset="smoke", seed=0, **parameters)
    command("extract", *options_of(parameters))
    fitted(run)
    execute("08_lm_loss", tmp_path, **parameters)
    found = run.read("lm_loss", "08_lm_loss")
    assert list(found["reconstructions"]["pca"]) == ["pca_k16"] and found["verdicts"]


@pytest.mark.notebooks
@pytest.mark.parametrize(
    ("notebook", "result"),
    [("11_steer", "steering"), ("12_meta_neurons", "probing"), ("13_off_manifold", "typicality")],
)
def test_applications_read_another_model_with_a_meta_model_from_a_folder(
    applied, notebook, result, tmp_path
):
    run, parameters = applied
    execute(notebook, tmp_path, **parameters)
    found = run.read(result, notebook)
    named = found["meta_model"]["name"] if result == "steering" else found["meta_model"]
    assert named == parameters["meta_model"]
    assert "+meta_model-" in found["provenance"]["run"]
    assert not (runs.DATA / "results" / run.name / f"{result}.json").exists()
    rows = rows_in(result, "rows", found)
    if result == "steering":
        assert {"additive", "sdedit", "mixture"} <= {row["intervention"] for row in rows}
        examples = rows_in(result, "examples.rows", found["examples"])
        assert all(len(row["texts"]) == 4 for row in examples)
    else:
        areas = [row["auroc"] if "auroc" in row else row["all"]["mean"] for row in rows]
        assert all(0 <= area <= 1 for area in areas) and len(areas) > 5


def rows_in(name, table, content):
    """The rows of one table of a results file, which is keyed; `content` is what holds the
    table.
    """
    entry = results.tables()[name][table]
    return results.rows_of(content[entry.get("to", "rows")], *entry["key"])


@pytest.fixture
def streamed(model_folder, tmp_path):
    """A run of the smoke preset on a stream of so many documents, and its options on the command
    line.
    """

    def make(n, **parameters):
        rng, folder = np.random.default_rng(1), tmp_path / "texts"
        folder.mkdir()
        texts = (" ".join(rng.choice(WORDS, 150 + i % 40)) for i in range(n))
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "train.jsonl").write_text(lines)
        same = {"model": str(model_folder), "corpus": f"hf:{folder}"}
        run = runs.start(preset="smoke", seed=0, **same, **parameters)
        return run, options_of(same)

    return make


def started(*arguments, launcher=()):
    """`python -m mmlib …`, perhaps by a launcher of several processes."""
    whole = [sys.executable, *launcher, "-m", "mmlib", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, timeout=300)


def command(*arguments, **options):
    done = started(*arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def row_bytes(rows):
    return Counter(row.view(torch.int16).numpy().tobytes() for row in rows)


def test_the_command_line_extracts_by_several_processes_and_trains_live(streamed, tmp_path):
    """From a stream of 260 documents: a store of the first 200, by two processes; then live batches
    that leave out what it holds out, also where it comes again.
    """
    run, same = streamed(260, layer=2)
    two = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    shown = command("extract", *same, "--layers", "2", launcher=two)
    assert "tokens/s (by one process, not by 2)" in shown
    assert "has more than the 200 documents" in shown
    assert len(list(run.store.glob("part-*.h5"))) == 1
    store = ActivationStore(run.store, 2)
    assert len(store.titles) == 200 and verify(store.path) == []

    file = tmp_path / "texts" / "train.jsonl"
    lines = file.read_text().splitlines()
    held_out = [
        int(re.findall(r"\d+", title)[-1]) for title in store.titles[store.splits != "train"]
    ]
    again = [json.dumps({"text": json.loads(lines[i])["text"].title()}) for i in held_out]
    file.write_text("\n".join([*lines, *again, ""]))
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
    assert sum((found & trained).values()) > 0.98 * len(store.rows("train"))
    assert sum((found & (held_out - trained)).values()) < 0.01 * held_out.total()

    shown = command("train", "mlp", *same, "--layer", "2", "--live")
    assert "mlp-live" in shown and MetaModel.from_pretrained(run.data / "mlp-live").d == 16
    assert "already trained" in command("train", "mlp", *same, "--layer", "2", "--live")


def test_one_network_is_trained_on_several_layers_from_the_command_line(streamed):
    run, same = streamed(100)
    same += ("--layers", "0", "2")
    refused = started("train", "mlp", *same).stderr
    assert "activations-layers-0-2 is missing: run python -m mmlib extract --layers 0 2" in refused
    command("extract", *same)
    assert "mlp-layers-0-2" in command("train", "mlp", *same)
    model = MetaModel.from_pretrained(run.data / "mlp-layers-0-2")
    store = ActivationStore(run.store_of([0, 2]), 2)
    assert list(model.layers) == [0, 2]
    model.at(2).check_store(store)


def test_live_batches_of_other_texts_than_the_store_holds_are_refused(streamed, tmp_path):
    run, same = streamed(100, layer=2)
    command("extract", *same, "--layers", "2")
    store = ActivationStore(run.store, 2)
    text = tmp_path / "texts" / "train.jsonl"
    text.write_text(text.read_text().replace("word1 ", "word2 ", 1))
    message = "live batches would be of corpus .* run 01_extract_activations again"
    with pytest.raises(StoreError, match=message):
        live_source(run, [store], 64)
