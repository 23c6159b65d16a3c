"""A trained model as a folder for other engines.

python -m scripts.export --source=sft --format=hf --out=my_model
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from nanochat import checkpoint_manager, export
from nanochat.configurator import parse, run
from nanochat.errors import UserError
from nanochat.training import stage

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """A trained model as a folder for other engines."""

    source: Literal["base", "mid", "sft", "rl"] = "sft"
    """Stage whose model is exported."""
    format: Literal["hf", "mlx"] = "hf"
    """hf: Hugging Face transformers, and engines that build on it."""
    out: str = ""
    """Folder to write; it must not be there yet."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights; float32 gives the logits of this package to the last bits."""
    model_tag: str = ""
    """Folder of the checkpoint; empty means the newest."""
    step: int = -1
    """Step of the checkpoint; -1 means the newest."""


def main(argv: list[str] | None = None) -> None:
    """Write the folder and say where it is."""
    options = parse(Options, argv)
    if not options.out:
        raise UserError("--out=DIR is needed: the folder to write")
    if options.format == "mlx":
        raise UserError("--format=mlx is not there yet; --format=hf is")
    with stage.opened("cpu") as runtime:
        model, tokenizer, meta = checkpoint_manager.load_model(
            options.source, runtime, options.model_tag, options.step
        )
        out = Path(options.out).expanduser()
        export.export_hf(model, tokenizer, out, DTYPES[options.dtype])
        logger.info("%s model of step %d is in %s", options.source, meta["step"], out)
        print(out)


if __name__ == "__main__":
    run(main)
