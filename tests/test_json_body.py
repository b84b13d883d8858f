"""Bytes -> JSON: what is parsed, repaired and refused."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import body
from litevl.api import json_body
from litevl.api.json_body import (
    MAX_CONTAINERS,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_ESCAPES,
    MAX_MEMBERS,
    MAX_NAMES,
    MAX_QUOTES,
    MAX_REST,
    JSONBody,
    parse_json,
)
from litevl.api.protocol import ChatCompletionRequest
from litevl.errors import InvalidJSONError, InvalidValueError, LitevlError

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


@pytest.mark.parametrize(
    "number",
    [
        "NaN",
        "-Infinity",
        "Infinity",
        "1" * 5000,
        "-" + "1" * (MAX_DIGITS + 1),
        "1e999",
        "-1.5E+400",
    ],
)
def test_numbers_that_json_does_not_have_are_told_with_their_place(number: str) -> None:
    assert "line 2 column 6" in json_error('{"NaN": "Infinity",\n"b": ' + number + "}")


def test_what_no_reader_could_use_later_is_refused_here() -> None:
    json_error('{"a": "\\ud800"}')
    json_error('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}")
    assert "line 2 column 2" in json_error(b'{\n"\xff": 1}')


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"b": [{"\\u0061": 1, "a": {}}]}'])
def test_one_name_twice_in_an_object_is_refused(text: str) -> None:
    assert "one name twice" in json_error(text)


def test_nesting_is_bounded_whatever_it_is_made_of() -> None:
    for opening, closing in (("[", "]"), ('{"a": ', "}"), ('[{"a": ', "}]")):
        levels = (MAX_DEPTH - 1) // (len(closing))
        assert parse_json(f'{{"a": {opening * levels}1{closing * levels}}}'.encode())
        assert "too deeply" in json_error(
            f'{{"a": {opening * (levels + 1)}1{closing * (levels + 1)}}}'
        )


def test_escaped_pairs_and_a_byte_order_mark_are_fine() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": "\\ud83d\\ude42"}').value == {"a": "🙂"}


@pytest.mark.parametrize("text", ["[]", '"a"', "1", "null"])
def test_a_body_that_is_no_object_is_an_invalid_value(text: str) -> None:
    with pytest.raises(InvalidValueError):
        parse_json(text.encode())


@pytest.mark.parametrize("text", ['{"a": "' + '\\"' * 10**6, "[" + ", " * 10**6, '"\\' * 10**6])
def test_hostile_bodies_take_one_look_at_every_byte(text: str) -> None:
    json_error(text)


# Long strings ----------------------------------------------------------------------------------

JSON_LIKE = st.lists(
    st.sampled_from(
        [*'{}[]",:f\\ \n', "abcdefgh", "12345678", '"abcdefghi"', '\\"', "\\n", "圆", "null"]
    )
)


def outcome(body: bytes) -> object:
    """What becomes of it, an error's text included."""
    try:
        return parse_json(body)
    except LitevlError as error:
        return error.message


@given(
    st.one_of(
        JSON_LIKE.map(lambda parts: '{"a":' + "".join(parts) + "}"),
        st.dictionaries(st.text("ab/ \\é"), json_values).map(json.dumps),
        st.dictionaries(st.text("ab/ "), st.text("ab/ ")).map(with_slips),
    )
)
def test_lifting_long_strings_out_changes_nothing_not_even_an_error(text: str) -> None:
    found = []
    for long, piece in ((2, 1), (2, 3), (5, 100), (10**9, 100)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_body, "LONG", long)
            patch.setattr(json_body, "PIECE", piece)
            found.append(outcome(text.encode()))
    assert found == [found[0]] * 4


