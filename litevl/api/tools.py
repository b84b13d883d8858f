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
    ObjectOf,
    Reader,
    described,
    json_object,
    json_text,
    refuse,
    text,
    unsupported,
)
from litevl.errors import InvalidValueError
from litevl.sequence import ChoiceGrammar, JsonGrammar, Tool

MAX_TOOLS = 128
MAX_CHOICES = 1024
MAX_SCHEMA = 2**18  # characters
_NAME = "[A-Za-z0-9_.-]{1,64}"
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


@described({"type": "string", "pattern": f"^{_NAME}$"})
def _tool_name(value: object, param: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(_NAME, value):
        refuse(param, "1 to 64 letters, digits, underscores, dashes or dots")
    return value


@described({"type": "string", "enum": ["function"]})
def _function_type(value: object, param: str) -> None:
    if value != "function":
        unsupported(param, "only `function` is")


_TOOL = ObjectOf(
    {
        "type": _function_type,
        "function": ObjectOf({"name": _tool_name, "parameters": json_object}, required=("name",)),
    },
    required=("type", "function"),
)
_NAMED_TOOL = ObjectOf(
    {"type": _function_type, "function": ObjectOf({"name": _tool_name}, required=("name",))},
    required=("type", "function"),
)


@described({"title": "Tool", **_TOOL.schema})
def _tool(value: object, param: str) -> Tool:
    function = _TOOL(value, param)["function"]
    parameters = function.get("parameters", {"type": "object"})
    return Tool(
        name=function["name"],
        parameters=_schema_text(parameters, f"{param}.function.parameters"),
        definition=_schema_text(json_object(value, param), param),
    )


_tool_list = ListOf(_tool, MAX_TOOLS)


@described(_tool_list.schema)
def read_tools(value: object, param: str) -> tuple[Tool, ...]:
    """OpenAI's `tools`: functions with names of their own."""
    tools: tuple[Tool, ...] = _tool_list(value, param)
    names = [tool.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            refuse(f"{param}[{index}].function.name", "another than those before it")
    return tools


@described({"anyOf": [{"type": "string", "enum": list(_MODES)}, _NAMED_TOOL.schema]})
def read_tool_choice(value: object, param: str) -> ToolChoice:
    """none, auto, required, or `{"type": "function", "function": {"name": ...}}`."""
    if isinstance(value, str) and value in _MODES:
        return ToolChoice(_MODES[value])
    if not isinstance(value, dict):
        refuse(param, "none, auto, required or a function by its name")
    return ToolChoice("required", _NAMED_TOOL(value, param)["function"]["name"])


# Structured output -----------------------------------------------------------------------------


@described(
    {"anyOf": [{"type": "object"}, {"type": "string", "maxLength": MAX_SCHEMA}, {"enum": [True]}]}
)
def _schema(value: object, param: str) -> JsonGrammar:
    """A JSON Schema, the text of one, or `true` for any JSON."""
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


_choice_list = ListOf(described({"type": "string", "minLength": 1})(text), MAX_CHOICES, least=1)


@described(_choice_list.schema)
def _choices(value: object, param: str) -> ChoiceGrammar:
    options = _choice_list(value, param)
    if "" in options:
        refuse(param, "made of texts that are not empty")
    return ChoiceGrammar(options)


_SCHEMA_HOLDER = ObjectOf({"schema": _schema}, required=("schema",))


def _typed(name: str, **more: JSONObject) -> JSONObject:
    """The schema of an object with a `type` of this name and with these members."""
    kind: JSONObject = {"type": "string", "enum": [name]}
    return {"type": "object", "properties": {"type": kind, **more}, "required": ["type", *more]}


@described(
    {
        "title": "ResponseFormat",
        "anyOf": [
            _typed("text"),
            _typed("json_object"),
            _typed("json_schema", json_schema=_SCHEMA_HOLDER.schema),
        ],
    }
)
def read_response_format(value: object, param: str) -> JsonGrammar | None:
    """OpenAI's `response_format`; None for text."""
    wanted = json_object(value, param)
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return JsonGrammar('{"type":"object"}')
        case "json_schema":
            grammar: JsonGrammar
            (grammar,) = _SCHEMA_HOLDER(wanted.get("json_schema"), f"{param}.json_schema").values()
            return grammar
    refuse(f"{param}.type", "text, json_object or json_schema")


_FORMS: Mapping[str, Reader] = {"json": _schema, "choice": _choices}
_NOTHING: JSONObject = {"enum": [None, False]}


def _only(form: str) -> JSONObject:
    """The schema of an object that asks for this form and no other."""
    others = {name: _NOTHING for name in _FORMS if name != form}
    return {
        "type": "object",
        "properties": {form: _FORMS[form].schema, **others},
        "required": [form],
        "additionalProperties": _NOTHING,
    }


@described({"title": "StructuredOutputs", "anyOf": [_only(form) for form in _FORMS]})
def read_structured_outputs(value: object, param: str) -> JsonGrammar | ChoiceGrammar:
    """vLLM's `structured_outputs`, of which litevl has `json` and `choice`."""
    wanted = json_object(value, param)
    given = [name for name, each in wanted.items() if each is not None and each is not False]
    for name in given:
        if name not in _FORMS:
            unsupported(f"{param}.{name}", "use `json` or `choice`")
    if len(given) != 1:
        refuse(param, "an object with either `json` or `choice`")
    (name,) = given
    grammar: JsonGrammar | ChoiceGrammar = _FORMS[name](wanted[name], f"{param}.{name}")
    return grammar
