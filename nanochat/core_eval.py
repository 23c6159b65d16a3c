"""The CORE metric of DCLM (arXiv 2406.11794): 22 tasks on plain text, for base models.

Each item becomes token sequences, each with a span that is scored. Multiple choice: the choice with
the lowest mean loss; schema: the context under which the shared ending has the lowest mean loss;
language modeling: every token of the continuation must be the most likely one.

# B sequences  T time  S scored positions  V vocab
"""

import csv
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import takewhile
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
ORDER_SEED, SHOTS_SEED = 1337, 1234  # as in the published numbers
CHUNK_ITEMS = 256  # in memory at a time; sorting them by length keeps padding low
V2_BASELINES = {  # DCLM's correction of September 2025; published numbers use v1
    "commonsense_qa": 0.403,
    "agi_eval_lsat_ar": 0.25,
    "bigbench_language_identification": 0.25,
}
# First digits of the git blob ids of the files that the published numbers were measured on.
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
    """The part of a tokenizer that is used."""

    def encode(self, text: list[str], prepend: int | str | None = None) -> list[list[int]]: ...


# ---- the bundle


@dataclass(frozen=True)
class CoreTask:
    """One of the 22 tasks."""

    label: str
    kind: Kind
    num_shots: int
    delimiter: str  # between question and answer
    baseline: float = 0.0  # accuracy of random guessing, from 0 to 1
    file: str = ""  # under eval_data/


