"""Targets: what they run can be typed, is documented, resumes, and comes out as expected."""

import inspect
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import typer

from cipherdm.cli import build
from cipherdm.errors import CipherDMError
from cipherdm.records import read_record, write_record
from cipherdm_experiments import discovery, runner, soak, targets
from cipherdm_experiments.breakdown_figures import share_of_step
from cipherdm_experiments.grid import mean_psnr
from cipherdm_experiments.quality import QUALITY, quality_command
from cipherdm_experiments.runner import Folders, Run
from cipherdm_experiments.step_gains import CLAIMED, gains, gains_by_batch, verdict, verdicts
from cipherdm_experiments.target import Check, Command, Records, Target, of_rows
from cipherdm_experiments.targets import TARGETS

ROOT = Path(__file__).parents[2]
MEASUREMENTS = ROOT / "data" / "measurements"
COMMANDS = [command for target in TARGETS for command in target.commands]
CHECKS = [(target, check) for target in TARGETS for check in target.checks]


def parse(arguments) -> dict:
    """The parameters of the command that these arguments call, without calling it."""
    command, rest = typer.main.get_command(build()), list(arguments)
    while hasattr(command, "get_command"):
        command, rest = command.get_command(None, rest[0]), rest[1:]
    return command.make_context("cipherdm", rest).params


# The targets as they are written down.


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_commands_can_be_typed(command):
    extra = [command.option, "x.png" if command.option == "--out" else "x.json"] + ["--keep", "x"] * command.resumes
    full, reduced = (parse([*command.arguments(way), *extra]) for way in (False, True))
    assert str(full[command.option[2:]]).startswith("x.") and str(reduced[command.option[2:]]).startswith("x.")
    assert (full != reduced) == bool(command.reduced)


def test_experiments_are_found_in_their_files():
    names = discovery.commands()
    assert len(names) == 27 and {"full-call", "segments", "step"} <= set(names)
    for module in discovery.modules_with("\ndef measure("):
        assert names[module.__name__.rpartition(".")[2].replace("_", "-")] == inspect.getdoc(module.measure)


def test_names_are_unique():
    for names in ([t.name for t in TARGETS], [t.order for t in TARGETS], [command.name for command in COMMANDS]):
        assert len(set(names)) == len(names)


def test_the_document_and_the_targets_agree():
    text = (ROOT / "experiments" / "README.md").read_text()
    table = re.search(r"<!-- table: targets -->\n(.*?)<!-- end -->", text, re.DOTALL)[1]
    assert re.findall(r"^\| `([\w-]+)` ", table, re.MULTILINE) == [target.name for target in TARGETS]
    mentioned = set(re.findall(r"--only ([\w,-]+)", text)) | set(re.findall(r"targets? `([\w-]+)`", text))
    assert {name for names in mentioned for name in names.split(",")} <= {target.name for target in TARGETS}


@pytest.mark.parametrize(("target", "check"), CHECKS, ids=lambda value: getattr(value, "what", None))
def test_committed_records_are_as_expected(target, check):
    records = Records(MEASUREMENTS)
    if not all(command.name in records for command in target.commands) and target is not QUALITY:
        pytest.skip("not measured yet")
    value = check.value(records)
    assert check.holds(records), f"{value} instead of {check.expected}"
    away = 2 * check.tolerance + 1
    assert not replace(check, expected=value - away if check.bound == "most" else value + away).holds(records)


def test_a_quality_command_has_the_name_of_its_record():
    assert quality_command("m", "fast").name == "quality_m_fast"
    command = quality_command("m", "direct", "dpmsolver++", 10)
    assert command.name == "quality_m_direct_dpmsolver-10"
    assert command.base[-4:] == (
        "--scheduler",
        "dpmsolver++",
        "--steps",
        "10",
    )
    for stem in (command.name for command in QUALITY.commands if (MEASUREMENTS / f"{command.name}.json").exists()):
        record = read_record(MEASUREMENTS / f"{stem}.json")
        same = quality_command(record["model"], record["protocols"], record["scheduler"], record["steps"])
        assert same.name == stem


