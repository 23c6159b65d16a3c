"""Who is answered next: a bounded queue in front of a fixed number of slots. Knows no tensors.

One thread works and calls `wait`, `admit`, `leaving`, `pause` and `finish`; any thread may
`submit`, `cancel` and `resume`. Jobs are admitted in the order in which they came, so nobody is
overtaken; a round admits only so many tokens of prompts that those who are being answered do not
stand still for long.
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class Busy(Exception):
    """No room in the queue, or no longer open."""


class Job(Protocol):
    """What the scheduler asks of a job; it is told apart by identity."""

    @property
    def num_prompt_tokens(self) -> int:
        """To be read before its first token; what admitting it costs the others."""


JobType = TypeVar("JobType", bound=Job)


class Scheduler(Generic[JobType]):
    """A queue of at most `max_waiting` jobs and `num_slots` slots."""

    def __init__(self, num_slots: int, max_waiting: int, max_tokens_per_round: int) -> None:
        self.num_slots, self.max_waiting = num_slots, max_waiting
        self.max_tokens_per_round = max_tokens_per_round
        self.is_open = True
        self._waiting: deque[JobType] = deque()
        self._running: list[JobType] = []
        self._leaving: list[JobType] = []
        self._paused: list[JobType] = []
        self._changed = threading.Condition()

    @property
    def num_waiting(self) -> int:
        """Jobs that no slot has been found for."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Slots that are in use."""
        return len(self._running)

    def submit(self, jobs: Sequence[JobType]) -> None:
        """Let all of them wait, or none. Raises Busy when there is no room for all."""
        with self._changed:
            # A free slot is as good as a place in the queue: it is taken in the next round.
            free = self.num_slots - len(self._running)
            if not self.is_open or len(self._waiting) + len(jobs) > self.max_waiting + free:
                raise Busy
            self._waiting += jobs
            self._changed.notify()

    def cancel(self, job: JobType) -> None:
        """A waiting job is forgotten, a running one is among the next `leaving`; else nothing."""
        with self._changed:
            if _holds(self._waiting, job):
                self._waiting = deque(one for one in self._waiting if one is not job)
            elif _holds(self._running, job) and not _holds(self._leaving, job):
                self._leaving.append(job)
                self._changed.notify()

    def wait(self) -> bool:
        """Until there is something to do: True; False once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_work() or not self.is_open)
            return self.is_open

    def _has_work(self) -> bool:
        can_admit = bool(self._waiting) and len(self._running) < self.num_slots
        return can_admit or bool(self._leaving) or len(self._paused) < len(self._running)

    def pause(self, job: JobType) -> None:
        """A running job can't be worked on before it is resumed; it keeps its slot."""
        with self._changed:
            if _holds(self._running, job) and not _holds(self._paused, job):
                self._paused.append(job)

    def resume(self, job: JobType) -> None:
        """A paused job can be worked on again; of any other, nothing."""
        with self._changed:
            self._paused = _without([job], self._paused)
            self._changed.notify()

    def leaving(self) -> list[JobType]:
        """Running jobs that were cancelled; their slots are free when this returns."""
        with self._changed:
            gone, self._leaving = self._leaving, []
            self._forget(gone)
            return gone

    def admit(self) -> list[JobType]:
        """The jobs that get slots now, in the order in which they came."""
        with self._changed:
            admitted: list[JobType] = []
            num_tokens = 0
            while self._waiting and len(self._running) < self.num_slots:
                num_tokens += self._waiting[0].num_prompt_tokens
                if admitted and num_tokens > self.max_tokens_per_round:
                    break
                admitted.append(self._waiting.popleft())
                self._running.append(admitted[-1])
            return admitted

    def finish(self, job: JobType) -> None:
        """Its slot is free again."""
        with self._changed:
            self._forget([job])
            self._leaving = _without([job], self._leaving)

    def close(self) -> None:
        """Take no more; `wait` returns False from now on."""
        with self._changed:
            self.is_open = False
            self._changed.notify()

    def drain(self) -> list[JobType]:
        """All jobs that wait or run, which are then forgotten."""
        with self._changed:
            rest = [*self._running, *self._waiting]
            self._running, self._leaving, self._paused, self._waiting = [], [], [], deque()
            return rest

    def _forget(self, jobs: Sequence[JobType]) -> None:
        self._running = _without(jobs, self._running)
        self._paused = _without(jobs, self._paused)


def _holds(jobs: Sequence[JobType] | deque[JobType], job: JobType) -> bool:
    """By identity: two jobs may be equal."""
    return any(one is job for one in jobs)


def _without(gone: Sequence[JobType], jobs: Sequence[JobType]) -> list[JobType]:
    return [job for job in jobs if not _holds(gone, job)]
