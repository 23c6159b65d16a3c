"""What a stage of training is: its options, its plan, and when two runs are the same run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from nanochat import checkpoint_manager
from nanochat.configurator import FolderName, at_least
from nanochat.data.batch import Batch
from nanochat.data.chat_batches import Conversations
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.runtime import restart_count
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training.schedule import Schedule

COLUMNS = {"base": "BASE", "mid": "MID", "sft": "SFT", "rl": "RL"}
TITLES = {
    "base": "Pretraining",
    "mid": "Midtraining",
    "sft": "Supervised finetuning",
    "rl": "Reinforcement learning",
}


@dataclass(frozen=True)
class LoopOptions:
    """Options that every training command has."""

    model_tag: Annotated[str, FolderName(taken=(checkpoint_manager.REPLACED,))] = ""
    """Folder of the checkpoints; empty means d<depth>."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest that is there."""
    device_batch_size: Annotated[int, at_least(1, besides=-1)] = -1
    """Rows in one forward pass on one device; -1 means as many as fit on a GPU and the fastest
    on a CPU. Does not change results."""
    activation_checkpointing: bool = False
    """Compute each block again in the backward pass in place of keeping it: a third slower, with
    a tenth of the activations. Does not change results."""
    matrix_lr: Annotated[float, at_least(0)] = 0.02
    """Learning rate of the matrices (Muon)."""
    embedding_lr: Annotated[float, at_least(0)] = 0.2
    """Learning rate of the token embedding (AdamW), scaled by (width / 768) ** -0.5."""
    unembedding_lr: Annotated[float, at_least(0)] = 0.004
    """Learning rate of the unembedding (AdamW), scaled by (width / 768) ** -0.5."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """Decay of the matrices at width 768; scaled by 1 / width^2, falls to zero over the run."""
    eval_every: Annotated[int, at_least(0)] = 250
    """Steps between evaluations; 0 means only after the last step."""
    eval_tokens: Annotated[int, at_least(1)] = 65536
    """Validation tokens of each evaluation."""
    save_every: Annotated[int, at_least(0)] = 250
    """Steps between checkpoints; 0 means by --save_minutes, before evaluations and at the end."""
    save_minutes: Annotated[float, at_least(0)] = 10.0
    """Minutes between checkpoints at most; 0 means by steps alone."""
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    """How many of the newest checkpoints stay."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite stops the run before the update; skip: go back to the
    last checkpoint and leave that step's batch out."""
    resume: bool = True
    """Go on from the newest whole checkpoint of the same run; --resume=false is --fresh."""
    fresh: bool = False
    """Start from step 0; what an earlier run of this stage saved is moved aside."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the model; auto: when there is a compiler and the run is long enough."""
    dry_run: bool = False
    """Print the table of the run and stop before anything is computed."""
    profile: bool = False
    """Leave a trace of a few of the first steps beside the checkpoints."""
    seed: int = 42
    """Of initial weights, data order and sampling."""

    @property
    def starts_over(self) -> bool:
        """True when a run that is there is not gone on with; torchrun's restarts always go on."""
        return (self.fresh or not self.resume) and restart_count() == 0


# What may differ between a run and its continuation: it does not change what is learned.
FREE_OPTIONS = {
    "device_type", "device_batch_size", "activation_checkpointing", "dry_run", "profile",
    "eval_every", "eval_tokens", "save_every", "save_minutes",
    "keep_checkpoints", "on_nonfinite", "resume", "fresh", "compile",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One stage of one run."""

    stage: str
    tag: str
    options: LoopOptions
    settings: dict[str, Any]
    """What defines the run: an unfinished run goes on only with equal settings."""
    source: str
    """Whose validation text is read."""
    tokenizer: RustBPETokenizer
    model: GPT
    """With the weights of step 0; or on the meta device, then `run` makes them from the seed."""
    schedule: Schedule
    rows: int
    """Of one optimizer step over all ranks."""
    batches: Callable[[dict[str, Any] | None], Iterator[Batch]]
    """From a loader state (None: from the start) to the batches that follow."""
    samples: Callable[[], list[dict[str, str]]]
    """A few texts of the trained model, for the report."""
    held_out: Conversations | None = None
    """Conversations that are not trained on."""
    rate_scale: float = 1.0
    """Share of the options' learning rates that is the plateau of this stage."""
    prefetch: bool = True
    has_fixed_shape: bool = True
    """Every batch is rows x context; else compiling would start anew with each length."""
    observed: Callable[[], dict[str, float]] = dict
    """Numbers that the maker of the batches wants logged with each step."""

    def rank_rows(self, world_size: int) -> int:
        """Of one optimizer step on one rank, at most: some may have one less."""
        return -(-self.rows // world_size)


def defining_settings(options: LoopOptions, **more: Any) -> dict[str, Any]:
    """The settings that define a run: options that change what is learned, and `more`."""
    named = {name: value for name, value in vars(options).items() if name not in FREE_OPTIONS}
    return {**named, **more}


def refuse_other_settings(
    directory: Path, there: dict[str, Any], asked: dict[str, Any], options: LoopOptions
) -> None:
    """Raises UserError that names what differs; options that are newer had their default there."""
    defaults = {field.name: field.default for field in fields(options)}
    there = {name: defaults[name] for name in asked.keys() & defaults.keys()} | there
    if there.get("total_batch_size") == -1:  # older runs: the loader compares the rows
        there["total_batch_size"] = asked["total_batch_size"]
    names = sorted(there.keys() | asked.keys())
    differing = [name for name in names if there.get(name) != asked.get(name)]
    if differing:
        facts = "; ".join(f"{n}: {there.get(n)} there, {asked.get(n)} asked" for n in differing[:4])
        raise UserError(
            f"{directory} holds a run with other settings ({facts}); use --model_tag=NAME for a"
            " second run beside it, or --fresh to move it aside"
        )
