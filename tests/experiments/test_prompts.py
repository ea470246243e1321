"""`cipherdm bench prompts` and `bench grid`: what is recorded is what `text_to_image` draws."""

from pathlib import Path

import numpy as np
import pytest
from prompted_models import SMALL, save_pipeline
from skimage.metrics import peak_signal_noise_ratio

import cipherdm as cdm
from cipherdm.errors import CipherDMError
from cipherdm.likeness import BEST_PSNR, extent_psnr, grey_levels
from cipherdm.protocols import CIPHERDM_CORRECTED, DIRECT, FAST, PUMA
from cipherdm.sampling.pipeline import read_captions
from cipherdm_experiments import grid, prompts, recording
from cipherdm_experiments.training.sd_mini.captions import vocabulary

MEASUREMENTS = Path(__file__).parents[2] / "data" / "measurements"
pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_prompts_are_in_the_words_of_captions():
    assert len(set(prompts.PROMPTS)) == 8
    assert {word for prompt in prompts.PROMPTS for word in prompt.split()} <= set(vocabulary())


@pytest.mark.slow
def test_each_prompt_is_drawn_by_itself_and_compared_with_plaintext(pipeline_folder, tmp_path, run, capsys):
    texts, record = tmp_path / "prompts.txt", tmp_path / "prompts.json"
    texts.write_text("a red seven\na small two\na blue two\n")
    arguments = [
        "--prompts",
        texts,
        "--count",
        2,
        "--steps",
        1,
        "--guidance-scale",
        2,
        "--protocols",
        "cipherdm-corrected",
    ]
    assert run("bench", "prompts", pipeline_folder, *arguments, "--record", record) == 0
    assert "mean" in capsys.readouterr().out
    found = prompts.read(record)
    likeness = [row["psnr_db"] for row in found.about["rows"]]
    assert found.about["psnr_db"] == {"mean": pytest.approx(sum(likeness) / 2), "lowest": min(likeness)}
    assert [row["prompt"] for row in found.about["rows"]] == read_captions(texts)[:2]
    for index, row in enumerate(found.about["rows"]):
        exact = cdm.text_to_image(
            cdm.load_pipeline(pipeline_folder), None, [row["prompt"]], steps=1, guidance_scale=2.0, seed=row["seed"]
        )
        np.testing.assert_allclose(found.pictures[0, index], grey_levels(exact.images[0]), atol=1)
        # The stored pictures are as far apart as the ratio says, up to their rounding.
        plaintext, secure = found.pictures[:, index].astype(float)
        apart = np.sqrt(np.square(secure - plaintext).mean())
        assert apart == pytest.approx(255 * 10 ** (-row["psnr_db"] / 20), abs=0.6) and row["psnr_db"] > 20
        assert row["latents_psnr_db"] > 20
        assert row["bytes"] > 0 and row["peak_memory"] > 2**20 and row["whole_seconds"] > row["seconds"]


def test_a_grid_has_the_pictures_of_every_combination(pipeline_folder, tmp_path):
    pipeline = cdm.load_pipeline(pipeline_folder)
    chosen = {"steps": (1, 2), "guidance_scales": (1.0, 3.0), "protocols": (DIRECT, PUMA, CIPHERDM_CORRECTED)}
    told = []
    found = grid.run(pipeline, ("a red seven", "a two"), seed=4, progress=lambda *step: told.append(step), **chosen)
    recording.write(tmp_path / "grid.json", *found)
    stored = grid.read(tmp_path / "grid.json")
    rows = stored.about["rows"]
    assert stored.pictures.shape[:4] == (3, 2, 2, 2) and len(rows) == 12 == len(told)
    settings = {"steps": 2, "guidance_scale": 3.0, "seed": 4}
    exact, puma = (
        cdm.text_to_image(pipeline, None, ("a red seven", "a two"), protocols=chosen, **settings).images
        for chosen in (DIRECT, PUMA)
    )
    np.testing.assert_array_equal(stored.pictures[1, 1, 1], grey_levels(puma))
    (row,) = (r for r in rows if (r["protocols"], r["guidance_scale"], r["steps"]) == ("puma", 3.0, 2))
    shown = zip(grey_levels(exact), grey_levels(puma), strict=True)
    expected = [peak_signal_noise_ratio(*pair, data_range=255) for pair in shown]
    np.testing.assert_allclose(row["psnr_db"], expected, rtol=1e-5)
    assert {tuple(r["psnr_db"]) for r in rows if r["protocols"] == "direct"} == {(120.0, 120.0)}
    assert stored.about["calibration"] is None  # none of these sets has one


