"""What a reader is told of an answer to an exercise."""

import numpy as np
import pytest

from cipherdm.errors import CipherDMError
from cipherdm.lessons import EXERCISES, Exercise, check


@pytest.mark.parametrize("answer", [(780, 61), np.float32([[780.4], [61]]), [780, 60.6]])
def test_numbers_within_their_tolerance_are_right(answer):
    assert Exercise((780, 61), "", within=0.5).verdict(answer) == "Right."


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((780, 62), "62 is too large"),
        ((779, 62), "779 is too small"),
        ((np.nan, 61), "nan is too"),
        (780, "2 numbers are asked for, and these are 1"),
        ("780 and 61", "is not made of numbers"),
        (None, "asked for"),
    ],
)
def test_wrong_numbers_are_named_with_the_hint(answer, told):
    verdict = Exercise((780, 61), "Count again.", within=0.5).verdict(answer)
    assert verdict.startswith("Not yet") and told in verdict and verdict.endswith("Count again.")


def test_a_text_has_to_contain_what_is_right():
    exercise = Exercise("party 2", "Read the error.")
    assert exercise.verdict("Party 2 was killed") == "Right."
    assert exercise.verdict("party 1 was killed") == "Not yet. Read the error."


@pytest.mark.parametrize("exercise", EXERCISES)
def test_an_empty_cell_gets_no_error(exercise, capsys):
    check(exercise, ...)
    assert capsys.readouterr().out.startswith("No answer yet")


def test_an_unknown_exercise_is_named():
    with pytest.raises(CipherDMError, match=r"'99\.1'"):
        check("99.1", 1)
