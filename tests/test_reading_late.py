"""The host reads tokens while the device computes the next ones: nothing else may change."""

import itertools
import random
from collections.abc import Sequence
from contextlib import closing

import pytest

from nanochat.engine import Engine, Event, Request, RowState, Sampling, ThreadedTool, ToolCall
from nanochat.inference import kv_cache, prefill
from nanochat.inference.decode import Mode
from nanochat.inference.detokenizer import Finished
from nanochat.inference.tools import InlineTool, Tool
from tests.calling_model import calls_often, shortened, shortened_later
from tests.small_model import ScriptedModel, follows, small_model, small_tokenizer
from tests.stand_in_gpu import StandIn, attend_packed

SECONDS = 60
MODES = {
    "late": Mode(reads_late=True),
    "late and packed": Mode(reads_late=True, can_pack=True),
    "as on a GPU": Mode(StandIn(), can_pack=True, reads_late=True),
}


@pytest.fixture(autouse=True)
def packed_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "attend_packed", attend_packed)


def requests(count: int) -> list[Request]:
    """With and without tools' markers in the prompt, stop strings, ends, filters and limits."""
    rng = random.Random(0)
    samplings = [Sampling(), Sampling(1.0), Sampling(1.0, top_k=40), Sampling(0.8, top_p=0.9)]
    stops: list[list[str]] = [[], ["e"], ["th", "zz"], ["a b"]]
    return [
        Request(
            [rng.randrange(265) for _ in range(rng.randint(1, 60))],
            max_tokens=rng.randint(1, 90),
            sampling=samplings[n % 4],
            seed=n,
            stop=stops[n // 4 % 4],
        )
        for n in range(count)
    ]


def events_of(engine: Engine, wanted: Sequence[Request], num_slots: int) -> list[list[Event]]:
    """The events of each request, which join a batch as slots become free."""
    waiting, running = list(enumerate(wanted)), dict[RowState, int]()
    found: list[list[Event]] = [[] for _ in wanted]
    with closing(engine.open(num_slots)) as batch:
        while waiting or running:
            while waiting and len(running) < num_slots:
                number, request = waiting.pop(0)
                row = engine.new_row(request)
                running[row] = number
                batch.add([row])
            batch.wait_for_tool()
            for row, events in batch.step():
                found[running[row]] += events
                if row.finish_reason:
                    del running[row]
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tool", [InlineTool(shortened), ThreadedTool(shortened_later, SECONDS)])
def test_events_with_tools_and_stop_strings_are_the_same(mode: str, tool: Tool) -> None:
    wanted, found = requests(32), []
    for one in (Mode(), MODES[mode]):
        with calls_often(tool, one) as engine:
            found.append(events_of(engine, wanted, num_slots=6))
    assert found[0] == found[1]
    results = [
        event.result for events in found[0] for event in events if isinstance(event, ToolCall)
    ]
    assert results.count(None) > 3 and len(results) - results.count(None) > 5
    reasons = [events[-1].reason for events in found[0] if isinstance(events[-1], Finished)]
    assert len(reasons) == 32 and {"stop", "length"} == set(reasons)


@pytest.mark.parametrize("mode", MODES)
def test_requests_with_log_probabilities_are_the_same_beside_others(mode: str) -> None:
    wanted = requests(12)
    wanted[3:6] = [
        Request(one.prompt, one.max_tokens, one.sampling, one.seed, num_top_logprobs=2)
        for one in wanted[3:6]
    ]
    found = []
    for one in (Mode(), MODES[mode]):
        with calls_often(InlineTool(shortened), one) as engine:
            found.append(events_of(engine, wanted, num_slots=4))
    for expected, events in zip(*found, strict=True):
        assert [type(event) for event in events] == [type(event) for event in expected]
        for ours, theirs in zip(events, expected, strict=True):
            assert getattr(ours, "text", None) == getattr(theirs, "text", None)
            pairs = zip(getattr(ours, "logprobs", ()), getattr(theirs, "logprobs", ()), strict=True)
            for mine, other in pairs:
                assert mine.token == other.token
                assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_columns_and_completions_with_slow_tools_are_the_same(mode: str) -> None:
    found = []
    for one in (Mode(), MODES[mode]):
        with calls_often(ThreadedTool(shortened_later, SECONDS), one) as engine:
            columns = list(engine.generate([1, 2, 3], 4, max_tokens=60))
            prompts = [[1 + n] * (1 + n) for n in range(5)]
            done = engine.complete(prompts, 80, 1.0, seed=3, batch_size=3, num_samples=2)
            found.append((columns, done))
    assert found[0] == found[1]


@pytest.mark.parametrize("mode", MODES)
def test_answers_may_fill_the_context(mode: str) -> None:
    prompts = [list(range(1, 1 + length)) for length in (1, 30, 59, 63)]
    found = []
    for one in (Mode(), MODES[mode]):
        engine = Engine(small_model(), small_tokenizer(), mode=one)
        engine.end_tokens = frozenset()
        found.append(engine.complete(prompts))
    assert found[0] == found[1]
    assert [len(one.tokens) for one in found[0]] == [63, 34, 5, 1]


@pytest.mark.parametrize("mode", MODES)
def test_the_next_turn_reuses_the_answer_and_gets_the_same(mode: str) -> None:
    turns = []
    for one in (Mode(), MODES[mode]):
        engine = Engine(small_model(), small_tokenizer(), mode=one)
        engine.end_tokens = frozenset()
        prompt = list(range(1, 20))
        for _ in range(3):
            row = engine.new_row(Request(prompt, 9))
            with closing(engine.open(1)) as batch:
                batch.add([row])
                while batch.num_rows:
                    batch.step()
            prompt = [*prompt, *row.tokens, 7]
        turns.append(prompt)
    assert turns[0] == turns[1]


def test_no_pass_runs_after_the_last_token() -> None:
    model = small_model()
    shapes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[1]))
    engine = Engine(model, small_tokenizer(), mode=Mode(reads_late=True))
    engine.end_tokens = frozenset()
    [one] = engine.complete([[1] * 5], max_tokens=7)
    assert shapes == [5, *[1] * 6] and len(one.tokens) == 7


