"""Programs to be written from a docstring: openai/openai_humaneval (arXiv 2107.03374)."""

import itertools
from typing import Any

from nanochat.execution import SandboxLevel, describe_sandbox, grade_function
from tasks.common import Conversation, HubTask, final_text, one_turn

TIMEOUT_SECONDS = 5.0  # of a program and its tests
FENCE = "```"
OPENINGS = {FENCE, f"{FENCE}python", f"{FENCE}py", f"{FENCE}python3"}


class HumanEval(HubTask):
    """164 problems; an answer is judged by executing it, in a sandbox of the given level."""

    def __init__(
        self, start: int = 0, stop: int | None = None, sandbox: SandboxLevel = "strict"
    ) -> None:
        """Raises UserError when the level is not available, or the file cannot be downloaded."""
        describe_sandbox(sandbox)
        super().__init__("openai/openai_humaneval", "openai_humaneval/test", start, stop)
        self.sandbox = sandbox

    def to_conversation(self, row: dict[str, Any]) -> Conversation:
        solution = f"{row['prompt']}\n{row['canonical_solution']}"
        return one_turn(row["prompt"], solution, entry_point=row["entry_point"], test=row["test"])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """True if the function of the answer passes the tests of the problem."""
        text = final_text(completion)
        prompt = conversation["messages"][0]["content"]
        # Models often repeat the function of the prompt but not the imports above it.
        block = code_block(text)
        program = f"{leading_imports(prompt)}\n\n{text if block is None else block}"
        return grade_function(
            program, prompt, conversation["test"], conversation["entry_point"],
            timeout=TIMEOUT_SECONDS, level=self.sandbox,
        ).success  # fmt: skip


def code_block(text: str) -> str | None:
    """The first fenced block of Python, or None. It ends at a fence on a line of its own."""
    lines = text.split("\n")
    start = 0
    while start < len(lines):
        words = lines[start].split()
        if words and words[-1].startswith(FENCE):
            end = next((i for i in range(start + 1, len(lines)) if lines[i].strip() == FENCE), None)
            if end is None:
                return None
            if words[-1] in OPENINGS:
                return "\n".join(lines[start + 1 : end])
            start = end
        start += 1
    return None


def leading_imports(prompt: str) -> str:
    """The import lines at the top of a prompt, blank lines skipped."""
    lines = itertools.takewhile(
        lambda line: line.startswith(("import ", "from ")) or not line.strip(), prompt.splitlines()
    )
    return "\n".join(filter(str.strip, lines))
