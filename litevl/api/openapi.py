"""The OpenAPI document that `GET /openapi.json` answers with.

Made once by `app.py`. What may be sent is told by the parsers themselves (`schema` of requests and
readers); this module adds paths, keys, and the shapes of answers, which `responses.py` writes.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from litevl import __version__
from litevl.api.auth import OPEN_PATHS
from litevl.api.fields import JSONObject, nullable
from litevl.api.middleware import normal_path
from litevl.api.protocol import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from litevl.health import Health
from litevl.sequence import FinishReason

# Shapes of answers -----------------------------------------------------------------------------

# A shape is the JSON with types for values: "Name" is the shape of that name, (...) one of some
# words, [shape] a list of them, and a member that ends in "?" may be missing.
_PAIR = tuple[float, float]
_OF_TYPES: Mapping[object, JSONObject] = {
    str: {"type": "string"},
    int: {"type": "integer", "minimum": 0},
    float: {"type": "number"},
    None: {"type": "null"},
    dict: {"type": "object"},
    dict[str, float]: {"type": "object", "additionalProperties": {"type": "number"}},
    _PAIR: {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
}


@dataclass(frozen=True, slots=True)
class _OrNull:
    shape: object


def _schema(shape: object) -> JSONObject:
    match shape:
        case str(name):
            return {"$ref": f"#/components/schemas/{name}"}
        case tuple(words):
            return {"type": "string", "enum": list(words)}
        case [items]:
            return {"type": "array", "items": _schema(items)}
        case _OrNull(other):
            return nullable(_schema(other))
        case dict(members):
            return {
                "type": "object",
                "properties": {
                    name.removesuffix("?"): _schema(each) for name, each in members.items()
                },
                "required": [name for name in members if not name.endswith("?")],
            }
    return _OF_TYPES[shape]


def _head(kind: str) -> dict[str, object]:
    return {"id": str, "object": (kind,), "created": int, "model": str}


_REASON = tuple(reason for reason in FinishReason if reason is not FinishReason.ERROR)
_REASONING = {"reasoning_content?": str, "reasoning?": str}
_SCORED = {"token": str, "logprob": float, "bytes": [int]}
_OWN = {"litevl?": {"media": ["MediaReceipt"]}}

_ANSWERS: Mapping[str, object] = {
    "ChatCompletion": {
        **_head("chat.completion"),
        "choices": [
            {
                "index": int,
                "message": {
                    "role": ("assistant",),
                    "content": _OrNull(str),
                    "refusal": None,
                    **_REASONING,
                    "tool_calls?": [
                        {
                            "id": str,
                            "type": ("function",),
                            "function": {"name": str, "arguments": str},
                        }
                    ],
                },
                "logprobs": _OrNull("ChatLogprobs"),
                "finish_reason": _REASON,
            }
        ],
        "usage": "Usage",
        **_OWN,
    },
    "ChatCompletionChunk": {
        **_head("chat.completion.chunk"),
        "choices": [
            {
                "index": int,
                "delta": {
                    "role?": ("assistant",),
                    "content": str,
                    **_REASONING,
                    "tool_calls?": [
                        {
                            "index": int,
                            "id?": str,
                            "type?": ("function",),
                            "function?": {"name?": str, "arguments": str},
                        }
                    ],
                },
                "logprobs": _OrNull("ChatLogprobs"),
                "finish_reason": _OrNull(_REASON),
            }
        ],
        "usage?": _OrNull("Usage"),
        **_OWN,
    },
    "ChatLogprobs": {"content": [{**_SCORED, "top_logprobs": [_SCORED]}], "refusal": None},
    "Completion": {
        **_head("text_completion"),
        "choices": [
            {
                "index": int,
                "text": str,
                "logprobs": _OrNull("TextLogprobs"),
                "finish_reason": _OrNull(_REASON),
            }
        ],
        "usage?": _OrNull("Usage"),
    },
    "TextLogprobs": {
        "tokens": [str],
        "token_logprobs": [float],
        "top_logprobs": [dict[str, float]],
        "text_offset": [int],
    },
    "Usage": {
        "prompt_tokens": int,
        "completion_tokens": int,
        "total_tokens": int,
        "prompt_tokens_details": {"cached_tokens": int, "image_tokens": int, "video_tokens": int},
        "completion_tokens_details": {"reasoning_tokens": int},
    },
    "MediaReceipt": {
        "kind": ("image", "video"),
        "original_size": _PAIR,
        "seen_size": _PAIR,
        "grid": [int],
        "tokens": int,
        "scale": _PAIR,
        "source_fps?": float,
        "duration?": float,
        "sampled_fps?": float,
        "frame_times?": [float],
    },
    "InputTokens": {
        "object": ("response.input_tokens",),
        "input_tokens": int,
        "messages": [int],
        "media": ["MediaReceipt"],
    },
    "Tokens": {"count": int, "max_model_len": int, "tokens": [int], "token_strs": _OrNull([str])},
    "Text": {"prompt": str},
    "Model": {
        "id": str,
        "object": ("model",),
        "created": int,
        "owned_by": str,
        "root": str,
        "max_model_len": int,
    },
    "ModelList": {"object": ("list",), "data": ["Model"]},
    "Health": {"status": tuple(Health)},
    "Version": {"version": str},
    "Metrics": str,
    "Page": str,
    "Status": {
        "status": tuple(Health),
        "loading": _OrNull({"phase": str, "progress": _OrNull(float)}),
        "version": str,
        "uptime_seconds": float,
        "addresses": {"local": str, "network": _OrNull(str), "public": _OrNull(str)},
        "model": _OrNull(str),
        "max_model_len": _OrNull(int),
        "defaults": _OrNull(
            {"temperature": float, "top_p": float, "top_k": int, "repetition_penalty": float}
        ),
        "running": int,
        "waiting": int,
        "kv_cache": _OrNull({"usage": float, "blocks": int, "block_size": int}),
        "tokens_per_second": float,
        "recent": [
            {
                "when": float,
                "id": str,
                "status": int,
                "error": _OrNull(str),
                "finish_reason": _OrNull(str),
                "images": int,
                "videos": int,
                "prompt_tokens": int,
                "cached_tokens": int,
                "completion_tokens": int,
                "ttft_ms": _OrNull(float),
                "total_ms": float,
            }
        ],
    },
    "OpenAPI": dict,
    "Error": {"error": {"message": str, "type": str, "param": _OrNull(str), "code": str}},
}


# Shapes of requests ----------------------------------------------------------------------------


def _bodies() -> JSONObject:
    """The schemas of bodies by their names, and of whatever has a title in them."""
    named: JSONObject = {}
    bodies: JSONObject = {
        "ChatCompletionRequest": ChatCompletionRequest.schema(),
        "CompletionRequest": CompletionRequest.schema(),
        "TokenizeRequest": TokenizeRequest.schema(_schema("ChatCompletionRequest")),
        "DetokenizeRequest": DetokenizeRequest.schema(),
    }
    return {name: _hoist(body, named) for name, body in bodies.items()} | named


def _hoist(schema: object, named: JSONObject) -> object:
    """The same with references to the schemas that have a title, which go into `named`."""
    if isinstance(schema, list):
        return [_hoist(each, named) for each in schema]
    if not isinstance(schema, dict):
        return schema
    hoisted = {name: _hoist(each, named) for name, each in schema.items()}
    if not isinstance(title := hoisted.get("title"), str):
        return hoisted
    named[title] = hoisted
    return _schema(title)


# Paths -----------------------------------------------------------------------------------------


class _Told(NamedTuple):
    """What is told of an address; all but the summary are names of schemas."""

    summary: str
    answer: str
    body: str | None = None  # with one it is a POST
    event: str | None = None  # of a stream, if it can be one


_PATHS = {
    "/v1/chat/completions": _Told(
        "Answer a conversation about texts, pictures and clips",
        "ChatCompletion",
        "ChatCompletionRequest",
        "ChatCompletionChunk",
    ),
    "/v1/chat/completions/input_tokens": _Told(
        "Tell what the same body would cost, without an answer",
        "InputTokens",
        "ChatCompletionRequest",
    ),
    "/v1/completions": _Told("Go on with a text", "Completion", "CompletionRequest", "Completion"),
    "/tokenize": _Told("A text or a conversation as token ids", "Tokens", "TokenizeRequest"),
    "/detokenize": _Told("Token ids as text", "Text", "DetokenizeRequest"),
    "/v1/models": _Told("The served model and its other names", "ModelList"),
    "/v1/models/{name}": _Told("One name of the served model", "Model"),
    "/health": _Told("Whether requests are taken: 200 or 503", "Health"),
    "/health/live": _Told("Whether the process is worth keeping: 200 or 503", "Health"),
    "/v1/status": _Told(
        "Phase, load and the last requests of this key, without their content", "Status"
    ),
    "/metrics": _Told("What is counted, as Prometheus reads it", "Metrics"),
    "/version": _Told("The version of litevl", "Version"),
    "/": _Told("The page, for people", "Page"),
    "/openapi.json": _Told("This document", "OpenAPI"),
}


def _content(schema: str) -> JSONObject:
    media_type = {"Metrics": "text/plain", "Page": "text/html"}.get(schema, "application/json")
    return {media_type: {"schema": _schema(schema)}}


def _responses(told: _Told) -> JSONObject:
    content = _content(told.answer)
    if told.event:
        frames = f"With `stream`: frames `data: {told.event}` and at the end `data: [DONE]`."
        content["text/event-stream"] = {"schema": _schema(str) | {"description": frames}}
    responses: JSONObject = {"200": {"description": "The answer", "content": content}}
    if told.answer == "Health":
        return responses | {"503": {"description": "Not now", "content": content}}
    error = {"description": "An error", "content": _content("Error")}
    return responses | {"4XX": error, "5XX": error}


def _operation(path: str, told: _Told, *, is_open: bool) -> JSONObject:
    operation: JSONObject = {"summary": told.summary, "responses": _responses(told)}
    if told.body:
        operation["requestBody"] = {"required": True, "content": _content(told.body)}
    if "{name}" in path:
        name = {"name": "name", "in": "path", "required": True, "schema": _schema(str)}
        operation["parameters"] = [name]
    if is_open:
        operation["security"] = []
    return {"post" if told.body else "get": operation}


def _paths(open_paths: Collection[str]) -> JSONObject:
    return {
        path: _operation(path, told, is_open=normal_path(path) in open_paths)
        for path, told in _PATHS.items()
        if path != "/" or path in open_paths  # no page asks for a key: else there is none
    }


# The document ----------------------------------------------------------------------------------

_KEYS: JSONObject = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}


def openapi_document(open_paths: Collection[str] = OPEN_PATHS, *, asks_for_key: bool) -> JSONObject:
    """The whole document, the same for every model; `open_paths` ask for no key."""
    schemas = _bodies() | {name: _schema(shape) for name, shape in _ANSWERS.items()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "litevl",
            "version": __version__,
            "description": "OpenAI's chat API for a vision-language model. A field may be null, "
            "which means absent; fields that are not listed are ignored.",
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _KEYS] if asks_for_key else [],
        "paths": _paths(open_paths),
        "components": {"schemas": schemas, "securitySchemes": _KEYS},
    }