def test_a_bound_may_be_exceeded_in_its_direction():
    bound = Check("", 28, 2, lambda records: records["value"], 3, unit=" dB", bound="least")
    for value, holds in ((100, True), (26, True), (25.9, False), (float("nan"), False)):
        assert bound.holds({"value": value}) is holds
    assert bound.holds({"value": 25}, reduced=True)
    assert not replace(bound, bound="").holds({"value": 100})
    assert (bound.margin(2), bound.margin(0)) == ("- 2.0 dB, or more", "or more")
    assert replace(bound, bound="").margin(2) == "± 2.0 dB"
    most = replace(bound, bound="most")
    for value, holds in ((-100, True), (30, True), (30.1, False), (float("nan"), False)):
        assert most.holds({"value": value}) is holds
    assert (most.margin(2), most.margin(0)) == ("+ 2.0 dB, or less", "or less")


def test_numbers_of_rows_and_of_the_grid():
    rows = [{"psnr_db": value, "seconds": 60 * value} for value in (30.0, 20.0, 40.0)]
    records = {"p": {"rows": rows}}
    assert [of_rows("p", "psnr_db", take)(records) for take in (np.mean, min, max)] == [30, 20, 40]
    assert of_rows("p", "seconds", max, 1 / 60)(records) == 40
    settings = (("puma", 4, 10, 1.0), ("fast", 4, 10, 3.0), ("fast", 4, 20, 9.0), ("fast", 2, 10, 9.0))
    rows = [{"protocols": p, "guidance_scale": g, "steps": s, "psnr_db": [v, v + 2]} for p, g, s, v in settings]
    assert mean_psnr("g", "fast", 4, 10)({"g": {"rows": rows}}) == 4


def test_shares_of_a_step():
    rows = [
        {"variant": variant, "kind": kind, "group": group, "bytes": size}
        for variant, kind, group, size in (
            ("direct", "softmax", "attention", 30),
            ("direct", "activation", "residual blocks", 50),
            ("direct", "activation", "attention", 10),
            ("direct", "rest", "attention", 10),
            ("fast", "softmax", "attention", 1000),
        )
    ]
    records = {"breakdown_m": {"rows": rows}}
    assert share_of_step("m", "direct", "bytes", "kind", "softmax", "activation")(records) == 90
    assert share_of_step("m", "direct", "bytes", "group", "attention")(records) == 50
    assert share_of_step("m", "fast", "bytes", "kind", "softmax")(records) == 100


def test_answers_and_memory_of_a_soak():
    memory = [[100, 200]] * 3 + [[200, 400]] * 3 + [[200, 404]] * 3 + [[204, 420]] * 3
    records = {"soak": {"requests": 12, "right": 9, "memory_bytes": memory}}
    assert [check.value(records) for check in soak.TARGET.checks] == [75, pytest.approx(5)]


# Running them.

OPERATIONS = ("bench", "operations", "--repetitions", "1")
SMALL = Target(
    "small",
    "two commands",
    "",
    "ours",
    (
        Command("first", OPERATIONS, ("--elements", "5000"), ("--elements", "100")),
        Command("second", OPERATIONS, ("--elements", "5000"), ("--elements", "200")),
    ),
    (
        Check("rows", 12, 0, lambda records: len(records["first"]["rows"]), 0, 0),
        Check("elements", 300, 0, lambda records: records["second"]["rows"][0]["elements"], 0, 0),
        Check("only in full", 0, 0, lambda records: 1 / 0),
    ),
)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_a_reduced_one_stays_in_its_folder(tmp_path):
    folders, told = Folders.of(True, tmp_path), []

    def interrupt(text: str) -> None:
        told.append(text)
        if "second" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.reproduce([SMALL], folders, interrupt)
    first, second = (Run(command, folders) for command in SMALL.commands)
    assert first.finished and first.published and not second.finished
    before = first.record.stat().st_mtime_ns, first.finished
    assert runner.reproduce([SMALL], folders, told.append) is False  # 200 elements, where 300 are expected
    assert (first.record.stat().st_mtime_ns, first.finished) == before and second.finished
    assert any(text.startswith("[1/2] first: kept") for text in told)
    assert "rows" in told[-1] and "False" in told[-1] and "only in full" not in told[-1]
    record = read_record(folders.measurements / "first.json")
    assert record["rows"][0]["elements"] == 100 and record["environment"]["process_seconds"] > 1
    run = record["run"]
    assert run["commands"] == ["cipherdm bench operations --repetitions 1 --elements 100"]
    assert (
        run["seconds"] > 1 and run["memory"] > 4 * 100 * 2**20
    )  # a client and three parties, each with Python and SPU
    assert not (tmp_path / "data").exists() and not (tmp_path / "figures").exists()
    assert {path.parts[len(tmp_path.parts)] for path in tmp_path.rglob("*")} == {"runs"}
    rows = runner.costs([SMALL], [folders])
    assert [(row["piece"], row["reduced"]) for row in rows] == [("first", True), ("second", True)]
    # Of another checkout in which nothing is finished.
    elsewhere = Folders.of(True, tmp_path / "elsewhere")
    other = {**rows[1], "command": "cipherdm bench operations"}
    assert runner.costs([SMALL], [elsewhere], [rows[0], other]) == [rows[0]]
    assert runner.costs([SMALL], [folders], [{**rows[0], "seconds": 0}]) == rows


