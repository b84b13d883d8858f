"""The reference checkpoint: half a billion random weights in Qwen3-VL's shape, made once.

Every program that measures a model runs it by default (`--checkpoint` names another); by itself,
`python -m benchmarks.reference FOLDER` makes it. Words, template and picture settings are those of
the bundled demo, with the picture limits of the real releases. What its weights are does not change
its speed.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from benchmarks.program import finish, parser, tell
from litevl.config import Config
from litevl.models.hub import DEMO, Source
from litevl.models.loader import load_model
from litevl.models.qwen_vl import QwenVL

TEXT = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
VISION = {
    "hidden_size": 768,
    "depth": 12,
    "num_heads": 12,
    "intermediate_size": 3072,
    "out_hidden_size": 896,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [2, 5, 8],
}
PICTURE_PIXELS = {"shortest_edge": 65536, "longest_edge": 16777216}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
OTHER_FILES = ("generation_config.json", "video_preprocessor_config.json")


def folder_or_reference(folder: Path | None) -> Path:
    """The checkpoint that was asked for, or the reference in the user's cache."""
    if folder is not None:
        return folder
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return make(cache / "litevl" / "reference-0.5b")


def make(folder: Path) -> Path:
    """Write the checkpoint unless it is there."""
    if folder.is_dir():
        return folder
    tell(f"making the reference checkpoint in {folder} (2 GB, once)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is complete, so that a run that was cut short leaves nothing that looks whole.
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent))
    _write(unfinished)
    unfinished.rename(folder)
    return folder


def load(folder: Path, threads: int) -> QwenVL:
    """The model in float32 on the CPU, through litevl's own loader."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    source = Source(name=str(folder), folder=folder)
    return load_model(source, Config(device="cpu", dtype="float32"))


def load_plain(folder: Path) -> Any:
    """The same model as transformers loads it, for `generate`."""
    build: Any = AutoModelForImageTextToText  # its factories carry no types
    return build.from_pretrained(folder, dtype=torch.float32).eval()


def _write(folder: Path) -> None:
    for name in (*TOKENIZER_FILES, *OTHER_FILES):
        shutil.copy(DEMO / name, folder / name)
    picture = json.loads((DEMO / "preprocessor_config.json").read_text("utf-8"))
    picture["size"] = PICTURE_PIXELS
    (folder / "preprocessor_config.json").write_text(json.dumps(picture), encoding="utf-8")
    torch.manual_seed(0)
    build: Any = AutoModelForImageTextToText
    build.from_config(_config(), dtype=torch.float32).save_pretrained(folder)


def _config() -> Any:
    """The shape above, with the demo's token ids and rotary settings."""
    demo = AutoConfig.from_pretrained(DEMO)
    rope = demo.text_config.rope_parameters
    ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return AutoConfig.for_model(
        "qwen3_vl",
        text_config=TEXT | {"rope_parameters": rope},
        vision_config=VISION,
        tie_word_embeddings=True,
        **{name: getattr(demo, name) for name in ids},
    )


def main(argv: list[str] | None = None) -> None:
    made = parser(__doc__)
    made.add_argument("folder", type=Path)
    args = made.parse_args(argv)
    folder = make(args.folder)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    finish("reference", {"weight_bytes": weights}, args.threads)


if __name__ == "__main__":
    main()
