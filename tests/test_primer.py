"""The built-in world: deterministic, well formed, with right answers and disjoint splits."""

import os
import re
import subprocess
import sys
from random import Random
from typing import Any

import pytest

from nanochat import calculator, primer
from nanochat.primer import FAMILIES, world
from nanochat.primer.facts import FACTS
from nanochat.primer.question import draw
from nanochat.primer.talk import choice_question
from tasks.primer import TYPED_FILE, Primer, TypedByAPerson

# A sum of two numbers; expressions of two steps belong to word problems.
SUM = re.compile(r"(?<![+*/-] )(?<![\d(])(\d+) ?([-+*/x]) ?(\d+)(?! ?[-+*/])(?!\d)")


def user_texts(conversation: dict[str, Any]) -> list[str]:
    return [m["content"] for m in conversation["messages"] if m["role"] == "user"]


def spoken(content: str | list[dict[str, str]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def lower_words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+*/-]+", text.lower()))


def test_a_text_depends_only_on_seed_index_and_split() -> None:
    assert primer.document(1, 5) == primer.document(1, 5)
    assert len({primer.document(seed, i) for seed in (1, 2) for i in range(300)}) > 580
    assert primer.document(1, 5) != primer.document(1, 5, "val")


def test_texts_are_the_same_in_a_process_with_another_hash_seed() -> None:
    program = (
        "from nanochat import primer\n"
        "print([primer.document(3, i) for i in range(50)],"
        " [primer.conversation(3, i) for i in range(50)])"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert outputs[0] == outputs[1] and len(outputs[0]) > 5000


def test_the_world_has_hundreds_of_things_people_and_places_with_unique_names() -> None:
    places = [town.name for town in world.TOWNS] + list(world.SPOTS)
    people = [person.name for person in world.PEOPLE] + list(world.GIRLS) + list(world.BOYS)
    things = [t.name for t in world.THINGS] + list(world.ITEMS)
    animals = [animal.name for animal in world.ANIMALS]
    for names in (places, people, things, animals):
        assert len(set(names)) == len(names)
    assert len(places) + len(people) + len(things) + len(animals) > 300
    assert len(FACTS) > 700


def test_people_live_in_known_towns_with_known_animals_and_no_job_occurs_twice_in_a_town() -> None:
    assert {person.town for person in world.PEOPLE} == {town.name for town in world.TOWNS}
    assert {person.pet for person in world.PEOPLE} <= {animal.name for animal in world.ANIMALS}
    jobs = [(person.job, person.town) for person in world.PEOPLE]
    assert len(set(jobs)) == len(jobs)


def test_documents_are_clean_prose() -> None:
    for i in range(2000):
        text = primer.document(7, i)
        assert 10 < len(text) < 3000, text
        assert text == text.strip() and "  " not in text, text
        is_spelling = "-" in text[:20] or ":" in text[:20]
        assert text[0].isupper() or not text[0].isalpha() or is_spelling, text
        assert re.search(r"[.?!]$", text), text
        assert "{" not in text, text
        # "how many a are in ..." asks for the letter a
        assert not re.search(r"\ba (?!are\b|in\b|is\b)[aeio]\w+", text), text


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_test_never_share_a_question(family: str) -> None:
    def questions(split: Any, stage: Any) -> set[str]:
        conversations = (primer.conversation(5, i, split, family, stage) for i in range(1500))
        return {lower_words(" | ".join(user_texts(talk))) for talk in conversations}

    test = questions("test", "sft")
    assert len(test) > 50
    assert not test & questions("train", "sft")
    assert not test & questions("train", "mid")


def test_held_out_sums_do_not_occur_anywhere_in_training_text() -> None:
    def sums(texts: list[str]) -> set[tuple[str, ...]]:
        return {operands for text in texts for operands in SUM.findall(text)}

    tests = (primer.conversation(2, i, "test", "arithmetic") for i in range(3000))
    held_out = sums([user_texts(test)[-1] for test in tests if not test["unseen_wording"]])
    trained = sums([primer.document(1, i) for i in range(8000)])
    for i in range(5000):
        messages = primer.conversation(2, i, stage="mid")["messages"]
        trained |= sums([str(message["content"]) for message in messages])
    small = {(a, sign, b) for a, sign, b in held_out if int(a) < 20 and int(b) < 20}
    assert len(trained) > 1000 and len(small) > 20
    assert not trained & held_out


def test_validation_text_contains_only_held_out_questions() -> None:
    def questions(split: Any) -> set[str]:
        texts = (primer.document(1, i, split) for i in range(4000))
        return {q for text in texts for q in re.findall(r"Question: (What is \d.*?) Answer", text)}

    assert questions("val") and not questions("val") & questions("train")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_known_answer_is_graded_right_and_other_answers_wrong(family: str) -> None:
    task = Primer("test", family=family, size=300)
    conversations = [task[i] for i in range(len(task))]
    answers = [spoken(talk["messages"][-1]["content"]) for talk in conversations]
    for talk, answer in zip(conversations, answers, strict=True):
        assert task.evaluate(talk, answer), (user_texts(talk), answer)
        assert not task.evaluate(talk, ""), user_texts(talk)
    wrongly_right = sum(
        task.evaluate(talk, other)
        for talk, answer, other in zip(conversations, answers, answers[1:], strict=False)
        if answer != other
    )
    kinds = 4 if family == "choice" else 1000 if family == "unknown" else 20
    assert wrongly_right <= 2 * len(answers) / kinds or family == "talk"


def test_calculator_expressions_evaluate_to_the_stored_results() -> None:
    seen = 0
    for family in ("arithmetic", "word_problems", "spelling"):
        for i in range(400):
            content = primer.conversation(4, i, "test", family)["messages"][-1]["content"]
            if isinstance(content, str):
                continue
            expression, result, text = (part["text"] for part in content)
            assert calculator.evaluate(expression) == result
            assert result in text
            seen += 1
    assert seen > 800


def test_operands_have_up_to_four_digits() -> None:
    lengths = {
        len(number)
        for i in range(500)
        for number in re.findall(
            r"\d+", user_texts(primer.conversation(1, i, "test", "arithmetic"))[-1]
        )
    }
    assert lengths == {1, 2, 3, 4}


def test_the_answer_to_a_question_about_a_story_is_in_the_story() -> None:
    for i in range(500):
        talk = primer.conversation(1, i, "test", "reading")
        assert talk["answer"] in user_texts(talk)[0]


def test_sft_answers_are_complete_sentences_and_half_of_midtraining_is_terse() -> None:
    def last_answers(stage: Any) -> list[str]:
        conversations = [primer.conversation(1, i, stage=stage) for i in range(600)]
        return [spoken(talk["messages"][-1]["content"]) for talk in conversations]

    assert all(len(answer.split()) >= 2 and answer[-1] in ".!?" for answer in last_answers("sft"))
    terse = [answer for answer in last_answers("mid") if len(answer.split()) < 3]
    assert 0.2 < len(terse) / len(last_answers("mid")) < 0.6


def test_many_conversations_have_several_turns() -> None:
    turns = [len(user_texts(primer.conversation(1, i))) for i in range(500)]
    assert max(turns) >= 3 and sum(count > 1 for count in turns) > 100


def test_a_choice_offers_the_right_answer_with_its_letter() -> None:
    for i in range(300):
        question = draw(choice_question, Random(i), "test")
        offered = dict(
            line[2:].rsplit("=", 1)[::-1] for line in question.text.splitlines() if line[:2] == "- "
        )
        assert question.key in offered and len(set(offered.values())) == len(offered) >= 2
        assert offered[question.key] in question.answer and f"={question.key}." in question.answer


def test_unknown_names_are_never_names_of_the_world() -> None:
    known = {person.name for person in world.PEOPLE} | {a.name for a in world.ANIMALS}
    known |= {*world.GIRLS, *world.BOYS, *(thing.name for thing in world.THINGS)}
    for split in ("train", "test"):
        for i in range(1000):
            identity = user_texts(primer.conversation(1, i, split, "unknown"))[-1]
            words = set(re.findall(r"[A-Za-z]+", identity)) - {"Hello", "Hi"}
            assert not {word for word in words if word in known and word[0].isupper()}


def test_plain_text_is_mixed_into_the_conversations_of_training() -> None:
    task = Primer("train", stage="sft", size=1000)
    texts = [item["text"] for item in map(task.__getitem__, range(1000)) if "text" in item]
    assert 40 < len(texts) < 80 and len(set(texts)) == len(texts)
    tests = Primer("test", stage="sft", size=200)
    assert not [i for i in range(200) if "text" in tests[i]]


# ---- typed by a person


def test_typed_questions_are_many_of_many_kinds_and_well_formed() -> None:
    task = TypedByAPerson()
    assert len(task) >= 200 and TYPED_FILE.read_text().count("\n[") >= 10
    for i in range(len(task)):
        conversation = task[i]
        assert [m["role"] for m in conversation["messages"]][-1] == "user", conversation
        re.compile(conversation["answer"] if conversation["answer"] != "?" else "")


@pytest.mark.parametrize(
    ("answer", "completion", "passed"),
    [
        ("Lakeside", "Mia lives in Lakeside.", True),
        ("Lakeside", "Mia lives in Sandbay.", False),
        ("yes", "Mia lives in Lakeside, so yes.", True),
        ("no", "I do not know that.", False),
        ("= -5", "7 - 12 is -5.", True),
        ("= 5", "7 - 12 is -5.", False),
        ("= 12.5", "100 / 8 is 12.5.", True),
        ("?", "I do not know that.", True),
        ("?", "Mia is a baker.", False),
        ("Mia", "Mia. " * 60, False),
    ],
)
def test_answers_to_typed_questions_are_graded(answer: str, completion: str, passed: bool) -> None:
    assert TypedByAPerson().evaluate({"answer": answer}, completion) == passed
