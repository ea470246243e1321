"""Rings by value over significant bits: what is recorded is what parties send and draw, and figures show the record."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small import ONE_LEVEL, SCHEDULER
from typer.testing import CliRunner

from cipherdm import DIRECT, FAST_64, sample
from cipherdm.cli import build
from cipherdm.files import root
from cipherdm.likeness import grey_levels, psnr
from cipherdm.models import init_unet, load_unet, save_unet
from cipherdm.owner.calibrate import calibrate
from cipherdm.owner.observe import save_calibration
from cipherdm.schedules import make_schedule
from cipherdm.views.plans import rings_of_step
from cipherdm_experiments import rings
from cipherdm_experiments.rings_figures import rings_explorer, rings_picture

STEPS = 2
SETTINGS = {"labels": [1], "steps": STEPS}
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A small calibrated model with random weights."""
    folder = tmp_path_factory.mktemp("small")
    save_unet(replace(init_unet(replace(ONE_LEVEL, sample_size=4), seed=1), scheduler_config=SCHEDULER), folder)
    made = load_unet(folder)
    save_calibration(calibrate(made, make_schedule(SCHEDULER, "ddim", STEPS), images_per_class=8), made)
    return load_unet(folder)


@pytest.fixture(scope="module")
def recorded(unet, tmp_path_factory):
    """The command for two numbers of significant bits: the record and its images."""
    path = tmp_path_factory.mktemp("record") / "rings.json"
    arguments = [
        "bench",
        "rings",
        str(unet.folder),
        "--significant",
        "8,14",
        "--steps",
        str(STEPS),
        "--record",
        str(path),
    ]
    result = CliRunner().invoke(build(), arguments)
    assert result.exit_code == 0, result.output
    assert "MB per step" in result.output and f"Wrote {path}" in result.output
    return rings.read(path)


def test_fewer_bits_send_less_and_draw_less_exactly(recorded):
    rows = {row["name"]: row for row in recorded.about["rows"]}
    assert list(rows) == ["fast", "fast-64", "8 bits", "14 bits"]
    sent = [row["bytes"] for row in rows.values()]
    assert sent == sorted(sent, reverse=True) or sent[0] > sent[1] > sent[3] > sent[2]
    assert rows["8 bits"]["psnr_db"] < rows["14 bits"]["psnr_db"]
    assert set(rows["fast-64"]["bits"]) == {"64"} and rows["fast-64"]["local_truncations"] == 0
    assert max(map(int, rows["8 bits"]["bits"])) <= 64 and rows["8 bits"]["local_truncations"] > 0
    assert recorded.pictures.shape == (5, 1, 4, 4)


def test_images_are_those_of_the_functions_in_plaintext(recorded, unet):
    """Read on words, up to rounding; the exact functions come first."""
    exact, emulated = (sample(unet, None, protocols=protocols, **SETTINGS).images for protocols in (DIRECT, FAST_64))
    np.testing.assert_array_equal(recorded.pictures[0], grey_levels(exact[0]))
    assert np.abs(grey_levels(emulated[0]).astype(int) - recorded.pictures[2]).max() <= 4
    (row,) = [row for row in recorded.about["rows"] if row["name"] == "fast-64"]
    assert row["psnr_db"] == pytest.approx(psnr(emulated, exact)[0], abs=3)


def test_figures_show_the_record(recorded):
    operations = recorded.step
    figure = rings_of_step(operations, "random")
    assert len(figure.axes[0].collections[0].get_paths()) == len(operations)
    assert f"{len(operations)} operations" in figure.get_label()
    picture = rings_picture(recorded, 8)
    (row,) = [row for row in recorded.about["rows"] if row["significant_bits"] == 8]
    assert f"{row['psnr_db']:.1f} dB" in picture.get_label()
    np.testing.assert_array_equal(picture.axes[1].get_images()[0].get_array(), recorded.pictures[3, 0])


def test_a_slider_goes_over_the_committed_record():
    committed = rings.read(root() / "data" / "measurements" / "rings_mnist01-tiny.json")
    assert list(committed.significant) == list(rings.SIGNIFICANT)
    box = rings_explorer(committed)
    first, lowest = box.shown.picture, min(rings.SIGNIFICANT)
    box.set(significant=lowest)
    assert box.shown.picture != first and f"with {lowest} significant bits" in box.shown.text


def test_a_plan_is_shown_with_its_costs(recorded, unet, tmp_path):
    """The truncations of a step as in the record, and a picture."""
    rows = {row["name"]: row for row in recorded.about["rows"]}
    for name, kept in (("fast-64", "fast-64"), ("fast-rings", "14 bits")):
        arguments = [
            "plan",
            str(unet.folder),
            "--protocols",
            name,
            "--steps",
            str(STEPS),
            "--out",
            str(tmp_path / "p.png"),
        ]
        result = CliRunner().invoke(build(), arguments)
        assert result.exit_code == 0, result.output
        *_, step = (line.split() for line in result.stdout.splitlines() if line.strip().startswith("step"))
        assert int(step[1]) == STEPS
        assert (int(step[3]), int(step[4])) == (rows[kept]["cuts"], rows[kept]["local_truncations"])
        assert Image.open(tmp_path / "p.png").width > 1000
    result = CliRunner().invoke(build(), ["plan", str(unet.folder), "--protocols", "fast"])
    assert "computed by SPU" in str(result.exception)
