"""AdamW, its state and work shared out over the ranks (ZeRO-2); plain AdamW on one rank.

Gradients are averaged by reduce_scatter, each rank moves its part of every parameter, and the
parts are gathered again. Parts are cut from the flattened parameter, so any shape and any number
of ranks will do. The update itself is torch's fused one.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nanochat.errors import UserError

SMALL = 1024  # tensors up to this many elements are reduced and kept whole on every rank
FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")


class DistAdamW:
    """AdamW (arXiv 1711.05101) over named parameters; `step` also averages their gradients."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.8, 0.95),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        """groups: {"params": [(name, parameter), ...], "lr": rate} with optional other settings.

        Ranks are those of torch.distributed when it is initialised.
        """
        defaults = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [{**defaults, **group} for group in groups]
        for group in self.param_groups:
            group["initial_lr"] = group["lr"]
        is_many = dist.is_initialized()
        self.rank = dist.get_rank() if is_many else 0
        self.world_size = dist.get_world_size() if is_many else 1
        self.num_steps = 0
        self.moments = {
            name: {kind: torch.zeros_like(self._part(parameter)) for kind in ("first", "second")}
            for name, parameter in self._named()
        }

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for group in self.param_groups:
            yield from group["params"]

    def _is_shared_out(self, tensor: Tensor) -> bool:
        return self.world_size > 1 and tensor.numel() > SMALL

    def _part(self, tensor: Tensor) -> Tensor:
        """This rank's part of a tensor, a flat view; the last ranks' may be shorter or empty."""
        flat = tensor.detach().view(-1)
        if not self._is_shared_out(tensor):
            return flat
        length = -(-flat.numel() // self.world_size)
        return flat[self.rank * length : (self.rank + 1) * length]

    @torch.no_grad()
    def step(self) -> None:
        """Average the gradients over ranks and move the parameters; no gradient counts as zero."""
        self.num_steps += 1
        arriving = {name: self._reduce(parameter) for name, parameter in self._named()}
        leaving = []
        for group in self.param_groups:
            self._move(group, arriving)
            leaving += [self._gather(p) for _, p in group["params"] if self._is_shared_out(p)]
        for parameter, gathered, work in leaving:
            work.wait()
            parameter.copy_(gathered[: parameter.numel()].view_as(parameter))

    def _reduce(self, parameter: nn.Parameter) -> tuple[Tensor, Any]:
        """The averaged gradient of this rank's part, there once the work is done."""
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        flat = gradient.reshape(-1)
        if self.world_size == 1:
            return flat, None
        if not self._is_shared_out(parameter):
            return flat, dist.all_reduce(flat, op=dist.ReduceOp.AVG, async_op=True)
        whole = _padded(flat, -flat.numel() % self.world_size)
        own = whole.new_empty(whole.numel() // self.world_size)
        work = dist.reduce_scatter_tensor(own, whole, op=dist.ReduceOp.AVG, async_op=True)
        return own, work

    def _move(self, group: dict[str, Any], arriving: dict[str, tuple[Tensor, Any]]) -> None:
        parts, gradients, moments = [], [], []
        for name, parameter in group["params"]:
            gradient, work = arriving[name]
            if work is not None:
                work.wait()
            part = self._part(parameter)
            if part.numel():
                parts.append(part)
                gradients.append(gradient[: part.numel()])
                moments.append(self.moments[name])
        before = float(self.num_steps - 1)  # the library counts this step itself
        adamw(
            parts,
            gradients,
            [both["first"] for both in moments],
            [both["second"] for both in moments],
            [],
            [torch.full((), before, dtype=torch.float32, device=part.device) for part in parts],
            fused=all(part.device.type in FUSED_DEVICES for part in parts),
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _gather(self, parameter: nn.Parameter) -> tuple[Tensor, Tensor, Any]:
        """The parameter, its parts of all ranks once the work is done, the work."""
        part = self._part(parameter)
        length = -(-parameter.numel() // self.world_size)
        gathered = part.new_empty(length * self.world_size)
        own = _padded(part, length - part.numel())
        return parameter, gathered, dist.all_gather_into_tensor(gathered, own, async_op=True)

    def state_dict(self) -> dict[str, Any]:
        """This rank's moments, not copied, and what is needed to merge them with other ranks'."""
        return {
            "rank": self.rank,
            "world_size": self.world_size,
            "num_steps": self.num_steps,
            "parted": [name for name, p in self._named() if self._is_shared_out(p)],
            "tensors": {name: dict(both) for name, both in self.moments.items()},
        }

    @staticmethod
    def merge_state_dicts(states: list[dict[str, Any]]) -> dict[str, Any]:
        """The layout-independent state from the `state_dict`s of all ranks of one run.

        {"num_steps", "tensors": {name: {"first", "second"}}}, tensors flat and whole.
        Raises UserError when a rank's is missing.
        """
        states = in_order_of_ranks(states)
        tensors = {
            name: {
                kind: torch.cat([state["tensors"][name][kind] for state in states])
                if name in states[0]["parted"]
                else own[kind]
                for kind in own
            }
            for name, own in states[0]["tensors"].items()
        }
        return {"num_steps": states[0]["num_steps"], "tensors": tensors}

    def load_merged(self, states: list[dict[str, Any]]) -> None:
        """Go on from what all ranks of an earlier run saved, however many they were.

        Raises UserError when a rank's is missing or it is of another model.
        """
        full = self.merge_state_dicts(states)
        refuse_other_names(full["tensors"], self.moments)
        self.num_steps = full["num_steps"]
        for name, parameter in self._named():
            for kind, own in self.moments[name].items():
                own.copy_(self._part(full["tensors"][name][kind].view_as(parameter)))


def _padded(flat: Tensor, missing: int) -> Tensor:
    return torch.nn.functional.pad(flat, (0, missing)) if missing else flat


def in_order_of_ranks(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ranks' states, sorted. Raises UserError when a rank is missing or there twice."""
    ranks = sorted(int(state["rank"]) for state in states)
    expected = list(range(states[0]["world_size"] if states else 1))
    if ranks != expected:
        raise UserError(
            f"optimizer states of ranks {ranks} are there, but {expected} are needed; bring the"
            " missing optim_*_rank*.pt files back or start again with --fresh"
        )
    return sorted(states, key=lambda state: int(state["rank"]))


def refuse_other_names(saved: Iterable[str], own: Iterable[str]) -> None:
    """Raises UserError when an optimizer state belongs to parameters of other names."""
    differing = sorted(set(saved) ^ set(own))
    if differing:
        raise UserError(
            f"the optimizer state is of another model: {', '.join(differing[:3])} in only one of"
            " both; bring all optim_*_rank*.pt files of this model back or start again with --fresh"
        )
