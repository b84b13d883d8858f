"""Tools and structured output of a request: what the answer may do, and what it must look like.

Called by `protocol.py`. Knows neither how tools are written into a prompt nor how calls are read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from litevl.api.fields import (
    JSONObject,
    ListOf,
    json_object,
    json_text,
    read_fields,
    refuse,
    text,
    unsupported,
)
from litevl.errors import InvalidValueError
from litevl.sequence import ChoiceGrammar, JsonGrammar, Tool

MAX_TOOLS = 128
MAX_CHOICES = 1024
MAX_SCHEMA = 2**18  # characters
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MODES: Mapping[str, Literal["none", "auto", "required"]] = {
    "none": "none",
    "auto": "auto",
    "required": "required",
}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools may or must be called; `name` is the only one that may."""

    mode: Literal["none", "auto", "required"] = "auto"
    name: str | None = None


def _tool(value: object, param: str) -> Tool:
    tool = json_object(value, param)
    if tool.get("type") != "function":
        unsupported(f"{param}.type", "only `function` is")
    function = json_object(tool.get("function"), f"{param}.function")
    path = f"{param}.function.parameters"
    given = function.get("parameters")
    parameters: JSONObject = {"type": "object"} if given is None else json_object(given, path)
    return Tool(
        name=_tool_name(function.get("name"), f"{param}.function.name"),
        parameters=_schema_text(parameters, path),
        definition=_schema_text(tool, param),
    )


def _tool_name(value: object, param: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        refuse(param, "1 to 64 letters, digits, underscores, dashes or dots")
    return value


def read_tools(value: object, param: str) -> tuple[Tool, ...]:
    """OpenAI's `tools`: functions with names of their own."""
    tools = ListOf(_tool, MAX_TOOLS)(value, param)
    names = [tool.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            refuse(f"{param}[{index}].function.name", "another than those before it")
    return tools


def read_tool_choice(value: object, param: str) -> ToolChoice:
    """none, auto, required, or `{"type": "function", "function": {"name": ...}}`."""
    if isinstance(value, str) and value in _MODES:
        return ToolChoice(_MODES[value])
    if not isinstance(value, dict):
        refuse(param, "none, auto, required or a function by its name")
    if value.get("type") != "function":
        unsupported(f"{param}.type", "only `function` is")
    function = json_object(value.get("function"), f"{param}.function")
    return ToolChoice("required", _tool_name(function.get("name"), f"{param}.function.name"))


# Structured output -----------------------------------------------------------------------------


def read_response_format(value: object, param: str) -> JsonGrammar | None:
    """OpenAI's `response_format`; None for text."""
    wanted = json_object(value, param)
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return JsonGrammar('{"type":"object"}')
        case "json_schema":
            holder = json_object(wanted.get("json_schema"), f"{param}.json_schema")
            return _schema(holder.get("schema"), f"{param}.json_schema.schema")
    refuse(f"{param}.type", "text, json_object or json_schema")


def read_structured_outputs(value: object, param: str) -> JsonGrammar | ChoiceGrammar:
    """vLLM's `structured_outputs`, of which litevl has `json` and `choice`."""
    wanted = json_object(value, param)
    given = [name for name, each in wanted.items() if each is not None and each is not False]
    for name in given:
        if name not in ("json", "choice"):
            unsupported(f"{param}.{name}", "use `json` or `choice`")
    if len(given) != 1:
        refuse(param, "an object with either `json` or `choice`")
    readers = {"json": _schema, "choice": _choices}
    grammar: JsonGrammar | ChoiceGrammar
    (grammar,) = read_fields(wanted, readers, f"{param}.").values()
    return grammar


def _schema(value: object, param: str) -> JsonGrammar:
    if isinstance(value, str):
        if len(value) > MAX_SCHEMA:
            refuse(param, f"at most {MAX_SCHEMA} characters long")
        return JsonGrammar(value)
    schema = {} if value is True else json_object(value, param)
    return JsonGrammar(_schema_text(schema, param))


def _schema_text(value: JSONObject, param: str) -> str:
    try:
        written = json_text(value)
    except RecursionError:
        raise InvalidValueError(f"`{param}` is nested too deeply.", param=param) from None
    if len(written) > MAX_SCHEMA:
        refuse(param, f"at most {MAX_SCHEMA} characters long")
    return written


def _choices(value: object, param: str) -> ChoiceGrammar:
    options = ListOf(text, MAX_CHOICES, least=1)(value, param)
    if "" in options:
        refuse(param, "made of texts that are not empty")
    return ChoiceGrammar(options)
