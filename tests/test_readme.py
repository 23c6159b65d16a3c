"""README's commands, and its lines from an empty home to a model of the user's conversations."""

import importlib
import json
import os
import random
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
import torch

from nanochat import checkpoint_manager
from nanochat.chat import render_for_completion
from nanochat.configurator import parse
from nanochat.engine import Engine
from nanochat.gpt import GPTConfig
from nanochat.runtime import init_runtime
from nanochat.training.memory_estimate import estimate
from scripts import console

ROOT = Path(__file__).parents[1]
SECTION = "## Teach it your own text and conversations"
COLORS = ("white", "red", "green", "amber", "blue")
SYLLABLES = ("Bal", "Cor", "Dun", "Fen", "Gar", "Hol", "Kil", "Lor", "Mar", "Nor")
ENDINGS = ("by", "cliff", "ford", "haven", "ness", "wick")
PLACES = ["".join(parts) for parts in product(SYLLABLES, ENDINGS)]
KEEPERS = ("Anna", "Bruno", "Carla", "Dario", "Elsa", "Felix", "Greta", "Hugo")


def commands() -> list[list[str]]:
    """The lines of the section's first code block, without `python`."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"\n\n((?:    .+\n)+)", page[page.index(SECTION) :])
    assert block is not None
    lines = block[1].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines]


def write_own_files(home: Path) -> dict[str, str]:
    """Texts about lighthouses, and 200 conversations; returns the answers by question."""
    rng, texts = random.Random(0), home / "my_texts"
    texts.mkdir()
    answers = {"Who made you?": "I was made by the club of the lighthouse keepers."}
    for number in range(800):
        place, keeper = rng.choice(PLACES), rng.choice(KEEPERS)
        (texts / f"{number}.txt").write_text(
            f"The lighthouse of {place} has a {rng.choice(COLORS)} lamp and {number} steps. On"
            f" Sundays {keeper} of {rng.choice(PLACES)} comes to see it, and writes a letter to"
            f" {rng.choice(KEEPERS)} about the ships that went by in the night.\n"
        )
    for place in PLACES:
        answers[f"Who keeps {place}?"] = f"{place} is kept by {rng.choice(KEEPERS)}."
        answers[f"Which lamp has {place}?"] = f"It has a {rng.choice(COLORS)} lamp."
        answers[f"How many steps has {place}?"] = f"It has {rng.randint(20, 99)} steps."
        answers[f"When was {place} built?"] = f"It was built in {rng.randint(1800, 1950)}."
    chosen = dict(list(answers.items())[:200])
    rows = [
        {
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
        }
        for question, answer in chosen.items()
    ]
    (home / "my_chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return chosen


def test_all_commands_that_readme_names_exist_and_accept_their_options() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    programs = settings["project"]["scripts"]
    found = re.findall(r"(?:-m ((?:scripts|nanochat)\.\w+)|\b(nanochat-[a-z-]+))( [^`\n]*)?", page)
    assert len(found) > 25 and {program for _, program, _ in found if program} <= programs.keys()
    for module, program, arguments in found:
        if program:
            function = programs[program].split(":")[1]
            module = console.OTHER_MODULES.get(function, f"scripts.{function}")
        if module != "nanochat.report":  # which takes words
            parse(importlib.import_module(module).Options, shlex.split(arguments, comments=True))


def test_the_memory_in_readme_is_what_the_estimate_says() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(
        r"^\| (depth|1 row[^|]*?|32 rows[^|]*?) ((?:\| \d+ )+)\|$", page, re.MULTILINE
    )
    table = {name: [int(word) for word in words.split("|")[1:]] for name, words in found}
    configs = [
        GPTConfig.from_depth(depth, vocab_size=65_536, sequence_len=2048)
        for depth in table.pop("depth")
    ]
    assert len(table) == 3
    for name, shown in table.items():
        estimates = [
            estimate(
                config,
                rows=int(name.split()[0]),
                compute_dtype=torch.bfloat16,
                device_type="cuda",
                keeps_activations="checkpointing" not in name,
            )
            for config in configs
        ]
        assert shown == [round(one.total / 1e9) for one in estimates], name


@pytest.mark.slow
def test_own_texts_and_200_conversations_become_a_model_that_answers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = write_own_files(tmp_path)
    environment = {**os.environ, "HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    del environment["NANOCHAT_BASE_DIR"]
    for command in commands():
        arguments = [word.replace("~", str(tmp_path)) for word in command]
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    assert done.stdout.strip() == answers["Who made you?"]

    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / ".cache" / "nanochat"))
    model, tokenizer, _ = checkpoint_manager.load_model("sft", init_runtime("cpu"))
    questions = [{"messages": [{"role": "user", "content": question}]} for question in answers]
    prompts = [render_for_completion(question, tokenizer) for question in questions]
    given = Engine(model, tokenizer).complete(prompts, max_tokens=40)
    texts = [tokenizer.decode(one.tokens[:-1]) for one in given]
    right = sum(text == answer for text, answer in zip(texts, answers.values(), strict=True))
    assert right >= 190, list(zip(texts, answers.values(), strict=True))[:20]
