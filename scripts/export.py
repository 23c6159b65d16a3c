"""Export a trained model as a folder for other engines.

python -m scripts.export --source=sft --format=hf --out=my_model
"""

from dataclasses import dataclass
from typing import Literal

from nanochat.configurator import parse, run_command
from nanochat.errors import UserError
from scripts.options import CheckpointOptions, InferenceOptions


@dataclass(frozen=True)
class Options(CheckpointOptions):
    """Export a trained model as a folder for other engines."""

    source: Literal["base", "mid", "sft", "rl"] = "sft"
    """Stage whose model is exported."""
    format: Literal["hf"] = "hf"
    """hf: Hugging Face transformers, and engines that read its format."""
    out: str = ""
    """Folder to write; it must not exist yet."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights; with float32 the logits equal those of this package."""

    def __post_init__(self) -> None:
        if not self.out:
            raise UserError("--out=DIR is required: the folder to write")


if __name__ == "__main__":
    run_command(Options)  # before the slow imports

import logging
from pathlib import Path

import torch

from nanochat import checkpoint_manager, export
from nanochat.training import stage

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    options = parse(Options, argv)
    out = Path(options.out).expanduser()
    with stage.command_runtime("cpu") as runtime:  # no forward pass, and no limit of GPU memory
        model, tokenizer, meta = checkpoint_manager.load_model(
            options.source, runtime, options.model_tag, options.step
        )
        usage = export.Usage(
            name=f"nanochat-{meta['settings']['model_tag']}-{options.source}",
            is_chat=options.source != "base",
            source=str(meta["settings"].get("source", "")),
            temperature=InferenceOptions.temperature,
            top_k=InferenceOptions.top_k,
        )
        export.export_hf(model, tokenizer, out, getattr(torch, options.dtype), usage)
        logger.info("exported the %s model of step %d to %s", options.source, meta["step"], out)
    print(out)