def test_a_canceled_sequence_gets_no_token_that_is_on_its_way() -> None:
    engine = Engine(small_model(), small_tokenizer(), mode=Mode(reads_late=True))
    engine.end_tokens = frozenset()
    batch = engine.open(2)
    first, second = (engine.new_row(Request([n, n], 8)) for n in (1, 2))
    batch.add([first, second])
    for _ in range(3):
        batch.step()
    batch.cancel(first)
    assert len(first.tokens) == 2
    while batch.num_rows:
        assert all(row is second for row, _ in batch.step())
    assert len(first.tokens) == 2 and len(second.tokens) == 8


@pytest.mark.parametrize("mode", [Mode(), *MODES.values()])
def test_running_sequences_get_a_token_between_the_chunks_of_a_long_prompt(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(prefill.TOKENS_PER_PASS, "cpu", (16, 64))
    answer = [7] * 200
    long, short = [3] * 100, [5]
    model = ScriptedModel(follows([*short, *answer], [*long, *answer]))
    engine = Engine(model, small_tokenizer(), mode=mode)  # type: ignore[arg-type]
    batch = engine.open(2)
    running, late = engine.new_row(Request(short, 60)), engine.new_row(Request(long, 5))
    batch.add([running])
    for _ in range(3):
        batch.step()
    batch.add([late])
    before = len(running.tokens)
    for step in itertools.count(1):
        batch.step()
        assert len(running.tokens) == before + step  # one at every step, however long the prompt
        if late.tokens:
            break
    assert step >= -(-100 // 16)
    assert late.tokens == [7] * len(late.tokens)