def test_reduced_runs_never_write_where_committed_records_are():
    reduced, full = Folders.of(True), Folders.of(False)
    assert full.measurements == MEASUREMENTS and full.figures == ROOT / "figures"
    for path in (reduced.state, reduced.measurements, reduced.figures):
        assert path.is_relative_to(ROOT / "runs" / "reproduce" / "reduced")


def finish(command: Command, folders: Folders, record: dict, **files: str) -> Run:
    """The run of a command, as if it had been made."""
    run = Run(command, folders)
    write_record(run.record, {**record, "run": {"commands": ["c"], "seconds": 2.0, "memory": 5, "load_before": 0.1}})
    for name, text in files.items():
        run.output.joinpath(name.replace("_", ".")).write_text(text)
    mark = {"command": command.line(folders.reduced), "date": "today"}
    run.record.parent.parent.joinpath("finished.json").write_text(json.dumps(mark))
    return run


def test_a_record_is_published_once_with_its_pictures(tmp_path):
    folders, command = Folders.of(False, tmp_path), Command("one", ("tables",))
    run = finish(command, folders, {"rows": [1]}, picture_npz="pixels")
    assert runner.publish([run], folders) == (folders.measurements / "one.json",)
    assert (folders.measurements / "picture.npz").read_text() == "pixels"
    (folders.measurements / "one.json").write_text("newer")
    assert runner.publish([run], folders) == ()
    assert (folders.measurements / "one.json").read_text() == "newer"
    other = Run(replace(command, full=("--changed",)), folders)  # another command has not been finished
    assert run.finished and other.finished is None
    run.forget()
    assert run.finished is None


def test_a_command_that_fails_is_named_and_nothing_is_published(tmp_path):
    folders, command = Folders.of(False, tmp_path), Command("wrong", ("bench", "step", "no-such-model"))
    with pytest.raises(CipherDMError, match="`cipherdm bench step no-such-model` ended with exit code 1"):
        runner.reproduce([Target("t", "", "", "ours", (command,))], folders, lambda text: None)
    assert Run(command, folders).finished is None and not (tmp_path / "data").exists()


def test_unknown_targets_are_answered_with_the_known_ones():
    assert runner.choose(TARGETS, []) == TARGETS
    assert [target.name for target in runner.choose(TARGETS, ["quality", "step", "quality"])] == ["quality", "step"]
    with pytest.raises(CipherDMError, match="'stpe'.*step"):
        runner.choose(TARGETS, ["stpe"])
    listing = runner.listing(TARGETS, Folders.of(True))
    assert all(f"{target.name}: {target.title}" in listing for target in TARGETS)


# The paper's claim.


def test_gains_are_baseline_divided_by_set():
    rows = [
        {"variant": name, "seconds": s, "seconds_low": s - 1, "seconds_high": s + 1, "bytes": b, "sends": n}
        for name, s, b, n in (("direct", 6, 120, 90), ("direct-pade", 9, 300, 100), ("cipherdm", 3, 100, 60))
    ]
    rows = [{"model": "m", "batch": 1, **row} for row in rows]
    table = gains([*rows, {**rows[2], "batch": 4}])
    assert list(table["baseline"]) == ["direct", "direct-pade"] and list(table["time"]) == [2, 3]
    assert list(table["time_low"]) == [5 / 4, 2] and list(table["time_high"]) == [7 / 2, 5]
    assert list(table["bytes"]) == [1.2, 3] and list(table["sends"]) == [90 / 60, 100 / 60]
    told = verdicts(table)
    assert list(told["time, claimed"]) == ["within", "above"] and list(told["bytes, claimed"]) == ["below", "above"]


