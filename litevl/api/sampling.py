"""How a request wants its tokens chosen: the fields that chat and text completions have in common.

Called by `protocol.py`. Knows neither messages nor prompts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from litevl.api.fields import (
    Integer,
    JSONObject,
    ListOf,
    Number,
    Reader,
    described,
    flag,
    json_object,
    read_fields,
    refuse,
    unsupported,
)
from litevl.errors import ContextLengthError
from litevl.sequence import ModelCard, SamplingParams

MAX_N = 8
MAX_STOPS = 16
MAX_STOP_LENGTH = 256  # characters
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens, of chat and completions alike; `None` means the model's default."""

    n: int = 1
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None  # how many likeliest tokens to tell with each chosen one

    def params(
        self, card: ModelCard, prompt_len: int, seed: int, prompt_param: str = "messages"
    ) -> list[SamplingParams]:
        """What the client asked, then the model's defaults, for each of the `n` answers.

        `seed` is taken where the client gave none. `max_tokens` is clamped to the room the prompt
        leaves: `ContextLengthError` if that is none. `InvalidValueError` for unknown tokens.
        """
        room = card.max_model_len - prompt_len
        if room < 1:
            raise ContextLengthError(
                f"This model's maximum context length is {card.max_model_len} tokens: the prompt "
                f"needs {prompt_len} and the answer at least 1. Shorten the text, send fewer "
                "pictures or frames, or smaller ones with `max_pixels`.",
                param=prompt_param,
            )
        self._check_tokens(card)
        defaults = card.defaults
        first = SamplingParams(
            max_tokens=min(room if self.max_tokens is None else self.max_tokens, room),
            temperature=_given(self.temperature, defaults.temperature),
            top_p=_given(self.top_p, defaults.top_p),
            top_k=max(_given(self.top_k, defaults.top_k), 0),  # -1 is all, too
            min_p=self.min_p,
            repetition_penalty=_given(self.repetition_penalty, defaults.repetition_penalty),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=_given(self.seed, seed) % 2**63,
            stop_token_ids=frozenset(self.stop_token_ids)
            | (frozenset() if self.ignore_eos else card.eos_token_ids),
            min_tokens=min(self.min_tokens, room),
            logprobs=self.logprobs,
        )
        return [replace(first, seed=(first.seed + i) % 2**63) for i in range(self.n)]

    def check_form(self) -> None:
        """For answers whose form is prescribed: nothing may end or prolong them."""
        for name in ("stop", "stop_token_ids", "min_tokens", "ignore_eos"):
            if getattr(self, name):
                unsupported(name, "an answer whose form is prescribed ends by itself")

    def _check_tokens(self, card: ModelCard) -> None:
        tokens = {"logit_bias": [token for token, _ in self.logit_bias]}
        tokens["stop_token_ids"] = list(self.stop_token_ids)
        for name, ids in tokens.items():
            if any(token >= card.vocab_size for token in ids):
                refuse(name, f"made of token ids below {card.vocab_size}")


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


_STOP_STRING: JSONObject = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH}


@described(
    {"anyOf": [_STOP_STRING, {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOPS}]}
)
def _stop(value: object, param: str) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > MAX_STOPS:
        refuse(param, f"a string or a list of at most {MAX_STOPS} strings")
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_STOP_LENGTH for each in strings):
        refuse(param, f"made of strings of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(strings)


_bias = Number(-100, 100)
_TOKEN_ID = re.compile(r"^(0|[1-9][0-9]{0,8})$")  # one name for each, or one would be named twice


@described(
    {
        "type": "object",
        "propertyNames": {"pattern": _TOKEN_ID.pattern},
        "maxProperties": MAX_BIASES,
        "additionalProperties": _bias.schema,
    }
)
def _logit_bias(value: object, param: str) -> tuple[tuple[int, float], ...]:
    biases = json_object(value, param)
    if len(biases) > MAX_BIASES:
        refuse(param, f"an object of at most {MAX_BIASES} token ids")
    if not all(map(_TOKEN_ID.fullmatch, biases)):
        refuse(param, "an object whose names are token ids")
    return tuple((int(token), _bias(bias, f"{param}.{token}")) for token, bias in biases.items())


SAMPLING_FIELDS: Mapping[str, Reader] = {
    "n": Integer(1, MAX_N),
    "max_tokens": Integer(1, 2**31 - 1),
    "temperature": Number(0, 2),
    "top_p": Number(0, 1, above=True),
    "top_k": Integer(-1, 2**31 - 1),
    "min_p": Number(0, 1),
    "repetition_penalty": Number(0.01, 100),
    "presence_penalty": Number(-2, 2),
    "frequency_penalty": Number(-2, 2),
    "logit_bias": _logit_bias,
    "seed": Integer(-(2**63), 2**64 - 1),
    "stop": _stop,
    "stop_token_ids": ListOf(Integer(0, 2**31 - 1), MAX_STOP_TOKENS),
    "min_tokens": Integer(0, 2**31 - 1),
    "ignore_eos": flag,
}


def read_sampling(body: Mapping[str, object], logprobs: int | None, **more: int) -> Sampling:
    """The sampling fields of a body; `more` are members that were read elsewhere."""
    sampling = Sampling(**{**read_fields(body, SAMPLING_FIELDS), **more}, logprobs=logprobs)
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        refuse("min_tokens", "at most `max_tokens`")
    return sampling
