"""From a model's name to a model that the engine can run: files, family, device, dtype, packing.

Called by `cli.py` in the loading thread, and by tests. Knows transformers; knows no requests.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.hub import cached_file

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
from litevl.models.linear import can_pack, pack_linears
from litevl.models.qwen_vl import FAMILIES, QwenVL
from litevl.sequence import SamplingDefaults

DEMO = Path(__file__).resolve().parent.parent / "demo"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(model: str) -> str:
    """The folder or hub id behind `MODEL`; `demo` is the checkpoint in this package."""
    if model == "demo":
        return str(DEMO)
    looks_local = model.startswith((".", "/", "~")) or Path(model).is_dir()
    if looks_local and not (Path(model).expanduser() / "config.json").is_file():
        raise ConfigError(f"{model} holds no config.json: it is not a model folder")
    return str(Path(model).expanduser()) if looks_local else model


def read_config(path: str) -> Any:
    """The checkpoint's config; ConfigError when there is none, or litevl cannot run it."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"cannot read the model {path!r}: {reason} "
            "Give a local folder, a hub id that this machine can reach, or `demo`."
        ) from error
    if config.model_type not in FAMILIES:
        names = ", ".join(FAMILIES.values())
        raise ConfigError(
            f"{path!r} is a {config.model_type!r} model "
            f"({', '.join(config.architectures or ['?'])}); litevl runs {names}"
        )
    return config


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


def load_model(path: str, config: Config) -> QwenVL:
    """Read the weights and make the model ready for packed batches."""
    device = choose_device(config)
    dtype = choose_dtype(config, device)
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, device_map={"": device} if device.type == "cuda" else None
        )
    except OSError as error:
        raise ConfigError(f"cannot load {path!r}: {str(error).splitlines()[0]}") from error
    return prepare(model, device=device, backend=choose_backend(device))


def prepare(model: Any, *, device: torch.device, backend: AttentionBackend) -> QwenVL:
    """Choose attention for both towers and pack weights where that pays; changes `model`."""
    register()
    model.eval().requires_grad_(False)
    vision = VISION_ATTENTION if isinstance(backend, VarlenPaged) else "sdpa"
    model.set_attn_implementation({"text_config": TEXT_ATTENTION, "vision_config": vision})
    if device.type == "cpu" and can_pack():
        pack_linears(model)
    return QwenVL(model, device=device, backend=backend)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSettings:
    """What the checkpoint says about generating."""

    eos_token_ids: frozenset[int]
    defaults: SamplingDefaults


def read_generation_settings(path: str, model_config: Any, source: str) -> GenerationSettings:
    """The model's `generation_config.json`, as `--generation-config` says."""
    own = _read_json(path, "generation_config.json")
    eos = own.get("eos_token_id", getattr(model_config.text_config, "eos_token_id", None))
    eos_ids = frozenset([eos] if isinstance(eos, int) else eos or ())
    if source == "litevl":
        return GenerationSettings(eos_token_ids=eos_ids, defaults=SamplingDefaults())
    chosen = own if source == "auto" else _read_json(source, "generation_config.json")
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


def _read_json(path: str, name: str) -> dict[str, Any]:
    file = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return {}
    data = json.loads(Path(file).read_text(encoding="utf-8"))
    return data if isinstance(data, dict) else {}
