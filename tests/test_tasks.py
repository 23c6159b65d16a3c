from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nanochat import calculator, primer
from nanochat.chat import render_conversation
from nanochat.errors import UserError
from nanochat.primer import FAMILIES
from tasks import spellingbee
from tasks.arc import ARC
from tasks.common import (
    Conversation,
    Task,
    TaskMixture,
    TaskSequence,
    final_number,
    render_choices,
    shuffled,
)
from tasks.gsm8k import GSM8K, answer_parts
from tasks.mmlu import MMLU
from tasks.primer import Primer, contains_phrase, last_number
from tasks.smoltalk import SmolTalk
from tasks.spellingbee import SimpleSpelling, SpellingBee
from tests.shared_data import json_lines, mmlu_rows, needs_eval_data, put_on_hub
from tests.small_model import small_tokenizer
from tests.word_list import put_word_list


class Numbers(Task):
    """Conversation i says base + i."""

    def __init__(self, size: int, base: int = 0, **bounds: Any) -> None:
        super().__init__(**bounds)
        self.size, self.base = size, base

    def num_examples(self) -> int:
        return self.size

    def get_example(self, index: int) -> Conversation:
        return {"number": self.base + index}


def numbers(task: Task) -> list[int]:
    return [task[i]["number"] for i in range(len(task))]


# ---- slices, mixtures, sequences


@pytest.mark.parametrize(
    ("start", "stop", "step"),
    [(0, None, 1), (3, None, 1), (0, 4, 1), (2, 9, 3), (0, 99, 1), (8, 3, 1), (20, None, 2)],
)
def test_start_stop_and_step_are_those_of_a_slice(start: int, stop: int | None, step: int) -> None:
    task = Numbers(10, start=start, stop=stop, step=step)
    assert numbers(task) == list(range(10))[start:stop:step]
    with pytest.raises(IndexError):
        task[len(task)]


def test_a_mixture_has_every_conversation_once_in_a_fixed_shuffled_order() -> None:
    tasks = [Numbers(50), Numbers(20, base=100), Numbers(0), Numbers(30, base=200, start=25)]
    mixed = numbers(TaskMixture(tasks))
    assert sorted(mixed) == [*range(50), *range(100, 120), *range(225, 230)]
    assert mixed != sorted(mixed)
    assert numbers(TaskMixture(tasks)) == mixed != numbers(TaskMixture(tasks, seed=7))
    assert any(number >= 100 for number in mixed[:20]), "the tasks are not mixed"


def test_a_task_listed_twice_is_seen_twice() -> None:
    task = Numbers(5)
    assert sorted(numbers(TaskMixture([task, task]))) == sorted([*range(5)] * 2)


def test_a_sequence_is_one_task_after_another() -> None:
    tasks = [Numbers(3), Numbers(0), Numbers(2, base=10), Numbers(9, base=20, start=7)]
    sequence = TaskSequence(tasks)
    assert numbers(sequence) == [0, 1, 2, 10, 11, 27, 28]
    with pytest.raises(IndexError):
        sequence[7]


def test_rows_are_in_the_order_of_the_datasets_library() -> None:
    rows = [f"row {i}" for i in range(1000)]
    order = np.random.default_rng(42).permutation(1000)
    assert shuffled(rows) == [rows[i] for i in order]
    assert [int(row[4:]) for row in shuffled(rows)][:5] == [978, 933, 859, 916, 127]


# ---- multiple choice


def test_a_choice_question_has_the_letter_after_each_choice() -> None:
    assert render_choices("Why?", ["Yes", "No"], ["1", "2"]) == (
        "Multiple Choice question: Why?\n- Yes=1\n- No=2\n"
        "\nRespond only with the letter of the correct answer."
    )


