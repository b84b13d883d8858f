"""From a model's folder to a model that the engine can run: family, device, dtype, packing.

Called by `cli.py` in the loading thread, and by tests. Knows transformers; knows no requests.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.logging import set_tqdm_hook

from litevl.config import Config
from litevl.errors import ConfigError
from litevl.models.attention import (
    TEXT_ATTENTION,
    VISION_ATTENTION,
    AttentionBackend,
    VarlenPaged,
    choose_backend,
    register,
)
from litevl.models.hub import Source
from litevl.models.linear import PatchEmbed, can_pack, pack_linears
from litevl.models.qwen_vl import FAMILIES, QwenVL
from litevl.progress import Report, ignore
from litevl.sequence import SamplingDefaults

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_config(source: Source) -> Any:
    """The checkpoint's config; ConfigError when there is none, or litevl cannot run it."""
    raw = _read_json(source.folder, "config.json")
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        names = ", ".join(FAMILIES.values())
        architectures = ", ".join(raw.get("architectures") or ["?"])
        raise ConfigError(
            f"{source.name} is a {kind!r} model ({architectures}), and litevl runs {names}: "
            "choose one of these, or serve it with another server"
        )
    try:
        return AutoConfig.from_pretrained(
            source.folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"the config.json of {source.name} is no good: {reason}") from error


def choose_device(config: Config) -> torch.device:
    """CUDA when there is one, unless the operator says otherwise."""
    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch sees no CUDA device on this machine; try --device cpu"
        )
    return torch.device("cuda", torch.cuda.current_device())


def choose_dtype(config: Config, device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, float32 on the CPU. The CUDA kernel takes no float32."""
    if config.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if config.dtype == "float32" and device.type == "cuda":
        raise ConfigError("--dtype float32 cannot run on CUDA here; use bfloat16 or float16")
    return DTYPES[config.dtype]


def load_model(source: Source, config: Config, report: Report = ignore) -> QwenVL:
    """Read the weights and make the model ready for packed batches."""
    device = choose_device(config)
    model = read_weights(source, device, choose_dtype(config, device), report)
    return prepare(model, device=device, backend=choose_backend(device))


def read_weights(source: Source, device: torch.device, dtype: torch.dtype, report: Report) -> Any:
    """The model as transformers has it. No code of the checkpoint's runs, and nothing pickled."""
    factory: Any = AutoModelForImageTextToText

    def counted(make: Any, arguments: Any, options: Any) -> Any:
        if not arguments:
            return make(**options)
        return _counted(arguments[0], report)

    before = set_tqdm_hook(counted)
    try:
        return factory.from_pretrained(
            source.folder,
            dtype=dtype,
            device_map={"": device} if device.type == "cuda" else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or ["?"])[0]
        raise ConfigError(
            f"the weights of {source.name} cannot be read: {reason}; if the files in "
            f"{source.folder} are damaged, delete them and start again"
        ) from error
    finally:
        set_tqdm_hook(before)


def _counted(items: Iterable[Any], report: Report) -> Iterator[Any]:
    """The same items; each that is asked for is told."""
    rows = list(items)
    for count, each in enumerate(rows, 1):
        report("loading", count, len(rows), "")
        yield each


def prepare(model: Any, *, device: torch.device, backend: AttentionBackend) -> QwenVL:
    """Choose attention for both towers and pack weights where that pays; changes `model`."""
    register()
    model.eval().requires_grad_(False)
    vision = VISION_ATTENTION if isinstance(backend, VarlenPaged) else "sdpa"
    model.set_attn_implementation({"text_config": TEXT_ATTENTION, "vision_config": vision})
    visual = model.model.visual
    visual.patch_embed = PatchEmbed(visual.patch_embed.proj)
    if device.type == "cpu" and can_pack():
        pack_linears(model)
    return QwenVL(model, device=device, backend=backend)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """What the checkpoint says about generating."""

    eos_token_ids: frozenset[int]
    defaults: SamplingDefaults


def read_generation_settings(folder: Path, model_config: Any, source: str) -> GenerationSettings:
    """The model's `generation_config.json`, as `--generation-config` says."""
    own = _read_json(folder, "generation_config.json")
    eos = own.get("eos_token_id", getattr(model_config.text_config, "eos_token_id", None))
    eos_ids = frozenset([eos] if isinstance(eos, int) else eos or ())
    if source == "litevl":
        return GenerationSettings(eos_token_ids=eos_ids, defaults=SamplingDefaults())
    chosen = own if source == "auto" else _read_json(Path(source), "generation_config.json")
    if source != "auto" and not chosen:
        raise ConfigError(f"--generation-config {source}: no generation_config.json there")
    return GenerationSettings(eos_token_ids=eos_ids, defaults=_sampling_defaults(chosen))


def _sampling_defaults(raw: dict[str, Any]) -> SamplingDefaults:
    neutral = SamplingDefaults()
    # Only a file that says so is greedy: many files that sample leave the word out.
    temperature = 0.0 if raw.get("do_sample") is False else raw.get("temperature")
    return SamplingDefaults(
        temperature=neutral.temperature if temperature is None else float(temperature),
        top_p=float(raw.get("top_p") or neutral.top_p),
        top_k=int(raw.get("top_k") or neutral.top_k),
        repetition_penalty=float(raw.get("repetition_penalty") or neutral.repetition_penalty),
    )


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of the checkpoint's; {} where it has no such file."""
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / name} cannot be read: {error}") from None
    return data if isinstance(data, dict) else {}
