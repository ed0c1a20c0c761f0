"""The embedded language model, dequantised from its package, is the one that was measured: another
reading of its file would show here.
"""

import pytest
import torch
from torch.nn.functional import cross_entropy

from mmlib.activations.corpora import load_documents
from mmlib.activations.lm import load_language_model
from mmlib.activations.pretrained import EMBEDDED
from mmlib.runs.run import DATA

# text: its ids, and the greedy ids behind it as long as the best token leads by over half a nat
KNOWN = {
    "The Eiffel Tower is located in the city of": (
        [818, 94648, 25822, 563, 5628, 528, 506, 3207, 529],
        [9079, 236764, 7001, 236761, 1030, 563, 506],
    ),
    "Monday, Tuesday, Wednesday,": (
        [49381, 236764, 9863, 236764, 10119, 236764],
        [9853, 236764, 7672, 236764, 8224, 236764, 8174],
    ),
    "def add(a, b):\n    return": (
        [2063, 1138, 236769, 236746, 236764, 518, 1473, 107, 140, 2060],
        [496, 900, 518, 108, 2063],
    ),
    "The opposite of hot is": ([818, 11688, 529, 3425, 563], [7445]),
}
PERPLEXITY = 24.03  # of the first 511 tokens of "Anarchism"


@pytest.fixture(scope="module")
def lm():
    return load_language_model(EMBEDDED, dtype="float32", cache=DATA / "models")


@torch.inference_mode()
def logits(lm, ids):
    return lm.model(input_ids=torch.tensor([[lm.opening_token, *ids]]), use_cache=False).logits[0]


@pytest.mark.parametrize("text", KNOWN)
def test_token_ids_and_greedy_continuations(lm, text):
    ids, following = KNOWN[text]
    assert lm.encode([text]) == [ids]
    for i, expected in enumerate(following):
        best = logits(lm, ids + following[:i])[-1].log_softmax(-1).topk(2)
        assert best.indices[0] == expected and best.values[0] - best.values[1] > 0.5


def test_perplexity_of_a_text(lm):
    ids = lm.encode([load_documents("wikipedia")[0].text])[0][:511]
    loss = cross_entropy(logits(lm, ids)[:-1], torch.tensor(ids))
    assert loss.exp().item() == pytest.approx(PERPLEXITY, rel=0.005)
