"""The OpenAPI document that `GET /openapi.json` answers with.

Made once by `app.py`. What may be sent is told by the parsers themselves (`schema` of requests and
readers); this module adds paths, keys, and the shapes of answers, which `responses.py` writes.
"""

from collections.abc import Collection

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


def _ref(name: str) -> JSONObject:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(items: JSONObject) -> JSONObject:
    return {"type": "array", "items": items}


def _word(*words: str) -> JSONObject:
    return {"type": "string", "enum": list(words)}


def _object(optional: JSONObject | None = None, /, **required: JSONObject) -> JSONObject:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
    }


_TEXT: JSONObject = {"type": "string"}
_TEXT_OR_NULL = nullable(_TEXT)
_COUNT: JSONObject = {"type": "integer", "minimum": 0}
_NUMBER: JSONObject = {"type": "number"}
_NUMBER_OR_NULL = nullable(_NUMBER)
_NULL: JSONObject = {"type": "null"}
_REASON = _word(*(reason for reason in FinishReason if reason is not FinishReason.ERROR))
_REASON_OR_NULL = nullable(_REASON)

_TOOL_CALL = _object(
    id=_TEXT, type=_word("function"), function=_object(name=_TEXT, arguments=_TEXT)
)
_TOOL_CALL_DELTA = _object(
    {
        "id": _TEXT,
        "type": _word("function"),
        "function": _object({"name": _TEXT}, arguments=_TEXT),
    },
    index=_COUNT,
)
_REASONING: JSONObject = {"reasoning_content": _TEXT, "reasoning": _TEXT}


def _head(kind: str) -> dict[str, JSONObject]:
    return {"id": _TEXT, "object": _word(kind), "created": _COUNT, "model": _TEXT}


_PAIR: JSONObject = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}
_OWN: JSONObject = {"litevl": _object(media=_list(_ref("MediaReceipt")))}
_USAGE_OF_CHUNK: JSONObject = {"usage": nullable(_ref("Usage"))}
_TEXT_CHOICE = _object(
    index=_COUNT,
    text=_TEXT,
    logprobs=nullable(_ref("TextLogprobs")),
    finish_reason=_REASON_OR_NULL,
)
_SCORED = {"token": _TEXT, "logprob": _NUMBER, "bytes": _list(_COUNT)}

_ANSWERS: JSONObject = {
    "ChatCompletion": _object(
        _OWN,
        **_head("chat.completion"),
        choices=_list(
            _object(
                index=_COUNT,
                message=_object(
                    {**_REASONING, "tool_calls": _list(_TOOL_CALL)},
                    role=_word("assistant"),
                    content=_TEXT_OR_NULL,
                    refusal=_NULL,
                ),
                logprobs=nullable(_ref("ChatLogprobs")),
                finish_reason=_REASON,
            )
        ),
        usage=_ref("Usage"),
    ),
    "ChatCompletionChunk": _object(
        {**_OWN, **_USAGE_OF_CHUNK},
        **_head("chat.completion.chunk"),
        choices=_list(
            _object(
                index=_COUNT,
                delta=_object(
                    {
                        "role": _word("assistant"),
                        **_REASONING,
                        "tool_calls": _list(_TOOL_CALL_DELTA),
                    },
                    content=_TEXT,
                ),
                logprobs=nullable(_ref("ChatLogprobs")),
                finish_reason=_REASON_OR_NULL,
            )
        ),
    ),
    "ChatLogprobs": _object(
        content=_list(_object(**_SCORED, top_logprobs=_list(_object(**_SCORED)))), refusal=_NULL
    ),
    "Completion": _object(_USAGE_OF_CHUNK, **_head("text_completion"), choices=_list(_TEXT_CHOICE)),
    "TextLogprobs": _object(
        tokens=_list(_TEXT),
        token_logprobs=_list(_NUMBER),
        top_logprobs=_list({"type": "object", "additionalProperties": _NUMBER}),
        text_offset=_list(_COUNT),
    ),
    "Usage": _object(
        prompt_tokens=_COUNT,
        completion_tokens=_COUNT,
        total_tokens=_COUNT,
        prompt_tokens_details=_object(
            cached_tokens=_COUNT, image_tokens=_COUNT, video_tokens=_COUNT
        ),
        completion_tokens_details=_object(reasoning_tokens=_COUNT),
    ),
    "MediaReceipt": _object(
        {
            "source_fps": _NUMBER,
            "duration": _NUMBER,
            "sampled_fps": _NUMBER,
            "frame_times": _list(_NUMBER),
        },
        kind=_word("image", "video"),
        original_size=_PAIR,
        seen_size=_PAIR,
        grid=_list(_COUNT),
        tokens=_COUNT,
        scale=_PAIR,
    ),
    "InputTokens": _object(
        object=_word("response.input_tokens"),
        input_tokens=_COUNT,
        messages=_list(_COUNT),
        media=_list(_ref("MediaReceipt")),
    ),
    "Tokens": _object(
        count=_COUNT,
        max_model_len=_COUNT,
        tokens=_list(_COUNT),
        token_strs=nullable(_list(_TEXT)),
    ),
    "Text": _object(prompt=_TEXT),
    "Model": _object(
        id=_TEXT,
        object=_word("model"),
        created=_COUNT,
        owned_by=_TEXT,
        root=_TEXT,
        max_model_len=_COUNT,
    ),
    "ModelList": _object(object=_word("list"), data=_list(_ref("Model"))),
    "Health": _object(status=_word(*Health)),
    "Version": _object(version=_TEXT),
    "Metrics": _TEXT,
    "Page": _TEXT,
    "Status": _object(
        status=_word(*Health),
        loading=nullable(_object(phase=_TEXT, progress=_NUMBER_OR_NULL)),
        version=_TEXT,
        uptime_seconds=_NUMBER,
        addresses=_object(local=_TEXT, network=_TEXT_OR_NULL, public=_TEXT_OR_NULL),
        model=_TEXT_OR_NULL,
        max_model_len=nullable(_COUNT),
        defaults=nullable(
            _object(temperature=_NUMBER, top_p=_NUMBER, top_k=_COUNT, repetition_penalty=_NUMBER)
        ),
        running=_COUNT,
        waiting=_COUNT,
        kv_cache=nullable(_object(usage=_NUMBER, blocks=_COUNT, block_size=_COUNT)),
        tokens_per_second=_NUMBER,
        recent=_list(
            _object(
                when=_NUMBER,
                id=_TEXT,
                status=_COUNT,
                error=_TEXT_OR_NULL,
                finish_reason=_TEXT_OR_NULL,
                images=_COUNT,
                videos=_COUNT,
                prompt_tokens=_COUNT,
                cached_tokens=_COUNT,
                completion_tokens=_COUNT,
                ttft_ms=_NUMBER_OR_NULL,
                total_ms=_NUMBER,
            )
        ),
    ),
    "OpenAPI": {"type": "object"},
    "Error": _object(
        error=_object(message=_TEXT, type=_TEXT, param=_TEXT_OR_NULL, code=_TEXT),
    ),
}


