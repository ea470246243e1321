"""Exception class of the package, and the checks that many functions make."""

from collections.abc import Mapping
from numbers import Integral


class CipherDMError(Exception):
    """Something a user can act on went wrong.

    Every error that this package raises on purpose is of this class. The message names the thing that is wrong and the
    remedy; by the time it is raised nothing is left running and no file is left half written.
    """


def refuse(problems: Mapping[str, object], beginning: str = "", end: str = ".") -> None:
    """Raise CipherDMError with all problems whose value is true, between the beginning and the end of a sentence."""
    if found := [problem for problem, present in problems.items() if present]:
        raise CipherDMError(f"{beginning}{'; '.join(found)}{end}")


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise CipherDMError unless a value is a whole number from `least` to `most`, if there is a largest one."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        extent = f"a whole number from {least} on" if most is None else f"between {least} and {most}, a whole number"
        raise CipherDMError(f"{name} must be {extent}; got {value!r}.")
