"""Readers of JSON values: each takes a value and its dotted path and gives it back checked.

`protocol.py`, `messages.py` and `tools.py` are made of these. Errors name the field, never what
stood in it; `null` means absent. Knows no field by name.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from litevl.errors import InvalidValueError, UnsupportedParameterError

Reader = Callable[[object, str], Any]  # value and dotted path -> checked value
JSONObject = dict[str, object]


def refuse(param: str, wanted: str) -> NoReturn:
    """Raise `InvalidValueError`: the field must be what `wanted` says."""
    raise InvalidValueError(f"`{param}` must be {wanted}.", param=param)


def unsupported(param: str, instead: str) -> NoReturn:
    """Raise `UnsupportedParameterError`: litevl knows the field and cannot do what it asks."""
    raise UnsupportedParameterError(f"`{param}` is not supported here: {instead}.", param=param)


def text(value: object, param: str) -> str:
    return value if isinstance(value, str) else refuse(param, "a string")


def flag(value: object, param: str) -> bool:
    return value if isinstance(value, bool) else refuse(param, "true or false")


def json_object(value: object, param: str) -> JSONObject:
    return value if isinstance(value, dict) else refuse(param, "an object")


@dataclass(frozen=True, slots=True)
class Number:
    """Reads a number in [low, high], or in (low, high] when `above`."""

    low: float
    high: float
    above: bool = False

    def __call__(self, value: object, param: str) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            is_too_low = value <= self.low if self.above else value < self.low
            if not is_too_low and value <= self.high:  # NaN fails here
                return float(value)
        refuse(param, f"a number {'above' if self.above else 'from'} {self.low} up to {self.high}")


@dataclass(frozen=True, slots=True)
class Integer:
    """Reads an integer in [low, high]; one that is written as `16.0` is one, too."""

    low: int
    high: int

    def __call__(self, value: object, param: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        ):
            return value
        refuse(param, f"an integer from {self.low} up to {self.high}")


@dataclass(frozen=True, slots=True)
class OneOf:
    """Reads one of some words."""

    words: tuple[str, ...]

    def __call__(self, value: object, param: str) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        refuse(param, "one of " + ", ".join(self.words))


@dataclass(frozen=True, slots=True)
class ListOf:
    """Reads a list of least to most items, each by `read`."""

    read: Reader
    most: int
    least: int = 0

    def __call__(self, value: object, param: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            refuse(param, f"a list of {self.least} to {self.most} items")
        return tuple(self.read(each, f"{param}[{i}]") for i, each in enumerate(value))


def read_fields(
    values: Mapping[str, object], readers: Mapping[str, Reader], prefix: str = ""
) -> dict[str, Any]:
    """The fields that are present and not null, checked."""
    present = ((name, values.get(name), read) for name, read in readers.items())
    return {name: read(value, prefix + name) for name, value, read in present if value is not None}


def json_text(value: object) -> str:
    """A JSON value as compact text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
