"""Muon: momentum, orthogonalised; matrices of equal shape are stacked and shared out over ranks.

Jordan et al. 2024, kellerjordan.github.io/posts/muon; polar factors by Polar Express,
arXiv 2505.16932; variance of each neuron as in NorMuon, arXiv 2510.05491; cautious decay,
arXiv 2411.16085.

N stacked matrices  R rows  C columns
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.errors import UserError

# Polar Express, arXiv 2505.16932, listing 1: odd polynomials (a, b, c), one for each iteration,
# divided by a safety factor of 1.01 so that rounding cannot push a singular value out of bounds.
SAFETY = 1.01
POLYNOMIALS = [
    (a / SAFETY, b / SAFETY**3, c / SAFETY**5)
    for a, b, c in (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    )
]


def polar_factor(matrices: Tensor) -> Tensor:
    """(N, R, C) -> (N, R, C) with all singular values near 1 and the same singular vectors.

    In bfloat16 on a GPU; in float32 on a CPU, where bfloat16 is slower.
    """
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices.float()
    is_tall = x.size(1) > x.size(2)
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) * SAFETY + 1e-7)
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return (x.mT if is_tall else x).to(matrices.dtype)


def muon_update(
    parameters: Tensor,
    gradients: Tensor,
    momenta: Tensor,
    variances: Tensor,
    *,
    lr: float,
    momentum: float,
    variance_decay: float,
    weight_decay: float,
) -> None:
    """One step of Muon in place.

    parameters, gradients, momenta: (N, R, C).  variances: (N, R, 1), of each neuron's update.
    """
    momenta.lerp_(gradients, 1 - momentum)
    updates = polar_factor(gradients.lerp(momenta, momentum))  # Nesterov
    updates = even_out(updates, variances, variance_decay)
    updates *= max(1.0, updates.size(1) / updates.size(2)) ** 0.5
    if weight_decay:
        shrinks = (updates * parameters) > 0  # cautious: only where the update shrinks it as well
        parameters -= lr * weight_decay * parameters * shrinks
    parameters.sub_(updates, alpha=lr)


def even_out(updates: Tensor, variances: Tensor, decay: float) -> Tensor:
    """Updates with each row divided by its running size, the norm of each matrix kept."""
    variances.lerp_(updates.square().mean(dim=2, keepdim=True), 1 - decay)
    size = updates.norm(dim=(1, 2), keepdim=True)
    evened = updates * variances.clamp(min=1e-10).rsqrt()
    return evened * (size / evened.norm(dim=(1, 2), keepdim=True).clamp(min=1e-10))


class Muon:
    """Muon over named matrices; with several ranks each moves its share of every stack."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        variance_decay: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        """parameters: (name, matrix) pairs. Raises UserError on one that is not a matrix."""
        by_shape: dict[tuple[int, ...], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in parameters:
            if parameter.ndim != 2:
                raise UserError(f"Muon moves matrices; {name} has shape {tuple(parameter.shape)}")
            by_shape.setdefault(tuple(parameter.shape), []).append((name, parameter))
        settings = {
            "lr": lr,
            "initial_lr": lr,
            "momentum": momentum,
            "variance_decay": variance_decay,
            "weight_decay": weight_decay,
            "initial_weight_decay": weight_decay,
        }
        self.param_groups: list[dict[str, Any]] = [
            {**settings, "params": named} for named in by_shape.values()
        ]
        self.rank, self.world_size = self._world()
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        for group in self.param_groups:
            for name, parameter in self._own(group["params"]):
                column = parameter.detach()[:, :1]
                self.moments[name] = torch.zeros_like(parameter), torch.zeros_like(column)

    @staticmethod
    def _world() -> tuple[int, int]:
        return 0, 1

    def _share(self, num_matrices: int) -> int:
        """How many matrices of a stack a rank moves; the last ranks may have fewer."""
        return -(-num_matrices // self.world_size)

    def _own(self, named: list[tuple[str, nn.Parameter]]) -> list[tuple[str, nn.Parameter]]:
        share = self._share(len(named))
        return named[self.rank * share : (self.rank + 1) * share]

    @torch.no_grad()
    def step(self) -> None:
        """Average the gradients over ranks and move the matrices."""
        arriving = [self._reduce(group["params"]) for group in self.param_groups]
        leaving = []
        for group, (gradients, work) in zip(self.param_groups, arriving, strict=True):
            if work is not None:
                work.wait()
            leaving.append(self._gather(group["params"], self._move(group, gradients)))
        for named, moved, work in leaving:
            if work is not None:
                work.wait()
            for (_, parameter), matrix in zip(named, moved, strict=False):  # the rest is padding
                parameter.copy_(matrix)

    def _reduce(self, named: list[tuple[str, nn.Parameter]]) -> tuple[Tensor, Any]:
        """This rank's share of the stacked gradients, averaged over ranks."""
        return torch.stack([_gradient(parameter) for _, parameter in named]), None

    def _gather(
        self, named: list[tuple[str, nn.Parameter]], moved: Tensor
    ) -> tuple[list[tuple[str, nn.Parameter]], Tensor, Any]:
        """The moved matrices of all ranks."""
        return named, moved, None

    def _move(self, group: dict[str, Any], gradients: Tensor) -> Tensor:
        own = self._own(group["params"])
        if not own:
            return gradients.new_zeros(gradients.shape)
        parameters = torch.stack([parameter.detach() for _, parameter in own])
        momenta = torch.stack([self.moments[name][0] for name, _ in own])
        variances = torch.stack([self.moments[name][1] for name, _ in own])
        muon_update(
            parameters, gradients[: len(own)], momenta, variances, lr=group["lr"],
            momentum=group["momentum"], variance_decay=group["variance_decay"],
            weight_decay=group["weight_decay"],
        )  # fmt: skip
        for (name, _), momentum, variance in zip(own, momenta, variances, strict=True):
            self.moments[name] = momentum, variance
        return parameters

    def state_dict(self) -> dict[str, Any]:
        """The moments of the matrices that this rank moves."""
        return {
            "tensors": {
                name: {"momentum": momentum.clone(), "variance": variance.clone()}
                for name, (momentum, variance) in self.moments.items()
            }
        }

    def load_merged(self, states: list[dict[str, Any]]) -> None:
        """Take what this rank needs of what all ranks of an earlier run saved."""
        saved = {name: facts for state in states for name, facts in state["tensors"].items()}
        for name in self.moments:
            self.moments[name] = saved[name]["momentum"], saved[name]["variance"]


