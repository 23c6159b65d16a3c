import csv
import itertools
import json
import logging
import random
import shutil
import statistics
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat import core_eval, report
from nanochat.core_eval import CoreTask, Counts, Item, Problem
from nanochat.data.eval_bundle import read_definitions
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.paths import write_atomic
from nanochat.tokenizer import RustBPETokenizer
from scripts import base_eval
from tasks.primer import plain_choices, with_answer
from tests import processes
from tests.reference import core as plain
from tests.shared_data import EVAL_DATA, needs_eval_data
from tests.small_model import save_small_run, small_model, small_tokenizer

CHOICE = CoreTask("choice", "multiple_choice", num_shots=0, delimiter=" ", baseline=0.25)
SCHEMA = CoreTask("schema", "schema", num_shots=0, delimiter=" ", baseline=0.5)
LANGUAGE = CoreTask("language", "language_modeling", num_shots=0, delimiter=" ")
NOT_ORIGINAL = ["hellaswag_zeroshot", "hellaswag", "squad", "coqa"]  # files of the test data
EXACT = [task for task in core_eval.CORE_TASKS if task.label not in NOT_ORIGINAL]
GPT2 = {"": 0.113891, "-medium": 0.184903, "-large": 0.214641, "-xl": 0.256525}


def encode(texts: list[str]) -> list[list[int]]:
    return small_tokenizer().encode(texts, prepend="<|bos|>")


def counts_of(task: CoreTask, items: Sequence[Item], model: GPT, **how: Any) -> Counts:
    how = {"indices": range(len(items)), "limit": model.config.sequence_len, **how}
    logits_at = Engine(model, small_tokenizer()).logits_at
    return core_eval.evaluate_task(task, items, encode=encode, logits_at=logits_at, **how)


def rows_of(task: CoreTask, item: Item, shots: Sequence[Item] = ()) -> list[list[int]]:
    return encode(core_eval.make_prompts(task, item, shots))


def problem(task: CoreTask, item: Item, limit: int = 10**6) -> Problem:
    return core_eval.make_problem(task, item, rows_of(task, item), limit)


def spans(found: Problem) -> list[str]:
    """The scored text of each sequence."""
    return [small_tokenizer().decode(list(s.tokens[s.start :])) for s in found.sequences]


# ---- the tasks


@needs_eval_data
def test_the_22_tasks_are_those_of_the_published_bundle() -> None:
    tasks, found = core_eval.core_tasks(), read_definitions(EVAL_DATA)
    assert [task.label for task in tasks] == list(found) and len(found) == 22
    for task in tasks:
        expected = found[task.label]
        assert task.baseline == pytest.approx(expected["baseline"]), task.label
        assert {name: getattr(task, name) for name in expected} == expected
        with (EVAL_DATA / "eval_data" / task.file).open(encoding="utf-8") as file:
            assert (sum(1 for _ in file) == task.num_items) == (task.label not in ("squad", "coqa"))
    assert core_eval.definition_differences(found) == []
    assert core_eval.missing_files(EVAL_DATA) == []


@needs_eval_data
def test_v2_baselines_are_those_of_dclm() -> None:
    v1, v2 = core_eval.core_tasks("v1"), core_eval.core_tasks("v2")
    with (EVAL_DATA / "dclm" / "eval_meta_data_v2.csv").open(encoding="utf-8") as file:
        theirs = {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)}
    for task in v2:
        assert 100 * task.baseline == pytest.approx(theirs[task.label]), task.label
    assert sum(a.baseline != b.baseline for a, b in zip(v1, v2, strict=True)) == 3
    definitions = read_definitions(EVAL_DATA)
    for task in v2:
        definitions[task.label]["baseline"] = task.baseline
    assert core_eval.definition_differences(definitions) == []  # a bundle may have either


def test_differences_from_the_published_definitions_are_named() -> None:
    assert core_eval.definition_differences({}) == []
    found = {"copa": {"num_shots": 5, "baseline": 0.5, "delimiter": " "}, "mmlu": {}}
    assert core_eval.definition_differences(found) == [
        "copa has num_shots 5 instead of 0", "mmlu is not a task of CORE",
    ]  # fmt: skip


@needs_eval_data
def test_files_that_are_not_the_published_ones_are_named() -> None:
    assert core_eval.unpublished_files(EVAL_DATA) == NOT_ORIGINAL


