"""The seam between a server and an engine: jobs go in, events come out.

A worker is a thread that owns an engine; nobody else touches it. What it accepts is bounded, and
every job that is accepted and not cancelled ends with exactly one `Finished`, `Scores` or `Failed`.
Nothing here knows HTTP.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from nanochat.engine import Engine, LiveAnswer, Request
from nanochat.errors import UserError, where_it_failed
from nanochat.inference.detokenizer import Event, Finished
from nanochat.inference.sampling import TokenChoice
from nanochat.runtime import set_device
from nanochat.web.prometheus import Throughput
from nanochat.web.scheduler import Scheduler

logger = logging.getLogger(__name__)

MAX_TOKENS_PER_ROUND = 2048  # of prompts that are read while others wait for their next token
SHUTTING_DOWN = "the server is shutting down"


@dataclass(frozen=True)
class Scoring:
    """How likely are these tokens? Answered by `Scores`."""

    tokens: list[int]
    num_top_logprobs: int


@dataclass(frozen=True)
class Scores:
    """A choice for each token but the first."""

    choices: list[TokenChoice]


@dataclass(frozen=True)
class Failed:
    """The end of a job that did not come to its end; `reason` is for the client."""

    reason: str


WorkerEvent = Event | Scores | Failed
Deliver = Callable[[list[WorkerEvent]], None]
HandOver = Callable[[Callable[[], None]], object]


@dataclass(eq=False)
class Job:
    """What was asked, whom, and who is told."""

    asked: Request | Scoring
    deliver: Deliver
    num_prompt_tokens: int
    scheduler: "Scheduler[Job]"
    answer: LiveAnswer | None = None

    def cancel(self) -> None:
        """End the work on it; from any thread, at any time. Nothing follows the next token."""
        self.scheduler.cancel(self)


class Worker:
    """A thread with an engine and a scheduler."""

    def __init__(self, engine: Engine, num_slots: int, max_waiting: int) -> None:
        self.engine = engine
        self.scheduler: Scheduler[Job] = Scheduler(num_slots, max_waiting, MAX_TOKENS_PER_ROUND)
        self._batch = engine.open(num_slots)
        self._jobs: dict[LiveAnswer, Job] = {}
        self.throughput = Throughput()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._hand_over: HandOver = lambda call: call()

    def start(self, hand_over: HandOver) -> None:
        """Begin to work. `hand_over` calls what it is given in the thread of the one who asks."""
        self._hand_over = hand_over
        self._thread.start()

    def stop(self) -> None:
        """End the work after the next token; what still waits or runs fails."""
        self.scheduler.close()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """False before the start, after the stop, and when the thread has died."""
        return self._thread.is_alive()

    @property
    def cache_use(self) -> float:
        """Share of the cache's positions that hold something."""
        return self._batch.cache_use

    def submit(self, asked: Sequence[tuple[Request | Scoring, Deliver]]) -> list[Job]:
        """Accept all of them or none. Raises `scheduler.Busy` when there is no room for all."""
        jobs: list[Job] = []
        read: list[int] | None = None
        for one, deliver in asked:
            tokens = one.prompt if isinstance(one, Request) else one.tokens
            # A prompt that follows itself is read once.
            num_tokens = 0 if tokens is read else len(tokens)
            jobs.append(Job(one, deliver, num_tokens, self.scheduler))
            read = tokens if isinstance(one, Request) else None
        self.scheduler.submit(jobs)
        return jobs

    def _work(self) -> None:
        set_device(self.engine.model.embedding.weight.device)
        try:
            while self.scheduler.wait():
                try:
                    self._round()
                except Exception as error:  # those who were being answered fail, the rest goes on
                    logger.error("the engine failed: %s", where_it_failed(error))
                    self._fail_all("the engine failed; the server's log says where")
                    self._batch = self.engine.open(self.scheduler.num_slots)
        except Exception as error:
            logger.error("the engine cannot go on: %s", where_it_failed(error))
        finally:  # nobody is to wait for a thread that is gone
            self.scheduler.close()
            self._fail_all(SHUTTING_DOWN)

    def _round(self) -> None:
        """One token for everybody."""
        for job in self.scheduler.leaving():
            if job.answer is not None:
                del self._jobs[job.answer]
                self._batch.cancel(job.answer)
        said: list[tuple[Job, list[WorkerEvent]]] = []
        try:
            self._begin(self.scheduler.admit(), said)
            if self._jobs:
                self._step(said)
        finally:
            self._tell(said)

    def _step(self, said: list[tuple[Job, list[WorkerEvent]]]) -> None:
        stepped = self._batch.step()
        self.throughput.add(len(stepped))
        for answer, events in stepped:
            job = self._jobs[answer]
            said.append((job, [*events]))
            if events and isinstance(events[-1], Finished):
                del self._jobs[answer]
                self.scheduler.finish(job)
            elif (call := answer.call) is not None:
                self.scheduler.pause(job)
                call.add_done_callback(partial(self._resume, job))

    def _resume(self, job: Job, _: object) -> None:
        """A tool has answered, in whatever thread."""
        self.scheduler.resume(job)

    def _begin(self, jobs: list[Job], said: list[tuple[Job, list[WorkerEvent]]]) -> None:
        """Scorings are done at once, requests join the batch."""
        admitted: list[tuple[Job, Request]] = []
        for job in jobs:
            try:
                if isinstance(job.asked, Request):
                    LiveAnswer(self.engine, job.asked)  # raises when it cannot be answered
                    admitted.append((job, job.asked))
                    continue
                choices = self.engine.score(job.asked.tokens, job.asked.num_top_logprobs)
                said.append((job, [Scores(choices)]))
            except UserError as error:
                said.append((job, [Failed(str(error))]))
            self.scheduler.finish(job)
        if admitted:
            answers = self._batch.admit([request for _, request in admitted])
            for (job, _), answer in zip(admitted, answers, strict=True):
                job.answer = answer
                self._jobs[answer] = job

    def _fail_all(self, reason: str) -> None:
        self._jobs = {}
        self._batch.close()
        self._tell([(job, [Failed(reason)]) for job in self.scheduler.drain()])

    def _tell(self, said: list[tuple[Job, list[WorkerEvent]]]) -> None:
        """Hand over what there is to say, all of it at once."""
        told = [(job.deliver, events) for job, events in said if events]

        def deliver_all() -> None:
            for deliver, events in told:
                deliver(events)

        if told:
            try:
                self._hand_over(deliver_all)
            except RuntimeError:  # the loop that would hear it is closed
                logger.debug("nobody is left to be told")
