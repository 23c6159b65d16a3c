"""Server metrics in the Prometheus text format, and the generation throughput."""

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nanochat.inference.detokenizer import Finished

# From one decode step of a small model to the longest wait in a full queue.
FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

POOL_METRICS: dict[str, tuple[type[CounterMetricFamily | GaugeMetricFamily], str]] = {
    "nanochat_tokens_total": (CounterMetricFamily, "Generated tokens, unfinished answers too."),
    "nanochat_tokens_per_second": (GaugeMetricFamily, "Generated tokens/s, mean of 10 s."),
    "nanochat_waiting": (GaugeMetricFamily, "Answers waiting for a slot."),
    "nanochat_running": (GaugeMetricFamily, "Answers being generated."),
    "nanochat_slots": (GaugeMetricFamily, "Answers that can be generated at once."),
    "nanochat_cache_use": (GaugeMetricFamily, "Used fraction of the key-value cache."),
}
WINDOW_SECONDS = 10  # of the throughput: long enough to smooth batches, short enough to be current


class Throughput:
    """Tokens generated in total and per second lately; written by one thread, read by any."""

    def __init__(self) -> None:
        self.total = 0
        # A ring of (second, tokens): one entry more than the window for the second under way.
        self._by_second = [(0, 0)] * (WINDOW_SECONDS + 1)

    def add(self, num_tokens: int) -> None:
        self.total += num_tokens
        second = int(time.monotonic())
        index = second % len(self._by_second)
        entry_second, entry_tokens = self._by_second[index]
        if entry_second == second:  # otherwise the entry is from the previous lap
            num_tokens += entry_tokens
        self._by_second[index] = second, num_tokens

    def per_second(self) -> float:
        now = int(time.monotonic())
        window = range(now - WINDOW_SECONDS, now)
        return sum(tokens for second, tokens in self._by_second if second in window) / len(window)


class Metrics(Collector):
    """Metrics of one server in a registry of its own, so that apps in one process do not mix."""

    def __init__(self, pool_figures: Callable[[], dict[str, float]]) -> None:
        """pool_figures: current values of POOL_METRICS, read at each scrape."""
        self._pool_figures = pool_figures
        self._registry = registry = CollectorRegistry()
        registry.register(self)
        # prometheus_client appends _total to the names of counters.
        self.requests = Counter(
            "nanochat_requests", "Answered requests by status.", ["status"], registry=registry
        )
        self.refused = Counter(
            "nanochat_refused", "Requests refused because the queue was full.", registry=registry
        )
        self.answers = Counter(
            "nanochat_answers", "Finished answers by reason.", ["reason"], registry=registry
        )
        self.prompt_tokens = Counter(
            "nanochat_prompt_tokens", "Prompt tokens of finished answers.", registry=registry
        )
        self.first_token_seconds = Histogram(
            "nanochat_first_token_seconds", "Time to first token, queueing included.",
            buckets=FIRST_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip

    def count_answer(self, end: Finished) -> None:
        self.answers.labels(end.reason).inc()
        self.prompt_tokens.inc(end.num_prompt_tokens)

    def collect(self) -> Iterator[Metric]:
        """What the engines count themselves; called by the registry."""
        figures = self._pool_figures()
        for name, (family, description) in POOL_METRICS.items():
            yield family(name, description, value=figures[name])

    def render(self) -> bytes:
        return generate_latest(self._registry)
