"""Every setting: name, default, help and check; flags, environment and docs are made from it.

`settings.py` reads the command line, `LITEVL_<FLAG>`, then `--config FILE.toml`, then the defaults
here; `tests/settings_table.py` writes `docs/configuration.md`. This module knows nothing of what
the settings do.
"""

import ipaddress
import math
import re
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from litevl.errors import UsageError

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def option(default: Any, help: str, metavar: str = "") -> Any:
    """A setting with the sentence that `litevl serve --help` and docs/configuration.md show."""
    metadata = {"help": help, "metavar": metavar}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What `litevl serve` was asked to do. An impossible value raises `UsageError`."""

    # Model
    model: str = option("demo", "hub id, local folder, or `demo`", "MODEL")
    served_model_name: tuple[str, ...] = option(
        (), "names the model answers to, first is the id", "NAME,..."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "auto: bfloat16 on CUDA, float32 on the CPU"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto: CUDA when there is one")
    max_model_len: int | None = option(
        None,
        "prompt and answer together, in tokens (default: what the model allows and memory fits)",
    )
    generation_config: str = option(
        "auto",
        "auto: the model's own sampling defaults; litevl: none; or a folder",
        "auto|litevl|DIR",
    )
    revision: str | None = option(
        None, "branch, tag or commit of a hub's model (default: its newest)", "NAME"
    )
    use_modelscope: bool = option(
        False, "look hub ids up on ModelScope; needs `pip install modelscope-hub`"
    )
    # Batching
    max_num_seqs: int = option(64, "sequences that run at once")
    max_num_batched_tokens: int | None = option(
        None, "tokens computed in one step (default: 2048 on CUDA, 256 on the CPU)"
    )
    gpu_memory_utilization: float = option(0.9, "share of the card's memory that litevl may use")
    num_blocks: int | None = option(None, "KV blocks by hand (default: planned from memory)")
    max_num_queued_reqs: int = option(
        128, "sequences that may wait, one an answer; beyond them requests are answered 429"
    )
    seed: int = option(0, "base of the seeds of requests that give none")
    reasoning_in_content: bool = option(
        False, "thoughts are told as content, for clients that print nothing else"
    )
    # Media
    min_pixels: int | None = option(
        None, "least pixels of a picture or frame (default: the model's)"
    )
    max_pixels: int | None = option(
        None, "most pixels of a picture or frame, default and cap in one"
    )
    fps: float | None = option(
        None, "frames sampled from a second of a clip, default and cap in one"
    )
    max_frames: int = option(768, "most frames sampled from a clip")
    limit_mm_per_prompt: dict[str, int] = option(
        {}, "media in one request (default: image=64,video=2)", "image=N,video=N"
    )
    media_networks: tuple[str, ...] = option(
        (), "private networks that pictures may be fetched from (none by default)", "CIDR,..."
    )
    allowed_media_domains: tuple[str, ...] = option(
        (), "the only hosts that pictures may be fetched from (default: any public one)", "HOST,..."
    )
    allowed_local_media_path: str | None = option(
        None, "folder whose files may be sent as file:// URLs (none by default)", "DIR"
    )
    # Server
    host: str = option(
        "127.0.0.1", "address to listen on; anything but loopback needs a key", "ADDRESS"
    )
    port: int = option(8000, "port to listen on")
    api_key: tuple[str, ...] = option((), "keys that may call (better: LITEVL_API_KEY)", "KEY,...")
    api_key_file: str | None = option(
        None, "file with one key a line, made with a fresh key if missing", "FILE"
    )
    metrics_needs_key: bool = option(False, "/metrics asks for the key like everything else")
    no_api_key: bool = option(False, "serve without a key, even on a public address")
    max_body_size: int = option(96 * 2**20, "largest request body, in bytes")
    log_format: Literal["text", "json"] = option("text", "how log lines look")
    public_url: str | None = option(
        None, "address under which a proxy serves litevl, told by the banner and the page", "URL"
    )
    no_page: bool = option(False, "no page at /")
    ssl_keyfile: str | None = option(None, "private key for https", "FILE")
    ssl_certfile: str | None = option(None, "certificate for https", "FILE")

    def __post_init__(self) -> None:
        limits = {"image": 64, "video": 2} | self.limit_mm_per_prompt
        object.__setattr__(self, "limit_mm_per_prompt", limits)
        self._check_counts()
        self._check_media()
        if bool(self.ssl_keyfile) != bool(self.ssl_certfile):
            raise UsageError("--ssl-keyfile and --ssl-certfile go together")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise UsageError(
                f"--gpu-memory-utilization must lie in (0, 1], got {self.gpu_memory_utilization}"
            )
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port must lie in 0..65535, got {self.port}")
        self._check_public_url()
        if any(
            len(key) < 1 or not key.isascii() or not key.isprintable() or " " in key
            for key in self.api_key
        ):
            raise UsageError("--api-key takes printable ASCII without spaces")

    def _check_counts(self) -> None:
        names = ["max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_blocks"]
        names += ["min_pixels", "max_pixels", "max_frames", "max_body_size"]
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.max_num_queued_reqs < 0:
            raise UsageError(
                f"--max-num-queued-reqs must not be negative, got {self.max_num_queued_reqs}"
            )

    def _check_public_url(self) -> None:
        if self.public_url is None:
            return
        if not re.match(r"https?://[^/?#\s]", self.public_url):
            raise UsageError("--public-url takes http://HOST or https://HOST, perhaps with a path")
        origin = self.public_url.rstrip("/").removesuffix("/v1").rstrip("/")
        object.__setattr__(self, "public_url", origin)

    def _check_media(self) -> None:
        if self.fps is not None and not 0 < self.fps < math.inf:
            raise UsageError(f"--fps must be positive, got {self.fps}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise UsageError(
                f"--min-pixels {self.min_pixels} is more than --max-pixels {self.max_pixels}"
            )
        unknown = set(self.limit_mm_per_prompt) - {"image", "video"}
        if unknown:
            raise UsageError(
                f"--limit-mm-per-prompt knows image and video, not {', '.join(sorted(unknown))}"
            )
        if any(limit < 0 for limit in self.limit_mm_per_prompt.values()):
            raise UsageError("--limit-mm-per-prompt takes counts from 0 up")
        _ = self.media_ip_networks
        if self.allowed_local_media_path and not Path(self.allowed_local_media_path).is_dir():
            raise UsageError(
                f"--allowed-local-media-path {self.allowed_local_media_path} is no folder"
            )

    @property
    def media_ip_networks(self) -> tuple[IPNetwork, ...]:
        """`media_networks`, parsed."""
        try:
            return tuple(ipaddress.ip_network(text) for text in self.media_networks)
        except ValueError as error:
            raise UsageError(
                f"--media-networks takes networks such as 10.0.0.0/8: {error}"
            ) from None


def flag(name: str) -> str:
    """The command-line spelling of a setting: `max_model_len` -> `--max-model-len`."""
    return "--" + name.replace("_", "-")


# The first setting of each group of the help.
GROUPS = {"model": "Model", "max_num_seqs": "Batching", "min_pixels": "Media", "host": "Server"}


def grouped() -> dict[str, tuple[Field[Any], ...]]:
    """Every setting but MODEL, in the order and under the titles of the help."""
    groups: dict[str, tuple[Field[Any], ...]] = {}
    title = ""
    for each in fields(Config):
        title = GROUPS.get(each.name, title)
        groups[title] = groups.get(title, ()) + ((each,) if each.name != "model" else ())
    return groups
