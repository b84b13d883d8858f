"""OpenAI's JSON -> frozen dataclasses. Every request field has its one home here.

Called by `chat.py` and `completions.py`. The tables at the end say what is honoured and what is
refused; a field in none is ignored, and `null` means absent. Errors name the field, never what
stood in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from litevl.api.fields import (
    Integer,
    ListOf,
    Number,
    OneOf,
    Reader,
    flag,
    json_object,
    read_fields,
    refuse,
    text,
    unsupported,
)
from litevl.api.messages import MessageReader
from litevl.api.tools import (
    ToolChoice,
    read_response_format,
    read_structured_outputs,
    read_tool_choice,
    read_tools,
)
from litevl.errors import ContextLengthError
from litevl.media.sources import parse_defaults
from litevl.sequence import (
    ChoiceGrammar,
    Conversation,
    Grammar,
    JsonGrammar,
    MediaOptions,
    MediaRef,
    Message,
    ModelCard,
    SamplingParams,
    Tool,
    ToolFormat,
    ToolGrammar,
)

MAX_N = 8
MAX_STOPS = 16
MAX_STOP_LENGTH = 256  # characters
MAX_STOP_TOKENS = 128
MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_PROMPTS = 16  # of one text completion
MAX_PROMPT_TOKENS = 2**20

T = TypeVar("T")


# Sampling --------------------------------------------------------------------------------------


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


def _stop(value: object, param: str) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > MAX_STOPS:
        refuse(param, f"a string or a list of at most {MAX_STOPS} strings")
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_STOP_LENGTH for each in strings):
        refuse(param, f"made of strings of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(strings)


def _logit_bias(value: object, param: str) -> tuple[tuple[int, float], ...]:
    biases = json_object(value, param)
    if len(biases) > MAX_BIASES:
        refuse(param, f"an object of at most {MAX_BIASES} token ids")
    if not all(token.isascii() and token.isdigit() and len(token) < 10 for token in biases):
        refuse(param, "an object whose names are token ids")
    read = Number(-100, 100)
    return tuple((int(token), read(bias, f"{param}.{token}")) for token, bias in biases.items())


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


def _sampling(body: Mapping[str, object], logprobs: int | None, **more: int) -> Sampling:
    sampling = Sampling(**{**read_fields(body, SAMPLING_FIELDS), **more}, logprobs=logprobs)
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        refuse("min_tokens", "at most `max_tokens`")
    return sampling


# Streaming -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """Whether and how an answer is streamed."""

    stream: bool = False
    include_usage: bool = False
    continuous_usage_stats: bool = False


def _streaming(body: Mapping[str, object]) -> Streaming:
    given = read_fields(body, {"stream": flag, "stream_options": json_object})
    options = given.pop("stream_options", None)
    if options is not None and not given.get("stream"):
        refuse("stream_options", "left out unless `stream` is true")
    flags = dict.fromkeys(("include_usage", "continuous_usage_stats"), flag)
    return Streaming(**given, **read_fields(options or {}, flags, "stream_options."))


# Chat ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCompletionRequest:
    """A checked body of `POST /v1/chat/completions`."""

    messages: tuple[Message, ...] = field(repr=False)
    media: tuple[MediaRef, ...] = field(repr=False)
    sampling: Sampling = Sampling()
    streaming: Streaming = Streaming()
    model: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    document: JsonGrammar | ChoiceGrammar | None = None  # what the answer must be
    document_param: str = "response_format"  # the field that says so
    reasoning_effort: str | None = None
    template_kwargs: tuple[tuple[str, object], ...] = field(default=(), repr=False)
    fits_media: bool = False  # pictures and clips shrink to the room left
    wants_receipt: bool = False

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> "ChatCompletionRequest":
        """`InvalidValueError` or `UnsupportedParameterError` with the dotted path of the field."""
        values = read_fields(body, CHAT_FIELDS)
        _refuse_unsupported(body)
        reader = MessageReader(values.pop("mm_processor_kwargs", MediaOptions()))
        messages = reader.read(body.get("messages"))
        values |= _take_document(values)
        more = {}
        if longest := values.pop("max_completion_tokens", None):
            more["max_tokens"] = longest  # wins over `max_tokens`
        request = cls(
            messages=messages,
            media=tuple(reader.media),
            sampling=_sampling(body, _chat_logprobs(values), **more),
            streaming=_streaming(body),
            template_kwargs=tuple(values.pop("chat_template_kwargs", {}).items()),
            fits_media=values.pop("media_fit", "none") == "auto",
            wants_receipt=values.pop("media_receipt", False),
            **values,
        )
        request._check_tools()
        if request.document or request.tool_choice.mode == "required":
            request.sampling.check_form()
        return request

    @property
    def conversation(self) -> Conversation:
        """What the prompt is made of; tools that must not be called are not in it."""
        return Conversation(
            messages=self.messages,
            tools=self.tools if self.tool_choice.mode != "none" else (),
            template_kwargs=self.template_kwargs,
            reasoning_effort=self.reasoning_effort,
        )

    def grammar(self, tool_format: ToolFormat) -> Grammar | None:
        """What the answer must look like."""
        if self.tool_choice.mode != "required":
            return self.document
        name = self.tool_choice.name
        tools = tuple(tool for tool in self.tools if name in (None, tool.name))
        is_parallel = self.parallel_tool_calls and name is None
        return ToolGrammar(tools, tool_format, is_parallel)

    @property
    def grammar_param(self) -> str:
        """The field that asks for the grammar."""
        return "tools" if self.tool_choice.mode == "required" else self.document_param

    def _check_tools(self) -> None:
        choice = self.tool_choice
        if choice.mode == "required" and not self.tools:
            refuse("tool_choice", "none or auto without `tools`")
        if choice.name is not None and choice.name not in {tool.name for tool in self.tools}:
            refuse("tool_choice.function.name", "the name of one of `tools`")
        if self.document and self.conversation.tools:
            param = "response_format"
            unsupported(param, "leave out `tools`, or set `tool_choice` to none")


def _chat_logprobs(values: dict[str, Any]) -> int | None:
    """OpenAI's `logprobs` and `top_logprobs` as one number; None for neither."""
    is_wanted, top = values.pop("logprobs", False), values.pop("top_logprobs", None)
    if top and not is_wanted:
        refuse("top_logprobs", "left out unless `logprobs` is true")
    return (top or 0) if is_wanted else None


