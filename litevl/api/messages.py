"""The `messages` of a chat request -> `Message`s, and references to the media between them.

Called by `protocol.py`; `media/sources.py` reads the media parts. Knows no chat template.
"""

import json
import re
from collections.abc import Mapping
from typing import Literal

from litevl.api.fields import JSONObject, json_object, json_text, refuse, text, unsupported
from litevl.media.sources import parse_part
from litevl.sequence import MediaOptions, MediaPart, MediaRef, Message, TextPart, ToolCall

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

    def __init__(self, media_defaults: MediaOptions) -> None:
        """`media_defaults` hold where a part says nothing else (`mm_processor_kwargs`)."""
        self.media: list[MediaRef] = []
        self._defaults = media_defaults

    def read(self, value: object) -> tuple[Message, ...]:
        """All messages; `MediaPart`s count the references in `media`."""
        if not isinstance(value, list) or not value:
            refuse("messages", "a list of at least one message")
        return tuple(self._message(each, f"messages[{i}]") for i, each in enumerate(value))

    def _message(self, value: object, param: str) -> Message:
        message = json_object(value, param)
        name = message.get("role")
        role = ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            refuse(f"{param}.role", "one of " + ", ".join(ROLES))
        if message.get("function_call"):
            unsupported(f"{param}.function_call", "use `tool_calls`")
        content = message.get("content")
        if role == "assistant":
            reasoning = _reasoning(message, param)
            if reasoning is None and isinstance(content, str):
                reasoning, content = _split_thought(content)
            return Message(
                role=role,
                parts=() if content is None else self._content(content, f"{param}.content"),
                reasoning=reasoning,
                tool_calls=_tool_calls(message.get("tool_calls"), f"{param}.tool_calls"),
            )
        call = message.get("tool_call_id") if role == "tool" else None
        return Message(
            role=role,
            parts=self._content(content, f"{param}.content"),
            tool_call_id=None if call is None else text(call, f"{param}.tool_call_id"),
        )

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


def _reasoning(message: JSONObject, param: str) -> str | None:
    """What an earlier answer had thought, in either spelling."""
    for name in ("reasoning_content", "reasoning"):
        if message.get(name) is not None:
            return text(message[name], f"{param}.{name}")
    return None


def _tool_calls(value: object, param: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        refuse(param, "a list of tool calls")
    return tuple(_tool_call(each, f"{param}[{i}]") for i, each in enumerate(value))


def _tool_call(value: object, param: str) -> ToolCall:
    call = json_object(value, param)
    function = json_object(call.get("function"), f"{param}.function")
    return ToolCall(
        id=text(call.get("id", ""), f"{param}.id"),
        name=text(function.get("name"), f"{param}.function.name"),
        arguments=_arguments(function.get("arguments"), f"{param}.function.arguments"),
    )


def _arguments(value: object, param: str) -> str:
    """A JSON object: as text, as OpenAI's API has it, or as it is; "" and null are an empty one."""
    if isinstance(value, dict):
        return json_text(value)
    if value is None or value == "":
        return "{}"
    try:
        parsed = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(value, str) or not isinstance(parsed, dict):
        refuse(param, "the text of a JSON object")
    return value
