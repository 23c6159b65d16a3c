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
from typing import Any, Literal

import torch
import torch.nn.functional as F
import yaml  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Kind = Literal["multiple_choice", "schema", "language_modeling"]
Baselines = Literal["v1", "v2"]
Item = dict[str, Any]
LogitsAt = Callable[[Tensor, Tensor], Tensor]
"""Tokens (B, T) and positions (B, S), both int64, to logits (B, S, V) at those positions."""
Encode = Callable[[list[str]], list[list[int]]]
"""Texts to tokens, with <|bos|> before each."""

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
    "commonsense_qa": "f1cc16a88b05", "copa": "b22f96e08ae9",
    "openbook_qa": "a8aff255a64c", "piqa": "a9992adfdefd",
    "bigbench_language_identification": "1f132fbbb12a", "hellaswag": "448321079fdc",
    "lambada_openai": "4da02dd53b9e", "winograd_wsc": "762fe030ac69",
    "winogrande": "316e87ae4659", "boolq": "f42083a58713",
    "coqa": "028bd4e51326", "squad": "dc733b8f58ec",
    "agi_eval_lsat_ar": "d663b427ba31", "bigbench_cs_algorithms": "7ecee0f270f3",
    "bigbench_dyck_languages": "27a4ac2b3b18", "bigbench_operators": "a982dc4f9627",
    "bigbench_repeat_copy_logic": "86621f10e712", "arc_challenge": "ce66b8dcfb4b",
    "arc_easy": "b5fd1bf87a24", "bigbench_qa_wikidata": "5e1be72797ba",
    "jeopardy_all": "2f771918dbc8",
}  # fmt: skip


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
    """The tasks of a bundle. Raises FileNotFoundError naming the files that it lacks."""
    for name in (TASKS_FILE, BASELINES_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing")
    with (folder / BASELINES_FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    chance = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in rows}
    if baselines == "v2":
        chance |= V2_BASELINES
    entries = yaml.safe_load((folder / TASKS_FILE).read_text(encoding="utf-8"))["icl_tasks"]
    tasks = [
        CoreTask(
            label=entry["label"],
            kind=entry["icl_task_type"],
            num_shots=entry["num_fewshot"][0],
            delimiter=entry.get("continuation_delimiter", " "),
            baseline=chance[entry["label"]],
            file=entry["dataset_uri"],
        )
        for entry in entries
    ]
    missing = [task.file for task in tasks if not (folder / DATA_FOLDER / task.file).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder / DATA_FOLDER} lacks {', '.join(missing)}")
    return tasks


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
        if not blob.hexdigest().startswith(PUBLISHED_FILES.get(Path(task.file).stem, "none")):
            labels.append(task.label)
    return labels


# ---- from an item to text


def few_shot_examples(items: Sequence[Item], index: int, count: int) -> list[Item]:
    """`count` other items to precede item `index`; all others if there are fewer."""
    others = range(len(items) - 1)  # positions without `index`, as in the published numbers
    drawn = random.Random(SHOTS_SEED + index).sample(others, min(count, len(others)))
    return [items[position + (position >= index)] for position in drawn]


def make_prompts(task: CoreTask, item: Item, shots: Sequence[Item]) -> list[str]:
    """One text per choice or option; for language modeling, without and with the continuation."""
    head = "".join(f"{_texts(task, shot)[shot.get('gold', 0)]}\n\n" for shot in shots)
    prompts = [head + text for text in _texts(task, item)]
    if task.kind == "language_modeling":
        # Stripped: a trailing space would be a token that the continuation merges with its first
        # word.
        prompts.insert(0, f"{head}{item['context'].strip()}{task.delimiter}".strip())
    return prompts


def _texts(task: CoreTask, item: Item) -> list[str]:
    """The item with each of its choices or options; the one at index `gold` is correct."""
    # Queries and choices are not stripped: in some tasks a trailing space or newline matters.
    if task.kind == "multiple_choice":
        return [f"{item['query']}{task.delimiter}{choice}" for choice in item["choices"]]
    is_schema = task.kind == "schema"
    contexts = item["context_options"] if is_schema else [item["context"].strip()]
    return [f"{context}{task.delimiter}{item['continuation']}" for context in contexts]


# ---- from text to tokens


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence whose tokens from `start` on are scored."""

    tokens: tuple[int, ...]
    start: int

    @property
    def num_scored(self) -> int:
        return len(self.tokens) - self.start


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

    @property
    def accuracy(self) -> float:
        return self.num_right / max(1, self.num_items)


@dataclass(frozen=True)
class Problem:
    """An item ready to be scored."""

    gold: int  # index of the correct sequence; -1: the only one must be predicted token by token
    sequences: list[ScoredSequence]
    counts: Counts  # of this item, before scoring


def make_problem(task: CoreTask, item: Item, rows: Sequence[list[int]], limit: int) -> Problem:
    """rows: the tokens of the item's prompts. limit: the model's context length."""
    starts, is_extension = [common_prefix(rows)] * len(rows), True
    if task.kind == "schema":  # the contexts differ, the endings are equal
        end = common_prefix([row[::-1] for row in rows])
        starts = [len(row) - end for row in rows]
    elif task.kind == "language_modeling":
        # Without the continuation is only for finding its start: tokens may merge across it.
        is_extension = starts[0] == len(rows[0])
        rows, starts = rows[1:], starts[1:]
    sequences = []
    for row, start in zip(rows, starts, strict=True):
        cut = max(0, len(row) - limit)
        # At least 1: nothing precedes the first token, so it has no prediction.
        sequences.append(ScoredSequence(tuple(row[cut:]), max(1, start - cut)))
    counts = Counts(
        num_items=1,
        num_empty=any(sequence.num_scored == 0 for sequence in sequences),
        num_not_extension=not is_extension,
        num_cropped=any(len(row) > limit for row in rows),
    )
    return Problem(item.get("gold", -1), sequences, counts)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    is_equal = (len(set(column)) == 1 for column in zip(*rows, strict=False))
    return sum(takewhile(bool, is_equal))


# ---- scoring


def evaluate_task(
    task: CoreTask,
    items: Sequence[Item],
    indices: Sequence[int],
    encode: Encode,
    logits_at: LogitsAt,
    *,
    limit: int,
    device: torch.device,
    tokens_per_batch: int = 4096,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Counts:
    """Counts of the items at `indices`; the others only serve as few-shot examples."""
    counts = Counts()
    for first in range(0, len(indices), CHUNK_ITEMS):
        chunk = indices[first : first + CHUNK_ITEMS]
        prompts = [
            make_prompts(task, items[i], few_shot_examples(items, i, task.num_shots)) for i in chunk
        ]
        flat = [text for texts in prompts for text in texts]  # one call encodes in parallel
        rows = iter(encode(flat))
        problems = [
            make_problem(task, items[i], [next(rows) for _ in texts], limit)
            for i, texts in zip(chunk, prompts, strict=True)
        ]
        solved = solve(problems, logits_at, device, tokens_per_batch)
        counts = sum((problem.counts for problem in problems), counts)
        counts += Counts(num_right=sum(solved))
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
        scores |= zip(batch, _score_batch(batch, logits_at, device), strict=True)
    return [_is_right(problem, scores) for problem in problems]


def _is_right(problem: Problem, scores: dict[ScoredSequence, tuple[float, bool]]) -> bool:
    if problem.gold < 0:
        return not problem.counts.num_empty and scores[problem.sequences[0]][1]
    if problem.counts.num_empty:
        return problem.gold == 0  # its mean loss is 0 / 0; the published numbers take choice 0
    losses = [scores[span][0] for span in problem.sequences]
    return losses.index(min(losses)) == problem.gold


def _score_batch(
    batch: Sequence[ScoredSequence], logits_at: LogitsAt, device: torch.device
) -> list[tuple[float, bool]]:
    """Mean loss of each span, and whether each of its tokens is the most likely one."""
    spans = [(torch.tensor(one.tokens, device=device), one.start) for one in batch]
    tokens = pad_sequence([ids for ids, _ in spans], batch_first=True)  # (B, T)
    # The logits at position t predict token t + 1.
    at = [torch.arange(start - 1, len(ids) - 1, device=device) for ids, start in spans]
    targets = pad_sequence(
        [ids[start:] for ids, start in spans], batch_first=True, padding_value=-1
    )  # (B, S)
    logits = logits_at(tokens[:, :-1], pad_sequence(at, batch_first=True))  # (B, S, V)
    nll = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
    ).view_as(targets)
    is_scored = targets >= 0
    losses = (nll.double() * is_scored).sum(dim=1) / is_scored.sum(dim=1)
    all_right = ((logits.argmax(dim=-1) == targets) | ~is_scored).all(dim=1)
    return list(zip(losses.tolist(), all_right.tolist(), strict=True))


def centered(accuracy: float, baseline: float) -> float:
    """The accuracy on a scale where random guessing is 0 and perfect is 1."""
    return (accuracy - baseline) / (1 - baseline)
