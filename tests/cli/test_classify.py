"""`cipherdm classify`, and the commands that refuse transformers."""

import json

import pytest


def test_classify_prints_classes_and_their_cost(tmp_path, run, capsys):
    record = tmp_path / "found.json"
    assert run("classify", "A wonderful film.", "Dull and far too long.", "--embedded", "--record", record) == 0
    printed, found = capsys.readouterr(), json.loads(record.read_text())
    lines = printed.out.splitlines()
    assert lines[0].startswith("good (") and lines[0].endswith(": A wonderful film.")
    assert lines[1].startswith("bad (") and "in plaintext" in lines[1]
    assert "the parties sent" in lines[2]
    assert found["model"] == "reviews-tiny-quad" and found["protocols"] == "fast-rings" and found["cost"]["bytes"] > 0
    for ours, exact in zip(found["logits"], found["plaintext"], strict=True):
        assert max(abs(a - b) for a, b in zip(ours, exact, strict=True)) < 0.3


@pytest.mark.parametrize(
    "command, told",
    [
        (("plan", "reviews-tiny", "--protocols", "fast-64"), "transformer"),
        (("check-ranges", "reviews-tiny", "--count", 8), "All 7 layers stay in their ranges."),
        (
            ("check-ranges", "reviews-tiny-quad", "--protocols", "ditto", "--count", 4),
            "All 16 layers stay in their ranges.",
        ),
        (("inspect", "reviews-tiny"), "tells bad from good in texts of at most 64 tokens"),
    ],
)
def test_the_owners_commands_take_a_transformer(run, capsys, command, told):
    assert run(*command) == 0
    assert told in capsys.readouterr().out


def test_a_transformer_draws_nothing(run, capsys):
    assert run("sample", "--model", "reviews-tiny", "--labels", "1") == 1
    assert "load_transformer reads transformers' models" in capsys.readouterr().err


def test_a_text_too_long_is_refused_before_parties_start(run, capsys):
    assert run("classify", "word " * 80) == 1
    assert "there are places for 64" in capsys.readouterr().err
