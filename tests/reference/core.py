"""CORE, one item and one sequence at a time: the reference implementation."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from nanochat.core_eval import CoreTask
from nanochat.gpt import GPT
from nanochat.tokenizer import RustBPETokenizer


def items_of(path: Path, max_items: int) -> list[dict[str, Any]]:
    """Items in the published order, then cropped if `max_items` is positive."""
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(1337).shuffle(items)
    return items[:max_items] if max_items > 0 else items


def is_right(
    task: CoreTask, items: list[dict[str, Any]], index: int, model: GPT, tokenizer: RustBPETokenizer
) -> bool:
    """Whether the model solves one item."""
    item = items[index]
    others = [i for i in range(len(items)) if i != index]
    places = random.Random(1234 + index).sample(others, min(task.num_shots, len(others)))
    head = "".join(example(task, items[i]) + "\n\n" for i in places)
    if task.kind == "multiple_choice":
        texts = [head + item["query"] + task.delimiter + choice for choice in item["choices"]]
    elif task.kind == "schema":
        ends = task.delimiter + item["continuation"]
        texts = [head + option + ends for option in item["context_options"]]
    else:
        prompt = head + item["context"].strip() + task.delimiter
        texts = [prompt.strip(), prompt + item["continuation"]]
    rows = [tokenizer.encode(text, prepend="<|bos|>") for text in texts]
    if task.kind == "schema":
        num_equal = equal_tokens([row[::-1] for row in rows])
        starts = [len(row) - num_equal for row in rows]
    else:
        starts = [equal_tokens(rows)] * len(rows)
    if task.kind == "language_modeling":
        losses, right = span_of(model, rows[1], starts[1])
        return bool(losses) and right
    if any(start == len(row) for start, row in zip(starts, rows, strict=True)):
        return bool(item["gold"] == 0)  # a choice has no token of its own: the first wins
    means = []
    for row, start in zip(rows, starts, strict=True):
        losses, _ = span_of(model, row, start)
        means.append(sum(losses) / len(losses))
    return bool(means.index(min(means)) == item["gold"])


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


def span_of(model: GPT, row: list[int], start: int) -> tuple[list[float], bool]:
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
