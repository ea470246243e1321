"""TOML files read field by field, so that an error names every wrong, missing or unknown field."""

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..errors import CipherDMError

_REQUIRED = object()
_KINDS = {str: "a text", int: "a whole number", float: "a number", list: "a list", bool: "true or false"}


class Fields:
    """The fields of one section of a file. As a context manager it refuses fields that the block has not read.

    `where` names the section in errors, such as "party.toml, [limits]".
    """

    def __init__(self, where: str, values: Mapping[str, Any]):
        self._where, self._values = where, values
        self._read: set[str] = set()

    def __enter__(self) -> "Fields":
        return self

    def __exit__(self, kind: type | None, *exception) -> None:
        unknown = [name for name in self._values if name not in self._read]
        if unknown and kind is None:
            raise self.error(unknown[0], f"is unknown; there are {', '.join(sorted(self._read))}")

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        """Return a text that is not empty."""
        value = self._get(name, str, default)
        if value == "":
            raise self.error(name, "is empty")
        return value

    def whole(self, name: str, default: Any = _REQUIRED, *, least: int = 0) -> int:
        """Return a whole number of at least `least`."""
        value = self._get(name, int, default)
        if value is not None and value < least:
            raise self.error(name, f"is {value}, and must be at least {least}")
        return value

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """Return true or false."""
        return self._get(name, bool, default)

    def seconds(self, name: str, default: Any = _REQUIRED) -> float:
        """Return a number of seconds above 0."""
        return self.above_zero(name, default, "a number of seconds")

    def above_zero(self, name: str, default: Any = _REQUIRED, what: str = "a number") -> float:
        """Return a finite number above 0."""
        value = float(self._get(name, float, default))
        if not 0 < value < float("inf"):
            raise self.error(name, f"is {value:g}, and must be {what} above 0")
        return value

    def texts(self, name: str, default: Any = _REQUIRED, *, count: int | None = None) -> tuple[str, ...]:
        """Return a list of distinct texts, exactly `count` of them if that is given."""
        values = self._get(name, list, default)
        if not all(isinstance(value, str) and value for value in values):
            raise self.error(name, "must be a list of texts")
        if count is not None and len(values) != count:
            raise self.error(name, f"has {len(values)} entries instead of {count}")
        if len(set(values)) != len(values):
            raise self.error(name, "names something twice")
        return tuple(values)

    def only(self, name: str, supported: str | int) -> None:
        """Raise CipherDMError if the field is there and has another value than the one that is supported."""
        value = self._get(name, type(supported), supported)
        if value != supported:
            raise self.error(name, f"is {value}; only {supported} is supported")

    def error(self, name: str, problem: str) -> CipherDMError:
        """Return the error for a field."""
        return CipherDMError(f"{self._where}: {name} {problem}.")

    def _get(self, name: str, kind: type, default: Any) -> Any:
        self._read.add(name)
        if name not in self._values:
            if default is _REQUIRED:
                raise self.error(name, f"is missing; give {_KINDS[kind]}")
            return default
        value = self._values[name]
        kinds = (int, float) if kind is float else kind
        if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
            raise self.error(name, f"is {value!r}, and must be {_KINDS[kind]}")
        return value


def read_sections(path: Path, known: Collection[str], optional: Collection[str]) -> dict[str, Fields]:
    """Read the sections of a TOML file, by name; those that are optional and missing are empty.

    Raises:
        CipherDMError: there is no such file, it is not TOML, or a section is unknown or missing.
    """
    try:
        sections = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise CipherDMError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise CipherDMError(f"{path} is not TOML: {error}.") from None
    for name, values in sections.items():
        if name not in known:
            there = ", ".join(f"[{section}]" for section in known)
            raise CipherDMError(f"{path}: the section [{name}] is unknown; there are {there}.")
        if not isinstance(values, dict):
            raise CipherDMError(f"{path}: {name} must be a section, [{name}].")
    for name in known:
        if name not in sections and name not in optional:
            raise CipherDMError(f"{path}: the section [{name}] is missing.")
    return {name: Fields(f"{path}, [{name}]", sections.get(name, {})) for name in known}
