"""JSON -> a checked request: what is honoured, refused and ignored."""

from typing import Any

import pytest

from fakes import body
from litevl.api.protocol import (
    CHAT_FIELDS,
    UNSUPPORTED,
    ChatCompletionRequest,
    CompletionRequest,
    Streaming,
)
from litevl.api.sampling import SAMPLING_FIELDS
from litevl.errors import InvalidRequestError, LitevlError
from litevl.sequence import (
    ChoiceGrammar,
    JsonGrammar,
    MediaOptions,
    MediaPart,
    TextPart,
    ToolGrammar,
)

TOOL = {
    "type": "function",
    "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}},
}
OTHER_TOOL = {"type": "function", "function": {"name": "other"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
CLIP = {"type": "video_url", "video_url": {"url": "https://example.com/clip.mp4"}}


def parse(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.parse(body(**fields))


def error_of(**fields: Any) -> LitevlError:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**fields)
    return caught.value


# Fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("n", 8, 8),
        ("max_tokens", 5, 5),
        ("max_tokens", 5.0, 5),
        ("temperature", 0, 0.0),
        ("temperature", 2, 2.0),
        ("top_p", 1, 1.0),
        ("top_p", 1e-9, 1e-9),
        ("top_k", -1, -1),
        ("repetition_penalty", 0.01, 0.01),
        ("presence_penalty", -2, -2.0),
        ("frequency_penalty", 2, 2.0),
        ("seed", -(2**63), -(2**63)),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("stop", "\n", ("\n",)),
        ("stop", ["a", "b"], ("a", "b")),
        ("stop", [], ()),
        ("min_p", 1, 1.0),
        ("min_tokens", 0, 0),
        ("ignore_eos", True, True),
        ("stop_token_ids", [3, 4.0], (3, 4)),
        ("logit_bias", {"7": -100, "0": 2.5}, ((7, -100.0), (0, 2.5))),
        ("logit_bias", {}, ()),
    ],
)
def test_a_sampling_field_in_its_range_is_read(name: str, value: object, read: object) -> None:
    assert getattr(parse(**{name: value}).sampling, name) == read
    completion = CompletionRequest.parse({"prompt": "hi", name: value})
    assert getattr(completion.sampling, name) == read


@pytest.mark.parametrize(
    ("field", "value", "name", "read"),
    [
        ("model", "tiny", "model", "tiny"),
        ("stream", True, "streaming", Streaming(stream=True)),
        ("parallel_tool_calls", False, "parallel_tool_calls", False),
        ("media_fit", "auto", "fits_media", True),
        ("media_fit", "none", "fits_media", False),
        ("media_receipt", True, "wants_receipt", True),
        ("reasoning_effort", "high", "reasoning_effort", "high"),
        ("chat_template_kwargs", {"a": [1]}, "template_kwargs", (("a", [1]),)),
        ("response_format", {"type": "text"}, "document", None),
        ("response_format", {"type": "json_object"}, "document", JsonGrammar('{"type":"object"}')),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}},
            "document",
            JsonGrammar('{"a":1}'),
        ),
        ("structured_outputs", {"json": {"a": "圆"}}, "document", JsonGrammar('{"a":"圆"}')),
        ("structured_outputs", {"json": '{"a": 1}'}, "document", JsonGrammar('{"a": 1}')),
        ("structured_outputs", {"choice": ["a", "b"]}, "document", ChoiceGrammar(("a", "b"))),
    ],
    ids=str,
)
def test_a_chat_field_in_its_range_is_read(
    field: str, value: object, name: str, read: object
) -> None:
    assert getattr(parse(**{field: value}), name) == read


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 7),
        ("stream", "true"),
        ("stream", 1),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_completion_tokens", -1),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**400),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1e300),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e999),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("seed", 2**64),
        ("seed", 0.5),
        ("stop", 5),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", ["a", 1]),
        ("stop", ["a"] * 17),
        ("stop", "a" * 257),
        ("stream_options", []),
        ("n", 0),
        ("n", 9),
        ("min_p", 1.5),
        ("min_p", float("nan")),
        ("min_tokens", -1),
        ("ignore_eos", 1),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("stop_token_ids", 5),
        ("logit_bias", [1]),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 1, "01": 2}),  # one token under two names
        ("logit_bias", {"1\n": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": float("nan")}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("logprobs", 1),
        ("top_logprobs", 21),
        ("top_logprobs", 1),  # without logprobs
        ("tools", {}),
        ("tools", [TOOL] * 129),
        ("tools", ["x"]),
        ("tools", [{"type": "function"}]),
        ("tools", [{"type": "function", "function": {"name": "a b"}}]),
        ("tools", [TOOL, TOOL]),
        ("tool_choice", "sometimes"),
        ("tool_choice", "required"),  # without tools
        ("tool_choice", 5),
        ("parallel_tool_calls", "no"),
        ("response_format", "json"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}),
        ("structured_outputs", {}),
        ("structured_outputs", {"json": {}, "choice": ["a"]}),
        ("structured_outputs", {"choice": []}),
        ("structured_outputs", {"choice": ["a", ""]}),
        ("structured_outputs", {"json": "x" * (2**18 + 1)}),
        ("media_fit", True),
        ("media_receipt", "yes"),
        ("chat_template_kwargs", []),
        ("mm_processor_kwargs", 1),
        ("mm_processor_kwargs", {"fps": -1}),
        ("mm_processor_kwargs", {"fps": 1, "nframes": 4}),
        ("reasoning_effort", "extreme"),
        ("messages", "hi"),
        ("messages", []),
    ],
    ids=str,
)
def test_a_field_out_of_its_range_is_named(name: str, value: object) -> None:
    error = error_of(**{name: value})
    assert (error.status, error.code) == (400, "invalid_value")
    assert error.param is not None and error.param.replace("[", ".").split(".")[0] == name
    assert error.param in error.message


