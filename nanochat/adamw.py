"""AdamW, and the ZeRO-2 sharding (arXiv 1910.02054) that it shares with Muon.

Gradients are averaged by reduce_scatter, each rank updates its shard of the parameters and keeps
the moments of that shard alone, then the shards are gathered. One rank runs the same code without
collectives.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw

from nanochat.errors import UserError

Named = list[tuple[str, nn.Parameter]]


class Bucket:
    """Parameters of a group as one flat buffer that is cut into equal shards, one per rank."""

    def __init__(
        self, group: dict[str, Any], named: Named, splits_tensors: bool, rank: int, world_size: int
    ) -> None:
        self.group, self.named, self.world_size = group, named, world_size
        self.num_missing = len(named)  # gradients that the backward pass has yet to compute
        self.reduction: tuple[Tensor, Any] | None = None  # this rank's shard, once it was started
        self.sizes = [parameter.numel() for _, parameter in self.named]
        atom = 1 if splits_tensors else self.sizes[0]  # successive elements that stay together
        self.shard_size = -(-sum(self.sizes) // (atom * world_size)) * atom
        self.size = self.shard_size * world_size  # with padding at the end
        self.ranges: dict[str, slice] = {}  # the parts of flat parameters that this rank updates
        start = rank * self.shard_size  # of the shard, relative to each parameter in turn
        for (name, _), size in zip(self.named, self.sizes, strict=True):
            part = slice(max(0, start), min(size, start + self.shard_size))
            if part.start < part.stop:
                self.ranges[name] = part
            start -= size
        self.stacks: dict[str, Tensor] = {}  # moments of all parts, for batched updates

    @property
    def shards(self) -> dict[str, Tensor]:
        """Flat views of the parts of parameters that this rank updates, by name."""
        owned = [(name, p) for name, p in self.named if name in self.ranges]
        return {name: p.detach().view(-1)[self.ranges[name]] for name, p in owned}

    def flatten(self, tensors: Iterable[Tensor], size: int) -> Tensor:
        """The tensors one after the other, padded with zeros."""
        flat = [tensor.reshape(-1) for tensor in tensors]
        missing = size - sum(tensor.numel() for tensor in flat)
        if len(flat) == 1 and not missing:
            return flat[0]  # the common case of one rank needs no copy
        return torch.cat([*flat, self.named[0][1].new_zeros(missing)])

    @torch.no_grad()
    def start_reduction(self, dtype: torch.dtype = torch.float32) -> None:
        """Start to average the gradients over ranks, which travel as `dtype`; frees them."""
        parameters = [parameter for _, parameter in self.named]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        shard, handle = self.flatten(gradients, self.size), None
        if self.world_size > 1:
            buffer = shard if shard.dtype == torch.float64 else shard.to(dtype)
            shard = buffer.new_empty(self.shard_size)
            handle = dist.reduce_scatter_tensor(shard, buffer, op=dist.ReduceOp.AVG, async_op=True)
            for parameter in parameters:
                parameter.grad = None  # the buffer has it
        self.reduction = shard, handle

    def reduced(self) -> Tensor:
        """This rank's shard of the averaged gradient; waits for it."""
        assert self.reduction is not None
        shard, self.reduction = _wait(*self.reduction), None
        return shard.to(self.named[0][1].dtype)


class OverlappedReduction:
    """Averages gradients while the backward pass computes those of earlier layers.

    The buckets start in the same order on every rank, as collectives must, whatever a rank trains
    on: from the last layer to the first, each as soon as its gradients and those before are there.
    """

    def __init__(
        self, optimizers: Sequence["ShardedOptimizer"], parameters: Iterable[nn.Parameter]
    ) -> None:
        """parameters: of the model, layers and what surrounds them in the order of their use."""
        place = {parameter: number for number, parameter in enumerate(parameters)}

        def first_use(bucket: Bucket) -> tuple[int, int]:
            return min((_layer_of(name, place[p]), place[p]) for name, p in bucket.named)

        # The last gradient of a bucket is that of the parameter that is used first.
        queue = [(o, bucket) for o in optimizers for bucket in o.buckets]
        self.queue = sorted(queue, key=lambda one: first_use(one[1]), reverse=True)
        self.is_last = False
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._computed, bucket))
            for _, bucket in queue for _, parameter in bucket.named
        ]  # fmt: skip

    def expect_last(self, is_last: bool = True) -> None:
        """Whether the next backward pass completes the gradients of the step."""
        self.is_last = is_last
        for _, bucket in self.queue:  # those of an attempt that ran out of memory stay started
            bucket.num_missing = len(bucket.named)

    def _computed(self, bucket: Bucket, parameter: Tensor) -> None:
        if bucket.reduction is not None:
            parameter.grad = None  # of a second attempt: the first one's is on its way
        elif self.is_last:
            bucket.num_missing -= 1
            self._start(lambda waiting: waiting.num_missing == 0)

    def _start(self, is_ready: Callable[[Bucket], bool]) -> None:
        for optimizer, bucket in self.queue:
            if bucket.reduction is None:
                if not is_ready(bucket):
                    return
                bucket.start_reduction(optimizer.transport)

    def start_rest(self) -> None:
        """Start what has not: of parameters without a gradient, or on a rank without rows."""
        self._start(lambda _: True)

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()


