"""Bytes of a request body -> a JSON object, with the two slips of the usage document repaired.

Called by `chat.py`, in a worker thread when the body is large. Knows no field names.

Strict parsing comes first. Where it fails, one pass outside string literals drops an `f` right
before a string (`"url": f"data:..."`) and a comma before a closing brace or bracket; if the result
is not JSON either, the first error stands. The caller tells the client which slips were found.
"""

import json
import re
from dataclasses import dataclass
from typing import NoReturn

from litevl.errors import InvalidJSONError, InvalidValueError

# Possessive, and ends at the end of the text if need be: one look at every byte, whatever is sent.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_SLIP = re.compile(rf'{_STRING}|(?P<f>f(?="))|(?P<comma>,(?=[ \t\r\n]*+[}}\]]))', re.DOTALL)
_BAD_NUMBER = re.compile(rf"{_STRING}|(?P<number>NaN|-?Infinity|[0-9]{{4301}})", re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")

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
        value = json.loads(text, parse_constant=_refuse_constant)
        if _SURROGATE_ESCAPE.search(text):
            # Halves of a pair parse, but can be neither tokenised nor sent back.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        _fail(error.msg, error.lineno, error.colno)
    except UnicodeEncodeError:
        raise InvalidJSONError("The body is not JSON: an escape holds half a character.") from None
    except RecursionError:
        raise InvalidJSONError(
            "The body is not JSON that can be read: nested too deeply."
        ) from None
    except ValueError:
        _fail_at_number(text)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _fail_at_number(text: str) -> NoReturn:
    """NaN, Infinity, or more digits than Python turns into an integer."""
    numbers = (match.start() for match in _BAD_NUMBER.finditer(text) if match["number"])
    at = next(numbers, 0)
    _fail("not a number", text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at))


def _fail(reason: str, line: int, column: int) -> NoReturn:
    raise InvalidJSONError(
        f"The body is not JSON: {reason} at line {line} column {column}."
    ) from None


def _repair(text: str) -> tuple[str, tuple[str, ...]]:
    found = set()

    def drop_slip(match: re.Match[str]) -> str:
        if match.lastgroup is None:
            return match[0]
        found.add(match.lastgroup)
        return ""

    repaired = _SLIP.sub(drop_slip, text)
    return repaired, tuple(name for group, name in SLIP_NAMES.items() if group in found)


def _parse_or(text: str, error: InvalidJSONError) -> object:
    try:
        return _parse_strictly(text)
    except InvalidJSONError:
        raise error from None
