"""The command line as a user meets it."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from small import ONE_LEVEL, SCHEDULER, TWO_LEVELS

from cipherdm import CipherDMError
from cipherdm.cli.options import FORMATS, PROTOCOL_NAMES, SCHEDULER_NAMES, parse_labels
from cipherdm.files import check_writable
from cipherdm.models import find_model, init_unet, save_unet
from cipherdm.protocols import NAMES
from cipherdm.schedules import SCHEDULERS
from cipherdm_experiments.tables import render

CONFIG = replace(ONE_LEVEL, num_class_embeds=2, add_attention=False)


@pytest.fixture
def model(tmp_path):
    """A folder with a very small conditional model."""
    save_unet(replace(init_unet(CONFIG), scheduler_config=SCHEDULER), tmp_path / "model")
    return tmp_path / "model"


def test_sample_writes_a_picture_and_its_record(model, tmp_path, run, capsys):
    out = tmp_path / "pictures" / "two.png"
    assert run("sample", "--model", model, "--labels", "0-1", "--steps", 2, "--protocols", "direct", "--out", out) == 0
    assert Image.open(out).width > 100
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["labels"] == [0, 1] and record["steps"] == 2 and record["protocols"] == "direct"
    assert min(record["psnr_db"]) > 25
    assert record["cost"]["bytes"] > 0 and record["environment"]["versions"]["spu"]
    printed = capsys.readouterr()
    assert "2 images" in printed.out
    assert "step 2/2 scheduler" in printed.err  # the bar's last description


@pytest.fixture(params=["pipeline", "hub"])
def unet_pipeline(request, tmp_path):
    """A DDPMPipeline as diffusers' training script saves it, and as google/ddpm-* have it: all files side by side."""
    torch.manual_seed(0)
    config = replace(TWO_LEVELS, block_out_channels=(16, 16), norm_num_groups=4, sample_size=4)
    made = UNet2DModel(**{name: value for name, value in config.to_diffusers().items() if name[0] != "_"})
    scheduler = DDPMScheduler(clip_sample=False, prediction_type="v_prediction")
    folder = tmp_path / "trained"
    DDPMPipeline(made, scheduler).save_pretrained(folder)
    if request.param == "hub":
        shutil.rmtree(folder / "unet")
        shutil.rmtree(folder / "scheduler")
        made.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    return folder


def test_a_pipeline_of_a_unet_is_taken_by_every_command(unet_pipeline, tmp_path, run, capsys):
    out = tmp_path / "one.png"
    assert run("calibrate", unet_pipeline, "--images", 8, "--timesteps", 2) == 0
    assert run("check-ranges", unet_pipeline, "--steps", 2, "--count", 1) in (0, 3)
    alone = ("--no-plaintext", "--save-images", tmp_path / "images")
    assert run("sample", "--model", unet_pipeline, "--steps", 1, "--protocols", "direct", "--out", out, *alone) == 0
    printed = capsys.readouterr().out
    assert Image.open(out).width > 50 and "1 image in" in printed and "PSNR" not in printed
    assert "psnr_db" not in json.loads(out.with_suffix(".json").read_text())
    assert Image.open(tmp_path / "images" / "0000.png").size == (4, 4)
    # A model is made of it before the parties are called, of which there are none.
    asked = ("--steps", 1, "--protocols", "direct", "--config", tmp_path / "none.toml")
    assert run("register", unet_pipeline, *asked) == 1
    assert "none.toml" in capsys.readouterr().err


