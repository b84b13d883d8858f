"""Keys that the operator gave or that were made, and what the terminal says of a good start.

Called by `serve.py`. Knows the config and the model card; knows no HTTP.
"""

import os
import re
import secrets
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import quote

from litevl import __version__
from litevl.addresses import addresses, is_loopback
from litevl.config import Config
from litevl.errors import ConfigError
from litevl.sequence import ModelCard

_KEY = re.compile(r"(?!#)[!-+\--~]+")  # no note; no comma, which parts keys elsewhere
FIRST_WORD = "grep -Eom1 '[^[:space:]]+'"  # of a key file, whose first line may be empty
SAMPLE_REQUEST = Path(__file__).resolve().parent / "demo" / "sample-request.json"


def load_keys(config: Config) -> Config:
    """The same with all keys that may call in `api_key`, those of the key file among them, which is
    made when it does not exist yet.

    Raises ConfigError when a public address would be served without one.
    """
    if config.no_api_key:
        return replace(config, api_key=(), api_key_file=None)
    file = _key_file(config)
    keys = (_read_or_make(file) if file else ()) + config.api_key
    # A proxy that serves it elsewhere may call it by this machine's name, as nginx does unasked.
    way = f"--public-url {config.public_url}" if config.public_url else f"--host {config.host}"
    if not keys and (config.public_url or not is_loopback(config.host)):
        raise ConfigError(
            f"{way} is reachable from elsewhere and no key is set: give "
            "--api-key-file FILE (made if missing) or LITEVL_API_KEY, or say --no-api-key"
        )
    return replace(config, api_key=keys)


def _key_file(config: Config) -> Path | None:
    try:
        return Path(config.api_key_file).expanduser() if config.api_key_file else None
    except RuntimeError as error:  # a user without a home, or none at all
        raise ConfigError(f"--api-key-file {config.api_key_file}: {error}") from None


def _read_or_make(file: Path) -> tuple[str, ...]:
    try:
        if not file.exists():
            _write_private(file, f"sk-litevl-{secrets.token_urlsafe(24)}\n")
        lines = file.read_text(encoding="ascii").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {file}: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise ConfigError(f"--api-key-file {file} holds no key; write one a line, or delete it")
    if not all(map(_KEY.fullmatch, keys)):
        # As keys, the words of a note would let anybody in.
        raise ConfigError(
            f"--api-key-file {file} holds more than keys; write one a line, no notes, no commas"
        )
    return keys


def _write_private(file: Path, text: str) -> None:
    """Write a file that only its user can read: a new one, in nobody else's and through no link."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)


def mask(key: str) -> str:
    """Enough of a key to recognise it by."""
    return f"{key[:4]}…{key[-2:]}" if len(key) > 12 else "…"


def banner(
    config: Config, port: int, card: ModelCard, summary: dict[str, str], *, tells_key: bool = False
) -> str:
    """What is served, where, with which key, and a line that can be pasted.

    `tells_key` puts the key into the page's link: for a terminal, never for a log.
    """
    where = addresses(config, port)
    facts = {"model": ", ".join(card.names)} | summary
    facts |= {name: f"{origin}/v1" for name, origin in asdict(where).items() if origin}
    facts["key"] = _key_line(config)
    if not config.no_page:
        fragment = f"#key={quote(config.api_key[0], safe='')}" if config.api_key else ""
        facts["page"] = f"{where.local}/{fragment if tells_key else ''}"
    lines = [f"  {name:<9}{value}" for name, value in facts.items()]
    return "\n".join(
        ["", f"  litevl {__version__} is ready", "", *lines, "", *_curl(config, where.local), ""]
    )


def _key_line(config: Config) -> str:
    if not config.api_key:
        return "none: anyone who reaches this address may call"
    file = _key_file(config)
    return mask(config.api_key[0]) + (f" in {file}" if file else "")


def _curl(config: Config, origin: str) -> list[str]:
    """A request about the sample picture, ready to paste into another terminal."""
    lines = ["  Try it in another terminal:", "", f"    curl {origin}/v1/chat/completions \\"]
    if path := _key_file(config):
        file = shlex.quote(str(path.absolute()))
        lines.append(f'      -H "Authorization: $({FIRST_WORD} {file})" \\')
    elif config.api_key:
        lines.append('      -H "Authorization: $API_KEY" \\')
    return [*lines, f"      -d @{shlex.quote(str(SAMPLE_REQUEST))}"]
