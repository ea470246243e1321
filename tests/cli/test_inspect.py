"""`cipherdm inspect`: what it predicts is what was measured, and what cannot be drawn is told with the remedy."""

import shutil

import pytest
from typer.testing import CliRunner

from cipherdm import record
from cipherdm.cli import build, inspection
from cipherdm.models import find_model


def inspected(*arguments) -> tuple[str, dict[str, str]]:
    """What the command says first, and the line of each protocol set."""
    result = CliRunner().invoke(build(), ["inspect", *arguments])
    assert result.exit_code == 0, result.output
    said, _, table = result.stdout.partition(" protocols ")
    return said, {line.split()[0]: line for line in table.splitlines()[1:]}


def test_bytes_and_rounds_are_those_that_were_measured():
    said, rows = inspected("mnist01-tiny", "--steps", "3")
    assert "draws 1 x 28 x 28 numbers from labels 0 to 1" in said and "ddim in 3 steps" in said
    measured = {row["variant"]: row for row in record("step_mnist01-tiny")["rows"]}
    for name in ("fast-64", "fast-rings"):
        draws, megabytes, rounds, *times = rows[name].split()[1:]
        assert draws == "yes" and float(megabytes) == pytest.approx(3 * measured[name]["bytes"] / 1e6, rel=0.05)
        assert int(rounds.replace(",", "")) == pytest.approx(3 * measured[name]["rounds"], rel=0.05)
        here, lan, wan = map(float, times)
        assert here == pytest.approx(3 * measured[name]["seconds"], rel=0.6) and here < lan < wan
    assert rows["direct"].split()[1:3] == ["yes", "-"]


def test_a_large_model_is_sent_to_the_command_that_takes_it_block_by_block(monkeypatch):
    monkeypatch.setattr(inspection, "LARGEST", 100_000)
    for name, remedy in (("sd-mini", "bench full-call"), ("mnist10", "a run tells its cost")):
        said, rows = inspected(name)
        assert remedy in said and not rows


def test_without_a_calibration_the_remedy_is_named(tmp_path):
    folder = shutil.copytree(find_model("mnist01-tiny"), tmp_path / "mine")
    (folder / "calibration.safetensors").unlink()
    _, rows = inspected(str(folder), "--steps", "2")
    assert "cipherdm calibrate" in rows["fast-64"] and rows["puma"].split()[1] == "yes"
