"""Trying functions out on three real parties, what one party holds, and the benchmark of elementary operations."""

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from cipherdm import CipherDMError
from cipherdm.engine import run_once, words_of
from cipherdm.records import read_record
from cipherdm_experiments import operations
from cipherdm_experiments.cli import app


def test_a_function_is_run_once_and_leaves_nothing(session):
    x, y = np.float32([1, 2, 3]), np.float32([-2, 0.5, 4])
    result, cost = run_once(session, jnp.multiply, x, y)
    np.testing.assert_allclose(result, x * y, atol=1e-4)
    assert cost.sends > 0 and list(cost.by_program().index) == ["trial"]
    for name in ("trial.in0", "trial.in1", "trial.out"):
        with pytest.raises(CipherDMError, match="no variable"):
            session.reveal(name)


def test_two_parties_words_are_the_value_and_one_partys_are_not(session):
    value = np.linspace(-5, 5, 11, dtype=np.float32)
    session.share({"value": value})
    words = [words_of(session, "value", rank) for rank in range(3)]
    assert all(held.shape == (11, 2) for held in words)
    for rank in range(3):
        np.testing.assert_array_equal(words[rank][:, 1], words[(rank + 1) % 3][:, 0])
    opened = (words[0][:, 0] + words[0][:, 1] + words[1][:, 1]).view(np.int64) / 2**18
    np.testing.assert_allclose(opened, value, atol=2**-18)
    assert np.abs(words[0].astype(np.int64) / 2**18).max() > 1e9
    with pytest.raises(CipherDMError, match="no variable 'other'"):
        words_of(session, "other", 0)


def test_operations_cost_what_the_protocol_says(session):
    chosen = [operation for operation in operations.OPERATIONS if "x" in operation.arguments][:3]
    seen = []
    record = operations.run(session, 1000, 2, lambda *event: seen.append(event), chosen)
    table = operations.table(record)
    assert [len(seen), seen[0], seen[-1][:2]] == [9, (0, 9, "addition"), (8, 9)]
    assert table.loc["addition", "messages"] == table.loc["addition", "bytes_per_element"] == 0
    # ABY3: each of the three parties sends one ring element of 8 bytes, and the truncation as much again or a little more.
    assert 24 < table.loc["secret x secret", "bytes_per_element"] <= 60
    assert (table["max_error"] < 1e-3).all() and (table["ms"] > 0).all()


def test_every_operation_is_near_its_plaintext_function(session):
    table = operations.table(operations.run(session, 200, 1))
    assert list(table.index) == [operation.name for operation in operations.OPERATIONS]
    assert (table["max_error"] < 0.02).all()


def test_bench_operations_writes_its_record(tmp_path):
    path = tmp_path / "operations.json"
    arguments = ["operations", "--elements", "200", "--repetitions", "1", "--record", str(path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "softmax" in done.output
    record = read_record(path)
    assert record["environment"]["versions"]["spu"] and len(record["rows"]) == len(operations.OPERATIONS)
