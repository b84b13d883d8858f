"""Readers of JSON values: each takes a value and its dotted path and gives it back checked.

`protocol.py`, `sampling.py`, `messages.py` and `tools.py` are made of these. Errors name the field,
never what stood in it; `null` means absent. Each reader says in JSON Schema what it lets pass,
which `openapi.py` publishes. Knows no field by name.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from litevl.errors import InvalidValueError, UnsupportedParameterError

JSONObject = dict[str, object]
T_co = TypeVar("T_co", covariant=True)


class Reader(Protocol):
    """Takes a value and its dotted path and gives the value back checked."""

    @property
    def schema(self) -> JSONObject:
        """JSON Schema of what passes, as far as it can be told from the value alone."""

    def __call__(self, value: object, param: str, /) -> Any: ...


def refuse(param: str, wanted: str) -> NoReturn:
    """Raise `InvalidValueError`: the field must be what `wanted` says."""
    raise InvalidValueError(f"`{param}` must be {wanted}.", param=param)


def unsupported(param: str, instead: str) -> NoReturn:
    """Raise `UnsupportedParameterError`: litevl knows the field and cannot do what it asks."""
    raise UnsupportedParameterError(f"`{param}` is not supported here: {instead}.", param=param)


@dataclass(frozen=True, slots=True)
class Described(Generic[T_co]):
    """A reading function with the schema of what it lets pass."""

    read: Callable[[object, str], T_co]
    schema: JSONObject

    def __call__(self, value: object, param: str, /) -> T_co:
        return self.read(value, param)


def described(schema: JSONObject) -> Callable[[Callable[[object, str], T_co]], Described[T_co]]:
    """Make a function a `Reader`."""
    return lambda read: Described(read, schema)


@described({"type": "string"})
def text(value: object, param: str) -> str:
    return value if isinstance(value, str) else refuse(param, "a string")


@described({"type": "boolean"})
def flag(value: object, param: str) -> bool:
    return value if isinstance(value, bool) else refuse(param, "true or false")


@described({"type": "object"})
def json_object(value: object, param: str) -> JSONObject:
    return value if isinstance(value, dict) else refuse(param, "an object")


@dataclass(frozen=True, slots=True)
class Number:
    """Reads a number in [low, high], or in (low, high] when `above`."""

    low: float
    high: float
    above: bool = False

    @property
    def schema(self) -> JSONObject:
        least = "exclusiveMinimum" if self.above else "minimum"
        return {"type": "number", least: self.low, "maximum": self.high}

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

    @property
    def schema(self) -> JSONObject:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

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

    @property
    def schema(self) -> JSONObject:
        return {"type": "string", "enum": list(self.words)}

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

    @property
    def schema(self) -> JSONObject:
        limits = {"minItems": self.least, "maxItems": self.most}
        return {"type": "array", "items": self.read.schema, **limits}

    def __call__(self, value: object, param: str) -> tuple[Any, ...]:
        if not isinstance(value, list) or not self.least <= len(value) <= self.most:
            refuse(param, f"a list of {self.least} to {self.most} items")
        return tuple(self.read(each, f"{param}[{i}]") for i, each in enumerate(value))


@dataclass(frozen=True, slots=True)
class ObjectOf:
    """Reads the fields of an object that are present and not null; `required` ones always."""

    fields: Mapping[str, Reader]
    required: tuple[str, ...] = ()

    @property
    def schema(self) -> JSONObject:
        return object_schema(self.fields, self.required)

    def __call__(self, value: object, param: str) -> dict[str, Any]:
        return read_fields(json_object(value, param), self.fields, f"{param}.", self.required)


def read_fields(
    values: Mapping[str, object],
    readers: Mapping[str, Reader],
    prefix: str = "",
    required: Collection[str] = (),
) -> dict[str, Any]:
    """The fields that are present and not null, checked; a `required` one is checked anyway."""
    return {
        name: read(value, prefix + name)
        for name, read in readers.items()
        if (value := values.get(name)) is not None or name in required
    }


def object_schema(fields: Mapping[str, Reader], required: Collection[str] = ()) -> JSONObject:
    """JSON Schema of an object with these fields, of which all but the `required` may be null."""
    schema: JSONObject = {
        "type": "object",
        "properties": {
            name: read.schema if name in required else nullable(read.schema)
            for name, read in fields.items()
        },
    }
    return schema | ({"required": list(required)} if required else {})


def nullable(schema: JSONObject) -> JSONObject:
    """The same, or null."""
    match schema:
        case {"title": _}:  # shared: it stays as it is
            return {"anyOf": [schema, {"type": "null"}]}
        case {"anyOf": [*others]}:
            return schema | {"anyOf": [*others, {"type": "null"}]}
        case {"type": str(kind), "enum": [*words]}:
            return schema | {"type": [kind, "null"], "enum": [*words, None]}
        case {"type": str(kind)}:
            return schema | {"type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def json_text(value: object) -> str:
    """A JSON value as compact text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
