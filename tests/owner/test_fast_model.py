"""FAST as a whole: the owner's preparation, emulated and secure sampling, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio
from small import ONE_LEVEL, SCHEDULER

from cipherdm import DIRECT, CipherDMError, sample
from cipherdm.engine import Call, Plan, Spec, compile_program
from cipherdm.models import init_unet, load_unet, save_unet, unet_blocks
from cipherdm.models.unet import TIME_KINDS, run_blocks
from cipherdm.owner import prepare_weights
from cipherdm.owner.calibrate import calibrate
from cipherdm.owner.observe import save_calibration
from cipherdm.protocols import FAST, FAST_64, FAST_GUARDED, fast
from cipherdm.sampling.sample import engine_for, make_task, run_task
from cipherdm.sampling.steps import pick_class_words, setup_graph
from cipherdm.schedules import make_schedule

SMALL = replace(ONE_LEVEL, sample_size=4)
STEPS = 3


def _config(name):
    if name == "no attention":
        return replace(SMALL, add_attention=False)
    return replace(SMALL, act_fn=name, attention_kernel="linear" if name == "quad" else "softmax")


ATTENTION = "mid_block.attentions.0"
VALUE_BITS = fast.VALUE_BITS
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def unets(tmp_path_factory):
    """Calibrated models: SiLU with small scores, Mish with scores that take squarings, no attention, cheap functions."""
    made = {}
    for act_fn, factor in {"silu": 0.3, "mish": 1.0, "no attention": 1.0, "quad": 1.0}.items():
        unet = init_unet(_config(act_fn), seed=1)
        params = {name: array * np.float32(factor if ".to_q." in name else 1) for name, array in unet.params.items()}
        folder = tmp_path_factory.mktemp(act_fn.replace(" ", "-"))
        save_unet(replace(unet, params=params, scheduler_config=SCHEDULER), folder)
        made[act_fn] = load_unet(folder)
        fits = calibrate(made[act_fn], make_schedule(SCHEDULER, "ddim", STEPS), images_per_class=24)
        save_calibration(fits, made[act_fn])
    return made


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


@pytest.mark.parametrize("act_fn", ["silu", "mish", "quad"])
def test_emulated_sampling_is_close_to_the_exact_model(unets, act_fn):
    settings = {"labels": [0, 1, 2], "steps": STEPS, "seed": 3}
    exact = sample(unets[act_fn], None, protocols=DIRECT, **settings).images
    for protocols in (FAST, FAST_GUARDED):
        images = sample(unets[act_fn], None, protocols=protocols, **settings).images
        assert rms(images - exact) < 0.03 * rms(exact)


def test_the_two_models_take_both_forms_of_attention_and_of_activations(unets):
    timesteps = make_schedule(SCHEDULER, "ddim", STEPS).timesteps
    silu, mish = (prepare_weights(unets[name], timesteps, FAST).static for name in ("silu", "mish"))
    assert silu[f"{ATTENTION}.to_q.squarings"] == 0 < mish[f"{ATTENTION}.to_q.squarings"]
    assert {silu["conv_norm_out.cubic"], mish["conv_norm_out.cubic"]} == {0}  # SiLU in both
    assert silu["down_blocks.0.resnets.0.norm1.cubic"] == 0
    assert mish["down_blocks.0.resnets.0.norm1.cubic"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("act_fn", "granularity"), [("silu", "step"), ("mish", "block"), ("quad", "loop")])
def test_secure_sampling_follows_the_emulation(unets, cluster, act_fn, granularity):
    settings = {"labels": [2, 0], "steps": STEPS, "seed": 5, "protocols": FAST}
    result = sample(unets[act_fn], cluster, granularity=granularity, **settings)
    expected = sample(unets[act_fn], None, **settings).images
    extent = float(expected.max() - expected.min())
    assert peak_signal_noise_ratio(expected, result.images, data_range=extent) > 45
    assert result.cost.bytes > 0


def test_without_calibration_the_command_is_named(tmp_path):
    unet = replace(init_unet(SMALL), scheduler_config=SCHEDULER)
    with pytest.raises(CipherDMError, match="cipherdm calibrate"):
        sample(unet, None, labels=[0], steps=2, protocols=FAST)
    save_unet(unet, tmp_path)
    with pytest.raises(CipherDMError, match="calibration.safetensors.*cipherdm calibrate"):
        sample(load_unet(tmp_path), None, labels=[0], steps=2, protocols=FAST)


def test_a_calibration_of_other_weights_is_refused(unets):
    params = dict(unets["silu"].params)
    params["conv_in.bias"] = params["conv_in.bias"] + np.float32(0.01)
    with pytest.raises(CipherDMError, match="other weights.*cipherdm calibrate"):
        sample(replace(unets["silu"], params=params), None, labels=[0], steps=2, protocols=FAST)


@pytest.mark.parametrize(
    ("setting", "value"), [("resnet_time_scale_shift", "scale_shift"), ("mid_block_scale_factor", 2.0)]
)
def test_a_model_that_fast_does_not_compute_is_refused_by_its_setting(setting, value):
    unet = replace(init_unet(replace(SMALL, **{setting: value})), scheduler_config=SCHEDULER)
    with pytest.raises(CipherDMError, match=f"{setting}=.*{value}"):
        sample(unet, None, labels=[0], steps=2, protocols=FAST)


def with_noise_times(unet, protocols, factor):
    """The images of a run in plaintext whose initial noise is larger than calibration met."""
    task = make_task(unet, labels=[0, 1], steps=STEPS, protocols=protocols, seed=5, ring=False)
    first = replace(task.shape, steps=1)  # later steps would multiply the error
    client = task.client | {"sample": task.client["sample"] * np.float32(factor)}
    return run_task(replace(task, shape=first, client=client), None).images


def test_the_guard_bounds_what_leaves_the_calibrated_range_of_fast(unets):
    """Noise of more than twice the size: FAST's numbers leave the ring, which its emulation shows as NaN.

    The guard is for activations, so the model has no attention.
    """
    exact, plain, guarded = (
        with_noise_times(unets["no attention"], protocols, 2.5) for protocols in (DIRECT, FAST, FAST_GUARDED)
    )
    assert np.isnan(plain).any()
    assert np.isfinite(guarded).all() and rms(guarded - exact) < rms(exact)


@pytest.mark.parametrize("act_fn", ["silu", "mish", "quad"])
def test_folding_deviation_and_mean_before_a_second_normalisation_is_exact(unets, act_fn):
    """The exact model with the owner's folded convolution and time term: normalisation takes both out again."""
    unet = unets[act_fn]
    schedule = make_schedule(SCHEDULER, "ddim", STEPS)
    prepared = prepare_weights(unet, schedule.timesteps, FAST)
    plain = prepare_weights(unet, schedule.timesteps, replace(DIRECT, time_embedding="precomputed"))
    blocks = [block for block in unet_blocks(replace(unet.config, norm_eps=1e-12)) if block.kind not in TIME_KINDS]
    folded = dict(unet.params) | {name: array for name, array in prepared.constant.items() if ".conv1." in name}
    changed = [name for name in folded if not np.allclose(folded[name], unet.params[name], rtol=1e-3)]
    assert len(changed) == sum(name.endswith(".time_term") for name in plain.by_class)
    biases = [name for name in unet.params if name.endswith(".conv1.bias")]
    assert not set(biases) & set(prepared.constant)
    folded |= {name: np.zeros_like(unet.params[name]) for name in biases}  # the time term has them

    def run(params, rows):
        terms = {name: array[1:2, 2] for name, array in rows.by_class.items() if name.endswith(".time_term")}
        return run_blocks(blocks, params, {"sample": random(1, 1, 4, 4)} | terms, protocols=DIRECT)["eps"]

    np.testing.assert_allclose(run(folded, prepared), run(unet.params, plain), atol=2e-5)


