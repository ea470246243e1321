"""Variables that a party keeps in files, because they do not all fit into memory or have to outlive the process.

Each variable has one file, named after it, in a folder that only the party's user can open. A file contains:

    length of the meta data and number of chunks; the meta data; each chunk after its length; SHA-256 of the name and all that

Numbers are unsigned, 64 bits, little-endian. A file appears whole or not at all, so files left by a killed process can be used
by the next one. Nothing is encrypted: a file holds what the party's memory would.
"""

import hashlib
import re
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from spu import libspu

from ..errors import CipherDMError
from ..files import replacing

_NUMBER = struct.Struct("<Q")
_HEAD = struct.Struct("<QQ")
_PREFIX, _SUFFIX = "v-", ".share"
_LONGEST_NAME = 220  # longest file name; `replacing` adds to it


@dataclass(frozen=True)
class StoredShare:
    """Share with the attributes of `libspu.Share`, which would copy its chunks at each access."""

    meta: bytes
    share_chunks: tuple[bytes, ...]

    def loaded(self) -> libspu.Share:
        """Return the share in SPU's own type."""
        share = libspu.Share()
        share.meta, share.share_chunks = self.meta, list(self.share_chunks)
        return share


class VariableFiles:
    """Files of one session at one party, in a folder that is made with the first variable.

    Files that are there already are variables of the session.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        for path in folder.glob(f".{_PREFIX}*{_SUFFIX}"):  # half written by a process that was killed
            path.unlink(missing_ok=True)
        stems = [path.name.removesuffix(_SUFFIX) for path in folder.glob(f"{_PREFIX}*{_SUFFIX}")]
        self._names = {unquote(stem.removeprefix(_PREFIX)) for stem in stems}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def write(self, name: str, share: libspu.Share | StoredShare) -> None:
        """Write a variable, or replace it. Raises CipherDMError if the disk is full or the name is too long for a file."""
        meta, chunks = share.meta, share.share_chunks
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(self._path(name), mode=0o600) as temporary, temporary.open("wb") as file:
                digest = hashlib.sha256(name.encode())
                for part in (_HEAD.pack(len(meta), len(chunks)), meta, *_with_lengths(chunks)):
                    file.write(part)
                    digest.update(part)
                file.write(digest.digest())
        except OSError as error:
            raise CipherDMError(
                f"cannot keep {name!r} in a file of {self._folder}: {error.strerror}. Make room, or choose another folder."
            ) from None
        self._names.add(name)

    def read(self, name: str) -> StoredShare:
        """Read the share of a variable. Raises CipherDMError if its file is gone, was cut off or has changed."""
        digest = hashlib.sha256(name.encode())
        try:
            with self._path(name).open("rb") as file:

                def take(size: int) -> bytes:
                    data = file.read(size)
                    digest.update(data)
                    return data

                length, count = _HEAD.unpack(take(_HEAD.size))
                meta = take(length)
                chunks = tuple(take(*_NUMBER.unpack(take(_NUMBER.size))) for _ in range(count))
                whole = file.read() == digest.digest()
        except (OSError, struct.error, MemoryError, OverflowError) as error:  # the last two: of a length that is wrong
            raise CipherDMError(f"the file of {name!r} cannot be read ({error}); share the variable again.") from None
        if not whole:
            raise CipherDMError(f"the file of {name!r} is not as it was written; share the variable again.")
        return StoredShare(meta, chunks)

    def delete(self, name: str) -> None:
        """Delete a variable, if it exists."""
        if name in self._names:
            self._path(name).unlink(missing_ok=True)
            self._names.discard(name)

    def clear(self) -> None:
        """Delete all variables, and the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._names.clear()

    def _path(self, name: str) -> Path:
        encoded = quote(name, safe="")
        if len(encoded) > _LONGEST_NAME:
            raise CipherDMError(f"the variable {name!r} has too long a name for a file; shorten it.")
        return self._folder / f"{_PREFIX}{encoded}{_SUFFIX}"


def _with_lengths(chunks: Sequence[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield _NUMBER.pack(len(chunk))
        yield chunk


def check_folder_name(name: str) -> None:
    """Raise CipherDMError unless this is a valid name for the folder of a session's files."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise CipherDMError(
            f"{name!r} is no name for a session's files: take letters, digits, '_' and '-', at most 64."
        )
