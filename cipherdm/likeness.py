"""Likeness of secure images and plaintext images from the same noise."""

from dataclasses import asdict, dataclass

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

BEST_PSNR = 120.0  # dB, instead of infinity where two images are equal


def psnr(images: np.ndarray, references: np.ndarray) -> list[float]:
    """Peak signal-to-noise ratio of each image [B, C, H, W] in dB, clipped to [-1, 1] as shown; at most `BEST_PSNR`."""
    images, references = (np.clip(x, -1, 1) for x in (images, references))
    return [_ratio(*pair, extent=2.0) for pair in zip(images, references, strict=True)]


def extent_psnr(values: np.ndarray, references: np.ndarray) -> list[float]:
    """PSNR in dB of each array [B, ...] of numbers without a range of their own, such as latents; at most `BEST_PSNR`.

    The peak is the distance of the reference's lowest number from its highest.
    """
    return [_ratio(*pair, extent=np.ptp(pair[1])) for pair in zip(values, np.float64(references), strict=True)]


def _ratio(values: np.ndarray, reference: np.ndarray, extent: float) -> float:
    values, reference = np.float64(values), np.float64(reference)
    with np.errstate(divide="ignore"):  # equal arrays give infinity
        return min(float(peak_signal_noise_ratio(reference, values, data_range=extent)), BEST_PSNR)


@dataclass(frozen=True)
class Likeness:
    """Likeness of images and references, with pixels clipped to [-1, 1] as when they are shown.

    Images with values that are not finite count as plain grey.

    Attributes:
        psnr: mean of the images' peak signal-to-noise ratios in dB.
        psnr_lowest: that of the worst image.
        ssim: mean structural similarity (Wang et al. 2004, as scikit-image computes it), 1 for equal images.
        count: number of images.
    """

    psnr: float
    psnr_lowest: float
    ssim: float
    count: int

    @classmethod
    def of(cls, images: np.ndarray, references: np.ndarray) -> "Likeness":
        """Compare images [N, 1, H, W] with references of the same shape."""
        images, references = (without_overflows(x)[0] for x in (images, references))
        ratios = psnr(images, references)
        pairs = zip(*(np.clip(x[:, 0], -1, 1) for x in (images, references)), strict=True)
        similarity = [structural_similarity(reference, image, data_range=2) for image, reference in pairs]
        return cls(float(np.mean(ratios)), min(ratios), float(np.mean(similarity)), len(ratios))

    def as_json(self) -> dict[str, float | int]:
        """The fields as a JSON-ready dictionary."""
        return asdict(self)


def without_overflows(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace images [N, C, H, W] that are not finite by grey; also return which those are, bool [N]."""
    images = np.asarray(images)
    overflowed = ~np.isfinite(images).all(axis=(1, 2, 3))
    return np.where(overflowed[:, None, None, None], 0, images), overflowed


def grey_levels(images: np.ndarray) -> np.ndarray:
    """Levels 0 to 255, uint8, for values of -1 to 1: clipped to that range, and grey where NaN."""
    return np.round(127.5 * (np.clip(np.nan_to_num(images), -1, 1) + 1)).astype(np.uint8)
