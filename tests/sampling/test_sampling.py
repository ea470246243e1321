"""Schedules against diffusers' own loops, plaintext sampling against diffusers, secure sampling against plaintext."""

import asyncio
import importlib
import re
import threading
from dataclasses import replace
from functools import partial
from unittest import mock

import diffusers
import ipywidgets
import numpy as np
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio
from small import SCHEDULER, TWO_LEVELS

from cipherdm import CIPHERDM, DIRECT, CipherDMError, sample
from cipherdm.engine import Spec, compile_plan
from cipherdm.hosts import sampling as hosts_sampling
from cipherdm.models import find_model, init_unet, load_unet, save_unet
from cipherdm.owner import PreparedWeights, WeightsLayout, prepare_weights
from cipherdm.sampling.roles import client_values, one_hot, owner_values, public_values, whole_labels
from cipherdm.sampling.sample import SamplingResult, sampling_nodes
from cipherdm.sampling.steps import SplitRow, StepShape
from cipherdm.schedules import make_schedule

SMALL = replace(TWO_LEVELS, num_class_embeds=3)
CLASSES = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}
sampling_module = importlib.import_module("cipherdm.sampling.sample")  # the package has a function of this name
NO_WEIGHTS = WeightsLayout((), (), ())


@pytest.fixture(scope="module")
def unet():
    """A small conditional U-Net with random weights."""
    return replace(init_unet(SMALL), scheduler_config=SCHEDULER)


