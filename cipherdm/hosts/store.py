"""Registered models of a party on its disk: manifests, and this party's shares of the owners' values.

    models/REGISTRATION/manifest   the manifest (protobuf)
    models/REGISTRATION/shares     the shares, each piece after its length
    published/NAME.json            the registration that a name stands for, and its owner

A registration is written whole before a name stands for it, and what no name stands for is deleted.
"""

import hashlib
import json
import os
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError

from ..engine import party_pb2 as engine_pb
from ..errors import CipherDMError
from ..files import replacing
from . import host_pb2 as pb
from .config import Limits
from .manifest import check_manifest, checked_shares
from .refusals import Forbidden, TooMuch

_LENGTH = struct.Struct("<Q")
_MODELS, _PUBLISHED = "models", "published"


@dataclass(frozen=True)
class StoredModel:
    """A model that clients can ask for: its owner's common name, its manifest, and the folder of its files."""

    owner: str
    manifest: pb.Manifest
    folder: Path

    @cached_property
    def digest(self) -> str:
        """Hash of the whole manifest, the same wherever it is computed."""
        return hashlib.sha256(self.manifest.SerializeToString(deterministic=True)).hexdigest()

    def pieces(self) -> Iterator[engine_pb.SharePiece]:
        """Read this party's shares of the owner's values, piece by piece."""
        with (self.folder / "shares").open("rb") as file:
            while head := file.read(_LENGTH.size):
                piece = engine_pb.SharePiece()
                piece.ParseFromString(file.read(_LENGTH.unpack(head)[0]))
                yield piece


def read_published(folder: Path, name: str) -> StoredModel:
    """Return the model that a name stands for in a party's folder, which is left as it is.

    Raises:
        CipherDMError: there is none, or it cannot be read.
    """
    path = folder / _PUBLISHED / f"{name}.json"
    try:
        entry = json.loads(path.read_text())
        models = folder / _MODELS / entry["registration"]
        manifest = pb.Manifest.FromString((models / "manifest").read_bytes())
        return StoredModel(entry["owner"], manifest, models)
    except (OSError, ValueError, KeyError, DecodeError) as error:
        raise CipherDMError(f"the model that {path} names cannot be read ({error}); remove that file.") from None


class ModelStore:
    """All models of a party, in a folder that is made for this user only, within the limits of each owner."""

    def __init__(self, folder: Path, limits: Limits):
        self._models, self._published = folder / _MODELS, folder / _PUBLISHED
        self._limits = limits
        self._lock = threading.Lock()
        self._staged: dict[str, StoredModel] = {}  # by registration
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            for part in (self._models, self._published):
                part.mkdir(exist_ok=True)
        except OSError as error:
            raise CipherDMError(f"cannot use the folder {folder}: {error.strerror}.") from None
        self._current = {
            path.stem: read_published(folder, path.stem) for path in sorted(self._published.glob("*.json"))
        }
        for left in set(self._models.iterdir()) - {model.folder for model in self._current.values()}:
            shutil.rmtree(left, ignore_errors=True)

    def all(self) -> list[StoredModel]:
        """Return the published models in order of their names."""
        with self._lock:
            return [self._current[name] for name in sorted(self._current)]

    def get(self, name: str) -> StoredModel | None:
        """Return the published model of this name, or None."""
        with self._lock:
            return self._current.get(name)

    def stage(self, owner: str, manifest: pb.Manifest, pieces: Iterator[engine_pb.SharePiece]) -> None:
        """Store an owner's upload. Nobody sees it before `publish`; if anything goes wrong nothing is left of it.

        Raises:
            Forbidden: the name belongs to another owner.
            TooMuch: the model is larger than allowed, the owner has too many, or the disk is full.
            CipherDMError: the manifest or a share is wrong.
        """
        check_manifest(manifest)
        with self._lock:
            self._check_owner(owner, manifest.name)
            models = (*self._current.values(), *self._staged.values())
            others = {model.manifest.name for model in models if model.owner == owner} - {manifest.name}
            if len(others) >= self._limits.models:
                raise TooMuch(f"{owner} has {len(others)} models already, which is the limit; remove one.")
            if manifest.registration in self._staged or (self._models / manifest.registration).exists():
                raise CipherDMError("this registration was used before; upload with a new one.")
            # An upload of this owner and name that was never published has failed elsewhere: nobody will need it.
            for other in [m for m in self._staged.values() if (m.owner, m.manifest.name) == (owner, manifest.name)]:
                del self._staged[other.manifest.registration]
                shutil.rmtree(other.folder, ignore_errors=True)
        model = StoredModel(owner, manifest, self._models / manifest.registration)
        try:
            model.folder.mkdir(mode=0o700)
            with (model.folder / "shares").open("wb") as file:
                self._write_shares(file, model, pieces)
                file.flush()
                os.fsync(file.fileno())
            (model.folder / "manifest").write_bytes(manifest.SerializeToString())
        except BaseException as error:
            shutil.rmtree(model.folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise TooMuch(f"the model cannot be stored: {error.strerror}.") from None
            raise
        with self._lock:
            self._staged[manifest.registration] = model

    def publish(self, owner: str, name: str, registration: str) -> None:
        """Let a name stand for a staged upload; the model that it stood for before is deleted.

        Raises:
            Forbidden: the name belongs to another owner.
            TooMuch: the disk is full.
            CipherDMError: this owner has no such upload.
        """
        with self._lock:
            self._check_owner(owner, name)
            model = self._staged.get(registration)
            if model is None or (model.owner, model.manifest.name) != (owner, name):
                raise CipherDMError(f"there is no upload of {name!r} to publish; register it again.")
            try:
                with replacing(self._published / f"{name}.json") as temporary:
                    temporary.write_text(json.dumps({"owner": owner, "registration": registration}))
            except OSError as error:
                raise TooMuch(f"the model cannot be published: {error.strerror}.") from None
            del self._staged[registration]
            before, self._current[name] = self._current.get(name), model
        if before is not None:
            shutil.rmtree(before.folder, ignore_errors=True)

    def remove(self, owner: str, name: str) -> None:
        """Delete a model. Raises Forbidden if it is another owner's, CipherDMError if there is none."""
        with self._lock:
            self._check_owner(owner, name)
            model = self._current.pop(name, None)
            if model is None:
                raise CipherDMError(f"there is no model {name!r}.")
            (self._published / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(model.folder, ignore_errors=True)

    def _write_shares(self, file: BinaryIO, model: StoredModel, pieces: Iterator[engine_pb.SharePiece]) -> None:
        size = model.manifest.ByteSize()
        for piece in checked_shares(pieces, model.manifest.values):
            data = piece.SerializeToString()
            size += len(data)
            if size > self._limits.model_bytes:
                raise TooMuch(f"the model is larger than {self._limits.model_bytes} bytes, which is the limit.")
            file.write(_LENGTH.pack(len(data)))
            file.write(data)

    def _check_owner(self, owner: str, name: str) -> None:
        model = self._current.get(name)
        if model is not None and model.owner != owner:
            raise Forbidden(f"the model {name!r} belongs to another owner.")
