"""`litevl check [MODEL]`: greedy tokens against transformers' own `generate`, on this machine.

Called by `cli.py`, which hands in how an engine is built. One copy of the weights serves both: the
references are computed first, then litevl prepares the same model for its packed batches. Knows
engine, media and models; knows no HTTP.
"""

import asyncio
import base64
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from litevl.config import Config
from litevl.engine.memory import check_weights
from litevl.media.loader import MediaLoader
from litevl.models import hub, loader
from litevl.models.attention import choose_backend
from litevl.models.needs import needs_of
from litevl.models.processor import Processor
from litevl.models.qwen_vl import normalised
from litevl.progress import Progress
from litevl.sequence import (
    Conversation,
    LoadedMedia,
    MediaKind,
    MediaPart,
    MediaRef,
    Message,
    Prompt,
    SamplingParams,
    Sequence,
    TextPart,
)

NUM_TOKENS = 24
CONTEXT = 4096  # enough for the samples; more would only cost memory
CHUNK = 24  # tokens a step where prompts are cut: inside pictures too
SAMPLES = (hub.DEMO / "sample.jpg", hub.DEMO / "sample.mp4")
TIE = 1e-4  # float32: where the reference's two best logits lie closer, either is right
TIE_EPS = 4  # elsewhere: so many roundings of the best logit

