"""What is told of requests by `/metrics` and `/v1/status`, with fakes behind the server."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes import (
    ANSWER,
    CARD,
    KEY,
    PATIENCE,
    TOKENS_PER_ITEM,
    Rig,
    body,
    request_bytes,
    running,
    say,
)
from litevl.api import status as status_endpoints
from litevl.api.metrics import RATE_SECONDS, Histogram, Rate
from litevl.api.records import NUM_RECENT
from litevl.errors import InternalError, MediaError, QueueFullError

NUM_TOKENS = len(say(ANSWER))
LABELS = {"model_name": "tiny", "engine": "0"}
SECRET = "the secret recipe"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,c2VjcmV0"}}
CLIP = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,c2VjcmV0"}}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def what_is_told_is_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_endpoints, "METRICS_S", 0)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with running() as rig:
        yield rig


def samples(rig: Rig) -> Samples:
    """Every sample by name and its own labels; those that all carry are checked and left out."""
    answer = httpx.get(f"{rig.url}/metrics", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        for each in family.samples:
            own = {name: text for name, text in each.labels.items() if name not in LABELS}
            assert each.labels == LABELS | own
            key = (each.name, tuple(own.items()))
            assert key not in found
            found[key] = each.value
    return found


def value(rig: Rig, name: str, **labels: str) -> float:
    return samples(rig)[name, tuple(labels.items())]


def finished(rig: Rig) -> dict[str, float]:
    """Ended answers by their reason, zeros left out."""
    return by_label(rig, "vllm:request_success_total")


def rejected(rig: Rig) -> dict[str, float]:
    return by_label(rig, "litevl:requests_rejected_total")


def by_label(rig: Rig, name: str) -> dict[str, float]:
    found = samples(rig)
    return {key[1][0][1]: count for key, count in found.items() if key[0] == name and count}


def status(rig: Rig) -> Any:
    answer = rig.client.get("/v1/status")
    assert answer.status_code == 200
    return answer.json()


def recent(rig: Rig, count: int) -> list[Any]:
    """The overview's last requests, when so many have been told."""
    wait_for(lambda: len(status(rig)["recent"]) == count)
    told: list[Any] = status(rig)["recent"]
    return told


