"""The HTTP side from outside: addresses, whole answers, errors, limits, CORS."""

import json
import logging
import re
from collections.abc import Iterator

import httpx
import pytest

from fakes import ANSWER, CARD, KEY, TOKENS_PER_ITEM, Rig, assert_error, body, running, say
from litevl import __version__
from litevl.errors import LitevlError, MediaError, QueueFullError, UnavailableError
from litevl.logs import FRAMES

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
CLIP = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,QUJD"}}


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """For tests that leave the fakes as they are."""
    with running() as rig:
        yield rig


# Whole answers ---------------------------------------------------------------------------------


def test_a_whole_answer_has_openais_shape(shared: Rig) -> None:
    answer = shared.chat(model="tiny").json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > CARD.created
    num_tokens = len(say(ANSWER))
    assert answer == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": ANSWER, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": num_tokens,
            "total_tokens": 2 + num_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 0, "video_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


def test_usage_tells_picture_and_clip_tokens(shared: Rig) -> None:
    messages = [
        {"role": "user", "content": [PICTURE, {"type": "text", "text": "a"}, CLIP, PICTURE]}
    ]
    usage = shared.chat(messages=messages).json()["usage"]
    details = usage["prompt_tokens_details"]
    assert details == {
        "cached_tokens": 0,
        "image_tokens": 2 * TOKENS_PER_ITEM,
        "video_tokens": TOKENS_PER_ITEM,
    }
    assert usage["prompt_tokens"] == 1 + 3 * TOKENS_PER_ITEM


def test_a_cut_answer_ends_with_length(shared: Rig) -> None:
    answer = shared.chat(max_tokens=5).json()
    assert answer["choices"][0]["message"]["content"] == ANSWER[:5]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 5


def test_a_stop_string_ends_the_answer_and_frees_the_sequence(rig: Rig) -> None:
    answer = rig.chat(stop=["cir", ": 两"]).json()
    assert answer["choices"][0]["message"]["content"] == "Two "
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("Two cir")
    rig.engine.wait_until(lambda engine: engine.num_running == 0)
    assert rig.service.num_running == 0


def test_the_answer_is_under_the_name_that_was_asked_for(shared: Rig) -> None:
    assert shared.chat().json()["model"] == "tiny"
    assert shared.chat(model=None).json()["model"] == "tiny"
    assert shared.chat(model="alias/of-tiny").json()["model"] == "alias/of-tiny"


def test_two_silent_requests_draw_two_seeds(rig: Rig) -> None:
    rig.chat()
    rig.chat()
    rig.chat(seed=7)
    first, second, third = (sequence.params.seed for sequence in rig.engine.added)
    assert first != second
    assert third == 7


def test_a_large_body_is_read_like_a_small_one(shared: Rig) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2**20}}
    answer = shared.chat(messages=[{"role": "user", "content": [picture]}])
    assert answer.json()["choices"][0]["message"]["content"] == ANSWER


def test_the_content_type_does_not_matter(shared: Rig) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = shared.client.post("/v1/chat/completions", content=json.dumps(body()), headers=headers)
    assert answer.status_code == 200


def test_a_repaired_body_is_answered_with_the_slips(shared: Rig) -> None:
    text = '{"model": %s, "messages": [{"role": "user", "content": f"hi"},],}'
    answer = shared.client.post("/chat/completions", content=text % "null")
    assert answer.status_code == 200
    assert answer.headers["x-litevl-json-repaired"] == "f-string, trailing-comma"
    refused = shared.client.post("/chat/completions", content=text % '"other"')
    assert refused.status_code == 404
    assert refused.headers["x-litevl-json-repaired"] == "f-string, trailing-comma"
    assert "x-litevl-json-repaired" not in shared.chat().headers


# Addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v1/models", "/models", "//v1//models/", "/v1/models//", "/v1%2Fmodels"]
)
@pytest.mark.parametrize("method", ["GET", "get", "Get"])
def test_an_address_answers_in_every_spelling(shared: Rig, path: str, method: str) -> None:
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\nconnection: close\r\n\r\n"
    answer = shared.exchange(head.encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"alias/of-tiny"' in answer


def test_the_models_are_the_name_and_its_aliases(shared: Rig) -> None:
    expected = {
        "object": "model",
        "created": CARD.created,
        "owned_by": "litevl",
        "root": "tiny",
        "max_model_len": 512,
    }
    answer = shared.client.get("/v1/models").json()
    assert answer == {"object": "list", "data": [{"id": name, **expected} for name in CARD.names]}
    alias = shared.client.get("/v1/models/alias/of-tiny").json()
    assert alias == {"id": "alias/of-tiny", **expected}


def test_the_version_is_told(shared: Rig) -> None:
    assert shared.client.get("/version").json() == {"version": __version__}


def test_head_is_answered_without_a_body(shared: Rig) -> None:
    answer = shared.client.head("/health")
    assert (answer.status_code, answer.content) == (200, b"")


# Errors ----------------------------------------------------------------------------------------


def test_an_unknown_address_is_404(shared: Rig) -> None:
    assert_error(shared.client.get("/v1/nothing"), 404, "not_found")


def test_a_wrong_method_is_405_and_tells_the_right_one(shared: Rig) -> None:
    answer = shared.client.get("/v1/chat/completions")
    assert "POST" in assert_error(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    assert_error(shared.client.request("BREW", "/v1/models"), 405, "method_not_allowed")


def test_an_unknown_model_is_404_and_lists_the_names(shared: Rig) -> None:
    message = assert_error(shared.chat(model="gpt-4o"), 404, "model_not_found", "model")
    assert "tiny, alias/of-tiny" in message
    assert_error(shared.client.get("/v1/models/gpt-4o"), 404, "model_not_found", "model")


def test_a_body_that_is_not_json_is_400_with_its_place(shared: Rig) -> None:
    answer = shared.client.post("/v1/chat/completions", content='{"messages": oops}')
    assert "line 1 column 14" in assert_error(answer, 400, "invalid_json")


def test_a_bad_value_and_an_unsupported_one_are_400_with_their_path(shared: Rig) -> None:
    assert_error(shared.chat(temperature=3), 400, "invalid_value", "temperature")
    assert_error(shared.chat(audio={}), 400, "unsupported_parameter", "audio")


def test_a_prompt_that_is_too_long_is_400(shared: Rig) -> None:
    messages = [{"role": "user", "content": "a" * 512}]
    answer = shared.chat(messages=messages)
    assert "512" in assert_error(answer, 400, "context_length_exceeded", "messages")


@pytest.mark.parametrize("stream", [False, True])
def test_what_media_or_engine_refuse_keeps_its_status(rig: Rig, stream: bool) -> None:
    rig.media.error = MediaError("messages[0].content[0]", "broken", code="image_parse_error")
    path = "messages[0].content[0]"
    assert_error(rig.chat(stream=stream), 400, "image_parse_error", path)
    rig.media.error = None
    rig.engine.refusal = QueueFullError("full")
    answer = rig.client.post("/v1/chat/completions", json=body(stream=stream))
    assert_error(answer, 429, "rate_limit_exceeded")
    assert answer.headers["retry-after"]
    rig.engine.refusal = None
    rig.engine.failure = UnavailableError("out of memory", code="server_error")
    assert_error(rig.chat(stream=stream), 503, "server_error")
    assert rig.service.num_running == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_500_without_a_retry_and_without_content(
    rig: Rig, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rig.preprocessor.error = RuntimeError("secret words")
    with caplog.at_level(logging.DEBUG):
        answer = rig.chat(stream=stream)
    assert "secret" not in assert_error(answer, 500, "server_error")
    assert answer.headers["x-should-retry"] == "false"
    assert "unexpected RuntimeError" in caplog.text
    assert answer.headers["x-request-id"] in caplog.text
    frames = "".join(getattr(each, FRAMES, "") for each in caplog.records)
    assert "fakes.py" in frames
    assert "secret" not in caplog.text + frames


def test_a_failure_of_the_model_is_500_whatever_it_was(rig: Rig) -> None:
    rig.engine.failure = RuntimeError("secret words")
    assert "secret" not in assert_error(rig.chat(), 500, "server_error")


def test_every_error_of_litevl_has_a_status_and_a_code() -> None:
    def subclasses(parent: type[LitevlError]) -> Iterator[type[LitevlError]]:
        for each in parent.__subclasses__():
            yield each
            yield from subclasses(each)

    for each in subclasses(LitevlError):
        assert 400 <= each.status < 600
        assert each.code
        assert each.type


# Size of bodies --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[Rig]:
    with running(max_body_size=1000) as rig:
        yield rig


def test_a_declared_length_over_the_limit_is_413_before_the_body(narrow: Rig) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n"
    head += "connection: close\r\ncontent-length: 1001\r\nexpect: 100-continue\r\n\r\n"
    answer = narrow.exchange(head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"request_too_large"' in answer
    assert b"--max-body-size" in answer


def test_an_undeclared_body_over_the_limit_is_413(narrow: Rig) -> None:
    pieces = (b" " * 400 for _ in range(3))
    answer = narrow.client.post("/v1/chat/completions", content=pieces)
    assert_error(answer, 413, "request_too_large")


def test_a_body_at_the_limit_is_read(narrow: Rig) -> None:
    text = json.dumps(body())
    answer = narrow.client.post("/v1/chat/completions", content=text + " " * (1000 - len(text)))
    assert answer.status_code == 200


def test_a_large_refused_body_still_gets_its_answer(narrow: Rig) -> None:
    assert_error(
        narrow.client.post("/chat/completions", content=b"a" * 10**7), 413, "request_too_large"
    )


# Request ids -----------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["abc", "A.b_c-1", "x" * 128])
def test_a_sane_request_id_is_echoed(shared: Rig, given: str) -> None:
    for path in ("/health", "/nothing", "/v1/models"):
        assert (
            shared.client.get(path, headers={"x-request-id": given}).headers["x-request-id"]
            == given
        )


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "a/b"])
def test_any_other_request_id_is_replaced(shared: Rig, given: str) -> None:
    answer = shared.client.get("/health", headers={"x-request-id": given})
    assert re.fullmatch(r"req-[0-9a-f]{32}", answer.headers["x-request-id"])


# CORS ------------------------------------------------------------------------------------------

PREFLIGHT = {
    "origin": "https://page.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
    "access-control-request-private-network": "true",
}


def test_a_preflight_is_answered_before_the_key_is_asked_for(shared: Rig) -> None:
    answer = httpx.options(shared.url + "/v1/chat/completions", headers=PREFLIGHT, trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert answer.headers["x-request-id"]


def test_a_refused_preflight_is_an_error_like_all_others(shared: Rig) -> None:
    headers = PREFLIGHT | {"access-control-request-method": "BREW"}
    answer = httpx.options(shared.url + "/v1/models", headers=headers, trust_env=False)
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "GET, POST"
    assert answer.headers["x-request-id"]


def test_a_page_of_another_origin_can_read_answers_and_errors(shared: Rig) -> None:
    for path in ("/v1/models", "/v1/nothing"):
        answer = shared.client.get(path, headers={"origin": "https://page.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
        shown = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after", "x-should-retry"} <= set(shown)


def test_without_a_key_no_other_origin_may_read() -> None:
    with running(api_key=()) as rig:
        preflight = rig.client.options("/v1/chat/completions", headers=PREFLIGHT)
        answer = rig.client.get("/v1/models", headers={"origin": "https://page.example"})
    assert preflight.status_code == answer.status_code == 403
    assert not any(
        name.startswith("access-control") for name in (*preflight.headers, *answer.headers)
    )
