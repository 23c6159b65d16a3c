"""AdamW, and the ZeRO-2 sharding (arXiv 1910.02054) that it shares with Muon.

Gradients are averaged by reduce_scatter, each rank updates its shard of the parameters and keeps
the moments of that shard alone, then the shards are gathered. One rank runs the same code without
collectives.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nanochat.errors import UserError

FUSED_DEVICES = ("cuda", "cpu", "mps", "xpu")  # where torch has a fused AdamW


class Pending(NamedTuple):
    """A tensor that is valid once the collective that fills it is done."""

    tensor: Tensor
    handle: Any = None
    """A `dist.Work`, or None on one rank."""

    def wait(self) -> Tensor:
        """The tensor. NCCL only makes the current stream wait, not the CPU."""
        if self.handle is not None:
            self.handle.wait()
        return self.tensor


class ShardedOptimizer:
    """The pattern of both optimizers: reduce_scatter gradients, update a shard, all_gather.

    A subclass turns each parameter group into buffers whose first dimension is a multiple of the
    number of ranks (`padded_length`); rank r owns the r-th of `world_size` equal shards of each.
    """

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        """param_groups: {"params": [(name, parameter), ...], "lr": rate, ...}.

        Parameters are named so that a checkpoint does not depend on their order. The ranks are
        those of torch.distributed if it is initialized.
        """
        self.param_groups = [{**group, "initial_lr": group["lr"]} for group in param_groups]
        is_distributed = dist.is_initialized()
        self.rank = dist.get_rank() if is_distributed else 0
        self.world_size = dist.get_world_size() if is_distributed else 1
        self._reduced: list[list[Tensor]] | None = None  # averaged gradient shards by group

    # ---- what a subclass defines

    def _gradient_buffers(self, group: dict[str, Any]) -> list[Tensor]:
        """This rank's local gradients, padded; a missing gradient counts as zero."""
        raise NotImplementedError

    def _update_shards(self, group: dict[str, Any], gradients: list[Tensor]) -> None:
        """Update this rank's shards of the parameters, in place."""
        raise NotImplementedError

    def _parameter_shards(self, group: dict[str, Any]) -> list[Tensor]:
        """This rank's updated shards, padded to the length that all ranks have."""
        raise NotImplementedError

    def _copy_gathered(self, group: dict[str, Any], buffers: list[Tensor]) -> None:
        """Copy the gathered buffers into the parameters."""
        raise NotImplementedError

    def _own_moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """(parameter name, its moments by kind) of this rank's shards; views, not copies."""
        raise NotImplementedError

    def _select_shard(self, full: Tensor) -> Tensor:
        """The part of a saved full moment that this rank keeps."""
        raise NotImplementedError

    @staticmethod
    def merge_state_dicts(states: list[dict[str, Any]]) -> dict[str, Any]:
        """The state of all ranks as one that does not depend on the number of ranks."""
        raise NotImplementedError

    # ---- the step

    @torch.no_grad()
    def reduce_gradients(self) -> Tensor:
        """Average the gradients over ranks for the next `step`; no parameter changes.

        Returns this rank's part of the squared norm of the averaged gradient, a float32 scalar on
        the device. Each element is counted on exactly one rank, so the sum over ranks is the
        squared norm of the whole gradient.
        """
        self._reduced = None  # frees an unused reduction before the next one is allocated
        # All collectives are started before the first wait, so that they overlap.
        pending = [
            [self._reduce_scatter(buffer) for buffer in self._gradient_buffers(group)]
            for group in self.param_groups
        ]
        self._reduced = [[reduction.wait() for reduction in group] for group in pending]
        norms = [torch.linalg.vector_norm(shard) for group in self._reduced for shard in group]
        return torch.stack(norms).float().square().sum()  # padding is zero and adds nothing

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters on every rank with the averaged gradients."""
        if self._reduced is None:
            self.reduce_gradients()
        assert self._reduced is not None
        pending = []
        for group, gradients in zip(self.param_groups, self._reduced, strict=True):
            self._update_shards(group, gradients)
            if self.world_size > 1:  # the gather of one group overlaps the update of the next
                shards = self._parameter_shards(group)
                pending.append((group, [self._all_gather(shard) for shard in shards]))
        self._reduced = None
        for group, gathered in pending:
            self._copy_gathered(group, [buffer.wait() for buffer in gathered])

    def padded_length(self, length: int) -> int:
        """The smallest multiple of the number of ranks that is at least `length`."""
        return -(-length // self.world_size) * self.world_size

    def _reduce_scatter(self, buffer: Tensor) -> Pending:
        if self.world_size == 1:
            return Pending(buffer)
        shard = buffer.new_empty(buffer.size(0) // self.world_size, *buffer.shape[1:])
        handle = dist.reduce_scatter_tensor(shard, buffer, op=dist.ReduceOp.AVG, async_op=True)
        return Pending(shard, handle)

    def _all_gather(self, shard: Tensor) -> Pending:
        buffer = shard.new_empty(shard.size(0) * self.world_size, *shard.shape[1:])
        return Pending(buffer, dist.all_gather_into_tensor(buffer, shard, async_op=True))

    # ---- checkpoints

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for group in self.param_groups:
            yield from group["params"]

    def state_dict(self) -> dict[str, Any]:
        """This rank's moments, not copied, and what is needed to merge them with other ranks'."""
        tensors = dict(self._own_moments())
        return {"rank": self.rank, "world_size": self.world_size, "tensors": tensors}

    def load_merged(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Resume from the states of all ranks of an earlier run, of any number; returns the merged.

        Raises UserError when a rank's state is missing or belongs to another model.
        """
        merged = self.merge_state_dicts(states)
        require_same_names(merged["tensors"], [name for name, _ in self._named_parameters()])
        for name, moments in self._own_moments():
            for kind, moment in moments.items():
                moment.copy_(self._select_shard(merged["tensors"][name][kind]))
        return merged


