"""A row's token depends on its logits, its parameters, its seed and its place, and that is all."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from litevl.engine.logits import LogitsProcessor
from litevl.engine.sampler import Sampler, uniform
from litevl.sequence import Prompt, SamplingParams, Sequence

VOCABULARY = 64
CPU = torch.device("cpu")


def sequence(name: str, row: int = 0, *, outputs: tuple[int, ...] = (), **params: Any) -> Sequence:
    prompt = Prompt(
        token_ids=np.array([1, 2, 3, 2]), positions=np.zeros((3, 4), np.int64), position_delta=0
    )
    one = Sequence(
        request_id=name, prompt=prompt, params=SamplingParams(max_tokens=100, **params), row=row
    )
    one.output_token_ids += outputs
    return one


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 2


def sampler(rows: int = 8) -> Sampler:
    return Sampler(VOCABULARY, rows, CPU)


def token(each: Sampler, row: torch.Tensor, one: Sequence) -> int:
    """The token of one row, whose logits stay as they are."""
    draw = each.sample(row.clone(), [one])
    assert draw.is_valid.all()
    return draw.read()[0].token_id


def processed(row: torch.Tensor, one: Sequence) -> torch.Tensor:
    changed = row.clone()
    LogitsProcessor(VOCABULARY, 8, CPU).process(changed, [one])
    return changed


def kept_tokens(one: Sequence, row: torch.Tensor) -> Counter[int]:
    """How often each token comes out over many places in the answer."""
    place_holder = sampler()
    counts: Counter[int] = Counter()
    for _ in range(800):
        counts[token(place_holder, row, one)] += 1
        one.output_token_ids.append(0)
    return counts


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 0.7), (0.8, 5, 1.0), (1.5, 12, 0.6), (1.0, 0, 1.0)]
)
def test_tokens_come_out_as_often_as_transformers_own_warpers_say(
    temperature: float, top_k: int, top_p: float
) -> None:
    row = logits(1)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    ids: Any = torch.zeros(1, 1, dtype=torch.long)
    expected = warpers(ids, row.clone()).softmax(-1)[0]
    one = sequence("a", temperature=temperature, top_k=top_k, top_p=top_p, seed=7)
    counts = kept_tokens(one, row)
    assert all(expected[token] > 0 for token in counts)
    shares = torch.tensor([counts[token] / 800 for token in range(VOCABULARY)])
    assert (shares - expected).abs().max() < 0.06


def test_repetition_penalty_is_transformers_own_over_prompt_and_output() -> None:
    row = logits(1)
    one = sequence("a", outputs=(9, 11), temperature=0.0, repetition_penalty=3.0)
    ids: Any = torch.tensor([[*one.prompt.token_ids.tolist(), *one.output_token_ids]])
    expected = RepetitionPenaltyLogitsProcessor(3.0)(ids, row.clone())
    penalised = processed(row, one)
    assert torch.equal(penalised, expected)


def test_presence_and_frequency_penalties_count_the_output_alone() -> None:
    row = torch.zeros(1, VOCABULARY)
    one = sequence("a", outputs=(9, 9, 11), presence_penalty=1.0, frequency_penalty=0.5)
    penalised = processed(row, one)[0]
    assert penalised[[9, 11, 2]].tolist() == [-2.0, -1.5, 0.0]


def test_counts_follow_the_tokens_as_they_are_sampled() -> None:
    each = sampler()
    one = sequence("a", temperature=0.0, presence_penalty=2.0)
    row = torch.zeros(1, VOCABULARY)
    row[0, 5], row[0, 6] = 1.0, 0.5
    tokens = []
    for _ in range(2):
        tokens.append(token(each, row, one))
        one.output_token_ids.append(tokens[-1])
    assert tokens == [5, 6]


def test_a_row_taken_over_by_another_sequence_starts_afresh() -> None:
    each = sampler()
    row = torch.zeros(1, VOCABULARY)
    row[0, 5], row[0, 6] = 1.0, 0.5
    for name in ("a", "b"):
        one = sequence(name, temperature=0.0, presence_penalty=2.0)
        assert token(each, row, one) == 5


params_of = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.3]),
        "top_k": st.sampled_from([0, 1, 20]),
        "top_p": st.sampled_from([0.3, 0.9, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "logit_bias": st.sampled_from([(), ((3, 4.0), (9, -100.0))]),
        "min_tokens": st.sampled_from([0, 3]),
        "stop_token_ids": st.just(frozenset({1, 2})),
        "logprobs": st.sampled_from([None, 0, 3]),
        "seed": st.integers(0, 2**63),
    }
)


@given(st.lists(params_of, min_size=2, max_size=6))
def test_a_row_is_unchanged_by_its_neighbours(choices: list[dict[str, Any]]) -> None:
    rows = logits(len(choices))
    batch = [sequence(str(i), i, outputs=(4, 5), **each) for i, each in enumerate(choices)]
    together = sampler().sample(rows.clone(), batch).read()
    alone = [sampler().sample(rows[i : i + 1], [one]).read()[0] for i, one in enumerate(batch)]
    assert [each.token_id for each in together] == [each.token_id for each in alone]
    assert [each.logprobs is None for each in together] == [each.logprobs is None for each in alone]


def test_uniform_numbers_are_fixed_by_seed_and_place() -> None:
    draws = [uniform(seed, place) for seed in range(40) for place in range(40)]
    assert len(set(draws)) == len(draws)
    assert all(0 <= draw < 1 for draw in draws)
    assert abs(float(np.mean(draws)) - 0.5) < 0.03
    assert uniform(3, 4) == uniform(3, 4)


def test_a_seed_draws_another_token_at_another_place() -> None:
    one = sequence("a", temperature=5.0, seed=1)
    assert len(kept_tokens(one, torch.zeros(1, VOCABULARY))) > VOCABULARY // 2


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 0.01},
        {"repetition_penalty": 100.0},
        {"top_p": 1e-9},
        {"top_k": 10**9},
        {"temperature": 1e-5},
        {"temperature": 2.0, "frequency_penalty": 2.0, "presence_penalty": -2.0},
    ],
)
def test_extreme_parameters_give_a_token(params: dict[str, Any]) -> None:
    one = sequence("a", outputs=(3,), **({"temperature": 1.0} | params))
    assert 0 <= token(sampler(), logits(1) * 50, one) < VOCABULARY


EVERY_DRAW: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {},
    {"top_k": 5},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"frequency_penalty": 1.0},
]


@pytest.mark.parametrize("params", EVERY_DRAW, ids=str)
@pytest.mark.parametrize("poison", [float("nan"), float("-inf")])
def test_a_row_without_usable_logits_says_so_and_leaves_its_neighbours_alone(
    poison: float, params: dict[str, Any]
) -> None:
    rows = logits(3)
    batch = [sequence(str(i), i, seed=i, **params) for i in range(3)]
    clean = sampler().sample(rows.clone(), batch).read()
    rows[1, 9 if poison != poison else slice(None)] = poison
    spoilt = sampler().sample(rows, batch)
    assert spoilt.is_valid.tolist() == [True, False, True]
    assert spoilt.read()[::2] == clean[::2]
    assert 0 <= spoilt.read()[1].token_id < VOCABULARY, (
        "a card that is given it to count would be lost"
    )


@pytest.mark.parametrize("params", EVERY_DRAW, ids=str)
def test_a_logit_that_has_grown_to_infinity_is_the_token(params: dict[str, Any]) -> None:
    row = logits(1)
    row[0, 9] = float("inf")
    assert token(sampler(), row, sequence("a", **params)) == 9


class Grammar:
    """Allows these tokens, whatever came before."""

    def __init__(self, *allowed: int) -> None:
        self.allowed = allowed

    def fill(self, bitmask: np.ndarray[Any, Any]) -> None:
        for each in self.allowed:
            bitmask[each // 32] |= np.uint32(1 << each % 32).astype(np.int32)

    def accept(self, token_id: int) -> None:
        assert token_id in self.allowed


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest() -> None:
    row = logits(1)
    for temperature in (0.7, 1.4):
        probs = (row[0] / temperature).softmax(-1)
        likely = set(torch.nonzero(probs >= 0.15 * probs.max()).flatten().tolist())
        counts = kept_tokens(sequence("a", temperature=temperature, min_p=0.15, seed=3), row)
        assert set(counts) == likely and len(likely) < VOCABULARY


def test_a_bias_is_added_and_forbids_or_forces_greedy_rows_too() -> None:
    row = logits(1)
    best = int(row.argmax())
    for bias, chosen in ((((best, -100.0), (8, 50.0)), 8), (((17, 100.0),), 17)):
        assert token(sampler(), row, sequence("a", temperature=0.0, logit_bias=bias)) == chosen
    assert processed(row, sequence("a", logit_bias=((17, 1.5),)))[0, 17] == row[0, 17] + 1.5


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_no_stop_token_comes_before_the_least_number_of_tokens(temperature: float) -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, 5], row[0, 6] = 50.0, 40.0
    stop = frozenset({5, 6})
    one = sequence("a", temperature=temperature, min_tokens=3, stop_token_ids=stop)
    tokens = []
    for _ in range(4):
        tokens.append(token(sampler(), row, one))
        one.output_token_ids.append(tokens[-1])
    assert not stop & set(tokens[:3]) and tokens[3] in stop


def test_a_bias_holds_while_no_stop_token_may_come_yet() -> None:
    bias = ((17, 1.5),)
    one = sequence("a", logit_bias=bias, min_tokens=3, stop_token_ids=frozenset({5}))
    changed = processed(torch.zeros(1, VOCABULARY), one)[0]
    assert changed[[5, 17]].tolist() == [-np.inf, 1.5]


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_a_grammar_holds_whatever_is_likelier_and_whoever_is_beside(temperature: float) -> None:
    rows = logits(3)
    batch = [sequence(str(i), i, temperature=temperature, seed=i) for i in range(3)]
    free = sampler().sample(rows.clone(), batch).read()
    batch[1].mask = Grammar(3, 31, 40, 63)
    bound = sampler().sample(rows, batch).read()
    assert bound[1].token_id in (3, 31, 40, 63)
    assert [bound[0], bound[2]] == [free[0], free[2]]


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("cut", [{"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.01}, {}], ids=str)
def test_a_token_without_probability_is_never_drawn_whatever_the_number(
    cut: dict[str, Any], number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in 30 million draws the number is 1 in float32, and 0 has no probability before it."""
    monkeypatch.setattr("litevl.engine.sampler.uniform", lambda seed, place: number)
    one = sequence("a", temperature=1.0, **cut)
    one.mask = Grammar(3, 31, 40)
    assert token(sampler(), logits(1), one) in (3, 31, 40)


