"""The pictures of a step's breakdown and of the latency model show what the records say, and describe it in words."""

import dataclasses
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from cipherdm import LAN, WAN, CipherDMError, Network
from cipherdm.costs import latency
from cipherdm.costs.sampling import StepCost, cost_of, shares, step_costs
from cipherdm.progress import duration
from cipherdm.records import read_record, write_record
from cipherdm.views.latency import dominance_map, latency_explorer, load_costs, mixed_colours
from cipherdm.views.style import png
from cipherdm_experiments.breakdown_figures import (
    COLOURS,
    breakdown_bars,
    breakdown_icicle,
    breakdown_table,
    over_network,
)
from cipherdm_experiments.latency import model_check
from cipherdm_experiments.quality import quality_against_cost, quality_frame

MEASUREMENTS = Path(__file__).parents[2] / "data" / "measurements"
SMALL = StepCost("small", "direct", 1, seconds=2.0, bytes=60_000_000, rounds=500, path_bytes=25_000_000)
COSTS = (SMALL, replace(SMALL, variant="fast", seconds=0.5, rounds=50, path_bytes=2_000_000))


def row(variant, part, group, kind, seconds, size, rounds):
    counts = {"seconds": seconds, "bytes": size, "sends": 3 * rounds, "rounds": rounds, "path_bytes": size / 3}
    return {"variant": variant, "part": part, "group": group, "kind": kind} | counts


@pytest.fixture
def record():
    """A step of two parts, in two ways."""
    resnet, attention = ("down_blocks.0.resnets.1", "residual blocks"), ("mid_block.attentions.0", "attention")
    rows = [
        row("direct", *resnet, "activation", 3.0, 60_000_000, 300),
        row("direct", *resnet, "convolution", 1.0, 3_000_000, 6),
        row("direct", *attention, "softmax", 4.0, 30_000_000, 100),
        row("fast", *resnet, "activation", 0.5, 6_000_000, 20),
        row("fast", *attention, "attention products", 0.25, 3_000_000, 10),
    ]
    return {"benchmark": "breakdown", "model": "small", "batch": 1, "rows": rows}


def assert_readable(figure):
    """The figure can be drawn, and says in words what it shows."""
    assert Image.open(io.BytesIO(png(figure))).size[0] > 400
    assert len(figure.get_label()) > 60


def bars(axis):
    """The widths of a panel's bars that have any, by colour."""
    found = {}
    for patch in axis.patches:
        if patch.get_width():
            found.setdefault(patch.get_facecolor()[:3], []).append(patch.get_width())
    return found


def test_bars_stack_kinds_on_one_scale(record):
    figure = breakdown_bars(record, ["seconds", "bytes"])
    assert_readable(figure)
    direct, fast = figure.axes[:2]
    assert [sum(sum(widths) for widths in bars(axis).values()) for axis in (direct, fast)] == [8, 0.75]
    assert direct.get_xlim() == fast.get_xlim() and direct.get_title() == "direct: 8 seconds"
    assert figure.axes[2].get_title() == "direct: 93 MB"
    assert len(bars(direct)) == 3 and bars(fast).keys() <= bars(direct).keys() | bars(figure.axes[3]).keys()
    assert "direct 8 seconds, of which softmax 50%" in figure.get_label()


def test_an_icicle_divides_each_part_into_its_layers(record):
    figure = breakdown_icicle(record, "direct")
    assert_readable(figure)
    levels = {}
    for patch in figure.axes[0].patches:
        assert isinstance(patch, Rectangle)
        levels.setdefault(int(patch.get_y()), []).append(patch.get_width())
    assert levels[0] == [1] and levels[1] == levels[2] == [0.5, 0.5]
    assert [width for width in levels[3]] == [0.375, 0.125, 0.5]
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"down 0.1", "mid 0", "attention\n50%"} <= texts
    with pytest.raises(CipherDMError, match="no 'puma': there are direct, fast"):
        breakdown_icicle(record, "puma")
    with pytest.raises(CipherDMError, match="no quantity is called 'cost'"):
        breakdown_icicle(record, "direct", "cost")


def test_tables_add_up(record):
    for by, rows in (("group", 3), ("kind", 5)):
        table = breakdown_table(record, by)
        assert len(table) == rows and table.loc["all", ("direct", "s")] == 8 and table.loc["all", ("fast", "MB")] == 9
        assert table.iloc[:-1].sum().to_dict() == pytest.approx(table.loc["all"].to_dict())
    with pytest.raises(CipherDMError, match="not by 'colour'"):
        breakdown_table(record, "colour")


def test_a_breakdown_over_a_network_adds_up_to_the_models_time(record):
    table = breakdown_table(over_network(record, WAN))
    expected = latency(8.0, 406, 31_000_000, WAN).seconds
    assert table.loc["all", ("direct", "s")] == pytest.approx(expected)
    assert "over WAN" in breakdown_bars(over_network(record, WAN), ["seconds"]).get_label()


