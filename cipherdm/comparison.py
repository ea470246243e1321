"""Secure pictures beside plaintext ones from the same noise: how alike they are, and what `cipherdm sample` leaves of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import replacing
from .records import write_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .sampling import SamplingResult
    from .sampling.text_to_image import TextToImageResult

BEST_PSNR = 120.0  # dB, in the place of infinity where two pictures are equal


def psnr(images: np.ndarray, references: np.ndarray) -> list[float]:
    """Of each image [B, C, H, W], in dB, clipped to [-1, 1] as it is shown; at most `BEST_PSNR`."""
    squares = np.square(np.clip(images, -1, 1).astype(np.float64) - np.clip(references, -1, 1)).mean(axis=(1, 2, 3))
    return [float(value) for value in 10 * np.log10(4 / np.maximum(squares, 4 * 10 ** (-BEST_PSNR / 10)))]


def extent_psnr(values: np.ndarray, references: np.ndarray) -> list[float]:
    """Of each array [B, ...], in dB, for numbers without a range of their own such as latents; at most `BEST_PSNR`.

    The peak is the distance of the reference's lowest number from its highest.
    """
    found = []
    for value, reference in zip(values, np.asarray(references, np.float64), strict=True):
        peak = np.square(reference.max() - reference.min())
        mean = np.square(value - reference).mean()
        found.append(float(10 * np.log10(peak / max(mean, peak * 10 ** (-BEST_PSNR / 10)))))
    return found


def write_comparison(
    out: Path,
    figure: "Figure",
    about: Mapping[str, Any],
    secure: "SamplingResult | TextToImageResult",
    found: list[float],
) -> str:
    """Write the picture of a secure run, and beside it the record as .json; returns what to print.

    Args:
        out: the picture's file.
        figure: secure images beside plaintext ones.
        about: what the record says of the run.
        secure: the run on three parties.
        found: its images' PSNR to plaintext, in dB.
    """
    cost, record = secure.cost, out.with_suffix(".json")
    with replacing(out) as temporary:
        figure.savefig(temporary, dpi=150)
    write_record(record, {**about, "psnr_db": found, "peak_memory_bytes": secure.peak_memory, "cost": cost.to_dict()})
    return (
        f"{len(found)} pictures in {cost.seconds:.1f} s; the parties sent {cost.bytes / 1e6:.1f} MB in {cost.sends} messages "
        f"and held at most {max(secure.peak_memory) / 2**20:.0f} MiB each.\n"
        f"PSNR of secure against exact plaintext: mean {np.mean(found):.1f} dB, lowest {min(found):.1f} dB.\n"
        f"Wrote {out} and {record}."
    )
