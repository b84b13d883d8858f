"""Tools that must be called: the calls, all of them and nothing else, wherever an answer ends."""

from collections.abc import Iterator
from typing import Any

import pytest

from fakes import Rig, running, say
from test_answers import CALL, TOOL, joined
from test_stream import chunks

THOUGHT = 'Not <tool_call>{"name": "other", "arguments": {}}</tool_call>, but\nthis.'
ASKED: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"}


@pytest.fixture(params=["no thought", "a thought", "a thought in the content"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Thinks before it calls, if at all."""
    with running(reasoning_in_content=request.param == "a thought in the content") as rig:
        rig.preprocessor.is_thinking = request.param != "no thought"
        before = f"{THOUGHT}\n</think>\n\n" if rig.preprocessor.is_thinking else ""
        rig.engine.script = lambda sequence: say(before + CALL)
        yield rig


def thought_of(rig: Rig, answer: dict[str, Any]) -> str:
    """What it says beside calls; the rest must be empty."""
    content, reasoning = answer["content"] or "", answer.get("reasoning_content") or ""
    assert not (content and reasoning)
    assert bool(content) <= content.startswith("<think>\n")
    return content.removeprefix("<think>\n").removesuffix("\n</think>") or reasoning


def test_a_call_that_is_spelled_in_a_thought_is_none(rig: Rig) -> None:
    said = THOUGHT if rig.preprocessor.is_thinking else ""
    for more in ({}, {"parallel_tool_calls": False}):
        message = rig.chat(**ASKED, **more).json()["choices"][0]["message"]
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["get_time"]
        assert thought_of(rig, message) == said
        streamed = joined(chunks(rig.chat(**ASKED, **more, stream=True)))
        assert [call["name"] for call in streamed["calls"].values()] == ["get_time"]
        assert thought_of(rig, streamed) == said


def test_a_call_that_is_cut_off_leaves_no_marker_in_the_content(rig: Rig) -> None:
    script = rig.engine.script(None)  # type: ignore[arg-type]  # which does not look
    before = len(script) - len(say(CALL))
    for length in range(1, len(CALL.encode())):
        asked = {**ASKED, "max_tokens": before + length}
        choice = rig.chat(**asked).json()["choices"][0]
        streamed = joined(chunks(rig.chat(**asked, stream=True)))
        assert choice["finish_reason"] == streamed["reason"] == "length"
        assert thought_of(rig, choice["message"]) == thought_of(rig, streamed)
        assert "tool_call" not in thought_of(rig, streamed).removeprefix(THOUGHT)
        assert bool(choice["message"].get("tool_calls")) == (length >= CALL.index(","))


def test_a_stop_string_amid_a_call_does_not_make_it_look_whole() -> None:
    with running() as rig:
        for call in (
            CALL,
            "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>",
        ):
            said = say(call)
            rig.engine.script = lambda sequence, said=said: said  # type: ignore[misc]
            reasons = {
                stop: rig.chat(tools=[TOOL], stop=stop).json()["choices"][0]["finish_reason"]
                for stop in ("city", "a>", "</tool_call>", "</function>")
                if stop in call
            }
            expected = {"city": "stop", "a>": "stop", "</tool_call>": "tool_calls"}
            assert reasons == {stop: expected.get(stop, "stop") for stop in reasons}
