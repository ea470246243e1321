"""Write files so that a reader never meets half of one, and find the checkout."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def root() -> Path:
    """Return the checkout that this package runs from."""
    return Path(__file__).resolve().parent.parent


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it onto `path` once the block ends well.

    The temporary file keeps the suffix, because writers such as matplotlib choose a format by it. If the block raises,
    the temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp makes it private to the user
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def private_folder() -> tempfile.TemporaryDirectory:
    """Make a folder for this user only, whose path is short enough for sockets: they have about a hundred characters."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) < 70 else "/tmp"
    return tempfile.TemporaryDirectory(prefix="cipherdm-", dir=parent, ignore_cleanup_errors=True)