def wait_for(condition: Callable[[], bool]) -> None:
    """A request's end is told after the client has its answer, or has gone."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end


def stream(rig: Rig, **fields: Any) -> str:
    with rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True, **fields)) as got:
        return got.read().decode()


def with_media(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "hi"}]}]}


# Counters --------------------------------------------------------------------------------------


def test_before_any_request_all_is_zero(rig: Rig) -> None:
    found = samples(rig)
    info = ("vllm:cache_config_info", (("block_size", "16"), ("num_gpu_blocks", "8")))
    assert found.pop(info) == 1
    assert set(found.values()) == {0.0}


def test_whole_and_streamed_answers_are_counted_alike(rig: Rig) -> None:
    for _ in range(3):
        assert rig.chat().status_code == 200
        assert stream(rig).endswith("data: [DONE]\n\n")
    recent(rig, 6)
    found = samples(rig)
    assert found["vllm:prompt_tokens_total", ()] == 6 * len("hi")
    assert found["vllm:generation_tokens_total", ()] == 6 * NUM_TOKENS
    assert finished(rig) == {"stop": 6}
    assert rejected(rig) == {}
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_inference_time_seconds",
        "request_time_per_output_token_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
    ):
        assert found[f"vllm:{name}_count", ()] == 6, name
        assert found[f"vllm:{name}_bucket", (("le", "+Inf"),)] == 6, name
    assert found["vllm:request_generation_tokens_sum", ()] == 6 * NUM_TOKENS
    assert found["vllm:request_generation_tokens_bucket", (("le", "20.0"),)] == 0
    assert found["vllm:request_generation_tokens_bucket", (("le", "50.0"),)] == 6


def test_every_token_after_the_first_has_a_latency_under_both_names(rig: Rig) -> None:
    rig.engine.hold(1)
    with rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as got:
        lines = got.iter_lines()
        next(lines)  # the first token came alone: no other shares its delta
        rig.engine.release()
        assert "data: [DONE]" in [*lines]
    found = samples(rig)
    for name in ("inter_token_latency_seconds", "time_per_output_token_seconds"):
        assert found[f"vllm:{name}_count", ()] == NUM_TOKENS - 1


def test_each_of_several_answers_counts_and_their_prompt_once(rig: Rig) -> None:
    assert rig.chat(n=3, max_tokens=2).status_code == 200
    assert finished(rig) == {"length": 3}
    found = samples(rig)
    assert found["vllm:prompt_tokens_total", ()] == len("hi")
    assert found["vllm:generation_tokens_total", ()] == 6
    assert found["vllm:time_to_first_token_seconds_count", ()] == 3


def test_text_completions_are_counted_too(rig: Rig) -> None:
    answer = rig.client.post("/v1/completions", json={"prompt": ["ab", "cde"], "max_tokens": 2})
    assert answer.status_code == 200
    assert finished(rig) == {"length": 2}
    assert value(rig, "vllm:prompt_tokens_total") == 5


def test_an_answer_that_ends_by_calling_tools_has_stopped(rig: Rig) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    rig.engine.script = lambda sequence: say(call)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    answer = rig.chat(tools=[tool]).json()
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert finished(rig) == {"stop": 1}


def test_pictures_and_clips_are_counted_by_kind(rig: Rig) -> None:
    assert rig.chat(**with_media(PICTURE, CLIP)).status_code == 200
    assert rig.chat(**with_media(PICTURE)).status_code == 200
    found = samples(rig)
    assert found["litevl:media_tokens_total", (("kind", "image"),)] == 2 * TOKENS_PER_ITEM
    assert found["litevl:media_tokens_total", (("kind", "video"),)] == TOKENS_PER_ITEM
    assert found["litevl:media_decode_seconds_count", (("kind", "image"),)] == 1
    assert found["litevl:media_decode_seconds_sum", (("kind", "video"),)] == 0.25
    assert found["litevl:media_cache_hits_total", ()] == 1
    assert found["litevl:video_frames_total", ()] == 1


def test_what_the_engine_holds_is_asked_when_prometheus_asks(rig: Rig) -> None:
    rig.engine.hold(1)
    with rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True, n=2)) as got:
        lines = got.iter_lines()
        next(lines)
        found = samples(rig)
        assert found["vllm:num_requests_running", ()] == 2
        for name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
            assert found[name, ()] == 0.25
        assert status(rig)["running"] == 2
        assert status(rig)["recent"] == []
        rig.engine.release()
    wait_for(lambda: value(rig, "vllm:num_requests_running") == 0)
    assert value(rig, "vllm:kv_cache_usage_perc") == 0
    assert value(rig, "vllm:prefix_cache_queries_total") == 2 * len("hi")


def test_the_text_is_not_written_anew_for_everybody_who_asks(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = samples(rig)
    assert rig.chat().status_code == 200
    recent(rig, 1)
    monkeypatch.setattr(status_endpoints, "METRICS_S", PATIENCE)
    assert samples(rig) == before
    monkeypatch.setattr(status_endpoints, "METRICS_S", 0)
    assert samples(rig) != before


# Every way out ---------------------------------------------------------------------------------


def test_what_is_refused_is_counted_by_its_code_once(rig: Rig) -> None:
    assert rig.chat(temperature="hot").status_code == 400
    assert rig.chat(model="other").status_code == 404
    assert rig.client.get("/v1/nothing").status_code == 404
    assert rig.client.get("/v1/chat/completions").status_code == 405
    assert httpx.get(f"{rig.url}/v1/models", trust_env=False).status_code == 401
    rig.engine.refusal = QueueFullError("Full.")
    assert rig.chat(n=2).status_code == 429
    assert stream(rig).count("rate_limit_exceeded") == 1
    rig.media.error = MediaError("messages", "broken", code="image_parse_error")
    assert rig.chat(**with_media(PICTURE)).status_code == 400
    told = {
        "invalid_value": 1,
        "model_not_found": 1,
        "not_found": 1,
        "method_not_allowed": 1,
        "invalid_api_key": 1,
        "rate_limit_exceeded": 2,
        "image_parse_error": 1,
    }
    wait_for(lambda: rejected(rig) == told)
    assert finished(rig) == {}
    assert value(rig, "vllm:prompt_tokens_total") == 0


def test_a_bug_and_a_loading_server_are_refusals_too() -> None:
    with running(is_loaded=False) as rig:
        assert rig.chat().status_code == 503
        assert httpx.get(f"{rig.url}/metrics", trust_env=False).text == ""
        assert status(rig)["status"] == "loading"
        assert status(rig)["model"] is None
        rig.service.report("weights", 3, 4)
        assert status(rig)["loading"] == {"phase": "weights", "progress": 0.75}
        rig.attach()
        rig.preprocessor.error = RuntimeError(SECRET)
        assert rig.chat().status_code == 500
        wait_for(lambda: rejected(rig) == {"server_is_overloaded": 1, "server_error": 1})


def test_a_failure_within_a_stream_ends_its_answers_as_errors(rig: Rig) -> None:
    rig.engine.hold(1)
    with rig.client.stream("POST", "/v1/chat/completions", json=body(stream=True, n=2)) as got:
        lines = got.iter_lines()
        next(lines)
        rig.engine.failure = InternalError("lost")
        rig.engine.release()
        assert any('"error"' in line for line in lines)
    wait_for(lambda: finished(rig) == {"error": 2})
    assert rejected(rig) == {}
    (last,) = recent(rig, 1)
    assert (last["status"], last["finish_reason"], last["error"]) == (200, "error", "server_error")


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_aborts_its_answers(rig: Rig, is_stream: bool) -> None:
    rig.engine.script = lambda sequence: [65] * 400
    rig.engine.hold(3)
    with rig.connect() as connection:
        connection.sendall(request_bytes(stream=is_stream, n=2))
        rig.engine.wait_until(lambda engine: engine.num_running == 2)
        if is_stream:
            assert connection.recv(12) == b"HTTP/1.1 200"
    wait_for(lambda: finished(rig) == {"abort": 2})
    (last,) = recent(rig, 1)
    assert last["status"] == (200 if is_stream else 499)
    assert (last["finish_reason"], last["error"]) == ("abort", None)
    assert value(rig, "vllm:num_requests_running") == 0
    assert value(rig, "vllm:e2e_request_latency_seconds_count") == 0


def test_a_client_that_leaves_before_its_prompt_is_ready_aborts_one(rig: Rig) -> None:
    rig.preprocessor.may_go.clear()
    with rig.connect() as connection:
        connection.sendall(request_bytes(n=2))
        assert rig.preprocessor.entered.wait(PATIENCE)
    wait_for(lambda: finished(rig) == {"abort": 1})
    rig.preprocessor.may_go.set()
    assert rejected(rig) == {}


def test_a_client_that_leaves_within_its_body_aborts_one(rig: Rig) -> None:
    with rig.connect() as connection:
        connection.sendall(request_bytes()[:-5])
    wait_for(lambda: finished(rig) == {"abort": 1})
    assert [each["status"] for each in recent(rig, 1)] == [499]


def test_labels_are_bounded_whatever_is_sent(rig: Rig) -> None:
    rig.chat(temperature="hot")
    rig.client.get("/v1/nothing")
    rig.chat(model="other")
    wait_for(lambda: len(rejected(rig)) == 3)
    before = set(samples(rig))
    for number in range(20):
        rig.chat(**{"temperature": f"hot{number}"})
        rig.chat(model=f"model-{number}")
        rig.client.get(f"/v1/nothing/{number}", headers={"x-request-id": f"id-{number}"})
        rig.chat(messages=[{"role": f"role-{number}", "content": "x"}])
    assert set(samples(rig)) == before


# The overview ----------------------------------------------------------------------


def test_status_tells_phase_load_and_the_last_requests(rig: Rig) -> None:
    answer = rig.chat(**with_media(PICTURE, CLIP))
    told = status(rig)
    assert set(told) == {
        *("status", "model", "version", "uptime_seconds", "max_model_len", "running", "waiting"),
        *("kv_cache", "tokens_per_second", "recent", "loading", "addresses", "defaults"),
    }
    assert told["addresses"] == {"local": rig.url, "network": None, "public": None}
    assert told["loading"] is None and told["defaults"] == asdict(CARD.defaults)
    assert (told["status"], told["model"], told["max_model_len"]) == ("ready", "tiny", 512)
    assert told["kv_cache"] == {"usage": 0, "blocks": 8, "block_size": 16}
    assert told["uptime_seconds"] > 0
    (last,) = recent(rig, 1)
    assert last.pop("total_ms") >= last.pop("ttft_ms") > 0
    assert abs(time.time() - last.pop("when")) < PATIENCE
    assert last == {
        "id": answer.headers["x-request-id"],
        "status": 200,
        "error": None,
        "finish_reason": "stop",
        "images": 1,
        "videos": 1,
        "prompt_tokens": answer.json()["usage"]["prompt_tokens"],
        "cached_tokens": 0,
        "completion_tokens": NUM_TOKENS,
    }


def test_the_last_requests_are_bounded_and_the_newest_comes_first(rig: Rig) -> None:
    for number in range(NUM_RECENT + 3):
        rig.client.post(
            "/v1/chat/completions", json=body(max_tokens=1), headers={"x-request-id": f"q{number}"}
        )
    last = NUM_RECENT + 2
    wait_for(lambda: status(rig)["recent"][0]["id"] == f"q{last}")
    told = [each["id"] for each in recent(rig, NUM_RECENT)]
    assert told == [f"q{number}" for number in range(last, last - NUM_RECENT, -1)]


def test_strangers_and_other_addresses_push_nobody_out(rig: Rig) -> None:
    assert rig.chat().status_code == 200
    recent(rig, 1)
    httpx.post(f"{rig.url}/v1/chat/completions", json=body(), trust_env=False)
    rig.client.get("/v1/models")
    assert [each["status"] for each in status(rig)["recent"]] == [200]


def test_nothing_of_a_request_or_an_answer_is_told_anywhere(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rig.engine.script = lambda sequence: say(SECRET)
    secret = [{"role": "user", "content": [PICTURE, {"type": "text", "text": SECRET}]}]
    rig.chat(messages=secret, user=SECRET, stop=["never" + SECRET])
    stream(rig, messages=secret)
    rig.chat(model=SECRET)
    rig.chat(temperature=SECRET)
    rig.client.get(f"/v1/models/{SECRET}")
    rig.client.get(f"/v1/{SECRET}?q={SECRET}", headers={"x-request-id": SECRET})
    rig.client.post("/v1/chat/completions", content=SECRET.encode())
    recent(rig, 5)
    told = [
        httpx.get(f"{rig.url}/metrics", trust_env=False).text,
        rig.client.get("/v1/status").text,
        "\n".join(each.getMessage() for each in caplog.records if each.name.startswith("litevl")),
    ]
    for text in told:
        assert text
        for word in ("secret", "recipe", "c2VjcmV0", KEY):
            assert word not in text


# Who may read ----------------------------------------------------------------------------------


def test_metrics_can_be_put_behind_the_key() -> None:
    with running(metrics_needs_key=True) as rig:
        assert httpx.get(f"{rig.url}/metrics", trust_env=False).status_code == 401
        assert rig.client.get("/metrics").status_code == 200
        assert httpx.get(f"{rig.url}/health", trust_env=False).status_code == 200


# The parts -------------------------------------------------------------------------------------


def test_a_value_at_a_bound_lies_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for each in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(each)
    histogram.observe(1.25, 3)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 7), ("+Inf", 8)]
    assert histogram.sum == 14.0 + 3.75


def test_the_rate_is_that_of_the_last_full_seconds() -> None:
    rate = Rate()
    assert rate.per_second(1000.5) == 0
    for tenth in range(10 * RATE_SECONDS):
        rate.add(5, 1000 + tenth / 10)
    assert rate.per_second(1000 + RATE_SECONDS) == 50
    rate.add(10**6, 1000 + RATE_SECONDS)  # of a second that has only begun
    assert rate.per_second(1000.5 + RATE_SECONDS) == 50
    assert rate.per_second(1000 + 10 * RATE_SECONDS) == 0
