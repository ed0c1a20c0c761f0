"""Another language model and another corpus, from local folders, through notebook 01 as a user would run it."""

import shutil

import numpy as np
import papermill
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mmlib import llm, runs
from mmlib.store import ActivationStore

WORDS = [f"word{i}" for i in range(50)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    vocabulary = {token: i for i, token in enumerate(["<s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<s>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model("gpt2", vocab_size=len(vocabulary), n_embd=16, n_layer=4, n_head=2)
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
    assert llm.load_language_model(str(tmp_path / "changed"), cache=tmp_path).identity.split("@")[1] != lm.identity.split("@")[1]
    assert lm.opening_token == 0 and lm.model.dtype == torch.bfloat16 and llm.count_blocks(str(model_folder), tmp_path) == 4


def test_notebook_01_takes_them_by_parameter(model_folder, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        (texts / f"{i:02d}.txt").write_text(" ".join(rng.choice(WORDS, 100 + i)))
    parameters = {"preset": "smoke", "model": str(model_folder), "corpus": str(texts), "layer": 2}
    run = runs.start(seed=0, **parameters)
    try:
        papermill.execute_notebook(runs.ROOT / "notebooks" / "01_extract_activations.ipynb", tmp_path / "out.ipynb",
                                   parameters=parameters, progress_bar=False, kernel_name="python3")
        store = ActivationStore(run.store, 2)
        assert (store.n, store.d) == (sum(100 + i for i in range(40)), 16) and store.model.startswith(str(model_folder))
        assert (store.splits == "test").sum() == 20 and (store.splits == "validation").sum() == 8
    finally:
        shutil.rmtree(run.data, ignore_errors=True)
        shutil.rmtree(runs.ROOT / "results" / run.name, ignore_errors=True)
