"""What the four training commands share: the plan made of their options, and its run.

Each command gives a function `make_plan(options, setup)`: the data of its stage, and for how long.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from nanochat import checkpoint_manager, dataset
from nanochat.configurator import is_given
from nanochat.data import hub_files
from nanochat.data.batch import Batch
from nanochat.data.chat_batches import Conversations
from nanochat.engine import Engine
from nanochat.errors import UserError
from nanochat.gpt import GPT
from nanochat.runtime import Runtime, on_main_first
from nanochat.tokenizer import RustBPETokenizer
from nanochat.training import scaling_laws, stage
from nanochat.training.config import TITLES, Plan
from nanochat.training.schedule import Schedule
from scripts.options import ChatOptions, LoopOptions, MixtureOptions
from tasks.common import TaskMixture
from tasks.customjson import IDENTITY_FILE, CustomJSON
from tasks.gsm8k import GSM8K
from tasks.mmlu import MMLU
from tasks.primer import Primer
from tasks.smoltalk import SmolTalk

logger = logging.getLogger(__name__)

EVAL_TOKENS = 65_536  # 32 rows of 2,048: noisy, but affordable on a CPU
EVAL_TOKENS_GPU = 10_485_760  # as scripts.base_loss in speedrun.sh; 9 s of an H100 at depth 12
EVAL_SHARE = 100  # before the end at most one part in so many of the training tokens
# These may differ between a run and its continuation: they do not change what is learned.
FREE_OPTIONS = {
    "device_type", "device_batch_size", "activation_checkpointing", "dry_run", "profile",
    "eval_every", "eval_tokens", "eval_conversations", "save_every", "save_minutes",
    "keep_checkpoints", "on_nonfinite", "resume", "fresh", "compile",
}  # fmt: skip
PLAN_OPTIONS = (  # those that the plan takes as they are
    "seed", "eval_every", "save_every", "save_minutes", "keep_checkpoints", "device_batch_size",
    "compile", "activation_checkpointing", "profile", "dry_run",
)  # fmt: skip
PARENTS = {"mid": "base", "sft": "mid", "rl": "sft"}
TEXT_SAMPLES = (
    "The fox is", "Once upon a time", "Question: What day comes after Monday? Answer:",
)  # fmt: skip
CHAT_SAMPLES = ("Who are you?", "What is 347 + 588?", "What colour is the fox?")


def held_out_conversations(mixture: str, size: int) -> Conversations | None:
    """Conversations that no stage trains on, the same for all stages: their losses compare."""
    if mixture == "none":  # one's own are few, and all of them are meant to be learned
        return None
    if mixture == "primer":
        return Primer("test", stage="sft", size=size)
    # In the proportions in which midtraining reads the three.
    tasks = [SmolTalk("test"), MMLU("all", "test", stop=5200), GSM8K("main", "test", stop=420)]
    return TaskMixture(tasks, stop=size)


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
    mixture: str = "none"  # or primer, public: the conversations besides one's own
    own: Sequence[CustomJSON] = ()

    def plan(
        self, model: GPT, tokenizer: RustBPETokenizer, *, rows: int, usual_rows: float,
        schedule: Schedule, batches: Callable[..., Iterator[Batch]], engine: Engine | None = None,
        **more: Any,
    ) -> Plan:  # fmt: skip
        """batches: from rank, world_size and a loader state, `resume`.  more: fields of `Plan`.
        usual_rows: of one step, for which the recipe's learning rates are meant.
        engine: of the rollouts; its CUDA graphs and caches serve the report's samples, too.
        """
        options, runtime = self.options, self.runtime
        is_chat, lr_scale, held_out, width = False, 1.0, None, model.config.n_embd
        given = {name: getattr(options, name) for name in scaling_laws.RATES}
        rates = scaling_laws.rates(options.recipe, given, rows / usual_rows)
        if isinstance(options, ChatOptions):
            is_chat, lr_scale = True, options.init_lr
            held_out = held_out_conversations(self.mixture, options.eval_conversations)
        eval_tokens = final_eval_tokens = options.eval_tokens
        if eval_tokens == -1:
            train_tokens = schedule.num_steps * rows * model.config.sequence_len
            eval_tokens, final_eval_tokens = default_eval_tokens(runtime.device.type, train_tokens)

        def samples() -> list[dict[str, str]]:
            texts = CHAT_SAMPLES if is_chat else TEXT_SAMPLES
            return stage.greedy_samples(engine or Engine(model, tokenizer), texts, is_chat)

        return Plan(
            stage=self.name,
            directory=checkpoint_manager.run_directory(self.name, self.tag),
            settings=self.settings,
            validation_texts=dataset.open_documents(self.source, "val"),
            tokenizer=tokenizer,
            model=model,
            schedule=schedule,
            rates={name: rate * lr_scale for name, rate in rates.items()}
            | {"weight_decay": scaling_laws.scaled_weight_decay(options.weight_decay, width)},
            rows=rows,
            batches=partial(batches, rank=runtime.rank, world_size=runtime.world_size),
            samples=samples,
            held_out=held_out,
            eval_tokens=eval_tokens,
            final_eval_tokens=final_eval_tokens,
            skips_nonfinite=options.on_nonfinite == "skip",
            **{name: getattr(options, name) for name in PLAN_OPTIONS},
            **more,
        )


def default_eval_tokens(device_type: str, train_tokens: int) -> tuple[int, int]:
    """Validation tokens of an evaluation before the end, and of the last one."""
    if device_type != "cuda":
        return EVAL_TOKENS, EVAL_TOKENS
    return max(EVAL_TOKENS, min(EVAL_TOKENS_GPU, train_tokens // EVAL_SHARE)), EVAL_TOKENS_GPU


def defining_settings(options: LoopOptions, **more: Any) -> dict[str, Any]:
    """The settings that define a run: options that change what is learned, and `more`."""
    named = {
        field.name: getattr(options, field.name)
        for field in fields(options) if field.name not in FREE_OPTIONS
    }  # fmt: skip
    return {**named, **more}


def is_finished(stage: str, tag: str, settings: dict[str, Any], options: LoopOptions) -> bool:
    """True, which is logged, if a run of these settings is finished; False if one can be resumed.

    Raises UserError naming what differs if the folder holds a run with other settings.
    """
    directory = checkpoint_manager.run_directory(stage, tag)
    if not checkpoint_manager.common_steps(directory):
        return False
    meta = checkpoint_manager.read_meta(stage, tag)
    # A run from before an option existed had the default of that option, and no digest of its text.
    defaults = {field.name: field.default for field in fields(options) if field.name in settings}
    saved = {**defaults, "text": settings.get("text"), **meta["settings"]}
    names = sorted((saved.keys() | settings.keys()) - FREE_OPTIONS)
    differing = [name for name in names if saved.get(name) != settings.get(name)]
    if differing:
        facts = [f"{n}: saved {saved.get(n)}, now {settings.get(n)}" for n in differing[:4]]
        raise UserError(
            f"{directory} holds a run with other settings ({'; '.join(facts)}); use"
            " --model_tag=NAME for a second run beside it, or --fresh to move it to replaced/"
        )
    step, newest = meta["step"], checkpoint_manager.newest_complete
    is_done = meta["finished"] and on_main_first(  # that the weights are good is read, not believed
        lambda: newest(directory, step, model_only=True) is not None
    )
    if is_done:
        logger.info("%s is finished: step %d in %s", TITLES[stage], step, directory)
    return bool(is_done)


def start_from_parent(name: str, options: LoopOptions, runtime: Runtime) -> Setup:
    """A stage that starts from the one before. Raises UserError if that is not finished."""
    parent = PARENTS[name]
    meta = checkpoint_manager.read_meta(parent, options.model_tag)
    tag, step = meta["settings"]["model_tag"], meta["step"]
    if not meta["finished"]:
        command = checkpoint_manager.TRAINING_COMMANDS[parent]
        raise UserError(
            f"{TITLES[parent]} of {tag} is not finished: its last checkpoint is step {step};"
            f" run {command} again to resume"
        )

    def load() -> tuple[GPT, RustBPETokenizer]:
        model, tokenizer, _ = checkpoint_manager.load_model(parent, runtime, tag, step)
        return model.train(), tokenizer

    source, identity = dataset.current_source(), checkpoint_manager.model_identity(meta)
    settings = defining_settings(options, model_tag=tag, parent=identity, source=source)
    mixture, own = "primer" if source == "primer" else "public", list[CustomJSON]()
    if isinstance(options, MixtureOptions):
        mixture = chosen_mixture(options, mixture)
        own = own_conversations(options, mixture)
        if mixture == "public":  # whose spelling depends on the list of words
            settings["words"] = on_main_first(hub_files.word_list_digest)
    if own:  # a file that has changed since makes another run
        settings["own_conversations"] = [task.digest() for task in own]
    return Setup(name, options, runtime, tag, source, settings, load, mixture, own)


def own_conversations(options: MixtureOptions, mixture: str) -> list[CustomJSON]:
    """Those of the options; public ones come with conversations about the model by default.

    Raises UserError if a file cannot be read as conversations.
    """
    identity = options.identity_file
    if not identity and mixture == "public":
        identity = str(IDENTITY_FILE)
    paths = [path for path in (options.conversations, identity) if path not in ("", "none")]
    return [CustomJSON(path) for path in paths]


def chosen_mixture(options: MixtureOptions, usual: str) -> str:
    """What to mix with one's own conversations. Raises UserError if an option has no effect."""
    mixture = "none" if options.conversations else usual
    if options.mixture != "auto":
        mixture = options.mixture
    if mixture == "none" and not (options.conversations or options.identity_file):
        raise UserError("--mixture=none leaves no conversations; add --conversations=PATH")
    without_effect = {
        "num_conversations": mixture != "primer", "eval_conversations": mixture == "none",
    }  # fmt: skip
    for field in fields(options):
        is_other = getattr(options, field.name) != field.default
        if (is_other or is_given(options, field.name)) and without_effect.get(field.name):
            raise UserError(
                f"--{field.name} has no effect: the conversations besides your own are"
                f" {mixture}; leave it out, or use --mixture=primer"
            )
    return mixture


def train(
    name: str,
    options: LoopOptions,
    make_plan: Callable[[Any, Setup], Plan],
    start: Callable[[str, Any, Runtime], Setup] = start_from_parent,
) -> None:
    """Train a stage to its end, or log that it is finished."""
    with stage.command_runtime(options.device_type) as runtime:
        setup = start(name, options, runtime)
        directory = checkpoint_manager.run_directory(name, setup.tag)
        # From before anything is read until the report is written; a dry run writes nothing.
        with nullcontext() if options.dry_run else stage.run_lock(name, setup.tag):
            starts_over = options.fresh or not options.resume
            # Even so, a job that torchrun has restarted resumes what it has saved itself.
            starts_over = starts_over and not checkpoint_manager.is_of_this_job(directory)
            is_new = options.dry_run or starts_over
            if is_new or not is_finished(name, setup.tag, setup.settings, options):
                stage.run(make_plan(options, setup), runtime, starts_over)