def test_shares_are_those_of_the_latency_model():
    trips, bands = np.array([0.4e-3, 40e-3, 0.1]), np.array([5e9, 400e6])
    found = shares(SMALL, trips, bands)
    assert found.shape == (3, 3, 2)
    np.testing.assert_allclose(found.sum(axis=0), 1)
    for r, trip in enumerate(trips):
        for b, band in enumerate(bands):
            one = SMALL.over(Network("n", trip, band), steps=7)
            expected = np.array([one.computing, one.delays, one.sending]) / one.seconds
            np.testing.assert_allclose(found[:, r, b], expected)


def test_the_maps_colour_is_that_of_the_largest_share():
    corners = mixed_colours(np.eye(3)[:, :, None] * 0.98 + 0.01)
    computing, delays, sending = corners[:, 0]
    assert computing.argmax() == 2 and delays.argmax() == 0 and sending.argmax() == 1  # blue, vermilion, green
    assert ((corners >= 0) & (corners <= 1)).all()


def test_the_map_marks_networks_and_tells_what_dominates():
    figure = dominance_map(COSTS)
    assert_readable(figure)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"LAN", "WAN", "SPU's WAN", "Cheetah's LAN", "narrow"} <= texts
    one = SMALL.over(WAN)
    assert f"direct on LAN: computing {2 / SMALL.over(LAN).seconds:.0%}" in figure.get_label()
    assert f"on WAN: messages on their way {one.delays / one.seconds:.0%} of {one.seconds:.3g} s" in figure.get_label()
    (level,) = [text for text in figure.axes[0].texts if text.get_text() == "30 s"]
    at = Network("there", level.get_position()[1], level.get_position()[0])
    assert SMALL.over(at).seconds == pytest.approx(30, rel=1e-6)  # the number stands on its line


def test_the_models_check_shows_the_record():
    record = json.loads((MEASUREMENTS / "latency.json").read_text())
    figure = model_check(record)
    assert_readable(figure)
    first = record["rows"][0]
    stacked = [bar.get_width() for container in figure.axes[0].containers[:3] for bar in container[:1]]
    assert sum(stacked) == pytest.approx(first["predicted"])
    assert figure.axes[0].containers[3][0].get_width() == pytest.approx(first["measured"])


def test_step_costs_are_rows_of_a_step_or_sums_of_a_breakdown(record, tmp_path):
    write_record(tmp_path / "breakdown_small.json", record)
    direct, fast = step_costs(tmp_path / "breakdown_small.json")
    assert (direct.seconds, direct.bytes, direct.rounds, direct.path_bytes) == (8, 93_000_000, 406, 31_000_000)
    assert cost_of((direct, fast), "fast") is fast
    with pytest.raises(CipherDMError, match="no step of 'puma' for 1 images: there are direct for 1, fast for 1"):
        cost_of((direct, fast), "puma")
    rows = [vars(cost) | {"repetitions": 3} for cost in COSTS]
    write_record(tmp_path / "step_small.json", {"benchmark": "step", "rows": rows})
    assert step_costs(tmp_path / "step_small.json") == COSTS
    old = [{name: value for name, value in row.items() if name != "rounds"} for row in rows]
    write_record(tmp_path / "step_small.json", {"benchmark": "step", "rows": old})
    with pytest.raises(CipherDMError, match="have no rounds: make it with `cipherdm bench step small`"):
        step_costs(tmp_path / "step_small.json")
    assert load_costs(tmp_path, ["small"])["small"] == (direct, fast)  # from the breakdown then
    with pytest.raises(CipherDMError, match="no record .*step_other.json"):
        load_costs(tmp_path, ["other"])


def test_quality_is_read_by_sampler_and_steps(tmp_path):
    scores = {"accuracy": 0.99, "f1": 0.99, "count": 100, "protocols": "direct", "eta": 0.0}
    for name, scheduler, steps, fid in (
        ("", "ddim", 50, 1.0),
        ("_ddpm-1000", "ddpm", 1000, 0.5),
        ("_ddim-9", "ddim", 9, 3),
    ):
        contents = scores | {"scheduler": scheduler, "steps": steps, "lenet_fid": fid}
        write_record(tmp_path / f"quality_small_direct{name}.json", contents)
    write_record(
        tmp_path / "quality_small_direct_eta.json",
        scores | {"scheduler": "ddim", "steps": 9, "lenet_fid": 9, "eta": 1.0},
    )
    frame = quality_frame("small", tmp_path)
    assert frame[["sampler", "steps", "lenet_fid"]].values.tolist() == [
        ["DDPM", 1000, 0.5],
        ["DDIM", 9, 3],
        ["DDIM", 50, 1],
    ]
    figure = quality_against_cost(frame, SMALL, [WAN])
    assert_readable(figure)
    lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines}
    np.testing.assert_allclose(lines["DDIM"], [[SMALL.over(WAN, n).seconds, fid] for n, fid in ((9, 3), (50, 1))])
    with pytest.raises(CipherDMError, match="cipherdm evaluate other"):
        quality_frame("other", tmp_path)


