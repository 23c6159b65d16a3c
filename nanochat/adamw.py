"""AdamW, its state and work shared out over the ranks (ZeRO-2); plain AdamW on one rank.

Gradients are averaged by reduce_scatter, each rank moves its slice of every parameter, and the
slices are gathered again. The slices are cut from the flattened parameter, so any shape and any
number of ranks will do.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

SMALL = 1024  # tensors up to this many elements are reduced and kept whole on every rank


def world() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """One step of AdamW (arXiv 1711.05101) in place; `step` counts from 1."""
    beta1, beta2 = betas
    parameter.mul_(1 - lr * weight_decay)
    first.lerp_(gradient, 1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    scale = (second / (1 - beta2**step)).sqrt_().add_(eps)
    parameter.addcdiv_(first, scale, value=-lr / (1 - beta1**step))


class DistAdamW:
    """AdamW over named parameters; `step` also averages their gradients over the ranks."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.8, 0.95),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        """groups: {"params": [(name, parameter), ...], "lr": rate} with optional other settings."""
        defaults = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.param_groups = [{**defaults, **group} for group in groups]
        for group in self.param_groups:
            group["initial_lr"] = group["lr"]
        self.rank, self.world_size = world()
        self.num_steps = 0
        self.moments = {
            name: (torch.zeros_like(own), torch.zeros_like(own))
            for name, parameter in self._named()
            for own in [self._own_slice(parameter)]
        }

    def _named(self) -> Iterable[tuple[str, nn.Parameter]]:
        for group in self.param_groups:
            yield from group["params"]

    def _is_shared_out(self, parameter: Tensor) -> bool:
        return self.world_size > 1 and parameter.numel() > SMALL

    def _own_slice(self, tensor: Tensor) -> Tensor:
        """This rank's part of a tensor, flat and padded so that all parts are equally long."""
        flat = tensor.detach().reshape(-1)
        if not self._is_shared_out(tensor):
            return flat
        return _padded(flat, self.world_size).view(self.world_size, -1)[self.rank]

    @torch.no_grad()
    def step(self) -> None:
        """Average the gradients over ranks and move the parameters."""
        self.num_steps += 1
        arriving = {name: self._reduce(parameter) for name, parameter in self._named()}
        leaving = []
        for group in self.param_groups:
            for name, parameter in group["params"]:
                gradient, work = arriving[name]
                if work is not None:
                    work.wait()
                leaving.append(self._move(name, parameter, gradient, group))
        for parameter, gathered, work in filter(None, leaving):
            work.wait()
            parameter.copy_(gathered[: parameter.numel()].view_as(parameter))

    def _reduce(self, parameter: nn.Parameter) -> tuple[Tensor, Any]:
        gradient = parameter.grad
        assert gradient is not None, "every parameter takes part in every step"
        flat = gradient.reshape(-1)
        if self.world_size == 1:
            return flat, None
        if not self._is_shared_out(parameter):
            return flat, dist.all_reduce(flat, op=dist.ReduceOp.AVG, async_op=True)
        whole = _padded(flat, self.world_size)
        own = torch.empty_like(whole[: whole.numel() // self.world_size])
        work = dist.reduce_scatter_tensor(own, whole, op=dist.ReduceOp.AVG, async_op=True)
        return own, work

    def _move(
        self, name: str, parameter: nn.Parameter, gradient: Tensor, group: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Any] | None:
        first, second = self.moments[name]
        own = self._own_slice(parameter)
        adamw_update(
            own, gradient, first, second, step=self.num_steps, lr=group["lr"],
            betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"],
        )  # fmt: skip
        if not self._is_shared_out(parameter):
            return None
        gathered = own.new_empty(own.numel() * self.world_size)
        work = dist.all_gather_into_tensor(gathered, own.contiguous(), async_op=True)
        return parameter.data, gathered, work

    def state_dict(self) -> dict[str, Any]:
        """This rank's moments, with what is needed to cut them anew for other ranks."""
        return {
            "rank": self.rank,
            "world_size": self.world_size,
            "num_steps": self.num_steps,
            "tensors": {
                name: {"first": self.moments[name][0], "second": self.moments[name][1]}
                for name, _ in self._named()
            },
            "sizes": {name: parameter.numel() for name, parameter in self._named()},
            "shared_out": [name for name, p in self._named() if self._is_shared_out(p)],
        }

    def load_merged(self, states: list[dict[str, Any]]) -> None:
        """Take this rank's part of what all ranks of an earlier run saved."""
        self.num_steps = states[0]["num_steps"]
        for name, parameter in self._named():
            for own, kind in zip(self.moments[name], ("first", "second"), strict=True):
                whole = self._whole(states, name, kind)
                own.copy_(self._own_slice(whole.view_as(parameter)))

    @staticmethod
    def _whole(states: list[dict[str, Any]], name: str, kind: str) -> Tensor:
        by_rank = sorted(states, key=lambda state: int(state["rank"]))
        if name not in by_rank[0]["shared_out"]:
            tensor: Tensor = by_rank[0]["tensors"][name][kind]
            return tensor
        parts = [state["tensors"][name][kind] for state in by_rank]
        return torch.cat(parts)[: by_rank[0]["sizes"][name]]


def _padded(flat: Tensor, multiple: int) -> Tensor:
    missing = -flat.numel() % multiple
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat
