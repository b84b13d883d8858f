"""What is counted, and how Prometheus reads it: under vLLM's names where they mean the same.

`records.py` counts, on the event loop alone, so nothing here is locked; `status.py` serves the
text. prometheus_client writes it but does not count: its `observe` takes locks and walks through
the buckets, which every token would pay. Knows no HTTP, and nothing of a request but numbers.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TypeVar, get_args

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from litevl.health import EngineStats
from litevl.sequence import MediaKind

TO_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
PER_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
PER_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
DECODING = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
RATE_SECONDS = 10

T = TypeVar("T")


class Histogram:
    """How many values lie at or below each bound."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Note a value that came `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self.sum += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound, and how many lie at or below it."""
        bounds = (*self._bounds, math.inf)
        return list(zip(map(floatToGoString, bounds), accumulate(self._counts), strict=True))


class Rate:
    """How many a second came in the last full seconds."""

    def __init__(self) -> None:
        self._second = 0
        self._counts = [0] * (RATE_SECONDS + 1)  # a ring; the current second's is not full yet

    def add(self, count: int, now: float) -> None:
        if int(now) != self._second:
            self._turn(int(now))
        self._counts[self._second % len(self._counts)] += count

    def per_second(self, now: float) -> float:
        self._turn(int(now))
        current = self._counts[self._second % len(self._counts)]
        return (sum(self._counts) - current) / RATE_SECONDS

    def _turn(self, second: int) -> None:
        size = len(self._counts)
        for each in range(max(self._second + 1, second - size + 1), second + 1):
            self._counts[each % size] = 0
        self._second = second


class Metrics:
    """Everything that was counted since the start. One answer is what vLLM calls a request."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.generation_rate = Rate()
        self.finished = Counter(dict.fromkeys(("stop", "length", "abort", "error"), 0))
        self.rejected: Counter[str] = Counter()  # by the code of the error
        self.connections: Counter[str] = Counter()  # that the server ended, by its reason
        self.time_to_first_token = Histogram(TO_FIRST_TOKEN)
        self.inter_token = Histogram(PER_TOKEN)
        self.time_per_token = Histogram(PER_TOKEN)
        self.total_time = Histogram(PER_REQUEST)
        self.queue_time = Histogram(PER_REQUEST)
        self.prefill_time = Histogram(PER_REQUEST)
        self.decode_time = Histogram(PER_REQUEST)
        self.inference_time = Histogram(PER_REQUEST)
        self.prompt_sizes = Histogram(TOKENS)
        self.answer_sizes = Histogram(TOKENS)
        kinds: tuple[str, ...] = get_args(MediaKind)
        self.media_decode = {kind: Histogram(DECODING) for kind in kinds}
        self.media_tokens = Counter(dict.fromkeys(kinds, 0))
        self.media_hits = 0
        self.video_frames = 0

    def text(self, model_name: str, stats: EngineStats) -> bytes:
        """All of it in Prometheus' text format."""
        families = _Families(model_name)
        self._tell(families)
        _tell_engine(families, stats)
        return generate_latest(families)

    def _tell(self, told: "_Families") -> None:
        told.counter("vllm:prompt_tokens", "Prompt tokens, a prompt once", self.prompt_tokens)
        told.counter("vllm:generation_tokens", "Generated tokens", self.generation_tokens)
        told.counter("vllm:request_success", "Answers that ended", self.finished, "finished_reason")
        for name, help, histogram in (
            ("time_to_first_token_seconds", "From arrival", self.time_to_first_token),
            ("inter_token_latency_seconds", "Between two tokens", self.inter_token),
            ("time_per_output_token_seconds", "Older name of the latency", self.inter_token),
            ("request_time_per_output_token_seconds", "An answer's mean", self.time_per_token),
            ("e2e_request_latency_seconds", "From arrival to the end", self.total_time),
            ("request_queue_time_seconds", "Until it first ran", self.queue_time),
            ("request_prefill_time_seconds", "To the first token", self.prefill_time),
            ("request_decode_time_seconds", "First token to last", self.decode_time),
            ("request_inference_time_seconds", "Prefill and decode", self.inference_time),
            ("request_prompt_tokens", "Tokens of a prompt", self.prompt_sizes),
            ("request_generation_tokens", "Tokens of an answer", self.answer_sizes),
        ):
            told.histogram(f"vllm:{name}", help, {"": histogram})
        told.histogram(
            "litevl:media_decode_seconds", "Decoding and resizing", self.media_decode, "kind"
        )
        told.counter("litevl:media_tokens", "Prompt tokens of media", self.media_tokens, "kind")
        told.counter("litevl:video_frames", "Frames sampled from clips", self.video_frames)
        told.counter("litevl:media_cache_hits", "Media decoded before", self.media_hits)
        told.counter(
            "litevl:requests_rejected", "Errors before a first token", self.rejected, "reason"
        )
        told.counter("litevl:connections_ended", "Ended by the server", self.connections, "reason")


def _tell_engine(told: "_Families", stats: EngineStats) -> None:
    told.gauge("vllm:num_requests_running", "Answers in the batch", stats.num_running)
    told.gauge("vllm:num_requests_waiting", "Answers in the queue", stats.num_waiting)
    for name in ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"):
        told.gauge(name, "KV blocks in use, 1 is all", stats.kv_usage)
    told.counter("vllm:num_preemptions", "Answers recomputed", stats.num_preemptions)
    told.counter("vllm:prefix_cache_queries", "Prompt tokens looked up", stats.prefix_queries)
    told.counter("vllm:prefix_cache_hits", "Prompt tokens found", stats.prefix_hits)
    told.counter("litevl:encoder_cache_hits", "Media encoded before", stats.encoder_hits)
    told.counter("litevl:steps_divided", "Failed steps repeated in parts", stats.num_divided)
    told.counter("litevl:leaked", "Found held while nothing ran", stats.num_leaked)
    told.gauge(
        "vllm:cache_config_info",
        "The KV cache",
        1,
        block_size=str(stats.block_size),
        num_gpu_blocks=str(stats.num_blocks),
    )


class _Families(Collector):
    """Gathers metrics, each with the labels which dashboards filter by."""

    def __init__(self, model_name: str) -> None:
        self._labels = {"model_name": model_name, "engine": "0"}
        self._gathered: list[Metric] = []

    def collect(self) -> list[Metric]:
        return self._gathered

    def counter(
        self, name: str, help: str, value: int | Mapping[str, int], label: str = ""
    ) -> None:
        family = CounterMetricFamily(name, help, labels=self._names(label))
        for labels, each in self._rows({"": value} if isinstance(value, int) else value):
            family.add_metric(labels, each)
        self._gathered.append(family)

    def gauge(self, name: str, help: str, value: float, **more: str) -> None:
        labels = self._labels | more
        family = GaugeMetricFamily(name, help, labels=list(labels))
        family.add_metric(list(labels.values()), value)
        self._gathered.append(family)

    def histogram(
        self, name: str, help: str, histograms: Mapping[str, Histogram], label: str = ""
    ) -> None:
        family = HistogramMetricFamily(name, help, labels=self._names(label))
        for labels, each in self._rows(histograms):
            family.add_metric(labels, each.buckets(), each.sum)
        self._gathered.append(family)

    def _names(self, label: str) -> list[str]:
        return [*self._labels, label] if label else list(self._labels)

    def _rows(self, values: Mapping[str, T]) -> Iterator[tuple[list[str], T]]:
        """Label values and what belongs to them; an empty one is no label."""
        for label, each in values.items():
            yield [*self._labels.values(), *([label] if label else [])], each
