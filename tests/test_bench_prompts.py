"""`cipherdm bench prompts` and `bench grid`: what is recorded is what `text_to_image` draws."""

import numpy as np
import pytest
from condition import SMALL, save_pipeline

import cipherdm as cdm
from cipherdm.bench import grid, prompts, recording
from cipherdm.bench.recording import grey_levels
from cipherdm.comparison import psnr
from cipherdm.errors import CipherDMError
from cipherdm.protocols import CIPHERDM_CORRECTED, DIRECT, PUMA
from cipherdm.sampling.prompt_calibration import read_captions
from cipherdm.training.sd_mini.captions import vocabulary

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a very small pipeline, whose pictures are 8 x 8."""
    folder = tmp_path_factory.mktemp("pipeline")
    save_pipeline(folder, SMALL)
    return folder


def test_the_prompts_are_in_the_words_of_captions():
    assert len(set(prompts.PROMPTS)) == 8
    assert {word for prompt in prompts.PROMPTS for word in prompt.split()} <= set(vocabulary())


@pytest.mark.slow
def test_each_prompt_is_drawn_by_itself_and_compared_with_plaintext(model, tmp_path, run, capsys):
    texts, record = tmp_path / "prompts.txt", tmp_path / "prompts.json"
    texts.write_text("a red seven\na small two\n")
    arguments = ["--prompts", texts, "--steps", 1, "--guidance-scale", 2, "--protocols", "cipherdm-corrected"]
    assert run("bench", "prompts", model, *arguments, "--record", record) == 0
    assert "mean" in capsys.readouterr().out
    found = prompts.read(record)
    assert [row["prompt"] for row in found.about["rows"]] == read_captions(texts)
    for index, row in enumerate(found.about["rows"]):
        exact = cdm.text_to_image(
            cdm.load_pipeline(model), None, [row["prompt"]], steps=1, guidance_scale=2.0, seed=row["seed"]
        )
        np.testing.assert_allclose(found.pictures[0, index], grey_levels(exact.images[0]), atol=1)
        shown = psnr(*(levels[None] / np.float32(127.5) - 1 for levels in found.pictures[::-1, index]))
        assert row["psnr_db"] == pytest.approx(shown[0], abs=3) and row["psnr_db"] > 20
        assert row["bytes"] > 0 and row["peak_memory"] > 2**20 and row["whole_seconds"] > row["seconds"]


def test_a_grid_has_the_pictures_of_every_combination(model, tmp_path):
    pipeline = cdm.load_pipeline(model)
    chosen = {"steps": (1, 2), "guidance_scales": (1.0, 3.0), "protocols": (DIRECT, PUMA, CIPHERDM_CORRECTED)}
    told = []
    found = grid.run(
        pipeline, ("a red seven", "a two"), seed=4, progress=lambda *step: told.append(step), **chosen
    )
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
    np.testing.assert_allclose(row["psnr_db"], psnr(puma, exact), atol=3)
    assert {tuple(r["psnr_db"]) for r in rows if r["protocols"] == "direct"} == {(120.0, 120.0)}


def test_a_grid_needs_a_calibration_for_fast(model, tmp_path, run, capsys):
    record = tmp_path / "grid.json"
    assert run("bench", "grid", model, "--steps", "1", "--guidance-scales", "1", "--record", record) == 1
    assert "cipherdm calibrate" in capsys.readouterr().err and not record.exists()


def test_a_missing_record_is_named_with_the_command(tmp_path):
    with pytest.raises(CipherDMError, match="no record .*grid.json: make it with `cipherdm bench grid`"):
        grid.read(tmp_path / "grid.json")
