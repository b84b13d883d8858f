"""OpenAI's JSON -> frozen dataclasses. Every request field has its one home here.

Called by `chat.py`. `FIELDS` says what is honoured, `UNSUPPORTED` what is refused; a field in
neither is ignored, and `null` means absent. Errors name the field, never what stood in it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, TypeVar

from litevl.errors import ContextLengthError, InvalidValueError, UnsupportedParameterError
from litevl.media.sources import parse_part
from litevl.sequence import MediaPart, MediaRef, Message, ModelCard, SamplingParams, TextPart

MAX_STOPS = 16
MAX_STOP_LENGTH = 256  # characters

T = TypeVar("T")
Reader = Callable[[object, str], Any]  # value and dotted path -> checked value


# The request -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    include_usage: bool = False
    continuous_usage_stats: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletionRequest:
    """A checked body of `POST /v1/chat/completions`; `None` means the model's default."""

    messages: tuple[Message, ...] = field(repr=False)
    media: tuple[MediaRef, ...] = field(repr=False)
    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> "ChatCompletionRequest":
        """`InvalidValueError` or `UnsupportedParameterError` with the dotted path of the field."""
        values = _read_fields(body, FIELDS)
        _refuse_unsupported(body)
        messages, media = _read_messages(body.get("messages"))
        max_tokens = values.pop("max_completion_tokens", None) or values.pop("max_tokens", None)
        values = {**values, "max_tokens": max_tokens}
        if "stream_options" in values and not values.get("stream"):
            _refuse("stream_options", "left out unless `stream` is true")
        return cls(messages=messages, media=media, **values)

    def sampling_params(self, card: ModelCard, prompt_len: int, seed: int) -> SamplingParams:
        """What the client asked, then the model's defaults; `seed` where it gave none.

        `max_tokens` is clamped to the room the prompt leaves; `ContextLengthError` if that is none.
        """
        room = card.max_model_len - prompt_len
        if room < 1:
            raise ContextLengthError(
                f"This model's maximum context length is {card.max_model_len} tokens, but the "
                f"messages and media need {prompt_len} and the answer at least 1. Shorten the "
                "text, send fewer pictures or frames, or smaller ones with `max_pixels`.",
                param="messages",
            )
        defaults = card.defaults
        return SamplingParams(
            max_tokens=min(room if self.max_tokens is None else self.max_tokens, room),
            temperature=_given(self.temperature, defaults.temperature),
            top_p=_given(self.top_p, defaults.top_p),
            top_k=max(_given(self.top_k, defaults.top_k), 0),  # -1 is all, too
            repetition_penalty=_given(self.repetition_penalty, defaults.repetition_penalty),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=_given(self.seed, seed) % 2**63,
            stop_token_ids=card.eos_token_ids,
        )


def _given(value: T | None, default: T) -> T:
    return default if value is None else value


# Readers of values -----------------------------------------------------------------------------


def _refuse(param: str, wanted: str) -> NoReturn:
    raise InvalidValueError(f"`{param}` must be {wanted}.", param=param)


def _text(value: object, param: str) -> str:
    return value if isinstance(value, str) else _refuse(param, "a string")


def _flag(value: object, param: str) -> bool:
    return value if isinstance(value, bool) else _refuse(param, "true or false")


@dataclass(frozen=True, slots=True)
class Number:
    """Reads a number in [low, high], or in (low, high] when `above`."""

    low: float
    high: float
    above: bool = False

    def __call__(self, value: object, param: str) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            is_too_low = value <= self.low if self.above else value < self.low
            if not is_too_low and value <= self.high:  # NaN fails here
                return float(value)
        _refuse(param, f"a number {'above' if self.above else 'from'} {self.low} up to {self.high}")


@dataclass(frozen=True, slots=True)
class Integer:
    """Reads an integer in [low, high]; one that is written as `16.0` is one, too."""

    low: int
    high: int

    def __call__(self, value: object, param: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
        ):
            return value
        _refuse(param, f"an integer from {self.low} up to {self.high}")


