"""Results -> OpenAI's JSON and server-sent events. Called by `app`, `chat`, `completions` and
`middleware`.

The one place that knows what answers look like; knows nothing of how they came about.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass

from starlette.responses import JSONResponse

from litevl.api.answer import CallArguments, CallStart, Content, Piece, Reasoning, join
from litevl.api.choices import Delta, ScoredToken
from litevl.api.fields import JSONObject
from litevl.errors import LitevlError
from litevl.sequence import ModelCard, Prompt

DONE = b"data: [DONE]\n\n"
EVENT_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
)

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

# JSON allows these inside strings, but many clients split a stream into lines by them.
_LINE_BREAKS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


# Usage and models ------------------------------------------------------------------------------


def usage_object(prompts: Many[Prompt], latest: Collection[Delta]) -> JSONObject:
    """Token counts of one request's answers, by the latest delta of each."""
    prompt_tokens = sum(map(len, prompts))
    completion_tokens = sum(each.completion_tokens for each in latest)
    first = min(latest, key=lambda each: each.index, default=None)  # it has looked in the cache
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": first.cached_tokens if first else 0,
            "image_tokens": sum(prompt.num_media_tokens("image") for prompt in prompts),
            "video_tokens": sum(prompt.num_media_tokens("video") for prompt in prompts),
        },
        "completion_tokens_details": {
            "reasoning_tokens": sum(each.reasoning_tokens for each in latest)
        },
    }


def model_object(card: ModelCard, name: str) -> JSONObject:
    """One name of the served model."""
    return {
        "id": name,
        "object": "model",
        "created": card.created,
        "owned_by": "litevl",
        "root": card.names[0],
        "max_model_len": card.max_model_len,
    }


def model_list(card: ModelCard) -> JSONObject:
    """The served name, then its aliases."""
    return {"object": "list", "data": [model_object(card, name) for name in card.names]}


# Choices ---------------------------------------------------------------------------------------


class ChatForm:
    """Chat completions: a message, and deltas of it."""

    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def choice(self, whole: Delta) -> JSONObject:
        answer = join(whole.pieces)
        message: JSONObject = {"role": "assistant", "content": answer.content, "refusal": None}
        if answer.reasoning is not None:
            message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
        if answer.calls:
            message["content"] = answer.content or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        return {
            "index": whole.index,
            "message": message,
            "logprobs": _chat_logprobs(whole.scores),
            "finish_reason": whole.finish_reason,
        }

    def choice_chunk(self, delta: Delta, *, is_first: bool) -> str:
        role = '"role":"assistant",' if is_first else ""
        reason = f'"{delta.finish_reason}"' if delta.finish_reason else "null"
        scores = _one_line(_chat_logprobs(delta.scores)) if delta.scores else "null"
        return (
            f'{{"index":{delta.index},"delta":{{{role}{_delta_members(delta.pieces)}}},'
            f'"logprobs":{scores},"finish_reason":{reason}}}'
        )


def _delta_members(pieces: Iterable[Piece]) -> str:
    """The members of a delta; `content` is a string in every one."""
    content = reasoning = ""
    calls: dict[int, JSONObject] = {}
    for piece in pieces:
        match piece:
            case Content(text):
                content += text
            case Reasoning(text):
                reasoning += text
            case _:
                _add_call(calls, piece)
    members = f'"content":{_one_line(content)}'
    if reasoning:
        text = _one_line(reasoning)
        members += f',"reasoning_content":{text},"reasoning":{text}'
    if calls:
        members += f',"tool_calls":{_one_line(list(calls.values()))}'
    return members


def _add_call(calls: dict[int, JSONObject], piece: CallStart | CallArguments) -> None:
    """Name first, then fragments of the arguments; what comes at once is one entry."""
    if isinstance(piece, CallStart):
        function: JSONObject = {"name": piece.name, "arguments": ""}
        calls[piece.index] = {
            "index": piece.index,
            "id": piece.id,
            "type": "function",
            "function": function,
        }
        return
    call = calls.setdefault(piece.index, {"index": piece.index, "function": {"arguments": ""}})
    function = call["function"]  # type: ignore[assignment]
    function["arguments"] = f"{function['arguments']}{piece.text}"