def test_pipelines_of_other_kinds_are_named(unet_pipeline, run, capsys):
    (unet_pipeline / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
    for command in (["sample", "--model"], ["calibrate"], ["check-ranges"]):
        assert run(*command, unet_pipeline) == 1
        assert (
            "is of a LDMPipeline; supported are DDPMPipeline, DDIMPipeline, ConsistencyModelPipeline, Stable"
            in capsys.readouterr().err
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "7"], "label 7 does not exist"),
        (["--labels", "0", "--steps", "0"], "steps must be between 1 and 1000"),
        (["--labels", "0", "--steps", "1001"], "steps must be between 1 and 1000"),
        (["--labels", "zero"], "cannot read the labels 'zero'"),
        (["--labels", "0", "--protocols", "magic"], "magic"),
    ],
)
def test_a_mistake_gets_one_line_and_leaves_no_file(model, tmp_path, run, capsys, arguments, message):
    out = tmp_path / "out.png"
    assert run("sample", "--model", model, "--out", out, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--protocols", "fast"], "calibration.safetensors"), (["--granularity", "layer"], "unknown granularity 'layer'")],
    ids=["not calibrated", "granularity"],
)
def test_what_a_set_does_not_compute_is_told_before_anything_is_computed(
    model, monkeypatch, run, capsys, arguments, message
):
    monkeypatch.setattr("cipherdm.sample", lambda *_, **__: pytest.fail("it was computed in plaintext"))
    assert run("sample", "--model", model, "--labels", "0", "--protocols", "direct", *arguments) == 1
    assert message in capsys.readouterr().err


def test_the_working_directory_shadows_no_library(tmp_path):
    (tmp_path / "typer.py").write_text("raise ImportError('not this one')")
    command = [sys.executable, "-m", "cipherdm", "--help"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert shown.returncode == 0 and "sample" in shown.stdout, shown.stderr


def test_an_unknown_model_is_answered_with_the_known_ones():
    with pytest.raises(CipherDMError, match="no-such-model.*mnist01-tiny"):
        find_model("no-such-model")


@pytest.mark.parametrize(
    ("text", "labels"), [("0-3", [0, 1, 2, 3]), ("1,1,7", [1, 1, 7]), ("2, 4-5", [2, 4, 5]), (None, None)]
)
def test_labels_are_read(text, labels):
    assert parse_labels(text) == labels


def test_a_range_of_labels_begins_with_the_smaller():
    with pytest.raises(CipherDMError, match="'2-0': write the smaller number"):
        parse_labels("2-0")


def test_titles_are_plain_text(tmp_path):
    from cipherdm.views.pictures import image_panels, image_row

    captions, images = ["a $$ sign", "$5 and $10"], np.zeros((2, 1, 8, 8))
    for figure in (image_row(images, captions), image_panels(dict(zip(captions, images[:, 0], strict=True)))):
        figure.savefig(tmp_path / "dollar.png")
        assert not any(axis.title.get_parse_math() for axis in figure.axes)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("picture", "picture ends in none of the formats that can be written: .png, "),
        ("v1.0", "v1.0 ends in none of the formats"),
        ("picture.xyz", "picture.xyz ends in none of the formats"),
        ("picture.json", "picture.json ends in none of the formats"),
        ("folder.png", "folder.png cannot be written (it is a folder)"),
        ("taken.png", "taken.json cannot be written (it is a folder)"),
        ("file/picture.png", "picture.png cannot be written (Not a directory)"),
        ("/proc/none/picture.png", "/proc/none/picture.png cannot be written (No such file or directory)"),
    ],
)
def test_an_image_that_could_not_be_written_is_not_drawn(tmp_path, monkeypatch, run, capsys, out, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.png", "taken.json"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    # There is no such model and no such configuration, as would be found next.
    for command in (("sample", "--model", "none"), ("request", "none", "--config", "none.toml")):
        assert run(*command, "--out", out) == 1
        assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("suffix", FORMATS)
def test_an_image_is_written_in_every_format_that_is_offered(tmp_path, suffix):
    from cipherdm.cli.sample import write_figure
    from cipherdm.views.pictures import image_row

    out = tmp_path / f"new/image{suffix}"
    check_writable(out, FORMATS)
    write_figure(image_row(np.zeros((1, 1, 8, 8)), ["0"]), out, {})
    assert out.stat().st_size > 200 and sorted(out.parent.iterdir()) == sorted([out, out.with_suffix(".json")])


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "none", "--record"),
        ("read-back", "none", "--record"),
        ("bench", "step", "none", "--record"),
        ("bench", "segments", "none", "--keep"),
        ("reproduce", "--only", "none", "--costs"),
        ("train", "none", "--out"),
        ("certificates",),
    ],
    ids=" ".join,
)
def test_no_command_works_for_a_file_that_it_could_not_write(tmp_path, run, capsys, command):
    (tmp_path / "file").touch()
    # There is no model, target or recipe of that name, as would be found next.
    assert run(*command, tmp_path / "file" / "inside") == 1
    assert "cannot be written (Not a directory): give the path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("host", ["::1", "http://10.0.0.1", "10.0.0.1:9300", "one two"])