def test_gains_by_number_of_pictures():
    rows = [
        {"model": "m", "batch": batch, "variant": name, "seconds": s, "seconds_low": s, "seconds_high": s}
        | {"bytes": 100 * s, "sends": 1}
        for batch, name, s in ((4, "direct", 8), (4, "cipherdm", 16), (1, "direct", 6), (1, "cipherdm", 3))
    ]
    rows += [{**rows[0], "variant": "direct-pade", "seconds": 32}, {**rows[0], "variant": "fast", "seconds": 2}]
    table = gains_by_batch(rows)
    assert list(table.columns) == [1, 4] and list(table.loc[("m", "direct")]) == [2, 0.5]
    assert table.loc[("m", "direct-pade"), 4] == 2 and table.loc[("m", "direct-pade")].isna()[1]
    assert gains_by_batch(rows, "fast").loc[("m", "direct"), 4] == 4


@pytest.mark.parametrize("quantity", CLAIMED)
def test_the_ends_of_a_claimed_range_are_within_it(quantity):
    low, high = CLAIMED[quantity]
    assert [verdict(value, quantity) for value in (low - 0.01, low, high, high + 0.01)] == [
        "below",
        "within",
        "within",
        "above",
    ]


# What runs took.


def test_what_a_run_took_is_read_from_its_record(tmp_path):
    environment = {"environment": {}}
    row = {"seconds": 2.0, "at_once": 5, "repetitions": 3, "peak_memory": 2**30}
    steps = {"rows": [row, {**row, "seconds": 1.0}]}
    assert targets.least_seconds(steps) == (2 + 1) * 5 * 5 and targets.parties_memory(steps) == 3 * 2**30
    assert targets.least_seconds({"cost": {"seconds": 7.0}}) == 7
    functions = [{"ms": 1500, "elements": 1000}, {"ms": 500, "elements": 1_000_000}]
    assert targets.least_seconds({"rows": functions, "repetitions": 2}) == 3.5
    assert targets.parties_memory({"peak_memory_bytes": [1, 5, 3]}) == 15
    for record in ({}, {"peak_memory": None}, {"peak_memory_bytes": []}, {"rows": [{"peak_memory": None}, {}]}):
        assert targets.parties_memory(record) is None
    assert targets.seconds({"environment": {"process_seconds": 9}, "seconds": 4.0}) == 9
    assert targets.seconds(environment | {"run": {"seconds": 11}}) == 11 and targets.seconds(environment) is None
    pieces = (Command("a", ("tables",)), Command("b", ("tables",)))
    assert targets.full(pieces, tmp_path) == "not timed"
    write_record(tmp_path / "a.json", {"run": {"seconds": 90.0, "memory": 3 * 2**29}})
    assert targets.full(pieces, tmp_path) == "2 min, 1.5 GiB, and 1 not timed"
    (tmp_path / "b.json").write_text(json.dumps(environment | steps))
    assert targets.full(pieces, tmp_path) == "> 3 min, 3.0 GiB"
    assert targets.reduced(pieces, tmp_path) == "not timed"
    rows = [{"piece": "a", "reduced": True, "seconds": 30, "memory": 2**30}, {"piece": "b", "reduced": False}]
    (tmp_path / "reproduce.json").write_text(json.dumps({"rows": rows}))
    assert targets.reduced(pieces, tmp_path) == "30 s, 1.0 GiB, and 1 not timed"
    (tmp_path / "reproduce.json").write_text(json.dumps({"rows": [rows[0] | {"memory": None}]}))
    assert targets.reduced(pieces, tmp_path) == "30 s, and 1 not timed"


def test_memory_that_could_not_be_looked_at_is_no_number(monkeypatch, tmp_path):
    sleep = [sys.executable, "-c", "import time; time.sleep(0.2)"]
    monkeypatch.setattr(runner, "_WATCH", 0.05)
    assert runner._run_watched(sleep)[1] > 2**20
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "none"))
    assert runner._run_watched(sleep) == (0, None)


def test_nothing_is_measured_for_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "runs").touch()
    told = []
    with pytest.raises(CipherDMError, match="record.json cannot be written .Not a directory"):
        runner.reproduce([SMALL], Folders.of(True, tmp_path), told.append)
    assert not told
