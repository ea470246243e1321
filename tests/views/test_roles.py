"""Figures and tables of who brings, holds and learns what, and the line that tells progress."""

import numpy as np

from cipherdm.sampling import Task
from cipherdm.views.roles import brought, party_pictures, progress_text
from cipherdm.views.style import png


def test_what_is_brought_is_counted_by_role():
    owner = {"unet/a": np.zeros((2, 3)), "unet/b": np.zeros(4), "step_table": np.zeros((5, 2))}
    task = Task(None, owner, {"sample": np.zeros((1, 1, 2, 2))}, {"step.0": np.int32(0), "step.1": np.int32(1)})
    table = brought(task)
    assert list(table.index) == ["weights", "step_table", "sample", "numbers of the steps"]
    assert list(table["from"]) == ["model owner", "model owner", "client", "public"]
    assert list(table["numbers"]) == [10, 10, 4, 2]
    assert list(table["kB a party"]) == [0.16, 0.16, 0.064, 0.016]
    assert table.loc["weights", "shape"] == "2 arrays" and table.loc["sample", "shape"] == "[1, 1, 2, 2]"


def test_two_parties_have_the_picture_and_one_has_not():
    generator = np.random.default_rng(3)
    image = generator.uniform(-1, 1, (8, 8))
    secret = np.round(image * 2**10).astype(np.int64).view(np.uint64).ravel()
    first, second = generator.integers(0, 2**64, (2, 64), np.uint64)
    third = secret - first - second
    components = [first, second, third]
    words = [np.stack([components[rank], components[(rank + 1) % 3]], axis=1) for rank in range(3)]
    figure = party_pictures(image, words, 10)
    assert len(png(figure)) > 1000 and len(figure.get_label()) > 60
    drawn = [np.asarray(axis.get_images()[0].get_array(), int) for axis in figure.axes]
    assert len(drawn) == 8
    assert np.abs(drawn[0] - drawn[-1]).max() <= 1
    for part in drawn[1:-1]:
        assert abs(np.corrcoef(part.ravel(), drawn[0].ravel())[0, 1]) < 0.5
    np.testing.assert_array_equal(drawn[1], (first >> np.uint64(56)).reshape(8, 8))


def test_a_progress_line_fills():
    assert progress_text(0, 4, "begin", width=4) == "[....] 0 of 4: begin"
    assert progress_text(3, 4, "step 3", width=4) == "[###.] 3 of 4: step 3"
