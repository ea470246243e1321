"""The benchmark of the approximations, and that its committed record is whole."""

from pathlib import Path

import pytest

from cipherdm.records import read_record, write_record
from cipherdm_experiments import activations

RECORD = Path(__file__).parents[2] / "data" / "measurements" / "activations.json"


@pytest.fixture(scope="module")
def record(cluster):
    chosen = [
        c for c in activations.cases() if c.name in ("silu_degree8_bound6_folded", "exp_bounded4", "softmax_2quad")
    ]
    chosen += [c for c in activations.cases() if c.kind == "exp" and c.direct]
    seen = []
    found = activations.run(cluster, (100, 300), 2, lambda *event: seen.append(event), chosen)
    assert [done for done, _, _ in seen] == list(range(2 * 2 * 5)) and {total for _, total, _ in seen} == {20}
    return found


def test_every_function_is_measured_at_every_size(record):
    table = activations.table(record)
    names = ["silu_degree8_bound6_folded", "exp_bounded4", "softmax_2quad", "direct", "direct"]
    assert list(table["function"]) == 2 * names
    assert list(table["exp"]) == 2 * ["taylor", "taylor", "taylor", "taylor", "pade"]
    assert list(table["elements"]) == 5 * [100] + 5 * [300]
    assert (table["ms_low"] <= table["ms"]).all() and (table["ms"] <= table["ms_high"]).all()
    assert (table[["ms", "bytes", "sends"]] > 0).all(axis=None)
    assert len(activations.table(record, 300)) == 5


def test_errors_are_those_of_the_approximations(record):
    errors = activations.table(record, 300).set_index(["function", "exp"])["max_error"]
    assert errors["silu_degree8_bound6_folded", "taylor"] == pytest.approx(0.0141, abs=1e-3)
    assert errors["exp_bounded4", "taylor"] < 0.01
    assert errors["direct", "pade"] < errors["direct", "taylor"] < 0.01


def test_folding_saves_the_multiplications_by_constants(record):
    row = activations.table(record, 300).set_index("function").loc["silu_degree8_bound6_folded"]
    assert row["sends"] == 24  # three multiplications
    assert row["bytes_per_element"] == pytest.approx(3 * 52)


def test_a_record_can_be_written_and_read(record, tmp_path):
    write_record(tmp_path / "record.json", record)
    assert activations.table(read_record(tmp_path / "record.json")).equals(activations.table(record))


def test_names_are_unique():
    keys = [(case.kind, case.name, exp) for case in activations.cases() for exp in case.exps]
    assert len(keys) == len(set(keys))


def test_the_committed_record_has_every_function():
    table = activations.table(read_record(RECORD), 100_000)
    recorded = set(zip(table["kind"], table["function"], table["exp"], strict=True))
    assert recorded == {(case.kind, case.name, exp) for case in activations.cases() for exp in case.exps}
