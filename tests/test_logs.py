"""What stands in the log: a line a request, nothing of its content, nothing forged."""

import json
import logging
import sys
from collections.abc import Iterator

import pytest

from fakes import Rig, body, running
from litevl.logs import FIELDS, FRAMES, JsonFormatter, TextFormatter

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
