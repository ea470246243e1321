"""Networks and the latency model: against numbers worked out by hand, against operations on real parties, and its record."""

import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import cipherdm as cdm
from cipherdm import CipherDMError
from cipherdm.costs import NETWORKS, Network, latency, network_named
from cipherdm.engine import TOTALS, CostReport, sum_totals
from cipherdm.engine import party_pb2 as pb
from cipherdm.engine.costs import CostBook
from cipherdm.engine.profile import KERNEL, parse_profile

MEASUREMENTS = Path(__file__).parents[2] / "data" / "measurements"


def report(**kernels) -> CostReport:
    """A report of two seconds; each kernel's (calls of a party, messages of all, bytes of all), the latter from party 0."""
    book = CostBook()
    for party in range(3):
        done = pb.CallDone(seconds=2.0, sent_bytes=1000 * (party + 1), received_bytes=2000, sends=8, receives=8)
        for name, (calls, messages, size) in kernels.items():
            sent = (size, messages) if party == 0 else (0, 0)
            done.operators.add(name=KERNEL + name, calls=calls, seconds=0.1, sent_bytes=sent[0], sends=sent[1])
        book.add(party, "step", done)
    return book.report(2.0)


def test_the_literatures_networks():
    assert (cdm.LAN.round_trip, cdm.LAN.bandwidth) == (0.4e-3, 5e9)
    assert (cdm.WAN.round_trip, cdm.WAN.bandwidth) == (40e-3, 400e6)
    assert (cdm.CHEETAH_LAN.round_trip, cdm.CHEETAH_LAN.bandwidth) == (0.3e-3, 3e9)
    assert (cdm.SPU_WAN.round_trip, cdm.SPU_WAN.bandwidth) == (40e-3, 300e6)
    assert cdm.WAN.delay == 20e-3 and str(cdm.WAN) == "WAN: 40 ms round trip, 400 Mbit/s"
    assert all(network.source for network in NETWORKS.values())
    assert network_named("wan") is cdm.WAN
    with pytest.raises(CipherDMError, match="no network 'moon': choose from lan, "):
        network_named("moon")


@pytest.mark.parametrize(
    ("round_trip", "bandwidth", "message"),
    [
        (40, 400e6, "round trip of 40 s; give it in seconds"),
        (-1e-3, 400e6, "round trip"),
        (float("nan"), 400e6, "round trip"),
        (0.04, 0, "bandwidth of 0 bit/s"),
        (0.04, float("inf"), "bandwidth"),
    ],
)
def test_impossible_networks_are_refused(round_trip, bandwidth, message):
    with pytest.raises(CipherDMError, match=message):
        Network("mine", round_trip, bandwidth)


def test_the_model_adds_delays_and_bytes_to_computing():
    found = latency(2.0, 500, 25e6, Network("mine", 40e-3, 100e6))
    assert (found.computing, found.delays, found.sending) == (2.0, pytest.approx(10.0), pytest.approx(2.0))
    assert found.seconds == pytest.approx(14.0)


def test_rounds_and_bytes_follow_from_kernels():
    # 10 products and 10 truncations: 3 rounds each, and 20 bytes of 52 on the path, as the messages' sizes have it.
    products = report(mul_aa=(10, 30, 2400), trunc_a=(10, 50, 2800))
    assert products.rounds == 10 * 1 + 10 * 2
    assert products.path_bytes == 2400 / 3 + 1200
    # Two comparisons of 8 rounds, a selection, and five conversions of bits of which two take the adder.
    others = report(msb_a2b=(2, 48, 0), mul_a1b=(1, 8, 6400), b2a=(5, 3 * 4 + 2 * 28, 0))
    assert others.rounds == 2 * 8 + 2 + (3 * 2 + 2 * 10)
    assert others.path_bytes == 3200


