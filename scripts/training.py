"""What the four training commands share: from options to a plan, and its run.

Each command gives a function `make_plan(options, setup)`: the data of its stage, and for how long.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from nanochat import checkpoint_manager, dataset
from nanochat.configurator import at_least
from nanochat.data.batch import Batch
from nanochat.data.chat_batches import Conversations
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training import config, stage
from nanochat.training.config import LoopOptions, Plan, defining_settings
from nanochat.training.scaling_laws import scaled_weight_decay
from nanochat.training.schedule import Schedule
from tasks.gsm8k import GSM8K
from tasks.primer import Primer
from tasks.smoltalk import SmolTalk

PLAN_OPTIONS = (  # those that the plan takes as they are
    "seed", "eval_every", "save_every", "save_minutes", "keep_checkpoints", "starts_over",
    "device_batch_size", "compile", "activation_checkpointing", "profile", "dry_run",
)  # fmt: skip
PARENTS = {"mid": "base", "sft": "mid", "rl": "sft"}
TEXT_SAMPLES = (
    "The fox is", "Once upon a time", "Question: What day comes after Monday? Answer:",
)  # fmt: skip
CHAT_SAMPLES = ("Who are you?", "What is 347 + 588?", "What colour is the fox?")


@dataclass(frozen=True)
class ChatOptions(LoopOptions):
    """Options of the stages that train on conversations."""

    init_lr: Annotated[float, at_least(0)] = 1.0
    """Peak learning rates, as a share of those of the options."""
    eval_conversations: Annotated[int, at_least(1)] = 256
    """Held-out conversations of each evaluation."""


def held_out_conversations(name: str, source: str, size: int) -> Conversations:
    """Conversations that a stage never trains on."""
    if source == "primer":
        return Primer("test", stage="sft", size=size)
    return GSM8K("main", "test", stop=size) if name == "rl" else SmolTalk("test", stop=size)


@dataclass(frozen=True)
class Setup:
    """A stage that is about to start: what is known before its model is loaded."""

    name: str
    options: LoopOptions
    runtime: Runtime
    tag: str  # folder of the checkpoints
    source: str  # of text
    settings: dict[str, Any]  # what defines the run
    load: Callable[[], tuple[GPT, RustBPETokenizer]]  # the model that the stage starts from

    def plan(
        self, model: GPT, tokenizer: RustBPETokenizer, *, rows: int, schedule: Schedule,
        batches: Callable[..., Iterator[Batch]], engine: Engine | None = None, **more: Any,
    ) -> Plan:  # fmt: skip
        """The plan of the stage.

        batches: from rank, world_size and a loader state, `resume`.  engine: of the rollouts; its
        CUDA graphs and caches serve the samples of the report, too.  more: fields of `Plan`.
        """
        options, runtime = self.options, self.runtime
        is_chat, lr_scale, held_out = False, 1.0, None
        if isinstance(options, ChatOptions):
            is_chat, lr_scale = True, options.init_lr
            held_out = held_out_conversations(self.name, self.source, options.eval_conversations)
        eval_tokens = options.eval_tokens
        if eval_tokens == -1:
            train_tokens = schedule.num_steps * rows * model.config.sequence_len
            eval_tokens = config.default_eval_tokens(runtime.device.type, train_tokens)

        def samples() -> list[dict[str, str]]:
            texts = CHAT_SAMPLES if is_chat else TEXT_SAMPLES
            return stage.greedy_samples(engine or Engine(model, tokenizer), texts, is_chat)

        return Plan(
            stage=self.name,
            directory=checkpoint_manager.run_directory(self.name, self.tag),
            settings=self.settings,
            source=self.source,
            tokenizer=tokenizer,
            model=model,
            schedule=schedule,
            rates={
                "matrix_lr": options.matrix_lr * lr_scale,
                "embedding_lr": options.embedding_lr * lr_scale,
                "unembedding_lr": options.unembedding_lr * lr_scale,
                "weight_decay": scaled_weight_decay(options.weight_decay, model.config.n_embd),
            },
            rows=rows,
            batches=partial(batches, rank=runtime.rank, world_size=runtime.world_size),
            samples=samples,
            held_out=held_out,
            eval_tokens=eval_tokens,
            skips_nonfinite=options.on_nonfinite == "skip",
            **{name: getattr(options, name) for name in PLAN_OPTIONS},
            **more,
        )


def start_from_parent(name: str, options: LoopOptions, runtime: Runtime) -> Setup:
    """A stage that starts from the one before. Raises UserError if that is not finished."""
    parent = PARENTS[name]
    meta = checkpoint_manager.read_meta(parent, options.model_tag)
    tag, step = meta["settings"]["model_tag"], meta["step"]
    if not meta["finished"]:
        command = checkpoint_manager.TRAINING_COMMANDS[parent]
        raise UserError(
            f"{config.TITLES[parent]} of {tag} is not finished: its last checkpoint is step {step};"
            f" run python -m {command} again to resume"
        )

    def load() -> tuple[GPT, RustBPETokenizer]:
        model, tokenizer, _ = checkpoint_manager.load_model(parent, runtime, tag, step)
        return model.train(), tokenizer

    source, identity = dataset.current_source(), checkpoint_manager.model_identity(meta)
    settings = defining_settings(options, model_tag=tag, parent=identity, source=source)
    return Setup(name, options, runtime, tag, source, settings, load)


def main(
    name: str,
    options: LoopOptions,
    make_plan: Callable[[Any, Setup], Plan],
    start: Callable[[str, Any, Runtime], Setup] = start_from_parent,
) -> None:
    """Train a stage to its end, or log that it is finished."""
    with stage.command_runtime(options.device_type) as runtime:
        setup = start(name, options, runtime)
        is_new = options.dry_run or options.starts_over
        if is_new or not config.is_finished(name, setup.tag, setup.settings, options):
            stage.run(make_plan(options, setup), runtime)
