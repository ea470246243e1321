"""The benchmark of one step: what it counts is what sampling costs, and what it runs is right. And the tables made of it."""

import json
import re
import resource
from dataclasses import replace
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
from small import ONE_LEVEL, SCHEDULER
from typer.testing import CliRunner

from cipherdm import DIRECT, FAST, CipherDMError, CostReport, EngineConfig, sample
from cipherdm.cli import build
from cipherdm.models import init_unet, save_unet
from cipherdm.protocols import direct
from cipherdm.records import read_record, write_record
from cipherdm.sampling import make_task
from cipherdm.sampling.steps import setup_graph, step_graph
from cipherdm_experiments import activations, step, variants
from cipherdm_experiments.ladder import conv2d_by_patches, rungs
from cipherdm_experiments.tables import TABLES

SMALL = replace(ONE_LEVEL, add_attention=False)
STEPS = 2
BATCH = 2
W, X = (np.random.default_rng(0).normal(size=shape).astype(np.float32) for shape in ((3, 2, 3, 3), (2, 2, 6, 8)))


@pytest.fixture(scope="module")
def unet():
    """A very small conditional model with random weights."""
    return replace(init_unet(SMALL), scheduler_config=SCHEDULER)


@pytest.fixture(scope="module")
def folder(unet, tmp_path_factory):
    """The same as a diffusers folder."""
    path = tmp_path_factory.mktemp("models") / "small"
    save_unet(unet, path)
    return path


@pytest.fixture(scope="module")
def command(folder, tmp_path_factory):
    """What `cipherdm bench step` printed, and the record that it wrote."""
    path = tmp_path_factory.mktemp("measurements") / "step_small.json"
    arguments = ["--protocols", "direct, cipherdm", "--batch", "2", "--repetitions", "1", "--steps", "2"]
    result = CliRunner().invoke(build(), ["bench", "step", str(folder), *arguments, "--record", str(path)])
    assert result.exit_code == 0, result.output
    return result.output, path


@pytest.fixture(scope="module")
def measured(command):
    """Its rows, by variant."""
    return pd.DataFrame(read_record(command[1])["rows"]).set_index("variant", drop=False)


def rows_of(**columns) -> pd.DataFrame:
    """Rows of a run with these columns, the others filled in."""
    count = len(columns["variant"])
    others = {"model": "m", "batch": 1, "bytes": 10, "sends": 10, "peak_memory": 2**28, "setup_bytes": 0}
    return pd.DataFrame({name: [value] * count for name, value in others.items()} | columns)


def plaintext_steps(unet, variant, count) -> np.ndarray:
    """The sample after the first steps, in plaintext with the same functions."""
    task = make_task(unet, labels=[0, 1], steps=STEPS, protocols=variant.protocols, ring=False)
    values = task.owner | task.client | task.public
    before = setup_graph(task.shape)
    if before is not None:
        values.update(zip(before.outputs, before(*(values[name] for name in before.inputs)), strict=True))
    graph = step_graph(task.shape)
    for index in range(count):
        values["step"] = values[f"step.{index}"]
        values["sample"] = graph(*(values[name] for name in graph.inputs))[0]
    return task.decoded(np.asarray(values["sample"]))


def test_the_command_writes_a_record(command):
    output, path = command
    record = json.loads(path.read_text())
    assert record["steps"] == STEPS and record["environment"]["versions"]["spu"]
    assert [(row["model"], row["variant"]) for row in record["rows"]] == [("small", "direct"), ("small", "cipherdm")]
    assert "time_ratio" in output and f"Wrote {path}" in output
    table = TABLES["step_batches"](path.parent)
    assert "| 2 at a time |" in table and "| small | direct | 1.0x, 1.0x, 1.0x |" in table


def test_variants_take_turns_after_a_warm_up(command):
    """By the descriptions of the progress bar."""
    seen = re.findall(r"batch 2 (\S+): (warm-up|run \d of 1|memory)", command[0])
    work = ["warm-up", "run 1 of 1", "memory"]
    expected = [(name, what) for what in work for name in ("direct", "cipherdm")]
    assert [key for key, _ in groupby(seen)] == expected


