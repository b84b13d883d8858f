"""Bytes of a request body -> a JSON object, with the two slips of the usage document repaired.

Called by `exchange.py`, in a worker thread when the body is large, and by `messages.py` for the
arguments of earlier calls. Knows no field names.

Python parses JSON without a pause for other threads: every stream would stand still meanwhile. So
long plain strings, as pictures are, are read piece by piece first and put back afterwards, and how
much else a body may hold is bounded.

Strict parsing comes first. Where it fails, one pass outside string literals drops an `f` right
before a string (`"url": f"data:..."`) and a comma before a closing brace or bracket; if the result
is not JSON either, the first error stands. The caller tells the client which slips were found.
"""

import json
import math
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from litevl.errors import InvalidJSONError, InvalidValueError

MAX_DEPTH = 128  # beyond any schema that people write, and far from where recursion ends
MAX_QUOTES = 200_000  # where the repair gives up: bodies are large by pictures, not their count
# What the parser may do without a pause, some 30 ms each:
MAX_CONTAINERS = 50_000
MAX_NAMES = 100_000  # of members of objects
MAX_MEMBERS = 1_000_000  # numbers: a list of all tokens of the longest contexts
MAX_ESCAPES = 2_000_000  # the longest contexts in `\u` escapes
MAX_REST = 24 * 2**20  # bytes of all that is no long plain string: text, numbers, space
MAX_DIGITS = 309  # of an integer, as of a float: the time that they take grows with their square
LONG = 4096  # bytes of a string that is lifted out
PIECE = 2**16  # bytes that are looked at in one go

_COMMA = re.compile(r",(?=[ \t\r\n]*+[}\]])")
_BAD_NUMBER = re.compile(r"NaN|-?Infinity|-?[0-9]{310}|-?[0-9.]+[eE]\+?[0-9]{3}")
_WORD = re.compile("s[0-9a-f]{32}[0-9]+")  # what stands for a string that was lifted out
_NAME = re.compile(rb'"[ \t\r\n]*+:')
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
    text = _Text.lifted_from(body)
    slips: tuple[str, ...] = ()
    try:
        value = _parse_strictly(text)
    except InvalidJSONError as error:
        repaired, slips = _repair(text.text)
        if not slips:
            raise
        value = _parse_or(replace(text, text=repaired), error)
    if not isinstance(value, dict):
        raise InvalidValueError("The body must be a JSON object, such as {...}.")
    return JSONBody(value, slips)


@dataclass(frozen=True, slots=True)
class _Text:
    """A body without its long strings: words that nobody can guess stand for them."""

    text: str
    strings: dict[str, str]
    lengths: dict[str, int]  # in the body

    @classmethod
    def lifted_from(cls, body: bytes) -> "_Text":
        strings: dict[str, str] = {}
        lengths: dict[str, int] = {}
        pieces, copied, secret = [], 0, secrets.token_hex(16)
        for start, end, string in _long_strings(body):
            word = f"s{secret}{len(strings)}"
            strings[word], lengths[word] = string, end - start
            pieces += [body[copied:start], word.encode()]
            copied = end
        rest = b"".join([*pieces, body[copied:]])
        if _holds_too_much(rest):
            raise InvalidJSONError(
                "The body is not JSON that can be read: it holds too many values or escapes, or "
                f"more than {MAX_REST >> 20} MiB beside long strings of plain ASCII."
            )
        try:
            return cls(rest.decode("utf-8-sig"), strings, lengths)
        except UnicodeDecodeError as error:
            cls(rest.decode("latin-1"), strings, lengths).fail("not UTF-8", error.start)

    def fail(self, reason: str, at: int) -> NoReturn:
        """Tell line and column of the body itself."""
        start = self.text.rfind("\n", 0, at) + 1
        line = self.text[start:at]
        words = (word for word in _WORD.findall(line) if word in self.lengths)
        lifted = sum(self.lengths[word] - len(word) for word in words)
        raise InvalidJSONError(
            f"The body is not JSON: {reason} at line {self.text.count(chr(10), 0, at) + 1} "
            f"column {at - start + lifted + 1}."
        ) from None

    def restore(self, value: object) -> object:
        """A member, with the strings in it as they were; objects have been seen to already."""
        if isinstance(value, str):
            return self.strings.get(value, value)
        if isinstance(value, list):
            value[:] = map(self.restore, value)
        return value

    def to_object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        """Readers differ in which of two members with one name they take: there may be none."""
        if self.strings:
            pairs = [(self.strings.get(name, name), self.restore(each)) for name, each in pairs]
        value = dict(pairs)
        if len(value) < len(pairs):
            raise InvalidJSONError(
                "The body is not JSON that can be read: an object holds one name twice."
            )
        return value


