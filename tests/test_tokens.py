"""Counts and ids without an answer: the dry run, `/tokenize` and `/detokenize`."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fakes import (
    EOS,
    PATIENCE,
    TOKENS_PER_ITEM,
    FakeMedia,
    Rig,
    assert_error,
    body,
    request_bytes,
    running,
)

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
MESSAGES = [
    {"role": "system", "content": "abc"},
    {"role": "user", "content": [PICTURE, {"type": "text", "text": "de"}]},
]


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


def post(rig: Rig, path: str, **fields: Any) -> Any:
    return rig.client.post(path, json=fields)


def test_a_dry_run_counts_what_the_real_request_uses(rig: Rig) -> None:
    added = len(rig.engine.added)
    told = post(rig, "/v1/chat/completions/input_tokens", messages=MESSAGES, stream=True).json()
    assert len(rig.engine.added) == added
    answer = rig.chat(messages=MESSAGES, media_receipt=True).json()
    assert told["input_tokens"] == answer["usage"]["prompt_tokens"] == 5 + TOKENS_PER_ITEM
    assert told["messages"] == [3, 2 + TOKENS_PER_ITEM]
    assert told["media"] == answer["litevl"]["media"]


def test_a_dry_run_fits_media_like_the_real_request(rig: Rig) -> None:
    fields = {"messages": MESSAGES, "media_fit": "auto"}
    told = post(rig, "/v1/chat/completions/input_tokens", **fields).json()
    assert told["media"] == rig.chat(**fields, media_receipt=True).json()["litevl"]["media"]
    assert told["media"][0]["seen_size"] == [4, 4]


def test_text_becomes_ids_and_ids_text(rig: Rig) -> None:
    told = post(rig, "/tokenize", prompt="hi é").json()
    assert told == {
        "count": 5,
        "max_model_len": 512,
        "tokens": list("hi é".encode()),
        "token_strs": None,
    }
    names = post(rig, "/v1/tokenize", prompt="hi", return_token_strs=True).json()["token_strs"]
    assert names == ["h", "i"]
    assert post(rig, "/detokenize", tokens=[*told["tokens"], EOS]).json() == {"prompt": "hi é"}


def test_an_id_that_no_token_has_is_refused_and_not_dropped(rig: Rig) -> None:
    """It was left out of the text without a word."""
    assert_error(post(rig, "/detokenize", tokens=[104, 258]), 400, "invalid_value", "tokens")
    assert post(rig, "/detokenize", tokens=[104, 257]).status_code == 200
    assert post(rig, "/detokenize", tokens=[]).json() == {"prompt": ""}


def test_an_empty_text_has_no_tokens(rig: Rig) -> None:
    """It was a 400: a client that counts tokens of what it has would stumble."""
    assert post(rig, "/tokenize", prompt="").json()["tokens"] == []


def test_a_conversation_becomes_the_ids_of_its_prompt(rig: Rig) -> None:
    told = post(rig, "/tokenize", messages=MESSAGES).json()
    assert told["count"] == 5 + TOKENS_PER_ITEM == len(told["tokens"])


def test_what_is_wrong_is_named(rig: Rig) -> None:
    assert_error(post(rig, "/tokenize"), 400, "invalid_value", "prompt")
    assert_error(post(rig, "/detokenize", tokens=["a"]), 400, "invalid_value", "tokens[0]")
    answer = post(rig, "/tokenize", prompt="a", model="other")
    assert_error(answer, 404, "model_not_found", "model")
    wrong = body(temperature=5)
    answer = post(rig, "/chat/completions/input_tokens", **wrong)
    assert_error(answer, 400, "invalid_value", "temperature")


def test_a_text_beside_messages_is_refused_and_not_dropped(rig: Rig) -> None:
    assert_error(
        post(rig, "/tokenize", prompt="hi", messages=MESSAGES), 400, "invalid_value", "prompt"
    )
    assert post(rig, "/tokenize", prompt=None, messages=MESSAGES).status_code == 200


@dataclass
class HangingMedia(FakeMedia):
    """Whose pictures never come."""

    asked: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    async def measure(self, *args: Any) -> Any:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()


@pytest.mark.parametrize("path", ["/v1/chat/completions/input_tokens", "/v1/tokenize"])
def test_a_client_that_hangs_up_on_a_dry_run_ends_its_downloads(path: str) -> None:
    with running(is_loaded=False) as rig:
        media = HangingMedia()
        replace(rig, media=media).attach()
        request = request_bytes(messages=MESSAGES)
        with rig.connect() as connection:
            connection.sendall(request.replace(b"/v1/chat/completions", path.encode(), 1))
            assert media.asked.wait(PATIENCE)
        assert media.left.wait(PATIENCE)
