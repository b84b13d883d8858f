"""Clients that people use: curl, `openai`, LangChain, and the line parsers of load tools.

Each asks a real `litevl serve` with the demo model about pictures and clips, with tools, a schema
and streams. Where an answer must say something certain, a scripted engine stands behind the same
server. Node's clients are in `tests/clients` (`make test-clients`).
"""

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, SecretStr

from fakes import KEY as FAKE_KEY
from fakes import Rig, running, say
from live import KEY, ROOT, LiveServer

MODEL = "litevl-demo"
DEMO = ROOT / "litevl" / "demo"


def data_url(name: str, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode((DEMO / name).read_bytes()).decode()}"


PICTURE: Any = {"type": "image_url", "image_url": {"url": data_url("sample.jpg", "image/jpeg")}}
CLIP: Any = {"type": "video_url", "video_url": {"url": data_url("sample.mp4", "video/mp4")}}
FILE: Any = {"type": "file", "file": {"file_data": data_url("sample.mp4", "video/mp4")}}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "count",
        "description": "Counts things.",
        "parameters": {
            "type": "object",
            "properties": {"thing": {"enum": ["sheep", "star"]}, "number": {"enum": [1, 2, 3]}},
            "required": ["thing", "number"],
            "additionalProperties": False,
        },
    },
}
CALL = '<tool_call>\n{"name": "count", "arguments": {"thing": "sheep", "number": 2}}\n</tool_call>'
ARGUMENTS = {"thing": "sheep", "number": 2}


class Scene(BaseModel, extra="forbid"):
    """What a picture shows; no other member, or a toy model invents members for ever."""

    thing: Literal["circle", "sheep", "star"]
    number: Literal[1, 2, 3]


def asks(*parts: Any, **fields: Any) -> dict[str, Any]:
    """The fields of a question about some parts."""
    content = [*parts, {"type": "text", "text": "What is there?"}]
    return {"messages": [{"role": "user", "content": content}], "model": MODEL, **fields}


SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "scene", "schema": Scene.model_json_schema()},
}


@pytest.fixture
def rig() -> Iterator[Rig]:
    """The server with an engine that calls a tool."""
    with running() as rig:
        rig.engine.script = lambda sequence: say(f"Let me see.\n{CALL}")
        yield rig


# curl ------------------------------------------------------------------------------------------


