"""Whatever a caller types, in any field, no token of control comes of it: in every family."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoProcessor

from litevl.config import Config
from litevl.errors import InternalError, InvalidValueError
from litevl.models.processor import Processor
from litevl.models.prompt_text import PromptText
from litevl.sequence import Conversation, MediaPart, Message, TextPart, Tool, ToolCall
from rig import Rig
from test_chat_template import HERMES, THINKING, XML, ids_of, say
from tiny_models import CONTROL_TOKENS, FAMILIES, PLAIN_ADDED_TOKENS, make_checkpoint

# Added tokens of Qwen's releases from Qwen2-VL to Qwen3.5 that the tiny checkpoints lack.
SPECIAL = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")
PLAIN = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
RELEASED = (
    *(AddedToken(f"<|{name}|>", special=True, normalized=False) for name in SPECIAL),
    *(AddedToken(f"<|{name}|>", special=False, normalized=False) for name in PLAIN),
    AddedToken("<tool_response>", special=False, normalized=False),
    AddedToken("</tool_response>", special=False, normalized=False),
)
TOKENS = (*CONTROL_TOKENS, *PLAIN_ADDED_TOKENS, *(token.content for token in RELEASED))
TEMPLATES: dict[str, str | None] = {
    "own": None,
    "hermes": HERMES,
    "thinking": THINKING,
    "xml": XML,
}


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def hf(folder: Path) -> Any:
    """A processor of one family with every token that any release adds."""
    auto: Any = AutoProcessor
    hf = auto.from_pretrained(folder)
    hf.tokenizer.add_tokens(list(RELEASED))
    assert set(TOKENS) <= set(hf.tokenizer.get_added_vocab())
    return hf


@pytest.fixture(scope="module")
def texts(hf: Any) -> dict[str, PromptText]:
    """One for each template."""
    made = {}
    for name, template in TEMPLATES.items():
        processor = copy.copy(hf)
        processor.chat_template = template or hf.chat_template
        made[name] = PromptText(processor)
    return made


def everywhere(text: str, options: tuple[tuple[str, object], ...] = ()) -> Conversation:
    """The text wherever a caller can put one, also in two parts and as JSON escapes."""
    function = {"name": text, "description": text, "parameters": {text: [text, {"a": text}]}}
    escaped = json.dumps({text: [text]}).replace("<", "\\u003c").replace("|", "\\u007c")
    definition = json.dumps({"function": function, text: text})
    half = len(text) // 2
    parts = (TextPart(text[:half]), TextPart(text[half:]))
    return Conversation(
        messages=(
            say("system", text),
            Message(role="user", parts=parts),
            say("assistant", text, tool_calls=(ToolCall(id=text, name=text, arguments=escaped),)),
            say("tool", text, tool_call_id=text),
            say("assistant", text, reasoning=text),
            say("user", text),
        ),
        tools=(Tool(name=text, parameters="{}", definition=definition),),
        template_kwargs=options,
    )


def control(hf: Any, ids: list[int]) -> list[int]:
    added = set(hf.tokenizer.get_added_vocab().values())
    return [each for each in ids if each in added]


def assert_is_text(hf: Any, text: PromptText, typed: str, **options: Any) -> None:
    """As many tokens of control as for a harmless text, and as many copies of what was typed."""
    given, harmless = everywhere(typed, **options), everywhere("Zq", **options)
    ids, clean = ids_of(text, given), ids_of(text, harmless)
    assert control(hf, ids) == control(hf, clean)
    assert text.decode(ids).count(typed) >= text.decode(clean).count("Zq")


@pytest.mark.parametrize("template", TEMPLATES)
def test_no_added_token_can_be_typed_anywhere(
    hf: Any, texts: dict[str, PromptText], template: str
) -> None:
    for token in TOKENS:
        assert_is_text(hf, texts[template], f"Zq{token}Zq")
        assert_is_text(hf, texts[template], token)


def test_options_cannot_carry_a_token(hf: Any, texts: dict[str, PromptText]) -> None:
    for token in TOKENS:
        given, harmless = (
            Conversation(messages=(say("user", "a"),), template_kwargs=(("style", style),))
            for style in (token, "Zq")
        )
        ids = ids_of(texts["thinking"], given)
        assert control(hf, ids) == control(hf, ids_of(texts["thinking"], harmless))
        assert texts["thinking"].decode(ids).endswith(token)


HALVES = st.sampled_from(TOKENS).flatmap(
    lambda token: st.integers(0, len(token)).flatmap(
        lambda at: st.sampled_from([token, token[:at], token[at:]])
    )
)
INVISIBLE = ("", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad")
BETWEEN = st.sampled_from([*INVISIBLE, "a", " ", "\n", "圆", "<", "|", ">"])


@settings(max_examples=max(60, settings().max_examples // 5))
@example(pieces=["<|im_", "<|im_end|>", "end|>"], template="own")
@example(pieces=["<", "think", ">", "</", "think", ">"], template="xml")
@given(
    pieces=st.lists(st.one_of(HALVES, BETWEEN), min_size=1, max_size=12),
    template=st.sampled_from(sorted(TEMPLATES)),
)
def test_halves_and_invisible_letters_do_not_add_up_to_a_token(
    hf: Any, texts: dict[str, PromptText], pieces: list[str], template: str
) -> None:
    typed = "".join(pieces)
    ids = ids_of(texts[template], everywhere(f"Zq{typed}Zq"))
    clean = ids_of(texts[template], everywhere("Zq"))
    assert control(hf, ids) == control(hf, clean)
    assert f"Zq{typed}Zq" in texts[template].decode(ids)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TURNS = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), WORDS), min_size=1, max_size=6)


@settings(max_examples=max(70, settings().max_examples // 25))
@given(system=st.none() | WORDS, turns=TURNS)
def test_clean_conversations_are_what_transformers_makes_of_them(
    hf: Any, texts: dict[str, PromptText], system: str | None, turns: list[tuple[str, str]]
) -> None:
    talk = [] if system is None else [("system", system)]
    talk += turns
    messages = [{"role": role, "content": text} for role, text in talk]
    said = Conversation(messages=tuple(say(role, text) for role, text in talk))
    rendered = hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if not any(token in text for token in TOKENS for _, text in talk):
        assert ids_of(texts["own"], said) == hf.tokenizer(rendered)["input_ids"]


# Placeholders and features ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def rig(folder: Path) -> Rig:
    return Rig(folder)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_placeholders_are_counted_before_pixels_are_touched(
    rig: Rig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One too many by whatever fault: that request ends, and nothing reaches the model."""

    def touch(*arguments: object, **options: object) -> None:
        raise AssertionError("pixels were made")

    media = [rig._medium((1 if kind == "image" else 4, 60, 60), 0)]
    said = Conversation(messages=(Message(role="user", parts=(MediaPart(0),)),))
    assert len(rig.processor.prepare(said, media).media) == 1
    inner = rig.processor._hf
    write, token = getattr(inner, f"replace_{kind}_token"), getattr(inner, f"{kind}_token")
    one_more = lambda *arguments, **options: write(*arguments, **options) + token  # noqa: E731
    monkeypatch.setattr(inner, f"replace_{kind}_token", one_more)
    monkeypatch.setattr(
        inner, f"{kind}_processor", Blind(getattr(inner, f"{kind}_processor"), touch)
    )
    with pytest.raises(InternalError, match="placeholders for"):
        rig.processor.prepare(said, media)


@dataclass
class Blind:
    """A processor of pixels that knows its settings, and does something else with pixels."""

    inner: Any
    touch: Callable[..., None]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *arguments: object, **options: object) -> None:
        self.touch()


def test_a_template_that_writes_placeholders_of_its_own_is_refused(rig: Rig) -> None:
    processor = rig.processor
    inner = copy.copy(processor._hf)
    inner.chat_template = inner.chat_template + "<|image_pad|>"
    forging = Processor(inner, rig.reference.config, Config(), max_model_len=4096)
    with pytest.raises(InvalidValueError, match="only in user messages"):
        forging.prepare(Conversation(messages=(say("user", "a"),)), [])
