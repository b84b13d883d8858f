"""Every example runs against a live server and does what its first line says.

The JavaScript one runs where Node is: `make test-clients`.
"""

import os
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from live import KEY, ROOT, LiveServer

EXAMPLES = ROOT / "examples"
Run = Callable[[str], str]


@pytest.fixture
def run(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a Python example as its reader would, from the root; returns what it prints."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BASE_URL", server.base_url)
    monkeypatch.setenv("API_KEY", KEY)

    def example(name: str) -> str:
        monkeypatch.setattr("sys.argv", [name])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return example


def test_a_picture_and_what_was_seen_of_it(run: Run) -> None:
    answer, seen = run("picture.py").strip().splitlines()
    assert answer
    assert re.fullmatch(r"seen as \[\d+, \d+\] of \[\d+, \d+\] pixels, \d+ tokens", seen)


def test_a_clip_is_streamed(run: Run) -> None:
    assert run("clip.py").strip() not in ("", "None")


def test_a_tool_is_called_and_the_model_goes_on(run: Run) -> None:
    call, *answer = run("tool_calls.py").strip().splitlines()
    assert re.fullmatch(r"get_weather\(\{'city': '(Hangzhou|Oslo)'\}\)", call)
    assert answer


def test_an_answer_is_what_the_schema_says(run: Run) -> None:
    assert re.fullmatch(r"\{'animal': '(sheep|cat|fish)', 'count': \d+\}\n", run("schema.py"))


def test_later_questions_about_a_clip_are_answered_from_the_cache(run: Run) -> None:
    counts = re.findall(r"(\d+) of (\d+) tokens from the cache", run("questions.py"))
    assert len(counts) == 3
    assert all(int(cached) > int(total) // 2 for cached, total in counts[1:])


def test_the_engine_answers_without_http(run: Run) -> None:
    assert run("engine.py").startswith("{'How many sheep are there in the picture?': '")


def test_curl_streams_an_answer_about_a_picture(server: LiveServer) -> None:
    keys = {"BASE_URL": server.base_url, "API_KEY": KEY}
    command = ["sh", str(EXAMPLES / "curl.sh")]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | keys, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("data: {") and done.stdout.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.*")), ids=lambda file: file.name)
def test_an_example_is_short_and_stands_in_the_list(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 40
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert file.name == "README.md" or f"examples/{file.name}" in listed
