"""What the evaluation commands share: options, the model, and how work is split over ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Meta
from nanochat.configurator import at_least, folder_name
from nanochat.gpt import GPT
from nanochat.metrics import ProgressLine
from nanochat.runtime import Runtime, gather_objects
from nanochat.tokenizer import RustBPETokenizer

Result = TypeVar("Result")


@dataclass(frozen=True)
class EvalOptions:
    """Options of every evaluation command."""

    model_tag: Annotated[str, folder_name()] = ""
    """Folder of the checkpoint; empty means the newest."""
    step: Annotated[int, at_least(0, besides=-1)] = -1
    """Step of the checkpoint; -1 means the newest."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest available."""
    fresh: bool = False
    """Measure again what has been measured."""


def find_checkpoint(stage: str, options: EvalOptions) -> tuple[Meta, dict[str, Any]]:
    """The meta of a checkpoint, and settings that identify it: new weights are measured again."""
    meta = checkpoint_manager.read_meta(stage, options.model_tag, options.step)
    return meta, {"model": checkpoint_manager.model_identity(meta), "step": meta["step"]}


def load_checkpoint(stage: str, meta: Meta, runtime: Runtime) -> tuple[GPT, RustBPETokenizer]:
    """The model of `meta`, even if a newer one has been saved since, and its tokenizer."""
    tag, step = meta["settings"]["model_tag"], meta["step"]
    model, tokenizer, _ = checkpoint_manager.load_model(stage, runtime, tag, step)
    return model, tokenizer


def over_ranks(
    label: str, num_items: int, runtime: Runtime, evaluate_task: Callable[..., Result]
) -> list[Result]:
    """The results of all ranks, each for its share of the items; every rank calls it.

    evaluate_task: takes rank, world_size and on_progress.
    """
    rank, world_size = runtime.rank, runtime.world_size
    share = len(range(rank, num_items, world_size))  # a rank without items gathers even so
    with ProgressLine(share, label, runtime.is_main) as line:
        result = evaluate_task(rank=rank, world_size=world_size, on_progress=line.update)
    return gather_objects(result)
