"""`GET /openapi.json` says what is parsed: no more, no less, held from both sides.

From the document: bodies that schemathesis makes of it are answered, bodies that break it are a 400
that names a field that breaks it. From the code: what the parsers look at, the routes there are,
and answers as they come.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis import GenerationMode

from fakes import CARD, Rig, body, running, say
from litevl.api.app import routes
from litevl.api.middleware import normal_path
from litevl.api.openapi import openapi_document
from litevl.api.overview import page_routes
from litevl.api.protocol import ChatCompletionRequest, CompletionRequest
from litevl.api.records import Records
from litevl.api.service import Service
from litevl.config import Config
from litevl.errors import InvalidRequestError
from test_stream import chunks

DOCUMENT: dict[str, Any] = openapi_document(asks_for_key=True)
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
POSTS = sorted(path for path, item in DOCUMENT["paths"].items() if "post" in item)
# As many tokens and as much room as a body may ask for: what the model affords is no schema.
CARD_WITHOUT_LIMITS = replace(CARD, vocab_size=2**31, max_model_len=10**6)
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CLIP = {"type": "video_url", "video_url": "data:video/mp4;base64,AAAA"}
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}

schemathesis.openapi.format("json-object", st.sampled_from(["{}", '{"a": 1}', ' {"圆": [null]}\n']))


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running(is_loaded=False) as rig:
        rig.attach(CARD_WITHOUT_LIMITS)
        yield rig


# Shapes ----------------------------------------------------------------------------------------


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator({**DOCUMENT, "$ref": f"#/components/schemas/{name}"})


def closed(schema: Any) -> Any:
    """The same without room for members that it does not list."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(each) for name, each in schema.items()}
    return {"additionalProperties": False} | inner if "properties" in schema else inner


def assert_told(answer: object, name: str) -> None:
    """An answer has the shape that the document gives it, and no member beyond."""
    whole = {"components": closed(DOCUMENT["components"]), "$ref": f"#/components/schemas/{name}"}
    Draft202012Validator(whole).validate(answer)


def faults(body: object, name: str) -> set[str]:
    """The top-level fields of a body that break its schema."""
    found = set()
    for error in validator(name).iter_errors(body):
        missing = (field for field in SCHEMAS[name].get("required", ()) if field not in body)  # type: ignore[operator]
        found |= {str(error.absolute_path[0])} if error.absolute_path else set(missing)
    return found


def test_the_document_is_served_without_a_key(rig: Rig) -> None:
    answer = httpx.get(f"{rig.url}/openapi.json", trust_env=False)
    assert answer.json() == json.loads(json.dumps(DOCUMENT))


def test_a_server_without_keys_asks_for_none() -> None:
    assert openapi_document(asks_for_key=False)["security"] == []


@pytest.mark.parametrize("is_closed", [False, True])
def test_the_document_tells_what_this_server_asks_a_key_for(is_closed: bool) -> None:
    with running(metrics_needs_key=is_closed, no_page=is_closed) as rig:
        paths = httpx.get(f"{rig.url}/openapi.json", trust_env=False).json()["paths"]
        for path in ("/", "/metrics", "/health", "/v1/models", "/v1/status"):
            status = httpx.get(rig.url + path, trust_env=False).status_code
            get = paths[path]["get"] if path in paths else {}
            assert (status == 200) == (get.get("security") == []), path
        assert ("/" in paths) is not is_closed


def test_every_schema_is_one() -> None:
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_every_route_is_in_the_document_and_no_other() -> None:
    config = Config()
    served = {
        (route.path.replace(":path", ""), method.lower())
        for route in (*routes(config, Service(config), Records()), *page_routes())
        if not route.path.startswith("/page/")  # no part of the API
        for method in route.methods or {"GET"}
        if method != "HEAD"
    }
    told = {
        (normal_path(path), method) for path, item in DOCUMENT["paths"].items() for method in item
    }
    assert told == served


# Fields ----------------------------------------------------------------------------------------


