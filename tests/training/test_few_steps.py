"""Few-step students: the teacher's paths against diffusers, schedules, losses, and the folders that are left behind."""

import os
import signal
from dataclasses import replace
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch

import cipherdm as cdm
from cipherdm.models import find_model
from cipherdm.sampling.pipeline import known_hints
from cipherdm_experiments.training import few_steps
from cipherdm_experiments.training.few_steps import Teacher, student_objective, train_student
from cipherdm_experiments.training.recipes import NOISE_SCHEDULE
from cipherdm_experiments.training.students import STUDENTS, Phase

PHASES = (Phase(2, 1e-4), Phase(1, 1e-4, whole=True, huber=True, matching=0.1))
TWO = replace(STUDENTS["mnist10-turbo-2"], initial=None, paths=8, batch=4, judged=20, phases=PHASES, name="short")
SCHEDULE = few_steps._teacher_schedule()


@pytest.fixture(scope="module")
def digits():
    return Teacher(find_model("mnist10"))


@pytest.fixture(scope="module")
def captions():
    return Teacher(find_model("sd-mini"))


def noise_for(teacher, count):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, *teacher.shape), dtype=np.float32))


def test_paths_are_those_of_diffusers(digits):
    noise, rows = noise_for(digits, 2), torch.tensor([3, 8])
    solver = diffusers.DPMSolverMultistepScheduler(
        **{name: value for name, value in NOISE_SCHEDULE.items() if name != "clip_sample"},
        timestep_spacing="trailing",
        final_sigmas_type="zero",
    )
    solver.set_timesteps(20)
    sample, samples = noise, [noise]
    for timestep in solver.timesteps:
        with torch.no_grad():
            output = digits.unet(sample, timestep, class_labels=rows).sample
        sample = solver.step(output, timestep, sample).prev_sample
        samples.append(sample)
    found = digits.path(noise, rows, SCHEDULE, 1.0)
    torch.testing.assert_close(found, torch.stack(samples, dim=1), atol=2e-3, rtol=0)


def test_guided_paths_are_those_of_the_pipeline(captions):
    text, noise = "a small red seven at the top left on a blue background", noise_for(captions, 1)
    texts = [caption.text for caption in few_steps.all_captions()]
    pipeline = diffusers.StableDiffusionPipeline(**captions.pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **settings)
    asked = {"guidance_scale": 4.0, "num_inference_steps": 20, "latents": noise, "output_type": "latent"}
    expected = pipeline(text, **asked).images
    found = captions.path(noise, torch.tensor([texts.index(text)]), SCHEDULE, 4.0)
    torch.testing.assert_close(found[:, -1], expected, atol=2e-3, rtol=0)


