"""The engine without HTTP: prompts in, tokens out, all in one batch.

usage: python examples/engine.py
"""

import asyncio
import base64
from pathlib import Path

from litevl import sequence as seq
from litevl.cli import load_backend
from litevl.config import Config

backend, _ = load_backend(Config(model="demo", max_num_seqs=8, max_model_len=1024))
data = base64.b64encode(Path("litevl/demo/sample.jpg").read_bytes()).decode()
ref = seq.MediaRef(declared="image", url=f"data:image/jpeg;base64,{data}", param="sample.jpg")


async def look() -> list[seq.LoadedMedia]:
    try:
        loaded: list[seq.LoadedMedia] = await backend.media.load([ref])
        return loaded
    finally:
        await backend.media.close()


media, answers = asyncio.run(look()), {}
for question in ("How many sheep are there in the picture?", "What colour is the grass?"):
    message = seq.Message(role="user", parts=(seq.MediaPart(0), seq.TextPart(question)))
    prompt = backend.preprocessor.prepare(seq.Conversation(messages=(message,)), media)
    params = seq.SamplingParams(
        max_tokens=30, temperature=0.0, stop_token_ids=backend.card.eos_token_ids
    )
    backend.engine.add(seq.Sequence(request_id=question, prompt=prompt, params=params))
    answers[question] = ""
while backend.engine.num_unfinished:
    for output in backend.engine.step():
        answers[output.request_id] += backend.preprocessor.token_bytes(output.token_id).decode()
print(answers)