def test_class_tables_are_picked_by_the_secret_label(unets, cluster):
    task = make_task(unets["silu"], labels=[2, 0], steps=STEPS, protocols=FAST, ring=True)
    table, onehot = task.owner["class_table"], task.client["class_onehot"]
    assert not np.allclose(table[0], table[2], rtol=0.01) and len(setup_graph(task.shape).nodes) == 1
    session = cluster.session(engine_for(FAST))
    session.share({"onehot": onehot, "table": table})
    program = compile_program(pick_class_words, (Spec.of(onehot), Spec.of(table)))
    session.run(Plan((Call(program, ("onehot", "table"), ("rows",), "pick"),)))
    np.testing.assert_array_equal(session.reveal("rows"), table[[2, 0]])
    # In plaintext the same, without words.
    task = make_task(unets["silu"], labels=[2, 0], steps=STEPS, protocols=FAST, ring=False)
    table, onehot = task.owner["class_table"], task.client["class_onehot"]
    (rows,) = setup_graph(task.shape)(onehot, table)
    np.testing.assert_allclose(rows, table[[2, 0]], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("act_fn", "granularity"), [("silu", "step"), ("mish", "block"), ("quad", "loop")])
def test_walked_it_is_the_same(unets, cluster, act_fn, granularity):
    """FAST's emulation is also that of walks; a loop is left to SPU, convolutions as one operation among it."""
    settings = {"labels": [2, 0], "steps": STEPS, "seed": 5}
    result = sample(unets[act_fn], cluster, granularity=granularity, protocols=FAST_64, **settings)
    expected = sample(unets[act_fn], None, protocols=FAST, **settings).images
    extent = float(expected.max() - expected.min())
    assert peak_signal_noise_ratio(expected, result.images, data_range=extent) > 45
    operators = set(result.cost.by_operator().index)
    assert operators == {"walk"} if granularity != "loop" else operators > {"walk"}
