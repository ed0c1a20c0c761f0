"""Diffusion meta-models of language-model activations: from plain activations to a model in one
call, and what notebooks share.

    import mmlib
    model = mmlib.fit(h, method="mixture", groups=document_ids)     # raw activations (n, d)
    model.denoise(model.noised(h, sigma=0.3), sigma=0.3)
    model.log_likelihood(h), model.sample(100), model.project(h, sigma=0.5)
    mmlib.load(model.save("folder"))
    mmlib.evaluate({"mine": my_function, "mixture": model}, h_test, groups=document_ids)

    store = mmlib.extract(mmlib.load_lm("gpt2"), mmlib.load_documents("wikipedia"), "acts", layers=[6])

Text flows one way: documents → tokens → residual-stream activations → store → standardised batches
→ denoisers → measured claims. A wing imports only wings below it: runs, then evaluation and
training, then denoisers, then activations.

Names are loaded when they are first used, so importing mmlib is quick and loads no torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_PLACES = {
    "fit": "training.fit",
    "load": "denoisers.saved",
    "evaluate": "evaluation.table",
    "extract": "activations.extract",
    "load_lm": "activations.lm:load_language_model",
    "load_documents": "activations.corpora",
    "ActivationStore": "activations.store",
    "Normaliser": "activations.tokens",
    "Denoiser": "denoisers.noise",
    "Fitted": "denoisers.fitted",
    "MetaModel": "denoisers.meta_model",
    "Recipe": "training.recipe",
}

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str):
    """The public name, from the module that defines it."""
    if name not in _PLACES:
        raise AttributeError(f"mmlib has no {name!r}: its names are {', '.join(__all__)}")
    module, _, known_as = _PLACES[name].partition(":")
    value = getattr(import_module(f"mmlib.{module}"), known_as or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
