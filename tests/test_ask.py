"""`litevl ask` against a live server: what it sends, prints and returns, and its complaints."""

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from litevl.addresses import is_loopback
from litevl.ask import _host, _key_header, _print
from litevl.cli import main
from live import KEY, ROOT, LiveServer

PICTURE = str(ROOT / "litevl" / "demo" / "sample.jpg")
CLIP = str(ROOT / "litevl" / "demo" / "sample.mp4")
SHEEP = "How many sheep are there in the picture?"

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Ask:
    """Run `litevl ask WORDS` with the server's key: exit code, stdout, stderr."""
    monkeypatch.setenv("LITEVL_API_KEY", f"{KEY},another")
    monkeypatch.setenv("LITEVL_URL", server.base_url)

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["ask", *words])
        return code, *capsys.readouterr()

    return run


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_a_picture_is_seen_and_the_answer_alone_goes_to_stdout(ask: Ask) -> None:
    seen = ask(PICTURE, SHEEP)
    assert (seen[0], seen[2]) == (0, "")
    assert seen[1].endswith("\n") and len(seen[1]) > 1
    assert ask(SHEEP)[1] != seen[1]  # without the picture it says something else


def test_a_clip_is_seen_as_a_clip(ask: Ask) -> None:
    assert ask(CLIP, "What moves?")[0] == 0
    assert ask(CLIP, "What moves?")[1] != ask(PICTURE, "What moves?")[1]


def test_stdin_is_a_picture_or_the_question(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ask(PICTURE, SHEEP)
    feed(monkeypatch, Path(PICTURE).read_bytes())
    assert ask("-", SHEEP) == expected
    feed(monkeypatch, SHEEP.encode())
    assert ask(PICTURE, "-") == expected
    code, _, said = ask("-", "-")
    assert (code, "not both" in said) == (2, True)


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert ask(SHEEP)[0] == 0


def test_an_answer_cut_by_its_limit_says_so_on_stderr(ask: Ask) -> None:
    code, answer, said = ask(PICTURE, SHEEP, "--max-tokens", "1", "--temperature", "0")
    assert (code, bool(answer), "--max-tokens" in said) == (0, True, True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "FILE... QUESTION"),
        ((PICTURE,), 2, "ask what about"),
        (("gone.jpg", "What?"), 2, "cannot read gone.jpg: No such file"),
        (("~no-such-user/x.png", "What?"), 2, "cannot read ~no-such-user/x.png: No such file"),
        ((PICTURE, "How", "many"), 2, "the question is one argument, in quotes"),
        (("--model", "none", "long " * 2000), 1, "litevl-demo"),
        (("What \udcff?",), 2, "no text in UTF-8"),
        (("http://a/\udcff.png", "What?"), 2, "no text in UTF-8"),
        (("--model", "\udcff", "What?"), 2, "no text in UTF-8"),
        ((str(ROOT / "README.md"), "What?"), 1, "messages[0].content[0]"),
        (("http://[x/a.jpg", "What?"), 1, "messages[0].content[0]"),
        (("--model", "gpt-4o", "What?"), 1, "litevl-demo"),
        (("--url", "http://127.0.0.1:9", "What?"), 1, "no server at http://127.0.0.1:9"),
        *(
            (("--url", url, "What?"), 2, "--url takes http://HOST:PORT")
            for url in (
                "127.0.0.1:8000",
                "http://[x",
                "http://]",
                "http://a..b",
                "http://xn--a",
                "http://a:99999",
                "http://a:-1",
                "file:///etc/passwd",
                "http://",
            )
        ),
        (("--max-token", "3", "What?"), 2, "did you mean --max-tokens?"),
    ],
)
def test_what_goes_wrong_is_one_line(
    ask: Ask, words: tuple[str, ...], code: int, said: str
) -> None:
    returned, answer, error = ask(*words)
    assert (returned, answer) == (code, "")
    assert said in error
    assert error.startswith("litevl: ") and error.count("\n") == 1


def test_the_key_comes_from_the_environment_or_from_the_file_of_this_user(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LITEVL_API_KEY", "wrong-key")
    code, _, said = ask(SHEEP)
    assert (code, "not one of the server's" in said) == (1, True)
    monkeypatch.delenv("LITEVL_API_KEY")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    code, _, said = ask(SHEEP)
    assert (code, "wants a key" in said) == (1, True)
    made = tmp_path / "litevl" / "api-key"
    made.parent.mkdir()
    made.write_text(f"{KEY}\n")
    assert ask(SHEEP)[0] == 0
    made.rename(tmp_path / "elsewhere")
    assert ask("--api-key-file", str(tmp_path / "elsewhere"), SHEEP)[0] == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["LITEVL_API_KEY", "API_KEY"])