def test_steered_paths_are_those_of_the_pipeline(tmp_path):
    steered = Teacher(find_model("sd-mini-control"), pairs=300)
    noise, row = noise_for(steered, 1), 5
    caption = few_steps.all_captions()[steered._captions[row]].text
    settings = {"timestep_spacing": "trailing", "final_sigmas_type": "zero"}
    pipeline = steered.with_student(steered.unet, TWO)
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        steered.pipeline.scheduler.config, **settings
    )
    asked = {"guidance_scale": 4.0, "num_inference_steps": 20, "latents": noise, "output_type": "latent"}
    expected = pipeline(caption, steered._hints[row : row + 1].contiguous(), **asked).images
    found = steered.path(noise, torch.tensor([row]), SCHEDULE, 4.0)
    torch.testing.assert_close(found[:, -1], expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("config", STUDENTS.values(), ids=lambda config: config.name)
def test_a_students_schedule_is_the_beginning_of_its_teachers(config):
    scheduler, whole = config.scheduler(), diffusers.DDIMScheduler(**NOISE_SCHEDULE)
    torch.testing.assert_close(scheduler.alphas_cumprod, whole.alphas_cumprod[: config.start], atol=1e-6, rtol=1e-4)
    scheduler.set_timesteps(config.calls)
    assert scheduler.timesteps[0] == config.start - 1 and len(scheduler.timesteps) == config.calls
    assert set(scheduler.timesteps[1:].tolist()) <= set(SCHEDULE.timesteps.tolist())
    assert config.initial is None or config.initial in STUDENTS


@pytest.mark.parametrize("whole", [False, True])
def test_only_outputs_that_land_on_the_teachers_samples_have_no_loss(digits, whole):
    """The network is replaced by one that knows its steps; with another step's output the loss is large."""
    generator = torch.Generator().manual_seed(0)
    rows, samples = torch.arange(8), torch.randn(8, 21, *digits.shape, generator=generator)
    scheduler = TWO.scheduler()
    scheduler.set_timesteps(2)
    known = SCHEDULE.timesteps.tolist()
    edges = [samples[:, 0], samples[:, known.index(299)], samples[:, -1]]
    told = {}
    for call, timestep in enumerate(scheduler.timesteps.tolist()):
        # DDIM is linear in the output, so two of its own steps say which output lands.
        ends = [
            scheduler.step(torch.full_like(rows, value)[:, None, None, None] + 0 * edges[0], timestep, edges[call])
            for value in (0.0, 1.0)
        ]
        nothing, one = (end.prev_sample for end in ends)
        told[timestep] = (edges[call + 1] - nothing) / (one - nothing)

    def predict(_, sample, timesteps, asked):
        return torch.stack([told[int(t)][row] for t, row in zip(timesteps, asked, strict=True)]) + wrong

    config = replace(TWO, phases=(Phase(1, 1e-4, whole=whole),))
    objective = student_objective(digits, config, {"rows": rows, "samples": samples})
    for wrong in (0.0, 0.5):
        with mock.patch.object(digits, "predict", predict):
            loss, noted = objective({"student": None}, 0)
        assert loss == noted and (loss < 1e-6 if wrong == 0 else loss > 1e-3)


def test_a_student_is_a_folder_that_diffusers_draws_with(tmp_path):
    settings = {"runs": tmp_path / "runs", "progress": False}
    losses = []
    with mock.patch.object(few_steps, "_BATCH_OF_PATHS", 4):
        out = train_student(TWO, tmp_path / "out", on_step=lambda _, __, loss: losses.append(loss), **settings)
    theirs = diffusers.UNet2DModel.from_pretrained(out, low_cpu_mem_usage=False, torch_dtype=torch.float32)
    ddim = diffusers.DDIMScheduler.from_pretrained(out)
    ddim.set_timesteps(2)
    sample = noise = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for timestep in ddim.timesteps:
        with torch.no_grad():
            sample = ddim.step(
                theirs(sample, timestep, class_labels=torch.tensor([1, 4])).sample, timestep, sample
            ).prev_sample
    drawn = cdm.sample(cdm.load_unet(out), None, labels=[1, 4], steps=2, latents=noise.numpy())
    np.testing.assert_allclose(drawn.images, sample.numpy(), rtol=0, atol=2e-3)

    again, settings["runs"] = [], tmp_path / "again"
    with mock.patch.object(few_steps, "_BATCH_OF_PATHS", 4):
        with pytest.raises(KeyboardInterrupt, match="step 2 of 3"):
            stop = lambda _, step, __: os.kill(os.getpid(), signal.SIGINT) if step == 2 else None  # noqa: E731
            train_student(TWO, tmp_path / "other", on_step=stop, **settings)
        train_student(TWO, tmp_path / "other", on_step=lambda _, __, loss: again.append(loss), **settings)
    assert again == losses[2:] and len(losses) == 3


@pytest.mark.parametrize("act_fn", ["silu", "quad", "steered"])
def test_a_students_pipeline_draws_alike_here_and_in_diffusers(captions, tmp_path, act_fn):
    """With a quadratic activation in diffusers' modules, which diffusers does not load by itself, and with a ControlNet."""
    own = {"teacher": "sd-mini", "act_fn": act_fn}
    if steered := act_fn == "steered":
        own = {"teacher": "sd-mini-control", "pairs": 8, "judged": 4}
    config = replace(TWO, guidance=4.0, phases=PHASES[:1], **own)
    with mock.patch.object(few_steps, "_BATCH_OF_PATHS", 4):
        out = train_student(config, tmp_path / "out", runs=tmp_path / "runs", progress=False)
    theirs, ours, caption = (
        few_steps.load_pipeline(out),
        cdm.load_pipeline(out),
        "a large blue two on a white background",
    )
    noise, hints = noise_for(captions, 1), known_hints(ours, 1) if steered else None
    asked = {"guidance_scale": 1.0, "num_inference_steps": 2, "output_type": "latent", "latents": noise}
    expected = theirs(caption, **asked, **({"image": torch.from_numpy(hints)} if steered else {})).images
    settings = {"steps": 2, "guidance_scale": 1.0, "latents": noise.numpy(), "control": hints}
    found = cdm.text_to_image(ours, None, caption, **settings)
    np.testing.assert_allclose(found.latents, expected.numpy(), rtol=0, atol=1e-3 * float(expected.abs().max()))
    assert ours.unet.config.act_fn == ("silu" if steered else act_fn)
