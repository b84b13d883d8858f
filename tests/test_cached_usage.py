"""What a client sees of the caches: the same answer sooner, and `usage` that says so."""

import base64
from typing import Any

import pytest
from openai import OpenAI

from live import KEY, OTHER_KEY, ROOT, LiveServer

PICTURE = base64.b64encode((ROOT / "litevl/demo/sample.jpg").read_bytes()).decode()


def ask(server: LiveServer, key: str, question: str, **options: Any) -> Any:
    client = OpenAI(base_url=server.base_url, api_key=key)
    picture: Any = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PICTURE}"}}
    messages: Any = [
        {"role": "user", "content": [picture, {"type": "text", "text": question}]},
    ]
    return client.chat.completions.create(
        model="litevl-demo", messages=messages, temperature=0, **options
    )


def cached(usage: Any) -> int:
    count: int = usage.prompt_tokens_details.cached_tokens
    return count


@pytest.mark.parametrize("stream", [False, True])
def test_usage_tells_how_much_of_a_prompt_was_cached_for_this_key_alone(
    server: LiveServer, stream: bool
) -> None:
    question = f"How many sheep are there, {'please' if stream else 'then'}?"
    first = ask(server, KEY, question)
    if stream:
        *_, last = ask(server, KEY, question, stream=True, stream_options={"include_usage": True})
        usage = last.usage
    else:
        again = ask(server, KEY, question)
        assert again.choices[0].message.content == first.choices[0].message.content
        usage = again.usage
    assert usage.prompt_tokens - 16 <= cached(usage) < usage.prompt_tokens


def test_another_key_shares_nothing(server: LiveServer) -> None:
    question = "What colour are the sheep over there?"
    ask(server, KEY, question)
    assert cached(ask(server, OTHER_KEY, question).usage) == 0