def test_a_grid_needs_a_calibration_for_fast(pipeline_folder, tmp_path, run, capsys):
    record = tmp_path / "grid.json"
    assert run("bench", "grid", pipeline_folder, "--steps", "1", "--guidance-scales", "1", "--record", record) == 1
    assert "cipherdm calibrate" in capsys.readouterr().err and not record.exists()


def test_a_grid_says_what_fast_was_calibrated_for(tmp_path):
    save_pipeline(tmp_path, SMALL)
    pipeline = cdm.load_pipeline(tmp_path)
    captions = [f"{a} {b}" for a in ("red", "blue", "small") for b in ("two", "seven", "a", "red")]
    cdm.calibrate(pipeline, captions, timesteps=2, guidance_scale=3.0)
    chosen = {"steps": (2,), "guidance_scales": (3.0,), "protocols": (DIRECT, FAST)}
    record, _ = grid.run(pipeline, ("a red seven",), **chosen)
    assert record["calibration"] == {"guidance_scale": 3.0, "timesteps": 2}
    assert 20 < record["rows"][1]["psnr_db"][0] < 120


def test_nothing_to_draw_is_refused(pipeline_folder):
    pipeline = cdm.load_pipeline(pipeline_folder)
    with pytest.raises(CipherDMError, match="at least one prompt"):
        prompts.run(pipeline, ())
    with pytest.raises(CipherDMError, match="at least one prompt, number of steps"):
        grid.run(pipeline, steps=())


def test_the_psnr_of_latents_has_their_extent_as_its_peak():
    latents = np.random.default_rng(0).normal(0, 3, (2, 4, 8, 8))
    found = latents + np.random.default_rng(1).normal(0, [[[[0.1]]], [[[0.01]]]], latents.shape)
    expected = [
        peak_signal_noise_ratio(one, other, data_range=one.max() - one.min())
        for one, other in zip(latents, found, strict=True)
    ]
    np.testing.assert_allclose(extent_psnr(found, latents), expected)
    assert extent_psnr(latents, latents) == [BEST_PSNR] * 2


def test_a_missing_record_is_named_with_the_command(tmp_path):
    with pytest.raises(CipherDMError, match="no record .*grid.json: make it with `cipherdm bench grid`"):
        grid.read(tmp_path / "grid.json")


# The committed records.


def test_the_committed_grid_is_whole():
    stored = grid.read(MEASUREMENTS / "grid_sd-mini.json")
    about = stored.about
    places = list(np.ndindex(stored.pictures.shape[:3]))
    assert len(places) == len(about["rows"]) and stored.pictures.shape[3] == len(about["prompts"])
    names = [about[name] for name in ("protocols", "guidance_scales", "steps")]
    for place, row in zip(places, about["rows"], strict=True):
        assert [of[at] for of, at in zip(names, place, strict=True)] == [
            row[name] for name in ("protocols", "guidance_scale", "steps")
        ]
        apart = stored.pictures[place].astype(float) - stored.pictures[0, *place[1:]]
        squares = np.maximum(np.square(apart).mean(axis=(1, 2, 3)), 255**2 * 1e-12)  # at most 120 dB
        np.testing.assert_allclose(row["psnr_db"], 10 * np.log10(255**2 / squares), atol=1e-3)


def test_the_committed_grid_is_of_the_committed_model():
    stored = grid.read(MEASUREMENTS / "grid_sd-mini.json")
    pipeline = cdm.load_pipeline(MEASUREMENTS.parent / "models" / "sd-mini")
    settings = {"guidance_scale": 4.0, "steps": 5, "seed": stored.about["seed"]}
    exact = cdm.text_to_image(pipeline, None, stored.about["prompts"], **settings).images
    for prompt, image in enumerate(exact):
        apart = stored.picture("direct", 4, 5, prompt).astype(int) - grey_levels(image)
        assert np.abs(apart).max() <= 2


def test_the_committed_prompts_are_whole():
    path = MEASUREMENTS / "prompts_sd-mini.json"
    if not path.exists():
        pytest.skip("not measured yet")
    drawn = prompts.read(path)
    assert [row["prompt"] for row in drawn.about["rows"]] == list(prompts.PROMPTS)
    plaintext, secure = drawn.pictures.astype(float)
    apart = np.sqrt(np.square(secure - plaintext).mean(axis=(1, 2, 3)))
    told = 255 * 10 ** (-np.array([row["psnr_db"] for row in drawn.about["rows"]]) / 20)
    np.testing.assert_allclose(apart, told, atol=0.6)
    # What is sent depends on shapes alone, so no prompt differs from another.
    for quantity in ("bytes", "sends", "rounds"):
        assert len({row[quantity] for row in drawn.about["rows"]}) == 1
