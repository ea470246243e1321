"""Files are replaced whole, with the permissions that the user's umask leaves; an installation without the checkout says so."""

import os

import pytest

from cipherdm import CipherDMError, files
from cipherdm.files import kept


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


def test_without_a_checkout_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "root", lambda: tmp_path)
    (tmp_path / "data").mkdir()  # of another package that pip installed beside this one
    assert files.data() == tmp_path / "cipherdm" / "_data"
    with pytest.raises(CipherDMError, match="pip install -e"):
        files.checkout()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of kept results, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cipherdm" / "programs"


def test_what_was_made_is_kept_by_its_key(cache):
    made = []
    for key in (b"one", b"two", b"one", b"one"):
        assert kept(key, lambda key=key: made.append(key) or key * 2) == key * 2
    assert made == [b"one", b"two"]
    assert cache.stat().st_mode & 0o777 == 0o700 and len(list(cache.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: content[:40] + b"x" + content[41:], lambda _: b""]
)
def test_a_damaged_file_is_made_anew(cache, damage):
    kept(b"key", lambda: b"the right one")
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert kept(b"key", lambda: b"the right one") == b"the right one"
    assert kept(b"key", lambda: b"another one") == b"the right one"


def test_another_version_of_the_package_makes_its_own(cache, monkeypatch):
    kept(b"key", lambda: b"old")
    monkeypatch.setattr(files, "_sources", lambda: b"changed")
    assert kept(b"key", lambda: b"new") == b"new"


def test_what_was_used_longest_ago_goes(cache, monkeypatch):
    monkeypatch.setattr(files, "MOST_KEPT", 3 * 132)
    for number in range(4):
        kept(bytes([number]), lambda number=number: bytes([number]) * 100)
        kept(bytes([0]), lambda: b"0 was lost")
    made = [kept(bytes([number]), lambda: b"anew") == b"anew" for number in (0, 3, 1)]
    assert made == [False, False, True]


def test_a_folder_that_cannot_be_written_to_does_no_harm(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [kept(b"key", lambda value=value: value) for value in (b"first", b"second")] == [b"first", b"second"]
