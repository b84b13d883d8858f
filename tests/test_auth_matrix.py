"""Nobody gets in: every address x key x host x path x method, over raw sockets, without a key.

The addresses come from the route table, so a new one is in here by itself. Answers are never
interpreted: without a key none may be 2xx but for an open address, and none our fault.
"""

import ast
import os
import random
import re
import subprocess
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from fakes import KEY, Rig, running
from litevl.api import app, auth
from litevl.api.auth import OPEN_PATHS
from test_auth import METHODS, OPEN

ROOT = Path(__file__).resolve().parent.parent
CLOSED = {path: method for path, method in METHODS.items() if path not in OPEN}
WORDS = ("GET", "POST", "HEAD", "OPTIONS", "TRACE", "get", "PUT", "DELETE")
HOSTS = (
    b"x", b"a/?", b"a/#", b"x/health/live?", b"a@b", b"a:99999", b"\xff\xfe", b"", b"/health",
)  # fmt: skip
NO_KEYS = tuple(
    lines.replace(b"KEY", KEY.encode())
    for lines in (
        b"", b"authorization:\r\n", b"authorization: Bearer\r\n", b"authorization: Bearer \r\n",
        b"authorization: bearer wrong\r\n", b"authorization: BEARER KEYx\r\n",
        b"authorization: " + KEY[:-1].encode() + b"\r\n",
        b"authorization: " + KEY.upper().encode() + b"\r\n",
        b"authorization: wrong\r\nauthorization: Bearer wrong\r\n", b'authorization: "KEY"\r\n',
        b"authorization: Basic KEY\r\n", b"authorization: Bearer KEY, Bearer KEY\r\n",
        b"authorization: Bearer\tKEYx\r\n", b"x-api-key:\r\n", b"x-api-key: Bearer KEY\r\n",
        b"x-api-key: wrong\r\napi-key: wrong\r\n", b"x_api_key: KEY\r\n", b"apikey: KEY\r\n",
        b"cookie: api-key=KEY\r\n", b"proxy-authorization: Bearer KEY\r\n",
        b"x-forwarded-for: 127.0.0.1\r\nx-original-url: /health\r\n",
        b"x-http-method-override: GET\r\nx-rewrite-url: /health\r\n",
    )
)  # fmt: skip
PATHS = tuple(
    path.encode()
    for path in (
        "{}", "/v1{}", "//v1/..{}", "/v1%2f..{}", "{}/", "{};x", "{};/health", "http://x{}", "x{}",
        "http://x/health@{}", "/health/..{}", "/health/%2e%2e{}", "/health/live/..{}", "/.{}", "*",
        "{}%00", "{}%00/health", "{}/../health/live", "{}%2f..%2fhealth", "/health;{}", "/\\..{}",
        "{}?/health/live", "{}?api_key=" + KEY, "{}?key=" + KEY + "&authorization=Bearer+" + KEY,
        "/%2fhealth/..{}", "{}#/health", "/v1/v1{}", "/HEALTH/..{}", "{}%3f/health", "\x00{}",
    )
)  # fmt: skip


def request(*parts: Any) -> bytes:
    method, path, form, host, key = parts
    target = form.replace(b"{}", path.replace("{name:path}", "tiny").encode())
    line: bytes = method.encode() + b" " + target + b" HTTP/1.1\r\n"
    whole: bytes = line + b"host: " + host + b"\r\n" + key + b"content-length: 0\r\n"
    return whole


def requests() -> Iterator[bytes]:
    """Everything strange by itself on every address; then as many as asked for of all together."""
    for path, own in CLOSED.items():
        plain = (own, path, PATHS[0], HOSTS[0], NO_KEYS[0])
        for place, forms in ((0, WORDS), (2, PATHS), (3, HOSTS), (4, NO_KEYS)):
            for form in forms:
                yield request(*plain[:place], form, *plain[place + 1 :])
    draw, kinds = random.Random(6), (WORDS, tuple(CLOSED), PATHS, HOSTS, NO_KEYS)
    for _ in range(int(os.environ.get("AUTH_REQUESTS", "3000"))):
        yield request(*map(draw.choice, kinds))


def statuses(rig: Rig, some: list[bytes]) -> list[int]:
    """Of an answer to each; many on one connection, until the server closes it."""
    found: list[int] = []
    while len(found) < len(some):
        batch = some[len(found) :][:100]
        batch[-1] += b"connection: close\r\n"
        answers = rig.exchange(b"".join(each + b"\r\n" for each in batch))
        found += map(int, re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers))
    return found


def wrong(rig: Rig, some: Iterable[bytes]) -> list[tuple[bytes, int]]:
    """Requests that got something other than a refusal, and what."""
    asked = list(dict.fromkeys(some))
    got = statuses(rig, list(asked))
    assert len(got) == len(asked)
    return [pair for pair in zip(asked, got, strict=True) if pair[1] not in (400, 401)]


def test_without_a_key_nothing_but_the_open_addresses_answers_in_any_spelling() -> None:
    with running() as rig:
        assert wrong(rig, requests()) == []
        assert rig.engine.added == []


def test_a_hole_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "OPEN_PATHS", OPEN_PATHS | {"/models"})
    with running() as rig:
        found = wrong(rig, (each for each in requests() if each.startswith(b"GET /v1/models ")))
        assert {status for _, status in found} == {200}


@pytest.mark.parametrize("path", CLOSED)
def test_the_401_comes_before_any_of_a_large_body(path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {50 * 2**20}\r\n\r\n"
    with running() as rig, rig.connect() as connection:
        connection.sendall(head.encode())
        assert connection.recv(13) == b"HTTP/1.1 401 "


# What the source says --------------------------------------------------------------------------


def test_keys_are_compared_as_digests_in_constant_time_and_in_no_other_way() -> None:
    tree = ast.parse(Path(auth.__file__).read_text(encoding="utf-8"))
    (keys,) = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Keys")
    assert not [node for node in ast.walk(keys) if isinstance(node, ast.Compare)]
    calls = [ast.unparse(node.func) for node in ast.walk(keys) if isinstance(node, ast.Call)]
    assert calls.count("hmac.compare_digest") == 1
    users = chain.from_iterable(
        re.findall(r"^[^`\n]*config\.api_key\b.*", path.read_text(encoding="utf-8"), re.MULTILINE)
        for path in (ROOT / "litevl" / "api").glob("*.py")
    )
    assert all(re.search(r"Keys\(config|bool\(config|if config|not \(config", use) for use in users)


def test_make_serve_shows_the_key_to_nobody_who_lists_processes(tmp_path: Path) -> None:
    (tmp_path / "installed").touch()
    program = tmp_path / "litevl"
    program.write_text(
        "#!/bin/sh\ncat /proc/[0-9]*/cmdline | tr '\\0' ' '\necho;echo got $LITEVL_API_KEY"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [
            "make",
            "--no-print-directory",
            "serve",
            f"BIN={tmp_path}",
            f"INSTALLED={tmp_path}/installed",
        ],
        cwd=ROOT,
        env=os.environ | {"API_KEY": "sk-canary-in-no-list"},
        capture_output=True,
        text=True,
    )
    lists, _, got = done.stdout.rpartition("\ngot ")
    assert got == "sk-canary-in-no-list\n"
    assert "litevl serve demo" in lists and "sk-canary-in-no-list" not in lists
