"""A picture with the `openai` package, and the receipt: what the model saw of it.

usage: API_KEY=... python examples/picture.py [FILE] [QUESTION]
"""

import base64
import os
import sys
from pathlib import Path

from openai import OpenAI

file = sys.argv[1] if len(sys.argv) > 1 else "litevl/demo/sample.jpg"
question = sys.argv[2] if len(sys.argv) > 2 else "How many sheep are there in the picture?"

client = OpenAI(
    base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("API_KEY", "none"),
)
picture = base64.b64encode(Path(file).read_bytes()).decode()
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/any;base64,{picture}"}},
                {"type": "text", "text": question},
            ],
        }
    ],
    extra_body={"media_receipt": True},
)
print(answer.choices[0].message.content)

extra = answer.model_extra or {}
[seen] = extra["litevl"]["media"]
print(f"seen as {seen['seen_size']} of {seen['original_size']} pixels, {seen['tokens']} tokens")
