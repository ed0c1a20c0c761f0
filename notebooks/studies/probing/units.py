"""Dictionaries of units: what reads numbers off activations, what setting one of them changes, and
where in text it is largest.

A *unit* is a dimension, a principal component, a latent of an SAE, a neuron of the language model's
block, a hidden unit of a denoiser ("meta-neuron"), a direction, or a component of a mixture of
Gaussians. To *clamp* a unit is to set it to a value. What that writes into the residual stream is
the direction times the change for whatever is linear, and for a meta-neuron the change of the
denoiser's one-step estimate from the same noisy activation. `top_contexts` finds the tokens at
which a unit is largest, for `as_html` to show.
"""

import html
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from sae_lens import SAE
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mmlib.activations.lm import LanguageModel, read_residual_stream, residual_blocks
from mmlib.activations.windows import Window, batches_of, padded
from mmlib.denoisers.gaussian import PrincipalComponents
from mmlib.denoisers.meta_model import MetaModel
from mmlib.denoisers.mixture import GaussianMixtureDenoiser

AT_ONCE = 1024  # activations, or units, taken together


# names of the last matrix of an MLP, by architecture
DOWN = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "wo", "w2")


Read = Callable[[Tensor], Tensor]  # z (n, d) → units (n, u)


# (z (n, d), unit, value) → change of z (n, d) when the unit is set to the value
Write = Callable[[Tensor, int, float], Tensor]


@dataclass(frozen=True)
class Units:
    """A dictionary: how its units are read off standardised activations, and what clamping one
    writes, if that is defined.
    """

    read: Read
    write: Write | None = None


def directions(matrix_ud: Tensor, mean_d: Tensor | None = None) -> Units:
    """Coordinates along orthonormal or other unit vectors: raw dimensions, principal components,
    random directions.
    """
    centre_d = torch.zeros(matrix_ud.shape[1]) if mean_d is None else mean_d

    def write(z_nd: Tensor, unit: int, value: float) -> Tensor:
        return (value - (z_nd - centre_d) @ matrix_ud[unit])[:, None] * matrix_ud[unit]

    return Units(lambda z_nd: (z_nd - centre_d) @ matrix_ud.T, write)


def raw_dimensions(d: int) -> Units:
    """The standardised activation itself."""
    return directions(torch.eye(d))


def principal_components(components: PrincipalComponents) -> Units:
    """Scores along all principal axes."""
    return directions(components.axes_dd.T.contiguous(), components.mean_d)


def random_directions(count: int, d: int, seed: int) -> Units:
    """Directions drawn uniformly: what a dictionary of that size finds by chance."""
    drawn_ud = torch.randn(count, d, generator=torch.Generator().manual_seed(seed))
    return directions(drawn_ud / drawn_ud.norm(dim=1, keepdim=True))


def random_silu(count: int, d: int, seed: int) -> Units:
    """Random features silu(w·z) (v·z), as a gated MLP's hidden units are at z, with w and v drawn
    from N(0, I/d): what nonlinear features of that form, without training, find by chance. They are
    no near-even functions of z, as an untrained network's units behind a norm are.
    """
    drawn_2ud = torch.randn(2, count, d, generator=torch.Generator().manual_seed(seed)) / d**0.5
    return Units(lambda z_nd: nn.functional.silu(z_nd @ drawn_2ud[0].T) * (z_nd @ drawn_2ud[1].T))


def sae_latents(sae: SAE) -> Units:
    """Latents as the SAE has them; clamping one writes the difference of two decodings."""

    def write(z_nd: Tensor, unit: int, value: float) -> Tensor:
        latents_nm = sae.encode(z_nd)
        clamped_nm = latents_nm.clone()
        clamped_nm[:, unit] = value
        return sae.decode(clamped_nm) - sae.decode(latents_nm)

    return Units(sae.encode, write)


def sae_inputs(sae: SAE) -> Units:
    """What the SAE's latents are before any is set to 0: the same dictionary, not sparse."""
    return Units(lambda z_nd: sae.process_sae_in(z_nd) @ sae.W_enc + sae.b_enc)


def mixture_components(mixture: GaussianMixtureDenoiser, sigma: float) -> Units:
    """Of each component of a mixture, the logarithms of its density and of its probability given
    the activation, (n, 2 k).

    Args:
        sigma: of the level at which both are taken; the activation itself is not noised.
    """

    def read(z_nd: Tensor) -> Tensor:
        x_nd, d = (1 - sigma) * z_nd, z_nd.shape[1]
        logs = [component.log_density(x_nd, sigma) for component in mixture.components]
        log_density_nk = d * torch.stack(logs, 1)
        log_probability_nk = (log_density_nk + mixture.log_weights_k).log_softmax(1)
        return torch.cat([log_density_nk, log_probability_nk], 1).float()

    return Units(read)


