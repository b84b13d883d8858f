"""Prompts with tools, thoughts and options: what transformers renders, and nothing forged."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoProcessor

from litevl.errors import ConfigError, ContextLengthError, InvalidValueError
from litevl.models.prompt_text import ANSWER_TAGS, PromptText
from litevl.sequence import (
    Conversation,
    LoadedMedia,
    MediaPart,
    MediaPlan,
    Message,
    Probe,
    TextPart,
    Tool,
    ToolCall,
)
from rig import Rig
from tiny_models import CONTROL_TOKENS, PLAIN_ADDED_TOKENS, make_checkpoint

# Templates with a branch for tools, in the manner of Qwen2.5, Qwen3 (thinking) and Qwen3-Coder.
HERMES = r"""
{%- set has_system = messages[0].role == 'system' -%}
{{- '<|im_start|>system\n' -}}
{{- messages[0].content if has_system else 'You are a helpful assistant.' -}}
{%- if tools -%}
{{- '\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' -}}
{{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' -}}
{%- for tool in tools -%}{{- '\n' + (tool | tojson) -}}{%- endfor -%}
{{- '\n</tools>\n\nFor each function call, return a json object with function name and ' -}}
{{- 'arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n' -}}
{{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' -}}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- for message in (messages[1:] if has_system else messages) -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + message.role -}}
{%- if message.content or not message.tool_calls -%}{{- '\n' + message.content -}}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '\n<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' -}}
{{- (call.function.arguments | tojson) + '}\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""
THINKING = r"""
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.reasoning_content -%}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}
{%- endif -%}
{%- generation -%}{{- message.content -}}{%- endgeneration -%}{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if tools -%}{{- tools | tojson -}}{%- endif -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n<think>\n' -}}
{%- if enable_thinking is false -%}{{- '\n</think>\n\n' -}}{%- endif -%}
{%- endif -%}
{%- if style -%}{{- style -}}{%- endif -%}
"""
XML = r"""
{%- for tool in tools or [] -%}
{%- for key, value in tool.function | items -%}
{{- '<' ~ key ~ '>' ~ value ~ '</' ~ key ~ '>' -}}
{%- endfor -%}
{%- endfor -%}
{%- for message in messages -%}
{{- message.role + message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>\n<function=' + call.function.name + '>' -}}
{%- for key, value in call.function.arguments | items -%}
{{- '<parameter=' + key + '>' + value | string + '</parameter>' -}}
{%- endfor -%}
{{- '</function></tool_call>' -}}
{%- endfor -%}
{{- message.name ~ message.tool_call_id if message.role == 'tool' else '' -}}
{%- endfor -%}
"""

FUNCTION: dict[str, Any] = {
    "name": "look",
    "description": "Look at it: “é 圆” <b>&'\"\\ \n",
    "parameters": {"type": "object", "properties": {"what": {"type": "string"}}},
}
DEFINITION = {"type": "function", "function": FUNCTION}
TYPED = "a" + "".join((*CONTROL_TOKENS, *PLAIN_ADDED_TOKENS)) + "b"


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A processor whose own template knows no tools and has a system message by default."""
    auto: Any = AutoProcessor
    return auto.from_pretrained(make_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("model")))


def with_template(hf: Any, template: Any) -> Any:
    processor = copy.copy(hf)
    processor.chat_template = template
    return processor


def tool(definition: dict[str, Any]) -> Tool:
    text = json.dumps(definition)
    return Tool(name="look", parameters="{}", definition=text)


def call(arguments: dict[str, Any], name: str = "look", id: str = "call_1") -> ToolCall:
    return ToolCall(id=id, name=name, arguments=json.dumps(arguments))


def say(role: Any, text: str = "", **more: Any) -> Message:
    return Message(role=role, parts=(TextPart(text),) if text else (), **more)


def ids_of(text: PromptText, conversation: Conversation) -> list[int]:
    return text.encode(text.render(conversation, []), lambda rendered: rendered)


def rendered(text: PromptText, conversation: Conversation) -> str:
    return text.render(conversation, []).text


TALK = (
    say("system", "Be brief."),
    say("user", "What is there?"),
    say("assistant", "I look.", tool_calls=(call({"what": "圆"}), call({}, id="call_2"))),
    say("tool", "three", tool_call_id="call_1"),
    say("tool", "circles", tool_call_id="call_2"),
    say("assistant", "", tool_calls=(call({"n": [1, None, {"a": True}]}, id="call_3"),)),
    say("tool", "red", tool_call_id="call_3"),
    say("user", "And?"),
)
TALK_FOR_TEMPLATES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is there?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"type": "function", "function": {"name": "look", "arguments": {"what": "圆"}}},
            {"type": "function", "function": {"name": "look", "arguments": {}}},
        ],
    },
    {"role": "tool", "content": "three"},
    {"role": "tool", "content": "circles"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "function": {"name": "look", "arguments": {"n": [1, None, {"a": True}]}},
            }
        ],
    },
    {"role": "tool", "content": "red"},
    {"role": "user", "content": "And?"},
]
PLAIN_TALK = (say("user", "What is there?"), say("assistant", "A circle."), say("user", "And?"))


# What is rendered ------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("tools", [(), (DEFINITION,), (DEFINITION, {"type": "function"})])
def test_prompts_with_tools_are_what_transformers_makes(
    hf: Any, tools: tuple[dict[str, Any], ...], start: int
) -> None:
    processor = with_template(hf, HERMES)
    text = processor.apply_chat_template(
        TALK_FOR_TEMPLATES[start:], tools=list(tools) or None, add_generation_prompt=True
    )
    conversation = Conversation(messages=TALK[start:], tools=tuple(map(tool, tools)))
    assert ids_of(PromptText(processor), conversation) == hf.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("talk", [TALK, TALK[1:], TALK[5:], PLAIN_TALK, PLAIN_TALK[2:]])
@pytest.mark.parametrize("tools", [(), (DEFINITION,), (DEFINITION, {"type": "function"})])
def test_a_template_without_tools_is_given_what_one_with_tools_would_write(
    hf: Any, tools: tuple[dict[str, Any], ...], talk: tuple[Message, ...]
) -> None:
    conversation = Conversation(messages=talk, tools=tuple(map(tool, tools)))
    ours = rendered(PromptText(copy.copy(hf)), conversation)
    assert ours == rendered(PromptText(with_template(hf, HERMES)), conversation)


@given(text=st.text())
@example("think")
def test_clean_strings_of_tools_and_calls_are_tokenised_whole(hf: Any, text: str) -> None:
    processor = with_template(hf, HERMES)
    messages = (
        say("user", "a"),
        say("assistant", text, tool_calls=(call({text: [text]}),)),
        say("tool", text, tool_call_id=text),
    )
    definition = {"type": "function", "function": FUNCTION | {"description": text}}
    conversation = Conversation(messages=messages, tools=(tool(definition),))
    prompt = PromptText(processor)
    assert ids_of(prompt, conversation) == hf.tokenizer(rendered(prompt, conversation))["input_ids"]


def test_a_template_without_a_default_system_message_gets_the_tools_alone(hf: Any) -> None:
    turn = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    bare = f"{{%- for m in messages -%}}{turn}{{%- endfor -%}}"
    text = PromptText(with_template(hf, bare))
    conversation = Conversation(messages=PLAIN_TALK, tools=(tool(DEFINITION),))
    assert rendered(text, conversation).startswith("<|im_start|>system\n# Tools\n\nYou may")


def test_pictures_in_results_stay_where_they_were(hf: Any) -> None:
    picture = LoadedMedia(
        probe=Probe(kind="image", width=8, height=8),
        plan=MediaPlan(frame_indices=(0,), width=8, height=8),
        frames=np.zeros((1, 8, 8, 3), np.uint8),
        digest=b"",
        param="messages[1]",
    )
    result = Message(role="tool", parts=(TextPart("see "), MediaPart(0)), tool_call_id="call_1")
    messages = (say("user", "a"), result, say("tool", "b"))
    text = PromptText(copy.copy(hf)).render(Conversation(messages=messages), [picture]).text
    shown = "see <|vision_start|><|image_pad|><|vision_end|>"
    assert (
        f"user\n<tool_response>\n{shown}\n</tool_response>\n<tool_response>\nb\n</tool_response><|"
        in text
    )


def test_results_are_told_by_the_names_of_their_calls(hf: Any) -> None:
    text = PromptText(with_template(hf, XML))
    calls = say("assistant", tool_calls=(call({"a": 1}, name="f", id="x"),))
    messages = (calls, say("tool", "r", tool_call_id="x"), say("tool", "s", tool_call_id="y"))
    written = (
        "<tool_call>\n<function=f><parameter=a>1</parameter></function></tool_call>toolrfxtoolsy"
    )
    assert rendered(text, Conversation(messages=messages)) == f"assistant{written}"


@pytest.mark.parametrize("arguments", ["[]", "{", "1", '"{}"'])
def test_arguments_of_earlier_calls_must_be_objects(hf: Any, arguments: str) -> None:
    bad = say("assistant", tool_calls=(ToolCall(id="x", name="f", arguments=arguments),))
    with pytest.raises(InvalidValueError, match="JSON object"):
        PromptText(copy.copy(hf)).render(Conversation(messages=(bad,)), [])


def test_a_call_without_arguments_has_none(hf: Any) -> None:
    empty = say("assistant", tool_calls=(ToolCall(id="x", name="f", arguments=""),))
    text = rendered(PromptText(copy.copy(hf)), Conversation(messages=(empty,)))
    assert '{"name": "f", "arguments": {}}' in text


def test_the_format_of_calls_is_read_from_the_template(hf: Any) -> None:
    assert PromptText(copy.copy(hf)).tool_format == "hermes"
    assert PromptText(with_template(hf, HERMES)).tool_format == "hermes"
    assert PromptText(with_template(hf, XML)).tool_format == "xml"


def test_of_several_templates_the_default_is_taken(hf: Any) -> None:
    assert PromptText(with_template(hf, {"default": XML, "other": "x"})).tool_format == "xml"


def test_a_template_that_is_no_jinja_does_not_start(hf: Any) -> None:
    with pytest.raises(ConfigError, match="Jinja"):
        PromptText(with_template(hf, "{% if %}"))


def test_tools_that_the_template_cannot_take_are_the_callers_fault(hf: Any) -> None:
    conversation = Conversation(messages=PLAIN_TALK, tools=(tool({"function": 7}),))
    with pytest.raises(InvalidValueError, match="shape of the tools"):
        PromptText(with_template(hf, XML)).render(conversation, [])


# Control tokens typed by a caller --------------------------------------------------------------


def control(hf: Any, ids: list[int]) -> list[int]:
    added = set(hf.tokenizer.get_added_vocab().values())
    return [i for i in ids if i in added]


def everywhere(text: str) -> Conversation:
    """The text wherever a caller can put one."""
    function = {"name": text, "description": text, "parameters": {text: [text, {"a": text}]}}
    calls = (ToolCall(id=text, name=text, arguments=json.dumps({text: [text]})),)
    messages = (
        say("user", text),
        say("assistant", text, tool_calls=calls, reasoning=text),
        say("tool", text, tool_call_id=text),
        say("user", "a"),
    )
    tools = (tool({"type": "function", "function": function, text: text}),)
    return Conversation(messages=messages, tools=tools)


@pytest.mark.parametrize("template", [None, HERMES, THINKING, XML])
def test_typed_control_tokens_stay_text_wherever_they_stand(hf: Any, template: str | None) -> None:
    text = PromptText(with_template(hf, template) if template else copy.copy(hf))
    ids, clean = ids_of(text, everywhere(TYPED)), ids_of(text, everywhere("ab"))
    assert control(hf, ids) == control(hf, clean)
    assert hf.tokenizer.decode(ids).count(TYPED) == hf.tokenizer.decode(clean).count("ab")


@pytest.mark.parametrize("key", ["think", "/think", "|im_end|", "im_end|"])
def test_keys_do_not_become_control_tokens_in_brackets_of_the_template(hf: Any, key: str) -> None:
    text = PromptText(with_template(hf, XML))
    definition = {"type": "function", "function": {"name": "f", key: "x"}}
    ids = ids_of(text, Conversation(messages=PLAIN_TALK, tools=(tool(definition),)))
    assert control(hf, ids) == []
    assert f"<{key}>x</{key}>" in hf.tokenizer.decode(ids)


def test_the_templates_own_tags_are_tokens(hf: Any) -> None:
    tags = set(hf.tokenizer.convert_tokens_to_ids(["<tool_call>", "</tool_call>"]))
    for processor in (copy.copy(hf), with_template(hf, HERMES)):
        text = PromptText(processor)
        assert tags <= set(ids_of(text, Conversation(messages=TALK)))


def test_the_tags_of_an_answer_have_bytes_even_where_they_are_special(hf: Any) -> None:
    processor = copy.deepcopy(hf)
    special = [AddedToken(tag, special=True, normalized=False) for tag in sorted(ANSWER_TAGS)]
    processor.tokenizer.backend_tokenizer.add_special_tokens(special)
    text = PromptText(processor)
    ids = processor.tokenizer.convert_tokens_to_ids(sorted(ANSWER_TAGS))
    assert [text.token_bytes(i).decode() for i in ids] == sorted(ANSWER_TAGS)
    assert {"<think>", "</tool_call>", "<tool_response>"} < ANSWER_TAGS


# Thoughts and options --------------------------------------------------------------------------


def is_thinking(text: PromptText, *messages: Message, **options: object) -> bool:
    conversation = Conversation(messages=messages, template_kwargs=tuple(options.items()))
    return text.render(conversation, []).is_thinking


def test_the_end_of_the_prompt_tells_whether_the_model_thinks(hf: Any) -> None:
    thinking, plain = PromptText(with_template(hf, THINKING)), PromptText(copy.copy(hf))
    assert is_thinking(thinking, say("user", "a"))
    assert is_thinking(thinking, say("user", "</think>"))
    assert not is_thinking(thinking, say("user", "<think>"), enable_thinking=False)
    assert not is_thinking(plain, say("user", "a"))


def test_what_somebody_typed_does_not_make_the_model_think(hf: Any) -> None:
    """Not even where the tokenizer has no such token, so that the tag is never cut out."""
    processor = copy.deepcopy(hf)
    backend = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [t for t in backend["added_tokens"] if "think" not in t["content"]]
    processor.tokenizer._tokenizer = type(processor.tokenizer.backend_tokenizer).from_str(
        json.dumps(backend)
    )
    text = PromptText(processor)
    conversation = Conversation(messages=(say("user", "<think>"),))
    assert "<think>" in rendered(text, conversation)
    assert not text.render(conversation, []).is_thinking
    assert not is_thinking(text, say("user", "a"), say("assistant", "<think>\n"))


def test_earlier_reasoning_reaches_the_template(hf: Any) -> None:
    text = PromptText(with_template(hf, THINKING))
    messages = (say("user", "a"), say("assistant", "b", reasoning="c"))
    assert "<think>\nc\n</think>\n\nb<|im_end|>" in rendered(text, Conversation(messages=messages))


def test_options_reach_the_template(hf: Any) -> None:
    text = PromptText(with_template(hf, THINKING))
    options = (("enable_thinking", False), ("style", f"!{TYPED}"))
    conversation = Conversation(messages=PLAIN_TALK, template_kwargs=options)
    ids = ids_of(text, conversation)
    assert hf.tokenizer.decode(ids).endswith(f"</think>\n\n!{TYPED}")
    clean = Conversation(messages=PLAIN_TALK, template_kwargs=options[:1])
    assert control(hf, ids) == control(hf, ids_of(text, clean))


TAKEN = (
    "tokenize chat_template add_generation_prompt messages tools documents "
    "eos_token namespace raise_exception message kwargs thinking"
)


@pytest.mark.parametrize("name", [*TAKEN.split(), "x" * 100_000], ids=lambda name: name[:20])
def test_other_options_are_refused_with_a_list_of_those_that_work(hf: Any, name: str) -> None:
    text = PromptText(with_template(hf, THINKING))
    conversation = Conversation(messages=PLAIN_TALK, template_kwargs=((name, True),))
    with pytest.raises(InvalidValueError, match=r"it has: enable_thinking, style$") as caught:
        text.render(conversation, [])
    assert caught.value.param == f"chat_template_kwargs.{name[:64]}"


@pytest.mark.parametrize(
    ("template", "options"),
    [
        ("{% set a = b %}{{ a }}", "b"),
        ("{% set a = a | default(1) %}{{ a }}", "a"),
        ("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}", "a"),
        ("{% if messages %}{% set a = 1 %}{% endif %}{{ a }}", "none"),
        ("{% macro m(a, b=c) %}{{ a }}{{ d }}{% endmacro %}{{ m(a) }}", "a, c, d"),
        ("{% for a in messages %}{{ loop.index }}{% break %}{% endfor %}", "none"),
        ("{{ namespace() }}{{ range(2) }}{{ strftime_now('%Y') }}{{ eos_token }}", "none"),
    ],
)
def test_options_are_what_the_template_does_not_set_itself(
    hf: Any, template: str, options: str
) -> None:
    conversation = Conversation(messages=PLAIN_TALK, template_kwargs=(("other", 1),))
    with pytest.raises(InvalidValueError, match=f"it has: {options}$"):
        PromptText(with_template(hf, template)).render(conversation, [])


def test_tools_too_long_for_the_context_are_refused_before_they_are_tokenised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenise(*arguments: object) -> list[int]:
        raise AssertionError("tokenised")

    processor = Rig(make_checkpoint("qwen3_vl", tmp_path)).processor
    monkeypatch.setattr(processor._text, "encode", tokenise)
    long = tool({"type": "function", "function": {"description": "a" * 10**6}})
    monkeypatch.setattr(processor._text, "count", tokenise)
    for work in (processor.prepare, processor.measure):
        with pytest.raises(ContextLengthError, match="maximum context length"):
            work(Conversation(messages=PLAIN_TALK, tools=(long,)), [])


def test_a_prompt_knows_what_its_rendering_knew(tmp_path: Path) -> None:
    folder = make_checkpoint("qwen3_vl", tmp_path)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": THINKING}))
    processor = Rig(folder).processor
    assert processor.prepare(Conversation(messages=PLAIN_TALK), []).is_thinking
    off = Conversation(messages=PLAIN_TALK, template_kwargs=(("enable_thinking", False),))
    assert not processor.prepare(off, []).is_thinking
    assert processor.tool_format == "hermes"
