"""Who may call: every form of the key, on every address."""

from collections.abc import Iterator

import httpx
import pytest

from fakes import KEY, Rig, body, running
from litevl.api.app import routes
from litevl.api.auth import OPEN_PATHS, Keys, is_of_this_machine
from litevl.api.overview import page_routes
from litevl.api.records import Records
from litevl.api.service import Service
from litevl.config import Config

SECOND_KEY = "sk-second"
RIGHT = [
    {"authorization": f"Bearer {KEY}"},
    {"authorization": f"bearer  {KEY}"},
    {"authorization": f"BEARER {SECOND_KEY}"},
    {"authorization": KEY},
    {"x-api-key": KEY},
    {"api-key": SECOND_KEY},
    {"authorization": "Bearer none", "x-api-key": KEY},
]
WRONG = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": f"Basic {KEY}"},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"{KEY} {KEY}"},
    {"x-api-key": ""},
    {"cookie": f"authorization={KEY}"},
]
METHODS = {
    route.path.replace("{name:path}", "tiny"): "POST" if "POST" in (route.methods or ()) else "GET"
    for route in (*routes(Config(), Service(Config()), Records()), *page_routes())
}
OPEN = OPEN_PATHS.union(page.path for page in page_routes())


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with running(api_key=(KEY, SECOND_KEY)) as rig:
        yield rig


def call(rig: Rig, path: str, headers: dict[str, str]) -> httpx.Response:
    method = METHODS.get("/" + path.lstrip("/").removeprefix("v1/").lstrip("/"), "GET")
    content = body(prompt="hi", tokens=[1])  # good for every address but one
    if path.endswith("/tokenize"):
        del content["messages"]
    return httpx.request(method, rig.url + path, headers=headers, json=content, trust_env=False)


@pytest.mark.parametrize("prefix", ["", "/v1", "//v1/"])
@pytest.mark.parametrize("path", METHODS)
def test_every_address_but_the_open_ones_asks_for_the_key(rig: Rig, path: str, prefix: str) -> None:
    is_open = path in ("/", "/health", "/health/live", "/version", "/openapi.json", "/metrics")
    is_open |= path.startswith("/page/")
    assert (call(rig, prefix + path, {}).status_code == 200) == is_open
    assert call(rig, prefix + path, RIGHT[0]).status_code == 200


def test_the_open_addresses_exist() -> None:
    assert set(METHODS) >= OPEN_PATHS


@pytest.mark.parametrize("headers", RIGHT, ids=str)
def test_the_key_is_taken_in_every_form(rig: Rig, headers: dict[str, str]) -> None:
    assert call(rig, "/v1/chat/completions", headers).status_code == 200


@pytest.mark.parametrize("headers", WRONG, ids=str)
def test_anything_else_is_401_with_a_challenge(rig: Rig, headers: dict[str, str]) -> None:
    answer = call(rig, "/v1/chat/completions", headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.json()["error"]["type"] == "authentication_error"
    assert KEY not in answer.text


def test_unknown_addresses_tell_a_stranger_nothing(rig: Rig) -> None:
    assert call(rig, "/v1/nothing", {}).status_code == 401
    assert call(rig, "/health/../v1/models", {}).status_code == 401


def test_the_401_comes_before_the_body_is_read(rig: Rig) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    head += b"content-length: 100000000\r\nexpect: 100-continue\r\n\r\n"
    assert rig.exchange(head).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("headers", [*RIGHT, *WRONG], ids=str)
def test_without_a_configured_key_everybody_may_call(headers: dict[str, str]) -> None:
    assert Keys(()).match([(n.encode(), v.encode()) for n, v in headers.items()]) is not None


# Without a key, for this machine alone -----------------------------------------------------------

OWN = [
    {},
    {"host": "localhost"},
    {"host": "LocalHost:8000"},
    {"host": "litevl.localhost:8000"},
    {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"},
    {"host": "192.168.1.7", "origin": "https://192.168.1.7"},
    {"host": "[::1]:8000", "origin": "http://[::1]:8000"},
    {"host": "127.0.0.1", "origin": "chrome-extension://abcdefgh"},
]
FOREIGN = [
    {"host": "evil.example"},
    {"host": "evil.example:8000", "origin": "http://evil.example:8000"},  # rebound
    {"host": "localhost.evil.example"},
    {"host": "127.0.0.1.evil.example"},
    {"host": "evillocalhost"},
    {"host": "127.0.0.1:8000@evil.example"},
    {"host": ""},
    {"host": "127.0.0.1:8000", "origin": "http://evil.example"},
    {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:3000"},
    {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000.evil.example"},
    {"host": "127.0.0.1:8000", "origin": "null"},
    {"host": "127.0.0.1:8000", "origin": ""},
]


@pytest.mark.parametrize("headers", [*OWN, *FOREIGN], ids=str)
def test_only_what_no_foreign_page_can_send_is_of_this_machine(headers: dict[str, str]) -> None:
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert is_of_this_machine(sent) == (headers in OWN)


def test_without_a_key_a_page_of_another_origin_uses_nothing() -> None:
    evil = {"origin": "http://evil.example", "content-type": "text/plain"}
    with running(api_key=()) as rig:
        for path in METHODS:
            is_open = path in OPEN
            assert (call(rig, path, evil).status_code == 403) != is_open
            assert (call(rig, path, {"host": "evil.example"}).status_code == 403) != is_open
            assert call(rig, path, {}).status_code == 200
    with running(api_key=(), no_api_key=True) as rig:  # behind somebody's own proxy
        assert call(rig, "/models", {"host": "models.example"}).status_code == 200


def test_a_key_is_told_of_its_own_requests_alone(rig: Rig) -> None:
    mine = {"authorization": f"Bearer {KEY}", "x-request-id": "mine"}
    assert call(rig, "/v1/chat/completions", mine).status_code == 200
    told = {}
    for key in (KEY, SECOND_KEY):
        status = call(rig, "/v1/status", {"authorization": f"Bearer {key}"}).json()
        while key == KEY and not status["recent"]:  # told after the client has its answer
            status = call(rig, "/v1/status", mine).json()
        told[key] = {each["id"] for each in status["recent"]}
    assert "mine" in told[KEY] and "mine" not in told[SECOND_KEY]
