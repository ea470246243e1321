"""The experiment on a diffusion transformer: its table and figure, and sets that stand on a model of their own."""

import pytest

from cipherdm import CipherDMError
from cipherdm.records import write_record
from cipherdm_experiments import dit
from cipherdm_experiments.variants import variants


@pytest.fixture
def records(tmp_path):
    """Records whose set number n sends n MB, and is right for 100 - n of 100 pictures."""
    steps = []
    for place, (model, name) in enumerate(dit.WAYS, 1):
        steps.append(
            {"variant": dit._variant(model, name), "seconds": 8.0 / place, "bytes": place * 1e6, "sends": 10 * place}
        )
        quality = {"accuracy": 1 - place / 100, "count": 2000}
        if name == "fast-rings":
            quality["secure"] = {"psnr": 31.5, "psnr_lowest": 20.25}
        write_record(tmp_path / f"{dit._quality(model, name)}.json", quality)
    write_record(tmp_path / "step_mnist-dit.json", {"rows": steps})
    return tmp_path


def test_the_table_has_a_row_for_each_set_against_the_first(records):
    lines = dit.dit_table(records).splitlines()[2:]
    assert len(lines) == len(dit.WAYS)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[1][:2] == ["mnist-dit", "puma"] and cells[1][5:8] == ["2.0x", "0.5x", "98.0%"]
    assert [row[8:] for row in cells if row[1] == "fast-rings"] == 2 * [["31.5 dB", "20.2 dB"]]
    assert all(row[8:] == ["-", "-"] for row in cells if row[1] != "fast-rings")


def test_the_figure_says_what_it_shows(records):
    drawn = dit.figure(records)
    assert [len(axis.patches) for axis in drawn.axes] == [len(dit.WAYS), 0]
    assert drawn.axes[0].get_yticklabels()[2].get_text() == "fast-rings"
    with pytest.raises(CipherDMError, match="cipherdm evaluate mnist-dit"):
        (records / f"{dit._quality('mnist-dit', 'puma')}.json").unlink()
        dit.figure(records)


def test_a_set_may_stand_on_a_model_of_its_own():
    alone, student = variants(("ditto", "fast on mnist10-quad"))
    assert (alone.granularity, alone.unet, alone.engine.small_fraction_bits) == ("block", None, 8)
    assert student.unet.folder.name == "mnist10-quad" and student.name == "fast on mnist10-quad"
    with pytest.raises(CipherDMError, match="no model 'none'"):
        variants(("fast on none",))
