"""A journal keeps finished parts, and refuses those of another run."""

import numpy as np
import pytest

from cipherdm import CipherDMError
from cipherdm_experiments.journal import Journal, kept


def test_finished_parts_are_kept(tmp_path):
    arrays = np.arange(6.0).reshape(2, 3)
    journal = Journal(tmp_path, {"model": "small"})
    assert journal.rows == journal.arrays() == []
    for index, array in enumerate(arrays):
        journal.add({"part": index}, array)
    again = Journal(tmp_path, {"model": "small"})
    assert again.rows == [{"part": 0}, {"part": 1}]
    np.testing.assert_array_equal(again.arrays(), arrays)
    again.add({"part": 2}, arrays[0])
    assert len(Journal(tmp_path, {"model": "small"}).arrays()) == 3


def test_a_journal_of_another_run_is_refused(tmp_path):
    Journal(tmp_path, {"model": "small"}).add({"block": "conv_in", "writes": {}})
    with pytest.raises(CipherDMError, match="of another run, with other weights, inputs or settings"):
        Journal(tmp_path, {"model": "other"})


def test_an_array_is_computed_once(tmp_path):
    path = tmp_path / "folder" / "array.npy"
    assert kept(path, lambda: np.ones(2)).tolist() == kept(path, lambda: 1 / 0).tolist() == [1, 1]
