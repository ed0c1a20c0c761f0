"""Every architecture that transformers calls a causal language model works with this package, or is
refused by name.

Refused means: with a ValueError of ours that begins with the name of the class, for a reason that
is found here once more, by other means.
"""

import json
import re

import jsonschema
import numpy as np
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, COMMON, build, may_be_an_encoder
from letters import Letters
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from mmlib.activations.corpora import Document
from mmlib.activations.extract import describe, plan_extraction, write_store
from mmlib.activations.generate import GumbelNoise, continuations, generate, log_likelihoods
from mmlib.activations.lm import (
    LanguageModel,
    edited_block,
    hidden,
    read_blocks,
    residual_blocks,
    resumed_at,
)
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.evaluation.lm_loss import SplicedModel
from mmlib.runs.run import ROOT

TABLE = ROOT / "results" / "architectures.json"
SCHEMA = ROOT / "results" / "schema" / "architectures.schema.json"

LENGTHS = 5, 40, 14, 1, 23, 14  # of documents; 14 is a whole window behind its opening token
DOCUMENTS = [
    Document(f"d{i}", "".join(chr(97 + (i * j * 7 + j * j) % 26) for j in range(length)))
    for i, length in enumerate(LENGTHS)
]
SPLITS = ["train", "train", "validation", "test", "train", "test"]
WINDOW, LAYER, STEPS = 15, 1, 6
PROMPTS = torch.tensor([[1, *range(5, 12)], [1, *range(30, 16, -2)], [1, *range(9, 51, 6)]])
OPENED = PROMPTS.shape[1]

# Their `hidden_states` leave out the embeddings, so that they begin with the output of block 0.
WITHOUT_EMBEDDINGS = "falcon_mamba", "mamba", "mamba2", "rwkv"


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        names = ARCHITECTURES if metafunc.config.getoption("--architectures") == "all" else COMMON
        metafunc.parametrize("architecture", names)


def assert_close(found, expected, share=1e-3):
    """Equal to within a thousandth of the standard deviation: three blocks of large random weights,
    in float32.
    """
    found, expected = found.double(), expected.double()
    assert found.shape == expected.shape
    worst = ((found - expected).abs().max() / expected.std()).item()
    assert worst < share, f"differ by {worst:.3g} standard deviations"


def plain(lm, ids_bt):
    """Logits (batch, tokens, words) of a plain forward pass."""
    return lm.model(input_ids=ids_bt, use_cache=False).logits.float()


def planned(lm):
    layers = range(len(residual_blocks(lm.model)))
    return plan_extraction(DOCUMENTS, SPLITS, lm, layers, WINDOW, batch_tokens=64)


def rows_are_those_of_each_window_read_alone(lm, folder):
    plan, blocks = planned(lm), residual_blocks(lm.model)
    facts = describe(lm, "texts", plan, created_by="a test")
    write_store(plan, lm, folder, attributes=facts, progress=False)
    hooked, listed = ({layer: [] for layer in plan.layers} for _ in range(2))
    handles = [
        block.register_forward_hook(
            lambda module, inputs, output, layer=layer: hooked[layer].append(hidden(output)[0, 1:])
        )
        for layer, block in enumerate(blocks)
    ]
    first = lm.model.config.model_type not in WITHOUT_EMBEDDINGS
    for one in plan.windows:
        ids_bt = torch.tensor([[1, *one.token_ids.tolist()]])
        states = lm.model(input_ids=ids_bt, use_cache=False, output_hidden_states=True)[
            "hidden_states"
        ]
        for layer in plan.layers:
            listed[layer].append(states[layer + first][0, 1:])
    for handle in handles:
        handle.remove()
    for layer in plan.layers:
        stored = ActivationStore(folder, layer).read(range(plan.tokens))
        assert_close(stored, torch.cat(hooked[layer]))
        if layer < plan.layers[-1]:  # the last of them may be normed
            assert_close(stored, torch.cat(listed[layer]))


def likelihoods_are_those_of_plain_logits(lm, folder):
    new_bt = PROMPTS.flip(0, 1)[:, :STEPS]
    found_b = torch.from_numpy(log_likelihoods(lm, PROMPTS, new_bt))
    said_btv = plain(lm, torch.cat([PROMPTS, new_bt], 1))[:, OPENED - 1 : -1].log_softmax(-1)
    assert_close(found_b, said_btv.gather(-1, new_bt[..., None])[..., 0].mean(1))


