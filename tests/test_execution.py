import subprocess
from pathlib import Path

import pytest

from nanochat.errors import UserError
from nanochat.execution import ExecutionResult, execute_code


def test_without_a_sandbox_nothing_is_executed_and_the_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    trace = tmp_path / "trace"
    with pytest.raises(UserError, match="not executed without a sandbox"):
        execute_code(f"open({str(trace)!r}, 'w')")
    assert not trace.exists()


def test_a_result_has_no_timeout_and_no_memory_error_by_default() -> None:
    result = ExecutionResult(success=False, stdout="", stderr="")
    assert not (result.success or result.timed_out or result.memory_exceeded)
