"""Whatever ids a model strings together, what is streamed is text, and its pieces are the whole.

The demo's vocabulary, or Qwen's own: `VOCABULARY=FILE.tiktoken`. `SEQUENCES=5000` draws more.
"""

import base64
import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from fakes import CARD, Rig, running
from litevl.api.detokenizer import Detokenizer
from litevl.models.prompt_text import PromptText
from live import ROOT
from test_stream import chunks, text_of

SEQUENCES = int(os.environ.get("SEQUENCES", "150"))
LONGEST = 60


@cache
def vocabulary() -> list[bytes]:
    """What each id stands for."""
    if file := os.environ.get("VOCABULARY"):
        lines = Path(file).read_bytes().splitlines()
        return [base64.b64decode(line.split()[0]) for line in lines]
    auto: Any = AutoProcessor
    processor = auto.from_pretrained(ROOT / "litevl" / "demo")
    text = PromptText(processor)
    return [text.token_bytes(token) for token in range(len(processor.tokenizer))]


@cache
def torn() -> list[int]:
    """Tokens that are no whole characters."""
    texts = enumerate(vocabulary())
    return [token for token, text in texts if "\ufffd" in text.decode(errors="replace")]


def drawn(seed: int) -> list[int]:
    """Ids at random, half of them torn."""
    rng = random.Random(seed)
    return [
        rng.choice(torn()) if rng.random() < 0.5 else rng.randrange(len(vocabulary()))
        for _ in range(rng.randint(1, LONGEST))
    ]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Answers a request by the ids that are drawn for its seed."""
    tokens = vocabulary()
    end = len(tokens)
    with running(is_loaded=False) as rig:
        rig.attach(replace(CARD, vocab_size=end + 1, eos_token_ids=frozenset({end})))
        rig.engine.script = lambda sequence: [*drawn(sequence.params.seed or 0), end]
        monkeypatch.setattr(rig.preprocessor, "token_bytes", [*tokens, b""].__getitem__)
        yield rig


def test_every_token_alone_is_text() -> None:
    tokens = vocabulary()
    assert len(set(tokens)) > 1000
    for token, text in enumerate(tokens):
        alone = Detokenizer(tokens.__getitem__)
        sent = alone.push(token) + alone.flush()
        assert sent.encode() == text.decode(errors="replace").encode()  # no half of a pair either


def test_the_pieces_of_random_ids_are_the_whole_and_no_more(rig: Rig) -> None:
    tokens = vocabulary()

    def ask(seed: int) -> None:
        text = b"".join(tokens[token] for token in drawn(seed)).decode(errors="replace")
        streamed = chunks(rig.chat(seed=seed, stream=True))
        assert text_of(streamed) == text
        whole = rig.chat(seed=seed).json()
        assert whole["choices"][0]["message"]["content"] == text
        assert json.dumps(whole, ensure_ascii=False).encode()

    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(ask, range(SEQUENCES)))) == SEQUENCES
