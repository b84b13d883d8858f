"""Requests share forward passes over a real model: nobody waits for another's answer to end."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from litevl.engine.engine import Engine
from litevl.errors import InternalError
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import MediaItem, StepOutput
from rig import Rig, greedy
from tiny_models import make_checkpoint

LONG = 2000
TIMEOUT_S = 120.0  # a hang fails the test


def test_a_later_requests_first_token_comes_before_a_long_answer_ends(tmp_path: Path) -> None:
    rig = Rig(make_checkpoint("qwen3_vl", tmp_path))
    long, short = rig.image_prompt([5, (1, 4, 4), 3]), rig.image_prompt([40, (1, 8, 12), 9], seed=1)
    engine, runner = rig.engine(num_blocks=600, max_tokens=16)
    order: list[str] = []
    has_started, has_ended = threading.Event(), threading.Event()

    def deliver(outputs: list[StepOutput]) -> None:
        for output in outputs:
            order.append(output.request_id)
            has_started.set()
            if output.request_id == "long" and output.finish_reason:
                has_ended.set()

    engine.start(deliver)
    engine.add(greedy(long, "long", LONG))
    assert has_started.wait(TIMEOUT_S)
    engine.add(greedy(short, "short", 5))
    assert has_ended.wait(TIMEOUT_S)
    engine.stop()
    assert order.count("long") == LONG and order.count("short") == 5
    assert order.index("short") < LONG / 2, "the second request waited for the first"
    assert runner.mixed >= 3, "decodes of one and chunks of the other share a forward"
    engine.check_idle()


SPOILT = 5  # a token whose embedding is NaN, as when float16 overflows


@pytest.fixture
def spoiling(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = QwenVL.embed

    def embed(model: QwenVL, token_ids: Tensor) -> Tensor:
        return plain(model, token_ids).masked_fill((token_ids == SPOILT)[:, None], torch.nan)

    monkeypatch.setattr(QwenVL, "embed", embed)


def run_beside_one_that_fails(engine: Engine) -> dict[str, list[int]]:
    outputs: dict[str, list[int]] = {}
    while engine.num_unfinished:
        for output in engine.step():
            assert isinstance(output.error, InternalError) == (output.request_id == "bad")
            if output.token_id is not None:
                outputs.setdefault(output.request_id, []).append(output.token_id)
    engine.check_idle()
    return outputs


@pytest.mark.usefixtures("spoiling")
def test_nan_in_a_long_prompt_reaches_nobody_who_begins_alike(tmp_path: Path) -> None:
    rig = Rig(make_checkpoint("qwen2_5_vl", tmp_path))
    engine, _ = rig.engine(max_tokens=32)
    bad, good = (rig.image_prompt([length], seed=length) for length in (120, 40))
    good.token_ids[:20] = bad.token_ids[:20]
    bad.token_ids[24] = SPOILT  # in the first of four chunks, whose mask hides no NaN
    engine.add(greedy(bad, "bad", 2))
    (failed,) = engine.step()
    assert isinstance(failed.error, InternalError)
    engine.add(greedy(good, "good", 12))
    assert run_beside_one_that_fails(engine) == {"good": rig.generate(good, 12)}


def test_a_picture_whose_features_were_once_nan_is_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(make_checkpoint("qwen2_5_vl", tmp_path))
    engine, _ = rig.engine()
    prompt = rig.image_prompt([5, (1, 8, 8), 7])
    expected = {"good": rig.generate(prompt, 8)}
    plain, bad = QwenVL.encode, [torch.nan]

    def encode(model: QwenVL, items: Sequence[MediaItem]) -> list[Tensor]:
        return [features + (bad.pop() if bad else 0) for features in plain(model, items)]

    monkeypatch.setattr(QwenVL, "encode", encode)
    for name in ("bad", "good"):
        engine.add(greedy(prompt, name, 8))
        outputs = run_beside_one_that_fails(engine)
    assert outputs == expected


@pytest.mark.usefixtures("spoiling")
def test_nan_in_a_request_reaches_neither_its_neighbours_nor_who_gets_its_blocks(
    tmp_path: Path,
) -> None:
    rig = Rig(make_checkpoint("qwen2_5_vl", tmp_path))
    engine, _ = rig.engine(max_tokens=16)
    bad, *good = (rig.image_prompt([length], seed=length) for length in (120, 5, 9, 13))
    bad.token_ids[0] = SPOILT
    engine.add(greedy(bad, "bad", 2))  # its prompt takes eight steps, beside the others' decodes
    expected = {str(i): rig.generate(prompt, 12) for i, prompt in enumerate(good)}
    for _ in range(2):  # the second time in the blocks that it has left
        for i, prompt in enumerate(good):
            engine.add(greedy(prompt, str(i), 12))
        assert run_beside_one_that_fails(engine) == expected
