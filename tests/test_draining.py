"""The way out: one signal lets running answers finish, a second one ends the process at once.

Real signals and processes, with the fakes behind the server instead of a model.
"""

import json
import logging
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fakes import KEY, PATIENCE, FakeEngine, Rig, assert_error, body, request_bytes, running, say
from litevl.api import serving
from litevl.api.wire import Limits
from test_wire import connect_narrowly

TESTS = Path(__file__).parent

# Prints its port, and a line when the engine has begun; goes on when told to by a line.
PROCESS = f"""
import socket, sys, threading
sys.path.insert(0, {str(TESTS)!r})
from fakes import CARD, KEY, FakeEngine, FakeGrammars, FakeMedia, FakePreprocessor
from litevl.api.ports import Backend
from litevl.api.service import Service
from litevl.api.serving import Server
from litevl.config import Config

config = Config(api_key=(KEY,))
service, engine = Service(config), FakeEngine()
engine.hold(3)
service.attach(Backend(card=CARD, engine=engine, preprocessor=FakePreprocessor(),
                       grammars=FakeGrammars(), media=FakeMedia()))
listener = socket.create_server(("127.0.0.1", 0))

def follow():
    print(listener.getsockname()[1], flush=True)
    sys.stdin.readline()
    engine.release()

threading.Thread(target=follow, daemon=True).start()
Server(config, service).run(sockets=[listener])
print("ended well", flush=True)
"""


@contextmanager
def process() -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A server that stops after three tokens until it is told to go on, and its client."""
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS],
        cwd=TESTS.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as each:
        assert each.stdout
        url = f"http://127.0.0.1:{int(each.stdout.readline())}"
        headers = {"x-api-key": KEY}
        try:
            with httpx.Client(
                base_url=url, headers=headers, timeout=PATIENCE, trust_env=False
            ) as client:
                yield each, client
        finally:
            each.kill()


def wait_for_draining(client: httpx.Client) -> None:
    """Signals take a moment to arrive."""
    for _ in range(1000):
        answer = client.get("/health")
        if answer.json() == {"status": "draining"}:
            assert answer.status_code == 503
            return
    raise AssertionError("the server never said that it drains")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_streams_finish_and_turns_new_work_away(number: signal.Signals) -> None:
    with process() as (server, client):
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            server.send_signal(number)
            wait_for_draining(client)
            assert client.get("/health/live").status_code == 200
            refused = client.post("/v1/chat/completions", json=body())
            assert "draining" in assert_error(refused, 503, "server_is_overloaded")
            assert refused.headers["retry-after"]
            assert server.stdin
            server.stdin.write("\n")
            server.stdin.flush()
            assert [line for line in lines if line][-1] == "data: [DONE]"
        output, _ = server.communicate(timeout=PATIENCE)
        assert (output, server.returncode) == ("ended well\n", 0)


def test_a_second_signal_ends_it_at_once() -> None:
    question = body(stream=True)
    with (
        process() as (server, client),
        client.stream("POST", "/v1/chat/completions", json=question) as stream,
    ):
        next(stream.iter_lines())
        server.send_signal(signal.SIGTERM)
        wait_for_draining(client)
        server.send_signal(signal.SIGTERM)
        output, _ = server.communicate(timeout=PATIENCE)
        assert (output, server.returncode) == ("", 128 + signal.SIGTERM)


def test_without_work_it_ends_at_the_first_signal() -> None:
    with process() as (server, client):
        assert client.get("/health").status_code == 200
        server.send_signal(signal.SIGTERM)
        output, _ = server.communicate(timeout=PATIENCE)
        assert (output, server.returncode) == ("ended well\n", 0)


def test_whatever_has_not_finished_when_patience_ends_is_told_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(serving, "DRAIN_S", 0)
    monkeypatch.setattr(serving, "CLOSE_S", 0)
    with running() as rig, ThreadPoolExecutor() as clients, rig.connect() as uploading:
        uploading.sendall(request_bytes()[:-1])
        rig.engine.hold(3)
        question = body(stream=True)
        with rig.client.stream("POST", "/v1/chat/completions", json=question) as stream:
            lines = stream.iter_lines()
            next(lines)
            answering = clients.submit(rig.chat, n=2)
            rig.engine.wait_until(lambda engine: engine.num_running == 3)
            rig.engine.hold(2)
            rig.engine.wait_until(lambda engine: len(engine.added[-1].output_token_ids) > 1)
            rig.preprocessor.entered.clear()
            rig.preprocessor.may_go.clear()
            preparing = clients.submit(rig.chat)
            assert rig.preprocessor.entered.wait(PATIENCE)
            rig.server.drain()
            last = [line for line in lines if line][-1].removeprefix("data: ")
            assert json.loads(last)["error"]["code"] == "server_is_overloaded"
        for whole in (answering.result(), preparing.result()):
            assert "going down" in assert_error(whole, 503, "server_is_overloaded")
            assert whole.headers["retry-after"]
        assert uploading.recv(13) == b"HTTP/1.1 503 "
        rig.engine.wait_until(lambda engine: engine.num_running == 0)
    assert not [each for each in caplog.records if each.exc_info]
    told = [each.getMessage() for each in caplog.records if each.name == "litevl.request"]
    ends = [re.findall("(?:status|error|finish_reason)=([^ ]+)", each) for each in told]
    assert sorted(ends) == [
        ["200", "server_is_overloaded", "error"],
        ["503", "server_is_overloaded", "-"],
        ["503", "server_is_overloaded", "-"],
        ["503", "server_is_overloaded", "error"],
    ]


def test_a_reader_that_takes_nothing_when_patience_ends_is_cut_off_and_its_answers_are_errors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(serving, "DRAIN_S", 0)
    monkeypatch.setattr(serving, "CLOSE_S", 0)
    with running() as rig, connect_narrowly(rig) as connection:
        rig.engine.script = lambda sequence: say("a" * 500)
        rig.engine.hold(450)  # more than the kernel takes
        connection.sendall(request_bytes(stream=True, n=8, logprobs=True, top_logprobs=20))
        rig.engine.wait_until(lambda engine: tokens_made(engine) == 8 * 450)
        rig.server.drain()
        rig.engine.wait_until(lambda engine: engine.num_running == 0)
    assert not [each for each in caplog.records if each.exc_info]
    (told,) = [each.getMessage() for each in caplog.records if each.name == "litevl.request"]
    assert "status=200 error=server_is_overloaded finish_reason=error" in told


def tokens_made(engine: FakeEngine) -> int:
    return sum(len(each.output_token_ids) for each in engine.added)


def test_a_body_that_is_on_its_way_when_the_drain_begins_is_still_answered() -> None:
    with running() as rig, rig.connect() as connection:
        text = json.dumps(body()).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n"
        head += f"content-length: {len(text)}\r\nexpect: 100-continue\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"  # it was accepted
        rig.server.drain()
        assert turned_away(rig)
        connection.sendall(text)
        assert connection.recv(13) == b"HTTP/1.1 200 "


def turned_away(rig: Rig) -> bool:
    return rig.chat().status_code == 503


def test_an_open_connection_keeps_nobody_from_leaving() -> None:
    with running() as rig, socket.create_connection(("127.0.0.1", httpx.URL(rig.url).port)):
        assert rig.client.get("/health").status_code == 200
        rig.server.drain()


def test_the_limit_of_open_files_is_raised_but_never_lowered() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        for connections, wanted in ((100, 868), (10, 868)):
            serving.raise_file_limit(Limits(connections=connections))
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
