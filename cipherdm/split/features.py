"""What leaves a client for each batch: the tensors, their bytes on the wire, and the checks of whoever receives them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..errors import CipherDMError
from ..files import replacing
from . import split_pb2 as pb

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape, without the batch, of each tensor that a message must have."""


@dataclass(frozen=True)
class Features:
    """One batch of B pictures as the server receives it.

    Attributes:
        h: phi(hint's latents + noisy latents), float16 [B, C, h, w]; in conventional split learning the features after the
            client's own layers, float32 [B, width, h, w].
        noisy: the U-Net's first convolution of the noisy latents, float32 [B, width, h, w], as published; in lean messages the
            noisy latents themselves, float32 [B, C, h, w].
        noise: noise in them, which the server is to predict, float32 [B, C, h, w]. None only where somebody took it out.
        timesteps: int64 [B].
        prompts: embeddings of the prompts, float32 [B, tokens, width]; None if they are hidden.
    """

    h: torch.Tensor
    noisy: torch.Tensor
    noise: torch.Tensor | None
    timesteps: torch.Tensor
    prompts: torch.Tensor | None = None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that there are, by name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of each tensor on the wire."""
        return {name: tensor.nbytes for name, tensor in self.tensors.items()}

    @classmethod
    def joined(cls, batches: Iterable["Features"]) -> "Features":
        """Return several batches as one, in their order."""
        parts = [batch.tensors for batch in batches]
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return cls(**{"noise": None} | whole)

    def message(self) -> "pb.Batch":
        """Return the batch as it travels."""
        return pb.Batch(tensors=[tensor_message(name, tensor) for name, tensor in self.tensors.items()])

    @classmethod
    def read(cls, message: "pb.Batch", layout: Layout, count: int, timesteps: range) -> "Features":
        """Return the batch of `count` pictures in a message.

        Raises:
            CipherDMError: a tensor is missing, unknown, of another type or shape than the layout says, or not finite, or a
                timestep is not among `timesteps`.
        """
        found = {tensor.name: tensor for tensor in message.tensors}
        if len(message.tensors) != len(found) or set(found) != set(layout):
            raise CipherDMError(f"a batch has {', '.join(sorted(found))}, and must have {', '.join(sorted(layout))}.")
        tensors = {name: read_tensor(found[name], dtype, (count, *shape)) for name, (dtype, shape) in layout.items()}
        steps = tensors["timesteps"]
        if not (steps.min() >= timesteps.start and steps.max() < timesteps.stop):
            raise CipherDMError(f"a batch has timesteps outside {timesteps.start} to {timesteps.stop - 1}.")
        return cls(**{"prompts": None} | tensors)

    def save(self, path: Path) -> None:
        """Write the batch to a safetensors file."""
        with replacing(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> "Features":
        """Read a batch that `save` has written."""
        return cls(**{"noise": None} | load_file(path))


def tensor_message(name: str, tensor: torch.Tensor) -> "pb.Tensor":
    """Return a tensor as it travels."""
    array = tensor.detach().numpy()
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return pb.Tensor(name=name, dtype=array.dtype.name, shape=array.shape, data=data)


def read_tensor(message: "pb.Tensor", dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the tensor in a message. Raises CipherDMError for another type or shape, missing bytes, and what is not finite."""
    kind = np.dtype(dtype)
    if message.dtype != dtype or tuple(message.shape) != shape or len(message.data) != kind.itemsize * math.prod(shape):
        theirs = f"{message.dtype} {list(message.shape)} in {len(message.data)} bytes"
        raise CipherDMError(f"the tensor {message.name} is {theirs}, and must be {dtype} {list(shape)}.")
    array = np.frombuffer(message.data, kind.newbyteorder("<")).reshape(shape).astype(kind)
    if not np.isfinite(array).all():
        raise CipherDMError(f"the tensor {message.name} has values that are not finite.")
    return torch.from_numpy(array)
