"""Prompts at three hosts: an owner registers a pipeline's U-Net, a client brings embeddings and decodes the latents itself."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from prompted_models import ONE_LEVEL, SMALL, add_control, save_pipeline

from cipherdm import DIRECT, CipherDMError, load_pipeline, text_to_image
from cipherdm.hosts import RemoteCluster, images_of
from cipherdm.sampling.pipeline import load_client_components

PROMPTS = ["a small red seven", "a blue two"]
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def registered(hosts, pipeline_folder, run):
    """The name of the model, registered on the command line as the owner does."""
    settings = ("--steps", 2, "--guidance-scale", 3, "--protocols", "direct", "--granularity", "step")
    assert run("register", pipeline_folder, "--name", "drawer", *settings, "--config", hosts["owner"]) == 0
    yield "drawer"
    assert run("unregister", "drawer", "--config", hosts["owner"]) == 0


def test_prompts_are_drawn_as_in_plaintext(hosts, pipeline_folder, registered, run, tmp_path, capsys):
    # The client's folder has no U-Net.
    client_folder = tmp_path / "client"
    shutil.copytree(pipeline_folder, client_folder, ignore=shutil.ignore_patterns("unet", "scheduler"))
    components = load_client_components(client_folder)
    with RemoteCluster(hosts["alice"]) as alice:
        found = images_of(
            alice, registered, prompts=PROMPTS, negative_prompts=["", "red"], components=components, seed=7
        )
        with pytest.raises(CipherDMError, match="it takes .* Give prompts"):
            images_of(alice, registered, labels=[1])
        with pytest.raises(CipherDMError, match="1 negative prompts for 2 prompts"):
            images_of(alice, registered, prompts=PROMPTS, negative_prompts=["red"], components=components)
        with pytest.raises(CipherDMError, match="give a multiple of that, not 0 prompts"):
            images_of(alice, registered, prompts=[], components=components)
        with pytest.raises(CipherDMError, match="prompts need components"):
            images_of(alice, registered, prompts=PROMPTS)
        with pytest.raises(CipherDMError, match="components go with prompts"):
            images_of(alice, registered, components=components)
    pipeline = load_pipeline(pipeline_folder)
    for index, (prompt, negative) in enumerate(zip(PROMPTS, ["", "red"], strict=True)):
        settings = {"negative_prompts": [negative], "guidance_scale": 3.0, "steps": 2, "seed": 7 + index}
        expected = text_to_image(pipeline, None, [prompt], protocols=DIRECT, **settings)
        np.testing.assert_allclose(found.latents[index], expected.latents[0], atol=0.02)
        np.testing.assert_allclose(found.images[index], expected.images[0], atol=0.02)
    assert found.cost.bytes > 0

    out = tmp_path / "drawn.png"
    asked = ("request", registered, "--prompt", PROMPTS[0], "--config", hosts["alice"], "--out", out)
    assert run(*asked, "--components", client_folder) == 0
    assert Image.open(out).width > 50 and out.with_suffix(".json").exists()
    assert run(*asked) == 1
    assert "a prompt needs --components" in capsys.readouterr().err
    assert run(*asked, "--components", client_folder, "--labels", "1") == 1
    assert "give prompts, or labels or a count, not both" in capsys.readouterr().err
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["guidance_scale"] == 3 and record["pictures"] == 1


@pytest.mark.slow
def test_hints_go_to_the_hosts_as_prompts_do(hosts, run, tmp_path):
    save_pipeline(tmp_path, ONE_LEVEL)
    add_control(tmp_path, hide_prompt=True)
    settings = ("--steps", 1, "--guidance-scale", 1, "--conditioning-scale", 0.5)
    settings += ("--protocols", "puma", "--granularity", "block")
    assert run("register", tmp_path, "--name", "guided", *settings, "--config", hosts["owner"]) == 0
    pipeline, hints = load_pipeline(tmp_path), np.tile(np.eye(16, dtype=np.float32), (1, 3, 1, 1))
    asked = {"prompts": PROMPTS[:1], "components": load_client_components(tmp_path), "seed": 7}
    with RemoteCluster(hosts["alice"]) as alice:
        found = images_of(alice, "guided", control=hints, **asked)
        for wrong in (None, hints[:, :, :8]):
            with pytest.raises(CipherDMError, match=r"its hints .* give images .* = \(1, 3, 16, 16\)"):
                images_of(alice, "guided", control=wrong, **asked)
    settings = {"guidance_scale": 1.0, "conditioning_scale": 0.5, "steps": 1, "seed": 7, "protocols": "puma"}
    expected = text_to_image(pipeline, None, PROMPTS[:1], control=hints, **settings)
    np.testing.assert_allclose(found.latents, expected.latents, atol=0.02)
    Image.fromarray((hints[0, 0] * 255).astype(np.uint8)).save(tmp_path / "hint.png")
    request = ("--prompt", PROMPTS[0], "--components", tmp_path, "--control-image", tmp_path / "hint.png")
    assert run("request", "guided", *request, "--config", hosts["alice"], "--out", tmp_path / "out.png") == 0
    assert run("unregister", "guided", "--config", hosts["owner"]) == 0


def test_components_of_another_pipeline_are_named(hosts, registered, tmp_path):
    save_pipeline(tmp_path, replace(SMALL, cross_attention_dim=24))
    other = load_client_components(tmp_path)
    with RemoteCluster(hosts["alice"]) as alice, pytest.raises(CipherDMError, match="the text encoder's width is 24"):
        images_of(alice, registered, prompts=PROMPTS, components=other)
