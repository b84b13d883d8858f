"""An answer is read the same however it is cut, and nothing is held back without a reason."""

import json
import re
from itertools import chain, count, groupby, pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from litevl.api import tool_text
from litevl.api.answer import (
    Answer,
    AnswerReader,
    CallArguments,
    CallStart,
    Content,
    Piece,
    join,
    new_call_id,
)
from litevl.sequence import Tool, ToolCall

PARAMETERS: dict[str, Any] = {
    "properties": {
        "text": {"type": "string"},
        "number": {"type": "integer"},
        "flag": {"type": "boolean"},
        "list": {"type": "array"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "both": {"type": ["string", "null", 7]},
        "free": {"description": "anything"},
        "odd": True,
    }
}
TOOL = Tool(name="f", parameters=json.dumps(PARAMETERS), definition="{}")
HERMES = {"tools": (TOOL,), "tool_format": "hermes"}
XML = {"tools": (TOOL,), "tool_format": "xml"}


def reader(**options: Any) -> AnswerReader:
    numbers = count()
    return AnswerReader(new_id=lambda: f"call_{next(numbers)}", **options)


def pushes(texts: list[str], **options: Any) -> list[list[Piece]]:
    """What each push gives, and the end."""
    reading = reader(**options)
    return [*(reading.push(text) for text in texts), reading.flush()]


def read(text: str, **options: Any) -> Answer:
    return join(chain.from_iterable(pushes([text], **options)))


def calls(answer: Answer) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in answer.calls]


def merged(pushed: list[list[Piece]]) -> list[object]:
    """Pieces without the borders between neighbours of one kind."""
    result: list[object] = []
    pieces = chain.from_iterable(pushed)
    for kind, group in groupby(pieces, lambda p: p if isinstance(p, CallStart) else type(p)):
        same = list(group)
        text = "".join(each.text for each in same if not isinstance(each, CallStart))
        result.append((kind, text))
    return result


# However it is cut -----------------------------------------------------------------------------

WORDS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<function=", "f>", "</function>",
    "<parameter=", "text>", "number>", "</parameter>",
    '{"name": "f", "arguments": {"a": [1, "}"]}}', '{"arguments": ', '"{\\"a\\": 1}"', '"name"',
    ": ", '"f"', ', "', "}", "{", "\\", '"', "\n", " ", "圆", "a < b", "<", "12", "null", "[",
]  # fmt: skip
texts = st.lists(st.sampled_from(WORDS), max_size=24).map("".join)
formats: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{}, HERMES, XML])
options = st.fixed_dictionaries(
    {"is_thinking": st.booleans(), "reasoning_in_content": st.booleans()},
    optional={"max_calls": st.sampled_from([None, 1])},
)


@given(texts, st.lists(st.integers(0, 1000)), formats, options)
def test_pieces_do_not_depend_on_the_cuts(
    text: str, cuts: list[int], tools: dict[str, Any], more: dict[str, Any]
) -> None:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts = [text[a:b] for a, b in pairwise(edges)]
    whole, cut, single = (
        merged(pushes(each, **tools, **more)) for each in ([text], parts, list(text))
    )
    assert whole == cut == single


@given(texts, options)
@example(" \n<thin", {})
def test_without_tools_and_thoughts_every_character_is_content(
    text: str, more: dict[str, Any]
) -> None:
    if "<think>" not in text:
        assert read(text).content == text
    assert read(text, reasoning_in_content=True, is_thinking=True).content == f"<think>\n{text}"


@given(texts, formats, options)
def test_what_is_sent_at_once_is_all_that_is_decided(
    text: str, tools: dict[str, Any], more: dict[str, Any]
) -> None:
    """The held end of a text is white space before, and the beginning of, a tag."""
    if tools or more["is_thinking"] or "<think>" in text:
        return
    sent, _ = pushes([text], **more)
    held = text.removeprefix(join(sent).content)
    assert re.fullmatch(r"\s*(<(t(h(i(nk?)?)?)?)?)?", held)


