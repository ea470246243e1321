"""Secure pictures beside plaintext ones from the same noise: how alike they are, and what `cipherdm sample` leaves of them."""

from dataclasses import asdict, dataclass

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

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


@dataclass(frozen=True)
class Likeness:
    """How near images are to others from the same noise, pixels clipped to [-1, 1] as when they are shown.

    Images with values that are not finite are taken for plain grey, as in `score_images`.

    `psnr` is the mean over the images of the peak signal-to-noise ratio in dB, `psnr_lowest` that of the worst image,
    `ssim` the mean structural similarity (Wang et al. 2004, as scikit-image computes it), 1 for equal images.
    """

    psnr: float
    psnr_lowest: float
    ssim: float
    count: int

    @classmethod
    def of(cls, images: np.ndarray, references: np.ndarray) -> "Likeness":
        """Of images [N, 1, H, W] to references of the same shape."""
        pairs = list(zip(*(np.clip(without_overflows(x)[0][:, 0], -1, 1) for x in (images, references)), strict=True))
        with np.errstate(divide="ignore"):  # equal images: infinite
            ratios = [peak_signal_noise_ratio(reference, image, data_range=2) for image, reference in pairs]
        similarity = [structural_similarity(reference, image, data_range=2) for image, reference in pairs]
        return cls(float(np.mean(ratios)), float(min(ratios)), float(np.mean(similarity)), len(pairs))

    def as_json(self) -> dict[str, float | int]:
        """The fields as a JSON-ready dictionary."""
        return asdict(self)


def without_overflows(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, C, H, W] with grey in the place of those that are not finite, and which those are, bool [N]."""
    images = np.asarray(images)
    overflowed = ~np.isfinite(images).all(axis=(1, 2, 3))
    return np.where(overflowed[:, None, None, None], 0, images), overflowed
