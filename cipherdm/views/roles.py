"""Values of a sampling run by who brings them, what each party holds of an image, and a line that follows a run."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..likeness import grey_levels
from ..owner import WEIGHTS
from ..progress import Progress
from ..sampling import Task
from .style import describe, image_axis, new_figure


def brought(task: Task) -> pd.DataFrame:
    """Table of a run's values: who brings each, its shape, count of numbers, and the kB that each party gets of it.

    The weights are one row, and so are the numbers of the steps. A secret takes two words of 8 bytes per number in each
    party's memory, a public value one.
    """
    rows = []
    for role, values in (("model owner", task.owner), ("client", task.client), ("public", task.public)):
        for name, arrays in _grouped(values).items():
            numbers = sum(np.size(array) for array in arrays)
            rows.append(
                {
                    "value": name,
                    "from": role,
                    "shape": str(list(np.shape(arrays[0]))) if len(arrays) == 1 else f"{len(arrays)} arrays",
                    "numbers": numbers,
                    "kB a party": numbers * 8 * (1 if role == "public" else 2) / 1000,
                }
            )
    return pd.DataFrame(rows).set_index("value")


def party_pictures(image: np.ndarray, words: Sequence[np.ndarray], fraction_bits: int) -> Figure:
    """Draw an image as its owner has it, as each party holds it, and as two parties together would have it.

    Args:
        image: [H, W] in [-1, 1], clipped.
        words: uint64 [at least H * W, 2] of each of the three parties, see `Session.words_of`; the first H * W are drawn.
        fraction_bits: fraction bits of the words' sum.
    """
    shape = image.shape
    held = [part[: math.prod(shape)] for part in words]
    figure = new_figure(8.6, 3.3)
    grid = figure.add_gridspec(2, 5)
    _draw(figure.add_subplot(grid[:, 0]), grey_levels(image), "the client's")
    for rank, part in enumerate(held):
        for row, component in enumerate(part.T):
            axis = figure.add_subplot(grid[row, 1 + rank])
            top = (component >> np.uint64(56)).astype(np.uint8).reshape(shape)
            _draw(axis, top, "" if row else f"party {rank} holds")
            axis.set_xlabel(f"component {(rank + row) % 3}", fontsize=9)
    total = (held[0][:, 0] + held[0][:, 1] + held[1][:, 1]).view(np.int64) / 2.0**fraction_bits
    _draw(figure.add_subplot(grid[:, 4]), grey_levels(total.reshape(shape)), "parties 0 and 1\ntogether")
    off = np.abs(total - image.ravel()).max()
    return describe(
        figure,
        "Left, the client's image. In the middle, the two components that each of the three parties holds of it, drawn by "
        "their topmost byte: six pictures of noise without any trace of the image. Right, what parties 0 and 1 get by adding "
        f"up their three different components: the image again, {f'within {off:.1g} a pixel' if off else 'to the last bit'}.",
    )


def progress_line() -> Progress:
    """Show a line in a notebook's output that follows a run; returns the function to pass as its `progress`."""
    from IPython.display import Pretty, display  # which only notebooks need

    handle = display(Pretty("nothing done yet"), display_id=True)
    return lambda done, total, label: handle.update(Pretty(progress_text(done, total, label)))


def progress_text(done: int, total: int, label: str, width: int = 30) -> str:
    """Write progress as "[#####.....] 5 of 10: step 5/10 step"."""
    bar = "#" * (width * done // max(total, 1))
    return f"[{bar:.<{width}}] {done} of {total}: {label}"


def _grouped(values: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    groups = defaultdict(list)
    for name, array in values.items():
        group = "weights" if name.startswith(WEIGHTS) else "numbers of the steps" if name.startswith("step.") else name
        groups[group].append(array)
    return groups


def _draw(axis, levels: np.ndarray, title: str) -> None:
    axis.imshow(levels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    image_axis(axis, title)