def _chat_logprobs(scores: Iterable[ScoredToken]) -> JSONObject | None:
    content = [
        {**_scored(each), "top_logprobs": [_scored(other) for other in each.top]} for each in scores
    ]
    return {"content": content, "refusal": None} if content else None


def _scored(token: ScoredToken) -> JSONObject:
    text = token.text.decode(errors="replace")
    return {"token": text, "logprob": max(token.logprob, -9999.0), "bytes": list(token.text)}


class TextForm:
    """Text completions. `echoes` stand before the choices with their index."""

    whole = "text_completion"
    chunk = "text_completion"

    def __init__(self, echoes: Mapping[int, str]) -> None:
        self._echoes = echoes
        self._lengths: dict[int, int] = {}  # characters of each choice so far

    def choice(self, whole: Delta) -> JSONObject:
        return self._choice(whole, is_first=True)

    def choice_chunk(self, delta: Delta, *, is_first: bool) -> str:
        return _one_line(self._choice(delta, is_first=is_first))

    def _choice(self, delta: Delta, *, is_first: bool) -> JSONObject:
        text = join(delta.pieces).content
        if is_first:
            text = self._echoes.get(delta.index, "") + text
        return {
            "index": delta.index,
            "text": text,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }

    def _logprobs(self, delta: Delta) -> JSONObject | None:
        if not delta.scores:
            return None
        names = [each.text.decode(errors="replace") for each in delta.scores]
        offset = self._lengths.get(delta.index, 0)
        offsets = []
        for name in names:
            offsets.append(offset)
            offset += len(name)
        self._lengths[delta.index] = offset
        return {
            "tokens": names,
            "token_logprobs": [max(each.logprob, -9999.0) for each in delta.scores],
            "top_logprobs": [
                {other.text.decode(errors="replace"): other.logprob for other in each.top}
                for each in delta.scores
            ],
            "text_offset": offsets,
        }


Form = ChatForm | TextForm  # how one endpoint writes its answers


# Answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What the object and every chunk of one answer begin with."""

    id: str
    created: int  # unix seconds
    model: str

    def as_json(self, kind: str) -> JSONObject:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def whole_answer(
    head: AnswerHead, form: Form, wholes: Iterable[Delta], usage: JSONObject, more: JSONObject
) -> JSONResponse:
    """A whole answer; `more` are members of litevl's own."""
    choices = [form.choice(whole) for whole in wholes]
    answer = head.as_json(form.whole) | {"choices": choices, "usage": usage}
    return JSONResponse(answer | more)


class ChunkWriter:
    """The events of one streamed answer. What is the same in every chunk is written once."""

    def __init__(self, head: AnswerHead, form: Form, more: JSONObject) -> None:
        """`more` are members of litevl's own for the first chunk."""
        self._head = head.as_json(form.chunk)
        self._prefix = f'data: {_one_line(self._head)[:-1]},"choices":['
        self._form = form
        self._more = more
        self._begun: set[int] = set()

    def has_begun(self, index: int) -> bool:
        """Whether there was a chunk of this choice."""
        return index in self._begun

    def delta(self, delta: Delta, usage: str) -> bytes:
        """A chunk of one choice. `usage` is "" or made by `usage_member`."""
        choice = self._form.choice_chunk(delta, is_first=delta.index not in self._begun)
        more = f",{_one_line(self._more)[1:-1]}" if self._more and not self._begun else ""
        self._begun.add(delta.index)
        return f"{self._prefix}{choice}]{usage}{more}}}\n\n".encode()

    def usage(self, usage: JSONObject) -> bytes:
        """The chunk without choices that `include_usage` asks for."""
        return event({**self._head, "choices": [], "usage": usage})


def usage_member(usage: JSONObject | None) -> str:
    """`usage` of a chunk that has a choice: a running count, or null."""
    return f',"usage":{_one_line(usage)}'


# Errors ----------------------------------------------------------------------------------------


def error_object(error: LitevlError) -> JSONObject:
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


def event(data: JSONObject) -> bytes:
    """One server-sent event."""
    return f"data: {_one_line(data)}\n\n".encode()


def _one_line(value: object) -> str:
    text = _encode(value)
    return text if text.isascii() else text.translate(_LINE_BREAKS)
