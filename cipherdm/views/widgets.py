"""Pictures under controls, with their description in words below them.

A picture is drawn by Python, and then moves while there is a kernel, or by a scene: a function in the folder `front` from data
and the controls' values to SVG. A scene moves on any page, and draws the static picture that is saved in a notebook as well.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal

import anywidget
import numpy as np
import quickjs
import traitlets
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..errors import CipherDMError
from .style import DPI, Shown, png, png_of

FRONT = Path(__file__).parent / "front"
SCENES = ("clock", "latency", "messages", "pareto", "pictures")


class MovingPicture:
    """A figure with a background that is drawn once, and artists that are drawn anew for each setting.

    Building axes and drawing their ticks takes longer than a slider should wait, and a constrained layout longer still. So
    axes stand at fixed places, a `show` of the derived class moves what is there, and `pixels` and `png` draw just that.
    Width and height are in inches.
    """

    def __init__(self, width: float, height: float):
        self.figure = Figure(figsize=(width, height), dpi=DPI)
        FigureCanvasAgg(self.figure)
        self._moving: list[Artist] = []
        self._background = None

    def pixels(self) -> np.ndarray:
        """Draw the figure as it stands, uint8 [height, width, 3]."""
        canvas = self.figure.canvas
        if self._background is None:
            # Hidden instead of "animated", which a figure that is saved leaves out.
            hidden = [artist for artist in self._moving if artist.get_visible()]
            for artist in hidden:
                artist.set_visible(False)
            canvas.draw()
            self._background = canvas.copy_from_bbox(self.figure.bbox)
            for artist in hidden:
                artist.set_visible(True)
        canvas.restore_region(self._background)
        for artist in self._moving:
            artist.draw(canvas.get_renderer())
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def png(self, *, quick: bool = False) -> bytes:
        """Return `pixels` as a PNG file, with the figure's description in its metadata; `quick` is as in `png_of`."""
        return png_of(self.pixels(), self.figure.get_label(), quick=quick)

    def _moves(self, artists: Iterable[Artist]) -> None:
        """Say which artists change. Others may too, if `_background` is set to None then."""
        self._moving = list(artists)


@dataclass(frozen=True)
class Control:
    """One of a picture's settings, chosen among values.

    Attributes:
        label: what the reader reads, and a screen reader says.
        values: values to choose from; a switch has False and True. Of a text they are suggestions.
        start: value at first.
        words: text for each value, read out instead of it; the values themselves by default.
        kind: form of the control.
        plays: True for a button that moves the slider by itself.
        sets: for each value, values of other controls that it sets, by their names.
    """

    label: str
    values: Sequence[Any]
    start: Any
    words: Sequence[str] | None = None
    kind: Literal["slider", "choice", "switch", "text"] = "slider"
    plays: bool = False
    sets: Sequence[dict[str, Any]] | None = None


def slider(label: str, value: int, lowest: int, highest: int) -> Control:
    """Slider over whole numbers."""
    return Control(label, range(lowest, highest + 1), value)


def switch(label: str, on: bool) -> Control:
    """Box to tick."""
    return Control(label, (False, True), on, kind="switch")


def front(*names: str) -> str:
    """Read files of the front end, one after the other."""
    return "\n".join((FRONT / f"{name}.js").read_text() for name in names)


def drawn(scene: str, data: Any, values: dict[str, Any]) -> Shown:
    """Draw a scene of these values as an SVG, without a browser."""
    call = f"JSON.stringify(drawn({', '.join(map(json.dumps, (scene, data, values)))}))"
    found = json.loads(quickjs.Context().eval(f"{front('drawing', scene)}\n{call}"))
    return Shown(found["svg"], found["text"], found["text"])


