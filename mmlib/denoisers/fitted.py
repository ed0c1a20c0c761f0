"""One protocol for whatever was fitted to activations: what `mmlib.fit` gives and `mmlib.load`
reads.

    h    raw activations (n, d), as the language model computes them: what `log_likelihood`, `project`, `features` take, and what
         `sample` and `project` give
    z    standardised ones, (h − mean)/std by the statistics of the training rows: `model.standardise(h)`, `model.raw(z)`
    x    noised ones, x = (1 − σ) z + σ ε, 0 < σ < 1: `model.noised(h, sigma)`; what `denoise` takes. It gives an estimate of z

Tensors are float32 on the CPU, whatever the arrays or lists were that came. Where the two kinds can
be told apart by their scale (see `checkpoints.refuse_mistaken`), raw activations in place of x and
standardised ones in place of h are refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmlib.activations.arrays import Values, matrix
from mmlib.activations.edit import Edit
from mmlib.activations.lm import LanguageModel
from mmlib.activations.store import ActivationStore
from mmlib.activations.tokens import Normaliser
from mmlib.denoisers.checkpoints import Origin, activations_of, refuse_mistaken
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.noise import Denoiser, checked_sigma, sdedit
from mmlib.files import whole_number

AT_ONCE = 4096  # rows taken together
SDEDIT_STEPS = 20  # the paper's


class Unsupported(NotImplementedError):
    """The method has nothing of the kind that was asked for; the message says which has."""


@dataclass(frozen=True)
class Cost:
    """What a fit cost: free numbers, seconds, activations seen with repeats; 0: unknown."""

    parameters: int
    seconds: float = 0.0
    activations: int = 0

    @classmethod
    def of(cls, denoiser) -> "Cost":
        """What a denoiser of this repository carries."""
        known = (denoiser.train_seconds or 0.0, denoiser.train_activations or 0)
        return cls(int(denoiser.parameters), *known)


class Fitted:
    """A denoiser with the standardisation that it was fitted in, what it is of, and what it cost.

    It is a `Denoiser` itself: `model(x, sigma)` is `denoise` without its checks.

    Args:
        denoiser: maps (x (n, d), σ) to ẑ (n, d).
        origin: of the activations.
        cost: of the fit.
        components: mean, axes and variances of the same training rows, the Gaussian baseline; None
            if unknown.
        facts: more that is known of the fit, kept with it.

    >>> import mmlib
    >>> h = 3 + 2 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    >>> model = mmlib.fit(h, "gaussian", progress=False)
    >>> x = model.noised(h, sigma=0.3)
    >>> error = (model.denoise(x, sigma=0.3) - model.standardise(h)).square().mean()
    >>> bool(error < (x - model.standardise(h)).square().mean())
    True
    >>> model.denoise(h, sigma=0.3)
    Traceback (most recent call last):
    ...
    ValueError: x has the scale of raw activations (10.6 nats per dimension likelier as such): give noised standardised ones: model.noised(h, sigma), or (1 − σ) model.standardise(h) + σ ε
    """

    kind, title = "denoiser", "a denoiser"
    of_clean = False  # made for clean activations: it reconstructs, and knows no noise

    def __init__(
        self,
        denoiser: Denoiser,
        origin: Origin,
        cost: Cost,
        components: PrincipalComponents | None = None,
        facts: Mapping[str, object] | None = None,
    ):
        self.denoiser, self.origin, self.cost = denoiser, origin, cost
        self.components, self.facts = components, dict(facts or {})

    def __repr__(self) -> str:
        """What it is, of what, and what it cost."""
        of = self.origin.language_model or "plain activations"
        layers = ", ".join(map(str, self.origin.layers))
        return (
            f"<{type(self).__name__}, {self.d} wide, of "
            f"{of}{f', block {layers}' if layers else ''}: {self.cost.parameters:,} numbers fitted "
            f"to {self.cost.activations:,} activations in {self.cost.seconds:.1f} s>"
        )

    @property
    def d(self) -> int:
        """Width of the activations."""
        return self.origin.d

    @property
    def parameters(self) -> int:
        """Free numbers."""
        return self.cost.parameters

    @property
    def train_seconds(self) -> float:
        """Of the fit."""
        return self.cost.seconds

    @property
    def train_activations(self) -> int:
        """That the fit saw."""
        return self.cost.activations

    def __call__(self, x_nd: Tensor, sigma: float) -> Tensor:
        """ẑ (n, d) from x (n, d), unchecked."""
        return self.denoiser(x_nd, sigma)

    def standardise(self, h: Values) -> Tensor:
        """z (n, d) of raw activations (n, d)."""
        return self.origin.normaliser(matrix(h, d=self.d))

    def raw(self, z: Values) -> Tensor:
        """h (n, d) of standardised activations (n, d)."""
        return self.origin.normaliser.inverse(matrix(z, d=self.d, what="z"))

    def noised(self, h: Values, sigma: float, *, seed: int = 0) -> Tensor:
        """x = (1 − σ) z + σ ε (n, d) of raw activations (n, d), with ε drawn from the seed."""
        (sigma,), z_nd = checked_sigma(sigma), self._z(h)
        return (1 - sigma) * z_nd + sigma * torch.randn(z_nd.shape, generator=seeded(seed))

    def _z(self, h: Values) -> Tensor:
        h_nd = matrix(h, d=self.d)
        refuse_mistaken(h_nd, self.origin, None)
        return self.origin.normaliser(h_nd)

    def denoise(self, x: Values, sigma: float | Values) -> Tensor:
        """Estimate of z, (n, d), from x = (1 − σ) z + σ ε.

        Args:
            x: noised standardised activations (n, d), such as `noised` gives.
            sigma: noise level between 0 and 1, or one for each row, (n,).
        Raises:
            ValueError: σ is out of range, x is of another width or not finite, or is raw by its
                scale; `model(x, sigma)` takes any x.
        """
        x_nd = matrix(x, d=self.d, what="x")
        sigmas = checked_sigma(sigma, len(x_nd))
        refuse_mistaken(x_nd, self.origin, float(np.mean(sigmas)))
        z_nd, sigma_n = torch.empty_like(x_nd), np.broadcast_to(sigmas, len(x_nd))
        with torch.no_grad():
            for level in np.unique(sigma_n):
                rows = torch.from_numpy(np.flatnonzero(sigma_n == level))
                for part in rows.split(AT_ONCE):
                    z_nd[part] = self.denoiser(x_nd[part], float(level))
        return z_nd

    def log_likelihood(self, h: Values, *, seed: int = 0) -> Tensor:
        """Natural logarithm of the density of each raw activation, per dimension of the raw
        activation, (n,), double.

        The density is of activations smoothed at σ₀ = 0.02, see `mmlib.denoisers.noise`.

        Args:
            seed: of the smoothing noise; for a network also of the trace's probes.
        Raises:
            Unsupported: the method has no density.
        """
        generator, z_nd = seeded(seed), self._z(h)
        with torch.no_grad():
            return self._log_density(z_nd, generator) - self._log_scale()

    def _log_scale(self) -> Tensor:
        """Mean of log std: from nats per dimension of z to nats per dimension of h."""
        return self.origin.normaliser.std_ld.double().log().mean()

    def _log_density(self, z_nd: Tensor, generator: torch.Generator) -> Tensor:
        raise Unsupported(f"{self.title} has no density: 'gaussian', 'mixture' and networks have")

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """Draws of raw activations, (n, d).

        Raises:
            Unsupported: the method has no distribution to draw from.
        """
        n = whole_number("n", n, 1)
        with torch.no_grad():
            return self.raw(self._sample(n, seeded(seed)))

    def _sample(self, n: int, generator: torch.Generator) -> Tensor:
        raise Unsupported(
            f"{self.title} has no samples: 'gaussian', 'mixture' and networks draw some"
        )

    def project(
        self, h: Values, sigma: float = 0.5, *, seed: int = 0, steps: int = SDEDIT_STEPS
    ) -> Tensor:
        """SDEdit: raw activations (n, d) are noised to σ and brought back along the method's own
        flow, raw again, (n, d).

        Args:
            sigma: how far; the paper edits at 0.5.
            seed: of the noise.
            steps: of Euler's method.
        Raises:
            Unsupported: the method knows no noise; `reconstruct` is what it offers.
        """
        (sigma,), z_nd = checked_sigma(sigma), self._z(h)
        return self.raw(self._project(z_nd, sigma, seeded(seed), steps))

    def _project(
        self, z_nd: Tensor, sigma: float, generator: torch.Generator, steps: int
    ) -> Tensor:
        noise_nd = torch.randn(z_nd.shape, generator=generator)
        with torch.no_grad():
            parts = zip(z_nd.split(AT_ONCE), noise_nd.split(AT_ONCE))
            return torch.cat([sdedit(self.denoiser, *part, sigma, steps) for part in parts])

    def reconstruct(self, h: Values) -> Tensor:
        """What a method for clean activations (PCA, an SAE) makes of raw activations, (n, d),
        raw.
        """
        raise Unsupported(f"{self.title} reconstructs nothing: 'pca' and 'sae' do; use project")

    def features(self, h: Values) -> Tensor:
        """Units of raw activations, (n, f): principal scores, responsibilities, latents, or hidden
        units.

        Raises:
            Unsupported: the method has none.
        """
        with torch.no_grad():
            return torch.cat([self._features(part) for part in self._z(h).split(AT_ONCE)])

    def _features(self, z_nd: Tensor) -> Tensor:
        raise Unsupported(f"{self.title} has no features")

    def check(
        self,
        other: ActivationStore | LanguageModel | None = None,
        *,
        language_model: str | None = None,
        layer: int | None = None,
        d: int | None = None,
        documents: str | None = None,
    ) -> "Fitted":
        """Refuse activations that it was not fitted to: another language model, layer or width,
        other documents, or of a store the same with another window or type. Gives itself.

        Args:
            other: a store or a language model; or name what is to be compared.
        Raises:
            StoreError: they differ.
        """
        if isinstance(other, ActivationStore):
            language_model, layer = other.model, other.layer
            d, documents = other.d, other.documents
        elif isinstance(other, LanguageModel):
            language_model, d = other.identity, other.width
        elif other is not None:
            raise TypeError(f"{type(other).__name__}: expected a store or a LanguageModel of mmlib")
        known = {"language_model": language_model, "layer": layer, "d": d, "documents": documents}
        self.origin.check("this model", **known, activations=activations_of(other))
        return self

    def hook(
        self,
        sigma: float | None = 0.5,
        *,
        before: Callable[[Tensor], Tensor] | None = None,
        keep_opening: bool = True,
        padding: Sequence[int] | int | None = None,
        seed: int = 0,
        steps: int = SDEDIT_STEPS,
    ) -> Edit:
        """An edit of the residual stream: each activation is replaced by its projection, with new
        noise from call to call.

        Language model, layer and width are the caller's to match: `model.check(lm, layer=6)`.

        Args:
            sigma: of `project`; None: `reconstruct`, for a PCA or an SAE.
            before: an edit of raw activations (n, d) before they are projected, such as adding a
                direction.
            keep_opening: leave the opening token's activation as it is: no model here was fitted to
                it.
            padding: positions of each row that are padding on its left, see `Edit`.
            steps: of Euler's method.
        Raises:
            Unsupported: σ for a method for clean activations, or none for another.

        >>> import mmlib
        >>> model = mmlib.fit(torch.randn(200, 4) * 3 + 5, "gaussian", progress=False)
        >>> block = torch.nn.Identity()  # stands for a block of a language model
        >>> handle = block.register_forward_hook(model.hook(sigma=0.5).forward_hook)
        >>> block(torch.zeros(1, 6, 4)).shape
        torch.Size([1, 6, 4])
        """
        if self.of_clean != (sigma is None):
            raise Unsupported(
                f"{self.title} with sigma={sigma}: a method for clean activations takes "
                "sigma=None, any other a noise level"
            )
        if sigma is not None:
            checked_sigma(sigma)
        normaliser, generator = self.origin.normaliser, seeded(seed)

        def edited(h_nd: Tensor) -> Tensor:
            z_nd = normaliser(h_nd if before is None else before(h_nd))
            with torch.no_grad():
                if sigma is None:
                    return normaliser.inverse(self.denoiser(z_nd, 0.0))
                return normaliser.inverse(self._project(z_nd, sigma, generator, steps))

        return Edit(edited, keep_opening, padding)

    def save(self, folder: str | Path) -> Path:
        """Write it to a folder, that `mmlib.load` reads; see `mmlib.denoisers.saved`."""
        from mmlib.denoisers.saved import save

        return save(self, Path(folder))


def normaliser_of(given: "Fitted | Normaliser | ActivationStore") -> Normaliser:
    """The mean and standard deviation that an argument `standardise` names."""
    if isinstance(given, ActivationStore):
        return Normaliser.of(given)
    return given.origin.normaliser if isinstance(given, Fitted) else given


def seeded(seed: int) -> torch.Generator:
    """Random numbers of a seed, other ones than those of `torch.manual_seed(seed)`, which made-up
    data are often drawn from.
    """
    state = np.random.SeedSequence([seed, len("mmlib")]).generate_state(1)[0]
    return torch.Generator().manual_seed(int(state))
