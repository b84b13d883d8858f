"""The `litevl` command: the only place where all parts are put together.

`serve` binds its socket and answers `/health` at once; the heavy imports and the model follow in a
thread. Flags, environment and the TOML file are generated from `config.Config`.
"""

import argparse
import difflib
import logging
import os
import socket
import sys
import threading
import tomllib
from collections.abc import Sequence as Many
from dataclasses import MISSING, fields, replace
from pathlib import Path
from time import time
from typing import Any, Literal, get_args, get_origin, get_type_hints

from litevl import __version__
from litevl.api.ports import Backend
from litevl.api.service import Service
from litevl.api.serving import Server, raise_file_limit
from litevl.api.wire import Limits
from litevl.banner import Serving, announce, load_keys
from litevl.config import Config, flag
from litevl.errors import ConfigError
from litevl.logs import configure
from litevl.sequence import ModelCard


def main(argv: Many[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        return serve(read_config(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        print(f"litevl: {error}", file=sys.stderr)
        return 1


# Settings --------------------------------------------------------------------------------------


def read_config(argv: Many[str]) -> Config:
    """Command line over environment over `--config FILE.toml` over defaults."""
    parser = _parser()
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        raise ConfigError(_unknown_flag(unknown[0]))
    given = {name: text for name, text in vars(namespace).items() if text is not None}
    given.pop("command")
    file = given.pop("config", None) or os.environ.get("LITEVL_CONFIG")
    texts = (_from_file(file) if file else {}) | _from_environment() | given
    hints = get_type_hints(Config)
    return Config(**{name: _parse(name, hints[name], text) for name, text in texts.items()})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="litevl",
        allow_abbrev=False,
        description="A vision-language server behind the OpenAI chat API.",
    )
    parser.add_argument("--version", action="version", version=f"litevl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve_parser = commands.add_parser(
        "serve",
        help="serve a model",
        allow_abbrev=False,
        usage="litevl serve [MODEL] [--flag VALUE ...]",
        description="Serve a model. Every flag has a variable LITEVL_<FLAG>; the command line wins "
        "over the environment, that over --config FILE.toml.",
    )
    serve_parser.add_argument("--config", metavar="FILE.toml", help="settings in a file")
    hints = get_type_hints(Config)
    for each in fields(Config):
        names = ["model"] if each.name == "model" else [flag(each.name)]
        options: dict[str, Any] = {"default": None, "help": _help(each)}
        if each.name == "model":
            options |= {"nargs": "?", "metavar": "MODEL"}
        elif hints[each.name] is bool:
            options |= {"action": "store_const", "const": "true"}
        else:
            metavar = each.metadata["metavar"] or _metavar(hints[each.name])
            options |= {"metavar": metavar, "dest": each.name}
        serve_parser.add_argument(*names, **options)
    return parser


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    kinds = {int: "N", float: "X", str: "TEXT"}
    return next(kinds[each] for each in (hint, *get_args(hint)) if each in kinds)


def _help(setting: Any) -> str:
    text = str(setting.metadata["help"]).replace("%", "%%")
    has_default = setting.default not in (None, (), False, MISSING)
    return f"{text} (default: {setting.default})" if has_default else text


def _unknown_flag(word: str) -> str:
    name = word.split("=")[0]
    near = difflib.get_close_matches(name, [flag(each.name) for each in fields(Config)], n=1)
    hint = f"; did you mean {near[0]}?" if near else "; `litevl serve --help` lists the flags"
    return f"unknown argument {name}{hint}"


def _from_environment() -> dict[str, str]:
    texts = {
        each.name: os.environ[f"LITEVL_{each.name.upper()}"]
        for each in fields(Config)
        if f"LITEVL_{each.name.upper()}" in os.environ
    }
    if "VLLM_API_KEY" in os.environ:
        texts.setdefault("api_key", os.environ["VLLM_API_KEY"])
    return texts


def _from_file(name: str) -> dict[str, str]:
    """Settings of a TOML file, as the texts that flags would carry."""
    try:
        table = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {name}: {error}") from None
    known = {each.name for each in fields(Config)}
    texts = {key.replace("-", "_"): _as_text(value) for key, value in table.items()}
    if unknown := sorted(set(texts) - known):
        raise ConfigError(f"--config {name}: {_unknown_flag(flag(unknown[0]))}")
    return texts


def _as_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={count}" for key, count in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse(name: str, hint: Any, text: str) -> Any:
    """One setting's text as its declared type."""
    try:
        return _convert(hint, text)
    except (ValueError, KeyError):
        wanted = "|".join(get_args(hint)) if get_origin(hint) is Literal else _describe(hint)
        raise ConfigError(f"{flag(name)} takes {wanted}, got {text!r}") from None


def _convert(hint: Any, text: str) -> Any:
    inner = next((each for each in get_args(hint) if each in (int, float, str)), hint)
    match get_origin(hint):
        case origin if origin is Literal:
            return get_args(hint)[get_args(hint).index(text)]
        case origin if origin is tuple:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        case origin if origin is dict:
            pairs = (part.split("=") for part in text.split(","))
            return {key.strip(): int(count) for key, count in pairs}
    if hint is bool:
        return {"true": True, "1": True, "false": False, "0": False, "": False}[text.lower()]
    return inner(text)


def _describe(hint: Any) -> str:
    if get_origin(hint) is dict:
        return "image=N,video=N"
    inner = {str(each) for each in (hint, *get_args(hint))}
    return "a whole number" if str(int) in inner else "a number"


# Serving ---------------------------------------------------------------------------------------


def serve(config: Config) -> int:
    """Listen, load, answer until told to stop; returns the exit code."""
    configure(config.log_format)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of each bad request
    keys = load_keys(config)
    config = replace(config, api_key=keys.values)
    service = Service(config)
    server = Server(config, service)
    listener = _listen(config)
    raise_file_limit(Limits())
    loading = _Loading(config, service, server, Serving(config, keys, listener.getsockname()[1]))
    loading.start()
    server.run(sockets=[listener])
    return 1 if loading.failure else server.exit_code


def _listen(config: Config) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; choose another --port"
        ) from None
    return listener


class _Loading(threading.Thread):
    """Loads the model beside the server that already listens."""

    def __init__(self, config: Config, service: Service, server: Server, serving: Serving) -> None:
        super().__init__(name="litevl-loading", daemon=True)
        self.failure: str | None = None
        self._config, self._service, self._server, self._serving = config, service, server, serving

    def run(self) -> None:
        where = f"{self._config.host}:{self._serving.port}"
        print(f"litevl: listening on {where}, loading {self._config.model}", file=sys.stderr)
        try:
            backend, summary = load_backend(self._config)
            self._service.attach(backend)
            announce(self._serving, backend.card, summary)
        except ConfigError as error:
            self._fail(str(error))
        except Exception as error:
            # Our bug, or the machine's: the origin is worth more than one line.
            logging.getLogger("litevl").exception("loading failed")
            self._fail(f"loading failed: {type(error).__name__}: {error}")

    def _fail(self, reason: str) -> None:
        self.failure = reason
        print(f"litevl: {reason}", file=sys.stderr)
        self._server.should_exit = True


def load_backend(config: Config) -> tuple[Backend, dict[str, str]]:
    """Load the model and put engine, processor and media together.

    Returns the backend and what the banner says of it.
    """
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    from litevl.engine.memory import plan_for
    from litevl.media.loader import MediaLoader
    from litevl.models import loader
    from litevl.models.grammar import Grammars
    from litevl.models.processor import Processor

    if not sys.stderr.isatty():
        disable_progress_bar()
    set_verbosity_error()
    path = loader.resolve(config.model)
    model_config = loader.read_config(path)
    settings = loader.read_generation_settings(path, model_config, config.generation_config)
    processor = Processor.load(path, model_config, config)  # small, so its faults show at once
    model = loader.load_model(path, config)
    plan = plan_for(model, config)
    processor = processor.with_max_model_len(plan.max_model_len)
    card = ModelCard(
        names=config.served_model_name or (_default_name(config.model),),
        created=int(time()),
        max_model_len=plan.max_model_len,
        vocab_size=model.vocab_size,
        eos_token_ids=settings.eos_token_ids,
        defaults=settings.defaults,
    )
    summary = {
        "device": f"{model.device}, {str(model.dtype).removeprefix('torch.')}",
        "context": f"{plan.max_model_len} tokens",
        "KV cache": f"{plan.num_bytes / 2**20:,.0f} MiB, {plan.num_blocks} blocks",
    }
    backend = Backend(
        card=card,
        engine=_engine(model, plan, config),
        preprocessor=processor,
        grammars=Grammars(
            processor.tokenizer,
            vocab_size=model.vocab_size,
            eos_token_ids=settings.eos_token_ids,
        ),
        media=MediaLoader(processor, config),
    )
    return backend, summary


def _engine(model: Any, plan: Any, config: Config) -> Any:
    """The engine around a loaded model."""
    from litevl.engine.blocks import BlockPool
    from litevl.engine.encoder_cache import EncoderCache
    from litevl.engine.engine import Engine
    from litevl.engine.memory import batched_tokens
    from litevl.engine.runner import Runner
    from litevl.engine.sampler import Sampler
    from litevl.engine.scheduler import Scheduler

    encoder_cache: EncoderCache[Any] = EncoderCache(plan.encoder_bytes)
    scheduler = Scheduler(
        BlockPool(plan.num_blocks, model.backend.block_size),
        encoder_cache,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=batched_tokens(model, config),
    )
    sampler = Sampler(model.vocab_size, config.max_num_seqs, model.device)
    runner = Runner(model, model.new_cache(plan.num_blocks), sampler, encoder_cache)
    engine = Engine(
        scheduler,
        runner,
        max_model_len=plan.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_queued_reqs=config.max_num_queued_reqs,
    )
    if model.device.type == "cpu":  # where one large picture may take minutes, layer by layer
        model.on_each_layer(engine.beat)
    return engine


def _default_name(model: str) -> str:
    if model == "demo":
        return "litevl-demo"
    return Path(model).name if Path(model).is_dir() else model
