"""The check of a model against the ranges that a set's functions are right on."""

from dataclasses import replace

import numpy as np
import pytest
from small import ONE_LEVEL, SCHEDULER
from typer.testing import CliRunner

from cipherdm import CipherDMError
from cipherdm.approximations.silu import silu_polynomial
from cipherdm.approximations.softmax import softmax_bounded
from cipherdm.cli import build
from cipherdm.models import init_unet, load_unet, save_unet
from cipherdm.owner import ranges
from cipherdm.owner.calibrate import calibrate
from cipherdm.owner.observe import observe, one_hot_labels, save_calibration
from cipherdm.owner.ranges import TOLERANCE, _inverse_root_range
from cipherdm.protocols import named
from cipherdm.schedules import make_schedule

CONFIG = replace(ONE_LEVEL, attention_head_dim=4, num_class_embeds=2)
NOISE = {"steps": 3, "per_class": 8, "seed": 3}
LAYER = "mid_block.resnets.0.norm1"


def check_ranges(unet, protocols, steps=3, **settings):
    """By DDIM."""
    return ranges.check_ranges(unet, make_schedule(unet.scheduler_config, "ddim", steps), protocols, **settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small model, calibrated on NOISE."""
    folder = tmp_path_factory.mktemp("ranges") / "model"
    save_unet(replace(init_unet(CONFIG), scheduler_config=SCHEDULER), folder)
    unet = load_unet(folder)
    schedule = make_schedule(SCHEDULER, "ddim", NOISE["steps"])
    arrays = calibrate(unet, schedule, images_per_class=NOISE["per_class"], seed=NOISE["seed"])
    save_calibration(arrays, unet)
    return unet, arrays


@pytest.fixture(scope="module")
def wrong(model, tmp_path_factory):
    """The same with one weight times 5, beside the calibration of the original."""
    unet, arrays = model
    folder = tmp_path_factory.mktemp("ranges") / "wrong"
    name = f"{LAYER}.weight"
    save_unet(replace(unet, params=unet.params | {name: 5 * unet.params[name]}), folder)
    changed = load_unet(folder)
    save_calibration(arrays, changed)
    return changed, arrays


def command(unet, protocols):
    """The command's exit code and what it prints, on NOISE."""
    options = {
        "--protocols": protocols,
        "--steps": NOISE["steps"],
        "--count": NOISE["per_class"],
        "--seed": NOISE["seed"],
    }
    words = [str(word) for pair in options.items() for word in pair]
    result = CliRunner().invoke(build(), ["check-ranges", str(unet.folder), *words])
    return result.exit_code, result.stdout


def test_nothing_is_outside_on_the_noise_of_the_calibration(model):
    code, printed = command(model[0], "fast-guarded")
    assert code == 0
    assert "All 13 layers stay in their ranges." in printed
    assert "mid_block.attentions.0.group_norm" in printed and "inverse sum" in printed


def test_a_layer_that_leaves_its_range_is_named_with_its_fraction(wrong):
    unet, arrays = wrong
    found = check_ranges(unet, named("fast"), **NOISE)
    assert [entry.outside for entry in found] == sorted((entry.outside for entry in found), reverse=True)
    outside, excess, roots = independent_counts(unet, arrays)
    by_layer = {(entry.layer, entry.function): entry for entry in found}
    entry = by_layer[LAYER, "activation"]
    assert entry.outside == pytest.approx(np.mean(outside), abs=1e-12) and entry.outside > 0.1
    assert entry.excess == pytest.approx(excess, rel=1e-6)
    assert entry.step == np.argmax(outside)
    ends = arrays[f"{LAYER}.range"]
    assert entry.allowed == pytest.approx((ends.min(), ends.max()))
    assert entry.lowest < entry.allowed[0] and entry.highest > entry.allowed[1]
    assert by_layer[LAYER, "inverse root"].outside == 0  # what comes before the weight is as it was
    shares = {layer: entry.outside for (layer, function), entry in by_layer.items() if function == "inverse root"}
    assert shares == pytest.approx({layer: np.mean(wrong) for layer, wrong in roots.items()}, abs=1e-12)
    assert max(shares.values()) > 0.1


def test_the_range_of_an_inverse_sum_is_where_the_inverse_is_right(model):
    unet, arrays = model
    name = "mid_block.attentions.0"
    found = {(entry.layer, entry.function): entry for entry in check_ranges(unet, named("fast"), **NOISE)}
    x = np.linspace(0.2, 3, 1_000_001)
    error = TOLERANCE ** (0.5 ** arrays[f"{name}.counts"][1])
    near = [x[np.abs(((x + r0) ** 2 + r1) * x - 1) < error] for r0, r1 in arrays[f"{name}.sum"]]
    expected = (min(part.min() for part in near), max(part.max() for part in near))
    assert found[name, "inverse sum"].allowed == pytest.approx(expected, abs=1e-5)


def independent_counts(unet, arrays):
    """LAYER's fraction outside for each step and largest excess, value by value; and which inverse roots are off by 10%."""
    schedule = make_schedule(SCHEDULER, "ddim", NOISE["steps"])
    fractions, distances, roots = [], [0.0], {}

    def visit(step, seen):
        count = 0
        values = seen.normalised[LAYER]
        for channel, (low, high) in enumerate(arrays[f"{LAYER}.range"][step]):
            for value in values[:, channel].ravel():
                beyond = max(low - value, value - high)
                count += beyond > 0
                distances.append(beyond)
        fractions.append(count / values.size)
        for name, variances in seen.variances.items():
            for (image, group), variance in np.ndenumerate(variances):
                p, q = arrays[f"{name}.rstd"][image % 2, step, group].astype(float)
                variance = float(variance) + CONFIG.norm_eps
                square = (
                    variance + (seen.means[name][image, group] - arrays[f"{name}.center"][image % 2, step, group]) ** 2
                )
                roots.setdefault(name, []).append(abs((p - q * square) * variance**0.5 - 1) > 0.1)

    observe(unet, schedule, one_hot_labels(unet, NOISE["per_class"]), seed=NOISE["seed"], visit=visit)
    return fractions, max(distances), roots


def test_the_range_of_a_line_is_where_it_is_right_to_a_tenth():
    generator = np.random.default_rng(0)
    typical = generator.uniform(0.1, 10, 20_000)
    # 1.5 and 0.5 give the tangent at `typical`; factors make lines that are too high in the middle, or nowhere right.
    factor = generator.uniform(0.6, 1.6, typical.shape)
    p, q = factor * 1.5 / np.sqrt(typical), factor * 0.5 / typical**1.5
    variances = typical * generator.uniform(0, 4, typical.shape)
    _, low, high, distance = _inverse_root_range(variances, p, q)
    right = np.abs((p - q * variances) * np.sqrt(variances) - 1) <= 0.1
    np.testing.assert_array_equal(distance <= 0, right)
    reached = factor > 0.9
    assert np.isnan(low[~reached]).all() and (low[reached] < high[reached]).all()
    for end in (low, high):
        np.testing.assert_allclose(((p - q * end) * np.sqrt(end))[reached], 0.9, rtol=1e-6)


def test_the_command_fails_if_a_layer_leaves_its_range(wrong):
    code, printed = command(wrong[0], "fast")
    assert code == 3
    assert "layers leave their range" in printed and LAYER in printed.splitlines()[-1]


def test_direct_has_no_range_to_leave(model):
    assert check_ranges(model[0], named("direct")) == []
    code, printed = command(model[0], "direct")
    assert code == 0 and "nothing can leave" in printed


def test_scores_and_sums_of_the_published_softmax_are_checked(model):
    unet, _ = model
    name = "mid_block.attentions.0.to_q.weight"
    sharp = replace(unet, params=unet.params | {name: 200 * unet.params[name]})
    found = check_ranges(sharp, named("cipherdm"), **NOISE)
    assert [entry.function for entry in found] == ["softmax_cipherdm: sum", "exp_cipherdm"]
    assert found[0].outside > 0 and found[0].lowest < 0.9 and found[0].allowed == (0.9, 1.1)
    assert found[1].outside == 0 and found[1].highest == 0 and found[1].lowest < -2


def test_functions_with_a_finite_domain_are_checked(model):
    unet, _ = model
    narrow = replace(named("cipherdm"), silu=silu_polynomial(2.0), softmax=softmax_bounded(8.0))
    seen = []
    found = check_ranges(unet, narrow, **NOISE, progress=lambda *call: seen.append(call))
    assert seen == [(step, 3, "check") for step in (1, 2, 3)]
    assert all(entry.allowed == (-2, 2) for entry in found[:-1])
    assert 0.01 < found[0].outside < 0.2  # of about normal values beyond two deviations
    assert found[-1].allowed == (-8, 8) and found[-1].outside == 0
    with pytest.raises(CipherDMError, match="time embedding"):
        check_ranges(unet, replace(narrow, time_embedding="inside"), **NOISE)


def test_mistakes_are_answered(model):
    unet, _ = model
    for changes, settings, message in (
        ({}, {"per_class": 0}, "images of each class must be a whole number from 1 on; got 0"),
        ({}, {"seed": -1}, "seed must be a whole number from 0 on; got -1"),
        ({}, {"steps": 0}, "steps must be"),
        ({"scheduler_config": None}, {}, "no scheduler"),
        ({"folder": None}, {}, "calibrate"),
    ):
        with pytest.raises(CipherDMError, match=message):
            check_ranges(replace(unet, **changes), named("fast"), **NOISE | settings)
