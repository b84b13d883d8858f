"""Silence: whatever a caller sends, and wherever, stands in no log line, error or metric."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from conftest import Watch
from fakes import CARD, KEY, Rig, body, running
from litevl.api import records
from litevl.api.ports import Backend
from litevl.config import Config
from litevl.logs import FIELDS
from litevl.media.loader import MediaLoader
from live import LiveServer
from media_samples import FakePlanner

CANARY = "canary-7f3a"
SAID = f"{CANARY}\n2026-01-01 00:00:00,000 INFO litevl forged\r\x1b[2K"
PICTURE = f"data:image/png;base64,{CANARY.replace('-', '')}"
HTTP = f"http://{CANARY}:{CANARY}@{CANARY}.example/{CANARY}.png?token={CANARY}#{CANARY}"


def with_part(**part: object) -> dict[str, Any]:
    return body(messages=[{"role": "user", "content": [{"type": "text", "text": SAID}, part]}])


def with_url(url: object, kind: str = "image_url") -> dict[str, Any]:
    return with_part(type=kind, **{kind: {"url": url}})


BODIES: dict[str, Any] = {
    "text": body(messages=[{"role": "user", "content": SAID}]),
    "role": body(messages=[{"role": CANARY, "content": SAID}]),
    "content": body(messages=[{"role": "user", "content": {CANARY: CANARY}}]),
    "part": with_part(type=CANARY, **{CANARY: CANARY}),
    "model": body(model=CANARY),
    "number": body(temperature=SAID),
    "choice": body(reasoning_effort=CANARY, tool_choice=CANARY),
    "stop": body(stop=[CANARY * 100]),
    "bias": body(logit_bias={CANARY: 1}),
    "tool": body(
        tools=[{"type": "function", "function": {"name": f"{CANARY} x", "parameters": 7}}]
    ),
    "tool choice": body(tool_choice={"type": "function", "function": {"name": CANARY}}),
    "schema": body(response_format={"type": CANARY, "json_schema": {CANARY: CANARY}}),
    "template": body(chat_template_kwargs={CANARY: CANARY}),
    "processor": body(mm_processor_kwargs={CANARY: 1}),
    "unknown": body(**{CANARY: CANARY, "user": CANARY, "metadata": {CANARY: CANARY}}),
    "file": with_part(type="file", file={"filename": CANARY, "file_id": CANARY}),
    "file data": with_part(type="file", file={"filename": CANARY, "file_data": CANARY}),
    "option": with_part(type="image_url", image_url={"url": PICTURE, "detail": CANARY}),
    "picture": with_url(PICTURE),
    "broken": with_url(f"data:image/png;base64,iVBORw0KGgo{CANARY}!"),
    "cut": with_url(
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI"
    ),
    "header": with_url(f"data:{CANARY},{CANARY}"),
    "address": with_url(HTTP),
    "private": with_url(f"http://127.0.0.1/{CANARY}?token={CANARY}"),
    "nobody": with_url(f"http://127.0.0.2:9/{CANARY}?token={CANARY}"),
    "local": with_url(f"file:///{CANARY}/{CANARY}.png"),
    "clip": with_url(HTTP, "video_url"),
    "frames": with_part(type="video", video=[PICTURE, 7, CANARY]),
}
RAW = {
    "no JSON": f'{{"messages": {CANARY}}}',
    "one name twice": f'{{"{CANARY}": 1, "{CANARY}": 2}}',
    "half a character": f'{{"messages": "{CANARY}\\ud800"}}',
    "no object": f'["{CANARY}"]',
    "a slip": f'{{"messages": [{{"role": "user", "content": f"{CANARY}"}},]}}',
}
HEADS = {
    "x-request-id": f"{CANARY} {CANARY}",
    "user-agent": CANARY,
    "referer": HTTP,
    "cookie": CANARY,
    "authorization": f"Bearer {CANARY}",
    "openai-organization": CANARY,
    "content-type": f"text/{CANARY}",
}


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """With litevl's own loader behind it."""
    config = Config(media_networks=("127.0.0.2/32",))
    with running(is_loaded=False) as rig:
        media = MediaLoader(FakePlanner(lambda probe: (0,)), config)
        rig.service.attach(
            Backend(
                card=CARD,
                engine=rig.engine,
                preprocessor=rig.preprocessor,
                grammars=rig.grammars,
                media=media,
            )
        )
        yield rig


def told(rig: Rig, caplog: pytest.LogCaptureFixture) -> str:
    lines = "\n".join(map(caplog.handler.format, caplog.records))
    return lines + rig.client.get("/metrics").text + rig.client.get("/v1/status").text


@pytest.mark.parametrize("asked", [*BODIES.values(), *RAW.values()], ids=[*BODIES, *RAW])
def test_what_is_sent_stands_in_no_error_log_or_metric(
    rig: Rig, asked: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for path in ("chat/completions", "completions", "tokenize", "chat/completions/input_tokens"):
        given: dict[str, Any] = {"content": asked} if isinstance(asked, str) else {"json": asked}
        answer = rig.client.post(f"/v1/{path}?key={CANARY}", **given)
        assert answer.status_code < 500
        if answer.status_code != 200:
            assert not re.search(CANARY.replace("-", "-?"), answer.text)
    assert CANARY not in told(rig, caplog)


def test_what_stands_in_heads_and_addresses_is_told_nowhere(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name, value in HEADS.items():
        for path in ("/v1/chat/completions", f"/v1/{CANARY}", f"/v1/models/{CANARY}"):
            answer = rig.client.post(path, json=body(), headers={name: value})
            assert CANARY not in answer.text
    for method in (CANARY.upper(), "DELETE"):
        assert CANARY not in rig.client.request(method, f"/{CANARY}").text.lower()
    assert CANARY not in told(rig, caplog).lower()


def test_an_unexpected_error_tells_where_it_was_and_not_what_it_said(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig.preprocessor.error = ValueError(SAID)
    answer = rig.chat(messages=[{"role": "user", "content": SAID}])
    rig.preprocessor.error = None
    assert answer.status_code == 500
    assert "unexpected ValueError" in caplog.text
    assert CANARY not in answer.text + told(rig, caplog)


def test_no_process_of_the_server_shows_a_key(server: LiveServer) -> None:
    process = psutil.Process(server.process.pid)
    for each in (process, *process.children(recursive=True)):
        assert KEY not in " ".join(each.cmdline())
        assert "sk-" not in Path(f"/proc/{each.pid}/cmdline").read_text(errors="replace")


@pytest.mark.parametrize(
    "name", ["litevl.request", "uvicorn.error", "asyncio", "qwen_vl_utils.vision_process"]
)
def test_the_watch_over_every_test_sees_the_lines_of_all_loggers(
    name: str, nothing_of_a_caller_is_told_and_nothing_leaks: Watch
) -> None:
    watch = nothing_of_a_caller_is_told_and_nothing_leaks
    logging.getLogger(name).info("done", extra={FIELDS: {"path": CANARY}})
    assert [CANARY in line for line in watch.found] == [True]
    watch.found.clear()


def test_the_watch_over_every_test_sees_the_line_of_a_request(
    rig: Rig,
    nothing_of_a_caller_is_told_and_nothing_leaks: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = nothing_of_a_caller_is_told_and_nothing_leaks
    monkeypatch.setattr(records, "_told", lambda record: {"planted": CANARY})
    assert rig.chat().status_code == 200
    rig.client.get("/health")  # on the same connection, so that the line before it is written
    assert len(watch.found) == 1 and f"planted={CANARY}" in watch.found[0]
    watch.found.clear()
