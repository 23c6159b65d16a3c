import csv
import itertools
import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat import core_eval, report
from nanochat.core_eval import CoreTask, Counts, Item, Problem
from nanochat.errors import UserError
from nanochat.gpt import GPT
from scripts import base_eval
from tasks.primer import plain_choices, with_answer
from tests.reference import core as plain
from tests.shared_data import EVAL_DATA, needs_eval_data
from tests.small_model import save_small_run, small_model, small_tokenizer

CPU = torch.device("cpu")
CHOICE = CoreTask("choice", "multiple_choice", num_shots=0, delimiter=" ", baseline=0.25)
SCHEMA = CoreTask("schema", "schema", num_shots=0, delimiter=" ", baseline=0.5)
LANGUAGE = CoreTask("language", "language_modeling", num_shots=0, delimiter=" ")


def encode(texts: list[str]) -> list[list[int]]:
    return small_tokenizer().encode(texts, prepend="<|bos|>")


def counts_of(task: CoreTask, items: Sequence[Item], model: GPT, **how: Any) -> Counts:
    def logits_at(tokens: Tensor, at: Tensor) -> Tensor:
        return model(tokens, logits_at=at)

    how = {"indices": range(len(items)), "limit": model.config.sequence_len, "device": CPU, **how}
    return core_eval.evaluate_task(task, items, encode=encode, logits_at=logits_at, **how)


def rows_of(task: CoreTask, item: Item, shots: Sequence[Item] = ()) -> list[list[int]]:
    return encode(core_eval.make_prompts(task, item, shots))


def problem(task: CoreTask, item: Item, limit: int = 10**6) -> Problem:
    return core_eval.make_problem(task, item, rows_of(task, item), limit)


def spans(found: Problem) -> list[str]:
    """The scored text of each sequence."""
    return [small_tokenizer().decode(list(s.tokens[s.start :])) for s in found.sequences]


# ---- the bundle


@needs_eval_data
def test_the_22_tasks_are_as_published() -> None:
    tasks = core_eval.read_tasks(EVAL_DATA)
    assert len(tasks) == core_eval.NUM_TASKS == 22
    assert [task.label for task in tasks if task.kind == "schema"] == ["winograd", "winogrande"]
    answers = {task.label for task in tasks if task.delimiter == "\nAnswer: "}
    assert answers == {"jeopardy", "arc_easy", "arc_challenge", "piqa", "boolq"}
    assert {task.delimiter for task in tasks} == {" ", "\nAnswer: "}
    shots = {task.label: task.num_shots for task in tasks}
    assert shots["agi_eval_lsat_ar"] == 3 and set(shots.values()) == {0, 3, 10}
    chance = {task.label: task.baseline for task in tasks}
    assert chance["boolq"] == pytest.approx(0.62) and chance["commonsense_qa"] == pytest.approx(0.2)
    assert chance["squad"] == 0.0 and chance["bigbench_language_identification"] == pytest.approx(
        0.091
    )


@needs_eval_data
def test_v2_baselines_are_those_of_dclm() -> None:
    v1, v2 = core_eval.read_tasks(EVAL_DATA, "v1"), core_eval.read_tasks(EVAL_DATA, "v2")
    with (EVAL_DATA / "dclm" / "eval_meta_data_v2.csv").open(encoding="utf-8") as file:
        theirs = {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)}
    for task in v2:
        assert 100 * task.baseline == pytest.approx(theirs[task.label]), task.label
    assert sum(a.baseline != b.baseline for a, b in zip(v1, v2, strict=True)) == 3


@needs_eval_data
def test_files_that_are_not_the_published_ones_are_named() -> None:
    tasks = core_eval.read_tasks(EVAL_DATA)
    assert set(core_eval.unpublished_files(EVAL_DATA, tasks)) == {
        "hellaswag_zeroshot", "hellaswag", "squad", "coqa",
    }  # fmt: skip


