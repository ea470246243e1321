"""Controls and a button: three parties draw while the reader watches, and what it cost stands below the images."""

from collections.abc import Callable
from typing import Any

from ..progress import Progress
from ..sampling import SamplingResult
from .style import Shown
from .widgets import Control, Explorer

Draw = Callable[..., SamplingResult]


def on_parties(draw: Draw, /, **controls: Control) -> Explorer:
    """Return controls and a button that draws images with their values, and tells what they cost.

    It draws once by itself, so that a reader without a kernel sees images; an error of that is raised.

    Args:
        draw: function of `progress` (`cipherdm.progress.Progress`) and of the controls' values, by their names, to a result
            with costs.
        controls: settings by name.
    """

    def drawn(progress: Progress, **values: Any) -> Shown:
        result = draw(progress=progress, **values)
        cost = result.cost
        settings = ", ".join(f"{control.label} {values[name]}" for name, control in controls.items())
        told = (
            f"{cost.seconds:.1f} s; the three parties sent {cost.bytes / 1e6:.1f} MB in {cost.sends:,} messages, "
            f"{cost.rounds:,} of which had to wait for another one"
        )
        return Shown(result._repr_png_(), f"Drawn by three parties, {settings}: {told}.", f"{settings}: {told}")

    box = Explorer(controls, action=("draw on three parties", drawn))
    box.run()
    return box