def test_every_variant_has_its_row(measured):
    assert set(measured["batch"]) == {BATCH} and set(measured["repetitions"]) == {1}
    assert (measured["seconds_low"] <= measured["seconds"]).all()
    assert (measured["seconds"] <= measured["seconds_high"]).all()
    assert (measured[["seconds", "bytes", "sends"]] > 0).all(axis=None)
    # In a round at most two messages of each party are on their way; at least one of the three sends something.
    assert (measured["sends"] / 6 < measured["rounds"]).all() and (measured["rounds"] < measured["sends"]).all()
    assert (measured["bytes"] / 3 <= measured["path_bytes"] + 1).all()
    assert (measured["path_bytes"] < measured["bytes"]).all()
    # A party of so small a model holds less than this process, which has compiled it and imported PyTorch.
    client = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert measured["peak_memory"].between(50 * 2**20, 0.9 * client).all()
    # Only with precomputed time terms is there something to pick once for the secret labels.
    setup = measured[["setup_seconds", "setup_bytes", "setup_sends"]]
    assert (setup.loc["cipherdm"] > 0).all() and (setup.loc["direct"] == 0).all()


def test_a_row_has_the_median_of_its_runs():
    (variant,) = variants.variants(["direct"])
    prepared = variants.PreparedStep(variant, task=None, setup=None, plan=None, count=2, prefix="")
    sent = pd.DataFrame({"party": [0, 1, 2], "sent_bytes": [10, 12, 14], "sends": [2, 2, 4]})
    row = step._row(prepared, None, [CostReport(seconds, sent, sent) for seconds in (18.0, 2.0, 4.0)], 77)
    assert (row["seconds_low"], row["seconds"], row["seconds_high"]) == (1, 2, 9)
    assert (row["bytes"], row["sends"], row["peak_memory"], row["repetitions"]) == (18, 4, 77, 3)
    # Without kernels the model takes 3 rounds for 8 messages, and the busiest party's bytes.
    assert (row["rounds"], row["path_bytes"]) == (round(8 * 3 / 8 / 2), 14 // 2)


def test_a_step_costs_what_it_costs_in_sampling(unet, cluster, measured):
    run = sample(unet, cluster, labels=[0, 1], steps=STEPS, protocols=DIRECT, granularity="loop")
    program = run.cost.by_program().loc["loop"]
    assert measured.loc["direct", "bytes"] == pytest.approx(program["bytes"] / STEPS, rel=0.01)
    assert measured.loc["direct", "sends"] == pytest.approx(program["sends"] / STEPS, rel=0.01)


@pytest.mark.parametrize(
    ("name", "granularity"), [("direct-pade", "loop"), ("direct-pade", "step"), ("cipherdm", "block")]
)
def test_the_result_is_that_of_plaintext_however_often_it_runs(unet, cluster, measured, name, granularity):
    (variant,) = variants.variants([name])
    prepared = variants.prepare(unet, replace(variant, granularity=granularity), batch=BATCH, steps=STEPS, prefix="7/")
    setup = prepared.start(cluster)
    first, second = (prepared.run(cluster) for _ in range(2))
    assert prepared.count == (STEPS if granularity == "loop" else 1)
    expected = plaintext_steps(unet, variant, prepared.count)
    assert np.sqrt(np.mean((prepared.result(cluster) - expected) ** 2)) < 0.02 * np.sqrt(np.mean(expected**2))
    assert (first.bytes, first.sends) == (second.bytes, second.sends)
    assert (len(first.by_program()) == 1) == (granularity != "block")
    if name == "direct-pade":
        assert setup is None and first.bytes > measured.loc["direct", "bytes"]  # a more expensive exponential
    else:
        assert setup.bytes == measured.loc["cipherdm", "setup_bytes"]


def test_variants_are_named():
    by_name = {variant.name: variant for variant in variants.variants()}
    assert list(by_name) == list(variants.DEFAULT_NAMES)
    assert by_name["direct"].engine == by_name["puma"].engine == EngineConfig()
    assert by_name["direct-pade"].protocols == DIRECT and by_name["direct-pade"].engine.exp == "pade"
    with pytest.raises(CipherDMError, match="magic"):
        variants.variants(["direct", "magic"])


def test_a_model_without_classes_gets_a_count(monkeypatch):
    monkeypatch.setattr(variants, "compile_plan", lambda *_, **__: None)  # takes seconds
    plain = replace(init_unet(replace(SMALL, num_class_embeds=None)), scheduler_config=SCHEDULER)
    (variant,) = variants.variants(["direct"])
    assert variants.prepare(plain, variant, batch=3, steps=STEPS).task.shape.batch == 3


@pytest.mark.parametrize("change", [{"batches": [0]}, {"batches": []}, {"repetitions": 0}, {"variants": []}])
def test_nothing_to_measure_is_refused(unet, change):
    with pytest.raises(CipherDMError, match="at least one variant, repetition, step and image"):
        step.run(unet, **({"variants": variants.variants(["direct"])} | change))


def test_what_is_no_program_is_refused(unet):
    (variant,) = variants.variants(["direct"])
    with pytest.raises(CipherDMError, match="granularity 'layer'"):
        variants.prepare(unet, replace(variant, granularity="layer"), batch=1, steps=STEPS)


@pytest.mark.parametrize("act_fn", ["silu", "mish"])
def test_all_rungs_of_the_ladder_compute_the_model(act_fn):
    """In plaintext, with activations and scores far inside the polynomials' ranges; the last rung has its own tests."""
    config = replace(SMALL, act_fn=act_fn, add_attention=True, attention_head_dim=2)
    unet = replace(init_unet(config), scheduler_config=SCHEDULER)
    *others, last = rungs(unet, activation_bound=3.0)
    assert last.protocols == FAST and [variant.name for variant in others][0] == "direct"
    exact = plaintext_steps(unet, others[0], 1)
    for before, variant in zip(others, others[1:], strict=False):
        assert variant.protocols != before.protocols
        assert np.abs(plaintext_steps(unet, variant, 1) - exact).max() < 0.03 * np.abs(exact).max()
    conv = [
        np.asarray(function({"weight": W, "bias": W[:, 0, 0, 0]}, X, stride=2, padding=((0, 1), (1, 0))))
        for function in (direct.conv2d, conv2d_by_patches)
    ]
    np.testing.assert_allclose(*conv, atol=1e-5)


def test_ratios_are_against_the_faster_baseline_of_each_batch():
    frame = rows_of(
        batch=[1, 1, 1, 4, 4, 4],
        variant=2 * ["direct", "direct-pade", "fast"],
        seconds=[8.0, 6.0, 2.0, 10.0, 12.0, 2.0],
        bytes=[100, 200, 10, 400, 800, 50],
        sends=[50, 40, 20, 50, 40, 20],
    )
    found = step.ratios(frame)
    assert list(found["time_ratio"]) == pytest.approx([6 / 8, 1, 3, 1, 10 / 12, 5])
    assert list(found["bytes_ratio"]) == pytest.approx([2, 1, 20, 1, 0.5, 8])
    assert list(found["sends_ratio"]) == pytest.approx([0.8, 1, 2, 1, 1.25, 2.5])
    assert step.ratios(frame[frame["variant"] == "fast"])["time_ratio"].isna().all()


def test_the_command_of_the_activations(tmp_path, monkeypatch):
    cases = [case for case in activations.cases() if case.name == "silu_cipherdm"]
    monkeypatch.setattr(activations, "cases", lambda: cases)
    path = tmp_path / "activations.json"
    arguments = ["--sizes", "100, 200", "--repetitions", "1", "--record", str(path)]
    result = CliRunner().invoke(build(), ["bench", "activations", *arguments])
    assert result.exit_code == 0, result.output
    assert [row["elements"] for row in json.loads(path.read_text())["rows"]] == [100, 200]
    with pytest.raises(CipherDMError, match="no rows of 100,000 elements.*cipherdm bench activations"):
        TABLES["activations"](tmp_path)


@pytest.mark.parametrize("numbers", ["", "one", "1,0", "1,,4", "-3"])
def test_a_batch_that_is_no_number_is_answered_before_anything_runs(folder, numbers):
    result = CliRunner().invoke(build(), ["bench", "step", str(folder), f"--batch={numbers}"])
    assert isinstance(result.exception, CipherDMError) and "--batch" in str(result.exception)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("step", "cipherdm bench step"),
        ("step_batches", "cipherdm bench step"),
        ("ladder", "cipherdm bench ladder"),
        ("activations", "cipherdm bench activations"),
        ("quality", "cipherdm evaluate"),
    ],
)
def test_a_table_without_its_record_names_the_command(tmp_path, name, command):
    with pytest.raises(CipherDMError, match=command):
        TABLES[name](tmp_path)


