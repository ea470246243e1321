"""Write files so that a reader never meets half of one, keep what was compiled, and find the checkout and its data."""

import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from .errors import CipherDMError


def root() -> Path:
    """Return the folder that this package is in: a checkout, or where pip installed a wheel."""
    return Path(__file__).resolve().parent.parent


def checkout() -> Path:
    """Return the checkout that this package runs from. Raises CipherDMError if a wheel was installed."""
    if not (root() / "pyproject.toml").is_file():
        raise CipherDMError(
            "this writes into a checkout, and cipherdm was installed from a wheel: clone its repository, and install the clone "
            "with `pip install -e .`. Models and records are read without one."
        )
    return root()


def data() -> Path:
    """Return the folder of data sets, models and records: the checkout's, or the copy that a wheel brings."""
    return root() / "data" if (root() / "pyproject.toml").is_file() else root() / "cipherdm" / "_data"


def check_writable(path: str | Path, formats: Sequence[str] = ()) -> None:
    """Make sure that `replacing` can write a file, before the work whose result goes there.

    Args:
        path: file to write or to replace. Its folder may be missing: `replacing` makes it.
        formats: suffixes of which the file has to have one; by default any will do.

    Raises:
        CipherDMError: the suffix is another one, the path is that of a folder, or its folder cannot be written to.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.NamedTemporaryFile(prefix=f".{path.stem}-", suffix=path.suffix, dir=folder):
            pass
    except OSError as error:
        remedy = "give the path of a file in a folder that you can write to."
        raise CipherDMError(f"{path} cannot be written ({error.strerror}): {remedy}") from None
    if formats and path.suffix.lower() not in formats:
        raise CipherDMError(f"{path} ends in none of the formats that can be written: {', '.join(formats)}.")


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


MOST_KEPT = 256 * 2**20  # bytes of the user's cache folder, beyond which what was used longest ago goes


def kept(key: bytes, make: Callable[[], bytes]) -> bytes:
    """Return `make()`, or what it returned for this key before, in this process or another one of this user.

    It lies in the user's cache folder, by the hash of the key and of this package's own sources: a changed package makes
    everything anew. A file that is not whole counts as none, and a folder that cannot be written to costs time alone.
    """
    folder = user_cache_path("cipherdm") / "programs"
    path = folder / hashlib.sha256(_sources() + key).hexdigest()
    with suppress(OSError):
        stored = path.read_bytes()
        content = stored[32:]
        if hashlib.sha256(content).digest() == stored[:32]:
            os.utime(path)
            return content
    content = make()
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path, mode=0o600) as temporary:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
        sizes = [(file.stat(), file) for file in folder.iterdir()]
        left = MOST_KEPT
        for stat, file in sorted(sizes, key=lambda each: each[0].st_mtime, reverse=True):
            left -= stat.st_size
            if left < 0:
                file.unlink(missing_ok=True)
    return content


@lru_cache(maxsize=1)
def _sources() -> bytes:
    """Digest of all code of this package, and of the versions of JAX and SPU."""
    digest = hashlib.sha256()
    for name in ("jax", "spu"):
        digest.update(version(name).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.digest()


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