def test_a_grammar_that_allows_nothing_leaves_no_valid_token() -> None:
    one = sequence("a", temperature=0.0)
    one.mask = Grammar()
    assert not sampler().sample(logits(1), [one]).is_valid


def test_logprobs_are_of_the_raw_logits_whatever_was_done_to_them() -> None:
    rows = logits(2)
    expected = rows[1].log_softmax(-1)
    plain = sequence("a", temperature=0.0)
    changes: dict[str, Any] = {"logit_bias": ((4, 100.0),), "presence_penalty": 1.0}
    asking = sequence("b", 1, outputs=(9,), temperature=3.0, logprobs=3, **changes)
    first, second = sampler().sample(rows, [plain, asking]).read()
    assert first.logprobs is None and second.logprobs is not None
    assert second.token_id == 4
    assert second.logprobs.chosen == pytest.approx(float(expected[4]), abs=1e-5)
    best = expected.topk(3)
    ids, values = zip(*second.logprobs.top, strict=True)
    assert ids == tuple(best.indices.tolist())
    assert values == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize("rows", [(0, 0, 0), (0, 1, 0)], ids=str)
def test_penalties_count_right_in_a_row_that_is_kept_or_left_and_come_back_to(
    rows: tuple[int, ...],
) -> None:
    """Preempted twice, a sequence may find its first row untouched, and itself longer by then."""
    each, one = LogitsProcessor(VOCABULARY, 8, CPU), sequence("a", frequency_penalty=1.0)
    for row in rows:
        one.row = row
        changed = torch.zeros(1, VOCABULARY)
        each.process(changed, [one])
        assert changed[0, 7].item() == -len(one.output_token_ids)
        each.count(torch.tensor([7]), [one])
        one.output_token_ids.append(7)


def test_a_row_that_could_not_be_filled_is_filled_when_the_step_is_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each, fill = LogitsProcessor(VOCABULARY, 1, CPU), LogitsProcessor._fill_row
    before = sequence("a", outputs=(8,), presence_penalty=1.0)
    each.process(torch.zeros(1, VOCABULARY), [before])

    def fail(*args: Any) -> None:
        monkeypatch.setattr(LogitsProcessor, "_fill_row", fill)
        fill(*args)  # at least in part
        raise MemoryError

    monkeypatch.setattr(LogitsProcessor, "_fill_row", fail)
    row, one = torch.zeros(1, VOCABULARY), sequence("b", outputs=(7,), presence_penalty=1.0)
    with pytest.raises(MemoryError):
        each.process(row, [one])
    for whoever, seen in ((before, 8), (one, 7)):  # the first has lost its row, and comes back
        row = torch.zeros(1, VOCABULARY)
        each.process(row, [whoever])
        assert row.nonzero().tolist() == [[0, seen]]
