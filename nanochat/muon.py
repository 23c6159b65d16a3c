"""Muon: momentum, orthogonalized; equal shapes are stacked and the stacks sharded over ranks.

Jordan et al. 2024, kellerjordan.github.io/posts/muon; polar factors by Polar Express,
arXiv 2505.16932; per-neuron variance as in NorMuon, arXiv 2510.05491; cautious weight decay,
arXiv 2411.16085.

N stacked matrices  R rows  C columns
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.adamw import ShardedOptimizer, gradient_of, sorted_by_rank
from nanochat.errors import UserError
from nanochat.kernels.cpu_matmul import symmetric_product

Named = list[tuple[str, nn.Parameter]]

# Polar Express, arXiv 2505.16932, listing 1: odd polynomials a x + b x^3 + c x^5, one for each
# iteration. Dividing x by 1.01 keeps singular values that rounding pushed above 1 within the
# interval in which the iteration converges.
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


def polar_factor(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(N, R, C) -> (N, R, C) with all singular values near 1 and the same singular vectors.

    Computed in `dtype`; bfloat16 is precise enough.
    """
    is_tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if is_tall else matrices).to(dtype)  # the Gram matrix of the shorter side
    # The Frobenius norm bounds the largest singular value; 1e-7 keeps a zero matrix finite.
    x = x / (x.norm(dim=(1, 2), keepdim=True) * SAFETY + 1e-7)
    if x.size(2) >= 2 * x.size(1) and dtype != torch.bfloat16:
        # All five at once would lose the small singular values (see below), two and three do not.
        for polynomials in (POLYNOMIALS[:2], POLYNOMIALS[2:]):
            x = _composition(polynomials, symmetric_product(x, x.mT)) @ x
    else:
        for a, b, c in POLYNOMIALS:
            gram = symmetric_product(x, x.mT)
            x = torch.baddbmm(x, symmetric_product(gram, gram, beta=b, alpha=c), x, beta=a)
    factor: Tensor = (x.mT if is_tall else x).to(matrices.dtype)
    return factor


def _composition(polynomials: list[tuple[float, float, float]], gram: Tensor) -> Tensor:
    """The factor (N, R, R) whose product with x applies all polynomials; gram is x @ x.mT.

    A wide x is multiplied only once: a third less work when C = 4 R. The Gram matrix squares the
    singular values, so that small ones are lost in rounding errors: after a few polynomials it has
    to be computed again, and in bfloat16 it is not precise enough at all (dev/LOG.md, 2026-11-24).
    """
    product = None
    for i, (a, b, c) in enumerate(polynomials):
        factor = symmetric_product(gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)  # a I + b G + c G^2
        product = factor if product is None else symmetric_product(factor, product)
        if i + 1 < len(polynomials):  # the Gram matrix of factor @ x; polynomials of G commute
            gram = symmetric_product(factor, symmetric_product(factor, gram))
    assert product is not None
    return product


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
    """The updates (N, R, C) that Muon subtracts at learning rate 1.

    gradients, momenta: (N, R, C).  variances: (N, R, 1) of the update of each neuron, or None for
    no normalization of rows; momenta and variances are updated in place. dtype: what the polar
    factors are computed in.
    """
    momenta.lerp_(gradients, 1 - momentum)
    updates = polar_factor(gradients.lerp(momenta, momentum), dtype)  # Nesterov
    if variances is not None:
        updates = normalize_rows(updates, variances, variance_decay)
    # Tall matrices: the same change of their outputs per element as square ones.
    return updates.mul_(max(1.0, updates.size(1) / updates.size(2)) ** 0.5)


def normalize_rows(updates: Tensor, variances: Tensor, decay: float) -> Tensor:
    """Updates with each row divided by its running RMS; the norm of each matrix is kept."""
    variances.lerp_(updates.square().mean(dim=2, keepdim=True), 1 - decay)
    norms = updates.norm(dim=(1, 2), keepdim=True)
    normalized = updates * variances.clamp(min=1e-10).rsqrt()
    return normalized.mul_(norms / normalized.norm(dim=(1, 2), keepdim=True).clamp(min=1e-10))


def apply_update(
    parameter: Tensor, update: Tensor, *, lr: float, weight_decay: float, cautious: bool
) -> None:
    """Subtract update (R, C) and weight decay; cautious: decay only where both shrink a weight."""
    if weight_decay:
        decay = parameter * (lr * weight_decay)
        if cautious:
            decay *= (update * parameter) > 0
        parameter -= decay
    parameter.sub_(update, alpha=lr)


