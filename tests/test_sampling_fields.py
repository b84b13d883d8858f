"""How a client asks for tokens to be chosen, of chat and of text completions."""

from typing import Any

import pytest

from fakes import CARD, EOS, body
from litevl.api.protocol import (
    COMPLETION_FIELDS,
    SAMPLING_FIELDS,
    ChatCompletionRequest,
    CompletionRequest,
)
from litevl.errors import ContextLengthError, InvalidRequestError, LitevlError
from litevl.sequence import SamplingParams


def parse(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.parse(body(**fields))


def sampled(request: ChatCompletionRequest, prompt_len: int = 1, seed: int = 0) -> SamplingParams:
    (params,) = request.sampling.params(CARD, prompt_len, seed)
    return params


def test_the_models_defaults_stand_where_the_request_is_silent() -> None:
    params = sampled(parse(), 12, 3)
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.9, 20)
    assert (params.repetition_penalty, params.presence_penalty) == (1.05, 0.0)
    assert (params.max_tokens, params.seed) == (500, 3)
    assert params.stop_token_ids == {EOS}


def test_the_request_wins_over_the_models_defaults() -> None:
    request = parse(temperature=0, top_p=0.1, top_k=-1, repetition_penalty=1, seed=9, max_tokens=3)
    params = sampled(request, 12, 3)
    assert (params.temperature, params.top_p, params.top_k) == (0, 0.1, 0)
    assert (params.repetition_penalty, params.seed, params.max_tokens) == (1, 9, 3)


@pytest.mark.parametrize("seed", [-(2**63), -1, 2**63, 2**64 - 1])
def test_every_seed_fits_into_a_signed_64_bit_integer(seed: int) -> None:
    assert 0 <= sampled(parse(seed=seed)).seed < 2**63


def test_max_tokens_is_clamped_to_the_room_left() -> None:
    assert sampled(parse(max_tokens=10**9), 511).max_tokens == 1


def test_a_prompt_that_leaves_no_room_says_what_it_needs_and_what_fits() -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is 512 tokens") as caught:
        sampled(parse(), 512)
    assert "needs 512" in caught.value.message
    assert caught.value.code == "context_length_exceeded"


def test_every_answer_of_n_has_a_seed_of_its_own() -> None:
    params = parse(n=3, seed=2**63 - 2).sampling.params(CARD, 1, seed=0)
    assert [each.seed for each in params] == [2**63 - 2, 2**63 - 1, 0]


def test_logprobs_and_top_logprobs_become_one_number() -> None:
    assert sampled(parse()).logprobs is None
    assert sampled(parse(logprobs=False, top_logprobs=0)).logprobs is None
    assert sampled(parse(logprobs=True)).logprobs == 0
    assert sampled(parse(logprobs=True, top_logprobs=3)).logprobs == 3


def test_stop_tokens_are_the_clients_and_the_models_unless_those_are_ignored() -> None:
    assert sampled(parse(stop_token_ids=[7])).stop_token_ids == {7, EOS}
    assert sampled(parse(stop_token_ids=[7], ignore_eos=True)).stop_token_ids == {7}


@pytest.mark.parametrize("fields", [{"logit_bias": {"258": 1}}, {"stop_token_ids": [258]}], ids=str)
def test_tokens_beyond_the_vocabulary_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sampled(parse(**fields))
    assert caught.value.param == next(iter(fields))


# Text completions ------------------------------------------------------------------------------


def completion_error(**fields: Any) -> LitevlError:
    with pytest.raises(InvalidRequestError) as caught:
        CompletionRequest.parse({"prompt": "hi", **fields})
    return caught.value


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("hi", ("hi",)),
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        ([[1], "b"], ((1,), "b")),
    ],
)
def test_a_prompt_is_texts_or_token_ids(prompt: object, read: object) -> None:
    assert CompletionRequest.parse({"prompt": prompt}).prompts == read


@pytest.mark.parametrize("prompt", [None, 5, [], [[]], [-1], [1.5], ["a", 1], ["a"] * 17])
def test_any_other_prompt_is_refused(prompt: object) -> None:
    assert str(completion_error(prompt=prompt).param).startswith("prompt")


def test_completions_have_fields_of_their_own() -> None:
    nothing = dict.fromkeys([*COMPLETION_FIELDS, *SAMPLING_FIELDS, "suffix", "best_of"])
    request = CompletionRequest.parse({**nothing, "prompt": "hi", "user": "x", "suffix": ""})
    assert request.sampling.max_tokens == 16
    assert CompletionRequest.parse({"prompt": "hi", "logprobs": 0}).sampling.logprobs == 0
    assert completion_error(suffix="x").param == "suffix"
    assert completion_error(best_of=3).param == "best_of"
    assert completion_error(echo=True, logprobs=1).param == "logprobs"
    assert completion_error(stop="x", structured_outputs={"choice": ["a"]}).param == "stop"
