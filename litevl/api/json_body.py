"""Bytes of a request body -> a JSON object, with the two slips of the usage document repaired.

Called by `chat.py`, in a worker thread when the body is large. Knows no field names.

Strict parsing comes first. Where it fails, one pass outside string literals drops an `f` right
before a string (`"url": f"data:..."`) and a comma before a closing brace or bracket; if the result
is not JSON either, the first error stands. The caller tells the client which slips were found.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from litevl.errors import InvalidJSONError, InvalidValueError

MAX_DEPTH = 128  # beyond any schema that people write, and far from where recursion ends
MAX_QUOTES = (
    200_000  # where the repair gives up: bodies are large by their pictures, not their count
)

_COMMA = re.compile(r",(?=[ \t\r\n]*+[}\]])")
_BAD_NUMBER = re.compile(r"NaN|-?Infinity|[0-9]{4301}|-?[0-9.]+[eE]\+?[0-9]{3}")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

_TOO_DEEP = "The body is not JSON that can be read: nested too deeply."

SLIP_NAMES = {"f": "f-string", "comma": "trailing-comma"}  # in the order of the response header


@dataclass(frozen=True, slots=True)
class JSONBody:
    """A parsed body, and the names of the slips that were repaired in it."""

    value: dict[str, object]
    slips: tuple[str, ...] = ()


def parse_json(body: bytes) -> JSONBody:
    """`InvalidJSONError` with line and column; `InvalidValueError` if it is no object."""
    text = _decode(body)
    slips: tuple[str, ...] = ()
    try:
        value = _parse_strictly(text)
    except InvalidJSONError as error:
        repaired, slips = _repair(text)
        if not slips:
            raise
        value = _parse_or(repaired, error)
    if not isinstance(value, dict):
        raise InvalidValueError("The body must be a JSON object, such as {...}.")
    return JSONBody(value, slips)


def _decode(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        column = error.start - body.rfind(b"\n", 0, error.start)
        _fail("not UTF-8", line, column)


def _parse_strictly(text: str) -> object:
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_without_twins,
        )
        if _SURROGATE_ESCAPE.search(text):
            # Halves of a pair parse, but can be neither tokenised nor sent back.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        _fail(error.msg, error.lineno, error.colno)
    except UnicodeEncodeError:
        raise InvalidJSONError("The body is not JSON: an escape holds half a character.") from None
    except RecursionError:
        raise InvalidJSONError(_TOO_DEEP) from None
    except ValueError:
        _fail_at_number(text)
    if _is_too_deep(value):
        raise InvalidJSONError(_TOO_DEEP)
    return value


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object; readers differ in which of two members with one name they take."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise InvalidJSONError(
            "The body is not JSON that can be read: an object holds one name twice."
        )
    return value


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = (
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        )
        level = [
            each for members in containers for each in members if isinstance(each, dict | list)
        ]
        if not level:
            return False
    return True


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _fail_at_number(text: str) -> NoReturn:
    """NaN, Infinity, or more than Python turns into a number."""
    found = ((at, _BAD_NUMBER.search(outside)) for at, outside, _ in _stretches(text))
    at = next((at + match.start() for at, match in found if match), 0)
    _fail("not a number", text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at))


def _fail(reason: str, line: int, column: int) -> NoReturn:
    raise InvalidJSONError(
        f"The body is not JSON: {reason} at line {line} column {column}."
    ) from None


def _repair(text: str) -> tuple[str, tuple[str, ...]]:
    if text.count('"') > MAX_QUOTES:
        return text, ()
    found, pieces = set(), []
    for _, outside, string in _stretches(text):
        if string and outside.endswith("f"):
            outside = outside[:-1]
            found.add("f")
        outside, num_commas = _COMMA.subn("", outside)
        if num_commas:
            found.add("comma")
        pieces += [outside, string]
    return "".join(pieces), tuple(name for slip, name in SLIP_NAMES.items() if slip in found)


def _stretches(text: str) -> Iterator[tuple[int, str, str]]:
    """Where it begins, what stands outside of strings, and the string after it, to the end.

    Strings are skipped by `find`, not matched: a picture's is so long that a pattern would keep the
    interpreter, and so every other client, for a tenth of a second.
    """
    at = 0
    while at < len(text):
        start = text.find('"', at)
        if start < 0:
            yield at, text[at:], ""
            return
        end = _end_of_string(text, start)
        yield at, text[at:start], text[start:end]
        at = end


def _end_of_string(text: str, quote: int) -> int:
    """Behind the quote that closes the one at `quote`, or the end of the text."""
    while (closing := text.find('"', quote + 1)) >= 0:
        piece = text[quote + 1 : closing]
        if (len(piece) - len(piece.rstrip("\\"))) % 2 == 0:
            return closing + 1
        quote = closing
    return len(text)


def _parse_or(text: str, error: InvalidJSONError) -> object:
    try:
        return _parse_strictly(text)
    except InvalidJSONError:
        raise error from None
