"""What a prompt costs before anything is decoded, and media made to fit the room that is left."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from litevl.config import Config
from litevl.errors import ContextLengthError, InvalidRequestError, InvalidValueError
from litevl.models.processor import Processor, _equal_share
from litevl.sequence import (
    Conversation,
    LoadedMedia,
    MediaOptions,
    MediaPart,
    Message,
    PlannedMedia,
    Probe,
    TextPart,
)
from tiny_models import Family, make_checkpoint

FEW: tuple[Family, ...] = ("qwen2_5_vl", "qwen3_vl")
PICTURE = Probe(kind="image", width=300, height=200)
LARGE = Probe(kind="image", width=1500, height=900)
CLIP = Probe(kind="video", width=320, height=240, num_frames=100, fps=10.0)


@pytest.fixture(scope="module", params=FEW)
def processor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Processor:
    folder = make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    loaded = Processor.load(str(folder), AutoConfig.from_pretrained(folder), Config())
    return loaded.with_max_model_len(1000)


def planned(processor: Processor, *probes: Probe) -> list[PlannedMedia]:
    options = MediaOptions()
    return [
        PlannedMedia(probe=probe, plan=processor.plan(probe, options, "p"), param="p")
        for probe in probes
    ]


def asked(count: int) -> Conversation:
    """A system message, then one about so many media."""
    parts = [MediaPart(i) for i in range(count)]
    system = Message(role="system", parts=(TextPart("Be brief."),))
    user = Message(role="user", parts=(*parts, TextPart("What is this?")))
    return Conversation(messages=(system, user))


def loaded(media: PlannedMedia) -> LoadedMedia:
    shape = (len(media.plan.frame_indices), media.plan.height, media.plan.width, 3)
    frames = np.zeros(shape, np.uint8)
    return LoadedMedia(
        probe=media.probe, plan=media.plan, param=media.param, frames=frames, digest=b""
    )


def test_a_prompt_is_measured_as_it_is_prepared(processor: Processor) -> None:
    media = planned(processor, PICTURE, CLIP)
    size = processor.measure(asked(2), media)
    prompt = processor.prepare(asked(2), [loaded(each) for each in media])
    assert size.token_ids.tolist() == prompt.token_ids.tolist()
    assert [(each.grid, each.num_tokens) for each in size.media] == [
        (each.grid, each.num_tokens) for each in prompt.media
    ]
    words = len(processor.text_prompt("What is this?").token_ids)
    assert size.message_tokens == (
        len(processor.text_prompt("Be brief.").token_ids),
        words + sum(each.num_tokens for each in prompt.media),
    )


@pytest.mark.parametrize("probes", [(LARGE,), (LARGE, LARGE, PICTURE), (CLIP,), (CLIP, LARGE)])
def test_what_does_not_fit_is_made_to_fit_and_what_is_small_is_left(
    processor: Processor, probes: tuple[Probe, ...]
) -> None:
    narrow = processor.with_max_model_len(420)
    media = planned(processor, *probes)  # planned for a wider context
    conversation = asked(len(probes))
    with pytest.raises(ContextLengthError):
        narrow.prepare(conversation, [loaded(each) for each in media])
    fitted = narrow.fit(conversation, media, reserve=100)
    prompt = narrow.prepare(conversation, [loaded(each) for each in fitted])
    assert len(prompt) <= 320
    assert prompt.num_media_tokens("image") + prompt.num_media_tokens("video") > 100
    for before, after in zip(media, fitted, strict=True):
        assert before.probe is not PICTURE or after is before


@pytest.mark.parametrize("probe", [LARGE, CLIP])
def test_the_error_names_keys_with_which_it_would_fit(processor: Processor, probe: Probe) -> None:
    narrow = processor.with_max_model_len(150)
    with pytest.raises(ContextLengthError) as caught:
        narrow.prepare(asked(1), [loaded(*planned(processor, probe))])
    rate = re.search(r" fps ([0-9.]+)", caught.value.message)
    pixels = re.search(r" max_pixels (\d+)\)", caught.value.message)
    assert pixels and bool(rate) == (probe.kind == "video")
    options = MediaOptions(max_pixels=int(pixels[1]), fps=float(rate[1]) if rate else None)
    plan = processor.plan(probe, replace(options, min_frames=2), "p")
    media = PlannedMedia(probe=probe, plan=plan, param="p")
    assert len(narrow.prepare(asked(1), [loaded(media)])) < 150


def test_what_fits_is_left_alone(processor: Processor) -> None:
    media = planned(processor, PICTURE, CLIP)
    assert processor.fit(asked(2), media, reserve=10) == media


def test_what_cannot_fit_at_all_is_told_as_before(processor: Processor) -> None:
    media = planned(processor, *[PICTURE] * 64)
    narrow = processor.with_max_model_len(100)
    fitted = narrow.fit(asked(64), media, reserve=10)
    with pytest.raises(ContextLengthError):
        narrow.prepare(asked(64), [loaded(each) for each in fitted])


def test_media_that_cannot_fit_are_refused_by_their_plans_alone(processor: Processor) -> None:
    processor.check(planned(processor, PICTURE, CLIP))
    with pytest.raises(ContextLengthError, match="for each would fit"):
        processor.check(planned(processor, *[PICTURE] * 64))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.integers(1, 5000))
def test_shares_fill_the_room_and_no_more(sizes: list[int], room: int) -> None:
    share = _equal_share(sizes, room)
    used = sum(min(size, share) for size in sizes)
    assert used <= max(room, len(sizes))
    assert share >= max(sizes) or used > room - len(sizes)


# Text ------------------------------------------------------------------------------------------


def test_text_and_ids_are_prompts_as_they_are(processor: Processor) -> None:
    text = "Once <|im_end|> upon 圆"
    prompt = processor.text_prompt(text)
    assert processor.decode(prompt.token_ids.tolist()) == text
    again = processor.text_prompt(prompt.token_ids.tolist())
    assert again.token_ids.tolist() == prompt.token_ids.tolist()
    assert prompt.positions.tolist() == [list(range(len(prompt)))] * 3


def test_what_is_no_text_is_refused(processor: Processor) -> None:
    for wrong in ("", [10**9], "a <|image_pad|>"):
        with pytest.raises(InvalidValueError) as caught:
            processor.text_prompt(wrong)
        assert caught.value.param == "prompt"


def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(processor: Processor) -> None:
    endless = "a" * 10**8
    with pytest.raises(ContextLengthError) as caught:
        processor.text_prompt(endless)
    assert caught.value.param == "prompt"
    message = Message(role="user", parts=(TextPart(endless),))
    with pytest.raises(ContextLengthError):
        processor.measure(Conversation(messages=(message,)), [])


def test_ids_that_cannot_fit_are_refused_before_they_are_looked_at(processor: Processor) -> None:
    with pytest.raises(ContextLengthError) as caught:
        processor.text_prompt([10**9] * 1000)  # nor are they any that the model has
    assert caught.value.param == "prompt"


def test_control_tokens_have_a_name_and_no_bytes(processor: Processor) -> None:
    (end,) = processor.text_prompt("<|im_end|>").token_ids.tolist()
    assert (processor.token_name(end), processor.token_bytes(end)) == (b"<|im_end|>", b"")
    assert processor.token_name(10**9) == b""


def test_an_effort_that_the_template_cannot_make_is_refused(processor: Processor) -> None:
    messages = asked(0).messages
    at_once = Conversation(messages=messages, reasoning_effort="none")
    assert len(processor.prepare(at_once, [])) == len(processor.prepare(asked(0), []))
    with pytest.raises(InvalidRequestError) as caught:
        processor.prepare(Conversation(messages=messages, reasoning_effort="high"), [])
    assert caught.value.param == "reasoning_effort"