def read_tasks(folder: Path, baselines: Baselines = "v1") -> list[CoreTask]:
    """The tasks of a bundle. Raises UserError naming the files that it lacks."""
    for name in (TASKS_FILE, BASELINES_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
    random_baselines = _read_baselines(folder / BASELINES_FILE, baselines)
    entries = yaml.safe_load((folder / TASKS_FILE).read_text(encoding="utf-8"))["icl_tasks"]
    tasks = [
        CoreTask(
            label=entry["label"],
            kind=entry["icl_task_type"],
            num_shots=entry["num_fewshot"][0],
            delimiter=entry.get("continuation_delimiter", " "),
            baseline=random_baselines[entry["label"]],
            file=entry["dataset_uri"],
        )
        for entry in entries
    ]
    missing = [task.file for task in tasks if not (folder / DATA_FOLDER / task.file).is_file()]
    if missing:
        raise UserError(f"{folder / DATA_FOLDER} lacks {', '.join(missing)}")
    return tasks


def _read_baselines(path: Path, version: Baselines) -> dict[str, float]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    baselines = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
    return baselines if version == "v1" else baselines | V2_BASELINES


def read_items(folder: Path, task: CoreTask, max_items: int = -1) -> list[Item]:
    """The items of a task in the published order; the first `max_items` if that is positive."""
    with (folder / DATA_FOLDER / task.file).open(encoding="utf-8") as file:
        items = [json.loads(line) for line in file if line.strip()]
    random.Random(ORDER_SEED).shuffle(items)  # before cropping: a sample, not the head of the file
    return items[:max_items] if max_items > 0 else items


def unpublished_files(folder: Path, tasks: Sequence[CoreTask]) -> list[str]:
    """Labels of tasks whose file differs from the one that the published numbers are for."""
    labels = []
    for task in tasks:
        content = (folder / DATA_FOLDER / task.file).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        if not blob.hexdigest().startswith(PUBLISHED_FILES.get(task.file, "none")):
            labels.append(task.label)
    return labels


# ---- from an item to text


def few_shot_examples(items: Sequence[Item], index: int, count: int) -> list[Item]:
    """`count` other items to precede item `index`; all others if there are fewer."""
    others = range(len(items) - 1)  # positions without `index`, as in the published numbers
    drawn = random.Random(SHOTS_SEED + index).sample(others, min(count, len(others)))
    return [items[position + (position >= index)] for position in drawn]


def make_prompts(task: CoreTask, item: Item, shots: Sequence[Item]) -> list[str]:
    """One text per choice or option; for language modeling, without and with the continuation.

    Queries and choices are not stripped: in some tasks a trailing space or newline matters.
    """
    head = "".join(f"{_solved(task, shot)}\n\n" for shot in shots)
    if task.kind == "multiple_choice":
        return [f"{head}{item['query']}{task.delimiter}{choice}" for choice in item["choices"]]
    if task.kind == "schema":
        end = f"{task.delimiter}{item['continuation']}"
        return [f"{head}{option}{end}" for option in item["context_options"]]
    prompt = f"{head}{item['context'].strip()}{task.delimiter}"
    # Stripped: a trailing space would be a token that the continuation merges with its first word.
    return [prompt.strip(), f"{prompt}{item['continuation']}"]


def _solved(task: CoreTask, item: Item) -> str:
    """An item with its correct answer."""
    if task.kind == "multiple_choice":
        return f"{item['query']}{task.delimiter}{item['choices'][item['gold']]}"
    is_schema = task.kind == "schema"
    context = item["context_options"][item["gold"]] if is_schema else item["context"].strip()
    return f"{context}{task.delimiter}{item['continuation']}"


# ---- from text to tokens


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence whose tokens from `start` on are scored."""

    tokens: tuple[int, ...]
    start: int

    @property
    def num_scored(self) -> int:
        """Tokens in the span."""
        return len(self.tokens) - self.start

    def cropped(self, limit: int) -> "ScoredSequence":
        """The last `limit` tokens."""
        cut = max(0, len(self.tokens) - limit)
        # At least 1: nothing precedes the first token, so it has no prediction.
        return ScoredSequence(self.tokens[cut:], max(1, self.start - cut))


@dataclass(frozen=True)
class Problem:
    """An item ready to be scored, and its irregularities."""

    gold: int  # index of the correct sequence; -1: the only one must be predicted token by token
    sequences: tuple[ScoredSequence, ...]
    is_extension: bool  # the tokens with the continuation begin with those without it
    was_cropped: bool

    @property
    def has_empty_span(self) -> bool:
        """True if a choice has no token of its own."""
        return any(sequence.num_scored == 0 for sequence in self.sequences)


def make_problem(task: CoreTask, item: Item, rows: Sequence[list[int]], limit: int) -> Problem:
    """rows: the tokens of the item's prompts. limit: the model's context length."""
    starts, is_extension = [common_prefix(rows)] * len(rows), True
    if task.kind == "schema":  # the contexts differ, the endings are equal
        end = common_prefix([row[::-1] for row in rows])
        starts = [max(1, len(row) - end) for row in rows]
    elif task.kind == "language_modeling":
        # Without the continuation is only for finding its start: tokens may merge across it.
        is_extension = starts[0] == len(rows[0])
        rows, starts = rows[1:], starts[1:]
    spans = [ScoredSequence(tuple(row), start) for row, start in zip(rows, starts, strict=True)]
    return Problem(
        gold=item.get("gold", -1),
        sequences=tuple(span.cropped(limit) for span in spans),
        is_extension=is_extension,
        was_cropped=any(len(span.tokens) > limit for span in spans),
    )


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    is_equal = (len(set(column)) == 1 for column in zip(*rows, strict=False))
    return sum(takewhile(bool, is_equal))


# ---- scoring


@dataclass(frozen=True)
class Counts:
    """Items of a task, or of one rank's share of it. Sections of the report hold these names."""

    num_items: int = 0
    num_right: int = 0
    num_empty: int = 0  # a choice had no token of its own: choice 0 was taken, as published
    num_not_extension: int = 0  # the continuation changed earlier tokens: scored from those on
    num_cropped: int = 0  # longer than the context: the end was kept

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
    """Counts of this rank's share of the items (index % world_size == rank)."""
    indices = range(rank, len(items), world_size)
    counts = Counts()
    for first in range(0, len(indices), CHUNK_ITEMS):
        chunk = indices[first : first + CHUNK_ITEMS]
        prompts = [
            make_prompts(task, items[i], few_shot_examples(items, i, task.num_shots)) for i in chunk
        ]
        flat = [text for texts in prompts for text in texts]  # one call encodes in parallel
        rows = iter(tokenizer.encode(flat, prepend="<|bos|>"))
        problems = [
            make_problem(task, items[i], [next(rows) for _ in texts], limit)
            for i, texts in zip(chunk, prompts, strict=True)
        ]
        solved = solve(problems, logits_at, device, tokens_per_batch)
        for is_right, problem in zip(solved, problems, strict=True):
            counts += Counts(
                1, is_right, problem.has_empty_span, not problem.is_extension, problem.was_cropped
            )
        on_progress(first + len(chunk))
    return counts


@torch.inference_mode()
def solve(
    problems: Sequence[Problem], logits_at: LogitsAt, device: torch.device, tokens_per_batch: int
) -> list[bool]:
    """Whether the model solves each problem; on equal losses the first choice counts."""
    # Equal sequences (some items list a choice twice) are scored once: a tie stays a tie.
    distinct = {span for problem in problems for span in problem.sequences if span.num_scored}
    left = sorted(distinct, key=lambda span: (len(span.tokens), span.start, span.tokens))
    scores: dict[ScoredSequence, tuple[float, bool]] = {}
    while left:  # longest first: running out of memory shows at once
        count = max(1, min(len(left), tokens_per_batch // len(left[-1].tokens)))
        left, batch = left[:-count], left[-count:]
        scores |= zip(batch, zip(*_score_batch(batch, logits_at, device), strict=True), strict=True)
    return [_is_right(problem, scores) for problem in problems]


def _is_right(problem: Problem, scores: dict[ScoredSequence, tuple[float, bool]]) -> bool:
    if problem.gold < 0:
        return not problem.has_empty_span and scores[problem.sequences[0]][1]
    if problem.has_empty_span:
        return problem.gold == 0  # its mean loss is 0 / 0; the published numbers take choice 0
    losses = [scores[span][0] for span in problem.sequences]
    return losses.index(min(losses)) == problem.gold


def _score_batch(
    batch: Sequence[ScoredSequence], logits_at: LogitsAt, device: torch.device
) -> tuple[list[float], list[bool]]:
    """Mean loss of each span, and whether each of its tokens is the most likely one."""
    longest = max(len(span.tokens) for span in batch)
    widest = max(span.num_scored for span in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.int64)  # (B, T)
    at = torch.zeros(len(batch), widest, dtype=torch.int64)  # (B, S), padded with position 0
    targets = torch.full((len(batch), widest), -1)  # (B, S), -1 for padding
    for row, span in enumerate(batch):
        tokens[row, : len(span.tokens)] = torch.tensor(span.tokens)
        # The logits at position t predict token t + 1.
        at[row, : span.num_scored] = torch.arange(span.start - 1, len(span.tokens) - 1)
        targets[row, : span.num_scored] = tokens[row, span.start : len(span.tokens)]
    targets = targets.to(device)
    logits = logits_at(tokens[:, :-1].to(device), at.to(device))  # (B, S, V)
    nll = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
    ).view_as(targets)
    is_scored = targets >= 0
    losses = (nll.double() * is_scored).sum(dim=1) / is_scored.sum(dim=1)
    all_right = ((logits.argmax(dim=-1) == targets) | ~is_scored).all(dim=1)
    return losses.tolist(), all_right.tolist()


def centered_accuracy(task: CoreTask, counts: Counts) -> float:
    """Accuracy on a scale where random guessing is 0 and perfect is 1."""
    return centered(counts.num_right / max(1, counts.num_items), task.baseline)


def centered(accuracy: float, baseline: float) -> float:
    """(accuracy - baseline) / (1 - baseline)."""
    return (accuracy - baseline) / (1 - baseline)
