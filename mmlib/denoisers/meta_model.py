"""`MetaModel` = normaliser + denoising network + noise process: the one object that notebooks and
applications use.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers import published
from mmlib.denoisers.checkpoints import (
    STATISTICS,
    CheckpointError,
    Origin,
    fetched,
    load_network,
    model_card,
)
from mmlib.denoisers.networks import DENOISERS, LinearSkip, count_parameters
from mmlib.denoisers.noise import LogLikelihood, log_likelihood, noise_process, smoothed
from mmlib.denoisers.residual import MixtureResidual
from mmlib.files import read_sealed, write_sealed

NETWORKS = {**DENOISERS, "LinearSkip": LinearSkip, "MixtureResidual": MixtureResidual}


class MetaModel:
    """A diffusion model of the activations of one layer of one language model, or of several
    layers.

    A model of several layers is trained as a whole and used one layer at a time:
    `model.at(layer).sample(…)`.

    Args:
        network: maps (x (n, d), times (u,)) to a prediction (n, d); one of several layers takes
            their indices (u,) too.
        objective: what it predicts, "flow_velocity" or "ddpm_epsilon".
        origin: the activations it learnt: their statistics, language model, layers and documents.
    """

    def __init__(self, network: nn.Module, objective: str, origin: Origin):
        self.network, self.process, self.origin = network, noise_process(objective), origin
        self.train_seconds: float | None = None  # of training; None: not known
        self.train_activations: int | None = None  # that training saw

    @property
    def normaliser(self) -> Normaliser:
        """Statistics of the training documents."""
        return self.origin.normaliser

    @property
    def language_model(self) -> str:
        """Identity of the language model; "" if unknown."""
        return self.origin.language_model

    @property
    def layers(self) -> tuple[int, ...]:
        """Block indices, in the normaliser's order."""
        return self.origin.layers

    @property
    def documents(self) -> str:
        """Identity of the documents it was trained on and of their split; "" if unknown."""
        return self.origin.documents

    @property
    def d(self) -> int:
        """Width of the activations."""
        return self.normaliser.d

    @property
    def parameters(self) -> int:
        """Of the network."""
        return count_parameters(self.network)

    @property
    def layer(self) -> int:
        """The block index of a model of one layer.

        Raises:
            ValueError: it has several, or does not say.
        """
        if not self.layers:
            raise ValueError("this meta-model does not say which layer it is of")
        if len(self.layers) > 1:
            raise ValueError(
                f"this meta-model has layers {list(self.layers)}: choose one with .at(layer)"
            )
        return self.layers[0]

    @property
    def _several(self) -> bool:
        """Whether the network takes the layer as an input."""
        return bool(dict(getattr(self.network, "config", {})).get("multi_layer_n_layers"))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: str) -> "MetaModel":
        """Move the network."""
        self.network.to(device)
        return self

    def costing(self, seconds: float | None, activations: int | None) -> "MetaModel":
        """This model, which now carries what its training cost."""
        self.train_seconds, self.train_activations = seconds, activations
        return self

    def at(self, layer: int) -> "MetaModel":
        """The model of one of its layers; it shares the network.

        Raises:
            ValueError: it was not trained on that layer.
        """
        if layer not in self.layers:
            raise ValueError(f"layer {layer}: this meta-model was trained on {list(self.layers)}")
        one = MetaModel(self.network, self.process.objective, self.origin.at(layer))
        return one.costing(self.train_seconds, self.train_activations)

    def check_store(self, store: ActivationStore, *, same_documents: bool = True) -> None:
        """Refuse a store that this model was not made for.

        Args:
            same_documents: also refuse other documents or another split of them: the store's test
                documents may be this model's training ones.
        Raises:
            StoreError: it holds another language model, layer or width, other documents, or the
                same with another window or type.
        """
        self.at(self.layer).origin.check_store("this meta-model", store, same_documents)

    def predict(self, x_nd: Tensor, time_u: Tensor) -> Tensor:
        """The network's prediction (n, d) at this layer."""
        if self._several:
            return self.network(x_nd, time_u, torch.full_like(time_u, self.layer))
        return self.network(x_nd, time_u)

    def loss(
        self,
        z: Tensor,
        generator: torch.Generator,
        *,
        levels: int | None = None,
        part: tuple[int, int] = (0, 1),
        network: nn.Module | None = None,
        density: str = "uniform",
        weighting: str = "uniform",
    ) -> Tensor:
        """Training loss of a batch: mean squared error per dimension of the prediction at levels
        drawn from the process's 1000.

        Args:
            z: standardised activations (n, d), or (layers, n, d) for a model of several layers.
            generator: draws levels and noise, on its own device; a GPU's draws differ from a CPU's.
            levels: number u of different levels, each shared by n/u rows, which is faster; None:
                one a row.
            part: (i, k): the loss of the i-th of k equal parts of the batch. Their mean is the loss
                of the whole.
            network: in place of the model's own, such as one that is wrapped for several processes.
            density: of the levels, one of `DENSITIES`; "uniform" is the plain
                objective.
            weighting: weights of the squared errors by level, after the same densities; "uniform"
                is the plain objective.
        """
        z_lnd = z if z.ndim == 3 else z[None]
        n_layers, n, d = z_lnd.shape
        u, (i, k) = levels or n, part
        if n % u or u % k:
            raise ValueError(
                f"batch {n}, {u} noise levels, {k} processes: expected each to divide the one "
                "before"
            )
        index_lu = torch.stack([stratified_levels(u, generator, density) for _ in range(n_layers)])
        noise_lnd = torch.randn(z_lnd.shape, generator=generator, device=generator.device)
        index, z_nd, noise_nd = (
            whole.chunk(k, dim=1)[i].flatten(0, 1).to(z.device)
            for whole in (index_lu, z_lnd, noise_lnd)
        )
        a, s = (value.repeat_interleave(n // u, 0) for value in self.process.coefficients(index))
        inputs = [a * z_nd + s * noise_nd, self.process.timestep(index)]
        if self._several:
            inputs.append(torch.tensor(self.layers, device=z.device).repeat_interleave(u // k))
        prediction_nd = (self.network if network is None else network)(*inputs)
        squared_nd = (prediction_nd.float() - self.process.target(z_nd, noise_nd)).square()
        if weighting != "uniform":
            weight_u = DENSITIES[weighting].weights.to(z.device)[index]
            squared_nd = squared_nd * weight_u.repeat_interleave(n // u)[:, None]
        return squared_nd.mean()

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """The one-step estimate of z (n, d): `denoise`, so that a MetaModel is a `Denoiser`."""
        return self.denoise(x_nd, sigma)

    @torch.inference_mode()
    def denoise(self, x_nd: Tensor, sigma: float) -> Tensor:
        """Estimate of E[z | x] (n, d) from x = (1 − σ) z + σ ε."""
        return self.process.estimate(self.predict, x_nd.to(self.device), sigma).to(x_nd.device)

    def sample(
        self,
        n: int,
        *,
        steps: int,
        generator: torch.Generator,
        solver: str | None = None,
        batch: int = 1000,
        bf16: bool = False,
    ) -> Tensor:
        """Draws of z (n, d), from noise.

        Args:
            solver: name of one of the process's `solvers`; None: its first. "heun" asks the network
                twice a step (but the last), others once.
        Raises:
            ValueError: unknown solver; the message lists those there are.
        """
        noise_nd, how = torch.randn(n, self.d, generator=generator), (steps, solver, batch, bf16)
        return self._solve(torch.zeros(n, self.d), noise_nd, 1.0, *how, "sampling")

    def project(
        self,
        z_nd: Tensor,
        *,
        sigma: float,
        generator: torch.Generator,
        steps: int = 20,
        solver: str | None = None,
        batch: int = 1000,
        bf16: bool = False,
        progress: bool = True,
    ) -> Tensor:
        """SDEdit (Meng et al. 2022): noise z to level σ and take it back to 0 in `steps` steps, (n,
        d).

        The paper edits with σ = 0.5 and 20 Euler steps. A DDPM starts at its training level nearest
        to σ, with no more steps than levels below.

        Raises:
            ValueError: σ outside (0, 1), or unknown solver.
        """
        if not 0 < sigma < 1:
            raise ValueError(f"σ = {sigma}: expected a noise level between 0 and 1")
        noise_nd = torch.randn(z_nd.shape, generator=generator)
        how = (steps, solver, batch, bf16)
        return self._solve(z_nd, noise_nd, sigma, *how, "projecting" if progress else None)

    @torch.inference_mode()
    def _solve(
        self,
        z_nd: Tensor,
        noise_nd: Tensor,
        sigma: float,
        steps: int,
        solver: str | None,
        batch: int,
        bf16: bool,
        what: str | None,
    ) -> Tensor:
        def schedule():
            return self.process.schedule(solver or next(iter(self.process.solvers)), steps, sigma)

        total, done = schedule().evaluations * -(-len(z_nd) // batch), []
        bar = tqdm(total=total, desc=what, mininterval=2, disable=what is None)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), bar:
            for z_part, noise_part in zip(z_nd.split(batch), noise_nd.split(batch)):
                fresh, parts = schedule(), (z_part.to(self.device), noise_part.to(self.device))
                x_nd = self.process.noised(fresh, *parts)
                for x_nd in fresh.run(self.predict, x_nd):
                    bar.update()
                done.append(x_nd.to(z_nd.device))
        return torch.cat(done)

    def log_likelihood(
        self,
        z_nd: Tensor,
        *,
        generator: torch.Generator,
        steps: int = 32,
        probes: int = 4,
        exact: bool | None = None,
        batch: int = 512,
    ) -> LogLikelihood:
        """Log-density of raw activations, smoothed at σ₀ (see `mmlib.denoisers.noise`), in
        nats per dimension of the raw activation.

        Args:
            z_nd: standardised activations.
            generator: draws the smoothing noise and the probes.
            probes, exact: of the trace, see `mmlib.denoisers.noise.log_likelihood`.
        """
        options = {"last_sigma": self.process.last_sigma, "steps": steps, "generator": generator}
        options |= {"probes": probes, "exact": exact}
        denoiser = partial(self.process.estimate, self.predict)
        found = [
            log_likelihood(denoiser, x_nd.to(self.device), **options)
            for x_nd in smoothed(z_nd, generator).split(batch)
        ]
        nats_n = torch.cat([part.nats_per_dimension_n for part in found]).cpu()
        raw_n = nats_n - self.normaliser.std_ld.double().log().mean()
        return LogLikelihood(raw_n, torch.cat([part.standard_error_n for part in found]).cpu())

    @torch.inference_mode()
    def neurons(
        self, z_nd: Tensor, *, sigma: float, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Hidden units ("meta-neurons") on activations noised to σ; the paper reads them at σ =
        0.1.

        Returns:
            By block: (n, f) inputs of the MLP's down projections, or the means over the image of a
                UNet's last convolutions' inputs.
        """
        found: dict[str, Tensor] = {}

        def keep(name: str) -> Callable:
            def record(module, inputs):
                found[name] = _rows(inputs[0], len(z_nd)).float().cpu()

            return record

        x_nd = (1 - sigma) * z_nd + sigma * torch.randn(z_nd.shape, generator=generator)
        with ExitStack() as hooks:
            for name, module in self.network.units.items():
                hooks.callback(module.register_forward_pre_hook(keep(name)).remove)
            self.denoise(x_nd, sigma)
        return found

    def save_pretrained(self, folder: Path, facts: Mapping[str, object] | None = None) -> None:
        """Write network/ (diffusers' format), normaliser.safetensors, README.md (the model card)
        and, last, meta_model.json.

        Args:
            facts: about the training, for the card.
        """
        folder = Path(folder)
        (folder / "meta_model.json").unlink(missing_ok=True)
        # one file, whatever its size
        self.network.save_pretrained(folder / "network", max_shard_size="1TB")
        self.origin.write(folder)
        identity = {
            "network": type(self.network).__name__,
            "objective": self.process.objective,
            **self.origin.identity,
        }
        numbers = {"d": self.d, "parameters": self.parameters}
        card = model_card({**identity, **numbers, **(facts or {})})
        (folder / "README.md").write_text(card, encoding="utf-8")
        cost = {"seconds": self.train_seconds, "activations": self.train_activations}
        files = [folder / STATISTICS, *sorted((folder / "network").iterdir())]
        write_sealed(folder / "meta_model.json", {**identity, "training": cost}, files)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, checkpoint: str = "final"
    ) -> "MetaModel":
        """Read what `save_pretrained` wrote, or a checkpoint of the paper's authors (see
        `mmlib.denoisers.published`).

        Args:
            source: a folder, or the id of a Hub repository.
            checkpoint: of the authors' format: "final" or an epoch, such as "epoch_16".
        Raises:
            FileNotFoundError: the folder holds no meta-model.
            CheckpointError: it holds a damaged or incomplete one.
        """
        epoch = () if checkpoint == "final" else (f"checkpoints/{checkpoint}.safetensors",)
        folder = fetched(source, revision, epoch)
        if (folder / "config.yaml").exists():
            return cls(*published.read(folder, checkpoint))
        if not (folder / "meta_model.json").exists():
            raise FileNotFoundError(
                f"{source} holds no meta_model.json: run notebooks/03_train_meta_model.ipynb "
                "first, with the same parameters"
            )
        facts = read_sealed(folder / "meta_model.json")
        if facts["network"] not in NETWORKS:
            raise CheckpointError(
                f"{source} has network {facts['network']!r}: expected one of {', '.join(NETWORKS)}"
            )
        network = load_network(NETWORKS[facts["network"]], folder / "network")
        model = cls(network, facts["objective"], Origin.read(folder, facts))
        return model.costing(**facts["training"])


def _rows(hidden: Tensor, n: int) -> Tensor:
    """(n, f) of hidden units in runs (u, n/u, f), or of a UNet's (n, f, height, width)."""
    return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden.reshape(n, -1)


def stratified_levels(n: int, generator: torch.Generator, density: str = "uniform") -> Tensor:
    """n training levels (n,) of 0 … 999, one from each of n equally likely strata: the mean loss
    varies less.

    Args:
        density: of the levels, one of `DENSITIES`.
    """
    on = {"generator": generator, "device": generator.device}
    strata = torch.randperm(n, **on) + torch.rand(n, **on)
    places = (strata / n * 1000).long().clamp_(max=999)
    return DENSITIES[density].quantiles.to(generator.device)[places]


@dataclass(frozen=True)
class LevelDensity:
    """How likely the 1000 training levels are.

    Args:
        quantiles: a level for each of 1000 equally likely strata, rising, (1000,).
        weights: density of each level over the uniform one's, (1000,), mean 1: as weights of a loss
            at uniform levels they have the same expected gradient.
    """

    quantiles: Tensor
    weights: Tensor


def _logit_normal() -> LevelDensity:
    """Level sigmoid(n), n ~ N(0, 1), on a scale from 0 to 1 (Esser et al. 2024, eq. 19): the middle
    is asked most.
    """
    middle = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    quantiles = (1000 * torch.sigmoid(torch.special.ndtri(middle))).long().clamp_(0, 999)
    weights = torch.exp(-(torch.logit(middle) ** 2) / 2) / (middle * (1 - middle))
    return LevelDensity(quantiles, (weights / weights.mean()).float())


DENSITIES = {
    "uniform": LevelDensity(torch.arange(1000), torch.ones(1000)),
    "logit_normal": _logit_normal(),
}
