"""Words to token ids and back: the checkpoint's chat template and its byte-level BPE tokenizer.

`processor.py` calls `encode` with the messages and `token_bytes` for the detokenizer. What a caller
typed can never become a control token: where a text contains one literally, that stretch leaves the
prompt before the template is rendered and comes back as plain text. Knows no pixels and no
positions.
"""

import json
import re
import secrets
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from litevl.errors import ConfigError, InvalidValueError
from litevl.sequence import LoadedMedia, MediaPart, Message, TextPart


class PromptText:
    """Holds no state that a call changes: safe to use from several threads."""

    def __init__(self, processor: Any) -> None:
        """`processor` is a transformers processor with a fast tokenizer; `ConfigError` if not."""
        processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
        if processor.chat_template is None:
            raise ConfigError("the checkpoint has no chat template (chat_template.json or .jinja)")
        self._processor = processor
        backend = processor.tokenizer.backend_tokenizer
        # Copies of our own: transformers changes settings of its object in every call.
        self._tokenizer = _copy(backend)
        self._plain_tokenizer = _copy(backend, added_tokens=[], post_processor=None)
        added = [token.content for token in backend.get_added_tokens_decoder().values()]
        alternatives = sorted(added, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, alternatives)) or r"(?!)")
        self._bytes = _bytes_table(self._tokenizer)
        self._longest = max(map(len, self._bytes))  # a character is a byte at least

    def encode(
        self, messages: Many[Message], media: Many[LoadedMedia], expand: Callable[[str], str]
    ) -> list[int]:
        """Render, expand the placeholders of pictures and clips, tokenise.

        Raises `InvalidValueError` where the template refuses the messages.
        """
        cut = _Cut(self._control)
        conversation = [
            {"role": message.role, "content": _content(message, media, cut)} for message in messages
        ]
        text = expand(self._render(conversation))
        ids: list[int] = []
        for piece, typed in cut.split(text):
            tokenizer = self._plain_tokenizer if typed else self._tokenizer
            ids += tokenizer.encode(piece, add_special_tokens=False).ids
        return ids

    def least_tokens(self, messages: Many[Message]) -> int:
        """Fewer tokens than this cannot hold the messages' text; counted without tokenising."""
        parts = (part for message in messages for part in message.parts)
        length = sum(len(part.text) for part in parts if isinstance(part, TextPart))
        return length // self._longest

    def count(self, text: str) -> int:
        """Tokens of a text without control tokens."""
        return len(self._plain_tokenizer.encode(text, add_special_tokens=False).ids)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of a token; b"" for control tokens and ids beyond the vocabulary."""
        return self._bytes[token_id] if 0 <= token_id < len(self._bytes) else b""

    def _render(self, conversation: list[dict[str, Any]]) -> str:
        try:
            text = self._processor.apply_chat_template(
                conversation, tokenize=False, add_generation_prompt=True
            )
        except TemplateError:
            message = "the model's chat template refuses these messages: check the order of roles"
            raise InvalidValueError(message, param="messages") from None
        return str(text)


class _Cut:
    """Control tokens that a caller typed, replaced by sentinels that nobody can guess."""

    def __init__(self, control: re.Pattern[str]) -> None:
        self._control = control
        self._nonce = secrets.token_hex(16)
        self._stretches: list[str] = []

    def take(self, text: str) -> str:
        return self._control.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        self._stretches.append(match.group())
        return f"[{self._nonce}:{len(self._stretches) - 1}]"

    def split(self, text: str) -> list[tuple[str, bool]]:
        """Pieces of the rendered text in order, each with whether it is a typed control token."""
        pieces = re.split(rf"\[{self._nonce}:(\d+)\]", text)
        typed = (i % 2 == 1 for i in range(len(pieces)))
        return [
            (self._stretches[int(p)] if t else p, t) for p, t in zip(pieces, typed, strict=True)
        ]


def _content(message: Message, media: Many[LoadedMedia], cut: _Cut) -> str | list[dict[str, str]]:
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
    content = [_template_part(run, media, cut) for run in runs]
    texts = [part["text"] for part in content if "text" in part]
    return content if len(texts) < len(content) else "".join(texts)


def _template_part(run: str | MediaPart, media: Many[LoadedMedia], cut: _Cut) -> dict[str, str]:
    if isinstance(run, str):
        return {"type": "text", "text": cut.take(run)}
    return {"type": media[run.index].kind}


def _copy(backend: Tokenizer, **changes: Any) -> Tokenizer:
    copy = Tokenizer.from_str(json.dumps(json.loads(backend.to_str()) | changes))
    copy.no_truncation()
    copy.no_padding()
    return copy


def _bytes_table(tokenizer: Tokenizer) -> list[bytes]:
    """What every id stands for: byte-level BPE spells each byte as one printable character."""
    byte_of = {character: byte for byte, character in _byte_characters().items()}
    table = [b""] * (1 + max(tokenizer.get_vocab(with_added_tokens=True).values()))
    try:
        for piece, index in tokenizer.get_vocab(with_added_tokens=False).items():
            table[index] = bytes(byte_of[character] for character in piece)
    except KeyError:
        raise ConfigError("the checkpoint's tokenizer is not a byte-level BPE") from None
    for index, token in tokenizer.get_added_tokens_decoder().items():
        table[index] = b"" if token.special else token.content.encode()
    return table


def _byte_characters() -> dict[int, str]:
    """GPT-2's map: printable Latin-1 stands for itself, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    shifted = {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return {byte: chr(byte) for byte in printable} | shifted