def test_text_goes_out_at_once_and_tags_wait() -> None:
    assert pushes(["Two", " red", " <", "b", "\n", "\n", "x"], **HERMES) == [
        [Content("Two")],
        [Content(" red")],
        [Content(" ")],
        [Content("<b")],
        [],
        [],
        [Content("\n\nx")],
        [],
    ]
    assert pushes(["\n"], reasoning_in_content=True) == [[Content("\n")], []]


def test_a_call_goes_out_as_its_name_and_then_as_it_grows() -> None:
    parts = ['<tool_call>\n{"name": "ge', 't", "argu', 'ments": {"a', '": "}', '"}', "}\n</tool_ca"]
    assert pushes(parts, **HERMES) == [
        [],
        [CallStart(0, "call_0", "get")],
        [CallArguments(0, '{"a')],
        [CallArguments(0, '": "}')],
        [CallArguments(0, '"}')],
        [],
        [Content("\n</tool_ca")],
    ]


# Reasoning -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_thinking", "text", "reasoning", "content"),
    [
        (False, "plain", None, "plain"),
        (False, "\n plain \n", None, "\n plain \n"),
        (False, "a </think> b <think> c", None, "a </think> b <think> c"),
        (False, "\n<think>\nwhy\n</think>\n\nso", "why", "so"),
        (False, "<think></think>so", None, "so"),
        (True, "why\n\nnot\n</think>\n\nso\n", "why\n\nnot", "so\n"),
        (True, "\nwhy</think>so", "why", "so"),
        (True, "why</think>\n</think>\nso", "why", "so"),
        (True, "why</think>so</think> on</think>", "why", "so on</think>"),
        (True, "cut off\n", "cut off", ""),
        (True, "cut off</thi", "cut off</thi", ""),
        (True, "a <tool_call>", "a <tool_call>", ""),
    ],
)
def test_reasoning_is_told_from_content(
    is_thinking: bool, text: str, reasoning: str | None, content: str
) -> None:
    assert read(text, is_thinking=is_thinking) == Answer(reasoning, content, ())


def test_a_call_ends_the_thought() -> None:
    text = 'why\n<tool_call>\n{"name": "f"}\n</tool_call>\n</think>\n\nso'
    answer = read(text, is_thinking=True, **HERMES)
    assert (answer.reasoning, answer.content, calls(answer)) == ("why", "so", [("f", "{}")])


def test_a_tag_in_a_thought_that_opens_no_call_stays_in_it() -> None:
    text = "the\n<tool_call> tag</think>so"
    assert read(text, is_thinking=True, **HERMES) == Answer("the\n<tool_call> tag", "so", ())


def test_the_reader_says_whether_the_model_is_thinking() -> None:
    reading = reader(is_thinking=True)
    states = [reading.push(text) and reading.is_reasoning for text in ("why", "</think>so")]
    assert states == [True, False]
    assert not reader(is_thinking=True, reasoning_in_content=True).is_reasoning


def test_reasoning_in_content_is_as_the_model_wrote_it() -> None:
    options: dict[str, Any] = {"reasoning_in_content": True, **HERMES}
    text = 'why\n</think>\n\nso\n<tool_call>{"name": "f"}</tool_call>'
    assert read(text, is_thinking=True, **options).content == "<think>\nwhy\n</think>\n\nso"
    assert read("<think>\n" + text, **options).content == "<think>\nwhy\n</think>\n\nso"
    assert calls(read(text, **options)) == [("f", "{}")]


