"""Other people's models: read as they are meant to be, or refused by name; never random weights,
never a look ahead.
"""

import json
import re
import shutil

import numpy as np
import pytest
import tiny_lm
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mmlib.activations import lm as llm
from mmlib.activations import pretrained
from mmlib.activations.corpora import Document
from mmlib.activations.extract import extract, plan_extraction
from mmlib.activations.generate import continuations, generate, log_likelihoods
from mmlib.activations.lm import LanguageModel, load_language_model, read_residual_stream
from mmlib.activations.store import StoreError

IDS = torch.tensor([[0, 70, 71, 72]])


def without_a_layer(tensors):
    return {name: x for name, x in tensors.items() if ".layers.1." not in name}


def renamed(prefix):
    return lambda tensors: {prefix + name: x for name, x in tensors.items()}


def one_cut(tensors):
    name = "model.layers.1.self_attn.q_proj.weight"
    return {**tensors, name: tensors[name][:8].clone()}


DAMAGES = {
    "torch.compile": (
        renamed("_orig_mod."),
        r"lacks 39 tensors: .*unknown to the model, 39 tensors: _orig_mod\.",
    ),
    "DDP": (renamed("module."), r"lacks 39 tensors: .*unknown to the model, 39 tensors: module\."),
    "missing layer": (without_a_layer, r"lacks 9 tensors: model\.layers\.1\..* …"),
    "other shape": (
        one_cut,
        r"in another shape, 1 tensors: .*q_proj\.weight \(8, 32\) for \(32, 32\)",
    ),
    "another tensor": (
        lambda tensors: {**tensors, "model.layers.9.w": torch.ones(3)},
        r"unknown to the model, 1 tensors: model\.layers\.9\.w",
    ),
}


def test_a_model_larger_than_the_memory_is_refused_before_its_weights_are_read(
    tmp_path, monkeypatch
):
    folder = tiny_lm.saved(tmp_path / "lm")
    for weights in folder.glob("*.safetensors"):
        weights.write_bytes(b"no weights")
    monkeypatch.setattr(pretrained, "free_memory", lambda: 10_000)
    with pytest.raises(MemoryError, match=r"billion parameters, .* GB in float32, and 0\.0 GB"):
        load_language_model(str(folder), dtype="float32")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_of_other_tensors_is_refused_by_their_names(tmp_path, damage):
    change, told = DAMAGES[damage]
    path = tiny_lm.saved(tmp_path / "m") / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    with pytest.raises(
        ValueError, match="the checkpoint .*/m is not one of this architecture.*" + told
    ):
        load_language_model(str(tmp_path / "m"), dtype="float32")


def test_an_adapter_beside_the_weights_is_refused(tmp_path):
    folder = tiny_lm.saved(tmp_path / "m")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(
        ValueError, match="an adapter beside its weights.*merge it.*or move it away"
    ):
        load_language_model(str(folder), dtype="float32")


