"""The CORE metric of DCLM (arXiv 2406.11794): 22 tasks on plain text, asked of a base model.

An item becomes sequences of tokens, each with a span whose tokens are scored. Multiple choice:
the choice whose tokens are most likely; schema: the context under which the end is most likely;
language modeling: every token of the continuation must be the most likely.

# B sequences  T time  S scored positions  V vocab
"""

import csv
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from nanochat.errors import UserError

Kind = Literal["multiple_choice", "schema", "language_modeling"]
Baselines = Literal["v1", "v2"]
Item = dict[str, Any]
LogitsAt = Callable[[Tensor, Tensor], Tensor]
"""Tokens (B, T) and positions (B, S), both int64, to logits (B, S, V) at those positions."""

TASKS_FILE, BASELINES_FILE, DATA_FOLDER = "core.yaml", "eval_meta_data.csv", "eval_data"
NUM_TASKS = 22
ORDER_SEED, SHOTS_SEED = 1337, 1234  # those of the published numbers
CHUNK_ITEMS = 256  # in memory at once; sorting them by length keeps padding small
V2_BASELINES = {  # DCLM's correction of September 2025; published numbers have v1
    "commonsense_qa": 0.403,
    "agi_eval_lsat_ar": 0.25,
    "bigbench_language_identification": 0.25,
}
# Beginnings of the git blob ids of the files that published numbers were measured on.
PUBLISHED_FILES = {
    "commonsense_reasoning/commonsense_qa.jsonl": "f1cc16a88b05",
    "commonsense_reasoning/copa.jsonl": "b22f96e08ae9",
    "commonsense_reasoning/openbook_qa.jsonl": "a8aff255a64c",
    "commonsense_reasoning/piqa.jsonl": "a9992adfdefd",
    "language_understanding/bigbench_language_identification.jsonl": "1f132fbbb12a",
    "language_understanding/hellaswag.jsonl": "448321079fdc",
    "language_understanding/lambada_openai.jsonl": "4da02dd53b9e",
    "language_understanding/winograd_wsc.jsonl": "762fe030ac69",
    "language_understanding/winogrande.jsonl": "316e87ae4659",
    "reading_comprehension/boolq.jsonl": "f42083a58713",
    "reading_comprehension/coqa.jsonl": "028bd4e51326",
    "reading_comprehension/squad.jsonl": "dc733b8f58ec",
    "symbolic_problem_solving/agi_eval_lsat_ar.jsonl": "d663b427ba31",
    "symbolic_problem_solving/bigbench_cs_algorithms.jsonl": "7ecee0f270f3",
    "symbolic_problem_solving/bigbench_dyck_languages.jsonl": "27a4ac2b3b18",
    "symbolic_problem_solving/bigbench_operators.jsonl": "a982dc4f9627",
    "symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl": "86621f10e712",
    "world_knowledge/arc_challenge.jsonl": "ce66b8dcfb4b",
    "world_knowledge/arc_easy.jsonl": "b5fd1bf87a24",
    "world_knowledge/bigbench_qa_wikidata.jsonl": "5e1be72797ba",
    "world_knowledge/jeopardy_all.jsonl": "2f771918dbc8",
}


class Tokenizer(Protocol):
    """What the metric asks of a tokenizer."""

    def encode(self, text: list[str], prepend: int | str | None = None) -> list[list[int]]: ...


# ---- the bundle


@dataclass(frozen=True)
class CoreTask:
    """One of the 22."""

    label: str
    kind: Kind
    num_shots: int
    delimiter: str
    """Between a question and its answer."""
    baseline: float = 0.0
    """Accuracy of chance, from 0 to 1."""
    file: str = ""
    """Under eval_data/."""


def read_tasks(folder: Path, baselines: Baselines = "v1") -> list[CoreTask]:
    """The tasks of a bundle. Raises UserError naming what is missing of it."""
    for name in (TASKS_FILE, BASELINES_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
    chance = _read_baselines(folder / BASELINES_FILE, baselines)
    listed = yaml.safe_load((folder / TASKS_FILE).read_text(encoding="utf-8"))["icl_tasks"]
    tasks = [
        CoreTask(
            label=one["label"],
            kind=one["icl_task_type"],
            num_shots=one["num_fewshot"][0],
            delimiter=one.get("continuation_delimiter", " "),
            baseline=chance[one["label"]],
            file=one["dataset_uri"],
        )
        for one in listed
    ]
    missing = [task.file for task in tasks if not (folder / DATA_FOLDER / task.file).is_file()]
    if missing:
        raise UserError(f"{folder / DATA_FOLDER} lacks {', '.join(missing)}")
    return tasks


def _read_baselines(path: Path, version: Baselines) -> dict[str, float]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chance = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
    return chance if version == "v1" else chance | V2_BASELINES


def read_items(folder: Path, task: CoreTask, max_items: int = -1) -> list[Item]:
    """The items of a task in the order of the published numbers, cropped when max_items > 0."""
    with (folder / DATA_FOLDER / task.file).open(encoding="utf-8") as file:
        items = [json.loads(line) for line in file if line.strip()]
    random.Random(ORDER_SEED).shuffle(items)
    return items[:max_items] if max_items > 0 else items


def unlike_published(folder: Path, tasks: Sequence[CoreTask]) -> list[str]:
    """Labels of tasks whose file is not, byte for byte, the one that published numbers are of."""
    found = []
    for task in tasks:
        content = (folder / DATA_FOLDER / task.file).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        if not blob.hexdigest().startswith(PUBLISHED_FILES.get(task.file, "none")):
            found.append(task.label)
    return found


# ---- from an item to text


def shots_of(items: Sequence[Item], index: int, count: int) -> list[Item]:
    """The examples before item `index`: `count` of the others, all when there are fewer."""
    others = range(len(items) - 1)
    places = random.Random(SHOTS_SEED + index).sample(others, min(count, len(others)))
    return [items[place + (place >= index)] for place in places]


def prompts_of(task: CoreTask, item: Item, shots: Sequence[Item]) -> list[str]:
    """One text for each choice or option; without and with the continuation for language modeling.

    Queries and choices are taken as they are: some end in a space or a line end that counts.
    """
    head = "".join(f"{_solved(task, shot)}\n\n" for shot in shots)
    if task.kind == "multiple_choice":
        return [f"{head}{item['query']}{task.delimiter}{choice}" for choice in item["choices"]]
    if task.kind == "schema":
        end = f"{task.delimiter}{item['continuation']}"
        return [f"{head}{option}{end}" for option in item["context_options"]]
    asked = f"{head}{item['context'].strip()}{task.delimiter}"
    return [asked.strip(), f"{asked}{item['continuation']}"]


def _solved(task: CoreTask, item: Item) -> str:
    if task.kind == "multiple_choice":
        return f"{item['query']}{task.delimiter}{item['choices'][item['gold']]}"
    if task.kind == "schema":
        return f"{item['context_options'][item['gold']]}{task.delimiter}{item['continuation']}"
    return f"{item['context'].strip()}{task.delimiter}{item['continuation']}"


# ---- from text to tokens


@dataclass(frozen=True)
class Scored:
    """A sequence and the span of it whose tokens are scored: those from start on."""

    tokens: tuple[int, ...]
    start: int

    @property
    def num_scored(self) -> int:
        """Tokens of the span."""
        return len(self.tokens) - self.start

    def cropped(self, limit: int) -> "Scored":
        """The last `limit` tokens; the first of them is no longer predicted."""
        cut = max(0, len(self.tokens) - limit)
        return Scored(self.tokens[cut:], max(1, self.start - cut))


@dataclass(frozen=True)
class Problem:
    """An item ready to be scored, and what is odd about it."""

    gold: int
    """Index of the right sequence; -1 where the only one must be predicted token by token."""
    sequences: tuple[Scored, ...]
    is_extension: bool
    """The tokens with the continuation begin with those without it."""
    was_cropped: bool

    @property
    def has_empty_span(self) -> bool:
        """A choice has no token of its own."""
        return any(sequence.num_scored == 0 for sequence in self.sequences)


def problem_of(task: CoreTask, item: Item, rows: Sequence[list[int]], limit: int) -> Problem:
    """rows: the tokens of the item's prompts. limit: tokens that the model takes."""
    is_extension = True
    if task.kind == "multiple_choice":
        start = common_prefix(rows)
        spans = [Scored(tuple(row), start) for row in rows]
    elif task.kind == "schema":
        end = common_prefix([row[::-1] for row in rows])
        spans = [Scored(tuple(row), max(1, len(row) - end)) for row in rows]
    else:
        without, whole = rows
        start = common_prefix(rows)
        is_extension = start == len(without)
        spans = [Scored(tuple(whole), start)]
    return Problem(
        gold=item.get("gold", -1),
        sequences=tuple(span.cropped(limit) for span in spans),
        is_extension=is_extension,
        was_cropped=any(len(span.tokens) > limit for span in spans),
    )


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with alike."""
    for place, column in enumerate(zip(*rows, strict=False)):
        if any(token != column[0] for token in column):
            return place
    return min(map(len, rows))


# ---- scoring


@dataclass(frozen=True)
class Counts:
    """Of the items of one task, or of one rank's share of them."""

    num_items: int = 0
    num_right: int = 0
    num_empty: int = 0
    """A choice had no token of its own: the first choice was taken, as in the published numbers."""
    num_not_extension: int = 0
    """The continuation changed earlier tokens: scored from the first token that differs."""
    num_cropped: int = 0
    """Longer than the model's context: the end was kept."""

    def __add__(self, other: "Counts") -> "Counts":
        names = [field.name for field in fields(self)]
        return Counts(*(getattr(self, name) + getattr(other, name) for name in names))


def evaluate_task(
    task: CoreTask,
    items: Sequence[Item],
    tokenizer: Tokenizer,
    logits_at: LogitsAt,
    *,
    limit: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
    tokens_per_batch: int = 4096,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Counts:
    """This rank's share of the items (index % world_size == rank), counted."""
    indices = range(rank, len(items), world_size)
    counts = Counts()
    for first in range(0, len(indices), CHUNK_ITEMS):
        some = indices[first : first + CHUNK_ITEMS]
        texts = [prompts_of(task, items[i], shots_of(items, i, task.num_shots)) for i in some]
        rows = iter(tokenizer.encode([text for own in texts for text in own], prepend="<|bos|>"))
        problems = [
            problem_of(task, items[i], [next(rows) for _ in own], limit)
            for i, own in zip(some, texts, strict=True)
        ]
        for right, problem in zip(
            judge(problems, logits_at, device, tokens_per_batch), problems, strict=True
        ):
            counts += Counts(
                1, right, problem.has_empty_span, not problem.is_extension, problem.was_cropped
            )
        on_progress(first + len(some))
    return counts


def judge(
    problems: Sequence[Problem], logits_at: LogitsAt, device: torch.device, tokens_per_batch: int
) -> list[bool]:
    """Whether the model gets each problem right; of equal scores the first counts."""
    # Equal sequences (some items list a choice twice) are scored once: a tie stays a tie.
    distinct = {one for problem in problems for one in problem.sequences if one.num_scored}
    scores = _scores(sorted(distinct, key=_by_length), logits_at, device, tokens_per_batch)
    return [_is_right(problem, scores) for problem in problems]


def _is_right(problem: Problem, scores: dict[Scored, tuple[float, bool]]) -> bool:
    if problem.gold < 0:
        return not problem.has_empty_span and scores[problem.sequences[0]][1]
    if problem.has_empty_span:
        return problem.gold == 0
    losses = [scores[one][0] for one in problem.sequences]
    return losses.index(min(losses)) == problem.gold


def _by_length(one: Scored) -> tuple[int, int, tuple[int, ...]]:
    return len(one.tokens), one.start, one.tokens


@torch.inference_mode()
def _scores(
    ordered: Sequence[Scored], logits_at: LogitsAt, device: torch.device, tokens_per_batch: int
) -> dict[Scored, tuple[float, bool]]:
    """Mean loss of each span, and whether each of its tokens is the most likely."""
    found: dict[Scored, tuple[float, bool]] = {}
    last = len(ordered)
    while last:  # the longest first: what does not fit into memory is seen at once
        count = max(1, min(last, tokens_per_batch // len(ordered[last - 1].tokens)))
        some = ordered[last - count : last]
        losses, all_right = _score_batch(some, logits_at, device)
        found.update(zip(some, zip(losses, all_right, strict=True), strict=True))
        last -= count
    return found


def _score_batch(
    some: Sequence[Scored], logits_at: LogitsAt, device: torch.device
) -> tuple[list[float], list[bool]]:
    longest = max(len(one.tokens) for one in some)
    widest = max(one.num_scored for one in some)
    tokens = torch.zeros(len(some), longest, dtype=torch.int64)
    at = torch.zeros(len(some), widest, dtype=torch.int64)
    targets = torch.full((len(some), widest), -1)
    for row, one in enumerate(some):
        tokens[row, : len(one.tokens)] = torch.tensor(one.tokens)
        at[row, : one.num_scored] = torch.arange(one.start - 1, len(one.tokens) - 1)
        targets[row, : one.num_scored] = tokens[row, one.start : len(one.tokens)]
    targets = targets.to(device)
    logits = logits_at(tokens[:, :-1].to(device), at.to(device))
    nll = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
    ).view_as(targets)
    is_scored = targets >= 0
    losses = (nll.double() * is_scored).sum(dim=1) / is_scored.sum(dim=1)
    all_right = ((logits.argmax(dim=-1) == targets) | ~is_scored).all(dim=1)
    return losses.tolist(), all_right.tolist()


def centred_accuracy(task: CoreTask, counts: Counts) -> float:
    """Accuracy of a task on a scale where chance is 0."""
    return centred(counts.num_right / max(1, counts.num_items), task.baseline)


def centred(accuracy: float, baseline: float) -> float:
    """(accuracy - baseline) / (1 - baseline): 0 is chance, 1 is perfect."""
    return (accuracy - baseline) / (1 - baseline)