def diffusers_loop(name, config, steps, eta, model, sample, noises, clip):
    """The sampling loop as diffusers writes it, with given noise; `model(sample, timestep)`, all torch."""
    scheduler = CLASSES[name].from_config(config | {"clip_sample": clip})
    scheduler.set_timesteps(steps)
    for noise, timestep in zip(noises, scheduler.timesteps, strict=True):
        output = model(sample, timestep)
        if name == "ddim":
            fresh = noise if eta > 0 else None
            step = scheduler.step(
                output, timestep, sample, eta=eta, use_clipped_model_output=clip, variance_noise=fresh
            )
        else:
            # DDPM's step draws its own noise and takes none.
            with mock.patch.object(scheduling_ddpm, "randn_tensor", lambda *_, noise=noise, **__: noise):
                step = scheduler.step(output, timestep, sample)
        sample = step.prev_sample
    return sample


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [False, True], ids=["unclipped", "clipped"])
@pytest.mark.parametrize(
    ("name", "steps", "eta"),
    [
        ("ddpm", 1000, 0),
        ("ddpm", 20, 0),
        ("ddpm", 1, 0),
        ("ddim", 50, 0),
        ("ddim", 7, 0.4),
        ("ddim", 20, 1),
        ("ddim", 1, 0),
    ],
)
def test_schedules_follow_diffusers(name, steps, eta, clip, spacing, prediction):
    config = SCHEDULER | {"timestep_spacing": spacing, "prediction_type": prediction}
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 5)).astype(np.float32)
    noises = generator.standard_normal((steps, 2, 5)).astype(np.float32)

    def model(sample, timestep):  # smooth, bounded, and different at each step
        return torch.tanh(sample) * (0.3 + timestep / 1000)

    expected = diffusers_loop(name, config, steps, eta, model, torch.tensor(x), torch.tensor(noises), clip).numpy()

    schedule = make_schedule(config, name, steps, eta=eta, clip=clip)
    for i in range(steps):
        output = model(torch.tensor(x), torch.tensor(schedule.timesteps[i])).numpy()
        if schedule.clip is not None:
            output = np.clip(schedule.prediction[i] @ np.stack([x, output], axis=1), -schedule.clip, schedule.clip)
        x = np.tensordot(schedule.coefficients[i], np.stack([x, output, noises[i]]), axes=1)
    np.testing.assert_allclose(x, expected, atol=1e-4 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize(("name", "steps", "eta"), [("ddim", 5, 0.0), ("ddim", 5, 0.5), ("ddpm", 6, 0.0)])
def test_plaintext_sampling_equals_diffusers(unet, tmp_path, name, steps, eta):
    save_unet(unet, tmp_path)
    model = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    labels = [2, 0]
    schedule = make_schedule(SCHEDULER, name, steps, eta=eta)
    shape = StepShape.of(SMALL, DIRECT, NO_WEIGHTS, schedule, batch=len(labels))
    values = client_values(labels, shape, seed=3)
    noises = torch.tensor(values.get("noise", np.zeros((steps, 1), np.float32)))
    with torch.no_grad():
        expected = diffusers_loop(
            name,
            SCHEDULER,
            steps,
            eta,
            lambda x, t: model(x, t, class_labels=torch.tensor(labels)).sample,
            torch.tensor(values["sample"]),
            noises,
            clip=False,
        )
    images = sample(unet, None, labels=labels, steps=steps, scheduler=name, eta=eta, protocols=DIRECT, seed=3).images
    np.testing.assert_allclose(images, expected.numpy(), atol=1e-4)


def test_the_owners_time_terms_are_exact(unet):
    inside = sample(unet, None, labels=[1, 2], steps=3, protocols=DIRECT, seed=1).images
    outside = replace(DIRECT, time_embedding="precomputed")
    precomputed = sample(unet, None, labels=[1, 2], steps=3, protocols=outside, seed=1).images
    np.testing.assert_allclose(inside, precomputed, atol=2e-6)


def test_secure_and_plaintext_noise_prediction_agree(unet, session):
    """One U-Net call under DIRECT, as one program, on the sample and the label that a client shares."""
    nodes, specs, values, public = _run_of(unet, DIRECT, steps=1)
    step = next(node.function for node in nodes if node.label == "step")
    call = replace(step, nodes=step.nodes[:-1], outputs=("eps",))
    session.share(values)
    session.share(public, public=True)
    inputs = tuple("step.0" if name == "step" else name for name in call.inputs)
    node = replace(call.as_node("unet"), inputs=inputs)
    session.run(compile_plan([node], specs, keep=["eps"]))
    everything = values | public | {"step": public["step.0"]}
    (expected,) = call(*(everything[name] for name in call.inputs))
    assert _rms(session.reveal("eps") - expected) < 0.01


@pytest.mark.parametrize("granularity", ["block", "step", "loop"])
@pytest.mark.parametrize("protocols", [DIRECT, CIPHERDM], ids=lambda protocols: protocols.name)
def test_secure_sampling_follows_plaintext(unet, cluster, protocols, granularity):
    settings = {"labels": [1, 0], "steps": 2, "scheduler": "ddpm", "protocols": protocols, "seed": 5}
    progress = []
    result = sample(unet, cluster, granularity=granularity, progress=lambda *event: progress.append(event), **settings)
    expected = sample(unet, None, **settings).images
    assert result.images.shape == (2, 1, 8, 8)
    assert _rms(result.images - expected) < 0.02 * _rms(expected)
    compiling = [event for event in progress if event[2].startswith("compiling ")]
    calls = progress[len(compiling) :]
    assert progress[: len(compiling)] == compiling and calls[0][2].startswith("step ")
    # Programs are reported before they are compiled, calls when they are done.
    dones, totals = [done for done, _, _ in compiling], {total for _, total, _ in compiling}
    assert dones == sorted(dones) and {*dones} == {*range(*totals)}
    assert [done for done, _, _ in calls] == list(range(1, calls[0][1] + 1))
    assert result.cost.bytes > 0 and len(result.peak_memory) == 3


def test_callers_at_once_get_their_own_images(unet, cluster):
    """Two threads, a task of asyncio and a widget's button sample on one cluster, each from its own noise."""
    found = {}
    sample(unet, cluster, labels=[0], steps=1)  # compiles

    def draw(seed):
        found[seed] = sample(unet, cluster, labels=[0], steps=1, seed=seed).images

    async def task():
        await asyncio.to_thread(draw, 2)

    button = ipywidgets.Button()
    button.on_click(lambda _: draw(3))
    callers = [threading.Thread(target=draw, args=(seed,)) for seed in (0, 1)]
    callers.append(threading.Thread(target=lambda: asyncio.run(task())))
    for caller in callers:
        caller.start()
    button.click()
    for caller in callers:
        caller.join(timeout=300)
    for seed in range(4):
        alone = sample(unet, None, labels=[0], steps=1, seed=seed).images
        np.testing.assert_allclose(found[seed], alone, atol=0.02)


def test_clipping_on_shares(unet, cluster):
    settings = {"labels": [1], "steps": 2, "clip": True, "protocols": DIRECT}
    secure, plaintext = sample(unet, cluster, **settings).images, sample(unet, None, **settings).images
    assert np.abs(plaintext).max() < 1.01  # the last step returns the clipped prediction
    np.testing.assert_allclose(secure, plaintext, atol=0.05)


@pytest.mark.slow
def test_a_four_step_picture_of_the_trained_model(cluster):
    trained = load_unet(find_model("mnist01-tiny"))
    settings = {"labels": [0], "steps": 4, "protocols": DIRECT, "seed": 1}
    secure = sample(trained, cluster, granularity="step", **settings).images
    plaintext = sample(trained, None, **settings).images
    assert peak_signal_noise_ratio(plaintext.clip(-1, 1), secure.clip(-1, 1), data_range=2) >= 30


def test_what_a_party_stores_is_uniform_and_tells_labels_apart_no_better_than_chance(unet):
    """The bytes that each party gets for two opposite inputs: uniform, and agreeing as often as chance has it."""
    from spu import api, libspu

    from cipherdm.engine import EngineConfig

    io = api.Io(3, EngineConfig().runtime_config())
    schedule = make_schedule(SCHEDULER, "ddpm", 20)
    shape = StepShape.of(SMALL, DIRECT, NO_WEIGHTS, schedule, batch=2)
    weights = owner_values(prepare_weights(unet, schedule.timesteps, DIRECT), shape)
    stored = []
    for labels, seed in (([0, 0], 1), ([2, 2], 1)):
        values = weights | client_values(labels, shape, seed)
        shares = [io.make_shares(np.asarray(values[name]), libspu.Visibility.VIS_SECRET) for name in sorted(values)]
        stored.append([_content([share[rank] for share in shares]) for rank in range(3)])
    for rank in range(3):
        one, other = stored[0][rank], stored[1][rank]
        assert stats.chisquare(np.bincount(one, minlength=256)).pvalue > 1e-6
        assert stats.binomtest(int((one == other).sum()), one.size, 1 / 256).pvalue > 1e-6


@pytest.mark.parametrize("protocols", [DIRECT, CIPHERDM], ids=lambda protocols: protocols.name)
def test_no_program_contains_a_secret_or_a_reveal(unet, protocols):
    """Every input is declared secret but the schedule, every output too, and nothing is opened on the way."""
    nodes, specs, values, _ = _run_of(unet, protocols, steps=2, granularity="block")
    for call in compile_plan(nodes, specs, keep=["sample"]).calls:
        code = call.program.code.decode()
        assert "reveal" not in code
        types = dict(re.findall(r"^(!t\d+) = (.*)$", code, re.MULTILINE))
        code = re.sub(r"!t\d+", lambda name, types=types: types[name[0]], code)
        arguments, _, results = code.partition("@main(")[2].partition("{")[0].partition("->")
        secret = [name in values or not specs.get(name, Spec(())).public for name in call.inputs]
        assert [("secret" in argument) for argument in arguments.split("%arg")[1:]] == secret
        assert call.label == "timestep" or results.count("secret") == len(call.outputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [3]}, "label 3 does not exist.*0 to 2"),
        ({"labels": [-1]}, "label -1"),
        ({"labels": None}, "conditional"),
        ({"labels": []}, "conditional"),
        ({"labels": [1.7]}, r"whole numbers.*1\.7"),
        ({"labels": np.array([[1]])}, "whole numbers, one per image"),
        ({"seed": -1}, "seed must be .* got -1"),
        ({"steps": 0}, "between 1 and 1000.*got 0"),
        ({"steps": 1001}, "between 1 and 1000.*got 1001"),
        ({"scheduler": "heun"}, "heun.*ddpm, ddim"),
        ({"eta": 1.5}, "eta.*1.5"),
        ({"granularity": "pixel"}, "pixel.*block, step or loop"),
    ],
)
def test_bad_settings_are_named_before_anything_is_shared(unet, cluster, change, message):
    settings = {"labels": [1], "steps": 2} | change
    with pytest.raises(CipherDMError, match=message):
        sample(unet, cluster, **settings)


