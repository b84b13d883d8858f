"""JSON -> a checked request: what is honoured, refused and ignored."""

from typing import Any

import pytest

from fakes import CARD, EOS, body
from litevl.api.protocol import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    SAMPLING_FIELDS,
    UNSUPPORTED,
    ChatCompletionRequest,
    CompletionRequest,
    Streaming,
)
from litevl.errors import ContextLengthError, InvalidRequestError, LitevlError
from litevl.sequence import (
    ChoiceGrammar,
    JsonGrammar,
    MediaOptions,
    MediaPart,
    SamplingParams,
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


# Sampling --------------------------------------------------------------------------------------


def sampled(request: ChatCompletionRequest, prompt_len: int = 1, seed: int = 0) -> SamplingParams:
    (params,) = request.sampling.params(CARD, prompt_len, seed)
    return params


def test_the_models_defaults_stand_where_the_request_is_silent() -> None:
    params = sampled(parse(), 12, 3)
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.9, 20)
    assert (params.repetition_penalty, params.presence_penalty) == (1.05, 0.0)
    assert (params.max_tokens, params.seed) == (500, 3)
    assert params.stop_token_ids == {EOS}


def test_the_request_wins_over_the_models_defaults() -> None:
    request = parse(temperature=0, top_p=0.1, top_k=-1, repetition_penalty=1, seed=9, max_tokens=3)
    params = sampled(request, 12, 3)
    assert (params.temperature, params.top_p, params.top_k) == (0, 0.1, 0)
    assert (params.repetition_penalty, params.seed, params.max_tokens) == (1, 9, 3)


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63, 2**64 - 1])
def test_every_seed_fits_into_a_signed_64_bit_integer(seed: int) -> None:
    assert 0 <= sampled(parse(seed=seed)).seed < 2**63


def test_max_tokens_is_clamped_to_the_room_left() -> None:
    assert sampled(parse(max_tokens=10**9), 511).max_tokens == 1


def test_a_prompt_that_leaves_no_room_says_what_it_needs_and_what_fits() -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is 512 tokens") as caught:
        sampled(parse(), 512)
    assert "need 512" in caught.value.message
    assert caught.value.code == "context_length_exceeded"


def test_every_answer_of_n_has_a_seed_of_its_own() -> None:
    params = parse(n=3, seed=2**63 - 2).sampling.params(CARD, 1, seed=0)
    assert [each.seed for each in params] == [2**63 - 2, 2**63 - 1, 0]


def test_logprobs_and_top_logprobs_become_one_number() -> None:
    assert sampled(parse()).logprobs is None
    assert sampled(parse(logprobs=False, top_logprobs=0)).logprobs is None
    assert sampled(parse(logprobs=True)).logprobs == 0
    assert sampled(parse(logprobs=True, top_logprobs=3)).logprobs == 3


def test_stop_tokens_are_the_clients_and_the_models_unless_those_are_ignored() -> None:
    assert sampled(parse(stop_token_ids=[7])).stop_token_ids == {7, EOS}
    assert sampled(parse(stop_token_ids=[7], ignore_eos=True)).stop_token_ids == {7}


@pytest.mark.parametrize("fields", [{"logit_bias": {"258": 1}}, {"stop_token_ids": [258]}], ids=str)
def test_tokens_beyond_the_vocabulary_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sampled(parse(**fields))
    assert caught.value.param == next(iter(fields))


# Text completions ------------------------------------------------------------------------------


def completion_error(**fields: Any) -> LitevlError:
    with pytest.raises(InvalidRequestError) as caught:
        CompletionRequest.parse({"prompt": "hi", **fields})
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("hi", ("hi",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        ([[1], "b"], ((1,), "b")),
    ],
)
def test_a_prompt_is_texts_or_token_ids(prompt: object, read: object) -> None:
    assert CompletionRequest.parse({"prompt": prompt}).prompts == read


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], [-1], [1.5], ["a", 1], ["a"] * 17])
def test_any_other_prompt_is_refused(prompt: object) -> None:
    assert str(completion_error(prompt=prompt).param).startswith("prompt")


def test_completions_have_fields_of_their_own() -> None:
    nothing = dict.fromkeys([*COMPLETION_FIELDS, *SAMPLING_FIELDS, "suffix", "best_of"])
    request = CompletionRequest.parse({**nothing, "prompt": "hi", "user": "x", "suffix": ""})
    assert request.sampling.max_tokens == 16
    assert CompletionRequest.parse({"prompt": "hi", "logprobs": 0}).sampling.logprobs == 0
    assert completion_error(suffix="x").param == "suffix"
    assert completion_error(best_of=3).param == "best_of"
    assert completion_error(echo=True, logprobs=1).param == "logprobs"
    assert completion_error(stop="x", structured_outputs={"choice": ["a"]}).param == "stop"
