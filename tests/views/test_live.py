"""The button that has three parties draw: pictures and costs of the result, what goes on meanwhile, errors in words."""

import ipywidgets as widgets
import numpy as np
import pandas as pd
import pytest

from cipherdm import CipherDMError
from cipherdm.engine import CostReport
from cipherdm.sampling import SamplingResult
from cipherdm.views import on_parties

_ROW = {"program": "step", "party": 0, "calls": 1, "seconds": 1.0, "sent_bytes": 2_000_000, "received_bytes": 0}
ROWS = pd.DataFrame([_ROW | {"sends": 1234, "receives": 0}])
COST = CostReport(1.25, ROWS, ROWS)


@pytest.fixture
def box():
    """The box, and what `draw` was asked for."""
    asked = []

    def draw(progress, label, seed):
        asked.append((label, seed, button.disabled if len(asked) else None))
        progress(1, 4, "step 1/2 <conv>")
        seen.append((bar.value, bar.max, told.value) if len(asked) > 1 else None)
        if label == 9:
            raise CipherDMError("no <nine> here")
        return SamplingResult(np.full((1, 1, 4, 4), label / 10, np.float32), COST)

    seen = []
    made = on_parties(draw, label=widgets.IntSlider(3, 0, 9), seed=widgets.IntText(5))
    label, seed, row, told, image = made.children
    button, bar = row.children
    return made, asked, seen


def test_a_press_draws_with_the_values_and_shows_the_costs(box):
    made, asked, seen = box
    label, _, row, told, image = made.children
    first = image.value
    assert first[:4] == b"\x89PNG" and "1.2 s" in told.value and "2.0 MB in 1,234 messages" in told.value
    label.value = 7
    row.children[0].click()
    assert asked == [(3, 5, None), (7, 5, True)] and image.value != first
    assert seen[1] == (1, 4, "step 1/2 &lt;conv&gt;") and not row.children[0].disabled


def test_an_error_is_told_and_the_button_works_again(box):
    made, _, _ = box
    label, _, row, told, image = made.children
    label.value, before = 9, image.value
    row.children[0].click()
    assert told.value == "no &lt;nine&gt; here" and image.value == before and not row.children[0].disabled
