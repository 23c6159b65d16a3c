"""What the commands share that load a trained model: chat, evaluation, export."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Meta
from nanochat.configurator import Short, at_least, between, folder_name
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer


@dataclass(frozen=True)
class CheckpointOptions:
    model_tag: Annotated[str, folder_name()] = ""
    """Folder of the checkpoint; empty means the newest."""
    step: Annotated[int, at_least(0, besides=-1)] = -1
    """Step of the checkpoint; -1 means the newest."""


@dataclass(frozen=True)
class InferenceOptions(CheckpointOptions):
    source: Annotated[Literal["latest", "base", "mid", "sft", "rl"], Short("-i")] = "latest"
    """Training stage of the model; latest is the last stage that has a checkpoint."""
    temperature: Annotated[float, between(0, 2)] = 0.0
    """0 always takes the most likely token; higher is more random."""
    top_k: Annotated[int, at_least(0)] = 50
    """Only sample from the k most likely tokens; 0 means no limit."""
    max_tokens: Annotated[int, at_least(1)] = 512
    """Maximum length of an answer in tokens."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest available."""

    def load_engines(self, runtimes: list[Runtime]) -> tuple[list[Engine], Meta]:
        """An engine on the device of each runtime, and the checkpoint's meta."""
        stage = checkpoint_manager.find_stage() if self.source == "latest" else self.source
        engines = []
        for runtime in runtimes:
            model, tokenizer, meta = checkpoint_manager.load_model(
                stage, runtime, self.model_tag, self.step
            )
            engines.append(Engine(model, tokenizer))
        return engines, meta


@dataclass(frozen=True)
class EvalOptions(CheckpointOptions):
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