def _holds_too_much(body: bytes) -> bool:
    """What stands in strings counts as well, or each would have to be looked for."""
    return (
        len(body) > MAX_REST
        or body.count(b"[") + body.count(b"{") > MAX_CONTAINERS
        or body.count(b",") > MAX_MEMBERS
        or body.count(b"\\") > MAX_ESCAPES
        or (body.count(b":") > MAX_NAMES and len(_NAME.findall(body)) > MAX_NAMES)
    )


def _long_strings(body: bytes) -> Iterator[tuple[int, int, str]]:
    """Where long plain strings begin and end, and what they say.

    What stands between two quotes and begins with a letter can be nothing else if a body is JSON.
    """
    at = 0
    while at + LONG <= len(body):
        if (quote := body.rfind(b'"', at, at + LONG)) >= 0:
            at = quote + 1
            continue
        end = body.find(b'"', at)
        if end < 0:
            return
        if at > 1 and body[at - 2 : at] != b'\\"' and (string := _plain(body, at, end)):
            yield at, end, string
        at = end + 1


def _plain(body: bytes, start: int, end: int) -> str:
    """A string of printable ASCII, a letter or digit first, and no escape but of one letter (`\\/`
    and `\\n` are usual in base64); "" for any other."""
    if not body[start : start + 1].isalnum():
        return ""
    found = []
    while start < end:
        piece = body[start : min(start + PIECE, end)]
        if (len(piece) - len(piece.rstrip(b"\\"))) % 2:  # an escape goes on behind it
            piece = body[start : start + len(piece) + 1]
        start += len(piece)
        text = piece.decode("latin-1")
        is_plain = start <= end and text.isascii() and text.isprintable()
        if not is_plain or not (said := _unescaped(text)):
            return ""
        found.append(said)
    return "".join(found)


def _unescaped(piece: str) -> str:
    """What a piece of a string says; "" where it holds another escape than of one letter."""
    if "\\" not in piece:
        return piece
    try:
        return "" if "\\u" in piece else str(json.loads(f'"{piece}"'))
    except ValueError:
        return ""


def _parse_strictly(body: _Text) -> object:
    text = body.text
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
            object_pairs_hook=body.to_object,
        )
        if _SURROGATE_ESCAPE.search(text):
            # Halves of a pair parse, but can be neither tokenised nor sent back.
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        body.fail(error.msg, error.pos)
    except UnicodeEncodeError:
        raise InvalidJSONError("The body is not JSON: an escape holds half a character.") from None
    except RecursionError:
        raise InvalidJSONError(_TOO_DEEP) from None
    except ValueError:
        _fail_at_number(body)
    if _is_too_deep(value):
        raise InvalidJSONError(_TOO_DEEP)
    return value


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError(text)
    return value


def _integer(text: str) -> int:
    if len(text.removeprefix("-")) > MAX_DIGITS:
        raise ValueError(text)
    return int(text)


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


def _fail_at_number(body: _Text) -> NoReturn:
    """NaN, Infinity, or more than Python turns into a number."""
    found = ((at, _BAD_NUMBER.search(outside)) for at, outside, _ in _stretches(body.text))
    body.fail("not a number", next((at + match.start() for at, match in found if match), 0))


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


def _parse_or(text: _Text, error: InvalidJSONError) -> object:
    try:
        return _parse_strictly(text)
    except InvalidJSONError:
        raise error from None
