"""The size of attention scores during training, as a term of the loss."""

from functools import partial

import torch
from diffusers.models.attention_processor import Attention


class ScoreRecorder:
    """Recorder of the mean square of the attention scores in a model's last call.

    Scores are taken before softmax and about the mean of their row, which softmax does not see. The smaller they are,
    the shorter is the range on which an exponential on shares must be right, and the cheaper it is.
    """

    def __init__(self, model: torch.nn.Module):
        self._projected: dict[tuple[int, str], torch.Tensor] = {}
        self._blocks = [module for module in model.modules() if isinstance(module, Attention)]
        for index, block in enumerate(self._blocks):
            for leaf in ("to_q", "to_k"):
                getattr(block, leaf).register_forward_hook(partial(self._keep, (index, leaf)))

    def mean_square(self) -> torch.Tensor:
        """Return the sum over the blocks of the mean square of their scores, a scalar with gradient."""
        total = torch.zeros(())
        for index, block in enumerate(self._blocks):
            q, k = (
                self._projected.pop((index, leaf)).unflatten(-1, (block.heads, -1)).transpose(1, 2)
                for leaf in ("to_q", "to_k")
            )  # [B, heads, N, d] each
            k = k - k.mean(-2, keepdim=True)
            # The sum of (q_i k_j)^2 over all i and j, as the inner product of two d x d matrices.
            squares = ((q.mT @ q) * (k.mT @ k)).sum((-2, -1))
            total = total + block.scale**2 * squares.mean() / (q.shape[-2] * k.shape[-2])
        return total

    def _keep(self, key: tuple[int, str], module, inputs, output: torch.Tensor) -> None:
        self._projected[key] = output