@needs_eval_data
def test_missing_files_of_a_bundle_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"core\.yaml is missing"):
        core_eval.read_tasks(tmp_path)
    for name in (core_eval.TASKS_FILE, core_eval.BASELINES_FILE):
        shutil.copy(EVAL_DATA / name, tmp_path / name)
    (tmp_path / "eval_data").mkdir()
    with pytest.raises(FileNotFoundError, match=r"eval_data lacks .*copa\.jsonl"):
        core_eval.read_tasks(tmp_path)


@needs_eval_data
def test_published_accuracies_of_gpt2_give_the_published_core() -> None:
    chance = {task.label: task for task in core_eval.read_tasks(EVAL_DATA)}
    for name, expected in [("", 0.113891), ("-medium", 0.184903), ("-large", 0.214641),
                           ("-xl", 0.256525)]:  # fmt: skip
        lines = (EVAL_DATA / f"openai-community-gpt2{name}.csv").read_text().splitlines()[1:]
        rows = [[cell.strip() for cell in line.split(",")] for line in lines]
        centered = []
        for label, accuracy, *_ in rows:
            if label in chance:
                counts = Counts(num_items=10**6, num_right=round(10**6 * float(accuracy)))
                centered.append(core_eval.centered(counts.accuracy, chance[label].baseline))
        assert len(centered) == 22
        assert sum(centered) / 22 == pytest.approx(expected, abs=2e-6)


# ---- items and shots


def written(folder: Path, items: Sequence[Item]) -> CoreTask:
    (folder / "eval_data").mkdir()
    lines = "\n".join(json.dumps(item) for item in items)
    (folder / "eval_data" / "some.jsonl").write_text(lines, encoding="utf-8")
    return CoreTask("some", "multiple_choice", 0, " ", file="some.jsonl")


@pytest.mark.parametrize("max_items", [-1, 0, 1, 7, 99])
def test_items_are_shuffled_before_they_are_cropped(tmp_path: Path, max_items: int) -> None:
    items = [{"query": str(i)} for i in range(30)]
    task = written(tmp_path, items)
    found = core_eval.read_items(tmp_path, task, max_items)
    assert found == plain.items_of(tmp_path / "eval_data" / "some.jsonl", max_items)
    assert len(found) == (30 if max_items < 1 else min(30, max_items))
    if max_items == 7:
        assert found == core_eval.read_items(tmp_path, task)[:7]


@pytest.mark.parametrize("count", [0, 1, 3, 9, 10, 50])
def test_few_shot_examples_are_other_items_at_most_all(count: int) -> None:
    items = [{"query": str(i)} for i in range(10)]
    for index in range(10):
        shots = core_eval.few_shot_examples(items, index, count)
        assert len(shots) == min(count, 9) == len({shot["query"] for shot in shots})
        assert items[index] not in shots
        assert shots == core_eval.few_shot_examples(items, index, count)
    assert core_eval.few_shot_examples(items[:1], 0, count) == []


def test_cropping_changes_the_few_shot_examples() -> None:
    items = [{"query": str(i)} for i in range(50)]
    assert core_eval.few_shot_examples(items, 3, 5) != core_eval.few_shot_examples(items[:25], 3, 5)


# ---- prompts


def test_a_choice_prompt_does_not_strip_question_and_choices() -> None:
    task = CoreTask("t", "multiple_choice", 1, "\nAnswer: ")
    item = {"query": "How?\n", "choices": [" so ", "no"], "gold": 1}
    shot = {"query": "Q ", "choices": ["x", "y "], "gold": 1}
    assert core_eval.make_prompts(task, item, [shot]) == [
        "Q \nAnswer: y \n\nHow?\n\nAnswer:  so ",
        "Q \nAnswer: y \n\nHow?\n\nAnswer: no",
    ]


