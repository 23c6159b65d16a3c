"""Workers side by side, one for each engine: a model on several GPUs answers as many at once."""

from collections.abc import Sequence

from nanochat.engine import Engine, Request
from nanochat.web.scheduler import Busy
from nanochat.web.worker import Deliver, HandOver, Job, Scoring, Worker


class Pool:
    """Gives each request to the worker that has the least to do."""

    def __init__(self, engines: Sequence[Engine], num_slots: int, max_waiting: int) -> None:
        """Slots and waiting places are those of each engine."""
        self.workers = [Worker(engine, num_slots, max_waiting) for engine in engines]

    def start(self, hand_over: HandOver) -> None:
        """Begin to work. `hand_over` calls what it is given in the thread of the one who asks."""
        for worker in self.workers:
            worker.start(hand_over)

    def close(self) -> None:
        """Take no more; what waits or runs fails after the next token."""
        for worker in self.workers:
            worker.scheduler.close()

    def stop(self) -> None:
        """Close, and wait for the end."""
        self.close()
        for worker in self.workers:
            worker.stop()

    def submit(self, asked: Sequence[tuple[Request | Scoring, Deliver]]) -> list[Job]:
        """Accept all of them, on one worker, or none. Raises `Busy` when there is no room."""
        able = [worker for worker in self.workers if worker.scheduler.is_open]
        if not able:
            raise Busy
        return min(able, key=_load).submit(asked)

    @property
    def is_open(self) -> bool:
        """Whether any worker takes requests."""
        return any(worker.scheduler.is_open for worker in self.workers)

    @property
    def num_alive(self) -> int:
        """Workers that work: none before the start and after the stop."""
        return sum(worker.is_alive for worker in self.workers)

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a slot."""
        return sum(worker.scheduler.num_waiting for worker in self.workers)

    @property
    def num_running(self) -> int:
        """Answers that are being written."""
        return sum(worker.scheduler.num_running for worker in self.workers)

    @property
    def max_choices(self) -> int:
        """Answers that one request may ask for: what a worker has room for when it is idle."""
        scheduler = self.workers[0].scheduler
        return scheduler.num_slots + scheduler.max_waiting

    def figures(self) -> dict[str, float]:
        """What the workers count and measure, by the names that metrics have."""
        return {
            "nanochat_waiting": self.num_waiting,
            "nanochat_running": self.num_running,
            "nanochat_slots": sum(worker.scheduler.num_slots for worker in self.workers),
            "nanochat_cache_use": sum(w.cache_use for w in self.workers) / len(self.workers),
            "nanochat_tokens_total": sum(worker.throughput.total for worker in self.workers),
            "nanochat_tokens_per_second": sum(w.throughput.per_second() for w in self.workers),
        }


def _load(worker: Worker) -> int:
    return worker.scheduler.num_running + worker.scheduler.num_waiting
