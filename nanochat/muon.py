"""Muon: momentum, orthogonalised; matrices of equal shape are stacked and shared out over ranks.

Jordan et al. 2024, kellerjordan.github.io/posts/muon; polar factors by Polar Express,
arXiv 2505.16932; variance of each neuron as in NorMuon, arXiv 2510.05491; cautious decay,
arXiv 2411.16085.

N stacked matrices  R rows  C columns
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nanochat.adamw import refuse_other_names
from nanochat.errors import UserError

Named = list[tuple[str, nn.Parameter]]

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

LARGE, STRIPS = 512, 4  # rows from which a symmetric product is made in so many parts


def polar_factor(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, R, C) -> (N, R, C) with all singular values near 1 and the same singular vectors.

    Computed in `dtype`, for which bfloat16 is enough.
    """
    is_tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if is_tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) * SAFETY + 1e-7)
    if x.size(2) >= 2 * x.size(1) and dtype != torch.bfloat16:
        for leg in (POLYNOMIALS[:2], POLYNOMIALS[2:]):
            x = _applied_at_once(leg, symmetric_product(x, x.mT)) @ x
    else:
        for a, b, c in POLYNOMIALS:
            gram = symmetric_product(x, x.mT)
            x = torch.baddbmm(x, symmetric_product(gram, gram, beta=b, alpha=c), x, beta=a)
    factor: Tensor = (x.mT if is_tall else x).to(matrices.dtype)
    return factor