def gpt2_accuracies(name: str) -> dict[str, float]:
    """The published accuracies of a size of GPT-2 by task."""
    lines = (EVAL_DATA / f"openai-community-gpt2{name}.csv").read_text().splitlines()[1:-1]
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    return {label: float(accuracy) for label, accuracy, _ in rows}


@needs_eval_data
@pytest.mark.parametrize("name", GPT2)
def test_published_accuracies_of_gpt2_give_the_published_core(name: str) -> None:
    published, by_label = gpt2_accuracies(name), {t.label: t for t in core_eval.core_tasks()}
    assert published.keys() == by_label.keys()
    values = [core_eval.centered(a, by_label[label].baseline) for label, a in published.items()]
    assert sum(values) / 22 == pytest.approx(GPT2[name], abs=1e-6)
    reference = plain.core(published, EVAL_DATA / "eval_meta_data.csv")
    assert sum(values) / 22 == pytest.approx(reference, abs=1e-12)
    lines = (EVAL_DATA / f"openai-community-gpt2{name}.csv").read_text().splitlines()[1:-1]
    for value, line in zip(values, lines, strict=True):
        assert value == pytest.approx(float(line.split(",")[2]), abs=2e-6)  # of rounded accuracies


@needs_eval_data
@pytest.mark.parametrize(("cap", "expected"), [(10**6, 0.0065), (500, 0.0080)])
def test_the_standard_error_of_core(cap: int, expected: float) -> None:
    published = gpt2_accuracies("")
    results = []
    for task in core_eval.core_tasks():
        n = min(cap, task.num_items)
        results.append((task, Counts(n, round(n * published[task.label]))))
    mean, error = core_eval.mean_centered(results)
    assert mean == pytest.approx(GPT2[""], abs=2e-3)  # 0.001 where a task is cropped
    assert error == pytest.approx(expected, abs=0.0005)


def test_the_standard_error_is_that_of_repeated_samples() -> None:
    rng = random.Random(0)
    task, other = CHOICE, SCHEMA
    means = []
    for _ in range(4000):
        rights = [sum(rng.random() < p for _ in range(n)) for p, n in ((0.4, 60), (0.7, 30))]
        results = [(task, Counts(60, rights[0])), (other, Counts(30, rights[1]))]
        means.append(core_eval.mean_centered(results)[0])
    _, error = core_eval.mean_centered([(task, Counts(60, 24)), (other, Counts(30, 21))])
    assert error == pytest.approx(statistics.stdev(means), rel=0.05)


# ---- items and shots


