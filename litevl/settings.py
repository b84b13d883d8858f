"""Where settings come from: command line over environment over `--config FILE.toml` over defaults.

`cli.py` lets `add_settings` give a command its flags and makes its `Config` with `config_of`. All
of it is generated from `config.Config`; this module knows no setting by name but those that vLLM
has a variable for.
"""

import argparse
import difflib
import os
import shutil
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from litevl.config import Config, flag, grouped
from litevl.errors import UsageError

# Variables of vLLM's that mean the same.
BORROWED = {"VLLM_API_KEY": "api_key", "VLLM_USE_MODELSCOPE": "use_modelscope"}


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are `UsageError`s, with the nearest word that exists."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_formatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` tells more")


def _formatter(prog: str) -> argparse.HelpFormatter:
    width = min(100, shutil.get_terminal_size().columns)
    raw = argparse.RawDescriptionHelpFormatter  # lines of examples stay lines
    return raw(prog, max_help_position=min(38, width // 2), width=width)


def add_settings(parser: argparse.ArgumentParser, names: Collection[str] = ()) -> None:
    """A flag for each of the named settings, or for all, in the groups of `config.py`."""
    parser.add_argument("--config", metavar="FILE.toml", help="settings in a file")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="hub id, local folder, or `demo` (the default)"
    )
    hints = get_type_hints(Config)
    for title, settings in grouped().items():
        group = parser.add_argument_group(title)
        for each in settings:
            if not names or each.name in names:
                _add_flag(group, each, hints[each.name])


def _add_flag(group: Any, setting: Any, hint: Any) -> None:
    options: dict[str, Any] = {"default": None, "dest": setting.name}
    options["help"] = help_of(setting).replace("%", "%%")
    if hint is bool:
        options |= {"action": "store_const", "const": "true"}
    else:
        options["metavar"] = metavar_of(setting.metadata["metavar"], hint)
    group.add_argument(flag(setting.name), **options)


def metavar_of(given: str, hint: Any) -> str:
    """What stands after a flag: what the setting says, or its type."""
    if given:
        return given
    if get_origin(hint) is Literal:
        return "|".join(get_args(hint))
    kinds = {int: "N", float: "X", str: "TEXT"}
    return next(kinds[each] for each in (hint, *get_args(hint)) if each in kinds)


def help_of(setting: Any) -> str:
    """A setting's sentence, with its default where it has one."""
    text = str(setting.metadata["help"])
    is_plain = isinstance(setting.default, int | float | str) and setting.default is not False
    return f"{text} (default: {setting.default})" if is_plain else text


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def refuse_unknown(parser: argparse.ArgumentParser, unknown: list[str]) -> None:
    """Complain of the first argument that the parser left over."""
    if not unknown:
        return
    name = unknown[0].split("=")[0]
    known = [option for action in parser._actions for option in action.option_strings]
    hint = nearest(name, known) or f"; `{parser.prog} --help` lists the flags"
    raise UsageError(f"unknown argument {name}{hint}")


def config_of(namespace: argparse.Namespace) -> Config:
    """The settings behind a command line that was read with flags of `add_settings`."""
    names = {each.name for each in fields(Config)}
    given = {
        name: text for name, text in vars(namespace).items() if name in names and text is not None
    }
    file = namespace.config or os.environ.get("LITEVL_CONFIG")
    texts = (_from_file(file) if file else {}) | _from_environment() | given
    hints = get_type_hints(Config)
    return Config(**{name: _parse(name, hints[name], text) for name, text in texts.items()})


def _from_environment() -> dict[str, str]:
    texts = {
        each.name: os.environ[f"LITEVL_{each.name.upper()}"]
        for each in fields(Config)
        if f"LITEVL_{each.name.upper()}" in os.environ
    }
    for variable, name in BORROWED.items():
        if variable in os.environ:
            texts.setdefault(name, os.environ[variable])
    return texts


def _from_file(name: str) -> dict[str, str]:
    """Settings of a TOML file, as the texts that flags would carry."""
    try:
        table = tomllib.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {name}: {error}") from None
    known = {each.name for each in fields(Config)}
    texts = {key.replace("-", "_"): _as_text(value) for key, value in table.items()}
    if unknown := sorted(set(texts) - known):
        hint = nearest(unknown[0], known).replace("_", "-")
        raise UsageError(f"--config {name}: unknown setting {unknown[0]}{hint}")
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
        raise UsageError(f"{flag(name)} takes {wanted}, got {text!r}") from None


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
    if hint is bool:
        return "true or false"
    inner = {str(each) for each in (hint, *get_args(hint))}
    return "a whole number" if str(int) in inner else "a number"
