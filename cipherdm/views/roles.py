"""Who brings what into a sampling run, what each party holds of it, and how far a run is."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..progress import Progress
from ..sampling import Task
from ..sampling.steps import WEIGHTS
from .pictures import grey_levels
from .style import describe, new_figure

_WORD = 8  # bytes of a number modulo 2^64


def brought(task: Task) -> pd.DataFrame:
    """A row for each value of a run: who brings it, its shape, how many numbers, and the kB that each party gets of it.

    The weights are one row, and so are the numbers of the steps. A secret takes two words a number in each party's memory, a
    public value one.
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
                    "kB a party": numbers * _WORD * (1 if role == "public" else 2) / 1000,
                }
            )
    return pd.DataFrame(rows).set_index("value")


def party_pictures(image: np.ndarray, words: Sequence[np.ndarray], fraction_bits: int) -> Figure:
    """An image as its owner has it, as each party holds it, and as two parties together would.

    Args:
        image: [H, W] in [-1, 1], clipped.
        words: for each of the three parties uint64 [at least H * W, 2], see `Session.words_of`, of which the first
            H * W are drawn.
        fraction_bits: of the words' sum.
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
    """A line in a notebook's output that follows a run; to be passed as its `progress`."""
    from IPython.display import Pretty, display  # which only notebooks need

    handle = display(Pretty("nothing done yet"), display_id=True)
    return lambda done, total, label: handle.update(Pretty(progress_text(done, total, label)))


def progress_text(done: int, total: int, label: str, width: int = 30) -> str:
    """ "[#####.....] 5 of 10: step 5/10 step"."""
    filled = width * done // max(total, 1)
    return f"[{'#' * filled}{'.' * (width - filled)}] {done} of {total}: {label}"


def _grouped(values: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
    groups: dict[str, list[np.ndarray]] = {}
    for name, array in values.items():
        group = "weights" if name.startswith(WEIGHTS) else "numbers of the steps" if name.startswith("step.") else name
        groups.setdefault(group, []).append(np.asarray(array))
    return groups


def _draw(axis, levels: np.ndarray, title: str) -> None:
    axis.imshow(levels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)