def test_null_means_absent_and_unknown_fields_are_ignored() -> None:
    nothing = dict.fromkeys([*CHAT_FIELDS, *SAMPLING_FIELDS, *UNSUPPORTED, "user", "metadata"])
    assert parse(**nothing, no_such_field={"a": 1}) == parse()


def test_fields_without_effect_are_taken_with_any_value() -> None:
    names = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
    assert parse(**{name: {"a": 1} for name in names}) == parse()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("functions", [{}]),
        ("function_call", {"name": "f"}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("tools", [{"type": "web_search"}]),
        ("tool_choice", {"type": "allowed_tools"}),
        ("structured_outputs", {"regex": "a+"}),
        ("mm_processor_kwargs", {"size": {}}),
        ("verbosity", "low"),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
    ],
)
def test_a_known_field_that_cannot_be_honoured_is_refused(name: str, value: object) -> None:
    error = error_of(**{name: value})
    assert (error.status, error.code) == (400, "unsupported_parameter")
    assert error.param is not None and error.param.replace("[", ".").split(".")[0] == name


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in UNSUPPORTED.items() for value in values]
)
def test_a_field_that_asks_for_nothing_is_fine(name: str, value: object) -> None:
    assert parse(**{name: value}) == parse()


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).sampling.max_tokens == 7


def test_stream_options_are_read() -> None:
    options = {"include_usage": True, "continuous_usage_stats": None, "other": 1}
    expected = Streaming(stream=True, include_usage=True)
    assert parse(stream=True, stream_options=options).streaming == expected


def test_stream_options_without_a_stream_are_refused() -> None:
    assert error_of(stream_options={"include_usage": True}).param == "stream_options"


def test_a_wrong_stream_option_is_named_by_its_path() -> None:
    error = error_of(stream=True, stream_options={"include_usage": 1})
    assert error.param == "stream_options.include_usage"


# Messages --------------------------------------------------------------------------------------


def test_messages_become_parts_and_references_in_order() -> None:
    request = parse(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [CLIP, {"type": "text", "text": "and"}, PICTURE]},
            {"role": "assistant", "content": None, "tool_calls": [], "refusal": None},
            {
                "role": "user",
                "content": [PICTURE, {"type": "input_text", "text": "?"}],
                "name": "x",
            },
        ]
    )
    assert [message.role for message in request.messages] == ["system", "user", "assistant", "user"]
    assert [message.parts for message in request.messages] == [
        (TextPart("Be brief."),),
        (MediaPart(0), TextPart("and"), MediaPart(1)),
        (),
        (MediaPart(2), TextPart("?")),
    ]
    assert [(ref.declared, ref.param) for ref in request.media] == [
        ("video", "messages[1].content[0]"),
        ("image", "messages[1].content[2]"),
        ("image", "messages[3].content[0]"),
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[0]"),
        ({"content": "hi"}, "messages[0].role"),
        ({"role": "wizard", "content": "hi"}, "messages[0].role"),
        ({"role": ["user"], "content": "hi"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": {"type": "text"}}, "messages[0].content"),
        ({"role": "user", "content": ["hi"]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"text": "hi"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "smell"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "messages[0].content[0].type"),
    ],
    ids=str,
)
def test_a_malformed_message_is_named_by_its_path(message: object, param: str) -> None:
    assert error_of(messages=[message]).param == param


def test_calls_results_and_thoughts_of_earlier_turns_are_read() -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    call = {"id": "c1", "type": "function", "function": function}
    loose = {"function": {"name": "g", "arguments": {"b": "圆"}}}
    empty = {"id": "c3", "function": {"name": "h", "arguments": ""}}
    request = parse(
        messages=[
            {"role": "assistant", "tool_calls": [call, loose, empty], "reasoning": "hm"},
            {"role": "tool", "tool_call_id": "c1", "content": "4"},
            {"role": "assistant", "content": "ok", "reasoning_content": "so"},
        ]
    )
    asked, result, said = request.messages
    calls = [(each.id, each.name, each.arguments) for each in asked.tool_calls]
    assert calls == [("c1", "f", '{"a": 1}'), ("", "g", '{"b":"圆"}'), ("c3", "h", "{}")]
    assert (asked.reasoning, asked.parts, said.reasoning) == ("hm", (), "so")
    assert (result.role, result.tool_call_id, result.parts) == ("tool", "c1", (TextPart("4"),))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"tool_calls": "x"}, "messages[0].tool_calls"),
        ({"tool_calls": [{}]}, "messages[0].tool_calls[0].function"),
        ({"tool_calls": [{"function": {}}]}, "messages[0].tool_calls[0].function.name"),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"reasoning": 5}, "messages[0].reasoning"),
        ({"function_call": {"name": "f"}}, "messages[0].function_call"),
    ],
    ids=str,
)
def test_a_malformed_turn_of_the_assistant_is_named_by_its_path(
    message: dict[str, object], param: str
) -> None:
    assert error_of(messages=[{"role": "assistant", **message}]).param == param


