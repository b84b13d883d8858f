"""An engine around a tiny checkpoint, and greedy `model.generate` to hold it against.

Used by the fidelity, engine and GPU tests. `Rig` keeps two copies of a checkpoint: the plain one
that transformers generates with, and the one that litevl runs in packed batches.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from litevl.cache import Cache
from litevl.check import media_inputs
from litevl.config import Config
from litevl.engine.blocks import BlockPool
from litevl.engine.engine import Engine
from litevl.engine.runner import Launched, Runner
from litevl.engine.sampler import Sampler
from litevl.engine.scheduler import Scheduler
from litevl.models import loader
from litevl.models.attention import AttentionBackend, SdpaPaged, choose_backend
from litevl.models.processor import Processor
from litevl.models.qwen_vl import QwenVL
from litevl.sequence import (
    Conversation,
    LoadedMedia,
    MediaItem,
    MediaKey,
    MediaKind,
    MediaOptions,
    MediaPart,
    Message,
    Probe,
    Prompt,
    SamplingParams,
    Sequence,
    Step,
    TextPart,
)

torch.set_num_threads(1)  # tiny matrices: threads only wait for one another

ROLES: tuple[Literal["user"], Literal["assistant"]] = ("user", "assistant")
# Clips of the rig: 8 frames a second, of which Qwen samples 2, two to a patch of time.
CLIP_FPS, SECONDS_PER_GRID = 8.0, 1.0


class LoggedRunner(Runner):
    """A runner that remembers every step: chunk lengths, and how many items it encoded."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps: list[tuple[tuple[int, ...], int]] = []
        self.mixed = 0  # steps with a decode and a piece of a prompt in one forward
        self.cut_media = 0  # chunks that ended inside a picture or clip

    def launch(self, step: Step) -> Launched:
        self.steps.append((tuple(chunk.length for chunk in step.chunks), len(step.encode)))
        starts = [chunk.start >= len(chunk.sequence.prompt) for chunk in step.chunks]
        self.mixed += any(starts) and not all(starts)
        self.cut_media += sum(
            bool(item.token_indices[0] < chunk.end <= item.token_indices[-1])
            for chunk in step.chunks
            for item in chunk.sequence.prompt.media
        )
        return super().launch(step)


