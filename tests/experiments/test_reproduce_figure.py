"""Figures of the reproduction: what is drawn is what was recorded, and described in words."""

import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest

from cipherdm.errors import CipherDMError
from cipherdm.records import read_record
from cipherdm.views.style import png
from cipherdm_experiments import quality
from cipherdm_experiments.activations import function_gains
from cipherdm_experiments.ladder import ladder_figure
from cipherdm_experiments.quality import ORDER, quality_figure, read_quality
from cipherdm_experiments.step_gains import CLAIMED, claims_figure, gains, step_rows
from cipherdm_experiments.target import MODELS

ROOT = Path(__file__).parents[2]
MEASUREMENTS = ROOT / "data" / "measurements"


def points(axis) -> np.ndarray:
    """The horizontal positions of all points of an axis, sorted."""
    return np.sort(np.concatenate([c.get_offsets()[:, 0] for c in axis.collections if len(c.get_offsets())]))


def test_the_claims_picture_shows_every_gain_above_the_claimed_range():
    table = gains(step_rows(MEASUREMENTS))
    figure = claims_figure(table)
    for axis, quantity in zip(figure.axes, ("time", "bytes"), strict=True):
        drawn = [c.get_offsets()[:, 0] for c in axis.collections if c.get_label().startswith("against")]
        np.testing.assert_allclose(np.sort(np.concatenate(drawn)), np.sort(table[quantity]))
        band = axis.patches[0].get_extents().transformed(axis.transData.inverted())
        np.testing.assert_allclose((band.x0, band.x1), CLAIMED[quantity])
        left, right = axis.get_xlim()
        assert left < table[quantity].min() and table[quantity].max() < right and axis.get_xscale() == "log"
    ticks = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert ticks == list(table.drop_duplicates(["model", "protocols"])["protocols"])
    row = table.iloc[0]
    assert f"{row['protocols']} on {row['model']} {row['time']:.2f} and" in figure.get_label()
    assert len(png(figure)) > 10_000


def test_the_ladder_picture_shows_every_rung():
    rows = read_record(MEASUREMENTS / "ladder_mnist01-tiny.json")["rows"]
    figure = ladder_figure(rows)
    for axis, column, unit in zip(figure.axes, ("seconds", "bytes", "sends"), (1, 1e-6, 1e-3), strict=True):
        np.testing.assert_allclose([bar.get_width() for bar in axis.patches], [row[column] * unit for row in rows])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [row["variant"] for row in rows]
    assert "mnist01-tiny" in figure.get_label()


def quality_record(model: str, protocols: str, accuracy: float, **more) -> dict:
    scores = {"accuracy": accuracy, "f1": accuracy - 0.1, "lenet_fid": 10 * (1 - accuracy) + 0.5, "count": 100}
    return {"model": model, "protocols": protocols, "scheduler": "ddim", "steps": 50, **scores, **more}


@pytest.fixture
def records(tmp_path):
    """A folder with four records of quality."""
    made = {
        "m_fast": quality_record("m", "fast", 0.9, emulated={"psnr": 30.0}, overflowed=2),
        "m_direct": quality_record("m", "direct", 0.95),
        "m_cipherdm_ddpm-50": quality_record("m", "cipherdm", 0.3, scheduler="ddpm"),
        "m_direct_dpmsolver-10": quality_record("m", "direct", 0.8, scheduler="dpmsolver++", steps=10),
    }
    for name, record in made.items():
        (tmp_path / f"quality_{name}.json").write_text(json.dumps(record))
    return tmp_path


def test_all_records_of_quality_are_read(records, tmp_path_factory):
    table = read_quality(records)
    assert list(zip(table["protocols"], table["sampler"], strict=True)) == [
        ("direct", "DDIM-50"),
        ("direct", "DPMSOLVER++-10"),
        ("cipherdm", "DDPM-50"),
        ("fast", "DDIM-50"),
    ]
    fast = table.iloc[-1]
    assert (fast["accuracy"], fast["psnr"], fast["overflowed"], fast["samples"]) == (0.9, 30, 2, 100)
    assert np.isnan(table.iloc[0]["psnr"])
    with pytest.raises(CipherDMError, match="reproduce --only quality"):
        read_quality(tmp_path_factory.mktemp("empty"))


def test_the_quality_picture_shows_the_samplers_that_there_are(records):
    figure = quality_figure(read_quality(records), ["m"], ["DDIM-50", "DDPM-50", "DDIM-7"])
    accuracy, fid = figure.axes
    np.testing.assert_allclose(points(accuracy), [0.3, 0.9, 0.95])
    np.testing.assert_allclose(points(fid), [1.0, 1.5, 7.5])
    assert [text.get_text() for text in accuracy.get_yticklabels()] == ["direct", "cipherdm", "fast"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DDIM-50", "DDPM-50"]
    assert "cipherdm on m, DDPM-50: 30.0%" in figure.get_label()


def test_the_committed_quality_can_be_drawn():
    table = read_quality(MEASUREMENTS)
    known = table[table["model"].isin(MODELS)]
    assert set(known["protocols"]) >= {"direct", "fast"} and set(ORDER) >= {"direct", "fast"}
    assert len(png(quality.figure(MEASUREMENTS))) > 10_000


def test_gains_of_functions_are_those_of_the_record():
    record = read_record(MEASUREMENTS / "activations.json")
    table = function_gains(record)
    assert len(table) == 4 * 5 and (table.xs("direct", level="way")["time, direct /"] == 1).all()
    rows = {(r["kind"], r["function"], r["exp"]): r for r in record["rows"] if r["elements"] == 100_000}
    pade, published = rows["silu", "direct", "pade"], rows["silu", "silu_cipherdm", "taylor"]
    row = table.loc[("silu", "published")]
    assert row["bytes, direct-pade /"] == pytest.approx(pade["bytes"] / published["bytes"])
    assert row["time, direct-pade /"] == pytest.approx(pade["ms"] / published["ms"])
    assert row["bytes an element"] == published["bytes"] / 100_000


def test_numbers_in_the_notebooks_text_are_those_of_the_records():
    notebook = nbformat.read(ROOT / "notebooks" / "08_reproducing_cipherdm.ipynb", as_version=4)
    text = " ".join(" ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").split())
    parameters = [
        read_record(MEASUREMENTS / f"quality_{model}_direct.json")["parameters"]
        for model in ("mnist10", "mnist01-tiny")
    ]
    assert int(re.search(r"(\d+) times the parameters", text)[1]) == round(parameters[0] / parameters[1])
    run = read_record(MEASUREMENTS / "ddpm1000_mnist01-tiny.json")
    assert f"segments of {run['segment']} steps" in text and f"{run['steps']} steps with fresh noise" in text
    drawn = {f"labels {' and '.join(map(str, run['labels']))}"}
    assert all(words in text for words in drawn)