def _layer_of(name: str, place: int) -> int:
    """The layer that uses a parameter, such as a table of values, or else its place."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), place)


class ShardedOptimizer:
    """The pattern of both optimizers: reduce_scatter gradients, update a shard, all_gather.

    A subclass fills `moments` ({parameter name: {kind: tensor}} of this rank's shards) and
    implements `_update`.
    """

    transport = torch.float32
    """What gradients travel as between ranks; bfloat16 halves the bytes."""

    def __init__(
        self, param_groups: list[dict[str, Any]], *, splits_tensors: bool, num_parts: int = 1
    ) -> None:
        """param_groups: {"params": [(name, parameter), ...], "lr": rate, ...}.

        Parameters are named so that a checkpoint does not depend on their order. The ranks are
        those of torch.distributed if it is initialized. splits_tensors: a shard may begin and end
        within a parameter; else all parameters of a group have equal shapes and are kept whole.
        num_parts: on several ranks, buckets per group at most: more of them overlap more. Where
        tensors are split, each has a bucket of its own.
        """
        self.param_groups = [{**group, "initial_lr": group["lr"]} for group in param_groups]
        is_distributed = dist.is_initialized()
        self.rank = dist.get_rank() if is_distributed else 0
        self.world_size = dist.get_world_size() if is_distributed else 1
        self.num_steps = 0
        self.moments: dict[str, dict[str, Tensor]] = {}
        self._reduced: list[Tensor] | None = None  # averaged gradient shards by bucket
        self._gathers: list[tuple[Bucket, tuple[Tensor, Any]]] = []
        placement = splits_tensors, self.rank, self.world_size
        self.buckets = [
            Bucket(group, part, *placement)
            for group in self.param_groups
            for part in self._parts(group["params"], 0 if splits_tensors else num_parts)
        ]

    def _parts(self, named: Named, num_parts: int) -> list[Named]:
        if self.world_size == 1:  # one batch of matrices is faster than several
            return [named]
        size = 1
        if num_parts:
            size = -(-len(named) // (num_parts * self.world_size)) * self.world_size  # none idles
        return [named[first : first + size] for first in range(0, len(named), size)]

    def _update(self, bucket: Bucket, gradient: Tensor) -> None:
        """Update the bucket's shards in place; gradient: (shard_size,), averaged, padded."""
        raise NotImplementedError

    @torch.no_grad()
    def reduce_gradients(self, scale: float = 1.0) -> Tensor:
        """Average the gradients over ranks for the next `step`; no parameter changes.

        A missing gradient counts as zero. scale: what the gradients were multiplied with, which is
        undone. Returns this rank's part of the squared norm of the averaged gradient, a float32
        scalar on the device. Each element is counted on exactly one rank, so the sum over ranks is
        the squared norm of the whole gradient.
        """
        self._reduced = None  # frees an unused reduction before the next one is allocated
        for bucket in self.buckets:  # all are started before the first wait, so that they overlap
            if bucket.reduction is None:
                bucket.start_reduction(self.transport)
        self._reduced = [bucket.reduced() for bucket in self.buckets]
        if scale != 1.0:
            torch._foreach_div_(self._reduced, scale)
        norms = [torch.linalg.vector_norm(gradient) for gradient in self._reduced]
        return torch.stack(norms).float().square().sum()  # padding is zero and adds nothing

    def step(self, gradient_scale: float = 1.0) -> None:
        """Update the parameters on every rank with the averaged gradients, scaled."""
        self.start_step(gradient_scale)
        self.finish_step()

    @torch.no_grad()
    def start_step(self, gradient_scale: float = 1.0) -> None:
        """Update this rank's shards and start to gather them; `finish_step` completes it."""
        if self._reduced is None:
            self.reduce_gradients()
        assert self._reduced is not None
        if gradient_scale != 1.0:
            torch._foreach_mul_(self._reduced, gradient_scale)
        self.num_steps += 1
        for bucket, gradient in zip(self.buckets, self._reduced, strict=True):
            self._update(bucket, gradient)
            if self.world_size > 1:  # the gather of one bucket overlaps the update of the next
                self._gathers.append((bucket, self._all_gather(bucket)))
        self._reduced = None

    @torch.no_grad()
    def finish_step(self) -> None:
        """Take the other ranks' shards; the parameters are valid afterwards."""
        for bucket, pending in self._gathers:
            buffer = _wait(*pending)[: sum(bucket.sizes)]  # without padding
            for (_, parameter), full in zip(bucket.named, buffer.split(bucket.sizes), strict=True):
                parameter.copy_(full.view_as(parameter))
        self._gathers.clear()

    def _all_gather(self, bucket: Bucket) -> tuple[Tensor, Any]:
        """The updated shards of all ranks, valid once the handle is waited for."""
        shard = bucket.flatten(bucket.shards.values(), bucket.shard_size)
        buffer = shard.new_empty(bucket.size)
        return buffer, dist.all_gather_into_tensor(buffer, shard, async_op=True)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """This rank's moments, not copied, and what is needed to merge them with other ranks'."""
        return {
            "rank": self.rank,
            "world_size": self.world_size,
            "num_steps": self.num_steps,
            "tensors": {name: dict(moments) for name, moments in self.moments.items()},
        }

    @staticmethod
    def merge_state_dicts(states: list[dict[str, Any]]) -> dict[str, Any]:
        """{"num_steps", "tensors": {name: {kind: tensor}}}, the same for any number of ranks.

        states: the `state_dict`s of all ranks of one run. Tensors that were split are flat.
        Raises UserError when a rank is missing or duplicated.
        """
        ranks = sorted(int(state["rank"]) for state in states)
        world_size = states[0]["world_size"] if states else 1
        expected = list(range(min(world_size, len(states) + 1)))  # it may be damaged
        if ranks != expected:
            raise UserError(
                f"found optimizer states of ranks {ranks}, but {expected} are needed; restore the"
                " missing optim_*_rank*.pt files or start from scratch with --fresh"
            )
        parts: dict[str, dict[str, list[Tensor]]] = {}
        for state in sorted(states, key=lambda state: int(state["rank"])):
            for name, moments in state["tensors"].items():
                for kind, moment in moments.items():
                    parts.setdefault(name, {}).setdefault(kind, []).append(moment)
        tensors = {
            name: {kind: p[0] if len(p) == 1 else torch.cat(p) for kind, p in moments.items()}
            for name, moments in parts.items()
        }
        return {"num_steps": states[0].get("num_steps", 0), "tensors": tensors}

    def load_merged(self, states: list[dict[str, Any]]) -> None:
        """Resume from the states of all ranks of an earlier run, whatever their number.

        Raises UserError when a rank is missing or the state belongs to another model.
        """
        merged = self.merge_state_dicts(states)
        self.num_steps, saved = merged["num_steps"], merged["tensors"]
        names = {name for group in self.param_groups for name, _ in group["params"]}
        if differing := sorted(set(saved) ^ names):
            raise UserError(
                f"the optimizer state belongs to another model: {', '.join(differing[:3])} exists"
                " in only one of them; restore all optim_*_rank*.pt files of this model or start"
                " from scratch with --fresh"
            )
        for bucket in self.buckets:
            for name, part in bucket.ranges.items():
                for kind, moment in self.moments[name].items():
                    found = saved[name][kind]
                    found = found if found.shape == moment.shape else found[part]
                    # copy_ would repeat a single value, and convert other types.
                    if (found.shape, found.dtype) != (moment.shape, moment.dtype):
                        raise UserError(f"the saved moments of {name} have another shape or type")
                    moment.copy_(found)


class DistAdamW(ShardedOptimizer):
    """AdamW (arXiv 1711.05101) over named parameters; the update is torch's fused kernel."""

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
        super().__init__([{**defaults, **group} for group in groups], splits_tensors=True)
        for bucket in self.buckets:
            for name, shard in bucket.shards.items():
                self.moments[name] = {k: torch.zeros_like(shard) for k in ("first", "second")}

    def _update(self, bucket: Bucket, gradient: Tensor) -> None:
        group, start = bucket.group, 0
        for name, shard in bucket.shards.items():
            moments, size = self.moments[name], shard.numel()
            # The kernel counts this step itself.
            step = torch.full((), self.num_steps - 1, dtype=torch.float32, device=shard.device)
            adamw(
                [shard], [gradient[start : start + size]], [moments["first"]], [moments["second"]],
                [], [step], fused=True, amsgrad=False, maximize=False,
                beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"],
                weight_decay=group["weight_decay"], eps=group["eps"],
            )  # fmt: skip
            start += size


def _wait(tensor: Tensor, handle: Any) -> Tensor:
    """The tensor that a collective fills; NCCL makes only the current stream wait."""
    if handle is not None:
        handle.wait()
    return tensor
