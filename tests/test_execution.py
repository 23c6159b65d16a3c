import os
import signal
import threading
from pathlib import Path

import pytest

from nanochat import execution
from nanochat.chat import render_for_completion
from nanochat.engine import Engine, ThreadedTool, ToolCall
from nanochat.errors import UserError
from nanochat.execution import ExecutionResult, execute_code, grade_function, run_tool
from nanochat.sandbox import landlock, policy, seccomp
from scripts.inference import tool_from
from scripts.options import ToolOptions

LONG_SECONDS = 60.0  # a time limit that no program of these tests reaches

pytestmark = pytest.mark.skipif(
    len(policy.available_layers()) < 2, reason="needs seccomp and Landlock or bubblewrap"
)


@pytest.fixture(autouse=True)
def without_bubblewrap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "bubblewrap", tuple)


def test_a_program_has_its_output_and_no_flag() -> None:
    code = "import sys; print('hé'); print('warning', file=sys.stderr)"
    assert execute_code(code) == ExecutionResult(True, "hé\n", "warning\n")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("raise SystemExit", "SystemExit"),
        ("import os; os._exit(0)", "exited with code 0 before the end"),
        ("import os; os._exit(3)", "exited with code 3 before the end"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("\0", "SyntaxError: source code string cannot contain null bytes"),
        ("'\ud800'", "UnicodeEncodeError: 'utf-8' codec can't encode character"),
        ("class E(Exception):\n def __str__(self): raise self\nraise E", "E"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os; os.closerange(0, 64)", "exited with code 0 before the end"),
        ("input()", "EOFError: EOF when reading a line"),
        ("exit(" * 300, "SyntaxError"),
        ("-" * 500_000 + "1", ""),  # the parser's stack
    ],
)
def test_a_program_that_does_not_reach_its_end_has_failed(code: str, error: str) -> None:
    result = execute_code(code)
    assert not result.success and not result.timeout and not result.output_exceeded
    assert result.error is not None and error in result.error


def test_a_traceback_shows_the_lines_of_the_program_and_no_others() -> None:
    result = execute_code("x = 1\ndef f():\n    return x / 0\nf()\n")
    assert [line.strip() for line in result.stderr.splitlines() if "^" not in line] == [
        "Traceback (most recent call last):",
        'File "<program>", line 4, in <module>', "f()",
        'File "<program>", line 3, in f', "return x / 0",
        "ZeroDivisionError: division by zero",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("6 * 7", "42\n"),
        ("x = 6\nx * 7", "42\n"),
        ("'a'", "'a'\n"),
        ("None", ""),
        ("print(1)", "1\n"),
        ("x = 1", ""),
        ("for i in range(3): i", ""),
    ],
)
def test_the_value_of_a_last_expression_is_shown_on_request(code: str, expected: str) -> None:
    assert execute_code(code, show_value=True) == ExecutionResult(True, expected, "")
    if "print" not in code:
        assert execute_code(code).stdout == ""


def test_ordinary_programs_run() -> None:
    """What models write uses classes, threads, asyncio, files of its own folder, and extensions."""
    code = """
import asyncio, dataclasses, enum, pickle, sqlite3, tempfile, threading, typing, zlib
from concurrent.futures import ThreadPoolExecutor
@dataclasses.dataclass
class Point:
    x: int
assert typing.get_type_hints(Point) == {"x": int} and __name__ == "__main__"
assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
async def wait():
    await asyncio.sleep(0.001)
    return 5
assert asyncio.run(wait()) == 5
with ThreadPoolExecutor(2) as threads:
    assert list(threads.map(abs, [-1, -2])) == [1, 2]
assert sqlite3.connect(":memory:").execute("select 1").fetchall() == [(1,)]
with open("a.txt", "w") as file:
    file.write("text")
assert open("a.txt").read() == "text"
with tempfile.TemporaryFile() as file:
    file.write(b"x")
"""
    assert execute_code(code, LONG_SECONDS).error is None


def test_an_endless_loop_is_stopped_with_its_output() -> None:
    result = execute_code("print('begun')\nwhile True: pass", timeout=2)
    assert result.timeout and not result.success and result.stdout == "begun\n"
    assert result.error == "still running after 2 s"


def test_memory_is_limited() -> None:
    result = execute_code("x = bytearray(200 << 20)", maximum_memory_bytes=128 << 20)
    assert result.memory_exceeded and not result.success and result.error == "MemoryError"
    assert execute_code("x = bytearray(200 << 20)", maximum_memory_bytes=512 << 20).success


@pytest.mark.parametrize("stream", [1, 2])
def test_output_is_cut_while_it_is_read(stream: int) -> None:
    result = execute_code(f"import os\nfor _ in range(50): os.write({stream}, b'x' * 1_000_000)")
    assert result.output_exceeded and not result.success and not result.timeout
    assert len(result.stdout) + len(result.stderr) == 1 << 20


def test_output_that_is_not_utf8_is_replaced() -> None:
    result = execute_code(r"import os; os.write(1, b'\xff\xfe\x00ok')")
    assert result.success and result.stdout == "\ufffd\ufffd\x00ok"


