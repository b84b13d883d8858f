"""Requests share forward passes over a real model: nobody waits for another's answer to end."""

import threading
from pathlib import Path

from litevl.sequence import StepOutput
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
