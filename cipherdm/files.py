"""Write files so that a reader never meets half of one, and find the checkout."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CipherDMError


def root() -> Path:
    """Return the checkout that this package runs from."""
    return Path(__file__).resolve().parent.parent


def checkout() -> Path:
    """Return `root`. Raises CipherDMError if this package was installed without the models and records beside it."""
    if not (root() / "data").is_dir():
        raise CipherDMError(
            "cipherdm is installed without its models and records, which are in its repository: clone that, and install the "
            "clone with `pip install -e .`. Folders of your own are given by their paths."
        )
    return root()


@contextmanager
def replacing(path: str | Path, *, mode: int = 0o666, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move it onto `path` once the block ends well.

    The temporary file keeps the suffix, because writers such as matplotlib choose a format by it. If the block raises,
    the temporary file is removed and `path` stays as it was.

    Args:
        path: file to write or to replace.
        mode: permissions of the file, of which the user's umask takes away.
        durable: whether the file has to outlast a power cut from then on.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    try:
        yield temporary
        if durable:
            synchronise(temporary)
        os.replace(temporary, path)
        if durable:
            synchronise(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def synchronise(path: Path) -> None:
    """Return once the disk has a file's contents, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def private_folder() -> tempfile.TemporaryDirectory:
    """Make a folder for this user only, whose path is short enough for sockets: they have about a hundred characters."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) < 70 else "/tmp"
    return tempfile.TemporaryDirectory(prefix="cipherdm-", dir=parent, ignore_cleanup_errors=True)
