from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nanochat.adamw import DistAdamW
from nanochat.gpt import GPT, GPTConfig
from nanochat.muon import Muon
from nanochat.training.param_groups import build_optimizers
from tests.ranks import run_in_ranks

NUM_STEPS = 4
ADAMW_SHAPES = [(41, 50), (1025,), (1024,), (3, 5), (1,)]
MUON_SHAPES = [(8, 8), (8, 8), (12, 4), (8, 8), (4, 12), (8, 8), (8, 8)]


def model() -> GPT:
    shape = GPTConfig(sequence_len=8, vocab_size=50, n_layer=2, n_head=2, n_kv_head=1, n_embd=192)
    gpt = GPT(shape)
    gpt.init_weights(0)
    return gpt


def test_every_parameter_is_in_exactly_one_group_under_its_name() -> None:
    gpt = model()
    grouped = [
        named
        for optimizer in build_optimizers(gpt)
        for group in optimizer.param_groups
        for named in group["params"]
    ]
    expected = dict(gpt.named_parameters())
    assert sorted(name for name, _ in grouped) == sorted(expected)
    assert all(parameter is expected[name] for name, parameter in grouped)


def test_rates_are_scaled_by_width_and_groups_keep_their_initial_rate() -> None:
    adamw, muon = build_optimizers(
        model(), matrix_lr=0.03, embedding_lr=0.4, unembedding_lr=0.008, weight_decay=0.1
    )
    assert [group["lr"] for group in adamw.param_groups] == pytest.approx([0.8, 0.016])
    assert all(group["lr"] == 0.03 and group["weight_decay"] == 0.1 for group in muon.param_groups)
    for group in [*adamw.param_groups, *muon.param_groups]:
        assert group["initial_lr"] == group["lr"]


def test_a_few_steps_learn_one_batch() -> None:
    gpt = model()
    optimizers = build_optimizers(gpt)
    tokens = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(15):
        loss = gpt(tokens[:, :-1], tokens[:, 1:]).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        for optimizer in optimizers:
            optimizer.step()
        gpt.zero_grad(set_to_none=True)
    assert losses[-1] < 0.3 * losses[0]


def test_reduced_gradients_have_the_norm_of_all_and_move_no_parameter() -> None:
    named, optimizers = build()
    before = [parameter.detach().clone() for _, parameter in named]
    for _, parameter in named:
        parameter.grad = torch.randn_like(parameter)
    squares = [optimizer.reduce_gradients() for optimizer in optimizers]
    assert all(torch.equal(p, old) for (_, p), old in zip(named, before, strict=True))
    norm = nn.utils.get_total_norm([parameter.grad for _, parameter in named])
    torch.testing.assert_close(torch.stack(squares).sum().sqrt(), norm)


def test_steps_are_the_same_to_the_bit_whether_gradients_are_reduced_before_or_in_them() -> None:
    results = []
    for is_reduced_before in (False, True):
        named, optimizers = build()
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for _, parameter in named:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            for optimizer in optimizers:
                if is_reduced_before:
                    optimizer.reduce_gradients()
                optimizer.step()
        results.append([parameter.detach() for _, parameter in named])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_reduction_that_no_step_used_is_replaced_by_the_next() -> None:
    """The loop reduces, finds a gradient that is not finite, and leaves the step out."""
    named, optimizers = build()
    for value in (float("nan"), 0.0):
        for _, parameter in named:
            parameter.grad = torch.full_like(parameter, value)
        squares = [float(optimizer.reduce_gradients()) for optimizer in optimizers]
    assert squares == [0.0, 0.0]


# ---- several ranks: each process runs the steps with its own gradients


def build() -> tuple[list[tuple[str, nn.Parameter]], list[DistAdamW | Muon]]:
    generator = torch.Generator().manual_seed(0)
    named = [
        (f"{kind}{i}", nn.Parameter(torch.randn(shape, generator=generator)))
        for kind, shapes in (("a", ADAMW_SHAPES), ("m", MUON_SHAPES))
        for i, shape in enumerate(shapes)
    ]
    adamw = [pair for pair in named if pair[0].startswith("a")]
    muon = [pair for pair in named if pair[0].startswith("m")]
    groups = [{"params": adamw[:2], "lr": 0.03}, {"params": adamw[2:], "lr": 0.01}]
    return named, [DistAdamW(groups, weight_decay=0.1), Muon(muon, lr=0.02, weight_decay=0.1)]


