"""Tools: a slow one suspends the sequence that calls it and no other."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from nanochat.engine import Completion, Engine, Request
from nanochat.inference import tools
from nanochat.inference.detokenizer import Finished, TextPiece, ToolCall
from nanochat.inference.sampling import Sampling
from nanochat.inference.tools import InlineTool, ThreadedTool, Tool, ToolFunction
from nanochat.web.worker import SHUTTING_DOWN, EnginePool, Failed, Worker, WorkerEvent
from tests.calling_model import calls_often, shortened, shortened_later
from tests.served import wait_until
from tests.small_model import ScriptedModel, follows, ids, small_tokenizer

SECONDS = 60  # a timeout that only a failing test reaches


class Held:
    """A tool whose calls block until they are released, and answer in capitals."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.is_called, self.release = threading.Event(), threading.Event()

    def __call__(self, expression: str) -> str | None:
        self.inputs.append(expression)
        self.is_called.set()
        assert self.release.wait(SECONDS), "it was not released"
        return expression.upper()


@pytest.fixture
def held() -> Iterator[Held]:
    held = Held()
    yield held
    held.release.set()


# ---- tools alone


def test_a_quick_tool_has_answered_when_it_is_called() -> None:
    threads: list[int] = []

    def answer(expression: str) -> str | None:
        threads.append(threading.get_ident())
        return expression.upper() or None

    assert InlineTool(answer).submit("a").result(0) == "A"
    assert InlineTool(answer).submit("").result(0) is None
    assert threads == [threading.get_ident()] * 2


def test_a_threaded_tool_runs_in_a_thread_of_its_own(held: Held) -> None:
    call = ThreadedTool(held, SECONDS).submit("a")
    assert held.is_called.wait(SECONDS) and not call.done()
    held.release.set()
    assert call.result(SECONDS) == "A"


