"""Execution of model-written programs: refused until there is a sandbox."""

from dataclasses import dataclass

from nanochat.errors import UserError


@dataclass(frozen=True)
class ExecutionResult:
    """The outcome of a program."""

    success: bool
    stdout: str
    stderr: str
    timed_out: bool = False
    memory_exceeded: bool = False


def execute_code(program: str, timeout_seconds: float = 5.0) -> ExecutionResult:
    """Will execute `program` in a sandbox. Raises UserError: there is no sandbox yet."""
    # Not even in a subprocess: a model's program has all the rights of the user who runs it.
    raise UserError(
        "programs that a model wrote are not executed without a sandbox, which this version does"
        " not have; leave HumanEval out (-a without HumanEval)"
    )