class Explorer(anywidget.AnyWidget):
    """Controls, the picture that belongs to their values, and its description. Shows its static picture without a kernel.

    Args:
        controls: settings by name.
        draw: function of the values, by name, to a described figure, in less than 100 ms if possible.
        moving: picture whose figure `draw` returns, for what takes longer to build.
        scene: name of a scene in `front`, which draws instead of `draw`.
        data: what the scene draws from, ready for JSON.
        action: text of a button, and what it runs: a function of `progress` (`cipherdm.progress.Progress`) and of the values,
            by name, to what is shown then.
    """

    _spec = traitlets.Dict().tag(sync=True)
    _chosen = traitlets.Dict().tag(sync=True)
    _shown = traitlets.Unicode().tag(sync=True)
    _status = traitlets.Dict({"busy": False, "text": ""}).tag(sync=True)

    def __init__(
        self,
        controls: dict[str, Control],
        draw: Callable[..., Figure | Shown] | None = None,
        moving: MovingPicture | None = None,
        *,
        scene: str = "",
        data: Any = None,
        action: tuple[str, Callable[..., Figure | Shown]] = ("", None),
    ):
        self.controls, self._draw, self._moving, self.scene, self.data = controls, draw, moving, scene, data
        label, self._action = action
        self._esm = front("drawing", *([scene] if scene else []), "explorer", "widget")
        super().__init__(
            _spec={
                "scene": scene,
                "data": data,
                "controls": [self._written(*item) for item in controls.items()],
                "action": label,
            },
            _chosen={name: self._index(name, control.start) for name, control in controls.items()},
        )
        self.observe(self._redraw, "_chosen")
        self.on_msg(self._pressed)
        self._redraw()

    @property
    def values(self) -> dict[str, Any]:
        """Values of the controls, by name."""
        chosen = self._chosen
        return {
            name: chosen[name] if control.kind == "text" else control.values[chosen[name]]
            for name, control in self.controls.items()
        }

    @property
    def shown(self) -> Shown:
        """The picture as it stands, and its description."""
        return self._picture

    def set(self, **values: Any) -> None:
        """Move controls, as a reader does. Raises ValueError for a value that a control does not have."""
        for name, value in list(values.items()):
            if sets := self.controls[name].sets:
                values |= sets[self._index(name, value)]
        self._chosen = self._chosen | {name: self._index(name, value) for name, value in values.items()}

    def run(self) -> Any:
        """Do what the button does: run the action and show what it returns, with a status that stays until it ends.

        An error is told by the status, and raised.
        """
        self._status, told = {"busy": True, "text": "It begins ..."}, ""
        try:
            self._present(self._action(progress=self._tell, **self.values))
        except Exception as error:
            told = str(error)
            raise
        finally:
            self._status = {"busy": False, "text": told}

    def _tell(self, done: int, total: int, label: str) -> None:
        self._status = {"busy": True, "text": label, "done": done, "total": total}

    def _pressed(self, _widget: Any, _message: Any, _buffers: Any) -> None:
        with suppress(CipherDMError):  # which the status tells
            self.run()

    def _index(self, name: str, value: Any) -> Any:
        control = self.controls[name]
        return value if control.kind == "text" else list(control.values).index(value)

    def _written(self, name: str, control: Control) -> dict[str, Any]:
        """A control as the front end reads it: values to be set are written as their numbers."""
        sets = control.sets and [{key: self._index(key, value) for key, value in each.items()} for each in control.sets]
        words = [str(value) for value in control.values] if control.words is None else list(control.words)
        values = list(control.values) if self.scene else []
        written = {"name": name, "label": control.label, "kind": control.kind, "plays": control.plays}
        return written | {"words": words, "values": values, "sets": sets}

    def _redraw(self, change: Any = None) -> None:
        if self.scene:
            self._picture = drawn(self.scene, self.data, self.values)
        elif self._draw:
            self._present(self._draw(**self.values), quick=change is not None)

    def _present(self, made: Figure | Shown, *, quick: bool = False) -> None:
        if isinstance(made, Figure):
            picture = png(made, quick=quick) if self._moving is None else self._moving.png(quick=quick)
            made = Shown(picture, made.get_label(), made.get_label())
        self._picture, self._shown = made, made.html()

    def _repr_mimebundle_(self, **settings: Any) -> dict[str, Any]:
        view = super()._repr_mimebundle_(**settings)
        bundle = dict(view[0] if isinstance(view, tuple) else view) | self._picture._repr_mimebundle_()
        if self.scene:
            data = json.dumps({"spec": self._spec, "chosen": self._chosen}, separators=(",", ":"))
            quoted = escape(data, quote=False).replace("'", "&#39;")  # JSON has many double quotes
            bundle["text/html"] = f"<div data-cipherdm='{quoted}'>{self._picture.html(small=True)}</div>"
        return bundle


def page(title: str, paragraphs: Sequence[str], explorer: Explorer) -> str:
    """Write a page of HTML with a heading, text, and an explorer of a scene, which moves without Python."""
    scripts = front("drawing", explorer.scene, "explorer", "page")
    text = "".join(f"<p>{escape(each)}</p>" for each in paragraphs)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title>"
        "<style>body { font-family: sans-serif; max-width: 60em; margin: 1em auto; padding: 0 1em }</style>"
        f"<h1>{escape(title)}</h1>{text}{explorer._repr_mimebundle_()['text/html']}<script>{scripts}</script></html>\n"
    )
