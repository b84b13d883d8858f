"""Results -> OpenAI's JSON and server-sent events. Called by `app`, `chat` and `middleware`.

The one place that knows what answers look like; knows nothing of how they came about.
"""

import json
from dataclasses import dataclass
from typing import Literal

from starlette.responses import JSONResponse

from litevl.errors import LitevlError
from litevl.sequence import FinishReason, ModelCard, Prompt

DONE = b"data: [DONE]\n\n"
EVENT_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
)

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

# JSON allows these inside strings, but many clients split a stream into lines by them.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


# Whole answers ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Token counts of one answer."""

    prompt_tokens: int
    cached_tokens: int
    image_tokens: int
    video_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, prompt: Prompt, completion_tokens: int, cached_tokens: int) -> "Usage":
        return cls(
            prompt_tokens=len(prompt),
            cached_tokens=cached_tokens,
            image_tokens=prompt.num_media_tokens("image"),
            video_tokens=prompt.num_media_tokens("video"),
            completion_tokens=completion_tokens,
        )

    def as_json(self) -> dict[str, object]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "image_tokens": self.image_tokens,
                "video_tokens": self.video_tokens,
            },
            "completion_tokens_details": {"reasoning_tokens": 0},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What the object and every chunk of one answer begin with."""

    id: str
    created: int  # unix seconds
    model: str

    def as_json(
        self, kind: Literal["chat.completion", "chat.completion.chunk"]
    ) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def completion(
    head: AnswerHead, text: str, finish_reason: FinishReason | None, usage: Usage
) -> JSONResponse:
    """A whole answer."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    answer = {**head.as_json("chat.completion"), "choices": [choice], "usage": usage.as_json()}
    return JSONResponse(answer)


def model_object(card: ModelCard, name: str) -> dict[str, object]:
    """One name of the served model."""
    return {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "litevl",
        "root": card.names[0],
        "max_model_len": card.max_model_len,
    }


def model_list(card: ModelCard) -> dict[str, object]:
    """The served name, then its aliases."""
    return {"object": "list", "data": [model_object(card, name) for name in card.names]}


# Errors ----------------------------------------------------------------------------------------


def error_object(error: LitevlError) -> dict[str, object]:
    """The shape of every error, as a body or as a stream's last event."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: LitevlError) -> JSONResponse:
    return JSONResponse(error_object(error), error.status, error.headers)


# Streams ---------------------------------------------------------------------------------------


def event(data: dict[str, object]) -> bytes:
    """One server-sent event."""
    return f"data: {_one_line(data)}\n\n".encode()


class ChunkWriter:
    """The events of one streamed answer. What is the same in every chunk is written once."""

    def __init__(self, head: AnswerHead) -> None:
        self._head = head.as_json("chat.completion.chunk")
        self._prefix = f'data: {_one_line(self._head)[:-1]},"choices":[{{"index":0,"delta":{{'

    def delta(
        self, text: str, finish_reason: FinishReason | None, usage: str, *, is_first: bool
    ) -> bytes:
        """Text that came, "" for none. `usage` is "" or made by `usage_member`."""
        role = '"role":"assistant",' if is_first else ""
        reason = f'"{finish_reason}"' if finish_reason else "null"
        return (
            f'{self._prefix}{role}"content":{_one_line(text)}}},'
            f'"logprobs":null,"finish_reason":{reason}}}]{usage}}}\n\n'
        ).encode()

    def usage(self, usage: Usage) -> bytes:
        """The chunk without choices that `include_usage` asks for."""
        return event({**self._head, "choices": [], "usage": usage.as_json()})


def usage_member(usage: Usage | None) -> str:
    """`usage` of a chunk that has a choice: a running count, or null."""
    return f',"usage":{_one_line(usage.as_json() if usage else None)}'


def _one_line(value: object) -> str:
    text = _encode(value)
    return text if text.isascii() else text.translate(_LINE_BREAKS)
