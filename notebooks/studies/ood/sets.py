"""Sets of tokens that are to be told from the reference: other texts, a damaged language model,
altered activations.

All sets of texts are windows of one length, read behind the opening token and scored at the same
positions, so that nothing can be told by the position.
"""

import ast
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmlib.activations.corpora import Document
from mmlib.activations.generate import generate
from mmlib.activations.lm import LanguageModel, residual_blocks, resolve_layer
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser, Tokens
from mmlib.activations.windows import (
    Window,
    cut_blocks,
    cut_windows,
    read_block,
    spread_windows,
    stored_windows,
    tokenize,
)
from mmlib.denoisers.gaussian import GaussianDenoiser
from mmlib.files import read_sealed, write_sealed
from mmlib_studies.ood.sizes import TypicalitySize

CODE_PACKAGE = "gensim"  # pinned in requirements.txt, so its source is a fixed text


# Lee, Pincombe and Welsh 2005: 300 items of news of the Australian Broadcasting Corporation
NEWS_FILE = "lee_background.cor"


# one article of the Bulgarian Wikipedia
OTHER_LANGUAGE_FILE = "bgwiki-latest-pages-articles-shortened.xml.bz2"


PROMPTS = {  # the same ten openings in each language
    "en": (
        "The history of the city begins in the Middle Ages.",
        "He was a composer and pianist.",
        "The river rises in the mountains and flows into the sea.",
        "The planet was discovered by an astronomer.",
        "The language is spoken in several countries.",
        "The war ended with a peace treaty.",
        "The plant grows in warm and humid regions.",
        "The novel tells the story of a family.",
        "The company was founded by two brothers.",
        "The theory explains why the sky is blue.",
    ),
    "fr": (
        "L'histoire de la ville commence au Moyen Âge.",
        "Il fut compositeur et pianiste.",
        "Le fleuve naît dans les montagnes et se jette dans la mer.",
        "La planète a été découverte par un astronome.",
        "La langue est parlée dans plusieurs pays.",
        "La guerre prit fin par un traité de paix.",
        "La plante pousse dans les régions chaudes et humides.",
        "Le roman raconte l'histoire d'une famille.",
        "L'entreprise a été fondée par deux frères.",
        "La théorie explique pourquoi le ciel est bleu.",
    ),
    "de": (
        "Die Geschichte der Stadt beginnt im Mittelalter.",
        "Er war Komponist und Pianist.",
        "Der Fluss entspringt in den Bergen und mündet ins Meer.",
        "Der Planet wurde von einem Astronomen entdeckt.",
        "Die Sprache wird in mehreren Ländern gesprochen.",
        "Der Krieg endete mit einem Friedensvertrag.",
        "Die Pflanze wächst in warmen und feuchten Gebieten.",
        "Der Roman erzählt die Geschichte einer Familie.",
        "Das Unternehmen wurde von zwei Brüdern gegründet.",
        "Die Theorie erklärt, warum der Himmel blau ist.",
    ),
    "es": (
        "La historia de la ciudad comienza en la Edad Media.",
        "Fue compositor y pianista.",
        "El río nace en las montañas y desemboca en el mar.",
        "El planeta fue descubierto por un astrónomo.",
        "La lengua se habla en varios países.",
        "La guerra terminó con un tratado de paz.",
        "La planta crece en regiones cálidas y húmedas.",
        "La novela cuenta la historia de una familia.",
        "La empresa fue fundada por dos hermanos.",
        "La teoría explica por qué el cielo es azul.",
    ),
}


def lower_cased_letters(text: str) -> str:
    """As the editors of 20 Newsgroups left it: lower-cased, everything but letters turned into
    single spaces.
    """
    return re.sub("[^a-z]+", " ", text.lower()).strip()


def shuffled_words(text: str, seed: int) -> str:
    """The words of a text in random order, with single spaces between."""
    return " ".join(np.random.default_rng(seed).permutation(text.split()).tolist())


def joined_sentences(sentences: Sequence[str], characters: int, seed: int) -> list[Document]:
    """Documents of at least so many characters, from sentences in random order; what is left over
    is dropped.
    """
    documents, text = [], ""
    for i in np.random.default_rng(seed).permutation(len(sentences)):
        text += (" " if text else "") + sentences[i]
        if len(text) >= characters:
            documents.append(Document(f"sentences[{len(documents):03}]", text))
            text = ""
    return documents


def news() -> list[Document]:
    """Items of the Australian Broadcasting Corporation's news that install with gensim, longest
    first.
    """
    from gensim.test.utils import datapath

    lines = Path(datapath(NEWS_FILE)).read_text(encoding="utf-8").splitlines()
    items = [Document(f"{NEWS_FILE}[{i:03}]", line) for i, line in enumerate(lines)]
    return sorted(items, key=lambda item: -len(item.text))


