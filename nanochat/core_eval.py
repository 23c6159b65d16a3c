"""The CORE metric of DCLM (arXiv 2406.11794): 22 tasks on plain text, for base models.

Each item becomes token sequences, each with a span that is scored. Multiple choice: the choice with
the lowest mean loss; schema: the context under which the shared ending has the lowest mean loss;
language modeling: every token of the continuation must be the most likely one.

S scored positions  V vocab
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Kind = Literal["multiple_choice", "schema", "language_modeling"]
Baselines = Literal["v1", "v2"]
Item = dict[str, Any]
Tokens = tuple[int, ...]
LogitsAt = Callable[[Sequence[Sequence[Tokens]], Tensor], Tensor]
"""Rows, each a prefix and the continuations that share it, and positions (S,) int64 in the tokens
of all rows, to logits (S, V) at those positions: what `Engine.logits_at` does."""
Encode = Callable[[list[str]], list[list[int]]]
"""Texts to tokens, with <|bos|> before each."""

DATA_FOLDER = "eval_data"  # in a bundle
ORDER_SEED, SHOTS_SEED = 1337, 1234  # as in the published numbers
CHUNK_ITEMS = 256  # in memory at a time; sorting them by length keeps padding low
MIN_SHARED_TOKENS = 8  # sharing a shorter prefix costs as much as it saves


# ---- the tasks


@dataclass(frozen=True)
class CoreTask:
    """A task: how its items become prompts, and the file that published numbers are for."""

    label: str
    kind: Kind
    num_shots: int
    delimiter: str  # between question and answer
    baseline: float = 0.0  # accuracy of random guessing, from 0 to 1
    folder: str = ""  # of the file, under eval_data/
    num_items: int = 0  # in the file
    git_blob: str = ""  # first digits of the file's git blob id
    stem: str = ""  # name of the file, where it is not the label

    @property
    def file(self) -> str:
        """Path under eval_data/."""
        return f"{self.folder}/{self.stem or self.label}.jsonl"


MC: Kind = "multiple_choice"
LM: Kind = "language_modeling"
COMMONSENSE, LANGUAGE = "commonsense_reasoning", "language_understanding"
READING, SYMBOLIC, WORLD = "reading_comprehension", "symbolic_problem_solving", "world_knowledge"
ANSWER = "\nAnswer: "
CORE_TASKS = (  # with the v1 baselines
    CoreTask("hellaswag_zeroshot", MC, 0, " ", 0.25, LANGUAGE, 10042, "448321079f", "hellaswag"),
    CoreTask("jeopardy", LM, 10, ANSWER, 0.0, WORLD, 2117, "2f771918db", "jeopardy_all"),
    CoreTask("bigbench_qa_wikidata", LM, 10, " ", 0.0, WORLD, 20321, "5e1be72797"),
    CoreTask("arc_easy", MC, 10, ANSWER, 0.25, WORLD, 2376, "b5fd1bf87a"),
    CoreTask("arc_challenge", MC, 10, ANSWER, 0.25, WORLD, 1172, "ce66b8dcfb"),
    CoreTask("copa", MC, 0, " ", 0.5, COMMONSENSE, 100, "b22f96e08a"),
    CoreTask("commonsense_qa", MC, 10, " ", 0.2, COMMONSENSE, 1221, "f1cc16a88b"),
    CoreTask("piqa", MC, 10, ANSWER, 0.5, COMMONSENSE, 1838, "a9992adfde"),
    CoreTask("openbook_qa", MC, 0, " ", 0.25, COMMONSENSE, 500, "a8aff255a6"),
    CoreTask("lambada_openai", LM, 0, " ", 0.0, LANGUAGE, 5153, "4da02dd53b"),
    CoreTask("hellaswag", MC, 10, " ", 0.25, LANGUAGE, 10042, "448321079f"),
    CoreTask("winograd", "schema", 0, " ", 0.5, LANGUAGE, 273, "762fe030ac", "winograd_wsc"),
    CoreTask("winogrande", "schema", 0, " ", 0.5, LANGUAGE, 1267, "316e87ae46"),
    CoreTask("bigbench_dyck_languages", LM, 10, " ", 0.0, SYMBOLIC, 1000, "27a4ac2b3b"),
    CoreTask("agi_eval_lsat_ar", MC, 3, " ", 0.2, SYMBOLIC, 230, "d663b427ba"),
    CoreTask("bigbench_cs_algorithms", LM, 10, " ", 0.0, SYMBOLIC, 1320, "7ecee0f270"),
    CoreTask("bigbench_operators", LM, 10, " ", 0.0, SYMBOLIC, 210, "a982dc4f96"),
    CoreTask("bigbench_repeat_copy_logic", LM, 10, " ", 0.0, SYMBOLIC, 32, "86621f10e7"),
    CoreTask("squad", LM, 10, " ", 0.0, READING, 10570, "dc733b8f58"),
    CoreTask("coqa", LM, 0, " ", 0.0, READING, 7983, "028bd4e513"),
    CoreTask("boolq", MC, 10, ANSWER, 0.62, READING, 3270, "f42083a587"),
    CoreTask("bigbench_language_identification", MC, 10, " ", 0.091, LANGUAGE, 10000, "1f132fbbb1"),
)
V2_BASELINES = {  # DCLM's correction of September 2025; published numbers use v1
    "commonsense_qa": 0.403,
    "agi_eval_lsat_ar": 0.25,
    "bigbench_language_identification": 0.25,
}


def core_tasks(baselines: Baselines = "v1") -> tuple[CoreTask, ...]:
    """The 22 tasks in the published order."""
    changed = V2_BASELINES if baselines == "v2" else {}
    return tuple(
        replace(task, baseline=changed.get(task.label, task.baseline)) for task in CORE_TASKS
    )


def centered(accuracy: float, baseline: float) -> float:
    """The accuracy on a scale where random guessing is 0 and perfect is 1."""
    return (accuracy - baseline) / (1 - baseline)


# ---- the bundle's files


def missing_files(folder: Path) -> list[str]:
    """Paths of the tasks' files that a bundle lacks."""
    files = dict.fromkeys(f"{DATA_FOLDER}/{task.file}" for task in CORE_TASKS)
    return [file for file in files if not (folder / file).is_file()]


