"""A small tokenizer and small models, for the tests of inference and evaluation."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from nanochat import checkpoint_manager, paths, primer
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.kv_cache import KVCache
from nanochat.tokenizer import RustBPETokenizer


@cache
def small_tokenizer() -> RustBPETokenizer:
    """With some merges: words have several tokens, and tokens several letters."""
    texts = [primer.document(seed=0, index=i) for i in range(40)]
    return RustBPETokenizer.train_from_iterator(texts, vocab_size=400)


def ids(text: str) -> list[int]:
    """Token ids of a text whose special tokens are encoded as such."""
    tokenizer, found = small_tokenizer(), []
    names = {name: tokenizer.encode_special(name) for name in tokenizer.get_special_tokens()}
    while text:
        at, name = min(((text + n).index(n), n) for n in names)
        found += tokenizer.encode(text[:at])
        text = text[at:]
        if text:
            found.append(names[name])
            text = text[len(name) :]
    return found


def small_model(seed: int = 0, **changes: object) -> GPT:
    """Two layers with grouped queries; no weight is zero, so that every part has an effect."""
    shape = {
        "sequence_len": 64, "vocab_size": small_tokenizer().get_vocab_size(), "n_layer": 2,
        "n_head": 4, "n_kv_head": 2, "n_embd": 32,
    }  # fmt: skip
    return random_model(GPTConfig(**{**shape, **changes}), seed).eval()


def random_model(config: GPTConfig, seed: int, scale: float = 0.3) -> GPT:
    """A model without zeros, which init_weights sets."""
    model = GPT(config)
    model.init_weights(0)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def save_small_run(stage: str, **changes: object) -> GPT:
    """Save a model and its tokenizer in this base directory, with the primer as its source."""
    model, tokenizer = small_model(**changes), small_tokenizer()  # type: ignore[arg-type]
    tokenizer.save(paths.tokenizer_dir())
    paths.write_atomic(paths.base_dir() / "data" / "source.json", '{"source": "primer"}')
    meta = {
        "tokenizer": tokenizer.content_hash, "settings": {"model_tag": "small"}, "finished": True,
        "model": model.config.to_dict(), "loader": {"step": 1},
    }  # fmt: skip
    folder = paths.checkpoints_dir(stage) / "small"
    checkpoint_manager.save(folder, 1, checkpoint_manager.snapshot(model, []), meta, keep=1)
    return model


class ScriptedModel(torch.nn.Module):
    """A stand-in for a GPT whose next token is a function of all tokens of the row so far.

    The tokens are stored in the KV cache as keys: a cache that mixes up rows or loses a position
    leads to other tokens.
    """

    compute_dtype = torch.float32

    def __init__(self, next_token: Callable[[list[int]], int], sequence_len: int = 512) -> None:
        super().__init__()
        self.next_token = next_token
        self.config = GPTConfig(
            sequence_len=sequence_len, vocab_size=small_tokenizer().get_vocab_size(),
            n_layer=1, n_head=1, n_kv_head=1, n_embd=2,
        )  # fmt: skip
        self.embedding = torch.nn.Embedding(1, 1)
        self.num_forwards = 0

    def __deepcopy__(self, _: object) -> "ScriptedModel":
        return self  # counts the passes of all copies

    def forward(self, tokens: Tensor, kv_cache: KVCache, logits_at: Tensor | None = None) -> Tensor:
        self.num_forwards += 1
        positions = kv_cache.positions(tokens.size(1))
        as_keys = tokens[:, None, :, None].float().expand(-1, 1, -1, 2)
        kv_cache.attend(0, as_keys, as_keys, as_keys)
        logits = torch.zeros(len(tokens), 1, self.config.vocab_size)
        for row, last in enumerate([0] * len(tokens) if logits_at is None else logits_at.tolist()):
            end = int(positions[row, last]) + 1
            seen = kv_cache.keys[0][row, :end, 0, 0].int().tolist()
            logits[row, 0, self.next_token(seen)] = 1.0
        return logits


def follows(*scripts: Sequence[int]) -> Callable[[list[int]], int]:
    """Continues like the script that begins with the tokens so far; 0 after its end.

    A script is a prompt and the complete answer, including forced tokens.
    """

    def next_token(seen: list[int]) -> int:
        found = next(script for script in scripts if list(script[: len(seen)]) == seen)
        return found[len(seen)] if len(seen) < len(found) else 0

    return next_token
