"""`litevl ask FILE... "question"`: asks a running server about pictures and clips.

Called by `cli.py`. The answer streams to stdout, thoughts and remarks go to stderr, so that a pipe
gets the answer alone. Knows HTTP and the terminal; nothing of the server but its address and key.
"""

import base64
import json
import mimetypes
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any, TextIO

import httpx

from litevl.addresses import is_loopback
from litevl.errors import ConfigError, UsageError

URL = "http://127.0.0.1:8000"
CONNECT_S = 5.0  # and no limit on how long an answer takes
REASON = 64 * 2**10  # bytes of an error's body that are read
# What moves a terminal's cursor, or the order in which the text behind it is shown.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
JSON = {"content-type": "application/json"}
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def ask(options: Namespace) -> int:
    """Ask, print, and return the exit code: 0 for a whole answer."""
    *files, question = options.words
    if not files and (question == "-" or os.path.isfile(question)):
        raise UsageError(f'ask what about {question}? litevl ask {question} "your question"')
    if "-" in files and question == "-":
        raise UsageError("stdin can be a picture or the question, not both")
    body = _encoded(_body(options, files, _question(question)))
    url = (options.url or os.environ.get("LITEVL_URL") or URL).rstrip("/").removesuffix("/v1")
    is_here = is_loopback(_host(url))
    headers = _key_header(options.api_key_file, is_here)
    try:
        timeout = httpx.Timeout(None, connect=CONNECT_S)
        with (
            # A proxy would look for this machine at home.
            httpx.Client(timeout=timeout, trust_env=not is_here) as client,
            client.stream(
                "POST", f"{url}/v1/chat/completions", content=body, headers=JSON | headers
            ) as response,
        ):
            if response.status_code != 200:
                raise ConfigError(_refusal(response, url, bool(headers)))
            response.encoding = "utf-8"  # as event streams are, whatever codec a server names
            return _print(_events(response), sys.stdout, sys.stderr)
    except httpx.ConnectError as error:
        reason = str(error)
        if "SSL" in reason:  # somebody is there, who shows no certificate that is trusted
            raise ConfigError(f"{url} is not trusted: {_tame(reason)}") from None
        raise ConfigError(
            f"no server at {url}: start one with `litevl serve`, or name another in --url"
        ) from None
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(f"the server at {url} broke off: {_tame(reason)}") from None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"the answer of {url} cannot be shown: it is no stream of text") from None


def _host(url: str) -> str:
    """Whom it leads to, as the client that will dial it reads it."""
    try:
        parsed = httpx.URL(url)
        is_good = parsed.scheme in ("http", "https") and 0 < (parsed.port or 80) < 2**16
        if is_good and parsed.host and "%" not in parsed.host:
            parsed.host.encode("idna")  # as the lookup will
            return parsed.host
    except (httpx.InvalidURL, ValueError):
        pass
    raise UsageError(f"--url takes http://HOST:PORT or https://HOST:PORT, got {url!r}")


# The request -----------------------------------------------------------------------------------


def _question(word: str) -> str:
    try:
        return sys.stdin.read() if word == "-" else word
    except UnicodeDecodeError:
        raise UsageError("the question on stdin is no text in the terminal's codec") from None


