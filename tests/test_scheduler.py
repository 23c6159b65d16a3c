import threading
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.web.scheduler import Busy, Scheduler


@dataclass(eq=False)
class FakeJob:
    prompt: list[int] = field(default_factory=lambda: [0])
    is_suspended: bool = False

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt)


def make_scheduler(slots: int = 2, waiting: int = 3, tokens: int = 100) -> Scheduler:
    return Scheduler(slots, waiting, tokens)


def test_jobs_are_admitted_in_order_as_slots_become_free() -> None:
    jobs = [FakeJob() for _ in range(5)]
    scheduler = make_scheduler()
    scheduler.submit(jobs)
    assert scheduler.admit() == jobs[:2] and scheduler.admit() == []
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 3)
    scheduler.finish(jobs[1])
    assert scheduler.admit() == jobs[2:3]
    scheduler.finish(jobs[0])
    scheduler.finish(jobs[2])
    assert scheduler.admit() == jobs[3:]


def test_a_full_queue_accepts_all_or_nothing() -> None:
    scheduler = make_scheduler(slots=2, waiting=3)
    scheduler.submit([FakeJob() for _ in range(4)])
    with pytest.raises(Busy):
        scheduler.submit([FakeJob(), FakeJob()])
    assert len(scheduler.waiting) == 4
    scheduler.submit([FakeJob()])
    with pytest.raises(Busy):
        scheduler.submit([FakeJob()])
    scheduler.admit()
    assert len(scheduler.waiting) == 3
    with pytest.raises(Busy):
        scheduler.submit([FakeJob()])


def test_a_round_admits_a_bounded_number_of_prompt_tokens_but_at_least_one_prompt() -> None:
    scheduler = make_scheduler(slots=9, waiting=9, tokens=100)
    scheduler.submit([FakeJob([0] * length) for length in (60, 40, 1, 500, 1, 99)])
    admitted = [[len(job.prompt) for job in scheduler.admit()] for _ in range(4)]
    assert admitted == [[60, 40], [1], [500], [1, 99]]


def test_a_shared_prompt_counts_once_in_a_round_and_an_equal_one_twice() -> None:
    scheduler = make_scheduler(slots=3, waiting=9, tokens=100)
    shared = [0] * 60
    jobs = [*(FakeJob(shared) for _ in range(4)), FakeJob([*shared])]
    scheduler.submit(jobs)
    assert scheduler.admit() == jobs[:3]
    for job in jobs[:3]:
        scheduler.finish(job)
    assert scheduler.admit() == jobs[3:4] and scheduler.admit() == jobs[4:]


def test_a_canceled_job_leaves_the_queue_or_its_slot() -> None:
    jobs = [FakeJob() for _ in range(4)]
    scheduler = make_scheduler()
    scheduler.submit(jobs)
    scheduler.admit()
    scheduler.cancel([jobs[2]])
    assert len(scheduler.waiting) == 1 and scheduler.take_canceled() == []
    scheduler.cancel([jobs[0]])
    scheduler.cancel([jobs[0]])
    assert scheduler.take_canceled() == jobs[:1] and scheduler.take_canceled() == []
    assert scheduler.admit() == jobs[3:]
    scheduler.finish(jobs[1])
    scheduler.cancel([jobs[1]])
    assert scheduler.take_canceled() == [] and len(scheduler.running) == 1


def test_a_job_that_finishes_before_its_cancellation_is_seen_frees_one_slot_only() -> None:
    jobs = [FakeJob() for _ in range(2)]
    scheduler = make_scheduler()
    scheduler.submit(jobs)
    scheduler.admit()
    scheduler.cancel([jobs[0]])
    scheduler.finish(jobs[0])
    assert scheduler.take_canceled() == [] and len(scheduler.running) == 1


def test_wait_returns_when_there_is_work_and_when_the_scheduler_is_closed() -> None:
    scheduler = make_scheduler()

    def work() -> None:
        while scheduler.wait():
            for job in scheduler.admit():
                scheduler.finish(job)

    worker = threading.Thread(target=work)
    worker.start()
    scheduler.submit([FakeJob()])
    scheduler.close()
    worker.join(timeout=10)
    assert not worker.is_alive()
    with pytest.raises(Busy):
        scheduler.submit([FakeJob()])


