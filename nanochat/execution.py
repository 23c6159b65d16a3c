"""Programs that a model wrote, executed in a sandbox (`nanochat.sandbox`).

execute_code("print(6 * 7)")                          stdout is "42\\n"
grade_function(program, prompt, test, "add")          whether a function passes a test
run_tool("6 * 7")                                     "42", as a tool for the engine

All of them take `level`: strict (two kernel layers, the default) or limits; raise UserError if the
machine does not have it; and never raise for what a program does. Any thread may call them.
"""

import math
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from nanochat.errors import UserError
from nanochat.sandbox import policy
from nanochat.sandbox.policy import SandboxError
from nanochat.sandbox.pool import Outcome, Pool

SandboxLevel = Literal["strict", "limits"]

MEMORY_BYTES = 256 << 20
MAX_PROGRAM_CHARACTERS = 1 << 20
MAX_TOOL_CHARACTERS = 4096


@dataclass(frozen=True)
class ExecutionResult:
    """The outcome of a program. With `execute_code` success is the program's own claim."""

    success: bool  # it reached its end: no exception, no exit
    stdout: str
    stderr: str
    error: str | None = None  # the last line of the traceback, or the limit that ended it
    timeout: bool = False
    memory_exceeded: bool = False
    output_exceeded: bool = False


def describe_sandbox(level: SandboxLevel) -> str:
    """What confines programs, for a report. Raises UserError when the level is not available."""
    return f"{level}: {', '.join([*_layers(level).values(), 'resource limits'])}"


def execute_code(
    code: str,
    timeout: float = 5.0,
    maximum_memory_bytes: int = MEMORY_BYTES,
    *,
    level: SandboxLevel = "strict",
    show_value: bool = False,
) -> ExecutionResult:
    """Execute a program for at most `timeout` seconds.

    show_value: print the value of a last expression, as a prompt of Python does.
    """
    if too_long := _too_long(code):
        return too_long
    job = _job("run", level, timeout, maximum_memory_bytes)
    job |= {"program": code, "show_value": show_value}

    def run(pool: Pool) -> ExecutionResult:
        with pool.start(has_output=True) as worker:
            worker.give(job)
            worker.confirm()
            return _result(worker.watch(timeout), timeout)

    return _in_pool(run, level)


def grade_function(
    program: str,
    prompt: str,
    test: str,
    function: str,
    timeout: float = 5.0,
    maximum_memory_bytes: int = MEMORY_BYTES,
    *,
    level: SandboxLevel = "strict",
) -> ExecutionResult:
    """Whether `function` of a program passes `test`, which defines check(candidate).

    The test runs in another process than the program, after `prompt`, whose helper functions it may
    use. Arguments and values are exchanged as plain data, so the program cannot influence the
    verdict other than by the values it computes.
    """
    if too_long := _too_long(program):
        return too_long
    program_job = _job("serve", level, timeout, maximum_memory_bytes)
    program_job |= {"program": program, "show_value": False}
    grader_job = _job("grade", level, timeout, maximum_memory_bytes)
    grader_job |= {"prompt": prompt, "test": test, "function": function}

    def run(pool: Pool) -> ExecutionResult:
        with pool.start_linked() as (program_worker, grader):
            program_worker.give(program_job)
            grader.give(grader_job)
            program_worker.confirm()
            grader.confirm()
            result = _result(grader.watch(timeout), timeout)
            if not (grader.outcome.report or {}).get("is_unanswered"):
                return result
            # The reason is the program's. Only the reason: its report may be forged.
            ended = program_worker.stop()
            if ended.exit_code == -signal.SIGKILL or ended.error is None:
                return result
            is_memory = _result(ended, timeout).memory_exceeded
            return replace(result, error=ended.error, memory_exceeded=is_memory)

    return _in_pool(run, level)


def run_tool(code: str, timeout: float = 5.0, level: SandboxLevel = "strict") -> str:
    """What a program prints, and the last line of an error; at most 4,096 characters."""
    result = execute_code(code, timeout, level=level, show_value=True)
    lines = [result.stdout.rstrip("\n"), result.error or ""]
    return "\n".join(filter(None, lines))[:MAX_TOOL_CHARACTERS]


@cache
def _pool(process_id: int) -> Pool:
    """The pool of this process: one that it has inherited by a fork belongs to its parent."""
    return Pool()


def _in_pool(run: Callable[[Pool], ExecutionResult], level: SandboxLevel) -> ExecutionResult:
    pool = _pool(os.getpid())
    with pool.slots:
        try:
            with suppress(SandboxError):
                return run(pool)
            time.sleep(0.1)  # the fork server may just have been killed; if so, it is replaced
            return run(pool)
        except SandboxError as error:
            raise _unavailable(level, error) from None


def _layers(level: SandboxLevel) -> dict[str, str]:
    try:
        return policy.layers_for(level)
    except SandboxError as error:
        raise _unavailable(level, error) from None


def _unavailable(level: SandboxLevel, error: SandboxError) -> UserError:
    remedy = "use another machine or leave out what executes programs"
    if level == "strict":
        remedy = "--sandbox=limits is weaker: a program could read your files and use the network"
    return UserError(f"--sandbox={level} is not available here: {error}; {remedy}")


def _job(kind: str, level: SandboxLevel, timeout: float, memory_bytes: int) -> dict[str, Any]:
    # CPU time is a second bound, in case this process is stopped.
    limits = {"memory_bytes": memory_bytes, "cpu_seconds": math.ceil(timeout) + 1}
    return {"kind": kind, "layers": [*_layers(level)], "limits": limits}


def _too_long(program: str) -> ExecutionResult | None:
    if len(program) <= MAX_PROGRAM_CHARACTERS:
        return None
    error = f"the program has {len(program)} characters; the limit is {MAX_PROGRAM_CHARACTERS}"
    return ExecutionResult(False, "", "", error)


def _result(outcome: Outcome, timeout: float) -> ExecutionResult:
    error = f"still running after {timeout:g} s" if outcome.is_timeout else outcome.error
    stdout, stderr = (
        output.decode("utf-8", errors="replace") for output in outcome.outputs or (b"", b"")
    )
    is_memory = error is not None and bool((outcome.report or {}).get("memory"))
    return ExecutionResult(
        error is None, stdout, stderr, error, outcome.is_timeout, is_memory,
        outcome.is_output_exceeded,
    )  # fmt: skip
