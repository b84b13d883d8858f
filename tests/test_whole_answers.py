"""Whole answers, put together as their tokens come and sent in pieces."""

import json
import tracemalloc
from dataclasses import replace
from statistics import median

import pytest

from fakes import running
from litevl.api import answering
from litevl.api.answer import Content
from litevl.api.choices import Delta, ScoredToken
from litevl.api.protocol import Streaming
from litevl.api.responses import AnswerHead, AnswerWriter, ChatForm, ChunkWriter


def test_a_chunk_of_log_probabilities_alone_is_sent_and_one_without_news_is_not() -> None:
    head = AnswerHead(id="x", created=0, model="tiny", form=ChatForm(), prompts=(), more={})
    writer = ChunkWriter(head, Streaming(stream=True))
    nothing = Delta(index=0, pieces=[], completion_tokens=1, reasoning_tokens=0, cached_tokens=0)
    assert writer.add(nothing), "the first has the role"
    assert not writer.add(nothing)
    half = writer.add(replace(nothing, scores=(ScoredToken(b"\xc3", -0.5),)))
    assert b'"logprobs":{"content":[{' in half


def test_a_token_more_costs_no_more_in_a_long_answer_than_in_a_short_one() -> None:
    head = AnswerHead(id="x", created=0, model="tiny", form=ChatForm(), prompts=(), more={})
    writer = AnswerWriter(head)
    score = ScoredToken(b"a", -0.5, (ScoredToken(b"a", -0.5),))
    allocated = []
    tracemalloc.start()
    try:
        for count in range(1, 10_001):
            delta = Delta(
                index=0,
                pieces=[Content("a")],
                scores=(score,),
                completion_tokens=count,
                reasoning_tokens=0,
                cached_tokens=0,
            )
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            writer.add(delta)
            allocated.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert median(allocated[-1000:]) <= 2 * median(allocated[:1000])
    whole = json.loads(b"".join(writer.finish()))["choices"][0]
    assert whole["message"]["content"] == "a" * 10_000
    assert len(whole["logprobs"]["content"]) == 10_000


def test_a_large_answer_is_sent_in_pieces_and_says_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    with running() as rig:
        choices = rig.chat(**fields).json()["choices"]
        monkeypatch.setattr(answering, "PIECE", 100)
        answer = rig.chat(**fields)
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.json()["choices"] == choices
