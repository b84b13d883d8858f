"""OpenAI's JSON -> frozen dataclasses. Every request field has its one home here.

Called by `chat.py` and `completions.py`. The tables at the end say what is honoured and what is
refused; a field in none is ignored, and `null` means absent. Errors name the field, never what
stood in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from litevl.api.fields import (
    Integer,
    JSONObject,
    ListOf,
    ObjectOf,
    OneOf,
    Reader,
    described,
    flag,
    json_object,
    object_schema,
    read_fields,
    refuse,
    text,
    unsupported,
)
from litevl.api.messages import MessageReader
from litevl.api.parts import read_defaults
from litevl.api.sampling import SAMPLING_FIELDS, Sampling, read_sampling
from litevl.api.tools import (
    ToolChoice,
    read_response_format,
    read_structured_outputs,
    read_tool_choice,
    read_tools,
)
from litevl.sequence import (
    ChoiceGrammar,
    Conversation,
    Grammar,
    JsonGrammar,
    MediaOptions,
    MediaRef,
    Message,
    Tool,
    ToolFormat,
    ToolGrammar,
)

MAX_LOGPROBS = 20
MAX_PROMPTS = 16  # of one text completion
MAX_PROMPT_TOKENS = 2**20


# Streaming -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """Whether and how an answer is streamed."""

    stream: bool = False
    include_usage: bool = False
    continuous_usage_stats: bool = False


STREAM_FIELDS: Mapping[str, Reader] = {
    "stream": flag,
    "stream_options": ObjectOf({"include_usage": flag, "continuous_usage_stats": flag}),
}


def _streaming(body: Mapping[str, object]) -> Streaming:
    given = read_fields(body, STREAM_FIELDS)
    options = given.pop("stream_options", None)
    if options is not None and not given.get("stream"):
        refuse("stream_options", "left out unless `stream` is true")
    return Streaming(**given, **(options or {}))


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
        _refuse_unsupported(body, UNSUPPORTED)
        reader = MessageReader(values.pop("mm_processor_kwargs", MediaOptions()))
        messages = reader(body.get("messages"), "messages")
        values |= _take_document(values)
        more = {}
        if longest := values.pop("max_completion_tokens", None):
            more["max_tokens"] = longest  # wins over `max_tokens`
        request = cls(
            messages=messages,
            media=tuple(reader.media),
            sampling=read_sampling(body, _chat_logprobs(values), **more),
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

    @classmethod
    def schema(cls) -> JSONObject:
        """JSON Schema of a body."""
        fields = {"messages": MessageReader(), **CHAT_FIELDS, **SAMPLING_FIELDS, **STREAM_FIELDS}
        return _body_schema(object_schema(fields, required=("messages",)), UNSUPPORTED)

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
            unsupported(self.document_param, "leave out `tools`, or set `tool_choice` to none")


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
    "mm_processor_kwargs": read_defaults,
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


def _refuse_unsupported(
    body: Mapping[str, object], table: Mapping[str, tuple[object, ...]]
) -> None:
    for name, harmless in table.items():
        value = body.get(name)
        # JSON's true is no 1, though Python's is.
        if value is not None and not any(
            value == each and isinstance(value, bool) == isinstance(each, bool) for each in harmless
        ):
            unsupported(name, "leave it out")


def _body_schema(schema: JSONObject, refused: Mapping[str, tuple[object, ...]]) -> JSONObject:
    """The schema of a body's tables, and the fields that must be left out."""
    harmless = {name: {"enum": [*values, None]} for name, values in refused.items()}
    return schema | {"properties": {**json_object(schema["properties"], ""), **harmless}}


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
        values = read_fields(body, COMPLETION_FIELDS, required=("prompt",))
        _refuse_unsupported(body, COMPLETION_UNSUPPORTED)
        values |= _take_document(values)
        logprobs = values.pop("logprobs", None)
        if logprobs is not None and values.get("echo"):
            unsupported("logprobs", "those of a prompt are not known: leave out `echo`")
        more = {} if body.get("max_tokens") is not None else {"max_tokens": 16}  # as OpenAI has it
        request = cls(
            prompts=values.pop("prompt"),
            sampling=read_sampling(body, logprobs, **more),
            streaming=_streaming(body),
            **values,
        )
        if request.document:
            request.sampling.check_form()
        return request

    @classmethod
    def schema(cls) -> JSONObject:
        """JSON Schema of a body."""
        fields = {**COMPLETION_FIELDS, **SAMPLING_FIELDS, **STREAM_FIELDS}
        return _body_schema(object_schema(fields, required=("prompt",)), COMPLETION_UNSUPPORTED)