class Muon(ShardedOptimizer):
    """Muon over named matrices; each rank updates its share of each stack of equal shapes."""

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
        """parameters: (name, matrix) pairs; variance_decay None: no normalization of rows.

        dtype: what matrices are multiplied in to find polar factors.

        Raises UserError on a parameter that is not a matrix.
        """
        by_shape: dict[torch.Size, Named] = {}
        for name, parameter in parameters:
            if parameter.ndim != 2:
                raise UserError(f"Muon needs matrices; {name} has shape {tuple(parameter.shape)}")
            by_shape.setdefault(parameter.shape, []).append((name, parameter))
        settings = {
            "lr": lr,
            "momentum": momentum,
            "variance_decay": variance_decay,
            "weight_decay": weight_decay,
            "initial_weight_decay": weight_decay,
            "cautious": cautious,
        }
        super().__init__([{**settings, "params": named} for named in by_shape.values()])
        self.dtype = dtype
        self.moments = {_shape(group): self._zero_moments(group) for group in self.param_groups}

    def _zero_moments(self, group: dict[str, Any]) -> dict[str, Tensor]:
        """{"momentum": (N, R, C), "variance": (N, R, 1)} for the matrices that this rank owns."""
        matrix, num_owned = group["params"][0][1].detach(), len(self._owned(group))
        moments = {"momentum": matrix.new_zeros(num_owned, *matrix.shape)}
        if group["variance_decay"] is not None:
            moments["variance"] = matrix.new_zeros(num_owned, matrix.size(0), 1)
        return moments

    def _owned(self, group: dict[str, Any]) -> Named:
        """The matrices of a stack that this rank updates; the last ranks may have fewer or none."""
        share = self.padded_length(len(group["params"])) // self.world_size
        owned: Named = group["params"][self.rank * share : (self.rank + 1) * share]
        return owned

    def _gradient_buffers(self, group: dict[str, Any]) -> list[Tensor]:
        gradients = [gradient_of(parameter) for _, parameter in group["params"]]
        return [_stack(gradients, group, self.padded_length(len(gradients)))]

    def _update_shards(self, group: dict[str, Any], gradients: list[Tensor]) -> None:
        owned, moments = self._owned(group), self.moments[_shape(group)]
        if not owned:
            return
        updates = muon_updates(
            gradients[0][: len(owned)], moments["momentum"], moments.get("variance"),
            momentum=group["momentum"], variance_decay=group["variance_decay"],
            dtype=self.dtype,
        )  # fmt: skip
        for (_, parameter), update in zip(owned, updates, strict=True):
            apply_update(
                parameter, update, lr=group["lr"], weight_decay=group["weight_decay"],
                cautious=group["cautious"],
            )  # fmt: skip

    def _parameter_shards(self, group: dict[str, Any]) -> list[Tensor]:
        owned = [parameter.detach() for _, parameter in self._owned(group)]
        share = self.padded_length(len(group["params"])) // self.world_size
        return [_stack(owned, group, share)]

    def _copy_gathered(self, group: dict[str, Any], buffers: list[Tensor]) -> None:
        for (_, parameter), matrix in zip(group["params"], buffers[0], strict=False):
            parameter.copy_(matrix)  # the buffer may be longer: its end is padding

    def _own_moments(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for group in self.param_groups:
            for i, (name, _) in enumerate(self._owned(group)):
                yield name, {kind: stack[i] for kind, stack in self.moments[_shape(group)].items()}

    def _select_shard(self, full: Tensor) -> Tensor:
        return full  # a matrix is never split

    @staticmethod
    def merge_state_dicts(states: list[dict[str, Any]]) -> dict[str, Any]:
        """{"tensors": {name: {"momentum": (R, C), "variance": (R, 1)}}}.

        Raises UserError when a rank's state is missing.
        """
        by_rank = [state["tensors"] for state in sorted_by_rank(states)]
        return {"tensors": {name: moments for each in by_rank for name, moments in each.items()}}


DistMuon = Muon  # the name in the original nanochat; on one rank both are the same


def _shape(group: dict[str, Any]) -> torch.Size:
    shape: torch.Size = group["params"][0][1].shape
    return shape


def _stack(matrices: list[Tensor], group: dict[str, Any], length: int) -> Tensor:
    """(length, R, C): the matrices, then zero matrices of the group's shape."""
    zero = torch.zeros_like(group["params"][0][1])
    return torch.stack([*matrices, *[zero] * (length - len(matrices))])