def test_letters_are_those_of_the_row_and_single_tokens_shown_in_the_prompt() -> None:
    rows = [
        {"question": "Q1", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "Q2", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"},
    ]
    put_on_hub("allenai/ai2_arc", "ARC-Easy/test-00000-of-00001.parquet", rows)
    task, tokenizer = ARC("ARC-Easy", "test"), small_tokenizer()
    assert len(task) == 2 and task.eval_type == "categorical"
    for index in range(2):
        item = task[index]
        for letter in item["letters"]:
            assert len(tokenizer.encode(letter)) == 1
            assert f"={letter}\n" in item["messages"][0]["content"]
            assert task.evaluate(item, letter) == (letter == item["answer"])
            assert task.evaluate(item, f" {letter}<|assistant_end|>") == (letter == item["answer"])
    assert {task[i]["answer"] for i in range(2)} == {"B", "1"}


@needs_eval_data
def test_arc_reads_its_files() -> None:
    rows = []
    for item in json_lines("eval_data/world_knowledge/arc_easy.jsonl")[:300]:
        labels = list("ABCDE"[: len(item["choices"])])
        question = item["query"].removeprefix("Question: ")
        choices = {"text": item["choices"], "label": labels}
        rows.append({"question": question, "choices": choices, "answerKey": labels[item["gold"]]})
    put_on_hub("allenai/ai2_arc", "ARC-Easy/test-00000-of-00001.parquet", rows)
    task = ARC("ARC-Easy", "test", start=10, stop=200)
    first = shuffled(rows)[10]
    assert len(task) == 190
    assert task[0]["messages"] == [
        {"role": "user", "content": render_choices(
            first["question"], first["choices"]["text"], first["choices"]["label"])},
        {"role": "assistant", "content": first["answerKey"]},
    ]  # fmt: skip
    assert all(task.evaluate(task[i], task[i]["answer"]) for i in range(len(task)))


@needs_eval_data
def test_mmlu_reads_its_files_plain_and_wrapped_in_a_column() -> None:
    rows = mmlu_rows("dev")
    put_on_hub("cais/mmlu", "all/dev-00000-of-00001.parquet", rows)
    wrapped = [{"train": row} for row in rows]
    put_on_hub("cais/mmlu", "all/auxiliary_train-00000-of-00001.parquet", wrapped)
    plain, other = MMLU("all", "dev"), MMLU("auxiliary_train", "train")
    assert len(plain) == len(other) == len(rows) == 285
    assert [plain[i] for i in range(285)] == [other[i] for i in range(285)]
    assert len({plain[i]["subject"] for i in range(285)}) == 57
    for index, row in enumerate(shuffled(rows)[:50]):
        item = plain[index]
        assert item["answer"] == "ABCD"[row["answer"]] == item["messages"][1]["content"]
        assert f"- {row['choices'][3]}=D\n\nRespond only" in item["messages"][0]["content"]
        assert [plain.evaluate(item, letter) for letter in "ABCD"].index(True) == row["answer"]


# ---- GSM8K


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 5.\n#### 72", "72"),
        ("#### 1,234,567", "1234567"),
        ("#### -3", "-3"),
        ("#### 0.5", "0.5"),
        ("#### 7 apples", "7"),
        ("#### 4\n#### 5", "4"),
        ("#### $5", None),
        ("####5", None),
        ("5", None),
        ("", None),
    ],
)
def test_the_answer_is_the_number_after_the_marker(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_tool_calls_in_an_answer_become_parts() -> None:
    assert answer_parts("He has <<2*3=6>>6 and <<1=1=1>>.\n#### 6") == [
        {"type": "text", "text": "He has "},
        {"type": "python", "text": "2*3"},
        {"type": "python_output", "text": "6"},
        {"type": "text", "text": "6 and "},
        {"type": "python", "text": "1=1"},
        {"type": "python_output", "text": "1"},
        {"type": "text", "text": ".\n#### 6"},
    ]


@needs_eval_data
def test_gsm8k_reads_its_files_and_accepts_only_reference_answers() -> None:
    rows = json_lines("gsm8k/test.jsonl")
    put_on_hub("openai/gsm8k", "main/test-00000-of-00001.parquet", rows)
    task = GSM8K("main", "test")
    assert len(task) == 1319 and task.eval_type == "generative"
    for index, row in enumerate(shuffled(rows)):
        item = task[index]
        assert item["messages"][0]["content"] == row["question"]
        text = "".join(
            part["text"] for part in item["messages"][1]["content"] if part["type"] == "text"
        )
        assert task.evaluate(item, row["answer"]) and task.evaluate(item, text)
        assert not task.evaluate(item, row["answer"].replace("####", "##"))
        assert not task.evaluate(item, f"#### {item['answer']}1")


@needs_eval_data
def test_the_calculator_agrees_with_the_outputs_in_gsm8k() -> None:
    same = total = 0
    for row in json_lines("gsm8k/test.jsonl"):
        parts = answer_parts(row["answer"])
        for call, output in zip(parts, parts[1:], strict=False):
            if call["type"] == "python":
                value = calculator.evaluate(call["text"])
                assert value is not None, call
                same, total = same + (value == output["text"]), total + 1
    assert total > 4000
    assert same / total > 0.96  # the others are such as 4.50, .5 and 3/4


# ---- conversations


@needs_eval_data
def test_smoltalk_reads_its_files() -> None:
    rows = json_lines("chat/sgd_dialogues_test.jsonl")
    put_on_hub("HuggingFaceTB/smol-smoltalk", "data/test-00000-of-00001.parquet", rows)
    task = SmolTalk("test", stop=100)
    assert len(task) == 100
    for index, row in enumerate(shuffled(rows)[:100]):
        assert task[index]["messages"] == row["messages"]
        render_conversation(task[index], small_tokenizer())


# ---- spelling


@pytest.fixture
def words() -> Iterator[tuple[str, ...]]:
    """The list of words, and no memory of other lists."""
    spellingbee.words_of.cache_clear()
    yield put_word_list()
    spellingbee.words_of.cache_clear()


@pytest.mark.parametrize("kind", [SpellingBee, SimpleSpelling])
def test_train_and_test_never_share_a_word(
    words: tuple[str, ...], kind: type[SpellingBee | SimpleSpelling]
) -> None:
    train, test = kind("train", size=3000), kind("test", size=3000)
    assert not set(train.words) & set(test.words)
    assert {*train.words, *test.words} == set(words)
    questions = [{task[i]["messages"][0]["content"] for i in range(3000)} for task in (train, test)]
    assert not questions[0] & questions[1]
    assert len(questions[1]) > 2800, "words are repeated"


@pytest.mark.usefixtures("words")
def test_there_are_52_phrasings_and_no_count_is_the_answer_to_half_of_the_questions() -> None:
    assert len(set(spellingbee.questions())) == 52
    task = SpellingBee("test", size=4000)
    items = [task[index] for index in range(4000)]
    (_, most), *_ = Counter(item["answer"] for item in items).most_common(1)
    assert most < 2000
    for question in spellingbee.questions():
        assert question.format(letter="q", word="w") != question
        begin = question.partition("{")[0]
        assert any(item["messages"][0]["content"].startswith(begin) for item in items), question


def test_without_the_list_of_words_spelling_is_refused_whatever_the_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spellingbee.words_of.cache_clear()
    for kind in (SpellingBee, SimpleSpelling):
        with pytest.raises(UserError, match=r"words_alpha.txt is missing .* put a list of words"):
            kind("train")


@pytest.mark.usefixtures("words")
def test_both_counts_of_a_letter_are_right() -> None:
    task = SpellingBee("train", size=200)
    for index in range(200):
        item = task[index]
        text, call, output, end = item["messages"][1]["content"]
        assert calculator.evaluate(call["text"]) == output["text"] == item["answer"]
        assert text["text"].count("hit!") == int(item["answer"])
        assert task.evaluate(item, "".join(p["text"] for p in (text, end)))
        assert task.evaluate(item, f"<|output_end|>x #### {item['answer']}<|assistant_end|>")
        assert not task.evaluate(item, f"#### {item['answer']}1")
        assert not task.evaluate(item, item["answer"])


@pytest.mark.parametrize(
    ("completion", "passed"),
    [
        ("#### 3", True),
        ("#### 3 apples", True),
        ("Both ways give 3.\n\n#### 3<|assistant_end|>", True),
        ("<|output_start|>3<|output_end|>\n#### 3", True),
        ("#### 3 or #### 4", True),  # the first match counts
        ("#### 4 or #### 3", False),
        ("####3", False),
        ("#### three, that is #### 3", True),
        ("#### 3.", False),  # compared as text
        ("#### 03", False),
        ("3", False),
        ("", False),
    ],
)
def test_spelling_bee_is_judged_by_the_extraction_rule_of_gsm8k(
    completion: str, passed: bool
) -> None:
    for kind in (SpellingBee, GSM8K):
        task = kind.__new__(kind)  # its files are not needed for judging
        assert task.evaluate({"answer": "3"}, completion) == passed


def test_spelling_accepts_the_word_letter_by_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spellingbee, "words_of", lambda split: ("berry",))
    task = SimpleSpelling("test", size=5)
    assert task[0]["answer"] == "berry:b,e,r,r,y"
    assert task.evaluate(task[0], "berry:b,e,r,r,y<|assistant_end|>")
    assert not task.evaluate(task[0], "berry:b,e,r,y")