def _applied_at_once(polynomials: list[tuple[float, float, float]], gram: Tensor) -> Tensor:
    """(N, R, R) by which x is multiplied to apply the polynomials in turn; gram is x @ x.mT.

    A wide x is multiplied but once, by a third less work when C = 4 R. Small singular values are
    squared in its gram and drown in rounding, so more than a few steps need a new gram, and in
    bfloat16 nothing saves them (dev/LOG.md).
    """
    product = None
    for i, (a, b, c) in enumerate(polynomials):
        factor = symmetric_product(gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else symmetric_product(factor, product)
        if i + 1 < len(polynomials):
            gram = symmetric_product(factor, symmetric_product(factor, gram))
    assert product is not None
    return product


def symmetric_product(a: Tensor, b: Tensor, *, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """alpha * a @ b + beta * a where that is known to be symmetric, (N, R, K) by (N, K, R).

    On a CPU large ones are made in strips that begin at the diagonal, and mirrored: with four
    strips that is five eighths of the work.
    """
    size = a.size(1)
    whole = a.new_empty(a.size(0), size, size)
    addend = a if beta else whole  # which is not read
    if a.device.type != "cpu" or a.dtype == torch.bfloat16 or size < LARGE:
        return torch.baddbmm(addend, a, b, beta=beta, alpha=alpha)
    width = -(-size // STRIPS)
    for first in range(0, size, width):
        rows, behind = slice(first, first + width), slice(first + width, size)
        torch.baddbmm(
            addend[:, rows, first:], a[:, rows], b[:, :, first:],
            beta=beta, alpha=alpha, out=whole[:, rows, first:],
        )  # fmt: skip
        whole[:, behind, rows] = whole[:, rows, behind].mT
    return whole


@torch.no_grad()
def muon_updates(
    gradients: Tensor,
    momenta: Tensor,
    variances: Tensor | None,
    *,
    momentum: float,
    variance_decay: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """What Muon subtracts at rate 1, (N, R, C); momenta and variances move on in place.

    gradients, momenta: (N, R, C).  variances: (N, R, 1) of each neuron's update, or None to leave
    the rows as they are. Tall matrices move by sqrt(R / C) more, so that outputs move alike.
    dtype: what the polar factors are computed in.
    """
    momenta.lerp_(gradients, 1 - momentum)
    updates = polar_factor(gradients.lerp(momenta, momentum), dtype)  # Nesterov
    if variances is not None:
        updates = normalize_rows(updates, variances, variance_decay)
    return updates.mul_(max(1.0, updates.size(1) / updates.size(2)) ** 0.5)


def normalize_rows(updates: Tensor, variances: Tensor, decay: float) -> Tensor:
    """Updates with each row divided by its running size, the norm of each matrix kept."""
    variances.lerp_(updates.square().mean(dim=2, keepdim=True), 1 - decay)
    size = updates.norm(dim=(1, 2), keepdim=True)
    evened = updates * variances.clamp(min=1e-10).rsqrt()
    return evened.mul_(size / evened.norm(dim=(1, 2), keepdim=True).clamp(min=1e-10))


def move(
    parameter: Tensor, update: Tensor, *, lr: float, weight_decay: float, cautious: bool
) -> None:
    """Subtract update (R, C) and decay; cautious: decay only where the update shrinks as well."""
    if weight_decay:
        decay = parameter * (lr * weight_decay)
        if cautious:
            decay *= (update * parameter) > 0
        parameter -= decay
    parameter.sub_(update, alpha=lr)


class Muon:
    """Muon over named matrices; with several ranks each moves its share of every stack."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float = 0.02,
        momentum: float = 0.95,
        variance_decay: float | None = 0.95,
        weight_decay: float = 0.0,
        cautious: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """parameters: (name, matrix) pairs; variance_decay None leaves neurons as they are.

        dtype: what matrices are multiplied in to find polar factors.

        Raises UserError on a parameter that is not a matrix.
        """
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
            "cautious": cautious,
        }
        self.param_groups: list[dict[str, Any]] = [
            {**settings, "params": named} for named in by_shape.values()
        ]
        self.dtype = dtype
        self.rank, self.world_size = self._world()
        self.moments = [self._zero_moments(group) for group in self.param_groups]

    @staticmethod
    def _world() -> tuple[int, int]:
        return 0, 1

    def _zero_moments(self, group: dict[str, Any]) -> dict[str, Tensor]:
        """{"momentum": (N, R, C), "variance": (N, R, 1)} for the matrices that this rank moves."""
        matrix, num_own = group["params"][0][1], len(self._own(group["params"]))
        shapes = {"momentum": matrix.shape, "variance": (matrix.size(0), 1)}
        if group["variance_decay"] is None:
            del shapes["variance"]
        return {
            kind: torch.zeros(num_own, *shape, dtype=matrix.dtype, device=matrix.device)
            for kind, shape in shapes.items()
        }

    def _share(self, num_matrices: int) -> int:
        """How many matrices of a stack a rank moves; the last ranks may have fewer."""
        return -(-num_matrices // self.world_size)

    def _own(self, named: Named) -> Named:
        share = self._share(len(named))
        return named[self.rank * share : (self.rank + 1) * share]

    @torch.no_grad()
    def step(self) -> None:
        """Average the gradients over ranks and move the matrices; no gradient counts as zero."""
        arriving = [self._reduce(group["params"]) for group in self.param_groups]
        leaving = []
        for group, moments, (gradients, work) in zip(
            self.param_groups, self.moments, arriving, strict=True
        ):
            if work is not None:
                work.wait()
            self._move(group, moments, gradients)
            leaving.append(self._gather(group["params"]))
        for named, whole, work in leaving:
            if work is not None:
                work.wait()
            for (_, parameter), matrix in zip(named, whole, strict=False):  # the rest is padding
                parameter.copy_(matrix)

    def _reduce(self, named: Named) -> tuple[Tensor, Any]:
        """This rank's share of the stacked gradients, averaged once the work is done."""
        return torch.stack([_gradient(parameter) for _, parameter in named]), None

    def _gather(self, named: Named) -> tuple[Named, Iterable[Tensor], Any]:
        """What is still to be copied once the work is done: matrices that other ranks moved."""
        return [], [], None

    def _move(self, group: dict[str, Any], moments: dict[str, Tensor], gradients: Tensor) -> None:
        own = self._own(group["params"])
        if not own:
            return
        updates = muon_updates(
            gradients[: len(own)], moments["momentum"], moments.get("variance"),
            momentum=group["momentum"], variance_decay=group["variance_decay"],
            dtype=self.dtype,
        )  # fmt: skip
        for (_, parameter), update in zip(own, updates, strict=True):
            move(
                parameter, update, lr=group["lr"], weight_decay=group["weight_decay"],
                cautious=group["cautious"],
            )  # fmt: skip

    def _own_moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for group, moments in zip(self.param_groups, self.moments, strict=True):
            for i, (name, _) in enumerate(self._own(group["params"])):
                yield name, {kind: stack[i] for kind, stack in moments.items()}

    def state_dict(self) -> dict[str, Any]:
        """The moments of the matrices that this rank moves, by name; they are not copied."""
        tensors = dict(self._own_moments())
        return {"rank": self.rank, "world_size": self.world_size, "tensors": tensors}

    @staticmethod
    def merge_state_dicts(states: list[dict[str, Any]]) -> dict[str, Any]:
        """The layout-independent state from the `state_dict`s of all ranks of one run.

        {"tensors": {name: {"momentum": (R, C), "variance": (R, 1)}}}.
        """
        return {"tensors": {name: own for s in states for name, own in s["tensors"].items()}}

    def load_merged(self, states: list[dict[str, Any]]) -> None:
        """Go on from what all ranks of an earlier run saved, however many they were.

        Raises UserError when it is of another model.
        """
        saved = self.merge_state_dicts(states)["tensors"]
        refuse_other_names(saved, [name for g in self.param_groups for name, _ in g["params"]])
        for name, moments in self._own_moments():
            for kind, tensor in moments.items():
                tensor.copy_(saved[name][kind])


class DistMuon(Muon):
    """Muon whose stacks are shared out over the ranks of torch.distributed (ZeRO-2)."""

    @staticmethod
    def _world() -> tuple[int, int]:
        return dist.get_rank(), dist.get_world_size()

    def _reduce(self, named: Named) -> tuple[Tensor, Any]:
        share = self._share(len(named))
        stack = _stacked([_gradient(p) for _, p in named], named, share * self.world_size)
        own = torch.empty_like(stack[:share])
        work = dist.reduce_scatter_tensor(own, stack, op=dist.ReduceOp.AVG, async_op=True)
        return own, work

    def _gather(self, named: Named) -> tuple[Named, Iterable[Tensor], Any]:
        share = self._share(len(named))
        stack = _stacked([p.detach() for _, p in self._own(named)], named, share)
        whole = stack.new_empty(share * self.world_size, *stack.shape[1:])
        return named, whole, dist.all_gather_into_tensor(whole, stack, async_op=True)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _stacked(matrices: list[Tensor], like: Named, length: int) -> Tensor:
    """Matrices and zeros of their shape, `length` in all."""
    padding = [torch.zeros_like(like[0][1])] * (length - len(matrices))
    return torch.stack([*matrices, *padding])
