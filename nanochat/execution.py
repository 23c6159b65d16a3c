"""Running a program that a model wrote: not before there is a sandbox to run it in."""

from dataclasses import dataclass

from nanochat.errors import UserError


@dataclass(frozen=True)
class ExecutionResult:
    """What a program did."""

    success: bool
    stdout: str
    stderr: str
    timed_out: bool = False
    memory_exceeded: bool = False


def execute_code(program: str, timeout_seconds: float = 5.0) -> ExecutionResult:
    """Would run `program` in a sandbox. Raises UserError: the sandbox is not built yet."""
    raise UserError(
        "programs that a model wrote are not executed before there is a sandbox, which this version"
        " does not have; leave HumanEval out (-a without HumanEval)"
    )
