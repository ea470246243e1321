"""Files are replaced whole, with the permissions that the user's umask leaves; an installation without the checkout says so."""

import os

import pytest

from cipherdm import CipherDMError, files, record
from cipherdm.models import find_model


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o007, 0o660)])
def test_the_umask_is_honoured(tmp_path, umask, mask, mode):
    umask(mask)
    path = tmp_path / "record.json"
    for text in ("first", "second"):
        with files.replacing(path) as temporary:
            assert temporary.suffix == ".json"
            temporary.write_text(text)
        assert path.read_text() == text and path.stat().st_mode & 0o777 == mode
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("first")
    with pytest.raises(ValueError, match="no"), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError("no")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_without_the_checkout_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "root", lambda: tmp_path)
    for action in (lambda: find_model("mnist10"), lambda: record("linear")):
        with pytest.raises(CipherDMError, match="pip install -e"):
            action()
    assert find_model(tmp_path) == tmp_path
