"""Controls and a button: three parties draw while the reader watches, and what it cost stands beside the picture."""

from collections.abc import Callable
from html import escape

import ipywidgets as widgets

from ..errors import CipherDMError
from ..sampling import SamplingResult

Draw = Callable[..., SamplingResult]


def on_parties(draw: Draw, /, **controls: widgets.ValueWidget) -> widgets.VBox:
    """Return a box of controls, a button that draws with their values, a bar, the images and what they cost.

    It draws once by itself, so that a reader without a kernel sees images. Errors of this package are shown in words.

    Args:
        draw: function of `progress` (`cipherdm.progress.Progress`) and of the controls' values, by their names, to a result
            with costs.
        controls: ipywidgets with a `value`.
    """
    button = widgets.Button(description="draw on three parties", icon="play", layout={"width": "16em"})
    bar, image, told = widgets.IntProgress(layout={"width": "16em"}), widgets.Image(format="png"), widgets.HTML()

    def progress(done: int, total: int, label: str) -> None:
        bar.max, bar.value = total, done
        told.value = escape(label)

    def press(_=None) -> None:
        button.disabled = True
        try:
            result = draw(progress=progress, **{name: control.value for name, control in controls.items()})
            image.value, cost = result._repr_png_(), result.cost
            told.value = (
                f"{cost.seconds:.1f} s; the three parties sent {cost.bytes / 1e6:.1f} MB in {cost.sends:,} messages, "
                f"{cost.rounds:,} of which had to wait for another one"
            )
        except CipherDMError as error:
            told.value = escape(str(error))
        finally:
            button.disabled = False

    button.on_click(press)
    press()
    return widgets.VBox([*controls.values(), widgets.HBox([button, bar]), told, image])
