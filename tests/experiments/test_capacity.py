"""What triples serve: the simulation against queueing theory and the recorded soak, and the table's bounds by hand."""

import numpy as np
import pytest

from cipherdm.costs import Network
from cipherdm.files import data
from cipherdm.records import read_record
from cipherdm_experiments import capacity
from cipherdm_experiments.capacity import Draw, by_formula, draws, soaked, waits

MEASUREMENTS = data() / "measurements"


@pytest.mark.parametrize(("load", "tolerance"), [(0.5, 0.05), (0.8, 0.1)])
def test_one_triple_waits_as_queueing_theory_says(load, tolerance):
    """M/D/1: the mean by Pollaczek and Khinchine, and a share of 1 - load that does not wait (arrivals see time averages)."""
    waited = waits(1, load, 3.0, requests=30_000)
    assert waited.mean() == pytest.approx(3.0 * load / (2 * (1 - load)), rel=tolerance)
    assert np.mean(waited == 0) == pytest.approx(1 - load, abs=0.02)


def test_triples_chosen_at_random_wait_like_one_and_the_shorter_queue_waits_less():
    alone, shorter = (waits(10, 0.8, 1.0, asked=asked, requests=30_000).mean() for asked in (1, 2))
    assert alone == pytest.approx(by_formula(0.8, 1.0), rel=0.15)
    assert shorter < 0.5 * alone


def test_a_second_slot_answers_twice_as_many():
    """Two slots at one triple are never slower than one that is as busy: requests wait for either."""
    assert waits(1, 0.8, 1.0, slots=2, requests=20_000).mean() < 0.6 * by_formula(0.8, 1.0)


def test_the_recorded_soak_takes_as_long_as_simulated():
    """531 seconds of 4,000 requests, from the time alone of requests that found a free slot."""
    record = read_record(MEASUREMENTS / "soak.json")
    assert soaked(record) == pytest.approx(record["seconds"], rel=0.1)
    assert soaked(record | {"runs_at_a_time": 1}) == pytest.approx(2 * soaked(record), rel=0.01)


def test_runs_are_bound_by_cores_and_by_the_network_card():
    draw = Draw("drawing", pictures=10, seconds=1.0, rounds=100, path_bytes=10**6)
    between = Network("slow", 0.02, 8e6)  # 1 s computing, 1 s of delays, 1 s of sending
    assert draw.an_hour(between, 1) == pytest.approx(10 * 3600 / 3)
    assert draw.an_hour(between, 2) == pytest.approx(10 * 3600 * 2 / 3)
    assert draw.an_hour(between, 16) == pytest.approx(10 * 3600)


def test_every_model_that_draws_is_in_the_table():
    folders = [
        path.parent.name for kind in ("config", "model_index") for path in (data() / "models").glob(f"*/{kind}.json")
    ]
    # What draws nothing, models of the size of another one, and one whose hint makes a picture cost more.
    apart = ("reviews", "-quad", "-mish", "lenet", "-control")
    shipped = {name for name in folders if not any(part in name for part in apart)}
    found = {draw.name.partition(",")[0] for draw in draws(MEASUREMENTS)}
    assert len(shipped) > 8 and shipped <= found
    assert len(capacity.capacity_table(MEASUREMENTS).splitlines()) == 2 + len(draws(MEASUREMENTS))
