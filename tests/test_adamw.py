import io

import pytest
import torch
from torch import Tensor, nn

from nanochat.adamw import DistAdamW
from nanochat.errors import UserError

SHAPES = [(7, 300), (5,), (3, 4, 2), (1,)]


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(dtype: torch.dtype = torch.float32) -> list[tuple[str, nn.Parameter]]:
    return [(f"p{i}", nn.Parameter(drawn(shape, i).to(dtype))) for i, shape in enumerate(SHAPES)]


def set_gradients(named: list[tuple[str, nn.Parameter]], step: int) -> None:
    for i, (_, parameter) in enumerate(named):
        parameter.grad = drawn(parameter.shape, 1000 * (step + 1) + i).to(parameter.dtype)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_step_equals_that_of_torch(dtype: torch.dtype, weight_decay: float) -> None:
    named, peers = parameters(dtype), parameters(dtype)
    settings = {"betas": (0.8, 0.95), "eps": 1e-10, "weight_decay": weight_decay}
    ours = DistAdamW(
        [{"params": named[:2], "lr": 0.1}, {"params": named[2:], "lr": 0.3}], **settings
    )
    theirs = torch.optim.AdamW(
        [
            {"params": [p for _, p in peers[:2]], "lr": 0.1},
            {"params": [p for _, p in peers[2:]], "lr": 0.3},
        ],
        foreach=False,
        fused=dtype == torch.bfloat16,  # the plain one rounds every intermediate to bfloat16
        **settings,
    )
    for step in range(6):
        for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            group["lr"] = other["lr"] = group["initial_lr"] / (step + 1)
        set_gradients(named, step)
        set_gradients(peers, step)
        ours.step()
        theirs.step()
        for (name, parameter), (_, peer) in zip(named, peers, strict=True):
            torch.testing.assert_close(parameter, peer, atol=1e-6, rtol=1e-6, msg=name)


def test_a_loaded_state_resumes_bitwise_and_is_plain_data() -> None:
    original, resumed = parameters(), parameters()
    first = DistAdamW([{"params": original, "lr": 0.1}])
    second = DistAdamW([{"params": resumed, "lr": 0.1}])
    for step in range(2):
        set_gradients(original, step)
        first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_merged([torch.load(file, weights_only=True)])
    for (_, parameter), (_, other) in zip(original, resumed, strict=True):
        other.data.copy_(parameter.data)
    for step in range(2, 4):
        for named, optimizer in ((original, first), (resumed, second)):
            set_gradients(named, step)
            optimizer.step()
    for (name, parameter), (_, other) in zip(original, resumed, strict=True):
        assert torch.equal(parameter, other), name


def test_a_missing_gradient_counts_as_zero() -> None:
    named = parameters()
    before = [parameter.detach().clone() for _, parameter in named]
    DistAdamW([{"params": named, "lr": 0.1}]).step()
    for (_, parameter), old in zip(named, before, strict=True):
        assert torch.equal(parameter, old)


def test_states_of_missing_ranks_and_of_another_model_are_rejected() -> None:
    optimizer = DistAdamW([{"params": parameters(), "lr": 0.1}])
    with pytest.raises(UserError, match=r"ranks \[0\].*\[0, 1\]"):
        optimizer.load_merged([{**optimizer.state_dict(), "world_size": 2}])
    smaller = DistAdamW([{"params": parameters()[:-1], "lr": 0.1}])
    with pytest.raises(UserError, match="p3"):
        optimizer.load_merged([smaller.state_dict()])
