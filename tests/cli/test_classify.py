"""`cipherdm classify`, and the commands that refuse transformers."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import cipherdm as cdm


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


def test_a_step_that_overflows_dittos_ring_is_named_with_what_to_do(tmp_path, run, capsys):
    shutil.copytree(cdm.find_model("reviews-tiny-quad"), tmp_path, dirs_exist_ok=True)
    stored, name = load_file(tmp_path / "model.safetensors"), "bert.encoder.layer.1.intermediate.dense.weight"
    # Before the quadratic numbers were up to 3.5, and their squares, with 16 bits, may be up to 2^14.
    save_file(stored | {name: stored[name] * np.float32(200)}, tmp_path / "model.safetensors")
    assert run("check-ranges", tmp_path, "--protocols", "ditto", "--count", 4) == 3
    out = capsys.readouterr().out
    assert "16 layers leave their range: layers.1.ff" in out and "take fewer small_bits" in out
    assert run("check-ranges", tmp_path, "--protocols", "puma", "--count", 4) in (0, 3)
    assert "small_bits" not in capsys.readouterr().out


def test_a_transformer_draws_nothing(run, capsys):
    assert run("sample", "--model", "reviews-tiny", "--labels", "1") == 1
    assert "load_transformer reads transformers' models" in capsys.readouterr().err


def test_a_text_too_long_is_refused_before_parties_start(run, capsys):
    assert run("classify", "word " * 80) == 1
    assert "there are places for 64" in capsys.readouterr().err