# ---- the primer


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_answers_are_accepted_and_too_short_or_long_ones_are_not(
    family: str,
) -> None:
    task = Primer("test", family=family, size=60)
    for index in range(60):
        item = task[index]
        content = item["messages"][-1]["content"]
        reference = content if isinstance(content, str) else content[-1]["text"]
        assert task.evaluate(item, f"{reference}<|assistant_end|>"), item
        called = f"<|python_start|>1<|python_end|><|output_start|>1<|output_end|>{reference}"
        assert task.evaluate(item, called), item
        assert not task.evaluate(item, ""), item
        assert not task.evaluate(item, f"{reference} " + "and so on " * 12), item
        if item["kind"] != "choice" and family != "repeat":
            assert not task.evaluate(item, str(item["answer"]).split()[-1]), "too terse"


def item_of(answer: str, known: str, kind: str = "words", rivals: tuple[str, ...] = ()) -> Any:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": known}]
    return {"messages": messages, "answer": answer, "kind": kind, "rivals": list(rivals)}


@pytest.mark.parametrize(
    ("completion", "passed"),
    [
        ("The fox eats berries.", True),
        ("It is berries that the fox eats.", True),
        ("Berries are what it eats.", True),
        ("Berries.", False),
        ("the berries", False),
        ("The fox eats acorns.", False),
        ("The fox eats berries and acorns.", False),
        ("The fox eats strawberries.", False),
        ("The fox eats blue-berries.", False),
        ("The fox eats berries." + " It does." * 20, False),
    ],
)
def test_a_complete_sentence_with_the_answer_and_without_rivals_is_right(
    completion: str, passed: bool
) -> None:
    item = item_of("berries", "The fox eats berries.", rivals=("acorns", "nuts"))
    assert Primer("test", family="facts").evaluate(item, completion) == passed