def curl(server: LiveServer, body: dict[str, Any], folder: Path) -> str:
    file = folder / "body.json"
    file.write_text(json.dumps(body))
    headers = ["-H", f"Authorization: Bearer {KEY}", "-H", "Content-Type: application/json"]
    address = f"{server.base_url}/chat/completions"
    command = ["curl", "-sS", "--fail-with-body", "-N", address, *headers, "-d", f"@{file}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("part", [PICTURE, CLIP, FILE], ids=["picture", "clip", "file"])
def test_curl_is_answered_about_media_by_a_schema(
    server: LiveServer, part: Any, tmp_path: Path
) -> None:
    reply = json.loads(curl(server, asks(part, response_format=SCHEMA, max_tokens=128), tmp_path))
    assert reply["choices"][0]["finish_reason"] == "stop"
    Scene.model_validate_json(reply["choices"][0]["message"]["content"])


def test_curl_streams_a_call(server: LiveServer, tmp_path: Path) -> None:
    text = curl(server, asks(PICTURE, tools=[TOOL], tool_choice="required", stream=True), tmp_path)
    calls = [
        call
        for chunk in load_tool_chunks(text)
        for call in chunk["choices"][0]["delta"].get("tool_calls", ())
        if call["index"] == 0  # what else it calls is its own affair
    ]
    assert calls[0]["function"]["name"] == "count"
    assert set(json.loads("".join(each["function"]["arguments"] for each in calls))) == {
        "thing",
        "number",
    }


# Line parsers ----------------------------------------------------------------------------------


def load_tool_chunks(text: str) -> list[Any]:
    """As vLLM's benchmark reads: events end with a blank line and begin with `data: `."""
    events = [each.removeprefix("data: ") for each in text.split("\n\n")]
    assert events[-2:] == ["[DONE]", ""]
    return [json.loads(each) for each in events[:-2]]


def swift_chunks(text: str) -> list[Any]:
    """As ms-swift reads: line by line, each of which is blank or begins with `data:`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert all(line.startswith("data:") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[5:].strip()) for line in lines[:-1]]


STREAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "usage": {"stream_options": {"include_usage": True}},
    "counted": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "two": {"n": 2},
    "scored": {"logprobs": True, "top_logprobs": 2},
    "tools": {"tools": [TOOL], "tool_choice": "required"},
    "schema": {"response_format": SCHEMA},
    "receipt": {"media_receipt": True},
}


@pytest.mark.parametrize("fields", STREAMS.values(), ids=STREAMS.keys())
def test_load_tools_read_every_stream_alike(server: LiveServer, fields: dict[str, Any]) -> None:
    answer = httpx.post(
        f"{server.base_url}/chat/completions",
        json=asks(PICTURE, stream=True, max_tokens=24, **fields),
        headers={"authorization": f"Bearer {KEY}"},
        timeout=60,
        trust_env=False,
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = load_tool_chunks(answer.text)
    assert chunks == swift_chunks(answer.text)
    assert "error" not in str(chunks)
    with_choices = [chunk for chunk in chunks if chunk["choices"]]
    first = with_choices[0]["choices"][0]["delta"]
    assert first["role"] == "assistant"
    assert all(
        isinstance(choice["delta"]["content"], str)
        for chunk in with_choices
        for choice in chunk["choices"]
    )
    if "stream_options" in fields:
        assert chunks[-1]["usage"]["completion_tokens"] > 0 and not chunks[-1]["choices"]
    else:
        assert chunks == with_choices


def test_the_first_chunk_with_choices_comes_with_the_first_token(rig: Rig) -> None:
    """What load tools call the time to the first token: they stop the clock at such a chunk."""
    rig.engine.hold(1)
    rig.engine.script = lambda sequence: say("Two.")
    asked = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    with rig.client.stream("POST", "/v1/chat/completions", json=asked) as answer:
        texts = answer.iter_text()
        first = next(texts)
        assert load_tool_chunks(first + "data: [DONE]\n\n")[0]["choices"][0]["delta"] == {
            "role": "assistant",
            "content": "T",
        }
        assert rig.engine.num_running == 1
        rig.engine.release()


# openai ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(server: LiveServer) -> OpenAI:
    return OpenAI(api_key=KEY, base_url=server.base_url, max_retries=0)


def test_openai_parses_an_answer_into_a_class(client: OpenAI) -> None:
    reply = client.chat.completions.parse(**asks(PICTURE), response_format=Scene)
    assert isinstance(reply.choices[0].message.parsed, Scene)


def test_openai_gets_several_answers_with_log_probabilities(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        **asks(PICTURE, n=2, logprobs=True, top_logprobs=3, max_completion_tokens=8)
    )
    assert [choice.index for choice in reply.choices] == [0, 1]
    for choice in reply.choices:
        assert choice.logprobs and choice.logprobs.content
        spelled = b"".join(bytes(each.bytes or ()) for each in choice.logprobs.content)
        assert spelled.decode().startswith(choice.message.content or "")
        assert all(len(each.top_logprobs) == 3 for each in choice.logprobs.content)


@pytest.mark.parametrize("part", [CLIP, FILE], ids=["clip", "file"])
def test_openai_streams_an_answer_about_a_clip(client: OpenAI, part: Any) -> None:
    stream = client.chat.completions.create(
        **asks(part, max_completion_tokens=16, stream_options={"include_usage": True}), stream=True
    )
    *chunks, last = stream
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert last.usage and last.usage.total_tokens > last.usage.completion_tokens


def test_openai_accumulates_a_streamed_call(rig: Rig) -> None:
    client = OpenAI(api_key=FAKE_KEY, base_url=f"{rig.url}/v1", max_retries=0)
    with client.chat.completions.stream(
        model="tiny", messages=[{"role": "user", "content": "hi"}], tools=[TOOL]
    ) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"content.delta", "tool_calls.function.arguments.delta"} <= kinds
    assert message.content == "Let me see." and message.tool_calls
    assert json.loads(message.tool_calls[0].function.arguments) == ARGUMENTS


def test_openai_continues_after_a_call(client: OpenAI) -> None:
    asked = asks(PICTURE, tools=[TOOL])
    message = client.chat.completions.create(**asked, tool_choice="required").choices[0].message
    assert message.tool_calls
    result: Any = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2"}
    asked["messages"] += [message, result]
    reply = client.chat.completions.create(**asked, max_tokens=8)
    assert reply.choices[0].message.content is not None


def test_openai_raises_what_was_refused_by_its_name(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**asks(temperature=3))
    assert (caught.value.code, caught.value.param) == ("invalid_value", "temperature")


# LangChain -------------------------------------------------------------------------------------


def langchain(base_url: str, key: str, model: str) -> ChatOpenAI:
    fields: dict[str, Any] = {"max_retries": 0, "max_tokens": 128}
    return ChatOpenAI(model=model, api_key=SecretStr(key), base_url=base_url, **fields)


@pytest.fixture(scope="module")
def chain(server: LiveServer) -> ChatOpenAI:
    return langchain(server.base_url, KEY, MODEL)


HUMAN = HumanMessage(content=asks(PICTURE)["messages"][0]["content"])


def test_langchain_streams_what_it_gets_whole_about_a_picture(chain: ChatOpenAI) -> None:
    whole = chain.invoke([HUMAN], temperature=0)
    assert whole.content and whole.usage_metadata
    assert "".join(str(chunk.content) for chunk in chain.stream([HUMAN], temperature=0)) == (
        whole.content
    )


def test_langchain_gets_an_object(chain: ChatOpenAI) -> None:
    assert isinstance(chain.with_structured_output(Scene).invoke([HUMAN]), Scene)


def test_langchain_gets_an_object_by_a_tool(chain: ChatOpenAI) -> None:
    by_tool = chain.with_structured_output(Scene, method="function_calling")
    assert isinstance(by_tool.invoke([HUMAN]), Scene)


def test_langchain_calls_a_tool_and_goes_on(chain: ChatOpenAI) -> None:
    called = chain.bind_tools([TOOL], tool_choice="required").invoke([HUMAN])
    assert isinstance(called, AIMessage) and called.tool_calls[0]["name"] == "count"
    result = ToolMessage("2", tool_call_id=called.tool_calls[0]["id"])
    assert isinstance(chain.bind_tools([TOOL]).invoke([HUMAN, called, result]).content, str)


def test_langchain_accumulates_a_streamed_call(rig: Rig) -> None:
    chain = langchain(f"{rig.url}/v1", FAKE_KEY, "tiny")
    chunks: list[Any] = list(chain.bind_tools([TOOL]).stream("hi"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert [call["args"] for call in whole.tool_calls] == [ARGUMENTS]