def _stop(value: object, param: str) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > MAX_STOPS:
        _refuse(param, f"a string or a list of at most {MAX_STOPS} strings")
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_STOP_LENGTH for each in strings):
        _refuse(param, f"made of strings of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(strings)


def _stream_options(value: object, param: str) -> StreamOptions:
    options = _object(value, param)
    flags = dict.fromkeys(("include_usage", "continuous_usage_stats"), _flag)
    return StreamOptions(**_read_fields(options, flags, f"{param}."))


def _object(value: object, param: str) -> dict[str, object]:
    return value if isinstance(value, dict) else _refuse(param, "an object")


def _read_fields(
    body: Mapping[str, object], readers: Mapping[str, Reader], prefix: str = ""
) -> dict[str, Any]:
    """The fields that are present and not null, checked."""
    present = ((name, body.get(name), read) for name, read in readers.items())
    return {name: read(value, prefix + name) for name, value, read in present if value is not None}


# Fields ----------------------------------------------------------------------------------------

FIELDS: Mapping[str, Reader] = {
    "model": _text,
    "stream": _flag,
    "stream_options": _stream_options,
    "max_tokens": Integer(1, 2**31 - 1),
    "max_completion_tokens": Integer(1, 2**31 - 1),  # wins over `max_tokens`
    "temperature": Number(0, 2),
    "top_p": Number(0, 1, above=True),
    "top_k": Integer(-1, 2**31 - 1),
    "repetition_penalty": Number(0.01, 100),
    "presence_penalty": Number(-2, 2),
    "frequency_penalty": Number(-2, 2),
    "seed": Integer(-(2**63), 2**64 - 1),
    "stop": _stop,
}

# Known fields that cannot be honoured yet, each with the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "modalities": (["text"],),
    "audio": (),
    "media_fit": (),
    "media_receipt": (False,),
    "chat_template_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "reasoning_effort": (),
    "verbosity": (),
    "prediction": (),
    "web_search_options": (),
}


def _refuse_unsupported(body: Mapping[str, object]) -> None:
    for name, harmless in UNSUPPORTED.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            raise UnsupportedParameterError(
                f"`{name}` is not supported with this value: leave it out.", param=name
            )


# Messages --------------------------------------------------------------------------------------

ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


def _read_messages(value: object) -> tuple[tuple[Message, ...], tuple[MediaRef, ...]]:
    """The messages, and the media references that their `MediaPart`s count."""
    if not isinstance(value, list) or not value:
        _refuse("messages", "a list of at least one message")
    media: list[MediaRef] = []
    messages = [_read_message(each, f"messages[{i}]", media) for i, each in enumerate(value)]
    return tuple(messages), tuple(media)


def _read_message(value: object, param: str, media: list[MediaRef]) -> Message:
    message = _object(value, param)
    name = message.get("role")
    if name == "tool" or message.get("tool_calls") or message.get("function_call"):
        raise UnsupportedParameterError(
            f"`{param}`: tool calls and their results are not supported.", param=param
        )
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        _refuse(f"{param}.role", "one of " + ", ".join(ROLES))
    content = message.get("content")
    if content is None and role == "assistant":
        return Message(role=role, parts=())
    return Message(role=role, parts=_read_content(content, f"{param}.content", media))


def _read_content(
    content: object, param: str, media: list[MediaRef]
) -> tuple[TextPart | MediaPart, ...]:
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, list):
        _refuse(param, "a string or a list of parts")
    return tuple(_read_part(part, f"{param}[{i}]", media) for i, part in enumerate(content))


def _read_part(value: object, param: str, media: list[MediaRef]) -> TextPart | MediaPart:
    part = _object(value, param)
    if part.get("type") in ("text", "input_text"):
        return TextPart(_text(part.get("text"), f"{param}.text"))
    ref = parse_part(part, param)
    if ref is None:
        _refuse(f"{param}.type", "text, image_url, video_url or another media type")
    media.append(ref)
    return MediaPart(len(media) - 1)
