"""Every architecture that transformers calls a causal language model, as a tiny random model of
three blocks.

The configuration that transformers gives by default is shrunk by what its settings are called, so
that most architectures need no line here; `EXCEPT` holds what names do not tell.
"""

import re

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# Those whose checkpoints are downloaded most, or were while they were new; every one of them works.
COMMON = (
    *("bloom", "cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3_text", "gemma4_text"),
    *("glm4", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "llama"),
    *("mamba", "mistral", "mixtral", "mpt", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3"),
    *("qwen3_moe", "smollm3", "stablelm"),
)

DEPTH, WIDTH, VOCABULARY = 3, 32, 64

SIZES = {  # a setting is at most the size of the first pattern that is all of its name
    r"pad_token_id": 0,
    r".*_token_(id|index)": VOCABULARY - 1,  # of images and sounds: no text holds it
    r".*vocab(_size)?(_per_layer_input|_base)?": VOCABULARY,
    r"(num|n|decoder|encoder|num_decoder|num_encoder|num_kv_shared)_(hidden_)?(layers?|blocks)|depth": DEPTH,
    r"mamba_(n|num)_heads|.*num_value_heads": 4,
    r"mamba_(d_head|head_?dim)": 16,
    r".*(kv|key_value|key|index_n|linear_num|value)_heads|kv_n_heads|.*(n_?groups?|expert_group)": 2,
    r".*(head_dim|dim_head|d_head|head_size|headdim|kv_channels)|rotary_dim": 8,
    r".*heads?": 4,
    r".*(_rank|state|state_size|chunk_size|_chunk_length|local_attention|block_size)": 8,
    r"(?!keep).*window.*|attention_chunk_size": 8,
    r".*(num|routed|local)_experts|.*expert_num": 4,
    r"moe_k|(?!index).*top_?k.*|num_experts_per_tok(en)?": 2,
    r".*(hidden_size|d_model|n_embd|dim_model|(input|output|emb|embed|embedding|proj)_(dim|size))": WIDTH,
    r".*(width|word_embed_proj_dim)": WIDTH,
    r".*(intermediate|ffn?_|ffn?$|feed_forward|d_inner).*": 2 * WIDTH,
    r".*(position|n_ctx|max_seq|max_length|context_length).*": 128,
}

# Settings that follow from others, for a depth that is no more.
DERIVED = {"model_type", "transformers_version", "per_layer_config", "label2id", "id2label"}
DERIVED |= {"attention_hidden_size", "attention_head_dim", "qk_head_dim", "hybrid_layer_ids"}

HYBRID = ["linear_attention", "hybrid", "hybrid"]
SLIDING = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "v_head_dim": 8}
SLIDING |= {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8}
SHARED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8}

EXCEPT: dict[str, dict] = {  # by type of a configuration, which may lie in another
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0, "altup_num_inputs": 2},
    "dots3_note_audio_encoder": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    "dots3_note_text": {f"swa_{name}": value for name, value in SLIDING.items()},
    "dots3_note_vision_encoder": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
    "gemma4_text": SHARED | {"num_hidden_layers": 4},  # as the published ones share keys and values
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8},
    "moshi": {"sliding_window": 128},  # transformers hides older tokens with a cache only
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": INDEXER | {"indexer_budget": 8, "indexer_compress_ratio": 2},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": HYBRID},
    "zamba2": {"layers_block_type": HYBRID},
}


def build(name: str, as_decoder: bool = True) -> PreTrainedModel:
    """A model of random weights, large enough for a change to show. as_decoder: where an encoder
    may be one, it is.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(name, as_decoder)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1 and weight.std() < 0.1:
                weight.normal_(0, 0.2)
    return model


def may_be_an_encoder(name: str) -> bool:
    """Whether an architecture is told to be a decoder, without which most read in both
    directions.
    """
    return AutoConfig.for_model(name).to_dict().get("is_decoder") is False


def config(name: str, as_decoder: bool = True) -> PreTrainedConfig:
    """The default configuration of an architecture, shrunk."""
    settings = _shrunk(AutoConfig.for_model(name).to_dict(), DEPTH)
    if settings.get("is_decoder") is False:
        settings["is_decoder"] = as_decoder
    return AutoConfig.for_model(name, **settings)


def _shrunk(settings: dict, depth: int) -> dict:
    depths = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")
    layers = next((settings[name] for name in depths if name in settings), 0)
    small = {
        name: _smaller(name, value, depth, layers)
        for name, value in settings.items()
        if value is not None and name not in DERIVED
    }
    heads, key_heads = "num_attention_heads", "num_key_value_heads"
    if key_heads in small and settings[key_heads] == settings.get(heads):
        small[key_heads] = small[heads]
    return _merged(small, EXCEPT.get(settings.get("model_type"), {}))


def _smaller(name: str, value, depth: int, layers: int):
    if isinstance(value, dict):
        other = re.search(
            "vision|image|audio|vq|patcher", name
        )  # no tower is as high as the text's
        return value if name.startswith("rope") else _shrunk(value, 2 if other else depth)
    if isinstance(value, list) and len(value) == layers > depth:  # a layer of each kind
        kinds = sorted(range(layers), key=lambda i: (value[:i].count(value[i]), i))[:depth]
        return [value[i] for i in sorted(kinds)]
    if isinstance(value, int) and not isinstance(value, bool):
        most = next((size for one, size in SIZES.items() if re.fullmatch(one, name)), value)
        return min(value, depth if most == DEPTH else most)
    return value


def _merged(settings: dict, others: dict) -> dict:
    merged = {
        name: _merged(settings.get(name, {}), value) if isinstance(value, dict) else value
        for name, value in others.items()
    }
    return settings | merged