def test_a_key_of_other_letters_is_told_as_that(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LITEVL_API_KEY", raising=False)
    monkeypatch.setenv(name, "schlüssel")
    assert main(["ask", "hi"]) == 1
    assert "it holds more than ASCII" in capsys.readouterr().err


def test_a_question_from_stdin_in_another_codec_is_told_as_that(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(monkeypatch, "Wieviel für alle?".encode("latin-1"))
    assert main(["ask", PICTURE, "-"]) == 2
    assert "no text in the terminal's codec" in capsys.readouterr().err


def test_a_user_without_a_home_may_ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("LITEVL_API_KEY", "API_KEY", "HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)  # whom no file knows
    assert main(["ask", "--url", "http://127.0.0.1:9", "hi"]) == 1
    assert "no server at" in capsys.readouterr().err


def test_an_answer_that_the_terminals_codec_lacks_is_shown_in_escapes() -> None:
    answer = {"choices": [{"delta": {"content": "三 sheep"}, "finish_reason": "stop"}]}
    handler = type(
        "Handler",
        (Hostile,),
        {"status": 200, "body": f"data: {json.dumps(answer)}\n\ndata: [DONE]\n\n"},
    )
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        words = [sys.executable, "-m", "litevl", "ask", "hi"]
        words += ["--url", f"http://127.0.0.1:{server.server_port}"]
        env = os.environ | {"PYTHONIOENCODING": "latin-1"}
        done = subprocess.run(words, capture_output=True, env=env, cwd=ROOT)
        thread.join()
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u4e09 sheep\n", b"")


def chunks(*deltas: dict[str, str]) -> Iterator[dict[str, object]]:
    return iter([{"choices": [{"delta": delta}]} for delta in deltas])


def test_thoughts_are_dim_beside_the_answer_and_the_terminal_is_left_as_it_was() -> None:
    out, err = Terminal(), Terminal()
    thought = [{"reasoning_content": "Hm"}, {"reasoning_content": "m."}]
    assert _print(chunks(*thought, {"content": "Three."}), out, err) == 0
    assert (out.getvalue(), err.getvalue()) == ("Three.\n", "\x1b[2mHmm.\x1b[0m\n")
    err = Terminal()
    _print(chunks(*thought), out, err)
    assert err.getvalue().endswith("\x1b[0m\n")


def test_an_answer_cannot_steer_the_terminal() -> None:
    out, pipe = Terminal(), io.StringIO()
    for stream in (out, pipe):
        _print(
            chunks({"content": "\x1b[2J\x07三只羊\u202e\u2066\u061c\u200e\u200f\n"}), stream, pipe
        )
    assert out.getvalue() == "\ufffd[2J\ufffd三只羊" + 5 * "\ufffd" + "\n"
    assert (
        pipe.getvalue() == "\x1b[2J\x07三只羊\u202e\u2066\u061c\u200e\u200f\n"
    )  # a pipe gets what was said


class Hostile(BaseHTTPRequestHandler):
    """Answers every question with `status` and `body`."""

    status: int
    body: str

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response_only(self.status, "\x1b[31mOdd")
        self.send_header("content-type", "text/event-stream; charset=zlib")
        self.end_headers()
        self.wfile.write(self.body.encode())


STEER = json.dumps({"error": {"message": "\x1b]0;a\x07\nlitevl: b\x9b2J\u202e"}})


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, STEER),
        (502, "no JSON"),
        (400, "[" * 10**5),
        (200, f"data: {STEER}\n\n"),
        (200, 'data: {"error": "text"}\n\n'),
        (200, "data: {\n\n"),
        (200, f"data: {'[' * 10**5}\n\n"),
        (200, "data: 5\n\n"),
        (200, "data: [1]\n\n"),
        (200, 'data: {"choices": [1]}\n\n'),
        (200, 'data: {"choices": [{"delta": {"content": 5}}]}\n\n'),
        (200, 'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n'),
    ],
)
def test_whatever_a_server_answers_the_complaint_is_one_line_that_steers_no_terminal(
    capfd: pytest.CaptureFixture[str], status: int, body: str
) -> None:
    handler = type("Handler", (Hostile,), {"status": status, "body": body})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        code = main(["ask", "--url", f"http://127.0.0.1:{server.server_port}", "hi"])
        thread.join()
    said = capfd.readouterr().err
    assert (code, said.count("\n"), said[:8]) == (1, 1, "litevl: ")
    assert said[:-1].isprintable()


def test_the_made_key_is_sent_to_this_machine_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("LITEVL_API_KEY", raising=False)
    monkeypatch.delenv("API_KEY", raising=False)
    (tmp_path / "litevl").mkdir()
    (tmp_path / "litevl" / "api-key").write_text("made")
    for url, key in (
        ("http://127.0.0.1:8000", "made"),
        ("http://[::1]:8000", "made"),
        ("http://localhost", "made"),
        ("https://models.example", None),
        ("http://127.0.0.1\\@models.example", None),
        ("http://127.0.0.1:80;@models.example", None),
    ):
        header = {"authorization": f"Bearer {key}"} if key else {}
        assert _key_header(None, is_loopback(_host(url))) == header
