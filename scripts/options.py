"""The options that commands share.

A command declares its options before it imports torch, which takes seconds: so --help and wrong
options are answered at once. Nothing here may import torch, not even indirectly.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from nanochat import paths
from nanochat.configurator import Short, at_least, between, folder_name


@dataclass(frozen=True)
class LoopOptions:
    model_tag: Annotated[str, folder_name(paths.REPLACED)] = ""
    """Folder of the checkpoints; empty means d<depth>."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest one available."""
    device_batch_size: Annotated[int, at_least(1, besides=-1)] = -1
    """Rows per forward pass on one device; -1 means as many as fit on a GPU, and the fastest on a
    CPU. Does not change results."""
    activation_checkpointing: bool = False
    """Recompute each block in the backward pass: a third slower, with a tenth of the activation
    memory. Does not change results."""
    recipe: Literal["classic", "modern"] = "classic"
    """Settings, to which the options default: classic is nanochat's of late 2025; modern pretrains
    with --value_embeddings=2 --sampled_softmax_share=0.85 as well."""
    matrix_lr: Annotated[float, at_least(0, besides=-1)] = -1.0
    """Learning rate of the matrices (Muon). Here and for the next two -1 means the recipe's (0.02,
    0.3, 0.004) times the square root of the batch size by the default one, but at least half."""
    embedding_lr: Annotated[float, at_least(0, besides=-1)] = -1.0
    """Learning rate of the token embedding (AdamW), scaled by (width / 768) ** -0.5."""
    unembedding_lr: Annotated[float, at_least(0, besides=-1)] = -1.0
    """Learning rate of the unembedding (AdamW), scaled by (width / 768) ** -0.5."""
    weight_decay: Annotated[float, at_least(0)] = 0.0
    """Weight decay of the matrices at width 768; scaled by 1 / width^2, falls to zero over the
    run."""
    eval_every: Annotated[int, at_least(0)] = 250
    """Steps between evaluations; 0 means only after the last step."""
    eval_tokens: Annotated[int, at_least(1, besides=-1)] = -1
    """Validation tokens of each evaluation; -1 means 65,536, and on CUDA 10,485,760 at the end and
    before it at most a hundredth of the training tokens."""
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


@dataclass(frozen=True)
class ChatOptions(LoopOptions):
    """Options of the stages that train on conversations."""

    init_lr: Annotated[float, at_least(0)] = 1.0
    """Peak learning rates, as a share of those of the options."""
    eval_conversations: Annotated[int, at_least(1)] = 256
    """Held-out conversations of each evaluation, unless there are only your own."""


@dataclass(frozen=True)
class MixtureOptions(ChatOptions):
    """Options of the stages that may train on one's own conversations."""

    conversations: str = ""
    """Your own conversations, alone: a JSON file or a folder of them, in the format of OpenAI and
    Hugging Face (messages), ShareGPT or Alpaca."""
    identity_file: str = ""
    """Conversations in the same formats about the model itself, added to the others; empty means
    those of tasks/identity.jsonl with public data sets and no others, none means none."""
    mixture: Literal["auto", "primer", "public", "none"] = "auto"
    """Conversations besides your own: the primer world, public data sets, or none. auto: none with
    --conversations, else by the text that the model was trained on."""


@dataclass(frozen=True)
class CheckpointOptions:
    model_tag: Annotated[str, folder_name()] = ""
    """Folder of the checkpoint; empty means the newest."""
    step: Annotated[int, at_least(0, besides=-1)] = -1
    """Step of the checkpoint; -1 means the newest."""


@dataclass(frozen=True)
class ToolOptions:
    tool: Literal["calculator", "python"] = "calculator"
    """What evaluates the model's tool calls: arithmetic only, or Python in a sandbox."""
    sandbox: Literal["strict", "limits"] = "strict"
    """Sandbox of programs that the model writes: strict needs two kernel layers (seccomp, and
    Landlock or bubblewrap); limits makes do with resource limits, which is weak."""


@dataclass(frozen=True)
class SamplingOptions:
    """How chat_eval and chat_rl sample answers."""

    temperature: Annotated[float, at_least(0)] = 0.0
    """0 always takes the most likely token."""
    top_k: Annotated[int, at_least(0)] = 50
    """With a temperature, only sample from the k most likely tokens; 0 means no limit."""
    max_new_tokens: Annotated[int, at_least(1)] = 512
    """Maximum length of an answer in tokens."""


@dataclass(frozen=True)
class InferenceOptions(CheckpointOptions, ToolOptions):
    source: Annotated[Literal["latest", "base", "mid", "sft", "rl"], Short("-i")] = "latest"
    """Training stage of the model; latest is the last stage that has a checkpoint."""
    temperature: Annotated[float, between(0, 2)] = 0.0
    """0 always takes the most likely token; higher is more random."""
    top_k: Annotated[int, at_least(0)] = 50
    """Only sample from the k most likely tokens; 0 means no limit."""
    max_tokens: Annotated[int, at_least(1)] = 512
    """Maximum length of an answer in tokens."""
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest one available."""


@dataclass(frozen=True)
class EvalOptions(CheckpointOptions):
    device_type: str = ""
    """cuda, mps or cpu; empty means the fastest one available."""
    fresh: bool = False
    """Measure again what has been measured."""
