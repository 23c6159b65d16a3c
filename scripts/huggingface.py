"""A causal language model of Hugging Face transformers, scored as our own are.

S positions  V vocab
"""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanochat.core_eval import Tokens
from nanochat.errors import UserError, one_line
from nanochat.runtime import Runtime


class HuggingFaceModel:
    """A model and its own tokenizer, with the interface that `core_eval.evaluate_task` needs."""

    def __init__(self, model: Any, tokenizer: Any, tokens_per_pass: int) -> None:
        self.model, self.tokenizer, self.tokens_per_pass = model, tokenizer, tokens_per_pass
        config = model.config.get_text_config()  # of models that also see images
        limit = getattr(config, "max_position_embeddings", None)
        self.limit: int = min(limit or tokenizer.model_max_length, tokenizer.model_max_length)
        # The token before the first: some tokenizers only name the end of a text, as GPT-2's.
        first = tokenizer.bos_token_id
        self.bos: int | None = tokenizer.eos_token_id if first is None else first

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text, after the token that begins one, if the tokenizer has any."""
        before = [] if self.bos is None else [self.bos]
        encoded = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [before + ids for ids in encoded]

    @torch.inference_mode()
    def logits_at(self, rows: Sequence[Sequence[Tokens]], positions: Tensor) -> Tensor:
        """Logits (S, V) float32 on the model's device, as `Engine.logits_at` gives them.

        Every sequence is computed in full: masks of shared prefixes differ between architectures.
        """
        places: list[tuple[Tokens, int]] = []  # of each token of all rows: a sequence, where in it
        for prefix, *continuations in rows:
            wholes = [(*prefix, *part) for part in continuations] or [prefix]
            places += [(wholes[0], i) for i in range(len(prefix))]
            places += [(whole, i) for whole in wholes for i in range(len(prefix), len(whole))]
        needed: dict[Tokens, list[tuple[int, int]]] = {}  # by sequence: where, index in the result
        for index, position in enumerate(positions.tolist()):
            sequence, place = places[position]
            needed.setdefault(sequence, []).append((place, index))
        left = sorted(needed, key=len)
        logits = None
        while left:
            count = max(1, self.tokens_per_pass // len(left[-1]))
            left, batch = left[:-count], left[-count:]
            found, indices = self._logits(batch, [needed[sequence] for sequence in batch])
            if logits is None:
                logits = found.new_empty(len(positions), found.size(1))
            logits[indices] = found
        assert logits is not None, "no positions"
        return logits

    def _logits(
        self, batch: list[Tokens], needed: list[list[tuple[int, int]]]
    ) -> tuple[Tensor, list[int]]:
        """Logits at the needed places, and the index of each in the result."""
        # Attention is causal: padding at the end does not reach what is before it.
        tokens = pad_sequence([torch.tensor(sequence) for sequence in batch], batch_first=True)
        first = min(place for places in needed for place, _ in places)
        output = self.model(
            input_ids=tokens.to(self.model.device), use_cache=False,
            logits_to_keep=tokens.size(1) - first,
        )  # fmt: skip
        rows = [row for row, places in enumerate(needed) for _ in places]
        columns = [place - first for places in needed for place, _ in places]
        indices = [index for places in needed for _, index in places]
        return output.logits[rows, columns].float(), indices


def load_huggingface(name: str, runtime: Runtime, tokens_per_pass: int) -> HuggingFaceModel:
    """A folder or a name on the hub. Raises UserError when it cannot be loaded."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "--hf_path needs the package transformers, which is not installed; install it with:"
            " uv sync --extra eval"
        ) from None
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs a line per request
    folder = Path(name).expanduser()
    source = str(folder) if folder.is_dir() else name
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=runtime.compute_dtype
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = one_line(error)[:300]
        raise UserError(f"--hf_path={name} could not be loaded: {reason}") from None
    return HuggingFaceModel(model.eval().to(runtime.device), tokenizer, tokens_per_pass)


def huggingface_identity(name: str) -> str:
    """The name, and for a folder a digest that changes with its files."""
    files = sorted(path for path in Path(name).expanduser().glob("*") if path.is_file())
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{name} {hashlib.sha256(repr(states).encode()).hexdigest()[:12]}" if files else name
