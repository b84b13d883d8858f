"""Streams as clients read them: raw bytes, the openai package, curl with the document's body."""

import base64
import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from fakes import ANSWER, KEY, Rig, body, request_bytes, running, say
from litevl.errors import UnavailableError

PROMPT_TOKENS = 2


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


@pytest.fixture(scope="module")
def shared() -> Iterator[Rig]:
    """For tests that leave the fakes as they are."""
    with running() as rig:
        yield rig


def frames(answer: httpx.Response) -> list[str]:
    """The frames of a stream, after checking that there is nothing between them."""
    assert answer.status_code == 200
    text = answer.content.decode()
    parts = text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [part.removeprefix("data: ") for part in parts]


def chunks(answer: httpx.Response) -> list[dict[str, Any]]:
    """The JSON chunks of a stream that ends well."""
    *parts, done = frames(answer)
    assert done == "[DONE]"
    return [json.loads(part) for part in parts]


def text_of(parts: list[dict[str, Any]]) -> str:
    return "".join(part["choices"][0]["delta"]["content"] for part in parts if part["choices"])


# Frames ----------------------------------------------------------------------------------------


def test_a_stream_has_openais_shape(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say("a")
    answer = rig.chat(stream=True, model="tiny")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    parts = chunks(answer)
    assert len({(part.pop("id"), part.pop("created")) for part in parts}) == 1
    head = {"object": "chat.completion.chunk", "model": "tiny"}
    choices = [part.pop("choices") for part in parts]
    assert all(part == head for part in parts)
    delta: dict[str, str] = {}
    for [choice] in choices:
        delta = {key: delta.get(key, "") + value for key, value in choice["delta"].items()} | {
            key: value for key, value in delta.items() if key not in choice["delta"]
        }
    assert delta == {"role": "assistant", "content": "a"}
    assert choices[-1][0]["finish_reason"] == "stop"


def test_the_deltas_joined_are_the_whole_answer(shared: Rig) -> None:
    whole = shared.chat().json()["choices"][0]["message"]["content"]
    assert text_of(chunks(shared.chat(stream=True))) == whole == ANSWER


@pytest.mark.parametrize(
    "fields", [{}, {"max_tokens": 5}, {"max_tokens": 1}, {"stop": "cir"}], ids=str
)
def test_every_chunk_has_a_string_and_exactly_one_a_finish_reason(
    shared: Rig, fields: dict[str, Any]
) -> None:
    parts = chunks(shared.chat(stream=True, **fields))
    assert all(len(part["choices"]) == 1 for part in parts)
    assert all(isinstance(part["choices"][0]["delta"]["content"], str) for part in parts)
    assert ["role" in part["choices"][0]["delta"] for part in parts] == [True] + [False] * (
        len(parts) - 1
    )
    reasons = [part["choices"][0]["finish_reason"] for part in parts]
    assert reasons[:-1] == [None] * (len(parts) - 1)
    assert reasons[-1] == ("length" if "max_tokens" in fields else "stop")
    whole = shared.chat(**fields).json()["choices"][0]["message"]["content"]
    assert text_of(parts) == whole


def test_the_role_comes_with_the_first_token_and_not_before(rig: Rig) -> None:
    rig.engine.hold()
    with rig.connect() as connection:
        connection.sendall(request_bytes(stream=True))
        rig.engine.wait_until(lambda engine: bool(engine.added))
        assert rig.client.get("/health").status_code == 200  # the loop has been round since
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
        connection.settimeout(30)
        rig.engine.hold(1)
        received = b""
        while not received.endswith(b"\n\n\r\n"):
            received += connection.recv(65536)
    assert b'"delta":{"role":"assistant","content":"T"}' in received


def test_the_first_token_is_sent_even_when_it_is_half_a_character(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say("圆")
    rig.engine.hold(1)
    with rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
        lines = answer.iter_lines()
        assert '"content":""' in next(lines)
        rig.engine.release()
        assert '"content":"圆"' in "".join(lines)


def test_a_stream_is_one_line_a_frame_for_clients_that_split_at_any_line_break(rig: Rig) -> None:
    told = "a\u2028b\u2029c\x85d\r\ne\x0bf"
    rig.engine.script = lambda sequence: say(told)
    parts = rig.chat(stream=True).content.decode().splitlines()
    chunked = [json.loads(part[6:]) for part in parts if part and "[DONE]" not in part]
    assert text_of(chunked) == told


def test_usage_comes_only_when_it_is_asked_for(shared: Rig) -> None:
    assert all("usage" not in part for part in chunks(shared.chat(stream=True)))
    *parts, last = chunks(shared.chat(stream=True, stream_options={"include_usage": True}))
    assert all(part["usage"] is None and len(part["choices"]) == 1 for part in parts)
    assert last["choices"] == []
    assert last["usage"] == shared.chat().json()["usage"]


def test_continuous_usage_counts_up(rig: Rig) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *parts, last = chunks(rig.chat(stream=True, stream_options=options))
    counts = [part["usage"]["completion_tokens"] for part in parts]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"] == len(say(ANSWER))
    assert parts[0]["usage"]["prompt_tokens"] == PROMPT_TOKENS


# Failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure", [UnavailableError("out of memory"), RuntimeError("secret")], ids=repr
)
def test_a_failure_after_the_start_is_one_error_frame_and_the_end(
    rig: Rig, failure: Exception
) -> None:
    rig.engine.hold(3)
    with rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
        lines = answer.iter_lines()
        next(lines)
        rig.engine.wait_until(lambda engine: len(engine.added[0].output_token_ids) == 3)
        rig.engine.failure = failure
        rig.engine.release()
        rest = [line for line in lines if line]
    assert "[DONE]" not in "".join(rest)
    error = json.loads(rest[-1].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "secret" not in rest[-1]
    assert all("error" not in line for line in rest[:-1])
    assert rig.service.num_running == 0


def test_a_bug_within_a_stream_is_an_error_frame_and_logged(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    error = RuntimeError("secret words")

    def token_bytes(token_id: int) -> bytes:
        if token_id == ord("w"):
            raise error
        return bytes([token_id])

    rig.preprocessor.token_bytes = token_bytes  # type: ignore[method-assign]
    rig.engine.hold(1)
    with (
        caplog.at_level(logging.DEBUG),
        rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        rig.engine.release()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "server_error"
    assert "unexpected RuntimeError" in caplog.text
    assert "secret" not in caplog.text + "".join(rest)


def test_a_client_that_hangs_up_on_a_stream_frees_the_sequence(rig: Rig) -> None:
    rig.engine.hold(3)
    with rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
        next(answer.iter_lines())
    rig.engine.wait_until(lambda engine: engine.aborted == [engine.added[0].request_id])
    assert rig.client.get("/health").status_code == 200
    assert rig.service.num_running == 0


def test_a_stop_string_frees_the_sequence_though_the_engine_would_go_on(rig: Rig) -> None:
    rig.engine.script = lambda sequence: list(b"ab" * 200)
    rig.engine.hold(2)
    parts = chunks(rig.chat(stream=True, stop="ab"))
    assert text_of(parts) == ""
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    assert rig.engine.aborted == [rig.engine.added[0].request_id]


# Real clients ----------------------------------------------------------------------------------


@pytest.fixture
def client(shared: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with openai.OpenAI(api_key=KEY, base_url=shared.url + "/v1") as client:
        yield client


@pytest.mark.parametrize(
    ("kind", "mime"), [("image_url", "image/jpeg"), ("video_url", "video/mp4")]
)
def test_the_documents_loop_prints_the_answer_and_no_none(
    client: openai.OpenAI, capsys: pytest.CaptureFixture[str], kind: str, mime: str
) -> None:
    part: Any = {"type": kind, kind: {"url": f"data:{mime};base64,QUJD"}}
    stream = client.chat.completions.create(
        messages=[{"role": "user", "content": [{"type": "text", "text": "请描述"}, part]}],
        model=client.models.list().data[0].id,
        max_completion_tokens=256,
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content, end="")
    assert capsys.readouterr().out == ANSWER


def test_the_openai_package_reads_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}]
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.usage is not None
    assert answer.usage.total_tokens == PROMPT_TOKENS + len(say(ANSWER))
    assert answer._request_id


def test_the_openai_package_raises_what_the_status_means(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        client.models.retrieve("gpt-4o")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], temperature=9
        )
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")


def test_the_openai_package_sees_a_failure_within_a_stream(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rig.engine.hold(1)
    with openai.OpenAI(api_key=KEY, base_url=rig.url + "/v1") as client:
        stream = client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        next(stream)
        rig.engine.failure = UnavailableError("out of memory")
        rig.engine.release()
        with pytest.raises(openai.APIError, match="out of memory"):
            list(stream)


DOCUMENT_BODY = """{
        "model": "tiny",
        "messages": [
        {
            "role": "system",
            "content": "You are a helpful assistant."
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "image_url",
                    "image_url": {
                        "url": f"data:image/jpeg;base64,%s"
                    },
                },
                {
                    "type": "text",
                    "text": "How many sheep are there in the picture?"
                }
            ]
        }
        ]
    }"""


def test_the_documents_curl_call_works_to_the_letter(shared: Rig) -> None:
    curl = shutil.which("curl")
    assert curl, "this test needs curl"
    picture = base64.b64encode(bytes(range(256)) * 50).decode()
    command = [curl, "-sS", "-i", "-X", "Post", f"{shared.url}/v1/chat/completions"]
    command += ["-H", "Content-Type: application/json", "-H", f"Authorization: {KEY}"]
    command += ["--noproxy", "*", "-d", DOCUMENT_BODY % picture]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    head, _, content = result.stdout.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 ")
    assert "x-litevl-json-repaired: f-string, trailing-comma" in head
    assert json.loads(content)["choices"][0]["message"]["content"] == ANSWER
    assert ANSWER in content  # readable as it stands
    assert shared.media.refs[-1].url.endswith(picture)