def definition_differences(found: dict[str, dict[str, Any]]) -> list[str]:
    """How a bundle's definitions, by label and field of `CoreTask`, differ from the published."""
    known = {task.label: vars(task) | {"file": task.file} for task in CORE_TASKS}
    differences = []
    for label, definition in found.items():
        if label not in known:
            differences.append(f"{label} is not a task of CORE")
            continue
        v2 = V2_BASELINES.get(label)  # a bundle may have either version
        differences += [
            f"{label} has {name} {value!r} instead of {known[label][name]!r}"
            for name, value in definition.items()
            if value != known[label][name] and not (name == "baseline" and value == v2)
        ]
    return differences


def unpublished_files(folder: Path) -> list[str]:
    """Labels of tasks whose file differs from the one that the published numbers are for."""
    labels = []
    for task in CORE_TASKS:
        content = (folder / DATA_FOLDER / task.file).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        if not blob.hexdigest().startswith(task.git_blob):
            labels.append(task.label)
    return labels


def read_items(folder: Path, task: CoreTask, max_items: int = -1) -> list[Item]:
    """The items of a task in the published order; the first `max_items` if that is positive."""
    with (folder / DATA_FOLDER / task.file).open(encoding="utf-8") as file:
        items = [json.loads(line) for line in file if line.strip()]
    random.Random(ORDER_SEED).shuffle(items)  # before cropping: a sample, not the head of the file
    return items[:max_items] if max_items > 0 else items


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
    if task.kind == LM:
        # Stripped: a trailing space would be a token that the continuation merges with its first
        # word.
        prompts.insert(0, f"{head}{item['context'].strip()}{task.delimiter}".strip())
    return prompts


