"""The random checkpoints are worth comparing on: they say much, and it depends on the picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tiny_models import FAMILIES, Family, make_checkpoint


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((112, 112))


def answer(model: Any, processor: Any, picture: Image.Image | None) -> list[int]:
    content = [{"type": "image"}] * (picture is not None) + [{"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=picture and [picture], return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_varied_and_depend_on_the_picture(
    family: Family, tmp_path: Path
) -> None:
    folder = make_checkpoint(family, tmp_path)
    load: Any = AutoProcessor.from_pretrained
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = load(folder)
    answers = [answer(model, processor, picture) for picture in (None, noise(1), noise(2))]
    assert all(len(set(ids)) >= 8 for ids in answers)
    assert len({tuple(ids) for ids in answers}) == len(answers)
