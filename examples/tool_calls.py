"""A tool that the model must call, and its answer once it has the result.

usage: API_KEY=... python examples/tool_calls.py
"""

import json
import os
from typing import Any

from openai import OpenAI

client: Any = OpenAI(
    base_url=os.environ.get("BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("API_KEY", "none"),
)
model = client.models.list().data[0].id
weather = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Hangzhou", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
messages: list[Any] = [{"role": "user", "content": "Do I need a coat in Oslo?"}]
options = {"tools": [{"type": "function", "function": weather}], "max_tokens": 80}

asked = client.chat.completions.create(
    model=model, messages=messages, tool_choice="required", parallel_tool_calls=False, **options
)
[call] = asked.choices[0].message.tool_calls
print(f"{call.function.name}({json.loads(call.function.arguments)})")

messages += [asked.choices[0].message]
messages += [{"role": "tool", "tool_call_id": call.id, "content": '{"celsius": -3}'}]
answer = client.chat.completions.create(model=model, messages=messages, **options)
print(answer.choices[0].message.content)
