"""Many questions about one clip: it is decoded, encoded and computed once, for the first.

usage: API_KEY=... python examples/questions.py [FILE]
"""

import base64
import os
import sys
import time
from pathlib import Path
from typing import Any

from openai import OpenAI

file = sys.argv[1] if len(sys.argv) > 1 else "litevl/demo/sample.mp4"
client = OpenAI(
    base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("API_KEY", "none"),
)
model = client.models.list().data[0].id
data = base64.b64encode(Path(file).read_bytes()).decode()
# The clip comes first and the question last: what prompts share is their beginning.
clip: Any = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}

for question in ("What moves?", "Which way does it move?", "What colour is it?"):
    began = time.monotonic()
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": [clip, {"type": "text", "text": question}]}],
        max_tokens=40,
    )
    usage: Any = answer.usage
    cached = usage.prompt_tokens_details.cached_tokens
    print(f"{question} {answer.choices[0].message.content}")
    seconds = time.monotonic() - began
    print(f"  {cached} of {usage.prompt_tokens} tokens from the cache, {seconds:.2f} s")
