"""Programs to be written from a docstring: openai/openai_humaneval (arXiv 2107.03374)."""

import itertools
import re
from typing import Any

from nanochat.execution import execute_code
from tasks.common import Conversation, HubTask, final_text, one_turn

CODE_BLOCK = re.compile(r"```(?:python)?\s*\n(.*?)```", re.DOTALL)


class HumanEval(HubTask):
    """164 problems; an answer is judged by executing it, which needs the sandbox."""

    def __init__(self, start: int = 0, stop: int | None = None) -> None:
        super().__init__("openai/openai_humaneval", "openai_humaneval/test", start, stop)

    def to_conversation(self, row: dict[str, Any]) -> Conversation:
        solution = f"{row['prompt']}\n{row['canonical_solution']}"
        return one_turn(row["prompt"], solution, entry_point=row["entry_point"], test=row["test"])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Raises UserError as long as there is no sandbox to execute the program in."""
        text = final_text(completion)
        block = CODE_BLOCK.search(text)
        # Models often repeat the function of the prompt but not the imports above it.
        imports = leading_imports(conversation["messages"][0]["content"])
        check = f"check({conversation['entry_point']})"
        body = block[1] if block else text
        return execute_code("\n\n".join([imports, body, conversation["test"], check])).success


def leading_imports(prompt: str) -> str:
    """The import lines at the top of a prompt, blank lines skipped."""
    lines = itertools.takewhile(
        lambda line: line.startswith(("import ", "from ")) or not line.strip(), prompt.splitlines()
    )
    return "\n".join(filter(str.strip, lines))
