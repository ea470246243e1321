"""What Ditto's cuts have room for: steps in the clear against plaintext, and the owner's check that rests on them."""

from dataclasses import replace

import numpy as np
import pytest

import cipherdm as cdm
from cipherdm.sampling.ditto_in_the_clear import computed_steps
from cipherdm.sampling.texts import check_logits, classification_task

TEXTS = ("A wonderful film.", "Dull, and far too long for what little it has to say.")
FINE = replace(cdm.DITTO, name="fine", small_bits=15)


@pytest.fixture(scope="module")
def student():
    return cdm.load_transformer("reviews-tiny-quad")


def test_without_rounding_numbers_are_those_of_the_plaintext_and_shares_are_their_sizes(student):
    logits = cdm.classify(student, None, TEXTS, tokens=64).logits
    task = classification_task(student, TEXTS, tokens=64, protocols=cdm.DITTO)
    done = list(computed_steps(task.shape.nodes("block"), task.specs, task.owner | task.client, cdm.DITTO))
    assert done[-1].node.outputs == ("logits",)
    np.testing.assert_allclose(done[-1].results[0], logits, atol=0.04)  # weights have 8 fraction bits
    found = {entry.layer: entry for entry in cdm.check_ranges(student, cdm.DITTO, TEXTS)}
    largest = np.abs(logits).max()
    # The classifier's products have 16 fraction bits, what is taken to the ring of 64 has 8, and a quarter is 2^30.
    assert found["head.logits"].highest == pytest.approx(largest * 2.0 ** (16 - 30), rel=0.03)
    assert found["logits"].highest == pytest.approx(largest * 2.0 ** (8 - 30), rel=0.03)


def test_a_student_has_room_with_few_bits_and_none_with_many(student):
    found = cdm.check_ranges(student, cdm.DITTO, images=8)
    assert {entry.function for entry in found} == {"cut"} and all(entry.allowed == (0, 1) for entry in found)
    assert max(entry.highest for entry in found) < 0.01 and not any(entry.outside for entry in found)
    # Conversions down have no limit; all other walked steps do.
    names = {entry.layer for entry in found}
    assert {"layers.0.attn1.scores", "layers.0.attn1.large", "layers.1.ff", "logits"} <= names
    assert not any(name.endswith(".small") for name in names) and len(names) == 16
    first = cdm.check_ranges(student, FINE, images=8)[0]
    assert first.layer.endswith(".ff") and (first.outside, first.step) == (1.0, None)
    assert first.excess == first.highest - 1 > 5


def test_who_meets_an_overflow_is_told_of_the_bits(student):
    shape = classification_task(student, TEXTS, protocols=cdm.DITTO).shape
    with pytest.raises(cdm.CipherDMError, match=r"check-ranges.*fewer small_bits.*trained with bounds"):
        check_logits(np.float32([[5000, 0]]), shape)