class Watched(dict[str, Any]):
    """An object that remembers which of its members were asked for."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.seen: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.seen.add(name)
        return super().get(name, default)


def properties(schema: dict[str, Any]) -> set[str]:
    return set(schema["properties"])


def test_the_fields_of_a_chat_request_are_those_that_are_looked_at() -> None:
    watched = Watched(body(stream=True, stream_options={}))
    ChatCompletionRequest.parse(watched)
    assert watched.seen == properties(SCHEMAS["ChatCompletionRequest"])


def test_the_fields_of_a_text_completion_are_those_that_are_looked_at() -> None:
    watched = Watched(prompt="hi")
    CompletionRequest.parse(watched)
    assert watched.seen == properties(SCHEMAS["CompletionRequest"])


@pytest.mark.parametrize("schema", SCHEMAS["Message"]["anyOf"])
def test_the_fields_of_a_message_are_those_that_are_looked_at(schema: dict[str, Any]) -> None:
    for role in schema["properties"]["role"]["enum"]:
        watched = Watched(role=role, content="hi")
        ChatCompletionRequest.parse({"messages": [watched]})
        assert watched.seen | {"role"} == properties(schema)


@pytest.mark.parametrize("schema", SCHEMAS["ContentPart"]["anyOf"])
def test_the_fields_of_a_part_are_those_that_are_looked_at(schema: dict[str, Any]) -> None:
    kind, key = schema["properties"]["type"]["enum"][0], schema["required"][1]
    watched = Watched({"type": kind, key: "data:,"})
    ChatCompletionRequest.parse({"messages": [{"role": "user", "content": [watched]}]})
    assert watched.seen == properties(schema)


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 8, 9, 20, 21, 100, 101, 2**31 - 1, 2**31, 2**63, 2**64),
    *(0.0, 0.5, 1.0, 1.5, -2.5, 16.0, 1e300, 10**400, -(2**63) - 1),
    *("", "a", "a" * 257, "{}", "none", "auto", "required", "high", "text"),
    *([], [1], [1.0], [True], [-1], [None], ["a"], [""], ["a", 1], ["a", [1]], [[]], [[1], [2.0]]),
    *(["a"] * 17, [0] * 129, ["text"], [TOOL], [TOOL["function"]], [{**TOOL, "type": None}]),
    *([{"type": "function", "function": {"name": "a b"}}], [{"type": "web"}]),
    *({}, {"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "yaml"}),
    {"type": "json_schema", "json_schema": {"schema": {}}},
    {"type": "json_schema", "json_schema": {"schema": None}},
    *({"include_usage": True}, {"include_usage": 1}, {"include_usage": None}),
    *({"1": 5}, {"1": 101}, {"x": 1}, {"1": None}, {"type": "function"}),
    *({"json": {}}, {"json": True}, {"json": False}, {"json": "{}"}, {"json": {}, "regex": "x"}),
    *({"json": {}, "regex": None}, {"choice": ["a"]}, {"choice": []}, {"choice": [1], "json": {}}),
    *({"max_pixels": 100}, {"max_pixels": 0}, {"fps": 0}, {"size": 1}, {"size": None}),
    *({"detail": "low"}, {"detail": "mid"}),
]
NEEDS: dict[str, dict[str, Any]] = {  # what a field needs beside it
    "stream_options": {"stream": True},
    "top_logprobs": {"logprobs": True},
    "min_tokens": {"max_tokens": 2**31 - 1},
    "tool_choice": {"tools": [TOOL]},
}


def refusal(parser: Any, body: dict[str, Any]) -> str | None:
    """The field that a parser refuses; None if it takes the body."""
    try:
        parser.parse(body)
    except InvalidRequestError as error:
        assert error.param
        return error.param
    return None


@pytest.mark.parametrize("field", sorted(properties(SCHEMAS["ChatCompletionRequest"])))
def test_a_chat_field_takes_just_the_values_that_the_document_allows(field: str) -> None:
    check = validator("ChatCompletionRequest")
    for value in VALUES:
        body_ = body(**NEEDS.get(field, {})) | {field: value}
        refused = refusal(ChatCompletionRequest, body_)
        assert check.is_valid(body_) == (refused is None), value
        assert refused is None or refused.startswith(field), value


@pytest.mark.parametrize("field", sorted(properties(SCHEMAS["CompletionRequest"])))
def test_a_completion_field_takes_just_the_values_that_the_document_allows(field: str) -> None:
    check = validator("CompletionRequest")
    for value in VALUES:
        body_ = {"prompt": "hi", **NEEDS.get(field, {})} | {field: value}
        refused = refusal(CompletionRequest, body_)
        assert check.is_valid(body_) == (refused is None), value
        assert refused is None or refused.startswith(field), value


# Fuzz ------------------------------------------------------------------------------------------


# Named also where they only do not fit to another field, which no schema tells.
CONTRADICTORY = {
    *("messages", "mm_processor_kwargs", "tools", "structured_outputs", "stream_options"),
    *("logprobs", "top_logprobs", "min_tokens"),
}
LARGE = "ignore:Generating overly large repr"


@cache
def fuzzed() -> Any:
    return schemathesis.openapi.from_dict(DOCUMENT)


def bodies(path: str, mode: GenerationMode) -> Any:
    return fuzzed()[path]["POST"].as_strategy(generation_mode=mode).map(lambda case: case.body)


fuzz = settings(
    max_examples=max(40, settings().max_examples // 10),
    derandomize=True,  # nobody else's change turns this red
    phases=[Phase.explicit, Phase.generate],  # a body that fails is small enough to read
    suppress_health_check=list(HealthCheck),
)


def schema_name(path: str) -> str:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]
    return str(content["application/json"]["schema"]["$ref"].rsplit("/", 1)[1])


def settled(body: dict[str, Any]) -> dict[str, Any]:
    """A body whose fields do not contradict one another, which no schema tells."""
    given = {name: value for name, value in body.items() if value is not None and name != "model"}
    if not given.get("stream"):
        given.pop("stream_options", None)
    if not given.get("logprobs"):
        given.pop("top_logprobs", None)
    if given.get("response_format", {}).get("type", "text") != "text":
        given.pop("structured_outputs", None)
    names = [tool["function"]["name"] for tool in given.get("tools", ())]
    if len(names) > len(set(names)):
        del given["tools"]
    # What is prescribed goes without what ends or prolongs it; fakes cannot go on for ever.
    for name in ("echo", "tool_choice", "stop", "stop_token_ids", "min_tokens", "ignore_eos"):
        given.pop(name, None)
    if given.get("tools"):
        given.pop("structured_outputs", None)
        given.pop("response_format", None)
    alone = ("min_pixels", "fps", "resized_height", "resized_width", "min_frames", "video_start")
    for holder in holders(given):
        for name in alone:
            holder.pop(name, None)
    return given


def holders(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All objects with options of media; a part keeps those beside it only."""
    yield given.get("mm_processor_kwargs", {})
    for message in given.get("messages", ()):
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else ():
            yield part
            for key, value in list(part.items()):
                if isinstance(value, dict):
                    part[key] = {n: v for n, v in value.items() if n in ("url", "file_data")}
                    value = part[key].get("url")
                if isinstance(value, list):
                    for name in ("nframes", "max_frames", "video_end"):
                        part.pop(name, None)


