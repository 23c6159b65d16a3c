"""Bits per byte of a model on training and validation text.

python -m scripts.base_loss
torchrun --standalone --nproc_per_node=8 -m scripts.base_loss
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat.configurator import at_least, parse, run_command
from scripts.options import EvalOptions


@dataclass(frozen=True)
class Options(EvalOptions):
    """Bits per byte of a model on training and validation text."""

    source: Literal["base", "mid", "sft", "rl"] = "base"
    """Stage whose model is measured."""
    eval_tokens: Annotated[int, at_least(1)] = 262_144
    """Tokens of each split."""


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import logging

from nanochat import dataset, loss_eval, report
from nanochat.runtime import on_main_first
from nanochat.training import stage
from scripts.inference import find_checkpoint, load_checkpoint

logger = logging.getLogger(__name__)

LABELS: dict[Literal["train", "val"], str] = {
    "train": "bits per byte, training text",
    "val": "bits per byte, validation text",
}


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    name = f"base_loss_{options.source}"
    with stage.command_runtime(options.device_type) as runtime:
        meta, settings = find_checkpoint(options, options.source)
        settings["tokens"] = options.eval_tokens
        section = on_main_first(lambda: report.already_measured(name, settings, options.fresh))
        if section is None:
            model, tokenizer = load_checkpoint(options.source, meta, runtime)
            source = dataset.current_source()
            documents = {split: dataset.open_documents(source, split) for split in LABELS}
            section = {
                "title": f"Bits per byte, {options.source} model",
                "order": 10,  # after the training stages
                "settings": settings,
                "metrics": {
                    label: loss_eval.text_loss(
                        model, tokenizer, runtime, documents[split], options.eval_tokens
                    ).bits_per_byte
                    for split, label in LABELS.items()
                },
            }
            if runtime.is_main:
                report.write_section(name, section)
        for label, value in section["metrics"].items():
            logger.info("%s: %.4f", label, value)