def a_spliced_block_changes_what_it_must(lm, folder):
    windows = planned(lm).windows
    neutral = Normaliser(torch.zeros(1, lm.width), torch.ones(1, lm.width))
    spliced = SplicedModel(lm, LAYER, windows, neutral, batch_tokens=64)
    clean_w = spliced().loss_w
    for one, loss in zip(windows, clean_w):
        ids = torch.tensor([1, *one.token_ids.tolist()])
        said_tv = plain(lm, ids[None])[0, 1:-1].log_softmax(-1)
        assert loss == pytest.approx(-said_tv.gather(1, ids[2:, None]).sum().item(), rel=1e-3)
    assert np.array_equal(clean_w, spliced(lambda h_nd: h_nd).loss_w)
    others_w = spliced(lambda h_nd: h_nd.flip(0)).loss_w
    assert abs(others_w - clean_w).max() > 1e-3 * clean_w.max()
    whole, output = plain(lm, PROMPTS), read_blocks(lm.model, [LAYER], PROMPTS)[LAYER]
    with edited_block(lm.model, LAYER, lambda h_btd: h_btd.flip(-1)):
        edited = plain(lm, PROMPTS)
        with resumed_at(lm.model, LAYER, output):
            assert_close(plain(lm, PROMPTS), edited, 1e-5)
    with resumed_at(lm.model, LAYER, output):
        assert_close(plain(lm, PROMPTS), whole, 1e-5)


def continued(lm, rows, steps, key):
    """New ids behind rows of any lengths, each read anew and alone in each step: what `generate`
    does with a cache and padding.
    """
    rows, noise = [list(row) for row in rows], GumbelNoise(*key)
    for _ in range(steps):
        logits_bv = torch.cat([plain(lm, torch.tensor([row]))[:, -1] for row in rows])
        logits_bv[:, lm.tokenizer.eos_token_id] = -torch.inf
        for row, token in zip(rows, noise(None, logits_bv).argmax(1).tolist()):
            row.append(token)
    return [row[-steps:] for row in rows]


def steering_with_a_cache_is_steering_without(lm, folder):
    size = read_blocks(lm.model, [LAYER], PROMPTS)[LAYER]
    push_d = torch.randn(lm.width, generator=torch.Generator().manual_seed(0))
    push_d = 3 * hidden(size).std() * push_d

    def newest(h_btd):
        return torch.cat([h_btd[:, :-1], h_btd[:, -1:] + push_d], 1)

    def every(h_btd):
        return torch.cat([h_btd[:, : OPENED - 1], h_btd[:, OPENED - 1 :] + push_d], 1)

    options = {"tokens": STEPS, "seed": 3}
    found_bt = continuations(lm, PROMPTS, LAYER, lambda batch: newest, **options)
    with edited_block(lm.model, LAYER, every):
        assert found_bt.tolist() == continued(lm, PROMPTS.tolist(), STEPS, (3, 0))
    assert not torch.equal(found_bt, continuations(lm, PROMPTS, LAYER, **options))


def prompts_of_several_lengths_are_each_as_alone(lm, folder):
    prompts = [[9, 17, 40, 33, 8], [30, 12], [21]]
    found = generate(lm, prompts, STEPS, GumbelNoise(5, 0))
    assert found == continued(lm, [[1, *ids] for ids in prompts], STEPS, (5, 0))


CHECKS = {
    "store": rows_are_those_of_each_window_read_alone,
    "likelihoods": likelihoods_are_those_of_plain_logits,
    "splicing": a_spliced_block_changes_what_it_must,
    "steering": steering_with_a_cache_is_steering_without,
    "padding": prompts_of_several_lengths_are_each_as_alone,
}


def last_token_moves_earlier_ones(model):
    other = PROMPTS.clone()
    other[:, -1] += 1
    given, moved = (
        model(input_ids=ids, use_cache=False).logits[:, :-1] for ids in (PROMPTS, other)
    )
    return (given - moved).abs().max() > 1e-2 * given.std()