def written(folder: Path, items: Sequence[Item]) -> CoreTask:
    (folder / "eval_data").mkdir()
    lines = "\n".join(json.dumps(item) for item in items)
    (folder / "eval_data" / "some.jsonl").write_text(lines, encoding="utf-8")
    return CoreTask("some", "multiple_choice", 0, " ", folder=".")


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
    """A model whose logits depend only on the token before: a table, which can have ties."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, rows: Sequence[Sequence[Sequence[int]]], at: Tensor) -> Tensor:
        return self.table[torch.tensor([t for row in rows for part in row for t in part])[at]]


def flat_logits() -> Fixed:
    vocab = small_tokenizer().get_vocab_size()
    return Fixed(torch.zeros(vocab, vocab))


def test_of_equal_losses_the_first_choice_counts() -> None:
    item = {"query": "One", "choices": ["abc", "xyz", "qrs", "xyz"], "gold": 0}
    assert core_eval.predictions([problem(CHOICE, item)] * 2, flat_logits(), 64) == [0, 0]


def test_a_repeated_choice_is_a_tie_that_the_first_wins() -> None:
    engine = Engine(small_model(seed=3), small_tokenizer())
    item = {"query": "One", "choices": ["two", "six", "two"], "gold": 0}
    [chosen] = core_eval.predictions([problem(CHOICE, item)], engine.logits_at, 64)
    assert chosen in (0, 1)
    item["choices"] = ["two", "two", "six"] if chosen == 0 else ["two", "six", "six"]
    assert core_eval.predictions([problem(CHOICE, item)], engine.logits_at, 64) == [chosen]


def test_the_loss_is_the_mean_over_the_span_not_the_sum() -> None:
    vocab = small_tokenizer().get_vocab_size()
    item = {"query": "One", "choices": ["a", "a b c d e f g"], "gold": 0}
    found = problem(CHOICE, item)
    [short, long] = [len(sequence.tokens) - sequence.start for sequence in found.sequences]
    assert 0 < short < long or found.counts.num_empty
    table = torch.zeros(vocab, vocab)
    table[:, found.sequences[1].tokens[-1]] = 1.0  # lowers the mean, but not the sum, of the longer
    item["choices"][0] = "x"
    assert core_eval.predictions([problem(CHOICE, item)], Fixed(table), 64) == [1]


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

        def logits_at(_: Any, at: Tensor, logits: Tensor = logits) -> Tensor:
            return logits[at]

        found = core_eval.predictions([problem(LANGUAGE, item)], logits_at, 64)
        assert found == [0 if wrong is None else -1]


def test_longest_sequences_come_first_and_batches_respect_their_token_limit() -> None:
    engine, batches = Engine(small_model(), small_tokenizer()), []

    def logits_at(rows: Sequence[Sequence[Sequence[int]]], at: Tensor) -> Tensor:
        batches.append([sum(map(len, row)) for row in rows])
        return engine.logits_at(rows, at)

    items = [
        {"query": "one " * (1 + i % 9), "choices": ["red", "blue"], "gold": i % 2}
        for i in range(40)
    ]
    core_eval.evaluate_task(
        CHOICE, items, range(40), encode, logits_at, limit=64, tokens_per_batch=96
    )
    longest = [max(batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert all(sum(batch) <= 96 for batch in batches)
    assert max(map(len, batches)) > 3


def test_the_prefix_that_choices_share_is_computed_once() -> None:
    rows_seen: list[Any] = []

    def logits_at(rows: Sequence[Sequence[Sequence[int]]], at: Tensor) -> Tensor:
        rows_seen.extend(rows)
        return flat_logits()(rows, at)

    item = {"query": "A long question of many words:", "choices": ["so", "that", "so"], "gold": 0}
    found = problem(CHOICE, item)
    core_eval.predictions([found], logits_at, 1024)
    [[prefix, *continuations]] = rows_seen
    wholes = {(*prefix, *part) for part in continuations}
    assert wholes == {sequence.tokens[:-1] for sequence in found.sequences}
    assert len(continuations) == 2  # a repeated choice is scored once
    assert len(prefix) == core_eval.common_prefix([list(whole) for whole in wholes])


@needs_eval_data
@pytest.mark.parametrize("task", EXACT, ids=lambda task: task.label)
def test_prompts_shots_and_spans_are_those_of_the_reference(task: CoreTask) -> None:
    count = 40
    items = core_eval.read_items(EVAL_DATA, task)
    assert items == plain.items_of(EVAL_DATA / "eval_data" / task.file, -1)
    indices = range(0, len(items), -(-len(items) // count))
    for index in indices:
        shots = core_eval.few_shot_examples(items, index, task.num_shots)
        prompts = core_eval.make_prompts(task, items[index], shots)
        assert prompts == plain.texts_of(task, items, index)
        rows, starts = plain.spans_of(task, prompts, small_tokenizer())
        [found] = core_eval.make_problems(task, items, [index], encode, 10**6)
        assert [list(sequence.tokens) for sequence in found.sequences] == rows
        assert [sequence.start for sequence in found.sequences] == starts


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
    [task] = [task for task in core_eval.core_tasks() if task.label == label]
    items = core_eval.read_items(EVAL_DATA, task, count)
    assert items == plain.items_of(EVAL_DATA / "eval_data" / task.file, count)
    model = small_model(sequence_len=sequence_len, n_layer=1, n_embd=16, n_head=2, n_kv_head=1)
    if sequence_len > 64:
        items = [item for item in items if longest(task, items, item) <= sequence_len] or items[:2]
    chosen = [plain.prediction(task, items, i, model, small_tokenizer()) for i in range(len(items))]
    problems = core_eval.make_problems(task, items, range(len(items)), encode, sequence_len)
    logits_at = Engine(model, small_tokenizer()).logits_at
    for size in (1, 700, 10**6):
        assert core_eval.predictions(problems, logits_at, size) == chosen
    expected = [c == item.get("gold", 0) for c, item in zip(chosen, items, strict=True)]
    counts = counts_of(task, items, model)
    assert (counts.num_items, counts.num_right) == (len(items), sum(expected))
    assert (counts.num_cropped > 0) == any(longest(task, items, i) > sequence_len for i in items)
    one_by_one = [counts_of(task, items, model, indices=[i]) for i in range(len(items))]
    assert [bool(one.num_right) for one in one_by_one] == expected
    for world_size in (2, 3):
        shares = [counts_of(task, items, model, indices=range(rank, len(items), world_size))
                  for rank in range(world_size)]  # fmt: skip
        assert sum(shares, Counts()) == counts


@cache
def trained_model(seed: int) -> tuple[GPT, RustBPETokenizer]:
    """A tiny model, briefly trained on items, so that it predicts some continuations."""
    tasks = [task for task in EXACT if task.kind == "language_modeling"]
    lists = [core_eval.read_items(EVAL_DATA, task, 300) for task in tasks]
    texts = [f"{i['context']} {i['continuation']}" for items in lists for i in items]
    tokenizer = RustBPETokenizer.train_from_iterator(texts, vocab_size=2000)
    shape = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_kv_head": 2, "sequence_len": 1024}
    model = small_model(seed, vocab_size=2000, **shape).train()
    tokens = torch.tensor([t for ids in tokenizer.encode(texts) for t in ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        first = torch.randint(len(tokens) - 129, (8, 1), generator=generator)
        rows = tokens[first + torch.arange(129)]
        model(rows[:, :-1], rows[:, 1:]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


@needs_eval_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "per_task", "seeds"),
    [("multiple_choice", 25, 1), ("schema", 100, 2), ("language_modeling", 36, 1)],
)
def test_batches_give_the_predictions_of_the_reference_on_every_task(
    kind: str, per_task: int, seeds: int
) -> None:
    """With ten times the items, 0 of at least 2,000 predictions of each kind differed, too."""
    compared: list[int] = []
    for seed in range(seeds):  # the schema tasks have 1,540 items, for two models
        model, tokenizer = trained_model(seed)
        logits_at = Engine(model, tokenizer).logits_at
        for task in EXACT:
            if task.kind != kind:
                continue
            items = core_eval.read_items(EVAL_DATA, task)
            indices = range(min(len(items), per_task))
            encode = partial(tokenizer.encode, prepend="<|bos|>")
            problems = core_eval.make_problems(task, items, indices, encode, 1024)
            found = core_eval.predictions(problems, logits_at, 2048)
            assert found == [plain.prediction(task, items, i, model, tokenizer) for i in indices]
            compared += found
    assert len(compared) >= 200
    assert len(set(compared)) > 1  # also some continuations are predicted


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
    for task in core_eval.core_tasks():
        file = folder / "eval_data" / task.file
        file.parent.mkdir(parents=True, exist_ok=True)
        with (EVAL_DATA / "eval_data" / task.file).open(encoding="utf-8") as whole:
            file.write_text("".join(itertools.islice(whole, items_per_task)), encoding="utf-8")
    for name in ("core.yaml", "eval_meta_data.csv"):
        shutil.copy(EVAL_DATA / name, folder / name)


def written_results(base_dir: Path) -> tuple[dict[str, Any], list[list[str]]]:
    """The JSON and the rows of the CSV file."""
    folder = base_dir / "base_eval"
    assert {path.name for path in folder.iterdir()} == {"small_000001.json", "small_000001.csv"}
    lines = (folder / "small_000001.csv").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split(",")] for line in lines]
    return json.loads((folder / "small_000001.json").read_text(encoding="utf-8")), rows


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
    assert list(section["table"]) == list(section["errors"]) == [base_eval.PLAIN_CHOICE.label]
    content, rows = written_results(base_dir)
    assert not content["is_core"] and len(content["not_core_because"]) == 2
    assert rows[-1][:2] == ["not CORE", ""] and len(rows) == 1 + 22 + 1

    monkeypatch.setattr(core_eval, "evaluate_task", None)  # must not be called
    base_eval.main(["--max_per_task=1", *QUICK])
    again = log_text(log)
    assert "already measured" in again and "hellaswag_zeroshot" in again and "not CORE" in again


@needs_eval_data
def test_a_full_run_on_the_published_files_is_core(
    base_dir: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_run("base")
    small_bundle(base_dir / "eval_bundle", 3)
    monkeypatch.setattr(core_eval, "unpublished_files", lambda _: [])
    base_eval.main(QUICK)
    section = report.read_section("base_eval")
    assert section is not None
    tasks = core_eval.core_tasks()
    results = [(task, Counts(**section["results"][task.label])) for task in tasks]
    value, error = core_eval.mean_centered(results)
    accuracies = {task.label: counts.accuracy for task, counts in results}
    assert value == pytest.approx(plain.core(accuracies, EVAL_DATA / "eval_meta_data.csv"))
    assert section["table"]["CORE"] == value and section["errors"]["CORE"] == error > 0
    assert f"CORE is {value:.4f} (baselines v1, standard error {error:.4f})." in log_text(log)
    content, rows = written_results(base_dir)
    published = (EVAL_DATA / "openai-community-gpt2.csv").read_text().splitlines()
    assert [row[0] for row in rows] == [line.split(",")[0].strip() for line in published]
    written = (base_dir / "base_eval" / "small_000001.csv").read_text().splitlines()
    assert [line.index(",") for line in written] == [line.index(",") for line in published]
    assert {row[0]: float(row[1]) for row in rows[1:-1]} == pytest.approx(accuracies, abs=1e-6)
    assert float(rows[-1][2]) == pytest.approx(value, abs=1e-6)
    assert content["is_core"] and content["mean_centered"] == value
    assert {label: task["num_right"] for label, task in content["tasks"].items()} == {
        task.label: counts.num_right for task, counts in results
    }


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
    labels = [task.label for task in core_eval.core_tasks()]
    assert before + asked == labels[:10]
    section = report.read_section("base_eval")
    assert section is not None and not section["complete"] and "table" not in section
    assert [row[0] for row in section["rows"][1:]] == labels[:10]
    assert not (base_dir / "base_eval").exists()


@needs_eval_data
def test_three_processes_give_the_results_of_one(tmp_path: Path, base_dir: Path) -> None:
    save_small_run("base")
    small_bundle(tmp_path / "bundle", 7)
    line = f"--bundle={tmp_path / 'bundle'} --device_type=cpu --primer_problems=6 --fresh"
    base_eval.main(line.split())
    results = [written_results(base_dir)]
    processes.run(base_dir, f"scripts.base_eval {line}", ranks=3)
    results.append(written_results(base_dir))
    assert results[0] == results[1]
    assert sum(task["num_items"] for task in results[0][0]["tasks"].values()) == 22 * 7


def test_beside_the_primer_the_bundle_is_not_downloaded_and_the_rest_is_measured(
    base_dir: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_run("base")
    monkeypatch.setattr(base_eval, "fetch_bundle", None)  # must not be called
    base_eval.main(QUICK)
    words = log_text(log)
    assert "run python -m nanochat.dataset -n 0 --prefetch=eval, then this command again" in words
    section = report.read_section("base_eval")
    assert section is not None and section["complete"]
    assert list(section["table"]) == [base_eval.PLAIN_CHOICE.label]
    assert "CORE is not measured" in section["notes"][0]
    assert not (base_dir / "base_eval").exists()


def test_a_bundle_that_cannot_be_downloaded_costs_only_core(
    base_dir: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_small_run("base")
    write_atomic(base_dir / "data" / "source.json", '{"source": "fineweb-edu"}')
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base_eval.main(QUICK)
    section = report.read_section("base_eval")
    assert section is not None and section["complete"] and section["table"] == {}
    assert "CORE is not measured" in section["notes"][0] and "HF_HUB_OFFLINE" in section["notes"][0]
    assert len(section["samples"]) == len(base_eval.TEXT_BEGINNINGS)


@needs_eval_data
def test_a_bundle_that_is_not_usable_is_refused(tmp_path: Path, base_dir: Path) -> None:
    save_small_run("base")
    folder = tmp_path / "bundle"
    folder.mkdir()
    with pytest.raises(UserError, match=r"lacks eval_data/.* and 18 more; name another"):
        base_eval.main([f"--bundle={folder}", *QUICK])
    small_bundle(folder, 1)
    text = (folder / "core.yaml").read_text(encoding="utf-8")
    (folder / "core.yaml").write_text(text.replace("num_fewshot: [3]", "num_fewshot: [5]"))
    with pytest.raises(UserError, match="agi_eval_lsat_ar has num_shots 5 instead of 3; restore"):
        base_eval.main([f"--bundle={folder}", *QUICK])
    for name in ("core.yaml", "eval_meta_data.csv"):  # not needed
        (folder / name).unlink()
    base_eval.main([f"--bundle={folder}", *QUICK])


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
