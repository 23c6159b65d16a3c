"""What defines a training run: its plan, which a script makes from its options."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nanochat.data.batch import Batch
from nanochat.data.chat_batches import Conversations
from nanochat.data.packing import Texts
from nanochat.gpt import GPT
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training.sampled_softmax import SampledSoftmax
from nanochat.training.schedule import Schedule

COLUMNS = {"base": "BASE", "mid": "MID", "sft": "SFT", "rl": "RL"}
TITLES = {
    "base": "Pretraining",
    "mid": "Midtraining",
    "sft": "Supervised finetuning",
    "rl": "Reinforcement learning",
}


@dataclass(frozen=True)
class Plan:
    """One stage of one run."""

    stage: str
    directory: Path  # of checkpoints, metrics and traces
    settings: dict[str, Any]  # what defines the run: only a run of equal settings is resumed
    validation_texts: Texts
    tokenizer: RustBPETokenizer
    model: GPT  # with the weights of step 0; on the meta device: initialized from the seed
    seed: int
    schedule: Schedule
    rates: dict[str, float]  # peak learning rates and weight decay, see `build_optimizers`
    rows: int  # of one optimizer step over all ranks
    batches: Callable[..., Iterator[Batch]]  # of a loader state, `resume`; None: from the start
    samples: Callable[[], list[dict[str, str]]]  # texts of the trained model, for the report
    held_out: Conversations | None  # conversations that are not trained on, alike in all stages
    eval_every: int  # steps; 0: only at the end
    eval_tokens: int
    final_eval_tokens: int  # of the last evaluation, which the report shows
    save_every: int  # steps; 0: never by steps
    save_minutes: float
    keep_checkpoints: int
    skips_nonfinite: bool
    device_batch_size: int  # -1: chosen by autotune
    compile: Literal["auto", "on", "off"]
    activation_checkpointing: bool
    profile: bool
    dry_run: bool
    summary: Sequence[tuple[str, str]] = ()  # more rows of the table before the first step
    scores: Callable[[], dict[str, float]] = dict  # more metrics of each evaluation; collective
    prefetch: bool = True  # prepare the next batch during a step
    sampled_softmax: SampledSoftmax | None = None
    has_fixed_shape: bool = True  # every batch is rows x context; else compiling does not pay

    def rank_rows(self, world_size: int) -> int:
        """Rows of one step on one rank, at most: some ranks may have one less."""
        return -(-self.rows // world_size)
