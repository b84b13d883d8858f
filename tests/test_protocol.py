"""A body -> JSON -> a checked request: what is honoured, refused, ignored and repaired."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import CARD, EOS, body
from litevl.api.json_body import JSONBody, parse_json
from litevl.api.protocol import FIELDS, UNSUPPORTED, ChatCompletionRequest, StreamOptions
from litevl.errors import (
    ContextLengthError,
    InvalidJSONError,
    InvalidRequestError,
    InvalidValueError,
    LitevlError,
    UnsupportedParameterError,
)
from litevl.sequence import MediaPart, TextPart

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
        ("model", "tiny", "tiny"),
        ("stream", True, True),
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
    ],
)
def test_a_field_in_its_range_is_read(name: str, value: object, read: object) -> None:
    assert getattr(parse(**{name: value}), name) == read


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
        ("messages", "hi"),
        ("messages", []),
    ],
    ids=str,
)
def test_a_field_out_of_its_range_is_named(name: str, value: object) -> None:
    error = error_of(**{name: value})
    assert (error.status, error.code, error.param) == (400, "invalid_value", name)
    assert f"`{name}`" in error.message


def test_null_means_absent_and_unknown_fields_are_ignored() -> None:
    nothing = dict.fromkeys([*FIELDS, *UNSUPPORTED, "user", "metadata"])
    assert parse(**nothing, no_such_field={"a": 1}) == parse()


def test_fields_without_effect_are_taken_with_any_value() -> None:
    names = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
    assert parse(**{name: {"a": 1} for name in names}) == parse()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 5),
        ("logit_bias", {"1": 2}),
        ("min_p", 0.1),
        ("min_tokens", 1),
        ("ignore_eos", True),
        ("stop_token_ids", [1]),
        ("tools", [{"type": "function"}]),
        ("tool_choice", "required"),
        ("functions", [{}]),
        ("function_call", {"name": "f"}),
        ("response_format", {"type": "json_object"}),
        ("structured_outputs", {"json": {}}),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("media_fit", True),
        ("media_receipt", True),
        ("chat_template_kwargs", {"a": 1}),
        ("mm_processor_kwargs", {"fps": 1}),
        ("reasoning_effort", "high"),
        ("verbosity", "low"),
        ("prediction", {"type": "content"}),
        ("web_search_options", {}),
    ],
)
def test_a_known_field_that_cannot_be_honoured_is_refused(name: str, value: object) -> None:
    error = error_of(**{name: value})
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", name)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in UNSUPPORTED.items() for value in values]
)
def test_a_field_that_asks_for_nothing_is_fine(name: str, value: object) -> None:
    assert parse(**{name: value}) == parse()


def test_max_completion_tokens_wins_over_max_tokens() -> None:
    assert parse(max_tokens=5, max_completion_tokens=7).max_tokens == 7


def test_stream_options_are_read() -> None:
    options = {"include_usage": True, "continuous_usage_stats": None, "other": 1}
    expected = StreamOptions(include_usage=True)
    assert parse(stream=True, stream_options=options).stream_options == expected


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


@pytest.mark.parametrize(
    "message",
    [
        {"role": "tool", "content": "4", "tool_call_id": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "assistant", "content": None, "function_call": {"name": "f"}},
    ],
    ids=str,
)
def test_tool_calls_in_messages_are_refused(message: object) -> None:
    with pytest.raises(UnsupportedParameterError):
        parse(messages=[message])


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


def test_the_models_defaults_stand_where_the_request_is_silent() -> None:
    params = parse().sampling_params(CARD, 12, seed=3)
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.9, 20)
    assert (params.repetition_penalty, params.presence_penalty) == (1.05, 0.0)
    assert (params.max_tokens, params.seed) == (500, 3)
    assert params.stop_token_ids == {EOS}


def test_the_request_wins_over_the_models_defaults() -> None:
    request = parse(temperature=0, top_p=0.1, top_k=-1, repetition_penalty=1, seed=9, max_tokens=3)
    params = request.sampling_params(CARD, 12, seed=3)
    assert (params.temperature, params.top_p, params.top_k) == (0, 0.1, 0)
    assert (params.repetition_penalty, params.seed, params.max_tokens) == (1, 9, 3)


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63, 2**64 - 1])
def test_every_seed_fits_into_a_signed_64_bit_integer(seed: int) -> None:
    assert 0 <= parse(seed=seed).sampling_params(CARD, 1, seed=0).seed < 2**63


def test_max_tokens_is_clamped_to_the_room_left() -> None:
    assert parse(max_tokens=10**9).sampling_params(CARD, 511, seed=0).max_tokens == 1


def test_a_prompt_that_leaves_no_room_says_what_it_needs_and_what_fits() -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is 512 tokens") as caught:
        parse().sampling_params(CARD, 512, seed=0)
    assert "need 512" in caught.value.message
    assert caught.value.code == "context_length_exceeded"


# JSON ------------------------------------------------------------------------------------------

BOTH_SLIPS = """{
    "url": f"data:image/png;base64,QUJD",
    "text": "f\\"x\\", }, ], f",
    "list": [1, 2 , ],
}"""
REPAIRED: dict[str, object] = {
    "url": "data:image/png;base64,QUJD",
    "text": 'f"x", }, ], f',
    "list": [1, 2],
}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text('f",]}[{\\ a圆'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('f",}'), inner, max_size=3),
)


def json_error(text: str | bytes) -> str:
    with pytest.raises(InvalidJSONError) as caught:
        parse_json(text.encode() if isinstance(text, str) else text)
    return caught.value.message


@given(st.dictionaries(st.text('f",'), json_values), st.sampled_from([None, 2]))
def test_what_is_json_is_parsed_as_json(value: dict[str, object], indent: int | None) -> None:
    for ensure_ascii in (True, False):
        text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
        assert parse_json(text.encode()) == JSONBody(value)


def with_slips(value: object) -> str:
    """JSON with both slips wherever they can be made."""
    if isinstance(value, str):
        return "f" + json.dumps(value)
    if isinstance(value, list):
        return f"[{''.join(with_slips(each) + ' , ' for each in value)}]"
    if isinstance(value, dict):
        members = (f"{with_slips(k)}: {with_slips(v)},\n" for k, v in value.items())
        return f"{{{''.join(members)}}}"
    return json.dumps(value)


@given(st.dictionaries(st.text('f",'), json_values, min_size=1))
def test_both_slips_are_repaired_wherever_they_stand(value: dict[str, object]) -> None:
    assert parse_json(with_slips(value).encode()) == JSONBody(value, ("f-string", "trailing-comma"))


def test_a_repair_says_which_slips_there_were() -> None:
    assert parse_json(BOTH_SLIPS.encode()) == JSONBody(REPAIRED, ("f-string", "trailing-comma"))
    assert parse_json(b'{"a": f"b"}').slips == ("f-string",)
    assert parse_json(b'{"a": [1,]}').slips == ("trailing-comma",)
    assert parse_json(b'{"a": "b"}').slips == ()


@pytest.mark.parametrize(
    "text",
    [
        '{"a": F"b"}',
        '{"a": ff"b"}',
        '{"a": f "b"}',
        "{'a': 1}",
        '{"a": 1,,}',
        '{"a": 1} // note',
        '{"a": "b}',
        '{"a": 1',
        '{"a": tru,}',
        '{"a": f"b" f"c"}',
        "",
        "{" + "[" * 3,
    ],
)
def test_any_other_slip_stays_an_error_with_its_place(text: str) -> None:
    assert " line 1 column " in json_error(text)


def test_an_error_beside_a_slip_is_told_at_its_own_first_place() -> None:
    assert "line 2 column 6" in json_error('{"b": 1,\n"a": f"b", !}')


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "Infinity", "1" * 5000])
def test_numbers_that_json_does_not_have_are_told_with_their_place(number: str) -> None:
    assert "line 2 column 6" in json_error('{"NaN": "Infinity",\n"b": ' + number + "}")


def test_what_no_reader_could_use_later_is_refused_here() -> None:
    json_error('{"a": "\\ud800"}')
    json_error('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "line 2 column 2" in json_error(b'{\n"\xff": 1}')


def test_escaped_pairs_and_a_byte_order_mark_are_fine() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude42"}').value == {"a": "🙂"}


@pytest.mark.parametrize("text", ["[]", '"a"', "1", "null"])
def test_a_body_that_is_no_object_is_an_invalid_value(text: str) -> None:
    with pytest.raises(InvalidValueError):
        parse_json(text.encode())


@pytest.mark.parametrize("text", ['{"a": "' + '\\"' * 10**6, "[" + ", " * 10**6, '"\\' * 10**6])
def test_hostile_bodies_take_one_look_at_every_byte(text: str) -> None:
    json_error(text)
