"""Show what a stage trains on: decoded rows, with the tokens that count for the loss in color.

python -m scripts.show_data --stage=sft
python -m scripts.show_data --stage=mid --conversations my_chats.jsonl
python -m scripts.show_data --stage=rl --num=2 --color=never
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat.configurator import at_least, parse, run_command
from scripts.options import MixtureOptions


@dataclass(frozen=True)
class Options:
    """Show what a stage trains on: rows as the model gets them, from the text, the tokenizer and
    the data sets that are here; no model is needed. Tokens that count for the loss are green, or
    between « and » without color."""

    stage: Literal["base", "mid", "sft", "rl"] = "sft"
    """Stage of training. rl shows prompts, and the answers that would be rewarded."""
    num: Annotated[int, at_least(1)] = 4
    """Rows to show."""
    max_seq_len: Annotated[int, at_least(16)] = 512
    """Tokens of a row; conversations and documents are packed or cut to it."""
    conversations: str = MixtureOptions.conversations
    """Your own conversations, as in scripts.chat_sft."""
    identity_file: str = MixtureOptions.identity_file
    """Conversations about the model itself, as in scripts.chat_sft."""
    mixture: Literal["auto", "primer", "public", "none"] = MixtureOptions.mixture
    """Conversations besides your own, as in scripts.chat_sft."""
    color: Literal["auto", "always", "never"] = "auto"
    """auto: on a terminal."""
    seed: int = 42
    """Seed of the order."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from nanochat import dataset
from nanochat.chat import render_conversation, render_for_completion
from nanochat.data import chat_batches
from nanochat.data.batch import Batch
from nanochat.dataloader import tokenizing_distributed_data_loader
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer
from scripts import chat_rl, chat_sft, mid_train
from scripts.training import chosen_mixture, own_conversations

Row = list[tuple[int, bool]]  # token, whether it counts for the loss
STYLES = {True: "green", False: "dim"}


def main(argv: list[str] | None = None) -> None:
    options, tokenizer = parse(Options, argv), get_tokenizer()
    colors = {"auto": None, "always": True, "never": False}[options.color]
    console = Console(force_terminal=colors, no_color=colors is False, highlight=False)
    for number, row in enumerate(rows_of(options, tokenizer), 1):
        counted = sum(counts for _, counts in row)
        console.rule(f"{options.stage} {number}: {len(row)} tokens, {counted} count for the loss")
        text = as_text(row, tokenizer, uses_color=console.color_system is not None)
        console.print(text, soft_wrap=True)


def rows_of(options: Options, tokenizer: RustBPETokenizer) -> Iterator[Row]:
    """The first rows of the stage's first step."""
    source = dataset.current_source()
    if options.stage == "rl":
        task, _ = chat_rl.prompts(chat_rl.Options(seed=options.seed), source)
        for index in range(min(options.num, len(task))):
            conversation = task[index]
            prompt = render_for_completion(conversation, tokenizer)
            answer = render_conversation(conversation, tokenizer)[0][len(prompt) :]
            yield [(token, False) for token in prompt] + [(token, True) for token in answer]
        return
    shape: dict[str, Any] = {
        "sequence_len": options.max_seq_len, "rank": 0, "world_size": 1, "rows": options.num,
        "seed": options.seed,
    }  # fmt: skip
    if options.stage == "base":
        documents = dataset.open_documents(source, "train")
        batches = tokenizing_distributed_data_loader(documents, tokenizer, num_steps=1, **shape)
    else:
        script = mid_train if options.stage == "mid" else chat_sft
        chosen = script.Options(
            conversations=options.conversations, identity_file=options.identity_file,
            mixture=options.mixture, seed=options.seed,
        )  # fmt: skip
        kind = chosen_mixture(chosen, "primer" if source == "primer" else "public")
        task = script.training_mixture(chosen, kind, own_conversations(chosen, kind))
        if options.stage == "mid":
            batches = chat_batches.packed_conversations(task, tokenizer, num_steps=1, **shape)
        else:
            batches = chat_batches.masked_conversations(task, tokenizer, num_epochs=1, **shape)
    yield from rows_in(next(batches))


def rows_in(batch: Batch) -> Iterator[Row]:
    """The rows of a batch, each up to its last token that counts."""
    for inputs, targets in zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True):
        following = [*inputs[1:], targets[-1]]
        row = [(inputs[0], False)]
        for token, target in zip(following, targets, strict=True):
            row.append((target if target >= 0 else token, target >= 0))
        last = max((place for place, (_, counts) in enumerate(row) if counts), default=0)
        yield row[: last + 1]


def as_text(row: Row, tokenizer: RustBPETokenizer, *, uses_color: bool) -> Text:
    """A row as text; runs of tokens are decoded together, since one may be part of a letter."""
    text = Text()
    for counts, run in groupby(row, key=lambda one: one[1]):
        piece = tokenizer.decode([token for token, _ in run])
        text.append(piece if uses_color or not counts else f"«{piece}»", style=STYLES[counts])
    return text
