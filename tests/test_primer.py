"""The built-in world: deterministic, well formed, with right answers and disjoint splits."""

import os
import re
import subprocess
import sys
from collections import Counter
from random import Random
from typing import Any

import pytest

from nanochat import calculator, primer
from nanochat.primer import (
    FAMILIES,
    PROBES,
    base_text,
    drills,
    names,
    noise,
    phrasing,
    unknown,
    world,
)
from nanochat.primer.facts import FACTS, PARAPHRASES
from nanochat.primer.names import is_in
from nanochat.primer.numbers import in_words
from nanochat.primer.question import draw
from nanochat.primer.talk import choice_question
from tasks.primer import TYPED_FILE, Primer, TypedByAPerson

# A sum of two integers; those of several steps and of decimals are left aside.
SUM = re.compile(r"(?<![-+*/x(\d.])(?<![-+*/x] )(\d+) ?([-+*/x]) ?(\d+)(?! ?[-+*/x)])(?!\.?\d)")


WORLD = (world.PEOPLE, world.TOWNS, world.ANIMALS)


def user_texts(conversation: dict[str, Any]) -> list[str]:
    return [m["content"] for m in conversation["messages"] if m["role"] == "user"]


def spoken(content: str | list[dict[str, str]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def lower_words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9+*/-]+", text.lower()))


def training_texts(size: int) -> list[str]:
    """All texts of `size` conversations of each stage and of as many documents, in lower case."""
    talks = [
        primer.conversation(3, i, stage=stage) for i in range(size) for stage in ("mid", "sft")
    ]
    texts = [
        " | ".join([*user_texts(talk), spoken(talk["messages"][-1]["content"])]) for talk in talks
    ]
    return [text.lower() for text in [*texts, *(primer.document(1, i) for i in range(size))]]


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
    for rows in (places, people, things, animals):
        assert len(set(rows)) == len(rows)
    assert len(places) + len(people) + len(things) + len(animals) > 300
    assert len(FACTS) > 700


def test_people_live_in_known_towns_with_known_animals_and_no_job_occurs_twice_in_a_town() -> None:
    assert {person.town for person in world.PEOPLE} == {town.name for town in world.TOWNS}
    assert {person.pet for person in world.PEOPLE} <= {animal.name for animal in world.ANIMALS}
    jobs = [(person.job, person.town) for person in world.PEOPLE]
    assert len(set(jobs)) == len(jobs)


def test_documents_are_clean_prose() -> None:
    # As people type.
    typed = {drills.corrections, drills.misspellings, base_text._question_and_answer}
    for i, make in enumerate([make for make in base_text._WEIGHTS if make not in typed] * 100):
        text = make(Random(i), "train")
        assert 9 < len(text) < 3000, text
        assert text == text.strip() and "{" not in text, text
        assert "  " not in text and re.search(r"[.?!]$", text), text
        is_spelling = re.search("[-:=]", text[:20])
        assert text[0].isupper() or not text[0].isalpha() or is_spelling, text
        # "how many a are in ...", "the letter a occurs": not an article
        assert not re.search(r"(?<!letter )\ba (?!are\b|in\b|is\b)[aeio]\w+", text), text


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_test_never_share_a_question(family: str) -> None:
    def questions(split: Any, stage: Any) -> set[str]:
        conversations = (primer.conversation(5, i, split, family, stage) for i in range(600))
        return {lower_words(" | ".join(user_texts(talk))) for talk in conversations}

    test = questions("test", "sft")
    assert len(test) > 50
    assert not test & questions("train", "sft")
    assert not test & questions("train", "mid")


def test_held_out_sums_do_not_occur_anywhere_in_training_text() -> None:
    def sums(texts: list[str]) -> set[tuple[str, ...]]:
        return {operands for text in texts for operands in SUM.findall(text)}

    tests = (primer.conversation(2, i, "test", "arithmetic") for i in range(3000))
    held_out = sums([user_texts(test)[-1] for test in tests])
    trained = sums([primer.document(1, i) for i in range(8000)])
    for i in range(5000):
        messages = primer.conversation(2, i, stage="mid")["messages"]
        trained |= sums([str(message["content"]) for message in messages])
    small = {(a, sign, b) for a, sign, b in held_out if int(a) < 20 and int(b) < 20}
    assert len(trained) > 600 and len(small) > 20
    assert not trained & held_out


def test_drills_are_right() -> None:
    rng, known = Random(0), {row.name for rows in WORLD for row in rows}
    for _ in range(200):
        for said, shown, verdict in re.findall(
            r"(?:Is it|In|An?) ([^?]+)\? (?:It \w+(?: in)? )?([^,]+?)(?: is the baker)?,"
            r" so (yes|no)\.",
            drills.comparisons(rng, "train"),
        ):
            assert (re.sub("^an? ", "", shown) == re.sub("^an? ", "", said)) == (verdict == "yes")
        for name, verdict in re.findall(r"([^.:]+): (\w+)\.", drills.known_or_not(rng, "train")):
            assert (name.strip() in known) == (verdict == "known")
            assert verdict == "known" or is_in("train", name.strip())

        for wrong, right in re.findall(r"(\S+): (\S+)\.", drills.misspellings(rng, "train")):
            typed, meant = Counter(wrong.lower()), Counter(right.lower())
            assert wrong != right and max((typed - meant).total(), (meant - typed).total()) <= 1


def test_corrections_end_with_questions_of_training_as_they_are_written() -> None:
    rng = Random(0)
    lines = "\n".join(drills.corrections(rng, "train") for _ in range(100)).split("\n")
    typed, meant = lines[::2], [line.removeprefix("You mean: ") for line in lines[1::2]]
    assert sum(map(str.__ne__, typed, meant)) > len(typed) / 2
    assert all(text[0].isupper() or not text[0].isalpha() for text in meant)
    assert not any(text.startswith("You mean") for text in typed)


def test_validation_text_contains_only_held_out_questions() -> None:
    def questions(split: Any) -> set[str]:
        texts = (primer.document(1, i, split) for i in range(3000))
        return {lower_words(q) for text in texts for q in re.findall("You mean: (.*)", text)}

    held_out, trained = questions("val"), questions("train")
    assert min(len(held_out), len(trained)) > 300 and not held_out & trained


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
    kinds = {"choice": 4, "spelling": 10}.get(family, 20)  # few numbers of letters
    assert wrongly_right <= 2 * len(answers) / kinds or family in ("talk", "unknown")


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
    assert {1, 2, 3, 4} <= lengths


def test_the_answer_to_a_question_about_a_story_is_in_the_story() -> None:
    for i in range(500):
        talk = primer.conversation(1, i, "test", "reading")
        assert talk["answer"].lower() in user_texts(talk)[0].lower()


def test_answers_are_complete_sentences() -> None:
    for i in range(600):
        talk = primer.conversation(1, i)
        answer = spoken(talk["messages"][-1]["content"])
        assert answer[-1] in ".!?", answer
        assert talk["family"] == "repeat" or len(answer.split()) >= 2, answer


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


def test_unknown_names_are_no_misspelled_names_of_the_world() -> None:
    known = {person.name for person in world.PEOPLE} | {*world.GIRLS, *world.BOYS}
    rng = Random(0)
    for _ in range(2000):
        name = unknown.unknown_name(rng, "train")
        assert name not in known and unknown.is_far_from_known(name)
    assert not unknown.is_far_from_known("Mai") and not unknown.is_far_from_known("Oskkar")


# ---- what is held out by structure


def test_unseen_frames_and_fillers_never_occur_in_training() -> None:
    texts = training_texts(1000)
    frames = (*phrasing.UNSEEN_CLAUSE_FRAMES, *phrasing.UNSEEN_NOUN_FRAMES)
    starts = [frame.partition(" {")[0].lower() for frame in frames]
    fillers = [words.strip(" ,.:!").lower() for words in noise.UNSEEN_BEFORE if len(words) > 6]
    for kept in [*starts, *fillers]:
        assert not [text for text in texts if re.search(rf"(^|[.|!?:] ?){kept} ", text)], kept
    assert not [text for text in texts if re.search(r"[?!.]\s?[?!.]{2}", text)]


def test_unseen_phrasings_are_disjoint_from_those_of_training() -> None:
    for forms in PARAPHRASES.values():
        seen = {*forms.direct, *forms.clauses, *forms.nouns}
        assert forms.unseen and not seen & set(forms.unseen)
    assert not set(phrasing.CLAUSE_FRAMES) & set(phrasing.UNSEEN_CLAUSE_FRAMES)
    assert not set(phrasing.NOUN_FRAMES) & set(phrasing.UNSEEN_NOUN_FRAMES)


def test_names_of_the_probe_never_occur_in_training() -> None:
    trained = {word for text in training_texts(1000) for word in re.findall(r"[a-z]+", text)}
    lists = (*names.COMMON_WORDS, *names.FIRST_NAMES)
    assert not [word for word in lists if is_in("test", word) and word.lower() in trained]
    probes = [primer.conversation(3, i, "test", "unseen names") for i in range(200)]
    words = {word for talk in probes for word in re.findall(r"[A-Z][a-z]{4,}", str(talk))}
    held_out = {word.lower() for word in words if not is_in("train", word)}
    # Words of templates may have the hash of a held-out name; invented and first names do not.
    assert len(held_out) > 40 and len(held_out & trained) <= len(held_out) / 10


def test_compositions_of_the_probe_never_occur_in_training() -> None:
    texts = "\n".join(training_texts(1000))
    talks = [primer.conversation(3, i, "test", "unseen compositions") for i in range(100)]
    answers = {spoken(talk["messages"][-1]["content"]).lower() for talk in talks}
    assert len(answers) > 20 and not [answer for answer in answers if answer in texts]
    assert len(set(re.findall(r"has an? (\w+), and the \1 ", texts))) > 10


@pytest.mark.parametrize("probe", PROBES)
def test_probes_are_deterministic_and_their_answers_right(probe: str) -> None:
    task = Primer("test", family=probe, size=30)
    for i in range(len(task)):
        assert task[i] == task[i]
        assert task.evaluate(task[i], spoken(task[i]["messages"][-1]["content"])), task[i]


@pytest.mark.parametrize("name", [*noise.NOISE, *noise.UNSEEN_NOISE])
def test_noise_changes_the_form_and_keeps_exact_words_and_numbers(name: str) -> None:
    operator = {**noise.NOISE, **noise.UNSEEN_NOISE}[name]
    text = "Please tell me: what is the name of Priscilla, I am not sure, 347 + 588?"
    for seed in range(50):
        noisy = operator(Random(seed), text, ("Priscilla",))
        assert noisy != text and noisy == operator(Random(seed), text, ("Priscilla",))
        assert "priscilla" in noisy.lower() and "347 + 588" in noisy


def test_misspelling_changes_one_word_by_one_letter() -> None:
    rng = Random(1)
    assert noise.swapped_letters(rng, "seal", ()) in ("esal", "sael", "sela")
    assert noise.missing_letter(rng, "seal", ()) in ("sal", "sel", "sea")
    assert noise.doubled_letter(rng, "seal", ()) in ("sseal", "seeal", "seaal", "seall")
    assert noise.confused_vowel(rng, "seal", ()) in ("saal", "sial", "seel", "seol")
    keys = noise._NEIGHBORS
    assert not [vowel for vowel, others in noise._CONFUSED_VOWELS.items() if keys[vowel] in others]
    assert noise.swapped_letters(rng, "cat 12", ()) == "cat 12"  # too short to be recognized


def test_numbers_in_words() -> None:
    known = {
        0: "zero", 13: "thirteen", 40: "forty", 52: "fifty two", 100: "one hundred",
        305: "three hundred and five", 1234: "one thousand two hundred and thirty four",
    }  # fmt: skip
    assert {number: in_words(number) for number in known} == known
    assert in_words(52, "-") == "fifty-two"


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


def test_typed_questions_are_not_templates_of_training() -> None:
    texts = training_texts(1000)
    task = TypedByAPerson()
    long = [q for i in range(len(task)) if len(q := lower_words(user_texts(task[i])[-1])) > 30]
    trained = {lower_words(part) for text in texts for part in text.split(" | ")}
    assert len(long) > 40 and len([q for q in long if q in trained]) <= len(long) / 50
