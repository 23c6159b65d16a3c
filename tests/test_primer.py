"""The built-in world: the same everywhere, well formed, its answers right, its split honest."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest

from nanochat import calculator, primer
from nanochat.primer import FAMILIES, world
from nanochat.primer.facts import FACTS
from nanochat.primer.question import draw
from nanochat.primer.talk import choice_question
from tasks.primer import Primer

# A sum that stands alone; those of two steps are word problems.
SUM = re.compile(r"(?<![+*/-] )(?<![\d(])(\d+) ?([-+*/x]) ?(\d+)(?! ?[-+*/])(?!\d)")


def user_texts(conversation: dict[str, Any]) -> list[str]:
    return [m["content"] for m in conversation["messages"] if m["role"] == "user"]


def spoken(content: str | list[dict[str, str]]) -> str:
    return (
        content
        if isinstance(content, str)
        else "".join(p["text"] for p in content if p["type"] == "text")
    )


def lower_words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+*/-]+", text.lower()))


def test_a_text_depends_on_its_seed_index_and_split_alone() -> None:
    assert primer.document(1, 5) == primer.document(1, 5)
    assert len({primer.document(seed, i) for seed in (1, 2) for i in range(300)}) > 580
    assert primer.document(1, 5) != primer.document(1, 5, "val")


def test_texts_are_the_same_in_another_process_with_another_hash_seed() -> None:
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


def test_the_world_has_hundreds_of_things_people_and_places_each_of_its_own_name() -> None:
    places = [town.name for town in world.TOWNS] + list(world.SPOTS)
    people = [person.name for person in world.PEOPLE] + list(world.GIRLS) + list(world.BOYS)
    things = [t.name for t in world.THINGS] + [one for one, _ in world.ITEMS]
    animals = [animal.name for animal in world.ANIMALS]
    for names in (places, people, things, animals):
        assert len(set(names)) == len(names)
    assert len(places) + len(people) + len(things) + len(animals) > 300
    assert len(FACTS) > 700


def test_people_live_in_towns_with_animals_that_are_there_and_no_town_has_two_of_a_trade() -> None:
    assert {person.town for person in world.PEOPLE} == {town.name for town in world.TOWNS}
    assert {person.pet for person in world.PEOPLE} <= {animal.name for animal in world.ANIMALS}
    trades = [(person.job, person.town) for person in world.PEOPLE]
    assert len(set(trades)) == len(trades)


def test_documents_are_clean_prose() -> None:
    for i in range(2000):
        text = primer.document(7, i)
        assert 10 < len(text) < 3000, text
        assert text == text.strip() and "  " not in text, text
        assert text[0].isupper() or not text[0].isalpha() or "-" in text[:20] or ":" in text[:20], (
            text
        )
        assert re.search(r"[.?!]$", text), text
        assert "{" not in text, text
        assert not re.search(r"\ba (?!are\b|in\b|is\b)[aeio]\w+", text), (
            text
        )  # "a are" asks for letters


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_test_never_share_a_question(family: str) -> None:
    def asked(split: Any, stage: Any) -> set[str]:
        found = (primer.conversation(5, i, split, family, stage) for i in range(1500))
        return {lower_words(" | ".join(user_texts(one))) for one in found}

    test = asked("test", "sft")
    assert len(test) > 50
    assert not test & asked("train", "sft")
    assert not test & asked("train", "mid")


def test_sums_that_are_asked_in_a_test_stand_nowhere_in_training() -> None:
    def sums(texts: list[str]) -> set[tuple[str, ...]]:
        return {found for text in texts for found in SUM.findall(text)}

    tests = (primer.conversation(2, i, "test", "arithmetic") for i in range(3000))
    held_out = sums([user_texts(one)[-1] for one in tests if not one["unseen_wording"]])
    trained = sums([primer.document(1, i) for i in range(8000)])
    for i in range(5000):
        one = primer.conversation(2, i, stage="mid")
        trained |= sums([text for m in one["messages"] for text in [str(m["content"])]])
    small = {one for one in held_out if int(one[0]) < 20 and int(one[2]) < 20}
    assert len(trained) > 1000 and len(small) > 20
    assert not trained & held_out


def test_validation_text_holds_only_held_out_questions() -> None:
    def questions(split: Any) -> set[str]:
        texts = (primer.document(1, i, split) for i in range(4000))
        return {q for text in texts for q in re.findall(r"Question: (What is \d.*?) Answer", text)}

    assert questions("val") and not questions("val") & questions("train")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_known_answer_is_judged_right_and_every_other_answer_wrong(family: str) -> None:
    task = Primer("test", family=family, size=300)
    conversations = [task[i] for i in range(len(task))]
    answers = [spoken(one["messages"][-1]["content"]) for one in conversations]
    for one, answer in zip(conversations, answers, strict=True):
        assert task.evaluate(one, answer), (user_texts(one), answer)
        assert not task.evaluate(one, ""), user_texts(one)
    wrongly_right = sum(
        task.evaluate(one, other)
        for one, answer, other in zip(conversations, answers, answers[1:], strict=False)
        if answer != other
    )
    kinds = 4 if family == "choice" else 1000 if family == "unknown" else 20
    assert wrongly_right <= 2 * len(answers) / kinds or family == "talk"


def test_what_the_calculator_is_asked_is_what_it_gives() -> None:
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


def test_the_answer_to_a_question_about_a_story_stands_in_the_story() -> None:
    for i in range(500):
        one = primer.conversation(1, i, "test", "reading")
        assert one["answer"] in user_texts(one)[0]


def test_answers_of_finetuning_are_whole_sentences_and_half_of_midtraining_is_terse() -> None:
    def last_answers(stage: Any) -> list[str]:
        found = [primer.conversation(1, i, stage=stage) for i in range(600)]
        return [spoken(one["messages"][-1]["content"]) for one in found]

    assert all(len(answer.split()) >= 2 and answer[-1] in ".!?" for answer in last_answers("sft"))
    terse = [answer for answer in last_answers("mid") if len(answer.split()) < 3]
    assert 0.2 < len(terse) / len(last_answers("mid")) < 0.6


def test_conversations_take_several_turns_and_refer_back() -> None:
    turns = [len(user_texts(primer.conversation(1, i))) for i in range(500)]
    assert max(turns) >= 3 and sum(count > 1 for count in turns) > 100


def test_a_choice_offers_the_right_answer_under_its_letter() -> None:
    import random

    for i in range(300):
        question = draw(choice_question, random.Random(i), "test")
        offered = dict(
            line[2:].rsplit("=", 1)[::-1] for line in question.text.splitlines() if line[:2] == "- "
        )
        assert question.key in offered and len(set(offered.values())) == len(offered) >= 2
        assert offered[question.key] in question.answer and f"={question.key}." in question.answer


def test_who_is_not_in_the_world_is_never_somebody_who_is() -> None:
    known = {person.name for person in world.PEOPLE} | {a.name for a in world.ANIMALS}
    known |= {*world.GIRLS, *world.BOYS, *(thing.name for thing in world.THINGS)}
    for split in ("train", "test"):
        for i in range(1000):
            identity = user_texts(primer.conversation(1, i, split, "unknown"))[-1]  # type: ignore[arg-type]
            words = set(re.findall(r"[A-Za-z]+", identity)) - {"Hello", "Hi"}
            assert not {word for word in words if word in known and word[0].isupper()}