def test_a_model_whose_weights_leave_the_range_is_refused(unet, cluster):
    params = dict(unet.params) | {"conv_in.bias": np.full(4, 2.0**27, np.float32)}
    with pytest.raises(CipherDMError, match="conv_in.bias.*fixed-point range"):
        sample(replace(unet, params=params), cluster, labels=[0], steps=1)


@pytest.mark.parametrize("of_hosts", [False, True])
@pytest.mark.parametrize(("value", "on_shares"), [(65.0, True), (-700.0, True), (np.nan, False), (np.inf, False)])
def test_numbers_that_left_the_range_are_an_error_and_no_picture(unet, monkeypatch, value, on_shares, of_hosts):
    """Whatever the parties return, a picture comes out of it only if its numbers may be those of a picture."""
    images = np.full((1, *SMALL.sample_shape), 0.5, np.float32)
    images[0, 0, 3, 4] = value
    if of_hosts:
        shape = StepShape.of(SMALL, DIRECT, NO_WEIGHTS, make_schedule(SCHEDULER, "ddim", 1), batch=1, ring=on_shares)
        monkeypatch.setattr(hosts_sampling, "_described", lambda *_: (shape, make_schedule(SCHEDULER, "ddim", 1)))
        answer = mock.Mock(outputs={"sample": images}, cost=None)
        draw = partial(hosts_sampling.images_of, mock.Mock(request=lambda *_: answer), "some", labels=[1])
    else:
        monkeypatch.setattr(sampling_module, "run_task", lambda *_, **__: SamplingResult(images))
        draw = partial(sample, unet, mock.Mock() if on_shares else None, labels=[1], steps=1)
    with pytest.raises(
        CipherDMError, match="range in which the set direct computes.*check-ranges.*calibrate.*fast-guarded"
    ):
        draw()
    images[0, 0, 3, 4] = 4.0
    np.testing.assert_array_equal(draw().images, images)


