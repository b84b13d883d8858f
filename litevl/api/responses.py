"""Results -> OpenAI's JSON and server-sent events. Called by the endpoints, `exchange` and
`middleware`; `chat` and `completions` name the form.

The one place that knows what answers look like; knows nothing of how they came about.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import accumulate

from starlette.responses import JSONResponse

from litevl.api.answer import Answer, CallArguments, CallStart, Content, Pieces, Reasoning, join
from litevl.api.choices import Delta, ScoredToken
from litevl.api.fields import JSONObject
from litevl.api.protocol import Streaming
from litevl.errors import InvalidValueError, LitevlError
from litevl.sequence import MediaItem, MediaSize, ModelCard, PlannedMedia, Prompt

DONE = b"data: [DONE]\n\n"
EVENT_STREAM_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
)
MAX_SCORES = 256 * 2**20  # bytes: of one whole answer's log probabilities, as JSON

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode

# JSON allows these inside strings, but many clients split a stream into lines by them.
_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")


# Usage, models, receipts -----------------------------------------------------------------------


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


def receipt(media: PlannedMedia, size: MediaItem | MediaSize) -> JSONObject:
    """Sizes as [width, height] in pixels, times in seconds, `grid` in patches."""
    probe, plan = media.probe, media.plan
    told: JSONObject = {
        "kind": media.kind,
        "original_size": [probe.width, probe.height],
        "seen_size": [plan.width, plan.height],
        "grid": list(size.grid),
        "tokens": size.num_tokens,
        "scale": [round(plan.width / probe.width, 6), round(plan.height / probe.height, 6)],
    }
    if media.kind == "image":
        return told
    indices = plan.frame_indices
    span = indices[-1] - indices[0] + 1
    return told | {
        "source_fps": round(probe.fps, 6),
        "duration": round(probe.num_frames / probe.fps, 6),
        "sampled_fps": round(len(indices) * probe.fps / span, 6),
        "frame_times": [round(index / probe.fps, 6) for index in indices],
    }


def receipts(media: Many[PlannedMedia], sizes: Iterable[MediaItem | MediaSize]) -> list[JSONObject]:
    """One for each picture and clip, in the order of the messages."""
    return [receipt(*pair) for pair in zip(media, sizes, strict=True)]


# Choices ---------------------------------------------------------------------------------------


class ChatForm:
    """Chat completions: a message, and deltas of it."""

    id_prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"
    scores_frame = '{"content":[%s],"refusal":null}'

    def said(self, index: int, answer: Answer) -> JSONObject:
        """The member of a whole choice that holds its text."""
        message: JSONObject = {"role": "assistant", "content": answer.content, "refusal": None}
        if answer.reasoning is not None:
            message |= _reasoning(answer.reasoning)
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
        return {"message": message}

    def said_now(self, delta: Delta, *, is_first: bool) -> JSONObject:
        """The same of a chunk's choice; `content` is a string in every one."""
        content = reasoning = ""
        calls: dict[int, JSONObject] = {}
        for piece in delta.pieces:
            match piece:
                case Content(text):
                    content += text
                case Reasoning(text):
                    reasoning += text
                case _:
                    _add_call(calls, piece)
        said: JSONObject = {"role": "assistant"} if is_first else {}
        said["content"] = content
        if reasoning:
            said |= _reasoning(reasoning)
        if calls:
            said["tool_calls"] = list(calls.values())
        return {"delta": said}

    def scores(self, delta: Delta) -> tuple[str, ...]:
        """What a delta's tokens add to the list in `scores_frame`."""
        return (",".join(map(_chat_score, delta.scores)),)


def _reasoning(text: str) -> JSONObject:
    """Under both names that clients look for."""
    return {"reasoning_content": text, "reasoning": text}


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


def _chat_score(token: ScoredToken) -> str:
    return _encode({**_scored(token), "top_logprobs": [_scored(other) for other in token.top]})


def _scored(token: ScoredToken) -> JSONObject:
    return {"token": _name(token), "logprob": _logprob(token), "bytes": list(token.text)}


def _name(token: ScoredToken) -> str:
    return token.text.decode(errors="replace")


def _logprob(token: ScoredToken) -> float:
    """JSON knows no infinity."""
    return max(-9999.0, token.logprob)


class TextForm:
    """Text completions. `echoes` stand before the choices with their index."""

    id_prefix = "cmpl"
    whole = "text_completion"
    chunk = "text_completion"
    scores_frame = '{"tokens":[%s],"token_logprobs":[%s],"top_logprobs":[%s],"text_offset":[%s]}'

    def __init__(self, echoes: Mapping[int, str]) -> None:
        self._echoes = echoes
        self._lengths: dict[int, int] = {}  # characters of each choice so far

    def said(self, index: int, answer: Answer) -> JSONObject:
        """The member of a whole choice that holds its text."""
        return {"text": self._echoes.get(index, "") + answer.content}

    def said_now(self, delta: Delta, *, is_first: bool) -> JSONObject:
        """The same of a chunk's choice."""
        echo = self._echoes.get(delta.index, "") if is_first else ""
        return {"text": echo + join(delta.pieces).content}

    def scores(self, delta: Delta) -> tuple[str, ...]:
        """What a delta's tokens add to each list in `scores_frame`."""
        names = [_name(each) for each in delta.scores]
        start = self._lengths.get(delta.index, 0)
        *offsets, self._lengths[delta.index] = accumulate(map(len, names), initial=start)
        logprobs = [_logprob(each) for each in delta.scores]
        tops = [{_name(other): _logprob(other) for other in each.top} for each in delta.scores]
        return tuple(_encode(each)[1:-1] for each in (names, logprobs, tops, offsets))


