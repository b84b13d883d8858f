"""Models by name, from a hub on loopback: download, progress, resuming, revisions and refusals.

Each test asks through huggingface_hub, whose address and cache are those of the test.
"""

import errno
import io
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download

from fake_hub import COMMIT, Hub, serve_hub
from litevl.config import Config
from litevl.errors import ConfigError
from litevl.models import hub
from litevl.progress import Progress, ignore
from live import ROOT, environment

CHUNK = 2**16
NAME = "tiny/vlm"


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model of three files, whose weights take several chunks."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen3_vl"}')
    (folder / "model.safetensors").write_bytes(b"litevl" * CHUNK)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "modeling_own.py").write_text("raise SystemExit")
    with serve_hub(Hub(folder)) as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "ENDPOINT", served.address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            served.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield served


def fetch(config: Config, report: Callable[[str, int, int, str], None] = ignore) -> hub.Source:
    source = hub.find(config)
    hub.fetch_weights(source, config, report)
    return source


def refusal(model: str = NAME, revision: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        fetch(Config(model=model, revision=revision))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_download_tells_its_progress_up_to_the_end(online: Hub) -> None:
    told: list[tuple[str, int, int, str]] = []
    source = fetch(Config(model=NAME), lambda *report: told.append(report))
    size = (online.folder / "model.safetensors").stat().st_size
    assert (source.folder / "model.safetensors").stat().st_size == size
    assert [phase for phase, *_ in told] == ["downloading"] * len(told)
    done = [amount for _, amount, _, _ in told]
    assert done == sorted(done) and len(done) >= 3
    assert told[-1] == ("downloading", size, size, "B")


def test_only_safetensors_and_text_are_fetched(online: Hub) -> None:
    source = fetch(Config(model=NAME))
    assert {path.name for path in source.folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_broken_transfer_goes_on_where_it_broke(online: Hub) -> None:
    online.cut_after = 2 * CHUNK
    source = fetch(Config(model=NAME))
    assert online.ranges == [f"bytes={2 * CHUNK}-"]
    given = (online.folder / "model.safetensors").read_bytes()
    assert (source.folder / "model.safetensors").read_bytes() == given


def test_what_is_there_is_not_fetched_again(online: Hub) -> None:
    fetch(Config(model=NAME))
    asked = len(online.requests)
    fetch(Config(model=NAME))
    assert not any("resolve" in request for request in online.requests[asked:])


def test_a_revision_becomes_a_commit_and_stays_it(online: Hub) -> None:
    source = fetch(Config(model=NAME, revision="v1"))
    assert (source.revision, source.hub) == (COMMIT, online.address)
    assert f"GET /api/models/{NAME}/revision/v1" in online.requests
    weights = [each for each in online.requests if each.endswith(".safetensors")]
    assert weights and all(COMMIT in each for each in weights)
    assert "has no revision 'v2'" in refusal(revision="v2")


def test_a_model_that_is_not_there_is_answered_with_one_that_is(online: Hub) -> None:
    assert "did you mean Qwen/Qwen2.5-VL-7B-Instruct?" in refusal(model="Qwen2.5-VL-7B-Instuct")
    assert "did you mean demo?" in refusal(model="dmeo")
    assert "a private one needs HF_TOKEN" in refusal(model="someone/something")
    assert "neither a folder nor a hub id" in refusal(model="no such/model")


def test_a_gated_model_names_its_page_and_the_token(online: Hub) -> None:
    online.gated = True
    assert f"accept its terms at {online.address}/{NAME}, then set HF_TOKEN" in refusal()


def test_pickled_weights_alone_are_refused(online: Hub) -> None:
    (online.folder / "model.safetensors").unlink()
    assert "no model*.safetensors" in refusal()


def test_a_download_larger_than_the_disk_is_not_begun(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, CHUNK))
    said = refusal()
    assert "the download needs" in said and "free" in said and "HF_HOME" in said
    assert not any(each.startswith("GET") and "safetensors" in each for each in online.requests)


def test_a_disk_that_fills_up_meanwhile_is_told(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    assert "no space left in" in refusal()


def test_without_a_network_the_cache_does_or_the_mirror_is_named(
    online: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(Config(model=NAME))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert fetch(Config(model=NAME)).revision == COMMIT
    said = refusal(model="tiny/other")
    assert "cannot be reached" in said and "HF_ENDPOINT" in said


def test_offline_asks_nobody(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(Config(model=NAME))
    asked = len(online.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(Config(model=NAME)).revision == COMMIT
    assert "HF_HUB_OFFLINE forbids" in refusal(model="tiny/other")
    assert len(online.requests) == asked


def test_half_a_download_is_no_model_offline(online: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    source = hub.find(Config(model=NAME))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not (source.folder / "model.safetensors").exists()
    assert "not wholly in" in refusal()


def test_a_folder_that_is_not_there_is_answered_with_its_neighbour() -> None:
    folder = ROOT / "litevl"
    assert "did you mean" in refusal(model=f"{folder}/dmo") and "/demo?" in refusal(
        model=f"{folder}/dmo"
    )
    assert "holds no config.json" in refusal(model=str(folder))


def test_the_home_of_an_unknown_user_holds_no_model() -> None:
    assert "~nobody-at-all/model is no folder" in refusal("~nobody-at-all/model")


def test_a_revision_of_what_is_no_hubs_is_refused() -> None:
    assert "only models of a hub have revisions" in refusal(model="demo", revision="v1")


def test_modelscope_is_asked_where_the_operator_says_so(
    online: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", online.address)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    told: list[tuple[str, int, int, str]] = []
    config = Config(model=NAME, use_modelscope=True)
    source = fetch(config, lambda *report: told.append(report))
    size = (online.folder / "model.safetensors").stat().st_size
    assert (source.folder / "model.safetensors").stat().st_size == size
    assert (source.hub, source.revision) == ("ModelScope", "master")
    assert told[-1] == ("downloading", size, size, "B")
    assert all("/api/v1/" in request for request in online.requests)
    with pytest.raises(ConfigError, match=r"no model 'tiny/other'"):
        fetch(replace(config, model="tiny/other"))


def test_modelscope_without_its_package_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(ConfigError, match="pip install modelscope-hub"):
        fetch(Config(model=NAME, use_modelscope=True))


def test_info_of_a_mirrors_model_tells_its_commit_and_fetches_no_weights(tmp_path: Path) -> None:
    """The whole way: HF_ENDPOINT and HF_HOME as an operator sets them."""
    with serve_hub(Hub(hub.DEMO)) as mirror:
        variables = {"HF_ENDPOINT": mirror.address, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "litevl", "info", NAME, "--revision", "v1"],
            cwd=ROOT,
            env=environment(tmp_path, HF_HUB_OFFLINE="0", **variables),
            capture_output=True,
            text=True,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"hub           {mirror.address}" in done.stdout
    assert f"revision      {COMMIT}" in done.stdout
    assert not any("safetensors" in request for request in mirror.requests)


# Progress --------------------------------------------------------------------------------------


def test_a_terminal_gets_one_line_a_phase() -> None:
    stream = io.StringIO()
    progress = Progress(stream.write, is_terminal=True)
    for done in range(0, 101, 10):
        progress.report("downloading", done * 2**20, 100 * 2**20, "B")
    progress.report("loading", 1, 2)
    progress.end()
    shown = [line.rpartition("\x1b[K")[2] for line in stream.getvalue().split("\n")]
    assert [line.split()[0] for line in shown if line] == ["downloading", "loading"]
    assert "100 MiB" in shown[0]
    assert all(len(line) <= 100 for line in shown)


def test_a_log_gets_plain_lines_and_few() -> None:
    stream = io.StringIO()
    progress = Progress(stream.write, is_terminal=False)
    for done in range(1000):
        progress.report("downloading", done * 2**20, 1000 * 2**20, "B")
    progress.end()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "litevl: downloading 1,000 MiB" and len(lines) <= 4
    assert "\x1b" not in stream.getvalue()
