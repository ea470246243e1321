"""What the configurations of both kinds of U-Net are checked for. Errors name the field, its value and what is supported."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import CipherDMError

_TUPLES = ("down_block_types", "up_block_types")


def known_fields(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a `config.json` that the dataclass `kind` has fields for, with tuples for lists."""
    known = {field.name: values[field.name] for field in fields(kind) if field.name in values}
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    for name in _TUPLES:
        if isinstance(known.get(name), tuple):  # an older spelling, which diffusers reads in the same way
            known[name] = tuple(str(block_type).removeprefix("UNetRes") for block_type in known[name])
    return known


def check_choices(values: Mapping[str, Any], choices: Mapping[str, tuple]) -> None:
    """Raise CipherDMError unless each value is one of its choices."""
    for name, supported in choices.items():
        value = values[name]
        if not any(value is choice or (choice is not None and value == choice) for choice in supported):
            raise unsupported(name, value, "one of " + ", ".join(repr(choice) for choice in supported))


def check_block_types(name: str, value: Any, supported: tuple[str, ...]) -> None:
    """Raise CipherDMError unless `value` is a tuple of supported block types."""
    check_tuple(name, value, str, "block types")
    for block_type in value:
        if block_type not in supported:
            raise unsupported(name, block_type, "made of " + ", ".join(supported))


def check_tuple(name: str, value: Any, kind: type, what: str) -> None:
    """Raise CipherDMError unless `value` is a tuple that holds something, all of that type."""
    if not isinstance(value, tuple) or not value or not all(isinstance(entry, kind) for entry in value):
        raise unsupported(name, value, f"a sequence of {what}")


def check_count(name: str, value: Any) -> None:
    """Raise CipherDMError unless `value` is a positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise unsupported(name, value, "a positive whole number")


def check_number(name: str, value: Any, *, zero: bool) -> None:
    """Raise CipherDMError unless `value` is a finite positive number, or zero if `zero` says so."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (value == 0 and not zero):
        raise unsupported(name, value, "a number from 0 on" if zero else "a positive number")


def check_levels(config) -> None:
    """Raise CipherDMError unless the numbers of levels, groups, frequencies and pixels fit together."""
    levels = len(config.block_out_channels)
    for name in ("down_block_types", "up_block_types"):
        if len(getattr(config, name)) != levels:
            raise unsupported(name, getattr(config, name), f"as long as block_out_channels, that is {levels} entries")
    for channels in config.block_out_channels:
        if channels % config.norm_num_groups:
            raise unsupported("norm_num_groups", config.norm_num_groups, f"a divisor of {channels}, a level's channels")
    if not isinstance(config.freq_shift, int | float) or config.freq_shift >= config.block_out_channels[0] // 2:
        raise unsupported("freq_shift", config.freq_shift, "a number below half of block_out_channels[0]")
    if config.sample_size is not None:
        size = config.sample_size if isinstance(config.sample_size, tuple) else (config.sample_size,) * 2
        factor = 2 ** (levels - 1)
        if len(size) != 2 or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 or n % factor for n in size):
            raise unsupported("sample_size", config.sample_size, f"multiples of {factor}, for {levels} levels")


def unsupported(name: str, value: Any, supported: str) -> CipherDMError:
    """The error for a field's value that this package does not compute."""
    return CipherDMError(f"The U-Net's {name} is {value!r}, which is not supported. It must be {supported}.")