def test_no_files_are_made_for_an_address_that_can_never_work(tmp_path, run, capsys, host):
    assert run("certificates", tmp_path / "trial", "--hosts", f"127.0.0.1,127.0.0.1,{host}") == 1
    assert f"{host!r} is no address: give names or IPv4 addresses" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_is_not_calibrated_if_the_fits_have_no_place(model, run, capsys):
    (model / "calibration.safetensors").mkdir()
    assert run("calibrate", model, "--timesteps", 1001) == 1  # more than the model has, as would be found next
    assert "calibration.safetensors cannot be written (it is a folder)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_size": None}, "sample_size is missing: write the images' height"),
        ({"out_channels": 2}, "returns 2 channels for 1: models that learn a variance"),
        ({"in_channels": 2}, "returns 1 channels for 2: .* take an image beside the noise"),
    ],
    ids=["size", "learned variance", "more in than out"],
)
def test_models_that_are_not_drawn_from_are_refused_by_every_command(tmp_path, run, capsys, change, message):
    save_unet(
        replace(init_unet(replace(CONFIG, num_class_embeds=None, **change)), scheduler_config=SCHEDULER), tmp_path
    )
    for command in (("sample", "--protocols", "direct", "--model"), ("calibrate",), ("check-ranges",)):
        assert run(*command, tmp_path) == 1
        assert re.search(message, capsys.readouterr().err)


def test_a_seed_below_zero_is_named_by_every_command(model, run, capsys):
    seeded = ("--steps", 2, "--seed", -1)
    for command in (
        ("sample", "--protocols", "direct", "--labels", "0", *seeded, "--model", model),
        ("calibrate", model, "--seed", -1),
        ("check-ranges", model, *seeded),
        ("read-back", model, *seeded),
    ):
        assert run(*command) == 1
        assert "the seed must be a whole number from 0 on; got -1" in capsys.readouterr().err


def test_the_names_written_out_for_the_help_are_those_of_the_protocol_sets():
    assert PROTOCOL_NAMES == NAMES
    assert SCHEDULER_NAMES == SCHEDULERS


def test_tables_are_rewritten_between_their_marks(tmp_path):
    record = {"model": "m", "parameters": 1234, "scheduler": "ddim", "steps": 50}
    scores = {"accuracy": 0.98765, "f1": 0.9, "lenet_fid": 1.234, "count": 2000}
    (tmp_path / "quality_m_direct.json").write_text(json.dumps(record | scores))
    text = "before\n<!-- table: models -->\nold\n<!-- end -->\nafter"
    rendered = render(text, tmp_path)
    assert "| m | 1,234 | DDIM-50 | 98.8% | 0.900 | 1.23 | 2,000 |" in rendered and "old" not in rendered
    assert rendered.startswith("before") and rendered.endswith("after")
    assert render(rendered, tmp_path) == rendered
    with pytest.raises(CipherDMError, match="no table is called 'none'"):
        render(text.replace("models", "none"), tmp_path)


def test_the_sheet_shows_every_picture():
    from cipherdm.views.pictures import sample_sheet

    images = np.zeros((12, 1, 8, 8), np.float32)
    figure = sample_sheet(images, images, [30.0] * 12, [str(i) for i in range(12)])
    titles = [axis.get_title() for axis in figure.axes]
    assert [title for title in titles if title.isdecimal()] == [str(i) for i in range(12)]
    assert titles.count("30.0 dB") == 12
