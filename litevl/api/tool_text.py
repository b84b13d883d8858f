"""Text that arrives in pieces, and the two notations of tool calls in it: JSON and Qwen's XML.

`answer.py` alone uses it. The `Reads` coroutines wait by yielding until the text decides; they
never look further than they must. Knows no channels and nothing of what is sent.
"""

import json
import re
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from litevl.sequence import Tool

FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"

T = TypeVar("T")
Reads = Generator[None, None, T]  # yields where it needs more text

_RUN = re.compile(r"(?s:.)[^<\n]*")  # what can be taken at once where a tag may follow


class Text:
    """The text that has come and was not yet taken."""

    def __init__(self) -> None:
        self._rest = ""
        self._at = 0  # where in `_rest` the reader stands
        self._is_ended = False
        self._record: list[str] | None = None

    def add(self, text: str) -> None:
        self._rest = self._rest[self._at :] + text
        self._at = 0

    def end(self) -> None:
        self._is_ended = True

    def record(self, before: str) -> None:
        """From here on keep what is taken, after `before`."""
        self._record = [before]

    def recorded(self) -> str:
        """What was kept; no more is."""
        text = "".join(self._record or ())
        self._record = None
        return text

    # Without waiting -----------------------------------------------------------------------------

    def take(self, length: int = 1) -> str:
        taken = self._rest[self._at : self._at + length]
        self._at += len(taken)
        if self._record is not None:
            self._record.append(taken)
        return taken

    def take_all(self) -> str:
        return self.take(len(self._rest) - self._at)

    def take_run(self) -> str:
        """One character, and those after it that begin neither a tag nor a line."""
        found = _RUN.match(self._rest, self._at)
        return self.take(found.end() - self._at) if found else ""

    # Waiting -------------------------------------------------------------------------------------

    def peek(self) -> Reads[str]:
        """The next character, not taken; "" at the end."""
        while self._at == len(self._rest) and not self._is_ended:
            yield
        return self._rest[self._at : self._at + 1]

    def sees(self, tags: tuple[str, ...]) -> Reads[str]:
        """Which of the tags comes next, not taken; "" if none."""
        while True:
            for tag in tags:
                if self._rest.startswith(tag, self._at):
                    return tag
            rest = self._rest[self._at : self._at + max(map(len, tags), default=0)]
            if self._is_ended or not any(tag.startswith(rest) for tag in tags):
                return ""
            yield

    def match(self, tags: tuple[str, ...]) -> Reads[str]:
        """Take one of the tags if it comes next; else "", and nothing is taken."""
        tag = yield from self.sees(tags)
        self.take(len(tag))
        return tag

    def skip(self, characters: str = "") -> Reads[str]:
        """Take these characters, or white space, as long as they come."""
        skipped = ""
        while (char := (yield from self.peek())) and (
            char in characters if characters else char.isspace()
        ):
            skipped += self.take()
        return skipped

    # JSON ----------------------------------------------------------------------------------------

    def json_key(self) -> Reads[str | None]:
        """The next key of an object, its colon taken; None if there is none."""
        yield from self.skip(", \t\r\n")
        if (yield from self.peek()) != '"':
            return None
        key = decode((yield from self.json_value()))
        yield from self.skip()
        if not isinstance(key, str) or (yield from self.peek()) != ":":
            return None
        self.take()
        yield from self.skip()
        return key

    def json_value(self, grow: Callable[[str], None] = lambda text: None) -> Reads[str]:
        """Take one value, told to `grow` as it comes, by its quotes and brackets alone.

        Ends early at a `<` outside of strings: no JSON, but the closing tag of a call whose
        brackets do not close.
        """
        taken: list[str] = []
        depth = 0
        is_quoted = is_escaped = False
        while char := (yield from self.peek()):
            if not is_quoted and (
                char == "<" or (not depth and (char in ",:}]" or char.isspace()))
            ):
                break
            taken.append(self.take())
            grow(char)
            if is_quoted:
                is_quoted = is_escaped or char != '"'
                is_escaped = char == "\\" and not is_escaped
            else:
                is_quoted = char == '"'
                depth += (char in "{[") - (char in "}]")
            if not is_quoted and not depth and char in '"}]':
                break
        return "".join(taken)

    # XML -----------------------------------------------------------------------------------------

    def xml_name(self, forbidden: str = "") -> Reads[str]:
        """A name up to its `>`, which may be missing at the end of a line; "" if it is no name."""
        name = ""
        while (char := (yield from self.peek())) and char not in ">\n<" + forbidden:
            name += self.take()
        if char in forbidden:  # also at the end of the text
            return ""
        if char != "<":
            self.take()
        return name.strip()

    def xml_value(self, closing: str, others: tuple[str, ...]) -> Reads[str | None]:
        """A value up to its closing tag, taken, or one of the others; None if the text ends first.

        The newline on either side of it belongs to the notation.
        """
        value: list[str] = []
        while (yield from self.peek()):
            if (yield from self.match((closing,))) or (yield from self.sees(others)):
                return "".join(value).removeprefix("\n").removesuffix("\n")
            value.append(self.take_run())
        return None


def decode(text: str) -> object:
    """A JSON value; None if the text is no JSON. Bare newlines in strings are forgiven."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity, which are Python's alone


def object_text(text: str) -> str:
    """What models write in the place of an object of arguments, as one where that is possible."""
    if text == "null":
        return "{}"
    value = decode(text)
    if isinstance(value, str) and isinstance(decode(value), dict):
        return value
    return text


class ParameterTypes:
    """What the tools' schemas say of each parameter's type: the XML form shows no quotes."""

    def __init__(self, tools: tuple[Tool, ...]) -> None:
        self._schemas = {tool.name: tool.parameters for tool in tools}
        self._properties: dict[str, dict[str, Any]] = {}  # of the tools that were called

    def to_json(self, tool: str, key: str, value: str) -> str:
        """The value as JSON: a string where the schema allows one, or the value is no JSON.

        Where it allows others too, a string may come in quotes: a grammar writes it so.
        """
        types = self._types(tool, key)
        text = _PYTHON.get(value.strip(), value.strip())
        if types > {"string"} and isinstance(decode(text), str):
            return text
        is_text = "string" in types and not (text == "null" and "null" in types)
        if is_text or (decode(text) is None and text != "null"):
            return json.dumps(value, ensure_ascii=False)
        return text

    def _types(self, tool: str, key: str) -> set[str]:
        if tool not in self._properties:  # read once: a schema may be large
            schema = decode(self._schemas.get(tool, "{}"))
            properties = schema.get("properties") if isinstance(schema, dict) else None
            self._properties[tool] = properties if isinstance(properties, dict) else {}
        known = self._properties[tool].get(key)
        return _types_of(known) if isinstance(known, dict) else {"string"}


_PYTHON = {"True": "true", "False": "false", "None": "null"}  # templates print arguments like this


def _types_of(schema: dict[str, Any]) -> set[str]:
    """The types that a schema names, itself or among its alternatives."""
    schemas = [schema]
    for word in ("anyOf", "oneOf"):
        alternatives = schema.get(word)
        schemas += alternatives if isinstance(alternatives, list) else ()
    named = (each.get("type") for each in schemas if isinstance(each, dict))
    lists = (each if isinstance(each, list) else [each] for each in named)
    return {each for types in lists for each in types if isinstance(each, str)}
