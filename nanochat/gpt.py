"""The model, classic recipe: rotary, QK-norm, weightless RMSNorm, ReLU^2, grouped queries.

Parameters are float32; matrices are multiplied in the compute dtype. There is no autocast: every
cast is visible in the code.

B batch  T time  N tokens of joined rows  M tokens with targets  S chosen positions
C channels  H heads  K kv heads  D head dim  V vocab
"""

from dataclasses import asdict, dataclass, fields
from itertools import cycle, islice
from typing import Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanochat.errors import UserError, check_context
from nanochat.kernels.attention import AttentionCache, attend_causally, offset_keys
from nanochat.kernels.cpu_matmul import linear
from nanochat.kernels.cross_entropy import capped_cross_entropy, soft_cap, weighted_cross_entropy
from nanochat.kernels.documents import Documents, attend_within, places_of_targets, taken
from nanochat.kernels.recompute import recomputing
from nanochat.kernels.relu_squared import relu_squared
from nanochat.kernels.rms_norm import rms_norm as norm
from nanochat.kernels.rotary import CosSin, Rotary, rotate

CHANNELS_PER_LAYER = 64  # the aspect ratio: width grows with depth
MAX_DEPTH = 1000  # beyond, it is a typing error: already 49 trillion parameters
GATE_CHANNELS = 12  # of a layer's input, which the gates of value embeddings read
HEAD_DIM_MULTIPLE = 8  # fused attention kernels accept no other head dims


Context = AttentionCache | Documents | None  # what a token attends to besides its own row


class Values(NamedTuple):
    """The value embeddings of a layer and where they are looked up."""

    table: Tensor  # (V, K * D) float32
    tokens: Tensor  # (B, T) int64