def test_a_thought_that_was_told_as_content_is_one_again() -> None:
    def read(content: str) -> tuple[str | None, object]:
        (message,) = parse(messages=[{"role": "assistant", "content": content}]).messages
        return message.reasoning, message.parts

    assert read("<think>\nhm\n</think>\n\nFour.") == ("hm", (TextPart("Four."),))
    for plain in ("Four.", "<think>\nhm", "I say <think>a</think>"):
        assert read(plain) == (None, (TextPart(plain),))


def test_options_of_the_request_hold_where_a_part_says_nothing_else() -> None:
    own = {**PICTURE, "max_pixels": 50_000}
    request = parse(
        messages=[{"role": "user", "content": [PICTURE, own, {**CLIP, "nframes": 4}]}],
        mm_processor_kwargs={"max_pixels": 90_000, "fps": 1},
    )
    assert [ref.options for ref in request.media] == [
        MediaOptions(max_pixels=90_000, fps=1.0),
        MediaOptions(max_pixels=50_000, fps=1.0),
        MediaOptions(max_pixels=90_000, nframes=4),
    ]


# Tools and forms -------------------------------------------------------------------------------


def test_a_choice_of_tools_becomes_what_is_offered_and_a_grammar() -> None:
    def outcome(choice: object, **more: Any) -> tuple[list[str], object]:
        request = parse(tools=[TOOL, OTHER_TOOL], tool_choice=choice, **more)
        return [tool.name for tool in request.conversation.tools], request.grammar("hermes")

    both = ["get_time", "other"]
    tools = parse(tools=[TOOL, OTHER_TOOL]).tools
    named = {"type": "function", "function": {"name": "other"}}
    assert outcome(None) == outcome("auto") == (both, None)
    assert outcome("none") == ([], None)
    assert outcome("required") == (both, ToolGrammar(tools, "hermes"))
    alone = ToolGrammar(tools, "hermes", is_parallel=False)
    assert outcome("required", parallel_tool_calls=False) == (both, alone)
    assert outcome(named) == (both, ToolGrammar(tools[1:], "hermes", is_parallel=False))
    assert tools[1].parameters == '{"type":"object"}'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "b"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [TOOL], "structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ({"tools": [TOOL], "tool_choice": "required", "stop": "x"}, "stop"),
        ({"response_format": {"type": "json_object"}, "stop": "x"}, "stop"),
        ({"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}, "ignore_eos"),
        ({"structured_outputs": {"choice": ["a"]}, "min_tokens": 1}, "min_tokens"),
        ({"structured_outputs": {"choice": ["a"]}, "stop_token_ids": [1]}, "stop_token_ids"),
        (
            {"structured_outputs": {"json": {}}, "response_format": {"type": "json_object"}},
            "structured_outputs",
        ),
        ({"min_tokens": 3, "max_tokens": 2}, "min_tokens"),
    ],
    ids=str,
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], param: str) -> None:
    assert error_of(**fields).param == param


def test_errors_never_repeat_what_the_client_sent() -> None:
    secret = "my-secret-words"
    for fields in (
        {"messages": [{"role": secret, "content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": secret}]}]},
        {"temperature": secret},
        {"stop": [secret, ""]},
        {"tool_choice": secret},
    ):
        assert secret not in error_of(**fields).message


def test_content_is_not_in_the_repr_of_a_request() -> None:
    request = parse(messages=[{"role": "user", "content": ["secret", PICTURE][1:]}], stop="secret")
    assert "secret" not in repr(request)
    assert "QUJD" not in repr(request)
