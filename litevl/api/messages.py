"""The `messages` of a chat request -> `Message`s, and references to the media between them.

Called by `protocol.py`; `parts.py` reads the media parts. Knows no chat template.
"""

import re
from collections.abc import Mapping
from typing import Literal

from litevl.api.fields import (
    JSONObject,
    ListOf,
    ObjectOf,
    OneOf,
    Reader,
    described,
    json_object,
    json_text,
    nullable,
    object_schema,
    read_fields,
    refuse,
    text,
    unsupported,
)
from litevl.api.json_body import parse_json
from litevl.api.parts import PART_SCHEMAS, parse_part
from litevl.errors import InvalidJSONError, InvalidValueError
from litevl.sequence import MediaOptions, MediaPart, MediaRef, Message, TextPart, ToolCall

MAX_CALLS = 1024  # of tools, in one earlier answer

ROLES: Mapping[str, Literal["system", "user", "assistant", "tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)


class MessageReader:
    """Reads one request's messages and collects what media they refer to."""

    def __init__(self, media_defaults: MediaOptions = MediaOptions()) -> None:
        """`media_defaults` hold where a part says nothing else (`mm_processor_kwargs`)."""
        self.media: list[MediaRef] = []
        self._defaults = media_defaults

    @property
    def schema(self) -> JSONObject:
        kinds = [
            _message_schema(("system", "developer", "user"), {}),
            _message_schema(("assistant",), _ASSISTANT_FIELDS),
            _message_schema(("tool",), _TOOL_FIELDS),
        ]
        return {"type": "array", "minItems": 1, "items": {"title": "Message", "anyOf": kinds}}

    def __call__(self, value: object, param: str, /) -> tuple[Message, ...]:
        """All messages; `MediaPart`s count the references in `media`."""
        if not isinstance(value, list) or not value:
            refuse(param, "a list of at least one message")
        return tuple(self._message(each, f"{param}[{i}]") for i, each in enumerate(value))

    def _message(self, value: object, param: str) -> Message:
        message = json_object(value, param)
        name = message.get("role")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            refuse(f"{param}.role", "one of " + ", ".join(ROLES))
        if message.get("function_call") is not None:
            unsupported(f"{param}.function_call", "use `tool_calls`")
        content = message.get("content")
        if role == "assistant":
            said = read_fields(message, _ASSISTANT_FIELDS, f"{param}.")
            reasoning = said.get("reasoning_content", said.get("reasoning"))
            if reasoning is None and isinstance(content, str):
                reasoning, content = _split_thought(content)
            return Message(
                role=role,
                parts=() if content is None else self._content(content, f"{param}.content"),
                reasoning=reasoning,
                tool_calls=said.get("tool_calls", ()),
            )
        call = read_fields(message, _TOOL_FIELDS if role == "tool" else {}, f"{param}.")
        return Message(role=role, parts=self._content(content, f"{param}.content"), **call)

    def _content(self, content: object, param: str) -> tuple[TextPart | MediaPart, ...]:
        if isinstance(content, str):
            return (TextPart(content),)
        if not isinstance(content, list):
            refuse(param, "a string or a list of parts")
        return tuple(self._part(part, f"{param}[{i}]") for i, part in enumerate(content))

    def _part(self, value: object, param: str) -> TextPart | MediaPart:
        part = json_object(value, param)
        if part.get("type") in ("text", "input_text"):
            return TextPart(text(part.get("text"), f"{param}.text"))
        ref = parse_part(part, param, self._defaults)
        if ref is None:
            refuse(f"{param}.type", "text, image_url, video_url or another media type")
        self.media.append(ref)
        return MediaPart(len(self.media) - 1)


def _split_thought(content: str) -> tuple[str | None, str]:
    """Thought and answer of a turn that was told as one (`--reasoning-in-content`)."""
    found = _THOUGHT.match(content)
    return (found.group(1).strip("\n"), content[found.end() :]) if found else (None, content)


@described(
    {
        "anyOf": [
            # `format` is a word of ours: JSON Schema cannot look into a string
            {"type": "string", "format": "json-object"},
            {"type": "string", "enum": [""]},
            {"type": "object"},
        ]
    }
)
def _arguments(value: object, param: str) -> str:
    """A JSON object: as text, as OpenAI's API has it, or as it is; "" is an empty one."""
    if isinstance(value, dict):
        return json_text(value)
    if value == "":
        return "{}"
    if not isinstance(value, str) or not _is_object(value):
        refuse(param, "the text of a JSON object")
    return value


def _is_object(value: str) -> bool:
    """Read as strictly as the body around it: the template writes it out again."""
    try:
        return not parse_json(value.encode()).slips
    except (InvalidJSONError, InvalidValueError):
        return False


_CALLED = ObjectOf({"name": text, "arguments": _arguments}, required=("name",))
_CALL = ObjectOf({"id": text, "function": _CALLED}, required=("function",))


@described(_CALL.schema)
def _tool_call(value: object, param: str) -> ToolCall:
    call = _CALL(value, param)
    function = call["function"]
    arguments = function.get("arguments", "{}")
    return ToolCall(id=call.get("id", ""), name=function["name"], arguments=arguments)


_ASSISTANT_FIELDS: Mapping[str, Reader] = {  # what earlier answers had, thoughts in either spelling
    "reasoning_content": text,
    "reasoning": text,
    "tool_calls": ListOf(_tool_call, MAX_CALLS),
}
_TOOL_FIELDS: Mapping[str, Reader] = {"tool_call_id": text}


_TEXT_PART: JSONObject = {
    "type": "object",
    "properties": {
        "type": {"type": "string", "enum": ["text", "input_text"]},
        "text": {"type": "string"},
    },
    "required": ["type", "text"],
}
_CONTENT: JSONObject = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"title": "ContentPart", "anyOf": [_TEXT_PART, *PART_SCHEMAS]}},
    ]
}


def _message_schema(roles: tuple[str, ...], fields: Mapping[str, Reader]) -> JSONObject:
    """Of a message in one of these roles; an answer that calls tools needs no content."""
    is_answer = "assistant" in roles
    schema = object_schema({"role": OneOf(roles), **fields}, required=("role",))
    own = {
        "content": nullable(_CONTENT) if is_answer else _CONTENT,
        "function_call": {"type": "null"},
    }
    return schema | {
        "properties": {**json_object(schema["properties"], ""), **own},
        "required": ["role"] if is_answer else ["role", "content"],
    }