_token_ids = ListOf(Integer(0, 2**31 - 1), MAX_PROMPT_TOKENS, least=1)


_TEXT_PROMPT: JSONObject = {"type": "string", "minLength": 1}


@described({"anyOf": [_TEXT_PROMPT, _token_ids.schema]})
def _prompt(value: object, param: str) -> str | tuple[int, ...]:
    if value == "":
        refuse(param, "at least one token long")
    return value if isinstance(value, str) else _token_ids(value, param)


_prompt_list = ListOf(_prompt, MAX_PROMPTS, least=1)


@described({"anyOf": [_TEXT_PROMPT, _token_ids.schema, _prompt_list.schema]})
def _prompts(value: object, param: str) -> tuple[str | tuple[int, ...], ...]:
    """A text, a list of texts, token ids, or a list of lists of them."""
    if isinstance(value, str):
        return (_prompt(value, param),)
    if not isinstance(value, list) or not value:
        refuse(param, "a text, token ids or a list of them")
    if all(isinstance(each, int | float) for each in value):
        return (_token_ids(value, param),)
    return _prompt_list(value, param)


COMPLETION_FIELDS: Mapping[str, Reader] = {
    "model": text,
    "prompt": _prompts,
    "echo": flag,
    "logprobs": Integer(0, MAX_LOGPROBS),
    "response_format": read_response_format,
    "structured_outputs": read_structured_outputs,
}

COMPLETION_UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "suffix": ("",),
    "prompt_logprobs": (),
    "best_of": (1,),
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
        values = read_fields(body, TOKENIZE_FIELDS)
        if body.get("messages") is not None:
            if "prompt" in values:
                refuse("prompt", "left out where there are `messages`")
            return cls(chat=ChatCompletionRequest.parse(body), **values)
        if "prompt" not in values:
            refuse("prompt", "a text, unless there are `messages`")
        return cls(**values)

    @classmethod
    def schema(cls, chat: JSONObject) -> JSONObject:
        """JSON Schema of a body; `chat` is that of a chat request, or a reference to it."""
        plain = object_schema(TOKENIZE_FIELDS, required=("prompt",))
        other = object_schema(TOKENIZE_FIELDS)
        return {
            "anyOf": [
                {"allOf": [plain, {"properties": {"messages": {"type": "null"}}}]},
                {"allOf": [chat, other, {"properties": {"prompt": {"type": "null"}}}]},
            ]
        }


TOKENIZE_FIELDS: Mapping[str, Reader] = {
    "model": text,
    "prompt": text,
    "return_token_strs": flag,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeRequest:
    """A checked body of `POST /detokenize`."""

    tokens: tuple[int, ...] = field(repr=False)
    model: str | None = None

    @classmethod
    def parse(cls, body: Mapping[str, object]) -> "DetokenizeRequest":
        return cls(**read_fields(body, DETOKENIZE_FIELDS, required=("tokens",)))

    @classmethod
    def schema(cls) -> JSONObject:
        """JSON Schema of a body."""
        return object_schema(DETOKENIZE_FIELDS, required=("tokens",))


DETOKENIZE_FIELDS: Mapping[str, Reader] = {
    "model": text,
    "tokens": ListOf(Integer(0, 2**31 - 1), MAX_PROMPT_TOKENS),
}
