"""The benchmark of elementary operations: what they cost, how exact they are, and the record of its command."""

from typer.testing import CliRunner

from cipherdm.cli import build
from cipherdm.records import read_record
from cipherdm_experiments import operations


def test_operations_cost_what_the_protocol_says(session):
    chosen = [operation for operation in operations.OPERATIONS if "x" in operation.arguments][:3]
    seen = []
    record = operations.run(session, 1000, 2, lambda *event: seen.append(event), chosen)
    table = operations.table(record)
    assert [len(seen), seen[0], seen[-1][:2]] == [9, (0, 9, "addition: warm-up"), (8, 9)]
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
    arguments = ["bench", "operations", "--elements", "200", "--repetitions", "1", "--record", str(path)]
    done = CliRunner().invoke(build(), arguments)
    assert done.exit_code == 0, done.output
    assert "softmax" in done.output
    record = read_record(path)
    assert record["environment"]["versions"]["spu"] and len(record["rows"]) == len(operations.OPERATIONS)
