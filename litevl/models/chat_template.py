"""A conversation -> the text of a prompt, by the checkpoint's own chat template.

`prompt_text.py` alone calls it. Every string of the caller goes through `cut` on its way into the
template; what stands around them, tags of tools and thoughts included, is the template's. Qwen2-VL,
QVQ and Qwen2.5-VL have templates that drop tools: for these the turns are spelled out as Qwen2.5's
own template does it. Knows no tokens.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes

from litevl.errors import ConfigError, InvalidValueError, UnsupportedParameterError
from litevl.sequence import (
    Conversation,
    MediaPart,
    Message,
    PlannedMedia,
    TextPart,
    ToolCall,
    ToolFormat,
)

Cut = Callable[[Any], Any]  # a JSON value of the caller's -> the same without control tokens
Content = str | list[dict[str, str]]
Turn = dict[str, Any]

MAX_NAME = 64  # characters of an unknown option's name that its error repeats

# What a template raises about messages, tools and options that it was not written for.
_REFUSALS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    text: str = field(repr=False)
    is_thinking: bool  # the answer begins inside `<think>`


class ChatTemplate:
    """Holds no state that a call changes: safe to use from several threads."""

    def __init__(self, processor: Any) -> None:
        """`processor` is a transformers processor; `ConfigError` without a usable template."""
        template = processor.chat_template or processor.tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        if template is None:
            raise ConfigError("the checkpoint has no chat template (chat_template.json or .jinja)")
        processor.chat_template = template
        self._processor = processor
        variables = _variables(template)
        self.options = variables - _taken_names(processor)  # what a client may set
        self.has_tools = "tools" in variables
        self._default_system = "" if self.has_tools else self._find_default_system()
        self.tool_format: ToolFormat = "xml" if "<function=" in template else "hermes"

    def render(self, conversation: Conversation, media: Many[PlannedMedia], cut: Cut) -> Rendering:
        """The prompt's text, up to where the answer begins.

        Raises `InvalidValueError` where the template refuses the messages or does not know an
        option.
        """
        options = self._given_options(conversation)
        try:
            turns = list(_turns(conversation, media, cut))
            tools = [cut(json.loads(tool.definition)) for tool in conversation.tools]
            options = {name: cut(value) for name, value in options.items()}
            if not self.has_tools:
                turns = list(self._spelled_out(turns, tools))
            return self._rendering(turns, options | {"tools": tools or None})
        except _REFUSALS:
            message = "the model's chat template refuses these messages: check the order of roles"
            if conversation.tools or conversation.template_kwargs:
                message += ", the shape of the tools and chat_template_kwargs"
            raise InvalidValueError(message, param="messages") from None

    def _given_options(self, conversation: Conversation) -> dict[str, Any]:
        """The template's options that the client set, by their names or by `reasoning_effort`."""
        options: dict[str, Any] = {}
        effort = conversation.reasoning_effort
        if effort is not None:
            wanted = {"enable_thinking": effort != "none", "reasoning_effort": effort}
            options = {name: each for name, each in wanted.items() if name in self.options}
            if not options and effort != "none":
                message = (
                    "`reasoning_effort`: this model's thinking cannot be steered: leave it out"
                )
                raise UnsupportedParameterError(message, param="reasoning_effort")
        for name, value in conversation.template_kwargs:
            self._check_option(name)
            options[name] = value
        return options

    def _check_option(self, name: str) -> None:
        if name in self.options:
            return
        known = ", ".join(sorted(self.options)) or "none"
        message = f"the model's chat template has no such option; it has: {known}"
        raise InvalidValueError(message, param=f"chat_template_kwargs.{name[:MAX_NAME]}")

    def _rendering(self, turns: list[Turn], options: dict[str, Any]) -> Rendering:
        text = self._apply(turns, options, add_generation_prompt=True)
        is_thinking = text.rfind("<think>") > text.rfind("</think>")
        if is_thinking:  # by the template, or because a caller typed the tag?
            before = self._apply(turns, options, add_generation_prompt=False)
            is_thinking = text.startswith(before) and "<think>" in text[len(before) :]
        return Rendering(text=text, is_thinking=is_thinking)

    def _apply(self, turns: list[Turn], options: dict[str, Any], **more: bool) -> str:
        text = self._processor.apply_chat_template(turns, tokenize=False, **options, **more)
        return str(text)

    # Templates without tools ---------------------------------------------------------------------

    def _spelled_out(self, turns: list[Turn], tools: list[Any]) -> Iterator[Turn]:
        """The turns with tools, calls and results in their texts, as Qwen2.5's template does."""
        if tools:
            block = _TOOLS.format(tools="\n".join(map(_dumps, tools)))
            system: Content = self._default_system
            if turns[0]["role"] == "system":
                system = turns[0]["content"]
                turns = turns[1:]
            yield {"role": "system", "content": _concat(system, "\n\n" if system else "", block)}
        for is_result, group in groupby(turns, lambda turn: turn["role"] == "tool"):
            if is_result:
                results = (("\n", _RESULT[0], turn["content"], _RESULT[1]) for turn in group)
                pieces = [piece for result in results for piece in result]
                yield {"role": "user", "content": _concat(*pieces[1:])}
            else:
                yield from map(_with_calls, group)

    def _find_default_system(self) -> str:
        """What the template says where nobody gave a system message, which tools now do."""
        try:
            text = self._apply([{"role": "user", "content": ""}], {}, add_generation_prompt=True)
        except _REFUSALS:
            return ""
        found = re.match(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", text, re.DOTALL)
        return found.group(1) if found else ""


def _variables(template: str) -> set[str]:
    """The names that a template takes from whoever renders it."""
    # This tag of transformers' own marks what to train on; jinja2 alone does not know it.
    text = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except TemplateError as error:
        raise ConfigError(f"the checkpoint's chat template is no Jinja: {error}") from error
    # What is set in one branch and read in another is undeclared to Jinja, but no variable to us.
    first: dict[str, str] = {}
    for name in _evaluated_names(tree, frozenset()):
        first.setdefault(name.name, name.ctx)
    return {name for name in meta.find_undeclared_variables(tree) if first.get(name) == "load"}


def _evaluated_names(node: nodes.Node, parameters: frozenset[str]) -> Iterator[nodes.Name]:
    """Names in the order in which they are read and set, without the parameters of macros."""
    if isinstance(node, nodes.Name) and node.name not in parameters:
        yield node
    if isinstance(node, nodes.Macro):
        parameters |= {argument.name for argument in node.args}
    children = list(node.iter_child_nodes())
    if isinstance(node, nodes.Assign):
        children.reverse()  # its value before its name
    for child in children:
        yield from _evaluated_names(child, parameters)


def _taken_names(processor: Any) -> set[str]:
    """Variables that are no options: transformers' arguments, Jinja's and its own functions."""
    arguments = inspect.signature(processor.apply_chat_template).parameters
    tokens = processor.tokenizer.SPECIAL_TOKENS_ATTRIBUTES
    extra = processor.tokenizer.special_tokens_map
    functions = ("raise_exception", "strftime_now", *Environment().globals)
    return {"messages", *arguments, *tokens, *extra, *functions}


# Turns -----------------------------------------------------------------------------------------


def _turns(conversation: Conversation, media: Many[PlannedMedia], cut: Cut) -> Iterator[Turn]:
    """The messages as templates expect them."""
    names: dict[str, str] = {}
    for message in conversation.messages:
        turn: Turn = {"role": message.role, "content": _content(message, media, cut)}
        if message.reasoning is not None:
            turn["reasoning_content"] = cut(message.reasoning)
        if message.tool_calls:
            turn["tool_calls"] = [_call(call, cut) for call in message.tool_calls]
            names |= {call.id: call.name for call in message.tool_calls}
        if message.tool_call_id is not None:
            turn["tool_call_id"] = cut(message.tool_call_id)
            if message.tool_call_id in names:
                turn["name"] = cut(names[message.tool_call_id])
        yield turn


def _call(call: ToolCall, cut: Cut) -> dict[str, Any]:
    function = {"name": cut(call.name), "arguments": cut(_arguments(call.arguments))}
    return {"id": cut(call.id), "type": "function", "function": function}


def _arguments(text: str) -> dict[str, Any]:
    """An earlier call's arguments, which templates want as an object."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    if not isinstance(value, dict):
        message = "the arguments of an earlier tool call are no JSON object"
        raise InvalidValueError(message, param="messages")
    return value


def _content(message: Message, media: Many[PlannedMedia], cut: Cut) -> Content:
    """A message's content for the template; neighbouring texts become one.

    They are joined because a control token could be typed in two halves; Qwen's templates join
    them too, and treat a string like a list of one text.
    """
    runs: list[str | MediaPart] = []
    for part in message.parts:
        if isinstance(part, TextPart) and runs and isinstance(runs[-1], str):
            runs[-1] += part.text
        else:
            runs.append(part.text if isinstance(part, TextPart) else part)
    contents: list[Content] = [
        cut(run) if isinstance(run, str) else [{"type": media[run.index].kind}] for run in runs
    ]
    return _concat(*contents)


def _concat(*contents: Content) -> Content:
    """One content of several: a text, unless there are pictures or clips in it."""
    if all(isinstance(content, str) for content in contents):
        return "".join(content for content in contents if isinstance(content, str))
    parts: list[dict[str, str]] = []
    for content in contents:
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return parts


# Turns spelled out -----------------------------------------------------------------------------

_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""
_CALL = "<tool_call>\n{call}\n</tool_call>"
_RESULT = ("<tool_response>\n", "\n</tool_response>")


def _with_calls(turn: Turn) -> Turn:
    content = turn["content"]
    calls = [_CALL.format(call=_dumps(call["function"])) for call in turn.get("tool_calls", ())]
    between = "\n" if content and calls else ""
    return {"role": turn["role"], "content": _concat(content, between, "\n".join(calls))}


def _dumps(value: object) -> str:
    """JSON as transformers' `tojson` writes it."""
    return json.dumps(value, ensure_ascii=False)
