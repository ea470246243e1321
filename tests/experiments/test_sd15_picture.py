"""The projection of a picture at full size: against arithmetic by hand on a record of three blocks, and its view."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.image import imread

from cipherdm import CipherDMError
from cipherdm.costs import LAN, WAN, Network
from cipherdm.engine import sum_totals
from cipherdm.records import write_record
from cipherdm.views.networks import PARTS
from cipherdm.views.style import PALETTE, png
from cipherdm_experiments.sd15_picture import (
    LEFT_OUT,
    LITERATURE,
    PUBLISHED,
    Picture,
    full_size_figure,
    full_size_frame,
    full_size_table,
    picture_totals,
    project,
)


def row(kind, seconds, size, rounds):
    return {
        "kind": kind, "seconds": seconds, "bytes": size, "sends": 3 * rounds, "rounds": rounds, "path_bytes": size // 4
    }  # fmt: skip


# Keys and values of the prompt, then what each call computes.
ROWS = [row("context", 2.0, 4_000_000, 3), row("resnet", 10.0, 400_000_000, 40), row("conv_out", 5.0, 80_000_000, 10)]
RECORD = {"rows": ROWS, "parameters": 859_520_964, "protocols": "fast-64", "timesteps": [999]}


def test_keys_of_a_prompt_count_once_and_all_else_at_each_call():
    assert picture_totals(RECORD, Picture(steps=20, branches=2)) == {
        "seconds": 2 * 2 + 40 * 15, "bytes": 2 * 4e6 + 40 * 480e6, "sends": 2 * 9 + 40 * 150,
        "rounds": 2 * 3 + 40 * 50, "path_bytes": 2 * 1e6 + 40 * 120e6,
    }  # fmt: skip
    once = picture_totals(RECORD, Picture(steps=1, branches=1))
    assert once == {name: sum(row[name] for row in ROWS) for name in once}  # the call itself


def test_seconds_over_a_network_are_computing_delays_and_bytes():
    local, mine = project(RECORD, Picture(20, 2), (Network("mine", 10e-3, 1e9),))
    assert (local.network, local.name, mine.name) == (None, "one machine", "mine")
    assert local.latency.seconds == local.latency.computing == 604
    assert local.bytes == mine.bytes == 19.208e9
    # 2,006 rounds of 5 ms; 4.802 GB on the path, at 1 Gbit/s.
    found = mine.latency
    assert (found.computing, found.delays, found.sending) == (604, pytest.approx(10.03), pytest.approx(38.416))


def test_the_networks_are_the_literatures():
    assert [found.network for found in project(RECORD)] == [None, *LITERATURE]
    assert {LAN, WAN} < set(LITERATURE) and all("ours" not in network.source for network in LITERATURE)


@pytest.mark.parametrize("numbers", [(0, 2), (20, 0)])
def test_pictures_without_a_call_are_refused(numbers):
    with pytest.raises(CipherDMError, match="at least 1 step"):
        Picture(*numbers)


def test_records_without_bytes_on_the_path_are_refused():
    old = [{name: value for name, value in row.items() if name != "path_bytes"} for row in ROWS]
    with pytest.raises(CipherDMError, match="lacks path_bytes"):
        project({"rows": old})


def test_published_figures_are_of_as_many_steps():
    two_parties = PUBLISHED[0]
    assert two_parties.part(two_parties.steps) == (3100, 933e9)
    assert two_parties.part(20) == (pytest.approx(1240), pytest.approx(373.2e9))
    assert all(published.source and published.network for published in PUBLISHED)


def test_the_table_holds_the_projection_and_what_was_published():
    frame = full_size_frame(RECORD)
    assert list(frame.index) == ["one machine", *(network.name for network in LITERATURE), *(p.name for p in PUBLISHED)]
    ours = frame.loc["WAN"]
    assert ours["hours"] == pytest.approx((604 + 2006 * 20e-3 + 4.802e9 * 8 / 400e6) / 3600)
    assert ours[list(PARTS)].sum() == pytest.approx(ours["hours"]) and ours["GB"] == pytest.approx(19.208)
    assert ours["what"] == "40 ms round trip, 400 Mbit/s"
    published = frame.loc[PUBLISHED[0].name]
    assert published["hours"] == pytest.approx(1240 / 3600) and published["GB"] == pytest.approx(373.2)
    assert published[list(PARTS)].isna().all() and "20 in proportion" in published["what"]


def test_a_reduced_record_stands_alone():
    small = RECORD | {"parameters": 13_000_000}
    assert len(full_size_frame(small)) == 1 + len(LITERATURE) and "published" not in full_size_figure(small).get_label()


def test_the_generated_table_needs_the_record(tmp_path):
    assert "bench full-call" in full_size_table(tmp_path)
    totals = sum_totals(ROWS) | {"share_seconds": 60.0, "peak_memory": 2**30}
    error = {way: {"rms": 0.02, "max": 0.1} for way in ("parties", "emulated")}
    write_record(tmp_path / "sd15_step.json", RECORD | totals | {"error": error})
    table = full_size_table(tmp_path)
    assert "| one machine | as measured | 0.17 | 0.00 | 0.00 | 0.17 | 19 |" in table  # 604 s
    assert "0.0200 of the rms" in table and all(text in table for text in LEFT_OUT)
    assert "| two parties, published |" in table and "| - | - | - | 0.34 | 373 |" in table


def test_the_bars_are_as_long_as_the_table_says(tmp_path):
    frame, figure = full_size_frame(RECORD), full_size_figure(RECORD)
    (axis,) = figure.axes
    lengths = {}
    for bar in axis.patches:
        lengths.setdefault(to_hex(bar.get_facecolor()).upper(), []).append(bar.get_width())
    ours = frame[frame[PARTS[0]].notna()]
    for part, colour in zip(PARTS, PALETTE, strict=False):
        np.testing.assert_allclose(lengths.pop(colour), ours[part])
    ((rest,),) = lengths.values()  # what was published, in a colour of its own
    assert rest == pytest.approx(1240 / 3600)
    assert "WAN" in figure.get_label() and all(text in figure.get_label() for text in LEFT_OUT)
    (tmp_path / "picture.png").write_bytes(png(figure))
    assert imread(tmp_path / "picture.png").std() > 0.01
