"""CORE, one item and one sequence at a time: the reference implementation."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from nanochat.core_eval import CoreTask
from nanochat.gpt import GPT
from nanochat.tokenizer import RustBPETokenizer

Items = list[dict[str, Any]]


def items_of(path: Path, max_items: int) -> Items:
    """Items in the published order, then cropped if `max_items` is positive."""
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(1337).shuffle(items)
    return items[:max_items] if max_items > 0 else items


def core(accuracies: dict[str, float], metadata: Path) -> float:
    """Mean centered accuracy, with the random baselines of a metadata file."""
    with metadata.open(encoding="utf-8") as file:
        percent = {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)}
    values = []
    for label, accuracy in accuracies.items():
        values.append((accuracy - 0.01 * percent[label]) / (1.0 - 0.01 * percent[label]))
    return sum(values) / len(values)


def prediction(
    task: CoreTask, items: Items, index: int, model: GPT, tokenizer: RustBPETokenizer
) -> int:
    """The preferred choice; for language modeling 0 if the continuation is predicted, else -1."""
    rows, starts = spans_of(task, texts_of(task, items, index), tokenizer)
    if task.kind == "language_modeling":
        losses, right = score_span(model, rows[0], starts[0])
        return 0 if losses and right else -1
    if any(start == len(row) for start, row in zip(starts, rows, strict=True)):
        return 0  # a choice has no token of its own: the first wins
    means = []
    for row, start in zip(rows, starts, strict=True):
        losses, _ = score_span(model, row, start)
        means.append(sum(losses) / len(losses))
    return means.index(min(means))


def texts_of(task: CoreTask, items: Items, index: int) -> list[str]:
    """The prompts of an item; for language modeling without and with the continuation."""
    item = items[index]
    others = [i for i in range(len(items)) if i != index]
    places = random.Random(1234 + index).sample(others, min(task.num_shots, len(others)))
    head = "".join(example(task, items[i]) + "\n\n" for i in places)
    if task.kind == "multiple_choice":
        return [head + item["query"] + task.delimiter + choice for choice in item["choices"]]
    if task.kind == "schema":
        ends = task.delimiter + item["continuation"]
        return [head + option + ends for option in item["context_options"]]
    prompt = head + item["context"].strip() + task.delimiter
    return [prompt.strip(), prompt + item["continuation"]]


def spans_of(
    task: CoreTask, texts: list[str], tokenizer: RustBPETokenizer
) -> tuple[list[list[int]], list[int]]:
    """The tokens of each sequence that is scored, and where its span starts."""
    rows = [tokenizer.encode(text, prepend="<|bos|>") for text in texts]
    if task.kind == "schema":
        num_equal = equal_tokens([row[::-1] for row in rows])
        return rows, [len(row) - num_equal for row in rows]
    starts = [equal_tokens(rows)] * len(rows)
    if task.kind == "language_modeling":
        return rows[1:], starts[1:]
    return rows, starts


def example(task: CoreTask, item: dict[str, Any]) -> str:
    """A shot: the item with its right answer."""
    if task.kind == "multiple_choice":
        left, right = item["query"], item["choices"][item["gold"]]
    elif task.kind == "schema":
        left, right = item["context_options"][item["gold"]], item["continuation"]
    else:
        left, right = item["context"].strip(), item["continuation"]
    return str(left + task.delimiter + right)


def equal_tokens(rows: list[list[int]]) -> int:
    """Number of leading tokens that all rows share."""
    count = 0
    while all(count < len(row) and row[count] == rows[0][count] for row in rows):
        count += 1
    return count


def score_span(model: GPT, row: list[int], start: int) -> tuple[list[float], bool]:
    """Loss of each token from `start` on, and whether each was the most likely."""
    cut = max(0, len(row) - model.config.sequence_len)
    row, start = row[cut:], max(1, start - cut)
    with torch.no_grad():
        logits = model(torch.tensor([row]))[0]
    losses, right = [], True
    for place in range(start, len(row)):
        before, token = logits[place - 1], torch.tensor(row[place])
        losses.append(float(F.cross_entropy(before, token).double()))
        right = right and int(before.argmax()) == row[place]
    return losses, right
