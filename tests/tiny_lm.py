"""A tiny language model of random weights with a real tokenizer of bytes, saved and loaded as
anybody's.
"""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from mmlib.activations.corpora import Document
from mmlib.activations.lm import LanguageModel

SIZES = dict(
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=512,
    head_dim=8,
)
SPECIALS = ["<s>", "</s>", "<pad>"]


def tokenizer():
    """Bytes, with three control tokens before them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIALS, *alphabet])}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIALS)
    names = dict(zip(("bos_token", "eos_token", "pad_token"), SPECIALS))
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def model(kind="llama", seed=0, **sizes):
    """Weights eight times as large as usual, so that whatever is wrong shows."""
    torch.manual_seed(seed)
    tokens = dict(vocab_size=300, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    config = AutoConfig.for_model(kind, **{**tokens, **SIZES, **sizes})
    made = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return made


def language_model(kind="llama", seed=0, **sizes):
    return LanguageModel(model(kind, seed, **sizes), tokenizer(), "mine@v1")


def saved(folder: Path, **options):
    """As `save_pretrained` leaves it."""
    model(**options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def texts(n=12, length=150):
    """Different texts of letters."""
    letters = [[97 + (i * j * 7 + j * j) % 26 for j in range(length + 9 * i)] for i in range(n)]
    return ["".join(chr(c) if j % 5 else " " for j, c in enumerate(row)) for row in letters]


def documents(n=12, length=150, change=str):
    return [Document(f"d{i}", change(text)) for i, text in enumerate(texts(n, length))]