def test_the_explorer_shows_what_the_model_says():
    box = latency_explorer({"small": COSTS})
    assert {name for name in box.controls if name in ("direct", "fast")} == {"direct", "fast"}
    box.set(round_trip=40, bandwidth=400, steps=50)
    assert f"direct {duration(SMALL.over(WAN, 50).seconds)}, " in box.shown.text
    box.set(direct=False)
    assert "direct" not in box.shown.text and "what fast waits for" in box.shown.picture
    box.set(network=str(LAN))
    assert "0.4 ms" in box.shown.text and "5,000 Mbit/s" in box.shown.text
    box.set(fast=False)
    assert "no protocols chosen" in box.shown.text


def test_the_bars_are_as_long_as_the_parts_of_the_time():
    box = latency_explorer({"small": COSTS})
    box.set(round_trip=10, bandwidth=50)
    network = Network("narrow", 10e-3, 50e6)
    bars = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)" height="17"', box.shown.picture)]
    parts = np.array([dataclasses.astuple(cost.over(network)) for cost in COSTS])
    np.testing.assert_allclose(np.reshape(bars, (2, 3)), 230 * parts / parts.sum(axis=1).max(), atol=0.006)


def test_the_maps_regions_meet_where_all_parts_take_the_same_time():
    picture = latency_explorer({"small": COSTS}).shown.picture
    (corner,) = set.intersection(
        *(set(points.split(" ")[1:]) for points in re.findall(r'points="([^"]+)"', picture))
    ) - {""}
    across, up = map(float, corner.split(","))
    (left, right), (top, bottom) = (50, 250), (40, 246)  # of the map
    bandwidth = 10e6 * 1000 ** ((across - left) / (right - left))
    round_trip = 0.1e-3 * 2000 ** ((bottom - up) / (bottom - top))
    found = SMALL.over(Network("meeting", round_trip, bandwidth))
    assert [found.delays, found.sending] == pytest.approx([found.computing] * 2, rel=0.01)


def test_what_records_do_not_hold_is_told():
    other = [replace(SMALL, model="other", batch=4)]
    box = latency_explorer({"small": COSTS, "other": other})
    assert list(box.controls["batch"].values) == [1, 4]
    box.set(batch=4)
    assert "Not measured for small and this batch: direct, fast" in box.shown.text


def test_all_records_of_steps_are_shown():
    box = latency_explorer()
    measured = [json.loads(path.read_text())["rows"] for path in MEASUREMENTS.glob("step_*.json")]
    assert set(box.controls["model"].values) == {row["model"] for rows in measured for row in rows}
    assert list(box.controls["batch"].values) == [1, 4, 16]
    for row in (row for rows in measured for row in rows if " on " not in row["variant"]):
        off = {name: False for name in box.data["variants"]}
        box.set(model=row["model"], batch=row["batch"], **off)
        box.set(**{row["variant"]: True}, network=str(LAN), steps=1)
        cost = StepCost(**{field.name: row[field.name] for field in dataclasses.fields(StepCost)})
        assert f"{row['variant']} {duration(cost.over(LAN).seconds)}, " in box.shown.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.834, "0.83 s"), (12.4, "12 s"), (260, "4 min 20 s"), (7500, "2 h 5 min"), (275000, "3 d 4 h")],
)
def test_durations_are_read_at_a_glance(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("model", ["mnist01-tiny", "mnist10"])
def test_the_records_of_breakdowns_hold_what_notebook_05_says(model):
    record = json.loads((MEASUREMENTS / f"breakdown_{model}.json").read_text())
    assert {row["variant"] for row in record["rows"]} >= {"direct", "cipherdm", "fast"}
    assert {row["kind"] for row in record["rows"]} == set(COLOURS)
    steps = {
        row["variant"]: row for row in read_record(MEASUREMENTS / f"step_{model}.json")["rows"] if row["batch"] == 1
    }
    kinds = breakdown_table(record, "kind")
    for variant in ("direct", "cipherdm", "fast"):  # measured block by block, and in one program
        assert 1e6 * kinds.loc["all", (variant, "MB")] == pytest.approx(steps[variant]["bytes"], rel=0.01)
    nonlinear = ["softmax", "activation"]
    assert kinds.loc[nonlinear, ("direct", "MB")].sum() > 0.8 * kinds.loc["all", ("direct", "MB")]
    for quantity in ("s", "MB", "rounds"):
        assert kinds.loc["all", ("fast", quantity)] < kinds.loc["all", ("direct", quantity)] / 3
