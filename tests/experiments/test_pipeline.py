"""The way of one model through all systems: what its page says, and the picture by three hosts."""

import json
import shutil

import pytest

from cipherdm.likeness import psnr  # noqa: F401
from cipherdm.models import find_model
from cipherdm_experiments import pipeline

TRAININGS = {
    pipeline.PUBLIC: {"steps": 12_500},
    pipeline.PRIVATE: {"steps": 300, "epsilon": 10.0, "delta": 1e-5, "share": 0.12, "batch": 4000},
    pipeline.SPLIT: {"steps": 4000, "bytes": 2568.0},
    pipeline.PLAIN: {"steps": 3000},
    pipeline.MODEL: {"steps": 1600},
}
RECORD = {"calls": 2, "pictures": [{"seconds": 9.0, "bytes": 5e7, "sends": 5000, "rounds": 1900}], "trainings": TRAININGS}


def test_each_stage_says_who_learns_what_and_from_whom_the_rest_is_hidden():
    found = pipeline.stages(RECORD)
    assert [each.name[0] for each in found] == list("123456")
    assert all(text for each in found for text in vars(each).values())
    assert "(10, 1e-05)-differential privacy" in found[1].learns
    assert "learns every picture" in found[2].learns and "2,568 B" in found[2].costs
    assert "50.0 MB" in found[4].costs and "2 calls" in found[3].costs


@pytest.mark.slow
def test_three_hosts_draw_what_plaintext_draws(tmp_path):
    folder = shutil.copytree(find_model("sd-mini-control"), tmp_path / "model")
    (folder / "sampling.json").write_text(json.dumps({"steps": 2, "guidance_scale": 1.0}))
    found, figure = pipeline.run(model=str(folder))
    first, second = found["pictures"]
    assert first["bytes"] == second["bytes"] and first["sends"] == second["sends"]
    assert found["psnr"] > 28 and found["calls"] == 2
    assert len(figure.axes) == 3
