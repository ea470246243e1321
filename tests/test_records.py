"""Records of the checkout are found by their names."""

import psutil
import pytest

import cipherdm as cdm


def test_a_record_is_found_by_its_name():
    assert cdm.record("activations") == cdm.records.read_record(cdm.records.MEASUREMENTS / "activations.json")


def test_an_unknown_record_is_answered_with_the_names_there_are():
    with pytest.raises(cdm.CipherDMError, match="no record 'activation' in data/measurements: there are activations, "):
        cdm.record("activation")


def test_what_a_system_without_proc_does_not_tell_is_no_number(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "none"))
    cdm.records.write_record(tmp_path / "record.json", {"a": 1})
    record = cdm.records.read_record(tmp_path / "record.json")
    assert record["a"] == 1 and record["environment"]["process_seconds"] is None


def test_a_load_that_is_not_told_is_no_number(monkeypatch):
    def untold():
        raise OSError("Load averages are unobtainable")

    assert cdm.records.load_average() >= 0
    monkeypatch.setattr("os.getloadavg", untold)
    assert cdm.records.load_average() is None
