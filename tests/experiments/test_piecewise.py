"""The benchmark of piecewise polynomials, and that its record follows from counting operations."""

from dataclasses import asdict
from math import inf
from pathlib import Path

import numpy as np
import pytest

from cipherdm.approximations.piecewise import PiecewisePolynomial
from cipherdm.approximations.piecewise_costs import Counts, Prices
from cipherdm.errors import CipherDMError
from cipherdm.records import read_record, write_record
from cipherdm_experiments import activations, operations, piecewise

MEASUREMENTS = Path(__file__).parents[2] / "data" / "measurements"


@pytest.fixture(scope="module")
def record():
    return read_record(MEASUREMENTS / "piecewise.json")


@pytest.fixture(scope="module")
def prices(record):
    return Prices.from_record(record)


def point_of(row):
    return piecewise.Point(row["segments"], row["degree"], row["ends"], row["even"])


def test_the_record_covers_the_grid(record):
    assert [point_of(row) for row in record["rows"]] == list(piecewise.grid())
    table = piecewise.table(record)
    assert len(table) == 3 * 6 * 11 and (table["bytes_per_element"] == table["bytes"] / 1000).all()


def test_the_prices_predict_every_row(record, prices):
    for row in record["rows"]:
        function = point_of(row).function()
        assert asdict(Counts.of(function)) == row["counts"]
        assert prices.bytes_per_element(function) == row["bytes"] / row["elements"]
        assert prices.sends(function) == row["sends"]


def test_the_prices_predict_the_published_functions(prices):
    """They were measured by another benchmark, with other numbers of elements."""
    rows = {(row["function"], row["elements"]): row for row in read_record(MEASUREMENTS / "activations.json")["rows"]}
    found = [case.function for case in activations.cases() if isinstance(case.function, PiecewisePolynomial)]
    assert len(found) >= 9
    for function in found:
        row = rows[function.name, 100_000]
        assert prices.bytes_per_element(function) == row["bytes"] / row["elements"], function.name
        assert prices.sends(function) == row["sends"], function.name


def test_the_prices_are_those_of_the_single_operations(prices):
    table = operations.table(read_record(MEASUREMENTS / "operations.json"))
    less, select, product, public = (
        table.loc[name] for name in ("less-than", "select", "secret x secret", "secret x public")
    )
    assert prices.comparison == less["bytes_per_element"] and prices.selection == select["bytes_per_element"]
    assert prices.product == product["bytes_per_element"] and prices.sum == public["bytes_per_element"]
    assert prices.choice == less["messages"] + select["messages"]
    assert prices.level == product["messages"] and prices.closing == public["messages"]


def test_a_run_measures_what_the_record_says(cluster, record, tmp_path):
    points = [piecewise.Point(1, 4, "none", True), piecewise.Point(2, 3, "zero"), piecewise.Point(3, 5, "zero and x")]
    seen = []
    found = piecewise.run(cluster, points, 200, lambda *event: seen.append(event))
    assert [done for done, _, _ in seen] == [0, 1, 2]
    recorded = {point_of(row): row for row in record["rows"]}
    for row in found["rows"]:
        expected = recorded[point_of(row)]
        assert row["bytes"] / row["elements"] == expected["bytes"] / expected["elements"]
        assert row["sends"] == expected["sends"]
    write_record(tmp_path / "record.json", found)
    assert piecewise.table(read_record(tmp_path / "record.json")).equals(piecewise.table(found))


def test_constants_and_powers_that_are_0_cost_nothing():
    step = PiecewisePolynomial("step", (-inf, inf), (0.0,), ((0.0,), (1.0,)))
    assert Counts.of(step) == Counts(comparisons=1, selections=1, products=0, sums=0, levels=0)
    sparse = PiecewisePolynomial("sparse", (-inf, inf), (), ((1.0, 0.0, 0.0, 0.0, 2.0, 0.0),))
    assert Counts.of(sparse) == Counts(comparisons=0, selections=0, products=2, sums=1, levels=2)
    nothing = PiecewisePolynomial("nothing", (-inf, inf), (), ((0.0,),))
    assert Counts.of(nothing) == Counts(0, 0, 0, 0, 0)


def test_a_record_that_counting_does_not_explain_is_refused(record):
    rows = [dict(row) for row in record["rows"]]
    rows[5]["bytes"] += 1000
    with pytest.raises(CipherDMError, match="cipherdm bench piecewise"):
        Prices.from_record({"rows": rows})
    with pytest.raises(CipherDMError, match="cipherdm bench piecewise"):
        Prices.from_record({"rows": record["rows"][:1]})


def test_a_wrong_result_is_no_measurement():
    function = piecewise.Point(1, 2, "none").function()
    x = np.zeros(3, np.float32)
    with pytest.raises(CipherDMError, match="piecewise_1x2"):
        piecewise._check(function, x, np.asarray(function(x)) + 1)
