"""The worked example of dev/TEACHING.md: its code, run as it is printed."""

import re
from pathlib import Path
from typing import Any

import pytest

from dev import gen_synthetic_data
from nanochat.chat import render_conversation, render_for_completion
from tests.small_model import ScriptedModel, follows, small_tokenizer

PAGE = (Path(__file__).parents[1] / "dev" / "TEACHING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    """The names that the page's blocks of Python define."""
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        exec(block, names)
    return names


def test_the_task_makes_conversations_whose_calls_the_tool_answers(example: dict[str, Any]) -> None:
    train, test = (example["Distances"](split, size=300) for split in ("train", "test"))
    questions = [{task[i]["messages"][0]["content"] for i in range(300)} for task in (train, test)]
    assert not questions[0] & questions[1]
    for index in range(300):
        item = test[index]
        call, output, text = item["messages"][1]["content"]
        assert example["convert"](call["text"]) == output["text"] == item["answer"]
        assert test.evaluate(item, text["text"]) and test.reward(item, text["text"]) == 1.0
        assert not test.evaluate(item, text["text"].replace(item["answer"], "1.00"))
    assert example["convert"]("26.2 miles") == "42.16"


def test_the_engine_inserts_the_output_of_the_tool(example: dict[str, Any]) -> None:
    tokenizer, item = small_tokenizer(), example["Distances"]("test", size=1)[0]
    ids, mask = render_conversation(item, tokenizer)
    prompt = render_for_completion(item, tokenizer)
    model = ScriptedModel(follows(ids))
    found = example["answer"](model, tokenizer, prompt)
    assert found == tokenizer.decode(ids[len(prompt) :])
    assert f"<|output_start|>{item['answer']}<|output_end|>" in found
    forced = [token for token, counts in zip(ids, mask, strict=True) if not counts][len(prompt) :]
    assert item["answer"] in tokenizer.decode(forced), "the output is learned, not inserted"


def test_the_facts_of_the_page_make_a_personality(tmp_path: Path) -> None:
    block = re.search(r"cat > ada.txt <<END\n(.*?)    END", PAGE, re.DOTALL)
    assert block is not None
    facts = tmp_path / "ada.txt"
    facts.write_text(re.sub("^    ", "", block[1], flags=re.MULTILINE))
    assert len(gen_synthetic_data.facts_of(str(facts))) == 2
    options = re.search(r"gen_synthetic_data (--name=Ada .*?) --out", PAGE)
    assert options is not None and '--maker="the night class" --facts=ada.txt' in options[1]