Form = ChatForm | TextForm  # how one endpoint writes its answers


def _around_scores(delta: Delta, said: JSONObject) -> tuple[str, str]:
    """What stands before the log probabilities of a choice, and behind them."""
    opening = _encode({"index": delta.index, **said})[:-1]
    reason = _encode(delta.finish_reason) if delta.finish_reason else "null"
    return f'{opening},"logprobs":', f',"finish_reason":{reason}}}'


# Answers ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What is known of an answer before its first token."""

    id: str
    created: int  # unix seconds
    model: str
    form: Form
    prompts: Many[Prompt]
    more: JSONObject  # litevl's own members of the answer

    def as_json(self, kind: str) -> JSONObject:
        """What the object and every chunk begin with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


class AnswerWriter:
    """One whole answer, of deltas as they come.

    Log probabilities become JSON at once: they are most of an answer, and all of them together
    would keep the loop from other clients.
    """

    def __init__(self, head: AnswerHead) -> None:
        self._head = head
        self._form = head.form
        self._latest: dict[int, Delta] = {}
        self._pieces: defaultdict[int, Pieces] = defaultdict(Pieces)
        self._scores: dict[int, list[bytearray]] = {}
        self._num_bytes = 0  # of log probabilities

    def add(self, delta: Delta) -> None:
        """What follows; `InvalidValueError` for more log probabilities than can be kept."""
        self._latest[delta.index] = delta
        self._pieces[delta.index].add(delta.pieces)
        if delta.scores:
            self._add_scores(delta)

    def _add_scores(self, delta: Delta) -> None:
        comma = "," if delta.index in self._scores else ""
        frame = [bytearray(each, "ascii") for each in self._form.scores_frame.split("%s")]
        lists = self._scores.setdefault(delta.index, frame)
        for written, text in zip(lists, self._form.scores(delta), strict=False):
            new = f"{comma}{text}".encode()
            written += new
            self._num_bytes += len(new)
        if self._num_bytes > MAX_SCORES:
            message = (
                f"The log probabilities are more than {MAX_SCORES >> 20} MiB: have the answer "
                "streamed, or ask for fewer."
            )
            raise InvalidValueError(message, param="logprobs")

    def finish(self) -> list[bytes | bytearray]:
        """The answer, in parts."""
        opening = _encode(self._head.as_json(self._form.whole))[:-1]
        parts: list[bytes | bytearray] = [f'{opening},"choices":['.encode()]
        for index in sorted(self._latest):
            said = self._form.said(index, self._pieces[index].join())
            before, behind = _around_scores(self._latest[index], said)
            parts.append(f"{',' if len(parts) > 1 else ''}{before}".encode())
            parts += self._scores.get(index, [b"null"])
            parts.append(behind.encode())
        usage = _encode(usage_object(self._head.prompts, self._latest.values()))
        parts.append(f'],"usage":{usage}{_more_members(self._head.more)}}}'.encode())
        return parts


class ChunkWriter:
    """The events of one streamed answer. What is the same in every chunk is written once."""

    def __init__(self, head: AnswerHead, streaming: Streaming) -> None:
        self._head = head
        self._form = head.form
        self._streaming = streaming
        self._opening = head.as_json(head.form.chunk)
        self._prefix = f'{_encode(self._opening)[:-1]},"choices":['
        self._latest: dict[int, Delta] = {}

    def add(self, delta: Delta) -> bytes:
        """A chunk of one choice: its first, or where there is news of it; else nothing."""
        more = "" if self._latest else _more_members(self._head.more)
        is_first = delta.index not in self._latest
        self._latest[delta.index] = delta
        if not (is_first or delta.pieces or delta.scores or delta.finish_reason):
            return b""
        said = self._form.said_now(delta, is_first=is_first)
        scores = self._form.scores_frame % self._form.scores(delta) if delta.scores else "null"
        before, behind = _around_scores(delta, said)
        return _event(f"{self._prefix}{before}{scores}{behind}]{self._usage_member()}{more}}}")

    def usage(self) -> bytes:
        """The chunk without choices that `include_usage` asks for."""
        return event({**self._opening, "choices": [], "usage": self._usage()})

    def _usage_member(self) -> str:
        """`usage` of a chunk that has a choice: a running count, null, or none at all."""
        if self._streaming.continuous_usage_stats:
            return f',"usage":{_encode(self._usage())}'
        return ',"usage":null' if self._streaming.include_usage else ""

    def _usage(self) -> JSONObject:
        return usage_object(self._head.prompts, self._latest.values())


def _more_members(more: JSONObject) -> str:
    return f",{_encode(more)[1:-1]}" if more else ""


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
    return _event(_encode(data))


def _event(text: str) -> bytes:
    if not text.isascii():
        text = _LINE_BREAKS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    return f"data: {text}\n\n".encode()
