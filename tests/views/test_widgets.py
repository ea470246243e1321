"""Pictures under controls, and as outputs of notebooks: what is saved, and what is read out."""

import base64
import io
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import cipherdm as cdm
from cipherdm.views.style import describe, new_figure, png, png_of
from cipherdm.views.widgets import Control, Explorer, slider, switch


def a_line(color="black"):
    figure = new_figure(3, 2)
    figure.add_subplot().plot([0, 1], color=color)
    return describe(figure, 'A line: from 0 to "1" & up. It is black.')


class Tags(HTMLParser):
    """Collects the attributes of each tag, and the text within it."""

    def __init__(self, html: str):
        super().__init__()
        self.attributes, self.texts, self._open = {}, {}, None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.attributes[tag], self._open = dict(attrs), tag

    def handle_data(self, data):
        self.texts[self._open] = data


def test_a_figure_is_shown_with_its_description_and_a_caption():
    found = cdm.show(a_line())._repr_mimebundle_()
    tags = Tags(found["text/html"])
    assert tags.attributes["img"]["alt"] == found["text/plain"] == 'A line: from 0 to "1" & up. It is black.'
    assert tags.texts["figcaption"] == "A line."
    image = Image.open(io.BytesIO(base64.b64decode(found["image/png"])))
    same = Image.open(
        io.BytesIO(base64.b64decode(tags.attributes["img"]["src"].removeprefix("data:image/webp;base64,")))
    )
    np.testing.assert_array_equal(image.convert("RGB"), same)
    assert image.size == (330, 220) and image.text["Description"] == found["text/plain"]
    assert (
        Tags(cdm.show(a_line(), "Up <it> goes")._repr_mimebundle_()["text/html"]).texts["figcaption"] == "Up <it> goes"
    )


def test_a_drawing_is_small_and_a_map_of_colours_keeps_them():
    pixels = np.zeros((100, 100, 3), np.uint8)
    buffer, small = io.BytesIO(png(a_line(), quick=True)), png(a_line())
    assert len(small) < 0.6 * len(buffer.getvalue())
    difference = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"), int) - np.asarray(
        Image.open(buffer).convert("RGB")
    )
    assert np.abs(difference).mean() < 0.5
    pixels[..., 0], pixels[..., 1] = np.arange(100) * 2, np.arange(100)[:, None] * 2
    np.testing.assert_array_equal(Image.open(io.BytesIO(png_of(pixels, ""))), pixels)


def test_an_explorer_draws_what_its_controls_say():
    asked = []

    def draw(first, second, third):
        asked.append((first, second, third))
        return describe(new_figure(2, 1), f"{first} < {second}")

    controls = {"first": slider("one", 1, 0, 3), "second": Control("two", [5, 7.5], 5), "third": switch("three", False)}
    box = Explorer(controls, draw)
    box.set(first=0, second=7.5, third=True)
    assert asked == [(1, 5, False), (0, 7.5, True)]
    assert box.shown.text == "0 < 7.5" and "<figcaption>0 &lt; 7.5<" in box._shown
    with pytest.raises(ValueError):
        box.set(first=4)


def test_an_explorer_has_a_static_picture_beside_its_view():
    found = Explorer(
        {"n": slider("n", 1, 0, 3)}, lambda n: describe(new_figure(2, 1), f"{n} things")
    )._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in found and found["text/plain"] == "1 things"
    assert Image.open(io.BytesIO(base64.b64decode(found["image/png"]))).size == (220, 110)
    assert "<figcaption>1 things</figcaption>" in found["text/html"]


def test_a_scenes_picture_brings_what_a_page_needs_to_move_it():
    from cipherdm.costs.sampling import StepCost
    from cipherdm.views import latency_explorer

    box = latency_explorer({"it's": [StepCost("it's", "fast", 1, seconds=2.0, bytes=6, rounds=5, path_bytes=2)]})
    found = box._repr_mimebundle_()
    page = json.loads(unescape(re.search("data-cipherdm='([^']*)'", found["text/html"])[1]))
    assert page["spec"]["scene"] == "latency" and page["spec"]["data"]["costs"]["it's"][0]["rounds"] == 5
    assert page["chosen"]["steps"] == list(box.controls["steps"].values).index(20)
    assert found["image/svg+xml"].startswith("<svg xmlns=") and "fast" in found["image/svg+xml"]