def test_a_report_without_kernels_is_taken_for_products():
    old = replace(report(), kernels=pd.DataFrame())
    assert old.sends == 24 and old.rounds == 9
    assert old.path_bytes == 3000  # of the busiest party
    nothing = CostBook().report(1.0)
    assert nothing.rounds == 0 and nothing.latency(cdm.WAN) == 1.0


def test_a_report_tells_its_latency():
    found = report(mul_aa=(10, 30, 3_000_000))
    assert found.rounds == 10
    assert found.latency(cdm.WAN) == pytest.approx(2.0 + 10 * 0.020 + 8e6 / 400e6)
    assert found.latency(cdm.WAN) == found.latency_parts(cdm.WAN).seconds
    assert (found + found).rounds == 20


def test_totals_are_what_the_latency_model_takes():
    found = report(mul_aa=(10, 30, 2400), trunc_a=(10, 50, 2800))
    assert found.totals() == {
        "seconds": 2.0, "bytes": found.bytes, "sends": found.sends, "rounds": 30, "path_bytes": 800 + 1200
    }  # fmt: skip
    sums = sum_totals([found.totals() | {"block": "first"}, found.totals()])
    assert sums == (found + found).totals()
    assert sum_totals([]) == dict.fromkeys(TOTALS, 0)
    old = {name: value for name, value in found.totals().items() if name != "path_bytes"}
    with pytest.raises(CipherDMError, match="lacks path_bytes"):
        sum_totals([found.totals(), old])


def test_kernels_survive_json_and_are_not_operators():
    found = report(mul_aa=(10, 30, 2400))
    fields = json.loads(json.dumps(found.to_dict()))
    again = CostReport.from_dict(fields)
    pd.testing.assert_frame_equal(again.kernels, found.kernels, check_dtype=False)
    assert again.rounds == 10 and again.by_operator().empty
    del fields["kernels"]  # as in records that were written before there were any
    assert CostReport.from_dict(fields).kernels.empty


def test_the_profiles_levels_are_told_apart():
    lines = "executed {} times, duration 0.5s, send bytes {} recv bytes 7, send actions {}, recv actions 2"
    text = f"""
[api.cc:220] HLO profiling: total time 0.5
[api.cc:223] - pphlo.multiply, {lines.format(1, 20000, 3)}
[api.cc:220] HAL profiling: total time 0.5
[api.cc:223] - f_mul, {lines.format(1, 20000, 3)}
[api.cc:220] MPC profiling: total time 0.5
[api.cc:223] - trunc_a, {lines.format(4, 12000, 2)}
[api.cc:223] - add_aa, executed 9 times, duration 0.1s, send bytes 0 recv bytes 0, send actions 0, recv actions 0
[api.cc:233] Link details: total send bytes 20000, recv bytes 20000, send actions 3, recv actions 3
[api.cc:220] HLO profiling: total time 0.5
[api.cc:223] - pphlo.dot, {lines.format(2, 8000, 1)}
"""
    done = parse_profile(text)
    assert done.sends == 3
    assert [(o.name, o.calls, o.sends) for o in done.operators] == [
        ("multiply", 1, 3),
        (KERNEL + "trunc_a", 4, 2),
        ("dot", 2, 1),
    ]


@pytest.mark.parametrize(
    ("function", "rounds", "share"),
    [
        (jnp.add, 0, 0),
        (lambda x, y: x * 0.3, 2, 12),
        (jnp.multiply, 3, 20),
        (jnp.less, 8, 36),
        (jnp.maximum, 10, 36 + 32),
        (lambda x, y: jnp.exp(-x), 26, 9 * 12 + 8 * 8),
    ],
    ids=["addition", "secret x public", "secret x secret", "less-than", "maximum", "exp"],
)
def test_rounds_of_operations(session, function, rounds, share):
    """As SPU's source has them, and bytes per element that leave one after the other."""
    x, y = np.random.default_rng(3).uniform(0.5, 2, (2, 500)).astype(np.float32)
    _, cost = session.run_once(function, x, y)
    assert cost.rounds == rounds
    assert cost.path_bytes / x.size == pytest.approx(share, rel=0.02)