def _encoded(body: dict[str, Any]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # bytes of the command line that were no text
        raise UsageError("the question, an address or --model is no text in UTF-8") from None


def _body(options: Namespace, files: Many[str], question: str) -> dict[str, Any]:
    content = [*map(_part, files), {"type": "text", "text": question}]
    chosen = {"model": options.model, "max_tokens": options.max_tokens}
    chosen["temperature"] = options.temperature
    given = {name: value for name, value in chosen.items() if value is not None}
    return {"messages": [{"role": "user", "content": content}], "stream": True} | given


def _part(name: str) -> dict[str, Any]:
    """A picture or a clip as a message part; the server looks at the bytes, not at the name."""
    if name.startswith(("http://", "https://")):
        return _media(name, mimetypes.guess_type(re.split("[?#]", name)[0])[0])
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    try:
        data = (
            sys.stdin.buffer.read() if name == "-" else Path(os.path.expanduser(name)).read_bytes()
        )
    except OSError as error:
        hint = ": the question is one argument, in quotes" if not Path(name).suffix else ""
        raise UsageError(f"cannot read {name}: {error.strerror}{hint}") from None
    if not data:
        raise UsageError(f"{'stdin' if name == '-' else name} is empty")
    return _media(f"data:{kind};base64,{base64.b64encode(data).decode()}", kind)


def _media(url: str, kind: str | None) -> dict[str, Any]:
    name = "video_url" if (kind or "").startswith("video/") else "image_url"
    return {"type": name, name: {"url": url}}


def _key_header(file: str | None, is_here: bool) -> dict[str, str]:
    """The key of the environment, or of a file; a file that was not named is for this machine."""
    key = os.environ.get("LITEVL_API_KEY") or os.environ.get("API_KEY") or ""
    path = Path(os.path.expanduser(file)) if file else _made_key() if is_here else None
    if path and (file or not key):
        try:
            key = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--api-key-file {path}: {error}") from None
    first = key.replace(",", " ").split()[:1]
    if not key.isascii():
        raise ConfigError("LITEVL_API_KEY, or API_KEY, is no key: it holds more than ASCII")
    return {"authorization": f"Bearer {first[0]}"} if first else {}


def _made_key() -> Path | None:
    """Where the server of this user keeps the key it made."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    made = os.environ.get("LITEVL_API_KEY_FILE") or f"{state}/litevl/api-key"
    path = os.path.expanduser(made)
    return Path(path) if os.path.isfile(path) else None


def _refusal(response: httpx.Response, url: str, has_key: bool) -> str:
    """An error answer in one line, with what to do."""
    try:
        body = next(response.iter_bytes(REASON), b"")
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        message = f"{response.status_code} {response.reason_phrase}"
    if response.status_code == 401:
        what = "the key is not one of the server's" if has_key else "the server wants a key"
        return f"{what} ({url}): set LITEVL_API_KEY, or name the server's --api-key-file"
    return _tame(message)


# The answer ------------------------------------------------------------------------------------


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The stream's chunks; raises ConfigError for one that is an error, or for a missing end."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise ConfigError(f"the answer broke off: {_tame(str(event['error'].get('message')))}")
        yield event
    raise ConfigError("the answer broke off: the server closed the connection")


def _print(events: Iterator[dict[str, Any]], out: TextIO, err: TextIO) -> int:
    """Print an answer as it comes; returns the exit code."""
    end, reason, is_thinking = "", None, False
    dim, plain = (DIM, PLAIN) if err.isatty() else ("", "")
    try:
        for choice in (each for event in events for each in event.get("choices") or ()):
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content"):
                _write(err, thought, before="" if is_thinking else dim)
                is_thinking = True
            if text := delta.get("content"):
                if is_thinking:
                    _write(err, "\n", before=plain)
                    is_thinking = False
                _write(out, text, before="")
                end = text[-1]
            reason = choice.get("finish_reason") or reason
    finally:
        if is_thinking:
            _write(err, "\n", before=plain)
    out.write("" if end == "\n" else "\n")
    if reason == "length":
        err.write("(the answer ends here because --max-tokens or the context was reached)\n")
    return 0


def _write(stream: TextIO, text: str, before: str) -> None:
    """What a model says moves no cursor and changes no colour of a terminal."""
    if stream.isatty():
        text = CONTROLS.sub("\ufffd", text)
    stream.write(before + text)
    stream.flush()


def _tame(reason: str) -> str:
    """Nor does a server's reason, which is one line wherever it is written."""
    return CONTROLS.sub("\ufffd", " ".join(reason.split()))
