"""A model's name -> its folder on this machine, downloaded from a hub where it is not there yet.

`cli.py` asks for the small files first, which tell whether litevl can run the model at all, then
for the weights. A revision becomes a commit with the first and stays it. Only safetensors and text
are ever fetched. Knows folders and hubs, no tensors.
"""

import difflib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from collections.abc import Sequence as Many
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors

from litevl.config import Config
from litevl.errors import ConfigError
from litevl.progress import Report, amount, ignore

DEMO = Path(__file__).resolve().parent.parent / "demo"
SMALL = ["*.json", "*.jinja", "*.txt"]
WEIGHTS = ["model*.safetensors"]
WORKERS = 4  # files at a time: what breaks off begins again, so not all at once
EXAMPLE = "Qwen/Qwen2.5-VL-7B-Instruct"
KNOWN = (
    "demo",
    "Qwen/Qwen2-VL-2B-Instruct",
    "Qwen/Qwen2-VL-7B-Instruct",
    "Qwen/Qwen2-VL-72B-Instruct",
    "Qwen/QVQ-72B-Preview",
    "Qwen/Qwen2.5-VL-3B-Instruct",
    EXAMPLE,
    "Qwen/Qwen2.5-VL-32B-Instruct",
    "Qwen/Qwen2.5-VL-72B-Instruct",
    "Qwen/Qwen3-VL-2B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "Qwen/Qwen3-VL-8B-Thinking",
    "Qwen/Qwen3-VL-32B-Instruct",
)  # for `did you mean`, not a limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a model comes from; its small files are in `folder`, perhaps not yet its weights."""

    name: str
    folder: Path
    hub: str = ""  # the hub's address; "" is this machine
    revision: str = ""  # a commit, where the hub knows commits


def find(config: Config) -> Source:
    """The folder with the model's small files; raises ConfigError where there is no such model."""
    model, path = config.model, Path(os.path.expanduser(config.model))
    if model == "demo" or model.startswith((".", "/", "~")) or os.path.isdir(path):
        return _find_here(config, DEMO if model == "demo" else path)
    if config.use_modelscope:
        return _modelscope(config, SMALL, ignore)
    with _explained(config):
        folder = huggingface_hub.snapshot_download(
            model, revision=config.revision, allow_patterns=SMALL, tqdm_class=_bar()
        )
    return Source(
        name=model, folder=Path(folder), hub=constants.ENDPOINT, revision=Path(folder).name
    )


def _find_here(config: Config, path: Path) -> Source:
    model = config.model
    if config.revision:
        raise ConfigError(
            f"--revision {config.revision}: only models of a hub have revisions, and {model} is "
            "on this machine"
        )
    if not (path / "config.json").is_file():
        what = "holds no config.json" if path.is_dir() else "is no folder"
        hint = _like(model, _beside(path)) or "; give a model's folder, a hub id, or demo"
        raise ConfigError(f"{model} {what}{hint}")
    return Source(name=model, folder=path)


def fetch_weights(source: Source, config: Config, report: Report) -> None:
    """Make sure that the weights are in the folder; raises ConfigError where they cannot be."""
    if config.use_modelscope and source.hub:
        _modelscope(config, WEIGHTS, report)
    elif source.hub:
        _download(source, config, report)
    if not any(source.folder.glob("model*.safetensors")):
        raise ConfigError(
            f"{source.name} has no model*.safetensors: litevl reads no other weights, since "
            "pickled ones can run code; convert them to safetensors"
        )


def _download(source: Source, config: Config, report: Report) -> None:
    options: dict[str, Any] = {
        "revision": source.revision,
        "allow_patterns": WEIGHTS,
        "max_workers": WORKERS,
    }
    with _explained(config):
        try:
            files = huggingface_hub.snapshot_download(
                source.name, dry_run=True, tqdm_class=_bar(), **options
            )
            missing = sum(each.file_size for each in files if each.will_download)
        except errors.DryRunError:  # the hub cannot be reached: the cache may do
            missing = 0
        if missing:
            check_disk(missing, Path(constants.HF_HUB_CACHE))
        huggingface_hub.snapshot_download(source.name, tqdm_class=_bar(report, missing), **options)


