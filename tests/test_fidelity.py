"""Greedy tokens equal transformers' `model.generate`, whatever the batch, chunking or preemption.

A first divergence counts as equal only where the reference's own top two logits lie within 1e-4;
such cases are counted and printed, and may not be many.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from litevl.check import TIE
from litevl.engine.engine import Engine
from litevl.models import qwen_vl
from litevl.models.qwen_vl import Piece, QwenVL
from litevl.sequence import Prompt
from rig import Rig, greedy, run_all
from tiny_models import FAMILIES, make_checkpoint

NUM_TOKENS = 24
SPECS: dict[str, list[int | tuple[int, int, int]]] = {
    "text": [13],
    "picture": [5, (1, 8, 12), 7],
    "two pictures": [3, (1, 4, 4), 2, (1, 12, 8), 4],
    "large picture": [2, (1, 20, 12), 3],
    "three turns": [4, (1, 6, 6), 5, 9, (1, 4, 8), 6, 3],
    "long text": [150],
    "one word": [1],
}


@pytest.fixture(scope="module", params=FAMILIES)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(make_checkpoint(request.param, tmp_path_factory.mktemp("model") / request.param))


@pytest.fixture(scope="module")
def prompts(rig: Rig) -> dict[str, Prompt]:
    made = {name: rig.image_prompt(spec, seed) for seed, (name, spec) in enumerate(SPECS.items())}
    made["clip"] = rig.conversation("What moves?", (32, 60, 80))
    made["picture and clip"] = rig.conversation((1, 80, 80), "Compare", (24, 50, 50), "with it.")
    made["turns"] = rig.conversation((1, 90, 60), "What?", "/", "A cat.", "/", "And", (1, 70, 70))
    return made


@pytest.fixture(scope="module")
def references(rig: Rig, prompts: dict[str, Prompt]) -> dict[str, list[int]]:
    return {name: rig.generate(prompt, NUM_TOKENS) for name, prompt in prompts.items()}


def assert_equal(
    rig: Rig,
    prompts: dict[str, Prompt],
    outputs: dict[str, list[int]],
    references: dict[str, list[int]],
) -> None:
    ties = []
    for name, reference in references.items():
        output = outputs[name]
        assert len(output) == len(reference)
        differing = [i for i, (a, b) in enumerate(zip(output, reference, strict=True)) if a != b]
        if differing:
            gap = rig.top_two_gap(prompts[name], reference[: differing[0]])
            assert gap < TIE, f"{name}: differs at token {differing[0]}, gap {gap}"
            ties.append(name)
    print(f"ties within {TIE}: {ties}")
    assert len(ties) <= 2


def add_all(engine: Engine, prompts: dict[str, Prompt]) -> None:
    for name, prompt in prompts.items():
        engine.add(greedy(prompt, name, NUM_TOKENS))


def test_the_cases_can_tell_right_from_wrong(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]]
) -> None:
    assert all(len(set(tokens)) >= 8 for tokens in references.values())
    for name, prompt in prompts.items():
        if prompt.media:
            blank = [replace(item, pixels=255 - item.pixels[::-1]) for item in prompt.media]
            changed = replace(prompt, media=tuple(blank))
            assert rig.generate(changed, NUM_TOKENS) != references[name], name


def test_alone_equals_generate(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]]
) -> None:
    outputs: dict[str, list[int]] = {}
    for name, prompt in prompts.items():
        engine, _ = rig.engine(max_tokens=512)
        engine.add(greedy(prompt, name, NUM_TOKENS))
        outputs |= run_all(engine)
    assert_equal(rig, prompts, outputs, references)


@pytest.mark.parametrize("max_tokens", [7, 16, 64, 512])
def test_batched_and_chunked_equals_generate(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]], max_tokens: int
) -> None:
    engine, runner = rig.engine(max_tokens=max_tokens, encoder_tokens=12)
    add_all(engine, prompts)
    outputs = run_all(engine)
    assert runner.mixed > 0
    assert runner.cut_media > 0 or max_tokens > 16
    assert max(len(lengths) for lengths, _ in runner.steps) > 2
    assert_equal(rig, prompts, outputs, references)


def test_requests_that_join_a_running_batch_equal_generate(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]]
) -> None:
    engine, runner = rig.engine(max_tokens=24)
    outputs: dict[str, list[int]] = {}
    waiting = list(prompts.items())
    while waiting or engine.num_unfinished:
        if waiting:
            name, prompt = waiting.pop()
            engine.add(greedy(prompt, name, NUM_TOKENS))
        for output in engine.step():
            assert output.token_id is not None
            outputs.setdefault(output.request_id, []).append(output.token_id)
    assert runner.mixed > 0
    assert_equal(rig, prompts, outputs, references)


def test_preempted_requests_equal_generate(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]]
) -> None:
    engine, _ = rig.engine(num_blocks=46, max_tokens=32)
    add_all(engine, prompts)
    outputs = run_all(engine)
    assert engine.scheduler.num_preemptions > 0
    assert_equal(rig, prompts, outputs, references)


def test_requests_beside_aborted_ones_equal_generate(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]]
) -> None:
    engine, _ = rig.engine(max_tokens=24)
    for name, prompt in prompts.items():
        engine.add(greedy(prompt, name, NUM_TOKENS))
        engine.add(greedy(prompt, f"gone {name}", NUM_TOKENS))
    outputs: dict[str, list[int]] = {}
    for number in range(10**6):
        if not engine.num_unfinished:
            break
        if number % 2 == 0 and number // 2 < len(prompts):
            engine.abort(f"gone {list(prompts)[number // 2]}")
        for output in engine.step():
            assert output.token_id is not None
            outputs.setdefault(output.request_id, []).append(output.token_id)
    engine.check_idle()
    assert_equal(rig, prompts, outputs, references)


def test_repetition_penalty_equals_generate(rig: Rig, prompts: dict[str, Prompt]) -> None:
    engine, _ = rig.engine(max_tokens=24)
    for name, prompt in prompts.items():
        engine.add(greedy(prompt, name, NUM_TOKENS, repetition_penalty=1.3))
    references = {
        name: rig.generate(prompt, NUM_TOKENS, repetition_penalty=1.3)
        for name, prompt in prompts.items()
    }
    outputs = run_all(engine)
    # Under a penalty the reference's raw logits say nothing about ties: all must be equal.
    assert outputs == references


def test_a_clip_encoded_in_pieces_of_time_has_the_same_features(
    rig: Rig, prompts: dict[str, Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    media = [m for prompt in prompts.values() for m in prompt.media if m.kind == "video"]
    assert any(item.grid[0] > 1 for item in media)
    with torch.inference_mode():
        whole = rig.model.encode(media)
        monkeypatch.setattr(qwen_vl, "ENCODE_TOKENS", 10)
        plain, patches = QwenVL._encode, []

        def encode(model: QwenVL, pieces: Sequence[Piece]) -> None:
            patches.append(sum(len(piece.item.pixels) for piece in pieces))
            plain(model, pieces)

        monkeypatch.setattr(QwenVL, "_encode", encode)
        pieces = rig.model.encode(media)
    frame = max(item.grid[1] * item.grid[2] for item in media)
    assert max(patches) <= max(frame, 10 * 4), "more than a moment was encoded at once"
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
