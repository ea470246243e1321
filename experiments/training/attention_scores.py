"""The size of attention scores during training, as a term of the loss."""

import torch
from diffusers.models.attention_processor import Attention


class ScoreRecorder:
    """Watches the attention blocks of a model, and tells the mean square of their scores in the last call.

    Scores are taken before softmax and about the mean of their row, which softmax does not see. Small scores make an
    exponential that is cheap on shares: the fewer, the shorter the range it must be right on.
    """

    def __init__(self, model: torch.nn.Module):
        self._projected: dict[tuple[int, str], torch.Tensor] = {}
        self._blocks = [module for module in model.modules() if isinstance(module, Attention)]
        for index, block in enumerate(self._blocks):
            for leaf in ("to_q", "to_k"):
                getattr(block, leaf).register_forward_hook(self._keep((index, leaf)))

    def mean_square(self) -> torch.Tensor:
        """The sum over the blocks of the mean square of their scores, a scalar with gradient."""
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

    def _keep(self, key: tuple[int, str]):
        def hook(module, inputs, output):
            self._projected[key] = output

        return hook