def check_disk(num_bytes: int, folder: Path) -> None:
    """Raise ConfigError where so much does not fit beside what is there."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ConfigError(
            f"the download needs {amount(num_bytes)} and {folder} has {amount(free)} free: "
            "make room, or name another folder in HF_HOME"
        )


# Errors ----------------------------------------------------------------------------------------


@contextmanager
def _explained(config: Config) -> Iterator[None]:
    """What a hub's client raises, in one line that says what to do."""
    # Its base class is httpx's or httpx2's, as huggingface_hub's version has it.
    names: Any = errors
    model, hub = config.model, constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise ConfigError(
            f"{model} is gated: accept its terms at {hub}/{model}, then set HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        hint = _like(model, KNOWN) or "; a private one needs HF_TOKEN"
        raise ConfigError(f"there is no model {model!r} at {hub}{hint}") from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{model} has no revision {config.revision!r} at {hub}") from None
    except errors.HFValidationError:
        raise ConfigError(
            f"{model!r} is neither a folder nor a hub id such as {EXAMPLE}{_like(model, KNOWN)}"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise ConfigError(_unreachable(model)) from None
    except names.HTTPError as error:
        raise ConfigError(f"{hub} did not give {model}: {_first_line(error)}; try again") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            check = f"no space left in {constants.HF_HUB_CACHE}"
            raise ConfigError(f"{check}: make room, or name another folder in HF_HOME") from None
        raise ConfigError(f"cannot download {model}: {_first_line(error)}; try again") from None


def _unreachable(model: str) -> str:
    if constants.is_offline_mode():
        return (
            f"{model} is not wholly in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE forbids to "
            "fetch it: unset it once, or give a local folder"
        )
    return (
        f"{constants.ENDPOINT} cannot be reached and {model} is not wholly in "
        f"{constants.HF_HUB_CACHE}: check the network, name a mirror in HF_ENDPOINT, set "
        "LITEVL_USE_MODELSCOPE=true, or give a local folder"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _like(word: str, known: Many[str]) -> str:
    short = {name.rpartition("/")[2].lower(): name for name in known}
    near = difflib.get_close_matches(word.rpartition("/")[2].lower(), short, n=1)
    return f"; did you mean {short[near[0]]}?" if near else ""


def _beside(path: Path) -> list[str]:
    """Model folders next to one that is not there."""
    parent = path.parent
    return [str(each.parent) for each in parent.glob("*/config.json")] if parent.is_dir() else []


# Progress --------------------------------------------------------------------------------------


class _Bar:
    """Stands where a tqdm bar is asked for, and draws nothing.

    Of the bars that huggingface_hub asks for, several count the same bytes: the furthest one tells.
    """

    report: Report = staticmethod(ignore)
    expected = 0
    furthest = 0

    def __init__(self, *_: Any, **options: Any) -> None:
        self.n = 0
        self.total: int = options.get("total") or 0
        self.format_dict: dict[str, Any] = {}
        self._counts_bytes = options.get("unit") == "B"

    def update(self, count: float | None = 1) -> None:
        self.n += int(count or 0)
        cls = type(self)
        if self._counts_bytes and cls.furthest < min(self.n, cls.expected):
            cls.furthest = min(self.n, cls.expected)
            cls.report("downloading", cls.furthest, cls.expected, "B")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *reason: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        """Whatever else one does to a bar changes nothing; it is not asked for a lock."""
        if name.startswith("_") or name.endswith("_lock"):
            raise AttributeError(name)
        return lambda *_, **__: None


def _bar(report: Report = ignore, expected: int = 0) -> Any:
    """A class of bars of its own for one download."""
    return type("_Bar", (_Bar,), {"report": staticmethod(report), "expected": expected})


# ModelScope ------------------------------------------------------------------------------------


def _modelscope(config: Config, patterns: list[str], report: Report) -> Source:
    try:
        import modelscope_hub  # an extra: few need it
    except ImportError:
        raise ConfigError(
            "ModelScope needs a package that is not installed: pip install modelscope-hub"
        ) from None
    logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    callback = type("_Callback", (_FileProgress,), {"report": staticmethod(report)})
    try:
        folder = modelscope_hub.HubApi().download_repo(
            config.model,
            "model",
            revision=config.revision,
            allow_patterns=patterns,
            local_files_only=constants.is_offline_mode(),
            progress_callbacks=[callback],
        )
    except modelscope_hub.NotExistError:
        what = f" in revision {config.revision!r}" if config.revision else ""
        raise ConfigError(
            f"ModelScope has no model {config.model!r}{what}{_like(config.model, KNOWN)}"
        ) from None
    except (modelscope_hub.HubError, OSError, ValueError) as error:
        raise ConfigError(
            f"ModelScope did not give {config.model}: {_first_line(error)}; check the network, "
            "or give a local folder"
        ) from None
    return Source(
        name=config.model, folder=folder, hub="ModelScope", revision=config.revision or "master"
    )


class _FileProgress:
    """ModelScope's client makes one for each file; the class adds them up."""

    report: Report = staticmethod(ignore)
    done = total = 0

    def __init__(self, filename: str, file_size: int) -> None:
        type(self).total += file_size

    def update(self, size: int) -> None:
        cls = type(self)
        cls.done += size
        cls.report("downloading", cls.done, cls.total, "B")

    def end(self) -> None:
        pass
