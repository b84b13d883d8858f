"""A conversation to token ids and back: chat template and byte-level BPE tokenizer of a checkpoint.

`processor.py` calls `render` and `encode` with what a client asked, and `token_bytes` for the
detokenizer. What a caller typed can never become a control token: where a string of theirs contains
one literally, that stretch leaves the prompt before the template is rendered and comes back as
plain text. Knows no pixels and no positions.
"""

import json
import re
import secrets
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from litevl.errors import ConfigError
from litevl.models.chat_template import ChatTemplate
from litevl.sequence import Conversation, PlannedMedia, TextPart

# Text to whoever reads an answer, even where a tokenizer calls them special.
ANSWER_TAGS = frozenset(
    f"<{slash}{name}>" for name in ("think", "tool_call", "tool_response") for slash in ("", "/")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """A prompt's text, with sentinels where control tokens were typed."""

    text: str = field(repr=False)
    cut: "_Cut"
    least_tokens: int  # fewer than this cannot hold the text; counted without tokenising
    is_thinking: bool  # the answer begins inside `<think>`


class PromptText:
    """Holds no state that a call changes: safe to use from several threads."""

    def __init__(self, processor: Any) -> None:
        """`processor` is a transformers processor with a fast tokenizer; `ConfigError` if not."""
        self._template = ChatTemplate(processor)
        self.tool_format = self._template.tool_format
        backend = processor.tokenizer.backend_tokenizer
        # Copies of our own: transformers changes settings of its object in every call.
        self.tokenizer = _copy(backend)
        self._plain_tokenizer = _copy(backend, added_tokens=[], post_processor=None)
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        alternatives = sorted(added, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, alternatives)) or r"(?!)")
        self._inner = frozenset(token.strip(_BRACKETS) for token in added)
        self._names = _names_table(self.tokenizer)
        self._bytes = _bytes_table(self.tokenizer, self._names)
        self._longest = max(map(len, self._bytes))  # a character is a byte at least

    def render(self, conversation: Conversation, media: Many[PlannedMedia]) -> Rendered:
        """Raises `InvalidValueError` where the template refuses the conversation."""
        rendered, num_control, is_doubtful = self._render(conversation, media, cut_keys=False)
        if is_doubtful:
            strict, num_strict, _ = self._render(conversation, media, cut_keys=True)
            if num_strict != num_control:  # the template did make control tokens of keys
                return strict
        return rendered

    def _render(
        self, conversation: Conversation, media: Many[PlannedMedia], *, cut_keys: bool
    ) -> tuple[Rendered, int, bool]:
        """Also how many control tokens the text has, and whether keys could be among them."""
        cut = _Cut(self._control, self._inner if cut_keys else frozenset())
        rendering = self._template.render(conversation, media, cut.take)
        pieces = cut.split(rendering.text)
        cleared = [(p, 0) if typed else self._control.subn("", p) for p, typed in pieces]
        rendered = Rendered(
            text=rendering.text,
            cut=cut,
            least_tokens=sum(len(p) for p, _ in cleared) // self._longest,
            is_thinking=rendering.is_thinking,
        )
        is_doubtful = any(key.strip(_BRACKETS) in self._inner for key in cut.keys)
        return rendered, sum(number for _, number in cleared), is_doubtful

    def encode(self, rendered: Rendered, expand: Callable[[str], str]) -> list[int]:
        """Expand the placeholders of pictures and clips, and tokenise."""
        ids: list[int] = []
        for piece, typed in rendered.cut.split(expand(rendered.text)):
            tokenizer = self._plain_tokenizer if typed else self.tokenizer
            ids += _ids(tokenizer, piece)
        return ids

    def least_tokens(self, conversation: Conversation) -> int:
        """Fewer tokens than this cannot hold the messages' text; counted without rendering."""
        parts = (part for message in conversation.messages for part in message.parts)
        texts = (part.text for part in parts if isinstance(part, TextPart))
        return sum(map(len, texts)) // self._longest

    def least_tokens_of(self, text: str) -> int:
        """Fewer tokens than this cannot hold a text."""
        return len(text) // self._longest

    def count(self, text: str) -> int:
        """Tokens of a text without control tokens."""
        return len(_ids(self._plain_tokenizer, text))

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text that is a whole prompt: control tokens in it are meant."""
        return _ids(self.tokenizer, text)

    def decode(self, token_ids: Many[int]) -> str:
        """The text of tokens, control tokens by their names."""
        return b"".join(map(self.token_name, token_ids)).decode(errors="replace")

    def token_name(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token, a control token's name; b"" beyond the vocabulary."""
        return self._names[token_id] if 0 <= token_id < len(self._names) else b""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token; b"" for control tokens and ids beyond the vocabulary."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""