def test_drain_returns_running_and_waiting_jobs_and_leaves_none() -> None:
    jobs = [FakeJob() for _ in range(4)]
    scheduler = make_scheduler()
    scheduler.submit(jobs)
    scheduler.admit()
    assert scheduler.drain() == jobs
    assert (len(scheduler.running), len(scheduler.waiting)) == (0, 0)


def test_a_worker_with_only_suspended_jobs_waits_until_it_can_do_something() -> None:
    jobs = [FakeJob() for _ in range(3)]
    scheduler = make_scheduler(slots=2)
    scheduler.submit(jobs)
    scheduler.admit()
    jobs[0].is_suspended = True
    assert scheduler._has_work()  # for the other one
    jobs[1].is_suspended = True
    assert not scheduler._has_work()
    assert (len(scheduler.running), len(scheduler.waiting)) == (2, 1)  # it keeps its slot
    jobs[1].is_suspended = False
    assert scheduler._has_work()
    jobs[1].is_suspended = True
    scheduler.cancel([jobs[0]])
    assert scheduler._has_work() and scheduler.take_canceled() == jobs[:1]
    assert scheduler._has_work() and scheduler.admit() == jobs[2:]
    scheduler.finish(jobs[2])
    assert not scheduler._has_work()
    scheduler.finish(jobs[1])
    assert not scheduler._has_work() and len(scheduler.running) == 0


@pytest.mark.parametrize("wake", ["submit", "cancel", "resume", "close"])
def test_everything_that_gives_a_waiting_worker_something_to_do_wakes_it(wake: str) -> None:
    scheduler, job = make_scheduler(slots=2), FakeJob()
    scheduler.submit([job])
    scheduler.admit()
    job.is_suspended = True
    returned: list[bool] = []
    worker = threading.Thread(target=lambda: returned.append(scheduler.wait()))
    worker.start()

    def resume() -> None:
        job.is_suspended = False
        scheduler.notify()

    calls = {"submit": lambda: scheduler.submit([FakeJob()]), "close": scheduler.close}
    calls |= {"cancel": lambda: scheduler.cancel([job]), "resume": resume}
    calls[wake]()
    worker.join(timeout=10)
    assert returned == [wake != "close"]


CALLS = ["submit", "admit", "cancel", "take_canceled", "finish", "suspend", "resume"]


@given(st.lists(st.sampled_from(CALLS), max_size=80))
def test_no_sequence_of_calls_exceeds_a_bound_or_loses_a_job(calls: list[str]) -> None:
    scheduler = make_scheduler(slots=2, waiting=2)
    waiting: list[FakeJob] = []
    running: list[FakeJob] = []
    canceled: list[FakeJob] = []
    for number, call in enumerate(calls):
        if call == "submit":
            job = FakeJob()
            try:
                scheduler.submit([job])
                waiting.append(job)
            except Busy:
                assert len(waiting) >= 2 + 2 - len(running)
        elif call == "admit":
            admitted = scheduler.admit()
            assert admitted == waiting[: len(admitted)]
            assert len(admitted) == min(len(waiting), 2 - len(running))
            waiting, running = waiting[len(admitted) :], running + admitted
        elif call == "cancel" and waiting + running:
            job = (waiting + running)[number % len(waiting + running)]
            scheduler.cancel([job])
            canceled += [job] if job in running and job not in canceled else []
            waiting = [other for other in waiting if other is not job]
        elif call == "take_canceled":
            assert scheduler.take_canceled() == canceled
            running, canceled = [job for job in running if job not in canceled], []
        elif call == "finish" and running:
            job = running.pop(number % len(running))
            canceled = [other for other in canceled if other is not job]
            scheduler.finish(job)
        elif call in ("suspend", "resume") and running:
            running[number % len(running)].is_suspended = call == "suspend"
        assert (len(scheduler.waiting), len(scheduler.running)) == (len(waiting), len(running))
        can_step = any(not job.is_suspended for job in running)
        can_admit = bool(waiting) and len(running) < 2
        assert scheduler._has_work() == (can_step or can_admit or bool(canceled))