def run_steps(
    named: list[tuple[str, nn.Parameter]],
    optimizers: list[Any],
    steps: range,
    rank: int,
    ranks: int,
) -> list[float]:
    """Rank r's gradient is the full one plus a term that cancels in the mean over ranks.

    Returns this rank's part of the squared gradient norm at the odd steps, where gradients are
    reduced before the step instead of in it.
    """
    squares = []
    for step in steps:
        generator = torch.Generator().manual_seed(step + 1)
        for _, parameter in named:
            full = torch.randn(parameter.shape, generator=generator)
            other = torch.randn(parameter.shape, generator=generator)
            parameter.grad = full + other * (rank - (ranks - 1) / 2)
        if step % 2:
            squares.append(sum(float(optimizer.reduce_gradients()) for optimizer in optimizers))
        for optimizer in optimizers:
            optimizer.step()
    return squares


def steps_in_rank(
    rank: int, ranks: int, before: Path, first_step: int, last_step: int
) -> dict[str, Any]:
    """One process: resume from the file `before` if it exists."""
    named, optimizers = build()
    if before.exists():
        restore(named, optimizers, torch.load(before, weights_only=True))
    return {
        "squares": run_steps(named, optimizers, range(first_step, last_step), rank, ranks),
        "parameters": {name: parameter.detach() for name, parameter in named},
        "states": [optimizer.state_dict() for optimizer in optimizers],
    }


def restore(named: list[tuple[str, nn.Parameter]], optimizers: list[Any], saved: Any) -> None:
    for name, parameter in named:
        parameter.data.copy_(saved["parameters"][name])
    for optimizer, states in zip(optimizers, saved["states"], strict=True):
        optimizer.load_merged(states)


def run_ranks(folder: Path, ranks: int, steps: range, before: Any = None) -> list[Any]:
    """The results of all ranks after the steps."""
    folder.mkdir()
    if before is not None:
        torch.save(before, folder / "before.pt")
    arguments = folder / "before.pt", steps.start, steps.stop
    return run_in_ranks(steps_in_rank, ranks, folder, *arguments)


def checkpoint(of_ranks: list[Any]) -> dict[str, Any]:
    """Parameters of rank 0, and per optimizer the states of all ranks."""
    states = [list(one) for one in zip(*(saved["states"] for saved in of_ranks), strict=True)]
    return {"parameters": of_ranks[0]["parameters"], "states": states}


def merged(saved: dict[str, Any]) -> list[dict[str, Any]]:
    """The states of the optimizers, merged over ranks."""
    kinds = DistAdamW, Muon
    return [
        kind.merge_state_dicts(states) for kind, states in zip(kinds, saved["states"], strict=True)
    ]


def alone(steps: range, before: Any = None) -> dict[str, Any]:
    named, optimizers = build()
    if before is not None:
        restore(named, optimizers, before)
    squares = run_steps(named, optimizers, steps, 0, 1)
    return {
        "squares": squares,
        "parameters": {name: parameter.detach().clone() for name, parameter in named},
        "states": [[optimizer.state_dict()] for optimizer in optimizers],
    }


def assert_close(ours: Any, expected: Any, where: str = "") -> None:
    assert type(ours) is type(expected), where
    if isinstance(ours, dict):
        assert ours.keys() == expected.keys(), where
        for key in ours:
            assert_close(ours[key], expected[key], f"{where}/{key}")
    elif isinstance(ours, list):
        for i, pair in enumerate(zip(ours, expected, strict=True)):
            assert_close(*pair, f"{where}/{i}")
    elif isinstance(ours, torch.Tensor):
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6, msg=f"{where} differs")
    else:
        assert ours == expected, where


@pytest.mark.parametrize("ranks", [2, 3])
def test_sharded_steps_equal_those_of_one_rank(tmp_path: Path, ranks: int) -> None:
    expected = alone(range(NUM_STEPS))
    of_ranks = run_ranks(tmp_path / "ranks", ranks, range(NUM_STEPS))
    assert_close(merged(checkpoint(of_ranks)), merged(expected))
    squares = torch.tensor([saved["squares"] for saved in of_ranks]).sum(dim=0)
    torch.testing.assert_close(squares, torch.tensor(expected["squares"]))
    for saved in of_ranks:
        assert_close(saved["parameters"], expected["parameters"])
        muon_state = saved["states"][1]
        assert len(muon_state["tensors"]) < len(MUON_SHAPES)  # no rank holds the moments of all


def test_a_run_resumes_from_one_rank_on_two_then_three_then_one(tmp_path: Path) -> None:
    one = alone(range(1))
    two = checkpoint(run_ranks(tmp_path / "two", 2, range(1, 2), one))
    three = checkpoint(run_ranks(tmp_path / "three", 3, range(2, 3), two))
    last = alone(range(3, 4), three)
    expected = alone(range(NUM_STEPS))
    assert_close(last["parameters"], expected["parameters"])
    assert_close(merged(last), merged(expected))
