"""Counts of a server in the text format of Prometheus."""

import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

from nanochat.inference.detokenizer import Finished

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

HELP = {
    "nanochat_requests_total": ("counter", "Answered requests by status."),
    "nanochat_refused_total": ("counter", "Requests that found the queue full."),
    "nanochat_answers_total": ("counter", "Finished answers by reason."),
    "nanochat_prompt_tokens_total": ("counter", "Tokens read."),
    "nanochat_tokens_total": ("counter", "Tokens written, those of unfinished answers too."),
    "nanochat_tokens_per_second": ("gauge", "Tokens written a second, over the last ten."),
    "nanochat_waiting": ("gauge", "Answers that wait for a slot."),
    "nanochat_running": ("gauge", "Answers that are being written."),
    "nanochat_slots": ("gauge", "Answers that can be written at once."),
    "nanochat_cache_use": ("gauge", "Share of the key-value cache that is in use."),
}
HISTOGRAM = "nanochat_first_token_seconds"
SPEED_SECONDS = 10


class Speed:
    """How much was done, and how fast of late; one thread adds, any may read."""

    def __init__(self) -> None:
        self.total = 0
        self._by_second = [(0, 0)] * (SPEED_SECONDS + 1)  # a ring: second, what was done in it

    def add(self, number: int) -> None:
        """So much was done just now."""
        self.total += number
        second = int(time.monotonic())
        place = second % len(self._by_second)
        then, done = self._by_second[place]
        self._by_second[place] = second, number + (done if then == second else 0)

    def per_second(self) -> float:
        """Mean of the last ten whole seconds."""
        now = int(time.monotonic())
        past = range(now - SPEED_SECONDS, now)
        return sum(done for second, done in self._by_second if second in past) / SPEED_SECONDS


class Metrics:
    """Owned by the thread of the asyncio loop."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._waits = [0] * (len(FIRST_TOKEN_SECONDS) + 1)
        self._waited = 0.0

    def count(self, name: str, labels: str = "", by: int = 1) -> None:
        """Add to a counter; labels as in `status="200"`."""
        self._counts[name, labels] += by

    def answered(self, end: Finished) -> None:
        """An answer has come to its end."""
        self.count("nanochat_answers_total", f'reason="{end.reason}"')
        self.count("nanochat_prompt_tokens_total", by=end.num_prompt_tokens)

    def time_to_first_token(self, seconds: float) -> None:
        """Of one request, its waiting included."""
        self._waits[bisect_left(FIRST_TOKEN_SECONDS, seconds)] += 1
        self._waited += seconds

    def rendered(self, present: dict[str, float]) -> str:
        """All of it, with what others count and measure at present."""
        lines = []
        for name, (kind, words) in HELP.items():
            lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
            if name in present:
                lines.append(f"{name} {present[name]:.15g}")
            for (counted, labels), value in sorted(self._counts.items()):
                if counted == name:
                    lines.append(f"{name}{{{labels}}} {value}" if labels else f"{name} {value}")
        return "\n".join([*lines, *self._histogram()]) + "\n"

    def _histogram(self) -> list[str]:
        lines = [f"# HELP {HISTOGRAM} To the first token.", f"# TYPE {HISTOGRAM} histogram"]
        bounds = [*(f"{bound:g}" for bound in FIRST_TOKEN_SECONDS), "+Inf"]
        for bound, number in zip(bounds, accumulate(self._waits), strict=True):
            lines.append(f'{HISTOGRAM}_bucket{{le="{bound}"}} {number}')
        total = sum(self._waits)
        return [*lines, f"{HISTOGRAM}_sum {self._waited:g}", f"{HISTOGRAM}_count {total}"]
