"""Threads that run engines: requests go in, events come out. Nothing here knows HTTP.

Each engine belongs to one worker thread. Every accepted request that is not canceled ends with
exactly one `Finished` or `Failed`.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from nanochat.engine import Engine, Request, RowState
from nanochat.errors import error_location
from nanochat.inference.detokenizer import Event, Finished
from nanochat.inference.sampling import TokenLogprob
from nanochat.web.prometheus import Throughput
from nanochat.web.scheduler import Busy, Scheduler

logger = logging.getLogger(__name__)

MAX_TOKENS_PER_ROUND = 2048  # of prompts: one prefill pass on a GPU, so that decode hardly waits
SHUTTING_DOWN = "the server is shutting down"


@dataclass(frozen=True)
class PromptLogprobs:
    """The first event of a request with `score_prompt`: one entry per token but the first."""

    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Failed:
    reason: str  # shown to the client


WorkerEvent = Event | PromptLogprobs | Failed
Publish = Callable[[int, list[WorkerEvent]], object]  # index of a request, new events of it
CallInClient = Callable[[Callable[[], None]], object]  # like loop.call_soon_threadsafe


class Worker:
    def __init__(self, engine: Engine, num_slots: int, max_waiting: int) -> None:
        self.engine, self.batch = engine, engine.open(num_slots)
        self.scheduler = Scheduler(num_slots, max_waiting, MAX_TOKENS_PER_ROUND)
        self.throughput = Throughput()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.call_in_client: CallInClient = lambda call: call()

    def _run(self) -> None:
        self.engine.bind_to_thread()
        try:
            while self.scheduler.wait():
                try:
                    self._round()
                except Exception as error:  # the requests at hand fail, the server continues
                    logger.error("the engine failed: %s", error_location(error))
                    self._fail_all("the engine failed; see the server's log")
                    self.batch = self.engine.open(self.scheduler.num_slots)
        except Exception as error:
            logger.error("the engine cannot be restarted: %s", error_location(error))
        finally:  # however the thread ends, no client may wait for it
            self.scheduler.close()
            self._fail_all(SHUTTING_DOWN)

    def _round(self) -> None:
        for row in self.scheduler.take_canceled():
            self.batch.cancel(row)
        events: list[tuple[RowState, list[WorkerEvent]]] = []
        try:
            self._admit(events)
            stepped = self.batch.step()
            self.throughput.add(len(stepped))
            for row, new_events in stepped:
                events.append((row, [*new_events]))
                if row.finish_reason:
                    self.scheduler.finish(row)
                elif row.tool_calls.pending:
                    row.tool_calls.pending.add_done_callback(lambda _: self.scheduler.notify())
        finally:  # a request that has finished gets its events even if another one fails
            self._publish(events)

    def _admit(self, events: list[tuple[RowState, list[WorkerEvent]]]) -> None:
        rows, scored_prompt = self.scheduler.admit(), None
        for row in rows:
            if row.request.score_prompt:
                if row.prompt is not scored_prompt:  # samples of a prompt share its scores
                    scored_prompt = row.prompt
                    scores = self.engine.score(row.prompt, row.request.num_top_logprobs or 0)
                events.append((row, [PromptLogprobs(tuple(scores))]))
            if row.max_tokens == 0:
                events.append((row, [Finished("length", len(row.prompt), 0)]))
                self.scheduler.finish(row)
        self.batch.add([row for row in rows if row.max_tokens > 0])

    def _fail_all(self, reason: str) -> None:
        self.batch.close()
        self._publish([(row, [Failed(reason)]) for row in self.scheduler.drain()])

    def _publish(self, events: list[tuple[RowState, list[WorkerEvent]]]) -> None:
        """Deliver the events of a round: one switch of threads for all of them."""

        def deliver() -> None:
            for row, new_events in events:
                if row.publish and new_events:
                    row.publish(new_events)

        if any(new_events for _, new_events in events):
            try:
                self.call_in_client(deliver)
            except RuntimeError:
                logger.debug("the event loop is closed; events were dropped")


class EnginePool:
    """One worker per engine; each request goes to the least loaded."""

    def __init__(self, engines: Sequence[Engine], num_slots: int, max_waiting: int) -> None:
        """num_slots, max_waiting: of each engine."""
        self.workers = [Worker(engine, num_slots, max_waiting) for engine in engines]

    def start(self, call_in_client: CallInClient) -> None:
        """Start the threads; `call_in_client` runs a function in the thread of the client."""
        for worker in self.workers:
            worker.call_in_client = call_in_client
            worker.thread.start()

    def close(self) -> None:
        """Accept no more requests; queued and running ones fail after the current round."""
        for worker in self.workers:
            worker.scheduler.close()

    def stop(self) -> None:
        self.close()
        for worker in self.workers:
            worker.thread.join()

    def submit(self, requests: Sequence[Request], publish: Publish) -> Callable[[], None]:
        """Accept all of them or none; returns a function that cancels them, from any thread.

        A round that is already running may still publish events of a canceled request. Raises
        Busy when there is no room for all.
        """
        able = [worker for worker in self.workers if worker.scheduler.is_open]
        if not able:
            raise Busy
        # All on one worker: samples of a prompt share its prefill.
        worker = min(able, key=lambda w: len(w.scheduler.running) + len(w.scheduler.waiting))
        rows = [worker.engine.new_row(request) for request in requests]
        for index, row in enumerate(rows):
            row.publish = partial(publish, index)
        worker.scheduler.submit(rows)
        return partial(worker.scheduler.cancel, rows)

    @property
    def is_open(self) -> bool:
        return any(worker.scheduler.is_open for worker in self.workers)

    @property
    def num_active(self) -> int:
        """Answers that are being generated or wait."""
        schedulers = [worker.scheduler for worker in self.workers]
        return sum(len(one.running) + len(one.waiting) for one in schedulers)

    @property
    def num_alive(self) -> int:
        return sum(worker.thread.is_alive() for worker in self.workers)

    def figures(self) -> dict[str, float]:
        """Current values by metric name, for `prometheus.POOL_METRICS`."""
        workers, schedulers = self.workers, [worker.scheduler for worker in self.workers]
        return {
            "nanochat_waiting": sum(len(scheduler.waiting) for scheduler in schedulers),
            "nanochat_running": sum(len(scheduler.running) for scheduler in schedulers),
            "nanochat_slots": sum(scheduler.num_slots for scheduler in schedulers),
            "nanochat_cache_use": sum(w.batch.cache_use for w in workers) / len(workers),
            "nanochat_tokens_total": sum(w.throughput.total for w in workers),
            "nanochat_tokens_per_second": sum(w.throughput.per_second() for w in workers),
        }
