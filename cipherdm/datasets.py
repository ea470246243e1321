"""MNIST and movie reviews from their original files, checked byte for byte before use."""

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .errors import CipherDMError
from .files import data

FOLDER = data() / "mnist"
"""Folder of the four packed files."""

Split = Literal["train", "test"]


# Name of each packed file, MD5 of its unpacked bytes, since different sources of MNIST pack the same bytes differently, and the
# shape of the array in it.
_FILES: dict[str, tuple[tuple[str, str, tuple[int, ...]], ...]] = {
    "train": (
        ("train-images-idx3-ubyte.gz", "6bbc9ace898e44ae57da46a324031adb", (60_000, 28, 28)),
        ("train-labels-idx1-ubyte.gz", "a25bea736e30d166cdddb491f175f624", (60_000,)),
    ),
    "test": (
        ("t10k-images-idx3-ubyte.gz", "2646ac647ad5339dbf082846283269ea", (10_000, 28, 28)),
        ("t10k-labels-idx1-ubyte.gz", "27ae3e4e09519cfbb04c329615203637", (10_000,)),
    ),
}


@dataclass(frozen=True)
class Digits:
    """Images and labels, row by row.

    `images` is float32 of shape [N, 1, 28, 28] in [-1, 1] (background -1); `labels` is int64 of shape [N], the digits
    themselves.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | np.ndarray) -> "Digits":
        """Return those rows."""
        return Digits(self.images[rows], self.labels[rows])


def load_mnist(split: Split, *, digits: Sequence[int] | None = None, folder: str | Path = FOLDER) -> Digits:
    """Read one split of MNIST in the order of the files.

    `digits` keeps only those digits (all ten by default). Raises CipherDMError for an unknown split or digit, and for a file
    that is missing, damaged or not the original.
    """
    if split not in _FILES:
        raise CipherDMError(f"MNIST has no split {split!r}. Use 'train' or 'test'.")
    kept = tuple(range(10)) if digits is None else tuple(digits)
    if not kept or any(digit not in range(10) for digit in kept):
        raise CipherDMError(f"digits={digits!r} is not a choice of MNIST digits. Give one or more of 0 to 9.")
    pixels, labels = (_read(Path(folder) / name, *about) for name, *about in _FILES[split])
    chosen = np.isin(labels, kept)
    images = pixels[chosen, None].astype(np.float32) / np.float32(127.5) - np.float32(1)
    return Digits(images, labels[chosen].astype(np.int64))


def _read(path: Path, md5: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the bytes of one IDX file as a uint8 array of this shape, after checking its checksum."""

    def wrong(problem: str) -> CipherDMError:
        return CipherDMError(
            f"{path} {problem}. Expected a file whose unpacked bytes have MD5 {md5}. Restore it with "
            f"'git checkout -- data/mnist', or put an original {path.name} of MNIST into {path.parent}."
        )

    try:
        packed = path.read_bytes()
    except OSError as error:
        raise wrong(f"cannot be read ({error.strerror})") from error
    try:
        raw = gzip.decompress(packed)
    except (OSError, EOFError, zlib.error) as error:
        raise wrong(f"is damaged: {len(packed)} bytes with MD5 {_md5(packed)} do not unpack ({error})") from error
    if _md5(raw) != md5:
        raise wrong(f"is damaged or another file: its unpacked bytes have MD5 {_md5(raw)}")
    header = 4 + 4 * len(shape)  # a magic number, then one big-endian int32 for each dimension
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Reviews:
    """Sentences out of movie reviews, and their classes, int64 [N]: 1 for a good rating, 0 for a bad one."""

    texts: tuple[str, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


REVIEWS = data() / "reviews" / "movieReviewSnippets_GroundTruth.txt"
_REVIEWS_SHA256 = "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"
_REMAINDERS = {"train": range(8), "development": (8,), "test": (9,)}  # of a text's SHA-256, divided by 10


def load_reviews(split: Literal["train", "development", "test"], *, path: str | Path = REVIEWS) -> Reviews:
    """Read one split of the movie reviews, in the order of the file. Ratings nearer to 0 than 0.5 are left out.

    Raises CipherDMError for an unknown split, and if the file is missing or another one.
    """
    if split not in _REMAINDERS:
        raise CipherDMError(f"The reviews have no split {split!r}. Use {', '.join(map(repr, _REMAINDERS))}.")
    remedy = "Restore it with 'git checkout -- data/reviews'."
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise CipherDMError(f"{path} cannot be read ({error.strerror}). {remedy}") from error
    if (found := hashlib.sha256(raw).hexdigest()) != _REVIEWS_SHA256:
        raise CipherDMError(f"{path} has SHA-256 {found}, where {_REVIEWS_SHA256} is expected. {remedy}")
    rows = [line.split("\t") for line in raw.decode("latin-1").replace("\r", "").split("\n")]
    kept = [
        (text.strip(), float(rating) > 0)
        for _, rating, text in rows
        if abs(float(rating)) >= 0.5
        and int(hashlib.sha256(text.strip().encode()).hexdigest(), 16) % 10 in _REMAINDERS[split]
    ]
    texts, labels = zip(*kept, strict=True)
    return Reviews(texts, np.asarray(labels, np.int64))