def no_list_is_as_long_as_the_model_is_deep(model):
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return len(lists) != 1


def blocks_give_something_else(model):
    seen = []
    block = residual_blocks(model)[LAYER]
    handle = block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(input_ids=PROMPTS, use_cache=False)
    handle.remove()
    first = seen[0][0] if type(seen[0]) in (tuple, list) else seen[0]
    return getattr(first, "shape", None) != (
        *PROMPTS.shape,
        model.config.get_text_config().hidden_size,
    )


def stepped(model, mask_bt=torch.ones_like(PROMPTS), **options):
    """Logits (batch, steps, words) of transformers' own `generate` behind the prompts, and the
    tokens read and chosen.
    """
    options |= {"output_logits": True, "return_dict_in_generate": True, "pad_token_id": 0}
    options |= {"attention_mask": mask_bt, "eos_token_id": None, "max_new_tokens": 3}
    found = model.generate(PROMPTS, do_sample=False, **options)
    return torch.stack(found.logits, 1), found.sequences


def moves(model, hidden_tokens=0, **options):
    """Whether `generate` gives other logits than a pass without the hidden tokens, or fails."""
    mask_bt = torch.ones_like(PROMPTS)
    mask_bt[:, :hidden_tokens] = 0
    try:
        found, ids_bt = stepped(model, mask_bt, **options)
    except (AttributeError, IndexError, RuntimeError):
        return True
    whole = model(input_ids=ids_bt[:, hidden_tokens:-1], use_cache=False).logits[:, -3:]
    return (found - whole).abs().max() > 1e-2 * whole.std()


def steps_are_not_those_of_one_pass(model):
    return moves(model)


def padding_moves_the_prompt(model):
    """Also where the prompt's keys and values are given to `generate`, if there are any."""
    mask_bt = torch.ones_like(PROMPTS)[:, :-1]
    mask_bt[:, :3] = 0
    options = {"position_ids": (mask_bt.cumsum(1) - 1).clamp(min=0), "use_cache": True}
    try:
        read = model.base_model(input_ids=PROMPTS[:, :-1], attention_mask=mask_bt, **options)
        return moves(model, 3) or moves(model, 3, past_key_values=read.past_key_values)
    except (AttributeError, IndexError, RuntimeError):
        return True


def steps_read_more_than_the_newest_token(model):
    seen = []
    block = residual_blocks(model)[LAYER]
    handle = block.register_forward_hook(
        lambda module, inputs, output: seen.append(hidden(output).shape[1])
    )
    stepped(model)
    handle.remove()
    return seen != [OPENED, 1, 1]


REASONS = {  # by words of our refusal
    "its tokens see later ones": last_token_moves_earlier_ones,
    "expected one ModuleList": no_list_is_as_long_as_the_model_is_deep,
    "expected (batch, tokens, d": blocks_give_something_else,
    "cannot generate behind prompts of several lengths": padding_moves_the_prompt,
    "cannot generate": steps_are_not_those_of_one_pass,
    "cannot be steered": steps_read_more_than_the_newest_token,
}


def reason_for(error, model):
    """What a refusal says, once it is found to hold; an error that is not a refusal of ours is
    raised again.
    """
    holds = next((holds for words, holds in REASONS.items() if words in str(error)), None)
    if holds is None or not str(error).startswith(type(model).__name__):
        raise error
    assert holds(model), f"refused without that reason: {error}"
    return str(error).split(". ")[0]


def judged(name, model, folder):
    """Outcome, reason and checks passed. Prompts of several lengths may be refused where all the
    rest works.
    """
    lm, passed, reasons = LanguageModel(model, Letters(), f"{name}@0"), [], []
    for check, run in CHECKS.items():
        try:
            run(lm, folder)
            passed.append(check)
        except ValueError as error:
            reasons.append(reason_for(error, model))
            if check == "store":
                break
    outcome = "works" if {*passed, "padding"} == {*CHECKS} else "refused"
    return {"outcome": outcome, "reason": (reasons or [""])[0], "checks": passed}