@dataclass
class Rig:
    """One tiny checkpoint, as transformers runs it and as litevl does."""

    folder: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @cached_property
    def reference(self) -> Any:
        return self._load()

    @cached_property
    def model(self) -> QwenVL:
        return self.prepare(SdpaPaged(4, view_from=24) if self.device.type == "cpu" else None)

    def prepare(self, backend: AttentionBackend | None) -> QwenVL:
        backend = backend or choose_backend(self.device)
        return loader.prepare(self._load(), device=self.device, backend=backend)

    @cached_property
    def processor(self) -> Processor:
        return Processor.load(str(self.folder), self.reference.config, Config())

    def _load(self) -> Any:
        build: Any = AutoModelForImageTextToText
        return build.from_pretrained(self.folder, dtype=self.dtype).eval().to(self.device)

    def engine(
        self,
        *,
        num_blocks: int = 400,
        max_tokens: int = 64,
        max_num_seqs: int = 8,
        encoder_tokens: int = 64,
        encoder_capacity: int = 10**9,
    ) -> tuple[Engine, LoggedRunner]:
        """A fresh engine without a thread; step it by hand."""
        cache: Cache[MediaKey, torch.Tensor] = Cache(encoder_capacity)
        block_size = self.model.backend.block_size
        scheduler = Scheduler(
            BlockPool(num_blocks, block_size),
            cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_tokens,
            max_encoder_tokens=encoder_tokens,
        )
        sampler = Sampler(self.model.vocab_size, max_num_seqs, self.device)
        runner = LoggedRunner(self.model, self.model.new_cache(num_blocks), sampler, cache)
        engine = Engine(
            scheduler,
            runner,
            max_model_len=num_blocks * block_size,
            max_num_seqs=max_num_seqs,
            max_num_queued_reqs=1000,
            clock=lambda: 0.0,  # whatever a busy machine takes, nothing waits too long
        )
        return engine, runner

    def generate(self, prompt: Prompt, num_tokens: int, **options: Any) -> list[int]:
        """Greedy `model.generate` of transformers for the same prompt, never stopping early."""
        self.reference.model.rope_deltas = None
        ids = torch.from_numpy(prompt.token_ids)[None].to(self.device)
        with torch.no_grad():
            output = self.reference.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                **self._media_inputs(prompt),
                **options,
            )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens

    def top_two_gap(self, prompt: Prompt, output: list[int]) -> float:
        """How far apart the reference's two best next tokens are after `output`."""
        self.reference.model.rope_deltas = None
        ids = torch.from_numpy(
            np.concatenate([prompt.token_ids, np.asarray(output, dtype=np.int64)])
        )
        types = self._media_inputs(prompt)
        grown = torch.zeros(1, len(ids), dtype=torch.int32, device=self.device)
        grown[:, : len(prompt)] = types["mm_token_type_ids"]
        types["mm_token_type_ids"] = grown
        with torch.no_grad():
            logits = self.reference(input_ids=ids[None].to(self.device), **types).logits[0, -1]
        best = logits.float().topk(2).values
        return float(best[0] - best[1])

    def _media_inputs(self, prompt: Prompt) -> dict[str, Any]:
        clips = [item for item in prompt.media if item.kind == "video"]
        return media_inputs(self.reference, prompt, [SECONDS_PER_GRID] * len(clips))

    def image_prompt(self, spec: Iterable[int | tuple[int, int, int]], seed: int = 0) -> Prompt:
        """A prompt of random words (a count) and random pictures (a grid of patches), in order."""
        config = self.reference.config
        rng = np.random.default_rng(seed)
        patch = config.vision_config.patch_size
        ids: list[int] = []
        media: list[MediaItem] = []
        for part in spec:
            if isinstance(part, int):
                ids += rng.integers(20, 250, part).tolist()
                continue
            count = part[0] * part[1] * part[2] // 4
            start = len(ids) + 1
            ids += [config.vision_start_token_id, *[config.image_token_id] * count]
            ids += [config.vision_end_token_id]
            digest = rng.bytes(16)
            noise = rng.normal(size=(4 * count, 6 * patch * patch))
            media.append(
                MediaItem(
                    kind="image",
                    digest=digest,
                    token_indices=np.arange(start, start + count),
                    pixels=(noise * 50 + 128).clip(0, 255).astype(np.uint8),
                    mean=(128.0,) * 3,
                    std=(50.0,) * 3,
                    grid=part,
                )
            )
        return self._with_positions(np.asarray(ids, dtype=np.int64), tuple(media))

    def conversation(self, *turns: str | tuple[int, int, int], seed: int = 0) -> Prompt:
        """A prompt through the processor: words, pictures (1, h, w) and clips (frames, h, w) of one
        user turn after another; `/` begins the next turn."""
        media: list[LoadedMedia] = []
        messages: list[Message] = []
        parts: list[TextPart | MediaPart] = []
        for part in (*turns, "/"):
            if part == "/":
                role = ROLES[len(messages) % 2]
                messages.append(Message(role=role, parts=tuple(parts)))
                parts = []
            elif isinstance(part, str):
                parts.append(TextPart(part))
            else:
                parts.append(MediaPart(len(media)))
                media.append(self._medium(part, seed + len(media)))
        return self.processor.prepare(said(*messages), media)

    def _medium(self, shape: tuple[int, int, int], seed: int) -> LoadedMedia:
        count, height, width = shape
        kind: MediaKind = "image" if count == 1 else "video"
        fps = 0.0 if kind == "image" else CLIP_FPS
        probe = Probe(kind=kind, width=width, height=height, num_frames=count, fps=fps)
        plan = self.processor.plan(probe, MediaOptions(max_pixels=60 * 60), "media")
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
        frames = np.repeat(np.repeat(coarse, -(-height // 4), axis=1), -(-width // 4), axis=2)
        chosen = frames[list(plan.frame_indices), :height, :width]
        digest = blake2b(repr((shape, plan)).encode() + chosen.tobytes(), digest_size=16).digest()
        return LoadedMedia(
            probe=probe,
            plan=plan,
            frames=self.processor.resize(chosen, kind, plan),
            digest=digest,
            param="media",
        )

    def _with_positions(self, ids: np.ndarray[Any, Any], media: tuple[MediaItem, ...]) -> Prompt:
        tokens = torch.from_numpy(ids)[None]
        grids = {"image_grid_thw": torch.tensor([item.grid for item in media])} if media else {}
        types = (tokens == self.reference.config.image_token_id).int()
        positions, delta = self.reference.model.get_rope_index(
            tokens, mm_token_type_ids=types, **grids
        )
        return Prompt(
            token_ids=ids,
            positions=positions[:, 0].numpy(),
            position_delta=int(delta),
            media=media,
        )


def said(*messages: Message) -> Conversation:
    return Conversation(messages=messages)


def greedy(prompt: Prompt, request_id: str, max_tokens: int, **changes: Any) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0, **changes)
    return Sequence(request_id=request_id, prompt=prompt, params=params)


def run_all(engine: Engine) -> dict[str, list[int]]:
    """Step until every request has ended; token ids by request."""
    outputs: dict[str, list[int]] = {}
    while engine.num_unfinished:
        for output in engine.step():
            assert output.error is None and output.token_id is not None
            outputs.setdefault(output.request_id, []).append(output.token_id)
    engine.check_idle()
    return outputs
