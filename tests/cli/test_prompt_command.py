"""`cipherdm sample --prompt` and `cipherdm calibrate --captions` as a user meets them."""

import json

import numpy as np
import pytest
from PIL import Image
from prompted_models import ONE_LEVEL, SMALL, add_control, save_pipeline

from cipherdm import CipherDMError
from cipherdm.cli.sample import read_image
from cipherdm.models import init_unet, load_unet, save_unet
from cipherdm.owner.observe import load_calibration

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.slow
def test_sample_writes_a_picture_and_its_record(pipeline_folder, tmp_path, run, capsys):
    out, start = tmp_path / "pictures" / "one.png", tmp_path / "start.png"
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(start)
    arguments = [
        "--prompt",
        "a red seven",
        "--negative-prompt",
        "blue",
        "--guidance-scale",
        3,
        "--protocols",
        "cipherdm-corrected",
    ]
    arguments += ["--image", start, "--strength", 0.5, "--steps", 2]
    assert run("sample", "--model", pipeline_folder, *arguments, "--out", out) == 0
    assert Image.open(out).width > 100
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["prompts"] == ["a red seven"] and record["negative_prompt"] == "blue"
    assert record["image"] == "start.png" and record["strength"] == 0.5 and record["guidance_scale"] == 3
    assert min(record["psnr_db"]) > 20
    assert record["cost"]["bytes"] > 0 and record["environment"]["versions"]["spu"]
    printed = capsys.readouterr()
    assert "1 image in" in printed.out
    assert "step 1/1 scheduler" in printed.err  # half of the two steps


@pytest.mark.slow
def test_sample_reads_a_hint(tmp_path, run, capsys):
    folder, hint, out = tmp_path / "controlled", tmp_path / "hint.png", tmp_path / "one.png"
    save_pipeline(folder, ONE_LEVEL)
    add_control(folder, hide_prompt=True)
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(hint)
    arguments = ["--model", folder, "--prompt", "a red seven", "--steps", 1, "--protocols", "direct", "--out", out]
    assert run("sample", *arguments) == 1
    assert "its hints are missing" in capsys.readouterr().err
    assert run("sample", *arguments, "--control-image", hint, "--conditioning-scale", 0.5) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["control_image"] == "hint.png" and record["conditioning_scale"] == 0.5
    assert min(record["psnr_db"]) > 30


def test_calibrate_stores_fits_for_the_captions(pipeline_folder, tmp_path, run, capsys):
    assert run("calibrate", pipeline_folder) == 1
    assert "has no captions.txt" in capsys.readouterr().err
    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"{a} {b}\n" for a in ("red", "blue", "small") for b in ("two", "seven", "a", "red")))
    arguments = ["--captions", captions, "--timesteps", 2, "--images", 8, "--guidance-scale", 2]
    assert run("calibrate", pipeline_folder, *arguments) == 0
    assert "calibration.safetensors" in capsys.readouterr().out
    stored = load_calibration(load_unet(pipeline_folder))
    assert stored["timesteps"].shape == (2,)
    assert sum(name.endswith(".spread") for name in stored) == 3 * 2 + 3 * 4 + 1  # resnets, transformers, the last one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --prompt for each image"),
        (["--prompt", "red", "--labels", "3"], "no labels and no count"),
        (["--prompt", "red", "--steps", "0"], "steps must be between 1 and 1000"),
        (["--prompt", "red", "--scheduler", "heun"], "unknown scheduler 'heun'"),
        (["--prompt", "red", "--guidance-scale", "0.5"], "guidance_scale must be at least 1"),
        (["--prompt", "red", "--image", "missing.png"], "missing.png cannot be read"),
        (["--prompt", "red", "--protocols", "magic"], "magic"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_no_file(pipeline_folder, tmp_path, run, capsys, arguments, message):
    out = tmp_path / "out.png"
    assert run("sample", "--model", pipeline_folder, "--out", out, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


def test_other_models_take_no_prompts(tmp_path, run, capsys):
    save_unet(init_unet(SMALL), tmp_path)
    assert run("sample", "--model", tmp_path, "--prompt", "red") == 1
    assert "is no Stable Diffusion folder" in capsys.readouterr().err
    assert run("calibrate", tmp_path, "--captions", tmp_path / "captions.txt") == 1
    assert "is no Stable Diffusion folder" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_pictures_are_read_in_the_range_of_the_model(tmp_path, mode):
    pixels = np.zeros((40, 20), np.uint8)
    pixels[:, 10:] = 255
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "halves.png")
    found = read_image(tmp_path / "halves.png", (8, 8))
    assert found.shape == (3, 8, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, :, 0], -1, atol=0.05)
    np.testing.assert_allclose(found[:, :, -1], 1, atol=0.05)
    exif = picture.getexif()
    exif[0x0112] = 8  # to be shown turned, what is at the right at the top
    picture.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png", (8, 8))
    np.testing.assert_allclose(turned[:, 0], 1, atol=0.05)
    np.testing.assert_allclose(turned[:, -1], -1, atol=0.05)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(CipherDMError, match="text.png cannot be read as an image"):
        read_image(tmp_path / "text.png", (8, 8))
