"""Calibration and the check of ranges, as the owner of a folder calls them."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from prompted_models import SMALL as PROMPTED
from prompted_models import save_pipeline
from small import ONE_LEVEL, SCHEDULER

import cipherdm as cdm
from cipherdm.calibration import calibration_of
from cipherdm.engine import programs
from cipherdm.kernels.rings import planned
from cipherdm.models import init_unet
from cipherdm.owner.calibrate import calibrate as fit_layers
from cipherdm.owner.observe import load_calibration
from cipherdm.sampling.pipeline import read_captions
from cipherdm.schedules import make_schedule

pytestmark = pytest.mark.usefixtures("quick_compilation")
WORDS = (
    "red",
    "blue",
    "small",
    "a",
    "two",
    "seven",
    "a red",
    "a blue",
    "small red",
    "small two",
    "red two",
    "blue two",
)


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    config = replace(ONE_LEVEL, sample_size=4, num_class_embeds=2, add_attention=False)
    cdm.save_unet(replace(init_unet(config), scheduler_config=SCHEDULER), folder)
    return cdm.load_unet(folder)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    save_pipeline(folder, PROMPTED)
    (folder / "captions.txt").write_text("\n".join(WORDS))
    return cdm.load_pipeline(folder)


def test_a_folder_with_labels_is_calibrated_and_checked(unet):
    seen = []
    settings = {"timesteps": 2, "images": 8, "seed": 3}
    path = cdm.calibrate(unet, progress=lambda *event: seen.append(event), **settings)
    assert path == unet.folder / "calibration.safetensors"
    assert seen == [(1, 2, "calibrate"), (2, 2, "calibrate")]
    stored = load_calibration(unet)
    fitted = fit_layers(unet, make_schedule(SCHEDULER, "ddim", 2), images_per_class=8, seed=3)
    assert stored.keys() == fitted.keys()
    for name, array in fitted.items():
        np.testing.assert_array_equal(stored[name], array, err_msg=name)
    found = cdm.check_ranges(unet, steps=2, images=8, seed=3)
    outside = [entry.outside for entry in found]
    assert outside == sorted(outside, reverse=True) and outside[0] < 0.5
    assert {entry.function for entry in found} == {"activation", "inverse root"}


def test_a_block_whose_cuts_have_no_room_is_named(unet, monkeypatch):
    cdm.calibrate(unet, timesteps=2, images=8, seed=3)

    def cuts(protocols):
        found = cdm.check_ranges(unet, protocols, steps=2, images=2, seed=3)
        return {entry.layer: entry for entry in found if entry.function == "cut"}

    assert cuts(cdm.FAST) == {}
    roomy, planned_rings = cuts(cdm.FAST_64), cuts(cdm.FAST_RINGS)
    assert {"conv_in", "conv_out"} <= set(roomy) == set(planned_rings)
    for entry in (*roomy.values(), *planned_rings.values()):
        assert 0 < entry.highest <= 1 and entry.outside == entry.excess == 0 and entry.step is None
    # A quarter of the room is in use, or an eighth, on the images that rings are planned from.
    assert 0.1 < max(entry.highest for entry in planned_rings.values()) < 0.5
    monkeypatch.setattr(programs, "planned", partial(planned, margin=-4))
    crowded = cuts(cdm.FAST_RINGS)
    assert all(entry.outside > 0 for name, entry in crowded.items() if planned_rings[name].highest > 2**-6)


def test_captions_are_spread_or_read_from_the_folder(pipeline):
    """Twelve captions, of which every other one is taken: the first, the last, and those between."""
    settings = {"timesteps": 1, "guidance_scale": 2.0}
    cdm.calibrate(pipeline, images=12, **settings)
    assert calibration_of(pipeline) == {"guidance_scale": 2.0, "timesteps": 1}
    stored = load_calibration(pipeline.unet)
    doubled = [word for word in WORDS for _ in range(2)][1:]  # 23, the even ones of which are WORDS
    for captions, count in ((list(WORDS), None), (doubled, 12)):
        cdm.calibrate(pipeline, captions, images=count, **settings)
        fitted = load_calibration(pipeline.unet)
        assert all(np.array_equal(stored[name], array) for name, array in fitted.items())


def test_a_pipeline_is_checked_with_captions_and_the_guidance_of_its_calibration(pipeline):
    known = {"captions": list(WORDS), "images": 12, "seed": 0}
    cdm.calibrate(pipeline, timesteps=2, guidance_scale=2.0, **known)
    found = cdm.check_ranges(pipeline, steps=2, **known)
    assert {entry.function for entry in found} == {"inverse root", "inverse sum"}
    assert {entry.layer.rpartition(".")[2] for entry in found} >= {"norm1", "norm2", "norm3", "attn1", "attn2"}
    assert all(entry.outside == 0 for entry in found)
    assert cdm.check_ranges(pipeline, steps=2, guidance_scale=60.0, **known)[0].outside > 0
    for protocols in (cdm.FAST_64, cdm.FAST_RINGS):
        found = cdm.check_ranges(pipeline, protocols, steps=2, **known)
        cuts = {entry.layer: entry.highest for entry in found if entry.function == "cut"}
        assert all(0 < highest <= 1 for highest in cuts.values())
        assert {"conv_in", "conv_out"} <= cuts.keys() and any("attn2" in layer for layer in cuts)


def test_wrong_models_are_named(unet, pipeline):
    with pytest.raises(cdm.CipherDMError, match="takes no captions"):
        cdm.calibrate(unet, ["red"])
    with pytest.raises(cdm.CipherDMError, match="save this model to a folder"):
        cdm.calibrate(replace(unet, folder=None))
    with pytest.raises(cdm.CipherDMError, match="no scheduler"):
        cdm.calibrate(replace(unet, scheduler_config=None))
    with pytest.raises(cdm.CipherDMError, match="load the whole pipeline"):
        cdm.calibrate(pipeline.unet)
    with pytest.raises(cdm.CipherDMError, match="guidance_scale must be at least 1"):
        cdm.calibrate(pipeline, ["red"], guidance_scale=0.5)
    with pytest.raises(cdm.CipherDMError, match=f"{pipeline.unet.folder} takes prompts"):
        cdm.check_ranges(pipeline.unet)


def test_captions_come_one_a_line(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a red two\n\n  small blue seven \n")
    assert read_captions(path) == ["a red two", "small blue seven"]
    path.write_text("\n")
    with pytest.raises(cdm.CipherDMError, match="has no captions"):
        read_captions(path)
    with pytest.raises(cdm.CipherDMError, match="missing.txt cannot be read"):
        read_captions(tmp_path / "missing.txt")
