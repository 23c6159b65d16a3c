"""What the commands share that load a trained model: chat, evaluation, export."""

import logging
from functools import partial
from typing import Any

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import Meta
from nanochat.engine import CALCULATOR, Engine, ThreadedTool, Tool
from nanochat.execution import describe_sandbox, run_tool
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer
from scripts.options import EvalOptions, InferenceOptions, ToolOptions

logger = logging.getLogger(__name__)

TOOL_SECONDS, WAIT_SECONDS = 5.0, 15.0  # of a program; with the wait for a process to run it


def tool_from(options: ToolOptions) -> Tool:
    """The tool of an engine. Raises UserError when the sandbox it needs is not available."""
    if options.tool == "calculator":
        return CALCULATOR
    logger.info("tool calls run as Python; sandbox %s", describe_sandbox(options.sandbox))
    run = partial(run_tool, timeout=TOOL_SECONDS, level=options.sandbox)
    return ThreadedTool(run, WAIT_SECONDS)


def load_engines(options: InferenceOptions, runtimes: list[Runtime]) -> tuple[list[Engine], Meta]:
    """An engine on the device of each runtime, and the checkpoint's meta."""
    stage = checkpoint_manager.find_stage() if options.source == "latest" else options.source
    tool, engines = tool_from(options), []
    for runtime in runtimes:
        model, tokenizer, meta = checkpoint_manager.load_model(
            stage, runtime, options.model_tag, options.step
        )
        engines.append(Engine(model, tokenizer, tool))
    return engines, meta


def find_checkpoint(options: EvalOptions, stage: str) -> tuple[Meta, dict[str, Any]]:
    """The meta of the checkpoint, and settings that identify its weights."""
    meta = checkpoint_manager.read_meta(stage, options.model_tag, options.step)
    # With other weights under the same step everything is measured again.
    return meta, {"model": checkpoint_manager.model_identity(meta), "step": meta["step"]}


def load_checkpoint(stage: str, meta: Meta, runtime: Runtime) -> tuple[GPT, RustBPETokenizer]:
    """The model of `meta`, even if a newer one has been saved since, and its tokenizer."""
    tag, step = meta["settings"]["model_tag"], meta["step"]
    return checkpoint_manager.load_model(stage, runtime, tag, step)[:2]