_BRACKETS = "<|/>"


class _Cut:
    """Control tokens that a caller typed, replaced by sentinels that nobody can guess."""

    def __init__(self, control: re.Pattern[str], inner: frozenset[str]) -> None:
        """Keys that are `inner` to a control token are replaced as a whole."""
        self.keys: set[str] = set()  # of objects, as they were typed
        self._control = control
        self._inner = inner
        self._nonce = secrets.token_hex(16)
        self._stretches: list[str] = []

    def take(self, value: Any) -> Any:
        """A JSON value of the caller's with every string in it made safe."""
        if isinstance(value, str):
            return self._control.sub(self._replace, value)
        if isinstance(value, list):
            return [self.take(each) for each in value]
        if isinstance(value, dict):
            return {self._take_key(key): self.take(each) for key, each in value.items()}
        return value

    def _take_key(self, key: str) -> str:
        """Some templates write keys in brackets of their own: `think` would become `<think>`."""
        self.keys.add(key)
        if key.strip(_BRACKETS) in self._inner:
            return self._sentinel(key)
        return self._control.sub(self._replace, key)

    def _replace(self, match: re.Match[str]) -> str:
        return self._sentinel(match.group())

    def _sentinel(self, stretch: str) -> str:
        self._stretches.append(stretch)
        return f"[{self._nonce}:{len(self._stretches) - 1}]"

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Pieces of the rendered text in order, each with whether it is a typed control token."""
        pieces = re.split(rf"\[{self._nonce}:(\d+)\]", text)
        typed = (i % 2 == 1 for i in range(len(pieces)))
        return [
            (self._stretches[int(p)] if t else p, t) for p, t in zip(pieces, typed, strict=True)
        ]


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """As a batch of one: a text encoded by itself holds the interpreter, for seconds if long."""
    (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids


def _copy(backend: Tokenizer, **changes: Any) -> Tokenizer:
    copy = Tokenizer.from_str(json.dumps(json.loads(backend.to_str()) | changes))
    copy.no_truncation()
    copy.no_padding()
    return copy


def _names_table(tokenizer: Tokenizer) -> list[bytes]:
    """What every id is written as: byte-level BPE spells each byte as one printable character."""
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    table = [b""] * (1 + max(tokenizer.get_vocab(with_added_tokens=True).values()))
    try:
        for piece, index in tokenizer.get_vocab(with_added_tokens=False).items():
            table[index] = bytes(byte_of[character] for character in piece)
    except KeyError:
        raise ConfigError("the checkpoint's tokenizer is not a byte-level BPE") from None
    for index, token in tokenizer.get_added_tokens_decoder().items():
        table[index] = token.content.encode()
    return table


def _bytes_table(tokenizer: Tokenizer, names: list[bytes]) -> list[bytes]:
    """The same, but nothing for control tokens, which are no part of an answer's text."""
    added = tokenizer.get_added_tokens_decoder()
    silent = {i for i, each in added.items() if each.special and each.content not in ANSWER_TAGS}
    return [b"" if index in silent else name for index, name in enumerate(names)]