class DistAdamW(ShardedOptimizer):
    """AdamW (arXiv 1711.05101) over named parameters; the update is torch's fused kernel.

    Shards are cut from the flattened parameter, so any shape and any number of ranks work.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        betas: tuple[float, float] = (0.8, 0.95),
        eps: float = 1e-10,
        weight_decay: float = 0.0,
    ) -> None:
        """groups: {"params": [(name, parameter), ...], "lr": rate}; may override other settings."""
        defaults = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([{**defaults, **group} for group in groups])
        self.num_steps = 0
        self.moments = {
            name: {kind: torch.zeros_like(self._select_shard(p)) for kind in ("first", "second")}
            for name, p in self._named_parameters()
        }

    def step(self) -> None:
        """As the base's; the number of steps is needed for the bias correction."""
        self.num_steps += 1
        super().step()

    def _select_shard(self, full: Tensor) -> Tensor:
        """A flat view; that of the last ranks may be shorter or empty."""
        flat = full.detach().view(-1)
        length = self.padded_length(flat.numel()) // self.world_size
        return flat[self.rank * length : (self.rank + 1) * length]

    def _gradient_buffers(self, group: dict[str, Any]) -> list[Tensor]:
        flat = [gradient_of(parameter).reshape(-1) for _, parameter in group["params"]]
        return [_pad(gradient, self.padded_length(gradient.numel())) for gradient in flat]

    def _update_shards(self, group: dict[str, Any], gradients: list[Tensor]) -> None:
        shards, shard_gradients, moments = [], [], []
        for (name, parameter), gradient in zip(group["params"], gradients, strict=True):
            shard = self._select_shard(parameter)
            if shard.numel():  # a tensor of fewer elements than ranks leaves some ranks without
                shards.append(shard)
                shard_gradients.append(gradient[: shard.numel()])
                moments.append(self.moments[name])
        steps_before = float(self.num_steps - 1)  # the kernel counts this step itself
        adamw(
            shards,
            shard_gradients,
            [moment["first"] for moment in moments],
            [moment["second"] for moment in moments],
            [],
            [torch.full((), steps_before, dtype=torch.float32, device=s.device) for s in shards],
            fused=all(shard.device.type in FUSED_DEVICES for shard in shards),
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )

    def _parameter_shards(self, group: dict[str, Any]) -> list[Tensor]:
        return [
            _pad(self._select_shard(p), self.padded_length(p.numel()) // self.world_size)
            for _, p in group["params"]
        ]

    def _copy_gathered(self, group: dict[str, Any], buffers: list[Tensor]) -> None:
        for (_, parameter), buffer in zip(group["params"], buffers, strict=True):
            parameter.copy_(buffer[: parameter.numel()].view_as(parameter))

    def _own_moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        return ((name, dict(moments)) for name, moments in self.moments.items())

    def state_dict(self) -> dict[str, Any]:
        """As the base's, with the number of steps."""
        return {**super().state_dict(), "num_steps": self.num_steps}

    @staticmethod
    def merge_state_dicts(states: list[dict[str, Any]]) -> dict[str, Any]:
        """{"num_steps", "tensors": {name: {"first", "second"}}}, tensors flat and complete.

        Raises UserError when a rank's state is missing.
        """
        states = sorted_by_rank(states)
        tensors = {
            name: {kind: torch.cat([s["tensors"][name][kind] for s in states]) for kind in moments}
            for name, moments in states[0]["tensors"].items()
        }
        return {"num_steps": states[0]["num_steps"], "tensors": tensors}

    def load_merged(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """As the base's, with the number of steps."""
        merged = super().load_merged(states)
        self.num_steps = merged["num_steps"]
        return merged


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient, or zeros where no batch reached the parameter."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _pad(flat: Tensor, length: int) -> Tensor:
    missing = length - flat.numel()
    return F.pad(flat, (0, missing)) if missing else flat  # F.pad copies even when it adds nothing


def sorted_by_rank(states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ranks' states in order. Raises UserError when a rank is missing or duplicated."""
    ranks = sorted(int(state["rank"]) for state in states)
    expected = list(range(states[0]["world_size"] if states else 1))
    if ranks != expected:
        raise UserError(
            f"found optimizer states of ranks {ranks}, but {expected} are needed; restore the"
            " missing optim_*_rank*.pt files or start from scratch with --fresh"
        )
    return sorted(states, key=lambda state: int(state["rank"]))


def require_same_names(saved: Iterable[str], current: Iterable[str]) -> None:
    """Raises UserError when an optimizer state belongs to parameters with other names."""
    differing = sorted(set(saved) ^ set(current))
    if differing:
        raise UserError(
            f"the optimizer state belongs to another model: {', '.join(differing[:3])} exists in"
            " only one of them; restore all optim_*_rank*.pt files of this model or start from"
            " scratch with --fresh"
        )
