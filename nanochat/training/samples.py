"""Texts of a trained model for the report."""

from collections.abc import Sequence

from nanochat.chat import render_for_completion
from nanochat.engine import Engine

SAMPLE_TOKENS = 64
SAMPLE_QUESTIONS = ("Who are you?", "What is 347 + 588?", "What colour is the fox?")


def continuations(engine: Engine, texts: Sequence[str]) -> list[dict[str, str]]:
    """Greedy continuations of plain text, as samples for the report."""
    tokenizer = engine.tokenizer
    bos = tokenizer.get_bos_token_id()
    return _samples(engine, texts, [tokenizer.encode(text, prepend=bos) for text in texts])


def answers(engine: Engine, questions: Sequence[str]) -> list[dict[str, str]]:
    """Greedy answers to questions put in a chat, as samples for the report."""
    prompts = [
        render_for_completion({"messages": [{"role": "user", "content": text}]}, engine.tokenizer)
        for text in questions
    ]
    return _samples(engine, questions, prompts)


def _samples(
    engine: Engine, texts: Sequence[str], prompts: list[list[int]]
) -> list[dict[str, str]]:
    """What the model says to each prompt that its context has room for."""
    context = engine.model.config.sequence_len
    fitting = [(t, ids) for t, ids in zip(texts, prompts, strict=True) if len(ids) < context]
    completions = engine.complete([ids for _, ids in fitting], max_tokens=SAMPLE_TOKENS)
    return [
        {"prompt": text, "answer": engine.tokenizer.decode(one.tokens)}
        for (text, _), one in zip(fitting, completions, strict=True)
    ]