def test_a_long_program_runs_and_a_longer_one_is_refused() -> None:
    assert execute_code("x = 1\n" * 34_000, LONG_SECONDS).success  # 200 KB
    result = execute_code("#" * 2_000_000)
    assert not result.success and result.error is not None
    assert result.error.startswith("the program has 2000000 characters; the limit is")


def test_every_program_gets_a_new_process_and_folder() -> None:
    execute_code("import math; math.pi = 3; open('a', 'w').close()")
    assert (
        execute_code("import math, os; print(math.pi, os.listdir())").stdout
        == f"{3.141592653589793} []\n"
    )


def test_many_threads_may_execute_programs_at_once() -> None:
    outputs: list[str] = []
    threads = [
        threading.Thread(
            target=lambda i=i: outputs.append(execute_code(f"print({i})", LONG_SECONDS).stdout)
        )
        for i in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, outputs)) == list(range(24))


def test_a_fork_of_this_process_has_a_pool_of_its_own() -> None:
    assert execute_code("1").success
    pid = os.fork()
    if pid == 0:
        try:
            is_right = execute_code("print(5)").stdout == "5\n"
            execution._pool(os.getpid()).close()
            os._exit(0 if is_right else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert execute_code("print(6)").stdout == "6\n"


def test_the_fork_server_is_started_again_when_it_has_been_killed() -> None:
    assert execute_code("1").success
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    assert execute_code("print(7)").stdout == "7\n"


def children() -> list[int]:
    """Direct children of this process that are fork servers."""
    task = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    pids = map(int, task.read_text().split())
    return [p for p in pids if b"fork_server" in Path(f"/proc/{p}/cmdline").read_bytes()]


# ---- levels


def test_the_active_level_is_described() -> None:
    text = execution.describe_sandbox("strict")
    assert text.startswith("strict: seccomp, ") and text.endswith(", resource limits")
    assert f"Landlock ABI {landlock.abi()}" in text


@pytest.fixture
def without_landlock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "available_layers", lambda: {"seccomp": "seccomp"})


def test_strict_is_refused_when_a_layer_is_missing(without_landlock: None) -> None:
    message = r"--sandbox=strict is not available here: Landlock .* --sandbox=limits is weaker"
    for call in (
        lambda: execution.describe_sandbox("strict"),
        lambda: execute_code("1"),
        lambda: grade_function("", "", "", "f"),
        lambda: run_tool("1"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert execution.describe_sandbox("limits") == "limits: seccomp, resource limits"
    assert execute_code("print(8)", level="limits").stdout == "8\n"


def test_strict_is_refused_without_seccomp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "is_available", lambda: False)
    with pytest.raises(UserError, match="seccomp"):
        execute_code("1")


@pytest.fixture
def without_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "available_layers", dict)


@pytest.mark.usefixtures("without_layers")
def test_limits_alone_still_bound_time_memory_output_and_the_environment() -> None:
    assert execution.describe_sandbox("limits") == "limits: resource limits"
    assert execute_code("while True: pass", 0.3, level="limits").timeout
    assert execute_code("'a' * 10**10", level="limits").memory_exceeded
    assert execute_code("while True: print('x' * 9999)", level="limits").output_exceeded
    assert execute_code("import os; print(dict(os.environ))", level="limits").stdout == "{}\n"


# ---- the tool


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("6 * 7", "42"),
        ("print('a')\nprint('b')", "a\nb"),
        ("print('a')\n1/0", "a\nZeroDivisionError: division by zero"),
        ("x = 1", ""),
        ("'x' * 10_000", "'" + "x" * 4095),
    ],
)
def test_the_tool_returns_output_and_the_last_line_of_an_error(code: str, output: str) -> None:
    assert run_tool(code) == output


def test_the_tool_has_a_time_limit() -> None:
    assert run_tool("import time\ntime.sleep(60)", timeout=0.3) == "still running after 0.3 s"


def test_commands_offer_python_as_a_tool() -> None:
    code = "'strawberry'.upper().count('R')"
    assert tool_from(ToolOptions()).submit(code).result() is None  # the calculator
    assert tool_from(ToolOptions(tool="python")).submit(code).result() == "3"


def test_the_tool_is_refused_at_a_level_that_is_not_available(without_landlock: None) -> None:
    with pytest.raises(UserError, match="--sandbox=strict is not available here"):
        tool_from(ToolOptions(tool="python"))
    assert tool_from(ToolOptions(tool="python", sandbox="limits")).submit("1+1").result() == "2"


def test_an_engine_calls_python(engine: Engine) -> None:
    calls: list[str] = []

    def run(code: str) -> str:
        calls.append(code)
        return run_tool(f"sum([{code}])")  # which the calculator cannot do

    with_python = Engine(engine.model, engine.tokenizer, ThreadedTool(run, 30))
    message = {"role": "user", "content": "What is 347 + 588?"}
    prompt = render_for_completion({"messages": [message]}, engine.tokenizer)
    events = [*with_python.stream_text(prompt)]
    assert calls == ["347 + 588"]
    assert [event.result for event in events if isinstance(event, ToolCall)] == ["935"]