def test_a_schema_prompt_has_the_same_ending_for_all_options() -> None:
    item = {"context_options": ["The cup", "The box"], "continuation": "is big. ", "gold": 0}
    assert core_eval.make_prompts(SCHEMA, item, [item]) == [
        "The cup is big. \n\nThe cup is big. ",
        "The cup is big. \n\nThe box is big. ",
    ]


def test_a_language_prompt_strips_the_context_but_not_the_continuation() -> None:
    item = {"context": " One two ", "continuation": "three "}
    assert core_eval.make_prompts(LANGUAGE, item, [item]) == [
        "One two three \n\nOne two",
        "One two three \n\nOne two three ",
    ]


# ---- spans


def test_choices_are_scored_after_their_common_prefix() -> None:
    found = problem(CHOICE, {"query": "The sky is", "choices": ["blue", "green"], "gold": 0})
    assert all(span in ("blue", " blue", "lue", "green", " green", "reen") for span in spans(found))
    starts = {sequence.start for sequence in found.sequences}
    assert len(starts) == 1
    [start] = starts
    first, second = (sequence.tokens for sequence in found.sequences)
    assert first[:start] == second[:start] and first[start] != second[start]


def test_schema_options_are_scored_over_their_common_ending() -> None:
    found = problem(
        SCHEMA, {"context_options": ["He saw", "They all saw"], "continuation": "me.", "gold": 1}
    )
    assert spans(found)[0] == spans(found)[1]
    assert spans(found)[0].endswith("saw me.")


def test_a_continuation_that_changes_earlier_tokens_is_scored_from_the_first_that_differs() -> None:
    tokenizer = small_tokenizer()
    words = filter(bytes.isalpha, tokenizer.ranks)
    joined = max(words, key=len).decode()  # one token together, two apart
    assert len(tokenizer.encode(joined)) == 1
    task = CoreTask("t", "language_modeling", 0, "")
    item = {"context": joined[:1], "continuation": joined[1:]}
    found = problem(task, item)
    assert found.counts.num_not_extension and spans(found) == [joined]
    joined_later = {"context": "One", "continuation": "two"}
    assert not problem(LANGUAGE, joined_later).counts.num_not_extension
    counts = counts_of(task, [item], small_model())
    assert (counts.num_items, counts.num_not_extension) == (1, 1)


def test_with_a_choice_without_a_token_of_its_own_the_first_wins_and_it_is_counted() -> None:
    items = [
        {"query": "One", "choices": ["two", "two "], "gold": 0},
        {"query": "One", "choices": ["two", "two "], "gold": 1},
    ]
    items = [i for i in items if problem(CHOICE, i).counts.num_empty]
    assert len(items) == 2
    counts = counts_of(CHOICE, items, small_model())
    assert (counts.num_right, counts.num_empty) == (1, 2)
    empty = {"context": "One two", "continuation": ""}
    task = CoreTask("t", "language_modeling", 0, "")
    assert counts_of(task, [empty], small_model()) == Counts(1, 0, 1, 0, 0)


def test_a_prompt_longer_than_the_limit_keeps_its_end_and_is_counted() -> None:
    item = {"query": "far away " * 40, "choices": ["blue", "a very dark green"], "gold": 0}
    whole, cut = problem(CHOICE, item), problem(CHOICE, item, limit=20)
    assert not whole.counts.num_cropped and cut.counts.num_cropped
    for before, after in zip(whole.sequences, cut.sequences, strict=True):
        assert after.tokens == before.tokens[-20:]
        assert after.tokens[after.start :] == before.tokens[before.start :]
    tiny = problem(CHOICE, item, limit=3)  # the span itself is too long
    assert len(whole.sequences[1].tokens) - whole.sequences[1].start > 3
    assert (tiny.sequences[1].start, len(tiny.sequences[1].tokens)) == (1, 3)
    counts = counts_of(CHOICE, [item], small_model())
    assert counts.num_cropped == 1


# ---- scores


