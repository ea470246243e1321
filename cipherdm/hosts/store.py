"""Registered models of a party on its disk: manifests, and this party's shares of the owners' values.

    models/REGISTRATION/manifest   the manifest (protobuf)
    models/REGISTRATION/shares     the shares, each piece after its length
    published/NAME.json            the owner of a name, and the registrations that it stands for with the SHA-256 of their files

A registration is written whole before a name stands for it, and what no name stands for is deleted. A name stands for more
than one registration while its owner publishes: clients ask for the newest that all three parties have.
"""

import hashlib
import json
import shutil
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from google.protobuf.message import DecodeError

from ..engine import party_pb2 as engine_pb
from ..errors import CipherDMError
from ..files import replacing, synchronise
from . import host_pb2 as pb
from .config import Limits
from .manifest import check_manifest, checked_shares
from .refusals import Forbidden, TooMuch

_LENGTH = struct.Struct("<Q")
_MODELS, _PUBLISHED = "models", "published"
_MOST_VERSIONS = 3  # of a name: more are left only if parties fail again and again while their owner publishes
_UNPUBLISHED_FOR = 600.0  # seconds after which nobody is going to publish an upload


@dataclass(frozen=True)
class StoredModel:
    """A model that clients can ask for, or its upload."""

    owner: str  # common name
    manifest: pb.Manifest
    folder: Path
    sha256: str = ""  # of the file of shares, empty until that is whole
    since: float = 0.0  # monotonic time at which its upload began

    @cached_property
    def digest(self) -> str:
        """Hash of the whole manifest, the same wherever it is computed."""
        return hashlib.sha256(self.manifest.SerializeToString(deterministic=True)).hexdigest()

    def check(self) -> None:
        """Raise CipherDMError if the shares on the disk are not those that were uploaded."""
        try:
            with (self.folder / "shares").open("rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:
            whole = False
        if not whole:
            raise CipherDMError(f"the shares of {self.manifest.name!r} on the disk have changed; register it again.")

    def pieces(self) -> Iterator[engine_pb.SharePiece]:
        """Read this party's shares of the owner's values, piece by piece."""
        with (self.folder / "shares").open("rb") as file:
            while head := file.read(_LENGTH.size):
                piece = engine_pb.SharePiece()
                piece.ParseFromString(file.read(_LENGTH.unpack(head)[0]))
                yield piece


def read_published(folder: Path, name: str) -> tuple[StoredModel, ...]:
    """Return the models that a name stands for in a party's folder, which is left as it is. The newest comes first.

    Raises:
        CipherDMError: there is none, or one cannot be read.
    """
    path = folder / _PUBLISHED / f"{name}.json"
    try:
        entry = json.loads(path.read_text())
        found = []
        for version in entry["versions"]:
            files = folder / _MODELS / version["registration"]
            manifest = pb.Manifest.FromString((files / "manifest").read_bytes())
            found.append(StoredModel(entry["owner"], manifest, files, version["shares"]))
            if found[-1].digest != version["manifest"] or manifest.name != name:
                raise ValueError("its manifest has changed")
        if not found:
            raise ValueError("it is empty")
        return tuple(found)
    except (OSError, ValueError, LookupError, TypeError, DecodeError) as error:
        raise CipherDMError(
            f"the model that {path} names cannot be read ({error}): register it again, or remove that file."
        ) from None


class ModelStore:
    """All models of a party, in a folder that is made for this user only, within the limits of each owner.

    `aside` has the reason for each name whose model cannot be read. Such a model is not there for callers, and stays on disk.
    """

    def __init__(self, folder: Path, limits: Limits):
        self._models, self._published = folder / _MODELS, folder / _PUBLISHED
        self._limits = limits
        self._lock = threading.Lock()
        self._uploads: dict[str, StoredModel] = {}  # by registration: in hand, or whole and not published
        self._versions: dict[str, tuple[StoredModel, ...]] = {}  # by name, the newest first
        self.aside: dict[str, str] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            for part in (self._models, self._published):
                part.mkdir(exist_ok=True)
            for left in self._published.glob(".*"):  # half written by a process that was killed
                left.unlink()
        except OSError as error:
            raise CipherDMError(f"cannot use the folder {folder}: {error.strerror}.") from None
        for path in sorted(self._published.glob("*.json")):
            try:
                self._versions[path.stem] = read_published(folder, path.stem)
            except CipherDMError as error:
                self.aside[path.stem] = str(error)
        # What was set aside may be mended by hand: nobody knows then which folders are left over.
        if not self.aside:
            self._delete(set(self._models.iterdir()) - {model.folder for model in self.all()})

    def all(self) -> list[StoredModel]:
        """Return the published models in order of their names, the newest of a name first."""
        with self._lock:
            return [model for name in sorted(self._versions) for model in self._versions[name]]

    def get(self, name: str, digest: str = "") -> StoredModel | None:
        """Return the published model of a name that has this digest, or else its newest, or None."""
        with self._lock:
            versions = self._versions.get(name, (None,))
            return next((model for model in versions if model and model.digest == digest), versions[0])

    def stage(self, owner: str, manifest: pb.Manifest, pieces: Iterator[engine_pb.SharePiece]) -> None:
        """Store an owner's upload. Nobody sees it before `publish`; if anything goes wrong nothing is left of it.

        Raises:
            Forbidden: the name belongs to another owner.
            TooMuch: the model is larger than allowed, the owner has too many, or the disk is full.
            CipherDMError: the manifest or a share is wrong.
        """
        check_manifest(manifest)
        registration, name = manifest.registration, manifest.name
        model = StoredModel(owner, manifest, self._models / registration, since=time.monotonic())
        with self._lock:
            self._check_owner(owner, name)
            if registration in self._uploads or model.folder.exists():
                raise CipherDMError("this registration was used before; upload with a new one.")
            # An upload of this owner and name that was never published has failed elsewhere: nobody will need it.
            for other in [upload for upload in self._uploads.values() if upload.sha256]:
                late = model.since - other.since > _UNPUBLISHED_FOR
                if late or (other.owner, other.manifest.name) == (owner, name):
                    del self._uploads[other.manifest.registration]
                    self._delete([other.folder])
            published = {
                versions[0].manifest.name for versions in self._versions.values() if versions[0].owner == owner
            }
            uploads = [upload.manifest.name for upload in self._uploads.values() if upload.owner == owner]
            # Uploads of one name may be in hand more than once, and each takes its own room.
            count = len((published | set(uploads)) - {name}) + uploads.count(name)
            if count >= self._limits.models:
                raise TooMuch(f"{owner} has {count} models already, which is the limit; remove one.")
            self._uploads[registration] = model
        try:
            model.folder.mkdir(mode=0o700)
            sha256 = self._write_shares(model, pieces)
            with replacing(model.folder / "manifest", mode=0o600, durable=True) as temporary:
                temporary.write_bytes(manifest.SerializeToString())
            synchronise(self._models)
        except BaseException as error:
            with self._lock:
                del self._uploads[registration]
            self._delete([model.folder])
            if isinstance(error, OSError):
                raise TooMuch(f"the model cannot be stored: {error.strerror}.") from None
            raise
        with self._lock:
            self._uploads[registration] = replace(model, sha256=sha256)

    def publish(self, owner: str, name: str, registration: str) -> None:
        """Let a name stand for an upload, beside those that it stood for before.

        A second call tells that all three parties have done so. What the name stood for before is then deleted.

        Raises:
            Forbidden: the name belongs to another owner.
            TooMuch: the disk is full.
            CipherDMError: this owner has no such upload.
        """
        with self._lock:
            self._check_owner(owner, name)
            before = self._versions.get(name, ())
            known = [model.manifest.registration for model in before]
            if registration in known:
                versions = before[: known.index(registration) + 1]
            else:
                model = self._uploads.get(registration)
                if model is None or not model.sha256 or (model.owner, model.manifest.name) != (owner, name):
                    raise CipherDMError(f"there is no upload of {name!r} to publish; register it again.")
                versions = (model, *before)[:_MOST_VERSIONS]
            entries = [
                {"registration": model.manifest.registration, "manifest": model.digest, "shares": model.sha256}
                for model in versions
            ]
            try:
                with replacing(self._published / f"{name}.json", mode=0o600, durable=True) as temporary:
                    temporary.write_text(json.dumps({"owner": owner, "versions": entries}))
            except OSError as error:
                raise TooMuch(f"the model cannot be published: {error.strerror}.") from None
            self._uploads.pop(registration, None)
            self._versions[name] = versions
            self.aside.pop(name, None)
        self._delete({model.folder for model in before} - {model.folder for model in versions})

    def remove(self, owner: str, name: str) -> None:
        """Delete a model. Raises Forbidden if it is another owner's, CipherDMError if there is none."""
        with self._lock:
            self._check_owner(owner, name)
            versions = self._versions.pop(name, ())
            if not versions:
                raise CipherDMError(f"there is no model {name!r}.")
            (self._published / f"{name}.json").unlink(missing_ok=True)
            synchronise(self._published)
        self._delete(model.folder for model in versions)

    @staticmethod
    def _delete(folders: Iterable[Path]) -> None:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _write_shares(self, model: StoredModel, pieces: Iterator[engine_pb.SharePiece]) -> str:
        """Write an upload's shares, and return the SHA-256 of their file."""
        size, digest = model.manifest.ByteSize(), hashlib.sha256()
        path = model.folder / "shares"
        path.touch(0o600)
        with path.open("wb") as file:
            for piece in checked_shares(pieces, model.manifest.values):
                data = piece.SerializeToString()
                size += len(data)
                if size > self._limits.model_bytes:
                    raise TooMuch(f"the model is larger than {self._limits.model_bytes} bytes, which is the limit.")
                for part in (_LENGTH.pack(len(data)), data):
                    file.write(part)
                    digest.update(part)
        synchronise(path)
        return digest.hexdigest()

    def _check_owner(self, owner: str, name: str) -> None:
        versions = self._versions.get(name)
        if versions and versions[0].owner != owner:
            raise Forbidden(f"the model {name!r} belongs to another owner.")
