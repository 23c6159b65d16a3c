import itertools
import random

import pytest
import torch

from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.inference import shared_prefix
from nanochat.inference.shared_prefix import Row
from tests.small_model import small_model, small_tokenizer

SHAPES = [[5], [5, 3], [9, 1, 4, 2], [1, 7, 7], [0, 6, 2], [30], [12, 0, 3], [0, 20]]
"""Lengths of the parts of each row: alone, shared, empty prefixes, empty continuations."""


def some_rows(shapes: list[list[int]], seed: int = 0) -> list[Row]:
    rng = random.Random(seed)
    return [[[rng.randrange(300) for _ in range(n)] for n in shape] for shape in shapes]


def expected_logits(model: GPT, rows: list[Row]) -> torch.Tensor:
    """Of all tokens, (N, V), one sequence at a time."""
    found = []
    for prefix, *continuations in rows:
        if prefix:
            found.append(model(torch.tensor([prefix]))[0])
        for continuation in filter(None, continuations):
            found.append(model(torch.tensor([[*prefix, *continuation]]))[0, len(prefix) :])
    return torch.cat(found)


@pytest.mark.parametrize(
    "changes", [{}, {"n_kv_head": 4, "key_offset_heads": 3}, {"window_pattern": "SL"}]
)
@torch.no_grad()
def test_logits_are_those_of_each_sequence_alone(changes: dict[str, object]) -> None:
    model = small_model(sequence_len=36, n_layer=3, **changes)
    rows = some_rows(SHAPES)
    expected = expected_logits(model, rows)
    at = torch.arange(len(expected))
    torch.testing.assert_close(shared_prefix.logits_at(model, rows, at), expected)
    for row in rows:  # alone, in every order of its continuations
        prefix, *continuations = row
        for order in itertools.islice(itertools.permutations(continuations), 3):
            changed = [prefix, *order]
            alone = expected_logits(model, [changed])
            at = torch.arange(len(alone))
            torch.testing.assert_close(shared_prefix.logits_at(model, [changed], at), alone)


@torch.no_grad()
def test_positions_select_logits_also_repeatedly() -> None:
    model, rows = small_model(), some_rows(SHAPES)
    at = torch.tensor([7, 3, 3, 20])
    found = Engine(model, small_tokenizer()).logits_at(rows, at)
    torch.testing.assert_close(found, expected_logits(model, rows)[at])


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    model = small_model(sequence_len=8)
    shared_prefix.logits_at(model, some_rows([[5, 3, 3, 3]]), torch.tensor([0]))
    with pytest.raises(UserError, match="9 tokens are more than the model's context of 8"):
        shared_prefix.logits_at(model, some_rows([[5, 3, 4]]), torch.tensor([0]))
