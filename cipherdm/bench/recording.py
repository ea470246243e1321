"""Records of sampling step by step: what `bench.trajectory` measured, with its pictures beside it, written and read."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..costs import Network, latency
from ..errors import CipherDMError
from ..files import replacing
from ..records import read_record, write_record

_REMEDY = "make it with `cipherdm bench trajectory MODEL --scheduler NAME`."

LIKENESSES = {
    "secure_to_exact": "samples on shares, against those of the exact functions in plaintext",
    "emulated_to_exact": "samples of the protocols in plaintext, against those of the exact functions",
    "secure_to_emulated": "samples on shares, against those of the same protocols in plaintext",
    "predicted_to_exact": "predicted pictures on shares, against those of the exact functions in plaintext",
}
"""Which two runs a PSNR compares, all from the same noise."""


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded run, as `read` gives it: pictures in grey levels of 0 to 255 for values of -1 to 1, clipped.

    Attributes:
        about: the record: model, protocols, scheduler, steps, labels, seed, setup, a row for each step, environment.
        samples: uint8 [2, steps + 1, B, C, H, W], plaintext and secure: the noise, and the sample after each step.
        predicted: uint8 [2, steps, B, C, H, W], plaintext and secure: each step's predicted picture.
    """

    about: Mapping[str, Any]
    samples: np.ndarray
    predicted: np.ndarray

    @property
    def steps(self) -> int:
        """Denoising steps."""
        return len(self.about["rows"])

    @property
    def name(self) -> str:
        """Model, protocols, scheduler and steps in a few words."""
        about = self.about
        return f"{about['model']}, {about['protocols']}, {about['scheduler'].upper()}-{about['steps']}"

    def likeness(self, pair: str) -> np.ndarray:
        """PSNR in dB [steps, B] of `pair`, one of LIKENESSES."""
        return np.array([row[pair] for row in self.about["rows"]])

    def so_far(self, quantity: str) -> np.ndarray:
        """float64 [steps + 1]: "seconds", "bytes", "sends", "rounds" or "path_bytes" spent up to the end of each step."""
        parts = [self.about["setup"], *self.about["rows"]]
        return np.cumsum([part[quantity] for part in parts], dtype=np.float64)

    def seconds_over(self, network: Network) -> np.ndarray:
        """float64 [steps + 1]: seconds up to the end of each step over a network, by the latency model."""
        seconds, rounds, size = (self.so_far(quantity) for quantity in ("seconds", "rounds", "path_bytes"))
        return latency(seconds, rounds, size, network).seconds


def write(path: str | Path, record: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> tuple[Path, ...]:
    """Write a record as JSON and its pictures beside it, an .npz file for each kind; returns the pictures' paths.

    Pictures are uint8 [n, ...], plaintext ones first. The others are stored as their difference from those, modulo 256, which
    compresses well.
    """
    path = Path(path)
    files, paths = {}, []
    for kind, levels in pictures.items():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, plaintext=levels[0], difference=levels[1:] - levels[0])
        beside = path.with_name(f"{path.stem}_{kind}.npz")
        with replacing(beside) as temporary:
            temporary.write_bytes(buffer.getvalue())
        files[kind] = {"file": beside.name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        paths.append(beside)
    write_record(path, {**record, "pictures": files})
    return tuple(paths)


def read(path: str | Path) -> Recording:
    """Read what `write` wrote.

    Raises:
        CipherDMError: there is no such record, or its pictures are missing or of another run.
    """
    return Recording(**read_with_pictures(path, _REMEDY))


def read_with_pictures(path: str | Path, remedy: str) -> dict[str, Any]:
    """A record that `write` wrote as "about", and its pictures by kind, uint8 [n, ...].

    Raises:
        CipherDMError: there is no such record, or its pictures are missing or of another run; with the remedy.
    """
    path = Path(path)
    if not path.exists():
        raise CipherDMError(f"there is no record {path}: {remedy}")
    about = read_record(path)
    return {"about": about} | {kind: _pictures(path, named, remedy) for kind, named in about["pictures"].items()}


def _pictures(path: Path, named: Mapping[str, str], remedy: str) -> np.ndarray:
    beside = path.with_name(named["file"])
    content = beside.read_bytes() if beside.exists() else b""
    if hashlib.sha256(content).hexdigest() != named["sha256"]:
        raise CipherDMError(f"{beside} is missing or does not belong to {path.name}: {remedy}")
    with np.load(io.BytesIO(content)) as stored:
        first, difference = stored["plaintext"], stored["difference"]
        return np.concatenate([first[None], first + difference.reshape(-1, *first.shape)])


def table(recording: Recording) -> pd.DataFrame:
    """A row for each step: timestep, median PSNR of the samples in dB, and what it cost the parties."""
    frame = pd.DataFrame(recording.about["rows"]).set_index("step")
    medians = {"PSNR": np.median(recording.likeness("secure_to_exact"), axis=1)}
    return frame[["timestep", "seconds", "bytes", "sends", "rounds"]].assign(**medians)


def grey_levels(images: np.ndarray) -> np.ndarray:
    """uint8 levels of 0 to 255 for values of -1 to 1, as pictures are shown: clipped, and grey where not a number."""
    return np.round(127.5 * (np.clip(np.nan_to_num(images), -1, 1) + 1)).astype(np.uint8)
