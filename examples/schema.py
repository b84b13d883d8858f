"""An answer that is JSON by a schema, enforced while it is generated.

usage: API_KEY=... python examples/schema.py
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("API_KEY", "none"),
)
schema: dict[str, object] = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["sheep", "cat", "fish"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
    },
    "required": ["animal", "count"],
    "additionalProperties": False,
}
form: Any = {"type": "json_schema", "json_schema": {"name": "seen", "schema": schema}}
picture = base64.b64encode(Path("litevl/demo/sample.jpg").read_bytes()).decode()
content: Any = [
    {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}},
    {"type": "text", "text": "Which animals are there, and how many?"},
]
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": content}],
    response_format=form,
)
print(json.loads(answer.choices[0].message.content or ""))