# Calls as JSON ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f", "arguments": {"a": {"b": "}\\"<"}}}', '{"a": {"b": "}\\"<"}}'),
        ('{"arguments": {"a": 1}, "name": "f"}', '{"a": 1}'),
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "arguments": null}', "{}"),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', '{"a": 1}'),
        ('{"name": "f", "arguments": "{\n\\"a\\": 1}"}', '{\n"a": 1}'),
        ('{"name": "f", "arguments": [1, 2]}', "[1, 2]"),
        ('{"name": "f", "id": 7, "arguments": {}, "arguments": {"b": 1}, "name": "g"}', "{}"),
        ('{ "name" : "f" ,"arguments" :{"a":1} }', '{"a":1}'),
        ('{"name": "\\u0066", "arguments": {"圆": "\n"}}', '{"圆": "\n"}'),
        ('{"name": "f", "arguments": {"a": 1}', '{"a": 1}'),  # a bracket is missing
        ('{"name": "f", "arguments": {"a": 1', '{"a": 1\n'),  # two are
        ('{"name": "f", "arguments": {}}}', "{}"),  # one too many
    ],
)
def test_json_calls(body: str, arguments: str) -> None:
    answer = read(f"<tool_call>\n{body}\n</tool_call>", **HERMES)
    assert (answer.content, calls(answer)) == ("", [("f", arguments)])


def test_calls_follow_one_another_and_text_may_stand_before_them() -> None:
    text = (
        'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>\n'
    )
    answer = read(text, **HERMES)
    assert answer == Answer(
        None,
        "I look.",
        (
            ToolCall(id="call_0", name="f", arguments='{"a": 1}'),
            ToolCall(id="call_1", name="unknown", arguments="{}"),
        ),
    )
    assert read(text, max_calls=1, **HERMES) == Answer(None, "I look.", answer.calls[:1])


def test_text_after_a_call_is_content() -> None:
    answer = read('a\n<tool_call>{"name": "f"}</tool_call>\nb', **HERMES)
    assert (answer.content, calls(answer)) == ("a\nb", [("f", "{}")])


def test_a_call_without_its_closing_tag_is_whole_when_its_object_is() -> None:
    assert calls(read('<tool_call>{"name": "f", "arguments": {}}', **HERMES)) == [("f", "{}")]
    both = '<tool_call>{"name": "f"}\n<tool_call>{"name": "g"}'
    assert calls(read(both, **HERMES)) == [("f", "{}"), ("g", "{}")]


def test_a_call_that_is_cut_off_does_not_look_whole() -> None:
    texts = (
        '{"name": "f"',
        '{"name": "f", "arguments": {"a": 1',
        "<function=f>",
        "<function=f>\n<parameter=text>\nx\n",
        "<function=f>\n<parameter=text>\nx\n</parameter>\n",
    )
    for text in texts:
        (call,) = read(f"<tool_call>\n{text}", **XML).calls
        with pytest.raises(ValueError, match="line 1"):
            json.loads(call.arguments)


@pytest.mark.parametrize(
    "text",
    [
        "The <tool_call> tag.",
        "<tool_call>",
        '\n<tool_call>\n{"nam',
        "<tool_call>\nnot JSON\n</tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>\n{"foo": {"bar": 1}}\n</tool_call>\n',
        '<tool_call>{"arguments": {"a": 1}}</tool_call>',
        '<tool_call>{"name": 7, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "\\x"}</tool_call>',
        '<tool_call>{"name" "f"}</tool_call>',
        '<tool_call>{"name": }</tool_call>',
        "<function=f with spaces>",
        "<tool_call><function=></function></tool_call>",
        "<function=f",
    ],
)
def test_what_is_no_call_is_given_back_as_it_was(text: str) -> None:
    assert read(text, **XML) == Answer(None, text, ())


def test_a_call_may_follow_what_was_none() -> None:
    answer = read('<tool_call> or <tool_call>{"name": "f"}</tool_call>', **HERMES)
    assert (answer.content, calls(answer)) == ("<tool_call> or ", [("f", "{}")])


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner), max_leaves=5000))
@example([[]])
def test_any_arguments_go_through_unchanged(value: Any) -> None:
    arguments = json.dumps({"a": value}, ensure_ascii=False)
    body = f'{{"name": "f", "arguments": {arguments}}}'
    assert calls(read(f"<tool_call>\n{body}\n</tool_call>", **HERMES)) == [("f", arguments)]


