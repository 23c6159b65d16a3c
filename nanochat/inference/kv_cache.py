"""A cache of keys and values with a slot for each row, whose lengths may differ.

B batch (rows of a forward pass)  T time  S kept positions  H heads  K kv heads  D head dim
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPTConfig, refuse_past
from nanochat.kernels.attention import attend_causally

CAPACITY_STEP = 128  # positions by which a cache grows


class KVCache:
    """Keys and values of rows, each with its own length; a forward pass is about some of them.

    The rows of a pass stand together, so that a batch is a slice and not a copy.
    keys, values: of each layer (num_rows, capacity, K, D), what one token adds lying together.
    """

    def __init__(
        self, config: GPTConfig, num_rows: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.windows = config, config.windows
        self.lengths = [0] * num_rows
        shape = num_rows, 0, config.n_kv_head, config.head_dim
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.rows = slice(0, num_rows)
        self._starts: Tensor | None = None

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return self.keys[0].size(1)

    def look_at(self, first: int, count: int) -> None:
        """The next forward passes are about rows first ... first + count - 1."""
        self.rows = slice(first, first + count)

    def follow(self, starts: Tensor | None) -> None:
        """Where the rows of a pass go on is read from a tensor (B,) int64; None: from `lengths`.

        A pass then does the same work whatever the tensor holds: one token a row, attention over
        the whole capacity. Room has to be there.
        """
        self._starts = starts

    def make_room(self, num_new: int) -> None:
        """For so many more tokens in each row. Raises UserError past the model's context."""
        self._end = max(self.lengths[self.rows]) + num_new
        refuse_past(self._end, self.config.sequence_len)
        self._grow_to(self._end)

    def positions(self, num_new: int) -> Tensor:
        """(B, T) int64 positions of the next tokens; makes room for them.

        Raises UserError when they pass the end of the model's context.
        """
        lengths, starts = self.lengths[self.rows], self._starts
        if starts is None:
            self.make_room(num_new)
            starts = torch.tensor(lengths, device=self.keys[0].device)
            is_level = min(lengths) == max(lengths)
            needs_mask = not is_level or (num_new > 1 and lengths[0] > 0)
        else:
            lengths, self._end, needs_mask = [0], self.capacity, True
        positions = starts[:, None] + torch.arange(num_new, device=starts.device)
        rows = torch.arange(self.rows.start, self.rows.stop, device=starts.device)[:, None]
        self._places = (rows * self.capacity + positions).flatten()
        self._views = {
            window: self._view(window, min(lengths), positions if needs_mask else None)
            for window in set(self.windows)
        }
        return positions

    def _view(
        self, window: int | None, shortest: int, positions: Tensor | None
    ) -> tuple[int, Tensor | None]:
        """The first key that is seen at all, and (B, 1, T, S) True for what of the rest each sees.

        No mask without positions: one token of rows of one length sees all of it.
        """
        first = 0 if window is None else max(0, shortest + 1 - window)
        if positions is None:
            return first, None
        keys = torch.arange(first, self._end, device=positions.device)
        newest = positions[:, :, None]
        is_seen = keys <= newest
        if window is not None and window < self._end:
            is_seen &= keys > newest - window
        return first, is_seen[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v (B, K, T, D), return attention of q (B, H, T, D) over what is kept."""
        window = self.windows[layer]
        first, is_seen = self._views[window]
        keys, values = (
            self._keep(store[layer], new, first)
            for store, new in ((self.keys, k), (self.values, v))
        )
        if is_seen is None and q.size(2) > 1:  # the beginning of all rows
            return attend_causally(q, k, v, window)
        return F.scaled_dot_product_attention(
            q, keys, values, attn_mask=is_seen, enable_gqa=q.size(1) != k.size(1)
        )

    def _keep(self, store: Tensor, new: Tensor, first: int) -> Tensor:
        """Write (B, K, T, D) to its places; (B, K, S, D) of what its rows hold from `first` on."""
        tokens = new.transpose(1, 2).flatten(0, 1).to(store.dtype)
        store.view(-1, *store.shape[2:]).index_copy_(0, self._places, tokens)
        return store[self.rows, first : self._end].transpose(1, 2)

    def advance(self, counts: Sequence[int]) -> None:
        """The rows of the pass have taken in so many tokens each."""
        for row, count in zip(range(self.rows.start, self.rows.stop), counts, strict=True):
            self.lengths[row] += count

    def copy_row(
        self, source: int, target: int, of: "KVCache | None" = None, length: int | None = None
    ) -> None:
        """Make a row what another one is, of this cache or of another, up to a length."""
        of = of or self
        length = of.lengths[source] if length is None else length
        self._grow_to(length)
        pairs = zip((*self.keys, *self.values), (*of.keys, *of.values), strict=True)
        for own, theirs in pairs:
            own[target, :length] = theirs[source, :length]
        self.lengths[target] = length

    def _grow_to(self, needed: int) -> None:
        if needed <= self.capacity:
            return
        steps = -(-max(needed, 2 * self.capacity) // CAPACITY_STEP)
        extra = min(steps * CAPACITY_STEP, self.config.sequence_len) - self.capacity
        # With zeros: what is masked is multiplied by 0, and 0 times chance may be no number.
        self.keys = [F.pad(store, (0, 0, 0, 0, 0, extra)) for store in self.keys]
        self.values = [F.pad(store, (0, 0, 0, 0, 0, extra)) for store in self.values]
