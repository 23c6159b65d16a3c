"""Admission: a bounded queue in front of a fixed number of slots.

Knows no tensors: of a job, a sequence of the engine, it reads the prompt and whether it is
suspended. One thread works and calls `wait`, `admit`, `take_canceled` and `finish`; any thread may
`submit`, `cancel` and `notify`. Jobs are admitted first come, first served, and a round admits a
bounded number of prompt tokens, so that prefill does not stall the running jobs.
"""

import threading
from collections import deque
from collections.abc import Sequence

from nanochat.engine import RowState


class Busy(Exception):
    """The queue is full or closed."""


class Scheduler:
    """At most `max_waiting` queued and `num_slots` running jobs, which are compared by identity."""

    def __init__(self, num_slots: int, max_waiting: int, max_tokens_per_round: int) -> None:
        self.num_slots, self.max_waiting = num_slots, max_waiting
        self.max_tokens_per_round = max_tokens_per_round
        self.is_open = True
        self.waiting: deque[RowState] = deque()
        self.running: list[RowState] = []
        self._canceled: list[RowState] = []  # running ones, until the worker has removed them
        self._changed = threading.Condition()  # its lock guards all of the above

    def submit(self, jobs: Sequence[RowState]) -> None:
        """Queue all of them or none. Raises Busy when there is no room for all."""
        with self._changed:
            # A free slot counts as room: the next round moves a job from the queue to it.
            num_free = self.num_slots - len(self.running)
            if not self.is_open or len(self.waiting) + len(jobs) > self.max_waiting + num_free:
                raise Busy
            self.waiting += jobs
            self._changed.notify()

    def cancel(self, jobs: Sequence[RowState]) -> None:
        """Drop queued jobs, report running ones by `take_canceled`, ignore all others."""
        with self._changed:
            for job in jobs:
                if job in self.waiting:
                    self.waiting.remove(job)
                elif job in self.running and job not in self._canceled:
                    self._canceled.append(job)
            self._changed.notify()

    def notify(self) -> None:
        """Let `wait` look again: a suspended job can continue."""
        with self._changed:
            self._changed.notify()

    def wait(self) -> bool:
        """Block until there is work (True) or the scheduler is closed (False)."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_work() or not self.is_open)
            return self.is_open

    def _has_work(self) -> bool:
        can_admit = bool(self.waiting) and len(self.running) < self.num_slots
        can_step = any(not job.is_suspended for job in self.running)
        return can_admit or can_step or bool(self._canceled)

    def take_canceled(self) -> list[RowState]:
        """Running jobs that were canceled since the last call; their slots are free now."""
        with self._changed:
            canceled, self._canceled = self._canceled, []
            for job in canceled:
                self.running.remove(job)
            return canceled

    def admit(self) -> list[RowState]:
        with self._changed:
            admitted: list[RowState] = []
            num_tokens = 0
            while self.waiting and len(self.running) < self.num_slots:
                job = self.waiting[0]
                # Neighbors with the same prompt object (samples of it) share one prefill.
                is_shared = bool(admitted) and job.prompt is admitted[-1].prompt
                num_tokens += 0 if is_shared else job.num_prompt_tokens
                # A prompt above the limit is admitted alone, or it would wait forever.
                if admitted and num_tokens > self.max_tokens_per_round:
                    break
                admitted.append(self.waiting.popleft())
                self.running.append(job)
            return admitted

    def finish(self, job: RowState) -> None:
        with self._changed:
            self.running.remove(job)
            if job in self._canceled:  # too late: the slot may belong to another job by then
                self._canceled.remove(job)

    def close(self) -> None:
        """Accept no more jobs; `wait` returns False from now on."""
        with self._changed:
            self.is_open = False
            self._changed.notify()

    def drain(self) -> list[RowState]:
        with self._changed:
            jobs = [*self.running, *self.waiting]
            self.running, self._canceled, self.waiting = [], [], deque()
            return jobs
