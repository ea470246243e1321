"""The benchmark of products: all ways give the product, and what they send is what it must be."""

import pytest

from cipherdm import CipherDMError
from cipherdm.kernels.ring_program import WalkPlan
from cipherdm.kernels.rings import costs
from cipherdm.protocols.fast import VALUE_BITS
from cipherdm.protocols.fixed import encode
from cipherdm_experiments import linear
from cipherdm_experiments.linear import BITS, ENGINE, SHAPES, WAYS, Shape, operands, plan_of, run, shape_named, table

MATRIX, BATCHED = Shape("matrix", 8, 24, 5), Shape("two secrets", 6, 4, 5, 3)
CONVOLUTION = Shape("3 x 3", 4, 27, 50, images=(2, 5))


@pytest.fixture(scope="module")
def record(cluster):
    return run(cluster.session(ENGINE), [MATRIX, BATCHED, CONVOLUTION], repetitions=1)


def test_every_way_gives_the_product_in_the_bytes_of_its_plan(record):
    """Only the truncation rounds, up or down at random. SPU sends messages for each product of a batch."""
    rows = {(row["shape"], row["way"]): row for row in record["rows"]}
    assert len(rows) == 3 * len(WAYS) and max(row["max_error"] for row in rows.values()) <= 2 * 2.0**-VALUE_BITS
    for shape, results in ((MATRIX, 40), (BATCHED, 90), (CONVOLUTION, 200)):
        spu = rows[str(shape), "spu"]
        assert (spu["bytes"], spu["sends"]) == ((24 + 40) * results, 3 * (shape.batch or 1) + 5)
        encoded = {name: encode(value, BITS[name], ring=True) for name, value in operands(shape).items()}
        for way in WAYS[1:]:
            (call,) = plan_of(way, encoded).calls
            walk = rows[str(shape), way]
            assert (walk["bytes"], walk["rounds"]) == costs(WalkPlan.from_json(call.program.code.decode()))
            assert walk["bytes"] < spu["bytes"] and walk["sends"] < 3 * walk["rounds"] + 1


def test_the_record_says_how_products_are_computed(record):
    assert "multiply-adds/s" in record["path"]


def test_the_table_compares_with_spu(record):
    frame = table(record).set_index(["shape", "way"])
    assert frame.loc[(str(MATRIX), "spu"), ["faster", "fewer bytes"]].tolist() == [1, 1]
    assert frame.loc[(str(MATRIX), "walk, 64 bits"), "fewer bytes"] == pytest.approx(64 / 26.25)
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
