"""Muon: momentum, orthogonalized; equal shapes are stacked and the stacks sharded over ranks.

Jordan et al. 2024, kellerjordan.github.io/posts/muon; polar factors by Polar Express,
arXiv 2505.16932; per-neuron variance as in NorMuon, arXiv 2510.05491; cautious weight decay,
arXiv 2411.16085.

N stacked matrices  R rows  C columns
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nanochat.adamw import Bucket, Named, ShardedOptimizer
from nanochat.kernels.cpu_matmul import symmetric_product

BUCKETS_PER_SHAPE = 4  # on several ranks: three quarters of the traffic overlap the backward pass
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

        Raises ValueError on a parameter that is not a matrix.
        """
        by_shape: dict[torch.Size, Named] = {}
        for name, parameter in parameters:
            if parameter.ndim != 2:
                raise ValueError(f"Muon needs matrices; {name} has shape {tuple(parameter.shape)}")
            by_shape.setdefault(parameter.shape, []).append((name, parameter))
        settings = {
            "lr": lr,
            "momentum": momentum,
            "variance_decay": variance_decay,
            "weight_decay": weight_decay,
            "initial_weight_decay": weight_decay,
            "cautious": cautious,
        }
        groups = [{**settings, "params": named} for named in by_shape.values()]
        # A polar factor needs the whole matrix.
        super().__init__(groups, splits_tensors=False, num_parts=BUCKETS_PER_SHAPE)
        # float16 has too narrow a range for the squares of small singular values.
        self.dtype = torch.float32 if dtype == torch.float16 else dtype
        for bucket in self.buckets:
            matrix, num_owned = bucket.named[0][1].detach(), len(bucket.ranges)
            bucket.stacks["momentum"] = matrix.new_zeros(num_owned, *matrix.shape)
            if variance_decay is not None:
                bucket.stacks["variance"] = matrix.new_zeros(num_owned, matrix.size(0), 1)
            for i, name in enumerate(bucket.ranges):
                self.moments[name] = {kind: stack[i] for kind, stack in bucket.stacks.items()}

    def _update(self, bucket: Bucket, gradient: Tensor) -> None:
        group, shape = bucket.group, bucket.named[0][1].shape
        if not bucket.ranges:
            return
        updates = muon_updates(
            gradient.view(-1, *shape)[: len(bucket.ranges)],  # the rest is padding
            bucket.stacks["momentum"], bucket.stacks.get("variance"),
            momentum=group["momentum"], variance_decay=group["variance_decay"],
            dtype=self.dtype,
        )  # fmt: skip
        for shard, update in zip(bucket.shards.values(), updates, strict=True):
            apply_update(
                shard.view(shape), update, lr=group["lr"], weight_decay=group["weight_decay"],
                cautious=group["cautious"],
            )  # fmt: skip


DistMuon = Muon  # the name in the original nanochat, which has a class for one rank and another
