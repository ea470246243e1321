"""Pictures of prompts and of the grid show what was recorded, describe it in words, and follow their controls at once."""

import base64
import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image

from cipherdm.errors import CipherDMError
from cipherdm.views.style import png
from cipherdm_experiments.grid import EXACT, Grid, grid_controls, grid_sheet
from cipherdm_experiments.prompts import ACROSS, DrawnPrompts, prompts_sheet, prompts_table

# Dollar signs are no formula, and "$$" alone would be none that can be drawn.
PROMPTS = ("a two of $$", "a small blue seven at the top left on a yellow background")
SETS, SCALES, STEPS = ("direct", "puma", "fast"), (1.0, 2.5), (5, 10, 20)


@pytest.fixture
def drawn():
    """Six prompts, each secure picture one grey level brighter than the one before."""
    plaintext = np.random.default_rng(0).integers(20, 200, (6, 3, 8, 8), np.uint8)
    secure = plaintext + np.arange(6, dtype=np.uint8)[:, None, None, None]
    rows = [
        {"prompt": PROMPTS[n % 2] + "!" * n, "psnr_db": 40.0 - n, "emulated_psnr_db": 41.0, "whole_seconds": 70 + n}
        | {"seconds": 60 + n, "bytes": 120_000_000 + n, "sends": 900, "rounds": 300, "peak_memory": (n + 1) * 2**28}
        for n in range(6)
    ]
    about = {"model": "small", "protocols": "fast", "scheduler": "ddim", "steps": 20, "rows": rows}
    return DrawnPrompts(about, np.stack([plaintext, secure]))


@pytest.fixture
def grid():
    """Two prompts under three sets, two guidance scales and three numbers of steps, no picture like another."""
    shape = (len(SETS), len(SCALES), len(STEPS), len(PROMPTS))
    pictures = np.random.default_rng(0).integers(100, 120, (*shape, 3, 16, 16), np.uint8)
    rows = [
        {"protocols": SETS[s], "guidance_scale": SCALES[g], "steps": STEPS[n], "psnr_db": [10 * s + g + n / 10, 30 + s]}
        for s, g, n in np.ndindex(shape[:3])
    ]
    about = {"model": "small", "prompts": PROMPTS, "protocols": SETS, "guidance_scales": SCALES, "steps": STEPS}
    return Grid({**about, "rows": rows}, pictures)


def drawn_in(axis) -> np.ndarray:
    """The pixels of the one picture of an axis, uint8 [C, H, W]."""
    (image,) = axis.get_images()
    return np.moveaxis(np.asarray(image.get_array()), 2, 0)


def assert_drawn(figure, pixels: int):
    """The figure can be drawn, is at least so wide, and says in words what it shows."""
    assert Image.open(io.BytesIO(png(figure))).size[0] > pixels
    assert len(figure.get_label()) > 60