class DistMuon(Muon):
    """Muon whose stacks are shared out over the ranks (ZeRO-2)."""

    @staticmethod
    def _world() -> tuple[int, int]:
        return dist.get_rank(), dist.get_world_size()

    def _reduce(self, named: list[tuple[str, nn.Parameter]]) -> tuple[Tensor, Any]:
        gradients = [_gradient(parameter) for _, parameter in named]
        share = self._share(len(named))
        missing = share * self.world_size - len(gradients)
        stack = torch.stack(gradients + [torch.zeros_like(gradients[0])] * missing)
        own = stack.new_empty(share, *stack.shape[1:])
        work = dist.reduce_scatter_tensor(own, stack, op=dist.ReduceOp.AVG, async_op=True)
        return own, work

    def _gather(
        self, named: list[tuple[str, nn.Parameter]], moved: Tensor
    ) -> tuple[list[tuple[str, nn.Parameter]], Tensor, Any]:
        share = self._share(len(named))
        padding = moved.new_zeros(share - len(moved), *moved.shape[1:])
        whole = moved.new_empty(share * self.world_size, *moved.shape[1:])
        own = torch.cat([moved, padding])
        return named, whole, dist.all_gather_into_tensor(whole, own, async_op=True)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every parameter takes part in every step"
    return parameter.grad
