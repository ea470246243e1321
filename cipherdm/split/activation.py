"""The function with which clients disguise what they send, |v| tanh(v / 2), and its inverse.

Source: arXiv 2409.08503 (Split-learning ControlNet), whose code computes |v| (2 sigmoid(v) - 1). The function is odd and
increases everywhere, so it hides nothing: whoever has its value has its argument. Only rounding to float16 is lost, and
where the derivative vanishes, at 0, a value below float16's smallest one is read as 0.
"""

import torch

_STEPS = 60  # of Newton's method; far fewer do except for values next to 0


def phi(values: torch.Tensor) -> torch.Tensor:
    """Return |v| tanh(v / 2) of each value, same shape and dtype."""
    return values.abs() * torch.tanh(values / 2)


def phi_inverse(values: torch.Tensor) -> torch.Tensor:
    """Return v with phi(v) = y for each value y, float64 of the same shape; exact to about 1e-12 times the largest value."""
    size = values.double().abs()
    # Never below the root: v tanh(v / 2) is at least v^2 / 4 up to 2, and v - phi(v) never exceeds 0.56.
    root = torch.minimum(2 * size.sqrt(), size + 0.56)
    root = torch.where(size > 1, size + 0.56, root)
    for _ in range(_STEPS):
        slope = torch.tanh(root / 2)
        slope = slope + root / 2 * (1 - slope.square())
        root = (root - (phi(root) - size) / slope.clamp_min(1e-150)).clamp_min(0)
    return torch.copysign(root, values.double())
