"""Every benchmark runs in its smallest form and ends in one JSON line; how fast, nobody asserts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bodies, decode, kv, limits, overhead, reference, server, ttft
from tiny_models import make_checkpoint

QUICK = ["--quick", "--threads", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("qwen3_vl", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def last_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    """What a program printed to stdout, which must be one JSON object."""

    def read() -> dict[str, Any]:
        (line,) = capsys.readouterr().out.splitlines()
        figures: dict[str, Any] = json.loads(line)
        assert figures.pop("machine")["threads"] == 1
        return figures

    return read


def test_limits_ends_in_its_rates(last_line: Callable[[], dict[str, Any]]) -> None:
    limits.main(QUICK)
    figures = last_line()
    assert figures.pop("benchmark") == "limits"
    assert all(rate > 0 for rate in figures.values())


def test_overhead_compares_steps_with_bare_forwards(
    checkpoint: Path, last_line: Callable[[], dict[str, Any]]
) -> None:
    overhead.main([*QUICK, "--checkpoint", str(checkpoint)])
    figures = last_line()
    assert figures["benchmark"] == "overhead"
    assert [(p["rows"], p["sampling"]) for p in figures["points"]] == [
        (1, "greedy"), (8, "greedy"), (1, "sampled"), (8, "sampled"), (1, "uncut"), (8, "uncut"),
    ]  # fmt: skip
    assert all(p["step_ms"] > 0 < p["outside_us"] for p in figures["points"])


def test_decode_tells_every_point_its_limit_and_its_peer(
    checkpoint: Path, last_line: Callable[[], dict[str, Any]]
) -> None:
    decode.main([*QUICK, "--checkpoint", str(checkpoint)])
    figures = last_line()
    assert figures["benchmark"] == "decode"
    assert {(p["batch"], p["context"]) for p in figures["points"]} == {
        (1, 256), (8, 256), (1, 1024), (8, 1024),
    }  # fmt: skip
    assert all(p["step_ms"] > 0 < p["limit_ms"] for p in figures["points"])
    assert figures["generate_ms"]["1"] > 0 < figures["limits"]["packed_matvec_gb_s"]


def test_ttft_tells_cold_from_cached(
    checkpoint: Path, last_line: Callable[[], dict[str, Any]]
) -> None:
    ttft.main([*QUICK, "--checkpoint", str(checkpoint)])
    figures = last_line()
    assert figures["benchmark"] == "ttft"
    assert figures["image_tokens"] == 80
    assert all(figures[kind]["ttft_ms"] > 0 for kind in ("cold", "picture", "prefix"))


def test_kv_preempts_and_its_outputs_stay_equal(
    checkpoint: Path, last_line: Callable[[], dict[str, Any]]
) -> None:
    kv.main([*QUICK, "--checkpoint", str(checkpoint)])
    figures = last_line()
    assert figures["benchmark"] == "kv"
    assert figures["outputs_equal"]
    assert figures["preemptions"] > 0 < figures["recomputed"]
    assert figures["waste"]["worst_bytes"] < figures["waste"]["block_bytes"]


def test_server_streams_a_frame_a_token(last_line: Callable[[], dict[str, Any]]) -> None:
    server.main(QUICK)
    figures = last_line()
    assert figures["benchmark"] == "server"
    for name in ("litevl", "starlette"):
        assert set(figures[name]) == {"1", "16"}
        assert all(rates["frames_s"] >= rates["tokens_s"] > 0 for rates in figures[name].values())


def test_bodies_compares_a_stream_beside_bodies_with_one_alone(
    last_line: Callable[[], dict[str, Any]],
) -> None:
    bodies.main(QUICK)
    figures = last_line()
    assert figures["benchmark"] == "bodies"
    assert figures["body_bytes"] > 24e6 and figures["held_cpu_ms"] > 0
    assert all(figures[name]["frames"] > 0 for name in ("alone", "beside"))


def test_the_reference_is_made_once_and_has_its_shape(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    last_line: Callable[[], dict[str, Any]],
) -> None:
    """Two layers and few words of it: the whole takes half a minute."""
    monkeypatch.setitem(reference.TEXT, "num_hidden_layers", 2)
    monkeypatch.setitem(reference.TEXT, "vocab_size", 2000)
    for _ in range(2):
        reference.main([str(tmp_path / "made"), "--threads", "1"])
        assert last_line()["weight_bytes"] > 0
    model = reference.load(tmp_path / "made", 1)
    assert (model.hidden_size, model.num_deepstack_levels) == (896, 3)