def why_unbuilt(name, error):
    """Why an architecture cannot be built: it needs a package, or transformers cannot build its own
    default either.
    """
    if isinstance(error, ImportError):
        package = re.search(r"requires the (\S+) library", str(error))[1]
        return f"needs the package {package}"
    with pytest.raises(type(error)) as own, torch.device("meta"):
        AutoModelForCausalLM.from_config(AutoConfig.for_model(name))
    last = str(own.value).splitlines()[-1].strip()
    return f"transformers cannot build it by default: {type(error).__name__}: {last}"


def require_refusal_of_encoder(name):
    """Not being told to be a decoder matters to most architectures that can be one."""
    model = build(name, as_decoder=False)
    if last_token_moves_earlier_ones(model):
        with pytest.raises(ValueError, match=f"^{type(model).__name__}.* see later ones"):
            planned(LanguageModel(model, Letters(), "encoder@0"))


@pytest.fixture(scope="session")
def table(request):
    """What came of each architecture; kept where all of them were asked for, and none failed."""
    rows = {}
    yield rows
    if request.config.getoption("--architectures") == "all" and len(rows) == len(ARCHITECTURES):
        counts = {
            outcome: sum(row["outcome"] == outcome for row in rows.values())
            for outcome in ("works", "refused", "skipped")
        }
        command = "python -m pytest tests/activations/test_architectures.py --architectures all"
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        content = {"command": command, **versions, "counts": counts, "architectures": rows}
        TABLE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@torch.inference_mode()
def test_an_architecture_works_or_is_refused_for_its_structure(architecture, tmp_path, table):
    try:
        model = build(architecture)
    except Exception as error:  # noqa: BLE001 of any kind, see `why_unbuilt`
        row = {"class": None, "outcome": "skipped", "reason": why_unbuilt(architecture, error)}
        row["checks"] = []
    else:
        row = {"class": type(model).__name__, **judged(architecture, model, tmp_path / "store")}
        if row["outcome"] == "works" and may_be_an_encoder(architecture):
            require_refusal_of_encoder(architecture)
    table[architecture] = row
    if architecture in COMMON:
        assert row["outcome"] == "works"


@pytest.mark.parametrize(
    ("architecture_of_a_kind", "words"),
    [
        ("bart", "BartForCausalLM cannot generate behind prompts of several lengths"),
        ("openai-gpt", "OpenAIGPTLMHeadModel cannot be steered: the block gives (3, 9, 32)"),
        ("rwkv", "RwkvForCausalLM cannot generate: step by step its logits are other ones"),
        ("xlm", "XLMWithLMHeadModel: expected one ModuleList of 3 blocks"),
        ("xlnet", "XLNetLMHeadModel: block 2 gives (16, 1, 32) for ids (1, 16)"),
    ],
)
@torch.inference_mode()
def test_each_kind_of_refusal_names_class_and_reason(architecture_of_a_kind, words, tmp_path):
    row = judged(architecture_of_a_kind, build(architecture_of_a_kind), tmp_path / "store")
    assert row["reason"].startswith(words)


def test_a_model_that_reads_both_ways_is_refused_unless_it_is_told_to_be_a_decoder():
    planned(LanguageModel(build("bert"), Letters(), "decoder@0"))
    assert last_token_moves_earlier_ones(build("bert", as_decoder=False))
    require_refusal_of_encoder("bert")


def test_lists_inside_of_blocks_or_beside_the_decoder_do_not_count():
    blocks = nn.ModuleList(
        nn.ModuleDict({"experts": nn.ModuleList([nn.Identity()] * 2)}) for _ in range(2)
    )
    model = nn.Module()
    model.config = GPT2Config(n_layer=2)
    model.tower, model.language_model = nn.ModuleList([nn.Identity()] * 2), nn.Module()
    model.language_model.layers = blocks
    model.get_decoder = lambda: model.language_model
    assert residual_blocks(model) is blocks


def test_the_table_of_all_architectures_is_kept():
    content = json.loads(TABLE.read_text(encoding="utf-8"))
    jsonschema.validate(content, json.loads(SCHEMA.read_text(encoding="utf-8")))
    assert all(content["architectures"][name]["outcome"] == "works" for name in COMMON)
    if content["transformers"] == transformers.__version__:
        assert sorted(content["architectures"]) == ARCHITECTURES
