"""atheris on one parser: `PYTHONPATH=tests python -m fuzz.parsers TARGET`.

A target takes bytes and may raise nothing but what a client is answered with; what else it raises,
or a broken promise, is a finding, and libFuzzer writes the input to a file. `make fuzz` runs each
for a while. Knows nothing of servers: hypothesis and raw sockets test those in `tests/`.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import atheris
import h11

# Before the hooks below: the one of patterns knows none of bytes.
with atheris.instrument_imports(include=["litevl", "h11"]):
    from litevl.api.wire import Limits, StrictConnection

# What is compared in C is shown to the fuzzer, too; its stand-in for patterns knows no start.
atheris.enabled_hooks.add("str")
if sys.argv[1:2] != ["answer"]:
    atheris.enabled_hooks.add("RegEx")

with atheris.instrument_imports(include=["litevl"]):
    from litevl.api import json_body as json_parser
    from litevl.api.answer import AnswerReader, join
    from litevl.api.json_body import parse_json
    from litevl.api.protocol import ChatCompletionRequest, CompletionRequest
    from litevl.errors import LitevlError
    from litevl.media.fetch import Address, RefusedError, parse_address
    from litevl.media.sources import parse_data_url, sniff
    from litevl.sequence import MediaRef, Tool

TOOLS = (Tool(name="f", parameters='{"properties":{"a":{"type":"integer"}}}', definition="{}"),)


def url(data: bytes) -> None:
    """Whatever is accepted is spelt in one way, that is accepted again."""
    try:
        address = parse_address(data.decode(errors="surrogateescape"))
    except RefusedError:
        return
    assert isinstance(address, Address)
    assert parse_address(str(address)) == address
    assert address.host.isascii() and not any(c in address.host for c in "/\\@? \t\r\n")


def data_url(data: bytes) -> None:
    text = "data:image/png;base64," + data.decode("latin-1")
    try:
        parse_data_url(MediaRef(declared="image", url=text, param="p"))
    except LitevlError as error:
        assert error.status == 400


def magic(data: bytes) -> None:
    try:
        sniff(data, "p")
    except LitevlError as error:
        assert error.code == "unsupported_media_type"


def head(data: bytes) -> None:
    """A head that passes frames its body in one way; what does not pass is a refusal."""
    connection = StrictConnection(Limits())
    connection.receive_data(data or b"a")  # nothing would be the end, told again and again
    try:
        while isinstance(event := connection.next_event(), h11.Event):
            if isinstance(event, h11.Request):
                names = [name for name, _ in event.headers]
                framing = names.count(b"content-length") + names.count(b"transfer-encoding")
                assert framing <= 1 and event.http_version in (b"1.0", b"1.1")
    except h11.RemoteProtocolError:
        assert connection.fault is None or connection.fault.status in (400, 431)


def json_body(data: bytes) -> None:
    """What the repair accepts is an object; what is JSON is what `json` makes of it, and strings
    that are lifted out make no difference."""
    outcomes: list[object] = []
    for json_parser.LONG in (10**9, 6):
        try:
            outcomes.append(parse_json(data))
        except LitevlError as error:
            outcomes.append(error.message)
    assert outcomes[0] == outcomes[1]
    try:
        body = parse_json(data)
    except LitevlError as error:
        assert error.status == 400
        return
    assert isinstance(body.value, dict)
    if not body.slips:
        assert json.dumps(json.loads(data)) == json.dumps(body.value)


def request(data: bytes) -> None:
    try:
        value = parse_json(data).value
        for parse in (ChatCompletionRequest.parse, CompletionRequest.parse):
            parse(value)
    except LitevlError as error:
        assert error.status == 400 and len(error.message) < 2000


def answer(data: bytes) -> None:
    """However a text is cut, it is read alike."""
    if not data:
        return
    text = data[1:].decode(errors="replace")
    for tool_format in ("hermes", "xml"):
        readers = [
            AnswerReader(
                is_thinking=bool(data[0] & 1),
                tools=TOOLS,
                tool_format=tool_format,
                max_calls=1 if data[0] & 2 else None,
                reasoning_in_content=bool(data[0] & 4),
                new_id=lambda: "id",
            )
            for _ in range(2)
        ]
        cut = data[0] * len(text) // 256
        whole = readers[0].push(text) + readers[0].flush()
        parts = readers[1].push(text[:cut]) + readers[1].push(text[cut:]) + readers[1].flush()
        assert join(whole) == join(parts)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (url, data_url, magic, head, json_body, request, answer)
}

# What to begin with; libFuzzer finds its way from here.
_BODY = (
    '{"model":"m","stream":true,"stream_options":{"include_usage":true},"n":2,"stop":["a"],'
    '"logit_bias":{"1":2},"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],'
    '"tool_choice":"required","response_format":{"type":"json_schema","json_schema":{"schema":{}}},'
    '"messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"video_url",'
    '"video_url":{"url":"http://a/","fps":2}},{"type":"video","video":["a","b"]}]},'
    '{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]},'
    '{"role":"tool","tool_call_id":"1","content":"4"}]}'
)
SEEDS: Mapping[str, tuple[str, ...]] = {
    "url": ("http://a.example:80/b?c=d#e", "https://[2001:db8::1]/", "http://127.0.0.1\\@b/"),
    "data_url": ("iVBORw0KGgoAAAANSUhEUg==", "AAAA\nAAA=", "R0lGODlh"),
    "magic": ("\x89PNG\r\n\x1a\n", "RIFF0000WEBP", "0000ftypisom", "\x1aE\xdf\xa3"),
    "head": (
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}GET / HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        "2;a=b\r\n{}\r\n0\r\na: b\r\n\r\n",
    ),
    "json_body": ('{"a": f"b", "c": [1, 2,],}', '{"a":"\\ud83d\\ude42","b":1e5,"c":null}', _BODY),
    "request": (_BODY, '{"prompt":["a",[1,2]],"logprobs":1,"structured_outputs":{"choice":["a"]}}'),
    "answer": (
        '0<think>\na\n</think>\n\nb<tool_call>\n{"name":"f","arguments":{"a":1}}\n</tool_call>',
        "1<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    ),
}


def main() -> None:
    name = sys.argv.pop(1)
    with TemporaryDirectory() as folder:
        for index, seed in enumerate(SEEDS[name]):
            (Path(folder) / str(index)).write_bytes(seed.encode("latin-1"))
        atheris.Setup([*sys.argv, folder], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
