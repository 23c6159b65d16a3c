import threading
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.web.scheduler import Busy, Scheduler


@dataclass(frozen=True)
class Plain:
    """Equal jobs are still different jobs."""

    num_prompt_tokens: int = 1


def scheduler(slots: int = 2, waiting: int = 3, tokens: int = 100) -> Scheduler[Plain]:
    return Scheduler(slots, waiting, tokens)


def same(left: list[Plain], right: list[Plain]) -> bool:
    return [id(job) for job in left] == [id(job) for job in right]


def test_jobs_are_admitted_in_the_order_in_which_they_came_as_slots_become_free() -> None:
    jobs = [Plain() for _ in range(5)]
    one = scheduler()
    one.submit(jobs)
    assert same(one.admit(), jobs[:2]) and one.admit() == []
    assert (one.num_running, one.num_waiting) == (2, 3)
    one.finish(jobs[1])
    assert same(one.admit(), jobs[2:3])
    one.finish(jobs[0])
    one.finish(jobs[2])
    assert same(one.admit(), jobs[3:])


def test_a_full_queue_takes_all_or_nothing() -> None:
    one = scheduler(slots=2, waiting=3)
    one.submit([Plain() for _ in range(4)])
    with pytest.raises(Busy):
        one.submit([Plain(), Plain()])
    assert one.num_waiting == 4
    one.submit([Plain()])
    with pytest.raises(Busy):
        one.submit([Plain()])
    one.admit()
    assert one.num_waiting == 3
    with pytest.raises(Busy):
        one.submit([Plain()])


def test_a_round_reads_only_so_many_tokens_but_at_least_one_prompt() -> None:
    one = scheduler(slots=9, waiting=9, tokens=100)
    jobs = [Plain(n) for n in (60, 40, 1, 500, 0, 100)]
    one.submit(jobs)
    assert [[j.num_prompt_tokens for j in one.admit()] for _ in range(4)] == [
        [60, 40],
        [1],
        [500],
        [0, 100],
    ]


def test_a_cancelled_job_leaves_the_queue_or_its_slot() -> None:
    jobs = [Plain() for _ in range(4)]
    one = scheduler()
    one.submit(jobs)
    one.admit()
    one.cancel(jobs[2])
    assert one.num_waiting == 1 and one.leaving() == []
    one.cancel(jobs[0])
    one.cancel(jobs[0])
    assert same(one.leaving(), jobs[:1]) and one.leaving() == []
    assert same(one.admit(), jobs[3:])
    one.finish(jobs[1])
    one.cancel(jobs[1])
    assert one.leaving() == [] and one.num_running == 1


def test_a_job_that_finishes_before_its_cancelling_is_seen_does_not_free_another_slot() -> None:
    jobs = [Plain() for _ in range(2)]
    one = scheduler()
    one.submit(jobs)
    one.admit()
    one.cancel(jobs[0])
    one.finish(jobs[0])
    assert one.leaving() == [] and one.num_running == 1


def test_waiting_ends_when_there_is_work_and_when_it_is_closed() -> None:
    one = scheduler()
    seen: list[bool] = []

    def work() -> None:
        while one.wait():
            seen.append(True)
            for job in one.admit():
                one.finish(job)

    worker = threading.Thread(target=work)
    worker.start()
    one.submit([Plain()])
    one.close()
    worker.join(timeout=10)
    assert not worker.is_alive()
    with pytest.raises(Busy):
        one.submit([Plain()])


def test_what_is_left_at_the_end_is_handed_back() -> None:
    jobs = [Plain() for _ in range(4)]
    one = scheduler()
    one.submit(jobs)
    one.admit()
    assert same(one.drain(), jobs)
    assert (one.num_running, one.num_waiting) == (0, 0)


def waits(one: Scheduler[Plain]) -> bool:
    """Whether its worker has nothing to do."""
    return not one._has_work()


def test_where_all_that_run_are_paused_the_worker_waits_until_it_can_do_something() -> None:
    jobs = [Plain() for _ in range(3)]
    one = scheduler(slots=2)
    one.submit(jobs)
    one.admit()
    one.pause(jobs[0])
    assert not waits(one)  # for the other one
    one.pause(jobs[1])
    one.pause(jobs[1])
    assert waits(one) and (one.num_running, one.num_waiting) == (2, 1)  # it keeps its slot
    one.resume(jobs[1])
    assert not waits(one)
    one.pause(jobs[1])
    one.cancel(jobs[0])
    assert not waits(one) and same(one.leaving(), jobs[:1])
    assert not waits(one) and same(one.admit(), jobs[2:])
    one.finish(jobs[2])
    assert waits(one)
    one.resume(jobs[0])  # which is gone: nothing
    one.pause(jobs[0])
    assert waits(one)
    one.finish(jobs[1])
    assert waits(one) and one.num_running == 0


@pytest.mark.parametrize("wake", ["submit", "cancel", "resume", "close"])
def test_whatever_gives_a_waiting_worker_something_to_do_wakes_it(wake: str) -> None:
    one, job = scheduler(slots=2), Plain()
    one.submit([job])
    one.admit()
    one.pause(job)
    found: list[bool] = []
    worker = threading.Thread(target=lambda: found.append(one.wait()))
    worker.start()
    calls = {"submit": lambda: one.submit([Plain()]), "close": one.close}
    calls |= {"cancel": lambda: one.cancel(job), "resume": lambda: one.resume(job)}
    calls[wake]()
    worker.join(timeout=10)
    assert found == [wake != "close"]


CALLS = ["submit", "admit", "cancel", "leave", "finish", "pause", "resume"]


@given(st.lists(st.sampled_from(CALLS), max_size=80))
def test_no_sequence_of_calls_passes_a_bound_or_loses_a_job(calls: list[str]) -> None:
    one = scheduler(slots=2, waiting=2)
    waiting: list[Plain] = []
    running: list[Plain] = []
    cancelled: list[Plain] = []
    paused: dict[int, Plain] = {}  # by identity, which nobody else has while a job is kept
    for number, call in enumerate(calls):
        if call == "submit":
            job = Plain()
            try:
                one.submit([job])
                waiting.append(job)
            except Busy:
                assert len(waiting) >= 2 + 2 - len(running)
        elif call == "admit":
            admitted = one.admit()
            assert same(admitted, waiting[: len(admitted)])
            assert len(admitted) == min(len(waiting), 2 - len(running))
            waiting, running = waiting[len(admitted) :], running + admitted
        elif call == "cancel" and waiting + running:
            job = (waiting + running)[number % len(waiting + running)]
            one.cancel(job)
            cancelled += [job] if any(job is r for r in running) else []
            waiting = [w for w in waiting if w is not job]
        elif call == "leave":
            gone = {id(job) for job in one.leaving()}
            assert gone == {id(job) for job in cancelled}
            running, cancelled = [r for r in running if id(r) not in gone], []
        elif call == "finish" and running:
            job = running.pop(number % len(running))
            cancelled = [c for c in cancelled if c is not job]
            one.finish(job)
        elif call in ("pause", "resume") and waiting + running:
            job = (waiting + running)[number % len(waiting + running)]
            getattr(one, call)(job)
            if call == "resume":
                paused.pop(id(job), None)
            elif any(job is r for r in running):
                paused[id(job)] = job
        assert (one.num_waiting, one.num_running) == (len(waiting), len(running))
        can_run = any(id(job) not in paused for job in running)
        can_admit = bool(waiting) and len(running) < 2
        assert waits(one) == (not (can_run or can_admit or cancelled))