def _texts(task: CoreTask, item: Item) -> list[str]:
    """The item with each of its choices or options; the one at index `gold` is correct."""
    # Queries and choices are not stripped: in some tasks a trailing space or newline matters.
    if task.kind == MC:
        return [f"{item['query']}{task.delimiter}{choice}" for choice in item["choices"]]
    contexts = item["context_options"] if task.kind == "schema" else [item["context"].strip()]
    return [f"{context}{task.delimiter}{item['continuation']}" for context in contexts]


# ---- from text to tokens


@dataclass(frozen=True)
class ScoredSequence:
    """A sequence whose tokens from `start` on are scored."""

    tokens: Tokens
    start: int


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

    @property
    def standard_error(self) -> float:
        """Of the accuracy, for items drawn at random (binomial)."""
        return float((self.accuracy * (1 - self.accuracy) / max(1, self.num_items)) ** 0.5)


@dataclass(frozen=True)
class Problem:
    """An item ready to be scored."""

    kind: Kind
    gold: int  # the correct prediction, see `predictions`
    sequences: list[ScoredSequence]
    counts: Counts  # of this item, before scoring


def make_problem(task: CoreTask, item: Item, rows: Sequence[list[int]], limit: int) -> Problem:
    """rows: the tokens of the item's prompts. limit: the model's context length."""
    starts, is_extension = [common_prefix(rows)] * len(rows), True
    if task.kind == "schema":  # the contexts differ, the endings are equal
        end = common_prefix([row[::-1] for row in rows])
        starts = [len(row) - end for row in rows]
    elif task.kind == LM:
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
        num_empty=any(sequence.start >= len(sequence.tokens) for sequence in sequences),
        num_not_extension=not is_extension,
        num_cropped=any(len(row) > limit for row in rows),
    )
    return Problem(task.kind, item.get("gold", 0), sequences, counts)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all rows share."""
    first, last = min(map(tuple, rows)), max(map(tuple, rows))  # all others lie between these
    shortest = min(len(first), len(last))
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)


# ---- evaluation


def mean_centered(results: Sequence[tuple[CoreTask, Counts]]) -> tuple[float, float]:
    """The mean centered accuracy, CORE if these are its tasks in full; and its standard error."""
    values = [centered(counts.accuracy, task.baseline) for task, counts in results]
    errors = [counts.standard_error / (1 - task.baseline) for task, counts in results]
    return sum(values) / len(values), sum(e**2 for e in errors) ** 0.5 / len(errors)


def evaluate_task(
    task: CoreTask,
    items: Sequence[Item],
    indices: Sequence[int],
    encode: Encode,
    logits_at: LogitsAt,
    *,
    limit: int,
    tokens_per_batch: int = 2048,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Counts:
    """Counts of the items at `indices`; the others only serve as few-shot examples.

    limit: the model's context length, to which longer prompts are cropped.
    """
    counts = Counts()
    for first in range(0, len(indices), CHUNK_ITEMS):
        chunk = indices[first : first + CHUNK_ITEMS]
        problems = make_problems(task, items, chunk, encode, limit)
        found = predictions(problems, logits_at, tokens_per_batch)
        counts = sum((problem.counts for problem in problems), counts)
        pairs = zip(problems, found, strict=True)
        counts += Counts(num_right=sum(problem.gold == chosen for problem, chosen in pairs))
        on_progress(first + len(chunk))
    return counts


def make_problems(
    task: CoreTask, items: Sequence[Item], indices: Sequence[int], encode: Encode, limit: int
) -> list[Problem]:
    """The problems of the items at `indices`."""
    prompts = [
        make_prompts(task, items[i], few_shot_examples(items, i, task.num_shots)) for i in indices
    ]
    rows = iter(encode([text for texts in prompts for text in texts]))  # one call is parallel
    return [
        make_problem(task, items[i], [next(rows) for _ in texts], limit)
        for i, texts in zip(indices, prompts, strict=True)
    ]


def predictions(
    problems: Sequence[Problem], logits_at: LogitsAt, tokens_per_batch: int
) -> list[int]:
    """The choice or option that the model prefers, on equal losses the first.

    Language modeling: 0 if every token of the continuation is the most likely one, else -1.
    """
    scores: dict[ScoredSequence, tuple[float, bool]] = {}
    # Similar lengths together: less padding. Longest first: running out of memory shows at once.
    rows = sorted(
        (row for problem in problems for row in _rows(problem)),
        key=lambda row: (len(row.parts[0]), row.num_tokens),
    )
    while rows:
        batch = [rows.pop()]
        num_tokens = batch[0].num_tokens
        while rows and num_tokens + rows[-1].num_tokens <= tokens_per_batch:
            batch.append(rows.pop())
            num_tokens += batch[-1].num_tokens
        scores |= _score(batch, logits_at)
    return [_prediction(problem, scores) for problem in problems]


def _prediction(problem: Problem, scores: dict[ScoredSequence, tuple[float, bool]]) -> int:
    if problem.counts.num_empty:
        # The mean loss is 0 / 0, and the published numbers take choice 0.
        return -1 if problem.kind == LM else 0
    losses, matches = zip(*(scores[sequence] for sequence in problem.sequences), strict=True)
    if problem.kind == LM:
        return 0 if matches[0] else -1
    return losses.index(min(losses))


# ---- scoring


@dataclass(frozen=True)
class _Row:
    """Sequences of an item that are computed together, since they share their first tokens."""

    sequences: list[ScoredSequence]
    parts: list[Tokens]  # the shared prefix, and how each sequence continues it

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.parts))

    def positions(self) -> list[int]:
        """Where in the row the scored tokens are predicted, one sequence after the other."""
        num_shared, found = len(self.parts[0]), []
        offset = 0  # from positions in a sequence to those in the row, after the prefix
        for sequence, part in zip(self.sequences, self.parts[1:], strict=True):
            places = range(sequence.start - 1, num_shared + len(part))
            found += [place + offset * (place >= num_shared) for place in places]
            offset += len(part)
        return found


def _rows(problem: Problem) -> list[_Row]:
    if problem.counts.num_empty:
        return []  # its prediction needs no score
    # Some items list a choice twice: scored once, a tie stays a tie.
    sequences = list(dict.fromkeys(problem.sequences))
    inputs = [sequence.tokens[:-1] for sequence in sequences]  # the last token predicts nothing
    num_shared = common_prefix(inputs)
    if num_shared < MIN_SHARED_TOKENS:
        return [_Row([one], [tokens, ()]) for one, tokens in zip(sequences, inputs, strict=True)]
    return [_Row(sequences, [inputs[0][:num_shared], *(one[num_shared:] for one in inputs)])]


def _score(rows: Sequence[_Row], logits_at: LogitsAt) -> dict[ScoredSequence, tuple[float, bool]]:
    """Mean loss of each span, and whether each of its tokens is the most likely one."""
    sequences = [sequence for row in rows for sequence in row.sequences]
    targets = torch.tensor([t for one in sequences for t in one.tokens[one.start :]])  # (S,)
    positions, first = [], 0
    for row in rows:
        positions += [first + position for position in row.positions()]
        first += row.num_tokens
    # Choices share the position before their first token: its logits are computed once.
    needed, index = torch.tensor(positions).unique(return_inverse=True)
    logits = logits_at([row.parts for row in rows], needed)
    targets, index = targets.to(logits.device), index.to(logits.device)
    losses = (logits.logsumexp(dim=-1)[index] - logits[index, targets]).tolist()
    matches = (logits.argmax(dim=-1)[index] == targets).tolist()
    scores, first = {}, 0
    for one in sequences:
        span = slice(first, first + len(one.tokens) - one.start)
        scores[one] = sum(losses[span]) / len(losses[span]), all(matches[span])
        first = span.stop
    return scores
