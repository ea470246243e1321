"""diffusers' own models as references, whatever kind they are of."""

from collections.abc import Mapping

import numpy as np
import torch


def with_random_vectors(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random normalisations and biases as well, so that no term can go missing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.3 * torch.randn(parameter.shape) + (1.0 if name.endswith("weight") else 0.0))
    return model


def torch_params(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Its state dict in NumPy."""
    return {name: value.numpy() for name, value in model.state_dict().items()}


def check_distribution(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> None:
    """Random weights have the spread that torch gives them, and normalisations begin where torch's do."""
    for name, value in ours.items():
        assert value.dtype == np.float32 and value.shape == theirs[name].shape
        if value.size > 1000:
            np.testing.assert_allclose(value.std(), theirs[name].std(), rtol=0.1, err_msg=name)
        elif "norm" in name.split(".")[-2]:
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)
