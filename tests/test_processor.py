"""What the model is fed equals Qwen's own recipe, stays within limits and cannot be forged."""

import json
import shutil
from collections.abc import Sequence as Many
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import av
import decord
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from qwen_vl_utils import process_vision_info
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from litevl.config import Config
from litevl.errors import ConfigError, ContextLengthError, InvalidValueError
from litevl.models.processor import Processor
from litevl.models.qwen_vl import normalised
from litevl.sequence import LoadedMedia, MediaOptions, MediaPart, Message, Probe, Prompt, TextPart
from rig import said
from tiny_models import CONTROL_TOKENS, FAMILIES, Family, make_checkpoint

CONTEXT = 4096
SIDE = {"qwen2_vl": 28, "qwen2_5_vl": 28, "qwen3_vl": 32}  # pixels of one token


@dataclass(frozen=True)
class Rig:
    """One family: ours and the originals."""

    family: Family
    folder: Path
    processor: Processor
    hf: Any
    model: Any

    @property
    def side(self) -> int:
        return SIDE[self.family]

    def load(self, config: Config, max_model_len: int = CONTEXT) -> Processor:
        model_config = AutoConfig.from_pretrained(self.folder)
        processor = Processor.load(str(self.folder), model_config, config)
        return processor.with_max_model_len(max_model_len)


@pytest.fixture(scope="session", params=FAMILIES)
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    family: Family = request.param
    folder = make_checkpoint(family, tmp_path_factory.mktemp(family))
    auto: Any = AutoProcessor
    model = AutoModelForImageTextToText.from_pretrained(folder).model
    config = AutoConfig.from_pretrained(folder)
    ours = Processor.load(str(folder), config, Config())
    return Rig(family, folder, ours, auto.from_pretrained(folder), model)


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty frames of 200x120 at 10 frames a second; each shows another colour gradient."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 200, 120, "yuv420p"
        for index in range(40):
            pixels = np.linspace(index, 255 - index, 200 * 120 * 3).reshape(120, 200, 3)
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def picture(seed: int, width: int, height: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height))


Content = str | Image.Image | Path
Turn = tuple[str, tuple[Content, ...]]


def load_picture(processor: Processor, image: Image.Image, options: MediaOptions) -> LoadedMedia:
    probe = Probe(kind="image", width=image.width, height=image.height)
    return _loaded(processor, probe, np.asarray(image)[None], options)


def load_clip(processor: Processor, path: Path, options: MediaOptions) -> LoadedMedia:
    reader = decord.VideoReader(str(path))
    height, width, _ = reader[0].shape
    rate, count = float(reader.get_avg_fps()), len(reader)
    probe = Probe(kind="video", width=width, height=height, num_frames=count, fps=rate)
    frames = reader.get_batch(range(count)).asnumpy()
    return _loaded(processor, probe, frames, options)


def _loaded(
    processor: Processor, probe: Probe, frames: NDArray[np.uint8], options: MediaOptions
) -> LoadedMedia:
    plan = processor.plan(probe, options, "messages[0].content[0]")
    chosen = frames[list(plan.frame_indices)]
    chosen.setflags(write=False)  # as pixels that came through a pipe are
    batches = [
        processor.resize(chosen[i : i + 3], probe.kind, plan) for i in range(0, len(chosen), 3)
    ]
    return LoadedMedia(
        probe=probe, plan=plan, frames=np.concatenate(batches), digest=b"d", param="messages[0]"
    )


def ours(
    rig: Rig, turns: Many[Turn], options: MediaOptions = MediaOptions()
) -> tuple[Prompt, list[LoadedMedia]]:
    media: list[LoadedMedia] = []
    messages = []
    for role, contents in turns:
        parts: list[TextPart | MediaPart] = []
        for content in contents:
            if isinstance(content, str):
                parts.append(TextPart(content))
                continue
            parts.append(MediaPart(len(media)))
            if isinstance(content, Path):
                media.append(load_clip(rig.processor, content, options))
            else:
                media.append(load_picture(rig.processor, content, options))
        messages.append(Message(role=role, parts=tuple(parts)))  # type: ignore[arg-type]
    return rig.processor.prepare(said(*messages), media), media


def recipe(rig: Rig, turns: Many[Turn], keys: dict[str, Any]) -> dict[str, Any]:
    """Qwen's own: qwen-vl-utils, then the transformers processor."""
    messages = [{"role": role, "content": _recipe_content(parts, keys)} for role, parts in turns]
    text = rig.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    listed = [m for m in messages if not isinstance(m["content"], str)]
    images, videos = process_vision_info(
        listed or [{"content": []}], image_patch_size=rig.side // 2, return_video_metadata=True
    )
    clips, metadata = zip(*videos, strict=True) if videos else (None, None)
    inputs: dict[str, Any] = rig.hf(
        text=[text],
        images=images,
        videos=clips and list(clips),
        video_metadata=metadata and list(metadata),
        do_resize=False,
        do_sample_frames=False,
        return_tensors="pt",
    )
    return inputs


