"""A clip, streamed, with frames chosen by Qwen's own keys.

usage: API_KEY=... python examples/clip.py [FILE] [QUESTION]
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

from openai import OpenAI

file = sys.argv[1] if len(sys.argv) > 1 else "litevl/demo/sample.mp4"
question = sys.argv[2] if len(sys.argv) > 2 else "What moves in the clip?"

client = OpenAI(
    base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("API_KEY", "none"),
)
data = base64.b64encode(Path(file).read_bytes()).decode()
clip: Any = {
    "type": "video_url",
    "video_url": {"url": f"data:video/mp4;base64,{data}"},
    "fps": 4,  # frames of a second; also nframes, max_pixels, video_start, video_end
}
stream = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": [clip, {"type": "text", "text": question}]}],
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content, end="", flush=True)
print()
