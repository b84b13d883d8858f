"""Compares our packing with the processor of transformers: ids, pixels, grids and positions; and
the eyes of ``eyes.py`` and the language of ``model.py`` with the model's own.

``python -m training.check_packing FOLDER`` needs an exported checkpoint; ends with an error where
anything differs.
"""

import sys

import numpy as np
import torch
from transformers import AutoProcessor, PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from training.data import Ask, Packer, collate
from training.eyes import Sight, normal
from training.model import Speaker
from training.pixels import frame_indices, see_clip, see_picture
from training.scenes import draw_frame, draw_scene, make_clip, make_scene

ASKS = [
    Ask("count", "en", "How many sheep?", "There are 3 sheep."),
    Ask("count", "zh", "几只羊？", ""),
]


def messages(kind: str, first: bool) -> list[dict[str, object]]:
    media, text = {"type": kind}, {"type": "text", "text": ASKS[0].question}
    turns: list[dict[str, object]] = [
        {"role": "user", "content": [media, text] if first else [text, media]},
        {"role": "assistant", "content": ASKS[0].answer},
        {"role": "user", "content": ASKS[1].question},
    ]
    return turns


@torch.no_grad()
def compare(folder: str, seed: int) -> None:
    rng = np.random.default_rng([5000, seed])
    processor = AutoProcessor.from_pretrained(folder)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    packer = Packer(PreTrainedTokenizerFast.from_pretrained(folder))
    first, is_clip = bool(seed % 2), seed % 4 > 1
    width, height = (int(n) for n in rng.integers(60, 420, 2))
    options: dict[str, object] = {"return_tensors": "pt"}
    if is_clip:
        clip = make_clip(rng, width, height, 1)
        indices = frame_indices(clip.frames, clip.fps)
        seen = see_clip(clip)
        frames = np.stack([np.array(draw_frame(clip, i, fine=2)) for i in indices])
        about = {"fps": clip.fps, "total_num_frames": clip.frames, "frames_indices": indices}
        options |= {"videos": [frames], "video_metadata": [about], "do_sample_frames": False}
    else:
        scene = make_scene(rng, [2, 1], width, height)
        picture = draw_scene(scene)
        seen = see_picture(picture)
        options |= {"images": [picture]}
    chat = messages("video" if is_clip else "image", first)
    text = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    real = processor(text=[text], **options)
    for k, ask in enumerate(ASKS):
        packer.turn(ask, [seen] if k == 0 else [], first, False)
        packer.text("\n")
    length = real["input_ids"].shape[1]
    sight = Sight(model.model.visual)
    packed = collate([packer.sample], sight)
    assert real["input_ids"][0].tolist() == packer.sample.ids[:length], "ids differ"
    name = "videos" if is_clip else "images"
    pixels = real["pixel_values_videos" if is_clip else "pixel_values"]
    ours = normal(torch.from_numpy(seen.patches))
    assert torch.allclose(pixels, ours, atol=1e-6), (name, "pixels differ")
    grids = {f"{name[:-1]}_grid_thw": real[f"{name[:-1]}_grid_thw"]}
    types = real["mm_token_type_ids"]
    places, _ = model.model.get_rope_index(real["input_ids"], types, **grids)
    assert torch.equal(places[:, 0], packed.positions[:, 0, :length]), "positions differ"
    slow = model.model.visual(ours, grid_thw=torch.tensor([seen.grid]))
    assert torch.allclose(packed.tokens, slow.pooler_output, atol=1e-4), "tokens differ"
    assert torch.allclose(packed.deep, slow.deepstack_features[0], atol=1e-4), "features differ"
    files = {"pixel_values_videos" if is_clip else "pixel_values": pixels}
    heard = model.model(real["input_ids"], mm_token_type_ids=types, **files, **grids)
    listened = Speaker(model).listen(packed)[:, :length]
    assert torch.allclose(listened, heard.last_hidden_state, atol=1e-3), "hidden states differ"
    print(f"{name} {width}x{height} grid {seen.grid}: equal")


if __name__ == "__main__":
    for number in range(12):
        compare(sys.argv[1], number)
