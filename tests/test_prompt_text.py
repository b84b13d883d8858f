"""Text that cannot fit is refused by its length, before anything slow looks at it."""

from pathlib import Path

import pytest

from litevl.errors import ContextLengthError
from litevl.sequence import Message, TextPart
from rig import Rig, said
from tiny_models import make_checkpoint


def test_a_text_far_too_long_is_refused_before_it_is_tokenised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokenise(*arguments: object) -> list[int]:
        raise AssertionError("tokenised")

    processor = Rig(make_checkpoint("qwen3_vl", tmp_path)).processor
    monkeypatch.setattr(processor._text, "encode", tokenise)
    parts = (TextPart("a" * 10**6),)
    with pytest.raises(ContextLengthError, match="maximum context length"):
        processor.prepare(said(Message(role="user", parts=parts)), [])
