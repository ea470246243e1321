"""Records with images beside them: written, read, and drawn in rows and columns."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from cipherdm.errors import CipherDMError
from cipherdm.files import replacing
from cipherdm.records import read_record, write_record


def write(path: str | Path, record: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> str:
    """Write a record as JSON, and an .npz file for each kind of images beside it. Return a sentence that names the files.

    Images are uint8 [n, ...], plaintext ones first. The others are stored as their difference from those, modulo 256, which
    compresses well.
    """
    path = Path(path)
    files, paths = {}, []
    for kind, levels in images.items():
        buffer = io.BytesIO()
        np.savez_compressed(buffer, plaintext=levels[0], difference=levels[1:] - levels[0])
        beside = path.with_name(f"{path.stem}_{kind}.npz")
        with replacing(beside) as temporary:
            temporary.write_bytes(buffer.getvalue())
        files[kind] = {"file": beside.name, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
        paths.append(beside)
    write_record(path, {**record, "pictures": files})
    return f"Wrote {path} and {', '.join(map(str, paths))}."


def read(path: str | Path, command: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read what `write` wrote: the record, and images by kind, uint8 [n, ...]. Raises CipherDMError, naming the `command`."""
    path = Path(path)
    record, images = read_record(path, command), {}
    for kind, named in record["pictures"].items():
        beside = path.with_name(named["file"])
        content = beside.read_bytes() if beside.exists() else b""
        if hashlib.sha256(content).hexdigest() != named["sha256"]:
            raise CipherDMError(f"{beside} is missing or does not belong to {path.name}: make it with `{command}`.")
        with np.load(io.BytesIO(content)) as stored:
            first, difference = stored["plaintext"], stored["difference"]
        images[kind] = np.concatenate([first[None], first + difference.reshape(-1, *first.shape)])
    return record, images


def image_axes(figure: Figure, rows: int, columns: int) -> np.ndarray:
    """Return axes [rows, columns] without ticks and frames, which keep their labels."""
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return axes


def labelled_images(figure: Figure, labels: Sequence[str], titles: Sequence[str], gap: float = 4) -> np.ndarray:
    """Return `image_axes` with a label left of each row, at a gap in points, and a title above each column."""
    axes = image_axes(figure, len(labels), len(titles))
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=9, rotation=0, ha="right", va="center", labelpad=gap)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    return axes


def draw_levels(axis: Axes, levels: np.ndarray) -> AxesImage:
    """Draw an image of grey levels or colours, uint8 [C, H, W]."""
    return axis.imshow(shown_pixels(levels), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def shown_pixels(levels: np.ndarray) -> np.ndarray:
    """Return an image [C, H, W] of one or three channels as `imshow` takes it: [H, W] or [H, W, 3]."""
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)