def test_a_checkpoint_has_one_identity_wherever_it_is_and_however_it_is_loaded(
    tmp_path, monkeypatch
):
    folder = tiny_lm.saved(tmp_path / "m")
    shutil.copytree(folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    places = [
        (str(folder), "float32"),
        (str(folder), "bfloat16"),
        ("moved", "float32"),
        ("m/", "float32"),
    ]
    (identity,) = {load_language_model(name, dtype=dtype).identity for name, dtype in places}
    other = load_language_model(str(tiny_lm.saved(tmp_path / "other", seed=1)), dtype="float32")
    assert identity.startswith("llama@") and other.identity != identity
    tiny_lm.model().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tiny_lm.tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load_language_model(str(tmp_path / "shards"), dtype="float32").identity == identity


NO_LANGUAGE_MODELS = (
    *("musicgen", "musicgen_melody", "gemma3n", "nougat", "t5gemma", "vit", "clip", "wav2vec2"),
    *("detr", "encodec", "sam", "time_series_transformer", "dpr", "esm", "layoutlm", "vits"),
)


def pytest_generate_tests(metafunc):
    if "no_language_model" in metafunc.fixturenames:
        names = NO_LANGUAGE_MODELS
        if metafunc.config.getoption("--architectures") == "all":
            names = sorted(
                {*CONFIG_MAPPING_NAMES} - {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES} | {*names}
            )
        metafunc.parametrize("no_language_model", names)


def test_an_architecture_that_is_no_causal_language_model_is_refused(no_language_model, tmp_path):
    """By our error, whatever kind of error the library has for it; its configuration may tell a
    depth all the same.
    """
    try:
        AutoConfig.for_model(no_language_model).save_pretrained(tmp_path)
    except (ValueError, ImportError):  # transformers cannot make its configuration by default
        (tmp_path / "config.json").write_text(json.dumps({"model_type": no_language_model}))
    tiny_lm.tokenizer().save_pretrained(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no causal language model .* transformers says: [A-Z]"):
        load_language_model(str(tmp_path), dtype="float32")
    try:
        assert llm.count_blocks(str(tmp_path), tmp_path) > 0
    except ValueError as error:
        assert re.search("tells no number of blocks|transformers says", str(error))


@pytest.mark.parametrize(
    "error", [AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError]
)
def test_a_model_that_cannot_read_token_ids_is_refused(error):
    made = tiny_lm.model()

    def fail(*_):
        raise error("words of the library")

    made.register_forward_pre_hook(fail)
    told = f"LlamaForCausalLM cannot read 16 token ids .{error.__name__}: .*words of the library"
    with pytest.raises(ValueError, match=told):
        llm.require_causal(made, 1)


BIDIRECTIONAL = {
    "roberta": dict(max_position_embeddings=520),
    "gemma3_text": dict(use_bidirectional_attention=True, sliding_window=64),
}


@pytest.mark.parametrize("kind", BIDIRECTIONAL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_whose_tokens_see_later_ones_is_refused(tmp_path, kind, dtype):
    lm = tiny_lm.language_model(kind, **BIDIRECTIONAL[kind])
    lm.model.to(getattr(torch, dtype))
    with pytest.raises(
        ValueError, match="(Roberta|Gemma3)ForCausalLM is not causal: its tokens see later"
    ):
        extract(lm, tiny_lm.documents(), tmp_path / "s", layers=[1], progress=False)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "mixtral", "mamba"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_causal_model_is_not(kind, dtype):
    options = dict(num_local_experts=4, num_experts_per_tok=2) if kind == "mixtral" else {}
    if kind == "mamba":
        options = dict(state_size=8)
    made = tiny_lm.model(kind, **options).to(getattr(torch, dtype))
    for layer in range(4):
        assert llm.require_causal(made, layer).shape == (1, llm.PROBE_TOKENS, 32)


def with_dropout():
    lm = tiny_lm.language_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    lm.model.train()
    lm.model.transformer.h[0].eval()  # somebody's frozen block
    return lm


def test_dropout_never_acts_and_the_mode_is_put_back(tmp_path):
    lm, still = with_dropout(), tiny_lm.language_model("gpt2")
    modes = [module.training for module in lm.model.modules()]
    prompts, new = torch.tensor([[0, 80, 81]] * 2), torch.tensor([[90, 91]] * 2)
    stores = [
        extract(one, tiny_lm.documents(), tmp_path / str(i), layers=[1], progress=False)
        for i, one in enumerate((lm, still))
    ]
    assert np.array_equal(*(store.read(slice(None)).numpy() for store in stores))
    assert np.array_equal(*(log_likelihoods(one, prompts, new) for one in (lm, still)))
    assert torch.equal(*(continuations(one, prompts, 1, tokens=5, seed=0) for one in (lm, still)))
    assert [module.training for module in lm.model.modules()] == modes


def test_a_block_that_gives_no_stream_is_refused():
    made = tiny_lm.model()
    handle = made.model.layers[1].register_forward_hook(lambda module, inputs, output: output[:, 0])
    with pytest.raises(
        ValueError,
        match=r"LlamaForCausalLM: block 1 gives .*1, 32.* for ids \(1, 4\): expected",
    ):
        read_residual_stream(made, [1], IDS)
    handle.remove()


class InFloat32(torch.nn.Module):
    """A block that leaves the residual stream in float32 in a model of bfloat16."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, h, *inputs, **options):
        return self.block(h.bfloat16(), *inputs, **options).float()


def test_what_is_stored_has_the_type_of_the_residual_stream(tmp_path):
    lm = tiny_lm.language_model()
    lm.model.to(torch.bfloat16)
    lm.model.model.layers[1] = InFloat32(lm.model.model.layers[1])
    store = extract(lm, tiny_lm.documents(), tmp_path, layers=[1], progress=False)
    assert (store.dtype, store.model_dtype) == ("float32", "bfloat16")


ROOMS = {
    "vocabulary": (dict(vocab_size=100), r"gives token 223, but the model has 100 embeddings"),
    "learnt positions": (
        dict(kind="gpt2", max_position_embeddings=255),
        "windows of 256 .* knows 255 positions",
    ),
    "rotary positions": (
        dict(max_position_embeddings=64),
        "windows of 256 tokens .* knows 64 positions",
    ),
}


@pytest.mark.parametrize("room", ROOMS)
def test_tokens_and_positions_beyond_the_model_are_refused_before_the_first_pass(room):
    options, told = ROOMS[room]
    lm = tiny_lm.language_model(**options)
    lm.model.register_forward_pre_hook(lambda *_: pytest.fail("a pass was made"))
    documents = tiny_lm.documents(length=600)
    with pytest.raises(ValueError, match=told):
        plan_extraction(documents, ["test"] * len(documents), lm, 1, window=256)


CHANGES = {
    "window": dict(window=16),
    "texts of as many tokens": dict(documents=tiny_lm.documents(change=str.upper)),
    "weights of the same name": dict(lm=tiny_lm.language_model(seed=1)),
    "order of the splits": dict(splits=["train"] * 8 + ["test"] * 2 + ["validation"] * 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_store_of_anything_else_is_refused_or_replaced(tmp_path, change, capsys):
    given = dict(
        lm=tiny_lm.language_model(),
        documents=tiny_lm.documents(),
        folder=tmp_path / "s",
        layers=[1],
        window=64,
        splits=["train"] * 8 + ["validation"] * 2 + ["test"] * 2,
        progress=False,
        corpus="the same name",
    )
    extract(**given)
    extract(**given)
    assert "with the same contents" in capsys.readouterr().out
    with pytest.raises(StoreError, match="holds a finished store of other "):
        extract(**given | CHANGES[change])
    kept = extract(**given | CHANGES[change], replace=True)
    fresh = extract(**given | CHANGES[change] | {"folder": tmp_path / "fresh"})
    assert torch.equal(kept.read(slice(None)), fresh.read(slice(None)))


def test_the_name_of_a_control_token_in_a_text_is_text(tmp_path):
    lm = tiny_lm.language_model()
    texts = [Document(f"d{i}", f"<s>old price</s> new {i} <pad>") for i in range(12)]
    ids = extract(lm, texts, tmp_path, layers=[1], progress=False).column("token_ids")
    assert not np.isin(ids, [0, 1, 2]).any()
    assert lm.tokenizer.decode(lm.encode([texts[0].text])[0]) == texts[0].text


@pytest.mark.parametrize("setting", [{"rms_norm_eps": 1e-1}, {"hidden_act": "relu"}])
def test_a_changed_setting_is_another_model(tmp_path, setting):
    folder = tiny_lm.saved(tmp_path / "m")
    before = load_language_model(str(folder), dtype="float32")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    after = load_language_model(str(folder), dtype="float32")
    assert after.identity != before.identity
    options = dict(layers=[1], progress=False)
    extract(before, tiny_lm.documents(), tmp_path / "s", **options)
    renamed = LanguageModel(after.model, after.tokenizer, before.identity)
    with pytest.raises(StoreError, match="store of other .*weights"):
        extract(renamed, tiny_lm.documents(), tmp_path / "s", **options)


def test_generating_beyond_the_positions_is_refused():
    lm, prompts = tiny_lm.language_model(max_position_embeddings=64), torch.zeros(1, 40).long()
    for generated in (
        lambda: generate(lm, [[70] * 39], 30, 0),
        lambda: continuations(lm, prompts, 1, tokens=30, seed=0),
    ):
        with pytest.raises(ValueError, match="windows of 70 tokens .* knows 64 positions"):
            generated()


def test_a_text_in_two_given_splits_is_refused(tmp_path):
    texts = [*tiny_lm.documents(3), Document("copy", tiny_lm.documents(3)[0].text.upper())]
    with pytest.raises(ValueError, match=r"'copy' \(test\) has the text of 'd0' \(train\)"):
        extract(tiny_lm.language_model(), texts, tmp_path, splits=["train"] * 3 + ["test"])