@pytest.mark.parametrize("make", [InlineTool, lambda function: ThreadedTool(function, SECONDS)])
def test_a_failing_tool_has_no_output_and_the_log_has_the_place_but_not_the_message(
    make: Callable[[ToolFunction], Tool], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(expression: str) -> str:
        raise ValueError(f"what {expression} means is private")

    assert make(fail).submit("this").result(SECONDS) is None
    assert "ValueError" in caplog.text and "in fail" in caplog.text
    assert "private\n" not in caplog.text and "what this" not in caplog.text
    assert make(len).submit("a number, not text").result(SECONDS) is None  # type: ignore[arg-type]


def test_a_huge_output_is_truncated_before_it_is_encoded() -> None:
    output = InlineTool(lambda _: "x" * 10_000_000).submit("").result()
    assert output == "x" * tools.MAX_CHARACTERS


def test_a_call_that_times_out_has_no_output_whatever_it_returns_later(held: Held) -> None:
    call = ThreadedTool(held, timeout_seconds=0.01).submit("a")
    assert call.result(SECONDS) is None
    held.release.set()
    wait_until(lambda: not any(thread.name == "tool" for thread in threading.enumerate()))
    assert call.result() is None


def test_hanging_calls_are_bounded_and_a_canceled_call_never_starts(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "MAX_THREADS", 1)
    tool = ThreadedTool(held, SECONDS)
    first = tool.submit("first")
    assert held.is_called.wait(SECONDS)
    second, third = tool.submit("second"), tool.submit("third")
    assert second.cancel()
    held.release.set()
    assert [first.result(SECONDS), third.result(SECONDS)] == ["FIRST", "THIRD"]
    assert second.cancelled() and held.inputs == ["first", "third"]


# ---- in a batch

CALL, OUTPUT = "<|python_start|>x<|python_end|>", "<|output_start|>X<|output_end|>"
END = "<|assistant_end|>"
CALLS = ids(f"<|bos|>{CALL}{OUTPUT} is it.{END}")
LONG = ids(f"a long answer that calls no tool{END}")
SHORT = ids(f"b short.{END}")


class ScriptedEnds(ScriptedModel):
    """Sets an event when it has returned the last token of a script."""

    def __init__(self, *scripts: list[int]) -> None:
        self.has_ended = {id(script): threading.Event() for script in scripts}
        follow = follows(*scripts)

        def next_token(seen: list[int]) -> int:
            for script in scripts:
                if seen == script[:-1]:
                    self.has_ended[id(script)].set()
            return follow(seen)

        super().__init__(next_token)


def engine_of(model: ScriptedModel, tool: Tool) -> Engine:
    return Engine(model, small_tokenizer(), tool)  # type: ignore[arg-type]


def completion_of(script: list[int]) -> Completion:
    """The answer of a script whose first token is the prompt."""
    answer, is_forced, mask = script[1:], False, []
    for token in answer:
        is_forced = is_forced or [token] == ids("<|output_start|>")
        mask.append(0 if is_forced else 1)
        is_forced = is_forced and [token] != ids("<|output_end|>")
    return Completion(answer, mask, "stop")


def test_others_get_tokens_while_a_suspended_row_gets_none(held: Held) -> None:
    engine = engine_of(ScriptedEnds(CALLS, LONG), ThreadedTool(held, SECONDS))
    rows: list[int] = []
    engine.model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    batch = engine.open(2)
    waiting, other = (engine.new_row(Request(script[:1])) for script in (CALLS, LONG))
    batch.add([waiting, other])
    while not other.finish_reason:
        batch.step()
    assert rows == [2] * (1 + len(ids(CALL))) + [1] * (len(LONG) - 2 - len(ids(CALL)))
    assert batch.num_rows == 1 and waiting.is_suspended
    assert waiting.tokens == ids(CALL) and batch.step() == []
    held.release.set()
    batch.wait_for_tool()
    while batch.num_rows:
        batch.step()
    assert (waiting.tokens, waiting.mask) == (
        completion_of(CALLS).tokens,
        completion_of(CALLS).mask,
    )


@pytest.mark.parametrize("batch_size", [2, 3])
def test_a_tool_may_wait_for_the_other_rows_to_finish(batch_size: int) -> None:
    model = ScriptedEnds(CALLS, LONG, SHORT)

    def answer(expression: str) -> str | None:
        others = [model.has_ended[id(script)] for script in (LONG, SHORT)]
        return expression.upper() if all(one.wait(SECONDS) for one in others) else None

    engine = engine_of(model, ThreadedTool(answer, 2 * SECONDS))
    scripts = [CALLS, LONG, SHORT]  # in a batch of two the third takes the slot of the second
    done = engine.complete([script[:1] for script in scripts], batch_size=batch_size)
    assert done == [completion_of(script) for script in scripts]


def delayed(expression: str) -> str:
    """Answers after a delay."""
    time.sleep(0.1)
    return expression.upper()


def test_a_batch_of_suspended_rows_waits_and_a_call_that_times_out_has_no_output(
    held: Held,
) -> None:
    engine = engine_of(ScriptedEnds(CALLS), ThreadedTool(delayed, SECONDS))
    assert engine.complete([CALLS[:1]] * 3, batch_size=2) == [completion_of(CALLS)] * 3
    unanswered = ids(f"<|bos|>{CALL} I cannot.{END}")
    engine = engine_of(ScriptedEnds(unanswered), ThreadedTool(held, 0.001))
    assert engine.complete([unanswered[:1]] * 3, batch_size=2) == [completion_of(unanswered)] * 3


# ---- the same tokens


PROMPTS = [ids("<|bos|>" + "abc "[: 1 + n] * (1 + n)) for n in range(5)]


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_a_suspended_row_gets_the_same_tokens_as_with_an_inline_tool(batch_size: int) -> None:
    found = []
    for tool in (InlineTool(shortened), ThreadedTool(shortened_later, SECONDS)):
        with calls_often(tool) as engine:
            done = engine.complete(PROMPTS, 80, 1.0, seed=3, batch_size=batch_size, num_samples=2)
            found.append(done)
    assert found[0] == found[1]
    assert sum(one.mask.count(0) > 0 for one in found[0]) >= 3


def test_columns_and_events_are_the_same_as_with_an_inline_tool() -> None:
    columns, events = [], []
    for tool in (InlineTool(shortened), ThreadedTool(shortened_later, SECONDS)):
        with calls_often(tool) as engine:
            columns.append(list(engine.generate(PROMPTS[3], 4, max_tokens=80)))
            streams = (engine.stream_text(PROMPTS[3], 80, Sampling(1.0), seed=n) for n in range(9))
            events.append([event for stream in streams for event in stream])
    assert columns[0] == columns[1] and events[0] == events[1]
    assert any(0 in mask for _, mask in columns[0])
    assert any(isinstance(event, ToolCall) and event.result for event in events[0])


# ---- cancellation


def test_canceling_a_suspended_row_cancels_its_call(held: Held) -> None:
    engine = engine_of(ScriptedEnds(CALLS), ThreadedTool(held, SECONDS))
    batch = engine.open(1)
    row = engine.new_row(Request(CALLS[:1]))
    batch.add([row])
    while (call := row.tool_calls.pending) is None:
        batch.step()
    batch.cancel(row)
    assert batch.num_rows == 0 and call.cancelled() and batch.step() == []


class HangingTool:
    """A tool whose calls never end; it keeps them."""

    def __init__(self) -> None:
        self.calls: list[Future[str | None]] = []

    def submit(self, _: str) -> Future[str | None]:
        self.calls.append(Future())
        return self.calls[-1]


def test_a_closed_or_interrupted_generation_cancels_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool = HangingTool()
    engine = engine_of(ScriptedEnds(CALLS), tool)
    columns = engine.generate(CALLS[:1], temperature=0)
    while not tool.calls:
        next(columns)
    columns.close()  # type: ignore[attr-defined]

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(futures, "wait", interrupted)
    for work in (lambda: engine.complete([CALLS[:1]]), lambda: list(engine.stream_text(CALLS[:1]))):
        with pytest.raises(KeyboardInterrupt):
            work()
    assert [call.cancelled() for call in tool.calls] == [True] * 3


# ---- in a server


@contextmanager
def running(engine: Engine, num_slots: int = 1) -> Iterator[EnginePool]:
    """A running pool of one worker, which publishes events in its own thread."""
    pool = EnginePool([engine], num_slots, max_waiting=9)
    pool.start(lambda call: call())
    try:
        yield pool
    finally:
        pool.stop()


def submitted(pool: EnginePool, script: list[int]) -> tuple[Callable[[], None], list[WorkerEvent]]:
    """Submit the first token of a script: a function to cancel it, and its events, which grow."""
    events: list[WorkerEvent] = []
    cancel = pool.submit([Request(script[:1])], lambda _, new: events.extend(new))
    return cancel, events


def text_of(events: list[WorkerEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextPiece))


def has_ended(events: list[WorkerEvent]) -> bool:
    return bool(events) and isinstance(events[-1], Finished | Failed)


def test_a_worker_answers_others_while_one_is_suspended_and_resumes_it(held: Held) -> None:
    with running(
        engine_of(ScriptedEnds(CALLS, LONG), ThreadedTool(held, SECONDS)), num_slots=2
    ) as pool:
        _, waiting = submitted(pool, CALLS)
        assert held.is_called.wait(SECONDS)
        _, other = submitted(pool, LONG)
        wait_until(lambda: has_ended(other))
        assert waiting == [] and len(pool.workers[0].scheduler.running) == 1
        held.release.set()
        wait_until(lambda: has_ended(waiting))
    assert waiting[0] == ToolCall("x", "X") and text_of(waiting) == " is it."


def test_a_worker_sleeps_while_all_sequences_are_suspended(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[None] = []
    run_round = Worker._round

    def counted(worker: Worker) -> None:
        rounds.append(None)
        run_round(worker)

    monkeypatch.setattr(Worker, "_round", counted)
    with running(engine_of(ScriptedEnds(CALLS), ThreadedTool(held, SECONDS))) as pool:
        _, events = submitted(pool, CALLS)
        assert held.is_called.wait(SECONDS)
        time.sleep(0.1)  # enough for thousands of rounds
        held.release.set()
        wait_until(lambda: has_ended(events))
    assert len(rounds) <= len(CALLS) + 1


def test_canceling_a_suspended_request_frees_its_slot(held: Held) -> None:
    with running(engine_of(ScriptedEnds(CALLS, LONG), ThreadedTool(held, SECONDS))) as pool:
        cancel, waiting = submitted(pool, CALLS)
        assert held.is_called.wait(SECONDS)
        _, next_one = submitted(pool, LONG)
        assert len(pool.workers[0].scheduler.waiting) == 1
        cancel()
        wait_until(lambda: has_ended(next_one))
        assert text_of(next_one) == "a long answer that calls no tool"[1:] and waiting == []
        assert len(pool.workers[0].scheduler.running) == 0


def test_a_worker_that_stops_or_fails_cancels_pending_calls() -> None:
    tool = HangingTool()
    engine = engine_of(ScriptedEnds(CALLS, LONG), tool)
    with running(engine, num_slots=2) as pool:
        _, failed = submitted(pool, CALLS)
        wait_until(lambda: bool(tool.calls))
        hook = engine.model.register_forward_pre_hook(lambda *_: 1 / 0)
        _, other = submitted(pool, LONG)
        wait_until(lambda: has_ended(other))
        hook.remove()
        _, stopped = submitted(pool, CALLS)
        wait_until(lambda: len(tool.calls) == 2)
    assert isinstance(failed[-1], Failed) and "the engine failed" in failed[-1].reason
    assert stopped == [Failed(SHUTTING_DOWN)]
    assert [call.cancelled() for call in tool.calls] == [True, True]
