import itertools
import json
import logging
import math
import re
import statistics
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pytest
import torch

from nanochat import chat_eval, paths, report
from nanochat.chat import Conversation, render_for_completion
from nanochat.chat_eval import Answered, Tally, evaluate_task, pass_at_k, proportion, tally
from nanochat.core_eval import centered
from nanochat.engine import Completion, Engine
from nanochat.errors import UserError
from nanochat.execution import describe_sandbox
from nanochat.primer import FAMILIES, PROBES
from scripts import chat_eval as script
from tasks import humaneval
from tasks.common import Task, render_choices
from tasks.primer import TYPED, Primer
from tasks.spellingbee import SpellingBee
from tests import processes
from tests.hub import running_hub
from tests.shared_data import json_lines, mmlu_rows, needs_eval_data, put_on_hub, serve_chat_tasks
from tests.small_model import save_small_run, small_model, small_tokenizer
from tests.word_list import put_word_list


class Alive(dict[str, Any]):
    """A conversation that counts how many of its kind are in memory."""

    now = most = 0

    def __init__(self, content: Conversation) -> None:
        super().__init__(content)
        Alive.now += 1
        Alive.most = max(Alive.most, Alive.now)

    def __del__(self) -> None:
        Alive.now -= 1


class Questions(Task):
    """Questions of different lengths; graded by a rule on the answer."""

    def __init__(
        self, size: int, kind: Literal["generative", "categorical"] = "generative"
    ) -> None:
        super().__init__()
        self.size, self.eval_type = size, kind

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> Conversation:
        letters = list("ABCD"[: 2 + index % 3])
        text = "why " * (index % 7)
        question = render_choices(text, ["x"] * len(letters), letters)
        if self.eval_type == "generative":
            question = f"{index} {text}"
        return Alive(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": "A"},
                ],
                "letters": letters,
                "index": index,
            }
        )

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        if self.eval_type == "categorical":
            letters = conversation["letters"]
            assert completion in letters
            # Whatever letter an untrained model prefers, it is right for some problems.
            return bool(completion == letters[conversation["index"] % len(letters)])
        return (len(completion) + conversation["index"]) % 3 == 0


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(small_model(sequence_len=128, n_layer=1), small_tokenizer())


def how(kind: str) -> dict[str, Any]:
    return {} if kind == "categorical" else {"max_new_tokens": 6, "temperature": 1.0}


# ---- any number of ranks, any batch


@pytest.mark.parametrize("kind", ["categorical", "generative"])
@pytest.mark.parametrize("world_size", [2, 3, 7, 50])
def test_any_number_of_ranks_gives_the_answers_of_one(
    engine: Engine, kind: Literal["generative", "categorical"], world_size: int
) -> None:
    task = Questions(41, kind)
    whole = evaluate_task(task, engine, range(41), **how(kind))
    shares = [
        evaluate_task(task, engine, range(rank, 41, world_size), **how(kind))
        for rank in range(world_size)
    ]
    joined = [one for share in shares for one in share]
    assert sorted(joined, key=lambda one: one.index) == whole
    assert tally(joined) == tally(whole)
    assert tally(whole).num_total == 41 and 0 < tally(whole).num_passed < 41