def _take_document(values: dict[str, Any]) -> dict[str, Any]:
    """Both ways to ask for a form as `document` and `document_param`."""
    wanted, structured = values.pop("response_format", None), values.pop("structured_outputs", None)
    if wanted and structured:
        refuse("structured_outputs", "left out where `response_format` asks for JSON")
    param = "structured_outputs" if structured else "response_format"
    return {"document": wanted or structured, "document_param": param}


CHAT_FIELDS: Mapping[str, Reader] = {
    "model": text,
    "max_completion_tokens": Integer(1, 2**31 - 1),
    "logprobs": flag,
    "top_logprobs": Integer(0, MAX_LOGPROBS),
    "tools": read_tools,
    "tool_choice": read_tool_choice,
    "parallel_tool_calls": flag,
    "response_format": read_response_format,
    "structured_outputs": read_structured_outputs,
    "reasoning_effort": OneOf(("none", "minimal", "low", "medium", "high", "xhigh")),
    "chat_template_kwargs": json_object,
    "mm_processor_kwargs": parse_defaults,
    "media_fit": OneOf(("none", "auto")),
    "media_receipt": flag,
}

# Known fields that litevl cannot honour, each with the values that ask for nothing.
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "verbosity": ("medium",),
    "prediction": (),
    "web_search_options": (),
}


def _refuse_unsupported(body: Mapping[str, object]) -> None:
    for name, harmless in UNSUPPORTED.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            unsupported(name, "leave it out")


# Text completions ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A checked body of `POST /v1/completions`."""

    prompts: tuple[str | tuple[int, ...], ...] = field(repr=False)  # texts or token ids
    sampling: Sampling = Sampling()
    streaming: Streaming = Streaming()
    model: str | None = None
    echo: bool = False
    document: JsonGrammar | ChoiceGrammar | None = None  # what the answer must be
    document_param: str = "response_format"  # the field that says so

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> "CompletionRequest":
        """`InvalidValueError` or `UnsupportedParameterError` with the dotted path of the field."""
        values = read_fields(body, COMPLETION_FIELDS)
        if "prompt" not in values:
            refuse("prompt", "a text, token ids or a list of them")
        for name in ("suffix", "prompt_logprobs", "best_of"):
            if body.get(name) not in (None, "", 0, 1):
                unsupported(name, "leave it out")
        values |= _take_document(values)
        logprobs = values.pop("logprobs", None)
        if logprobs is not None and values.get("echo"):
            unsupported("logprobs", "those of a prompt are not known: leave out `echo`")
        more = {} if body.get("max_tokens") is not None else {"max_tokens": 16}  # as OpenAI has it
        request = cls(
            prompts=values.pop("prompt"),
            sampling=_sampling(body, logprobs, **more),
            streaming=_streaming(body),
            **values,
        )
        if request.document:
            request.sampling.check_form()
        return request


def _prompts(value: object, param: str) -> tuple[str | tuple[int, ...], ...]:
    """A text, a list of texts, token ids, or a list of lists of them."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        refuse(param, "a text, token ids or a list of them")
    if all(isinstance(each, int) for each in value):
        return (_token_ids(value, param),)
    return ListOf(_prompt, MAX_PROMPTS)(value, param)


def _prompt(value: object, param: str) -> str | tuple[int, ...]:
    return value if isinstance(value, str) else _token_ids(value, param)


_token_ids = ListOf(Integer(0, 2**31 - 1), MAX_PROMPT_TOKENS, least=1)

COMPLETION_FIELDS: Mapping[str, Reader] = {
    "model": text,
    "prompt": _prompts,
    "echo": flag,
    "logprobs": Integer(0, MAX_LOGPROBS),
    "response_format": read_response_format,
    "structured_outputs": read_structured_outputs,
}


# Tokens ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """A checked body of `POST /tokenize`: a text, or a chat request."""

    prompt: str | None = field(default=None, repr=False)
    chat: ChatCompletionRequest | None = None
    model: str | None = None
    return_token_strs: bool = False

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> "TokenizeRequest":
        values = read_fields(body, {"model": text, "prompt": text, "return_token_strs": flag})
        if body.get("messages") is not None:
            return cls(chat=ChatCompletionRequest.parse(body), **values)
        if "prompt" not in values:
            refuse("prompt", "a text, unless there are `messages`")
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeRequest:
    """A checked body of `POST /detokenize`."""

    tokens: tuple[int, ...] = field(repr=False)
    model: str | None = None

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> "DetokenizeRequest":
        read = ListOf(Integer(0, 2**31 - 1), MAX_PROMPT_TOKENS)
        values = read_fields(body, {"model": text, "tokens": read})
        if "tokens" not in values:
            refuse("tokens", "a list of token ids")
        return cls(**values)
