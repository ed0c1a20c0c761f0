"""Language models of random weights with a tokenizer of letters, of 64 tokens; 1 opens a window, 2
ends a text.
"""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mmlib.activations.lm import LanguageModel
from mmlib.activations.windows import Window

LLAMA = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3}
SIZES = {
    "llama": LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 2},
    "gpt2": dict(n_embd=16, n_layer=3, n_head=2),
    "gptj": dict(
        n_embd=16, n_layer=3, n_head=2, rotary_dim=4
    ),  # its blocks give tuples, until transformers 5.24
}
ARCHITECTURES = SIZES | {
    "gemma3_text": LLAMA | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    "qwen2": SIZES["llama"],
    "gpt_neox": LLAMA | {"num_attention_heads": 2},
    "opt": LLAMA | {"num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 16},
}


class Letters:
    bos_token_id, eos_token_id = 1, 2

    def get_vocab(self):
        return {chr(ord("a") + i): i for i in range(26)}

    def __call__(self, texts, **options):
        return {"input_ids": [[4 + ord(c) % 50 for c in text] for text in texts]}

    def decode(self, ids):
        return "".join(chr(60 + i) for i in ids)


def tiny(architecture="llama", dtype=torch.float32, **options):
    """A model of three blocks, 16 wide."""
    torch.manual_seed(0)
    options = {"initializer_range": 0.3} | ARCHITECTURES[architecture] | options
    config = AutoConfig.for_model(architecture, vocab_size=64, **options)
    model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
    return LanguageModel(model, Letters(), "tiny@0")


def window(n, document=0, start=0):
    ids = np.random.default_rng([n, document, start]).integers(4, 60, n).astype(np.int32)
    return Window(document, start, ids, False)
