"""The benchmarks of shaped links and of the latency model write what they measured, and the committed records hold."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import ONE_LEVEL, SCHEDULER
from typer.testing import CliRunner

from cipherdm import CipherDMError, Network
from cipherdm.cli import build
from cipherdm.models import init_unet, save_unet
from cipherdm.records import read_record
from cipherdm_experiments import latency, network

MEASUREMENTS = Path(__file__).parents[2] / "data" / "measurements"


def assert_is_the_model(row):
    """A row's parts follow from what else it holds."""
    between = Network(row["network"], row["round_trip"], row["bandwidth"])
    assert row["delays"] == pytest.approx(row["rounds"] * between.delay)
    assert row["predicted"] == pytest.approx(row["computing"] + row["delays"] + row["sending"])
    assert row["computing"] == pytest.approx(np.median(row["alone_runs"]))
    assert row["measured"] == pytest.approx(np.median(row["measured_runs"]))
    assert row["error"] == pytest.approx(row["predicted"] / row["measured"] - 1)


@pytest.mark.slow
def test_the_model_is_compared_with_a_run(tmp_path):
    unet = replace(init_unet(replace(ONE_LEVEL, add_attention=False)), scheduler_config=SCHEDULER)
    save_unet(unet, tmp_path / "small")
    arguments = [str(tmp_path / "small"), "--protocols", "direct", "--networks", "lan", "--repetitions", "1"]
    result = CliRunner().invoke(build(), ["bench", "latency", *arguments, "--record", str(tmp_path / "latency.json")])
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path / "latency.json")
    (row,) = record["rows"]
    assert (record["model"], row["variant"], row["network"]) == ("small", "direct", "LAN")
    assert len(row["measured_runs"]) == 1 and len(row["alone_runs"]) == 2 and row["rounds"] > 100
    assert_is_the_model(row)
    assert "error %" in result.output


def test_nothing_to_compare_is_refused():
    with pytest.raises(CipherDMError, match="at least one variant"):
        latency.run(init_unet(ONE_LEVEL), variants=[])


def test_links_are_measured(tmp_path):
    found = network.run([Network("one", 2e-3, 100e6), Network("other", 1e-3, 50e6)], repetitions=1)
    assert [row["network"] for row in found["rows"]] == ["one", "other"]
    assert all(row["measured_round_trip"] > 0.5 * row["round_trip"] for row in found["rows"])
    assert network.table(found).loc["one", "asked ms"] == 2


def test_the_record_of_the_model_holds_what_it_says():
    record = json.loads((MEASUREMENTS / "latency.json").read_text())
    for row in record["rows"]:
        assert_is_the_model(row)
        assert abs(row["error"]) < 0.15, row
    measured = {(row["variant"], row["network"]) for row in record["rows"]}
    assert measured >= {(variant, between) for variant in ("fast", "direct") for between in ("LAN", "WAN")}


def test_the_record_of_shaped_links_is_within_a_tenth():
    record = json.loads((MEASUREMENTS / "network.json").read_text())
    for row in record["rows"]:
        assert row["measured_round_trip"] == pytest.approx(row["round_trip"], rel=0.1), row["network"]
        assert row["measured_bandwidth"] == pytest.approx(row["bandwidth"], rel=0.1), row["network"]
    assert {"LAN", "WAN"} <= set(network.table(record).index)
