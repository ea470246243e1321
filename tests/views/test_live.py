"""The button that has three parties draw: pictures and costs of the result, what goes on meanwhile, errors in words."""

import numpy as np
import pandas as pd
import pytest

from cipherdm import CipherDMError
from cipherdm.engine import CostReport
from cipherdm.sampling import SamplingResult
from cipherdm.views import Control, on_parties, slider

_ROW = {"program": "step", "party": 0, "calls": 1, "seconds": 1.0, "sent_bytes": 2_000_000, "received_bytes": 0}
ROWS = pd.DataFrame([_ROW | {"sends": 1234, "receives": 0}])
COST = CostReport(1.25, ROWS, ROWS)


@pytest.fixture
def box():
    """The box, what `draw` was asked for, and the status while it drew."""
    asked, seen = [], []

    def draw(progress, label, prompt):
        asked.append((label, prompt))
        progress(1, 4, "step 1/2 conv")
        if len(asked) > 1:
            seen.append(made._status)
        if label == 9:
            raise CipherDMError("no nine here")
        return SamplingResult(np.full((1, 1, 4, 4), label / 10, np.float32), COST)

    made = on_parties(draw, label=slider("digit", 3, 0, 9), prompt=Control("prompt", ["a", "b"], "a", kind="text"))
    return made, asked, seen


def test_a_press_draws_with_the_values_and_shows_the_costs(box):
    made, asked, seen = box
    first = made.shown
    assert first.picture[:4] == b"\x89PNG" and "1.2 s; the three parties sent 2.0 MB in 1,234 messages" in first.text
    assert "digit 3, prompt a" in first.caption and first.caption in made._repr_mimebundle_()["text/html"]
    made.set(label=7, prompt="a text of one's own")
    assert made.shown is first  # which is what was drawn
    made._handle_custom_msg("run", [])
    assert asked == [(3, "a"), (7, "a text of one's own")] and "digit 7" in made._shown
    assert made.shown.picture != first.picture
    assert seen == [{"busy": True, "text": "step 1/2 conv", "done": 1, "total": 4}]
    assert made._status == {"busy": False, "text": ""}


def test_an_error_is_told_and_the_button_works_again(box):
    made, _, _ = box
    before = made.shown
    made.set(label=9)
    made._handle_custom_msg("run", [])
    assert made._status == {"busy": False, "text": "no nine here"} and made.shown is before
    with pytest.raises(CipherDMError, match="no nine"):
        made.run()