# Shapes of requests ----------------------------------------------------------------------------


def _bodies() -> JSONObject:
    """The schemas of bodies by their names, and of whatever has a title in them."""
    named: JSONObject = {}
    bodies: JSONObject = {
        "ChatCompletionRequest": ChatCompletionRequest.schema(),
        "CompletionRequest": CompletionRequest.schema(),
        "TokenizeRequest": TokenizeRequest.schema(_ref("ChatCompletionRequest")),
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
    return _ref(title)


# Paths -----------------------------------------------------------------------------------------

# path -> summary, schema of the body, schema of the answer, schema of a streamed answer's events
_POSTS: dict[str, tuple[str, str, str, str | None]] = {
    "/v1/chat/completions": (
        "Answer a conversation about texts, pictures and clips",
        "ChatCompletionRequest",
        "ChatCompletion",
        "ChatCompletionChunk",
    ),
    "/v1/chat/completions/input_tokens": (
        "Tell what the same body would cost, without an answer",
        "ChatCompletionRequest",
        "InputTokens",
        None,
    ),
    "/v1/completions": (
        "Go on with a text",
        "CompletionRequest",
        "Completion",
        "Completion",
    ),
    "/tokenize": ("A text or a conversation as token ids", "TokenizeRequest", "Tokens", None),
    "/detokenize": ("Token ids as text", "DetokenizeRequest", "Text", None),
}
_GETS: dict[str, tuple[str, str]] = {
    "/v1/models": ("The served model and its other names", "ModelList"),
    "/v1/models/{name}": ("One name of the served model", "Model"),
    "/health": ("Whether requests are taken: 200 or 503", "Health"),
    "/health/live": ("Whether the process is worth keeping: 200 or 503", "Health"),
    "/v1/status": (
        "Phase, load and the last requests of this key, without their content",
        "Status",
    ),
    "/metrics": ("What is counted, as Prometheus reads it", "Metrics"),
    "/version": ("The version of litevl", "Version"),
    "/": ("The page, for people", "Page"),
    "/openapi.json": ("This document", "OpenAPI"),
}


def _content(schema: str) -> JSONObject:
    media_type = {"Metrics": "text/plain", "Page": "text/html"}.get(schema, "application/json")
    return {media_type: {"schema": _ref(schema)}}


def _response(description: str, content: JSONObject) -> JSONObject:
    return {"description": description, "content": content}


def _errors() -> JSONObject:
    failed = _response("An error", _content("Error"))
    return {"4XX": failed, "5XX": failed}


def _post(summary: str, body: str, answer: str, event: str | None) -> JSONObject:
    content = _content(answer)
    if event:
        told = f"With `stream`: frames `data: {event}` and at the end `data: [DONE]`."
        content["text/event-stream"] = {"schema": {"type": "string", "description": told}}
    return {
        "summary": summary,
        "requestBody": {"required": True, "content": _content(body)},
        "responses": {"200": _response("The answer", content), **_errors()},
    }


def _get(path: str, summary: str, answer: str) -> JSONObject:
    ok = _response("The answer", _content(answer))
    responses: JSONObject = {"200": ok, **_errors()}
    if answer == "Health":
        responses = {"200": ok, "503": _response("Not now", _content(answer))}
    get: JSONObject = {"summary": summary, "responses": responses}
    if "{name}" in path:
        get["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": _TEXT}]
    return get


def _paths(open_paths: Collection[str]) -> dict[str, JSONObject]:
    paths: dict[str, JSONObject] = {path: {"post": _post(*row)} for path, row in _POSTS.items()}
    for path, row in _GETS.items():
        get = _get(path, *row)
        if normal_path(path) in open_paths:
            get["security"] = []
        paths[path] = {"get": get}
    if "/" not in open_paths:
        del paths["/"]  # no page asks for a key: where it is not open, there is none
    return paths


# The document ----------------------------------------------------------------------------------

_KEYS: JSONObject = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}


def openapi_document(open_paths: Collection[str] = OPEN_PATHS, *, asks_for_key: bool) -> JSONObject:
    """The whole document, the same for every model; `open_paths` ask for no key."""
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
        "components": {"schemas": _bodies() | _ANSWERS, "securitySchemes": _KEYS},
    }
