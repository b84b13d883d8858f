"""Text that cannot fit is refused by its length, before anything slow looks at it."""

import threading
from pathlib import Path

import pytest

from litevl.errors import ContextLengthError
from litevl.sequence import Message, TextPart
from rig import Rig, said
from tiny_models import make_checkpoint


def test_a_text_far_too_long_is_refused_before_it_is_tokenised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenise(*arguments: object) -> list[int]:
        raise AssertionError("tokenised")

    processor = Rig(make_checkpoint("qwen3_vl", tmp_path)).processor
    monkeypatch.setattr(processor._text, "encode", tokenise)
    parts = (TextPart("a" * 10**6),)
    with pytest.raises(ContextLengthError, match="maximum context length"):
        processor.prepare(said(Message(role="user", parts=parts)), [])


def test_other_threads_run_on_while_a_long_text_is_tokenised(tmp_path: Path) -> None:
    text = Rig(make_checkpoint("qwen3_vl", tmp_path)).processor._text
    ping, pong, done = threading.Event(), threading.Event(), threading.Event()

    def tokenise() -> None:
        text.count("d d" * 10**5)
        done.set()

    def echo() -> None:
        while not done.is_set():
            ping.wait(1)
            ping.clear()
            pong.set()

    threads = [threading.Thread(target=each) for each in (echo, tokenise)]
    for thread in threads:
        thread.start()
    rounds = 0
    while not done.is_set():  # each round hands the interpreter over twice
        ping.set()
        pong.wait(1)
        pong.clear()
        rounds += 1
    for thread in threads:
        thread.join()
    assert rounds > 500  # one that holds it lets some forty through
