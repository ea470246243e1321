"""diffusers' objects as models, and its call for three parties: the images are those that diffusers draws."""

from dataclasses import replace
from io import BytesIO

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from small import ONE_LEVEL, SCHEDULER

from cipherdm import CIPHERDM, CipherDMError, SecurePipeline, from_diffusers, load_pipeline, load_unet, sample
from cipherdm.likeness import grey_levels
from cipherdm.models import find_model
from cipherdm.sampling import SamplingResult

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def theirs(folder):
    """A small pipeline of diffusers' with random weights."""
    return folder[0]


def unet_of(seed=0):
    torch.manual_seed(seed)
    config = replace(ONE_LEVEL, sample_size=4, add_attention=False, num_class_embeds=None)
    return diffusers.UNet2DModel(**{name: value for name, value in config.to_diffusers().items() if name[0] != "_"})


def test_objects_of_diffusers_are_what_their_folders_are(theirs, tmp_path):
    in_memory, saved = from_diffusers(theirs), from_diffusers(theirs, folder=tmp_path / "saved")
    assert in_memory.unet.folder is None and saved.unet.folder == tmp_path / "saved"
    for name, array in theirs.unet.state_dict().items():
        np.testing.assert_array_equal(in_memory.unet.params[name], array)
        np.testing.assert_array_equal(saved.unet.params[name], array)
    assert load_pipeline(tmp_path / "saved").unet.config == in_memory.unet.config
    made, scheduler = unet_of(), diffusers.EulerDiscreteScheduler.from_config(SCHEDULER)
    alone = from_diffusers(made, scheduler)
    assert alone.scheduler_config["_class_name"] == "EulerDiscreteScheduler" and alone.folder is None
    np.testing.assert_array_equal(alone.params["conv_in.weight"], made.conv_in.weight.detach())
    assert from_diffusers(diffusers.DDIMPipeline(made, scheduler)).config == alone.config
    with pytest.raises(CipherDMError, match="VQModel"):
        from_diffusers(diffusers.VQModel(block_out_channels=(32,), norm_num_groups=4))


@pytest.mark.slow
def test_prompts_are_drawn_as_diffusers_draws_them(theirs, cluster):
    pipe = SecurePipeline(theirs, cluster, protocols="direct")
    asked = {"num_inference_steps": 2, "guidance_scale": 3.0, "negative_prompt": "blue"}
    heard, heard_there = [], []
    callback = {"callback_on_step_end": lambda _, step, timestep, given: heard.append((step, timestep, given))}
    drawn = pipe("a red two", generator=torch.Generator().manual_seed(3), **asked, **callback)
    theirs.scheduler = diffusers.DDIMScheduler.from_config(theirs.scheduler.config)
    callback["callback_on_step_end"] = lambda _, step, timestep, given: (
        heard_there.append((step, timestep, {})) or given
    )
    generator = torch.Generator().manual_seed(3)
    expected = theirs("a red two", generator=generator, output_type="np", **asked, **callback).images
    assert heard == heard_there and len(heard) == 2
    assert isinstance(drawn.images[0], Image.Image) and drawn.images[0].size == expected.shape[2:0:-1]
    np.testing.assert_allclose(np.asarray(drawn.images[0]) / 255, expected[0], atol=0.02)
    assert drawn.result.cost.bytes > 0 and drawn._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_pipeline_starts_its_own_parties_and_stops_them():
    scheduler = diffusers.DDIMScheduler.from_config(SCHEDULER | {"prediction_type": "v_prediction"})
    with SecurePipeline(from_diffusers(unet_of(), scheduler), protocols="direct") as pipe:
        with pytest.raises(CipherDMError, match="steps"):
            pipe(num_inference_steps=0)
        generator = torch.Generator().manual_seed(1)
        drawn = pipe(num_inference_steps=1, batch_size=2, generator=generator, output_type="np")
        latents = torch.randn((2, 1, 4, 4), generator=torch.Generator().manual_seed(1))
        again = pipe(num_inference_steps=1, batch_size=2, latents=latents, generator=7, output_type="latent")
        np.testing.assert_allclose(drawn.images[..., 0], np.clip(again.images[:, 0] / 2 + 0.5, 0, 1), atol=1e-3)
        np.testing.assert_array_equal(again.images, again.result.images)
        pids = pipe._cluster.pids
    assert len(pids) == 3 and pipe._cluster is None
    np.testing.assert_array_equal(np.asarray(again.result.pil[0]), grey_levels(again.images[0, 0]))


def test_models_and_sets_are_taken_by_name():
    unet = load_unet("mnist01-tiny")
    assert unet.folder == find_model("mnist01-tiny")
    by_name, by_set = (sample(unet, None, labels=1, steps=1, protocols=chosen) for chosen in ("CipherDM", CIPHERDM))
    np.testing.assert_array_equal(by_name.images, by_set.images)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_result_is_shown_as_pictures(channels):
    images = np.full((2, channels, 4, 6), -1.0, np.float32)
    images[1, 0] = 2.0
    result = SamplingResult(images)
    first, second = result.pil
    assert first.size == (6, 4) and np.asarray(first).max() == 0
    assert np.asarray(second).reshape(4, 6, channels)[..., 0].min() == 255
    shown = np.asarray(Image.open(BytesIO(result._repr_png_())))
    assert shown.shape[:2] == (96, 2 * 6 * 24)
    assert shown[:, :144].max() == 0 and shown[:, 144:].max() == 255


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "draws from prompts"),
        ({"prompt": "a red two", "class_labels": [1]}, "no class_labels"),
        ({"prompt": "a red two", "output_type": "pt"}, "output_type 'pt': choose pil, np or latent"),
        ({"prompt": "a red two", "latents": np.zeros((2, 4, 4, 4))}, r"latents have shape \(2, 4, 4, 4\)"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_named(theirs, cluster, asked, message):
    with pytest.raises(CipherDMError, match=message):
        SecurePipeline(theirs, cluster)(**asked)
    model = from_diffusers(unet_of(), diffusers.DDIMScheduler.from_config(SCHEDULER))
    with pytest.raises(CipherDMError, match="takes no prompts"):
        SecurePipeline(model, cluster)("a red two")
