"""A client's pictures with their hints and captions, in one file of NumPy arrays."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import CipherDMError
from ..files import replacing


@dataclass(frozen=True)
class Examples:
    """Pictures and hints, uint8 [N, H, W, 3], and captions, texts [N]. Raises CipherDMError if they do not fit together."""

    pictures: np.ndarray
    hints: np.ndarray
    captions: np.ndarray

    def __post_init__(self) -> None:
        shape, kinds = self.pictures.shape, {self.pictures.dtype.name, self.hints.dtype.name}
        fits = len(shape) == 4 and shape[0] > 0 and shape[3] == 3 and self.hints.shape == shape and kinds == {"uint8"}
        if not fits or self.captions.shape != shape[:1] or self.captions.dtype.kind != "U":
            raise CipherDMError(
                f"pictures {list(shape)}, hints {list(self.hints.shape)} and captions {list(self.captions.shape)} do not fit: "
                "give uint8 [N, height, width, 3] twice, and N texts."
            )

    @classmethod
    def of(cls, pictures: torch.Tensor, hints: torch.Tensor, captions: Sequence[str]) -> "Examples":
        """Make them of pictures [N, 3, H, W] in [-1, 1] and hints [N, 3, H, W] in [0, 1]."""
        levels = (127.5 * (pictures + 1), 255 * hints)
        pixels = (each.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy() for each in levels)
        return cls(*pixels, np.array(captions, str))

    def batch(self, count: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
        """Draw pictures [count, 3, H, W] in [-1, 1], their hints in [0, 1], and their captions, with replacement."""
        rows = generator.integers(len(self.pictures), size=count)
        pictures, hints = (torch.from_numpy(each[rows]).permute(0, 3, 1, 2) for each in (self.pictures, self.hints))
        return pictures.float() / 127.5 - 1, hints.float() / 255, self.captions[rows].tolist()

    def save(self, path: Path) -> None:
        """Write the arrays to an .npz file."""
        with replacing(path) as temporary:
            np.savez_compressed(temporary, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Examples":
        """Read an .npz file with the arrays `pictures`, `hints` and `captions`. Raises CipherDMError for any other."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(*(arrays[name] for name in ("pictures", "hints", "captions")))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise CipherDMError(
                f"{path} cannot be read ({error}): give an .npz file with pictures, hints and captions."
            ) from error
