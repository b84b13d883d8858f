"""The `litevl` command: the only place where all parts are put together.

`serve` binds its socket and answers `/health` at once; the heavy imports and the model follow in a
thread. `ask` talks to a running server, `info` and `check` tell about a model. Whatever a command
does not need is imported inside it, so that `litevl --help` is instant.
"""

import argparse
import io
import os
import sys
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

from litevl import __version__
from litevl.config import Config
from litevl.errors import ConfigError, UsageError
from litevl.progress import Progress, Report, amount, ignore
from litevl.settings import Parser, add_settings, config_of, nearest, refuse_unknown

EXAMPLES = """examples:
  litevl serve                                       the demo, on this machine alone
  litevl serve Qwen/Qwen2.5-VL-7B-Instruct           a model from the hub
  litevl ask picture.jpg "What is written there?"    asks the running server
  litevl info Qwen/Qwen3-VL-8B-Instruct              does it fit?

`litevl COMMAND --help` tells more of each."""


@dataclass(frozen=True, slots=True)
class Command:
    """One of litevl's commands: what its help says, its arguments, and what runs it."""

    usage: str
    help: str
    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Many[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 1 when something failed, 2 for bad usage."""
    _open_streams()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except ConfigError as error:
        print(f"litevl: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _open_streams() -> None:
    """Whoever started this may have closed stdout, or chosen a codec in which not all can be said.

    What is closed becomes the null device, before a socket takes its number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115 - for good
            setattr(sys, name, stream)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _run(argv: list[str]) -> int:
    parser = _parser()
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        hint = nearest(argv[0], COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {argv[0]}{hint}")
    namespace, unknown = parser.parse_known_args(argv)
    if namespace.command is None:
        parser.print_help()
        return 0
    refuse_unknown(namespace.parser, unknown)
    return COMMANDS[namespace.command].run(namespace)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="litevl",
        usage="litevl COMMAND ...",
        description="A vision-language server behind the OpenAI chat API.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"litevl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="", title="commands")
    for name, command in COMMANDS.items():
        own = commands.add_parser(
            name,
            prog=f"litevl {name}",
            usage=command.usage,
            help=command.help,
            description=command.description,
        )
        own.set_defaults(parser=own)
        command.add_arguments(own)
    return parser


# Commands --------------------------------------------------------------------------------------


def _serve(namespace: argparse.Namespace) -> int:
    from litevl.serve import serve

    return serve(config_of(namespace), load_backend)


def _ask(namespace: argparse.Namespace) -> int:
    from litevl.ask import ask

    return ask(namespace)


def _ask_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="+",
        metavar="FILE... QUESTION",
        help="pictures and clips (`-` is stdin, http(s):// is fetched by the server), then the "
        "question (`-` alone as the last word reads it from stdin)",
    )
    parser.add_argument(
        "--url", metavar="URL", help="the server (LITEVL_URL; default: http://127.0.0.1:8000)"
    )
    parser.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the key; without it LITEVL_API_KEY or API_KEY, then on this machine the "
        "file that `make serve` writes",
    )
    parser.add_argument("--model", metavar="NAME", help="default: the one the server serves")
    parser.add_argument("--max-tokens", metavar="N", type=int, help="longest answer")
    parser.add_argument("--temperature", metavar="X", type=float, help="0 is greedy")


def _info(namespace: argparse.Namespace) -> int:
    _quieten()
    from litevl.info import info

    print(info(config_of(namespace)))
    return 0


def _check(namespace: argparse.Namespace) -> int:
    _quieten()
    from litevl.check import check
    from litevl.engine.memory import plan_for

    def build_engine(model: Any, config: Config) -> Any:
        return _engine(model, plan_for(model, config), config)

    return 0 if check(config_of(namespace), build_engine, Progress()) else 1


def _model_settings(parser: argparse.ArgumentParser) -> None:
    add_settings(parser, MODEL_SETTINGS)


MODEL_SETTINGS = ("dtype", "device", "max_model_len", "revision", "use_modelscope")

COMMANDS = {
    "serve": Command(
        usage="litevl serve [MODEL] [--flag VALUE ...]",
        help="serve a model",
        description="Serve a model. Every flag has a variable LITEVL_<FLAG>; the command line\n"
        "wins over the environment, that over --config FILE.toml.",
        add_arguments=add_settings,
        run=_serve,
    ),
    "ask": Command(
        usage='litevl ask [FILE ...] "QUESTION" [--flag VALUE ...]',
        help="ask a running server about pictures and clips",
        description="Ask a running server; the answer streams to stdout.",
        add_arguments=_ask_arguments,
        run=_ask,
    ),
    "info": Command(
        usage="litevl info [MODEL] [--flag VALUE ...]",
        help="what a model needs and offers",
        description="Tell a model's size, the memory it needs, and what it can do. Its weights\n"
        "are not downloaded.",
        add_arguments=_model_settings,
        run=_info,
    ),
    "check": Command(
        usage="litevl check [MODEL] [--flag VALUE ...]",
        help="compare with transformers, token for token",
        description="Compare greedy tokens with those of transformers' generate on this\n"
        "machine: alone, batched and cached. Exits with 1 where they differ.",
        add_arguments=_model_settings,
        run=_check,
    ),
}


# Loading ---------------------------------------------------------------------------------------


def load_backend(config: Config, report: Report = ignore) -> tuple[Any, dict[str, str]]:
    """Load the model and put engine, processor and media together.

    Returns the backend and what the banner says of it.
    """
    _quieten()
    from litevl.models import hub

    source = hub.find(config)  # light, so that a wrong name is told at once
    from litevl.api.ports import Backend
    from litevl.engine.memory import check_weights, plan_for
    from litevl.media.loader import MediaLoader
    from litevl.models import loader
    from litevl.models.grammar import Grammars
    from litevl.models.needs import needs_of
    from litevl.models.processor import Processor
    from litevl.sequence import ModelCard

    model_config = loader.read_config(source)
    settings = loader.read_generation_settings(
        source.folder, model_config, config.generation_config
    )
    # Small, so its faults show at once.
    processor = Processor.load(str(source.folder), model_config, config)
    device = loader.choose_device(config)
    dtype = loader.choose_dtype(config, device)
    weights = needs_of(model_config).weights(dtype, device.type)
    check_weights(weights, device)
    hub.fetch_weights(source, config, report)
    model = loader.load_model(source, config, report)
    report("warming up", 0, 0, "")
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
    summary = _origin(source) | {
        "device": f"{model.device}, {str(model.dtype).removeprefix('torch.')}",
        "context": f"{plan.max_model_len:,} tokens",
        "memory": f"{amount(weights)} of weights, {amount(plan.num_bytes)} of KV cache for "
        f"{plan.num_blocks * model.backend.block_size:,} tokens",
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


def _quieten() -> None:
    """Let litevl alone speak: what its libraries would say of a good start helps nobody."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")


def _origin(source: Any) -> dict[str, str]:
    """Where the model came from, as the banner says it."""
    if source.hub:
        return {"source": f"{source.name} at {source.hub}", "revision": source.revision}
    return {"source": "bundled with litevl" if source.name == "demo" else str(source.folder)}


def _engine(model: Any, plan: Any, config: Config) -> Any:
    """The engine around a loaded model."""
    from litevl.cache import Cache
    from litevl.engine.blocks import BlockPool
    from litevl.engine.engine import Engine
    from litevl.engine.memory import batched_tokens
    from litevl.engine.runner import Runner
    from litevl.engine.sampler import Sampler
    from litevl.engine.scheduler import Scheduler

    encoder_cache: Cache[Any, Any] = Cache(plan.encoder_bytes)
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