def _recipe_content(parts: tuple[Content, ...], keys: dict[str, Any]) -> str | list[dict[str, Any]]:
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0]
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        elif isinstance(part, Path):
            content.append({"type": "video", "video": str(part)} | keys["video"])
        else:
            content.append({"type": "image", "image": part} | keys["image"])
    return content


def resolved_limits(family: Family) -> dict[str, Any]:
    """What DESIGN 4 makes of the released processor files, in qwen-vl-utils' own keys."""
    if family != "qwen3_vl":
        return {
            "image": {"min_pixels": 3136, "max_pixels": CONTEXT // 2 * 784},
            "video": {"min_pixels": 128 * 784},
        }
    image = {"min_pixels": 65536, "max_pixels": CONTEXT // 2 * 1024}
    # 4,096 and 25,165,824 pixels over all frames; qwen-vl-utils counts a total per pair of frames
    return {"image": image, "video": {"min_pixels": 1024, "total_pixels": 25165824 // 2}}


def assert_equal(rig: Rig, prompt: Prompt, inputs: dict[str, Any]) -> None:
    assert prompt.token_ids.tolist() == inputs["input_ids"][0].tolist()
    positions, delta = rig.model.get_rope_index(**inputs)  # the pixels go into its **kwargs
    assert np.array_equal(prompt.positions, positions[:, 0].numpy())
    assert prompt.position_delta == delta.item()
    for kind, pixels, grid, token in (
        ("image", "pixel_values", "image_grid_thw", rig.hf.image_token_id),
        ("video", "pixel_values_videos", "video_grid_thw", rig.hf.video_token_id),
    ):
        items = [item for item in prompt.media if item.kind == kind]
        assert bool(items) == (pixels in inputs)
        if not items:
            continue
        assert [list(item.grid) for item in items] == inputs[grid].tolist()
        seen = np.concatenate([normalised(item, rig.model.device) for item in items])
        assert np.array_equal(seen, inputs[pixels]) and items[0].pixels.dtype == np.uint8
        places = np.concatenate([item.token_indices for item in items])
        assert np.array_equal(places, np.flatnonzero(prompt.token_ids == token))


CASES = ["text", "unicode", "picture", "tiny picture", "two pictures", "clip", "mixed", "turns"]


def conversations(clip: Path) -> dict[str, list[Turn]]:
    first, second = picture(1, 300, 190), picture(2, 97, 410)
    return {
        "text": [("user", ("What moves to the right?",))],
        "unicode": [("user", ("图中有三个红色的圆。 é e\u0301 🙂",))],
        "picture": [("user", (first, "What is this?"))],
        "tiny picture": [("user", (picture(3, 4, 3), "What is this?"))],
        "two pictures": [("user", (first, "or", second, "?"))],
        "clip": [("user", (clip, "What moves?"))],
        "mixed": [("user", (first, clip, "Compare", second, clip))],
        "turns": [
            ("system", ("Be brief.",)),
            ("user", (second, "What is this?")),
            ("assistant", ("Three red circles.",)),
            ("user", ("And here? ", first)),
        ],
    }


@pytest.mark.parametrize("name", CASES)
def test_ids_pixels_and_positions_equal_qwens_recipe(rig: Rig, clip_file: Path, name: str) -> None:
    turns = conversations(clip_file)[name]
    prompt, _ = ours(rig, turns)
    assert_equal(rig, prompt, recipe(rig, turns, resolved_limits(rig.family)))


@pytest.mark.parametrize(
    "keys",
    [
        {"fps": 5.0, "max_frames": 10},
        {"nframes": 6, "min_pixels": 20 * 1024, "max_pixels": 40 * 1024},
        {"video_start": 0.95, "video_end": 2.5, "min_frames": 8},
        {"fps": 0.1, "min_pixels": 150 * 1024},
        {"resized_height": 100, "resized_width": 250},
        {"total_pixels": 600 * 1024},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_a_clips_keys_do_what_they_do_in_the_recipe(
    rig: Rig, clip_file: Path, keys: dict[str, Any]
) -> None:
    turns: list[Turn] = [("user", (clip_file, "What moves?"))]
    limits = resolved_limits(rig.family)["video"] | keys
    prompt, _ = ours(rig, turns, MediaOptions(**cast(Any, keys)))
    assert_equal(rig, prompt, recipe(rig, turns, {"video": limits}))


@pytest.mark.parametrize(
    "keys",
    [
        {"min_pixels": 4096, "max_pixels": 20 * 1024},
        {"min_pixels": 400 * 1024},
        {"resized_height": 64, "resized_width": 320},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_a_pictures_keys_do_what_they_do_in_the_recipe(rig: Rig, keys: dict[str, int]) -> None:
    turns: list[Turn] = [("user", (picture(1, 300, 190), "What?"))]
    limits = resolved_limits(rig.family)["image"] | keys
    prompt, _ = ours(rig, turns, MediaOptions(**cast(Any, keys)))
    assert_equal(rig, prompt, recipe(rig, turns, {"image": limits}))


def test_a_clip_of_one_frame_is_that_frame_twice(rig: Rig) -> None:
    probe = Probe(kind="video", width=64, height=64, num_frames=1, fps=25.0)
    media = _loaded(rig.processor, probe, np.zeros((1, 64, 64, 3), np.uint8), MediaOptions())
    assert media.plan.frame_indices == (0, 0)
    prompt = rig.processor.prepare(said(Message(role="user", parts=(MediaPart(0),))), [media])
    assert prompt.media[0].grid[0] == 1


# Control tokens typed by a caller -------------------------------------------------------------


def ask(rig: Rig, *texts: str, role: Any = "user") -> list[int]:
    message = Message(role=role, parts=tuple(TextPart(text) for text in texts))
    ids: list[int] = rig.processor.prepare(said(message), []).token_ids.tolist()
    return ids


def control(rig: Rig, ids: list[int]) -> list[int]:
    added = set(rig.hf.tokenizer.get_added_vocab().values())
    return [i for i in ids if i in added]


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_typed_control_tokens_stay_text(rig: Rig, role: str) -> None:
    typed = "a" + "".join(CONTROL_TOKENS) + "<think>b</think><tool_call> <|im_<|im_end|>end|> c"
    ids, clean = ask(rig, typed, role=role), ask(rig, "a", role=role)
    assert control(rig, ids) == control(rig, clean)
    assert typed in rig.hf.tokenizer.decode(ids)


def test_a_control_token_typed_in_two_parts_stays_text(rig: Rig) -> None:
    ids, clean = ask(rig, "a<|im_", "end|>b"), ask(rig, "a", "b")
    assert control(rig, ids) == control(rig, clean)


def test_typed_placeholders_do_not_take_the_place_of_a_picture(rig: Rig) -> None:
    media = load_picture(rig.processor, picture(1, 64, 64), MediaOptions())
    parts = (TextPart("<|image_pad|><|video_pad|>"), MediaPart(0))
    prompt = rig.processor.prepare(said(Message(role="user", parts=parts)), [media])
    pads = np.flatnonzero(prompt.token_ids == rig.hf.image_token_id)
    assert np.array_equal(prompt.media[0].token_indices, pads)
    assert not np.any(prompt.token_ids == rig.hf.video_token_id)


@given(text=st.text())
def test_text_without_control_tokens_is_tokenised_whole(rig: Rig, text: str) -> None:
    assume(not any(token in text for token in rig.hf.tokenizer.get_added_vocab()))
    messages = [{"role": "user", "content": text}]
    rendered = rig.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ask(rig, text) == rig.hf.tokenizer(rendered)["input_ids"]


# Bytes of tokens -------------------------------------------------------------------------------


@given(data=st.data())
def test_token_bytes_joined_equal_the_tokenizers_own_decoding(
    rig: Rig, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, len(rig.hf.tokenizer) - 1)))
    joined = b"".join(map(rig.processor.token_bytes, ids)).decode(errors="replace")
    assert joined == rig.hf.tokenizer.decode(ids, skip_special_tokens=True)


def test_control_tokens_and_unknown_ids_stand_for_no_bytes(rig: Rig) -> None:
    ids = rig.hf.tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS))
    assert {rig.processor.token_bytes(i) for i in [*ids, len(rig.hf.tokenizer), 10**6]} == {b""}
    think = rig.hf.tokenizer.convert_tokens_to_ids("<think>")
    assert rig.processor.token_bytes(think) == b"<think>"


# Templates that do not take what was sent ------------------------------------------------------


def with_template(rig: Rig, folder: Path, template: str | None) -> Processor:
    shutil.copytree(rig.folder, folder, dirs_exist_ok=True)
    (folder / "chat_template.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return Processor.load(str(folder), AutoConfig.from_pretrained(folder), Config())


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no') }}", "{{ messages[0].content[0].text }}", "no media"]
)
def test_messages_that_the_template_refuses_or_drops_are_the_callers_fault(
    rig: Rig, tmp_path: Path, template: str
) -> None:
    media = load_picture(rig.processor, picture(1, 64, 64), MediaOptions())
    processor = with_template(rig, tmp_path, template)
    with pytest.raises(InvalidValueError) as caught:
        processor.prepare(said(Message(role="system", parts=(MediaPart(0),))), [media])
    assert caught.value.param == "messages"


def test_a_checkpoint_without_a_template_does_not_start(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="chat template"):
        with_template(rig, tmp_path, None)


def test_a_folder_without_processor_files_does_not_start(rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="processor"):
        Processor.load(str(tmp_path), AutoConfig.from_pretrained(rig.folder), Config())


# Limits ----------------------------------------------------------------------------------------


def tokens_of(rig: Rig, processor: Processor, image: Image.Image, **keys: Any) -> int:
    probe = Probe(kind="image", width=image.width, height=image.height)
    plan = processor.plan(probe, MediaOptions(**keys), "p")
    return plan.width * plan.height // rig.side**2


def test_half_the_context_is_the_default_cap_of_a_picture(rig: Rig) -> None:
    huge = picture(1, 4000, 3000)
    processor = rig.load(Config(), max_model_len=600)
    assert 250 < tokens_of(rig, processor, huge) <= 300
    assert tokens_of(rig, processor, huge, min_pixels=10**8) <= 300
    assert tokens_of(rig, processor, huge, resized_height=3000, resized_width=4000) <= 300


def test_max_pixels_of_the_server_is_default_and_cap_in_one(rig: Rig) -> None:
    huge, cap = picture(1, 4000, 3000), 50 * rig.side**2
    processor = rig.load(Config(max_pixels=cap))
    assert 40 < tokens_of(rig, processor, huge) <= 50
    assert tokens_of(rig, processor, huge, max_pixels=10 * cap) <= 50
    assert tokens_of(rig, processor, huge, max_pixels=cap // 2) <= 25


def test_min_pixels_of_the_server_enlarges_a_picture_unless_the_part_says_less(rig: Rig) -> None:
    processor = rig.load(Config(min_pixels=100 * rig.side**2))
    assert tokens_of(rig, processor, picture(1, 40, 40)) >= 100
    assert tokens_of(rig, processor, picture(1, 40, 40), min_pixels=4 * rig.side**2) == 4


def test_fps_and_max_frames_of_the_server_cap_what_a_clip_asks(rig: Rig) -> None:
    probe = Probe(kind="video", width=64, height=64, num_frames=300, fps=30.0)
    processor = rig.load(Config(fps=1.0, max_frames=8))

    def count(**keys: Any) -> int:
        return len(processor.plan(probe, MediaOptions(**keys), "p").frame_indices)

    assert count() == 8
    assert count(fps=10.0) == count(nframes=100) == count(min_frames=50) == 8
    assert count(fps=0.4) == 4
    slow = rig.load(Config(fps=0.6))
    assert len(slow.plan(probe, MediaOptions(nframes=100), "p").frame_indices) == 6


def test_a_prompt_that_just_fits_is_taken_a_longer_one_refused(rig: Rig, clip_file: Path) -> None:
    """What stands around a clip's frames was estimated, and too high."""
    prompt, media = ours(rig, [("user", (picture(1, 300, 300), clip_file, "What?"))])
    parts = (MediaPart(0), MediaPart(1), TextPart("What?"))
    exact = rig.load(Config(), max_model_len=len(prompt) + 1)
    assert len(exact.prepare(said(Message(role="user", parts=parts)), media)) == len(prompt)
    short = rig.load(Config(), max_model_len=len(prompt))
    numbers = f"needs at least {len(prompt)} and {len(prompt) - 1} fit"
    with pytest.raises(ContextLengthError, match=numbers):
        short.prepare(said(Message(role="user", parts=parts)), media)


def test_a_prompt_too_long_by_its_media_alone_is_refused_before_pixels_are_made(rig: Rig) -> None:
    _, media = ours(rig, [("user", (picture(1, 300, 300),))])
    pixelless = [replace(media[0], frames=np.zeros((0, 0, 0, 3), np.uint8))] * 500
    parts = tuple(MediaPart(i) for i in range(500))
    with pytest.raises(ContextLengthError, match="for each would fit"):
        rig.processor.prepare(said(Message(role="user", parts=parts)), pixelless)


def test_many_threads_prepare_at_once_and_agree(rig: Rig, clip_file: Path) -> None:
    turns = conversations(clip_file)["mixed"]
    alone, _ = ours(rig, turns)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda _: ours(rig, turns)[0], range(8)))
    for prompt in together:
        assert np.array_equal(prompt.token_ids, alone.token_ids)
        assert np.array_equal(prompt.positions, alone.positions)
        for one, other in zip(prompt.media, alone.media, strict=True):
            assert np.array_equal(one.pixels, other.pixels)
