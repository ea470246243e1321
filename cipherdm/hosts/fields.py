"""Reading a TOML file field by field, so that every wrong, missing or unknown one is named."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CipherDMError

_Kind = TypeVar("_Kind", str, int, float, list)
_REQUIRED = object()
_KINDS = {str: "a text", int: "a whole number", float: "a number", list: "a list"}


class Fields:
    """The fields of one section of a file. Those that nobody reads are unknown, and `finish` says so.

    Args:
        where: how errors name the section, such as "party.toml, [limits]".
        values: the section as `tomllib` reads it.
    """

    def __init__(self, where: str, values: Mapping[str, Any]):
        self._where, self._values = where, values
        self._read: set[str] = set()

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """A text that is not empty."""
        value = self._get(name, str, default)
        if value == "":
            raise self.error(name, "is empty")
        return value

    def whole(self, name: str, default: Any = _REQUIRED, *, least: int = 0) -> int:
        """A whole number of at least `least`."""
        value = self._get(name, int, default)
        if value < least:
            raise self.error(name, f"is {value}, and must be at least {least}")
        return value

    def seconds(self, name: str, default: Any = _REQUIRED) -> float:
        """A number of seconds above 0."""
        value = float(self._get(name, float, default))
        if not 0 < value < float("inf"):
            raise self.error(name, f"is {value:g}, and must be a number of seconds above 0")
        return value

    def texts(self, name: str, default: Any = _REQUIRED, *, count: int | None = None) -> tuple[str, ...]:
        """A list of different texts, `count` of them if that is given."""
        values = self._get(name, list, default)
        if not all(isinstance(value, str) and value for value in values):
            raise self.error(name, "must be a list of texts")
        if count is not None and len(values) != count:
            raise self.error(name, f"has {len(values)} entries instead of {count}")
        if len(set(values)) != len(values):
            raise self.error(name, "names something twice")
        return tuple(values)

    def finish(self) -> None:
        """Raise CipherDMError if there are fields that nobody has asked for."""
        unknown = [name for name in self._values if name not in self._read]
        if unknown:
            raise self.error(unknown[0], f"is unknown; there are {', '.join(sorted(self._read))}")

    def error(self, name: str, what: str) -> CipherDMError:
        """The error for a field."""
        return CipherDMError(f"{self._where}: {name} {what}.")

    def _get(self, name: str, kind: type[_Kind], default: Any) -> _Kind:
        self._read.add(name)
        if name not in self._values:
            if default is _REQUIRED:
                raise self.error(name, f"is missing; give {_KINDS[kind]}")
            return default
        value = self._values[name]
        kinds = (int, float) if kind is float else kind
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self.error(name, f"is {value!r}, and must be {_KINDS[kind]}")
        return value


class TomlFile:
    """A TOML file whose sections are read as `Fields`.

    Raises:
        CipherDMError: there is no such file, or it is not TOML.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._sections = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise CipherDMError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
        except tomllib.TOMLDecodeError as error:
            raise CipherDMError(f"{path} is not TOML: {error}.") from None

    def section(self, name: str, *, required: bool = True) -> Fields:
        """A section; an empty one where it is missing and not `required`."""
        values = self._sections.get(name)
        if values is None and required:
            raise CipherDMError(f"{self.path}: the section [{name}] is missing.")
        if values is not None and not isinstance(values, dict):
            raise CipherDMError(f"{self.path}: {name} must be a section, [{name}].")
        return Fields(f"{self.path}, [{name}]", values or {})

    def check_sections(self, known: tuple[str, ...]) -> None:
        """Raise CipherDMError if there is another section than these."""
        for name in self._sections:
            if name not in known:
                raise CipherDMError(
                    f"{self.path}: the section [{name}] is unknown; there are {', '.join(f'[{k}]' for k in known)}."
                )
