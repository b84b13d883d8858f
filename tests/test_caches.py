"""Answers from the prefix and encoder caches equal `model.generate`, and the caches were used."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from litevl.engine.engine import Engine
from litevl.sequence import Prompt, Sequence
from rig import Rig, greedy, run_all
from tiny_models import FAMILIES, make_checkpoint

NUM_TOKENS = 12


@pytest.fixture(scope="module", params=FAMILIES)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(make_checkpoint(request.param, tmp_path_factory.mktemp("model") / request.param))


@pytest.fixture(scope="module")
def prompts(rig: Rig) -> dict[str, Prompt]:
    """Prompts that share their beginnings: A and B have the same words around other pictures."""
    a = rig.image_prompt([9, (1, 8, 8), 7], seed=1)
    other = rig.image_prompt([9, (1, 8, 8), 7], seed=2)
    b = replace(a, media=other.media)
    same_picture = rig.image_prompt([3, (1, 8, 8), 5], seed=3)
    c = replace(same_picture, media=(replace(same_picture.media[0], **_contents(a)),))
    two = rig.image_prompt([2, (1, 8, 8), 2, (1, 8, 8), 5], seed=4)
    twice = tuple(replace(item, **_contents(a)) for item in two.media)
    return {"A": a, "B": b, "C": c, "twice": replace(two, media=twice)}


def _contents(prompt: Prompt) -> dict[str, Any]:
    item = prompt.media[0]
    return {"digest": item.digest, "pixels": item.pixels, "grid": item.grid}


@pytest.fixture(scope="module")
def references(rig: Rig, prompts: dict[str, Prompt]) -> dict[str, list[int]]:
    return {name: rig.generate(prompt, NUM_TOKENS) for name, prompt in prompts.items()}


def answer(engine: Engine, prompt: Prompt, scope: bytes = b"") -> tuple[list[int], Sequence]:
    sequence = replace(greedy(prompt, "one", NUM_TOKENS), scope=scope)
    engine.add(sequence)
    return run_all(engine)["one"], sequence


@pytest.mark.parametrize("max_tokens", [7, 64])
def test_a_picture_asked_about_again_equals_generate_and_is_not_encoded_again(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]], max_tokens: int
) -> None:
    engine, runner = rig.engine(max_tokens=max_tokens)
    cached, encoded = [], []
    for name in ("A", "A", "B", "A", "C", "twice", "B"):
        steps = len(runner.steps)
        tokens, sequence = answer(engine, prompts[name])
        assert tokens == references[name], name
        cached.append(sequence.num_cached)
        encoded.append(sum(count for _, count in runner.steps[steps:]))
    block = 4
    whole = (len(prompts["A"]) - 1) // block * block
    before_picture = int(prompts["A"].media[0].token_indices[0]) // block * block
    assert cached == [0, whole, before_picture, whole, 0, 0, whole]
    assert encoded == [1, 0, 1, 0, 0, 0, 0]
    assert references["A"] != references["B"]


def test_nothing_is_shared_between_scopes(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]]
) -> None:
    engine, runner = rig.engine()
    for scope in (b"one", b"two"):
        tokens, sequence = answer(engine, prompts["A"], scope)
        assert (tokens, sequence.num_cached) == (references["A"], 0)
    assert sum(count for _, count in runner.steps) == 2


def test_the_next_turn_of_a_conversation_is_computed_from_where_it_differs(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]]
) -> None:
    engine, _ = rig.engine()
    first = prompts["A"]
    answer(engine, first)
    ids = np.concatenate([first.token_ids, references["A"], [30, 31, 32]])
    turn = rig._with_positions(ids, first.media)
    tokens, sequence = answer(engine, turn)
    assert tokens == rig.generate(turn, NUM_TOKENS)
    # The last generated token was never computed: nobody had asked for its successor.
    known = len(first) + NUM_TOKENS - 1
    assert sequence.num_cached == known // 4 * 4


def test_answers_that_are_forked_preempted_and_evicted_equal_generate(
    rig: Rig, prompts: dict[str, Prompt], references: dict[str, list[int]]
) -> None:
    engine, runner = rig.engine(num_blocks=24, max_tokens=16, encoder_capacity=0)
    sequences = {
        f"{name} {i}": greedy(prompt, f"{name} {i}", NUM_TOKENS)
        for i in range(3)
        for name, prompt in prompts.items()
    }
    for sequence in sequences.values():
        engine.add(sequence)
    outputs = run_all(engine)
    for name, tokens in outputs.items():
        assert tokens == references[name.split()[0]], name
    assert engine.scheduler.num_preemptions > 0
    assert any(sequence.num_cached for sequence in sequences.values())
    assert runner.cut_media > 0


def test_features_encoded_together_are_freed_one_by_one(rig: Rig) -> None:
    engine, runner = rig.engine(max_tokens=64)
    engine.add(greedy(rig.image_prompt([2, (1, 8, 8), 2, (1, 4, 4), 3], seed=5), "two", 1))
    run_all(engine)
    assert [count for _, count in runner.steps] == [2]
    kept = [features for features, _ in engine.scheduler.encoder_cache._values.values()]
    assert [each.untyped_storage().nbytes() for each in kept] == [each.nbytes for each in kept]
