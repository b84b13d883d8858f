"""What an answer can be told to be and to tell: n, logprobs, tools, thoughts, receipts, text."""

import json
import math
import threading
from collections.abc import Iterator
from collections.abc import Sequence as Many
from typing import Any

import httpx
import openai
import pytest

from fakes import ANSWER, CARD, EOS, KEY, TOKENS_PER_ITEM, Rig, assert_error, body, running, say
from litevl.api import responses
from litevl.errors import InvalidValueError
from litevl.sequence import ChoiceGrammar, JsonGrammar, Sequence, TokenLogprobs, ToolGrammar
from test_stream import chunks

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "北京"}}\n</tool_call>'


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


@pytest.fixture
def client(rig: Rig) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{rig.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def joined(parts: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """A streamed choice as a whole one."""
    text = {"content": "", "reasoning_content": ""}
    calls: dict[int, dict[str, Any]] = {}
    scores: list[Any] = []
    reasons = []
    for choice in (choice for part in parts for choice in part["choices"]):
        if choice["index"] != index:
            continue
        for name in text:
            text[name] += choice["delta"].get(name) or ""
        for call in choice["delta"].get("tool_calls", ()):
            known = calls.setdefault(call["index"], {"arguments": ""})
            function = call["function"]
            known["arguments"] += function.get("arguments", "")
            known |= {"name": function["name"], "id": call["id"]} if "name" in function else {}
        scores += (choice["logprobs"] or {}).get("content", ())
        reasons.append(choice["finish_reason"])
    assert [reason for reason in reasons if reason] == reasons[-1:]
    return {**text, "calls": calls, "scores": scores, "reason": reasons[-1]}


def by_seed(sequence: Sequence) -> list[int]:
    return say(f"answer {sequence.params.seed}")


# n ---------------------------------------------------------------------------------------------


def test_n_answers_have_indices_and_seeds_of_their_own_and_share_a_prompt(rig: Rig) -> None:
    rig.engine.script = by_seed
    answer = rig.chat(n=3, seed=7).json()
    told = [(each["index"], each["message"]["content"]) for each in answer["choices"]]
    assert told == [(0, "answer 7"), (1, "answer 8"), (2, "answer 9")]
    assert len({id(each.prompt) for each in rig.engine.added}) == 1
    usage = answer["usage"]
    assert usage["completion_tokens"] == 3 * len(say("answer 7"))
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_streams_of_n_answers_are_interleaved_and_each_ends_once(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say("ab"[sequence.params.seed % 2] * 5)
    options = {"include_usage": True}
    parts = chunks(rig.chat(n=2, seed=0, stream=True, stop="bb", stream_options=options))
    assert [joined(parts, index)["content"] for index in (0, 1)] == ["aaaaa", ""]
    assert joined(parts, 1)["reason"] == "stop"
    roles = [part["choices"][0]["index"] for part in parts[:-1] if "role" in delta_of(part)]
    assert sorted(roles) == [0, 1]
    assert parts[-1]["usage"]["completion_tokens"] == len(say("aaaaa")) + 2


def delta_of(part: dict[str, Any]) -> dict[str, Any]:
    delta: dict[str, Any] = part["choices"][0]["delta"]
    return delta


# logprobs --------------------------------------------------------------------------------------


def test_logprobs_tell_every_token_but_the_stop_token(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say("!é!")
    plain = rig.chat().json()["choices"][0]
    assert plain["logprobs"] is None
    content = rig.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert [bytes(each["bytes"]) for each in content] == [b"!", b"\xc3", b"\xa9", b"!"]
    assert [each["token"] for each in content] == ["!", "\ufffd", "\ufffd", "!"]
    assert content[3]["top_logprobs"] == [
        {"token": "!", "logprob": -0.5, "bytes": [33]},
        {"token": '"', "logprob": -1.5, "bytes": [34]},
    ]
    assert (
        rig.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
    )
    streamed = joined(chunks(rig.chat(logprobs=True, top_logprobs=2, stream=True)))
    assert streamed["scores"] == content


def test_a_control_token_among_the_likeliest_has_a_name(rig: Rig) -> None:
    rig.engine.script = lambda sequence: [EOS - 1, EOS]
    (scored,) = rig.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert scored["top_logprobs"][1]["token"] == f"<{EOS}>"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_token_that_cannot_come_is_told_by_a_number_that_json_has(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    never = TokenLogprobs(chosen=-math.inf, top=((97, -0.5), (98, -math.inf)))
    monkeypatch.setattr(rig.engine, "_logprobs", lambda sequence, token: never)
    fields: dict[str, Any] = {"logprobs": 2, "prompt": "hi"}
    if "chat" in path:
        fields = body(logprobs=True, top_logprobs=2)
    for more in ({}, {"stream": True}):
        answer = rig.client.post(path, json={**fields, **more})
        assert answer.status_code == 200
        assert "-9999.0" in answer.text and "Infinity" not in answer.text


def test_log_probabilities_become_json_token_by_token_and_never_all_at_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = json.JSONEncoder.iterencode

    def iterencode(self: json.JSONEncoder, value: object, _one_shot: bool = False) -> list[str]:
        chunks = list(encode(self, value, _one_shot))
        sizes.append(sum(map(len, chunks)))
        return chunks

    monkeypatch.setattr(json.JSONEncoder, "iterencode", iterencode)
    rig.engine.script = lambda sequence: say("a" * 200)
    answer = rig.chat(logprobs=True, top_logprobs=20, n=2)
    assert len(answer.json()["choices"][1]["logprobs"]["content"]) == 200
    assert len(answer.content) > 100 * max(sizes)


def test_more_log_probabilities_than_can_be_kept_end_a_whole_answer_and_no_stream(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "MAX_SCORES", 1000)
    fields = {"logprobs": True, "top_logprobs": 2, "n": 2}
    assert_error(rig.chat(**fields), 400, "invalid_value", "logprobs")
    assert rig.engine.num_running == rig.service.num_running == 0
    assert joined(chunks(rig.chat(**fields, stream=True)), 1)["content"] == ANSWER


# Stopping --------------------------------------------------------------------------------------


def test_a_stop_token_is_no_part_of_the_answer(rig: Rig) -> None:
    choice = rig.chat(stop_token_ids=[ord("c")]).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Two ", "stop")


# Tools -----------------------------------------------------------------------------------------


def test_a_call_is_told_as_openai_tells_it(rig: Rig, client: openai.OpenAI) -> None:
    rig.engine.script = lambda sequence: say(f"I look.\n{CALL}")
    asked: Any = {"model": "tiny", "messages": body()["messages"], "tools": [TOOL]}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    (call,) = choice.message.tool_calls or []
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "get_time",
        {"city": "北京"},
    )
    with client.chat.completions.stream(**asked) as stream:
        for _ in stream:
            pass
    (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert (streamed.function.name, streamed.function.arguments) == (
        call.function.name,
        call.function.arguments,
    )
    (offered,) = rig.preprocessor.seen[-1].tools
    assert json.loads(offered.definition) == TOOL


def test_a_streamed_call_begins_with_its_name_and_has_one_id(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say(CALL + "\n" + CALL)
    parts = chunks(rig.chat(tools=[TOOL], stream=True))
    streamed = joined(parts)
    assert streamed["reason"] == "tool_calls"
    assert [call["name"] for call in streamed["calls"].values()] == ["get_time"] * 2
    assert len({call["id"] for call in streamed["calls"].values()}) == 2
    assert all(isinstance(delta_of(part)["content"], str) for part in parts)
    one = joined(chunks(rig.chat(tools=[TOOL], stream=True, parallel_tool_calls=False)))
    assert list(one["calls"]) == [0]


def test_without_tools_or_with_none_to_be_called_a_call_is_text(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say(CALL)
    for fields in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        choice = rig.chat(**fields).json()["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (CALL, "stop")
        assert "tool_calls" not in choice["message"]
        assert rig.preprocessor.seen[-1].tools == ()


def test_a_tool_that_must_be_called_is_a_grammar(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say(CALL)
    assert rig.chat(tools=[TOOL], tool_choice="required").json()["choices"][0]["finish_reason"] == (
        "tool_calls"
    )
    named = {"type": "function", "function": {"name": "get_time"}}
    choice = rig.chat(tools=[TOOL], tool_choice=named).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["message"]["content"] is None
    for grammar, after_thinking in rig.grammars.compiled:
        assert isinstance(grammar, ToolGrammar) and not after_thinking
    assert all(sequence.mask for sequence in rig.engine.added)


# Forms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, JsonGrammar('{"type":"object"}')),
        ({"structured_outputs": {"choice": ["a", "b"]}}, ChoiceGrammar(("a", "b"))),
        ({}, None),
    ],
    ids=str,
)
def test_a_prescribed_form_reaches_the_engine_as_a_mask(
    rig: Rig, fields: dict[str, Any], grammar: object
) -> None:
    rig.preprocessor.is_thinking = True
    rig.chat(**fields)
    (sequence,) = rig.engine.added
    assert (sequence.mask is not None) == (grammar is not None)
    assert rig.grammars.compiled == ([(grammar, True)] if grammar else [])


def test_a_form_that_cannot_be_compiled_is_400(rig: Rig) -> None:
    rig.grammars.error = InvalidValueError("no such form", param="response_format")
    answer = rig.chat(response_format={"type": "json_object"}, stream=True)
    assert_error(answer, 400, "invalid_value", "response_format")
    assert rig.engine.added == []


# Thoughts --------------------------------------------------------------------------------------


def test_thoughts_are_told_beside_the_answer_and_counted(rig: Rig) -> None:
    rig.preprocessor.is_thinking = True
    rig.engine.script = lambda sequence: say("hm\n</think>\n\nFour.")
    answer = rig.chat().json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"], message["reasoning"]) == (
        "Four.",
        "hm",
        "hm",
    )
    details = answer["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == len(b"hm\n</think>\n\n")
    streamed = joined(chunks(rig.chat(stream=True)))
    assert (streamed["content"], streamed["reasoning_content"]) == ("Four.", "hm")


def test_clients_that_print_only_content_can_be_told_thoughts_there() -> None:
    with running(reasoning_in_content=True) as rig:
        rig.preprocessor.is_thinking = True
        rig.engine.script = lambda sequence: say("hm\n</think>\n\nFour.")
        message = rig.chat().json()["choices"][0]["message"]
        assert message["content"] == "<think>\nhm\n</think>\n\nFour."
        assert "reasoning_content" not in message


# Media -----------------------------------------------------------------------------------------


def test_a_receipt_tells_what_was_seen_of_each_picture(rig: Rig) -> None:
    messages = [{"role": "user", "content": [PICTURE, {"type": "text", "text": "?"}]}]
    assert "litevl" not in rig.chat(messages=messages).json()
    expected = {
        "kind": "image",
        "original_size": [8, 8],
        "seen_size": [8, 8],
        "grid": [1, 4, 4],
        "tokens": TOKENS_PER_ITEM,
        "scale": [1.0, 1.0],
    }
    answer = rig.chat(messages=messages, media_receipt=True).json()
    assert answer["litevl"] == {"media": [expected]}
    first, *others = chunks(rig.chat(messages=messages, media_receipt=True, stream=True))
    assert first["litevl"] == {"media": [expected]}
    assert not any("litevl" in part for part in others)


def test_media_that_may_shrink_are_fitted_and_the_receipt_says_so(rig: Rig) -> None:
    messages = [{"role": "user", "content": [PICTURE]}]
    answer = rig.chat(messages=messages, media_fit="auto", media_receipt=True).json()
    (told,) = answer["litevl"]["media"]
    assert (told["seen_size"], told["scale"]) == ([4, 4], [0.5, 0.5])
    rig.chat(messages=messages, media_fit="auto", max_tokens=7)
    assert rig.preprocessor.reserves == [CARD.max_model_len // 8, 7], "the answer's room"


# Text completions ------------------------------------------------------------------------------


def complete(rig: Rig, **fields: Any) -> httpx.Response:
    return rig.client.post("/v1/completions", json={"prompt": "once", **fields})


def test_a_text_goes_on_without_a_template(rig: Rig) -> None:
    answer = complete(rig, max_tokens=3).json()
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {"index": 0, "text": ANSWER[:3], "logprobs": None, "finish_reason": "length"}
    ]
    assert answer["usage"]["prompt_tokens"] == 4
    assert bytes(rig.engine.added[0].prompt.token_ids.tolist()) == b"once"
    by_ids = complete(rig, prompt=list(b"once"), max_tokens=3).json()
    assert by_ids["choices"] == answer["choices"]


def test_several_prompts_and_answers_are_numbered_in_order(rig: Rig) -> None:
    rig.engine.script = by_seed
    answer = complete(rig, prompt=["a", "b"], n=2, seed=5, echo=True).json()
    texts = [(each["index"], each["text"]) for each in answer["choices"]]
    assert texts == [(0, "aanswer 5"), (1, "aanswer 6"), (2, "banswer 5"), (3, "banswer 6")]
    assert answer["usage"]["prompt_tokens"] == 2
    parts = chunks(complete(rig, prompt=["a", "b"], n=2, seed=5, echo=True, stream=True))
    streamed = ["".join(text_of(part, index) for part in parts) for index in range(4)]
    assert streamed == [text for _, text in texts]


def text_of(part: dict[str, Any], index: int) -> str:
    return "".join(each["text"] for each in part["choices"] if each["index"] == index)


def test_ids_to_echo_become_text_in_a_worker_and_not_on_the_event_loop(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def decode(token_ids: Many[int]) -> str:
        threads.append(threading.current_thread().name)
        return bytes(token_ids).decode()

    monkeypatch.setattr(rig.preprocessor, "decode", decode)
    answer = complete(rig, prompt=list(b"once"), echo=True, max_tokens=3).json()
    assert answer["choices"][0]["text"] == f"once{ANSWER[:3]}"
    (thread,) = threads
    assert thread.startswith("litevl-prepare")


def test_a_completions_logprobs_are_lists_beside_each_other(rig: Rig) -> None:
    rig.engine.script = lambda sequence: say("abc")
    told = complete(rig, logprobs=2).json()["choices"][0]["logprobs"]
    assert told == {
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-0.5] * 3,
        "top_logprobs": [
            {"a": -0.5, "b": -1.5},
            {"b": -0.5, "c": -1.5},
            {"c": -0.5, "d": -1.5},
        ],
        "text_offset": [0, 1, 2],
    }


def test_a_completions_streamed_lists_joined_are_those_of_the_whole_answer(rig: Rig) -> None:
    fields = {"logprobs": 2, "n": 2, "seed": 0}
    rig.engine.script = lambda sequence: say("é🙂 ab"[sequence.params.seed :])
    wholes = [each["logprobs"] for each in complete(rig, **fields).json()["choices"]]
    streamed: list[dict[str, Any]] = [{name: [] for name in whole} for whole in wholes]
    for part in chunks(complete(rig, **fields, stream=True)):
        for choice in part["choices"]:
            for name, told in (choice["logprobs"] or {}).items():
                streamed[choice["index"]][name] += told
    assert streamed == wholes


def test_a_text_that_leaves_no_room_is_400(rig: Rig) -> None:
    answer = complete(rig, prompt="a" * 512)
    assert "512" in assert_error(answer, 400, "context_length_exceeded", "prompt")


def test_the_openai_package_completes_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="once", max_tokens=50)
    assert answer.choices[0].text == ANSWER
    stream = client.completions.create(model="tiny", prompt="once", max_tokens=50, stream=True)
    assert "".join(part.choices[0].text for part in stream) == ANSWER


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "n": 4}, "n"),
        ("/v1/completions", {"prompt": ["a", "b", "c", "d"]}, "prompt"),
    ],
)
def test_more_answers_than_can_ever_run_or_wait_are_a_400(
    path: str, fields: dict[str, Any], param: str
) -> None:
    """It was 429, for ever: clients asked again and again."""
    with running(max_num_seqs=2, max_num_queued_reqs=1) as rig:
        told = assert_error(rig.client.post(path, json=fields), 400, "invalid_value", param)
        assert "4 answers" in told and " 3 at once" in told
