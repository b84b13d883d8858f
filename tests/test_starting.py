"""Starts where hardly anything can be printed: a server serves, or ends, whoever listens.

Real processes of `litevl serve`, with a scripted model.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from litevl.banner import SAMPLE_REQUEST
from litevl.cli import main
from live import KEY, LiveServer, environment
from training.samples import sample_request

PATIENCE = 60.0

# Tells its port, then loads, or fails where the model is called `broken`.
PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import psutil
from fakes import CARD, FakeEngine, FakeGrammars, FakeMedia, FakePreprocessor
from litevl import cli
from litevl.api.ports import Backend
from litevl.errors import ConfigError

def port():
    sockets = psutil.Process().net_connections("tcp4")
    return next((each.laddr.port for each in sockets if each.status == "LISTEN"), None)

def load(config, report):
    while (own := port()) is None:  # uvicorn starts beside it
        pass
    os.write(int(os.environ["PORT_TO"]), f"{{own}}\\n".encode())
    report("loading")
    if config.model == "broken":
        raise ConfigError("it is broken")
    return Backend(card=CARD, engine=FakeEngine(), preprocessor=FakePreprocessor(),
                   grammars=FakeGrammars(), media=FakeMedia()), {{}}

cli.load_backend = load
sys.exit(cli.main(["serve", "--port", "0", *sys.argv[1:]]))
"""


@contextmanager
def started(
    *arguments: str, redirected: str = "", **changes: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address, started by a shell; 9 is a pipe whose reader has gone, 8 one
    that is full and that nobody reads."""
    told, port_to = os.pipe()
    gone, unread = os.pipe()
    os.close(gone)
    never_read, full = os.pipe()
    os.write(full, bytes(fcntl.fcntl(full, fcntl.F_GETPIPE_SZ)))
    command = ["sh", "-c", f'exec "$@" {redirected} 8>&- 9>&-', "sh", sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(
        [*command, *arguments],
        env=environment(Path("/nowhere"), **changes, PORT_TO=str(port_to)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=(port_to, 8, 9),
        preexec_fn=lambda: (os.dup2(full, 8), os.dup2(unread, 9)),
    )
    os.close(port_to)
    os.close(unread)
    os.close(full)
    with process, open(never_read, "rb"), open(told, encoding="utf-8") as reader:
        try:
            yield process, f"http://127.0.0.1:{reader.readline().strip()}"
        finally:
            process.kill()


def end(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Its exit code, and what it printed."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out.decode(), err.decode()


STREAMS = [
    "2>&8",
    ">&9",
    "2>&9",
    ">&9 2>&9",
    ">/dev/full",
    "2>/dev/full",
    ">&-",
    "2>&-",
    "<&- >&- 2>&-",
]


@pytest.mark.parametrize("redirected", STREAMS)
def test_a_server_that_can_tell_nobody_serves_and_leaves_in_order(redirected: str) -> None:
    with started(redirected=redirected) as (process, address):
        with httpx.Client(base_url=address, trust_env=False) as client:
            while (health := client.get("/health")).status_code == 503:
                assert health.json() == {"status": "loading"} and process.poll() is None
            assert client.post("/v1/completions", json={"prompt": "hi"}).status_code == 200
        process.terminate()
        assert end(process)[0] == 0


@pytest.mark.parametrize("redirected", STREAMS)
def test_a_failed_start_that_can_tell_nobody_ends_with_a_failure(redirected: str) -> None:
    with started("broken", redirected=redirected) as (process, _):
        code, out, err = end(process)
    assert (code, out) == (1, "")
    assert "2>" in redirected or err.endswith("litevl: it is broken\n")


def test_a_log_that_nobody_reads_stops_neither_answers_nor_the_end() -> None:
    with started() as (process, address), httpx.Client(base_url=address, trust_env=False) as client:
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)  # some twenty lines
        while client.get("/health").status_code == 503:
            pass
        for _ in range(100):
            assert client.post("/v1/completions", json={"prompt": "hi"}).status_code == 200
        process.terminate()
        assert process.wait(PATIENCE) == 0


def test_what_stdout_does_not_take_is_a_line_in_the_log() -> None:
    with started(redirected=">&9") as (process, _):
        assert process.stderr is not None
        lines = [process.stderr.readline().decode() for _ in range(4)]
        assert "WARNING litevl serving, but stdout takes no banner: Broken pipe" in lines[-1]


def test_a_terminal_of_another_codec_gets_the_banner() -> None:
    with started(PYTHONIOENCODING="latin-1", LITEVL_API_KEY=KEY) as (process, _):
        assert process.stdout is not None
        lines = [process.stdout.readline().decode("latin-1") for _ in range(7)]
    assert f"{KEY[:4]}\\u2026{KEY[-2:]}" in "".join(lines)


@pytest.mark.parametrize("file", ["~no-such-user/key", "/dev/null/key"])
def test_a_key_file_that_cannot_be_is_one_line(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", "--api-key-file", file]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"litevl: --api-key-file {file}: ") and said.count("\n") == 1


def test_the_line_to_paste_asks_about_the_sample_picture_and_leaves_nothing_behind(
    server: LiveServer,
) -> None:
    assert str(SAMPLE_REQUEST) in server.banner
    picture = SAMPLE_REQUEST.with_name("sample.jpg").read_bytes()
    assert SAMPLE_REQUEST.read_text(encoding="utf-8") == sample_request(picture)
    key = {"authorization": f"Bearer {KEY}"}
    asked = SAMPLE_REQUEST.read_bytes()
    answer = httpx.post(f"{server.base_url}/chat/completions", content=asked, headers=key)
    assert "3" in answer.text or "three" in answer.text.lower()
