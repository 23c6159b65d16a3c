"""Bits per byte of a model on training and validation text.

python -m scripts.base_loss
torchrun --standalone --nproc_per_node=8 -m scripts.base_loss
"""

import logging
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from nanochat import checkpoint_manager, dataset, loss_eval, report
from nanochat.configurator import at_least, parse, run
from nanochat.training import stage

logger = logging.getLogger(__name__)

SPLITS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Options:
    """Bits per byte of a model on training and validation text."""

    source: Literal["base", "mid", "sft", "rl"] = "base"
    """Stage whose model is measured."""
    model_tag: str = ""
    """Folder of the checkpoint; empty means the newest."""
    step: int = -1
    """Step of the checkpoint; -1 means the newest."""
    eval_tokens: Annotated[int, at_least(1)] = 262_144
    """Tokens of each split; 0 is refused."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""
    fresh: bool = False
    """Measure again what has been measured."""


def main(argv: list[str] | None = None) -> None:
    """Measure both splits, or say that it is done."""
    options = parse(Options, argv)
    name = f"base_loss_{options.source}"
    with stage.opened(options.device_type) as runtime:
        meta = checkpoint_manager.read_meta(options.source, options.model_tag, options.step)
        settings = {
            "model": checkpoint_manager.model_identity(meta),
            "tokens": options.eval_tokens,
        }
        done = report.read_section(name)
        if done is not None and done["settings"] == settings and not options.fresh:
            logger.info(
                "bits per byte of %s are measured already: %s", options.source, done["metrics"]
            )
            return
        tag, step = meta["settings"]["model_tag"], meta["step"]
        model, tokenizer, _ = checkpoint_manager.load_model(options.source, runtime, tag, step)
        source = dataset.current_source()
        measured = {
            f"bits per byte, {SPLITS[split]} text": loss_eval.text_bpb(
                model, tokenizer, runtime, source, options.eval_tokens, split
            )
            for split in get_args(dataset.Split)
        }
        for label, value in measured.items():
            logger.info("%s: %.4f", label, value)
        if runtime.is_main:
            report.write_section(
                name,
                {
                    "title": f"Bits per byte, {options.source} model",
                    "column": None,
                    "order": 10,
                    "settings": settings,
                    "metrics": measured,
                },
            )


if __name__ == "__main__":
    run(main)