# A loaded model and its settings -> a fresh engine without a thread.
BuildEngine = Callable[[Any, Config], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A prompt, what transformers says to it, and where it was not sure."""

    name: str
    prompt: Prompt
    tokens: tuple[int, ...]
    ties: tuple[bool, ...]  # whether the second best token was as good


def check(config: Config, build_engine: BuildEngine, progress: Progress) -> bool:
    """Run every case and print a line of each; returns whether all are equal."""
    source = hub.find(config)
    model_config = loader.read_config(source)
    needs = needs_of(model_config)
    context = min(config.max_model_len or CONTEXT, needs.context)
    config = replace(config, max_num_seqs=8, max_model_len=context)
    device = loader.choose_device(config)
    dtype = loader.choose_dtype(config, device)
    check_weights(needs.weights(dtype, device.type), device)
    processor = Processor.load(str(source.folder), model_config, config)
    processor = processor.with_max_model_len(context)
    hub.fetch_weights(source, config, progress.report)
    plain = loader.read_weights(source, device, dtype, progress.report)
    progress.report("generating")
    cases = asyncio.run(_cases(Reference(plain), processor, config))
    progress.end()
    model = loader.prepare(plain, device=device, backend=choose_backend(device))
    name = str(dtype).removeprefix("torch.")
    print(f"\n  {source.name} on {device} in {name}, {NUM_TOKENS} greedy tokens a case\n")
    results = [_line(*each) for each in _runs(cases, model, config, build_engine)]
    print()
    return all(results)


def _line(name: str, difference: str, remark: str) -> bool:
    print(f"  {name:<18}{difference or 'equal':<8}  {remark}".rstrip(), flush=True)
    return not difference


# What transformers says ------------------------------------------------------------------------


class Reference:
    """The plain model, called as transformers' documentation does."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._model.generation_config = GenerationConfig()  # greedy, without the model's penalties

    @torch.inference_mode()
    def case(self, name: str, prompt: Prompt, media: Many[LoadedMedia]) -> Case:
        """Generate, never stopping early."""
        model = self._model
        depth = model.config.vision_config.temporal_patch_size
        ids = torch.from_numpy(prompt.token_ids)[None].to(model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
            **media_inputs(model, prompt, [depth / _rate(e) for e in media if e.kind == "video"]),
        )
        best = [logits[0].float().topk(2).values.tolist() for logits in output.logits]
        return Case(
            name=name,
            prompt=prompt,
            tokens=tuple(output.sequences[0, len(prompt) :].tolist()),
            ties=tuple(first - second < self._tie(first) for first, second in best),
        )

    def _tie(self, logit: float) -> float:
        if self._model.dtype == torch.float32:
            return TIE
        return TIE_EPS * torch.finfo(self._model.dtype).eps * abs(logit)


def media_inputs(model: Any, prompt: Prompt, grid_seconds: Many[float]) -> dict[str, Any]:
    """What the model is given beside the ids. `grid_seconds`: of each clip, from one pair of its
    frames to the next; read by Qwen2.5-VL alone."""
    config, device = model.config, model.device
    ids = torch.from_numpy(prompt.token_ids)[None]
    kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    inputs: dict[str, Any] = {"mm_token_type_ids": kinds.to(device)}
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        items = [item for item in prompt.media if item.kind == kind]
        if items:
            rows = torch.cat([normalised(item, device) for item in items])
            inputs[pixels] = rows.to(model.dtype)
            inputs[grid] = torch.tensor([item.grid for item in items], device=device)
    if grid_seconds and config.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = torch.tensor(grid_seconds, device=device)
    return inputs


def _rate(clip: LoadedMedia) -> float:
    """Sampled frames of a second."""
    first, *_, last = clip.plan.frame_indices
    return len(clip.plan.frame_indices) * clip.probe.fps / (last - first + 1)


async def _cases(reference: Reference, processor: Processor, config: Config) -> list[Case]:
    """The samples in several arrangements, each answered by transformers."""
    loading = MediaLoader(processor, config)
    try:
        picture, clip = await loading.load([_ref(sample) for sample in SAMPLES])
    finally:
        await loading.close()
    arrangements: dict[str, tuple[LoadedMedia | str, ...]] = {
        "text": ("Describe a meadow in spring.",),
        "picture": (picture, "How many sheep are there in the picture?"),
        "clip": (clip, "Describe the clip."),
        "picture and clip": (picture, "and", clip, "What do both show?"),
    }
    cases = []
    for name, turn in arrangements.items():
        media = [each for each in turn if not isinstance(each, str)]
        parts = (TextPart(e) if isinstance(e, str) else MediaPart(media.index(e)) for e in turn)
        message = Message(role="user", parts=tuple(parts))
        prompt = processor.prepare(Conversation(messages=(message,)), media)
        cases.append(reference.case(name, prompt, media))
    return cases


def _ref(sample: Path) -> MediaRef:
    kind: MediaKind = "image" if sample.suffix == ".jpg" else "video"
    data = base64.b64encode(sample.read_bytes()).decode()
    return MediaRef(declared=kind, url=f"data:{kind}/any;base64,{data}", param=sample.name)


# What litevl says ------------------------------------------------------------------------------


def _runs(
    cases: Many[Case], model: Any, config: Config, build_engine: BuildEngine
) -> Iterator[tuple[str, str, str]]:
    """Name, difference if any, and remark: each case alone, all in one batch, all again."""
    for case in cases:
        tokens = _run(build_engine(model, config), [case])
        seen = f"{len(case.prompt)} tokens of prompt, {len(set(case.tokens))} different ones said"
        yield case.name, _differences([case], tokens), seen
    engine = build_engine(model, replace(config, max_num_batched_tokens=CHUNK))
    remark = f"{len(cases)} prompts in one batch, in chunks of {CHUNK} tokens"
    yield "all at once", _differences(cases, _run(engine, cases)), remark
    yield "from the caches", _differences(cases, _run(engine, cases)), "the same once more"


def _run(engine: Any, cases: Many[Case]) -> dict[str, list[int]]:
    """Tokens by case; an engine's error is raised."""
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
    for case in cases:
        engine.add(Sequence(request_id=case.name, prompt=case.prompt, params=params))
    tokens: dict[str, list[int]] = {case.name: [] for case in cases}
    while engine.num_unfinished:
        for output in engine.step():
            if output.error is not None:
                raise output.error
            tokens[output.request_id].append(output.token_id)
    return tokens


def _differences(cases: Many[Case], tokens: dict[str, list[int]]) -> str:
    """Where the first token differs that is no tie; "" where all are equal up to ties."""
    found = []
    for case in cases:
        pairs = zip(case.tokens, tokens[case.name], case.ties, strict=True)
        for place, (expected, token, is_tie) in enumerate(pairs):
            if token != expected:
                if not is_tie:
                    found.append(f"{case.name}: token {place} is {token}, not {expected}")
                break  # what follows another token is another text
    return f"DIFFERS ({'; '.join(found)})" if found else ""
