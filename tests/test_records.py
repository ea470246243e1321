"""Records of the checkout are found by their names."""

import pytest

import cipherdm as cdm


def test_a_record_is_found_by_its_name():
    assert cdm.record("activations") == cdm.records.read_record(cdm.records.MEASUREMENTS / "activations.json")


def test_an_unknown_record_is_answered_with_the_names_there_are():
    with pytest.raises(cdm.CipherDMError, match="no record 'activation' in data/measurements: there are activations, "):
        cdm.record("activation")
