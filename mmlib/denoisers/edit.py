"""A fitted object as an edit of the residual stream, for hooks of transformers, TransformerLens and
nnsight.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmlib.activations.lm import hidden
from mmlib.denoisers.fitted import SDEDIT_STEPS, Fitted, FittedPCA, Unsupported, seeded
from mmlib.denoisers.noise import checked_sigma


class Edit:
    """Replaces activations of the residual stream by their projections, wherever hooks are placed;
    h (batch, tokens, d) → the same shape.

        with edited_block(lm.model, 6, model.hook(sigma=0.5)): …                        # mmlib.activations.lm
        handle = gpt2.transformer.h[6].register_forward_hook(model.hook().forward_hook)     # transformers
        hooked.run_with_hooks(tokens, fwd_hooks=[("blocks.6.hook_resid_post", model.hook())])   # TransformerLens
        with lm.trace(text): lm.transformer.h[6].output[0][:] = model.hook()(lm.transformer.h[6].output[0])   # nnsight

    Args:
        model: its language model, layer and width are the caller's to match: `model.check(lm,
            layer=6)`.
        sigma: of `project`; None: `reconstruct`, for a PCA or an SAE.
        before: an edit of raw activations (n, d) before they are projected, such as adding a
            direction.
        keep_opening: leave the first of several tokens as it is: the opening token's activation is
            no text's, and no model here was fitted to it.
        seed: of the noise, which differs from call to call.
        steps: of Euler's method.

    >>> import mmlib
    >>> model = mmlib.fit(torch.randn(200, 4) * 3 + 5, "gaussian", progress=False)
    >>> block = nn.Identity()  # stands for a block of a language model
    >>> handle = block.register_forward_hook(model.hook(sigma=0.5).forward_hook)
    >>> block(torch.zeros(1, 6, 4)).shape
    torch.Size([1, 6, 4])
    >>> handle.remove()
    """

    def __init__(
        self,
        model: Fitted,
        sigma: float | None = 0.5,
        *,
        before: Callable[[Tensor], Tensor] | None = None,
        keep_opening: bool = True,
        seed: int = 0,
        steps: int = SDEDIT_STEPS,
    ):
        clean = isinstance(model, FittedPCA)
        if clean != (sigma is None):
            raise Unsupported(
                f"{model.title} with sigma={sigma}: a method for clean activations takes sigma=None, any other a noise level"
            )
        self.model, self.sigma, self.before, self.steps = model, sigma, before, steps
        if sigma is not None:
            checked_sigma(sigma)
        self.keep_opening, self.generator = keep_opening, seeded(seed)

    def __call__(self, hidden_btd: Tensor, hook: object = None) -> Tensor:
        """The edited stream, of the same shape, dtype and device.

        Args:
            hook: TransformerLens names the place of the hook; it is passed over.
        """
        first = int(self.keep_opening and hidden_btd.shape[1] > 1)
        edited_btd = hidden_btd[:, first:]
        h_nd = edited_btd.detach().flatten(0, 1).float().cpu()
        edited_nd = self.edited(h_nd if self.before is None else self.before(h_nd))
        edited_btd = edited_nd.view(edited_btd.shape).to(hidden_btd)
        return torch.cat([hidden_btd[:, :first], edited_btd], 1)

    def edited(self, h_nd: Tensor) -> Tensor:
        """Raw activations (n, d) in place of raw ones."""
        normaliser = self.model.origin.normaliser
        z_nd = normaliser(h_nd)
        with torch.no_grad():
            if self.sigma is None:
                return normaliser.inverse(self.model.denoiser(z_nd, 0.0))
            return normaliser.inverse(
                self.model._project(z_nd, self.sigma, self.generator, self.steps)
            )

    def forward_hook(self, module: nn.Module, inputs: tuple, output: Tensor | tuple):
        """For `register_forward_hook` of a block of transformers, whose output is the stream or a
        tuple that begins with it.
        """
        edited_btd = self(hidden(output))
        return (edited_btd, *output[1:]) if isinstance(output, tuple) else edited_btd
