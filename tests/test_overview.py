"""The page at `/` as HTTP serves it; what it does in a browser is `make test-browser`'s."""

import re
from pathlib import Path

import httpx
import pytest

from fakes import KEY, running
from litevl.addresses import addresses
from litevl.api.overview import FOLDER, page_routes
from litevl.banner import banner
from litevl.config import Config
from litevl.errors import ConfigError
from litevl.sequence import ModelCard, SamplingDefaults

CARD = ModelCard(
    names=("m",),
    created=0,
    max_model_len=8,
    vocab_size=1,
    eos_token_ids=frozenset(),
    defaults=SamplingDefaults(),
)


def text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


TEXTS = [file.name for file in FOLDER.iterdir() if file.suffix in (".html", ".css", ".js", ".svg")]


def test_the_page_is_there_while_the_model_loads_and_asks_for_no_key() -> None:
    with running(is_loaded=False) as rig:
        for route in page_routes():
            answer = httpx.get(rig.url + route.path, trust_env=False)
            assert answer.status_code == 200
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert KEY not in answer.text
            again = {"if-none-match": answer.headers["etag"]}
            answer = httpx.get(rig.url + route.path, headers=again, trust_env=False)
            assert (answer.status_code, answer.content) == (304, b"")
        assert httpx.head(rig.url, trust_env=False).headers["content-type"].startswith("text/html")


def test_no_other_file_is_reached() -> None:
    with running() as rig:
        for path in ("/page/", "/page/../overview.py", "/page/%2e%2e/overview.py", "/page/x.js"):
            assert rig.client.get(path).status_code == 404


def test_no_page_takes_it_away() -> None:
    with running(no_page=True) as rig:
        assert rig.client.get("/").status_code == 404
        assert rig.client.get("/page/app.js").status_code == 404
        assert rig.client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_names_no_other_host_and_makes_no_markup_of_text(name: str) -> None:
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`)]*", text(name)))
    assert {each for each in addresses if "w3.org" not in each} - MENTIONED == set()
    found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text(name))
    assert found == []


# what the usage document's script downloads when somebody runs it; the page never does
MENTIONED = {
    "https://qianwen-res.oss-cn-beijing.aliyuncs.com/QVQ/demo.png",
    "https://pai-quickstart-predeploy-hangzhou.oss-cn-hangzhou.aliyuncs.com/modelscope/"
    "algorithms/ms-swift/video_demo.mp4",
}


def test_what_the_files_name_is_served() -> None:
    served = {route.path.removeprefix("/page/") for route in page_routes()}
    named = {name for each in TEXTS for name in re.findall(r'page/([\w-]+\.\w+)["#]', text(each))}
    named |= {name for each in TEXTS for name in re.findall(r'from "\./([\w-]+\.js)"', text(each))}
    assert named and named <= served


@pytest.mark.parametrize(
    ("settings", "local", "network"),
    [
        ({}, "http://127.0.0.1:80", None),
        ({"host": "::1"}, "http://[::1]:80", None),
        ({"host": "10.1.2.3"}, "http://10.1.2.3:80", "http://10.1.2.3:80"),
        ({"ssl_certfile": "a", "ssl_keyfile": "b"}, "https://127.0.0.1:80", None),
    ],
)
def test_addresses_follow_the_host(
    settings: dict[str, str], local: str, network: str | None
) -> None:
    config = Config(**settings)  # type: ignore[arg-type]
    assert (addresses(config, 80).local, addresses(config, 80).network) == (local, network)


def test_everywhere_means_this_machines_address_in_its_network() -> None:
    where = addresses(Config(host="0.0.0.0"), 80)
    assert where.local == "http://127.0.0.1:80"
    assert where.network and where.network.endswith(":80") and "0.0.0.0" not in where.network


def test_the_public_address_is_told_without_what_clients_add() -> None:
    assert addresses(Config(public_url="https://a.b/llm/v1/"), 80).public == "https://a.b/llm"
    for url in ("a.b", "https://", "https:///v1", "http://?a", "ftp://a.b"):
        with pytest.raises(ConfigError, match="--public-url"):
            Config(public_url=url)


def test_only_a_terminal_is_told_the_key_and_only_in_the_pages_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    config = Config(api_key=("sk-a/b#c",))
    log = banner(config, 80, CARD, {})
    assert "http://127.0.0.1:80/\n" in log and "sk-a/b#c" not in log and "#key" not in log
    assert "http://127.0.0.1:80/#key=sk-a%2Fb%23c\n" in banner(config, 80, CARD, {}, tells_key=True)
    without_page = Config(no_page=True, api_key=("sk-a",))
    assert "#key" not in banner(without_page, 80, CARD, {}, tells_key=True)
    assert "http://127.0.0.1:80/\n" in banner(Config(), 80, CARD, {}, tells_key=True)