def bulgarian() -> Document:
    """The one article of the Bulgarian Wikipedia that installs with gensim, cleaned as the English
    ones are.
    """
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    from gensim.test.utils import datapath
    from gensim.utils import open as open_compressed

    with open_compressed(datapath(OTHER_LANGUAGE_FILE), "rb") as file:
        pages = list(extract_pages(file, filter_namespaces=("0",)))
    documents = [Document(title, filter_wiki(text)) for title, text, _ in pages]
    return max(documents, key=lambda document: len(document.text))


def python_code(n: int) -> list[Document]:
    """Source files of an installed package, as Python prints their syntax trees: no comments, no
    docstrings. The n longest.
    """
    root = Path(str(files(CODE_PACKAGE)))
    documents = []
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            described = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if described and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        name = path.relative_to(root).as_posix()
        documents.append(Document(f"{CODE_PACKAGE}/{name}", ast.unparse(tree)))
    return sorted(documents, key=lambda document: (-len(document.text), document.title))[:n]


def prompted_samples(
    lm: LanguageModel, prompts: Sequence[str], tokens: int, seed: int, cache: Path
) -> list[Document]:
    """What the language model writes after each prompt, at temperature 1: documents of `tokens`
    tokens, the prompt's included.

    Its <eos> is never drawn, so that none ends early. They are drawn once and kept in
    `cache`/prompted.
    """
    asked = [lm.identity, str(lm.model.dtype), lm.device_name, list(prompts), tokens, seed]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]
    path = Path(cache) / "prompted" / f"{Path(lm.identity).name}-{key}.sealed.json"
    if not path.exists():
        minutes = f"on two cores about {len(prompts) * tokens / 9000:.1f} minutes"
        texts = f"{len(prompts)} texts of {tokens} tokens from the language model"
        print(f"sampling {texts}: {minutes}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, {"token_ids": _continued(lm, prompts, tokens, seed)})
    return [
        Document(f"prompted[{i:03}]", lm.tokenizer.decode(ids), token_ids=tuple(ids))
        for i, ids in enumerate(read_sealed(path)["token_ids"])
    ]


def written_texts(
    lm: LanguageModel, size: TypicalitySize, seed: int, cache: Path
) -> tuple[list[Document], list[Document]]:
    """What the language model makes of `PROMPTS`: (three texts of each in English, one of each in
    French, German and Spanish).

    Args:
        size: `windows`, at most so many of either kind, of `length` tokens.
    Returns:
        Documents labelled with language and number of the opening, such as "fr 3".
    """
    english, other = (
        [(language, i) for i in range(len(PROMPTS["en"])) for language in three][: size.windows]
        for three in (("en",) * 3, ("fr", "de", "es"))
    )
    asked = [*english, *other]
    prompts = [PROMPTS[language][i] for language, i in asked]
    found = prompted_samples(lm, prompts, size.length, seed, cache)
    texts = [replace(text, label=f"{language} {i}") for text, (language, i) in zip(found, asked)]
    return texts[: len(english)], texts[len(english) :]


def _continued(
    lm: LanguageModel, prompts: Sequence[str], tokens: int, seed: int
) -> list[list[int]]:
    """Token ids of each prompt and what follows it, `tokens` together, without the opening
    token.
    """
    ids = [part.tolist() for part in tokenize([Document(prompt, prompt) for prompt in prompts], lm)]
    new = generate(lm, ids, tokens - min(map(len, ids)), seed)
    return [(prompt + following)[:tokens] for prompt, following in zip(ids, new)]


def equal_windows(windows: Sequence[Window], length: int, n: int, seed: int) -> list[Window]:
    """At most n windows of `length` tokens: the first so many of longer ones; shorter ones are left
    out. Documents take turns.

    Raises:
        ValueError: no more than one document has one.
    """
    long_enough = [window for window in windows if len(window.token_ids) >= length]
    there, of = (len({window.document for window in some}) for some in (long_enough, windows))
    if there < 2:
        raise ValueError(
            f"{there} of {of} documents have a window of {length} tokens: expected two at least; "
            "give longer texts, or lower TypicalitySize.length"
        )
    equal = [replace(window, token_ids=window.token_ids[:length]) for window in long_enough]
    return spread_windows(equal, n * length, seed)


def text_windows(
    documents: Sequence[Document], lm: LanguageModel, length: int, n: int, seed: int
) -> list[Window]:
    """`equal_windows` of texts; `document` counts the texts as they are given."""
    return equal_windows(list(cut_windows(tokenize(documents, lm), length + 1)), length, n, seed)


def scored_positions(length: int, first: int, n: int) -> np.ndarray:
    """n positions in a window, evenly spread from `first` to its end.

    Raises:
        ValueError: there are fewer.
    """
    if not 0 < n <= length - first:
        raise ValueError(
            f"{n} positions from {first} to {length - 1}: expected between 1 and {length - first}"
        )
    return np.linspace(first, length - 1, n).round().astype(np.int64)


def read_tokens(
    lm: LanguageModel,
    layer: int,
    windows: Sequence[Window],
    positions: np.ndarray,
    normaliser: Normaliser,
    batch_tokens: int,
) -> Tokens:
    """The language model's activations at the same positions of each window, standardised."""
    rows = read_block(list(windows), lm, [layer], batch_tokens)
    starts = np.cumsum([0, *(len(window.token_ids) for window in windows)])[:-1]
    chosen = (starts[:, None] + positions).ravel()
    z_nd = normaliser(rows.activations[layer][torch.from_numpy(chosen)])
    return Tokens(z_nd, rows.document[chosen], rows.position[chosen])


def difference_from_store(lm: LanguageModel, store: ActivationStore, split: str) -> float:
    """‖read again − stored‖ / ‖stored‖ over a block of windows that holds the split's first,
    standardised.

    The windows are read in the batches of the extraction, so it is 0 on the machine that wrote the
    store, up to the number of threads; in batches of another shape a bfloat16 model rounds
    otherwise, by 1 % and more.
    """
    by_split = {one: stored_windows(store, one) for one in dict.fromkeys(store.splits)}
    batch_tokens, first = int(store.attributes["batch_tokens"]), by_split[split][0].document
    windows = [window for some in by_split.values() for window in some]
    windows.sort(key=lambda window: (window.document, window.start))
    blocks = cut_blocks(windows, batch_tokens)
    block = next(block for block in blocks if any(window.document == first for window in block))
    normalise = Normaliser.of(store)
    again = normalise(read_block(block, lm, [store.layer], batch_tokens).activations[store.layer])
    start = store.rows_of(block[0].document).start + block[0].start
    stored = normalise(store.read(slice(start, start + len(again))))
    return ((again - stored).norm() / stored.norm()).item()


@contextmanager
def perturbed(model: PreTrainedModel, layer: int, relative: float, seed: int) -> Iterator[None]:
    """Within the context, noise is added to every matrix of blocks 0 … layer; afterwards they are
    as before, bit for bit.

    Args:
        relative: expected norm of the noise over the norm of the matrix, before rounding to the
            model's dtype.
    Raises:
        ValueError: the model has no such block.
    """
    blocks = residual_blocks(model)
    resolve_layer(layer, len(blocks))
    generator = torch.Generator().manual_seed(seed)
    weights = [weight for block in blocks[: layer + 1] for weight in block.parameters()]
    matrices = [weight for weight in weights if weight.ndim > 1]
    kept = [weight.detach().clone() for weight in matrices]
    try:
        with torch.no_grad():
            for weight in matrices:
                noise = torch.randn(weight.shape, generator=generator).to(weight.device)
                size = relative * weight.float().square().mean().sqrt()
                weight.copy_(weight.float() + size * noise)
        yield
    finally:
        with torch.no_grad():
            for weight, before in zip(matrices, kept):
                weight.copy_(before)


def steered(z_nd: Tensor, direction_d: Tensor, strength: float) -> Tensor:
    """z with a vector along `direction_d` (of z-space) added, of length strength · √d; √d is the
    length of a usual z. (n, d).
    """
    return z_nd + strength * z_nd.shape[1] ** 0.5 * direction_d / direction_d.norm()


def noised(z_nd: Tensor, strength: float, seed: int) -> Tensor:
    """z with isotropic Gaussian noise added, of expected length strength · √d, (n, d)."""
    return z_nd + strength * torch.randn(z_nd.shape, generator=torch.Generator().manual_seed(seed))


def noised_alike(z_nd: Tensor, gaussian: GaussianDenoiser, strength: float, seed: int) -> Tensor:
    """μ + √(1 − s²)(z − μ) + s ε, (n, d), with ε from the Gaussian's covariance: data with that
    mean and covariance keep both.

    What is lost is structure beyond them, to which the Gaussian is blind.

    Raises:
        ValueError: the strength is not from 0 to 1.
    """
    if not 0 <= strength <= 1:
        expected = "0 to 1, the share of noise that keeps the covariance"
        raise ValueError(f"strength {strength}: expected {expected}")
    mean_d = gaussian.mean_d
    noise_nd = gaussian.sample(len(z_nd), torch.Generator().manual_seed(seed)) - mean_d
    return mean_d + (1 - strength**2) ** 0.5 * (z_nd - mean_d) + strength * noise_nd


def independent_tokens(z_nd: Tensor, documents: int) -> Tokens:
    """Draws of a model as tokens: they are independent, so they are dealt out to so many equal
    documents.
    """
    number = np.arange(len(z_nd))
    document = number * documents // len(z_nd)
    return Tokens(z_nd, document, number - np.searchsorted(document, document))
