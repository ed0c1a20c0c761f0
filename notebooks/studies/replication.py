"""The replication (notebook 24): the primary definitions once more, with other seeds and on test
documents that nothing was chosen by.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from mmlib.activations.store import ActivationStore
from mmlib.denoisers.mixture import MixtureSize
from mmlib.denoisers.noise import Denoiser
from mmlib.runs.presets import OURS, Preset
from mmlib.runs.sweep import RecipeTrial, Trial


@dataclass(frozen=True)
class ReplicationSize:
    """What is trained again, and how closely it is measured."""

    networks: tuple[str, ...] = (OURS, "mlp", "unet")  # in this order
    sae: bool = True  # the main SAE too
    seeds: tuple[int, ...] = (1, 2)  # beside the run's own
    tokens: int = 1000  # test tokens at each noise level
    tokens_slow: int = 200  # of these, what the UNet, and the SAE it is compared with, see


SIZES = {
    "smoke": ReplicationSize(seeds=(1,), tokens=40, tokens_slow=20),
    "default": ReplicationSize(),
    "gpu": ReplicationSize(tokens=4000, tokens_slow=4000),
}

Measure = Callable[[str, ActivationStore, Denoiser], dict]  # (name, store, denoiser) → what is kept
Fit = Callable[[ActivationStore, int], Denoiser]  # (store, seed) → the denoiser


def trials(
    preset: Preset,
    size: ReplicationSize,
    store: ActivationStore,
    fresh: ActivationStore,
    seed: int,
    mixture: MixtureSize,
    measure: Measure,
    fits: Mapping[str, Fit],
) -> list[Trial]:
    """All of the study: our network and the mixture on fresh documents, and every method with
    further seeds.

    Args:
        fresh: the same activations, with test documents that were training documents.
        mixture: the components and the prior that validation documents chose.
        measure: gives what is kept of a method on the test documents of a store.
        fits: of "mixture" and "sae".
    """
    tokens = {"tokens_per_level": size.tokens, "common_tokens_per_level": size.tokens_slow}
    evaluation = {**tokens, "seed": seed}

    def network(name: str, at: ActivationStore, seed: int, label: str) -> Trial:
        wanted = RecipeTrial(f"{name}-{label}", preset.recipes[name], at, seed)
        return wanted.trial(lambda _, model: measure(name, at, model), evaluation)

    def fitted(name: str, at: ActivationStore, seed: int, label: str) -> Trial:
        settings, activations = {"mixture": asdict(mixture)}, len(at.rows("train"))
        if name == "sae":
            settings = {"sae": asdict(preset.sae), "mix_tokens": preset.mix_tokens}
            activations = preset.sae.steps * preset.sae.batch
        seen = {"documents": at.documents, **at.identities, "evaluation": evaluation}
        configuration = {"settings": settings, "seed": seed, **seen}

        def compute(folder: Path) -> dict:
            began = perf_counter()
            denoiser = fits[name](at, seed)
            seconds = round(perf_counter() - began, 4)
            cost = {"parameters": denoiser.parameters, "activations": activations}
            return {**cost, "seconds": seconds, **measure(name, at, denoiser)}

        return Trial(f"{name}-{label}", configuration, compute, at.identities, kind=name)

    def further(make: Callable[..., Trial], name: str) -> list[Trial]:
        seeds = (seed + more for more in size.seeds)
        return [make(name, store, other, f"seed{other}") for other in seeds]

    first, *rest = size.networks
    return [
        network(OURS, fresh, seed, "fresh"),
        fitted("mixture", fresh, seed, "fresh"),
        *further(network, first),
        *further(fitted, "mixture"),
        *(trial for name in rest for trial in further(network, name)),
        *(further(fitted, "sae") if size.sae else ()),
    ]