# Calls as XML ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("text", "\nhello\n", "hello"),
        ("text", "\n\nhello\n\n", "\nhello\n"),
        ("text", "\n12\n", "12"),
        ("text", "a < b </b>\n</para", "a < b </b>\n</para"),
        ("number", "\n12\n", 12),
        ("number", "\na dozen\n", "a dozen"),
        ("number", "NaN", "NaN"),
        ("flag", "\nTrue\n", True),
        ("list", '[1, {"a": "圆"}]', [1, {"a": "圆"}]),
        ("maybe", "null", None),
        ("maybe", '"a b"', "a b"),
        ("text", '"a b"', '"a b"'),
        ("maybe", "None", None),
        ("maybe", "12", "12"),
        ("both", "12", "12"),
        ("free", "12", 12),
        ("free", "null", None),
        ("free", "x", "x"),
        ("odd", "12", "12"),
        ("unknown", "12", "12"),
        ("an odd \\ key", "x", "x"),
        ("list", "[" * 100_000, "[" * 100_000),
    ],
)
def test_xml_values_have_the_types_of_the_schema(key: str, value: str, parsed: object) -> None:
    body = f"<function=f>\n<parameter={key}>{value}</parameter>\n</function>"
    answer = read(f"<tool_call>\n{body}\n</tool_call>", **XML)
    ((name, arguments),) = calls(answer)
    assert (answer.content, name) == ("", "f")
    assert json.loads(arguments) == {key: parsed}


def test_an_xml_call_goes_out_parameter_by_parameter() -> None:
    parts = [
        "I look.\n<tool_call>\n<function=f",
        ">\n<parameter=text>\nx\n",
        "</parameter>\n",
        "<parameter=number>\n1\n</parameter>\n</func",
        "tion>\n</tool_call>\n",
    ]
    assert pushes(parts, **XML) == [
        [Content("I look.")],
        [CallStart(0, "call_0", "f")],
        [CallArguments(0, '{"text": "x"')],
        [CallArguments(0, ', "number": 1')],
        [CallArguments(0, "}")],
        [],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<function=f>\n<parameter=text>\nx\n</parameter>\n</function>\n</tool_call>",
        "<tool_call><function=f><parameter=text>x<parameter=number>1</function></tool_call>",
        "<tool_call>\n<function=f\n<parameter=text\nx\n</parameter>\n</tool_call>",
        "<tool_call><function=f<parameter=text>x</parameter></function>",
        '<tool_call>{"name": "f", "arguments": {"text": "x"}}</tool_call>',
    ],
)
def test_slips_in_the_xml_form_are_forgiven(text: str) -> None:
    answer = read(text, **XML)
    ((name, arguments),) = calls(answer)
    assert (answer.content, name) == ("", "f")
    assert json.loads(arguments) | {"number": 1} == {"text": "x", "number": 1}


def test_an_xml_call_without_parameters_has_an_empty_object() -> None:
    assert calls(read("<tool_call>\n<function=g>\n</function>\n</tool_call>", **XML)) == [
        ("g", "{}")
    ]


def test_schemas_that_are_none_do_no_harm() -> None:
    for parameters in ("[]", "{", '{"properties": []}', '{"properties": {"text": {"type": null}}}'):
        tool = Tool(name="f", parameters=parameters, definition="{}")
        text = "<function=f><parameter=text>x</parameter></function>"
        answer = read(text, tools=(tool,), tool_format="xml")
        assert calls(answer) == [("f", '{"text": "x"}')]


def test_a_tools_schema_is_parsed_once_however_many_parameters_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[object] = []

    def decode(text: str) -> object:
        parsed.append(text)
        return json.loads(text)

    monkeypatch.setattr(tool_text, "decode", decode)
    parameter = "<parameter=number>1</parameter>"
    reading = reader(**XML)
    for part in ("<function=f>", *[parameter] * 9, "</function>"):
        reading.push(part)
    assert parsed.count(TOOL.parameters) == 1


def test_ids_are_openais() -> None:
    assert re.fullmatch("call_[0-9a-f]{24}", new_call_id())
    assert new_call_id() != new_call_id()