@pytest.mark.filterwarnings(LARGE)
@pytest.mark.parametrize("path", POSTS)
def test_what_the_document_allows_is_answered(rig: Rig, path: str) -> None:
    operation = DOCUMENT["paths"][path]["post"]["responses"]["200"]
    name = operation["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]

    @fuzz
    @given(bodies(path, GenerationMode.POSITIVE))
    def check(generated: dict[str, Any]) -> None:
        asked = settled(generated)
        answer = rig.client.post(path, json=asked)
        assert answer.status_code == 200, (answer.text, asked)
        if not asked.get("stream") or path not in ("/v1/chat/completions", "/v1/completions"):
            assert_told(answer.json(), name)

    check()


@pytest.mark.filterwarnings(LARGE)
@pytest.mark.parametrize("path", POSTS)
def test_what_the_document_forbids_is_refused_by_the_name_of_a_field(rig: Rig, path: str) -> None:
    name = schema_name(path)
    check_body = validator(name)

    @fuzz
    @given(bodies(path, GenerationMode.NEGATIVE))
    def check(generated: Any) -> None:
        if isinstance(generated, dict) and generated.get("ignore_eos") is True:
            del generated["ignore_eos"]  # the card's context is a million tokens
        if isinstance(generated, bytes):
            answer = rig.client.post(path, content=generated)
        else:
            answer = rig.client.post(path, json=generated)
        assert answer.status_code < 500, generated
        if not isinstance(generated, dict) or check_body.is_valid(generated):
            return
        assert answer.status_code == 400, (answer.text, generated)
        assert_told(answer.json(), "Error")
        param = answer.json()["error"]["param"]
        if path != "/tokenize":  # either of two shapes: both have faults
            named = faults(generated, name) | CONTRADICTORY
            assert any(param.startswith(field) for field in named), (param, generated)

    check()


# Answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/models", "ModelList"),
        ("/v1/models/alias/of-tiny", "Model"),
        ("/health", "Health"),
        ("/health/live", "Health"),
        ("/version", "Version"),
        ("/v1/status", "Status"),
        ("/nowhere", "Error"),
    ],
)
def test_small_answers_have_the_shape_that_is_told(rig: Rig, path: str, name: str) -> None:
    assert_told(rig.client.get(path).json(), name)


CALL = (
    '<think>\nHm.\n</think>\nSo:<tool_call>\n{"name": "get", "arguments": {"a": 1}}\n</tool_call>'
)
FULL = {
    "messages": [{"role": "user", "content": [PICTURE, CLIP, {"type": "text", "text": "hi"}]}],
    "tools": [TOOL],
    "media_receipt": True,
    "logprobs": True,
    "top_logprobs": 2,
    "n": 2,
}


def test_a_full_answer_has_the_shape_that_is_told() -> None:
    with running() as rig:
        rig.preprocessor.is_thinking = True
        rig.engine.script = lambda sequence: say(CALL)
        answer = rig.client.post("/v1/chat/completions", json=FULL).json()
        assert_told(answer, "ChatCompletion")
        assert answer["choices"][1]["message"]["tool_calls"] and answer["litevl"]["media"]


def test_the_chunks_of_a_full_answer_have_the_shape_that_is_told() -> None:
    with running() as rig:
        rig.preprocessor.is_thinking = True
        rig.engine.script = lambda sequence: say(CALL)
        asked = FULL | {"stream": True, "stream_options": {"include_usage": True}}
        for each in chunks(rig.client.post("/v1/chat/completions", json=asked)):
            assert_told(each, "ChatCompletionChunk")


def test_text_completions_and_their_chunks_have_the_shape_that_is_told(rig: Rig) -> None:
    asked = {"prompt": "hi", "logprobs": 2}
    assert_told(rig.client.post("/v1/completions", json=asked).json(), "Completion")
    for each in chunks(rig.client.post("/v1/completions", json=asked | {"stream": True})):
        assert_told(each, "Completion")