def test_a_table_is_split_into_the_arrays_of_its_step():
    arrays = {"one": np.arange(12.0).reshape(3, 4), "two": np.arange(18.0).reshape(3, 2, 3)}
    weights = PreparedWeights({}, arrays, {name: np.stack([array, -array]) for name, array in arrays.items()})
    values = owner_values(
        weights, StepShape.of(SMALL, DIRECT, NO_WEIGHTS, make_schedule(SCHEDULER, "ddim", 3), batch=1)
    )
    shapes = tuple(shape for _, shape in weights.layout.by_step)
    for step in range(3):
        by_step = SplitRow(shapes, axis=0)(values["step_table"], np.int32(step))
        by_class = SplitRow(shapes, axis=1)(values["class_table"], np.int32(step))
        for array, row, rows in zip(arrays.values(), by_step, by_class, strict=True):
            np.testing.assert_array_equal(row, array[step])
            np.testing.assert_array_equal(rows, np.stack([array[step], -array[step]]))


@pytest.mark.parametrize(
    "labels", [np.array([0]), np.arange(3), torch.arange(3), (0, np.int64(2)), range(3), 2, np.int64(1)], ids=repr
)
def test_labels_may_be_arrays(labels):
    assert whole_labels(labels) == [int(label) for label in np.atleast_1d(labels)]


def test_one_hot_rows():
    np.testing.assert_array_equal(one_hot([2, 0], SMALL), [[0, 0, 1], [1, 0, 0]])


def _run_of(unet, protocols, *, steps, granularity="step"):
    schedule = make_schedule(SCHEDULER, "ddim", steps)
    weights = prepare_weights(unet, schedule.timesteps, protocols)
    shape = StepShape.of(SMALL, protocols, weights.layout, schedule, batch=1)
    values = owner_values(weights, shape) | client_values([1], shape, seed=0)
    public = public_values(schedule, shape)
    specs = {name: Spec.of(np.asarray(array)) for name, array in values.items()}
    specs |= {name: Spec.of(np.asarray(array), public=True) for name, array in public.items()}
    return sampling_nodes(shape, granularity), specs, values, public


def _content(shares) -> np.ndarray:
    from spu import libspu

    parts = []
    for share in shares:
        for data in share.share_chunks:
            chunk = libspu.ValueChunk()
            chunk.ParseFromString(data)
            parts.append(chunk.content)
    return np.frombuffer(b"".join(parts), np.uint8)


def _rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))