def test_the_table_of_steps(tmp_path):
    frame = rows_of(batch=[1, 1, 4], variant=["direct", "cipherdm", "cipherdm"], seconds=[5.1, 1.0, 0.25])
    write_record(
        tmp_path / "step_m.json", {"rows": frame.assign(bytes=[51_000_000, 10_000_000, 10]).to_dict("records")}
    )
    headline, batches = TABLES["step"](tmp_path), TABLES["step_batches"](tmp_path)
    assert "| m | 1 | cipherdm | 1.00 s | 10.0 | 10 | 5.1x | 5.1x | 1.0x | 0.0 | 256 |" in headline
    assert "| m | 4 |" not in headline
    assert batches.splitlines()[2:] == [
        "| m | direct | 1.0x, 1.0x, 1.0x | - |",
        "| m | cipherdm | 5.1x, 5.1x, 1.0x | -, -, - |",
    ]
    write_record(tmp_path / "step_m.json", {"rows": frame[frame["batch"] == 4].to_dict("records")})
    with pytest.raises(CipherDMError, match="--batch 1"):
        TABLES["step"](tmp_path)


def test_the_table_of_activations(tmp_path):
    row = {"elements": 100_000, "max_error": 0.01234, "ms": 1234.5, "bytes": 72_800_000, "sends": 61, "exp": "pade"}
    functions = [("silu", "direct", False), ("silu", "silu_cipherdm", False), ("exp", "exp_bounded4", True)]
    rows = [row | dict(zip(("kind", "function", "relative"), names, strict=True)) for names in functions]
    rows.append(rows[0] | {"elements": 1000})
    (tmp_path / "activations.json").write_text(json.dumps({"rows": rows}))
    assert TABLES["activations"](tmp_path).splitlines()[2:] == [
        "| silu, direct, pade | 0.012 | 1,234 | 728 | 61 |",
        "| silu_cipherdm | 0.012 | 1,234 | 728 | 61 |",
        "| exp_bounded4 | 0.012 of the value | 1,234 | 728 | 61 |",
    ]


