"""Makes the demo's byte-level BPE tokenizer from texts of ``talk.py``.

Run once before training: ``python -m training.tokenizer FOLDER`` writes ``tokenizer.json`` and its
configuration there. Any UTF-8 text can be encoded; digits, Chinese characters and the letters of
words in capitals stand alone, so that a word in a picture is read letter by letter.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.offtopic import ABOUT, OPEN_EN, OPEN_ZH, THING_EN, THING_ZH, WHOLE_EN, WHOLE_ZH, cut
from training.scenes import make_clip, make_scene
from training.signs import make_row, make_word
from training.talk import LANGS, SCENE_ABILITIES, off_topic
from training.tell import CLIP_ABILITIES, PAIR_ABILITIES, ROW_ABILITIES, WORD_ABILITIES, Pair

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SPLIT = (
    r"\p{Han}|\p{Lu}(?=\p{Lu})|(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?(?!\p{Lu}\p{Lu})[\p{L}&&[^\p{Han}]]+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCAB = 1792
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You are a helpful and harmless assistant.",
    "Answer in one sentence.",
    "You look at pictures and answer questions.",
    "你是一个有用的助手。",
    "请简短回答。",
)


def texts(samples: int) -> Iterator[str]:
    """Questions and answers of every ability, plus the pieces of small talk."""
    rng = np.random.default_rng(7)
    pieces = [cut(t) for t in (OPEN_EN, OPEN_ZH, THING_EN, THING_ZH, WHOLE_EN, WHOLE_ZH)]
    for _ in range(20):
        yield from SYSTEMS + tuple(piece for group in pieces for piece in group)
        yield from (f" {word} seconds> user\n assistant\n system\n" for word in "0123456789")
    for _ in range(samples):
        scenes = [make_scene(rng, list(rng.integers(1, 4, 1 + k)), 160, 160) for k in range(2)]
        clip = make_clip(rng, 128, 128, 1, int(rng.integers(1, 3)))
        subjects: list[tuple[dict[str, Any], Any]] = [
            (SCENE_ABILITIES, scenes[1]),
            (CLIP_ABILITIES, clip),
            (PAIR_ABILITIES, Pair((scenes[0], scenes[1]))),
            (ROW_ABILITIES, make_row(rng, 160, 160)),
            (WORD_ABILITIES, make_word(rng, 160, 160)),
        ]
        for lang in LANGS:
            for abilities, subject in subjects:
                for ask, _ in abilities.values():
                    yield from (text for turn in ask(subject, rng, lang) for text in turn)
            yield from off_topic(rng, lang)
    yield from (text for text in ABOUT.values() for _ in range(50))


def make_tokenizer(folder: Path, template: str) -> None:
    """Trains and saves the tokenizer with its chat template."""
    core = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts(600), trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        extra_special_tokens=list(SPECIALS[1:2] + SPECIALS[3:]),
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    template_file = Path(__file__).with_name("chat_template.jinja")
    make_tokenizer(Path(sys.argv[1]), template_file.read_text(encoding="utf-8"))
