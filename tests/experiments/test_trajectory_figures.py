"""Pictures of trajectories show what was recorded, describe it in words, and follow a slider at once."""

import io

import numpy as np
import pytest
from PIL import Image

from cipherdm import LAN, WAN, Network
from cipherdm.costs import latency
from cipherdm.views.style import png
from cipherdm_experiments.trajectory import Recording
from cipherdm_experiments.trajectory_figures import (
    MAGNIFIED,
    StepPicture,
    costs_so_far,
    filmstrip,
    likenesses,
    psnr_by_step,
    step_slider,
)

STEPS, BATCH = 4, 3


@pytest.fixture
def recorded():
    """A run of four steps on three pictures. Secure samples are one grey level brighter after each step."""
    generator = np.random.default_rng(0)
    plaintext = generator.integers(20, 200, (STEPS + 1, BATCH, 1, 8, 8), np.uint8)
    secure = plaintext + np.arange(STEPS + 1, dtype=np.uint8)[:, None, None, None, None]
    costs = {"bytes": 3_000_000, "sends": 60, "rounds": 20, "path_bytes": 1_000_000}
    pairs = {"secure_to_exact": 0, "emulated_to_exact": 1, "secure_to_emulated": 20, "predicted_to_exact": -5}
    rows = [
        {"step": n, "timestep": 1000 - 200 * n, "seconds": float(n), **costs}
        | {pair: [50 - 5 * n + more + i for i in range(BATCH)] for pair, more in pairs.items()}
        for n in range(1, STEPS + 1)
    ]
    about = {"model": "small", "protocols": "fast", "scheduler": "ddim", "steps": STEPS, "labels": [7, 8, 9]}
    setup = dict.fromkeys(costs, 0) | {"seconds": 0.5}
    return Recording(
        {**about, "setup": setup, "rows": rows},
        np.stack([plaintext, secure]),
        np.stack([plaintext[1:], secure[1:]]),
    )


def assert_drawn(figure):
    """The figure can be drawn, and says in words what it shows."""
    assert Image.open(io.BytesIO(png(figure))).size[0] > 400
    assert len(figure.get_label()) > 60


def test_a_film_strip_shows_the_recorded_pictures(recorded):
    figure = filmstrip(recorded, picture=1, columns=3)
    assert_drawn(figure)
    rows = np.array(figure.axes).reshape(4, 3)
    assert [axis.get_title() for axis in rows[0]] == ["noise", "step 2", "step 4"]
    for row, (levels, kind) in enumerate((way, kind) for kind in ("samples", "predicted") for way in (0, 1)):
        for axis, step in zip(rows[row], (0, 2, 4), strict=True):
            drawn = [np.asarray(image.get_array()) for image in axis.get_images()]
            if kind == "predicted" and step == 0:
                assert drawn == []  # nothing is predicted before the first step
            else:
                expected = getattr(recorded, kind)[levels, step - (kind == "predicted"), 1, 0]
                np.testing.assert_array_equal(drawn, [expected])
    assert rows[1, 1].get_xlabel() == "41.0 dB" and rows[3, 2].get_xlabel() == "26.0 dB"
    assert "label 8 at steps 0, 2, 4" in figure.get_label() and "31.0 dB after the last" in figure.get_label()


def test_psnr_by_step_draws_medians_and_the_band(recorded):
    figure = psnr_by_step([recorded, recorded])
    assert_drawn(figure)
    for axis in figure.axes:
        lines = [line.get_ydata() for line in axis.lines]
        np.testing.assert_allclose(lines, [[46, 41, 36, 31], [47, 42, 37, 32], [66, 61, 56, 51]])
        band = axis.collections[0].get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == (30, 47)
    assert "from 46 dB to 31.0 dB, the functions alone 32.0 dB" in figure.get_label()
    row = likenesses([recorded]).loc["small, fast, DDIM-4"]
    assert list(row) == [31, 30, 32, 51]


def test_costs_so_far_are_sums_and_the_latency_model(recorded):
    network = Network("mine", 20e-3, 100e6)
    table = costs_so_far(recorded, [network], [0, 3])
    assert list(table["s, here"]) == [0.5, 6.5] and list(table["MB"]) == [0, 9] and list(table["messages"]) == [0, 180]
    assert table.loc[3, "s, mine"] == pytest.approx(latency(6.5, 60, 3_000_000, network).seconds)


def test_a_step_picture_follows_the_step_and_leaves_nothing_behind(recorded):
    picture = StepPicture(recorded)
    assert_drawn(picture.figure)
    last = picture.pixels()
    plaintext, secure, difference = (np.asarray(image.get_array()) for image in picture._images)
    assert plaintext.shape == (8, 3 * 8 + 2 * 2)
    np.testing.assert_array_equal(secure[:, 10:18], recorded.samples[1, -1, 1, 0])
    np.testing.assert_array_equal(difference[:, :8], 4 * MAGNIFIED)
    first = picture.show(0).get_label()
    assert "the same noise" in first and "measured 0 s" in first
    beginning = picture.pixels()
    assert "PSNR of 35.0 to 37.0 dB" in picture.show(3).get_label()
    assert "PSNR of 30.0 to 32.0 dB" in picture.show(3, "predicted").get_label()
    np.testing.assert_array_equal(np.asarray(picture._images[0].get_array())[:, :8], recorded.predicted[0, 2, 0, 0])
    assert "9 of 12 MB" in picture.figure.get_label() and "60 of 80 rounds" in picture.figure.get_label()
    picture.show(0)
    np.testing.assert_array_equal(picture.pixels(), beginning)
    picture.show(STEPS)
    np.testing.assert_array_equal(picture.pixels(), last)
    assert (last != beginning).any()


def test_bars_are_as_long_as_their_seconds(recorded):
    picture = StepPicture(recorded)
    picture.show(2)
    seconds = {"measured": recorded.so_far("seconds")}
    seconds |= {network.name: recorded.seconds_over(network) for network in (LAN, WAN)}
    widths = np.array([bar.get_width() for bar in picture._bars])
    np.testing.assert_allclose(widths / widths[0], [part[2] / seconds["measured"][2] for part in seconds.values()])


def test_pictures_in_colour_are_drawn(recorded):
    colour = Recording(recorded.about, recorded.samples.repeat(3, axis=3), recorded.predicted.repeat(3, axis=3))
    assert_drawn(filmstrip(colour))
    picture = StepPicture(colour, step=2)
    grey = StepPicture(recorded, step=2)
    np.testing.assert_array_equal(np.asarray(picture._images[1].get_array())[..., 0], grey._images[1].get_array())


def test_the_slider_shows_every_step(recorded):
    box = step_slider(recorded)
    seen = {box.shown.picture}
    for step in (0, 1, 2, 3):
        box.set(step=step)
        seen.add(box.shown.picture)
        assert f"step {step} of 4" in box.shown.text
    box.set(kind="predicted")
    assert len(seen | {box.shown.picture}) == 6
