"""A run in segments is the run in one piece, and goes on where it was interrupted."""

from dataclasses import replace

import numpy as np
import pytest
from small import ONE_LEVEL, SCHEDULER

import cipherdm as cdm
from cipherdm.errors import CipherDMError
from cipherdm.likeness import grey_levels, psnr
from cipherdm.models import init_unet
from cipherdm.protocols import DIRECT
from cipherdm.sampling import make_task
from cipherdm.views.style import png
from cipherdm_experiments import recording, segments
from cipherdm_experiments.segments import segments_figure

SETTINGS = {"labels": [0, 1], "scheduler": "ddpm", "steps": 4, "seed": 3}
UNET = replace(
    init_unet(replace(ONE_LEVEL, num_class_embeds=2, add_attention=False)),
    scheduler_config=SCHEDULER,
)


def test_segments_cover_a_run():
    assert segments.bounds(7, 3) == [(0, 3), (3, 3), (6, 1)]
    with pytest.raises(CipherDMError, match="0"):
        segments.bounds(7, 0)


def test_a_segment_has_the_rows_of_its_steps():
    task = make_task(UNET, **SETTINGS)
    part = segments.segment(task, 1, 2)
    assert part.shape.steps == 2 and {name for name in part.public if name.startswith("step.")} == {"step.0", "step.1"}
    np.testing.assert_array_equal(part.client["noise"], task.client["noise"][1:3])
    for name in ("coefficients", "prediction", "timesteps"):
        np.testing.assert_array_equal(part.public[name], task.public[name][1:3])
    assert part.owner.keys() == task.owner.keys() and part.client.keys() == task.client.keys()


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, quick_compilation):
    """A run interrupted after its first segment and then resumed: its folder, its result, when files were written."""
    folder, written = tmp_path_factory.mktemp("segments"), []

    def stop(done, total, name):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        segments.run(UNET, folder, length=2, protocols=DIRECT, progress=stop, **SETTINGS)
    files = sorted(folder.iterdir())
    written.append({path.name: path.stat().st_mtime_ns for path in files})
    found = segments.run(UNET, folder, length=2, protocols=DIRECT, **SETTINGS)
    written.append({path.name: path.stat().st_mtime_ns for path in sorted(folder.iterdir())})
    return folder, found, written


@pytest.mark.slow
def test_finished_segments_are_not_run_again(interrupted):
    _, (record, _), (before, after) = interrupted
    assert list(before) == ["journal.json", "part_0000.npy"] and list(after) == [*before, "part_0001.npy"]
    assert after["part_0000.npy"] == before["part_0000.npy"]
    assert record["processes"] == 2 and [row["first"] for row in record["rows"]] == [0, 2]


@pytest.mark.slow
def test_the_result_is_that_of_sampling_in_plaintext(interrupted):
    _, (record, pictures), _ = interrupted
    exact = cdm.sample(UNET, None, protocols=DIRECT, **SETTINGS).images
    assert pictures.shape == (2, 3, 2, 1, 8, 8) and pictures.dtype == np.uint8
    np.testing.assert_allclose(pictures[0, -1], grey_levels(exact), atol=1)
    np.testing.assert_array_equal(pictures[0, 0], pictures[1, 0])  # the noise
    # Fixed point on shares is off by a few 2^-18 a step, a grey level of 255 is 2^-7.
    assert np.abs(pictures[1].astype(int) - pictures[0]).max() <= 2
    assert min(record["psnr_db"]) > 40 and record["psnr_db"] == record["rows"][-1]["psnr_db"]
    assert min(record["emulated_psnr_db"]) > 100  # DIRECT's own emulation
    for total in ("seconds", "bytes", "sends", "rounds", "path_bytes"):
        assert record[total] == pytest.approx(sum(row[total] for row in record["rows"]))
    times = [row["seconds"] / row["steps"] for row in record["rows"]]
    assert (record["step_seconds_low"], record["step_seconds_high"]) == (min(times), max(times))


@pytest.mark.slow
def test_segments_of_another_run_are_refused(interrupted):
    folder, _, _ = interrupted
    for changed in ({"seed": 4}, {"labels": [1, 1]}):
        with pytest.raises(CipherDMError, match="of another run"):
            segments.run(UNET, folder, length=2, protocols=DIRECT, **SETTINGS | changed)


@pytest.mark.slow
def test_a_record_is_read_with_its_pictures_and_drawn(interrupted, tmp_path):
    _, (record, pictures), _ = interrupted
    path = tmp_path / "run.json"
    with pytest.raises(CipherDMError, match="bench segments"):
        segments.read(path)
    recording.write(path, record, {"samples": pictures})
    about, read = segments.read(path)
    np.testing.assert_array_equal(read, pictures)
    assert about["psnr_db"] == record["psnr_db"]
    figure = segments_figure(about, read, columns=3)
    assert f"{record['psnr_db'][0]:.1f}" in figure.get_label() and len(png(figure)) > 10_000
    assert "GB" in segments.summary(record) and "2 pictures" in segments.summary(record)


def test_psnr_of_clipped_pictures():
    """The likeness that records hold, against its formula: 10 log10(2^2 / mean square)."""
    images = np.full((1, 1, 2, 2), 3.0)
    assert psnr(images, np.full((1, 1, 2, 2), 0.5)) == pytest.approx([10 * np.log10(4 / 0.25)])
