"""A small model that has memorized a few conversations, trained in seconds."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nanochat import checkpoint_manager, paths
from nanochat.chat import Message, render_conversation
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import RustBPETokenizer

EVIL = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1">'
MARKDOWN = "**bold**\n\n```python\nx = 1\n```\n"
LONG = " ".join(f"{word} {number}" for number in range(10, 17) for word in ("tick", "tock"))
ANSWERS: dict[str, str | list[dict[str, str]]] = {
    "Who are you?": "I am nanochat.",
    "What is 347 + 588?": [
        {"type": "python", "text": "347 + 588"},
        {"type": "python_output", "text": "935"},
        {"type": "text", "text": "347 + 588 = 935."},
    ],
    "Smile": "😀 é 汉字",
    "Markdown": MARKDOWN,
    "Evil": EVIL,
    "Count": LONG,
}
DIALOGUE = ["My name is Ann.", "Hello Ann.", "What is my name?", "You are Ann."]
STEPS = 100
LEARNING_RATE = 0.01


def conversations() -> list[list[Message]]:
    """The training data."""
    single = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in ANSWERS.items()
    ]
    roles = ["user", "assistant"] * 2
    dialogue = [{"role": r, "content": text} for r, text in zip(roles, DIALOGUE, strict=True)]
    return [*single, dialogue]


@cache
def model_and_tokenizer() -> tuple[GPT, RustBPETokenizer]:
    """The model in evaluation mode. All tests share it: do not modify it."""
    texts = [*ANSWERS, LONG, MARKDOWN, EVIL, "I am nanochat.", "347 + 588 = 935.", *DIALOGUE]
    tokenizer = RustBPETokenizer.train_from_iterator(texts * 3, 420)
    ids = [render_conversation({"messages": one}, tokenizer)[0] for one in conversations()]
    width = max(map(len, ids))
    rows = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    lengths = torch.tensor([len(row) for row in ids])
    is_text = torch.arange(1, width)[None] < lengths[:, None]
    targets = rows[:, 1:].masked_fill(~is_text, -1)
    config = GPTConfig(
        sequence_len=512, vocab_size=tokenizer.get_vocab_size(), n_layer=2, n_head=2, n_kv_head=2,
        n_embd=64,
    )  # fmt: skip
    model = GPT(config)
    model.init_weights(seed=0)
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    for step in range(1, STEPS + 1):
        loss = model(rows[:, :-1], targets=targets).sum() / is_text.sum()
        loss.backward()
        adam_step([*model.parameters()], moments, step)
    assert loss.item() < 0.5, "the model has not learned its conversations"
    return model.eval(), tokenizer


@torch.no_grad()
def adam_step(
    parameters: list[torch.nn.Parameter], moments: list[tuple[Tensor, Tensor]], step: int
) -> None:
    """Plain Adam, arXiv 1412.6980: torch.optim takes seconds to import."""
    for parameter, (first, second) in zip(parameters, moments, strict=True):
        assert parameter.grad is not None
        first.lerp_(parameter.grad, 0.1)
        second.lerp_(parameter.grad.square(), 0.001)
        scale = (second / (1 - 0.999**step)).sqrt().add_(1e-8)
        parameter -= LEARNING_RATE * (first / (1 - 0.9**step)) / scale
        parameter.grad = None


def save(base: Path) -> None:
    """Save it as the finetuned model of `base`, which must be the current base directory."""
    model, tokenizer = model_and_tokenizer()
    assert paths.base_dir() == base
    tokenizer.save(paths.tokenizer_dir())
    meta = {
        "stage": "sft", "model": model.config.to_dict(), "tokenizer": tokenizer.content_hash,
        "settings": {"model_tag": "d2"}, "finished": True, "progress": 1.0, "loss": 0.0,
        "train_seconds": 1.0, "tokens": 1, "loader": {},
    }  # fmt: skip
    directory = paths.checkpoints_dir("sft") / "d2"
    content = checkpoint_manager.snapshot(model, [])
    checkpoint_manager.save(directory, STEPS, content, meta, keep=1)
