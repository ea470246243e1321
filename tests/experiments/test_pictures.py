"""What pictures cost: a way that is drawn, and the table and figure of the committed record."""

import json

import pytest

from cipherdm import CipherDMError
from cipherdm.records import MEASUREMENTS
from cipherdm_experiments.pictures import WAYS, Way, figure, pictures_table, run, with_quality


def test_calls_are_those_of_the_whole_network():
    assert Way("sd-mini", "fast", steps=20, guidance_scale=4.0).calls == 40
    assert Way("mnist10", "fast", steps=20, reuse=4).calls == 6  # the first, the last and every fourth before it
    assert Way("mnist10-turbo-2", "fast", steps=2).calls == 2


@pytest.mark.slow
def test_a_way_is_drawn_on_three_parties():
    (row,) = run([Way("mnist10-turbo-2", "fast-64", steps=2)], repetitions=1)
    assert row["calls"] == 2 and row["pictures"] == 10 and row["runs"] == 1
    assert row["psnr_db"] > 28 and row["whole_seconds"] >= row["seconds"] > 0
    known = {
        (each["model"], each["steps"]): each
        for each in json.loads((MEASUREMENTS / "pictures.json").read_text())["rows"]
    }
    assert 1.3 < row["bytes"] / known["mnist10-turbo-2", 2]["bytes"] < 1.8  # of fast-64, to those of fast-rings


def test_gains_are_over_the_first_way_of_each_kind():
    rows = with_quality(MEASUREMENTS)
    assert len(rows) == len(WAYS)
    digits, prompts = ([row for row in rows if row["kind"] == kind] for kind in ("mnist10", "sd-mini"))
    assert len(digits) + len(prompts) == len(rows)
    for some in (digits, prompts):
        assert some[0]["protocols"] == "direct" and some[0]["gain"] == {"seconds": 1, "bytes": 1}
        assert some[-1]["gain"]["bytes"] == pytest.approx(some[0]["bytes"] / some[-1]["bytes"])
    assert digits[-1]["quality"].startswith("LeNet-FID") and prompts[-1]["quality"].endswith("of captions")
    lines = pictures_table(MEASUREMENTS).splitlines()
    assert len(lines) == 2 + len(rows) and "reuse=4" in "".join(lines)
    left, right = figure(MEASUREMENTS).axes
    assert [bar.get_width() for bar in left.patches] == pytest.approx([row["bytes"] / 1e6 for row in rows])
    assert [bar.get_width() for bar in right.patches] == [row["seconds"] for row in rows]


def test_a_missing_quality_is_named(tmp_path):
    for path in MEASUREMENTS.glob("*.json"):
        if not path.name.startswith("quality_mnist10-turbo-2"):
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(CipherDMError, match="no record of the quality of mnist10-turbo-2.*cipherdm evaluate"):
        with_quality(tmp_path)
