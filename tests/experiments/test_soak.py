"""Requests of several clients at once, for a while: none is lost or mixed up, and memory stays flat."""

import pytest

from cipherdm.files import root
from cipherdm.records import read_record
from cipherdm_experiments.soak import TOLERANCE, growth, run


@pytest.mark.slow
def test_none_of_many_requests_is_lost_or_mixed_up():
    record = run(requests=48, clients=4)
    assert record["errors"] == [] and record["right"] == 48
    assert record["largest_difference"] < TOLERANCE
    assert record["done_by_party"] == [48] * 3 and record["failed_by_party"] == [0] * 3
    assert max(growth(record)) < 0.1


def test_the_recorded_soak_went_well():
    """4,000 requests of 4 clients: what DEPLOYING.md says of `cipherdm bench soak`."""
    record = read_record(root() / "data" / "measurements" / "soak.json")
    assert (record["requests"], record["clients"]) == (4000, 4)
    assert record["right"] == 4000 and record["errors"] == [] and record["largest_difference"] < TOLERANCE
    assert record["done_by_party"] == [4000] * 3
    assert max(growth(record)) < 0.01


def test_growth_is_that_of_the_medians():
    flat = {"memory_bytes": [[50, 10, 10]] * 2 + [[100, 10, 10]] * 2 + [[1000, 10, 10]] * 2 + [[150, 10, 11]] * 2}
    assert growth(flat) == pytest.approx([0.5, 0.0, 0.1])
    untold = {"memory_bytes": [*flat["memory_bytes"][:2], [None, 10, None], *flat["memory_bytes"][3:]]}
    assert growth(untold) == pytest.approx([0.5, 0.0, 0.1])
