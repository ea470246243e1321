"""Words as digits, and arrays as pictures: what is shown is the data."""

import numpy as np
import pytest

from cipherdm.kernels.products import FLOAT64, INT8
from cipherdm.views import kernels
from cipherdm.views.pictures import image_panels


def test_pictures_are_told_from_noise_in_words():
    ramp = np.add.outer(np.arange(20.0), np.arange(20.0))
    noise = np.random.default_rng(0).integers(0, 2**64, (20, 20), np.uint64).astype(np.float64)
    figure = image_panels({"one": ramp, "two": noise, "three": np.zeros((4, 4))})
    assert [axis.get_title() for axis in figure.axes] == ["one", "two", "three"]
    for axis, values in zip(figure.axes, (ramp, noise, np.zeros((4, 4))), strict=True):
        assert np.array_equal(axis.get_images()[0].get_array(), values)
    label = figure.get_label()
    assert "one: values from 0 to 38, a picture" in label
    assert label.index("noise") > label.index("two:") and "three: values from 0 to 0, all equal" in label


@pytest.mark.parametrize(
    "form",
    [path.form(bits) for path in (INT8, FLOAT64) for bits in (64, 32)],
    ids=lambda form: f"{form.bits} in {form.base}",
)
def test_digits_of_a_table_add_up_to_its_numbers(form):
    half = 1 << form.bits - 1
    numbers = [0, 5, -5, 200, half - 1, -half, 0x7F7F7F7F, -0x80808080 // 2]
    table = kernels.digit_table(form, numbers)
    assert table["sum"].tolist() == list(table.index) == [f"{number:,}" for number in numbers]
    digits = table.drop(columns="sum").to_numpy()
    assert digits.shape == (len(numbers), form.count)
    assert (digits >= -(1 << form.base - 1)).all() and (digits < 1 << form.base - 1).all()
    for number, row in zip(numbers, digits, strict=True):
        assert (sum(int(digit) << form.base * place for place, digit in enumerate(row)) - number) % (
            1 << form.bits
        ) == 0
