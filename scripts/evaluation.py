"""What the evaluation commands share: options, and the model that is measured."""

from dataclasses import dataclass
from typing import Any

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Meta
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer
from scripts.inference import CheckpointOptions


@dataclass(frozen=True)
class EvalOptions(CheckpointOptions):
    """Options of every evaluation command."""

    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest available."""
    fresh: bool = False
    """Measure again what has been measured."""

    def find_checkpoint(self, stage: str) -> tuple[Meta, dict[str, Any]]:
        """The meta of the checkpoint, and settings that identify its weights."""
        meta = checkpoint_manager.read_meta(stage, self.model_tag, self.step)
        # With other weights under the same step everything is measured again.
        return meta, {"model": checkpoint_manager.model_identity(meta), "step": meta["step"]}


def load_checkpoint(stage: str, meta: Meta, runtime: Runtime) -> tuple[GPT, RustBPETokenizer]:
    """The model of `meta`, even if a newer one has been saved since, and its tokenizer."""
    tag, step = meta["settings"]["model_tag"], meta["step"]
    return checkpoint_manager.load_model(stage, runtime, tag, step)[:2]