@pytest.mark.parametrize("kind", ["categorical", "generative"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_any_batch_size_gives_the_same_answers(
    engine: Engine, kind: Literal["generative", "categorical"], batch_size: int
) -> None:
    task = Questions(23, kind)
    whole = evaluate_task(task, engine, range(23), **how(kind))
    assert evaluate_task(task, engine, range(23), batch_size=batch_size, **how(kind)) == whole


@pytest.mark.parametrize("kind", ["categorical", "generative"])
def test_memory_does_not_grow_with_the_length_of_the_task(
    engine: Engine, kind: Literal["generative", "categorical"]
) -> None:
    most = []
    for size in (60, 240):
        before = Alive.most = Alive.now
        answered = evaluate_task(
            Questions(size, kind),
            engine,
            range(size),
            batch_size=5,
            max_new_tokens=1 + (kind == "generative"),
        )
        assert len(answered) == size
        most.append(Alive.most - before)
    assert most[0] == most[1] <= 2 * chat_eval.CHUNK_BATCHES * 5


@pytest.mark.parametrize("size", [0, 5, 12])
def test_progress_is_reported_up_to_the_last_problem(engine: Engine, size: int) -> None:
    progress: list[int] = []
    answered = evaluate_task(
        Questions(12, "categorical"), engine, range(size), batch_size=1,
        on_progress=progress.append,
    )  # fmt: skip
    assert len(answered) == size
    assert (progress[-1] if progress else 0) == size and progress == sorted(progress)


def test_without_problems_the_tally_is_empty(engine: Engine) -> None:
    assert tally(evaluate_task(Questions(0), engine, [])) == tally([]) == Tally()
    assert Tally().accuracy.value == 0.0


# ---- how a problem is graded


def test_the_choice_is_the_most_likely_of_the_problems_own_letters(engine: Engine) -> None:
    task, tokenizer = Questions(30, "categorical"), small_tokenizer()
    chosen: dict[int, str] = {}
    task.evaluate = lambda c, text: bool(chosen.update({c["index"]: text}))  # type: ignore[method-assign]
    evaluate_task(task, engine, range(30), batch_size=7)
    for index in range(30):
        prompt = render_for_completion(task[index], tokenizer)
        with torch.no_grad():
            logits = engine.model(torch.tensor([prompt]))[0, -1]
        scores = {
            letter: float(logits[tokenizer.encode(letter)]) for letter in task[index]["letters"]
        }
        assert chosen[index] == max(scores, key=lambda letter: scores[letter])


def test_answers_are_those_of_the_engine_with_the_problem_as_seed(engine: Engine) -> None:
    task, tokenizer = Questions(9), small_tokenizer()
    options: dict[str, Any] = {"temperature": 1.0, "num_samples": 3}
    answered = evaluate_task(task, engine, range(9), max_new_tokens=6, batch_size=4, **options)
    for index, one in enumerate(answered):
        prompt = render_for_completion(task[index], tokenizer)
        own = engine.complete([prompt], 6, seed=[index], **options)
        texts = tuple(tokenizer.decode(completion.tokens) for completion in own)
        verdicts = tuple(task.evaluate(task[index], text) for text in texts)
        assert one == Answered(index, tokenizer.decode(prompt), "A", texts, verdicts, False)
        assert one.prompt.endswith("<|user_end|><|assistant_start|>")


def test_programs_are_graded_in_parallel(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    meeting = threading.Barrier(4)  # none passes before four wait

    class Slow(Questions):
        def evaluate(self, conversation: Conversation, completion: str) -> bool:
            meeting.wait(timeout=20)
            return bool(conversation["index"] % 2)

    answered = evaluate_task(Slow(8), engine, range(8), max_new_tokens=2)
    assert [one.verdicts for one in answered] == [(bool(i % 2),) for i in range(8)]


def test_a_prompt_longer_than_the_context_keeps_its_end_and_is_counted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Long(Questions):
        def get_example(self, index: int) -> Conversation:
            found = super().get_example(index)
            if index == 1:
                found["messages"][0]["content"] = "long story " * 200
            return found

    for kind in ("generative", "categorical"):
        answered = evaluate_task(Long(3, kind), engine, range(3), max_new_tokens=4)  # type: ignore[arg-type]
        assert [one.was_cut for one in answered] == [False, True, False]
        assert tally(answered).num_cut == 1
        assert answered[1].prompt.endswith("story <|user_end|><|assistant_start|>")
    prompts: list[list[int]] = []

    def complete(some: list[list[int]], *_: Any, **__: Any) -> list[Completion]:
        prompts.extend(some)
        return [Completion([], [], "stop")] * len(some)

    monkeypatch.setattr(engine, "complete", complete)
    evaluate_task(Long(3), engine, range(3), max_new_tokens=28)
    assert [len(prompt) for prompt in prompts][1] == 128 - 28 > len(prompts[0])
    assert small_tokenizer().decode(prompts[1]).endswith("<|user_end|><|assistant_start|>")


# ---- scores


def answered(index: int, *verdicts: bool) -> Answered:
    prompt = (
        "<|bos|><|user_start|>first<|user_end|><|assistant_start|>yes<|assistant_end|>"
        f"<|user_start|>question {index}<|user_end|><|assistant_start|>"
    )
    answers = tuple(f"answer {index}.{i}" for i in range(len(verdicts)))
    return Answered(index, prompt, "known", answers, verdicts, index == 3)


def test_a_tally_counts_and_shows_the_first_wrong_and_right_answers() -> None:
    some = [answered(i, i % 2 == 0) for i in range(8)]
    total = tally(some)
    assert (total.num_passed, total.num_total, total.accuracy.value) == (4, 8, 0.5)
    assert total.num_cut == 1
    assert total.histogram == (4, 4) and total.num_samples == 1
    assert [(s["index"], s["passed"]) for s in total.samples] == [(1, False), (3, False), (0, True)]
    assert total.samples[0] == {
        "index": 1, "prompt": "question 1", "answer": "answer 1.0", "passed": False,
    }  # fmt: skip
    for cut in range(9):
        assert tally(some[cut:] + some[:cut]) == total


@pytest.mark.parametrize("num_samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_of_k_answers_with_a_right_one(num_samples: int) -> None:
    for num_right in range(num_samples + 1):
        verdicts = [True] * num_right + [False] * (num_samples - num_right)
        for k in range(1, num_samples + 1):
            subsets = list(itertools.combinations(verdicts, k))
            expected = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_of_a_task_is_the_mean_over_problems_with_its_standard_error() -> None:
    rows = [(0, 0, 0, 0), (0, 1, 0, 0), (1, 1, 0, 1), (1, 1, 1, 1), (0, 0, 1, 1)]
    total = tally([answered(i, *map(bool, row)) for i, row in enumerate(rows)])
    assert total.histogram == (1, 1, 1, 1, 1) and total.num_samples == 4
    for k in (1, 2, 3, 4):
        values = [pass_at_k(4, sum(row), k) for row in rows]
        estimate = total.pass_at(k)
        assert estimate.value == pytest.approx(statistics.mean(values))
        assert estimate.error == pytest.approx(statistics.pstdev(values) / math.sqrt(5))
    assert total.pass_at(4).value == total.accuracy.value == 0.8  # one of four is right
    assert total.pass_at(4).error == pytest.approx(total.accuracy.error)
    assert total.pass_at(1).value == pytest.approx(sum(map(sum, rows)) / 20)


def test_standard_errors_are_binomial_and_intervals_those_of_wilson() -> None:
    estimate = proportion(0.3, 200)
    assert estimate.error == pytest.approx(math.sqrt(0.3 * 0.7 / 200))
    # Agresti and Coull (1998): the roots p of (value - p)^2 = z^2 p (1 - p) / n.
    for bound in (estimate.low, estimate.high):
        assert (0.3 - bound) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 200)
    assert estimate.low < 0.3 < estimate.high
    none, every = proportion(0.0, 164), proportion(1.0, 164)
    assert (none.low, none.error, every.high, every.error) == (0.0, 0.0, 1.0, 0.0)
    assert none.high == pytest.approx(0.0229, abs=1e-4) and every.low == 1 - none.high


# ---- scripts.chat_eval

QUICK = ["--device_type=cpu", "--primer_problems=3", "--max_new_tokens=5"]


@pytest.fixture
def log_text(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """Returns what was logged since the last call."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    caplog.set_level(logging.INFO)

    def read() -> str:
        words = "\n".join(record.getMessage() for record in caplog.records)
        caplog.clear()
        return words

    return read


def put_task_files() -> None:
    """A few problems of each task of ChatCORE."""
    arc = [
        {
            "question": f"Q{i}",
            "choices": {"text": ["a", "b"], "label": ["A", "B"]},
            "answerKey": "A",
        }
        for i in range(4)
    ]
    for subset in ("ARC-Easy", "ARC-Challenge"):
        put_on_hub("allenai/ai2_arc", f"{subset}/test-00000-of-00001.parquet", arc)
    put_on_hub("cais/mmlu", "all/test-00000-of-00001.parquet", mmlu_rows("dev")[:4])
    put_on_hub(
        "openai/gsm8k", "main/test-00000-of-00001.parquet", json_lines("gsm8k/test.jsonl")[:4]
    )
    put_word_list()


def test_families_of_the_primer_are_measured_once_and_summarized(
    log_text: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_run("sft", n_layer=1)
    script.main(["-i", "sft", *QUICK])
    words = log_text()
    assert script.ALL_FAMILIES in words
    section = report.read_section("chat_eval_sft")
    assert section is not None and section["column"] == "SFT"
    assert list(section["results"]) == [*FAMILIES, *PROBES, TYPED]
    assert all(section["results"][family]["num_total"] == 3 for family in FAMILIES)
    right = sum(section["results"][family]["num_passed"] for family in FAMILIES)
    assert section["table"][script.ALL_FAMILIES] == right / (3 * len(FAMILIES))

    monkeypatch.setattr(chat_eval, "evaluate_task", None)  # must not be called
    script.main(["-i", "sft", *QUICK])
    words = log_text()
    assert "already measured" in words and script.ALL_FAMILIES in words


def test_a_killed_run_resumes_but_other_settings_start_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_small_run("sft", n_layer=1)
    asked: list[str] = []

    def measure(label: str, *_: Any) -> Tally:
        if len(asked) % 4 == 3:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.append(label)
        return Tally(num_passed=1, num_total=2)

    monkeypatch.setattr(script, "measure", measure)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            script.main(QUICK)
    assert [label for label in asked if label != "killed"] == list(FAMILIES[:6])
    section = report.read_section("chat_eval_sft")
    assert section is not None and list(section["results"]) == list(FAMILIES[:6])
    assert script.ALL_FAMILIES not in section["table"]
    for result in section["results"].values():
        result["num_unseen"] = 0  # an earlier version had more fields
    report.write_section("chat_eval_sft", section)
    with pytest.raises(KeyboardInterrupt):
        script.main([*QUICK, "--temperature=0.5"])
    section = report.read_section("chat_eval_sft")
    assert section is not None and list(section["results"]) == list(FAMILIES[:3])


@needs_eval_data
def test_available_tasks_are_measured_and_the_others_are_named(
    log_text: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_small_run("rl", n_layer=1)
    put_task_files()
    script.main(["-i", "rl", "-a", "all", "--max_problems=4", *QUICK])
    words = log_text()
    assert "HumanEval is left out: " in words
    section = report.read_section("chat_eval_rl")
    assert section is not None
    tasks = [name for name in script.CHAT_TASKS if name != "HumanEval"]
    assert list(section["results"]) == tasks
    assert {result["num_total"] for result in section["results"].values()} == {4}
    assert not any(label.startswith(script.CHATCORE) for label in section["table"])
    for arguments in (["-a", "GSM8K,facts"], ["-a", "facts", "--fresh"]):
        script.main(["-i", "rl", "--max_problems=4", *arguments, *QUICK])
        section = report.read_section("chat_eval_rl")
        assert section is not None and list(section["results"]) == [*tasks, "facts"]


def test_a_task_without_files_is_left_out_of_all_and_named(
    log_text: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_small_run("sft", n_layer=1)
    script.main(["-a", "all", "--max_problems=2", *QUICK])
    words = log_text()
    assert "GSM8K is left out: " in words and "--prefetch" in words
    assert "SpellingBee" in words
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        script.main(["-a", "GSM8K", *QUICK])


def test_without_the_sandbox_humaneval_is_left_out_and_an_error_if_it_is_named(
    log_text: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(level: str) -> str:
        raise UserError(f"--sandbox={level} is not available here: no seccomp")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(humaneval, "describe_sandbox", unavailable)
    save_small_run("sft", n_layer=1)
    script.main(["-a", "all", "--max_problems=2", *QUICK])
    words = log_text()
    assert "HumanEval is left out: --sandbox=strict is not available here: no sec" in words
    with pytest.raises(UserError, match="--sandbox=limits is not available here"):
        script.main(["-a", "HumanEval", "--sandbox=limits", *QUICK])


def test_pass_at_k_is_estimated_from_answers_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_small_run("sft", n_layer=1)
    command = ["-a", "facts", "--num_samples=4", "--temperature=1", *QUICK]
    script.main(command)
    monkeypatch.setattr(chat_eval, "evaluate_task", None)  # must not be called
    script.main([*command, "--pass_at=1,4"])
    section = report.read_section("chat_eval_sft")
    assert section is not None
    assert list(section["table"]) == ["facts", "facts pass@1", "facts pass@4"]
    assert section["table"]["facts"] == section["table"]["facts pass@4"]
    assert list(section["errors"]) == list(section["intervals"]) == list(section["table"])


def test_every_answer_is_a_line_of_json() -> None:
    save_small_run("mid", n_layer=1, sequence_len=192)
    script.main(["-i", "mid", "-a", "facts,choice", *QUICK])
    section = report.read_section("chat_eval_mid")
    assert section is not None
    for family in ("facts", "choice"):
        path = paths.base_dir() / "chat_eval" / f"mid_{family}.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [line["index"] for line in lines] == [0, 1, 2]
        task = Primer("test", family=family, size=3)
        for line in lines:
            item = task[line["index"]]
            assert line["task"] == family and line["expected"] == str(item["answer"])
            assert line["prompt"] == small_tokenizer().decode(
                render_for_completion(item, small_tokenizer())
            )
            assert line["verdicts"] == [task.evaluate(item, line["answers"][0])]
        passed = sum(any(line["verdicts"]) for line in lines)
        assert section["results"][family]["num_passed"] == passed


@needs_eval_data
@pytest.mark.slow
def test_all_six_public_tasks_run_from_the_hub_to_chatcore(
    log_text: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        level = describe_sandbox("strict")
    except UserError as error:
        pytest.skip(str(error))
    spelling = (partial(SpellingBee, "test", size=6), 0.0)
    monkeypatch.setitem(script.CHAT_TASKS, "SpellingBee", spelling)
    save_small_run("sft", n_layer=1, sequence_len=192)
    command = ["-a", "all", "--device_type=cpu"]
    with running_hub() as hub:
        serve_chat_tasks(hub, num_rows=6)
        put_word_list()
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        script.main(command)
        assert len(hub.requests) == len(set(hub.requests)) == 5
    words = log_text()
    section = report.read_section("chat_eval_sft")
    assert section is not None and list(section["results"]) == list(script.CHAT_TASKS)
    assert section["settings"]["sandbox"] == level
    scores = [
        centered(section["results"][name]["num_passed"] / 6, chance)
        for name, (_, chance) in script.CHAT_TASKS.items()
    ]
    assert section["table"]["ChatCORE"] == pytest.approx(sum(scores) / 6)
    assert section["errors"]["ChatCORE"] > 0
    low, high = section["intervals"]["ChatCORE"]
    line = rf"ChatCORE +{sum(scores) / 6:.4f}  \(95 %: {low:.4f} to {high:.4f}\)"
    assert re.search(line, words)
    for name in script.CHAT_TASKS:
        path = paths.base_dir() / "chat_eval" / f"sft_{name}.jsonl"
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [(line["task"], line["index"]) for line in lines] == [(name, i) for i in range(6)]
    monkeypatch.setattr(chat_eval, "evaluate_task", None)  # must not be called
    script.main(command)
    assert "already measured" in log_text()


@pytest.mark.slow
def test_two_ranks_write_the_files_of_one() -> None:
    save_small_run("sft", n_layer=1)
    base, command = paths.base_dir(), f"scripts.chat_eval -a facts,choice --fresh {' '.join(QUICK)}"
    written = []
    for ranks in (1, 2):
        processes.run(base, command, ranks)
        files = [base / "chat_eval" / f"sft_{name}.jsonl" for name in ("facts", "choice")]
        section = report.read_section("chat_eval_sft")
        assert section is not None
        written.append([*(file.read_bytes() for file in files), section["table"]])
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-a", "GSM8"], "-a GSM8 is not a task, nor primer or all; did you mean GSM8K"),
        (["-a", "facts,zzz"], "-a zzz is not a task, nor primer or all; use facts, "),
        (["--pass_at=2"], "--pass_at=2 must be from 1 to --num_samples=1"),
        (["--pass_at=0"], "--pass_at=0 must be from 1 to --num_samples=1"),
        (["--pass_at=one"], "--pass_at=one must be from 1 to --num_samples=1"),
        (["--num_samples=4"], "--num_samples=4 at temperature 0 gives the same answer each time"),
        (["--batch_size=0"], "--batch_size=0 must be 1 or more"),
        (["--max_new_tokens=0"], "--max_new_tokens=0 must be 1 or more"),
    ],
)
def test_impossible_options_are_rejected_with_the_remedy(
    arguments: list[str], message: str
) -> None:
    save_small_run("sft", n_layer=1)
    with pytest.raises(UserError, match=message):
        script.main([*QUICK, *arguments])


def test_chatcore_is_the_mean_of_six_centered_accuracies_and_needs_all_six() -> None:
    shares = (0.40, 0.25, 0.62, 0.10, 0.05, 0.70)
    results = {
        name: Tally(num_passed=round(100 * share), num_total=100)
        for name, share in zip(script.CHAT_TASKS, shares, strict=True)
    }
    settings: dict[str, Any] = dict(script.CHATCORE_SETTINGS)
    expected = (0.15 / 0.75 + 0.0 + 0.37 / 0.75 + 0.10 + 0.05 + 0.70) / 6
    [(label, score)] = script.summary(results, settings).items()
    assert (label, score.value) == ("ChatCORE", pytest.approx(expected))
    variances = [p * (1 - p) / 100 / (0.75 if i < 3 else 1) ** 2 for i, p in enumerate(shares)]
    assert score.error == pytest.approx(math.sqrt(sum(variances)) / 6)
    assert score.high - score.value == pytest.approx(1.959964 * score.error)
    for changes, label in (
        ({"max_problems": 100}, "ChatCORE with max_problems=100"),
        ({"temperature": 0.5, "num_samples": 2}, "ChatCORE with num_samples=2, temperature=0.5"),
    ):
        assert list(script.summary(results, settings | changes)) == [label]
    del results["GSM8K"]
    assert script.summary(results, settings) == {}


def test_the_published_numbers_give_the_published_chatcore() -> None:
    names = ("ARC-Challenge", "ARC-Easy", "GSM8K", "HumanEval", "MMLU")
    mid = dict(zip(names, (0.2875, 0.3561, 0.0250, 0.0671, 0.3111), strict=True))
    baselines = {name: baseline for name, (_, baseline) in script.CHAT_TASKS.items()}
    scores = [centered(value, baselines[name]) for name, value in mid.items()]
    assert sum(scores) / 5 == pytest.approx(0.0730, abs=5e-5)  # without SpellingBee, as published