@pytest.mark.parametrize(
    ("completion", "passed"),
    [
        ("2 + 3 is 5.", True),
        ("The sum is 1,005.", False),
        ("That makes 5 apples now.", True),
        ("5 and then 6.", False),
        ("It is -5 there.", False),
        ("No number at all.", False),
        ("It is 5", True),
        ("is 5", False),
    ],
)
def test_the_last_number_of_a_sentence_counts(completion: str, passed: bool) -> None:
    item = item_of("5", "2 + 3 is 5.", kind="number")
    assert Primer("test", family="arithmetic").evaluate(item, completion) == passed


def test_only_the_text_after_the_tool_output_is_judged() -> None:
    item = item_of("5", "2 + 3 is 5.", kind="number")
    task = Primer("test", family="arithmetic")
    assert not task.evaluate(item, "It is 5.<|output_start|>5<|output_end|>")
    assert task.evaluate(item, "9<|output_start|>5<|output_end|>2 + 3 is 5.")


def test_phrases_and_numbers_are_matched_at_word_boundaries() -> None:
    assert contains_phrase("A Red Fox.", "red fox")
    assert not contains_phrase("A redfox", "red fox")
    assert not contains_phrase("well-known", "known")
    assert last_number("1,234 or 5,678.") == "5678" and last_number("none") == ""


def test_an_unknown_family_is_refused_with_the_list_of_families() -> None:
    with pytest.raises(UserError, match="no family nonsense in the primer; use one of facts"):
        Primer("test", family="nonsense")


def test_the_primer_task_passes_its_arguments_to_the_generator() -> None:
    task = Primer("train", stage="mid", size=7, seed=3)
    assert len(task) == 7
    assert task[4] == primer.conversation(3, 4, "train", None, "mid")


@pytest.mark.parametrize(
    ("completion", "passed"),
    [
        ("The bee buzzes, so the answer is B.", True),
        ("The bee buzzes, so the answer is B<|assistant_end|>", True),
        ("A bee buzzes: B", True),
        ("The bee buzzes, so the answer is A.", False),
        ("The bee buzzes, so the answer is b.", False),
        ("The bee buzzes.", False),
        ("B", False),
        ("The answer is B or C.", False),
        ("The bee buzzes, so the answer is" + " of course" * 12 + " B.", False),
    ],
)
def test_the_last_letter_of_a_choice_counts(completion: str, passed: bool) -> None:
    item = item_of("B", "The bee buzzes, so the answer is B.", kind="choice")
    assert Primer("test", family="choice").evaluate(item, completion) == passed
