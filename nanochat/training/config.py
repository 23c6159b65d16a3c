"""What defines a training run: the options of its stage, its plan, and when two runs are the same.

Options stop at the script: it makes a `Plan` of them, and the library takes that.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from nanochat import checkpoint_manager
from nanochat.configurator import at_least, folder_name
from nanochat.data.batch import Batch
from nanochat.data.chat_batches import Conversations
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.runtime import restart_count
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training.schedule import Schedule

logger = logging.getLogger(__name__)

COLUMNS = {"base": "BASE", "mid": "MID", "sft": "SFT", "rl": "RL"}
TITLES = {
    "base": "Pretraining",
    "mid": "Midtraining",
    "sft": "Supervised finetuning",
    "rl": "Reinforcement learning",
}
EVAL_TOKENS = 65_536  # 32 rows of 2,048: noisy, but affordable on a CPU
EVAL_TOKENS_GPU = 10_485_760  # as scripts.base_loss in speedrun.sh; 9 s of an H100 at depth 12
EVAL_SHARE = 100  # beyond EVAL_TOKENS, one part in so many of the training tokens


@dataclass(frozen=True)
class LoopOptions:
    """Options of every training command."""

    model_tag: Annotated[str, folder_name(checkpoint_manager.REPLACED)] = ""
    """Folder of the checkpoints; empty means d<depth>."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest one available."""
    device_batch_size: Annotated[int, at_least(1, besides=-1)] = -1
    """Rows per forward pass on one device; -1 means as many as fit on a GPU, and the fastest on a
    CPU. Does not change results."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: a third slower, with a tenth of the activation
    memory. Does not change results."""
    matrix_lr: Annotated[float, at_least(0)] = 0.02
    """Learning rate of the matrices (Muon)."""
    embedding_lr: Annotated[float, at_least(0)] = 0.2
    """Learning rate of the token embedding (AdamW), scaled by (width / 768) ** -0.5."""
    unembedding_lr: Annotated[float, at_least(0)] = 0.004
    """Learning rate of the unembedding (AdamW), scaled by (width / 768) ** -0.5."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """Weight decay of the matrices at width 768; scaled by 1 / width^2, falls to zero over the
    run."""
    eval_every: Annotated[int, at_least(0)] = 250
    """Steps between evaluations; 0 means only after the last step."""
    eval_tokens: Annotated[int, at_least(1, besides=-1)] = -1
    """Validation tokens of each evaluation; -1 means 65,536, and on CUDA up to 10,485,760 but at
    most a hundredth of the training tokens."""
    save_every: Annotated[int, at_least(0)] = 250
    """Steps between checkpoints; 0 means by --save_minutes, before evaluations and at the end."""
    save_minutes: Annotated[float, at_least(0)] = 10.0
    """At most so many minutes between checkpoints; 0 means by steps alone."""
    keep_checkpoints: Annotated[int, at_least(1)] = 2
    """Number of the newest checkpoints to keep."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite stops the run before the update; skip: return to the
    last checkpoint and skip the batch of that step."""
    resume: bool = True
    """Resume from the newest complete checkpoint of the same run; --resume=false is --fresh."""
    fresh: bool = False
    """Start from step 0; the checkpoints of an earlier run of this stage are moved to replaced/."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the model; auto: if there is a compiler and the run is long enough."""
    dry_run: bool = False
    """Print the summary of the run and exit before anything is computed."""
    profile: bool = False
    """Write a trace of a few of the first steps beside the checkpoints."""
    seed: int = 42
    """Seed of initial weights, data order and sampling."""

    @property
    def starts_over(self) -> bool:
        """True if an existing run is not resumed; a restart by torchrun always resumes."""
        return (self.fresh or not self.resume) and restart_count() == 0


# These may differ between a run and its continuation: they do not change what is learned.
FREE_OPTIONS = {
    "device_type", "device_batch_size", "activation_checkpointing", "dry_run", "profile",
    "eval_every", "eval_tokens", "eval_conversations", "save_every", "save_minutes",
    "keep_checkpoints", "on_nonfinite", "resume", "fresh", "compile",
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """One stage of one run."""

    stage: str
    directory: Path  # of checkpoints, metrics and traces
    settings: dict[str, Any]  # what defines the run: only a run of equal settings is resumed
    source: str  # of the validation text
    tokenizer: RustBPETokenizer
    model: GPT  # with the weights of step 0; on the meta device: initialized from the seed
    seed: int
    schedule: Schedule
    rates: dict[str, float]  # peak learning rates and weight decay, see `build_optimizers`
    rows: int  # of one optimizer step over all ranks
    batches: Callable[..., Iterator[Batch]]  # of a loader state, `resume`; None: from the start
    samples: Callable[[], list[dict[str, str]]]  # texts of the trained model, for the report
    held_out: Conversations | None  # conversations that are not trained on
    eval_every: int  # steps; 0: only at the end
    eval_tokens: int
    save_every: int  # steps; 0: never by steps
    save_minutes: float
    keep_checkpoints: int
    starts_over: bool  # an existing run is moved out of the way
    skips_nonfinite: bool
    device_batch_size: int  # -1: chosen by autotune
    compile: Literal["auto", "on", "off"]
    activation_checkpointing: bool
    profile: bool
    dry_run: bool
    prefetch: bool = True  # prepare the next batch during a step
    has_fixed_shape: bool = True  # every batch is rows x context; else compiling does not pay

    def rank_rows(self, world_size: int) -> int:
        """Rows of one step on one rank, at most: some ranks may have one less."""
        return -(-self.rows // world_size)


def default_eval_tokens(device_type: str, train_tokens: int) -> int:
    """Validation tokens of one evaluation if none are given."""
    if device_type != "cuda":
        return EVAL_TOKENS
    return max(EVAL_TOKENS, min(EVAL_TOKENS_GPU, train_tokens // EVAL_SHARE))


def defining_settings(options: LoopOptions, **more: Any) -> dict[str, Any]:
    """The settings that define a run: options that change what is learned, and `more`."""
    named = {name: value for name, value in vars(options).items() if name not in FREE_OPTIONS}
    return {**named, **more}


def is_finished(stage: str, tag: str, settings: dict[str, Any], options: LoopOptions) -> bool:
    """True, which is logged, if a run of these settings is finished; False if one can be resumed.

    Raises UserError naming what differs if the folder holds a run with other settings.
    """
    directory = checkpoint_manager.run_directory(stage, tag)
    if not checkpoint_manager.saved_steps(directory):
        return False
    meta = checkpoint_manager.read_meta(stage, tag)
    # A run from before an option existed had the default of that option.
    defaults = {field.name: field.default for field in fields(options) if field.name in settings}
    saved = {**defaults, **meta["settings"]}
    names = sorted((saved.keys() | settings.keys()) - FREE_OPTIONS)
    differing = [name for name in names if saved.get(name) != settings.get(name)]
    if differing:
        facts = [f"{n}: saved {saved.get(n)}, now {settings.get(n)}" for n in differing[:4]]
        raise UserError(
            f"{directory} holds a run with other settings ({'; '.join(facts)}); use"
            " --model_tag=NAME for a second run beside it, or --fresh to move it to replaced/"
        )
    if meta["finished"]:
        logger.info("%s is finished: step %d in %s", TITLES[stage], meta["step"], directory)
    return bool(meta["finished"])
