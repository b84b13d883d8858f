"""An engine that cannot go on takes the process with it, so that a supervisor starts another.

Real processes, a real engine, a scripted runner instead of a model.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from fakes import KEY, assert_error, body

TESTS = Path(__file__).parent
PATIENCE = 240.0

# Prints its port; the step that computes the second token does what `fault` says.
PROCESS = f"""
import socket, sys, threading
sys.path.insert(0, {str(TESTS)!r})
from fakes import CARD, KEY, FakeGrammars, FakeMedia, FakePreprocessor
from litevl.api import serving
from litevl.api.ports import Backend
from litevl.api.service import Service
from litevl.config import Config
from litevl.engine import engine as engine_module
from test_engine import ScriptedRunner, engine
from test_faults import LostDevice

fault = sys.argv[1]
if fault == "stuck":
    engine_module.STALL_AFTER_S, serving.STUCK_S = 1.0, 1.0

def before(step):
    if len(step.chunks[0].sequence.output_token_ids) < 2:
        return
    if fault == "killed":
        raise SystemExit
    if fault == "stuck":
        threading.Event().wait()
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

runner = LostDevice(before=before) if fault == "lost" else ScriptedRunner(before=before)
service = Service(Config(api_key=(KEY,)))
service.attach(Backend(card=CARD, engine=engine(runner), preprocessor=FakePreprocessor(),
                       grammars=FakeGrammars(), media=FakeMedia()))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
server = serving.Server(Config(api_key=(KEY,)), service)
server.run(sockets=[listener])
sys.exit(server.exit_code)
"""


@contextmanager
def process(fault: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, fault],
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as each:
        assert each.stdout
        url = f"http://127.0.0.1:{int(each.stdout.readline())}"
        try:
            with httpx.Client(
                base_url=url, headers={"x-api-key": KEY}, timeout=PATIENCE, trust_env=False
            ) as client:
                yield each, client
        finally:
            each.kill()


@pytest.mark.parametrize("fault", ["lost", "killed"])
def test_a_dead_engine_fails_what_runs_turns_red_and_ends_the_process(fault: str) -> None:
    with process(fault) as (server, client):
        failed = client.post("/v1/chat/completions", json=body(max_tokens=9))
        for path in ("/health", "/health/live"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()) == (503, {"status": "dead"})
        assert_error(failed, 500, "server_error")
        assert failed.headers["x-should-retry"] == "false"
        refused = client.post("/v1/chat/completions", json=body())
        assert_error(refused, 503, "server_error")
        assert refused.headers["retry-after"]
        assert server.wait(PATIENCE) == os.EX_SOFTWARE


def test_a_stream_that_dies_with_the_engine_ends_with_an_error_frame() -> None:
    with process("lost") as (server, client):
        answer = client.post("/v1/chat/completions", json=body(max_tokens=9, stream=True))
        *_, last, rest = answer.text.split("\n\n")
        assert (answer.status_code, rest) == (200, "")
        assert last.startswith('data: {"error":')
        assert server.wait(PATIENCE) == os.EX_SOFTWARE


def test_a_stuck_step_ends_the_process_though_nothing_can_end_the_step() -> None:
    with process("stuck") as (server, client):
        with pytest.raises(httpx.HTTPError):
            client.post("/v1/chat/completions", json=body(max_tokens=9))
        assert server.wait(PATIENCE) == os.EX_SOFTWARE
        assert server.stderr
        assert "the engine is stuck" in server.stderr.read()
