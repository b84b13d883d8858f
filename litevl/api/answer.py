"""The model's text -> reasoning, content and tool calls, as it comes.

`choices.py` pushes what the detokenizer releases into an `AnswerReader`, one per answer; its pieces
are sent, or gathered in `Pieces` for a whole answer, so whole and streamed cannot differ. The
reader is a parser written as a coroutine that waits wherever the text is not yet long enough to
decide: what it says depends on the text alone, never on how it was cut. Knows no tokens and no
OpenAI JSON.

Newlines around a tag belong to the tag, as chat templates write them. What begins like a call and
turns out not to be one is given back, tag and all, to the text it stood in.
"""

import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from litevl.api.tool_text import (
    END_FUNCTION,
    END_PARAMETER,
    FUNCTION,
    PARAMETER,
    ParameterTypes,
    Reads,
    Text,
    decode,
    object_text,
)
from litevl.sequence import Tool, ToolCall, ToolFormat

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next part of the text of the arguments of the call that started last."""

    index: int
    text: str


Piece = Reasoning | Content | CallStart | CallArguments


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    reasoning: str | None  # None: there was none
    content: str
    calls: tuple[ToolCall, ...]


class Pieces:
    """The pieces of an answer as they come, and what they are together."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._starts: list[CallStart] = []
        self._arguments: dict[int, list[str]] = {}

    def add(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Reasoning(text):
                    self._reasoning.append(text)
                case Content(text):
                    self._content.append(text)
                case CallStart():
                    self._starts.append(piece)
                    self._arguments[piece.index] = []
                case CallArguments(index, text):
                    self._arguments[index].append(text)

    def join(self) -> Answer:
        calls = (
            ToolCall(id=each.id, name=each.name, arguments="".join(self._arguments[each.index]))
            for each in self._starts
        )
        reasoning = "".join(self._reasoning) if self._reasoning else None
        return Answer(reasoning, "".join(self._content), tuple(calls))


def join(pieces: Iterable[Piece]) -> Answer:
    """What pieces that have all come are together."""
    joining = Pieces()
    joining.add(pieces)
    return joining.join()


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class AnswerReader:
    """`push` and `flush` give the pieces that can be sent; neighbours in them are never alike."""

    def __init__(
        self,
        *,
        is_thinking: bool = False,
        tools: tuple[Tool, ...] = (),
        tool_format: ToolFormat | None = None,
        max_calls: int | None = None,
        only_calls: bool = False,
        reasoning_in_content: bool = False,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`is_thinking`: the prompt ended inside `<think>`. No `tool_format`: calls are text.

        Calls beyond `max_calls` are read and dropped. `only_calls`: they alone can follow the
        thought, in which there are none, so what is cut off before it is one is no content.
        `reasoning_in_content`: what the model thinks is content, tags included, and so is the
        `<think>` that the prompt ended with.
        """
        self.is_reasoning = is_thinking and not reasoning_in_content
        self.num_calls = 0  # that were sent
        self._has_thought = is_thinking
        self._in_content = reasoning_in_content
        self._only_calls = only_calls
        self._types = ParameterTypes(tools)
        self._max_calls = max_calls
        self._new_id = new_id
        # The XML form also comes without its outer tag, but not in the middle of a thought.
        self._call_tags = () if tool_format is None else (CALL,)
        self._bare_tags = (FUNCTION,) if tool_format == "xml" else ()
        self._stray_tags: tuple[str, ...] = ()  # a second `</think>` is swallowed
        self._text = Text()
        self._has_content = True
        self._gap = ""  # what stood before the tag that was met last and belongs to it
        self._call = _Call()
        self._pieces: list[Piece] = []
        self._reading = self._read()

    @property
    def has_open_call(self) -> bool:
        """The call that was sent last has not come to its end."""
        return self._call.is_named and not self._call.is_whole

    def push(self, text: str) -> list[Piece]:
        """Take more text; what can be sent now."""
        self._text.add(text)
        return self._advance()

    def flush(self) -> list[Piece]:
        """The text is at its end; what was held back."""
        self._text.end()
        return self._advance()

    def _advance(self) -> list[Piece]:
        next(self._reading, None)
        pieces, self._pieces = self._pieces, []
        return pieces

    # Text ----------------------------------------------------------------------------------------

    def _read(self) -> Reads[None]:
        edge: tuple[str, ...] = ()  # tags that are read only where no text stands before them
        if self._in_content and self._has_thought:
            self._say(Content, f"{THINK}\n")
            if self._only_calls:
                yield from self._told_thought()
        elif self._has_thought:
            edge = yield from self._thought()
        elif not self._in_content:
            edge = (THINK,)
        self._has_content = not self._only_calls
        yield from self._content(edge)

    def _told_thought(self) -> Reads[None]:
        """A thought that is content, up to the tag that ends it."""
        if tag := (yield from self._until_tag(Content, (END_THINK,))):
            self._say(Content, self._gap + tag)

    def _content(self, edge: tuple[str, ...] | None) -> Reads[None]:
        """Content and calls up to the end; `edge` is None in the middle of text."""
        while True:
            tags = (*self._call_tags, *self._bare_tags, *self._stray_tags)
            tag = ""
            if edge is not None:
                tag = yield from self._until_text((*tags, *edge))
            tag = tag or (yield from self._until_tag(Content, tags))
            edge = ()
            if not tag:
                return
            if tag == THINK:
                edge = yield from self._thought()
            elif tag == END_THINK:
                self._stray_tags = ()
                yield from self._text.skip("\n")
            elif tag != END_CALL:
                is_call = yield from self._read_call(tag, Content)
                edge = (END_CALL,) if is_call else None

    def _thought(self) -> Reads[tuple[str, ...]]:
        """Reasoning up to its end; the tags to expect after it."""
        self.is_reasoning = True
        edge: tuple[str, ...] = ()
        calls = () if self._only_calls else self._call_tags
        yield from self._text.skip("\n")
        while tag := (yield from self._until_tag(Reasoning, (END_THINK, *calls))):
            if tag == END_THINK:
                yield from self._text.skip("\n")
                break
            if (yield from self._read_call(tag, Reasoning)):
                edge = (END_CALL,)
                break
        self._stray_tags = (END_THINK,)
        self.is_reasoning = False
        return edge

    def _until_tag(self, channel: type[Reasoning | Content], tags: tuple[str, ...]) -> Reads[str]:
        """Send text up to one of the tags, less the newlines before it; "" at the end."""
        gap = ""
        while char := (yield from self._text.peek()):
            if not tags:
                self._say(channel, self._text.take_all())
            elif char == "\n":
                gap += self._text.take()
            elif tag := (yield from self._text.match(tags)):
                self._gap = gap
                return tag
            else:
                self._say(channel, gap + self._text.take_run())
                gap = ""
        if channel is Content:
            self._say(channel, gap)
        return ""

    def _until_text(self, tags: tuple[str, ...]) -> Reads[str]:
        """Skip white space before one of the tags; before text it is text. "" without a tag."""
        if not tags:
            return ""
        gap = yield from self._text.skip()
        tag = yield from self._text.match(tags)
        if tag:
            self._gap = gap
        elif (yield from self._text.peek()) or not self.num_calls:
            self._say(Content, gap)
        return tag

    def _say(self, channel: type[Reasoning | Content], text: str) -> None:
        if text and self._has_content:
            self._put(channel(text))

    def _put(self, piece: Piece) -> None:
        """One more piece to send, or more of the last where both are of one kind."""
        match self._pieces[-1:], piece:
            case [Content(before)], Content(text):
                self._pieces[-1] = Content(before + text)
            case [Reasoning(before)], Reasoning(text):
                self._pieces[-1] = Reasoning(before + text)
            case [CallArguments(index, before)], CallArguments(_, text):
                self._pieces[-1] = CallArguments(index, before + text)
            case _:
                self._pieces.append(piece)

    # Calls ---------------------------------------------------------------------------------------

    def _read_call(self, tag: str, channel: type[Reasoning | Content]) -> Reads[bool]:
        """Read what the tag opens; whether it is a call. If not, it goes back to the channel.

        Both forms are read whatever the template taught: the text shows which one it is.
        """
        self._call = _Call()
        self._text.record(self._gap + tag)
        if tag == CALL:
            yield from self._text.skip()
        if tag == FUNCTION or (yield from self._text.match((FUNCTION,))):
            yield from self._read_xml()
        elif (yield from self._text.peek()) == "{":
            yield from self._read_json()
        text = self._text.recorded()
        if not self._call.is_named:
            self._say(channel, text)
        return self._call.is_named

    def _name(self, name: object) -> None:
        """The name is known, and so the call can be sent."""
        if not isinstance(name, str) or not name:
            return
        self._call.is_named = True
        self._call.is_kept = self._max_calls is None or self.num_calls < self._max_calls
        if self._call.is_kept:
            self._put(CallStart(self.num_calls, self._new_id(), name))
            self.num_calls += 1
        self._argue("".join(self._call.held))

    def _argue(self, text: str) -> None:
        """Send a part of the arguments, or hold it until the name is known."""
        if not self._call.is_named:
            self._call.held.append(text)
        elif self._call.is_kept and text:
            self._put(CallArguments(self.num_calls - 1, text))

    def _read_json(self) -> Reads[None]:
        """`{"name": ..., "arguments": {...}}` in any order, as far as it is JSON."""
        self._text.take()
        has_arguments = False
        while (key := (yield from self._text.json_key())) is not None:
            if key == "arguments" and not has_arguments:
                has_arguments = True
                yield from self._read_arguments()
                continue
            value = yield from self._text.json_value()
            if key == "name" and not self._call.is_named:
                self._name(decode(value))
                if not self._call.is_named:
                    return
        following = yield from self._text.peek()
        self._call.is_whole |= following == "}"
        if following and not has_arguments:
            self._argue("{}")
        yield from self._text.skip("}")  # models close more than they opened, too

    def _read_arguments(self) -> Reads[None]:
        """An object goes out as it grows; anything else when it is whole."""
        if (yield from self._text.peek()) == "{":
            value = yield from self._text.json_value(self._argue)
            self._call.is_whole = decode(value) is not None  # though the brace around it may lack
        else:
            self._argue(object_text((yield from self._text.json_value())))

    def _read_xml(self) -> Reads[None]:
        """What follows `<function=`: the name, and parameters that become members of an object."""
        name = yield from self._text.xml_name(" \t")
        self._name(name)
        if not self._call.is_named:
            return
        opening = "{"
        while True:
            yield from self._text.skip()
            tag = yield from self._text.match((PARAMETER, END_FUNCTION))
            if tag != PARAMETER:
                break
            key = yield from self._text.xml_name()
            value = yield from self._text.xml_value(END_PARAMETER, (PARAMETER, END_FUNCTION))
            if value is None:
                return
            member = json.dumps(key, ensure_ascii=False)
            self._argue(f"{opening}{member}: {self._types.to_json(name, key, value)}")
            opening = ", "
        self._call.is_whole = tag == END_FUNCTION
        if tag or (yield from self._text.peek()):  # else it was cut off, and must not look whole
            self._argue("{}" if opening == "{" else "}")


@dataclass(slots=True)
class _Call:
    """How far the call is that is being read."""

    is_named: bool = False
    is_kept: bool = False
    is_whole: bool = False
    held: list[str] = field(default_factory=list)  # arguments that came before the name
