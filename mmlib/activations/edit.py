"""An edit of single activations of the residual stream, wherever hooks are placed."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmlib.activations.lm import BlockOutput, hidden, moved_by


class Edit:
    """An edit of single activations; h (batch, tokens, d) → the same shape. A fitted object makes
    one: `edit = model.hook(sigma=0.5)`.

        with edited_block(lm.model, 6, edit): …  # mmlib.activations.lm
        gpt2.transformer.h[6].register_forward_hook(edit.forward_hook)  # transformers
        hooked.run_with_hooks(ids, fwd_hooks=[("blocks.6.hook_resid_post", edit)])  # TransformerLens
        with lm.trace(text): block.output[0][:] = edit(block.output[0])  # nnsight

    Args:
        edited: gives raw activations (n, d) in place of raw ones, (n, d) float32 on the CPU.
        keep_opening: leave the first of several tokens as it is: the opening token's activation is
            no text's.
        padding: positions before the first token of each row, (batch,), which are left as they are
            too; or one number for all rows. None: rows are not padded on the left. They must then
            begin with one opening token, whose activation is the same in all of them.
    """

    def __init__(
        self,
        edited: Callable[[Tensor], Tensor],
        keep_opening: bool = True,
        padding: Sequence[int] | int | None = None,
    ):
        self.edited, self.keep_opening, self.padding = edited, keep_opening, padding

    def __call__(self, hidden_btd: Tensor, hook: object = None) -> Tensor:
        """The edited stream, of the same shape, dtype and device.

        Args:
            hook: TransformerLens names the place of the hook; it is passed over.
        Raises:
            ValueError: rows begin with different activations, and `padding` was not given.
        """
        chosen_bt, edited_btd = self._chosen(hidden_btd), hidden_btd.clone()
        edited_nd = self.edited(hidden_btd[chosen_bt].detach().float().cpu())
        edited_btd[chosen_bt] = edited_nd.to(hidden_btd)
        return edited_btd

    def _chosen(self, hidden_btd: Tensor) -> Tensor:
        """Which activations are edited, (batch, tokens) bool."""
        batch, tokens, _ = hidden_btd.shape
        if tokens == 1:  # the newest, behind a prompt
            return torch.ones(batch, 1, dtype=torch.bool, device=hidden_btd.device)
        first_bd = hidden_btd[:, 0]
        if self.keep_opening and self.padding is None and moved_by(first_bd[:1], first_bd):
            raise ValueError(
                "the rows of a batch begin with different activations, so some do not begin with "
                "the opening token: give padding=[…], how many positions of each row are padding "
                "on its left, or padding=0 for texts without an opening token"
            )
        padding = torch.as_tensor(0 if self.padding is None else self.padding)
        if padding.shape not in ((), (batch,)):
            raise ValueError(f"padding of {len(padding)} rows: the batch has {batch}")
        first_b = padding.expand(batch) + int(self.keep_opening)
        return (torch.arange(tokens) >= first_b[:, None]).to(hidden_btd.device)

    def forward_hook(self, module: nn.Module, inputs: tuple, output: BlockOutput) -> BlockOutput:
        """For `register_forward_hook` of a block of transformers."""
        edited_btd = self(hidden(output))
        return (edited_btd, *output[1:]) if isinstance(output, tuple | list) else edited_btd
