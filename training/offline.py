"""Judges a checkpoint folder with transformers' ``generate`` in float32, without a server.

``python -m training.offline FOLDER --n 40`` asks the cases of ``evaluate.py``
and prints the same lines.
"""

import json
import logging
from io import BytesIO
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from training.evaluate import Answer, Case, arguments, judge, messages
from training.pixels import frame_indices


def decoded(media: bytes) -> tuple[list[np.ndarray[Any, np.dtype[Any]]], float]:
    """All frames of a clip and its frame rate."""
    with av.open(BytesIO(media), "r") as box:
        stream = box.streams.video[0]
        rate = float(stream.average_rate or 24)
        frames = [frame.to_ndarray(format="rgb24") for frame in box.decode(stream)]
        return frames, rate


def checkpoint(folder: str) -> Answer:
    """A function that answers with the model in ``folder``."""
    processor = AutoProcessor.from_pretrained(folder)
    model: Any = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)

    def answer(case: Case) -> str:
        options: dict[str, object] = {}
        files = [media for media, _ in case.media]
        kind = case.media[0][1].split("/")[0] if case.media else ""
        if kind == "video":
            frames, rate = decoded(files[0])
            chosen = frame_indices(len(frames), rate)
            about = {"fps": rate, "total_num_frames": len(frames), "frames_indices": chosen}
            options = {"videos": [np.stack([frames[i] for i in chosen])]}
            options |= {"video_metadata": [about], "do_sample_frames": False}
        elif files:
            options = {"images": [Image.open(BytesIO(file)).convert("RGB") for file in files]}
        chat = messages(case, lambda _: {"type": kind})
        text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[text], return_tensors="pt", **options)
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1] :]
        spoken: str = processor.tokenizer.decode(ids, skip_special_tokens=True)
        return spoken.strip()

    return answer


def main() -> None:
    parser = arguments()
    parser.add_argument("folder")
    parser.add_argument("--cores", type=int, default=1)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.cores)
    answer = checkpoint(options.folder)
    print(json.dumps(judge(answer, options, 1)))


if __name__ == "__main__":
    main()