def test_a_sheet_has_each_prompt_above_its_pictures(drawn):
    figure = prompts_sheet(drawn)
    assert_drawn(figure, 700)
    axes = np.array(figure.axes).reshape(2, 2, ACROSS)  # bands, ways, columns
    for index in range(6):
        for axis, expected in zip(axes[index // ACROSS, :, index % ACROSS], drawn.pictures[:, index], strict=True):
            np.testing.assert_array_equal(drawn_in(axis), expected)
    assert axes[1, 0, 1].get_title().replace("\n", " ") == PROMPTS[1] + "!!!!!"
    assert max(len(line) for line in axes[1, 0, 1].get_title().splitlines()) <= 31
    assert axes[0, 1, 2].get_xlabel() == "38.0 dB, 62 s\n120 MB"
    assert not axes[1, 0, 2].get_images() and axes[1, 0, 2].get_xlabel() == ""
    label = figure.get_label()
    assert "mean 37.5 dB, lowest 35.0 dB for" in label and PROMPTS[1] + "!!!!!" in label and "60 to 65 seconds" in label


def test_a_sheet_of_one_prompt_is_no_wider_than_it(drawn):
    one = DrawnPrompts(drawn.about | {"rows": drawn.about["rows"][:1]}, drawn.pictures[:, :1])
    assert len(prompts_sheet(one).axes) == 2


def test_a_table_has_a_row_for_each_prompt(drawn):
    table = prompts_table(drawn)
    assert list(table.index) == [row["prompt"] for row in drawn.about["rows"]]
    row = table.iloc[1]
    assert (row["PSNR"], row["emulated"], row["s"], row["s, with all"], row["MiB a party"]) == (39, 41, 61, 71, 512)
    assert (row["MB"], row["messages"], row["rounds"]) == (120.000001, 900, 300)


def test_a_grid_finds_pictures_and_ratios_by_their_settings(grid):
    np.testing.assert_array_equal(grid.picture("puma", 2.5, 10, 1), grid.pictures[1, 1, 1, 1])
    assert list(grid.psnr("fast", 2.5, 20)) == [21.2, 32]
    with pytest.raises(CipherDMError, match="no pictures with steps 7: there are 5, 10, 20"):
        grid.picture("fast", 1.0, 7, 0)
    with pytest.raises(CipherDMError, match="protocols magic"):
        grid.psnr("magic", 1.0, 5)


@pytest.mark.parametrize("columns", ["steps", "guidance scales"])
def test_a_grid_sheet_has_a_row_for_each_set(grid, columns):
    by_steps = columns == "steps"
    figure = grid_sheet(grid, 0, 2.5) if by_steps else grid_sheet(grid, 0, steps=10)
    assert_drawn(figure, 350)
    axes = np.array(figure.axes).reshape(len(SETS), -1)
    expected = grid.pictures[:, 1, :, 0] if by_steps else grid.pictures[:, :, 1, 0]
    for place in np.ndindex(axes.shape):
        np.testing.assert_array_equal(drawn_in(axes[place]), expected[place])
    titles = [axis.get_title() for axis in axes[0]]
    assert titles == (["5 steps", "10 steps", "20 steps"] if by_steps else ["guidance 1", "guidance 2.5"])
    assert [axis.get_ylabel() for axis in axes[:, 0]] == [EXACT, "puma", "fast"]
    ratios = ["", "11.2 dB", "21.2 dB"] if by_steps else ["", "11.1 dB", "21.1 dB"]
    assert [axis.get_xlabel() for axis in axes[:, -1]] == ratios
    told = (
        "puma 11.0, 11.1, 11.2 dB; fast 21.0, 21.1, 21.2 dB" if by_steps else "puma 10.1, 11.1 dB; fast 20.1, 21.1 dB"
    )
    assert told in figure.get_label() and PROMPTS[0] in figure.get_label()


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 1.0, "steps": 5}])
def test_a_grid_sheet_needs_one_setting(grid, settings):
    with pytest.raises(CipherDMError, match="give either guidance_scale"):
        grid_sheet(grid, 0, **settings)


def test_the_controls_show_every_setting(grid):
    box = grid_controls(grid)
    assert box.values == {"prompt": 0, "steps": 10, "guidance_scale": 2.5}
    seen = set()
    for prompt, steps, scale in itertools.product(range(2), STEPS, SCALES):
        box.set(prompt=prompt, steps=steps, guidance_scale=scale)
        url = re.search('href="data:image/jpeg;base64,([^"]+)"', box.shown.picture)[1]
        row = np.asarray(Image.open(io.BytesIO(base64.b64decode(url))), int)
        for place, name in enumerate(SETS):  # 16 pixels, and one of white
            picture = row[:, 17 * place : 17 * place + 16].transpose(2, 0, 1)
            off = np.abs(grid.pictures.astype(int) - picture).mean(axis=(4, 5, 6))  # JPEG is not exact
            assert off.min() == off[SETS.index(name), SCALES.index(scale), STEPS.index(steps), prompt] < 5
        ratios = ", ".join(f"{name} {grid.psnr(name, scale, steps)[prompt]:.1f} dB" for name in SETS[1:])
        assert box.shown.text == (
            f"{PROMPTS[prompt]}: {steps} steps, guidance {scale:g}, from the same noise. PSNR to {EXACT}: {ratios}."
        )
        assert all(f">{name}</text>" in box.shown.picture for name in (EXACT, *SETS[1:]))
        seen.add(box.shown.picture)
    assert len(seen) == 12