def test_the_table_of_quality_has_all_sets_and_that_of_models_the_exact_one(tmp_path):
    record = {"model": "m", "parameters": 1234, "scheduler": "ddim", "steps": 50}
    record |= {"accuracy": 0.98765, "f1": 0.9, "lenet_fid": 1.234, "count": 2000}
    for name in ("cipherdm", "direct"):
        likeness = {} if name == "direct" else {"emulated": {"psnr": 34.56, "ssim": 0.9876}}
        (tmp_path / f"quality_m_{name}.json").write_text(json.dumps(record | {"protocols": name} | likeness))
    scores = "DDIM-50 | 98.8% | 0.900 | 1.23 | 2,000 |"
    assert TABLES["quality"](tmp_path).splitlines()[2:] == [
        f"| m | direct | {scores} - | - |",
        f"| m | cipherdm | {scores} 34.6 dB, 0.988 | - |",
    ]
    assert TABLES["models"](tmp_path).splitlines()[2:] == [f"| m | 1,234 | {scores}"]


def test_a_distilled_model_is_a_variant_of_its_own(unet, tmp_path):
    """Named by its folder, and against the baselines of the model that it comes from."""
    cheap = replace(
        init_unet(replace(SMALL, act_fn="quad")), scheduler_config=SCHEDULER, folder=tmp_path / "small-quad"
    )
    chosen = (*variants.variants(["direct"]), variants.of_distilled(cheap, DIRECT))
    frame = step.ratios(step.run(unet, variants=chosen, batches=[1], repetitions=1, steps=2, at_once=1))
    frame = frame.set_index("variant")
    assert list(frame.index) == ["direct", "direct on small-quad"]
    assert frame.loc["direct on small-quad", "bytes_ratio"] > 1.5  # a square in the place of a sigmoid