def test_the_place_of_an_error_behind_many_long_strings_is_found_in_one_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each was looked for in the whole line: 96 MB of them took ten seconds."""
    monkeypatch.setattr(json_body, "LONG", 64)
    text = json.dumps({"a": ["a" * 80] * 20_000})[:-1] + " x}"
    took = -time.process_time()
    assert f"column {len(text) - 1}." in json_error(text)
    took += time.process_time()
    assert took < 1.0  # 0.1 s; it was 2.2 s


def test_a_picture_never_reaches_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    loads = json.loads

    def noting_loads(text: str, **hooks: Any) -> Any:
        seen.append(len(text))
        return loads(text, **hooks)

    monkeypatch.setattr(json, "loads", noting_loads)
    url = "data:image/png;base64," + "iVBORw0K" * 10**5
    for text in (
        json.dumps({"a": [{"url": url}, [url]]}),
        f'{{"a": [{{"url": f"{url}",}},["{url}"]]}}',
    ):
        assert parse_json(text.encode()).value == {"a": [{"url": url}, [url]]}
    assert len(seen) == 3 and max(seen) < 200


@pytest.mark.parametrize("escaped, said", [("\\/", "/"), ("\\n", "\n"), ("\\\\", "\\")])
def test_a_clip_whose_base64_is_escaped_is_read_like_any_other(escaped: str, said: str) -> None:
    """PHP writes `\\/` into JSON, and MIME breaks lines: such bodies may be as large as others."""
    blank = " " * (MAX_REST - 100)
    url = "data:video\\/mp4;base64," + f"{'AAAA' * 19}{escaped}" * 340_000
    text = f'{{"a":{blank}["{url}",\n"{url}" x]}}'
    assert f"line 2 column {len(url) + 4}." in json_error(text)
    value = parse_json(text.replace("x", "").encode()).value
    assert value == {"a": [url.replace("\\/mp4", "/mp4").replace(escaped, said)] * 2}
    assert "24 MiB beside" in json_error(text.replace(blank, blank + " " * 100))


@pytest.mark.parametrize("member", ["1", "[]", '{"b":1}', '""'])
def test_how_much_a_body_holds_is_bounded(member: str) -> None:
    few = ",".join([member] * (MAX_CONTAINERS // 2))
    assert parse_json(f'{{"a": [{few}]}}'.encode())
    many = ",".join([member] * (MAX_MEMBERS + 2))
    assert "too many" in json_error(f'{{"a": [{many}]}}')


def test_as_many_names_escapes_and_digits_as_keep_others_waiting_are_refused() -> None:
    """A million names in 10 MB held all other clients up for a second, 90 MB of digits for four."""
    for space in ("", " ", "\n\t"):
        names = ",".join(f'"{i}"{space}:1' for i in range(MAX_NAMES))
        assert parse_json(f"{{{names}}}".encode())
        assert "too many" in json_error(f'{{{names},"x"{space}:1}}')
    assert parse_json(json.dumps({"a": ":" * (MAX_NAMES + 1) + "é"}).encode())
    assert parse_json(b'{"a": "' + b"\\n" * MAX_ESCAPES + b'"}')
    assert "too many" in json_error(b'{"a": "' + b"\\n" * (MAX_ESCAPES + 1) + b'"}')
    assert parse_json(b'{"a": -' + b"1" * MAX_DIGITS + b"}")


def test_a_body_of_very_many_strings_is_not_repaired() -> None:
    assert parse_json(b'{"a": [' + b'"",' * (MAX_QUOTES // 2 - 1) + b"]}").slips
    json_error('{"a": [' + '"",' * (MAX_QUOTES // 2) + "]}")


@pytest.mark.parametrize(
    "arguments",
    [
        r'{"a": "\ud800"}',
        r'{"\udc00": 1}',
        '{"a": NaN}',
        '{"a": 1e999}',
        '{"a": [1,]}',
        '{"a": 1, "a": 2}',
        '{"a":' * 200 + "1" + "}" * 200,
    ],
)
def test_arguments_of_earlier_calls_are_read_as_strictly_as_bodies(arguments: str) -> None:
    """Half a character in them was a 500: it could not be tokenised."""
    call = {"function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "tool_calls": [call]}
    param = "messages[0].tool_calls[0].function.arguments"
    with pytest.raises(InvalidValueError) as caught:
        ChatCompletionRequest.parse(body(messages=[message]))
    assert caught.value.param == param
