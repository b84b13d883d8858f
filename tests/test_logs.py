"""What stands in the log: a line a request, nothing of its content, nothing forged."""

import fcntl
import json
import logging
import os
import re
import sys
from collections.abc import Iterator

import httpx
import pytest

from fakes import Rig, assert_error, body, running
from litevl import logs
from litevl.logs import FIELDS, FRAMES, JsonFormatter, TextFormatter
from test_metrics import PICTURE, SECRET, wait_for, with_media

FORGED = "a\n2026-01-01 00:00:00,000 INFO litevl all is well\r\x1b[2K\u2028"


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("litevl", logging.INFO, "f.py", 1, message, (), None)
    made.__dict__ |= extra
    return made


def test_a_message_cannot_forge_a_line() -> None:
    text = TextFormatter().format(record(FORGED))
    assert text.isprintable() and text.endswith("\\u2028")
    told = JsonFormatter().format(record(FORGED))
    assert told.isprintable()
    assert json.loads(told)["message"] == FORGED


def test_fields_and_frames_have_their_places() -> None:
    made = record("done", **{FIELDS: {"tokens": 3}, FRAMES: "one\ntwo\n"})
    told = json.loads(JsonFormatter().format(made))
    assert (told["message"], told["tokens"], told["frames"]) == ("done", 3, "one\ntwo\n")
    assert told["time"].endswith("Z") and told["level"] == "INFO"
    assert TextFormatter().format(made).splitlines()[1:] == ["one", "two"]


def test_a_traceback_is_kept() -> None:
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    assert "ZeroDivisionError" in json.loads(JsonFormatter().format(made))["frames"]
    assert "ZeroDivisionError" in TextFormatter().format(made)


def test_records_that_cannot_wait_are_dropped_and_the_next_one_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logs, "WAITING", 3)
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    writer = logs.Writer(write)
    writer.setFormatter(TextFormatter())
    with os.fdopen(read, encoding="utf-8") as reader:
        writer.handle(record("x" * 5000))  # more than the pipe takes
        numbers = iter(range(1000))
        while not writer._num_dropped:
            writer.handle(record(f"waits {next(numbers)}"))
        lines = [reader.readline() for _ in range(2)]
        while writer._num_dropped:
            writer.handle(record("later"))
        writer.flush()
        os.close(write)
        lines += reader.readlines()
    assert lines[0].endswith(f"{'x' * 5000}\n")
    waited = [line for line in lines if "waits" in line]
    assert [line.split()[-1] for line in waited] == [str(i) for i in range(len(waited))]
    assert len(waited) == next(numbers) - 1
    assert re.search(r"WARNING litevl.logs \d+ records were dropped$", lines[-2].rstrip())
    assert lines[-1].endswith("later\n")


def test_a_pipe_that_somebody_made_non_blocking_gets_every_record() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    writer = logs.Writer(write)
    writer.setFormatter(TextFormatter())
    with os.fdopen(read, encoding="utf-8") as reader:
        for number in range(3):
            writer.handle(record(f"{number}" * 100_000))
        lines = [reader.readline() for _ in range(3)]
        os.close(write)
    assert [line[-100_001:] for line in lines] == [
        f"{number}" * 100_000 + "\n" for number in range(3)
    ]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


@pytest.mark.parametrize(
    "headers", [{"x-request-id": "a\tb"}, {"x-request-id": "a=b status=200"}, {"user-agent": "%s"}]
)
def test_what_a_client_writes_into_its_head_is_not_logged(
    rig: Rig, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "litevl"):
        rig.client.post("/v1/chat/completions?secret=1", json=body(), headers=headers)
        rig.client.get("/v1/models/secret", headers=headers)
        rig.client.get("/health")  # its line would be written after theirs, but it has none
    lines = [each.getMessage() for each in caplog.records if each.name == "litevl.request"]
    assert len(lines) == 2
    for value in (*headers.values(), "secret"):
        assert not any(value in line for line in lines)


def test_one_line_a_request_is_logged(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="litevl.request")
    for path in ("/health", "/health/live", "/metrics", "/v1/status"):
        assert rig.client.get(path).status_code == 200
    assert caplog.messages == []
    rig.client.post(
        "/v1/chat/completions",
        json=body(**with_media(PICTURE), model="alias/of-tiny"),
        headers={"x-request-id": "my-id"},
    )
    assert_error(rig.chat(temperature="hot"), 400, "invalid_value", "temperature")
    rig.client.get(f"/v1/{SECRET}%0a2026 INFO forged")
    wait_for(lambda: len(caplog.messages) == 3)
    answered, refused, lost = caplog.messages
    begin = r"endpoint=/chat/completions model=alias/of-tiny id=my-id status=200 "
    numbers = r"prompt_tokens=6 cached_tokens=0 completion_tokens=\d+ ttft_ms=[\d.]+ total_ms=[\d.]"
    assert re.match(begin, answered)
    assert "error=- finish_reason=stop images=1 videos=0" in answered
    assert re.search(numbers, answered)
    assert re.search(r"status=400 error=invalid_value finish_reason=- .* ttft_ms=- ", refused)
    assert re.match(r"endpoint=other model=- id=req-\w+ status=404 error=not_found ", lost)


def test_every_address_is_logged_by_its_name_without_what_a_caller_put_into_it(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="litevl.request")
    for path in ("/v1/models", "/v1/models/tiny", f"/v1/models/{SECRET}", f"/{SECRET}"):
        rig.client.get(path)
    wait_for(lambda: len(caplog.messages) == 4)
    told = [each.split()[0] for each in caplog.messages]
    assert told == [f"endpoint={name}" for name in ("/models", *["/models/{name}"] * 2, "other")]


def test_a_refusal_is_logged_even_where_answers_are_not(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="litevl.request")
    httpx.get(f"{rig.url}/v1/status", trust_env=False)
    wait_for(lambda: len(caplog.messages) == 1)
    told = r"endpoint=/status model=- id=req-\w+ status=401 error=invalid_api_key "
    assert re.match(told, caplog.messages[0])