class Fixed:
    """A model whose logits depend only on the last token: a table, which can have ties."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, tokens: Tensor, at: Tensor) -> Tensor:
        return self.table[tokens.gather(1, at)]


def test_of_equal_losses_the_first_choice_counts() -> None:
    vocab = small_tokenizer().get_vocab_size()
    flat = Fixed(torch.zeros(vocab, vocab))
    item = {"query": "One", "choices": ["abc", "xyz", "qrs", "xyz"]}
    problems = [problem(CHOICE, {**item, "gold": gold}) for gold in range(4)]
    right = core_eval.solve(problems, flat, CPU, 64)
    assert right == [True, False, False, False]


def test_a_repeated_choice_is_a_tie_that_the_first_wins() -> None:
    model = small_model(seed=3)
    item = {"query": "One", "choices": ["two", "six", "two"]}
    problems = [problem(CHOICE, {**item, "gold": gold}) for gold in range(3)]
    right = core_eval.solve(problems, lambda t, at: model(t, logits_at=at), CPU, 64)
    assert sum(right) == 1 and not right[2]


def test_the_loss_is_the_mean_over_the_span_not_the_sum() -> None:
    vocab = small_tokenizer().get_vocab_size()
    some = [core_eval.ScoredSequence((1, 2, 3, 4), start) for start in (1, 2, 3)]
    scores = core_eval._score_batch(some, Fixed(torch.zeros(vocab, vocab)), CPU)
    assert [loss for loss, _ in scores] == [pytest.approx(math.log(vocab))] * 3


def test_language_modeling_requires_every_token() -> None:
    vocab = small_tokenizer().get_vocab_size()
    item = {"context": "One two", "continuation": "three four"}
    rows = rows_of(LANGUAGE, item)
    start = core_eval.common_prefix(rows)
    assert len(rows[1]) - start > 2
    for wrong in [None, *range(start, len(rows[1]))]:
        logits = torch.zeros(len(rows[1]), vocab)
        for place, token in enumerate(rows[1][1:]):
            logits[place, token if place + 1 != wrong else (token + 1) % vocab] = 1.0

        def logits_at(_: Tensor, at: Tensor, logits: Tensor = logits) -> Tensor:
            return logits[at]

        assert core_eval.solve([problem(LANGUAGE, item)], logits_at, CPU, 64) == [wrong is None]


def test_longest_sequences_come_first_and_batches_respect_their_token_limit() -> None:
    model, shapes = small_model(), []

    def logits_at(tokens: Tensor, at: Tensor) -> Tensor:
        shapes.append((tokens.size(0), tokens.size(1) + 1))
        return model(tokens, logits_at=at)

    items = [
        {"query": "one " * (1 + i % 9), "choices": ["red", "blue"], "gold": i % 2}
        for i in range(40)
    ]
    core_eval.evaluate_task(
        CHOICE, items, range(40), encode, logits_at, limit=64, device=CPU, tokens_per_batch=96
    )
    lengths = [length for _, length in shapes]
    assert lengths == sorted(lengths, reverse=True)
    assert all(rows * length <= 96 for rows, length in shapes)
    assert max(rows for rows, _ in shapes) > 3


@needs_eval_data
@pytest.mark.parametrize(
    ("label", "count"),
    [
        ("hellaswag", 4), ("jeopardy", 8), ("arc_challenge", 6), ("copa", 20), ("piqa", 12),
        ("commonsense_qa", 6), ("winograd", 15), ("winogrande", 15), ("lambada_openai", 10),
        ("bigbench_dyck_languages", 6), ("agi_eval_lsat_ar", 4), ("bigbench_operators", 6),
        ("bigbench_repeat_copy_logic", 12), ("squad", 3), ("coqa", 3), ("boolq", 4),
        ("bigbench_language_identification", 3),
    ],
)  # fmt: skip
@pytest.mark.parametrize("sequence_len", [64, 1024])
def test_real_items_are_scored_as_by_the_reference(
    label: str, count: int, sequence_len: int
) -> None:
    [task] = [task for task in core_eval.read_tasks(EVAL_DATA) if task.label == label]
    items = core_eval.read_items(EVAL_DATA, task, count)
    assert items == plain.items_of(EVAL_DATA / "eval_data" / task.file, count)
    model = small_model(sequence_len=sequence_len, n_layer=1, n_embd=16, n_head=2, n_kv_head=1)
    if sequence_len > 64:
        items = [item for item in items if longest(task, items, item) <= sequence_len] or items[:2]
    expected = [plain.is_right(task, items, i, model, small_tokenizer()) for i in range(len(items))]
    counts = counts_of(task, items, model)
    assert (counts.num_items, counts.num_right) == (len(items), sum(expected))
    assert (counts.num_cropped > 0) == any(longest(task, items, i) > sequence_len for i in items)
    one_by_one = [counts_of(task, items, model, indices=[i]) for i in range(len(items))]
    assert [bool(one.num_right) for one in one_by_one] == expected
    for world_size in (2, 3):
        shares = [counts_of(task, items, model, indices=range(rank, len(items), world_size))
                  for rank in range(world_size)]  # fmt: skip
        assert sum(shares, Counts()) == counts


def longest(task: CoreTask, items: list[Item], item: Item) -> int:
    shots = core_eval.few_shot_examples(items, items.index(item), task.num_shots)
    return max(map(len, rows_of(task, item, shots)))


def test_counts_add_up_by_field_and_chance_is_centered_at_0() -> None:
    assert Counts(1, 2, 3, 4, 5) + Counts(10, 20, 30, 40, 50) == Counts(11, 22, 33, 44, 55)
    assert (Counts(8, 2).accuracy, Counts(8, 8).accuracy, Counts().accuracy) == (0.25, 1.0, 0.0)
    assert (core_eval.centered(0.25, 0.25), core_eval.centered(1.0, 0.25)) == (0.0, 1.0)
    assert core_eval.centered(0.0, 0.25) == pytest.approx(-1 / 3)


def test_progress_is_reported_for_any_chunk_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    items = [
        {"query": f"{i} and", "choices": ["red", "blue", "green"], "gold": i % 3} for i in range(25)
    ]
    model, progress = small_model(), []
    whole = counts_of(CHOICE, items, model)
    monkeypatch.setattr(core_eval, "CHUNK_ITEMS", 4)
    assert counts_of(CHOICE, items, model, on_progress=progress.append) == whole
    assert progress == [4, 8, 12, 16, 20, 24, 25]


# ---- scripts.base_eval

QUICK = ["--device_type=cpu", "--primer_problems=6"]


def log_text(caplog: pytest.LogCaptureFixture) -> str:
    found = "\n".join(record.getMessage() for record in caplog.records)
    caplog.clear()
    return found


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """The log of a command, which must not replace the handlers."""
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    caplog.set_level(logging.INFO)
    return caplog


def small_bundle(folder: Path, items_per_task: int) -> None:
    """The first items of every file of the bundle."""
    for task in core_eval.read_tasks(EVAL_DATA):
        file = folder / "eval_data" / task.file
        file.parent.mkdir(parents=True, exist_ok=True)
        with (EVAL_DATA / "eval_data" / task.file).open(encoding="utf-8") as whole:
            file.write_text("".join(itertools.islice(whole, items_per_task)), encoding="utf-8")
    for name in (core_eval.TASKS_FILE, core_eval.BASELINES_FILE):
        shutil.copy(EVAL_DATA / name, folder / name)


@needs_eval_data
def test_a_cropped_run_measures_every_task_and_is_not_called_core(
    base_dir: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_run("base")
    (base_dir / "eval_bundle").symlink_to(EVAL_DATA)
    base_eval.main(["--max_per_task=1", *QUICK])
    words = log_text(log)
    assert "not CORE: at most 1 items per task; other files than the published" in words
    assert "CORE is" not in words and "Irregular items: " in words
    section = report.read_section("base_eval")
    assert section is not None and section["complete"]
    assert len(section["rows"]) == 1 + 22 + 1 and len(section["samples"]) == 4
    assert [row[1] for row in section["rows"][1:23]] == [1] * 22
    assert "CORE" not in section["table"]

    monkeypatch.setattr(core_eval, "evaluate_task", None)  # must not be called
    base_eval.main(["--max_per_task=1", *QUICK])
    again = log_text(log)
    assert "already measured" in again and "hellaswag_zeroshot" in again and "not CORE" in again


@needs_eval_data
def test_a_full_run_on_the_published_files_is_core(
    base_dir: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_run("base")
    small_bundle(base_dir / "eval_bundle", 2)
    monkeypatch.setattr(core_eval, "unpublished_files", lambda *_: [])
    base_eval.main(QUICK)
    section = report.read_section("base_eval")
    assert section is not None
    results = section["results"]
    tasks = core_eval.read_tasks(EVAL_DATA)
    accuracies = [Counts(**results[task.label]).accuracy for task in tasks]
    centered = [core_eval.centered(a, t.baseline) for a, t in zip(accuracies, tasks, strict=True)]
    assert section["table"]["CORE"] == pytest.approx(sum(centered) / 22)
    assert f"CORE is {sum(centered) / 22:.4f} (baselines v1)." in log_text(log)


@needs_eval_data
def test_a_killed_run_resumes_with_the_remaining_tasks(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_run("base")
    small_bundle(base_dir / "eval_bundle", 2)
    asked: list[str] = []
    evaluate_task = core_eval.evaluate_task

    def until_the_fifth(task: CoreTask, *arguments: Any, **how: Any) -> Counts:
        if len(asked) == 5:
            raise KeyboardInterrupt
        asked.append(task.label)
        return evaluate_task(task, *arguments, **how)

    monkeypatch.setattr(core_eval, "evaluate_task", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        base_eval.main(QUICK)
    before, asked[:] = list(asked), []
    with pytest.raises(KeyboardInterrupt):
        base_eval.main(QUICK)
    labels = [task.label for task in core_eval.read_tasks(EVAL_DATA)]
    assert before + asked == labels[:10]
    section = report.read_section("base_eval")
    assert section is not None and not section["complete"] and "table" not in section
    assert [row[0] for row in section["rows"][1:]] == labels[:10]


def test_without_the_bundle_the_rest_is_measured_and_the_download_is_explained(
    base_dir: Path, log: pytest.LogCaptureFixture
) -> None:
    save_small_run("base")
    base_eval.main(QUICK)
    words = log_text(log)
    assert f"CORE is not measured: {base_dir}/eval_bundle/core.yaml is missing" in words
    assert "unzip eval_bundle.zip -d" in words
    section = report.read_section("base_eval")
    assert section is not None and section["complete"]
    assert list(section["table"]) == [base_eval.PLAIN_CHOICE.label]
    assert "CORE is not measured" in section["notes"][0]


def test_without_a_model_the_training_command_is_named() -> None:
    with pytest.raises(UserError, match=r"no checkpoint in .*; run python -m scripts\.base_train"):
        base_eval.main(QUICK)


def test_plain_choices_are_four_different_sentences() -> None:
    items = plain_choices(150)
    assert len(items) > 100
    for item in items:
        assert len(set(item["choices"])) == 4 and item["query"].endswith(" Answer:")
    golds = [item["gold"] for item in items]
    assert all(golds.count(gold) > 15 for gold in range(4))


@pytest.mark.parametrize(
    ("sentence", "answer", "other", "expected"),
    [
        ("It is an apple.", "apple", "pear", "It is a pear."),
        ("It is a pear.", "pear", "apple", "It is an apple."),
        ("The fox is red.", "red", "old", "The fox is old."),
    ],
)
def test_another_answer_gets_its_own_article(
    sentence: str, answer: str, other: str, expected: str
) -> None:
    assert with_answer(sentence, answer, other) == expected