def meta_neurons(model: MetaModel, sigma: float, seed: int) -> Units:
    """Hidden units of a denoiser, of all its blocks one after another, on activations noised to σ,
    one draw of noise.

    Their clamping, `write`, needs hidden units that are whole rows: it is None for a UNet, whose
    are images.
    """

    def read(z_nd: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        said = {"desc": f"reading meta-neurons at σ = {sigma}", "mininterval": 2, "delay": 5}
        found = [
            torch.cat(list(model.neurons(part_nd, sigma=sigma, generator=generator).values()), 1)
            for part_nd in tqdm(z_nd.split(AT_ONCE), **said)
        ]
        return torch.cat(found)

    def write(z_nd: Tensor, unit: int, value: float) -> Tensor:
        noise_nd = torch.randn(z_nd.shape, generator=torch.Generator().manual_seed(seed))
        x_nd = (1 - sigma) * z_nd + sigma * noise_nd
        return clamped_estimate(model, x_nd, sigma, unit, value) - model.denoise(x_nd, sigma)

    rows = all(isinstance(module, nn.Linear) for module in model.network.units.values())
    return Units(read, write if rows else None)


@contextmanager
def edited_inputs(module: nn.Module, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context, a module reads edit(h) in place of its input h."""
    handle = module.register_forward_pre_hook(lambda module, inputs: (edit(inputs[0]),))
    try:
        yield
    finally:
        handle.remove()


def clamped_estimate(
    model: MetaModel, x_nd: Tensor, sigma: float, unit: int, value: float | Tensor
) -> Tensor:
    """One-step estimate of z (n, d) with one hidden unit set to a value, or to one for each row.

    Args:
        unit: numbered through all blocks, as `meta_neurons` reads them.
    Raises:
        ValueError: there is no such unit.
    """
    module, place = _located(model, unit)

    def put(hidden: Tensor) -> Tensor:
        hidden = hidden.clone()
        value_n = torch.as_tensor(value).to(hidden).expand(len(x_nd))
        hidden[..., place] = value_n.reshape(hidden.shape[:-1])
        return hidden

    with edited_inputs(module, put):
        return model.denoise(x_nd, sigma)


def _located(model: MetaModel, unit: int) -> tuple[nn.Module, int]:
    """The module whose inputs hold the unit, and its place among them."""
    first = 0
    for module in model.network.units.values():
        if first <= unit < first + module.in_features:
            return module, unit - first
        first += module.in_features
    raise ValueError(f"unit {unit}: this network has {first}, numbered from 0")


@torch.inference_mode()
def read_units(units: Units, z_nd: Tensor) -> np.ndarray:
    """Units at activations, (n, u) float32."""
    return units.read(z_nd).float().numpy()


def mlp_output(model: PreTrainedModel, layer: int) -> nn.Module:
    """The last matrix of a block's MLP, whose inputs are the block's neurons.

    Raises:
        ValueError: none of the known names is there, or more than one.
    """
    found = {
        name: module
        for name, module in residual_blocks(model)[layer].named_modules()
        if name.rpartition(".")[2] in DOWN and isinstance(module, (nn.Linear, Conv1D))
        if "attn" not in name and "attention" not in name
    }
    if len(found) != 1:
        raise ValueError(
            f"block {layer} of {type(model).__name__}: expected one matrix named {', '.join(DOWN)} "
            f"outside attention, found {sorted(found) or 'none'}"
        )
    return next(iter(found.values()))


@torch.inference_mode()
def neurons_in_windows(
    lm: LanguageModel,
    layer: int,
    windows: Sequence[Window],
    positions: Sequence[np.ndarray],
    batch_tokens: int,
) -> np.ndarray:
    """The neurons of a block's MLP at chosen positions of windows, (n, f) float32, one window after
    another.

    Args:
        positions: of each window, in the window.
        batch_tokens: at most so many positions in one forward pass (or one window).
    """
    captured: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        captured[:] = [hidden]
        return hidden

    found: list[np.ndarray] = [np.empty(0)] * len(windows)
    batches = list(batches_of(list(windows), batch_tokens))
    said = {"desc": "reading the block's neurons", "unit": "batch", "mininterval": 2, "delay": 5}
    with edited_inputs(mlp_output(lm.model, layer), keep):
        for batch in tqdm(batches, **said):
            ids_bt = padded([windows[i] for i in batch], lm.opening_token)
            read_residual_stream(lm.model, [layer], ids_bt)
            for row, i in enumerate(batch):
                places = 1 + torch.from_numpy(np.asarray(positions[i]))
                found[i] = captured[0][row, places].float().cpu().numpy()
    return np.concatenate(found)


def density(units_nu: np.ndarray) -> np.ndarray:
    """Share of activations at which each unit is above a tenth of its largest absolute value, (u,);
    0 for one that is always 0.
    """
    size_nu = np.abs(units_nu)
    return (size_nu > 0.1 * size_nu.max(0)).mean(0)


def selectivity(units_nu: np.ndarray) -> np.ndarray:
    """How few activations carry each unit, (u,): (1 − (Σ|a|/n)²/(Σa²/n))/(1 − 1/n), 1 if one does,
    0 if all do alike (Vinje and Gallant 2000).

    0 for a unit that is always 0.
    """
    size_nu = np.abs(units_nu)
    square_u = np.square(size_nu, dtype=np.float64).mean(0)
    mean_u, none_u = size_nu.mean(0, dtype=np.float64), np.ones_like(square_u)
    share_u = np.divide(mean_u**2, square_u, out=none_u, where=square_u > 0)
    return (1 - share_u) / (1 - 1 / len(units_nu))


def paired_correlation(first_nu: np.ndarray, second_nu: np.ndarray) -> np.ndarray:
    """Correlation of each unit with itself, read in another way at the same activations: (u,); 0
    for one that never varies.
    """
    first, second = (values_nu - values_nu.mean(0) for values_nu in (first_nu, second_nu))
    norms_u = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    return (first * second).sum(0) / norms_u.clip(1e-12)


def nearest(units_nu: np.ndarray, others_nm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each unit the other dictionary's unit with the largest absolute correlation, and that
    correlation: (u,), (u,).
    """

    def whitened(values: np.ndarray) -> Tensor:
        centred = torch.from_numpy(values - values.mean(0))
        return centred / centred.norm(dim=0).clamp(min=1e-12)

    first, second = whitened(units_nu), whitened(others_nm)
    best = [(first[:, part].T @ second) for part in torch.arange(units_nu.shape[1]).split(AT_ONCE)]
    index = torch.cat([r.abs().argmax(1) for r in best])
    value = torch.cat([r.gather(1, r.abs().argmax(1, keepdim=True))[:, 0] for r in best])
    return index.numpy(), value.numpy()


def matched(
    density_u: np.ndarray, unit: int, count: int, seed: int, exclude: Sequence[int] = ()
) -> np.ndarray:
    """Units of about the density of one of them: `count` drawn at random from the 10 × `count`
    nearest, itself and `exclude` left out.

    Raises:
        ValueError: the dictionary has too few.
    """
    others = np.setdiff1d(np.arange(len(density_u)), [unit, *exclude])
    if len(others) < count:
        raise ValueError(f"{len(others)} other units: expected at least {count}")
    nearest_first = np.argsort(np.abs(density_u[others] - density_u[unit]), kind="stable")
    near = others[nearest_first][: 10 * count]
    return np.random.default_rng([seed, unit]).choice(near, count, replace=False)


def pieces_of(lm: LanguageModel, token_ids: Sequence[int]) -> list[str]:
    """The text of each token, spaces included: what a token adds to the text of the one before
    it.
    """
    ids = [int(i) for i in token_ids]
    alone = lm.tokenizer.batch_decode([[i] for i in ids])
    both = lm.tokenizer.batch_decode([ids[i - 1 : i + 1] for i in range(1, len(ids))])
    following = [
        two[len(one) :] if two.startswith(one) else now
        for one, two, now in zip(alone, both, alone[1:])
    ]
    return [*alone[:1], *following]


def top_contexts(
    values_n: np.ndarray,
    windows: Sequence[Window],
    pieces: Sequence[Sequence[str]],
    count: int,
    reach: int,
) -> list[dict]:
    """Where a unit is largest, one place a window, largest first: the tokens around it, and the
    unit at each.

    Args:
        values_n: the unit at every token of the windows, one window after another.
        pieces: of the windows' tokens, see `pieces_of`.
        reach: tokens before it, and half as many behind it.
    Returns:
        Dictionaries of `pieces`, `values` (from 0, the unit's median and below, to 1, its largest)
        and `at`, the place of the token among them.
    Raises:
        ValueError: as many values as tokens were expected.
    """
    ends = np.cumsum([len(window.token_ids) for window in windows])
    if len(values_n) != ends[-1]:
        raise ValueError(f"{len(values_n)} values for {ends[-1]} tokens")
    parts = np.split(values_n, ends[:-1])
    least, largest, found = float(np.median(values_n)), float(values_n.max()), []
    for i in np.argsort([-part.max() for part in parts], kind="stable")[:count]:
        place = int(parts[i].argmax())
        around = slice(max(0, place - reach), place + reach // 2 + 1)
        shade = np.clip((parts[i][around] - least) / max(largest - least, 1e-12), 0, 1)
        values = [round(float(value), 3) for value in shade]
        context = {"pieces": list(pieces[i][around]), "at": place - around.start, "values": values}
        found.append(context)
    return found


def as_html(title: str, contexts: Sequence[dict]) -> str:
    """The contexts with each token shaded by its value; the text is escaped."""
    lines = []
    for context in contexts:
        tokens = [
            f'<span style="background:rgba(213,94,0,{0.75 * value:.2f})">{html.escape(piece).replace(chr(10), "↵")}</span>'
            for piece, value in zip(context["pieces"], context["values"])
        ]
        tokens[context["at"]] = f"<b>{tokens[context['at']]}</b>"
        text = f"…{''.join(tokens)}…"
        style = "font-family:monospace;font-size:85%;white-space:pre-wrap"
        lines.append(f'<div style="{style}">{text}</div>')
    return f'<div style="margin:0.6em 0"><b>{html.escape(title)}</b>{"".join(lines)}</div>'
