"""The benchmark of matrix products: all ways give the product, and what they send is what it must be."""

import numpy as np
import pytest

from cipherdm import CipherDMError
from cipherdm.files import root
from cipherdm.records import read_record
from cipherdm_experiments import linear
from cipherdm_experiments.linear import ENGINE, SHAPES, WAYS, Shape, run, shape_named, table

MATRIX, BATCHED = Shape("matrix", 8, 24, 5), Shape("two secrets", 6, 4, 5, 3)
CONVOLUTION = Shape("3 x 3", 4, 27, 50, images=(2, 5))


@pytest.fixture(scope="module")
def record(cluster):
    return run(cluster.session(ENGINE), [MATRIX, BATCHED, CONVOLUTION], repetitions=1)


def test_every_way_is_exact_and_sends_one_message_a_party(record):
    """Operands are multiples of 2^-8, so that nothing is rounded. SPU sends one message for each product of a batch."""
    rows = {(row["shape"], row["way"]): row for row in record["rows"]}
    assert len(rows) == 3 * len(WAYS) and {row["max_error"] for row in rows.values()} == {0}
    for shape, results in ((MATRIX, 40), (BATCHED, 90), (CONVOLUTION, 200)):
        spu, large, small = (rows[str(shape), way] for way in WAYS)
        assert spu["bytes"] == large["bytes"] == 24 * results and small["bytes"] == 12 * results
        assert spu["sends"] == 3 * (shape.batch or 1) and large["sends"] == small["sends"] == 3
        assert large["rounds"] == small["rounds"] == 1


def test_the_record_says_how_products_are_computed(record):
    assert set(record["paths"]) == {"64 bits", "32 bits"}
    assert all("multiply-adds/s" in path for path in record["paths"].values())


def test_the_table_compares_with_spu(record):
    frame = table(record).set_index(["shape", "way"])
    assert frame.loc[(str(MATRIX), "spu"), ["faster", "fewer bytes"]].tolist() == [1, 1]
    assert frame.loc[(str(MATRIX), "kernel, 32 bits"), "fewer bytes"] == 2
    # Each party multiplies two ring words for each product of numbers.
    spu = frame.loc[(str(MATRIX), "spu")]
    assert spu["G/s"] * spu["ms"] * 1e6 == pytest.approx(2 * 8 * 24 * 5)


def test_shapes_are_read_by_their_extents():
    assert shape_named(" 8x24x5") == Shape("", 8, 24, 5)
    assert all(shape_named(str(shape)) == shape for shape in SHAPES)
    with pytest.raises(CipherDMError, match="'8x24'"):
        shape_named("8x24")


def test_another_configuration_is_refused(session):
    with pytest.raises(CipherDMError, match=r"linear\.ENGINE"):
        linear.run(session, [MATRIX])


def test_speeds_are_those_of_the_record():
    record = read_record(root() / "data" / "measurements" / "linear.json")
    figure = linear.speeds(record)
    times, sizes = figure.axes
    rows = {(row["shape"], row["way"]): row for row in record["rows"]}
    shapes = list(dict.fromkeys(shape for shape, _ in rows))
    assert [label.get_text() for label in times.get_yticklabels()] == shapes
    expected = [(shape, way) for way in ("spu", "kernel, 64 bits", "kernel, 32 bits") for shape in shapes]
    for axis, field in ((times, "ms"), (sizes, "bytes")):
        ratios = [rows[key][field] / rows[key[0], "spu"][field] for key in expected]
        np.testing.assert_allclose([bar.get_width() for bar in axis.patches], ratios)
        assert max(ratios) < axis.get_xlim()[1]
    for (shape, way), text in zip(expected, times.texts, strict=True):
        assert text.get_text().strip().startswith(f"{rows[shape, way]['ms']:,.0f} ms")
        assert f"{shape}, {way}: {rows[shape, way]['ms']:,.0f} ms" in figure.get_label()
