"""Writes a finished checkpoint folder: fp16 weights, configuration, tokenizer, processor files.

``python -m training.export RUN FOLDER`` takes the eyes of ``RUN/eyes.pt`` (``look.py``) and the
averaged words of ``RUN/last.pt`` (``train.py``). The folder's own README and samples stay.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3VLForConditionalGeneration,
)

from training.model import eyes_of, new_model, token_id

PICTURE_PIXELS = {"shortest_edge": 192 * 192, "longest_edge": 192 * 224}
CLIP_PIXELS = {"shortest_edge": 4 * 128 * 128, "longest_edge": 8 * 128 * 160}
PATCHES = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
PICTURE_FILE = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen3VLProcessor",
    "size": PICTURE_PIXELS,
    **PATCHES,
}
CLIP_FILE = {
    "video_processor_type": "Qwen3VLVideoProcessor",
    "processor_class": "Qwen3VLProcessor",
    "size": CLIP_PIXELS,
    "fps": 2,
    "min_frames": 4,
    "max_frames": 32,
    "cap_pixels_per_frame": False,
    **PATCHES,
}


def write_json(path: Path, data: dict[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def write_processor(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(
        folder / "tokenizer_config.json", {**settings, "processor_class": "Qwen3VLProcessor"}
    )
    write_json(folder / "preprocessor_config.json", PICTURE_FILE)
    write_json(folder / "video_preprocessor_config.json", CLIP_FILE)


def write_checkpoint(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Makes the files beside ``folder`` and moves each into place, the weights first."""
    stop, pad = (token_id(tokenizer, name) for name in ("<|im_end|>", "<|endoftext|>"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        fresh = Path(name)
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=[stop, pad],
            pad_token_id=pad,
        )
        model.half().save_pretrained(fresh)
        write_processor(fresh, tokenizer)
        for file in sorted(fresh.iterdir(), key=lambda item: item.suffix != ".safetensors"):
            file.chmod(0o644)
            shutil.move(file, folder / file.name)


def main(run: Path, folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "base")
    model = new_model(tokenizer)
    eyes, words = (
        torch.load(run / file, map_location="cpu", weights_only=False)["average"]
        for file in ("eyes.pt", "last.pt")
    )
    model.model.visual.load_state_dict(eyes_of(eyes))
    model.model.language_model.load_state_dict(words)
    write_checkpoint(model, tokenizer, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
