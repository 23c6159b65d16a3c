"""HumanEval in the sandbox: solutions pass, and nothing that is not one does."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nanochat.execution import ExecutionResult, grade_function
from nanochat.sandbox import policy
from tasks.humaneval import HumanEval, code_block, leading_imports
from tests.shared_data import json_lines, needs_eval_data, put_on_hub

pytestmark = pytest.mark.skipif(
    len(policy.available_layers()) < 2, reason="needs seccomp and Landlock or bubblewrap"
)
HUMANEVAL_FILE = "openai_humaneval/test-00000-of-00001.parquet"
NUM_CHEATED = 4  # problems that each cheat is tried on here; all 164 in dev/bench/sandbox.py

EQUAL_TO_EVERYTHING = """
class Equal{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __hash__(self): return 0
    def __bool__(self): return True
    def __abs__(self): return 0.0
    def __sub__(self, other): return self
    def __getattr__(self, name): return self
    def __call__(self, *arguments): return self
def {name}(*arguments):
    return Equal()
"""
FORGED = """
import json, os, struct
def forged(value):
    body = json.dumps(value).encode()
    return struct.pack(">I", len(body)) + body
for descriptor in range(64):
    for value in ({{"error": None}}, {{"value": True}}, {{"refused": None}}, {{"value": [0]}}):
        try:
            os.write(descriptor, forged(value))
        except OSError:
            pass
"""
CHEATS = {
    "exit": "import sys; sys.exit(0)",
    "_exit": "import os; os._exit(0)",
    "SystemExit in the function": "def {name}(*arguments): raise SystemExit",
    "_exit in the function": "import os\ndef {name}(*arguments): os._exit(0)",
    "equal to everything": EQUAL_TO_EVERYTHING.replace("{base}", ""),
    "a string equal to everything": EQUAL_TO_EVERYTHING.replace("{base}", "(str)"),
    "a list equal to everything": EQUAL_TO_EVERYTHING.replace("{base}", "(list)"),
    "an int equal to everything": EQUAL_TO_EVERYTHING.replace("{base}", "(int)"),
    "a float equal to everything": EQUAL_TO_EVERYTHING.replace("{base}", "(float)"),
    "forged messages": FORGED + "def {name}(*arguments): pass",
    "forged messages, then exit": FORGED + "os._exit(0)",
    "forged messages in the function": "def {name}(*arguments):" + FORGED.replace("\n", "\n    "),
    "a thread that forges": FORGED.replace("for descriptor", "def forge():\n  for descriptor")
    .replace("    for value", "      for value")
    .replace("        try", "          try")
    .replace("            os.write", "              os.write")
    .replace("        except", "          except")
    .replace("            pass", "              pass")
    + "import threading\n"
    "def forever():\n  while True: forge()\n"
    "threading.Thread(target=forever).start()\ndef {name}(*arguments): pass",
    "patched builtins": "import builtins\n"
    "builtins.AssertionError = builtins.ValueError = type('Nothing', (), {{}})\n"
    "builtins.abs = builtins.all = builtins.len = builtins.sum = lambda *a, **k: True\n"
    "def {name}(*arguments): return None",
    "patched protocol": "import sys\nfrom nanochat.sandbox import messages, worker\n"
    "messages.encode = lambda value: True\nmessages.decode = lambda value: ()\n"
    "worker.grade = worker.ask = lambda *a: None\ndef {name}(*arguments): return True",
    "a check of its own": "def check(candidate): pass\ndef {name}(*arguments): pass",
    "a swapped descriptor": "import os\nos.dup2(3, 4)\ndef {name}(*arguments): pass",
    "closed descriptors": "import os\nos.closerange(0, 64)\ndef {name}(*arguments): pass",
    "an empty body": "def {name}(*arguments): pass",
    "no function": "x = 1",
    "nothing": "",
    "not Python": "def (",
    "a deep value": "def {name}(*arguments):\n  x = []\n  for _ in range(10**5): x = [x]\n"
    "  return x",
    "a cyclic value": "def {name}(*arguments):\n  x = []\n  x.append(x)\n  return x",
    "a huge value": "def {name}(*arguments): return 'x' * (40 << 20)",
    "a huge integer": "def {name}(*arguments): return 1 << (1 << 22)",
    "NaN": "def {name}(*arguments): return float('nan')",
}


def problems() -> list[dict[str, Any]]:
    return json_lines("humaneval/HumanEval.jsonl")


def grade(problem: dict[str, Any], program: str, timeout: float = 5.0) -> ExecutionResult:
    name = problem["entry_point"]
    return grade_function(program, problem["prompt"], problem["test"], name, timeout)


@needs_eval_data
def test_the_canonical_solutions_pass() -> None:
    rows = problems()[::4]
    failed = [
        row["task_id"] for row in rows
        if not grade(row, row["prompt"] + row["canonical_solution"], 20).success
    ]  # fmt: skip
    assert failed == []


@needs_eval_data
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheat_passes_nothing(cheat: str) -> None:
    rows = problems()[5 :: 164 // NUM_CHEATED][:NUM_CHEATED]

    def passes(row: dict[str, Any]) -> bool:
        return grade(row, CHEATS[cheat].format(name=row["entry_point"])).success

    with ThreadPoolExecutor(2) as threads:
        assert not any(threads.map(passes, rows))


@needs_eval_data
def test_an_endless_loop_passes_nothing() -> None:
    for loop in ("while True: pass", "def {name}(*a):\n  while True: pass"):
        row = problems()[0]
        result = grade(row, loop.format(name=row["entry_point"]), timeout=0.5)
        assert result.timeout and not result.success


def test_values_and_exceptions_cross_the_processes_unchanged() -> None:
    program = """
def f(x):
    if isinstance(x, str) and x.startswith("raise"):
        raise ValueError(x) if "V" in x else type("Own", (Exception,), {})(x)
    return x
"""
    test = """
def check(candidate):
    values = [
        None, True, False, 0, -1, 2**63, -(2**64), 10**4000, 0.1, -0.0, float("inf"), 1e-320,
        1 + 2j,
        "", "a\\x00\\ud800\\U0001f600", b"\\xff", [], [1, [2.5, "x"]], (), (1, (2,)), {1, 2},
        frozenset([3]), {}, {1: "a", (2, 3): [4], None: {5}}, [True, 1, 1.0],
    ]
    for value in values:
        got = candidate(value)
        assert got == value and type(got) is type(value) and repr(got) == repr(value), (got, value)
        assert candidate(x=value) == value
    nan = candidate(float("nan"))
    assert nan != nan
    for text, kind in (("raise V", ValueError), ("raise", RuntimeError)):
        try:
            candidate(text)
        except kind as error:
            assert text in str(error) and type(error) is kind
        else:
            assert False
    try:
        candidate(1, 2)
    except TypeError:
        pass
"""
    assert grade_function(program, "", test, "f") == ExecutionResult(True, "", "")


def test_a_test_may_use_helper_functions_of_the_prompt() -> None:
    prompt = "def double(x):\n    return 2 * x\n\ndef f(x):\n    '''Half of x.'''\n"
    test = "def check(candidate):\n    assert f(double(3)) == candidate(6) == 3\n"
    # The program's own helper function, which is wrong, is not used.
    program = "def double(x): return 0\ndef f(x): return x // 2"
    assert grade_function(program, prompt, test, "f").success
    assert not grade_function("def f(x): return 0", prompt, test, "f").success


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("x = 1", "AttributeError"),
        ("def f(x): return {}[x]", "KeyError"),
        ("def f(x): return object()", "a value of type object is not plain data"),
        ("def f(x): return x + 1", "AssertionError: not the same"),
        ("x = bytearray(10**10)", "MemoryError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import os\nos._exit(0)", "exited with code 0 before the end"),
    ],
)
def test_a_failure_is_explained(program: str, error: str) -> None:
    test = "def check(candidate):\n    assert candidate(5) == 5, 'not the same'\n"
    result = grade_function(program, "", test, "f")
    assert not result.success and result.error is not None and error in result.error
    assert result.memory_exceeded == (error == "MemoryError")


# ---- the task


@needs_eval_data
def test_the_task_judges_answers() -> None:
    put_on_hub("openai/openai_humaneval", HUMANEVAL_FILE, problems())
    task = HumanEval()
    assert len(task) == 164
    for index in range(3):
        item = task[index]
        solution = item["messages"][1]["content"]
        assert task.evaluate(item, solution)
        assert task.evaluate(item, f"Sure:\n```python\n{solution}\n```\nDone.<|assistant_end|>")
        assert task.reward(item, solution) == 1.0
        assert not task.evaluate(item, "I do not know.")
        assert not task.evaluate(item, f"```python\npass\n```\n```python\n{solution}\n```")


@needs_eval_data
def test_imports_of_the_prompt_need_not_be_repeated() -> None:
    put_on_hub("openai/openai_humaneval", HUMANEVAL_FILE, problems())
    task = HumanEval()
    prompts = [task[i]["messages"][0]["content"] for i in range(len(task))]
    index = next(i for i, prompt in enumerate(prompts) if "List[" in prompt)
    assert leading_imports(prompts[index]).startswith("from typing import ")
    solution = task[index]["messages"][1]["content"]
    assert task.evaluate(task[index], solution[solution.index("def ") :])


@pytest.mark.parametrize(
    ("text", "block"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("```\nx = 1\n```\nand\n```python\ny = 2\n```", "x = 1"),
        ("Sure: ```python\nx = 1\n  ```  \n", "x = 1"),
        ("```python\nx = '```'\n```", "x = '```'"),
        ("```python\n'''\n```text\n'''\n```", "'''\n```text\n'''"),
        ("```bash\npip install x\n```\nthen\n```py\nx = 1\n```", "x = 1"),
        ("```python\n```", ""),
        ("```python\nx = 1", None),
        ("x = 1", None),
        ("", None),
    ],
)
def test_a_block_ends_at_a_fence_on_a_line_of_its_own(text: str, block: str | None) -> None:
    assert code_block(text) == block