@dataclass(frozen=True)
class GPTConfig:
    """Shape and constants of a model; every field is saved in its checkpoints."""

    sequence_len: int = 2048
    vocab_size: int = 65536
    n_layer: int = 20
    n_head: int = 10
    n_kv_head: int = 10
    n_embd: int = 1280
    rope_base: float = 10_000.0
    rms_eps: float = 1e-6  # that of stock engines' implementation of this architecture
    softcap: float = 15.0
    """Logits are capped to +- this; Gemma 2, arXiv 2408.00118."""
    window_pattern: str = "L"
    """Repeated over the layers: S attends to half the context, L to all; the last is always L."""
    value_embeddings: int = 0
    """1: each layer has a table of values of tokens, 2: each second one, and so on, the last
    included; 0: none. After value residuals, arXiv 2410.17897, and modded-nanogpt's records."""
    rotary_share: float = 1.0
    """Of the channels of a head those that are rotated; the others compare tokens at any distance.
    Partial rotary embeddings, as in GPT-NeoX, arXiv 2204.06745."""
    key_offset_heads: int = 0
    """In each layer the first so many kv heads have the key of the token before, so that a query
    finds what followed a token like its own in one layer; after modded-nanogpt's records. They
    begin with the weights of their queries: mimetic initialization, arXiv 2305.09828."""

    def __post_init__(self) -> None:
        for name in ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"{name}={value} must be 1 or more")
        every, heads = self.value_embeddings, self.n_kv_head
        rules = {  # rotary rotates halves of the head
            f"n_head={self.n_head} must divide n_embd={self.n_embd} into heads of even width":
            self.n_embd % self.n_head == self.head_dim % 2 == 0,
            f"n_kv_head={heads} must divide n_head={self.n_head}": self.n_head % heads == 0,
            f"window_pattern={self.window_pattern} must be letters L (a layer that attends to the"
            " full context) and S (to half of it), such as L or SSSL":
            self.window_pattern != "" and set(self.window_pattern) <= set("LS"),
            f"value_embeddings={every} must be 0, or a number of layers such as 2 for each second"
            f" one, with a width of at least {GATE_CHANNELS}":
            every == 0 or (every > 0 and self.n_embd >= GATE_CHANNELS),
            f"rotary_share={self.rotary_share} must be from 0 to 1": 0 <= self.rotary_share <= 1,
            f"key_offset_heads={self.key_offset_heads} must be from 0 to {heads}":
            0 <= self.key_offset_heads <= heads,
        }  # fmt: skip
        for rule, is_kept in rules.items():
            if not is_kept:
                raise UserError(rule)

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The number of latest tokens that each layer attends to; None: all."""
        half = -(-self.sequence_len // 2)
        letters = islice(cycle(self.window_pattern), self.n_layer - 1)
        return (*(half if letter == "S" else None for letter in letters), None)

    def has_values(self, layer: int) -> bool:
        """Whether a layer has value embeddings."""
        every = self.value_embeddings
        return every > 0 and (self.n_layer - 1 - layer) % every == 0

    @classmethod
    def from_depth(
        cls, depth: int, *, vocab_size: int, sequence_len: int, head_dim: int = 128, **others: Any
    ) -> "GPTConfig":
        """The model of a depth: 64 channels per layer, head dim `head_dim` or the nearest legal.

        Legal head dims divide the channels and are multiples of 8 (of 2 if `head_dim` is below 8).
        others: rope_base, window_pattern and the other constants. Raises UserError when the depth
        is not in 1 to 1000 or `head_dim` is below 2.
        """
        if depth < 1:
            raise UserError(f"--depth={depth} must be 1 or more; 4 suits a laptop, 20 eight GPUs")
        if depth > MAX_DEPTH:
            raise UserError(f"--depth={depth} is more than {MAX_DEPTH}, 49 trillion parameters")
        if head_dim < 2:
            raise UserError(f"--head_dim={head_dim} must be 2 or more; 128 is usual")
        n_embd = CHANNELS_PER_LAYER * depth
        multiple = HEAD_DIM_MULTIPLE if head_dim >= HEAD_DIM_MULTIPLE else 2
        legal = [n for n in range(1, n_embd // multiple + 1) if n_embd % (multiple * n) == 0]
        n_head = min(legal, key=lambda n: (abs(n_embd / n - head_dim), n))
        return cls(sequence_len, vocab_size, depth, n_head, n_head, n_embd, **others)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "GPTConfig":
        """A saved config; missing fields get defaults. Raises UserError on an unknown field."""
        unknown = saved.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise UserError(
                f"the checkpoint's model has {', '.join(sorted(unknown))}, which this version does"
                " not know; use the version that trained it"
            )
        return cls(**saved)


class Linear(nn.Linear):
    """A float32 matrix that is multiplied in the dtype of its input; no bias."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out, bias=False)

    def reset_parameters(self) -> None:
        """Nothing: weights come from `GPT.init_weights` or from a checkpoint."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal attention with QK-norm (arXiv 2010.04245) and grouped queries (arXiv 2305.13245)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer, self.window = config, layer, config.windows[layer]
        kv_width = config.n_kv_head * config.head_dim
        self.query = Linear(config.n_embd, config.n_embd)
        self.key = Linear(config.n_embd, kv_width)
        self.value = Linear(config.n_embd, kv_width)
        self.output = Linear(config.n_embd, config.n_embd)
        self.gate = Linear(GATE_CHANNELS, config.n_kv_head) if config.has_values(layer) else None

    def forward(
        self, x: Tensor, cos_sin: CosSin, cache: Context, values: Values | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        q, k, v = self.project(x, cos_sin)
        if values is not None:
            v = v + self.gated(values, x).transpose(1, 2)
        heads = self.config.key_offset_heads
        if cache is None:
            y = attend_causally(q, offset_keys(k, heads), v, self.window)
        elif isinstance(cache, Documents):
            k = offset_keys(k, heads, is_first=cache.positions == 0)
            y = attend_within(q, k, v, self.window, cache)
        else:
            y = cache.attend(self.layer, q, k, v)
        y = y.transpose(1, 2).reshape(x.shape)
        return self.output(y if kept is None else taken(y, kept))

    def gated(self, values: Values, x: Tensor) -> Tensor:
        """Value embeddings of the tokens, (B, T, K, D), scaled by 0 to 3 per head."""
        assert self.gate is not None
        scales = 3 * self.gate(x[..., :GATE_CHANNELS]).sigmoid()
        found = F.embedding(values.tokens, values.table).to(x.dtype)
        heads: Tensor = found.unflatten(-1, (-1, self.config.head_dim)) * scales.unsqueeze(-1)
        return heads

    def project(self, x: Tensor, cos_sin: CosSin) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, D), keys and values (B, K, T, D); the first two rotated, then normed.

        The norm comes after rotary, which keeps lengths: both orders are equal but for rounding.
        """
        (B, T, _), eps = x.shape, self.config.rms_eps
        q, k, v = (
            projection(x).view(B, T, -1, self.config.head_dim).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        q, k = (norm(rotate(x, *cos_sin).transpose(1, 2), eps).transpose(1, 2) for x in (q, k))
        return q, k, v


class MLP(nn.Module):
    """Two matrices with ReLU^2 between them and four times the width inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = Linear(config.n_embd, 4 * config.n_embd)
        self.down = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(relu_squared(self.up(x)))
        return y


class Block(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.eps = config.rms_eps
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos_sin: CosSin, cache: Context, values: Values | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """kept: of (B * T) the tokens (M,) to compute, if not all: the result is (1, M, C)."""
        attended = self.attention(norm(x, self.eps), cos_sin, cache, values, kept)
        x = (x if kept is None else taken(x, kept)) + attended
        y: Tensor = x + self.mlp(norm(x, self.eps))
        return y


def run_block(block: nn.Module, x: Tensor, cos_sin: CosSin, cache: Context, *more: Any) -> Tensor:
    """A function of the block, so that its compiled code serves the blocks of all layers."""
    return block.forward(x, cos_sin, cache, *more)


class GPT(nn.Module):
    """Token ids to logits, or with targets to the loss of each of them."""

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        self.keeps_activations = True
        """False: recompute each block in the backward pass; slower, with much less memory."""
        self.run_block, self.is_compiled, self.recomputes = run_block, False, False
        uninitialized = torch.empty(config.vocab_size, config.n_embd)
        self.embedding = nn.Embedding.from_pretrained(uninitialized, freeze=False)
        values = torch.empty(config.vocab_size, config.n_kv_head * config.head_dim)
        self.value_embeddings = nn.ModuleDict({
            str(layer): nn.Embedding.from_pretrained(values.clone(), freeze=False)
            for layer in range(config.n_layer) if config.has_values(layer)
        })  # fmt: skip
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.unembedding = Linear(config.n_embd, config.vocab_size)
        self.rotary = Rotary(
            config.sequence_len, config.head_dim, config.rope_base, config.rotary_share
        )

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """As nn.Module's, which imports sympy for a model on the meta device: two seconds."""
        return self._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device), recurse)

    def compile_regions(self, *, dynamic: bool, recomputes: bool = False) -> None:
        """Compile the block, once for all layers, and the loss; dynamic: for rows of any length."""
        self.run_block = recomputing(run_block) if recomputes else run_block
        self.run_block = torch.compile(self.run_block, dynamic=dynamic)
        self.is_compiled, self.recomputes = True, recomputes

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Fill every parameter and table; equal seeds give equal weights on every device.

        Matrices are uniform with standard deviation 1 / sqrt(fan in); output projections start at
        zero (arXiv 2203.03466), so that each block starts as the identity; the unembedding almost.
        Value embeddings start as small as a projection's weights, and their gates half open.
        """
        generator = torch.Generator("cpu").manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.output.weight", "mlp.down.weight", "gate.weight")):
                parameter.zero_()
                continue
            draw = torch.empty(parameter.shape, device="cpu")  # each device has its own RNG
            if parameter is self.embedding.weight:
                draw.normal_(0.0, 1.0, generator=generator)
            elif parameter is self.unembedding.weight:
                draw.normal_(0.0, 0.001, generator=generator)  # first loss: ln(vocab_size)
            else:
                bound = (3 / parameter.size(1)) ** 0.5  # uniform +-b has variance b^2 / 3
                draw.uniform_(-bound, bound, generator=generator)
            parameter.copy_(draw)
        blocks, config = cast(Any, self.blocks), self.config
        for attention in (block.attention for block in blocks):  # equal tokens attract
            groups = attention.query.weight.unflatten(0, (config.n_kv_head, -1, config.head_dim))
            keys, heads = attention.key.weight.view_as(groups[:, 0]), config.key_offset_heads
            keys[:heads] = groups[:heads, 0]
        self.rotary.init_tables()

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: AttentionCache | None = None,
        logits_at: Tensor | None = None,
        weights: Tensor | None = None,
        documents: Documents | None = None,
        softmax_factors: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) float32; with targets the loss in nats (B, T) float32 instead.

        With weights (B, T) as well, the sum of the weighted losses, which training minimizes.
        idx: (B, T) int64.  targets: (B, T) int64, -1 where nothing is predicted (loss 0).
        logits_at: (B,) or (B, S) int64, positions to compute logits of: (B, 1 or S, V).
        With a cache, idx continues its contents. documents: idx (1, N) is some rows, joined.
        softmax_factors: (V,), see `weighted_cross_entropy`; only with weights.
        Raises UserError past `sequence_len`.
        """
        T = idx.size(1)
        if documents is not None:
            positions = documents.positions
        elif kv_cache is None:
            check_context(T, self.config.sequence_len)
            positions = torch.arange(T, device=idx.device)
        else:
            positions = kv_cache.positions(T)
        cos_sin = self.rotary.at(positions)
        x = norm(self.embedding(idx).to(self.compute_dtype), self.config.rms_eps)
        is_training, context = torch.is_grad_enabled(), documents or kv_cache
        values = {n: Values(t.weight, idx) for n, t in cast(Any, self.value_embeddings).items()}
        run = self.run_block if is_training else run_block  # inference has graphs of its own
        is_masked = weights is not None and not self.is_compiled
        kept = places_of_targets(targets) if targets is not None and is_masked else None
        for layer, block in enumerate(self.blocks):
            arguments: tuple[Any, ...] = block, x, cos_sin, context, values.get(str(layer))
            if kept is not None and layer == self.config.n_layer - 1:
                arguments = *arguments, kept  # nothing attends to its other tokens
            if self.keeps_activations or not is_training:
                x = run(*arguments)
            else:
                # There is no dropout whose RNG state would matter.
                x = checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)
        x = norm(x, self.config.rms_eps)
        if logits_at is not None:  # before the unembedding, the largest product of a short prompt
            rows = torch.arange(x.size(0), device=x.device)[:, None]
            x = x[rows, logits_at.view(x.size(0), -1)]
        cap = self.config.softcap
        if targets is None:
            return soft_cap(self.unembedding(x), cap)
        x, matrix = x.flatten(0, 1), self.unembedding.weight
        if weights is not None:
            more: dict[str, Any] = {"compiles": True} if self.is_compiled else {}
            if softmax_factors is not None:
                more["softmax_factors"] = softmax_factors
            targets, weights = targets.flatten(), weights.flatten()
            if kept is not None:
                targets, weights = targets[kept], weights[kept]
            return weighted_cross_entropy(x, matrix, targets, weights, cap, **more)
        return capped_cross_entropy(x, matrix, targets.flatten(), cap).view_as(targets)

    def num_parameters(self) -> dict[str, int]:
        """Parameters by group, and their "total"."""
        modules = {
            "embedding": self.embedding, "unembedding": self.unembedding, "matrices": self.blocks,
            "value embeddings": self.value_embeddings,
        }  # fmt: skip
        counts = {
            name: sum(parameter.numel() for parameter in module.parameters())
            for name, module in modules.items() if module is not self.value_embeddings or module
        }  # fmt: skip
        return {**counts, "total": sum(counts.values())}

    def flops_per_token(self) -> float:
        """Model FLOPs of training on one token of a full row, forward and backward.

        6 per weight of a product, and for attention 12 C per token of each layer's window: PaLM,
        arXiv 2204.02311, appendix B.
        """
        counts, config = self.num_parameters(), self.config
        seen = sum(window or config.sequence_len for window in config.windows)
        attention = 12 * config.n_embd * seen
        # Embeddings are lookups and multiply nothing.
        return float(6 * (counts["unembedding"] + counts["matrices"]) + attention)
